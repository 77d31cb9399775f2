//! The messages, as checked values.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::number;
use crate::command::{CommandId, State};

/// The longest gateway id, in bytes.
pub const MAX_GATEWAY_BYTES: usize = 64;

/// The longest stream name, in bytes.
const MAX_STREAM_BYTES: usize = 32;

/// Which mode may be used towards a server (section 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A hub that speaks the protocol.
    Managed,
    /// Any WebSocket server.
    Plain,
    /// Managed if the server answers so, else plain.
    Auto,
}

/// Whether `id` can name a gateway, for either side and in any credential: 1 to 64 of `A-Z a-z 0-9
/// - _ . :` (section 3).
pub fn is_gateway_id(id: &str) -> bool {
    (1..=MAX_GATEWAY_BYTES).contains(&id.len())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':'))
}

/// A stream: an ordered sequence of records of one gateway (section 3). 1 to 32 of `a-z 0-9 - _`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StreamName(std::sync::Arc<str>);

impl StreamName {
    /// Births, deaths, refusals and command states: goes before every other stream.
    pub fn events() -> Self {
        Self("events".into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for StreamName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let fits = (1..=MAX_STREAM_BYTES).contains(&name.len())
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_'));
        if fits {
            Ok(Self(name.into()))
        } else {
            Err(format!("{name:?} is not a stream name: 1 to 32 of a-z 0-9 - _"))
        }
    }
}

impl From<StreamName> for String {
    fn from(name: StreamName) -> Self {
        name.0.as_ref().into()
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// 64 random bits that no two starts of a gateway share, so that no sequence number is ever used
/// twice (section 3). On the wire 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Epoch(pub u64);

impl TryFrom<String> for Epoch {
    type Error = String;

    fn try_from(hex: String) -> Result<Self, Self::Error> {
        match u64::from_str_radix(&hex, 16) {
            Ok(bits) if hex.len() == 16 && !hex.starts_with('+') => Ok(Self(bits)),
            _ => Err(format!("{hex:?} is not an epoch: 16 hexadecimal digits")),
        }
    }
}

impl From<Epoch> for String {
    fn from(epoch: Epoch) -> Self {
        epoch.to_string()
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a gateway says first (section 3).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello {
    /// The gateway's id: the credential's subject.
    pub gateway: String,
    /// Program and version.
    #[serde(default)]
    pub agent: String,
    /// The kernel's boot id.
    #[serde(default)]
    pub boot_id: String,
    /// The gateway's idea of the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Clock>,
    /// What the gateway takes.
    #[serde(default)]
    pub limits: GatewayLimits,
    /// Optional features offered.
    #[serde(default)]
    pub features: Vec<String>,
    /// Every epoch of which something is still held, and the current ones, oldest first.
    pub streams: Vec<HeldEpoch>,
    /// `streams` leaves some out: the hub is to forget none for not being listed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// A clock reading.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Clock {
    /// Unix milliseconds.
    pub ts: u64,
    /// Whether the gateway trusts it (section 9).
    pub trusted: bool,
}

/// What the gateway takes from the hub.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayLimits {
    /// The largest message, in bytes.
    #[serde(deserialize_with = "number::bound")]
    pub message_bytes: usize,
    /// How many commands may be under way.
    #[serde(deserialize_with = "number::bound")]
    pub inflight_commands: usize,
}

impl Default for GatewayLimits {
    fn default() -> Self {
        Self { message_bytes: super::DEFAULT_MESSAGE_BYTES, inflight_commands: 32 }
    }
}

/// One epoch of a stream, as the gateway holds it: `first` up to and without `next`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldEpoch {
    /// The stream.
    pub stream: StreamName,
    /// The epoch.
    pub epoch: Epoch,
    /// The oldest record still held.
    pub first: u64,
    /// One past the newest.
    pub next: u64,
}

/// The hub's answer to `hello` (section 3).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Welcome {
    /// Names this session in both sides' logs.
    #[serde(default)]
    pub session: String,
    /// The hub's node.
    #[serde(default)]
    pub hub: String,
    /// The hub's clock, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "number::time")]
    pub time: Option<u64>,
    /// What the hub takes.
    #[serde(default)]
    pub limits: HubLimits,
    /// Optional features that both sides have.
    #[serde(default)]
    pub features: Vec<String>,
    /// When the credential ends, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "number::time")]
    pub token_expires: Option<u64>,
    /// The position of every epoch in `hello`.
    pub streams: Vec<Position>,
}

/// What the hub takes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(default)]
pub struct HubLimits {
    /// The largest message, in bytes.
    #[serde(deserialize_with = "number::bound")]
    pub frame_bytes: usize,
    /// The largest record payload, in bytes.
    #[serde(deserialize_with = "number::bound")]
    pub record_bytes: usize,
    /// The most records in one `data`.
    #[serde(deserialize_with = "number::bound")]
    pub batch_records: usize,
}

impl Default for HubLimits {
    fn default() -> Self {
        Self {
            frame_bytes: super::DEFAULT_MESSAGE_BYTES,
            record_bytes: super::DEFAULT_RECORD_BYTES,
            batch_records: 1000,
        }
    }
}

/// How much may be outstanding in a stream, all its epochs together, counted from `acked` (section
/// 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Records; 0 pauses the stream.
    pub records: u64,
    /// Payload bytes before encoding.
    pub bytes: u64,
}

impl Default for Window {
    /// What a hub that names no window is taken to mean.
    fn default() -> Self {
        Self { records: 1000, bytes: 1 << 20 }
    }
}

/// How far the hub is in one epoch: `acked` is cumulative and inclusive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The stream.
    pub stream: StreamName,
    /// The epoch.
    pub epoch: Epoch,
    /// The last record of the epoch that the hub holds, with all before it; at most 2^53.
    #[serde(deserialize_with = "number::position")]
    pub acked: u64,
    /// What may be outstanding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

/// Consecutive records of an epoch (section 4).
#[derive(Debug, Clone)]
pub struct Data {
    /// The stream.
    pub stream: StreamName,
    /// The epoch.
    pub epoch: Epoch,
    /// The first record's number.
    pub seq: u64,
    /// The records.
    pub records: Vec<WireRecord>,
}

/// A record as it came off the wire.
#[derive(Debug, Clone)]
pub struct WireRecord {
    /// When it was heard, Unix milliseconds.
    pub ts: u64,
    /// The clock was not trusted.
    pub unsynced: bool,
    /// What it says.
    pub body: WireBody,
}

/// What a record off the wire says.
#[derive(Debug, Clone)]
pub enum WireBody {
    /// A device's publish.
    Reading {
        /// The device.
        device: String,
        /// The topic; empty when the peer gave none.
        topic: String,
        /// Whether it was a retained message.
        retained: bool,
        /// The payload.
        payload: Payload,
    },
    /// The gateway's own report: the record's whole JSON object, `kind` and `ts` included.
    Event {
        /// `birth`, `death`, `refused`, `command_status`, or one that this version does not know.
        kind: String,
        /// The object.
        json: Box<RawValue>,
    },
}

/// A reading's payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// The device's own JSON, byte for byte.
    Json(String),
    /// Any other bytes.
    Bytes(Bytes),
}

/// Records `from` up to and without `to` will never come (section 4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skip {
    /// The stream.
    pub stream: StreamName,
    /// The epoch.
    pub epoch: Epoch,
    /// The first record lost.
    pub from: u64,
    /// One past the last.
    pub to: u64,
    /// `evicted`, `damaged`, `expired`, `too_large` or `poison`.
    pub reason: String,
}

/// The hub holds everything up to `acked` (section 4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Which epoch, and how far.
    #[serde(flatten)]
    pub position: Position,
    /// Records that were refused for good; they are acked too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<(u64, String)>,
}

/// A command as the hub sends it (section 5).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CommandMessage {
    /// Given by the hub.
    pub id: CommandId,
    /// The device it is for.
    pub device: String,
    /// What to do.
    pub name: String,
    /// Any JSON; `null` when absent.
    #[serde(default = "no_params")]
    pub params: Box<RawValue>,
    /// How long it may still be delivered, recomputed at every send.
    pub ttl_ms: u64,
    /// How long the device has to answer.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    /// Whether it may be delivered twice.
    #[serde(default)]
    pub idempotent: bool,
    /// The last status the hub holds.
    #[serde(default)]
    pub state: Option<HubState>,
}

/// A command's last status, as the hub holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubState {
    /// Its number, so small that a next one can always rise above it.
    #[serde(deserialize_with = "bounded_n")]
    pub n: u32,
    /// Its state.
    pub state: State,
}

/// The largest number of a status (PROTOCOL.md, section 5).
const MAX_STATUS_N: u32 = i32::MAX as u32;

fn bounded_n<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let n = u32::deserialize(deserializer)?;
    if n > MAX_STATUS_N {
        let why = format!("state.n {n} is too large; at most {MAX_STATUS_N}");
        return Err(serde::de::Error::custom(why));
    }
    Ok(n)
}

/// The parameters of a command that has none.
pub fn no_params() -> Box<RawValue> {
    RawValue::from_string("null".into()).expect("null is JSON")
}

/// How long a device may take for its answer where the command does not say.
pub fn default_timeout_ms() -> u64 {
    10_000
}

/// Something is wrong; either side (section 6).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorMessage {
    /// `gap`, `bad_message`, ….
    pub code: String,
    /// For a person.
    #[serde(default)]
    pub message: String,
    /// What it is about.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// With `gap`: where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamName>,
    /// With `gap`: where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// With `gap`: what the hub expects next, from 1 to 2^53.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "number::seq")]
    pub expected: Option<u64>,
    /// When the hub ends the session for it: when to come back, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl ErrorMessage {
    /// An error that concerns the whole session.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            reference: None,
            stream: None,
            epoch: None,
            expected: None,
            retry_after_ms: None,
        }
    }

    /// A hole: the hub expects `expected` next (section 4).
    pub fn gap(stream: StreamName, epoch: Epoch, expected: u64) -> Self {
        Self {
            stream: Some(stream),
            epoch: Some(epoch),
            expected: Some(expected),
            ..Self::new("gap", "")
        }
    }
}

/// The hub is about to close; come back after `retry_after_ms + rand(0, spread_ms)` (section 6).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Drain {
    /// Milliseconds to wait at least.
    #[serde(default)]
    pub retry_after_ms: u64,
    /// Milliseconds to spread over.
    #[serde(default)]
    pub spread_ms: u64,
    /// Where to go instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// What a gateway sends.
#[derive(Debug, Clone)]
pub enum GatewayMessage {
    /// The first message.
    Hello(Hello),
    /// Records.
    Data(Data),
    /// Records that will never come.
    Skip(Skip),
    /// Something is wrong.
    Error(ErrorMessage),
    /// A fresh token on the live link.
    Auth {
        /// The token. Never logged.
        token: Token,
    },
}

/// A token off the wire; its `Debug` shows nothing.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(pub String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// What a hub sends.
#[derive(Debug, Clone)]
pub enum HubMessage {
    /// The session is on.
    Welcome(Welcome),
    /// Records are durable at the hub.
    Ack(Ack),
    /// Do this.
    Command(CommandMessage),
    /// Don't, if it is not delivered yet.
    Cancel {
        /// Which command.
        id: CommandId,
    },
    /// Something is wrong.
    Error(ErrorMessage),
    /// The hub will close.
    Drain(Drain),
    /// The fresh token was taken.
    AuthOk {
        /// When it ends, Unix milliseconds.
        token_expires: Option<u64>,
    },
}
