//! A DNS server with one name, that can fall silent.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// How often its thread looks whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// RFC 1035, section 4.1: the header, and what it says.
const HEADER_BYTES: usize = 12;
const ANSWER_NO_ERROR: [u8; 2] = [0x81, 0x80];
const TYPE_A: [u8; 2] = [0, 1];
const POINTER_TO_QUESTION: [u8; 2] = [0xc0, HEADER_BYTES as u8];
const CLASS_IN_TTL_0: [u8; 6] = [0, 1, 0, 0, 0, 0];

pub struct NameServer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    silent: AtomicBool,
    stop: AtomicBool,
    heard: AtomicU64,
}

impl NameServer {
    /// Says that every name has this address, and none of IPv6; silent at first.
    pub fn start(at: SocketAddr, address: Ipv4Addr) -> Self {
        let socket = UdpSocket::bind(at).unwrap_or_else(|e| panic!("{at}: {e}"));
        socket.set_read_timeout(Some(LOOK_EVERY)).expect("a socket option");
        let shared = Arc::new(Shared { silent: true.into(), ..Shared::default() });
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || shared.serve(&socket, address)
        });
        Self { shared, thread: Some(thread) }
    }

    pub fn set_silent(&self, silent: bool) {
        self.shared.silent.store(silent, Ordering::Relaxed);
    }

    /// How many questions came, answered or not.
    pub fn heard(&self) -> u64 {
        self.shared.heard.load(Ordering::Relaxed)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if self.thread.take().map(JoinHandle::join).is_some_and(|joined| joined.is_err()) {
            eprintln!("the name server's thread panicked");
        }
    }
}

impl Shared {
    fn serve(&self, socket: &UdpSocket, address: Ipv4Addr) {
        let mut buffer = [0; 512];
        while !self.stop.load(Ordering::Relaxed) {
            // A timeout: nobody asked.
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
            self.heard.fetch_add(1, Ordering::Relaxed);
            if self.silent.load(Ordering::Relaxed) {
                continue;
            }
            if let Some(answer) = answer(&buffer[..length], address) {
                // Whoever asked may have gone.
                let _ = socket.send_to(&answer, from);
            }
        }
    }
}

fn answer(query: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    let name_bytes = query.get(HEADER_BYTES..)?.iter().position(|byte| *byte == 0)?;
    let kind_at = HEADER_BYTES + name_bytes + 1;
    let question = query.get(HEADER_BYTES..kind_at + 4)?;
    let is_ipv4 = query.get(kind_at..kind_at + 2)? == TYPE_A;
    let mut answer = query.get(..2)?.to_vec();
    answer.extend(ANSWER_NO_ERROR);
    answer.extend([0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0]);
    answer.extend(question);
    if is_ipv4 {
        answer.extend(POINTER_TO_QUESTION);
        answer.extend(TYPE_A);
        answer.extend(CLASS_IN_TTL_0);
        answer.extend([0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}
