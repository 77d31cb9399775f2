//! Everything that the demo runs: hub and gateway as processes, the relay between them, and the
//! devices.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{
    device::Device,
    hub::Hub,
    part::{self, Folder, Part},
    relay::Relay,
};
use crate::ops::control::{Ask, ask};

/// The gateway's id.
pub(super) const GATEWAY: &str = "demo-gateway";

/// The devices; the last one obeys commands.
pub(super) const DEVICES: [&str; 3] = ["plc-01", "plc-02", "valve-03"];

/// The one that obeys.
pub(super) const OBEYS: &str = DEVICES[2];

const CA_FILE: &str = "tls/ca.pem";
const API_TOKEN_FILE: &str = "api-token";
const GATEWAY_TOKEN_FILE: &str = "gateway-token";
const GATEWAY_FILE: &str = "gateway.toml";
const HUB_FILE: &str = "hub.toml";
const GATEWAY_STATE_DIR: &str = "gateway";
const HUB_STATE_DIR: &str = "hub";

/// Everything that an application may do.
const SCOPES: &str = "gateways:read,records:read,commands:read,commands:write,live";

/// How long everything may take to be ready: a second, but machines may be busy.
const READY_PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked whether it is.
const READY_LOOK: Duration = Duration::from_millis(50);

/// How long the gateway may take to say how it stands.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);

/// What runs. Dropped, it ends at once, the folder last.
pub(super) struct Stage {
    pub(super) devices: Vec<Device>,
    pub(super) hub: Hub,
    gateway_process: Part,
    pub(super) relay: Relay,
    hub_process: Part,
    pub(super) mqtt_port: u16,
    hub_address: SocketAddr,
    folder: Folder,
}

/// How the gateway stands.
#[derive(Debug, Clone)]
pub(super) struct GatewayStatus {
    /// `connected`, `waiting` …
    pub(super) link: String,
    /// Readings that the hub does not hold yet.
    pub(super) held: u64,
    /// Bytes of the spool on disk.
    pub(super) disk_bytes: u64,
}

impl Stage {
    /// Makes the folder with certificates, tokens and configurations, and starts everything but the
    /// devices' readings. Nothing is ready yet.
    ///
    /// # Errors
    /// The step that failed.
    pub(super) async fn set_up() -> anyhow::Result<Self> {
        let folder = Folder::new()?;
        let [hub_port, mqtt_port] = free_ports().context("no free port on 127.0.0.1")?;
        let hub_address = SocketAddr::from((Ipv4Addr::LOCALHOST, hub_port));
        let relay = Relay::start(hub_address).await.context("the relay has no port")?;
        folder.make(HUB_STATE_DIR)?;
        folder.write(HUB_FILE, &hub_config(hub_address))?;
        folder.write(GATEWAY_FILE, &gateway_config(relay.address(), mqtt_port))?;

        part::run(&folder, &["hub", "demo-ca", "--dir", "tls", "--host", "127.0.0.1,localhost"])?;
        let manage = |arguments: &[&str]| {
            let all = [&["hub", "--config", HUB_FILE], arguments].concat();
            part::run(&folder, &all)
        };
        manage(&["gateway", "add", GATEWAY, "--token-file", GATEWAY_TOKEN_FILE])?;
        let scopes = ["--scopes", SCOPES, "--token-file", API_TOKEN_FILE];
        manage(&[&["api-token", "add", "demo"], &scopes[..]].concat())?;

        let hub_process = Part::start("hub", &folder, &["hub", "run", "--config", HUB_FILE])?;
        let gateway_process = Part::start("gateway", &folder, &["run", "--config", GATEWAY_FILE])?;
        let (ca, token) = (folder.join(CA_FILE), folder.join(API_TOKEN_FILE));
        let hub = Hub::new(hub_address, &ca, &token, GATEWAY)?;
        let devices = Vec::new();
        Ok(Self {
            devices,
            hub,
            gateway_process,
            relay,
            hub_process,
            mqtt_port,
            hub_address,
            folder,
        })
    }

    /// Waits until hub and gateway are connected; then lets the devices come.
    ///
    /// # Errors
    /// Something ended, or was not ready in time.
    pub(super) async fn ready(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + READY_PATIENCE;
        loop {
            self.check().await?;
            let missing = match self.hub.is_ready().await {
                Err(error) => error.context("the hub is not ready"),
                Ok(()) => match self.status().await {
                    Err(error) => error.context("the gateway is not ready"),
                    Ok(status) if status.link == "connected" => break,
                    Ok(status) => anyhow::anyhow!("the gateway's link is {}", status.link),
                },
            };
            if Instant::now() >= end {
                return Err(missing.context(format!("waited {} s", READY_PATIENCE.as_secs())));
            }
            sleep(READY_LOOK).await;
        }
        let start = |name: &&'static str| Device::start(name, self.mqtt_port, *name == OBEYS);
        self.devices = DEVICES.iter().map(start).collect();
        for device in &mut self.devices {
            let patience = end.saturating_duration_since(Instant::now());
            match tokio::time::timeout(patience, device.ready()).await {
                Ok(ready) => ready?,
                Err(_) => bail!("{}: the gateway did not let it in in time", device.name),
            }
        }
        Ok(())
    }

    /// Says so if anything has ended that should run.
    pub(super) async fn check(&mut self) -> anyhow::Result<()> {
        self.gateway_process.check()?;
        self.hub_process.check()?;
        for device in &mut self.devices {
            device.check().await?;
        }
        Ok(())
    }

    /// How the gateway stands, from its control socket.
    pub(super) async fn status(&self) -> anyhow::Result<GatewayStatus> {
        let state_dir = self.folder.join(GATEWAY_STATE_DIR);
        let question = move || ask(&state_dir, &Ask::Status {}, STATUS_PATIENCE);
        let status = tokio::task::spawn_blocking(question).await?.map_err(anyhow::Error::msg)?;
        let streams = status["streams"].as_array().into_iter().flatten();
        let readings = streams.filter(|stream| stream["stream"] != "events");
        Ok(GatewayStatus {
            link: status["uplink"]["state"].as_str().unwrap_or("unknown").to_owned(),
            held: readings.filter_map(|stream| stream["held"].as_u64()).sum(),
            disk_bytes: status["spool"]["bytes"].as_u64().unwrap_or(0),
        })
    }

    /// Where everything is, and what to try.
    pub(super) fn description(&self) -> String {
        let show = |file: &str| self.folder.join(file).display().to_string();
        let executable = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("fieldgate"));
        let (executable, port) = (executable.display(), self.mqtt_port);
        let (hub, gateway) = (self.hub_address, GATEWAY);
        let (ca, token, config) = (show(CA_FILE), show(API_TOKEN_FILE), show(GATEWAY_FILE));
        let folder = self.folder.path().display();
        format!(
            "fieldgate demo: a hub, a gateway and three devices, all on this machine

  hub        https://{hub}, with TLS by a throwaway CA
  devices    mqtt://127.0.0.1:{port}, the gateway's listener
  API token  {token}
  files      {folder}, removed at the end

to look into it from another terminal:
  mosquitto_sub -p {port} -v -t '#'
  mosquitto_pub -p {port} -q 1 -t devices/mine/telemetry -m '{{\"hello\":1}}'
  curl --cacert {ca} -H \"Authorization: Bearer $(cat {token})\" \\
      'https://{hub}/v1/gateways/{gateway}/records?device=mine'
  {executable} status --config {config}
"
        )
    }

    /// Ends everything in order: first who sends, then who receives, then where they live.
    pub(super) async fn stop(self) {
        let Self { devices, hub, gateway_process, relay, hub_process, folder, .. } = self;
        drop(devices);
        gateway_process.stop().await;
        drop((relay, hub));
        hub_process.stop().await;
        drop(folder);
    }

    /// The ends of both logs.
    pub(super) fn last_words(&self) -> String {
        [&self.hub_process, &self.gateway_process].map(Part::last_words).join("\n")
    }
}

fn hub_config(bind: SocketAddr) -> String {
    format!(
        r#"name = "demo-hub"
bind = "{bind}"
state_dir = "{HUB_STATE_DIR}"

[tls]
cert_file = "tls/hub.pem"
key_file = "tls/hub.key"
"#
    )
}

/// Back-off is short: nobody watches a demo for a minute to see the link come back.
fn gateway_config(hub: SocketAddr, mqtt_port: u16) -> String {
    format!(
        r#"[gateway]
id = "{GATEWAY}"
state_dir = "{GATEWAY_STATE_DIR}"

[uplink]
url = "wss://{hub}/v1/gateway"
protocol = "managed"
ca_file = "{CA_FILE}"
token_file = "{GATEWAY_TOKEN_FILE}"
backoff_min = "250ms"
backoff_max = "1s"

[listener]
bind = "127.0.0.1:{mqtt_port}"

[commands]
allow = ["{OBEYS}/*"]
"#
    )
}

/// Ports that nobody has at this moment. Whoever takes one before its process does makes that
/// process fail, which names the port.
fn free_ports() -> std::io::Result<[u16; 2]> {
    let port = || TcpListener::bind(("127.0.0.1", 0));
    // Held together, so that they differ.
    let [first, second] = [port()?, port()?];
    Ok([first.local_addr()?.port(), second.local_addr()?.port()])
}

/// The states of a command that came after the first `known`, in words.
pub(super) fn new_states(command: &Value, known: usize) -> Vec<String> {
    let states = command["states"].as_array().into_iter().flatten().skip(known);
    let describe = |state: &Value| {
        let mut words = state["state"].as_str().unwrap_or("?").to_owned();
        for (key, before) in [("result", " with "), ("error", ": ")] {
            if !state[key].is_null() {
                words += &format!("{before}{}", state[key]);
            }
        }
        words
    };
    states.map(describe).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::{config, hub};

    #[test]
    fn both_configurations_are_ones_that_the_programs_take() {
        let folder = Folder::new().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 4711));
        folder.write(GATEWAY_FILE, &gateway_config(address, 1883)).unwrap();
        let gateway = config::Config::load(&folder.join(GATEWAY_FILE)).unwrap();
        assert_eq!(gateway.gateway.id.as_deref(), Some(GATEWAY));
        assert!(gateway.commands.allow.iter().any(|allow| allow.permits(OBEYS, "set_valve")));
        let text = hub_config(address);
        assert!(hub::config::Config::parse(Path::new("/demo/hub.toml"), &text).is_ok());
    }

    #[test]
    fn states_are_told_once_with_what_they_carry() {
        let command = json!({"states": [
            {"n": 1, "state": "accepted"},
            {"n": 2, "state": "succeeded", "result": {"done": true}},
        ]});
        assert_eq!(new_states(&command, 0), ["accepted", "succeeded with {\"done\":true}"]);
        assert_eq!(new_states(&command, 2), Vec::<String>::new());
    }
}
