//! From a URL to an open WebSocket: DNS, TCP, TLS, upgrade. Each step has its own deadline, and
//! each failure names the step, the thing and the remedy.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use rustls::{ClientConfig, pki_types::ServerName};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpStream, lookup_host},
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{
    Counters, Down, Target,
    stream::{Counted, Stream},
    upgrade::{self, Answer},
};
use crate::{config::HubUrl, identity};

/// Addresses of one name that are tried; more are left for the next dial (resolvers rotate them).
const MAX_ADDRESSES: usize = 8;

/// Silence on the connection until TCP itself asks whether the peer is there, and between its
/// questions. The gateway's pings come first; this frees sockets that nobody watches any more.
const KEEPALIVE_TIME: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How long sent bytes may go unacknowledged by the peer's kernel.
const UNACKED_LIMIT: Duration = Duration::from_secs(30);

/// Unsent bytes in the kernel above which the socket takes no more: so little that a slow link
/// shows its progress in [`Counters`] (2 s of 64 kbit/s).
const NOT_SENT_LOW_WATER: u32 = 16 * 1024;

/// An open WebSocket whose frames nobody has read yet.
pub(super) struct Dialed {
    pub(super) stream: Stream,
    pub(super) answer: Answer,
    /// What the server sent right after its answer.
    pub(super) rest: Vec<u8>,
}

/// Dials once, resolving the name anew. Returns within four times `connect_timeout`.
pub(super) async fn dial(target: &Target, counters: Arc<Counters>) -> Result<Dialed, Down> {
    let (url, limit) = (&target.url, target.connect_timeout);
    let addresses = within("DNS", limit, &url.host, resolve(url)).await?;
    let tcp = connect(url, &addresses, limit).await.map_err(|error| failed("TCP", error))?;
    tune(&tcp);
    let counted = Counted::new(tcp, counters);
    let mut stream = if url.tls {
        let shake = secure(counted, url, target.tls.clone(), target.ca_file.as_deref());
        within("TLS", limit, &url.host, shake).await?
    } else {
        Stream::Plain(counted)
    };
    let (answer, rest) = match timeout(limit, upgrade::upgrade(&mut stream, target)).await {
        Ok(upgraded) => upgraded?,
        Err(_) => return Err(failed("upgrade", too_late("upgrade", &url.host, limit))),
    };
    Ok(Dialed { stream, answer, rest })
}

pub(super) fn failed(step: &'static str, error: String) -> Down {
    Down::Dial { step, error }
}

/// Why reading or writing failed, in words, TLS alerts explained.
pub(super) fn io_words(error: &io::Error, host: &str, ca_file: Option<&Path>) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => identity::explain(tls, host, ca_file),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            format!("{host} ended the connection; its log should say why")
        }
        None => format!("the connection to {host} broke: {error}"),
    }
}

async fn within<T>(
    step: &'static str,
    limit: Duration,
    host: &str,
    work: impl Future<Output = Result<T, String>>,
) -> Result<T, Down> {
    match timeout(limit, work).await {
        Ok(done) => done.map_err(|error| failed(step, error)),
        Err(_) => Err(failed(step, too_late(step, host, limit))),
    }
}

fn too_late(step: &str, host: &str, limit: Duration) -> String {
    let (fault, remedy) = match step {
        "DNS" => ("the resolver said nothing about it", "check the board's DNS (/etc/resolv.conf)"),
        "TLS" => ("it did not finish TLS", "see that a TLS server answers on this port"),
        _ => ("it did not answer the upgrade", "see that the hub runs and is not overloaded"),
    };
    format!("{host}: {fault} within {limit:?}; {remedy}, or raise connect_timeout")
}

/// Runs in tokio's blocking pool, off the event loop. A resolver that hangs past the deadline holds
/// one thread of the pool until it gives up by itself; the gateway's back-off bounds how many.
async fn resolve(url: &HubUrl) -> Result<Vec<SocketAddr>, String> {
    let HubUrl { host, port, .. } = url;
    let remedy = "check the host in the URL, and the board's DNS (/etc/resolv.conf)";
    match lookup_host((host.as_str(), *port)).await {
        Err(error) => Err(format!("{host} does not resolve: {error}; {remedy}")),
        Ok(found) => {
            let mut addresses: Vec<SocketAddr> = Vec::new();
            for address in found {
                if addresses.len() < MAX_ADDRESSES && !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            if addresses.is_empty() {
                return Err(format!("{host} has no address; {remedy}"));
            }
            Ok(addresses)
        }
    }
}

/// Tries every address in turn; each gets an even share of the time that is left.
async fn connect(
    url: &HubUrl,
    addresses: &[SocketAddr],
    limit: Duration,
) -> Result<TcpStream, String> {
    let deadline = Instant::now() + limit;
    let mut faults = Vec::new();
    for (tried, address) in addresses.iter().enumerate() {
        let now = Instant::now();
        let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let share = deadline.saturating_duration_since(now) / left;
        match timeout_at(now + share, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => faults.push(format!("{address}: {error}")),
            Err(_) => faults.push(format!("{address}: no answer within {share:?}")),
        }
    }
    Err(format!(
        "no connection to {}: {}; see that the hub listens there, and that the board's network \
         and every firewall between let it through",
        url.host,
        faults.join(", ")
    ))
}

/// A kernel that lacks one of these still has a working connection.
fn tune(tcp: &TcpStream) {
    let socket = SockRef::from(tcp);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_TIME).with_interval(KEEPALIVE_INTERVAL);
    let mut results = vec![socket.set_tcp_nodelay(true), socket.set_tcp_keepalive(&keepalive)];
    #[cfg(target_os = "linux")]
    results.extend([
        socket.set_tcp_user_timeout(Some(UNACKED_LIMIT)),
        socket.set_tcp_notsent_lowat(NOT_SENT_LOW_WATER),
    ]);
    for error in results.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "the kernel refused a socket option");
    }
}

async fn secure(
    tcp: Counted,
    url: &HubUrl,
    tls: Option<Arc<ClientConfig>>,
    ca_file: Option<&Path>,
) -> Result<Stream, String> {
    let host = &url.host;
    let tls = tls.ok_or_else(|| format!("{host}: a wss URL needs certificates to trust"))?;
    let name = ServerName::try_from(host.clone())
        .map_err(|_| format!("{host:?} is no name that a certificate can have; correct the URL"))?;
    match TlsConnector::from(tls).connect(name, tcp).await {
        Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
        Err(error) => Err(io_words(&error, host, ca_file)),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::link::{
        Event, open,
        tests::{WAIT, bound, next, read_head, target_at},
    };

    async fn fails(target: Target) -> (&'static str, String) {
        match next(&mut open(target)).await {
            Event::Down(Down::Dial { step, error }) => (step, error),
            other => panic!("a failed dial was due, not {other:?}"),
        }
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_is_named() {
        let mut target = target_at(1);
        target.url.host = "no-such-host.invalid".to_owned();
        let (step, error) = fails(target).await;
        assert_eq!(step, "DNS");
        assert!(error.contains("no-such-host.invalid") && error.contains("resolv.conf"), "{error}");
    }

    #[tokio::test]
    async fn a_closed_port_is_named() {
        let (listener, port) = bound().await;
        drop(listener);
        let (step, error) = fails(target_at(port)).await;
        assert_eq!(step, "TCP");
        assert!(error.contains(&format!("127.0.0.1:{port}: ")), "{error}");
        assert!(error.contains("refused"), "{error}");
    }

    #[tokio::test]
    async fn every_address_is_tried_in_turn() {
        let (closed, port) = bound().await;
        drop(closed);
        let dead = SocketAddr::from(([127, 0, 0, 1], port));
        let (listener, _) = bound().await;
        let live = listener.local_addr().unwrap();
        let url = target_at(0).url;
        let tcp = connect(&url, &[dead, live], WAIT).await.unwrap();
        assert_eq!(tcp.peer_addr().unwrap(), live);
        let error = connect(&url, &[dead, dead], WAIT).await.unwrap_err();
        assert_eq!(error.matches("refused").count(), 2, "{error}");
    }

    #[tokio::test]
    async fn a_server_that_takes_the_connection_and_says_nothing_meets_the_deadline() {
        let (listener, port) = bound().await;
        let short = Duration::from_millis(100);
        let silent = Target { connect_timeout: short, ..target_at(port) };
        let (step, error) = fails(silent).await;
        assert_eq!(step, "upgrade");
        assert!(error.contains("within 100ms"), "{error}");
        drop(listener);
    }

    #[tokio::test]
    async fn a_server_that_drips_its_answer_meets_the_deadline() {
        let (listener, port) = bound().await;
        let server = tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            read_head(&mut tcp).await;
            let mut pace = tokio::time::interval(Duration::from_millis(5));
            loop {
                pace.tick().await;
                if tcp.write_all(b"H").await.is_err() {
                    return;
                }
            }
        });
        let limit = Duration::from_millis(200);
        let (step, _) = fails(Target { connect_timeout: limit, ..target_at(port) }).await;
        assert_eq!(step, "upgrade");
        tokio::time::timeout(WAIT, server).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_socket_is_tuned() {
        let (listener, port) = bound().await;
        let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        tune(&tcp);
        let socket = SockRef::from(&tcp);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNACKED_LIMIT));
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), NOT_SENT_LOW_WATER);
        drop(listener);
    }

    #[cfg(feature = "hub")]
    mod tls {
        use tokio::io::AsyncReadExt as _;

        use std::{fs::Permissions, os::unix::fs::PermissionsExt, path::PathBuf};

        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        use rustls::ServerConfig;
        use tokio_rustls::TlsAcceptor;

        use super::*;
        use crate::{
            identity::{client_tls, server_tls},
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
                target.tls = Some(client_tls(Some(&self.file()), None).unwrap());
                target.ca_file = Some(self.file());
                target
            }
        }

        fn named(name: &str) -> CertificateParams {
            CertificateParams::new(vec![name.to_owned()]).unwrap()
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
                assert!(matches!(up, Event::Up { subprotocol: None, .. }), "{up:?}");
                link.requests.send(Request::Text("hi".into())).await.unwrap();
                assert!(matches!(next(&mut link).await, Event::Text(text) if text == "hi"));
            }
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
            let server = server_tls(&cert, &key, &authority.file()).unwrap();
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
    }
}
