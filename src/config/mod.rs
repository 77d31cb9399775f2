//! What the user wrote, checked: `fieldgate.toml` and the environment become a [`Config`] in which every value is valid.
//!
//! Every path in it is absolute, every default filled in. Loading reads the file and the environment and nothing else;
//! whether a certificate can be read or a host be reached is asked later, by those who need it.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::{protocol::StreamName, topic::Template};

/// Everything that `fieldgate run` needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it came from.
    pub file: PathBuf,
    /// `[gateway]`
    pub gateway: Gateway,
    /// `[uplink]`; without it the gateway spools and says so.
    pub uplink: Option<Uplink>,
    /// `[spool]`
    pub spool: Spool,
    /// `[mqtt]`
    pub mqtt: Option<Mqtt>,
    /// `[listener]`
    pub listener: Option<Listener>,
    /// `[[telemetry]]`, in order; the first match wins.
    pub telemetry: Vec<Telemetry>,
    /// `[commands]`
    pub commands: Commands,
}

/// `[gateway]`
#[derive(Debug, Clone)]
pub struct Gateway {
    /// As configured; `None`: the credential's subject, else host name and 6 digits of the machine id.
    pub id: Option<String>,
    /// Where the spool, the journal and the status socket live.
    pub state_dir: PathBuf,
}

/// `[uplink]`
#[derive(Debug, Clone)]
pub struct Uplink {
    /// The hub.
    pub url: HubUrl,
    /// Which mode of PROTOCOL.md section 1.
    pub protocol: Mode,
    /// Trust anchors; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// The client certificate's chain and its key, for mTLS.
    pub client_cert: Option<(PathBuf, PathBuf)>,
    /// A bearer token.
    pub token_file: Option<PathBuf>,
    /// A Ping is sent when nothing was received for so long.
    pub ping_interval: Duration,
    /// How long its Pong may take.
    pub ping_timeout: Duration,
    /// How long an ack may take.
    pub ack_timeout: Duration,
    /// How long DNS, TCP, TLS and upgrade may take, each.
    pub connect_timeout: Duration,
    /// The first wait after a lost link, and the longest.
    pub backoff: (Duration, Duration),
    /// Whether commands of a plain server are obeyed.
    pub plain_commands: bool,
}

/// A WebSocket URL, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubUrl {
    /// `wss` rather than `ws`.
    pub tls: bool,
    /// A name or an address (IPv6 without brackets).
    pub host: String,
    /// 443 or 80 when not given.
    pub port: u16,
    /// Path and query, at least `/`.
    pub path: String,
}

/// Which mode of PROTOCOL.md section 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A hub that speaks the protocol.
    Managed,
    /// Any WebSocket server.
    Plain,
    /// Managed if the server answers so, else plain.
    Auto,
}

/// `[spool]`
#[derive(Debug, Clone)]
pub struct Spool {
    /// When a record is safe.
    pub durability: Durability,
    /// How long a record may wait in memory.
    pub write_after: Duration,
    /// The spool's share of the disk.
    pub max_bytes: u64,
    /// The largest payload that is taken.
    pub max_record_bytes: usize,
    /// The priority lanes, first goes first, `telemetry` among them.
    pub lanes: Vec<StreamName>,
}

/// When a record is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// When the hub acknowledged it or it is fsynced, whichever comes first.
    HubOrDisk,
    /// When it is fsynced; it is sent only then.
    Disk,
}

/// `[mqtt]`
#[derive(Debug, Clone)]
pub struct Mqtt {
    /// `mqtts` rather than `mqtt`.
    pub tls: bool,
    /// The broker.
    pub host: String,
    /// 1883 or 8883 when not given.
    pub port: u16,
    /// The session's name at the broker; `None`: `fieldgate-` and the gateway's id.
    pub client_id: Option<String>,
    /// User name and the file that has the password.
    pub credentials: Option<(String, PathBuf)>,
    /// Trust anchors; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// The client certificate's chain and its key.
    pub client_cert: Option<(PathBuf, PathBuf)>,
    /// Keep alive.
    pub keep_alive: Duration,
    /// What the broker keeps in flight for us.
    pub max_inflight: u16,
}

/// `[listener]`
#[derive(Debug, Clone)]
pub struct Listener {
    /// Plain MQTT, on a loopback address only.
    pub bind: Option<SocketAddr>,
    /// MQTT over TLS.
    pub tls: Option<ListenerTls>,
    /// The most clients at once.
    pub max_clients: usize,
    /// Publishes of one client that may wait for their PUBACK.
    pub max_inflight: usize,
}

/// `[listener]` over TLS.
#[derive(Debug, Clone)]
pub struct ListenerTls {
    /// Where.
    pub bind: SocketAddr,
    /// The listener's certificate chain.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
    /// Whose certificates devices must show.
    pub client_ca_file: PathBuf,
}

/// `[[telemetry]]`
#[derive(Debug, Clone)]
pub struct Telemetry {
    /// Which topics.
    pub topic: Template,
    /// Into which lane.
    pub lane: StreamName,
    /// The device, where the topic names none.
    pub device: Option<String>,
}

/// `[commands]`
#[derive(Debug, Clone)]
pub struct Commands {
    /// Where a command is published: `{device}` and `{command}`.
    pub topic: Template,
    /// Where its reply comes: `{device}` and `{id}`.
    pub reply: Template,
    /// What may be asked of whom.
    pub allow: Vec<Allow>,
}

/// One pattern of `commands.allow`: `device/command`, `*` standing for any run of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    /// Matches the device's name.
    pub device: String,
    /// Matches the command's name.
    pub command: String,
}
