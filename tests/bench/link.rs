//! The link's benchmark: how soon it is back after a cut, what a handshake costs, what an idle hour
//! costs, and how much memory each state takes.
//!
//! It prints and never fails for being slow. `tests/bench/link` builds what is measured and runs
//! this.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    arrivals::Arrivals,
    contender::{Process, free_address, start, succeed},
    devices,
    line::Line,
    meter, report,
    sink::{self, Tls},
};

/// How long the gateway may take to be back: more than any deadline of PROTOCOL.md, section 10.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reconnects by which a handshake is measured: the processor's time is counted in ticks of 10 ms.
const HANDSHAKES: u32 = 200;

/// Cuts by which the way back is measured, in each round.
const RESETS: u32 = 10;

/// Messages of the backlog by which memory is measured.
const BACKLOG: usize = 100_000;

/// `ping_interval` while an idle link is measured, and for how many of them; its default, and how
/// many of those an hour has.
const QUICK_PING: Duration = Duration::from_secs(2);
const QUICK_PINGS: u32 = 10;
const PINGS_AN_HOUR: f64 = 3600.0 / 25.0;

/// Measures the link and prints a Markdown table
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The gateway to measure
    #[arg(long, value_name = "FILE")]
    fieldgate: PathBuf,
    /// The hub, which makes certificates
    #[arg(long, value_name = "FILE")]
    hub: PathBuf,
    /// Where the processes keep their state
    #[arg(long, value_name = "DIRECTORY")]
    dir: PathBuf,
    /// How often everything is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// Rows in the order of their first measurement, each with its values.
#[derive(Debug, Default)]
struct Figures(Vec<(String, Vec<f64>)>);

impl Figures {
    fn note(&mut self, name: &str, value: f64) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, values)) => values.push(value),
            None => self.0.push((name.to_owned(), vec![value])),
        }
    }

    fn table(self) -> anyhow::Result<String> {
        use std::fmt::Write as _;
        let mut out = String::from("| | median | least to most |\n|---|---:|---:|\n");
        for (name, mut values) in self.0 {
            values.sort_by(f64::total_cmp);
            let (least, most) = (values[0], values[values.len() - 1]);
            let median = report::median(values).unwrap_or_default();
            let decimals = if most < 10.0 { 2 } else { 0 };
            writeln!(
                out,
                "| {name} | {median:.decimals$} | {least:.decimals$} to {most:.decimals$} |"
            )?;
        }
        out.push('\n');
        report::write_machine(&mut out)?;
        out.push('\n');
        Ok(out)
    }
}

/// Measures and gives the table.
pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<String> {
    let dir = std::path::absolute(&arguments.dir)?.join("link");
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    let certificates = dir.join("certificates");
    succeed(Command::new(&arguments.hub).arg("demo-ca").arg("--dir").arg(&certificates))?;
    let certificates = certificates.as_path();
    let mut figures = Figures::default();
    for round in 0..arguments.rounds.max(1) {
        eprintln!("round {} of {}", round + 1, arguments.rounds);
        let mut boards = 0;
        let mut board = |tls, uplink: &str| {
            boards += 1;
            let (dir, uplink) = (dir.join(format!("{round}-{boards}")), uplink.to_owned());
            let fieldgate = arguments.fieldgate.clone();
            async move { Board::start(dir, &fieldgate, tls, &uplink).await }
        };
        // The back-off as it is when it has not grown.
        let first_wait = "backoff_min = \"500ms\"\nbackoff_max = \"500ms\"\n";
        measure_cuts(board(Tls::Resuming(certificates), first_wait).await?, &mut figures).await?;
        let no_wait = "backoff_min = \"10ms\"\nbackoff_max = \"10ms\"\n";
        for (name, tls) in [
            ("no TLS", Tls::Off),
            ("TLS resumed", Tls::Resuming(certificates)),
            ("TLS in full", Tls::Full(certificates)),
        ] {
            measure_handshakes(board(tls, no_wait).await?, name, &mut figures).await?;
        }
        let pings = format!("ping_interval = \"{}s\"\n", QUICK_PING.as_secs());
        measure_idle(board(Tls::Resuming(certificates), &pings).await?, &mut figures).await?;
        measure_memory(board(Tls::Resuming(certificates), "").await?, &mut figures).await?;
    }
    figures.table()
}

/// From a cut to the next session, for each kind of cut.
async fn measure_cuts(mut board: Board, figures: &mut Figures) -> anyhow::Result<()> {
    for _ in 0..RESETS {
        let took = board.back_after(Line::reset).await?;
        figures.note("reset to next session, ms (a wait of up to 500 ms in it)", ms(took));
    }
    let took = board.back_after(Line::silence).await?;
    figures.note("silent cut to next session, idle, s (ping 25 s + 10 s)", took.as_secs_f64());
    let mut devices = devices::connect_all(board.listener).await?;
    let count = 10 * PATIENCE.as_secs() as usize;
    board.arrivals.expect(0, count);
    let arrivals = board.arrivals.clone();
    let load = tokio::spawn(async move {
        devices::pace(&mut devices, &arrivals, 0, count, 10).await.ok();
    });
    board.arrivals.first().await;
    let took = board.back_after(Line::silence).await?;
    load.abort();
    figures.note("silent cut to next session, 10 messages/s, s (ack 10 s)", took.as_secs_f64());
    Ok(())
}

/// The processor's time of a whole reconnect: dial, TLS, upgrade, greeting.
async fn measure_handshakes(
    mut board: Board,
    name: &str,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    // The first ones fill caches.
    board.back_after(Line::reset).await?;
    let before = meter::cpu(board.gateway.0.id())?;
    for _ in 0..HANDSHAKES {
        board.back_after(Line::reset).await?;
    }
    let used = meter::cpu(board.gateway.0.id())? - before;
    figures.note(&format!("CPU of a reconnect, ms, {name}"), ms(used) / f64::from(HANDSHAKES));
    Ok(())
}

/// Bytes over an idle link, both ways, TLS records included.
async fn measure_idle(board: Board, figures: &mut Figures) -> anyhow::Result<()> {
    let pid = board.gateway.0.id();
    // The first Ping comes at a random point of the interval.
    sleep(QUICK_PING * 2).await;
    let before = meter::usage(&[pid], board.line.port)?;
    sleep(QUICK_PING * QUICK_PINGS).await;
    let used = meter::usage(&[pid], board.line.port)? - before;
    let per_ping = used.wire_bytes as f64 / f64::from(QUICK_PINGS);
    figures.note("TLS bytes of an idle hour, at a Ping every 25 s", per_ping * PINGS_AN_HOUR);
    Ok(())
}

/// Resident memory, state by state.
async fn measure_memory(board: Board, figures: &mut Figures) -> anyhow::Result<()> {
    let pid = board.gateway.0.id();
    let mut note = |state: &str| -> anyhow::Result<()> {
        let kib = meter::memory_kib(pid)?.0;
        figures.note(&format!("RSS, MB, {state}"), kib as f64 / 1024.0);
        Ok(())
    };
    // Idle is what a second without messages looks like.
    sleep(Duration::from_secs(1)).await;
    note("connected, no device")?;
    let connected = devices::connect_all(board.listener).await?;
    note("connected, 50 devices")?;
    board.line.close();
    board.arrivals.expect(0, BACKLOG);
    devices::flood(connected, &board.arrivals, 0, BACKLOG).await?;
    note("offline, with a backlog of 100,000 records")?;
    board.line.open();
    let (account, _) = board.arrivals.settled().await;
    ensure!(account.arrived == BACKLOG, "{} of {BACKLOG} arrived", account.arrived);
    note("connected again, the backlog delivered")?;
    let highest = meter::memory_kib(pid)?.1;
    figures.note("RSS, MB, at its highest in all this", highest as f64 / 1024.0);
    Ok(())
}

/// A gateway whose first session has begun, the sink, and the line between them.
struct Board {
    line: Line,
    listener: SocketAddr,
    arrivals: Arrivals,
    sessions: watch::Receiver<usize>,
    gateway: Process,
    dir: PathBuf,
}

impl Board {
    async fn start(
        dir: PathBuf,
        fieldgate: &Path,
        tls: Tls<'_>,
        uplink: &str,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(&dir)?;
        let arrivals = Arrivals::new();
        let sink = sink::start(tls, arrivals.clone(), Duration::ZERO).await?;
        let line = Line::to(sink.port).await?;
        let listener = free_address()?;
        let (scheme, trust) = match tls {
            Tls::Off => ("ws", String::new()),
            Tls::Resuming(certificates) | Tls::Full(certificates) => {
                ("wss", format!("ca_file = {:?}\n", certificates.join("ca.pem")))
            }
        };
        let text = format!(
            "[gateway]\nid = \"bench\"\nstate_dir = \"state\"\n\n[uplink]\n\
             url = \"{scheme}://localhost:{}/v1/gateway\"\nprotocol = \"managed\"\n\
             {trust}{uplink}\n[listener]\nbind = \"{listener}\"\n",
            line.port
        );
        let file = dir.join("fieldgate.toml");
        fs::write(&file, text)?;
        let mut command = Command::new(fieldgate);
        command.args(["--log", "warn", "run", "--config"]).arg(&file);
        let gateway = start(command, &dir, "gateway")?;
        let mut board = Self { line, listener, arrivals, sessions: sink.sessions, gateway, dir };
        board.next_session(0).await?;
        Ok(board)
    }

    /// How long after a cut the next session begins.
    async fn back_after(&mut self, cut: fn(&Line)) -> anyhow::Result<Duration> {
        let seen = *self.sessions.borrow_and_update();
        let since = Instant::now();
        cut(&self.line);
        self.next_session(seen).await?;
        Ok(since.elapsed())
    }

    async fn next_session(&mut self, seen: usize) -> anyhow::Result<()> {
        let begun = self.sessions.wait_for(|sessions| *sessions > seen);
        let waited = timeout(PATIENCE, begun).await;
        let what = || format!("no session; the log is in {}", self.dir.display());
        waited.with_context(what)?.map(drop).context("the sink is gone")
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
