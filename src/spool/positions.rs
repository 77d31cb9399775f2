//! The file `positions`: how far each epoch is trimmed, and which records are known to be gone.
//!
//! Text, so that a person can read it on the board; whole or not at all, by its checksum.
//!
//! ```text
//! fieldgate-positions 1
//! epoch <stream> <ordinal> <epoch> <acked> <kept: one past the last>
//! skip <from> <to> <reason>                            of the epoch above it
//! crc <CRC32C of all before this line, 8 hexadecimal digits>
//! ```

use std::fmt::Write as _;

use super::{EpochLog, SkipRange};

pub(super) const FILE: &str = "positions";
const HEAD: &str = "fieldgate-positions 1";

pub(super) fn write<'a>(logs: impl Iterator<Item = (&'a str, &'a EpochLog)>) -> String {
    let mut text = format!("{HEAD}\n");
    // Of an epoch that never had anything there is nothing to say.
    for (stream, log) in logs.filter(|(_, log)| log.kept > 1) {
        let EpochLog { ordinal, epoch, acked, kept, .. } = log;
        writeln!(text, "epoch {stream} {ordinal:08x} {epoch:016x} {acked} {kept}")
            .expect("writing to memory can't fail");
        for SkipRange { from, to, reason } in &log.skips {
            writeln!(text, "skip {from} {to} {reason}").expect("writing to memory can't fail");
        }
    }
    let crc = crc32c::crc32c(text.as_bytes());
    writeln!(text, "crc {crc:08x}").expect("writing to memory can't fail");
    text
}

/// Reads the file; `None` when it is damaged or of another version, for then nothing in it can be relied on.
pub(super) fn read(text: &str) -> Option<Vec<(String, EpochLog)>> {
    let (body, crc) = text.trim_end().rsplit_once('\n')?;
    let body = format!("{body}\n");
    let crc = u32::from_str_radix(crc.strip_prefix("crc ")?, 16).ok()?;
    if crc32c::crc32c(body.as_bytes()) != crc {
        return None;
    }
    let mut lines = body.lines();
    if lines.next()? != HEAD {
        return None;
    }
    let mut logs: Vec<(String, EpochLog)> = Vec::new();
    for line in lines {
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
            _ => return None,
        }
    }
    Some(logs)
}
