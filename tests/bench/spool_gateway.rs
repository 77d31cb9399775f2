//! The whole gateway and its spool: what it writes while the hub answers, and how fast it drains a
//! backlog into the fast sink.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::ensure;
use fieldgate::record::{Reading, Timestamp, store_reading};
use tokio::time::sleep;

use crate::{
    arrivals::Arrivals,
    contender::{Process, Programs, free_address, start, succeed},
    devices, meter, sink,
    spool_figures::{Figures, NO_PEERS, figure},
    spool_medium::Medium,
    spool_storage::{Log, MAX_BYTES},
};

/// Records of one group while a backlog is made.
const FILL_GROUP: usize = 3_000;

/// Messages per second in the phase that is to write nothing.
const ONLINE_RATE: u32 = 200;

/// The values of `spool.durability`.
pub(crate) const HUB_OR_DISK: &str = "hub_or_disk";
pub(crate) const DISK: &str = "disk";

/// How the gateway reaches the sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Plain,
    Tls,
}

impl Transport {
    fn scheme(self) -> &'static str {
        match self {
            Self::Plain => "ws",
            Self::Tls => "wss",
        }
    }
}

/// Puts `records` on disk, lets a gateway drain them, and meters it.
pub(crate) async fn measure_drain(
    medium: &Medium,
    programs: &Programs,
    transport: Transport,
    records: usize,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let arrivals = Arrivals::new();
    let board = Board::set(medium, programs, transport, HUB_OR_DISK, &arrivals).await?;
    fill(&board.dir.join("state/spool"), &arrivals, records)?;
    // The backlog's own writes would be in the way of the reading.
    medium.written_bytes()?;
    arrivals.expect(0, records);
    let since = Instant::now();
    let gateway = board.start()?;
    arrivals.first().await;
    let first = Instant::now();
    let (account, last) = arrivals.settled().await;
    let cpu = meter::cpu(gateway.0.id())?;
    let peak_kib = meter::memory_kib(gateway.0.id())?.1;
    ensure!(
        account.arrived == records && account.doubled == 0,
        "{} of {records} arrived, {} twice; the log is in {}",
        account.arrived,
        account.doubled,
        board.dir.display()
    );
    let scheme = transport.scheme();
    let mut note = |what: &str, decimals, goal, value| {
        let name = format!("gateway drains over {scheme}://, {what}");
        figures.note(figure(name, decimals, goal, NO_PEERS), value);
    };
    note("records/s", 0, "≥ 150000", records as f64 / (last - first).as_secs_f64());
    note("CPU s per 100k", 3, "", cpu.as_secs_f64() * 1e5 / records as f64);
    note("RSS at its highest, MB", 1, "≤ 12", peak_kib as f64 / 1024.0);
    note("start to first record, ms", 0, "", (first - since).as_secs_f64() * 1e3);
    Ok(())
}

/// Counts what reaches the device that the state directory is on: with the gateway idle, then with
/// traffic that the sink acknowledges at once. With `durability = "disk"` everything is written:
/// that shows what the count would have seen.
pub(crate) async fn measure_online(
    medium: &Medium,
    programs: &Programs,
    durability: &str,
    seconds: usize,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let arrivals = Arrivals::new();
    let board = Board::set(medium, programs, Transport::Tls, durability, &arrivals).await?;
    const KNOCKS: usize = 100_000;
    arrivals.expect(0, KNOCKS);
    let gateway = board.start()?;
    let first = async {
        arrivals.first().await;
        Ok(Instant::now())
    };
    devices::knock(board.listener, &arrivals, 0, first).await?;
    let mut connected = devices::connect_all(board.listener).await?;
    // Not a condition to wait for: births and what the start wrote are over after `write_after`.
    sleep(Duration::from_secs(2)).await;

    let before = medium.written_bytes()?;
    sleep(Duration::from_secs(seconds as u64)).await;
    let idle = medium.written_bytes()?;
    let count = seconds * ONLINE_RATE as usize;
    arrivals.expect(KNOCKS as u64, count);
    devices::pace(&mut connected, &arrivals, KNOCKS as u64, count, ONLINE_RATE).await?;
    let (account, _) = arrivals.settled().await;
    let busy = medium.written_bytes()?;
    drop(gateway);
    ensure!(account.arrived == count, "{} of {count} arrived", account.arrived);
    let name = |what: &str| format!("online, {durability}: device bytes in {seconds} s, {what}");
    let messages = name(&format!("{ONLINE_RATE} messages/s"));
    let goal = if durability == HUB_OR_DISK { "0" } else { "" };
    figures.note(figure(name("no messages"), 0, goal, NO_PEERS), (idle - before) as f64);
    figures.note(figure(messages, 0, goal, NO_PEERS), (busy - idle) as f64);
    Ok(())
}

/// A gateway ready to start, and the sink it will find.
struct Board {
    dir: PathBuf,
    fieldgate: PathBuf,
    listener: SocketAddr,
}

impl Board {
    async fn set(
        medium: &Medium,
        programs: &Programs,
        transport: Transport,
        durability: &str,
        arrivals: &Arrivals,
    ) -> anyhow::Result<Self> {
        let dir = medium.fresh_dir("gateway")?;
        let certificates = dir.join("certificates");
        succeed(Command::new(&programs.hub).arg("demo-ca").arg("--dir").arg(&certificates))?;
        let far_end = (transport == Transport::Tls).then_some(certificates.as_path());
        let tls = far_end.map_or(sink::Tls::Off, sink::Tls::Resuming);
        let port = sink::start(tls, arrivals.clone(), Duration::ZERO).await?.port;
        let listener = free_address()?;
        let scheme = transport.scheme();
        let trust = far_end.map_or("", |_| "ca_file = \"certificates/ca.pem\"\n");
        let text = format!(
            "[gateway]\nid = \"bench\"\nstate_dir = \"state\"\n\n[uplink]\n\
             url = \"{scheme}://localhost:{port}/v1/gateway\"\nprotocol = \"managed\"\n{trust}\n\
             [spool]\ndurability = \"{durability}\"\nmax_bytes = \"{}MiB\"\n\n\
             [listener]\nbind = \"{listener}\"\n",
            MAX_BYTES >> 20
        );
        fs::write(dir.join("fieldgate.toml"), text)?;
        Ok(Self { dir, fieldgate: programs.fieldgate.clone(), listener })
    }

    fn start(&self) -> anyhow::Result<Process> {
        let mut command = Command::new(&self.fieldgate);
        command.args(["--log", "warn", "run", "--config"]).arg(self.dir.join("fieldgate.toml"));
        start(command, &self.dir, "gateway")
    }
}

/// A backlog as a gateway would have left it.
fn fill(spool_dir: &Path, arrivals: &Arrivals, records: usize) -> anyhow::Result<()> {
    let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
    let ts = Timestamp::synced(unix_ms);
    let mut log = Log::open(spool_dir)?;
    for from in (0..records).step_by(FILL_GROUP) {
        let numbers = from..records.min(from + FILL_GROUP);
        log.append_group(numbers.map(|number| {
            let index = number % devices::DEVICES;
            let (device, topic) =
                (format!("plc-{index:02}"), format!("devices/plc-{index:02}/telemetry"));
            let payload = arrivals.payload(number as u64, index);
            let reading = Reading {
                device: &device,
                topic: &topic,
                retained: false,
                payload: payload.as_bytes(),
                json: true,
            };
            store_reading(ts, &reading)
        }))?;
    }
    Ok(())
}
