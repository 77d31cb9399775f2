//! `hub.toml` as it is written, with its defaults.

use std::{
    net::SocketAddr,
    num::{NonZeroU16, NonZeroU32},
    path::PathBuf,
    time::Duration,
};

use serde::Deserialize;
use toml::Spanned;

use super::values::{KeySetUrl, Network, Place, Size, Span, positive};
use crate::protocol::HubLimits;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    #[serde(default = "default_name")]
    pub(super) name: String,
    #[serde(default = "default_bind")]
    pub(super) bind: Spanned<SocketAddr>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) public_host: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) trusted_proxies: Vec<Network>,
    pub(super) tls: Option<RawTls>,
    #[serde(default)]
    pub(super) jwt: RawJwt,
    #[serde(default)]
    pub(super) ca: RawCa,
    #[serde(default)]
    pub(super) retention: RawRetention,
    #[serde(default)]
    pub(super) limits: RawLimits,
    #[serde(default)]
    pub(super) liveness: RawLiveness,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTls {
    pub(super) cert_file: Place,
    pub(super) key_file: Place,
    pub(super) client_ca_file: Option<Place>,
    pub(super) crl_file: Option<Place>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawJwt {
    pub(super) audience: Option<String>,
    pub(super) issuer: Option<Spanned<String>>,
    pub(super) jwks_url: Option<KeySetUrl>,
    pub(super) jwks_file: Option<Place>,
    pub(super) jwks_ca_file: Option<Place>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawCa {
    pub(super) days: NonZeroU16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRetention {
    #[serde(deserialize_with = "positive")]
    pub(super) max_records_per_gateway: u64,
    pub(super) max_age: Span,
    #[serde(deserialize_with = "positive")]
    pub(super) max_gaps_per_gateway: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLimits {
    pub(super) max_connections: NonZeroU16,
    pub(super) frame_bytes: Size,
    pub(super) record_bytes: Size,
    pub(super) batch_records: NonZeroU16,
    pub(super) window_records: NonZeroU32,
    pub(super) window_bytes: Size,
    #[serde(deserialize_with = "positive")]
    pub(super) max_pending_commands: u64,
    pub(super) connections_per_second: NonZeroU32,
    pub(super) handshakes: NonZeroU16,
    pub(super) connections_per_credential: NonZeroU16,
    pub(super) failures_per_minute: NonZeroU32,
    pub(super) sessions_per_minute: NonZeroU32,
    pub(super) enrolments_per_minute: NonZeroU32,
    pub(super) messages_per_second: NonZeroU32,
    pub(super) bytes_per_second: Size,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLiveness {
    pub(super) ping_interval: Span,
    pub(super) ping_timeout: Span,
}

fn number(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).expect("a default that is not zero")
}

fn default_name() -> String {
    "hub-1".into()
}

fn default_bind() -> Spanned<SocketAddr> {
    Spanned::new(0..0, SocketAddr::from(([127, 0, 0, 1], 8080)))
}

impl Default for RawCa {
    fn default() -> Self {
        Self { days: NonZeroU16::new(90).expect("not zero") }
    }
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
            max_connections: NonZeroU16::new(10_000).expect("not zero"),
            frame_bytes: Size(limits.frame_bytes),
            record_bytes: Size(limits.record_bytes),
            batch_records: NonZeroU16::new(1000).expect("not zero"),
            window_records: number(5000),
            window_bytes: Size(1 << 20),
            max_pending_commands: 1000,
            connections_per_second: number(100),
            handshakes: NonZeroU16::new(512).expect("not zero"),
            connections_per_credential: NonZeroU16::new(64).expect("not zero"),
            failures_per_minute: number(30),
            sessions_per_minute: number(60),
            enrolments_per_minute: number(600),
            messages_per_second: number(20_000),
            bytes_per_second: Size(64 << 20),
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
