//! `order = "live-first"`: after an outage fresh records pass the backlog, in an epoch of their own
//! that is sent first. Within an epoch the order is always that of the numbers.
//!
//! Must never renumber a record that the hub may have seen or the disk may have.

use super::{Lane, Place};
use crate::protocol::Epoch;

/// More epochs at once than this are not opened: the backlog is then in the way until it is gone.
const MAX_EPOCHS: usize = 64;

/// So much of the backlog may be under way while fresh records are to pass it: on a thin line, what
/// is under way is in their way.
const BACKLOG_WINDOW_BYTES: u64 = 128 * 1024;

impl Lane {
    /// Which epoch is sent from: the oldest, or with live-first the current one while it has
    /// anything.
    pub(super) fn sending(&self) -> usize {
        let current = self.epochs.len() - 1;
        let state = &self.epochs[current];
        let has_some = state.send < self.sendable_end(current) || state.owed.is_some();
        if self.live_first.is_some() && has_some { current } else { 0 }
    }

    /// How many payload bytes may be under way before more of the epoch that is sent from follows.
    pub(super) fn window_bytes(&self) -> u64 {
        let is_passed = self.live_first.is_some() && self.sending() + 1 < self.epochs.len();
        if is_passed { self.window.bytes.min(BACKLOG_WINDOW_BYTES) } else { self.window.bytes }
    }

    /// Up to where an epoch may be sent.
    pub(super) fn sendable_end(&self, place: usize) -> u64 {
        let state = &self.epochs[place];
        let is_current = place + 1 == self.epochs.len();
        if is_current && self.disk_first { self.synced.max(state.acked + 1) } else { state.next }
    }

    /// A session begins: whether what waits on disk in the current epoch is to be passed by what
    /// comes now.
    pub(super) fn consider_epoch(&mut self) {
        let backlog = self.synced.saturating_sub(self.last().acked + 1);
        let worth_passing = self.live_first.is_some_and(|least| backlog >= least);
        self.wants_epoch = worth_passing && self.epochs.len() < MAX_EPOCHS;
    }

    /// Whether a fresh epoch is wanted.
    pub(in crate::gateway) fn wants_epoch(&self) -> bool {
        self.wants_epoch
    }

    /// Whether it can be had: something is left to pass, and every record of this one that was ever
    /// sent, or handed to the disk, is kept there. Ask only while nothing is on its way there.
    pub(in crate::gateway) fn is_ready_for_epoch(&self) -> bool {
        let is_behind = self.synced > self.last().acked + 1;
        self.wants_epoch && is_behind && self.sent_end.max(self.disk_end) <= self.synced
    }

    /// From now on records are numbered in `epoch`; those that are neither on disk nor were ever
    /// sent go over to it. Says from which place on.
    pub(in crate::gateway) fn begin_epoch(&mut self, epoch: Epoch) -> Place {
        let end = self.synced;
        let old = self.last().epoch;
        while self.memory_first < end && !self.memory.is_empty() {
            self.forget_first();
        }
        let fresh = self.memory.len() as u64;
        self.current().next = end;
        self.epochs.push_back(super::EpochState::new(epoch, 0, 1 + fresh));
        self.memory_first = 1;
        (self.released, self.appending, self.synced) = (1, 1, 1);
        (self.disk_end, self.trimmed, self.sent_end) = (1, 0, 1);
        self.wants_epoch = false;
        Place { lane: self.index, epoch: old, seq: end }
    }
}
