//! The WebSocket opening handshake (RFC 6455, section 4.2), after which hyper hands the connection
//! over.
//!
//! It must never select a subprotocol that was not offered: its caller looks first.

use std::future::Future;

use axum::{
    body::Body,
    http::{HeaderMap, Method, Request, Response, StatusCode, Version, header},
};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error,
        error::ProtocolError,
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

use crate::protocol::close;

/// What tungstenite reads at once; its default of 128 KiB would be most of an idle connection's
/// memory.
const READ_BUFFER_BYTES: usize = 4096;

/// The most bytes that may wait for a peer that does not read, beside a message as large as the
/// peer's may be. Pongs find no room beyond it and are left out; a message ends the connection.
const MAX_UNWRITTEN_BYTES: usize = 4 << 20;

/// A server's side of a WebSocket.
pub type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// The subprotocols that a request offers, in its order; `None` when it is no WebSocket handshake.
pub fn offered(request: &Request<Body>) -> Option<Vec<String>> {
    let headers = request.headers();
    let is_handshake = request.method() == Method::GET
        && request.version() >= Version::HTTP_11
        && lists(headers, header::CONNECTION, "upgrade")
        && lists(headers, header::UPGRADE, "websocket")
        && lists(headers, header::SEC_WEBSOCKET_VERSION, "13")
        && headers.get(header::SEC_WEBSOCKET_KEY).is_some_and(|key| key.len() == 24);
    is_handshake
        .then(|| members(headers, header::SEC_WEBSOCKET_PROTOCOL).map(str::to_owned).collect())
}

/// Answers 101 and runs `serve` on the connection. `subprotocol` is one of those that were
/// [`offered`]; a larger message than `max_message_bytes` is an [`Error::Capacity`].
pub fn accept<F: Future<Output = ()> + Send + 'static>(
    mut request: Request<Body>,
    subprotocol: &'static str,
    max_message_bytes: usize,
    serve: impl FnOnce(Socket) -> F + Send + 'static,
) -> Response<Body> {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).map(|key| key.as_bytes().to_vec());
    let accept = derive_accept_key(&key.unwrap_or_default());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        // An error is a peer that went away during its handshake.
        let Ok(upgraded) = upgrade.await else { return };
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_write_buffer_size(MAX_UNWRITTEN_BYTES + max_message_bytes)
            .max_message_size(Some(max_message_bytes))
            .max_frame_size(Some(max_message_bytes));
        let io = TokioIo::new(upgraded);
        serve(WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await).await;
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept)
        .header(header::SEC_WEBSOCKET_PROTOCOL, subprotocol)
        .body(Body::empty())
        .expect("every header is a valid one")
}

/// The close code for a frame that breaks RFC 6455; `None` where the connection broke, or the
/// message was only too large.
pub fn fault_code(error: &Error) -> Option<u16> {
    match error {
        Error::Utf8(_) => Some(close::INVALID_DATA),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
        Error::Protocol(_) => Some(close::PROTOCOL_ERROR),
        _ => None,
    }
}

fn lists(headers: &HeaderMap, name: header::HeaderName, wanted: &str) -> bool {
    members(headers, name).any(|member| member.eq_ignore_ascii_case(wanted))
}

fn members(headers: &HeaderMap, name: header::HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|member| !member.is_empty())
}
