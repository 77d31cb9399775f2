//! TLS on both sides: whom to believe, what to show, and in words why a handshake failed.

use std::{path::Path, sync::Arc};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, RootCertStore, ServerConfig,
    client::{Resumption, WebPkiServerVerifier},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};

use super::{
    Certificate, Clock, IdentityError,
    calendar::Moment,
    certificate, credential,
    verify::{ClientVerifier, ClockTime, ServerVerifier, Untimely},
};
use crate::crypto::provider;

/// TLS sessions kept for a short second handshake: a gateway talks to few servers.
const KEPT_SESSIONS: usize = 8;

const SYSTEM_STORE: &str = "/etc/ssl/certs";

/// TLS 1.2 and 1.3 towards a server whose chain must end in `ca_file`, or in the system's trust
/// store without one, and whose name is checked. `client_cert` is the chain and the key to show
/// when asked. Dates are checked by `clock`.
///
/// # Errors
///
/// A file can't be used: the error says which, why, and what mends it.
pub fn client_tls(
    ca_file: Option<&Path>,
    client_cert: Option<(&Path, &Path)>,
    clock: &Arc<Clock>,
) -> Result<Arc<ClientConfig>, IdentityError> {
    let roots = Arc::new(match ca_file {
        Some(file) => trust_anchors(file)?,
        None => system_trust_anchors()?,
    });
    let webpki = WebPkiServerVerifier::builder_with_provider(roots, provider()).build().map_err(
        |error| {
            IdentityError::new(
                ca_file.unwrap_or(Path::new(SYSTEM_STORE)),
                error.to_string(),
                WANTED_CA,
            )
        },
    )?;
    let verifier = ServerVerifier { webpki, clock: clock.clone() };
    let builder =
        ClientConfig::builder_with_details(provider(), Arc::new(ClockTime(clock.clone())))
            .with_safe_default_protocol_versions()
            .expect("every provider has cipher suites for TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match client_cert {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let (chain, private_key) = chain_and_key(cert, key, clock)?;
            builder
                .with_client_auth_cert(chain, private_key)
                .map_err(|error| unusable_pair(cert, key, &error))?
        }
    };
    config.resumption = Resumption::in_memory_sessions(KEPT_SESSIONS);
    Ok(Arc::new(config))
}

/// Which certificates a server asks its clients for.
#[derive(Debug, Clone, Copy)]
pub enum ClientCertificates<'a> {
    /// None.
    Unasked,
    /// Who shows one must have it from this file's CA.
    Optional(&'a Path),
    /// Everybody must show one of this file's CA.
    Required(&'a Path),
}

/// TLS 1.2 and 1.3 towards clients, who show certificates as `clients` says.
///
/// # Errors
///
/// As [`client_tls`].
pub fn server_tls(
    cert: &Path,
    key: &Path,
    clients: ClientCertificates<'_>,
    clock: &Arc<Clock>,
) -> Result<Arc<ServerConfig>, IdentityError> {
    server_tls_by(cert, key, client_verifier(clients, clock)?, clock)
}

/// Likewise, with clients verified by `verifier`.
pub(super) fn server_tls_by(
    cert: &Path,
    key: &Path,
    verifier: Arc<dyn ClientCertVerifier>,
    clock: &Arc<Clock>,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let (chain, private_key) = chain_and_key(cert, key, clock)?;
    let config = ServerConfig::builder_with_details(provider(), Arc::new(ClockTime(clock.clone())))
        .with_safe_default_protocol_versions()
        .expect("every provider has cipher suites for TLS 1.2 and 1.3")
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, private_key)
        .map_err(|error| unusable_pair(cert, key, &error))?;
    Ok(Arc::new(config))
}

/// Who verifies client certificates.
pub(super) fn client_verifier(
    clients: ClientCertificates<'_>,
    clock: &Arc<Clock>,
) -> Result<Arc<dyn ClientCertVerifier>, IdentityError> {
    let (client_ca, required) = match clients {
        ClientCertificates::Unasked => return Ok(WebPkiClientVerifier::no_client_auth()),
        ClientCertificates::Optional(file) => (file, false),
        ClientCertificates::Required(file) => (file, true),
    };
    let roots = Arc::new(trust_anchors(client_ca)?);
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    let webpki = builder
        .build()
        .map_err(|error| IdentityError::new(client_ca, error.to_string(), WANTED_CA))?;
    Ok(Arc::new(ClientVerifier { webpki, clock: clock.clone() }))
}

/// Why the handshake with `server` failed, in words, with the remedy. `ca_file` is what the client
/// trusted; without one it was the system's store.
pub fn explain(error: &rustls::Error, server: &str, ca_file: Option<&Path>) -> String {
    match error {
        rustls::Error::InvalidCertificate(fault) => explain_certificate(fault, server, ca_file),
        rustls::Error::AlertReceived(alert) => explain_alert(*alert, server),
        rustls::Error::InvalidMessage(_) => {
            format!("{server} does not speak TLS on this port; check the port and the URL's scheme")
        }
        rustls::Error::PeerIncompatible(_) => {
            format!(
                "{server} speaks neither TLS 1.2 nor 1.3 as it is safe today ({error}); update it"
            )
        }
        _ => format!("{server}: {error}; if it stays, look into the server's log"),
    }
}

const WANTED_CA: &str = "it should hold the CA's certificates in PEM";

fn trust_anchors(file: &Path) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    for certificate in credential::certificates(file)? {
        roots.add(certificate).map_err(|error| {
            IdentityError::new(file, format!("a certificate in it is unusable: {error}"), WANTED_CA)
        })?;
    }
    Ok(roots)
}

/// A few malformed anchors are normal in a system's store; none at all is an error.
fn system_trust_anchors() -> Result<RootCertStore, IdentityError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (taken, ignored) = roots.add_parsable_certificates(found.certs);
    if taken == 0 {
        let errors = found.errors.len() + ignored;
        return Err(IdentityError::new(
            Path::new(SYSTEM_STORE),
            format!("the system's trust store has no usable certificate ({errors} errors)"),
            "install the package ca-certificates, or set ca_file",
        ));
    }
    Ok(roots)
}

type ChainAndKey =
    (Vec<rustls::pki_types::CertificateDer<'static>>, rustls::pki_types::PrivateKeyDer<'static>);

/// Wrong dates are only said: the clock here may be the one that is wrong, and the peer decides.
fn chain_and_key(cert: &Path, key: &Path, clock: &Clock) -> Result<ChainAndKey, IdentityError> {
    let chain = credential::certificates(cert)?;
    let own = Certificate::from_der(&chain[0]).ok_or_else(|| certificate::malformed(cert))?;
    if let Some(remark) = own.remark(clock.moment_for(own.not_before)) {
        let file = cert.display();
        tracing::warn!(%file, "certificate is {remark}; renew it, or set the clock");
    }
    Ok((chain, credential::private_key(key)?))
}

fn unusable_pair(cert: &Path, key: &Path, error: &rustls::Error) -> IdentityError {
    match error {
        rustls::Error::InconsistentKeys(_) => IdentityError::new(
            key,
            format!("it is not the key of the certificate in {}", cert.display()),
            "name the key that the certificate was issued for",
        ),
        rustls::Error::InvalidCertificate(_) => certificate::malformed(cert),
        _ => IdentityError::new(
            key,
            format!("its key can't be used: {error}"),
            "use an ECDSA (P-256, P-384), Ed25519 or RSA (2048 bits and more) key",
        ),
    }
}

fn explain_certificate(fault: &CertificateError, server: &str, ca_file: Option<&Path>) -> String {
    match fault {
        CertificateError::UnknownIssuer => match ca_file {
            Some(file) => format!(
                "the certificate of {server} was issued by a CA that is not in {}; put that CA's \
                 certificate there, or have the server send its intermediate certificates",
                file.display()
            ),
            None => format!(
                "the certificate of {server} was issued by a CA that this system does not trust; \
                 set ca_file to that CA's certificate"
            ),
        },
        CertificateError::BadSignature => format!(
            "the certificate of {server} was issued by another CA of the same name as the one in \
             {}; put the server's CA there",
            ca_file.unwrap_or(Path::new(SYSTEM_STORE)).display()
        ),
        CertificateError::NotValidForNameContext { presented, .. } => {
            let names: Vec<_> = presented.iter().map(|name| bare_name(name)).collect();
            let names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
            format!(
                "the server's certificate is for {names}, not for {server}; use one of its names \
                 in the URL, or have it issued for {server} (as subjectAltName)"
            )
        }
        CertificateError::ExpiredContext { time, not_after } => format!(
            "the certificate of {server} expired at {}, the system clock, which is trusted, says \
             {}; renew the certificate, or set the clock if it is wrong",
            Moment::of(*not_after),
            Moment::of(*time)
        ),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "the certificate of {server} is not valid before {}, the system clock, which is \
             trusted, says {}; set the clock, or wait",
            Moment::of(*not_before),
            Moment::of(*time)
        ),
        CertificateError::Other(other) if other.0.is::<Untimely>() => {
            format!("the certificate of {server} {other}; have it renewed")
        }
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            format!(
                "{server} shows a CA's certificate as its own; issue it a certificate that is \
                 signed by that CA (CA:FALSE)"
            )
        }
        _ => format!("the certificate of {server} is refused: {fault}; have it issued anew"),
    }
}

fn explain_alert(alert: AlertDescription, server: &str) -> String {
    match alert {
        AlertDescription::CertificateRequired => {
            format!(
                "{server} demands a client certificate; set client_cert_file and client_key_file"
            )
        }
        // With TLS 1.2 a server that misses the certificate can say no more than this.
        AlertDescription::HandshakeFailure => format!(
            "{server} refused the handshake; it may demand a client certificate \
             (client_cert_file), or share no cipher suite with us"
        ),
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::DecryptError
        | AlertDescription::AccessDenied => format!(
            "{server} refused our client certificate ({alert:?}); have it issued by the CA that \
             the server trusts, or renew it"
        ),
        AlertDescription::UnrecognisedName => {
            format!("{server} does not know itself by that name; correct the host in the URL")
        }
        _ => format!("{server} ended TLS with the alert {alert:?}; look into the server's log"),
    }
}

/// rustls shows names as `DnsName("hub.example.com")` and `IpAddress(192.0.2.1)`.
fn bare_name(shown: &str) -> &str {
    let inner = shown.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(shown).trim_matches('"')
}

#[cfg(all(test, feature = "hub"))]
mod tests {
    use std::{
        fs::{Permissions, set_permissions, write},
        os::unix::fs::PermissionsExt,
        path::PathBuf,
    };

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::pki_types::ServerName;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    /// A CA and one certificate with its key, as files.
    struct Made {
        directory: tempfile::TempDir,
        ca: PathBuf,
        cert: PathBuf,
        key: PathBuf,
    }

    fn made() -> Made {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, content: String| {
            let path = directory.path().join(name);
            write(&path, content).unwrap();
            set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            path
        };
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        let ca = file("ca.pem", params.self_signed(&ca_key).unwrap().pem());
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let cert = file("cert.pem", params.signed_by(&key, &issuer).unwrap().pem());
        let key = file("key.pem", key.serialize_pem());
        Made { directory, ca, cert, key }
    }

    async fn meet(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Result<(), String> {
        let (near, far) = tokio::io::duplex(4096);
        let name = ServerName::try_from("localhost").unwrap();
        let said = |error: std::io::Error| match error.get_ref().and_then(|e| e.downcast_ref()) {
            Some(error) => explain(error, "localhost", None),
            None => error.to_string(),
        };
        let serve = async {
            let mut stream = TlsAcceptor::from(server).accept(far).await?;
            stream.write_all(b"hello").await?;
            stream.shutdown().await
        };
        let ask = async {
            let mut stream = TlsConnector::from(client).connect(name, near).await.map_err(said)?;
            let mut heard = String::new();
            stream.read_to_string(&mut heard).await.map_err(said).map(|_| ())
        };
        let (_, asked) = tokio::join!(serve, ask);
        asked
    }

    #[tokio::test]
    async fn a_client_with_a_certificate_of_the_ca_gets_in_and_one_without_does_not() {
        let made = made();
        let server = server_tls(
            &made.cert,
            &made.key,
            ClientCertificates::Required(&made.ca),
            &Clock::of_system(),
        )
        .unwrap();
        let client =
            client_tls(Some(&made.ca), Some((&made.cert, &made.key)), &Clock::of_system()).unwrap();
        assert_eq!(meet(client, server.clone()).await, Ok(()));
        let bare = client_tls(Some(&made.ca), None, &Clock::of_system()).unwrap();
        let refused = meet(bare, server.clone()).await.unwrap_err();
        assert!(refused.contains("set client_cert_file"), "{refused}");
        let (other, distrusting) = (self::made(), Some(made.ca.as_path()));
        let stranger =
            client_tls(distrusting, Some((&other.cert, &other.key)), &Clock::of_system()).unwrap();
        let refused = meet(stranger, server).await.unwrap_err();
        assert!(refused.contains("refused our client certificate"), "{refused}");
    }

    #[test]
    fn a_key_that_is_not_the_certificates_is_named() {
        let (made, other) = (made(), made());
        let error = client_tls(Some(&made.ca), Some((&made.cert, &other.key)), &Clock::of_system())
            .unwrap_err();
        assert_eq!(error.file, other.key);
        assert!(error.fault.contains(made.cert.to_str().unwrap()), "{error}");
        let error =
            server_tls(&made.cert, &other.key, ClientCertificates::Unasked, &Clock::of_system())
                .unwrap_err();
        assert!(error.fault.contains("not the key of the certificate"), "{error}");
    }

    #[test]
    fn files_mixed_up_are_named() {
        let made = made();
        let swapped =
            client_tls(Some(&made.ca), Some((&made.key, &made.cert)), &Clock::of_system())
                .unwrap_err();
        assert!(swapped.to_string().contains("no certificate"), "{swapped}");
        let open = made.directory.path().join("open.pem");
        std::fs::copy(&made.key, &open).unwrap();
        set_permissions(&open, Permissions::from_mode(0o644)).unwrap();
        let refused =
            client_tls(Some(&made.ca), Some((&made.cert, &open)), &Clock::of_system()).unwrap_err();
        assert!(refused.remedy.contains("chmod 600"), "{refused}");
        let absent =
            client_tls(Some(&made.directory.path().join("none")), None, &Clock::of_system())
                .unwrap_err();
        assert!(absent.to_string().contains("no such file"), "{absent}");
    }

    #[test]
    fn names_are_shown_bare() {
        assert_eq!(bare_name("DnsName(\"hub.example.com\")"), "hub.example.com");
        assert_eq!(bare_name("IpAddress(192.0.2.1)"), "192.0.2.1");
        assert_eq!(bare_name("*.example.com"), "*.example.com");
    }
}
