//! The benchmark: what a message costs the board, beside a mosquitto bridge on the same machine in
//! the same run.
//!
//! It prints and never fails for being slow. Contenders take turns, round by round, and the median
//! of the rounds is shown, so that a busy machine hurts all alike. Only the processes on the
//! board's side are metered, by /proc; the load and the sink run here. `tests/bench/run` builds
//! what is measured and runs this; `tests/bench/spool` and `tests/bench/link` do so for theirs.

mod arrivals;
mod contender;
mod devices;
mod line;
mod link;
mod meter;
mod report;
mod sink;
mod spool;
mod spool_figures;
mod spool_gateway;
mod spool_medium;
mod spool_storage;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Parser;
use tokio::time::sleep;

use arrivals::{Account, Arrivals};
use contender::{Contender, Programs, Stage};
use meter::Usage;

/// Measures fieldgate and prints a Markdown table
#[derive(Debug, Parser)]
enum Benchmark {
    Messages(Arguments),
    Spool(spool::Arguments),
    Link(link::Arguments),
}

/// Measures fieldgate beside a mosquitto bridge and prints a Markdown table
#[derive(Debug, clap::Args)]
struct Arguments {
    /// The gateway to measure
    #[arg(long, value_name = "FILE")]
    fieldgate: PathBuf,
    /// The hub: the far end of one contender, and the maker of everyone's certificates
    #[arg(long, value_name = "FILE")]
    hub: PathBuf,
    /// Where the processes keep their state; on a disk, not a tmpfs, or nothing is counted as
    /// written
    #[arg(long, value_name = "DIRECTORY")]
    dir: PathBuf,
    /// How often everything is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds at the steady rate, each time
    #[arg(long, default_value_t = 10)]
    seconds: usize,
    /// The steady rate, messages per second
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Messages flat out, each time
    #[arg(long, default_value_t = 100_000)]
    messages: usize,
    /// Milliseconds for which the sink holds an acknowledgement back, to make one of many
    #[arg(long, default_value_t = 0)]
    ack_after_ms: u64,
    /// Only these, separated by commas: bridge, listener, broker, hub
    #[arg(long, value_delimiter = ',', value_parser = named)]
    only: Vec<Contender>,
}

fn named(name: &str) -> Result<Contender, String> {
    (Contender::ALL.into_iter().find(|contender| contender.name() == name))
        .ok_or_else(|| "there are bridge, listener, broker and hub".into())
}

/// One contender's figures of one round.
#[derive(Debug, Clone)]
pub(crate) struct Round {
    cold_start: Duration,
    idle_kib: u64,
    peak_kib: u64,
    steady: Phase,
    flat_out: Phase,
}

/// The figures of one phase of a round.
#[derive(Debug, Clone)]
pub(crate) struct Phase {
    sent: usize,
    account: Account,
    elapsed: Duration,
    usage: Usage,
    /// What the gateway says that it wrote to its spool; `None` where there is no gateway.
    spooled_bytes: Option<u64>,
    far_cpu: Duration,
}

fn main() -> ExitCode {
    let benchmark = Benchmark::parse();
    // A thread for the devices and one for the sink, as two machines would have.
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the event loop can't be made")
        .and_then(|runtime| match benchmark {
            Benchmark::Messages(arguments) => runtime.block_on(run(arguments)),
            Benchmark::Spool(arguments) => runtime.block_on(spool::run(&arguments)),
            Benchmark::Link(arguments) => runtime.block_on(link::run(&arguments)),
        });
    match outcome {
        Ok(table) => {
            println!("{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(mut arguments: Arguments) -> anyhow::Result<String> {
    if arguments.only.is_empty() {
        arguments.only = Contender::ALL.to_vec();
    }
    // Every device has an equal share.
    arguments.messages = arguments.messages.next_multiple_of(devices::DEVICES);
    let programs = Programs { fieldgate: arguments.fieldgate.clone(), hub: arguments.hub.clone() };
    let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); arguments.only.len()];
    for round in 0..arguments.rounds.max(1) {
        for (contender, measured) in arguments.only.iter().zip(&mut rounds) {
            eprintln!("round {} of {}: {}", round + 1, arguments.rounds, contender.title());
            let dir = std::path::absolute(arguments.dir.join(contender.name()))?;
            let figures = measure(*contender, &programs, &dir, &arguments).await;
            measured.push(figures.with_context(|| {
                format!("{}, round {}; logs are in {}", contender.name(), round + 1, dir.display())
            })?);
        }
    }
    report::table(&arguments, &rounds)
}

async fn measure(
    contender: Contender,
    programs: &Programs,
    dir: &Path,
    arguments: &Arguments,
) -> anyhow::Result<Round> {
    let arrivals = Arrivals::new();
    let ack_after = Duration::from_millis(arguments.ack_after_ms);
    let mut stage = Stage::set(contender, programs, dir, &arrivals, ack_after).await?;

    // As many as knocking can publish before it gives up.
    const KNOCKS: usize = 100_000;
    arrivals.expect(0, KNOCKS);
    let started = stage.start()?;
    let cold_start = devices::knock(stage.broker, &arrivals, 0, stage.first()).await? - started;

    let mut connected = devices::connect_all(stage.broker).await?;
    // Not a condition to wait for: idle is what a second without messages looks like.
    sleep(Duration::from_secs(1)).await;
    let idle_kib = memory_kib(&stage)?.0;

    let steady = arguments.seconds * arguments.rate as usize;
    let mut meter = Meter::start(&stage, &arrivals, KNOCKS as u64, steady).await?;
    devices::pace(&mut connected, &arrivals, meter.first, steady, arguments.rate).await?;
    let steady = meter.stop().await?;
    drop(connected);

    let connected = devices::connect_all(stage.broker).await?;
    meter = Meter::start(&stage, &arrivals, meter.first + 1_000_000, arguments.messages).await?;
    devices::flood(connected, &arrivals, meter.first, arguments.messages).await?;
    let flat_out = meter.stop().await?;
    let peak_kib = memory_kib(&stage)?.1;
    Ok(Round { cold_start, idle_kib, peak_kib, steady, flat_out })
}

/// Reads the gauges before and after a phase.
struct Meter<'a> {
    stage: &'a Stage,
    first: u64,
    count: usize,
    taken: u64,
    spooled_bytes: Option<u64>,
    usage: Usage,
    far_cpu: Duration,
    since: Instant,
}

impl<'a> Meter<'a> {
    async fn start(
        stage: &'a Stage,
        arrivals: &Arrivals,
        first: u64,
        count: usize,
    ) -> anyhow::Result<Self> {
        arrivals.expect(first, count);
        Ok(Self {
            stage,
            first,
            count,
            taken: stage.taken().await?,
            spooled_bytes: stage.spooled_bytes().await,
            usage: meter::usage(&stage.local_pids(), stage.far_port)?,
            far_cpu: far_cpu(stage)?,
            since: Instant::now(),
        })
    }

    async fn stop(&self) -> anyhow::Result<Phase> {
        let (account, last) = self.stage.settled(self.taken, self.count).await?;
        // The last acknowledgements are still under way, and are part of the price.
        sleep(Duration::from_millis(100)).await;
        let usage = meter::usage(&self.stage.local_pids(), self.stage.far_port)? - self.usage;
        let far_cpu = far_cpu(self.stage)? - self.far_cpu;
        let spooled_bytes = (self.stage.spooled_bytes().await)
            .zip(self.spooled_bytes)
            .map(|(after, before)| after - before);
        let elapsed = last.saturating_duration_since(self.since);
        Ok(Phase { sent: self.count, account, elapsed, usage, spooled_bytes, far_cpu })
    }
}

fn far_cpu(stage: &Stage) -> anyhow::Result<Duration> {
    stage.far_pids().into_iter().map(meter::cpu).sum()
}

/// Of all of a contender's processes: now, and at their highest.
fn memory_kib(stage: &Stage) -> anyhow::Result<(u64, u64)> {
    let mut sum = (0, 0);
    for pid in stage.local_pids() {
        let (now, highest) = meter::memory_kib(pid)?;
        sum = (sum.0 + now, sum.1 + highest);
    }
    Ok(sum)
}
