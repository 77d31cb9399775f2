//! `hub.toml`, checked: every path absolute, every default filled in.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use super::engine::{Retention, SqliteOptions};
use crate::protocol::{HubLimits, Window};

/// Where the configuration is looked for.
pub const DEFAULT_FILE: &str = "/etc/fieldgate/hub.toml";

/// The database, in the state directory.
const DATABASE: &str = "hub.db";

/// Everything that `fieldgate-hub run` needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The hub's name, as gateways see it.
    pub name: String,
    /// Where it listens.
    pub bind: SocketAddr,
    /// TLS by itself; `None`: plain, on a loopback address, behind a proxy.
    pub tls: Option<Tls>,
    /// The database and how much it keeps.
    pub store: SqliteOptions,
    /// The most connections at once; at the bound new ones wait to be accepted.
    pub max_connections: usize,
    /// What the hub takes from a gateway.
    pub limits: HubLimits,
    /// What may be outstanding in a stream.
    pub window: Window,
    /// A Ping is sent when nothing was received for so long.
    pub ping_interval: Duration,
    /// How long anything may then take to come.
    pub ping_timeout: Duration,
}

/// `[tls]`
#[derive(Debug, Clone)]
pub struct Tls {
    /// The certificate chain, PEM, leaf first.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
    /// Whose client certificates are credentials of gateways.
    pub client_ca_file: Option<PathBuf>,
}

/// The configuration can't be used: names the file, the line, the key, the fault and the remedy.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let file = std::path::absolute(file)
            .map_err(|error| ConfigError(format!("{}: {error}", file.display())))?;
        let text = std::fs::read_to_string(&file).map_err(|error| {
            ConfigError(format!(
                "{}: can't be read: {error}; write one after configs/hub.toml, or name another \
                 with --config",
                file.display()
            ))
        })?;
        Self::parse(&file, &text)
    }

    /// Checks the text of a file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            let fault = error.message().replace('\n', " ");
            let key = error.span().and_then(|span| key_at(text, span.start)).unwrap_or_default();
            ConfigError(format!("{}:{line}: {key}{fault}", file.display()))
        })?;
        let here = Here { file, text };
        let directory = file.parent().unwrap_or(Path::new("/"));
        if raw.tls.is_none() && !raw.bind.get_ref().ip().is_loopback() {
            return Err(here.fault(
                raw.bind.span().start,
                format_args!(
                    "bind: {} is not a loopback address and there is no [tls]; add [tls] with \
                     cert_file and key_file, or bind 127.0.0.1 behind a proxy that does TLS",
                    raw.bind.get_ref()
                ),
            ));
        }
        let limits = raw.limits;
        if limits.frame_bytes.0 < limits.record_bytes.0 {
            return Err(ConfigError(format!(
                "{}: limits.frame_bytes: {} is less than limits.record_bytes, {}; a message must \
                 hold a record",
                file.display(),
                limits.frame_bytes.0,
                limits.record_bytes.0
            )));
        }
        let state_dir = match raw.state_dir {
            Some(path) => directory.join(path),
            None => std::env::var_os("STATE_DIRECTORY")
                .map_or_else(|| PathBuf::from("/var/lib/fieldgate-hub"), PathBuf::from),
        };
        Ok(Self {
            name: raw.name,
            bind: raw.bind.into_inner(),
            tls: raw.tls.map(|tls| Tls {
                cert_file: directory.join(tls.cert_file),
                key_file: directory.join(tls.key_file),
                client_ca_file: tls.client_ca_file.map(|path| directory.join(path)),
            }),
            store: SqliteOptions {
                path: state_dir.join(DATABASE),
                retention: Retention {
                    max_records_per_gateway: raw.retention.max_records_per_gateway,
                    max_age_ms: raw.retention.max_age.0.as_millis().try_into().unwrap_or(u64::MAX),
                    max_gaps_per_gateway: raw.retention.max_gaps_per_gateway,
                    max_pending_commands: limits.max_pending_commands,
                },
            },
            max_connections: limits.max_connections.get().into(),
            limits: HubLimits {
                frame_bytes: limits.frame_bytes.0,
                record_bytes: limits.record_bytes.0,
                batch_records: limits.batch_records.get().into(),
            },
            window: Window {
                records: limits.window_records.get().into(),
                bytes: limits.window_bytes.0 as u64,
            },
            ping_interval: raw.liveness.ping_interval.0,
            ping_timeout: raw.liveness.ping_timeout.0,
        })
    }
}

struct Here<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Here<'_> {
    fn fault(&self, at: usize, what: impl fmt::Display) -> ConfigError {
        ConfigError(format!("{}:{}: {what}", self.file.display(), line_of(self.text, at)))
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// The key on the line of a fault, where the fault is in its value.
fn key_at(text: &str, at: usize) -> Option<String> {
    let start = text.get(..at)?.rfind('\n').map_or(0, |newline| newline + 1);
    let (key, _) = text.get(start..at)?.split_once('=')?;
    Some(format!("{}: ", key.trim()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default = "default_name")]
    name: String,
    #[serde(default = "default_bind")]
    bind: Spanned<SocketAddr>,
    state_dir: Option<PathBuf>,
    tls: Option<RawTls>,
    #[serde(default)]
    retention: RawRetention,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    liveness: RawLiveness,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    cert_file: PathBuf,
    key_file: PathBuf,
    client_ca_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRetention {
    #[serde(deserialize_with = "positive")]
    max_records_per_gateway: u64,
    max_age: Span,
    #[serde(deserialize_with = "positive")]
    max_gaps_per_gateway: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    max_connections: std::num::NonZeroU16,
    frame_bytes: Size,
    record_bytes: Size,
    batch_records: std::num::NonZeroU16,
    window_records: std::num::NonZeroU32,
    window_bytes: Size,
    #[serde(deserialize_with = "positive")]
    max_pending_commands: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLiveness {
    ping_interval: Span,
    ping_timeout: Span,
}

fn default_name() -> String {
    "hub-1".into()
}

fn default_bind() -> Spanned<SocketAddr> {
    Spanned::new(0..0, SocketAddr::from(([127, 0, 0, 1], 8080)))
}

impl Default for RawRetention {
    fn default() -> Self {
        Self {
            max_records_per_gateway: 10_000_000,
            max_age: Span(Duration::from_secs(90 * 24 * 3600)),
            max_gaps_per_gateway: 10_000,
        }
    }
}

impl Default for RawLimits {
    fn default() -> Self {
        let limits = HubLimits::default();
        Self {
            max_connections: std::num::NonZeroU16::new(10_000).expect("not zero"),
            frame_bytes: Size(limits.frame_bytes),
            record_bytes: Size(limits.record_bytes),
            batch_records: std::num::NonZeroU16::new(1000).expect("not zero"),
            window_records: std::num::NonZeroU32::new(5000).expect("not zero"),
            window_bytes: Size(1 << 20),
            max_pending_commands: 1000,
        }
    }
}

impl Default for RawLiveness {
    fn default() -> Self {
        Self {
            ping_interval: Span(Duration::from_secs(25)),
            ping_timeout: Span(Duration::from_secs(10)),
        }
    }
}

/// A positive number that SQLite's signed integers hold.
fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match u64::deserialize(deserializer)? {
        0 => Err(de::Error::custom("0 is not enough; at least 1")),
        number => Ok(number),
    }
}

/// A time, written with its unit.
struct Span(Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
        let text = String::deserialize(deserializer)?;
        match with_unit(&text, &units) {
            Some(ms) if ms > 0 => Ok(Self(Duration::from_millis(ms))),
            _ => Err(de::Error::custom(format!(
                "{text:?} is not a time; write a whole number and ms, s, m, h or d, such as \"25s\""
            ))),
        }
    }
}

/// A number of bytes, written with its unit; 64 MiB at most, for it is held in memory per
/// connection.
struct Size(usize);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("B", 1)];
        let text = String::deserialize(deserializer)?;
        let bytes = with_unit(&text, &units).filter(|bytes| (1024..=64 << 20).contains(bytes));
        bytes.and_then(|bytes| usize::try_from(bytes).ok()).map(Self).ok_or_else(|| {
            de::Error::custom(format!(
                "{text:?} is not a size from 1KiB to 64MiB; write a whole number and B, KiB or \
                 MiB, such as \"256KiB\""
            ))
        })
    }
}

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    units.iter().find_map(|(unit, factor)| {
        let number: u64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        number.checked_mul(*factor)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("/etc/fieldgate/hub.toml"), text)
    }

    #[test]
    fn the_least_that_works_is_nothing() {
        let config = parse("").unwrap();
        assert!(config.bind.ip().is_loopback() && config.tls.is_none());
        assert_eq!(config.limits.frame_bytes, 262_144);
    }

    #[test]
    fn the_shipped_file_names_every_key_with_its_default() {
        let text = include_str!("../../configs/hub.toml");
        let shipped = parse(text).unwrap();
        let uncommented: String = text
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(key) if key.contains(" = ") || key.starts_with('[') => format!("{key}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let mut all = parse(&uncommented).unwrap();
        assert!(all.tls.take().is_some_and(|tls| tls.client_ca_file.is_some()));
        assert_eq!(format!("{all:?}"), format!("{shipped:?}"));
    }

    #[test]
    fn relative_paths_are_relative_to_the_file() {
        let config =
            parse("state_dir = \"state\"\n[tls]\ncert_file = \"a\"\nkey_file = \"/b\"").unwrap();
        assert_eq!(config.store.path, Path::new("/etc/fieldgate/state/hub.db"));
        let tls = config.tls.unwrap();
        assert_eq!(tls.cert_file, Path::new("/etc/fieldgate/a"));
        assert_eq!(tls.key_file, Path::new("/b"));
    }

    #[test]
    fn errors_name_the_file_the_line_and_the_key() {
        for (text, expected) in [
            ("name = \"x\"\nbnd = 1", "hub.toml:2: unknown field `bnd`"),
            ("bind = \"0.0.0.0:8443\"", "hub.toml:1: bind: 0.0.0.0:8443 is not a loopback"),
            ("bind = \"nowhere\"", "hub.toml:1: bind: "),
            ("[retention]\nmax_age = \"90\"", "hub.toml:2: max_age: \"90\" is not a time"),
            ("[limits]\nframe_bytes = \"1GiB\"", "hub.toml:2: frame_bytes: \"1GiB\" is not a size"),
            ("[limits]\nframe_bytes = \"1KiB\"", "a message must hold a record"),
            ("[tls]\ncert_file = \"a\"", "hub.toml:1: missing field `key_file`"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?} gave {error:?}");
        }
    }
}
