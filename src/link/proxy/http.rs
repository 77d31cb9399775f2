//! CONNECT of HTTP/1.1: RFC 9110, section 9.3.6, with Basic credentials (RFC 7617).

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{NO_CREDENTIALS, Progress, SPOKE_FIRST, Via, WRONG_CREDENTIALS};

/// The largest head of an answer; a larger one fails the dial.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// The most header lines of an answer; more fail the dial.
const MAX_HEADERS: usize = 64;

/// The request, and as much of the answer as has come.
pub(in super::super) struct Connect {
    request: Option<Vec<u8>>,
    with_credentials: bool,
    authority: String,
    head: Vec<u8>,
}

impl std::fmt::Debug for Connect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The request has the password.
        f.debug_struct("Connect").field("authority", &self.authority).finish_non_exhaustive()
    }
}

impl Connect {
    pub(super) fn new(via: &Via, host: &str, port: u16) -> Self {
        let bracketed = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let authority = format!("{bracketed}:{port}");
        let mut text = format!(
            "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: fieldgate/{}\r\n",
            env!("CARGO_PKG_VERSION")
        );
        if let Some(login) = &via.credentials {
            // Credentials are coded, so that no user's name becomes a header.
            let coded = STANDARD.encode(format!("{}:{}", login.user, *login.password));
            text.push_str(&format!("Proxy-Authorization: Basic {coded}\r\n"));
        }
        text.push_str("\r\n");
        let with_credentials = via.credentials.is_some();
        Self { request: Some(text.into_bytes()), with_credentials, authority, head: Vec::new() }
    }

    pub(super) fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.request.take()
    }

    pub(super) fn handle_bytes(&mut self, bytes: &[u8]) -> Result<Progress, String> {
        let room = MAX_HEAD_BYTES - self.head.len();
        self.head.extend_from_slice(&bytes[..bytes.len().min(room)]);
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut answer = httparse::Response::new(&mut headers);
        match answer.parse(&self.head) {
            Ok(httparse::Status::Partial) if self.head.len() < MAX_HEAD_BYTES => Ok(Progress::More),
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => Err(format!(
                "it answers with more than {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} headers; see \
                 that uplink.proxy names a proxy"
            )),
            Err(_) => {
                Err("it does not speak HTTP on this port; check the port of uplink.proxy".into())
            }
            Ok(httparse::Status::Complete(length)) => match answer.code {
                Some(200..=299) if self.head.len() == length && bytes.len() <= room => {
                    Ok(Progress::Through)
                }
                Some(200..=299) => Err(SPOKE_FIRST.into()),
                status => Err(self.refusal(status.unwrap_or_default(), answer.headers)),
            },
        }
    }

    fn refusal(&self, status: u16, headers: &[httparse::Header<'_>]) -> String {
        let authority = &self.authority;
        let remedy = match status {
            401 | 407 => match strange_schemes(headers) {
                Some(asked) => {
                    return format!(
                        "it asks for credentials of a kind that is not available ({asked}, status \
                         {status}); have it take Basic ones"
                    );
                }
                None if self.with_credentials => WRONG_CREDENTIALS,
                None => NO_CREDENTIALS,
            },
            403 | 405 => "have it allow CONNECT to this host and port",
            400..=499 => "see that uplink.proxy names a proxy, and its log",
            _ => "see that the hub can be reached from there, and the proxy's log",
        };
        format!("it answers CONNECT to {authority} with HTTP status {status}; {remedy}")
    }
}

/// The kinds of credentials that it asks for, if Basic ones are not among them.
fn strange_schemes(headers: &[httparse::Header<'_>]) -> Option<String> {
    let asked: Vec<&str> = headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("Proxy-Authenticate"))
        .filter_map(|header| std::str::from_utf8(header.value).ok())
        .flat_map(|value| value.split(','))
        .filter_map(|challenge| challenge.split_whitespace().next())
        // Of a challenge's parameters there is no end; a scheme has no `=`.
        .filter(|word| !word.contains('='))
        .take(8)
        .collect();
    let basic = asked.iter().any(|scheme| scheme.eq_ignore_ascii_case("basic"));
    (!asked.is_empty() && !basic).then(|| asked.join(", "))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Handshake,
            tests::{converse, via},
        },
        *,
    };
    use crate::config::ProxyKind;

    fn asks(answer: &str, credentials: Option<(&str, &str)>) -> Result<Progress, String> {
        let via = via(ProxyKind::Http, credentials);
        converse(&via, "hub.example.com", &[answer.as_bytes()]).1
    }

    #[test]
    fn the_request_names_the_hub_and_shows_credentials_coded() {
        let login = via(ProxyKind::Http, Some(("us\r\ner", "s3cret")));
        let (heard, end) = converse(&login, "2001:db8::1", &[b"HTTP/1.1 200 OK\r\n\r\n"]);
        let request = String::from_utf8(heard[0].clone()).unwrap();
        assert!(request.starts_with("CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]"));
        let coded = STANDARD.encode("us\r\ner:s3cret");
        assert!(request.contains(&format!("\r\nProxy-Authorization: Basic {coded}\r\n")));
        assert_eq!(request.matches("\r\n\r\n").count(), 1);
        assert_eq!(end, Ok(Progress::Through));
        let shown = format!("{login:?} {:?}", Handshake::new(&login, "h", 1));
        assert!(!shown.contains("s3cret") && !shown.contains(&coded), "{shown}");
    }

    #[test]
    fn an_answer_lets_through_or_says_what_to_do() {
        for through in [
            "HTTP/1.1 200 Connection established\r\n\r\n",
            "HTTP/1.0 200 OK\r\nProxy-agent: tinyproxy/1.11.1\r\n\r\n",
            "HTTP/1.1 204 \r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert_eq!(asks(through, None), Ok(Progress::Through), "{through}");
        }
        let login = Some(("u", "s3cret"));
        let basic = "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n";
        let ntlm = "HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate\r\n\
                    Proxy-Authenticate: NTLM\r\n\r\n";
        for (answer, credentials, says) in [
            (basic, None, "set uplink.proxy_user"),
            (basic, login, "check uplink.proxy_user"),
            // So tinyproxy refuses a wrong password.
            ("HTTP/1.0 401 Unauthorized\r\n\r\n", login, "check uplink.proxy_user"),
            (ntlm, login, "Negotiate, NTLM"),
            ("HTTP/1.1 403 Forbidden\r\n\r\n", login, "allow CONNECT"),
            ("HTTP/1.1 400 Bad\r\n\r\n", login, "names a proxy"),
            ("HTTP/1.1 502 Bad Gateway\r\n\r\n<html>", login, "hub.example.com:443 with HTTP"),
            ("HTTP/1.1 200 OK\r\n\r\nx", login, SPOKE_FIRST),
            ("\x05\x00\x00 SOCKS", login, "does not speak HTTP"),
        ] {
            let error = asks(answer, credentials).unwrap_err();
            assert!(error.contains(says) && !error.contains("s3cret"), "{answer}: {error}");
        }
    }

    #[test]
    fn an_endless_answer_is_cut_and_never_kept() {
        for line in ["X-Pad: pad\r\n", "x"] {
            let mut connect = Connect::new(&via(ProxyKind::Http, None), "h", 443);
            let mut progress = connect.handle_bytes(b"HTTP/1.1 200 OK\r\nX: ");
            let mut sent = 0;
            while progress == Ok(Progress::More) {
                progress = connect.handle_bytes(line.as_bytes());
                sent += line.len();
                assert!(sent <= MAX_HEAD_BYTES && connect.head.len() <= MAX_HEAD_BYTES);
            }
            assert!(progress.unwrap_err().contains("more than"), "{line}");
        }
        let mut connect = Connect::new(&via(ProxyKind::Http, None), "h", 443);
        let huge = [b"HTTP/1.1 200 OK\r\n\r\n".as_slice(), &[b'x'; 1 << 20]].concat();
        assert_eq!(connect.handle_bytes(&huge), Err(SPOKE_FIRST.into()));
        assert!(connect.head.len() <= MAX_HEAD_BYTES);
    }
}
