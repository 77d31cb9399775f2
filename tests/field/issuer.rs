//! The least of a hub that enrols and renews: its own CA, one code, and an upgrade that it answers
//! and then hangs up on. What it was asked is kept.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa,
    Issuer as Ca, KeyPair, PublicKeyData as _,
};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::Field;

/// The one code that it takes, once.
pub const CODE: &str = "7F3K-0A1B-2CZ9";

/// What it calls itself, and the gateway that the code is for.
pub const AUDIENCE: &str = "issuer.test";
pub const GATEWAY: &str = "gw-7f3a";

pub struct Issuer {
    pub port: u16,
    /// The CA's certificate, in PEM.
    pub ca: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    port: u16,
    ca: Ca<'static, KeyPair>,
    ca_pem: String,
    tls: Arc<ServerConfig>,
    /// The request that spent the code: the same is answered again, and no other.
    code_is_for: Mutex<Option<Vec<u8>>>,
    /// The next answer to a code is not sent.
    loses_answer: AtomicBool,
    issued: AtomicU64,
    /// Client certificates are nothing to it; tokens are.
    wants_tokens: bool,
    /// Nobody's upgrade is taken.
    closed: AtomicBool,
    stop: AtomicBool,
    heard: Mutex<Vec<String>>,
}

impl Issuer {
    pub fn start(wants_tokens: bool) -> Self {
        let must = "a certificate from fixed parameters";
        let mut params = CertificateParams::new([]).expect(must);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "issuer CA");
        let ca_key = KeyPair::generate().expect(must);
        let ca_pem = params.self_signed(&ca_key).expect(must).pem();
        let ca = Ca::new(params, ca_key);
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let port = listener.local_addr().expect("a bound socket").port();
        let shared = Arc::new(Shared {
            port,
            tls: tls(&ca, &ca_pem),
            ca,
            ca_pem: ca_pem.clone(),
            code_is_for: Mutex::default(),
            loses_answer: AtomicBool::new(false),
            issued: AtomicU64::new(1),
            wants_tokens,
            closed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            heard: Mutex::default(),
        });
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || shared.serve(&listener)
        });
        Self { port, ca: ca_pem, shared, thread: Some(thread) }
    }

    /// The fingerprint of its CA: the first 16 bytes of the SHA-256 of the public key, in base32.
    pub fn fingerprint(&self) -> String {
        const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
        let der = CertificateDer::from_pem_slice(self.ca.as_bytes()).expect("its own certificate");
        let (_, ca) = x509_parser::parse_x509_certificate(&der).expect("its own certificate");
        let hash = ring::digest::digest(&ring::digest::SHA256, ca.public_key().raw);
        let bits = |at: usize| {
            hash.as_ref()
                .get(at / 8)
                .filter(|_| at < 128)
                .map_or(0, |byte| byte >> (7 - at % 8) & 1)
        };
        let digit = |at: usize| (0..5).fold(0, |sum, bit| sum << 1 | bits(at * 5 + bit));
        (0..26).map(|at| char::from(DIGITS[usize::from(digit(at))])).collect()
    }

    /// As an operator would type it, or a phone read it.
    pub fn invitation(&self, code: &str, fingerprint: &str) -> String {
        format!("FIELDGATE:localhost:{}/{code}/{fingerprint}", self.port)
    }

    /// From now on no upgrade is taken.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::Relaxed);
    }

    /// The answer to the code is not sent, once; the code is spent all the same.
    pub fn lose_answer(&self) {
        self.shared.loses_answer.store(true, Ordering::Relaxed);
    }

    /// Each request's first line, and behind it the serial number of the client's certificate.
    pub fn heard(&self) -> Vec<String> {
        self.shared.heard.lock().expect("no handler panics").clone()
    }

    /// A certificate for somebody's key, of this CA, until the first day of `end`.
    pub fn issue(&self, field: &Field, name: &str, end: i32) -> KeyPair {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([]).expect("fixed parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(end, 1, 1);
        let cert = params.signed_by(&key, &self.shared.ca).expect("a certificate");
        field.write(format!("{name}.pem"), cert.pem());
        super::certificate::private(&field.write(format!("{name}.key"), key.serialize_pem()));
        key
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the thread, which waits in accept().
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if matches!(self.thread.take().map(JoinHandle::join), Some(Err(_))) {
            eprintln!("the issuer's thread panicked");
        }
    }
}

fn tls(ca: &Ca<'static, KeyPair>, ca_pem: &str) -> Arc<ServerConfig> {
    let must = "a certificate from fixed parameters";
    let key = KeyPair::generate().expect(must);
    let params = CertificateParams::new(["localhost".to_owned()]).expect(must);
    let own = params.signed_by(&key, ca).expect(must).der().clone();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).expect(must)).expect(must);
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .expect(must);
    let config = ServerConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().expect("ring has TLS 1.2, 1.3");
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect(must);
    let config = config.with_client_cert_verifier(verifier).with_single_cert(vec![own], key);
    Arc::new(config.expect(must))
}

type Tls = StreamOwned<ServerConnection, TcpStream>;

impl Shared {
    fn serve(&self, listener: &TcpListener) {
        for tcp in listener.incoming() {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let Ok(tcp) = tcp else { continue };
            let patience = Some(Duration::from_secs(5));
            if tcp.set_read_timeout(patience).is_err() {
                continue;
            }
            let session = ServerConnection::new(self.tls.clone()).expect("a checked configuration");
            let mut tls = StreamOwned::new(session, tcp);
            if let Some(request) = read(&mut tls) {
                let answer = self.answer(&request, serial(&tls.conn));
                // The client may have turned away.
                let _ = tls.write_all(answer.as_bytes());
                tls.conn.send_close_notify();
                let _ = tls.flush();
            }
        }
    }

    fn answer(&self, request: &str, serial: Option<String>) -> String {
        let (head, body) = request.split_once("\r\n\r\n").expect("a whole request");
        let line = head.lines().next().unwrap_or_default().to_owned();
        let has_certificate = serial.is_some();
        let heard = format!("{line} {}", serial.unwrap_or_default()).trim_end().to_owned();
        self.heard.lock().expect("no handler panics").push(heard);
        let body: Value = serde_json::from_str(body).unwrap_or_default();
        match line.trim_end_matches(" HTTP/1.1") {
            "GET /v1/enroll/ca" => reply("200 OK", &self.ca_pem),
            "POST /v1/enroll" => {
                if body["code"] != CODE || !self.spend_code(&body) {
                    let error = json!({ "error": { "code": "enrolment_refused", "message": "" } });
                    return reply("403 Forbidden", &error.to_string());
                }
                let answer = self.sign(&body);
                let is_lost = self.loses_answer.swap(false, Ordering::Relaxed);
                if is_lost { String::new() } else { answer }
            }
            "POST /v1/renew" if has_certificate => self.sign(&body),
            "GET /v1/gateway" if self.lets_in(head, has_certificate) => upgraded(head),
            _ => reply("401 Unauthorized", ""),
        }
    }

    fn spend_code(&self, body: &Value) -> bool {
        let request = body["csr"].as_str().unwrap_or_default();
        let request = CertificateSigningRequestParams::from_pem(request).expect("a request");
        let key = request.public_key.der_bytes().to_vec();
        let mut code_is_for = self.code_is_for.lock().expect("no handler panics");
        *code_is_for.get_or_insert_with(|| key.clone()) == key
    }

    fn lets_in(&self, head: &str, has_certificate: bool) -> bool {
        let shows = if self.wants_tokens { shows_token(head) } else { has_certificate };
        shows && !self.closed.load(Ordering::Relaxed)
    }

    fn sign(&self, body: &Value) -> String {
        let request = body["csr"].as_str().unwrap_or_default();
        let mut request = CertificateSigningRequestParams::from_pem(request).expect("a request");
        request.params.distinguished_name = rcgen::DistinguishedName::new();
        request.params.distinguished_name.push(DnType::CommonName, GATEWAY);
        let serial = self.issued.fetch_add(1, Ordering::Relaxed);
        request.params.serial_number = Some(serial.into());
        request.params.not_after = rcgen::date_time_ymd(2100, 1, 1);
        let certificate = request.signed_by(&self.ca).expect("a certificate for the request");
        let answer = json!({
            "gateway": GATEWAY,
            "certificate": certificate.pem(),
            "ca": self.ca_pem,
            "uplink": format!("wss://localhost:{}/v1/gateway", self.port),
            "audience": AUDIENCE,
            "public_key_registered": true,
        });
        reply("200 OK", &answer.to_string())
    }
}

fn serial(session: &ServerConnection) -> Option<String> {
    let own = session.peer_certificates()?.first()?;
    let (_, own) = x509_parser::parse_x509_certificate(own).expect("it was verified");
    Some(own.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Whether there is a token, and it is of now.
fn shows_token(head: &str) -> bool {
    let claims = head.split_once("Bearer ey").and_then(|(_, token)| token.split('.').nth(1));
    let claims = claims.and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok());
    let claims: Value = serde_json::from_slice(&claims.unwrap_or_default()).unwrap_or_default();
    let now = OffsetDateTime::now_utc().unix_timestamp();
    claims["iat"].as_i64().is_some_and(|issued| (issued - now).abs() <= 60)
}

fn upgraded(head: &str) -> String {
    let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "));
    let accept = derive_accept_key(key.unwrap_or_default().as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Protocol: fieldgate.v1.json\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}

fn reply(status: &str, body: &str) -> String {
    let length = body.len();
    let now = OffsetDateTime::now_utc();
    let (day, month) = (now.weekday().to_string(), now.month().to_string());
    let (hour, minute, second) = now.to_hms();
    format!(
        "HTTP/1.1 {status}\r\nDate: {}, {:02} {} {} {hour:02}:{minute:02}:{second:02} GMT\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}",
        &day[..3],
        now.day(),
        &month[..3],
        now.year(),
    )
}

fn read(tls: &mut Tls) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let length = tls.read(&mut buffer).ok().filter(|length| *length > 0)?;
        bytes.extend_from_slice(&buffer[..length]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        if body.len() >= length.map_or(0, |length| length.parse().unwrap_or(0)) {
            return Some(text.into_owned());
        }
    }
}
