//! Whether a packet that is coming in gets on.
//!
//! A client that was let in may begin a packet of a megabyte, and any byte of it shows that the
//! client lives. Sent a byte now and then it would be held for as long as the client likes; a
//! deadline for the whole would cut off those that send as fast as their link lets them. So a
//! packet must be there in full, or have grown by [`WINDOW_BYTES`], within each [`WINDOW`]. Pure.

use std::time::{Duration, Instant};

/// How long a packet may take, however short it is, and each [`WINDOW_BYTES`] of a longer one.
pub(super) const WINDOW: Duration = Duration::from_secs(30);

/// Half a kilobyte a second, which GPRS has. The largest packet may so take half an hour.
const WINDOW_BYTES: usize = 16 * 1024;

/// How far the packet under way has come.
#[derive(Debug)]
pub(super) struct Progress {
    /// When the window began.
    since: Instant,
    /// What came in it.
    bytes: usize,
}

impl Progress {
    /// A packet may begin.
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0 }
    }

    /// So much of it came.
    pub(super) fn note(&mut self, now: Instant, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= WINDOW_BYTES {
            *self = Self::new(now);
        }
    }

    /// The client could not be heard since `from`.
    pub(super) fn excuse(&mut self, now: Instant, from: Instant) {
        self.since = now.min(self.since + (now - from));
    }

    /// When the client is overdue, if nothing more comes.
    pub(super) fn due(&self) -> Instant {
        self.since + WINDOW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// After how many seconds a packet of `total` bytes that comes by `rate` a second is cut.
    fn cut_after(rate: usize, total: usize) -> Option<u32> {
        let began = Instant::now();
        let mut progress = Progress::new(began);
        (1_u32..).map_while(|at| (rate * (at as usize - 1) < total).then_some(at)).find(|at| {
            let now = began + SECOND * *at;
            let late = progress.due() < now;
            progress.note(now, rate);
            late
        })
    }

    #[test]
    fn a_slow_link_sends_the_largest_packet_and_a_dribble_is_cut() {
        const LARGEST: usize = 1 << 20;
        assert_eq!(cut_after(1, LARGEST), Some(31));
        assert_eq!(cut_after(500, LARGEST), Some(31));
        assert_eq!(cut_after(600, LARGEST), None, "GPRS");
        assert_eq!(cut_after(1, 29), None, "a short packet has the whole window");
    }

    #[test]
    fn who_was_not_read_is_excused() {
        let began = Instant::now();
        let mut progress = Progress::new(began);
        let (rested, read) = (began + 10 * SECOND, began + 3600 * SECOND);
        progress.excuse(read, rested);
        assert_eq!(progress.due(), read - 10 * SECOND + WINDOW);
        // What came before the rest has been handled: the window began in it.
        let mut progress = Progress::new(read);
        progress.excuse(read, rested);
        assert_eq!(progress.due(), read + WINDOW);
    }
}
