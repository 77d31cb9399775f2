//! The bytes of a segment: header, frames, and the scan that finds its way past damage.

use std::io;

use bytes::{Buf as _, Bytes};

use super::{Origin, disk::DiskFile};

/// Magic and version.
const MAGIC: [u8; 7] = *b"FGSEG\0\0";
const VERSION: u8 = 1;

pub(super) const HEADER_BYTES: usize = 8 + 4 + 8 + 8 + 8 + 8 + 4;
pub(super) const FRAME_BYTES: usize = 12;

/// No body is longer: what claims to be is damage. More than the largest record that intake lets
/// in, and little enough for the look past damage to stay near its place.
pub(super) const MAX_BODY_BYTES: usize = 1280 << 10;

/// A segment's numbers span less than this.
pub(super) const SPAN: u64 = 1 << 20;

/// What the names of spares begin with.
pub(super) const SPARE: &str = "spare.";

const KIND_RECORD: u32 = 0;
const KIND_MARK: u32 = 1;
const KIND_ORIGIN: u32 = 2;
pub(super) const ORIGIN_BYTES: usize = 8 + 4 + 2 + 4;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    Record(Option<Origin>, Bytes),
    Mark { acked: u64 },
}

/// Which segment a byte is of. It is in each checksum, so that what an earlier use left in a file
/// is never taken for its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id {
    /// CRC32C of the stream's name.
    stream: u32,
    epoch: u64,
    first: u64,
}

impl Id {
    pub(super) fn new(stream: &str, epoch: u64, first: u64) -> Self {
        Self { stream: crc32c::crc32c(stream.as_bytes()), epoch, first }
    }

    fn checksum(self, seq: u64, head: u32, body: &[u8]) -> u32 {
        let mut prefix = [0; 24];
        prefix[..4].copy_from_slice(&self.stream.to_le_bytes());
        prefix[4..12].copy_from_slice(&self.epoch.to_le_bytes());
        prefix[12..20].copy_from_slice(&seq.to_le_bytes());
        prefix[20..].copy_from_slice(&head.to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c(&prefix), body)
    }

    /// What a delta is masked with, so that bytes of another segment don't even look like a frame:
    /// the checksum alone would let one in four billion of them through.
    fn mask(self) -> u32 {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&self.stream.to_le_bytes());
        bytes[4..12].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[12..].copy_from_slice(&self.first.to_le_bytes());
        crc32c::crc32c(&bytes)
    }
}

pub(super) fn file_name(stream: &str, ordinal: u32, epoch: u64, first: u64) -> String {
    format!("{}{first:016x}.seg", file_stem(stream, ordinal, epoch))
}

/// How the names of all segments of an epoch begin.
pub(super) fn file_stem(stream: &str, ordinal: u32, epoch: u64) -> String {
    format!("{stream}.{ordinal:08x}.{epoch:016x}.")
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

/// `stale_bytes`: up to where the file may hold what an earlier use left.
pub(super) fn header(id: Id, acked: u64, stale_bytes: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend_from_slice(&MAGIC);
    bytes.push(VERSION);
    bytes.extend_from_slice(&id.stream.to_le_bytes());
    for field in [id.epoch, id.first, acked, stale_bytes] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Header {
    Good {
        acked: u64,
        stale_bytes: u64,
    },
    /// Sound, but another segment's: this one was named and never begun.
    Unbegun,
    Damaged,
    Newer(u8),
}

pub(super) fn read_header(file: &impl DiskFile, id: Id) -> io::Result<Header> {
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
    if !sound || bytes[..7] != MAGIC {
        Ok(Header::Damaged)
    } else if (Id { stream: word(&bytes, 8), epoch: field(12), first: field(20) }) != id {
        Ok(Header::Unbegun)
    } else {
        Ok(Header::Good { acked: field(28), stale_bytes: field(36) })
    }
}

impl Frame {
    pub(super) fn put(&self, out: &mut Vec<u8>, id: Id, seq: u64) {
        let start = out.len();
        out.resize(start + FRAME_BYTES, 0);
        let kind = match self {
            Self::Record(None, bytes) => {
                out.extend_from_slice(bytes);
                KIND_RECORD
            }
            Self::Record(Some(origin), bytes) => {
                out.extend_from_slice(&origin.session.to_le_bytes());
                out.extend_from_slice(&origin.order.to_le_bytes());
                out.extend_from_slice(&origin.packet_id.to_le_bytes());
                out.extend_from_slice(&origin.digest.to_le_bytes());
                out.extend_from_slice(bytes);
                KIND_ORIGIN
            }
            Self::Mark { acked } => {
                out.extend_from_slice(&acked.to_le_bytes());
                KIND_MARK
            }
        };
        let body_len = out.len() - start - FRAME_BYTES;
        let head = kind << 28 | body_len as u32;
        let crc = id.checksum(seq, head, &out[start + FRAME_BYTES..]);
        out[start..start + 4].copy_from_slice(&head.to_le_bytes());
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
        let delta = (seq - id.first) as u32 ^ id.mask();
        out[start + 8..start + 12].copy_from_slice(&delta.to_le_bytes());
    }

    fn read(kind: u32, mut body: Bytes) -> Option<Self> {
        match kind {
            KIND_RECORD => Some(Self::Record(None, body)),
            KIND_ORIGIN if body.len() >= ORIGIN_BYTES => {
                let session = body.get_u64_le();
                let (order, packet_id) = (body.get_u32_le(), body.get_u16_le());
                let origin = Origin { session, order, packet_id, digest: body.get_u32_le() };
                Some(Self::Record(Some(origin), body))
            }
            KIND_MARK if body.len() == 8 => Some(Self::Mark { acked: body.get_u64_le() }),
            _ => None,
        }
    }
}

/// Walks the frames of a piece of a segment.
#[derive(Debug)]
pub(super) struct Scan {
    id: Id,
    mask: u32,
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
    pub(super) fn load(file: &impl DiskFile, id: Id, offset: u64, len: usize) -> io::Result<Self> {
        let mut piece = vec![0; len];
        let filled = file.read_at(&mut piece, offset)?;
        piece.truncate(filled);
        let mask = id.mask();
        let wanted = plausible_len(&piece, mask).filter(|wanted| *wanted > len && filled == len);
        if let Some(wanted) = wanted {
            let end = file.length()?.saturating_sub(offset);
            piece.resize(wanted.min(usize::try_from(end).unwrap_or(wanted)), 0);
            let filled = file.read_at(&mut piece, offset)?;
            piece.truncate(filled);
        }
        let at_end_of_file = piece.len() < len || offset + piece.len() as u64 >= file.length()?;
        Ok(Self {
            id,
            mask,
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

    /// The next good frame and its number. Bytes that are no frame are passed over; `None` when the
    /// piece has no more.
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
        plausible_len(&self.piece[self.at..], self.mask)
            .is_some_and(|len| self.at + len > self.piece.len())
    }

    fn frame_here(&self) -> Option<(u64, Frame, usize)> {
        let rest = &self.piece[self.at..];
        let len = plausible_len(rest, self.mask)?;
        let (head, crc, delta) = (word(rest, 0), word(rest, 4), word(rest, 8) ^ self.mask);
        let body = rest.get(FRAME_BYTES..len)?;
        let seq = self.id.first + u64::from(delta);
        if self.id.checksum(seq, head, body) != crc {
            return None;
        }
        let body = self.piece.slice(self.at + FRAME_BYTES..self.at + len);
        Some((seq, Frame::read(head >> 28, body)?, len))
    }
}

/// The length of the frame that begins here, if these bytes can begin one. Says no to nearly all
/// that are not one, before a checksum is made of what may be a megabyte.
fn plausible_len(rest: &[u8], mask: u32) -> Option<usize> {
    if rest.len() < FRAME_BYTES {
        return None;
    }
    let head = word(rest, 0);
    let body_bytes = head as usize & ((1 << 28) - 1);
    let plausible = head >> 28 <= KIND_ORIGIN
        && (1..=MAX_BODY_BYTES).contains(&body_bytes)
        && u64::from(word(rest, 8) ^ mask) < SPAN;
    plausible.then_some(FRAME_BYTES + body_bytes)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
