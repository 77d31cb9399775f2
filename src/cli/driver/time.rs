//! What time it is: from the board's clock to the core, and from the hub to the board's clock.

use std::time::Instant;

use super::Driver;
use crate::{
    cli::disk::Job,
    gateway::Now,
    identity::{Clock, Word},
};

/// How far the time in a token may be off (PROTOCOL.md, section 11).
const TOKEN_LEEWAY_MS: u64 = 60_000;

/// The time, from the board's clocks.
pub(in crate::cli) fn now(clock: &Clock) -> Now {
    let (wall, boot) = clock.now();
    Now { instant: Instant::now(), wall, boot }
}

impl Driver {
    pub(super) fn now(&self) -> Now {
        now(&self.clock)
    }

    /// The hub says what the time is in its `welcome`.
    pub(super) fn handle_time(&mut self, unix_ms: u64) {
        self.clock.handle_word(unix_ms, Word::Welcome, self.state.valid_until_ms);
        self.keep_time(false);
    }

    /// The `Date` of an answer to the upgrade, which anybody on the way could have written where
    /// there is no TLS. Says whether by it a token of ours had a wrong time.
    pub(super) fn handle_date(
        &mut self,
        date_ms: Option<u64>,
        valid_until_ms: Option<u64>,
    ) -> bool {
        let before_ms = self.clock.unix_ms();
        self.state.valid_until_ms = valid_until_ms;
        // Not written down at once: the `welcome` that may follow is more precise.
        if let (Some(unix_ms), Some(_)) = (date_ms, valid_until_ms) {
            self.clock.handle_word(unix_ms, Word::Date, valid_until_ms);
        }
        self.clock.unix_ms().abs_diff(before_ms) > TOKEN_LEEWAY_MS
    }

    /// Has the disk thread write down what the hub confirmed, when that is due.
    pub(super) fn keep_time(&self, is_stopping: bool) {
        if let Some(line) = self.clock.to_keep(is_stopping) {
            // The thread ends only after this loop.
            self.disk.jobs.send(Job::KeepTime(line)).ok();
        }
    }
}
