//! Another address for a server: bytes pass until the relay is dropped, which cuts them off.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
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
        let listener = TcpListener::bind(address).unwrap_or_else(|e| panic!("{address}: {e}"));
        let shared = Arc::new(Shared::default());
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || shared.accept(&listener, port)
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
    fn accept(&self, listener: &TcpListener, port: u16) {
        for client in listener.incoming().flatten() {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
            let copies = [&client, &server].map(|stream| stream.try_clone().expect("few files"));
            self.open.lock().expect("no holder panics").extend(copies);
            for (mut from, mut to) in [
                (client.try_clone().expect("few files"), server.try_clone().expect("few files")),
                (server, client),
            ] {
                std::thread::spawn(move || {
                    // A cut is what relays are for.
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    }
}
