//! One HTTP request at a time, plain or over TLS, as a script would make it.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;

const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_RESPONSE_BYTES: u64 = 64 << 20;

/// Where requests go.
#[derive(Clone)]
pub struct Client {
    pub address: IpAddr,
    pub port: u16,
    pub tls: Option<Arc<ClientConfig>>,
    pub token: String,
}

/// An answer; a body that is not JSON is a JSON string.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub body: Value,
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

impl Client {
    pub fn get(&self, path: &str) -> io::Result<Response> {
        self.request("GET", path, "")
    }

    pub fn post(&self, path: &str, body: &str) -> io::Result<Response> {
        self.request("POST", path, body)
    }

    fn request(&self, method: &str, path: &str, body: &str) -> io::Result<Response> {
        let mut stream = self.connect()?;
        let (token, length) = (&self.token, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             authorization: Bearer {token}\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(head.as_bytes())?;
        stream.flush()?;
        let mut bytes = Vec::new();
        match stream.take(MAX_RESPONSE_BYTES).read_to_end(&mut bytes) {
            // A server that closes TCP without TLS's goodbye; whether all came, the length says.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {}
            other => _ = other?,
        }
        parse(&bytes).ok_or_else(|| {
            io::Error::other(format!("not an HTTP response: {:?}", String::from_utf8_lossy(&bytes)))
        })
    }

    fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let tcp = TcpStream::connect((self.address, self.port))?;
        tcp.set_read_timeout(Some(TIMEOUT))?;
        tcp.set_write_timeout(Some(TIMEOUT))?;
        let Some(tls) = &self.tls else { return Ok(Box::new(tcp)) };
        let name = "localhost".try_into().expect("a valid server name");
        let session = ClientConnection::new(tls.clone(), name).map_err(io::Error::other)?;
        Ok(Box::new(StreamOwned::new(session, tcp)))
    }
}

fn parse(bytes: &[u8]) -> Option<Response> {
    let end = bytes.windows(4).position(|at| at == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?.to_ascii_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mut body = bytes[end + 4..].to_vec();
    if header("transfer-encoding:") == Some("chunked") {
        body = unchunked(&body)?;
    } else if let Some(length) = header("content-length:") {
        body = body.get(..length.parse().ok()?)?.to_vec();
    }
    let text = String::from_utf8_lossy(&body).into_owned();
    Some(Response { status, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) })
}

fn unchunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|at| at == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(end + 2..end + 2 + size)?);
        rest = rest.get(end + 4 + size..)?;
    }
}
