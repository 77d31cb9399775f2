//! The fast sink: a hub that takes everything and acknowledges at once, over TLS, so that what is
//! measured is the gateway and not a store.

use std::{net::SocketAddr, path::Path, sync::Arc};

use anyhow::Context as _;
use fieldgate::protocol::{
    Ack, Decoded, GatewayMessage, HubMessage, Payload, Position, SUBPROTOCOL_JSON, Welcome, Window,
    WireBody, from_gateway,
};
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::net::{TcpListener, TcpStream};
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

/// Binds the sink to a free port and serves it in a task of its own.
pub(crate) async fn start(certificates: &Path, arrivals: Arrivals) -> anyhow::Result<SocketAddr> {
    let acceptor = acceptor(certificates).context("the sink's certificate")?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let session = serve(stream, acceptor.clone(), arrivals.clone());
            tokio::spawn(async move {
                // A gateway that is stopped cuts the link: the end of every session.
                session.await.ok();
            });
        }
    });
    Ok(address)
}

fn acceptor(certificates: &Path) -> anyhow::Result<TlsAcceptor> {
    let certificate = CertificateDer::from_pem_file(certificates.join("hub.pem"))?;
    let key = PrivateKeyDer::from_pem_file(certificates.join("hub.key"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn serve(stream: TcpStream, tls: TlsAcceptor, arrivals: Arrivals) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let stream = tls.accept(stream).await?;
    let mut socket = accept_hdr_async(stream, select_json).await?;
    while let Some(message) = socket.next().await {
        let Message::Text(text) = message? else { continue };
        let Decoded::Message(message) = from_gateway(&text)? else { continue };
        let answer = match message {
            GatewayMessage::Hello(hello) => {
                let streams = hello
                    .streams
                    .into_iter()
                    .map(|held| position(held.stream, held.epoch, held.first.saturating_sub(1)));
                HubMessage::Welcome(Welcome {
                    session: "bench".into(),
                    hub: "sink".into(),
                    time: None,
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
                ack(position(data.stream, data.epoch, acked))
            }
            GatewayMessage::Skip(skip) => ack(position(skip.stream, skip.epoch, skip.to - 1)),
            GatewayMessage::Error(_) | GatewayMessage::Auth { .. } => continue,
        };
        socket.send(Message::text(answer.to_json())).await?;
    }
    Ok(())
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
