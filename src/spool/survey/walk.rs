//! Every frame of an epoch, in order, and whatever stands between frames.

use std::{
    io,
    ops::ControlFlow::{self, Continue},
};

use bytes::Bytes;

use super::{HeldEpoch, HeldSegment, HeldSkip, Survey};
use crate::spool::{
    Disk, DiskFile, READ_BYTES,
    journal::{self, FILE as JOURNAL},
    segment::{self, FRAME_BYTES, Frame, HEADER_BYTES, Header, Id, ORIGIN_BYTES, Scan},
};

/// What a walk meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// A record that is held.
    Record {
        /// Its number.
        seq: u64,
        /// As it was appended.
        bytes: Bytes,
    },
    /// Numbers that are gone; `damaged` for those that a frame should hold and none does.
    Skip(HeldSkip),
    /// Bytes that are no sound frame.
    Damage {
        /// In which file; `None`: in none at all.
        file: Option<String>,
        /// Where they begin.
        offset: u64,
        /// The first number that is missing.
        from: u64,
        /// One past the last; `from` where it was no record that is damaged.
        to: u64,
    },
    /// Bytes behind the last frame that no earlier use left there: a write that was cut off.
    Tail {
        /// In which file.
        file: String,
        /// Where they begin.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// A segment that was not read, or not to its end.
    PassedOver {
        /// Which file.
        file: String,
        /// The first number that it would have told of.
        from: u64,
        /// One past the last.
        to: u64,
        /// Why.
        why: Why,
    },
}

/// Why a segment was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The gateway deleted or recycled it meanwhile, as it does when the hub has all of it.
    Gone,
    /// The medium failed.
    Unreadable(String),
}

/// The sound frames of one file.
pub(super) struct Frames<'a, F> {
    file: &'a F,
    id: Id,
    scan: Option<Scan>,
    offset: u64,
    /// Where the last sound frame ended.
    good_end: u64,
}

pub(super) struct Found {
    pub(super) seq: u64,
    pub(super) frame: Frame,
    offset: u64,
    /// Where bytes before it begin that are no frame.
    damaged_at: Option<u64>,
}

impl<'a, F: DiskFile> Frames<'a, F> {
    pub(super) fn new(file: &'a F, id: Id) -> Self {
        let start = HEADER_BYTES as u64;
        Self { file, id, scan: None, offset: start, good_end: start }
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Found>> {
        loop {
            let scan = match &mut self.scan {
                Some(scan) => scan,
                None => {
                    let scan = Scan::load(self.file, self.id, self.offset, READ_BYTES)?;
                    self.scan.insert(scan)
                }
            };
            if let Some((seq, frame)) = scan.next_frame() {
                let offset = scan.good_end() - frame_bytes(&frame);
                let damaged_at = (offset > self.good_end).then_some(self.good_end);
                self.good_end = scan.good_end();
                return Ok(Some(Found { seq, frame, offset, damaged_at }));
            }
            let reached = scan.offset();
            if reached == self.offset {
                return Ok(None);
            }
            self.offset = reached;
            self.scan = None;
        }
    }
}

fn frame_bytes(frame: &Frame) -> u64 {
    let body = match frame {
        Frame::Record(None, bytes) => bytes.len(),
        Frame::Record(Some(_), bytes) => ORIGIN_BYTES + bytes.len(),
        Frame::Mark { .. } => 8,
    };
    (FRAME_BYTES + body) as u64
}

impl<D: Disk> Survey<D> {
    /// Reads an epoch from its first number that is not acknowledged to its end, and tells `visit`
    /// what is there: records and skips without a hole in the numbers, and all that is amiss. One
    /// piece of a segment is in memory at a time.
    pub fn walk<B>(
        &self,
        epoch: &HeldEpoch,
        visit: impl FnMut(Sight) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let mut walk = Walk { disk: &self.disk, epoch, at: epoch.first(), visit };
        let firsts = epoch.segments.iter().skip(1).map(|next| next.first);
        for (segment, end) in epoch.segments.iter().zip(firsts.chain([epoch.next])) {
            walk.segment(segment, end)?;
        }
        walk.advance(epoch.next, false)
    }

    /// Reads the journal of commands: what in it is damaged, and what is behind its last frame.
    ///
    /// # Errors
    /// It can't be read.
    pub fn walk_journal(&self, mut visit: impl FnMut(Sight)) -> io::Result<()> {
        let file = match self.disk.open(JOURNAL) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        let named = || Some(JOURNAL.to_owned());
        let id = journal::id();
        if !matches!(segment::read_header(&file, id)?, Header::Good { .. }) {
            visit(Sight::Damage { file: named(), offset: 0, from: 0, to: 0 });
        }
        let mut frames = Frames::new(&file, id);
        let mut reached = 0;
        while let Some(found) = frames.next()? {
            if let Some(offset) = found.damaged_at {
                visit(Sight::Damage { file: named(), offset, from: reached, to: found.seq });
            }
            reached = found.seq + 1;
        }
        let bytes = file.length()?.saturating_sub(frames.good_end);
        if bytes > 0 {
            visit(Sight::Tail { file: JOURNAL.into(), offset: frames.good_end, bytes });
        }
        Ok(())
    }
}

struct Walk<'a, D, V> {
    disk: &'a D,
    epoch: &'a HeldEpoch,
    /// The next number to account for.
    at: u64,
    visit: V,
}

impl<D: Disk, B, V: FnMut(Sight) -> ControlFlow<B>> Walk<'_, D, V> {
    /// Reads a segment whose numbers end before `end`.
    fn segment(&mut self, segment: &HeldSegment, end: u64) -> ControlFlow<B> {
        let file = match self.disk.open(&segment.file) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.pass_over(segment, end, Why::Gone);
            }
            Err(error) => return self.pass_over(segment, end, Why::Unreadable(error.to_string())),
        };
        if !segment.begun {
            return self.advance(end, false);
        }
        self.advance(segment.first, false)?;
        let mut frames = Frames::new(&file, self.id(segment));
        let mut reached = segment.first.max(self.epoch.acked + 1);
        loop {
            let found = match frames.next() {
                Ok(Some(found)) => found,
                Ok(None) => break,
                Err(error) => {
                    return self.pass_over(segment, end, Why::Unreadable(error.to_string()));
                }
            };
            let seq = found.seq.min(end);
            let is_record = matches!(found.frame, Frame::Record(..));
            let hole = is_record && reached < seq && !self.is_known_loss(reached, seq);
            if hole || found.damaged_at.is_some() {
                if self.is_recycled(segment, &file) {
                    return self.pass_over(segment, end, Why::Gone);
                }
                let offset = found.damaged_at.unwrap_or(found.offset);
                self.damage(segment, offset, reached.min(seq), seq)?;
            }
            // Frames from the end on are not its own: the group that they belong to failed, and
            // went to the next segment anew.
            if let Frame::Record(_, bytes) = found.frame
                && found.seq < end
            {
                reached = reached.max(seq + 1);
                self.record(seq, bytes)?;
            }
        }
        let missing = reached < end && !self.is_known_loss(reached, end);
        // What an earlier use left is no tail of this one.
        let end_of_use = frames.good_end.max(segment.stale_bytes);
        let tail = file.length().unwrap_or(0).saturating_sub(end_of_use);
        if (missing || tail > 0) && self.is_recycled(segment, &file) {
            return self.pass_over(segment, end, Why::Gone);
        }
        if missing {
            self.damage(segment, frames.good_end, reached, end)?;
        } else if tail > 0 {
            let file = segment.file.clone();
            (self.visit)(Sight::Tail { file, offset: end_of_use, bytes: tail })?;
        }
        self.advance(end, true)
    }

    fn id(&self, segment: &HeldSegment) -> Id {
        Id::new(&self.epoch.stream, self.epoch.epoch, segment.first)
    }

    /// Whether the file holds another segment by now.
    fn is_recycled(&self, segment: &HeldSegment, file: &D::File) -> bool {
        let header = segment::read_header(file, self.id(segment));
        segment.sound_header && !matches!(header, Ok(Header::Good { .. }))
    }

    fn pass_over(&mut self, segment: &HeldSegment, end: u64, why: Why) -> ControlFlow<B> {
        self.advance(segment.first, false)?;
        let from = self.at.max(segment.first);
        self.at = self.at.max(end);
        if from < end || matches!(why, Why::Unreadable(_)) {
            let to = end.max(from);
            (self.visit)(Sight::PassedOver { file: segment.file.clone(), from, to, why })?;
        }
        Continue(())
    }

    fn damage(&mut self, segment: &HeldSegment, offset: u64, from: u64, to: u64) -> ControlFlow<B> {
        let file = Some(segment.file.clone());
        (self.visit)(Sight::Damage { file, offset, from, to })
    }

    fn record(&mut self, seq: u64, bytes: Bytes) -> ControlFlow<B> {
        self.advance(seq, true)?;
        if self.at == seq && self.known_loss(seq).is_some() {
            self.advance(seq + 1, true)?;
        }
        if self.at > seq {
            return Continue(());
        }
        self.at = seq + 1;
        (self.visit)(Sight::Record { seq, bytes })
    }

    /// Accounts for the numbers before `to`: as the skip that is known, else as damaged; `told`
    /// says that the place of the damage was.
    fn advance(&mut self, to: u64, told: bool) -> ControlFlow<B> {
        while self.at < to {
            let from = self.at;
            if let Some(skip) = self.known_loss(from) {
                let skip = HeldSkip { from, ..skip.clone() };
                self.at = skip.to;
                (self.visit)(Sight::Skip(skip))?;
                continue;
            }
            let next_skip = self.epoch.skips.iter().map(|skip| skip.from).find(|at| *at > from);
            let to = next_skip.unwrap_or(to).min(to);
            self.at = to;
            if !told {
                (self.visit)(Sight::Damage { file: None, offset: 0, from, to })?;
            }
            (self.visit)(Sight::Skip(HeldSkip { from, to, reason: "damaged".into() }))?;
        }
        Continue(())
    }

    fn known_loss(&self, seq: u64) -> Option<&HeldSkip> {
        self.epoch.skips.iter().find(|skip| skip.from <= seq && seq < skip.to)
    }

    /// Whether all of `from..to` is in the skips.
    fn is_known_loss(&self, from: u64, to: u64) -> bool {
        let mut at = from;
        while let Some(skip) = self.known_loss(at) {
            at = skip.to;
        }
        at >= to
    }
}
