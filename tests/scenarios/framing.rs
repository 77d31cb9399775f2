//! The hub against gateways that are none: frames that break RFC 6455, floods, silence. Each ends
//! with a close that says why, and in bounded memory.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    path::Path,
    time::{Duration, Instant},
};

use rustls::{ClientConnection, StreamOwned};

use crate::field::{Field, SOON, certificate::trusting, hub::Hub};

const MIB: u64 = 1 << 20;

/// How much a hub may grow by what one client does.
const MAX_GROWTH_BYTES: u64 = 24 * MIB;

/// RFC 6455, section 7.4.1, and PROTOCOL.md's own.
const GOING_AWAY: u16 = 1001;
const PROTOCOL_ERROR: u16 = 1002;
const NOT_UTF8: u16 = 1007;
const TOO_BIG: u16 = 1009;
const NO_HELLO: u16 = 4008;

struct Client(StreamOwned<ClientConnection, TcpStream>);

impl Client {
    /// A connection that the hub has upgraded.
    fn upgraded(field: &Field, hub: &Hub, token: &str) -> Self {
        let tcp = TcpStream::connect(("127.0.0.1", hub.port)).expect("the hub listens");
        tcp.set_read_timeout(Some(SOON)).expect("a socket option");
        let name = "localhost".try_into().expect("a name");
        let tls = ClientConnection::new(trusting(&field.path("ca.pem")), name).expect("TLS");
        let mut client = Self(StreamOwned::new(tls, tcp));
        client.send(
            format!(
                "GET /v1/gateway HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
                 Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                 Sec-WebSocket-Protocol: fieldgate.v1.json\r\nAuthorization: Bearer {token}\r\n\r\n"
            )
            .as_bytes(),
        );
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.0.read_exact(&mut byte).expect("the whole answer");
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        client
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).and_then(|()| self.0.flush()).expect("the hub takes it");
    }

    /// The code of the close frame that comes, and whether the connection ends after it.
    fn close_code(&mut self) -> Option<u16> {
        let deadline = Instant::now() + SOON;
        let mut heard = Vec::new();
        let mut buffer = [0; 4096];
        while Instant::now() < deadline {
            match self.0.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => heard.extend_from_slice(&buffer[..length]),
                // The end of the connection without TLS's goodbye.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => panic!("after {heard:?}: {error}"),
            }
        }
        let close = frames(&heard).find(|(first, _)| *first == 0x88);
        let code = close.and_then(|(_, payload)| payload.get(..2));
        code.map(|code| u16::from_be_bytes([code[0], code[1]]))
    }

    /// The first bytes and the payloads of this many frames that come, Pings of the hub's aside.
    fn hear(&mut self, count: usize) -> Vec<(u8, Vec<u8>)> {
        let mut heard = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let answers = frames(&heard).filter(|(first, _)| *first != 0x89);
            let whole: Vec<_> = answers.map(|(first, load)| (first, load.into())).collect();
            if whole.len() >= count {
                return whole;
            }
            let length = self.0.read(&mut buffer).expect("frames in time");
            assert_ne!(length, 0, "{count} frames, not {whole:?}");
            heard.extend_from_slice(&buffer[..length]);
        }
    }
}

/// The whole frames in what the hub sent, which masks nothing (RFC 6455, section 5.2), and sends
/// nothing here that needs the longest form.
fn frames(mut heard: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let [first, length, after @ ..] = heard else { return None };
        let (length, after) = match (length, after) {
            (126, [high, low, after @ ..]) => (u16::from_be_bytes([*high, *low]), after),
            (126, _) => return None,
            (short, after) => (u16::from(*short), after),
        };
        let (payload, rest) = after.split_at_checked(usize::from(length))?;
        heard = rest;
        Some((*first, payload))
    })
}

/// A frame as a client masks it, with a mask that changes nothing.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(first, payload.len() as u64);
    bytes.extend(payload);
    bytes
}

fn header(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        0..=125 => bytes.push(0x80 | length as u8),
        126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend(length.to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes
}

fn token(field: &Field, hub: &Hub) -> String {
    let file = hub.add_gateway(field, "gw-1");
    std::fs::read_to_string(file).expect("a token").trim().to_owned()
}

fn resident_bytes(hub: &Hub) -> u64 {
    let id = hub.process.as_ref().expect("the hub runs").id();
    let statm = std::fs::read_to_string(Path::new("/proc").join(id.to_string()).join("statm"));
    let statm = statm.expect("a live process has a statm");
    let pages: u64 = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number");
    pages * 4096
}

#[test]
fn the_hub_closes_with_the_code_for_what_was_wrong_with_a_frame() {
    let field = Field::new();
    let hub = Hub::started(&field);
    let token = token(&field, &hub);
    let half = vec![b'x'; 140_000];
    let parts_too_large = [frame(0x01, &half), frame(0x80, &half)].concat();
    let cases: [(&str, Vec<u8>, u16); 13] = [
        ("no mask", b"\x81\x02hi".to_vec(), PROTOCOL_ERROR),
        ("a reserved bit", frame(0xc1, b"hi"), PROTOCOL_ERROR),
        ("an unknown opcode", frame(0x83, b"hi"), PROTOCOL_ERROR),
        ("an unknown control opcode", frame(0x8b, b""), PROTOCOL_ERROR),
        ("a continuation of nothing", frame(0x80, b"hi"), PROTOCOL_ERROR),
        ("a text within a text", [frame(0x01, b"a"), frame(0x81, b"b")].concat(), PROTOCOL_ERROR),
        ("a ping in parts", frame(0x09, b""), PROTOCOL_ERROR),
        ("a ping that is too long", frame(0x89, &[b'x'; 126]), PROTOCOL_ERROR),
        ("a close of one byte", frame(0x88, &[3]), PROTOCOL_ERROR),
        ("no UTF-8", frame(0x81, b"\xc3\x28"), NOT_UTF8),
        ("100 MB announced", header(0x81, 100 * MIB), TOO_BIG),
        ("all there is announced", header(0x82, u64::MAX >> 1), TOO_BIG),
        ("parts that are too large together", parts_too_large, TOO_BIG),
    ];
    let before = resident_bytes(&hub);
    for (what, bytes, code) in cases {
        let mut client = Client::upgraded(&field, &hub, &token);
        client.send(&bytes);
        assert_eq!(client.close_code(), Some(code), "{what}");
    }
    let growth = resident_bytes(&hub).saturating_sub(before);
    assert!(growth < MAX_GROWTH_BYTES, "the hub grew by {growth} bytes");
}

#[test]
fn a_ping_between_the_parts_of_a_message_is_answered_before_the_message() {
    let field = Field::new();
    let hub = Hub::started(&field);
    let token = token(&field, &hub);
    let mut client = Client::upgraded(&field, &hub, &token);
    let hello = br#"{"type":"hello","gateway":"gw-1","streams":[]}"#;
    let (begin, end) = hello.split_at(20);
    // The hub must not wait for the rest with its answer.
    client.send(&[frame(0x01, begin), frame(0x89, b"between")].concat());
    assert_eq!(client.hear(1), [(0x8a, b"between".to_vec())]);
    client.send(&[frame(0x00, b""), frame(0x89, b""), frame(0x80, end)].concat());
    let heard = client.hear(2);
    assert_eq!(heard[0], (0x8a, Vec::new()));
    let welcome: serde_json::Value = serde_json::from_slice(&heard[1].1).expect("JSON");
    assert_eq!((heard[1].0, &welcome["type"]), (0x81, &"welcome".into()));
}

#[test]
fn half_a_frame_ends_with_the_hello_deadline() {
    let field = Field::new();
    let hub = Hub::started(&field);
    let token = token(&field, &hub);
    let mut client = Client::upgraded(&field, &hub, &token);
    client.send(&frame(0x81, &[b'{'; 300])[..200]);
    assert_eq!(client.close_code(), Some(NO_HELLO));
}

#[test]
fn a_frame_that_takes_longer_than_every_deadline_is_waited_for_as_long_as_it_comes() {
    let field = Field::new();
    let liveness = "[liveness]\nping_interval = \"1s\"\nping_timeout = \"1s\"\n";
    let mut hub = Hub::with(&field, "", liveness);
    hub.start();
    let token = token(&field, &hub);
    let mut client = Client::upgraded(&field, &hub, &token);
    let hello = br#"{"type":"hello","gateway":"gw-1","streams":[]}"#;
    client.send(&frame(0x81, hello));
    let slow = frame(0x81, &[&[b' '; 20][..], b"\xc3\x28"].concat());
    // Here time itself is the subject: several times the deadlines.
    for byte in &slow {
        client.send(&[*byte]);
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(client.close_code(), Some(NOT_UTF8), "it was heard to its end");
    let mut silent = Client::upgraded(&field, &hub, &token);
    silent.send(&frame(0x81, hello));
    silent.send(&slow[..8]);
    assert_eq!(silent.close_code(), Some(GOING_AWAY), "half a frame, and then nothing");
}

#[test]
fn a_client_that_floods_and_never_reads_costs_the_hub_no_memory() {
    let field = Field::new();
    let hub = Hub::started(&field);
    let token = token(&field, &hub);
    let before = resident_bytes(&hub);
    let mut client = Client::upgraded(&field, &hub, &token);
    client.0.sock.set_write_timeout(Some(Duration::from_millis(500))).expect("a socket option");
    let flood = frame(0x89, &[b'p'; 125]).repeat(500);
    let until = Instant::now() + Duration::from_secs(4);
    let mut sent = 0;
    // It ends when the hub takes nothing any more, or has ended it.
    while Instant::now() < until && client.0.write_all(&flood).is_ok() {
        sent += flood.len() as u64;
    }
    assert!(sent > MIB, "only {sent} bytes went out");
    let growth = resident_bytes(&hub).saturating_sub(before);
    assert!(growth < MAX_GROWTH_BYTES, "{sent} bytes of Pings: the hub grew by {growth}");
    assert_eq!(hub.api.get("/healthz").expect("the hub answers").status, 200);
}
