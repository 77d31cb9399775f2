//! Any bytes as what a server or a proxy answers before there is a link.

use std::time::Duration;

use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{
    Target, Via,
    proxy::{Handshake, Progress},
    upgrade::judge,
};
use crate::config::{Credentials, HubUrl, ProxyKind};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const SUBPROTOCOL: &str = "fieldgate.v1.json";

/// To no proxy is more said than greeting, login and request.
const MAX_SAID: usize = 3;

/// An answer to the upgrade.
///
/// # Panics
/// When what is taken for an upgrade depends on what comes after it, or is taken too early.
pub fn answer(bytes: &[u8]) {
    let accept = derive_accept_key(KEY.as_bytes());
    let target = target();
    let judged = |bytes: &[u8]| judge(bytes, &accept, &target);
    let Ok(Some((answer, length))) = judged(bytes) else { return };
    let (head, rest) = bytes.split_at(length);
    assert!(head.windows(accept.len()).any(|part| part == accept.as_bytes()), "of another's key");
    assert!(matches!(judged(head), Ok(Some((same, _))) if same == answer), "but for {rest:?}");
    assert!(matches!(judged(&head[..length - 1]), Ok(None)), "a head without its end");
}

/// A proxy's side of the conversation: which kind it is, then pieces, each with its length before
/// it.
///
/// # Panics
/// When it is told more than there is to say, or let through without a word.
pub fn proxy(bytes: &[u8]) {
    let Some((kind, mut rest)) = bytes.split_first() else { return };
    let credentials = Credentials { user: "u".into(), password: "p".to_owned().into() };
    let via = Via {
        kind: if kind & 1 == 0 { ProxyKind::Http } else { ProxyKind::Socks5 },
        host: "proxy.lan".into(),
        port: 3128,
        credentials: (kind & 2 != 0).then_some(credentials),
    };
    let mut handshake = Handshake::new(&via, "hub.example.com", 443);
    let mut said = handshake.poll_transmit().into_iter().count();
    let mut heard = Vec::new();
    while let Some((length, after)) = rest.split_first() {
        let (piece, after) = after.split_at(after.len().min(usize::from(*length)));
        rest = after;
        heard.extend_from_slice(piece);
        let progress = handshake.handle_bytes(piece);
        said += handshake.poll_transmit().into_iter().count();
        assert!(said <= MAX_SAID, "it is told {said} things");
        match progress {
            Ok(Progress::More) => {}
            Ok(Progress::Through) if via.kind == ProxyKind::Http => {
                return assert!(heard.ends_with(b"\n"), "through by {heard:?}");
            }
            Ok(Progress::Through) => {
                return assert!(heard.len() >= 2 + 7 && said >= 2, "through by {heard:?}");
            }
            Err(error) => return assert!(!error.is_empty()),
        }
    }
}

/// Sound answers to the upgrade, and refusals.
pub fn answers() -> Vec<Vec<u8>> {
    let accept = derive_accept_key(KEY.as_bytes());
    let upgraded = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n"
    );
    [
        format!("{upgraded}Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n\x01"),
        format!("{upgraded}Date: Sat, 28 Nov 2026 10:00:00 GMT\r\n\r\n"),
        "HTTP/1.1 503 Busy\r\nRetry-After: 120\r\nDate: Sat, 28 Nov 2026 10:00:00 GMT\r\n\r\n"
            .into(),
        "HTTP/1.1 429 Slow\r\nRetry-After: Sat, 28 Nov 2026 11:00:00 GMT\r\n\r\n".into(),
    ]
    .map(String::into_bytes)
    .into()
}

/// Sound conversations with proxies.
pub fn conversations() -> Vec<Vec<u8>> {
    let http = b"HTTP/1.1 200 Connection established\r\n\r\n";
    let refused =
        b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=\"x\", Digest a=\"b\"\r\n\r\n";
    let pieces = |kind: u8, pieces: &[&[u8]]| {
        let with_lengths = pieces
            .iter()
            .flat_map(|piece| std::iter::once(piece.len() as u8).chain(piece.iter().copied()));
        std::iter::once(kind).chain(with_lengths).collect::<Vec<u8>>()
    };
    vec![
        pieces(0, &[&http[..10], &http[10..]]),
        pieces(2, &[refused]),
        pieces(1, &[&[5, 0], &[5, 0, 0, 1, 127, 0, 0, 1, 1, 187]]),
        pieces(3, &[&[5, 2], &[1, 0], &[5, 0, 0, 3, 1, b'h', 1, 187]]),
        pieces(3, &[&[5, 2], &[1, 1]]),
    ]
}

fn target() -> Target {
    Target {
        url: HubUrl { tls: true, host: "hub.example.com".into(), port: 443, path: "/".into() },
        subprotocols: vec![SUBPROTOCOL.into()],
        bearer: None,
        tls: None,
        ca_file: None,
        proxy: None,
        bind_interface: None,
        connect_timeout: Duration::from_secs(1),
        max_message_bytes: 1024,
    }
}
