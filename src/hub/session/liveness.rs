//! Whether anybody is there: the `hello` deadline, Ping and Pong.

use std::time::{Duration, Instant};

use crate::protocol::HELLO_TIMEOUT;

/// How long a `hello` that lists much may take over a slow line, while bytes come.
const SLOW_HELLO: Duration = Duration::from_secs(60);

/// What the deadlines say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Alive,
    /// Nothing was heard for `ping_interval`.
    Ping,
    /// `hello` did not come within [`HELLO_TIMEOUT`] of the upgrade, or of its last byte.
    NoHello,
    /// Nothing was heard for `ping_timeout` after a Ping.
    Dead,
}

#[derive(Debug)]
pub(super) struct Liveness {
    interval: Duration,
    timeout: Duration,
    hello_by: Instant,
    /// However slowly it comes.
    hello_latest: Instant,
    heard: Instant,
    pinged: Option<Instant>,
}

impl Liveness {
    pub(super) fn new(now: Instant, interval: Duration, timeout: Duration) -> Self {
        Self {
            interval,
            timeout,
            hello_by: now + HELLO_TIMEOUT,
            hello_latest: now + SLOW_HELLO,
            heard: now,
            pinged: None,
        }
    }

    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.pinged = None;
        self.hello_by = (now + HELLO_TIMEOUT).min(self.hello_latest);
    }

    pub(super) fn deadline(&self, waits_for_hello: bool) -> Instant {
        let next = match self.pinged {
            Some(pinged) => pinged + self.timeout,
            None => self.heard + self.interval,
        };
        if waits_for_hello { next.min(self.hello_by) } else { next }
    }

    pub(super) fn check(&mut self, now: Instant, waits_for_hello: bool, is_deaf: bool) -> Verdict {
        if is_deaf {
            // The socket is not read, so that silence proves nothing.
            self.heard(now);
            return Verdict::Alive;
        }
        if waits_for_hello && now >= self.hello_by {
            return Verdict::NoHello;
        }
        match self.pinged {
            Some(pinged) if now >= pinged + self.timeout => Verdict::Dead,
            None if now >= self.heard + self.interval => {
                self.pinged = Some(now);
                Verdict::Ping
            }
            _ => Verdict::Alive,
        }
    }
}
