//! TLS under the WebSocket, against servers of rustls.

use tokio::io::AsyncReadExt as _;

use std::{fs::Permissions, os::unix::fs::PermissionsExt, path::PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{
    identity::{ClientCertificates, Clock, client_tls, server_tls},
    link::Request,
};

struct Authority {
    directory: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let own = params.self_signed(&key).unwrap();
        std::fs::write(directory.path().join("ca.pem"), own.pem()).unwrap();
        Self { directory, issuer: Issuer::new(params, key) }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// A certificate and its key, as files.
    fn issue(&self, params: CertificateParams) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        let cert_file = self.directory.path().join("cert.pem");
        let key_file = self.directory.path().join("key.pem");
        std::fs::write(&cert_file, chain).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&key_file, Permissions::from_mode(0o600)).unwrap();
        (cert_file, key_file)
    }

    /// A TLS server that serves one client until it goes.
    async fn serve(&self, params: CertificateParams) -> u16 {
        let key = KeyPair::generate().unwrap();
        let chain = vec![params.signed_by(&key, &self.issuer).unwrap().der().clone()];
        let key = key.serialize_der().try_into().unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let (listener, port) = bound().await;
        tokio::spawn(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(tls) = TlsAcceptor::from(Arc::new(config)).accept(tcp).await else {
                return;
            };
            if let Ok(mut socket) = tokio_tungstenite::accept_async(tls).await {
                use futures_util::{SinkExt, StreamExt};
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_text() && socket.send(message).await.is_err() {
                        return;
                    }
                }
            }
        });
        port
    }

    fn target(&self, port: u16) -> Target {
        let mut target = target_at(port);
        target.url.tls = true;
        target.tls = Some(client_tls(Some(&self.file()), None, &Clock::of_system()).unwrap());
        target.ca_file = Some(self.file());
        target
    }
}

/// 2200-01-01, when certificates end where a test does not say otherwise.
const UNTIL_MS: u64 = 7_258_118_400_000;

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2200, 1, 1);
    params
}

#[tokio::test]
async fn messages_pass_over_tls_by_name_and_by_address() {
    let authority = Authority::new("a CA");
    for host in ["127.0.0.1", "localhost"] {
        let port = authority.serve(named(host)).await;
        let mut target = authority.target(port);
        target.url.host = host.to_owned();
        let mut link = open(target);
        let up = next(&mut link).await;
        let Event::Up { subprotocol: None, valid_until_ms: Some(until_ms), .. } = up else {
            panic!("{up:?}");
        };
        assert_eq!(until_ms, UNTIL_MS);
        link.requests.send(Request::Text("hi".into())).await.unwrap();
        assert!(matches!(next(&mut link).await, Event::Text(text) if text == "hi"));
    }
}

/// A board with a wrong clock signs its tokens in vain, until it has heard the time so.
#[tokio::test]
async fn a_refusal_over_tls_tells_the_time_and_under_which_certificate() {
    let authority = Authority::new("a CA");
    let (cert, key) = authority.issue(named("127.0.0.1"));
    let server = server_tls(
        &cert,
        &key,
        ClientCertificates::Required(&authority.file()),
        &Clock::of_system(),
    )
    .unwrap();
    let (listener, port) = bound().await;
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut tls = TlsAcceptor::from(server).accept(tcp).await.unwrap();
        let answer = "HTTP/1.1 401 Unauthorized\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n";
        tls.write_all(answer.as_bytes()).await.unwrap();
        // The request is read, else its remains would reset the connection.
        while tls.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
    });
    let mut target = authority.target(port);
    let pair = Some((&*cert, &*key));
    target.tls = Some(client_tls(Some(&authority.file()), pair, &Clock::of_system()).unwrap());
    let mut link = open(target);
    let Event::Down(Down::Refused { status: 401, date_ms, valid_until_ms, .. }) =
        next(&mut link).await
    else {
        panic!("a refusal was due");
    };
    assert_eq!((date_ms, valid_until_ms), (Some(784_111_777_000), Some(UNTIL_MS)));
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused_and_the_file_named() {
    let ours = Authority::new("a CA");
    let file = ours.file().display().to_string();
    let strange = Authority::new("another CA");
    let port = strange.serve(named("127.0.0.1")).await;
    let (step, error) = fails(ours.target(port)).await;
    assert_eq!(step, "TLS");
    assert!(error.contains(&format!("is not in {file}")), "{error}");
    // As after a hub that made its CA anew.
    let namesake = Authority::new("a CA");
    let port = namesake.serve(named("127.0.0.1")).await;
    let (_, error) = fails(ours.target(port)).await;
    assert!(error.contains("same name") && error.contains(&file), "{error}");
}

#[tokio::test]
async fn an_echo_server_flooded_both_ways_over_tls_never_deadlocks() {
    const MESSAGES: u32 = 500;
    let authority = Authority::new("a CA");
    let port = authority.serve(named("127.0.0.1")).await;
    let mut link = open(authority.target(port));
    assert!(matches!(next(&mut link).await, Event::Up { .. }));
    let requests = link.requests.clone();
    tokio::spawn(async move {
        for _ in 0..MESSAGES {
            requests.send(Request::Text("x".repeat(32 * 1024))).await.unwrap();
        }
    });
    for number in 0..MESSAGES {
        let event = next(&mut link).await;
        assert!(matches!(event, Event::Text(_)), "message {number} was due, not {event:?}");
    }
}

#[tokio::test]
async fn a_server_that_demands_a_certificate_is_understood() {
    let authority = Authority::new("a CA");
    let (cert, key) = authority.issue(named("127.0.0.1"));
    let server = server_tls(
        &cert,
        &key,
        ClientCertificates::Required(&authority.file()),
        &Clock::of_system(),
    )
    .unwrap();
    let (listener, port) = bound().await;
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let _ = TlsAcceptor::from(server.clone()).accept(tcp).await;
        }
    });
    for _ in 0..20 {
        // With TLS 1.3 the refusal comes after our side of the handshake is done.
        let (step, error) = fails(authority.target(port)).await;
        assert!(matches!(step, "TLS" | "upgrade"), "{step}");
        assert!(error.contains("set client_cert_file"), "{error}");
    }
}

#[tokio::test]
async fn a_wrong_server_name_is_refused_and_the_right_ones_named() {
    let authority = Authority::new("a CA");
    let port = authority.serve(named("hub.example.com")).await;
    let (step, error) = fails(authority.target(port)).await;
    assert_eq!(step, "TLS");
    assert!(error.contains("is for hub.example.com, not for 127.0.0.1"), "{error}");
}

#[tokio::test]
async fn wrong_dates_are_refused_and_the_clock_is_mentioned() {
    let authority = Authority::new("a CA");
    let mut old = named("127.0.0.1");
    old.not_before = rcgen::date_time_ymd(2019, 1, 1);
    old.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let (_, error) = fails(authority.target(authority.serve(old).await)).await;
    assert!(error.contains("expired at 2020-01-01") && error.contains("clock"), "{error}");
    let mut early = named("127.0.0.1");
    early.not_before = rcgen::date_time_ymd(2100, 1, 1);
    let (_, error) = fails(authority.target(authority.serve(early).await)).await;
    assert!(error.contains("before 2100-01-01") && error.contains("clock"), "{error}");
}

#[tokio::test]
async fn a_server_without_tls_or_that_goes_or_says_nothing_is_told_apart() {
    let authority = Authority::new("a CA");
    let (listener, port) = bound().await;
    let server = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let _ = tcp.read(&mut [0; 1024]).await;
        drop(tcp);
        let (mut tcp, _) = listener.accept().await.unwrap();
        let _ = tcp.read(&mut [0; 1024]).await;
        drop(tcp);
        listener.accept().await.unwrap()
    });
    let (step, error) = fails(authority.target(port)).await;
    assert_eq!(step, "TLS");
    assert!(error.contains("does not speak TLS"), "{error}");
    let (step, error) = fails(authority.target(port)).await;
    assert_eq!(step, "TLS");
    assert!(error.contains("127.0.0.1"), "{error}");
    let short = Duration::from_millis(200);
    let silent = Target { connect_timeout: short, ..authority.target(port) };
    let (step, error) = fails(silent).await;
    assert_eq!(step, "TLS");
    assert!(error.contains("within 200ms"), "{error}");
    server.await.unwrap();
}

/// The handshakes of a server that answers one ping per client, by kind.
async fn handshakes(config: Arc<ServerConfig>, clients: usize) -> (u16, Handshakes) {
    let (listener, port) = bound().await;
    let kinds = tokio::spawn(async move {
        let mut kinds = Vec::new();
        for _ in 0..clients {
            let (tcp, _) = listener.accept().await.unwrap();
            let tls = TlsAcceptor::from(config.clone()).accept(tcp).await.unwrap();
            kinds.extend(tls.get_ref().1.handshake_kind());
            let mut socket = tokio_tungstenite::accept_async(tls).await.unwrap();
            use futures_util::StreamExt as _;
            while let Some(Ok(_)) = socket.next().await {}
        }
        kinds
    });
    (port, kinds)
}

type Handshakes = tokio::task::JoinHandle<Vec<rustls::HandshakeKind>>;

#[tokio::test]
async fn the_second_handshake_with_a_server_is_a_resumed_one_also_with_a_client_certificate() {
    let authority = Authority::new("a CA");
    let (cert, key) = authority.issue(named("127.0.0.1"));
    let server = server_tls(
        &cert,
        &key,
        ClientCertificates::Required(&authority.file()),
        &Clock::of_system(),
    )
    .unwrap();
    let (port, kinds) = handshakes(server, 3).await;
    let mut target = authority.target(port);
    target.tls = Some(
        client_tls(Some(&authority.file()), Some((&cert, &key)), &Clock::of_system()).unwrap(),
    );
    for _ in 0..3 {
        let mut link = open(target.clone());
        assert!(matches!(next(&mut link).await, Event::Up { .. }));
        // Its answer says that what came before it, the tickets among it, was read.
        link.requests.send(Request::Ping(Vec::new())).await.unwrap();
        assert!(matches!(next(&mut link).await, Event::Pong(_)));
    }
    let kinds = kinds.await.unwrap();
    assert_eq!(kinds[0], rustls::HandshakeKind::Full);
    assert_eq!(kinds[1..], [rustls::HandshakeKind::Resumed; 2]);
}
