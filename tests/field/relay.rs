//! Another address for a server: bytes pass until the relay is dropped, which cuts them off.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Relay {
    /// Listens on `address` and passes everything on to `port` on 127.0.0.1.
    pub fn start(address: SocketAddr, port: u16) -> Self {
        Self::with(address, port, None)
    }

    /// The same over a thin line: no more than `bytes_per_second` towards the server.
    pub fn slow(address: SocketAddr, port: u16, bytes_per_second: u32) -> Self {
        Self::with(address, port, Some(bytes_per_second))
    }

    fn with(address: SocketAddr, port: u16, bytes_per_second: Option<u32>) -> Self {
        let listener = TcpListener::bind(address).unwrap_or_else(|e| panic!("{address}: {e}"));
        let shared = Arc::new(Shared::default());
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || shared.accept(&listener, port, bytes_per_second)
        });
        Self { address, shared, thread: Some(thread) }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the thread, which waits in accept(). It may have ended.
        let mut own = self.address;
        if own.ip().is_unspecified() {
            own.set_ip([127, 0, 0, 1].into());
        }
        let _ = TcpStream::connect(own);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a relay does not panic");
        }
        for stream in self.shared.open.lock().expect("no holder panics").drain(..) {
            // Its peer may be gone.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn accept(&self, listener: &TcpListener, port: u16, bytes_per_second: Option<u32>) {
        for client in listener.incoming().flatten() {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
            let copies = [&client, &server].map(|stream| stream.try_clone().expect("few files"));
            self.open.lock().expect("no holder panics").extend(copies);
            for (mut from, mut to, limit) in [
                (
                    client.try_clone().expect("few files"),
                    server.try_clone().expect("few files"),
                    bytes_per_second,
                ),
                (server, client, None),
            ] {
                std::thread::spawn(move || {
                    // A cut is what relays are for.
                    let _ = match limit {
                        Some(limit) => trickle(&mut from, &mut to, limit),
                        None => io::copy(&mut from, &mut to).map(drop),
                    };
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    }
}

/// Copies at a steady rate, a hundredth of a second's bytes at a time.
fn trickle(from: &mut impl Read, to: &mut impl Write, bytes_per_second: u32) -> io::Result<()> {
    let mut chunk = vec![0; bytes_per_second as usize / 100];
    let mut due = Instant::now();
    loop {
        let length = from.read(&mut chunk)?;
        if length == 0 {
            return Ok(());
        }
        to.write_all(&chunk[..length])?;
        let takes = Duration::from_secs(1) * length as u32 / bytes_per_second;
        due = due.max(Instant::now() - Duration::from_millis(20)) + takes;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}
