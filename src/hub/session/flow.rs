//! When the gateway's window is open: while the engine works, and answers.
//!
//! An engine that takes long must never make the hub look dead: a gateway that waits for an ack in
//! vain redials after its `ack_timeout`, and with it all others that the engine keeps waiting.

use std::time::{Duration, Instant};

use super::{Now, Phase, Session};

/// How long the engine may answer nothing before the window is closed: half of a gateway's
/// `ack_timeout`.
const STALLED_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Flow {
    store_up: bool,
    /// Since when nothing was answered, while anything is asked.
    unanswered_since: Option<Instant>,
    is_stalled: bool,
}

impl Flow {
    pub(super) fn new() -> Self {
        Self { store_up: true, unanswered_since: None, is_stalled: false }
    }

    /// Whether the gateway may send.
    pub(super) fn is_open(&self) -> bool {
        self.store_up && !self.is_stalled
    }
}

impl Session {
    /// Whether the engine works now. To be told after its answers too: a recovery may overtake the
    /// failures before it.
    pub fn handle_store(&mut self, up: bool) {
        self.change_flow(|flow| flow.store_up = up);
    }

    /// Something may have been asked.
    pub(super) fn note_asked(&mut self, now: Now) {
        if !self.asked.is_empty() {
            self.flow.unanswered_since.get_or_insert(now.instant);
        }
    }

    /// Something was answered.
    pub(super) fn note_answered(&mut self, now: Now) {
        let since = (!self.asked.is_empty()).then_some(now.instant);
        self.change_flow(|flow| {
            flow.unanswered_since = since;
            flow.is_stalled = false;
        });
    }

    /// When [`check_stall`](Self::check_stall) is wanted.
    pub(super) fn stall_at(&self) -> Option<Instant> {
        let is_watched = self.phase == Phase::Open && !self.flow.is_stalled;
        self.flow.unanswered_since.filter(|_| is_watched).map(|since| since + STALLED_AFTER)
    }

    /// Closes the window while the engine keeps everybody waiting; its next answer opens it.
    pub(super) fn check_stall(&mut self, now: Now) {
        self.note_asked(now);
        if self.stall_at().is_some_and(|at| at <= now.instant) {
            self.change_flow(|flow| flow.is_stalled = true);
        }
    }

    fn change_flow(&mut self, change: impl FnOnce(&mut Flow)) {
        let was_open = self.flow.is_open();
        change(&mut self.flow);
        let is_open = self.flow.is_open();
        if was_open == is_open || self.phase != Phase::Open {
            return;
        }
        let messages = if is_open { self.streams.resume() } else { self.streams.pause() };
        self.send_all(messages);
        self.ask_for_commands();
    }
}
