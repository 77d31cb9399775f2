//! The hub, as a process, and its HTTP API. What its configuration and its answers look like stands
//! here only.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    Field, SOON,
    certificate::{private, trusting},
    eventually, free_port,
    http::{Client, Response},
    namespace::Namespace,
    process::{Process, run},
};

/// How many records one request asks for.
const PAGE: usize = 1000;

pub struct Hub {
    pub port: u16,
    pub api: Client,
    pub process: Option<Process>,
    /// How much it logs.
    pub log_level: &'static str,
    config: PathBuf,
    log: PathBuf,
    /// The process whose network namespace it runs in; the test's own if there is none.
    network: Option<u32>,
}

/// A record, as far as scenarios look at it.
#[derive(Debug, Clone)]
pub struct Row {
    pub id: u64,
    pub stream: String,
    pub epoch: String,
    pub seq: u64,
    pub device: Option<String>,
    /// The payload's `n`.
    pub n: Option<u64>,
    /// All of it; an event's members are in `event` or in the row itself.
    pub all: Value,
}

/// What `fieldgate-hub demo-ca` calls the hub's certificate and its key; the authority is ca.pem.
pub const CERT: &str = "hub.pem";
pub const KEY: &str = "hub.key";

/// Another name of the hub's, for those who reach it over a network.
pub const NAME: &str = "hub.test";

/// Makes a throwaway authority in the scenario's directory, and a certificate for `localhost`.
pub fn authority(field: &Field) {
    let mut command = binary();
    let hosts = format!("localhost,127.0.0.1,{NAME}");
    command.args(["demo-ca", "--host", &hosts, "--dir"]).arg(field.path(""));
    run_to_success(command);
    for name in ["ca.pem", CERT, KEY] {
        assert!(field.path(name).exists(), "fieldgate-hub demo-ca wrote no {name}");
    }
}

impl Hub {
    /// A hub over TLS, with an authority and an API token, that is not started yet.
    pub fn new(field: &Field) -> Self {
        Self::with(field, "", "")
    }

    /// The same with these keys beside its own, and these sections and keys of `[tls]` after them.
    pub fn with(field: &Field, keys: &str, sections: &str) -> Self {
        authority(field);
        let address = IpAddr::from(Ipv4Addr::LOCALHOST);
        let bind = format!("{address}:{}", free_port());
        Self::at(field, &bind, address, true, &over_tls(keys, sections))
    }

    /// One without TLS, behind something that does it, on this port of this machine.
    pub fn without_tls(field: &Field, port: u16) -> Self {
        let address = IpAddr::from(Ipv4Addr::LOCALHOST);
        let trusted = format!("trusted_proxies = [\"{address}\"]\n");
        Self::at(field, &format!("{address}:{port}"), address, false, &trusted)
    }

    /// One over TLS on every address of a network namespace; its API is asked at `api`.
    pub fn within(field: &Field, network: &Namespace, api: IpAddr) -> Self {
        authority(field);
        let bind = format!("0.0.0.0:{}", free_port());
        let hub = Self::at(field, &bind, api, true, &over_tls("", ""));
        Self { network: Some(network.id()), ..hub }
    }

    fn at(field: &Field, bind: &str, api: IpAddr, tls: bool, rest: &str) -> Self {
        std::fs::create_dir(field.path("hub")).expect("a directory in an own directory");
        let text = format!("bind = \"{bind}\"\nstate_dir = \"hub\"\n{rest}");
        let config = field.write("hub.toml", text);
        let scopes = "gateways:read,records:read,commands:write,commands:read,live";
        let mut command = binary();
        command.args(["api-token", "add", "test", "--scopes", scopes, "--config"]).arg(&config);
        let said = run_to_success(command);
        let token = said.split_whitespace().last().expect("api-token add prints a token");
        let port = bind.rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.expect("an address to listen on ends with a port");
        let tls = tls.then(|| trusting(&field.path("ca.pem")));
        let api = Client { address: api, port, tls, token: token.into() };
        let log = field.path("hub.log");
        Self { port, api, process: None, log_level: "info", config, log, network: None }
    }

    pub fn started(field: &Field) -> Self {
        let mut hub = Self::new(field);
        hub.start();
        hub
    }

    /// Starts it and waits until it serves.
    pub fn start(&mut self) {
        let mut command = match self.network {
            Some(holder) => Namespace::command_beside(holder, PROGRAM),
            None => binary(),
        };
        command.args(["--log", self.log_level, "run", "--config"]).arg(&self.config);
        command.env_remove("NOTIFY_SOCKET");
        let mut process = Process::start("fieldgate-hub", command, &self.log);
        eventually("GET /healthz of the hub answers 200", SOON, || {
            if let Some(status) = process.ended() {
                panic!("the hub ended with {status}:\n{}", process.log());
            }
            self.api.get("/healthz").ok().filter(|response| response.status == 200)
        });
        self.process = Some(process);
    }

    pub fn kill(&mut self) {
        self.process.as_mut().expect("the hub runs").kill();
        self.process = None;
    }

    /// A subcommand beside the running hub, to its success; what it said.
    pub fn manage(&self, arguments: &[&str]) -> String {
        let mut command = binary();
        command.args(arguments).arg("--config").arg(&self.config);
        run_to_success(command)
    }

    /// A subcommand beside the running hub: how it ended, and what it said on stdout and stderr.
    pub fn says(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = binary();
        command.args(arguments).arg("--config").arg(&self.config);
        run(command, SOON)
    }

    /// A subcommand that must fail; what it complained of.
    pub fn refuses(&self, arguments: &[&str]) -> String {
        let (code, stdout, stderr) = self.says(arguments);
        assert!(code.is_some_and(|code| code != 0), "{arguments:?}: {code:?}\n{stdout}");
        stderr
    }

    /// What it logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until it logged all of these words in one line.
    pub fn wait_for_log(&self, words: &[&str]) {
        eventually(&format!("the hub's log says {words:?}"), SOON, || {
            let log = self.log();
            log.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
        });
    }

    /// The file with a fresh token of gateway `id`.
    pub fn add_gateway(&self, field: &Field, id: &str) -> PathBuf {
        let token = field.path(format!("{id}.token"));
        let mut command = binary();
        command.args(["gateway", "add", id, "--token-file"]).arg(&token);
        run_to_success({
            command.arg("--config").arg(&self.config);
            command
        });
        private(&token);
        token
    }

    /// The records of `gateway` after `after`, in the hub's order; none while the hub does not
    /// answer.
    pub fn records(&self, gateway: &str, after: u64) -> Vec<Row> {
        let path = format!("/v1/gateways/{gateway}/records?after={after}&limit={PAGE}");
        let Ok(Response { status, body }) = self.api.get(&path) else { return Vec::new() };
        assert!(status == 200, "GET {path}: {status} {body}");
        let rows = body.as_array().or(body["records"].as_array());
        let rows = rows.unwrap_or_else(|| panic!("GET {path}: no list of records in {body}"));
        rows.iter().map(|row| Row::read(row.clone())).collect()
    }

    /// All records of `gateway`.
    pub fn all_records(&self, gateway: &str) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        loop {
            let page = self.records(gateway, rows.last().map_or(0, |row| row.id));
            if page.is_empty() {
                return rows;
            }
            rows.extend(page);
        }
    }

    /// Waits until a record of `gateway` fits.
    pub fn wait_for(&self, gateway: &str, what: &str, fits: impl Fn(&Row) -> bool) -> Row {
        eventually(what, SOON, || self.all_records(gateway).into_iter().find(&fits))
    }

    /// Asks `device` to do something; the command's id.
    pub fn command(&self, gateway: &str, device: &str, name: &str, ttl: Duration) -> String {
        self.command_with(gateway, device, name, ttl, json!({ "open": true }))
    }

    /// The same with these parameters.
    pub fn command_with(
        &self,
        gateway: &str,
        device: &str,
        name: &str,
        ttl: Duration,
        params: Value,
    ) -> String {
        let path = format!("/v1/gateways/{gateway}/commands");
        let ttl_ms = ttl.as_millis() as u64;
        let body = json!({ "device": device, "name": name, "params": params,
            "ttl_ms": ttl_ms, "timeout_ms": 5000, "idempotent": false });
        let response = self.api.post(&path, &body.to_string()).expect("the hub answers");
        assert!(response.status == 202, "POST {path}: {response:?}");
        let id = response.body["id"].as_str();
        id.unwrap_or_else(|| panic!("POST {path}: no id in {response:?}")).into()
    }

    /// Waits for the final state of a command.
    pub fn outcome(&self, gateway: &str, id: &str, within: Duration) -> Outcome {
        let path = format!("/v1/gateways/{gateway}/commands/{id}");
        let mut last = Value::Null;
        let deadline = std::time::Instant::now() + within;
        loop {
            if let Ok(response) = self.api.get(&path) {
                assert!(response.status == 200, "GET {path}: {response:?}");
                last = response.body;
                let outcome = Outcome::read(&last);
                if outcome.is_final() {
                    return outcome;
                }
            }
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            assert!(!left.is_zero(), "GET {path}: no final state within {within:?}: {last}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What the hub knows of a command.
#[derive(Debug)]
pub struct Outcome {
    pub state: String,
    /// All states in order, the last included.
    pub states: Vec<String>,
    pub all: Value,
}

impl Outcome {
    fn read(body: &Value) -> Self {
        let lists = ["states", "statuses", "history"];
        let steps =
            lists.iter().find_map(|list| body[list].as_array()).cloned().unwrap_or_default();
        let name = |step: &Value| step["state"].as_str().or(step.as_str()).map(str::to_owned);
        let states: Vec<String> = steps.iter().filter_map(name).collect();
        let state = name(body).or(states.last().cloned()).unwrap_or_default();
        Self { state, states, all: body.clone() }
    }

    fn is_final(&self) -> bool {
        let under_way = ["", "pending", "queued", "sent", "accepted", "delivered", "executing"];
        !under_way.contains(&self.state.as_str())
    }

    /// Whether an error of this code stands anywhere in it.
    pub fn says(&self, code: &str) -> bool {
        self.all.to_string().contains(&format!("\"{code}\""))
    }
}

impl Row {
    pub fn read(all: Value) -> Self {
        let text = |name: &str| all[name].as_str().map(str::to_owned);
        let number = |name: &str| all[name].as_u64();
        let missing = |name: &str| format!("a record of the hub has no {name}: {all}");
        Self {
            id: number("id").unwrap_or_else(|| panic!("{}", missing("id"))),
            stream: text("stream").unwrap_or_else(|| panic!("{}", missing("stream"))),
            epoch: text("epoch").unwrap_or_else(|| panic!("{}", missing("epoch"))),
            seq: number("seq").unwrap_or_else(|| panic!("{}", missing("seq"))),
            device: text("device"),
            n: all["payload"]["n"].as_u64(),
            all,
        }
    }

    /// A member of an event.
    pub fn event(&self, name: &str) -> &Value {
        let at = [&self.all[name], &self.all["event"][name], &self.all["payload"][name]];
        at.into_iter().find(|value| !value.is_null()).unwrap_or(&Value::Null)
    }

    /// Whether it is an event of this kind.
    pub fn is_event(&self, kind: &str) -> bool {
        self.stream == "events" && self.event("kind") == kind
    }
}

fn over_tls(keys: &str, sections: &str) -> String {
    format!("{keys}\n[tls]\ncert_file = \"{CERT}\"\nkey_file = \"{KEY}\"\n{sections}\n")
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_fieldgate-hub");

fn binary() -> Command {
    Command::new(PROGRAM)
}

fn run_to_success(command: Command) -> String {
    let name = format!("{command:?}");
    let (code, stdout, stderr) = run(command, SOON);
    assert!(code == Some(0), "{name}: exit code {code:?}\n{stdout}{stderr}");
    stdout
}
