//! The spool's own benchmark: what a record costs the medium and the processor on its way to disk,
//! how fast a backlog comes back, and how fast the whole gateway drains it.
//!
//! It prints and never fails for being slow. `tests/bench/spool` builds what is measured and runs
//! this, as root, for an ext4 of its own.

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;

use crate::{
    contender::Programs,
    spool_figures::{Figures, NO_PEERS, figure},
    spool_gateway::{self, Transport},
    spool_medium::Medium,
    spool_storage,
};

/// Room for a backlog of a gigabyte and its file system's own.
const MEDIUM_BYTES: u64 = 4 << 30;

/// Measures the spool and prints a Markdown table
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The gateway to measure
    #[arg(long, value_name = "FILE")]
    fieldgate: PathBuf,
    /// The hub, which makes certificates
    #[arg(long, value_name = "FILE")]
    hub: PathBuf,
    /// Where the image of the file system is kept while this runs, 4 GiB at most
    #[arg(long, value_name = "DIRECTORY")]
    dir: PathBuf,
    /// How often everything is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Records of the backlog that the whole gateway drains; 300 bytes each on disk
    #[arg(long, default_value_t = 3_500_000)]
    backlog_records: usize,
    /// Seconds of traffic, and before them of none, in which the online gateway is to write nothing
    #[arg(long, default_value_t = 30)]
    online_seconds: usize,
    /// Only these, separated by commas
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
}

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Appends in groups of 1, 10, 100 and 1,000
    Storage,
    /// Reading a backlog back, and opening one of 10 MB, 100 MB and 1 GB
    Backlog,
    /// What the gateway writes while the hub answers
    Online,
    /// The whole gateway, from a backlog to a fast sink
    Drain,
}

/// Measures and gives the table.
pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<String> {
    let medium = Medium::mount(&std::path::absolute(&arguments.dir)?, MEDIUM_BYTES)?;
    let mut figures = Figures::default();
    for round in 0..arguments.rounds.max(1) {
        for part in Part::value_variants() {
            if !arguments.only.is_empty() && !arguments.only.contains(part) {
                continue;
            }
            eprintln!("round {} of {}: {part:?}", round + 1, arguments.rounds);
            measure(*part, arguments, &medium, &mut figures)
                .await
                .with_context(|| format!("{part:?}, round {}", round + 1))?;
        }
    }
    figures.table(arguments.rounds)
}

async fn measure(
    part: Part,
    arguments: &Arguments,
    medium: &Medium,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let programs = Programs { fieldgate: arguments.fieldgate.clone(), hub: arguments.hub.clone() };
    match part {
        Part::Storage => spool_storage::measure_appends(medium, figures)?,
        Part::Backlog => spool_storage::measure_backlog(medium, figures)?,
        Part::Online => {
            for durability in [spool_gateway::HUB_OR_DISK, spool_gateway::DISK] {
                let seconds = arguments.online_seconds;
                spool_gateway::measure_online(medium, &programs, durability, seconds, figures)
                    .await?;
            }
        }
        Part::Drain => {
            for transport in [Transport::Plain, Transport::Tls] {
                let records = arguments.backlog_records;
                spool_gateway::measure_drain(medium, &programs, transport, records, figures)
                    .await?;
            }
        }
    }
    let load = fs::read_to_string("/proc/loadavg")?;
    let load = load.split_whitespace().next().and_then(|text| text.parse().ok());
    let name = format!("load average of the last minute, after {part:?}").to_lowercase();
    figures.note(figure(name, 1, "", NO_PEERS), load.context("/proc/loadavg has no number")?);
    Ok(())
}
