//! What goes, and when: acknowledged segments, and the oldest ones when there is no room.
//!
//! Nothing goes before `positions` on the medium says that it may.

use std::io;

use crate::planted::{Bug, planted};

use super::{
    Disk, EVENTS_SHARE, Entry, EpochLog, Evicted, MAX_SPARES, MIN_SEGMENT_SHARE, PRESSED_EIGHTHS,
    SPARES_SHARE, SkipRange, Spare, Spool, segment,
};

impl<D: Disk> Spool<D> {
    /// Lets go of everything up to `acked` in an epoch. Whole segments are deleted, the position
    /// written before.
    ///
    /// # Errors
    /// The position could not be written: nothing was deleted, and the trim is made good by a later
    /// one.
    pub fn trim(&mut self, stream: usize, epoch: u64, acked: u64) -> io::Result<()> {
        let acked = acked + u64::from(planted(Bug::TrimTooFar));
        let half = self.limits.segment_bytes / 2;
        let logs = &mut self.streams[stream].logs;
        let Some(place) = logs.iter().position(|log| log.epoch == epoch) else { return Ok(()) };
        let is_newest = place + 1 == logs.len();
        let log = &mut logs[place];
        // Of the newest epoch the hub may hold records that never had to be written.
        let acked = if is_newest { acked } else { acked.min(log.next - 1) };
        log.acked = log.acked.max(acked);
        log.next = log.next.max(log.acked + 1);
        log.kept = log.kept.max(log.acked + 1);
        let acked = log.acked;
        log.skips.retain(|skip| skip.to > acked + 1);
        let gone = log.segments.iter().take_while(|segment| segment.next <= acked + 1).count();
        // The segment that is appended to stays while it is small, for a new one costs more than it
        // frees.
        let keeps_active = is_newest
            && gone == log.segments.len()
            && log.segments.back().is_some_and(|last| last.bytes < half);
        let gone = gone - usize::from(keeps_active);
        if gone > 0 {
            self.save_positions()?;
            for _ in 0..gone {
                self.unlink_oldest(stream, epoch);
            }
        }
        Ok(())
    }

    /// Lets go of an earlier epoch, all of it. When it returns `Ok`, no later start finds it again.
    ///
    /// # Errors
    /// The position could not be written, or a file not be deleted: the epoch may be found again,
    /// and this is to be tried again.
    pub fn retire(&mut self, stream: usize, epoch: u64) -> io::Result<()> {
        let logs = &mut self.streams[stream].logs;
        let newest = logs.len() - 1;
        let Some(log) = logs.iter_mut().take(newest).find(|log| log.epoch == epoch) else {
            return Ok(());
        };
        log.acked = log.next - 1;
        log.skips.clear();
        let (segments, ordinal) = (log.segments.len(), log.ordinal);
        self.save_positions()?;
        for _ in 0..segments {
            self.unlink_oldest(stream, epoch);
        }
        // The next positions tell nothing of the epoch: a file that came back would be all anew.
        let stem = segment::file_stem(&self.streams[stream].name, ordinal, epoch);
        for name in self.disk.list()?.iter().filter(|name| name.starts_with(&stem)) {
            self.disk.remove(name)?;
        }
        self.disk.sync_directory()?;
        self.streams[stream].logs.retain(|log| log.epoch != epoch);
        Ok(())
    }

    /// Evicts, oldest first from the last stream forward, until the group fits.
    pub(super) fn make_room(&mut self, entries: &[Entry]) -> io::Result<()> {
        for events in [true, false] {
            let mine = entries.iter().filter(|entry| !events || entry.stream == 0);
            let wanted: u64 = mine.map(Entry::frame_bytes).sum();
            if wanted == 0 {
                continue;
            }
            loop {
                let (held, limit) = if events {
                    (self.streams[0].bytes(), self.limits.max_bytes / EVENTS_SHARE)
                } else {
                    (self.bytes, self.room())
                };
                if held + wanted + self.smallest_segment() <= limit {
                    break;
                }
                let victim = if events { (held > 0).then_some(0) } else { self.victim(1) };
                let Some(victim) = victim else { break };
                self.evict_oldest(victim)?;
            }
        }
        Ok(())
    }

    /// Whether the next records will soon be had only for older ones.
    pub(super) fn is_pressed(&self) -> bool {
        self.bytes >= self.room() / 8 * PRESSED_EIGHTHS
    }

    /// What the segments may take: the rest is for the spares.
    fn room(&self) -> u64 {
        self.limits.max_bytes - self.max_spares() * self.limits.segment_bytes
    }

    fn max_spares(&self) -> u64 {
        MAX_SPARES.min(self.limits.max_bytes / self.limits.segment_bytes / SPARES_SHARE)
    }

    /// What a segment counts as, at least.
    pub(super) fn smallest_segment(&self) -> u64 {
        (self.limits.segment_bytes / MIN_SEGMENT_SHARE).max(segment::HEADER_BYTES as u64)
    }

    /// The stream from `first` on whose oldest segment goes next: never one that the group under
    /// way is in.
    fn victim(&self, first: usize) -> Option<usize> {
        (first..self.streams.len()).rev().find(|index| {
            let logs = &self.streams[*index].logs;
            let oldest = logs.iter().find_map(|log| Some((log.segments.front()?, log.kept)));
            oldest.is_some_and(|(segment, kept)| segment.next <= kept)
        })
    }

    /// A file for a stream's next segment, from what was acknowledged or, where the medium is
    /// nearly full, from what must go for it: as much as it may become. `None`: a new one may
    /// be made.
    pub(super) fn take_spare(&mut self, stream: usize) -> io::Result<Option<String>> {
        let begun_with = self.bytes;
        loop {
            if let Some(spare) = self.spares.pop() {
                return Ok(Some(spare.name));
            }
            // A medium that can't say how much is free will say when it is full.
            let free = self.disk.free_bytes().unwrap_or(u64::MAX);
            if free >= self.limits.min_free_bytes.saturating_add(self.limits.segment_bytes) {
                return Ok(None);
            }
            if begun_with - self.bytes >= self.limits.segment_bytes {
                return Ok(None);
            }
            // Events are few, and go for nothing but events.
            let Some(victim) = self.victim(stream.min(1)) else {
                let (free, floor) = (free >> 20, self.limits.min_free_bytes >> 20);
                let why =
                    format!("{free} MiB are free, and spool.min_free_bytes keeps {floor} MiB");
                return Err(io::Error::new(io::ErrorKind::StorageFull, why));
            };
            self.evict_oldest(victim)?;
        }
    }

    /// The skip is on the medium before the segment goes: a crash between leaves an announced
    /// eviction, which the next start completes.
    fn evict_oldest(&mut self, index: usize) -> io::Result<()> {
        let place = self.streams[index].logs.iter().position(|log| !log.segments.is_empty());
        let Some(place) = place else { return Ok(()) };
        let log = &mut self.streams[index].logs[place];
        let (epoch, before) = (log.epoch, log.skips.clone());
        let from = log.segments[0].first.max(log.acked + 1);
        let records = log.add_skip(from, log.segments[0].next, "evicted");
        let mut saved = self.save_positions();
        while saved.is_err()
            && let Some(spare) = self.spares.pop()
        {
            // On a full medium its place may be what the positions want.
            saved = self.disk.remove(&spare.name).and_then(|()| self.save_positions());
        }
        if let Err(error) = saved {
            self.streams[index].logs[place].skips = before;
            return Err(error);
        }
        if planted(Bug::EvictionUntold) {
            self.streams[index].logs[place].skips.clear();
        }
        self.unlink_oldest(index, epoch);
        if records > 0 {
            self.evicted.push(Evicted { stream: index, epoch, records });
        }
        Ok(())
    }

    /// Takes an epoch's first segment out; its file becomes a spare if it is worth it.
    pub(super) fn unlink_oldest(&mut self, index: usize, epoch: u64) {
        let enough = self.spares.len() as u64 >= self.max_spares();
        let stream = &mut self.streams[index];
        let newest = stream.newest().epoch;
        let Some(log) = stream.logs.iter_mut().find(|log| log.epoch == epoch) else { return };
        let Some(segment) = log.segments.pop_front() else { return };
        if epoch == newest && log.segments.is_empty() {
            stream.active = None;
        }
        let name = segment::file_name(&stream.name, log.ordinal, epoch, segment.first);
        if stream.cursor.as_ref().is_some_and(|c| c.epoch == epoch && c.first == segment.first) {
            stream.cursor = None;
        }
        self.bytes -= segment.file_bytes;
        if !enough && segment.file_bytes >= self.limits.segment_bytes / 2 {
            let spare = Spare {
                name: format!("{}{:08x}", segment::SPARE, self.next_spare),
                bytes: segment.file_bytes,
            };
            self.next_spare += 1;
            if self.disk.rename(&name, &spare.name).is_ok() {
                self.spares.push(spare);
                return;
            }
        }
        if let Err(error) = self.disk.remove(&name) {
            tracing::warn!(%error, file = name, "an old segment could not be deleted; the next start will");
        }
    }
}

impl EpochLog {
    /// Adds what of `from..to` is not a known loss yet; says how many records that is.
    pub(super) fn add_skip(&mut self, from: u64, to: u64, reason: &str) -> u64 {
        let (mut at, mut added) = (from, 0);
        let known = self.skips.clone();
        for skip in known.iter().filter(|skip| skip.to > from && skip.from < to) {
            if at < skip.from {
                added += skip.from - at;
                self.skips.push(SkipRange { from: at, to: skip.from, reason: reason.into() });
            }
            at = skip.to;
        }
        if at < to {
            added += to - at;
            self.skips.push(SkipRange { from: at, to, reason: reason.into() });
        }
        self.skips.sort_by_key(|skip| skip.from);
        self.skips.dedup_by(|later, earlier| {
            let joins = earlier.to == later.from && earlier.reason == later.reason;
            if joins {
                earlier.to = later.to;
            }
            joins
        });
        added
    }
}
