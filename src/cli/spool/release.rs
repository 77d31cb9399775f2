//! `fieldgate spool drop`: lets go of what is held, and keeps the account true: each number becomes
//! an `evicted` skip, which the hub learns of like any other.

use std::{fs, io, os::unix::fs::MetadataExt as _, process::ExitCode};

use super::{Failure, Found};
use crate::{
    cli::run,
    identity::effective_uid,
    spool::{DirectoryDisk, Limits, Spool},
};

/// Nothing is appended here, so that no bound is met; and nothing that is remembered is forgotten.
const LIMITS: Limits =
    Limits { max_bytes: u64::MAX, segment_bytes: u64::MAX, min_free_bytes: 0, tail: usize::MAX };

/// Lets go of a stream, or of all.
pub(super) fn release(found: Found, stream: Option<&str>, yes: bool) -> Result<ExitCode, Failure> {
    let directory = found.directory.clone();
    let at =
        |text: &dyn std::fmt::Display| Failure::Other(format!("{}: {text}", directory.display()));
    let epochs = found.epochs(stream)?;
    let records: u64 = epochs.iter().map(|epoch| epoch.records()).sum();
    if !yes {
        return Err(Failure::Usage(format!(
            "{}: {records} records that the hub does not hold would be lost; `spool export` takes \
             them out, --yes lets go of them",
            directory.display()
        )));
    }
    let owner = fs::metadata(&directory).map_err(|error| at(&error))?.uid();
    // A file that root leaves there is one that the gateway can't read.
    if effective_uid().is_some_and(|uid| uid != owner) {
        let text =
            format!("it belongs to user {owner}; run this as that one: sudo -u '#{owner}' …");
        return Err(at(&text));
    }
    // A look at a spool keeps no file open, but it is of the past from here on.
    drop(found);
    let disk = DirectoryDisk::open(&directory).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            at(&"a gateway runs with it; stop that first (systemctl stop fieldgate)")
        }
        _ => at(&error),
    })?;
    let [epoch, _] = run::random().map_err(|error| at(&error))?;
    let (mut spool, _) =
        Spool::open(disk, &["events"], LIMITS, epoch).map_err(|error| at(&error))?;
    let names: Vec<String> = spool.streams().map(str::to_owned).collect();
    let mut let_go = 0;
    for (index, name) in names.iter().enumerate() {
        if stream.is_none_or(|stream| stream == name) {
            let_go += spool.evict_all(index).map_err(|error| at(&error))?;
        }
    }
    println!("{let_go} records let go of; the hub will be told that they are lost");
    Ok(ExitCode::SUCCESS)
}
