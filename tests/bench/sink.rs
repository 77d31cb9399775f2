//! The fast sink: a hub that takes everything and acknowledges at once, over TLS or without,
//! so that what is measured is the gateway and not a store.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::Context as _;
use fieldgate::protocol::{
    Ack, Decoded, GatewayMessage, HubMessage, Payload, Position, SUBPROTOCOL_JSON, Welcome, Window,
    WireBody, from_gateway,
};
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::NoServerSessionStorage,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::{
    accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{ErrorResponse, Request, Response},
        http::{HeaderValue, header::SEC_WEBSOCKET_PROTOCOL},
    },
};

use crate::arrivals::Arrivals;

/// What the example of the protocol's section 3 grants.
const WINDOW: Window = Window { records: 5000, bytes: 1 << 20 };

/// Records that wait for their acknowledgement at most: well below what the devices have in flight.
const MAX_HELD: usize = 250;

/// How the sink is reached; the path is that of the certificates.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tls<'a> {
    Off,
    /// A client that was here before has a shorter handshake.
    Resuming(&'a Path),
    /// Every handshake is a full one.
    Full(&'a Path),
}

/// A sink at work.
#[derive(Debug)]
pub(crate) struct Sink {
    pub(crate) port: u16,
    /// How many sessions have begun.
    pub(crate) sessions: watch::Receiver<usize>,
}

/// Binds the sink to a free port and serves it in a task of its own. Acknowledgements wait for
/// `ack_after`, to be one for many.
pub(crate) async fn start(
    tls: Tls<'_>,
    arrivals: Arrivals,
    ack_after: Duration,
) -> anyhow::Result<Sink> {
    let acceptor = match tls {
        Tls::Off => None,
        Tls::Resuming(certificates) => Some(acceptor(certificates, true)),
        Tls::Full(certificates) => Some(acceptor(certificates, false)),
    };
    let acceptor = acceptor.transpose().context("the sink's certificate")?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = listener.local_addr()?.port();
    let (begun, sessions) = watch::channel(0);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, arrivals, begun) = (acceptor.clone(), arrivals.clone(), begun.clone());
            tokio::spawn(async move {
                // A gateway that is stopped cuts the link: the end of every session.
                accept(stream, acceptor, arrivals, ack_after, begun).await.ok();
            });
        }
    });
    Ok(Sink { port, sessions })
}

fn acceptor(certificates: &Path, resumes: bool) -> anyhow::Result<TlsAcceptor> {
    let certificate = CertificateDer::from_pem_file(certificates.join("hub.pem"))?;
    let key = PrivateKeyDer::from_pem_file(certificates.join("hub.key"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    if !resumes {
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
    }
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    arrivals: Arrivals,
    ack_after: Duration,
    begun: watch::Sender<usize>,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    match tls {
        Some(tls) => serve(tls.accept(stream).await?, arrivals, ack_after, begun).await,
        None => serve(stream, arrivals, ack_after, begun).await,
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    arrivals: Arrivals,
    ack_after: Duration,
    begun: watch::Sender<usize>,
) -> anyhow::Result<()> {
    let mut socket = accept_hdr_async(stream, select_json).await?;
    let mut held = Held::default();
    loop {
        let message = tokio::select! {
            message = socket.next() => message,
            () = held.due() => {
                if let Some(position) = held.position.take() {
                    socket.send(Message::text(ack(position).to_json())).await?;
                }
                continue;
            }
        };
        let Some(message) = message else { return Ok(()) };
        let Message::Text(text) = message? else { continue };
        let Decoded::Message(message) = from_gateway(&text)? else { continue };
        let answer = match message {
            GatewayMessage::Hello(hello) => {
                begun.send_modify(|sessions| *sessions += 1);
                let streams = hello
                    .streams
                    .into_iter()
                    .map(|held| position(held.stream, held.epoch, held.first.saturating_sub(1)));
                HubMessage::Welcome(Welcome {
                    session: "bench".into(),
                    hub: "sink".into(),
                    // Else a gateway whose clock nobody keeps marks each record.
                    time: UNIX_EPOCH.elapsed().ok().map(|since| since.as_millis() as u64),
                    limits: Default::default(),
                    features: Vec::new(),
                    token_expires: None,
                    streams: streams.collect(),
                })
            }
            GatewayMessage::Data(data) => {
                for record in &data.records {
                    if let WireBody::Reading { payload: Payload::Json(json), .. } = &record.body {
                        arrivals.arrived(json.as_bytes());
                    }
                }
                let acked = data.seq + data.records.len() as u64 - 1;
                let position = position(data.stream, data.epoch, acked);
                match held.hold(position, data.records.len(), ack_after) {
                    Some(position) => ack(position),
                    None => continue,
                }
            }
            GatewayMessage::Skip(skip) => ack(position(skip.stream, skip.epoch, skip.to - 1)),
            GatewayMessage::Error(_) | GatewayMessage::Auth { .. } => continue,
        };
        socket.send(Message::text(answer.to_json())).await?;
    }
}

/// An acknowledgement that waits for the next one, as `--ack-after` says.
#[derive(Debug, Default)]
struct Held {
    position: Option<Position>,
    records: usize,
    since: Option<Instant>,
    ack_after: Duration,
}

impl Held {
    /// Holds `position`, or gives what must be acknowledged now.
    fn hold(
        &mut self,
        position: Position,
        records: usize,
        ack_after: Duration,
    ) -> Option<Position> {
        self.ack_after = ack_after;
        let other = (self.position.as_ref())
            .is_some_and(|held| (&held.stream, held.epoch) != (&position.stream, position.epoch));
        let before = self.position.replace(position);
        if other {
            (self.records, self.since) = (records, Some(Instant::now()));
            return before;
        }
        if before.is_none() {
            (self.records, self.since) = (0, Some(Instant::now()));
        }
        self.records += records;
        if ack_after.is_zero() || self.records >= MAX_HELD {
            return self.position.take();
        }
        None
    }

    /// Waits until what is held must go.
    async fn due(&self) {
        match self.since.filter(|_| self.position.is_some()) {
            Some(since) => sleep_until(since + self.ack_after).await,
            None => std::future::pending().await,
        }
    }
}

fn position(
    stream: fieldgate::protocol::StreamName,
    epoch: fieldgate::protocol::Epoch,
    acked: u64,
) -> Position {
    Position { stream, epoch, acked, window: Some(WINDOW) }
}

fn ack(position: Position) -> HubMessage {
    HubMessage::Ack(Ack { position, rejected: Vec::new() })
}

#[expect(clippy::result_large_err, reason = "the signature is tungstenite's")]
fn select_json(_: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    let selected = HeaderValue::from_static(SUBPROTOCOL_JSON);
    response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, selected);
    Ok(response)
}
