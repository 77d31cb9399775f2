//! What a spool has promised, and the check that it keeps to it.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::spool::simulated::{Random, SimulatedDisk};

/// An epoch of a stream, as the one who appends to it knows it.
#[derive(Debug, Default)]
pub(super) struct Promises {
    /// Handed to `append`, and those of them that it said are kept.
    attempted: BTreeSet<u64>,
    kept: BTreeSet<u64>,
    /// The furthest trim that was asked for; the one that this process knows; and the one that
    /// every later process must know.
    acked: u64,
    known: u64,
    acked_on_disk: u64,
    retired: bool,
}

/// All epochs of all streams.
#[derive(Debug)]
pub(super) struct Model {
    epochs: BTreeMap<(usize, u64), Promises>,
    /// Whether there was ever so little room that records may be evicted.
    pub(super) may_evict: bool,
}

/// The one record that has this place: what is read under it must be this.
pub(super) fn body(stream: usize, epoch: u64, seq: u64) -> Bytes {
    let mut random = Random::new(epoch ^ (seq << 8) ^ stream as u64);
    let len = match random.below(16) {
        0 => 1,
        1 => 400 + random.below(1200),
        _ => 1 + random.below(60),
    };
    (0..len).map(|_| random.next() as u8).collect()
}

impl Model {
    pub(super) fn new(may_evict: bool) -> Self {
        Self { epochs: BTreeMap::new(), may_evict }
    }

    fn of(&mut self, stream: usize, epoch: u64) -> &mut Promises {
        self.epochs.entry((stream, epoch)).or_default()
    }

    pub(super) fn attempt(&mut self, entries: &[Entry], epoch: u64) {
        for entry in entries {
            self.of(entry.stream, epoch).attempted.insert(entry.seq);
        }
    }

    pub(super) fn keep(&mut self, entries: &[Entry], epoch: u64) {
        for entry in entries {
            let promises = self.of(entry.stream, epoch);
            promises.kept.insert(entry.seq);
            promises.acked_on_disk = promises.known;
        }
    }

    pub(super) fn trim(&mut self, stream: usize, epoch: u64, acked: u64) {
        let promises = self.of(stream, epoch);
        promises.acked = promises.acked.max(acked);
        promises.known = promises.known.max(acked);
    }

    pub(super) fn save_positions(&mut self) {
        for promises in self.epochs.values_mut() {
            promises.acked_on_disk = promises.acked_on_disk.max(promises.known);
        }
    }

    /// `end` is the epoch's last number.
    pub(super) fn retire(&mut self, stream: usize, epoch: u64, end: u64, done: bool) {
        self.trim(stream, epoch, end);
        self.of(stream, epoch).retired |= done;
        if done {
            self.save_positions();
        }
    }

    /// A start. What it gives of an unspoilt medium is synced: from now on it is kept.
    pub(super) fn check_start(&mut self, spool: &mut Spool<SimulatedDisk>, unspoilt: bool) {
        let held = spool.held();
        for ((stream, epoch), promises) in &mut self.epochs {
            promises.known = 0;
            let owed = promises.kept.last().is_some_and(|last| *last > promises.acked);
            let range = held.iter().find(|range| (range.stream, range.epoch) == (*stream, *epoch));
            assert!(
                range.is_some() || promises.retired || !owed,
                "{stream} {epoch:x} is gone: {promises:?}"
            );
            assert!(
                range.is_none_or(|range| !promises.retired || range.acked + 1 == range.next),
                "{stream} {epoch:x} has something again after it was retired: {range:?}"
            );
        }
        for range in held {
            let records = self.check(spool, &range, usize::MAX);
            let promises = self.of(range.stream, range.epoch);
            promises.known = range.acked;
            if unspoilt {
                promises.kept.extend(records);
            }
        }
    }

    /// Reads all of an epoch, in pieces, and gives the records' numbers.
    pub(super) fn check(
        &self,
        spool: &mut Spool<SimulatedDisk>,
        range: &HeldRange,
        piece: usize,
    ) -> Vec<u64> {
        let HeldRange { stream, epoch, acked, next } = *range;
        let Some(promises) = self.epochs.get(&(stream, epoch)) else {
            panic!("{range:?} was never appended to");
        };
        let context = || format!("{range:?} {promises:?}");
        assert!(acked <= promises.acked, "trimmed more than was asked for: {}", context());
        assert!(acked >= promises.acked_on_disk, "a durable position went back: {}", context());
        if let Some(last) = promises.kept.last().filter(|last| **last > promises.acked) {
            assert!(next > *last, "the end is gone: {}", context());
        }
        let attempted = promises.attempted.last().copied().unwrap_or(0).max(promises.acked);
        assert!(next <= attempted + 1, "numbers were invented: {}", context());
        let mut records = Vec::new();
        let mut at = acked + 1;
        while at < next {
            let items = spool.read(stream, epoch, at, piece).unwrap();
            assert!(!items.is_empty(), "nothing at {at}: {}", context());
            for item in items {
                at = match item {
                    Item::Record { seq, bytes } => {
                        assert_eq!(seq, at, "a hole: {}", context());
                        assert!(promises.attempted.contains(&seq), "{seq} invented: {}", context());
                        assert_eq!(bytes, body(stream, epoch, seq), "{seq} has other bytes");
                        records.push(seq);
                        seq + 1
                    }
                    Item::Skip { from, to, reason } => {
                        assert!(from == at && from < to && to <= next, "{from}..{to} at {at}");
                        let loss = format!("{reason} {from}..{to}: {}", context());
                        promises.check_loss(from..to, &reason, self.may_evict, &records, &loss);
                        to
                    }
                }
            }
        }
        assert_eq!(at, next, "read beyond the end");
        records
    }

    /// In the process that appended, nothing is given that `append` did not call kept.
    pub(super) fn check_current(&self, stream: usize, epoch: u64, records: &[u64]) {
        let kept = |seq: &&u64| !self.epochs[&(stream, epoch)].kept.contains(*seq);
        assert_eq!(records.iter().find(kept), None, "given before it was kept");
    }

    pub(super) fn acked(&mut self, stream: usize, epoch: u64) -> u64 {
        self.of(stream, epoch).acked
    }

    /// Reads all of a damaged spool: nothing is invented, and of each epoch all is given or named
    /// as lost, but for a last record that looks like a torn one. Says how many are gone.
    pub(super) fn check_damaged(&self, spool: &mut Spool<SimulatedDisk>) -> u64 {
        let mut lost = 0;
        for range in spool.held() {
            let promises = &self.epochs[&(range.stream, range.epoch)];
            let mut at = range.acked + 1;
            let mut failures = 0;
            while at < range.next {
                let Ok(items) = spool.read(range.stream, range.epoch, at, 300) else {
                    failures += 1;
                    assert!(failures < 1000, "the reading never ends");
                    continue;
                };
                assert!(!items.is_empty(), "nothing at {at} of {range:?}");
                for item in items {
                    at = match item {
                        Item::Record { seq, bytes } => {
                            assert_eq!(seq, at, "a hole in {range:?}");
                            assert!(promises.attempted.contains(&seq), "{seq} was invented");
                            assert_eq!(bytes, body(range.stream, range.epoch, seq));
                            seq + 1
                        }
                        Item::Skip { from, to, reason } => {
                            assert!(from == at && from < to, "{from}..{to} at {at}");
                            let owed =
                                |seq: &u64| *seq > promises.acked && promises.kept.contains(seq);
                            if reason == "damaged" {
                                lost += (from..to).filter(owed).count() as u64;
                            }
                            to
                        }
                    }
                }
            }
            lost += promises.kept.range(range.next.max(promises.acked + 1)..).count() as u64;
        }
        lost
    }
}

impl Promises {
    /// Only eviction takes what was kept, and the oldest first; damage may be found where an append
    /// failed or never ended.
    fn check_loss(
        &self,
        lost: std::ops::Range<u64>,
        reason: &str,
        may_evict: bool,
        before: &[u64],
        loss: &str,
    ) {
        for seq in lost {
            let named = self.attempted.contains(&seq) || seq <= self.acked;
            assert!(named, "{seq} never was: {loss}");
            if reason == "evicted" {
                assert!(may_evict, "no need to evict: {loss}");
                assert_eq!(before, [0; 0], "not the oldest: {loss}");
            } else {
                assert!(!self.kept.contains(&seq), "{seq} was kept: {loss}");
            }
        }
    }
}
