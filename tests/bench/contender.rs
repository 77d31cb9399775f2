//! The contenders: their processes, their configurations, and where their messages come out.

use std::{
    fs::{self, File},
    io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use fieldgate::ops::control::{self, Ask};
use serde_json::Value;
use tokio::{net::TcpStream, time::sleep};

use crate::{
    arrivals::{Account, Arrivals},
    devices, sink,
};

/// How long a process may take to listen, or to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a gateway is asked what the hub holds.
const POLL: Duration = Duration::from_millis(5);

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    /// Devices connect to the gateway.
    Listener,
    /// Devices connect to mosquitto, and the gateway to it.
    Broker,
    /// Devices connect to mosquitto, which bridges to a second one.
    Bridge,
    /// As `Listener`, but the far end is the real hub: every record is on its disk when it is
    /// acknowledged.
    Hub,
}

impl Contender {
    pub(crate) const ALL: [Self; 4] = [Self::Bridge, Self::Listener, Self::Broker, Self::Hub];

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Listener => "listener",
            Self::Broker => "broker",
            Self::Bridge => "bridge",
            Self::Hub => "hub",
        }
    }

    /// Its column's title.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Listener => "fieldgate, devices connect to it",
            Self::Broker => "mosquitto + fieldgate",
            Self::Bridge => "mosquitto bridge",
            Self::Hub => "fieldgate, to fieldgate-hub",
        }
    }
}

/// The programs under test.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) fieldgate: PathBuf,
    pub(crate) hub: PathBuf,
}

/// A process of ours, killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it has ended already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A contender on its stage: its far end runs, itself when [`Stage::start`] was called.
#[derive(Debug)]
pub(crate) struct Stage {
    dir: PathBuf,
    /// Where devices publish.
    pub(crate) broker: SocketAddr,
    /// Where its messages go.
    pub(crate) far_port: u16,
    arrivals: Arrivals,
    command: Option<Command>,
    local: Vec<Process>,
    far: Vec<Process>,
    /// The far end can't tell of arrivals: the gateway is asked what has been acknowledged.
    asks_gateway: bool,
}

impl Stage {
    /// Starts the far end, and the local broker where there is one, in a fresh directory.
    pub(crate) async fn set(
        contender: Contender,
        programs: &Programs,
        dir: &Path,
        arrivals: &Arrivals,
        ack_after: Duration,
    ) -> anyhow::Result<Self> {
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        fs::create_dir_all(dir)?;
        let certificates = dir.join("certificates");
        succeed(Command::new(&programs.hub).arg("demo-ca").arg("--dir").arg(&certificates))?;
        let mut stage = Self {
            dir: dir.to_owned(),
            broker: free_address()?,
            far_port: free_address()?.port(),
            arrivals: arrivals.clone(),
            command: None,
            local: Vec::new(),
            far: Vec::new(),
            asks_gateway: contender == Contender::Hub,
        };
        stage.write_token("not-checked-by-the-sink")?;
        match contender {
            Contender::Bridge => stage.prepare_bridge().await?,
            Contender::Hub => {
                stage.start_hub(&programs.hub).await?;
                let source = format!("[listener]\nbind = \"{}\"\n", stage.broker);
                stage.prepare_gateway(&programs.fieldgate, &source)?;
            }
            Contender::Listener => {
                let tls = sink::Tls::Resuming(&certificates);
                stage.far_port = sink::start(tls, arrivals.clone(), ack_after).await?.port;
                let source = format!("[listener]\nbind = \"{}\"\n", stage.broker);
                stage.prepare_gateway(&programs.fieldgate, &source)?;
            }
            Contender::Broker => {
                let tls = sink::Tls::Resuming(&certificates);
                stage.far_port = sink::start(tls, arrivals.clone(), ack_after).await?.port;
                let broker = mosquitto(dir, "local", &listener_lines(stage.broker))?;
                stage.local.push(start(broker, dir, "local")?);
                listens(stage.broker).await?;
                let source =
                    format!("[mqtt]\nurl = \"mqtt://{}\"\nmax_inflight = 1000\n", stage.broker);
                stage.prepare_gateway(&programs.fieldgate, &source)?;
            }
        }
        Ok(stage)
    }

    /// Starts the contender itself.
    pub(crate) fn start(&mut self) -> anyhow::Result<Instant> {
        let command = self.command.take().context("a stage is started once")?;
        let now = Instant::now();
        self.local.push(start(command, &self.dir, "contender")?);
        Ok(now)
    }

    /// The contender's processes, its local broker among them.
    pub(crate) fn local_pids(&self) -> Vec<u32> {
        self.local.iter().map(|process| process.0.id()).collect()
    }

    /// The processes at the far end; none where it is the sink.
    pub(crate) fn far_pids(&self) -> Vec<u32> {
        self.far.iter().map(|process| process.0.id()).collect()
    }

    /// Waits for the first message to come out.
    pub(crate) async fn first(&self) -> anyhow::Result<Instant> {
        if self.asks_gateway {
            self.acknowledged(1, 1).await?;
        } else {
            self.arrivals.first().await;
        }
        Ok(Instant::now())
    }

    /// How many messages the gateway has taken in so far; 0 where nobody asks it.
    pub(crate) async fn taken(&self) -> anyhow::Result<u64> {
        if !self.asks_gateway {
            return Ok(0);
        }
        let status = self.status().await.map_err(anyhow::Error::msg)?;
        status["counters"]["received"].as_u64().context("status has no counters.received")
    }

    /// Waits until `count` messages have come out after the first `taken`, or nothing does for a
    /// while.
    pub(crate) async fn settled(
        &self,
        taken: u64,
        count: usize,
    ) -> anyhow::Result<(Account, Instant)> {
        if !self.asks_gateway {
            return Ok(self.arrivals.settled().await);
        }
        let acked = self.acknowledged(taken + count as u64, taken).await?;
        let arrived = usize::try_from(acked - taken)?;
        Ok((Account { arrived, ..Account::default() }, Instant::now()))
    }

    /// Bytes that the gateway has written to its spool, as it says itself; `None` where there is no
    /// gateway.
    pub(crate) async fn spooled_bytes(&self) -> Option<u64> {
        self.status().await.ok()?["spool"]["written_bytes"].as_u64()
    }

    async fn acknowledged(&self, wanted: u64, at_least: u64) -> anyhow::Result<u64> {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            let acked = match self.status().await {
                Ok(status) => telemetry_acked(&status),
                // It has not come up yet.
                Err(_) => 0,
            };
            if acked >= wanted {
                return Ok(acked);
            }
            if acked != last {
                (last, since) = (acked, Instant::now());
            } else if since.elapsed() > PATIENCE {
                if acked < at_least {
                    bail!("nothing is acknowledged; see the logs in {}", self.dir.display());
                }
                return Ok(acked);
            }
            sleep(POLL).await;
        }
    }

    async fn status(&self) -> Result<Value, String> {
        let state_dir = self.dir.join("state");
        tokio::task::spawn_blocking(move || control::ask(&state_dir, &Ask::Status {}, PATIENCE))
            .await
            .map_err(|error| error.to_string())?
    }

    fn write_token(&self, token: &str) -> anyhow::Result<()> {
        use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
        let file = self.dir.join("token");
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(file)?;
        Ok(file.write_all(token.as_bytes())?)
    }

    fn prepare_gateway(&mut self, fieldgate: &Path, source: &str) -> anyhow::Result<()> {
        let file = self.dir.join("fieldgate.toml");
        let port = self.far_port;
        let text = format!(
            "[gateway]\nid = \"bench\"\nstate_dir = \"state\"\n\n[uplink]\n\
             url = \"wss://localhost:{port}/v1/gateway\"\nprotocol = \"managed\"\n\
             ca_file = \"certificates/ca.pem\"\ntoken_file = \"token\"\n\n{source}"
        );
        fs::write(&file, text)?;
        let mut command = Command::new(fieldgate);
        command.arg("--log").arg("warn").arg("run").arg("--config").arg(file);
        self.command = Some(command);
        Ok(())
    }

    async fn start_hub(&mut self, hub: &Path) -> anyhow::Result<()> {
        let file = self.dir.join("hub.toml");
        let port = self.far_port;
        let text = format!(
            "bind = \"127.0.0.1:{port}\"\nstate_dir = \"hub-state\"\n[tls]\n\
             cert_file = \"certificates/hub.pem\"\nkey_file = \"certificates/hub.key\"\n"
        );
        fs::write(&file, text)?;
        fs::create_dir(self.dir.join("hub-state"))?;
        let token = self.dir.join("token");
        fs::remove_file(&token)?;
        let mut add = Command::new(hub);
        add.arg("--config").arg(&file).args(["gateway", "add", "bench", "--token-file"]);
        succeed(add.arg(token))?;
        let mut run = Command::new(hub);
        run.arg("--config").arg(&file).arg("run");
        self.far.push(start(run, &self.dir, "hub")?);
        listens(SocketAddr::from(([127, 0, 0, 1], port))).await
    }

    async fn prepare_bridge(&mut self) -> anyhow::Result<()> {
        let (dir, tail, port) = (self.dir.clone(), free_address()?, self.far_port);
        let certificates = dir.join("certificates");
        let certificates = certificates.display();
        let far_lines = format!(
            "{}listener {port} 127.0.0.1\ncertfile {certificates}/hub.pem\n\
             keyfile {certificates}/hub.key\n",
            listener_lines(tail)
        );
        self.far.push(start(mosquitto(&dir, "far", &far_lines)?, &dir, "far")?);
        listens(tail).await?;
        devices::subscribe(tail, self.arrivals.clone()).await?;
        let bridge = format!(
            "{}connection far\naddress localhost:{port}\ntopic devices/# out 1\n\
             bridge_cafile {certificates}/ca.pem\nbridge_protocol_version mqttv311\n\
             cleansession false\nnotifications false\nrestart_timeout 1\n",
            listener_lines(self.broker)
        );
        self.command = Some(mosquitto(&dir, "contender", &bridge)?);
        Ok(())
    }
}

fn telemetry_acked(status: &Value) -> u64 {
    let streams = status["streams"].as_array();
    let telemetry = streams.into_iter().flatten().find(|stream| stream["stream"] == "telemetry");
    telemetry.and_then(|stream| stream["acked"].as_u64()).unwrap_or(0)
}

/// A broker tuned as one would for a bridge: without this it drops what exceeds 1,000 queued
/// messages. It keeps its queue in a file as Debian's package has it: written every half hour, so
/// that a crash loses what is newer.
fn mosquitto(dir: &Path, name: &str, lines: &str) -> anyhow::Result<Command> {
    let state = dir.join(format!("{name}-state"));
    fs::create_dir_all(&state)?;
    let file = dir.join(format!("{name}.conf"));
    let text = format!(
        "user root\nallow_anonymous true\nset_tcp_nodelay true\nmax_inflight_messages 1000\n\
         max_queued_messages 0\nqueue_qos0_messages true\nlog_type warning\nlog_type error\n\
         persistence true\npersistence_location {}/\n{lines}",
        state.display()
    );
    fs::write(&file, text)?;
    let mut command = Command::new("mosquitto");
    command.arg("-c").arg(file);
    Ok(command)
}

fn listener_lines(address: SocketAddr) -> String {
    format!("listener {} {}\n", address.port(), address.ip())
}

pub(crate) fn start(mut command: Command, dir: &Path, name: &str) -> anyhow::Result<Process> {
    let log = File::create(dir.join(format!("{name}.log")))?;
    let program = command.get_program().to_owned();
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = command.spawn().with_context(|| format!("{program:?} can't be started"))?;
    Ok(Process(child))
}

pub(crate) fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().context(format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

async fn listens(address: SocketAddr) -> anyhow::Result<()> {
    let since = Instant::now();
    while TcpStream::connect(address).await.is_err() {
        if since.elapsed() > PATIENCE {
            bail!("nothing listens on {address} after {} s", PATIENCE.as_secs());
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// A port that was free a moment ago; mosquitto can't be asked which one it took.
pub(crate) fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}
