//! The gateway, as a process. What its configuration and its status look like stands here only.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use serde_json::Value;

use super::{
    Field, SOON, eventually, free_port,
    hub::Hub,
    process::{Process, run},
};

/// What a scenario's gateway is told; the rest is default.
#[derive(Clone)]
pub struct Setup {
    pub id: &'static str,
    /// The members of `[uplink]`; empty: none.
    pub uplink: String,
    /// The members of `[spool]`.
    pub spool: String,
    pub listener: Option<u16>,
    /// More members of `[listener]`.
    pub listener_keys: String,
    pub broker: Option<u16>,
    /// `commands.allow`.
    pub allow: &'static str,
    /// `uplink.backoff_min` and `backoff_max`.
    pub backoff: (&'static str, &'static str),
}

impl Setup {
    /// A gateway with a listener, known to `hub`, with everything on disk before it is
    /// acknowledged.
    pub fn new(field: &Field, hub: &Hub) -> Self {
        let id = "gw-1";
        hub.add_gateway(field, id);
        let url = format!("url = \"wss://localhost:{}/v1/gateway\"", hub.port);
        let uplink = format!("{url}\nca_file = \"ca.pem\"\ntoken_file = \"{id}.token\"");
        Self { uplink, ..Self::towards(String::new()) }
    }

    /// A gateway with a listener, and these members of `[uplink]`.
    pub fn towards(uplink: String) -> Self {
        Self {
            id: "gw-1",
            uplink,
            spool: "durability = \"disk\"".into(),
            listener: Some(free_port()),
            listener_keys: String::new(),
            broker: None,
            allow: "[\"*/*\"]",
            backoff: ("200ms", "2s"),
        }
    }

    /// Through `broker` instead of the listener.
    pub fn through(self, broker: u16) -> Self {
        Self { listener: None, broker: Some(broker), ..self }
    }

    pub fn to_toml(&self) -> String {
        let mut text = format!("[gateway]\nid = \"{}\"\nstate_dir = \"state\"\n", self.id);
        if !self.uplink.is_empty() {
            let (least, most) = self.backoff;
            let backoff = format!("backoff_min = \"{least}\"\nbackoff_max = \"{most}\"");
            text += &format!("\n[uplink]\n{}\n{backoff}\n", self.uplink);
        }
        text += &format!("\n[spool]\n{}\n", self.spool);
        if let Some(port) = self.listener {
            let keys = &self.listener_keys;
            text += &format!("\n[listener]\nbind = \"127.0.0.1:{port}\"\n{keys}\n");
        }
        if let Some(port) = self.broker {
            text += &format!("\n[mqtt]\nurl = \"mqtt://127.0.0.1:{port}\"\n");
        }
        text + &format!("\n[commands]\nallow = {}\n", self.allow)
    }
}

pub struct Gateway {
    pub process: Option<Process>,
    /// Where devices connect: the listener, else the broker.
    pub port: u16,
    /// Set for the gateway's process alone.
    pub environment: Vec<(&'static str, OsString)>,
    config: PathBuf,
    log: PathBuf,
}

impl Gateway {
    /// A gateway that is not started yet.
    pub fn new(field: &Field, setup: &Setup) -> Self {
        let config = field.write(format!("{}.toml", setup.id), setup.to_toml());
        let port = setup.listener.or(setup.broker).expect("a gateway has a source");
        let log = field.path(format!("{}.log", setup.id));
        Self::of(config, port, log)
    }

    /// A gateway with a configuration of its own, whose first source listens on `port`.
    pub fn of(config: PathBuf, port: u16, log: PathBuf) -> Self {
        Self { process: None, port, environment: Vec::new(), config, log }
    }

    pub fn started(field: &Field, setup: &Setup) -> Self {
        let mut gateway = Self::new(field, setup);
        gateway.start();
        gateway
    }

    /// Starts it and waits until it answers.
    pub fn start(&mut self) {
        let mut command = run_command(&self.config);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.process = Some(Process::start("fieldgate", command, &self.log));
        eventually("the gateway answers `fieldgate status`", SOON, || {
            let process = self.process.as_mut().expect("just started");
            if let Some(status) = process.ended() {
                panic!("the gateway ended with {status}:\n{}", process.log());
            }
            self.status()
        });
    }

    pub fn kill(&mut self) {
        self.process.as_mut().expect("the gateway runs").kill();
        self.process = None;
    }

    /// SIGTERM: how it ended, and after how long.
    pub fn terminate(&mut self) -> (ExitStatus, Duration) {
        self.process.as_mut().expect("the gateway runs").terminate(SOON)
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The most memory that it had resident since its start, in KiB; an emulator's own included.
    pub fn peak_resident_kib(&self) -> u64 {
        let id = self.process.as_ref().expect("the gateway runs").id();
        let path = format!("/proc/{id}/status");
        let status = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse().ok());
        kib.unwrap_or_else(|| panic!("{path}: no VmHWM in {status}"))
    }

    /// `fieldgate status --json`, if it answers.
    pub fn status(&self) -> Option<Value> {
        let mut command = binary();
        command.args(["status", "--json", "--config"]).arg(&self.config);
        let (code, stdout, _) = run(command, SOON);
        (code == Some(0)).then(|| serde_json::from_str(&stdout).ok()).flatten()
    }

    /// `fieldgate reload --wait`, to its success.
    pub fn reload(&self) {
        let mut command = binary();
        command.args(["reload", "--wait", "--config"]).arg(&self.config);
        let (code, stdout, stderr) = run(command, SOON);
        assert_eq!(code, Some(0), "{stdout}{stderr}");
    }

    /// Waits until the status fits.
    pub fn wait_until(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let deadline = std::time::Instant::now() + SOON;
        loop {
            last = self.status().unwrap_or(last);
            if fits(&last) {
                return last;
            }
            let in_time = std::time::Instant::now() < deadline;
            assert!(in_time, "not within {SOON:?}: {what}; the gateway's status: {last}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn wait_connected(&self) -> Value {
        self.wait_until("the uplink is connected", |status| {
            status["uplink"]["state"] == "connected"
        })
    }

    /// Whether `status` says that this source hears something.
    pub fn source_up(status: &Value, name: &str) -> bool {
        let sources = status["sources"].as_array();
        sources.into_iter().flatten().any(|source| source["name"] == name && source["up"] == true)
    }
}

/// `fieldgate run` on a configuration.
pub fn run_command(config: &Path) -> Command {
    let mut command = binary();
    command.args(["run", "--config"]).arg(config);
    for name in ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command.env_remove("NOTIFY_SOCKET").env_remove("STATE_DIRECTORY");
    command
}

/// The gateway that was built along with the scenarios; or what `FIELDGATE_BIN` names, run by the
/// words of `FIELDGATE_RUNNER`: an emulator, where the program is for another processor.
pub fn binary() -> Command {
    let program = std::env::var("FIELDGATE_BIN");
    let program = program.unwrap_or_else(|_| env!("CARGO_BIN_EXE_fieldgate").into());
    let runner = std::env::var("FIELDGATE_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace().chain([program.as_str()]);
    let mut command = Command::new(words.next().expect("there is a program at least"));
    command.args(words);
    // What the surroundings have set is not the scenario's.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FIELDGATE_")) {
        command.env_remove(name);
    }
    command
}
