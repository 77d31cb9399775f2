//! The client's side of the WebSocket handshake, RFC 6455 section 4.
//!
//! tungstenite's own fails when a server selects none of the offered subprotocols, as stock servers
//! do, and logs the request with its bearer token; so the request is written and the answer judged
//! here. The answer's head is bounded, a body is never read, a redirect never followed.

use std::{io, time::Duration};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};
use zeroize::Zeroizing;

use super::{
    Down, Target,
    dial::{failed, io_words},
};
use crate::{config::HubUrl, identity::calendar::Moment};

/// The largest head of an answer; a larger one fails the dial.
pub(super) const MAX_HEAD_BYTES: usize = 16 * 1024;

/// The most header lines of an answer; more fail the dial.
pub(super) const MAX_HEADERS: usize = 64;

/// The longest `Retry-After` that is believed; a longer one counts as this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// What a 101 said.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) subprotocol: Option<String>,
    pub(super) date_ms: Option<u64>,
}

/// Asks for the upgrade; gives the answer, and the first bytes after it.
pub(super) async fn upgrade<S>(stream: &mut S, target: &Target) -> Result<(Answer, Vec<u8>), Down>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let host = &target.url.host;
    let broken = |error| failed("upgrade", io_words(&error, host, target.ca_file.as_deref()));
    let key = generate_key();
    let request = request(target, &key).map_err(|error| failed("upgrade", error))?;
    // A server that refuses us while we write has said why, and that is read all the same.
    let written = write(stream, request.as_bytes()).await;

    let accept = derive_accept_key(key.as_bytes());
    let mut head = Vec::with_capacity(1024);
    loop {
        let room = (MAX_HEAD_BYTES - head.len()) as u64;
        if (&mut *stream).take(room).read_buf(&mut head).await.map_err(broken)? == 0 {
            written.map_err(broken)?;
            return Err(failed("upgrade", cut_off(host, &head)));
        }
        if let Some((answer, length)) = judge(&head, &accept, target)? {
            return Ok((answer, head.split_off(length)));
        }
    }
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

fn cut_off(host: &str, head: &[u8]) -> String {
    if head.len() >= MAX_HEAD_BYTES {
        format!("{host} answers with a head of more than {MAX_HEAD_BYTES} bytes; correct the URL")
    } else {
        format!("{host} ended the connection instead of answering; its log should say why")
    }
}

/// The request's text.
fn request(target: &Target, key: &str) -> Result<Zeroizing<String>, String> {
    let HubUrl { host, path, .. } = &target.url;
    // The configuration checked both, but a line break here would be a header of somebody else's.
    if [host, path].iter().any(|part| part.bytes().any(|b| b <= b' ' || b == 0x7f)) {
        return Err(format!("{host:?} or {path:?} has white space; correct the URL"));
    }
    let authority = authority(&target.url);
    let mut text = begun(target);
    text.push_str(&format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\
         User-Agent: fieldgate/{}\r\n",
        env!("CARGO_PKG_VERSION")
    ));
    if !target.subprotocols.is_empty() {
        let offered = target.subprotocols.join(", ");
        text.push_str(&format!("Sec-WebSocket-Protocol: {offered}\r\n"));
    }
    authorise(&mut text, target);
    text.push_str("\r\n");
    Ok(text)
}

/// A request with room for all that it is to have: what a growing string leaves behind is not
/// wiped.
pub(super) fn begun(target: &Target) -> Zeroizing<String> {
    let token = target.bearer.as_ref().map_or(0, |token| token.reveal().len());
    Zeroizing::new(String::with_capacity(token + target.url.path.len() + 1024))
}

pub(super) fn authorise(text: &mut String, target: &Target) {
    if let Some(token) = &target.bearer {
        text.extend(["Authorization: Bearer ", token.reveal(), "\r\n"]);
    }
}

/// The URL's host and port, as the header `Host` has them.
pub(super) fn authority(url: &HubUrl) -> String {
    let HubUrl { host, port, tls, .. } = url;
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    match (tls, port) {
        (true, 443) | (false, 80) => bracketed,
        _ => format!("{bracketed}:{port}"),
    }
}

/// What the head says and how long it is; `None` while it is incomplete.
pub(super) fn judge(
    bytes: &[u8],
    accept: &str,
    target: &Target,
) -> Result<Option<(Answer, usize)>, Down> {
    let host = &target.url.host;
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            let error = format!("{host} answers with more than {MAX_HEADERS} headers");
            return Err(failed("upgrade", error + "; correct the URL"));
        }
        Err(_) => return Err(failed("upgrade", not_http(bytes, target))),
    };
    let header = |name: &str| values(head.headers, name).next();
    let status = head.code.unwrap_or_default();
    let date = header("Date").and_then(Moment::from_http_date);
    let date_ms = date.and_then(|at| u64::try_from(at.unix_seconds).ok()).map(|s| s * 1000);
    if status != 101 {
        let retry_after = header("Retry-After").and_then(|text| retry_after(text, date));
        return Err(Down::Refused { status, retry_after, date_ms, valid_until_ms: None });
    }
    let fault = match head.version {
        Some(1) => fault(head.headers, accept),
        _ => Some("in HTTP/1.0"),
    };
    if let Some(fault) = fault {
        let remedy =
            "see that the URL is a WebSocket's, and that a proxy before it passes upgrades";
        return Err(failed("upgrade", format!("{host} answers 101, but {fault}; {remedy}")));
    }
    let subprotocol = selected(head.headers, target)?;
    Ok(Some((Answer { subprotocol, date_ms }, length)))
}

fn not_http(bytes: &[u8], target: &Target) -> String {
    let host = &target.url.host;
    // A TLS record: alert (21) or handshake (22), version 3.
    if !target.url.tls && matches!(bytes, [21 | 22, 3, ..]) {
        return format!("{host} speaks TLS on this port; write wss:// instead of ws://");
    }
    format!("{host} does not speak HTTP on this port; check the port in the URL")
}

/// What of RFC 6455, section 4.1, the answer breaks.
fn fault(headers: &[httparse::Header<'_>], accept: &str) -> Option<&'static str> {
    let lists = |name: &str, token: &str| {
        values(headers, name)
            .flat_map(|value| value.split(','))
            .any(|item| item.trim().eq_ignore_ascii_case(token))
    };
    if !lists("Upgrade", "websocket") {
        Some("has no header \"Upgrade: websocket\"")
    } else if !lists("Connection", "upgrade") {
        Some("has no header \"Connection: Upgrade\"")
    } else if values(headers, "Sec-WebSocket-Accept").next() != Some(accept) {
        Some("its Sec-WebSocket-Accept is not the one for our key")
    } else if values(headers, "Sec-WebSocket-Extensions").any(|value| !value.is_empty()) {
        Some("selects an extension that was never offered")
    } else {
        None
    }
}

/// The subprotocol that the server selected. To select none is its right.
fn selected(headers: &[httparse::Header<'_>], target: &Target) -> Result<Option<String>, Down> {
    let mut names = values(headers, "Sec-WebSocket-Protocol").filter(|name| !name.is_empty());
    let Some(name) = names.next() else { return Ok(None) };
    if names.next().is_none() && target.subprotocols.iter().any(|offered| offered == name) {
        return Ok(Some(name.to_owned()));
    }
    let host = &target.url.host;
    Err(failed(
        "upgrade",
        format!(
            "{host} selects the subprotocol {name:?}, which was never offered; correct the URL"
        ),
    ))
}

pub(super) fn values<'h>(
    headers: &'h [httparse::Header<'h>],
    name: &str,
) -> impl Iterator<Item = &'h str> {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .filter_map(|header| std::str::from_utf8(header.value).ok())
        .map(str::trim)
}

/// Seconds, or a date: that counts from the answer's own `Date`, as the clock here may be wrong.
pub(super) fn retry_after(text: &str, date: Option<Moment>) -> Option<Duration> {
    let seconds = if text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty() {
        text.parse().unwrap_or(u64::MAX)
    } else {
        let until = Moment::from_http_date(text)?.unix_seconds - date?.unix_seconds;
        u64::try_from(until).unwrap_or(0)
    };
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::{
        identity::Token,
        link::{
            Event, Link, open,
            tests::{accept_by_hand, answer_to, bound, next, read_head, target_at},
        },
    };

    const OFFERED: [&str; 2] = ["fieldgate.v1.cbor", "fieldgate.v1.json"];

    fn offering(port: u16) -> Target {
        Target { subprotocols: OFFERED.map(str::to_owned).into(), ..target_at(port) }
    }

    /// What becomes of a dial that is answered so.
    async fn answered_with(answer: Vec<u8>) -> Down {
        let (listener, port) = bound().await;
        let mut link = open(offering(port));
        let (mut tcp, _) = listener.accept().await.unwrap();
        read_head(&mut tcp).await;
        // The link may have given up before the end of a long answer.
        let _ = tcp.write_all(&answer).await;
        let _ = tcp.shutdown().await;
        match next(&mut link).await {
            Event::Down(down) => down,
            other => panic!("a failed dial was due, not {other:?}"),
        }
    }

    async fn error_of(answer: impl Into<Vec<u8>>) -> String {
        match answered_with(answer.into()).await {
            Down::Dial { step: "upgrade", error } => error,
            other => panic!("a failed upgrade was due, not {other:?}"),
        }
    }

    async fn up_with(headers: &str) -> (Link, Event) {
        let (listener, port) = bound().await;
        let mut link = open(offering(port));
        let _tcp = accept_by_hand(&listener, headers).await;
        let event = next(&mut link).await;
        (link, event)
    }

    #[test]
    fn the_request_is_the_one_of_rfc_6455() {
        let mut target = offering(8443);
        target.url.host = "2001:db8::1".to_owned();
        target.url.path = "/v1/gateway?x=1".to_owned();
        target.bearer = Token::parse("s3cret");
        let text = request(&target, "dGhlIHNhbXBsZSBub25jZQ==").unwrap();
        assert_eq!(
            *text,
            format!(
                "GET /v1/gateway?x=1 HTTP/1.1\r\nHost: [2001:db8::1]:8443\r\n\
                 Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nUser-Agent: fieldgate/{}\r\n\
                 Sec-WebSocket-Protocol: fieldgate.v1.cbor, fieldgate.v1.json\r\n\
                 Authorization: Bearer s3cret\r\n\r\n",
                env!("CARGO_PKG_VERSION")
            )
        );
        let plain = target_at(80);
        let text = request(&plain, "k").unwrap();
        assert!(text.contains("Host: 127.0.0.1\r\n"), "{text:?}");
        assert!(!text.contains("Protocol") && !text.contains("Authorization"), "{text:?}");
        target.url.path = "/ HTTP/1.1\r\nX-Evil: 1".to_owned();
        assert!(request(&target, "k").is_err());
    }

    #[tokio::test]
    async fn a_server_may_select_an_offered_subprotocol_or_none() {
        for (headers, selected) in [
            ("", None),
            ("Sec-WebSocket-Protocol: \r\n", None),
            ("sec-websocket-protocol: fieldgate.v1.cbor\r\n", Some(OFFERED[0])),
            ("Sec-WebSocket-Protocol:fieldgate.v1.json \r\n", Some(OFFERED[1])),
        ] {
            let (_link, event) = up_with(headers).await;
            let Event::Up { subprotocol, date_ms: None, valid_until_ms: None } = event else {
                panic!("{headers:?} is fine, not {event:?}")
            };
            assert_eq!(subprotocol.as_deref(), selected);
        }
        let (_link, event) = up_with("Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n").await;
        assert!(matches!(event, Event::Up { date_ms: Some(784_111_777_000), .. }), "{event:?}");
    }

    #[tokio::test]
    async fn what_was_never_offered_fails_the_dial() {
        for (headers, word) in [
            ("Sec-WebSocket-Protocol: mqtt\r\n", "\"mqtt\""),
            ("Sec-WebSocket-Protocol: fieldgate.v1.cbor, fieldgate.v1.json\r\n", "never offered"),
            ("Sec-WebSocket-Extensions: permessage-deflate\r\n", "extension"),
        ] {
            let (_link, event) = up_with(headers).await;
            let Event::Down(Down::Dial { step: "upgrade", error }) = event else {
                panic!("{headers:?} is a failed dial, not {event:?}")
            };
            assert!(error.contains(word), "{error}");
        }
    }

    #[tokio::test]
    async fn a_refusal_is_told_with_its_status_and_patience() {
        for (answer, wanted, patience) in [
            ("HTTP/1.1 401 Unauthorized\r\n\r\n", 401, None),
            ("HTTP/1.1 302 Found\r\nLocation: ws://127.0.0.1:1/\r\n\r\n", 302, None),
            ("HTTP/1.1 429 Slow\r\nretry-after: 17\r\n\r\n", 429, Some(17)),
            ("HTTP/1.1 503 Gone\r\nRetry-After: 99999999999999999999\r\n\r\n", 503, Some(86_400)),
            ("HTTP/1.1 503 Gone\r\nRetry-After: soon\r\n\r\n", 503, None),
            (
                "HTTP/1.1 503 Gone\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
                 Retry-After: Sun, 06 Nov 1994 08:51:37 GMT\r\n\r\n",
                503,
                Some(120),
            ),
        ] {
            let down = answered_with(answer.into()).await;
            let Down::Refused { status, retry_after, .. } = down else {
                panic!("{answer:?} is a refusal, not {down:?}")
            };
            assert_eq!((status, retry_after.map(|wait| wait.as_secs())), (wanted, patience));
        }
    }

    #[tokio::test]
    async fn junk_and_half_answers_fail_the_dial_in_words() {
        let ok = "HTTP/1.1 101 Switching Protocols\r\n";
        assert!(error_of("SSH-2.0-OpenSSH_9.2\r\n").await.contains("does not speak HTTP"));
        assert!(error_of(*b"\x15\x03\x01\x00\x02\x02\x46").await.contains("wss://"));
        assert!(error_of("").await.contains("instead of answering"));
        assert!(error_of(ok).await.contains("instead of answering"));
        assert!(error_of(format!("{ok}\r\n")).await.contains("Upgrade: websocket"));
        let half = format!("{ok}Upgrade: websocket\r\n");
        assert!(error_of(format!("{half}\r\n")).await.contains("Connection: Upgrade"));
        assert!(error_of("HTTP/1.0 101 Up\r\n\r\n").await.contains("HTTP/1.0"));
        let wrong = "Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
        assert!(error_of(format!("{half}{wrong}\r\n")).await.contains("not the one for our key"));
        let long = format!("{ok}X: {}", "x".repeat(MAX_HEAD_BYTES));
        assert!(error_of(long).await.contains("16384 bytes"));
        let many = format!("{ok}{}", "X: y\r\n".repeat(MAX_HEADERS + 1));
        assert!(error_of(many).await.contains("64 headers"));
    }

    #[tokio::test]
    async fn frames_right_behind_the_answer_are_not_lost() {
        let (listener, port) = bound().await;
        let mut link = open(offering(port));
        let (mut tcp, _) = listener.accept().await.unwrap();
        let head = answer_to(&read_head(&mut tcp).await, "");
        // In one write, so that both arrive together.
        tcp.write_all(&[head.as_bytes(), b"\x81\x02hi"].concat()).await.unwrap();
        assert!(matches!(next(&mut link).await, Event::Up { .. }));
        assert!(matches!(next(&mut link).await, Event::Text(text) if text == "hi"));
    }
}
