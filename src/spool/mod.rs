//! Records on disk: a log of segments per stream, and the journal of commands.
//!
//! The spool takes records (bytes with a number), keeps them through a power cut, gives them back in order, and lets
//! them go when they are acknowledged. It must never give back what was not appended, never lose what was synced
//! without saying so, never append to a file after a failed fsync, and always open.
//!
//! It knows only bytes; what a record means is for `record`, when to write for `gateway`. All IO goes through [`Disk`].
//!
//! # Files
//!
//! All in one directory; a name carries all that its header says, so that either can be checked by the other.
//!
//! ```text
//! <stream>.<ordinal>.<epoch>.<first>.seg     records; ordinal 8, epoch 16, first 16 hexadecimal digits
//! positions                                  how far each epoch is trimmed, and the skips (text, see `positions`)
//! commands.journal                           see `journal`
//! lock                                       held while the gateway runs
//! ```
//!
//! Ordinals count the starts of the gateway: epochs are random, ordinals order them. A start never appends to an older
//! start's segments. Integers are little endian. Version 1:
//!
//! ```text
//! segment    magic "FGSEG\0\0\1" (the last byte is the version), epoch u64, first u64, acked u64, crc u32
//!            then frames
//! frame      head u32: kind in the top 4 bits, body length in the others
//!            crc u32: CRC32C (RFC 3720, B.4) over epoch, seq, head, body
//!            delta u32: seq - first
//!            body
//! kind 0     record: the bytes
//! kind 1     mark: acked u64, everything up to which is trimmed; its seq is the next record's
//! ```
//!
//! `acked` in header and marks makes a hole in the numbers that was acknowledged look different from a loss. The epoch
//! in every CRC makes no other epoch's bytes ever valid.
//!
//! # Recovery
//!
//! Open reads names, headers, `positions`, and scans the last segment of each epoch. At a bad frame it looks for the
//! next good one: if there is none, the tail is torn and cut; else the records between are damaged and become a skip.
//! The recovered tail is synced before anything of it is sent. Damage further back is met, and skipped, when it is
//! read. A segment whose header doesn't fit its name is read by its name. A segment of a newer version refuses to open:
//! the spool is left as it is.
//!
//! # What is assumed of the medium
//!
//! After fdatasync the bytes and the length of a file stay; after fsync of the directory its names stay; rename is
//! atomic. Bytes that were not synced may be there, or not, or in part, in units of a sector and in any order.

mod disk;
pub mod journal;
mod positions;
mod recovery;
mod segment;

use std::{collections::VecDeque, io};

use bytes::Bytes;

pub use disk::{DirectoryDisk, Disk, DiskFile};
pub use recovery::{OpenError, Report};
use segment::{Frame, HEADER_BYTES, Scan};

/// How much may be on disk, and in what pieces.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The segments of all streams together.
    pub max_bytes: u64,
    /// When a segment is sealed and the next begun.
    pub segment_bytes: u64,
}

/// One record to append.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Index of the stream, as given to [`Spool::open`].
    pub stream: usize,
    /// Its number. Numbers of one stream go up; a hole must have been acknowledged.
    pub seq: u64,
    /// The record.
    pub bytes: Bytes,
}

/// What a read gives, in the order of the numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A record.
    Record {
        /// Its number.
        seq: u64,
        /// Its bytes.
        bytes: Bytes,
    },
    /// Records that are gone.
    Skip {
        /// The first.
        from: u64,
        /// One past the last.
        to: u64,
        /// Why: `evicted` or `damaged`.
        reason: String,
    },
}

/// An epoch that the spool holds something of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldRange {
    /// Index of the stream.
    pub stream: usize,
    /// The epoch.
    pub epoch: u64,
    /// Everything up to here is trimmed.
    pub acked: u64,
    /// One past the last record or skip.
    pub next: u64,
}

/// Records that had to go to make room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evicted {
    /// Index of the stream.
    pub stream: usize,
    /// The epoch.
    pub epoch: u64,
    /// How many records.
    pub records: u64,
}

/// The streams' share of `max_bytes` that the first stream (`events`) never exceeds, and below which it is not evicted
/// for others.
const EVENTS_SHARE: u64 = 10;

/// After so many failed reads a segment counts as damaged.
const READ_ATTEMPTS: u32 = 3;

/// How much of a segment is read at once.
const READ_BYTES: usize = 256 * 1024;

/// The spool of one gateway.
#[derive(Debug)]
pub struct Spool<D: Disk> {
    disk: D,
    limits: Limits,
    ordinal: u32,
    streams: Vec<Stream<D::File>>,
    bytes: u64,
    written_bytes: u64,
    syncs: u64,
}

#[derive(Debug)]
struct Stream<F> {
    name: String,
    /// Oldest first.
    logs: VecDeque<EpochLog>,
    active: Option<Active<F>>,
    cursor: Option<Cursor<F>>,
}

/// What is held of one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
struct EpochLog {
    ordinal: u32,
    epoch: u64,
    acked: u64,
    next: u64,
    /// One past the last number of which `append` has said that it is kept.
    kept: u64,
    segments: VecDeque<Segment>,
    /// Known losses, in order, none overlapping; a hole that is neither acked nor here is damage.
    skips: Vec<SkipRange>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    first: u64,
    /// One past the last number it may hold; frames from there on are not its own.
    next: u64,
    bytes: u64,
    failed_reads: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct SkipRange {
    from: u64,
    to: u64,
    reason: String,
}

/// The segment that is appended to; it is the last of the last log.
#[derive(Debug)]
struct Active<F> {
    file: F,
    first: u64,
    len: u64,
    /// The last `acked` that the file tells.
    marked: u64,
}

/// Where the last read of a stream ended, so that the next need not look for its place.
#[derive(Debug)]
struct Cursor<F> {
    epoch: u64,
    first: u64,
    seq: u64,
    offset: u64,
    file: F,
}

impl<D: Disk> Spool<D> {
    /// Opens the spool in `disk`, with a fresh `epoch` for all that is appended from now on.
    ///
    /// `streams` are the names in the order of their priority, `events` first; streams found on disk that are not among
    /// them are added behind. Says what was found, and what is damaged.
    ///
    /// # Errors
    /// Another gateway holds the spool, the directory can't be read, or a newer version wrote it.
    pub fn open(
        disk: D,
        streams: &[&str],
        limits: Limits,
        epoch: u64,
    ) -> Result<(Self, Report), OpenError> {
        recovery::open(disk, streams, limits, epoch)
    }

    /// The streams' names, by index.
    pub fn streams(&self) -> impl Iterator<Item = &str> {
        self.streams.iter().map(|stream| stream.name.as_str())
    }

    /// Every epoch of an earlier start that is not retired, and the current one if something of it is held; oldest first
    /// within a stream. An epoch that is acknowledged to its end is only to be retired.
    pub fn held(&self) -> Vec<HeldRange> {
        let mut held = Vec::new();
        let is_held = |log: &&EpochLog| log.ordinal != self.ordinal || log.next > log.acked + 1;
        for (index, stream) in self.streams.iter().enumerate() {
            held.extend(stream.logs.iter().filter(is_held).map(|log| HeldRange {
                stream: index,
                epoch: log.epoch,
                acked: log.acked,
                next: log.next,
            }));
        }
        held
    }

    /// Bytes on disk, all segments.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes written since open, and how often the medium was asked to keep them.
    pub fn wear(&self) -> (u64, u64) {
        (self.written_bytes, self.syncs)
    }

    /// Appends a group and syncs it. When it returns `Ok`, every entry survives a power cut.
    ///
    /// Older segments are evicted first if the group doesn't fit in `max_bytes`.
    ///
    /// # Errors
    /// Nothing of the group counts as kept; the files it went to are not written to again. The caller still has the
    /// entries and may append them anew.
    pub fn append(&mut self, entries: &[Entry]) -> io::Result<Vec<Evicted>> {
        let evicted = self.make_room(entries)?;
        let touched = self.write_group(entries);
        let synced = match touched {
            Ok(streams) => self.sync_streams(&streams),
            Err(error) => Err(error),
        };
        match synced {
            Ok(()) => {
                for log in self.streams.iter_mut().filter_map(|stream| stream.logs.back_mut()) {
                    log.kept = log.next;
                }
                Ok(evicted)
            }
            Err(error) => {
                self.distrust(entries);
                Err(error)
            }
        }
    }

    /// Reads on from `from`: records and skips without a hole, at least one if there is any, about `max_bytes` of them.
    ///
    /// # Errors
    /// The medium could not be read; asked again, the third failure makes the segment a `damaged` skip.
    pub fn read(
        &mut self,
        stream: usize,
        epoch: u64,
        from: u64,
        max_bytes: usize,
    ) -> io::Result<Vec<Item>> {
        let Self { disk, streams, .. } = self;
        let stream = &mut streams[stream];
        let Some(log) = stream.logs.iter_mut().find(|log| log.epoch == epoch) else {
            return Ok(Vec::new());
        };
        let mut from = from.max(log.acked + 1);
        let mut items = Vec::new();
        let mut budget = max_bytes;
        while from < log.next && budget > 0 {
            if let Some(skip) = log.skips.iter().find(|skip| skip.from <= from && from < skip.to) {
                items.push(Item::Skip { from, to: skip.to, reason: skip.reason.clone() });
                from = skip.to;
                continue;
            }
            let limit = log.skips.iter().map(|s| s.from).find(|at| *at > from).unwrap_or(log.next);
            let Some(place) = log.segments.iter().position(|s| s.first <= from && from < s.next)
            else {
                let to = log.segments.iter().map(|s| s.first).find(|first| *first > from);
                let to = to.unwrap_or(log.next).min(limit);
                items.push(Item::Skip { from, to, reason: "damaged".into() });
                from = to;
                continue;
            };
            let segment = &mut log.segments[place];
            let place = Place { stream: &stream.name, ordinal: log.ordinal, epoch, limit };
            match place.read_segment(
                disk,
                segment,
                &mut stream.cursor,
                from,
                &mut budget,
                &mut items,
            ) {
                Ok(reached) => from = reached,
                Err(error) => {
                    stream.cursor = None;
                    segment.failed_reads += 1;
                    if segment.failed_reads < READ_ATTEMPTS {
                        return if items.is_empty() { Err(error) } else { Ok(items) };
                    }
                    let to = segment.next.min(limit);
                    items.push(Item::Skip { from, to, reason: "damaged".into() });
                    from = to;
                }
            }
        }
        Ok(items)
    }

    /// Lets go of everything up to `acked` in an epoch. Whole segments are deleted, the position written before.
    ///
    /// # Errors
    /// The position could not be written: nothing was deleted, and the trim is made good by a later one.
    pub fn trim(&mut self, stream: usize, epoch: u64, acked: u64) -> io::Result<()> {
        let current = self.ordinal;
        let half = self.limits.segment_bytes / 2;
        let Some(log) = self.streams[stream].logs.iter_mut().find(|log| log.epoch == epoch) else {
            return Ok(());
        };
        // Of the current epoch the hub may hold records that never had to be written.
        let acked = if log.ordinal == current { acked } else { acked.min(log.next - 1) };
        log.acked = log.acked.max(acked);
        log.next = log.next.max(log.acked + 1);
        log.kept = log.kept.max(log.acked + 1);
        let acked = log.acked;
        log.skips.retain(|skip| skip.to > acked + 1);
        let gone = log.segments.iter().take_while(|segment| segment.next <= acked + 1).count();
        // The segment that is appended to stays while it is small, for a new one costs more than it frees.
        let keeps_active = log.ordinal == current
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

    /// Lets go of an epoch of an earlier start, all of it. When it returns `Ok`, no later start finds it again.
    ///
    /// # Errors
    /// The position could not be written: the epoch may be found again, and this is to be tried again.
    pub fn retire(&mut self, stream: usize, epoch: u64) -> io::Result<()> {
        let current = self.ordinal;
        let old = |log: &EpochLog| log.epoch == epoch && log.ordinal != current;
        let Some(log) = self.streams[stream].logs.iter_mut().find(|log| old(log)) else {
            return Ok(());
        };
        log.acked = log.next - 1;
        log.skips.clear();
        let segments = log.segments.len();
        self.save_positions()?;
        for _ in 0..segments {
            self.unlink_oldest(stream, epoch);
        }
        self.streams[stream].logs.retain(|log| !old(log));
        Ok(())
    }

    /// Writes the positions, so that the next start sends again as little as can be.
    ///
    /// # Errors
    /// The file could not be replaced; the old one stands.
    pub fn save_positions(&mut self) -> io::Result<()> {
        let logs =
            self.streams.iter().flat_map(|s| s.logs.iter().map(|log| (s.name.as_str(), log)));
        let text = positions::write(logs);
        self.written_bytes += text.len() as u64;
        self.syncs += 2;
        self.disk.replace(positions::FILE, text.as_bytes())
    }

    /// Where the journal lives: the same disk.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    fn unlink_oldest(&mut self, stream: usize, epoch: u64) {
        let Self { disk, streams, bytes, ordinal, .. } = self;
        let stream = &mut streams[stream];
        let Some(log) = stream.logs.iter_mut().find(|log| log.epoch == epoch) else { return };
        let Some(segment) = log.segments.pop_front() else { return };
        if log.ordinal == *ordinal && log.segments.is_empty() {
            stream.active = None;
        }
        if stream.cursor.as_ref().is_some_and(|c| c.epoch == epoch && c.first == segment.first) {
            stream.cursor = None;
        }
        *bytes -= segment.bytes;
        let name = segment::file_name(&stream.name, log.ordinal, epoch, segment.first);
        if let Err(error) = disk.remove(&name) {
            tracing::warn!(%error, file = name, "an old segment could not be deleted; the next start will");
        }
    }

    /// Evicts, oldest first from the last stream forward, until the group fits.
    fn make_room(&mut self, entries: &[Entry]) -> io::Result<Vec<Evicted>> {
        let mut evicted = Vec::new();
        for events in [true, false] {
            let wanted: u64 =
                entries.iter().filter(|e| !events || e.stream == 0).map(Entry::frame_bytes).sum();
            if wanted == 0 {
                continue;
            }
            loop {
                let (held, limit) = if events {
                    (self.stream_bytes(0), self.limits.max_bytes / EVENTS_SHARE)
                } else {
                    (self.bytes, self.limits.max_bytes)
                };
                if held + wanted + (HEADER_BYTES * 2) as u64 <= limit {
                    break;
                }
                let victim = if events {
                    (held > 0).then_some(0)
                } else {
                    (0..self.streams.len()).rev().find(|index| self.stream_bytes(*index) > 0)
                };
                let Some(victim) = victim else { break };
                evicted.extend(self.evict_oldest(victim)?);
            }
        }
        Ok(evicted)
    }

    fn stream_bytes(&self, stream: usize) -> u64 {
        self.streams[stream].logs.iter().flat_map(|log| &log.segments).map(|s| s.bytes).sum()
    }

    /// The skip is on the medium before the segment goes: a crash between leaves an announced eviction, which the next
    /// start completes.
    fn evict_oldest(&mut self, index: usize) -> io::Result<Option<Evicted>> {
        let stream = &mut self.streams[index];
        let Some(log) = stream.logs.iter_mut().find(|log| !log.segments.is_empty()) else {
            return Ok(None);
        };
        let epoch = log.epoch;
        let oldest = &log.segments[0];
        let from = oldest.first.max(log.acked + 1);
        let to = oldest.next;
        let records = log.add_skip(from, to, "evicted");
        self.save_positions()?;
        self.unlink_oldest(index, epoch);
        Ok((records > 0).then_some(Evicted { stream: index, epoch, records }))
    }

    fn write_group(&mut self, entries: &[Entry]) -> io::Result<Vec<usize>> {
        let mut touched = Vec::new();
        for index in 0..self.streams.len() {
            let group: Vec<&Entry> = entries.iter().filter(|entry| entry.stream == index).collect();
            let mut rest = group.as_slice();
            while let Some(first) = rest.first() {
                self.ensure_active(index, first.seq)?;
                let room = self.limits.segment_bytes;
                let stream = &mut self.streams[index];
                let log =
                    stream.logs.back_mut().expect("the current epoch's log exists since open");
                let active = stream.active.as_mut().expect("made above");
                let mut buffer = Vec::new();
                if log.acked > active.marked {
                    let mark = Frame::Mark { acked: log.acked };
                    mark.put(&mut buffer, log.epoch, first.seq, active.first);
                    active.marked = log.acked;
                }
                let mut taken = 0;
                for entry in rest {
                    if taken > 0 && active.len + buffer.len() as u64 >= room {
                        break;
                    }
                    let frame = Frame::Record(entry.bytes.clone());
                    frame.put(&mut buffer, log.epoch, entry.seq, active.first);
                    log.next = entry.seq + 1;
                    taken += 1;
                }
                active.file.write_at(&buffer, active.len)?;
                active.len += buffer.len() as u64;
                self.bytes += buffer.len() as u64;
                self.written_bytes += buffer.len() as u64;
                let segment = log.segments.back_mut().expect("the active segment is the last");
                segment.bytes = active.len;
                segment.next = log.next;
                rest = &rest[taken..];
                if !rest.is_empty() {
                    self.sync_streams(&[index])?;
                    self.streams[index].active = None;
                }
            }
            if !group.is_empty() {
                touched.push(index);
            }
        }
        Ok(touched)
    }

    /// Seals a full segment and begins the next; the name is on the medium before anything in it counts.
    fn ensure_active(&mut self, index: usize, first: u64) -> io::Result<()> {
        let Self { disk, streams, limits, ordinal, .. } = self;
        let stream = &mut streams[index];
        if stream.active.as_ref().is_some_and(|active| active.len >= limits.segment_bytes) {
            stream.active = None;
        }
        if stream.active.is_some() {
            return Ok(());
        }
        let log = stream.logs.back_mut().expect("the current epoch's log exists since open");
        let name = segment::file_name(&stream.name, *ordinal, log.epoch, first);
        let header = segment::header(log.epoch, first, log.acked);
        let begun = disk.create(&name).and_then(|mut file| {
            file.write_at(&header, 0)?;
            file.sync()?;
            disk.sync_directory()?;
            Ok(file)
        });
        let file = begun.inspect_err(|_| drop(disk.remove(&name)))?;
        let len = header.len() as u64;
        if let Some(before) = log.segments.back_mut() {
            before.next = before.next.min(first);
        }
        log.segments.retain(|segment| segment.first != first);
        log.segments.push_back(Segment { first, next: first, bytes: len, failed_reads: 0 });
        stream.active = Some(Active { file, first, len, marked: log.acked });
        self.bytes += len;
        self.written_bytes += len;
        self.syncs += 2;
        Ok(())
    }

    fn sync_streams(&mut self, touched: &[usize]) -> io::Result<()> {
        for index in touched {
            let stream = &mut self.streams[*index];
            let active = stream.active.as_mut().expect("a touched stream has an active segment");
            self.syncs += 1;
            active.file.sync()?;
        }
        Ok(())
    }

    /// After a failed write or fsync: nothing of the group counts, and its files are left alone. What of it did reach
    /// the medium does no harm: the caller appends the same records under the same numbers again.
    fn distrust(&mut self, entries: &[Entry]) {
        for index in 0..self.streams.len() {
            if !entries.iter().any(|entry| entry.stream == index) {
                continue;
            }
            let Self { disk, streams, bytes, .. } = self;
            let stream = &mut streams[index];
            stream.active = None;
            stream.cursor = None;
            let log = stream.logs.back_mut().expect("the current epoch's log exists since open");
            log.next = log.kept;
            while let Some(last) = log.segments.pop_back_if(|last| last.first >= log.kept) {
                *bytes -= last.bytes;
                let name = segment::file_name(&stream.name, log.ordinal, log.epoch, last.first);
                // If it stays, the next segment of this number replaces it, or the next start passes over it.
                drop(disk.remove(&name));
            }
            if let Some(last) = log.segments.back_mut() {
                last.next = last.next.min(log.kept);
            }
        }
    }
}

/// Which segment is read, and up to where.
struct Place<'a> {
    stream: &'a str,
    ordinal: u32,
    epoch: u64,
    limit: u64,
}

impl Place<'_> {
    fn read_segment<D: Disk>(
        &self,
        disk: &D,
        segment: &Segment,
        cursor: &mut Option<Cursor<D::File>>,
        from: u64,
        budget: &mut usize,
        items: &mut Vec<Item>,
    ) -> io::Result<u64> {
        let (epoch, first) = (self.epoch, segment.first);
        let fits = |c: &Cursor<D::File>| c.epoch == epoch && c.first == first && c.seq <= from;
        let (file, mut offset) = match cursor.take().filter(fits) {
            Some(cursor) => (cursor.file, cursor.offset),
            None => {
                let name = segment::file_name(self.stream, self.ordinal, epoch, first);
                (disk.open(&name)?, HEADER_BYTES as u64)
            }
        };
        let end = segment.next.min(self.limit);
        let mut from = from;
        while from < end && *budget > 0 {
            let mut scan = Scan::load(&file, epoch, first, offset, READ_BYTES)?;
            while from < end && *budget > 0 {
                let Some((seq, frame)) = scan.next_frame() else { break };
                let (Frame::Record(bytes), true) = (frame, seq >= from) else { continue };
                let seq = seq.min(end);
                if seq > from {
                    items.push(Item::Skip { from, to: seq, reason: "damaged".into() });
                }
                if seq < end {
                    *budget = budget.saturating_sub(bytes.len());
                    items.push(Item::Record { seq, bytes });
                }
                from = (seq + 1).min(end);
            }
            let progress = scan.offset() > offset;
            offset = scan.offset();
            if !progress {
                break;
            }
        }
        if from < end && *budget > 0 {
            items.push(Item::Skip { from, to: end, reason: "damaged".into() });
            from = end;
        }
        *cursor = Some(Cursor { epoch, first, seq: from, offset, file });
        Ok(from)
    }
}

impl EpochLog {
    fn new(ordinal: u32, epoch: u64) -> Self {
        Self {
            ordinal,
            epoch,
            acked: 0,
            next: 1,
            kept: 1,
            segments: VecDeque::new(),
            skips: Vec::new(),
        }
    }

    /// Adds what of `from..to` is not a known loss yet; says how many records that is.
    fn add_skip(&mut self, from: u64, to: u64, reason: &str) -> u64 {
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

impl Entry {
    fn frame_bytes(&self) -> u64 {
        (segment::FRAME_BYTES + self.bytes.len()) as u64
    }
}

#[cfg(test)]
mod tests;
