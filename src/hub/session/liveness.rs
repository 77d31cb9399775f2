//! Whether anybody is there: the `hello` deadline, Ping and Pong.
//!
//! It must never take a slow line for a dead one: whatever comes, and whatever leaves a socket that
//! was full, is progress. It must never take its own deafness for the peer's silence either.

use std::time::{Duration, Instant};

use crate::protocol::HELLO_TIMEOUT;

/// How long a `hello` that lists much may take over a slow line, while bytes come.
const SLOW_HELLO: Duration = Duration::from_secs(60);

/// What the deadlines say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Alive,
    /// There was no progress for `ping_interval`.
    Ping,
    /// `hello` did not come within [`HELLO_TIMEOUT`] of the upgrade, or of its last byte.
    NoHello,
    /// There was no progress for `ping_timeout` after a Ping.
    Dead,
}

#[derive(Debug)]
pub(super) struct Liveness {
    interval: Duration,
    timeout: Duration,
    hello_by: Instant,
    /// However slowly it comes.
    hello_latest: Instant,
    progress: Instant,
    /// What is waited for the next Ping: less than the interval before the first, so that gateways
    /// that came together are not pinged together.
    wait: Duration,
    pinged: Option<Instant>,
}

impl Liveness {
    pub(super) fn new(
        now: Instant,
        interval: Duration,
        timeout: Duration,
        first_ping: Duration,
    ) -> Self {
        Self {
            interval,
            timeout,
            hello_by: now + HELLO_TIMEOUT,
            hello_latest: now + SLOW_HELLO,
            progress: now,
            wait: first_ping,
            pinged: None,
        }
    }

    /// Something came, or left a socket that had been full. The next Ping is put off too: behind
    /// what leaves so slowly its answer would be late.
    pub(super) fn handle_progress(&mut self, now: Instant) {
        self.progress = now;
        self.pinged = None;
        self.hello_by = (now + HELLO_TIMEOUT).min(self.hello_latest);
    }

    pub(super) fn deadline(&self, waits_for_hello: bool) -> Instant {
        let next = match self.pinged {
            Some(pinged) => pinged + self.timeout,
            None => self.progress + self.wait,
        };
        if waits_for_hello { next.min(self.hello_by) } else { next }
    }

    pub(super) fn check(&mut self, now: Instant, waits_for_hello: bool, is_deaf: bool) -> Verdict {
        if waits_for_hello && now >= self.hello_by {
            return Verdict::NoHello;
        }
        if now < self.deadline(false) {
            return Verdict::Alive;
        }
        if is_deaf {
            // The socket is not read, so that silence proves nothing; and to the gateway our Ping
            // is the sign of life that its own unread one does not get.
            self.handle_progress(now);
        } else if self.pinged.is_some() {
            return Verdict::Dead;
        } else {
            self.pinged = Some(now);
        }
        self.wait = self.interval;
        Verdict::Ping
    }
}
