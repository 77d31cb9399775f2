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
//! spare.<ordinal>                            an acknowledged segment's file, to be written again
//! commands.journal                           see `journal`
//! lock                                       held while the gateway runs
//! ```
//!
//! Ordinals count the epochs of a stream: epochs are random, ordinals order them. Only the newest
//! epoch is appended to, and each start begins one. Integers are little endian. Version 1:
//!
//! ```text
//! segment    magic "FGSEG\0\0\1" (the last byte is the version), stream u32, epoch u64,
//!            first u64, acked u64, stale u64, crc u32, then frames, then what is left of an earlier use, up to byte `stale`
//!            stream: CRC32C (RFC 3720, B.4) of its name
//! frame      head u32: kind in the top 4 bits, body length, at most 1,310,720, in the others
//!            crc u32: CRC32C over stream, epoch, seq, head, body
//!            delta u32: seq - first, less than 2^20, xor the CRC32C of stream, epoch, first
//!            body
//! kind 0     record: the bytes
//! kind 1     mark: acked u64, everything up to which is trimmed; its seq is the next record's
//! kind 2     record with its origin: session u64, order u32, packet identifier u16, digest u32,
//!            the bytes
//! ```
//!
//! `acked` in header and marks makes a hole in the numbers that was acknowledged look different
//! from a loss. Stream, epoch and seq in every CRC make no other segment's bytes ever valid in this
//! one, so that a file can be written again: that costs the medium a fraction of a new one, for
//! neither its length nor its place has to be written. Origins are for `tails`: they tell after a
//! crash which publishes are on disk that a device sends again.
//!
//! # Recovery
//!
//! Open reads names, headers, `positions`, and scans the last segment of each epoch. At a bad frame
//! it looks for the next good one: if there is none, the tail is torn and cut; else the records
//! between are damaged and become a skip. The recovered tail is synced before anything of it is
//! sent. Damage further back is met, and skipped, when it is read. A segment whose header is
//! damaged is read by its name; one whose header is another segment's was never begun. A file of a
//! newer version refuses to open: the spool is left as it is.
//!
//! # Bounds
//!
//! `max_bytes` holds for all files of segments and spares. A segment counts as at least a 256th of
//! a full one, so that their number is bounded too. At the bound, and when less than
//! `min_free_bytes` of the medium is free, the oldest segment of the last stream is evicted as a
//! durable skip.
//!
//! # What is assumed of the medium
//!
//! After fdatasync the bytes and the length of a file stay; after fsync of the directory its names
//! stay; rename is atomic. Bytes that were not synced may be there, or not, or in part, in units of
//! a sector and in any order.

mod append;
mod disk;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod journal;
mod positions;
mod read;
mod recovery;
mod release;
mod retention;
mod segment;
pub mod survey;
mod tails;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
};

use bytes::Bytes;

pub use disk::{DirectoryDisk, Disk, DiskFile};
pub use recovery::{OpenError, Report};
pub use tails::{Origin, Tail};

/// How much may be on disk, and in what pieces.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The segments of all streams together.
    pub max_bytes: u64,
    /// When a segment is sealed and the next begun.
    pub segment_bytes: u64,
    /// What is left free of the medium: below, the spool makes do with the files it has.
    pub min_free_bytes: u64,
    /// How many publishes of a session are remembered by their [`Origin`].
    pub tail: usize,
}

/// One record to append.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Index of the stream, as given to [`Spool::open`].
    pub stream: usize,
    /// Its number. Numbers of one stream go up; a hole must have been acknowledged.
    pub seq: u64,
    /// The record: 1 byte to 1,310,000 bytes.
    pub bytes: Bytes,
    /// Which publish it was, where that is to be known after a crash.
    pub origin: Option<Origin>,
}

/// A group is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Appended {
    /// What had to go to make room, since the last success.
    pub evicted: Vec<Evicted>,
    /// Whether the spool is nearly full: soon the next records will be had only for older ones.
    pub pressed: bool,
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

/// From this part of its room on, in eighths, the spool is nearly full.
const PRESSED_EIGHTHS: u64 = 7;

/// How many files of acknowledged segments are kept to be written again, at most, and what part of
/// the spool they may be.
const MAX_SPARES: u64 = 4;
const SPARES_SHARE: u64 = 8;

/// A segment counts as at least this part of a full one.
const MIN_SEGMENT_SHARE: u64 = 256;

/// After so many failed reads a segment counts as damaged.
const READ_ATTEMPTS: u32 = 3;

/// How much of a segment is read at once.
const READ_BYTES: usize = 256 * 1024;

/// The spool of one gateway.
#[derive(Debug)]
pub struct Spool<D: Disk> {
    disk: D,
    limits: Limits,
    streams: Vec<Stream<D::File>>,
    /// Of the segments; spares come on top.
    bytes: u64,
    spares: Vec<Spare>,
    next_spare: u32,
    tails: BTreeMap<u64, Tail>,
    written_bytes: u64,
    syncs: u64,
    /// Evicted and not yet said.
    evicted: Vec<Evicted>,
    /// A segment was begun since the positions were last written for the tails' sake.
    has_begun: bool,
    /// Files that failed appends have left and that could not be removed yet.
    unwanted: Vec<String>,
}

/// A file that may be written again.
#[derive(Debug)]
struct Spare {
    name: String,
    bytes: u64,
}

#[derive(Debug)]
struct Stream<F> {
    name: String,
    /// Oldest first; the last one is appended to and never goes.
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
    /// What its frames take, and what its file does, which may have been longer before.
    bytes: u64,
    file_bytes: u64,
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

    /// Every earlier epoch that is not retired, and the newest if something of it is held; oldest
    /// first within a stream. An epoch that is acknowledged to its end is only to be retired.
    pub fn held(&self) -> Vec<HeldRange> {
        let mut held = Vec::new();
        for (index, stream) in self.streams.iter().enumerate() {
            let newest = stream.logs.len() - 1;
            let is_held =
                |(place, log): &(usize, &EpochLog)| *place < newest || log.next > log.acked + 1;
            held.extend(stream.logs.iter().enumerate().filter(is_held).map(|(_, log)| HeldRange {
                stream: index,
                epoch: log.epoch,
                acked: log.acked,
                next: log.next,
            }));
        }
        held
    }

    /// The last publishes of each session that are on disk, oldest first; see [`Entry::origin`].
    pub fn tails(&self) -> impl Iterator<Item = (u64, &Tail)> {
        self.tails.iter().map(|(session, tail)| (*session, tail))
    }

    /// Appends of a stream go to a fresh epoch from now on.
    ///
    /// # Panics
    /// If the epoch was used before: its numbers would be given twice.
    pub fn begin_epoch(&mut self, stream: usize, epoch: u64) {
        let stream = &mut self.streams[stream];
        assert!(stream.logs.iter().all(|log| log.epoch != epoch), "an epoch is used once");
        let ordinal = stream.newest().ordinal + 1;
        stream.active = None;
        stream.logs.push_back(EpochLog::new(ordinal, epoch));
    }

    /// Bytes on disk, all segments and spares.
    pub fn bytes(&self) -> u64 {
        self.bytes + self.spares.iter().map(|spare| spare.bytes).sum::<u64>()
    }

    /// Bytes written since open, and how often the medium was asked to keep them.
    pub fn wear(&self) -> (u64, u64) {
        (self.written_bytes, self.syncs)
    }

    /// Writes the positions, so that the next start sends again as little as can be.
    ///
    /// # Errors
    /// The file could not be replaced; the old one stands.
    pub fn save_positions(&mut self) -> io::Result<()> {
        let logs =
            self.streams.iter().flat_map(|s| s.logs.iter().map(|log| (s.name.as_str(), log)));
        let text = positions::write(logs, &self.tails);
        self.written_bytes += text.len() as u64;
        self.syncs += 2;
        self.disk.replace(positions::FILE, text.as_bytes())
    }

    /// Where the journal lives: the same disk.
    pub fn disk(&self) -> &D {
        &self.disk
    }
}

impl<F> Stream<F> {
    fn new(name: &str) -> Self {
        Self { name: name.into(), logs: VecDeque::new(), active: None, cursor: None }
    }

    /// The epoch that is appended to.
    fn newest(&self) -> &EpochLog {
        self.logs.back().expect("a stream has a newest epoch from open on")
    }

    fn newest_mut(&mut self) -> &mut EpochLog {
        self.logs.back_mut().expect("a stream has a newest epoch from open on")
    }

    fn bytes(&self) -> u64 {
        self.logs.iter().flat_map(|log| &log.segments).map(|segment| segment.file_bytes).sum()
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
}

#[cfg(any(test, feature = "planted"))]
pub mod simulated;
#[cfg(test)]
mod tests;
