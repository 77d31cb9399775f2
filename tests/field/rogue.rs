//! A server that upgrades, welcomes, and then does one thing that no hub does.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::SOON;

/// How often its threads look whether they are to end.
const LOOK_EVERY: Duration = Duration::from_millis(50);

const WELCOME: &str = r#"{"type":"welcome","session":"s","hub":"rogue","streams":[]}"#;

/// What it does after its welcome.
#[derive(Debug, Clone)]
pub enum Vice {
    /// It reads nothing any more.
    Deaf,
    /// It reads, and says nothing: no ack, no Pong.
    Mute,
    /// It sends these bytes, reads, and says nothing more.
    Says(Vec<u8>),
    /// It sends these bytes again and again.
    Floods(Vec<u8>),
}

pub struct Rogue {
    pub port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// What clients closed with.
    closes: Mutex<Vec<u16>>,
}

impl Rogue {
    pub fn start(vice: Vice) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let port = listener.local_addr().expect("a bound socket").port();
        let shared = Arc::new(Shared::default());
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || {
                for client in listener.incoming().flatten() {
                    if shared.stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let (vice, shared) = (vice.clone(), shared.clone());
                    // It ends with its client, or with the rogue.
                    std::thread::spawn(move || shared.serve(client, &vice));
                }
            }
        });
        Self { port, shared, thread: Some(thread) }
    }

    /// The codes of the close frames that came.
    pub fn closes(&self) -> Vec<u16> {
        self.shared.closes.lock().expect("no holder panics").clone()
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the thread, which waits in accept().
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if self.thread.take().map(JoinHandle::join).is_some_and(|joined| joined.is_err()) {
            eprintln!("the rogue's thread panicked");
        }
    }
}

impl Shared {
    /// A client that goes ends it, whatever the error.
    fn serve(&self, mut client: TcpStream, vice: &Vice) -> Option<()> {
        client.set_read_timeout(Some(SOON)).ok()?;
        upgrade(&mut client)?;
        let (first, _) = frame(&mut client)?;
        assert_eq!(first, 0x81, "a hello");
        client.write_all(&[&[0x81, WELCOME.len() as u8], WELCOME.as_bytes()].concat()).ok()?;
        client.set_read_timeout(Some(LOOK_EVERY)).ok()?;
        match vice {
            Vice::Deaf => self.wait(|| Some(())),
            Vice::Mute => self.listen(&mut client),
            Vice::Says(bytes) => {
                client.write_all(bytes).ok()?;
                self.listen(&mut client)
            }
            Vice::Floods(bytes) => {
                let mut writer = client.try_clone().ok()?;
                let bytes = bytes.repeat(100);
                std::thread::spawn(move || while writer.write_all(&bytes).is_ok() {});
                self.listen(&mut client)
            }
        }
    }

    fn wait(&self, mut step: impl FnMut() -> Option<()>) -> Option<()> {
        while !self.stop.load(Ordering::Relaxed) {
            step()?;
            std::thread::sleep(LOOK_EVERY);
        }
        Some(())
    }

    /// Reads to the end, and notes the close frame.
    fn listen(&self, client: &mut TcpStream) -> Option<()> {
        while !self.stop.load(Ordering::Relaxed) {
            if let (0x88, payload) = frame(client)?
                && let [high, low, ..] = payload[..]
            {
                let code = u16::from_be_bytes([high, low]);
                self.closes.lock().expect("no holder panics").push(code);
            }
        }
        Some(())
    }
}

fn upgrade(client: &mut TcpStream) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(byte(client)?);
    }
    let head = String::from_utf8(head).ok()?;
    let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "))?;
    let accept = derive_accept_key(key.as_bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Protocol: fieldgate.v1.json\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    client.write_all(answer.as_bytes()).ok()
}

/// A whole frame of a client: its first byte and its payload.
fn frame(client: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let first = byte(client)?;
    let long = match byte(client)? & 0x7f {
        126 => 2,
        127 => 8,
        length => {
            return payload(client, usize::from(length)).map(|payload| (first, payload));
        }
    };
    let mut length = 0usize;
    for _ in 0..long {
        length = length << 8 | usize::from(byte(client)?);
    }
    payload(client, length).map(|payload| (first, payload))
}

fn payload(client: &mut TcpStream, length: usize) -> Option<Vec<u8>> {
    let mut mask = [0; 4];
    let mut payload = vec![0; length];
    fill(client, &mut mask)?;
    fill(client, &mut payload)?;
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Some(payload)
}

fn byte(client: &mut TcpStream) -> Option<u8> {
    let mut byte = [0];
    fill(client, &mut byte).map(|()| byte[0])
}

/// Reads as many bytes, however long they take.
fn fill(client: &mut TcpStream, buffer: &mut [u8]) -> Option<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut read = 0;
    while read < buffer.len() {
        match client.read(&mut buffer[read..]) {
            Ok(0) => return None,
            Ok(more) => read += more,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if Instant::now() > deadline {
                    return None;
                }
            }
            Err(_) => return None,
        }
    }
    Some(())
}
