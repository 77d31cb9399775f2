//! `fieldgate spool …`: what a gateway holds, seen without it.
//!
//! `inspect`, `verify` and `export` only read, and take no lock: they are safe beside a running
//! gateway. `drop` writes, and refuses while one runs.

mod export;
mod inspect;
mod release;
mod verify;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::disk::MANAGED;
use crate::{
    config::{ConfigError, SpoolPlace},
    identity::{CONFIRMED_TIME, calendar::Moment},
    record::{Stored, Timestamp},
    spool::survey::{ReadOnlyDirectory, Survey},
};

/// The configuration that is looked for where none is named.
const DEFAULT_CONFIG: &str = "/etc/fieldgate/fieldgate.toml";

/// What to do with the spool.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show what is held; reads little and touches nothing
    Inspect {
        #[command(flatten)]
        place: Place,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Read every byte and tell what is damaged; exit code 1 if anything is
    Verify {
        #[command(flatten)]
        place: Place,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write every record that is held, and what is known to be lost, one JSON object a line
    Export {
        #[command(flatten)]
        place: Place,
        /// How
        #[arg(long, value_enum, default_value_t = Format::Jsonl)]
        format: Format,
        /// Only this stream
        #[arg(long)]
        stream: Option<String>,
        /// Where to [default: standard output]
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Let go of what is held; the hub is told that it is lost. Only while no gateway runs
    Drop {
        #[command(flatten)]
        place: Place,
        /// Only this stream
        #[arg(long)]
        stream: Option<String>,
        /// Really
        #[arg(long)]
        yes: bool,
    },
}

/// Which spool.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// The gateway's state directory [default: what the configuration says]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The configuration file, of which only gateway.state_dir and spool.max_bytes count
    #[arg(
        long,
        env = "FIELDGATE_CONFIG",
        value_name = "FILE",
        default_value = DEFAULT_CONFIG
    )]
    config: PathBuf,
}

/// How records are exported.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Format {
    /// One JSON object a line
    Jsonl,
}

/// A spool that was found.
struct Found {
    directory: PathBuf,
    /// What it may hold, where that is known.
    max_bytes: Option<u64>,
    survey: Survey<ReadOnlyDirectory>,
}

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The configuration doesn't say where the spool is.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What was typed can't be meant.
    #[error("{0}")]
    Usage(String),
    /// In words.
    #[error("{0}")]
    Other(String),
    /// Nobody reads on, which is no failure, or the output can't be written.
    #[error("the output can't be written: {0}")]
    Output(#[from] io::Error),
}

/// Does it.
pub(super) fn spool(command: &Command) -> ExitCode {
    let done = match command {
        Command::Inspect { place, json } => {
            place.find().and_then(|it| inspect::inspect(&it, *json))
        }
        Command::Verify { place, json } => place.find().and_then(|it| verify::verify(&it, *json)),
        Command::Export { place, format: Format::Jsonl, stream, output } => {
            place.find().and_then(|it| export::export(&it, stream.as_deref(), output.as_deref()))
        }
        Command::Drop { place, stream, yes } => {
            place.find().and_then(|it| release::release(it, stream.as_deref(), *yes))
        }
    };
    match done {
        Ok(code) => code,
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{failure}");
            match failure {
                Failure::Config(_) => ExitCode::from(ConfigError::EXIT_CODE),
                Failure::Usage(_) => ExitCode::from(super::EXIT_USAGE),
                Failure::Other(_) | Failure::Output(_) => ExitCode::FAILURE,
            }
        }
    }
}

impl Place {
    fn find(&self) -> Result<Found, Failure> {
        let (state_dir, max_bytes) = match &self.state_dir {
            Some(directory) => (directory.clone(), None),
            None => {
                let named = self.config != Path::new(DEFAULT_CONFIG) || self.config.exists();
                let place = SpoolPlace::load(named.then_some(&*self.config))?;
                (place.state_dir, place.max_bytes)
            }
        };
        let directory = state_dir.join("spool");
        let at = |error: &dyn std::fmt::Display| format!("{}: {error}", directory.display());
        let disk = ReadOnlyDirectory::open(&directory).map_err(|error| {
            Failure::Other(match error.kind() {
                io::ErrorKind::NotFound => at(&"there is no spool; name the gateway's state \
                                                directory with --state-dir, or its --config"),
                io::ErrorKind::PermissionDenied => {
                    at(&"permission denied; run this as the gateway's user or as root")
                }
                _ => at(&error),
            })
        })?;
        let survey = Survey::look(disk).map_err(|error| Failure::Other(at(&error)))?;
        Ok(Found { directory, max_bytes, survey })
    }
}

impl Found {
    /// What lies in the directory and is none of ours.
    fn unknown_files(&self) -> Vec<&str> {
        let files = self.survey.unknown_files.iter().map(String::as_str);
        files.filter(|file| ![MANAGED, CONFIRMED_TIME].contains(file)).collect()
    }

    /// The epochs of a stream, or of all.
    fn epochs<'a>(
        &'a self,
        stream: Option<&'a str>,
    ) -> Result<Vec<&'a crate::spool::survey::HeldEpoch>, Failure> {
        let of_it = |name: &str| stream.is_none_or(|stream| stream == name);
        let epochs: Vec<_> = self.survey.epochs.iter().filter(|it| of_it(&it.stream)).collect();
        if let (Some(stream), true) = (stream, epochs.is_empty()) {
            let mut names: Vec<&str> = self.survey.epochs.iter().map(|it| &*it.stream).collect();
            names.dedup();
            let names = if names.is_empty() { "none".into() } else { names.join(", ") };
            let text = format!("--stream {stream}: it holds nothing; those that do: {names}");
            return Err(Failure::Usage(text));
        }
        Ok(epochs)
    }
}

/// Standard output, in large pieces.
fn output() -> impl Write {
    io::BufWriter::new(io::stdout().lock())
}

/// When a stored record was heard.
fn heard(stored: &[u8]) -> Option<Timestamp> {
    Stored::read(stored).ok().map(|stored| stored.ts)
}

fn moment(ts: Timestamp) -> String {
    let unix_seconds = i64::try_from(ts.unix_ms / 1000).unwrap_or(i64::MAX);
    let about = if ts.synced { "" } else { "about " };
    format!("{about}{}", Moment { unix_seconds })
}

/// Records by their numbers, `to` one past the last: `record 7`, `records 7 to 9`.
fn numbered(from: u64, to: u64) -> String {
    match to.saturating_sub(from) {
        0 | 1 => format!("record {from}"),
        _ => format!("records {from} to {}", to - 1),
    }
}
