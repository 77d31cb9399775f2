use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tracing::{Event, Level, Metadata, Subscriber, span, subscriber::DefaultGuard};

use super::*;
use crate::source::listener::tests::{Bench, CONNECT, answer};

#[test]
fn of_a_flood_some_are_written_and_the_next_says_how_many_were_not() {
    let (mut lines, now) = (Lines::default(), Instant::now());
    let written = (0..1000).filter(|_| lines.take(now).is_some()).count();
    assert_eq!(written, LINES.size as usize);
    assert_eq!(lines.take(now + LINES.drain), Some(990));
    assert_eq!(lines.take(now + LINES.drain), None);
    assert_eq!(lines.take(now + 100 * LINES.drain), Some(1));
}

/// The log of this thread, as a gateway would write it: how many lines it has.
pub(in crate::source::listener) struct LogLines {
    lines: Arc<AtomicUsize>,
    _guard: DefaultGuard,
}

impl LogLines {
    /// Counts from now on.
    pub(in crate::source::listener) fn count() -> Self {
        let lines = Arc::default();
        let _guard = tracing::subscriber::set_default(Counting(Arc::clone(&lines)));
        Self { lines, _guard }
    }

    pub(in crate::source::listener) fn lines(&self) -> usize {
        self.lines.load(Ordering::Relaxed)
    }
}

struct Counting(Arc<AtomicUsize>);

impl Subscriber for Counting {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO && metadata.target().starts_with("fieldgate")
    }

    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// Strangers could fill the log, and with it the card: only wrong passwords were not each written.
#[tokio::test]
async fn a_flood_of_connections_of_any_kind_does_not_flood_the_log() {
    let kinds: [(&str, Vec<u8>); 4] = [
        ("no MQTT", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("another level", b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x3c\x00\x01z".to_vec()),
        ("no client identifier", b"\x10\x0c\x00\x04MQTT\x04\x00\x00\x3c\x00\x00".to_vec()),
        ("a second CONNECT", [CONNECT, CONNECT].concat()),
    ];
    for (kind, bytes) in kinds {
        let mut bench = Bench::start(8).await;
        let log = LogLines::count();
        for _ in 0..200 {
            bench.leave_out_notices();
            let mut stream = bench.raw().await;
            stream.write_all(&bytes).await.unwrap();
            answer(&mut stream).await;
        }
        assert!((1..20).contains(&log.lines()), "{kind}: {} lines", log.lines());
    }
}

#[tokio::test]
async fn a_flood_of_connections_that_say_nothing_does_not_flood_the_log() {
    let bench = Bench::start(8).await;
    let log = LogLines::count();
    let mut silent: Vec<TcpStream> = Vec::new();
    for _ in 0..400 {
        silent.push(bench.raw().await);
    }
    // These had to leave for the last ones.
    for stream in &mut silent[..200] {
        answer(stream).await;
    }
    assert!((1..20).contains(&log.lines()), "{} lines", log.lines());
}

#[tokio::test]
async fn a_flood_of_what_can_not_be_accepted_does_not_flood_the_log() {
    let (refusals, log) = (Refusals::default(), LogLines::count());
    let error = std::io::Error::from_raw_os_error(24);
    (0..200).for_each(|_| refusals.warn_of(&error));
    assert!((1..20).contains(&log.lines()), "{} lines", log.lines());
}
