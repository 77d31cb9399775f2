//! Records on disk: a log of segments per stream, and the journal of commands.
//!
//! The spool takes records (bytes with a number), keeps them through a power cut, gives them back
//! in order, and lets them go when they are acknowledged. It must never give back what was not
//! appended, never lose what was synced without saying so, never append to a file after a failed
//! fsync, and always open.
//!
//! It knows only bytes; what a record means is for `record`, when to write for `gateway`. All IO
//! goes through [`Disk`].
//!
//! # Files
//!
//! All in one directory; a name carries all that its header says, so that either can be checked by
//! the other.
//!
//! ```text
//! <stream>.<ordinal>.<epoch>.<first>.seg     records; ordinal 8, epoch 16, first 16 hexadecimal digits
//! positions                                  how far each epoch is trimmed, and the skips (text, see `positions`)
//! commands.journal                           see `journal`
//! lock                                       held while the gateway runs
//! ```
//!
//! Ordinals count the starts of the gateway: epochs are random, ordinals order them. A start never
//! appends to an older start's segments. Integers are little endian. Version 1:
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
//! `acked` in header and marks makes a hole in the numbers that was acknowledged look different
//! from a loss. The epoch in every CRC makes no other epoch's bytes ever valid.
//!
//! # Recovery
//!
//! Open reads names, headers, `positions`, and scans the last segment of each epoch. At a bad frame
//! it looks for the next good one: if there is none, the tail is torn and cut; else the records
//! between are damaged and become a skip. The recovered tail is synced before anything of it is
//! sent. Damage further back is met, and skipped, when it is read. A segment whose header doesn't
//! fit its name is read by its name. A segment of a newer version refuses to open: the spool is
//! left as it is.
//!
//! # What is assumed of the medium
//!
//! After fdatasync the bytes and the length of a file stay; after fsync of the directory its names
//! stay; rename is atomic. Bytes that were not synced may be there, or not, or in part, in units of
//! a sector and in any order.

mod append;
mod disk;
pub mod journal;
mod positions;
mod read;
mod recovery;
mod segment;

use std::{collections::VecDeque, io};

use bytes::Bytes;

pub use disk::{DirectoryDisk, Disk, DiskFile};
pub use recovery::{OpenError, Report};

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

/// The streams' share of `max_bytes` that the first stream (`events`) never exceeds, and below
/// which it is not evicted for others.
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
    /// Evicted and not yet said.
    evicted: Vec<Evicted>,
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
    /// `streams` are the names in the order of their priority, `events` first; streams found on
    /// disk that are not among them are added behind. Says what was found, and what is damaged.
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

    /// Every epoch of an earlier start that is not retired, and the current one if something of it
    /// is held; oldest first within a stream. An epoch that is acknowledged to its end is only
    /// to be retired.
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

    /// Lets go of everything up to `acked` in an epoch. Whole segments are deleted, the position
    /// written before.
    ///
    /// # Errors
    /// The position could not be written: nothing was deleted, and the trim is made good by a later
    /// one.
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
        // The segment that is appended to stays while it is small, for a new one costs more than it
        // frees.
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

    /// Lets go of an epoch of an earlier start, all of it. When it returns `Ok`, no later start
    /// finds it again.
    ///
    /// # Errors
    /// The position could not be written: the epoch may be found again, and this is to be tried
    /// again.
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

#[cfg(test)]
mod tests;
