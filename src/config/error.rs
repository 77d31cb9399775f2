//! What is wrong with a configuration: every fault at once, each with its place, the key, and what
//! mends it.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// A configuration that can't be used, with all its faults.
///
/// Printed it is one line per fault: `fieldgate.toml:12: uplink.url: scheme "http" is not a
/// WebSocket scheme; use wss://`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    file: PathBuf,
    faults: Vec<Fault>,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fault {
    /// Where the value was written.
    pub(super) origin: Origin,
    /// Dotted, as in `uplink.url`; empty where no one key is meant.
    pub(super) key: String,
    /// The fault and the remedy. Never a value that may be secret.
    pub(super) text: String,
}

/// Where a value was written; in the order in which faults are told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// A line of the file, from 1.
    Line(usize),
    /// An environment variable, by its name.
    Variable(String),
    /// Another file: what an enrolment left.
    Beside(PathBuf),
    /// Nowhere: something is missing.
    File,
}

impl ConfigError {
    /// The exit code of a program that was started with such a configuration: `EX_CONFIG` of
    /// sysexits.h. The unit does not restart on it.
    pub const EXIT_CODE: u8 = 78;

    pub(super) fn new(file: &Path, mut faults: Vec<Fault>) -> Self {
        faults.sort();
        Self { file: file.into(), faults }
    }

    /// One line per fault, in the order of the file.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let file = self.file.display();
        self.faults.iter().map(move |Fault { origin, key, text }| {
            let key = if key.is_empty() { String::new() } else { format!("{key}: ") };
            match origin {
                Origin::Line(line) => format!("{file}:{line}: {key}{text}"),
                Origin::Variable(name) => format!("{name}: {key}{text}"),
                Origin::Beside(file) => format!("{}: {key}{text}", file.display()),
                Origin::File => format!("{file}: {key}{text}"),
            }
        })
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, line) in self.lines().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&line)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
