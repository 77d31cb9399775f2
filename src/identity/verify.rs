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
    fn client_auth_mandatory(&self) -> bool {
        self.webpki.client_auth_mandatory()
    }

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

#[cfg(all(test, feature = "hub"))]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
    use rustls::{RootCertStore, crypto::ring, server::WebPkiClientVerifier};

    use super::*;
    use crate::identity::{RELEASED_MS, Word, trust::explain};

    const DAY_MS: u64 = 24 * 3_600_000;

    /// A certificate for `localhost` that is valid from the first day of one year to that of
    /// another, and what trusts its issuer.
    fn issued(years: (i32, i32)) -> (CertificateDer<'static>, Arc<RootCertStore>) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(params.self_signed(&ca_key).unwrap().der().clone()).unwrap();
        let issuer = Issuer::new(params, ca_key);
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        let own = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        (own.der().clone(), Arc::new(roots))
    }

    /// What both verifiers say, which is the same.
    fn check(clock: &Arc<Clock>, years: (i32, i32)) -> Result<(), String> {
        let (own, roots) = issued(years);
        let provider = || Arc::new(ring::default_provider());
        let webpki = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider());
        let servers = ServerVerifier { webpki: webpki.build().unwrap(), clock: clock.clone() };
        let webpki = WebPkiClientVerifier::builder_with_provider(roots, provider());
        let clients = ClientVerifier { webpki: webpki.build().unwrap(), clock: clock.clone() };
        // What rustls says the time is does not count.
        let never = UnixTime::since_unix_epoch(Duration::ZERO);
        let name = ServerName::try_from("localhost").unwrap();
        let server = servers.verify_server_cert(&own, &[], &name, &[], never).map(drop);
        let client = clients.verify_client_cert(&own, &[], never).map(drop);
        let words = |error| explain(&error, "localhost", None);
        let server = server.map_err(words);
        assert_eq!(server.is_ok(), client.map_err(words).is_ok(), "{server:?}");
        server
    }

    #[test]
    fn by_a_clock_that_nobody_vouches_for_only_what_is_surely_expired_is_refused() {
        let clock = Arc::new(Clock::unset());
        assert_eq!(check(&clock, (2020, 2028)), Ok(()));
        assert_eq!(check(&clock, (2030, 2031)), Ok(()), "it is checked at its beginning");
        let expired = check(&clock, (2020, 2024)).unwrap_err();
        assert!(expired.contains("expired at 2024-01-01 00:00:00 UTC"), "{expired}");
        assert!(expired.contains("checked by 2026-11-22 00:00:00 UTC"), "{expired}");
        assert!(expired.contains("the earliest that it can be"), "{expired}");
        let absurd = check(&clock, (2090, 2091)).unwrap_err();
        assert!(absurd.contains("not valid before 2090-01-01"), "{absurd}");
    }

    #[test]
    fn by_what_a_hub_confirmed_the_dates_count_as_ever() {
        let clock = Arc::new(Clock::unset());
        // The summer of 2028.
        let confirmed_ms = RELEASED_MS + 600 * DAY_MS;
        clock.handle_word(confirmed_ms, Word::Welcome, Some(confirmed_ms + DAY_MS));
        assert_eq!(check(&clock, (2020, 2029)), Ok(()));
        let expired = check(&clock, (2020, 2028)).unwrap_err();
        assert!(expired.contains("expired at 2028-01-01"), "{expired}");
        assert!(expired.contains("the hub's time"), "{expired}");
        let early = check(&clock, (2030, 2031)).unwrap_err();
        assert!(early.contains("not valid before 2030-01-01"), "{early}");
    }

    #[test]
    fn by_a_clock_that_is_trusted_nothing_is_different() {
        let clock = Clock::of_system();
        let expired = check(&clock, (2020, 2024)).unwrap_err();
        assert!(expired.contains("expired at 2024-01-01"), "{expired}");
        assert!(expired.contains("the system clock, which is trusted, says"), "{expired}");
        let early = check(&clock, (2090, 2091)).unwrap_err();
        assert!(early.contains("not valid before 2090-01-01"), "{early}");
    }
}
