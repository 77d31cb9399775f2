//! One HTTP/1.1 request and its answer, by the way that the WebSocket takes: DNS, proxy, TLS. For
//! enrolment and renewal, each a few kilobytes once in months.
//!
//! Head and body are bounded, a redirect is never followed, and the connection serves once.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::{
    Down, Target,
    dial::{failed, io_words, reach},
    stream::Stream,
    upgrade::{MAX_HEAD_BYTES, MAX_HEADERS, authorise, authority, begun, retry_after, values},
};
use crate::identity::calendar::Moment;

/// The largest body of an answer: a few certificates.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// What a server answered.
#[derive(Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// Its `Retry-After`.
    pub retry_after: Option<Duration>,
    /// The body, whatever the status.
    pub body: String,
}

/// Sends a GET to the path of `target.url`, or a POST of `json`, and reads the answer.
///
/// # Errors
/// The step that failed, and why. Whatever status was answered is no failure.
pub async fn exchange(target: &Target, json: Option<&str>) -> Result<Reply, Down> {
    let limit = target.connect_timeout;
    let mut stream = reach(target, Arc::default(), &mut |_| ()).await?;
    match timeout(limit, ask(&mut stream, target, json)).await {
        Ok(answered) => answered.map_err(|error| failed("HTTP", error)),
        Err(_) => {
            let host = &target.url.host;
            Err(failed("HTTP", format!("{host}: no answer within {limit:?}; see its log")))
        }
    }
}

async fn ask(stream: &mut Stream, target: &Target, json: Option<&str>) -> Result<Reply, String> {
    let host = &target.url.host;
    let broken = |error| io_words(&error, host, target.ca_file.as_deref());
    let method = if json.is_some() { "POST" } else { "GET" };
    let mut head = begun(target);
    head.push_str(&format!(
        "{method} {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nUser-Agent: fieldgate/{}\r\n",
        target.url.path,
        authority(&target.url),
        env!("CARGO_PKG_VERSION")
    ));
    authorise(&mut head, target);
    if let Some(json) = json {
        let length = json.len();
        head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await.map_err(broken)?;
    stream.write_all(json.unwrap_or_default().as_bytes()).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;

    let mut bytes = Vec::with_capacity(4096);
    loop {
        let room = (MAX_HEAD_BYTES + MAX_BODY_BYTES - bytes.len()) as u64;
        // Servers that cut the connection without TLS's own ending have said all the same.
        let ended = matches!((&mut *stream).take(room).read_buf(&mut bytes).await, Ok(0) | Err(_));
        if let Some(reply) = reply(&bytes, ended).map_err(|fault| format!("{host} {fault}"))? {
            return Ok(reply);
        }
        if ended {
            return Err(format!("{host} ended the connection before its answer; see its log"));
        }
    }
}

/// The answer, once it is whole.
fn reply(bytes: &[u8], ended: bool) -> Result<Option<Reply>, &'static str> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() <= MAX_HEAD_BYTES => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err("answers with too long a head; correct the URL");
        }
        Err(_) => return Err("does not speak HTTP on this port; check the port in the URL"),
    };
    let header = |name: &str| values(head.headers, name).next();
    let date = header("Date").and_then(Moment::from_http_date);
    let rest = &bytes[length..];
    let body = match (header("Transfer-Encoding"), header("Content-Length")) {
        (Some(_), _) => unchunked(rest)?,
        (None, Some(length)) => {
            let length = length.parse().map_err(|_| "answers with no valid Content-Length")?;
            if length > MAX_BODY_BYTES {
                return Err("answers with too long a body; correct the URL");
            }
            rest.get(..length).map(<[u8]>::to_vec)
        }
        (None, None) => ended.then(|| rest.to_vec()),
    };
    if rest.len() >= MAX_BODY_BYTES && body.is_none() {
        return Err("answers with too long a body; correct the URL");
    }
    let text = body.map(String::from_utf8).transpose();
    Ok(text.map_err(|_| "answers with what is no text")?.map(|body| Reply {
        status: head.code.unwrap_or_default(),
        retry_after: header("Retry-After").and_then(|text| retry_after(text, date)),
        body,
    }))
}

/// RFC 9112, section 7.1; `None` until the last chunk is there.
fn unchunked(mut rest: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    const FAULT: &str = "answers in chunks that are none";
    let mut body = Vec::new();
    loop {
        let (start, size) = match httparse::parse_chunk_size(rest) {
            Ok(httparse::Status::Complete(read)) => read,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(FAULT),
        };
        if size == 0 {
            return Ok(Some(body));
        }
        let size = usize::try_from(size).ok().filter(|size| *size <= MAX_BODY_BYTES);
        let size = size.ok_or(FAULT)?;
        let Some(chunk) = rest.get(start..start + size) else { return Ok(None) };
        body.extend_from_slice(chunk);
        let Some(after) = rest.get(start + size + 2..) else { return Ok(None) };
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::tests::{bound, target_at};

    #[test]
    fn an_answer_is_read_whatever_pieces_it_comes_in() {
        let head = "HTTP/1.1 429 Slow\r\nRetry-After: 7\r\n";
        for (rest, closes) in [
            ("Content-Length: 5\r\n\r\nhello", false),
            ("Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", false),
            ("Connection: close\r\n\r\nhello", true),
        ] {
            let bytes = format!("{head}{rest}").into_bytes();
            let whole = reply(&bytes, closes).unwrap().expect("it is whole");
            assert_eq!((whole.status, whole.body.as_str()), (429, "hello"));
            assert_eq!(whole.retry_after, Some(Duration::from_secs(7)));
            let last = bytes.len() - if rest.contains("chunked") { 2 } else { 0 };
            for cut in 0..last {
                assert!(reply(&bytes[..cut], false).unwrap().is_none(), "cut at {cut}");
            }
        }
    }

    #[test]
    fn what_is_too_long_or_no_http_is_refused() {
        let refused = |text: String| reply(text.as_bytes(), false).unwrap_err();
        let ok = "HTTP/1.1 200 OK\r\n";
        assert!(refused("SSH-2.0\r\n".into()).contains("does not speak HTTP"));
        assert!(refused(format!("{ok}X: {}", "x".repeat(MAX_HEAD_BYTES))).contains("head"));
        assert!(refused(format!("{ok}Content-Length: 99999999\r\n\r\n")).contains("body"));
        assert!(refused(format!("{ok}Content-Length: x\r\n\r\n")).contains("Content-Length"));
        let endless = "x".repeat(MAX_BODY_BYTES);
        assert!(refused(format!("{ok}\r\n{endless}")).contains("body"));
        let chunks = format!("{ok}Transfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\n");
        assert!(refused(chunks).contains("chunks"));
    }

    #[tokio::test]
    async fn a_request_is_sent_with_its_token_and_its_body() {
        let (listener, port) = bound().await;
        let mut target = target_at(port);
        target.bearer = crate::identity::Token::parse("s3cret");
        target.url.path = "/v1/renew".into();
        let serve = async {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut heard = Vec::new();
            while !heard.ends_with(b"\r\n\r\n{}") {
                assert_ne!(tcp.read_buf(&mut heard).await.unwrap(), 0, "the whole request");
            }
            tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            String::from_utf8(heard).unwrap()
        };
        let (head, reply) = tokio::join!(serve, exchange(&target, Some("{}")));
        assert!(head.starts_with("POST /v1/renew HTTP/1.1\r\nHost: 127.0.0.1:"), "{head}");
        assert!(head.contains("Authorization: Bearer s3cret\r\n"), "{head}");
        assert!(head.contains("Content-Length: 2\r\n"), "{head}");
        assert_eq!(reply.unwrap().body, "ok");
    }
}
