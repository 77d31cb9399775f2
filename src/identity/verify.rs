//! Certificates checked by a clock that may not be right: webpki's own verifiers, told another time
//! where the system clock is not trusted (PROTOCOL.md, section 9).
//!
//! Nothing else of a check is touched: names, signatures and trust anchors are webpki's to judge.

use std::{fmt, sync::Arc, time::Duration};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    time_provider::TimeProvider,
};

use super::{
    Certificate,
    calendar::Moment,
    clock::{Basis, CertificateTime, Clock},
};

/// The time of a TLS configuration: it ages session tickets by it.
#[derive(Debug)]
pub(super) struct ClockTime(pub(super) Arc<Clock>);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0.certificate_time().as_unix_time())
    }
}

/// Checks servers.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) webpki: Arc<WebPkiServerVerifier>,
    pub(super) clock: Arc<Clock>,
}

/// Checks clients.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    pub(super) webpki: Arc<dyn ClientCertVerifier>,
    pub(super) clock: Arc<Clock>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let time = self.clock.certificate_time().for_certificates(end_entity, intermediates);
        let now = time.as_unix_time();
        (self.webpki)
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .map_err(|error| time.explain(error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let time = self.clock.certificate_time().for_certificates(end_entity, intermediates);
        (self.webpki)
            .verify_client_cert(end_entity, intermediates, time.as_unix_time())
            .map_err(|error| time.explain(error))
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// A certificate at another time than its own, where the time that it was checked by is not simply
/// the system clock's.
#[derive(Debug)]
pub(super) struct Untimely {
    fault: String,
    checked_by: CertificateTime,
}

impl fmt::Display for Untimely {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, checked_by } = self;
        write!(f, "{fault}; it was checked by {}, {}", checked_by.moment(), checked_by.why())
    }
}

impl std::error::Error for Untimely {}

impl CertificateTime {
    fn as_unix_time(self) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_millis(self.unix_ms))
    }

    fn for_certificates(self, first: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> Self {
        let chain = [first].into_iter().chain(rest);
        self.for_chain(chain.filter_map(Certificate::from_der).map(|read| read.not_before))
    }

    /// rustls knows of a wrong date only what the time was, not whose.
    fn explain(self, error: Error) -> Error {
        let fault = match &error {
            Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => {
                format!("expired at {}", Moment::of(*not_after))
            }
            Error::InvalidCertificate(CertificateError::NotValidYetContext {
                not_before, ..
            }) => format!("is not valid before {}", Moment::of(*not_before)),
            _ => return error,
        };
        if matches!(self.basis, Basis::Service(_) | Basis::Agreement) {
            return error;
        }
        let untimely = Untimely { fault, checked_by: self };
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(untimely))))
    }
}
