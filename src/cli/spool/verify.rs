//! `fieldgate spool verify`: every byte is read.

use std::{
    io::{self, Write},
    ops::ControlFlow::{Break, Continue},
    process::ExitCode,
};

use serde_json::{Value, json};

use super::{Failure, Found, numbered, output};
use crate::{
    protocol::Epoch,
    spool::survey::{Fault, HeldEpoch, Sight, Why},
};

/// Tells what is found as it is found, or gathers it for one JSON object.
struct Teller<W> {
    out: W,
    json: bool,
    damaged: u64,
    records: u64,
    damage: Vec<Value>,
    tails: Vec<Value>,
    passed_over: Vec<Value>,
}

/// Reads all of it; exit code 1 if anything is damaged.
pub(super) fn verify(found: &Found, json: bool) -> Result<ExitCode, Failure> {
    let mut teller = Teller {
        out: output(),
        json,
        damaged: 0,
        records: 0,
        damage: Vec::new(),
        tails: Vec::new(),
        passed_over: Vec::new(),
    };
    for fault in &found.survey.faults {
        teller.fault(fault)?;
    }
    for epoch in &found.survey.epochs {
        let walked = found.survey.walk(epoch, |sight| match teller.sight(epoch, sight) {
            Ok(()) => Continue(()),
            Err(error) => Break(error),
        });
        if let Break(error) = walked {
            return Err(error.into());
        }
    }
    let mut sights = Vec::new();
    if let Err(error) = found.survey.walk_journal(|sight| sights.push(sight)) {
        return Err(Failure::Other(format!("{}: the journal: {error}", found.directory.display())));
    }
    for sight in sights {
        teller.journal(sight)?;
    }
    let sound = teller.end(found)?;
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl<W: Write> Teller<W> {
    fn fault(&mut self, Fault { file, what }: &Fault) -> io::Result<()> {
        self.damaged += 1;
        if self.json {
            self.damage.push(json!({ "file": file, "what": what }));
            return Ok(());
        }
        writeln!(self.out, "{file}: {what}")
    }

    fn sight(&mut self, epoch: &HeldEpoch, sight: Sight) -> io::Result<()> {
        match sight {
            Sight::Record { .. } => self.records += 1,
            Sight::Skip(_) => {}
            Sight::Damage { file, offset, from, to } => {
                let lost = if from < to {
                    format!("lost: {}", numbered(from, to))
                } else {
                    "no record that is held is lost".into()
                };
                let (stream, name) = (&epoch.stream, Epoch(epoch.epoch).to_string());
                let text = match &file {
                    Some(file) => format!("{file}: damaged at byte {offset}; {lost}"),
                    None => format!("{stream} {name}: a file is missing; {lost}"),
                };
                let value = json!({ "file": file, "offset": file.as_ref().map(|_| offset),
                    "stream": stream, "epoch": name, "from": from, "to": to });
                self.damage(&text, value)?;
            }
            Sight::Tail { file, offset, bytes } => self.tail(&file, offset, bytes)?,
            Sight::PassedOver { file, why: Why::Unreadable(error), from, to } => {
                let text = format!("{file}: {error}; not read: {}", numbered(from, to));
                let value = json!({ "file": file, "what": error, "from": from, "to": to });
                self.damage(&text, value)?;
            }
            Sight::PassedOver { file, why: Why::Gone, from, to } => {
                let read = numbered(from, to);
                if self.json {
                    let value = json!({ "file": file, "from": from, "to": to });
                    self.passed_over.push(value);
                } else {
                    writeln!(self.out, "{file}: the gateway let go of it meanwhile; {read}")?;
                }
            }
        }
        Ok(())
    }

    fn journal(&mut self, sight: Sight) -> io::Result<()> {
        match sight {
            Sight::Damage { file, offset, .. } => {
                let file = file.unwrap_or_default();
                let text = format!("{file}: damaged at byte {offset}; states of commands are lost");
                self.damage(&text, json!({ "file": file, "offset": offset }))
            }
            Sight::Tail { file, offset, bytes } => self.tail(&file, offset, bytes),
            _ => Ok(()),
        }
    }

    fn damage(&mut self, text: &str, value: Value) -> io::Result<()> {
        self.damaged += 1;
        if self.json {
            self.damage.push(value);
            return Ok(());
        }
        writeln!(self.out, "{text}")
    }

    fn tail(&mut self, file: &str, offset: u64, bytes: u64) -> io::Result<()> {
        if self.json {
            self.tails.push(json!({ "file": file, "offset": offset, "bytes": bytes }));
            return Ok(());
        }
        writeln!(
            self.out,
            "{file}: {bytes} bytes from byte {offset} on are of a write that was cut off"
        )
    }

    /// The account; whether all is sound.
    fn end(mut self, found: &Found) -> io::Result<bool> {
        let (sound, unknown) = (self.damaged == 0, found.unknown_files());
        let segments: usize = found.survey.epochs.iter().map(|epoch| epoch.segments.len()).sum();
        if self.json {
            let account = json!({ "sound": sound, "records": self.records, "segments": segments,
                "damage": self.damage, "tails": self.tails, "passed_over": self.passed_over,
                "unknown_files": unknown });
            writeln!(self.out, "{account}")?;
        } else {
            for file in unknown {
                writeln!(self.out, "{file}: not a file of the spool")?;
            }
            let records = self.records;
            let verdict = match self.damaged {
                0 => "sound".into(),
                count => format!("damaged in {count} places"),
            };
            writeln!(self.out, "{records} records in {segments} segments: {verdict}")?;
        }
        self.out.flush()?;
        Ok(sound)
    }
}
