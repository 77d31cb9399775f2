//! `hub.toml`, checked: every path absolute, every default filled in.

mod raw;
#[cfg(test)]
mod tests;
mod values;

use std::{
    fmt,
    net::SocketAddr,
    num::{NonZeroU32, NonZeroUsize},
    path::{Path, PathBuf},
    time::Duration,
};

use axum::http::Uri;
use toml::Spanned;

use raw::{Raw, RawJwt, RawLimits};
pub use values::{Network, parse_time};

use super::{
    engine::{Retention, SqliteOptions},
    session::Traffic,
};
use crate::protocol::{HubLimits, Window};

/// Where the configuration is looked for.
pub const DEFAULT_FILE: &str = "/etc/fieldgate/hub.toml";

/// The database, in the state directory.
const DATABASE: &str = "hub.db";

/// The hub's own certificate authority, in the state directory.
const CA: &str = "ca";

/// Everything that `fieldgate-hub run` needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The hub's name, as gateways see it.
    pub name: String,
    /// Where it listens.
    pub bind: SocketAddr,
    /// TLS by itself; `None`: plain, on a loopback address, behind a proxy.
    pub tls: Option<Tls>,
    /// The name, and the port if it is not 443, under which gateways reach it.
    pub public_host: Option<String>,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Network>,
    /// Which tokens are taken that the hub did not give out.
    pub jwt: Jwt,
    /// The hub's own certificate authority.
    pub ca: Ca,
    /// What strangers and gateways may do how often.
    pub rates: Rates,
    /// The database and how much it keeps.
    pub store: SqliteOptions,
    /// The most connections at once; at the bound a stranger's gives way, or new ones wait to be
    /// accepted.
    pub max_connections: usize,
    /// The most of one gateway, and of one token of the API.
    pub connections_per_credential: NonZeroUsize,
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
    /// Which of them were revoked, PEM; may hold the lists of several CAs.
    pub crl_file: Option<PathBuf>,
}

/// `[jwt]`
#[derive(Debug, Clone)]
pub struct Jwt {
    /// What `aud` must name, one of them; boards that enrol are told the first.
    pub audiences: Vec<String>,
    /// Who signs tokens beside the gateways themselves.
    pub issuer: Option<Issuer>,
}

/// An outside issuer of tokens.
#[derive(Debug, Clone)]
pub struct Issuer {
    /// What `iss` says in its tokens.
    pub name: String,
    /// Where its keys are.
    pub keys: KeySource,
}

/// Where the JSON Web Key Set of an issuer is.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// In a file, read again when it changes.
    File(PathBuf),
    /// Behind a URL: https, or http on a loopback address.
    Url {
        /// The URL.
        url: Uri,
        /// Whom to trust with it; `None`: whom the system trusts.
        ca_file: Option<PathBuf>,
    },
}

/// `[ca]`
#[derive(Debug, Clone)]
pub struct Ca {
    /// Where it is, if it was made.
    pub dir: PathBuf,
    /// How long a gateway's certificate lasts, in days.
    pub days: u16,
}

/// What may happen how often.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// New connections of one address; ten seconds' worth may come at once.
    pub connections_per_second: NonZeroU32,
    /// Connections on which no credential was accepted; beyond it the oldest is cut of the address
    /// that has the most.
    pub handshakes: NonZeroUsize,
    /// Refusals of one credential, or one who is claimed, at one address; ten times that of the
    /// address. A minute's worth may come at once.
    pub failures_per_minute: NonZeroU32,
    /// New sessions of one gateway, and renewals; a minute's worth may come at once.
    pub sessions_per_minute: NonZeroU32,
    /// Attempts to enrol, of all addresses together.
    pub enrolments_per_minute: NonZeroU32,
    /// What one gateway may send.
    pub traffic: Traffic,
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
        let public_host = raw.public_host.map(|host| here.public_host(host)).transpose()?;
        let jwt = here.jwt(raw.jwt, &raw.name, public_host.as_deref(), directory)?;
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
        if limits.bytes_per_second.0 < limits.frame_bytes.0 {
            return Err(ConfigError(format!(
                "{}: limits.bytes_per_second: {} is less than limits.frame_bytes, {}; a message \
                 must fit into a second",
                file.display(),
                limits.bytes_per_second.0,
                limits.frame_bytes.0
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
                cert_file: tls.cert_file.below(directory),
                key_file: tls.key_file.below(directory),
                client_ca_file: tls.client_ca_file.map(|file| file.below(directory)),
                crl_file: tls.crl_file.map(|file| file.below(directory)),
            }),
            public_host,
            trusted_proxies: raw.trusted_proxies,
            jwt,
            ca: Ca { dir: state_dir.join(CA), days: raw.ca.days.get() },
            rates: rates(&limits),
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
            connections_per_credential: limits.connections_per_credential.into(),
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

fn rates(limits: &RawLimits) -> Rates {
    Rates {
        connections_per_second: limits.connections_per_second,
        handshakes: limits.handshakes.into(),
        failures_per_minute: limits.failures_per_minute,
        sessions_per_minute: limits.sessions_per_minute,
        enrolments_per_minute: limits.enrolments_per_minute,
        traffic: Traffic {
            messages_per_second: limits.messages_per_second.get().into(),
            bytes_per_second: limits.bytes_per_second.0 as u64,
        },
    }
}

struct Here<'a> {
    file: &'a Path,
    text: &'a str,
}

/// The host alone, as a gateway has it of its URL.
fn host(authority: &str) -> Option<String> {
    let authority: axum::http::uri::Authority = authority.parse().ok()?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    Some(host.to_ascii_lowercase())
}

impl Here<'_> {
    fn public_host(&self, host: Spanned<String>) -> Result<String, ConfigError> {
        let at = host.span().start;
        let host = host.into_inner();
        let authority = host.parse::<axum::http::uri::Authority>();
        if authority.is_ok_and(|authority| authority.as_str() == host && !host.contains('@')) {
            return Ok(host);
        }
        Err(self.fault(
            at,
            format_args!(
                "public_host: {host:?} is no name or address; write one such as \
                 \"hub.example.com\", with :PORT if that is not 443"
            ),
        ))
    }

    fn jwt(
        &self,
        raw: RawJwt,
        name: &str,
        public_host: Option<&str>,
        directory: &Path,
    ) -> Result<Jwt, ConfigError> {
        let audiences = match raw.audience {
            Some(audience) => vec![audience],
            // A gateway that was told of none takes the host in its URL.
            None => std::iter::once(name.into()).chain(public_host.and_then(host)).collect(),
        };
        let Some(issuer) = raw.issuer else {
            if raw.jwks_url.is_some() || raw.jwks_file.is_some() || raw.jwks_ca_file.is_some() {
                let fault = "jwt: there are keys and no issuer; add issuer, as iss in its tokens";
                return Err(self.fault(self.text.find("jwks_").unwrap_or(0), fault));
            }
            return Ok(Jwt { audiences, issuer: None });
        };
        let at = issuer.span().start;
        let name = issuer.into_inner();
        let keys = match (raw.jwks_url, raw.jwks_file) {
            (None, Some(file)) => KeySource::File(file.below(directory)),
            (Some(url), None) => KeySource::Url {
                url: url.0,
                ca_file: raw.jwks_ca_file.map(|file| file.below(directory)),
            },
            _ => {
                let fault = "jwt.issuer: its keys are missing; add one of jwks_url and jwks_file";
                return Err(self.fault(at, fault));
            }
        };
        Ok(Jwt { audiences, issuer: Some(Issuer { name, keys }) })
    }

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
