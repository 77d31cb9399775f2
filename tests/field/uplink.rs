//! A gateway's end of the wire without a gateway: TLS, an HTTP request or a WebSocket, and what the
//! hub says to it.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{
    self, Message, WebSocket, client::IntoClientRequest as _, protocol::CloseFrame,
};

const TIMEOUT: Duration = Duration::from_secs(15);

/// A connection to the hub.
pub type Tls = StreamOwned<ClientConnection, TcpStream>;

/// How a stranger comes: from which address of this machine, with which certificate.
#[derive(Clone)]
pub struct Way {
    pub port: u16,
    pub from: IpAddr,
    tls: Arc<ClientConfig>,
}

/// A whole HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// A WebSocket to the hub.
pub struct Uplink(WebSocket<Tls>);

impl Way {
    /// Trusts the authority in `ca`; comes with the chain and key in these files, or without.
    pub fn new(port: u16, ca: &Path, client: Option<(&Path, &Path)>) -> Self {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca) {
            roots.add(certificate).expect("an authority");
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has TLS 1.2 and 1.3")
            .with_root_certificates(roots);
        let config = match client {
            None => config.with_no_client_auth(),
            Some((chain, key)) => {
                let key = PrivateKeyDer::from_pem_file(key).expect("a key");
                config.with_client_auth_cert(certificates(chain), key).expect("a pair")
            }
        };
        Self::with(port, Arc::new(config))
    }

    /// Comes with this trust and this certificate.
    pub fn with(port: u16, tls: Arc<ClientConfig>) -> Self {
        Self { port, from: IpAddr::from([127, 0, 0, 1]), tls }
    }

    /// The same from another address of this machine: who misbehaves there harms nobody else.
    pub fn from(&self, last: u8) -> Self {
        Self { from: IpAddr::from([127, 0, 0, last]), ..self.clone() }
    }

    /// A TCP connection and no word.
    pub fn tcp(&self) -> io::Result<TcpStream> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(self.from, 0).into())?;
        let hub = SocketAddr::from(([127, 0, 0, 1], self.port));
        socket.connect_timeout(&hub.into(), TIMEOUT)?;
        let tcp = TcpStream::from(socket);
        tcp.set_read_timeout(Some(TIMEOUT))?;
        tcp.set_write_timeout(Some(TIMEOUT))?;
        Ok(tcp)
    }

    /// TLS and no word; the handshake comes with the first.
    pub fn tls(&self) -> io::Result<Tls> {
        let name = "localhost".try_into().expect("a valid server name");
        let session = ClientConnection::new(self.tls.clone(), name).map_err(io::Error::other)?;
        Ok(StreamOwned::new(session, self.tcp()?))
    }

    /// One request; `token` goes into `Authorization`.
    pub fn ask(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: &str,
    ) -> io::Result<Answer> {
        let token =
            token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{token}\
             content-length: {length}\r\n\r\n{body}"
        );
        let mut stream = self.tls()?;
        // A hub that says no before the end of the request may stop reading it.
        let written = stream.write_all(request.as_bytes());
        let mut bytes = Vec::new();
        let read = stream.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        match text.split_once("\r\n\r\n") {
            Some((head, body)) => {
                let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
                let status = status.ok_or_else(|| io::Error::other("no status"))?;
                Ok(Answer { status, head: head.to_lowercase(), body: body.into() })
            }
            None => Err(written
                .and(read.map(drop))
                .err()
                .unwrap_or(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// A gateway's WebSocket; else the status that it was refused with, 0 where TLS failed.
    pub fn upgrade(&self, token: Option<&str>) -> Result<Uplink, u16> {
        self.websocket("/v1/gateway", "fieldgate.v1.json", token)
    }

    /// An application's WebSocket; else the status that it was refused with.
    pub fn live(&self, token: &str) -> Result<Uplink, u16> {
        self.websocket("/v1/live", "fieldgate.live.v1", Some(token))
    }

    /// The same as a browser comes, which can set no header.
    pub fn browser(&self, token: &str) -> Result<Uplink, u16> {
        let coded = URL_SAFE_NO_PAD.encode(token);
        let offered = format!("fieldgate.live.v1, base64url.bearer.fieldgate.{coded}");
        self.websocket("/v1/live", &offered, None)
    }

    fn websocket(&self, path: &str, protocol: &str, token: Option<&str>) -> Result<Uplink, u16> {
        let url = format!("wss://localhost:{}{path}", self.port);
        let mut request = url.into_client_request().expect("a URL");
        let headers = request.headers_mut();
        headers.insert("sec-websocket-protocol", protocol.parse().expect("a header"));
        if let Some(token) = token {
            let bearer = format!("Bearer {token}");
            headers.insert("authorization", bearer.parse().expect("a header"));
        }
        let stream = self.tls().map_err(|_| 0_u16)?;
        match tungstenite::client(request, stream) {
            Ok((socket, _)) => Ok(Uplink(socket)),
            Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(response))) => {
                Err(response.status().as_u16())
            }
            Err(_) => Err(0),
        }
    }

    /// A session of `gateway`, and the hub's welcome.
    pub fn session(&self, token: Option<&str>, gateway: &str) -> (Uplink, Value) {
        let mut uplink =
            self.upgrade(token).unwrap_or_else(|status| panic!("{gateway}: status {status}"));
        uplink.say(&json!({"type": "hello", "gateway": gateway, "streams": []}));
        let welcome = uplink.hear();
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        (uplink, welcome)
    }
}

impl Uplink {
    pub fn say(&mut self, message: &Value) {
        self.0.send(Message::Text(message.to_string().into())).expect("the connection stays");
    }

    /// The next message.
    pub fn hear(&mut self) -> Value {
        loop {
            match self.0.read().expect("the connection stays") {
                Message::Text(text) => return serde_json::from_str(&text).expect("JSON"),
                Message::Ping(_) => {}
                other => panic!("no message: {other:?}"),
            }
        }
    }

    /// The code with which the hub closes, whatever it says before.
    pub fn close_code(&mut self) -> u16 {
        loop {
            match self.0.read().expect("a close comes first") {
                Message::Close(Some(CloseFrame { code, .. })) => return code.into(),
                _ => continue,
            }
        }
    }
}

fn certificates(file: &Path) -> Vec<CertificateDer<'static>> {
    let found = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    found.unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}
