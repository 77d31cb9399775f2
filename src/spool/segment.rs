//! The bytes of a segment: header, frames, and the scan that finds its way past damage.

use std::io;

use bytes::{Buf as _, Bytes};

use super::disk::DiskFile;

/// Magic and version.
const MAGIC: [u8; 7] = *b"FGSEG\0\0";
const VERSION: u8 = 1;

pub(super) const HEADER_BYTES: usize = 8 + 8 + 8 + 8 + 4;
pub(super) const FRAME_BYTES: usize = 12;

/// No frame is longer: what claims to be is damage.
pub(super) const MAX_BODY_BYTES: usize = (1 << 28) - 1;

const KIND_RECORD: u32 = 0;
const KIND_MARK: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    Record(Bytes),
    Mark { acked: u64 },
}

pub(super) fn file_name(stream: &str, ordinal: u32, epoch: u64, first: u64) -> String {
    format!("{stream}.{ordinal:08x}.{epoch:016x}.{first:016x}.seg")
}

/// Stream, ordinal, epoch and first number out of a file's name; `None` for any other file.
pub(super) fn parse_name(name: &str) -> Option<(&str, u32, u64, u64)> {
    let mut parts = name.strip_suffix(".seg")?.split('.');
    let (stream, ordinal, epoch, first) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let parsed = (
        stream,
        u32::from_str_radix(ordinal, 16).ok()?,
        u64::from_str_radix(epoch, 16).ok()?,
        u64::from_str_radix(first, 16).ok()?,
    );
    (parts.next().is_none() && file_name(stream, parsed.1, parsed.2, parsed.3) == name)
        .then_some(parsed)
}

pub(super) fn header(epoch: u64, first: u64, acked: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend_from_slice(&MAGIC);
    bytes.push(VERSION);
    for field in [epoch, first, acked] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Header {
    Good { acked: u64 },
    Damaged,
    Newer(u8),
}

pub(super) fn read_header(file: &impl DiskFile, epoch: u64, first: u64) -> io::Result<Header> {
    let mut bytes = [0; HEADER_BYTES];
    let filled = file.read_at(&mut bytes, 0)?;
    if filled < HEADER_BYTES {
        return Ok(Header::Damaged);
    }
    let crc = u32::from_le_bytes(bytes[HEADER_BYTES - 4..].try_into().expect("four bytes"));
    let sound = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]) == crc;
    if sound && bytes[..7] == MAGIC && bytes[7] > VERSION {
        return Ok(Header::Newer(bytes[7]));
    }
    let field = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    if sound && bytes[..7] == MAGIC && field(8) == epoch && field(16) == first {
        Ok(Header::Good { acked: field(24) })
    } else {
        Ok(Header::Damaged)
    }
}

impl Frame {
    pub(super) fn put(&self, out: &mut Vec<u8>, epoch: u64, seq: u64, first: u64) {
        let start = out.len();
        out.resize(start + FRAME_BYTES, 0);
        let kind = match self {
            Self::Record(bytes) => {
                out.extend_from_slice(bytes);
                KIND_RECORD
            }
            Self::Mark { acked } => {
                out.extend_from_slice(&acked.to_le_bytes());
                KIND_MARK
            }
        };
        let body_len = out.len() - start - FRAME_BYTES;
        let head = kind << 28 | body_len as u32;
        let crc = checksum(epoch, seq, head, &out[start + FRAME_BYTES..]);
        out[start..start + 4].copy_from_slice(&head.to_le_bytes());
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
        out[start + 8..start + 12].copy_from_slice(&((seq - first) as u32).to_le_bytes());
    }

    fn read(kind: u32, mut body: Bytes) -> Option<Self> {
        match kind {
            KIND_RECORD => Some(Self::Record(body)),
            KIND_MARK if body.len() == 8 => Some(Self::Mark { acked: body.get_u64_le() }),
            _ => None,
        }
    }
}

fn checksum(epoch: u64, seq: u64, head: u32, body: &[u8]) -> u32 {
    let mut prefix = [0; 20];
    prefix[..8].copy_from_slice(&epoch.to_le_bytes());
    prefix[8..16].copy_from_slice(&seq.to_le_bytes());
    prefix[16..].copy_from_slice(&head.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&prefix), body)
}

/// Walks the frames of a piece of a segment.
#[derive(Debug)]
pub(super) struct Scan {
    epoch: u64,
    first: u64,
    base: u64,
    piece: Bytes,
    at: usize,
    at_end_of_file: bool,
    /// Offset after the last good frame.
    good_end: u64,
    damaged: bool,
}

impl Scan {
    /// Reads `len` bytes at `offset`, and more if a single frame needs it.
    pub(super) fn load(
        file: &impl DiskFile,
        epoch: u64,
        first: u64,
        offset: u64,
        len: usize,
    ) -> io::Result<Self> {
        let mut piece = vec![0; len];
        let filled = file.read_at(&mut piece, offset)?;
        piece.truncate(filled);
        let wanted = frame_len(&piece).filter(|wanted| *wanted > len && filled == len);
        if let Some(wanted) = wanted {
            let end = file.length()?.saturating_sub(offset);
            piece.resize(wanted.min(usize::try_from(end).unwrap_or(wanted)), 0);
            let filled = file.read_at(&mut piece, offset)?;
            piece.truncate(filled);
        }
        let at_end_of_file = piece.len() < len || offset + piece.len() as u64 >= file.length()?;
        Ok(Self {
            epoch,
            first,
            base: offset,
            piece: piece.into(),
            at: 0,
            at_end_of_file,
            good_end: offset,
            damaged: false,
        })
    }

    /// Where the next frame begins.
    pub(super) fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    /// Where the last good frame ended.
    pub(super) fn good_end(&self) -> u64 {
        self.good_end
    }

    /// Whether bytes had to be passed over before the last frame.
    pub(super) fn damaged(&self) -> bool {
        self.damaged
    }

    /// The next good frame and its number. Bytes that are no frame are passed over; `None` when the piece has no more.
    pub(super) fn next_frame(&mut self) -> Option<(u64, Frame)> {
        self.damaged = false;
        let start = self.at;
        while self.at + FRAME_BYTES <= self.piece.len() {
            match self.frame_here() {
                Some((seq, frame, len)) => {
                    self.at += len;
                    self.good_end = self.offset();
                    return Some((seq, frame));
                }
                // The frame may go on beyond the piece: the next load begins with it.
                None if !self.at_end_of_file && self.reaches_beyond() && self.at > 0 => {
                    return None;
                }
                None => {
                    self.damaged = true;
                    self.at += 1;
                }
            }
        }
        if self.at_end_of_file {
            self.at = self.piece.len();
        }
        self.damaged |= self.at > start;
        None
    }

    fn reaches_beyond(&self) -> bool {
        frame_len(&self.piece[self.at..]).is_some_and(|len| {
            self.at + len > self.piece.len() && len <= FRAME_BYTES + MAX_PLAUSIBLE_BYTES
        })
    }

    fn frame_here(&self) -> Option<(u64, Frame, usize)> {
        let rest = &self.piece[self.at..];
        let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().expect("four bytes"));
        let (head, crc, delta) = (word(0), word(4), word(8));
        let len = FRAME_BYTES + (head as usize & MAX_BODY_BYTES);
        let body = rest.get(FRAME_BYTES..len)?;
        let seq = self.first + u64::from(delta);
        if head >> 28 > KIND_MARK || checksum(self.epoch, seq, head, body) != crc {
            return None;
        }
        let body = self.piece.slice(self.at + FRAME_BYTES..self.at + len);
        Some((seq, Frame::read(head >> 28, body)?, len))
    }
}

/// A longer body than any record that intake lets in; beyond it a length is not believed while looking past damage.
const MAX_PLAUSIBLE_BYTES: usize = 17 << 20;

fn frame_len(rest: &[u8]) -> Option<usize> {
    let head = u32::from_le_bytes(rest.get(..4)?.try_into().expect("four bytes"));
    (head >> 28 <= KIND_MARK).then_some(FRAME_BYTES + (head as usize & MAX_BODY_BYTES))
}
