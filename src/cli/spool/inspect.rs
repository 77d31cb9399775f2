//! `fieldgate spool inspect`: what is held, from names, headers and the last segments.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use serde_json::{Value, json};

use super::{Failure, Found, heard, moment, numbered, output};
use crate::{
    config::show_size,
    gateway::without_result,
    protocol::Epoch,
    record::Timestamp,
    spool::{Disk as _, journal::Journal, survey::HeldEpoch},
};

/// One row of the table.
struct Row<'a> {
    epoch: &'a HeldEpoch,
    oldest: Option<Timestamp>,
    newest: Option<Timestamp>,
}

/// Prints it.
pub(super) fn inspect(found: &Found, json: bool) -> Result<ExitCode, Failure> {
    let rows: Vec<Row<'_>> =
        found.survey.epochs.iter().map(|epoch| Row::of(found, epoch)).collect();
    let commands = commands(found)?;
    let mut out = output();
    if json {
        writeln!(out, "{}", as_json(found, &rows, &commands))?;
    } else {
        as_text(&mut out, found, &rows, &commands)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

impl<'a> Row<'a> {
    fn of(found: &Found, epoch: &'a HeldEpoch) -> Self {
        // What is acknowledged may still be on disk, and is held no more.
        let held = epoch.records() > 0;
        let oldest = held.then(|| found.survey.oldest(epoch)).flatten();
        let newest = epoch.newest.as_deref().filter(|_| held);
        let oldest = oldest.as_deref().and_then(heard);
        Self { epoch, oldest, newest: newest.and_then(heard) }
    }
}

fn commands(found: &Found) -> Result<Vec<String>, Failure> {
    let journal = Journal::open(found.survey.disk(), without_result).map_err(|error| {
        Failure::Other(format!("{}: the journal: {error}", found.directory.display()))
    })?;
    Ok(journal.entries().map(|(id, _)| id.to_owned()).collect())
}

fn as_json(found: &Found, rows: &[Row<'_>], commands: &[String]) -> Value {
    let streams = rows.iter().map(|Row { epoch, oldest, newest }| {
        let skips = epoch
            .skips
            .iter()
            .map(|skip| json!({ "from": skip.from, "to": skip.to, "reason": skip.reason }));
        json!({
            "stream": epoch.stream, "epoch": Epoch(epoch.epoch).to_string(), "start": epoch.start,
            "first": epoch.first(), "next": epoch.next, "records": epoch.records(),
            "bytes": epoch.bytes(), "segments": epoch.segments.len(),
            "skips": skips.collect::<Vec<_>>(),
            "oldest_ts": oldest.map(|ts| ts.unix_ms), "newest_ts": newest.map(|ts| ts.unix_ms),
            "oldest_unsynced": oldest.map(|ts| !ts.synced),
            "newest_unsynced": newest.map(|ts| !ts.synced),
        })
    });
    let faults = found.survey.faults.iter();
    let faults = faults.map(|fault| json!({ "file": fault.file, "what": fault.what }));
    json!({
        "directory": found.directory.display().to_string(),
        "bytes": bytes(found), "spare_bytes": found.survey.spare_bytes, "max_bytes": found.max_bytes,
        "free_bytes": found.survey.disk().free_bytes().ok(),
        "streams": streams.collect::<Vec<_>>(),
        "commands": commands,
        "faults": faults.collect::<Vec<_>>(),
        "unknown_files": found.unknown_files(),
        "unsettled": found.survey.unsettled,
    })
}

fn as_text(
    out: &mut impl Write,
    found: &Found,
    rows: &[Row<'_>],
    commands: &[String],
) -> io::Result<()> {
    let of = found.max_bytes.map(|max| format!(" of {}", show_size(max))).unwrap_or_default();
    writeln!(out, "{}: {} bytes{of}", found.directory.display(), bytes(found))?;
    if found.survey.unsettled {
        writeln!(out, "a gateway is at work: these figures may be off by what it just did")?;
    }
    let rows: Vec<&Row<'_>> = rows.iter().filter(|row| !row.is_bare()).collect();
    if rows.is_empty() {
        writeln!(out, "no record is held")?;
    } else {
        table(out, &rows)?;
        writeln!(out, "records are counted by their numbers; `spool verify` reads each")?;
    }
    writeln!(out, "commands in the journal: {}", commands.len())?;
    for id in commands {
        writeln!(out, "  {id}")?;
    }
    for fault in &found.survey.faults {
        writeln!(out, "{}: {}", fault.file, fault.what)?;
    }
    for file in found.unknown_files() {
        writeln!(out, "{file}: not a file of the spool")?;
    }
    Ok(())
}

fn table(out: &mut impl Write, rows: &[&Row<'_>]) -> io::Result<()> {
    const HEAD: [&str; 9] =
        ["stream", "epoch", "records", "first", "next", "bytes", "segments", "oldest", "newest"];
    let when = |ts: Option<Timestamp>| ts.map_or("-".into(), moment);
    let cells: Vec<[String; HEAD.len()]> = rows
        .iter()
        .map(|Row { epoch, oldest, newest }| {
            [
                epoch.stream.clone(),
                Epoch(epoch.epoch).to_string(),
                epoch.records().to_string(),
                epoch.first().to_string(),
                epoch.next.to_string(),
                epoch.bytes().to_string(),
                epoch.segments.len().to_string(),
                when(*oldest),
                when(*newest),
            ]
        })
        .collect();
    let widths: Vec<usize> = (0..HEAD.len())
        .map(|at| cells.iter().map(|row| row[at].len()).chain([HEAD[at].len()]).max().unwrap_or(0))
        .collect();
    let mut line = |cells: &[&str]| {
        let mut text = String::new();
        for (at, cell) in cells.iter().enumerate() {
            // Numbers to the right, words to the left.
            let width = widths[at];
            let cell = if (2..7).contains(&at) {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            };
            text += if at > 0 { "  " } else { "" };
            text += &cell;
        }
        writeln!(out, "{}", text.trim_end())
    };
    line(&HEAD)?;
    for (row, cells) in rows.iter().zip(&cells) {
        line(&cells.each_ref().map(String::as_str))?;
        for skip in &row.epoch.skips {
            let from = skip.from.max(row.epoch.first());
            line(&[&format!("  lost: {}, {}", numbered(from, skip.to), skip.reason)])?;
        }
    }
    Ok(())
}

impl Row<'_> {
    /// An epoch of which only its end is still to be told to the hub.
    fn is_bare(&self) -> bool {
        self.epoch.segments.is_empty() && self.epoch.next == self.epoch.first()
    }
}

fn bytes(found: &Found) -> u64 {
    found.survey.epochs.iter().map(HeldEpoch::bytes).sum::<u64>() + found.survey.spare_bytes
}
