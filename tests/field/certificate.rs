//! Certificates as they should not be, and a TLS server that shows one.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore, ServerConfig, ServerConnection,
    client::WantsClientCert,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use super::Field;

/// A certificate of a server and the authority that signed it, as files.
pub struct Certified {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Signs a certificate for `host` that is valid until the first day of `end`.
pub fn issue(field: &Field, name: &str, host: &str, end: i32) -> Certified {
    let must = "a certificate from fixed parameters";
    let mut params = CertificateParams::new([]).expect(must);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, format!("{name} authority"));
    let ca_key = KeyPair::generate().expect(must);
    let ca = params.self_signed(&ca_key).expect(must);
    let issuer = Issuer::new(params, ca_key);

    let mut params = CertificateParams::new([host.to_owned()]).expect(must);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(end, 1, 1);
    let key = KeyPair::generate().expect(must);
    let cert = params.signed_by(&key, &issuer).expect(must);
    let key = field.write(format!("{name}.key"), key.serialize_pem());
    private(&key);
    Certified {
        ca: field.write(format!("{name}-ca.pem"), ca.pem()),
        cert: field.write(format!("{name}.pem"), cert.pem()),
        key,
    }
}

/// Takes a file's permissions for everybody else away.
pub fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, mode).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// What trusts the authority in `ca` and nobody else.
pub fn trusting(ca: &Path) -> Arc<ClientConfig> {
    Arc::new(trusted(ca).with_no_client_auth())
}

fn trusted(ca: &Path) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca) {
        roots.add(certificate).unwrap_or_else(|e| panic!("{}: {e}", ca.display()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().expect("ring has TLS 1.2 and 1.3");
    config.with_root_certificates(roots)
}

/// An authority that signs the certificates of devices.
pub struct Authority {
    pub ca: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new(field: &Field, name: &str) -> Self {
        let must = "a certificate from fixed parameters";
        let mut params = CertificateParams::new([]).expect(must);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect(must);
        let ca = params.self_signed(&key).expect(must);
        let ca = field.write(format!("{name}.pem"), ca.pem());
        Self { ca, issuer: Issuer::new(params, key) }
    }

    /// What trusts the authority in `server_ca`, and shows a certificate of this one that is
    /// `name`'s.
    pub fn client(&self, server_ca: &Path, name: &str) -> Arc<ClientConfig> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        self.client_with(server_ca, &params)
    }

    /// The same with a certificate that says this.
    pub fn client_with(&self, server_ca: &Path, params: &CertificateParams) -> Arc<ClientConfig> {
        let must = "a certificate from fixed parameters";
        let key = KeyPair::generate().expect(must);
        let chain = vec![params.signed_by(&key, &self.issuer).expect(must).der().clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect(must);
        let trusted = trusted(server_ca);
        Arc::new(trusted.with_client_auth_cert(chain, key).expect("a certificate and its key"))
    }

    /// A list of what it revoked, PEM, that a newer one is to replace in the year `next`.
    pub fn list(&self, serials: &[u64], next: i32) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(next, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).and_then(|list| list.pem());
        list.expect("a list from fixed parameters")
    }
}

/// A server that shows its certificate and then says no more.
pub struct TlsServer {
    pub port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TlsServer {
    pub fn start(certified: &Certified) -> Self {
        let key = PrivateKeyDer::from_pem_file(&certified.key).expect("a key just written");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().expect("ring has TLS 1.2, 1.3");
        let config = config.with_no_client_auth();
        let config = config.with_single_cert(certificates(&certified.cert), key);
        let config = Arc::new(config.expect("a certificate and its key"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let port = listener.local_addr().expect("a bound socket").port();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || serve(&listener, &config, &stop)
        });
        Self { port, stop, thread: Some(thread) }
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread, which waits in accept().
        let _ = std::net::TcpStream::connect(("127.0.0.1", self.port));
        let joined = self.thread.take().map(JoinHandle::join);
        if matches!(joined, Some(Err(_))) {
            eprintln!("the TLS server's thread panicked");
        }
    }
}

fn serve(listener: &TcpListener, config: &Arc<ServerConfig>, stop: &AtomicBool) {
    for tcp in listener.incoming() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Ok(mut tcp) = tcp else { continue };
        let patience = Some(std::time::Duration::from_secs(2));
        if tcp.set_read_timeout(patience).is_err() {
            continue;
        }
        let mut session = ServerConnection::new(config.clone()).expect("a checked configuration");
        // The client is expected to turn away.
        while session.is_handshaking() && session.complete_io(&mut tcp).is_ok() {}
    }
}

fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    found.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
