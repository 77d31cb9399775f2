//! `fieldgate spool export`: every record that is held, as lines of JSON.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    ops::ControlFlow::{Break, Continue},
    path::Path,
    process::ExitCode,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::json;

use super::{Failure, Found, numbered, output};
use crate::{
    protocol::{Epoch, write_record},
    record::{SinceBoot, Stored},
    spool::survey::{HeldEpoch, Sight, Why},
};

/// Writes it, stream by stream, each in the order of its numbers.
pub(super) fn export(
    found: &Found,
    stream: Option<&str>,
    file: Option<&Path>,
) -> Result<ExitCode, Failure> {
    let epochs = found.epochs(stream)?;
    match file {
        None => write_all(found, &epochs, &mut output()),
        Some(path) => {
            let file = File::create(path)
                .map_err(|error| Failure::Other(format!("{}: {error}", path.display())))?;
            write_all(found, &epochs, &mut BufWriter::new(file))
        }
    }
}

fn write_all(
    found: &Found,
    epochs: &[&HeldEpoch],
    out: &mut impl Write,
) -> Result<ExitCode, Failure> {
    let mut all_read = true;
    for epoch in epochs {
        let walked = found.survey.walk(epoch, |sight| {
            all_read &= !matches!(&sight, Sight::PassedOver { why: Why::Unreadable(_), .. });
            match write_sight(out, epoch, sight) {
                Ok(()) => Continue(()),
                Err(error) => Break(error),
            }
        });
        if let Break(error) = walked {
            return Err(error.into());
        }
    }
    out.flush()?;
    Ok(if all_read { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write_sight(out: &mut impl Write, epoch: &HeldEpoch, sight: Sight) -> io::Result<()> {
    match sight {
        Sight::Record { seq, bytes } => {
            let mut line = line(epoch, seq, &bytes);
            line.push('\n');
            out.write_all(line.as_bytes())
        }
        Sight::Skip(skip) => {
            let skip = json!({ "skip": { "stream": epoch.stream,
                "epoch": Epoch(epoch.epoch).to_string(), "from": skip.from, "to": skip.to,
                "reason": skip.reason } });
            writeln!(out, "{skip}")
        }
        Sight::PassedOver { file, from, to, why } => {
            let why = match why {
                Why::Gone => "the gateway let go of it meanwhile".into(),
                Why::Unreadable(error) => error,
            };
            eprintln!("{file}: {why}; not exported: {}", numbered(from, to));
            Ok(())
        }
        // The numbers that it cost come as a skip.
        Sight::Damage { .. } | Sight::Tail { .. } => Ok(()),
    }
}

fn line(epoch: &HeldEpoch, seq: u64, bytes: &[u8]) -> String {
    let stream = serde_json::to_string(&epoch.stream).expect("a string is JSON");
    let name = Epoch(epoch.epoch);
    let mut line = format!("{{\"stream\":{stream},\"epoch\":\"{name}\",\"seq\":{seq},");
    match Stored::read(bytes) {
        Ok(record) => {
            // By these whoever knows when that boot began can tell when it was heard.
            if let Some(SinceBoot { boot, uptime_ms }) = record.ts.since_boot {
                line += &format!("\"boot\":\"{boot:08x}\",\"uptime_ms\":{uptime_ms},");
            }
            write_record(&mut line, &record);
        }
        // It is whole, but a newer version's.
        Err(_) => line += &format!("\"record_base64\":\"{}\"}}", BASE64.encode(bytes)),
    }
    // A payload travels as the JSON text that it is, in which only white space can break a line.
    if line.contains(['\n', '\r']) { line.replace(['\n', '\r'], " ") } else { line }
}
