//! What the log is told of clients that are turned away. Whoever reaches the port can cause such
//! lines, as many as it likes: so not each one is written, and the card is spared.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::buckets::Bucket;

/// Lines of one kind that are written at once, and how long it takes until one more is.
const LINES: Bucket = Bucket { size: 10, drain: Duration::from_secs(6) };

/// How much of a name that nobody vouches for is logged, in characters.
const LOGGED_NAME: usize = 64;

/// The refusals of one listener.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Apart from the others, so that noise does not hide them.
    warnings: Mutex<Lines>,
    others: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    empty_at: Option<Instant>,
    unlogged: u64,
}

impl Lines {
    /// How many were left out since the last one that was written; `None`: this is left out, too.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if !LINES.has_room(now, self.empty_at) {
            self.unlogged += 1;
            return None;
        }
        self.empty_at = Some(LINES.fill(now, self.empty_at));
        Some(std::mem::take(&mut self.unlogged))
    }
}

/// A name as it is logged.
pub(super) fn shortened(name: &str) -> String {
    name.chars().take(LOGGED_NAME).collect()
}

fn take(lines: &Mutex<Lines>) -> Option<u64> {
    lines.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now())
}

impl Refusals {
    /// A client that did not say who it is, or was not let in for another reason than that.
    pub(super) fn say(&self, peer: SocketAddr, fault: impl fmt::Display) {
        if let Some(unlogged) = take(&self.others) {
            tracing::info!(client = %peer, unlogged, "{fault}");
        }
    }

    /// A client that claims a name, and does not prove it.
    pub(super) fn warn(&self, peer: SocketAddr, user: Option<&str>, fault: &str) {
        if let Some(unlogged) = take(&self.warnings) {
            let user = user.map(shortened);
            tracing::warn!(client = %peer, user, unlogged, "client refused: {fault}");
        }
    }

    /// Clients that could not be accepted.
    pub(super) fn warn_of(&self, error: &std::io::Error) {
        if let Some(unlogged) = take(&self.warnings) {
            tracing::warn!(%error, unlogged, "a client could not be accepted");
        }
    }
}

#[cfg(test)]
#[path = "refusals_tests.rs"]
mod tests;
#[cfg(test)]
pub(super) use tests::LogLines;
