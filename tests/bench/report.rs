//! The table: medians of the rounds, and beside each its ratio to the bridge's.

use std::{fmt::Write as _, fs, process::Command, time::Duration};

use crate::{Arguments, Phase, Round, arrivals::PAYLOAD_BYTES, contender::Contender, devices};

/// What a row shows of one round; `None`: the contender has no such figure.
type Figure = fn(&Round) -> Option<f64>;

struct Row {
    name: &'static str,
    decimals: usize,
    figure: Figure,
}

const ROWS: [Row; 13] = [
    row("messages/s, flat out", 0, |round| {
        Some(round.flat_out.account.arrived as f64 / round.flat_out.elapsed.as_secs_f64())
    }),
    row("CPU s per 100k messages, flat out", 2, |round| Some(cpu_per_100k(&round.flat_out))),
    row("CPU s per 100k messages, steady rate", 2, |round| Some(cpu_per_100k(&round.steady))),
    row("latency p50, ms, steady rate", 2, |round| latency_ms(&round.steady, 50)),
    row("latency p99, ms, steady rate", 2, |round| latency_ms(&round.steady, 99)),
    row("TLS bytes per message, both ways, steady rate", 0, |round| {
        per_message(&round.steady, round.steady.usage.wire_bytes)
    }),
    row("TLS bytes per message, both ways, flat out", 0, |round| {
        per_message(&round.flat_out, round.flat_out.usage.wire_bytes)
    }),
    row("bytes written per message, /proc/PID/io, steady rate", 1, |round| {
        per_message(&round.steady, round.steady.usage.disk_bytes)
    }),
    row("bytes written per message, spool's own count, steady rate", 1, |round| {
        per_message(&round.steady, round.steady.spooled_bytes?)
    }),
    row("RSS idle, MB", 1, |round| Some(round.idle_kib as f64 / 1024.0)),
    row("RSS at its highest, MB", 1, |round| Some(round.peak_kib as f64 / 1024.0)),
    row("process start to first message through, ms", 0, |round| {
        Some(round.cold_start.as_secs_f64() * 1e3)
    }),
    row("CPU s per 100k of the far end, flat out", 2, |round| {
        let far = round.flat_out.far_cpu;
        (far > Duration::ZERO).then(|| per_100k(&round.flat_out, far))
    }),
];

const fn row(name: &'static str, decimals: usize, figure: Figure) -> Row {
    Row { name, decimals, figure }
}

fn cpu_per_100k(phase: &Phase) -> f64 {
    per_100k(phase, phase.usage.cpu)
}

fn per_100k(phase: &Phase, time: Duration) -> f64 {
    time.as_secs_f64() * 1e5 / phase.account.arrived.max(1) as f64
}

fn per_message(phase: &Phase, bytes: u64) -> Option<f64> {
    Some(bytes as f64 / phase.account.arrived.max(1) as f64)
}

fn latency_ms(phase: &Phase, percentile: usize) -> Option<f64> {
    let mut latencies = phase.account.latencies.clone();
    latencies.sort_unstable();
    let at = (latencies.len() * percentile).div_ceil(100).checked_sub(1)?;
    Some(latencies[at].as_secs_f64() * 1e3)
}

/// The whole report, as Markdown; `rounds` has one list for each of `arguments.only`.
pub(crate) fn table(arguments: &Arguments, rounds: &[Vec<Round>]) -> anyhow::Result<String> {
    let mut out = String::new();
    write!(out, "|")?;
    for contender in &arguments.only {
        write!(out, " | {}", contender.title())?;
    }
    writeln!(out, " |\n|---{}|", "|---:".repeat(rounds.len()))?;
    let bridge = arguments.only.iter().position(|contender| *contender == Contender::Bridge);
    for row in &ROWS {
        let figures = |rounds: &Vec<Round>| rounds.iter().filter_map(row.figure).collect();
        let medians: Vec<_> = rounds.iter().map(|rounds| median(figures(rounds))).collect();
        let base = bridge.and_then(|at| medians[at]).filter(|base| *base > 0.0);
        write!(out, "| {}", row.name)?;
        for (at, figure) in medians.iter().enumerate() {
            match (figure, base) {
                (None, _) => write!(out, " | –")?,
                (Some(figure), Some(base)) if Some(at) != bridge => {
                    let decimals = row.decimals;
                    write!(out, " | {figure:.decimals$} ({:.2}×)", figure / base)?;
                }
                (Some(figure), _) => write!(out, " | {figure:.0$}", row.decimals)?,
            }
        }
        writeln!(out, " |")?;
    }
    write!(out, "| lost / doubled, of all sent")?;
    for rounds in rounds {
        let phases = || rounds.iter().flat_map(|round| [&round.steady, &round.flat_out]);
        let sent: usize = phases().map(|phase| phase.sent).sum();
        let arrived: usize = phases().map(|phase| phase.account.arrived).sum();
        let doubled: usize = phases().map(|phase| phase.account.doubled).sum();
        write!(out, " | {} / {doubled}, of {sent}", sent - arrived)?;
    }
    writeln!(out, " |\n")?;
    write_notes(&mut out, arguments)?;
    Ok(out)
}

/// `None` of none.
pub(crate) fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_unstable_by(f64::total_cmp);
    let (low, high) = (figures.len().checked_sub(1)? / 2, figures.len() / 2);
    Some((figures[low] + figures[high]) / 2.0)
}

fn write_notes(out: &mut String, arguments: &Arguments) -> anyhow::Result<()> {
    writeln!(
        out,
        "Medians of {} rounds, contenders taking turns; in brackets the ratio to the bridge. {} \
         devices, QoS 1, {PAYLOAD_BYTES}-byte JSON, TLS 1.3 to the far end, all on one machine. \
         Steady rate: {} messages/s for {} s; flat out: {} messages, each device with up to 20 \
         unacknowledged. CPU and memory are those of the processes on the board's side, a local \
         broker included; the load and the sink are not counted, but run on the same cores. Bytes \
         written by /proc are pages dirtied, not sectors; mosquitto saves its queue only every \
         half hour, and loses what is newer when it is killed.\n",
        arguments.rounds,
        devices::DEVICES,
        arguments.rate,
        arguments.seconds,
        arguments.messages,
    )?;
    write_machine(out)?;
    writeln!(
        out,
        " {}; {}.",
        version(Command::new(&arguments.fieldgate).arg("--version")),
        version(Command::new("mosquitto").arg("-h")),
    )?;
    Ok(())
}

/// What everything ran on, and how busy it was.
pub(crate) fn write_machine(out: &mut String) -> anyhow::Result<()> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism()?;
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory_kib = memory.lines().next().and_then(|line| line.split_whitespace().nth(1));
    let memory_gib = memory_kib.and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1048576.0;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    write!(
        out,
        "Machine: {}, {cores} cores, {memory_gib:.1} GiB, Linux {}, load average at the end {}.",
        model.map_or("unknown processor", |(_, model)| model),
        kernel.trim(),
        load.split_whitespace().take(3).collect::<Vec<_>>().join(" "),
    )?;
    Ok(())
}

/// The first line that a program says.
fn version(command: &mut Command) -> String {
    let text = command.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.ok().and_then(|text| text.lines().next().map(str::to_owned)).unwrap_or_default()
}
