//! MQTT over TLS on real sockets.

use std::{net::SocketAddr, os::unix::fs::PermissionsExt as _, time::Instant};

use rumqttc::{AsyncClient, MqttOptions, QoS};
use rustls::pki_types::PrivateKeyDer;
use tokio::{io::AsyncWriteExt as _, sync::mpsc};

use super::*;
use crate::{
    config,
    identity::{Clock, FollowedServer, ServerFiles},
    record::SourceId,
    source::{
        Request, Sink,
        listener::{
            Topics, connection,
            refusals::LogLines,
            start,
            tests::{CONNECT, NOTICES, PATIENCE, answer, until_outgoing},
        },
    },
};

/// A certificate for 127.0.0.1 that is its own trust anchor, for both sides.
struct Own {
    _folder: tempfile::TempDir,
    server: FollowedServer,
    roots: rustls::RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

fn own() -> Own {
    let folder = tempfile::tempdir().unwrap();
    let [cert, key] = ["own.pem", "own.key"].map(|name| folder.path().join(name));
    let mut params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "plc-01");
    let pair = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&pair).unwrap();
    std::fs::write(&cert, certificate.pem()).unwrap();
    std::fs::write(&key, pair.serialize_pem()).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let files =
        ServerFiles { cert: cert.clone(), key, client_ca: Some(cert), client_cert_required: true };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    Own {
        _folder: folder,
        server: FollowedServer::load(files, Clock::of_system()).unwrap(),
        roots,
        chain: vec![certificate.der().clone()],
        key: pair.serialize_der(),
    }
}

fn over_tls(bind: Option<SocketAddr>) -> config::Listener {
    config::Listener {
        bind,
        tls: Some(config::ListenerTls {
            bind: ([127, 0, 0, 1], 0).into(),
            cert_file: "unused".into(),
            key_file: "unused".into(),
            client_ca_file: Some("unused".into()),
        }),
        users_file: None,
        anonymous: false,
        max_clients: 2,
        max_publish_rate: None,
        max_inflight: 2,
    }
}

#[tokio::test]
async fn over_tls_a_device_needs_its_certificate() {
    let own = own();
    let (roots, chain, key) = (own.roots, own.chain, own.key);
    let (publishes, mut heard) = mpsc::channel(4);
    let (notices, mut told) = mpsc::channel(NOTICES);
    let config = over_tls(None);
    let sink = Sink { source: SourceId(0), publishes, notices };
    let without = start(&config, Topics::of_defaults(&[]), None, sink.clone()).await.unwrap_err();
    assert!(without.to_string().contains("set cert_file and key_file"), "{without}");
    let running =
        start(&config, Topics::of_defaults(&["#"]), Some(own.server), sink).await.unwrap();
    let device = |with_certificate: bool| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone());
        let client = if with_certificate {
            let key = PrivateKeyDer::try_from(key.clone()).unwrap();
            client.with_client_auth_cert(chain.clone(), key).unwrap()
        } else {
            client.with_no_client_auth()
        };
        let mut options = MqttOptions::new("d", "127.0.0.1", running.tls.unwrap().port());
        options.set_transport(rumqttc::Transport::tls_with_config(client.into()));
        AsyncClient::new(options, 10)
    };
    let (_client, mut eventloop) = device(false);
    assert!(timeout(PATIENCE, eventloop.poll()).await.unwrap().is_err());
    let (client, mut eventloop) = device(true);
    client.try_publish("devices/plc-02/telemetry", QoS::AtMostOnce, false, "not its own").unwrap();
    until_outgoing(&mut eventloop).await;
    client.try_publish("devices/plc-01/telemetry", QoS::AtMostOnce, false, "over TLS").unwrap();
    until_outgoing(&mut eventloop).await;
    assert_eq!(&timeout(PATIENCE, heard.recv()).await.unwrap().unwrap().payload[..], b"over TLS");
    running.requests.send(Request::Stop).unwrap();
    timeout(PATIENCE, running.task).await.unwrap().unwrap();
    let mut last = String::new();
    while let Some(notice) = told.recv().await {
        last = format!("{notice:?}");
    }
    assert!(last.contains("up: false"), "{last}");
}

#[tokio::test]
async fn who_says_nothing_is_closed_at_the_deadline() {
    let own = own();
    let (publishes, _heard) = mpsc::channel(1);
    let (notices, _told) = mpsc::channel(NOTICES);
    let config = over_tls(Some(([127, 0, 0, 1], 0).into()));
    let sink = Sink { source: SourceId(0), publishes, notices };
    let running = start(&config, Topics::of_defaults(&[]), Some(own.server), sink).await.unwrap();
    let came = Instant::now();
    let silent = async |address: Option<SocketAddr>, first: &[u8]| {
        let mut stream = TcpStream::connect(address.unwrap()).await.unwrap();
        stream.write_all(first).await.unwrap();
        assert_eq!(answer(&mut stream).await, b"");
        assert!(came.elapsed() >= connection::CONNECT_DEADLINE.min(HANDSHAKE_DEADLINE));
    };
    // Nothing at all, half a CONNECT, and half a record of TLS.
    tokio::join!(
        silent(running.plain, b""),
        silent(running.plain, &CONNECT[..7]),
        silent(running.tls, b""),
        silent(running.tls, b"\x16\x03\x01\x02\x00"),
    );
}

#[tokio::test]
async fn a_flood_of_handshakes_that_fail_does_not_flood_the_log() {
    let own = own();
    let (publishes, _heard) = mpsc::channel(1);
    let (notices, _told) = mpsc::channel(NOTICES);
    let sink = Sink { source: SourceId(0), publishes, notices };
    let topics = Topics::of_defaults(&[]);
    let running = start(&over_tls(None), topics, Some(own.server), sink).await.unwrap();
    let log = LogLines::count();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(running.tls.unwrap()).await.unwrap();
        stream.write_all(CONNECT).await.unwrap();
        answer(&mut stream).await;
    }
    assert!((1..20).contains(&log.lines()), "{} lines", log.lines());
}
