//! A lane's records on their way to the disk and back.

use std::time::Instant;

use super::{Lane, OVERHEAD_BYTES, READ_AHEAD_BYTES, Receipts};
use crate::{
    planted::{Bug, planted},
    protocol::Epoch,
    record::Receipt,
    spool::{Entry, Item},
};

impl Lane {
    /// When the oldest record that is neither on disk nor on its way there was heard.
    pub(in crate::gateway) fn oldest_unwritten(&self) -> Option<Instant> {
        let at = self.appending.max(self.last().acked + 1);
        self.memory
            .get(usize::try_from(at.checked_sub(self.memory_first)?).ok()?)
            .map(|kept| kept.heard)
    }

    /// Hands everything that is not on disk to it, about `budget` bytes of it.
    pub(in crate::gateway) fn take_unwritten(
        &mut self,
        entries: &mut Vec<Entry>,
        budget: &mut usize,
    ) {
        let next = self.last().next;
        let mut seq = self.appending.max(self.last().acked + 1).max(self.memory_first);
        while seq < next && *budget > 0 {
            let kept = &self.memory[(seq - self.memory_first) as usize];
            let (bytes, origin) = (kept.bytes.clone(), kept.origin);
            *budget = budget.saturating_sub(bytes.len());
            entries.push(Entry { stream: self.index, seq, bytes, origin });
            seq += 1;
            self.disk_end = seq;
        }
        self.appending = seq;
    }

    /// All that was handed over is on the medium, or none of it counts.
    pub(in crate::gateway) fn handle_appended(&mut self, kept: bool, safe: &mut Vec<Receipt>) {
        if !kept && !planted(Bug::ReceiptAfterFailedWrite) {
            self.appending = self.synced.max(self.last().acked + 1);
            return;
        }
        self.synced = self.appending;
        self.release(safe);
    }

    /// Up to where the current epoch is acknowledged.
    pub(in crate::gateway) fn acked(&self) -> u64 {
        self.last().acked
    }

    /// How far the spool is to trim the current epoch before it is given more of it.
    pub(in crate::gateway) fn trim_before_append(&mut self) -> Option<(Epoch, u64)> {
        let (epoch, acked) = (self.last().epoch, self.last().acked);
        let behind = self.trimmed < acked;
        self.trimmed = acked;
        behind.then_some((epoch, acked))
    }

    /// What the spool is to trim now that `acked` of an epoch is held by the hub.
    pub(super) fn trim_after_ack(
        &mut self,
        is_current: bool,
        epoch: Epoch,
        acked: u64,
    ) -> Option<(Epoch, u64)> {
        if is_current && self.trimmed + 1 >= self.disk_end {
            return None;
        }
        if is_current {
            self.trimmed = acked;
        }
        Some((epoch, acked))
    }

    /// An epoch that the disk is to let go of for good.
    pub(in crate::gateway) fn wants_retired(&mut self) -> Option<Epoch> {
        let old = self.retiring.iter_mut().find(|old| !old.asked)?;
        old.asked = true;
        Some(old.epoch)
    }

    pub(in crate::gateway) fn handle_retired(&mut self, epoch: Epoch, gone: bool) {
        if gone {
            self.retiring.retain(|old| old.epoch != epoch);
        } else if let Some(old) = self.retiring.iter_mut().find(|old| old.epoch == epoch) {
            old.asked = false;
        }
    }

    /// Lets go of the memory of what the disk has, down to `keep_bytes`.
    pub(in crate::gateway) fn shed(&mut self, keep_bytes: usize) {
        while self.memory_bytes > keep_bytes && self.memory_first < self.synced {
            self.forget_first();
        }
    }

    /// The next piece of the backlog to read, if the link will want it.
    pub(in crate::gateway) fn wants_read(&mut self) -> Option<(Epoch, u64)> {
        if self.reading || self.window.records == 0 {
            return None;
        }
        let place = self.reading_place();
        let state = &self.epochs[place];
        if self.ahead_epoch != state.epoch {
            self.ahead.clear();
            self.ahead_epoch = state.epoch;
        }
        // What the hub acknowledged meanwhile is not sent from here, and nothing follows on it.
        while self.ahead.front().is_some_and(|item| end_of(item) <= state.send) {
            self.ahead.pop_front();
        }
        let from = match self.ahead.back() {
            Some(last) => end_of(last),
            None => state.send,
        };
        let ahead: usize = self.ahead.iter().map(item_bytes).sum();
        let wanted =
            from < self.on_disk_end(place) && ahead < READ_AHEAD_BYTES / 2 && state.owed.is_none();
        self.reading = wanted;
        wanted.then_some((state.epoch, from))
    }

    /// Which epoch is read ahead: the one that is sent from, or the oldest while that one's records
    /// are in memory.
    fn reading_place(&self) -> usize {
        let place = self.sending();
        if self.epochs[place].send < self.on_disk_end(place) { place } else { 0 }
    }

    /// Up to where an epoch must be read from disk.
    pub(super) fn on_disk_end(&self, place: usize) -> u64 {
        let is_current = place + 1 == self.epochs.len();
        if is_current { self.memory_first } else { self.epochs[place].next }
    }

    pub(in crate::gateway) fn handle_read(&mut self, epoch: Epoch, items: Vec<Item>) {
        self.reading = false;
        let state = self.epochs.iter().find(|state| state.epoch == epoch);
        let Some(state) = state.filter(|_| epoch == self.ahead_epoch) else { return };
        let wanted = self.ahead.back().map_or(state.send, end_of);
        // A session may have ended meanwhile, and the reading begun anew: what doesn't continue is
        // read again.
        if items.first().is_some_and(|item| start_of(item) == wanted) {
            self.ahead.extend(items);
        }
    }

    pub(in crate::gateway) fn handle_read_failed(&mut self) {
        self.reading = false;
    }

    fn release(&mut self, safe: &mut Vec<Receipt>) {
        let from = self.released.max(self.memory_first);
        for seq in from..self.synced {
            let Some(kept) = self.memory.get_mut((seq - self.memory_first) as usize) else { break };
            std::mem::take(&mut kept.receipts).give_back(safe);
        }
        self.released = self.released.max(self.synced);
    }

    pub(super) fn forget_first(&mut self) -> Receipts {
        let Some(kept) = self.memory.pop_front() else { return Receipts::None };
        self.memory_bytes -= kept.bytes.len() + OVERHEAD_BYTES;
        self.memory_first += 1;
        kept.receipts
    }
}

fn start_of(item: &Item) -> u64 {
    match item {
        Item::Record { seq, .. } => *seq,
        Item::Skip { from, .. } => *from,
    }
}

pub(super) fn end_of(item: &Item) -> u64 {
    match item {
        Item::Record { seq, .. } => seq + 1,
        Item::Skip { to, .. } => *to,
    }
}

fn item_bytes(item: &Item) -> usize {
    match item {
        Item::Record { bytes, .. } => bytes.len() + OVERHEAD_BYTES,
        Item::Skip { .. } => OVERHEAD_BYTES,
    }
}
