//! The file `positions`: how far each epoch is trimmed, and which records are known to be gone.
//!
//! Text, so that a person can read it on the board; whole or not at all, by its checksum.
//!
//! ```text
//! fieldgate-positions 1
//! epoch <stream> <ordinal> <epoch> <acked> <kept: one past the last>
//! skip <from> <to> <reason>                            of the epoch above it
//! session <key> <order>:<packet identifier>:<digest> …  the last that are kept, see `tails`
//! crc <CRC32C of all before this line, 8 hexadecimal digits>
//! ```

use std::{collections::BTreeMap, fmt::Write as _};

use super::{EpochLog, Origin, SkipRange, Tail};

pub(super) const FILE: &str = "positions";
const HEAD: &str = "fieldgate-positions ";
const VERSION: u8 = 1;

/// What the file says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Positions {
    Whole {
        logs: Vec<(String, EpochLog)>,
        tails: BTreeMap<u64, Tail>,
    },
    /// Nothing in it can be relied on.
    Damaged,
    Newer(u8),
}

pub(super) fn write<'a>(
    logs: impl Iterator<Item = (&'a str, &'a EpochLog)>,
    tails: &BTreeMap<u64, Tail>,
) -> String {
    let mut text = format!("{HEAD}{VERSION}\n");
    // Of an epoch that never had anything there is nothing to say.
    for (stream, log) in logs.filter(|(_, log)| log.kept > 1) {
        let EpochLog { ordinal, epoch, acked, kept, .. } = log;
        writeln!(text, "epoch {stream} {ordinal:08x} {epoch:016x} {acked} {kept}")
            .expect("writing to memory can't fail");
        for SkipRange { from, to, reason } in &log.skips {
            writeln!(text, "skip {from} {to} {reason}").expect("writing to memory can't fail");
        }
    }
    for (session, tail) in tails {
        write!(text, "session {session:016x}").expect("writing to memory can't fail");
        for Origin { order, packet_id, digest, .. } in tail {
            write!(text, " {order}:{packet_id}:{digest:08x}")
                .expect("writing to memory can't fail");
        }
        text.push('\n');
    }
    let crc = crc32c::crc32c(text.as_bytes());
    writeln!(text, "crc {crc:08x}").expect("writing to memory can't fail");
    text
}

pub(super) fn read(text: &str) -> Positions {
    match version(text) {
        Some(version) if version > VERSION => Positions::Newer(version),
        _ => read_whole(text).unwrap_or(Positions::Damaged),
    }
}

fn version(text: &str) -> Option<u8> {
    text.lines().next()?.strip_prefix(HEAD)?.parse().ok()
}

fn read_whole(text: &str) -> Option<Positions> {
    let (body, crc) = text.trim_end().rsplit_once('\n')?;
    let body = format!("{body}\n");
    let crc = u32::from_str_radix(crc.strip_prefix("crc ")?, 16).ok()?;
    if crc32c::crc32c(body.as_bytes()) != crc || version(text)? != VERSION {
        return None;
    }
    let mut logs: Vec<(String, EpochLog)> = Vec::new();
    let mut tails = BTreeMap::new();
    for line in body.lines().skip(1) {
        let mut words = line.split(' ');
        match words.next()? {
            "epoch" => {
                let stream = words.next()?.to_owned();
                let ordinal = u32::from_str_radix(words.next()?, 16).ok()?;
                let epoch = u64::from_str_radix(words.next()?, 16).ok()?;
                let mut log = EpochLog::new(ordinal, epoch);
                log.acked = words.next()?.parse().ok()?;
                log.next = words.next()?.parse().ok()?;
                logs.push((stream, log));
            }
            "skip" => {
                let (from, to) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
                let reason = words.next()?.to_owned();
                logs.last_mut()?.1.skips.push(SkipRange { from, to, reason });
            }
            "session" => {
                let session = u64::from_str_radix(words.next()?, 16).ok()?;
                let tail = words.map(|word| read_origin(session, word)).collect::<Option<_>>()?;
                tails.insert(session, tail);
            }
            _ => return None,
        }
    }
    Some(Positions::Whole { logs, tails })
}

fn read_origin(session: u64, word: &str) -> Option<Origin> {
    let mut parts = word.split(':');
    let (order, packet_id) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let digest = u32::from_str_radix(parts.next()?, 16).ok()?;
    Some(Origin { session, order, packet_id, digest })
}
