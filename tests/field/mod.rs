//! The field in small: real gateways, hubs, brokers and peers, each a process of its own on a free
//! loopback port, and devices that know exactly which of their publishes were acknowledged.
//!
//! Everything that starts a process ends it when dropped; when a test fails, each process's log is
//! shown.

pub mod broker;
pub mod carrier;
pub mod certificate;
pub mod clock;
pub mod device;
pub mod gateway;
pub mod http;
pub mod hub;
pub mod issuer;
pub mod ledger;
pub mod mount;
pub mod mqtt;
pub mod name_server;
pub mod namespace;
pub mod peer;
pub mod process;
pub mod proxy;
pub mod relay;
pub mod rogue;
pub mod signer;
pub mod uplink;
pub mod writer;

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// How long anything may take that should take less than a second: a loaded machine is not a
/// failure.
pub const SOON: Duration = Duration::from_secs(15);

/// One scenario's directory, gone when the scenario is.
pub struct Field {
    dir: TempDir,
}

impl Field {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("fieldgate-").tempdir();
        Self { dir: dir.expect("a directory for temporary files") }
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: impl AsRef<Path>, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }
}

/// Asks again and again until there is an answer; `what` says what was waited for in vain.
pub fn eventually<T>(what: &str, within: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    const PAUSE: Duration = Duration::from_millis(20);
    let deadline = Instant::now() + within;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        std::thread::sleep(PAUSE);
    }
}

/// A port that nothing listens on, below those that the kernel gives to outgoing connections: it
/// stays free while its server is down.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Tests run as processes side by side: each starts looking somewhere else.
    let start = (std::process::id() as u16).wrapping_mul(37);
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + start.wrapping_add(step) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port from {FIRST} to {}", FIRST + COUNT)
}
