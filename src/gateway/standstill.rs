//! Whether the gateway gets on, for the service manager's watchdog.
//!
//! It does while acks advance or a window opens, while it is offline with a timer that leads to the
//! next attempt, or while there is nothing to send. Everything here has a deadline of its own that
//! mends it; what is found here is the fault that nobody thought of, and the remedy a new process.

use std::time::{Duration, Instant};

use super::{Gateway, Now, lane::Lane, live::longest_patience};

/// So long something may stand still, unless the core's own deadline for it is later.
const STANDSTILL: Duration = Duration::from_secs(300);

/// So long a deadline may have passed when the timers were last served, or a link be live beyond
/// the end of all patience with it.
const LATE: Duration = Duration::from_secs(60);

/// What is remembered from one question to the next.
#[derive(Debug)]
pub(super) struct Standstill {
    /// When the link last got on, or had no need to.
    moved: Instant,
    /// When the timers were last served.
    served: Instant,
    /// The last answer: a process that was stopped for long is late only once.
    suspected: bool,
}

impl Standstill {
    pub(super) fn new(now: Instant) -> Self {
        Self { moved: now, served: now, suspected: false }
    }

    pub(super) fn handle_moved(&mut self, now: Instant) {
        self.moved = now;
    }

    pub(super) fn handle_served(&mut self, now: Instant) {
        self.served = now;
    }
}

impl Gateway {
    /// What stands still, if anything does, and did when this was last asked. To be asked every few
    /// seconds: a standstill counts from the last time that all was well.
    pub fn standstill(&mut self, now: Now) -> Option<&'static str> {
        if !self.is_live() || !self.lanes.iter().any(Lane::has_to_move) {
            self.standstill.moved = now.instant;
        }
        let found = self.find_standstill(now.instant);
        let was_suspected = std::mem::replace(&mut self.standstill.suspected, found.is_some());
        found.filter(|_| was_suspected)
    }

    fn find_standstill(&self, now: Instant) -> Option<&'static str> {
        let Standstill { moved, served, .. } = self.standstill;
        if self.poll_timeout().is_some_and(|due| due + LATE < served) {
            return Some("a deadline passed and nothing came of it");
        }
        let asked = self.disk.appending.into_iter().chain(self.disk.journalling).min();
        if asked.is_some_and(|asked| now.saturating_duration_since(asked) > STANDSTILL) {
            return Some("the disk does not answer");
        }
        let patience = self.uplink.as_ref().map(|uplink| longest_patience(&uplink.settings));
        let limit = patience.map_or(STANDSTILL, |patience| STANDSTILL.max(patience + LATE));
        let stands = now.saturating_duration_since(moved) > limit;
        stands.then_some("records wait, the link is up, and none is acknowledged")
    }
}
