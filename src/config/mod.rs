//! What the user wrote, checked: `fieldgate.toml` and the environment become a [`Config`] in which
//! every value is valid.
//!
//! Every path in it is absolute, every default filled in. Loading reads the file, the environment
//! and what an enrolment left beside the identity, and nothing else; whether a certificate can be
//! read or a host be reached is asked later, by those who need it.

mod checked;
mod enrolled;
mod environment;
mod error;
mod listener;
mod nearest;
mod proxy;
mod raw;
mod reader;
mod uplink;
mod values;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

pub use enrolled::Enrolled;
pub use error::ConfigError;
pub use proxy::{Credentials, Proxy, ProxyKind, ProxyLogin};
pub use uplink::{IDENTITY_DIR, IDENTITY_KEY, IDENTITY_UPLINK};
pub use values::{duration, show_duration, show_size};

use self::{
    environment::Environment,
    error::{Fault, Origin},
    raw::Raw,
    reader::{Places, Reader},
};
use crate::{
    command::Allow,
    protocol::{Mode, StreamName},
    topic::Template,
};

/// The largest file that is read, in bytes; a larger one is not a configuration.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Everything that `fieldgate run` needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it came from.
    pub file: PathBuf,
    /// `[gateway]`
    pub gateway: Gateway,
    /// `[uplink]`; without it the gateway spools and says so.
    pub uplink: Option<Uplink>,
    /// What of it an enrolment says, where the file leaves that to it.
    pub enrolled: Option<Enrolled>,
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
    /// What is right but should be known, each a sentence with its key: for the log at the start
    /// and for `check`.
    pub notes: Vec<String>,
}

impl Config {
    /// Reads the file and the environment, and what an enrolment left.
    ///
    /// # Errors
    /// All faults that were found, with their lines.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read_file(path).map_err(|text| fault(path, Origin::File, text))?;
        Self::checked(&text, path, variables(path)?, &enrolment)
    }

    /// What it would be with this enrolment, and with `text` where there is no file yet.
    ///
    /// # Errors
    /// All faults that were found, with their lines.
    pub fn enrolled(path: &Path, text: &str, enrolment: &str) -> Result<Self, ConfigError> {
        let text = text_or(path, text)?;
        Self::checked(&text, path, variables(path)?, &|_| Ok(enrolment.to_owned()))
    }

    /// What it would be with this hub and no other: for the way there before it is configured.
    /// Where there is no file everything is default.
    ///
    /// # Errors
    /// All faults that were found, with their lines.
    pub fn towards(path: &Path, hub: &HubUrl) -> Result<Self, ConfigError> {
        let text = text_or(path, "[listener]\n")?;
        let mut variables = variables(path)?;
        variables.retain(|(name, _)| name != "FIELDGATE_UPLINK__URL");
        variables.push(("FIELDGATE_UPLINK__URL".into(), hub.to_string()));
        Self::from_text(&text, path, variables.into_iter())
    }

    /// Checks a file's text, with `env` as the environment. `file` says what relative paths are
    /// relative to, and stands in errors as it is given.
    ///
    /// # Errors
    /// All faults that were found, with their lines.
    pub fn from_text(
        text: &str,
        file: &Path,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        Self::checked(text, file, env.collect(), NOT_ENROLLED)
    }

    fn checked(
        text: &str,
        file: &Path,
        env: Vec<(String, String)>,
        enrolment: enrolled::Read<'_>,
    ) -> Result<Self, ConfigError> {
        let (config, faults) = parse(text, file, env, enrolment)?;
        if faults.is_empty() { Ok(config) } else { Err(ConfigError::new(file, faults)) }
    }
}

/// Where a gateway's spool is, and how much it may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolPlace {
    /// `gateway.state_dir`
    pub state_dir: PathBuf,
    /// `spool.max_bytes`; `None` where what was written is no size.
    pub max_bytes: Option<u64>,
}

impl SpoolPlace {
    /// Reads it from the file and the environment, whatever else is wrong with them: a spool must
    /// be reachable while a configuration is mended. `None` stands for an empty file.
    ///
    /// # Errors
    /// The faults that keep it from being known.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new("environment"));
        let text = path.map(read_file).transpose();
        let text = text.map_err(|text| fault(file, Origin::File, text))?.unwrap_or_default();
        let (config, mut faults) = parse(&text, file, variables(file)?, NOT_ENROLLED)?;
        let is_size =
            !faults.iter().any(|fault| matches!(&*fault.key, "spool" | "spool.max_bytes"));
        // A misspelt state_dir would lead to another gateway's spool.
        faults.retain(|fault| {
            fault.key == "gateway" || fault.key.starts_with("gateway.") && fault.key != "gateway.id"
        });
        if !faults.is_empty() {
            return Err(ConfigError::new(file, faults));
        }
        let max_bytes = is_size.then_some(config.spool.max_bytes);
        Ok(Self { state_dir: config.gateway.state_dir, max_bytes })
    }
}

const NOT_ENROLLED: enrolled::Read<'_> = &|_| Err(std::io::ErrorKind::NotFound.into());

fn parse(
    text: &str,
    file: &Path,
    env: Vec<(String, String)>,
    enrolment: enrolled::Read<'_>,
) -> Result<(Config, Vec<Fault>), ConfigError> {
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.into());
    let folder = absolute.parent().unwrap_or(Path::new("/")).into();
    let places = Places { folder, environment: Environment::read(env.into_iter()) };
    let mut faults = Vec::new();
    let mut raw =
        Raw::read(text, &mut faults).map_err(|fault| ConfigError::new(file, vec![fault]))?;
    places.environment.apply(&mut raw, &mut faults);
    // What is wrong with it is told when everything is checked.
    let unheard = &mut Vec::new();
    let state_dir = checked::state_dir(&mut Reader::of(&raw, "gateway", &places, unheard), &places);
    let mut notes = Vec::new();
    let enrolled = enrolled::apply(&mut raw, &state_dir, enrolment, &mut notes, &mut faults);
    let mut config = checked::config(absolute, &raw, &places, &mut faults);
    config.enrolled = enrolled;
    config.notes.extend(notes);
    Ok((config, faults))
}

/// The file's text, or this where there is no file.
fn text_or(path: &Path, text: &str) -> Result<String, ConfigError> {
    match path.exists() {
        true => read_file(path).map_err(|text| fault(path, Origin::File, text)),
        false => Ok(text.into()),
    }
}

fn fault(file: &Path, origin: Origin, text: String) -> ConfigError {
    ConfigError::new(file, vec![Fault { origin, key: String::new(), text }])
}

/// The environment, as far as it is text.
fn variables(file: &Path) -> Result<Vec<(String, String)>, ConfigError> {
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os() {
        // A name that is not UTF-8 is none of ours.
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => variables.push((name, value)),
            Err(_) if environment::is_key(&name) => {
                let text = "its value is not UTF-8; write it so";
                return Err(fault(file, Origin::Variable(name), text.into()));
            }
            Err(_) => {}
        }
    }
    Ok(variables)
}

/// The file's text, or why there is none.
fn read_file(path: &Path) -> Result<String, String> {
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            "there is no such file; write one (configs/minimal.toml is the least that works) or \
             name another with --config"
                .into()
        }
        std::io::ErrorKind::IsADirectory => "it is a directory; name a file in it".into(),
        std::io::ErrorKind::FileTooLarge => {
            "it is larger than 1MiB, which no configuration is; name another".into()
        }
        std::io::ErrorKind::InvalidData => "it is not UTF-8 text; save it so".into(),
        _ => format!("it can't be read: {error}; see its owner and mode"),
    };
    contents(path).map_err(unreadable)
}

fn contents(path: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path)?;
    std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_FILE_BYTES + 1), &mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    String::from_utf8(bytes).map_err(|_| std::io::ErrorKind::InvalidData.into())
}

/// What an enrolment left. Asked before the opening, which would wait forever on a FIFO.
fn enrolment(file: &Path) -> std::io::Result<String> {
    match std::fs::metadata(file)?.is_file() {
        true => contents(file),
        false => Err(std::io::ErrorKind::InvalidInput.into()),
    }
}

/// `[gateway]`
#[derive(Debug, Clone)]
pub struct Gateway {
    /// As configured; `None`: the credential's subject, else host name and 6 digits of the machine
    /// id.
    pub id: Option<String>,
    /// Where the spool, the journal and the status socket live.
    pub state_dir: PathBuf,
}

/// `[uplink]`
#[derive(Debug, Clone)]
pub struct Uplink {
    /// The hubs, the preferred one first; at least one.
    pub hubs: Vec<Hub>,
    /// Which mode of PROTOCOL.md section 1.
    pub protocol: Mode,
    /// Trust anchors; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// The client certificate's chain and its key, for mTLS.
    pub client_cert: Option<(PathBuf, PathBuf)>,
    /// A bearer token; `None` beside `jwt`.
    pub token_file: Option<PathBuf>,
    /// Tokens that the gateway signs itself.
    pub jwt: Option<Jwt>,
    /// A Ping is sent when nothing was received for so long.
    pub ping_interval: Duration,
    /// How long its Pong may take.
    pub ping_timeout: Duration,
    /// How long an ack may take.
    pub ack_timeout: Duration,
    /// The network interface that every connection is bound to.
    pub bind_interface: Option<String>,
    /// How long DNS, TCP, proxy, TLS and upgrade may take, each.
    pub connect_timeout: Duration,
    /// The first wait after a lost link, and the longest.
    pub backoff: (Duration, Duration),
    /// After how long on a later hub the first is tried again.
    pub return_after: Duration,
    /// Whether commands of a plain server are obeyed.
    pub plain_commands: bool,
}

/// `[uplink.jwt]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jwt {
    /// What tokens are signed with: the identity's key, where no other is named.
    pub key_file: PathBuf,
    /// The hub that they are for; `None`: the first hub's name.
    pub audience: Option<String>,
    /// How long each is good.
    pub lifetime: Duration,
    /// Who issues them.
    pub issuer: Option<String>,
    /// The key's name at the hub.
    pub kid: Option<String>,
}

/// A hub and the way to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    /// The hub.
    pub url: HubUrl,
    /// The proxy on the way there.
    pub proxy: Option<Proxy>,
}

/// A WebSocket URL, taken apart. It prints without its query, in which some servers want a secret.
#[derive(Clone, PartialEq, Eq)]
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

impl HubUrl {
    /// Takes a `wss://` URL apart, or a `ws://` one of this machine.
    ///
    /// # Errors
    /// In words: what is wrong, and what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        values::hub_url(text)
    }
}

impl fmt::Display for HubUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "wss" } else { "ws" };
        let path = self.path.split('?').next().unwrap_or("/");
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}{path}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}{path}", self.host, self.port)
        }
    }
}

impl fmt::Debug for HubUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
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
    /// What the spool leaves free of the file system.
    pub min_free_bytes: u64,
    /// Readings older than this are not sent any more.
    pub max_age: Option<Duration>,
    /// The largest payload that is taken.
    pub max_record_bytes: usize,
    /// Whether after an outage fresh records pass the backlog.
    pub live_first: bool,
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
    /// Plain MQTT.
    pub bind: Option<SocketAddr>,
    /// MQTT over TLS.
    pub tls: Option<ListenerTls>,
    /// Who may connect by name and password.
    pub users_file: Option<PathBuf>,
    /// Whether the file says that who does not say who it is may connect everywhere.
    pub anonymous: bool,
    /// The most clients at once.
    pub max_clients: usize,
    /// Publishes of one client in a second.
    pub max_publish_rate: Option<u16>,
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
    /// Whose certificates devices may show.
    pub client_ca_file: Option<PathBuf>,
}

impl Listener {
    /// Whether a client may connect that does not say who it is: where there are no users, on a
    /// loopback address only.
    pub fn takes_anonymous(&self) -> bool {
        self.anonymous || self.users_file.is_none()
    }

    /// Whether a client of `tls_bind` must show a certificate, for want of another way in.
    pub fn needs_certificate(&self) -> bool {
        self.users_file.is_none() && !self.anonymous
    }
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
