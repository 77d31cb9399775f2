//! Records: what travels from a device to the hub.
//!
//! A record is a reading (what a device published) or an event (what the gateway itself has to say:
//! a birth, a refusal, a command's status). It is made once, at intake, in its **stored form**
//! (`record/stored.rs`); the spool writes those bytes as they are and the uplink encodes the wire
//! from them, so that a payload is copied once on its whole way.
//!
//! Pure: no IO, no clock.

mod stored;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use self::stored::{Body, MalformedRecord, Stored, stamp, store_event, store_reading};
use crate::command::Status;

/// The deepest nesting of a JSON payload that travels as JSON (PROTOCOL.md, section 4).
pub const MAX_JSON_DEPTH: usize = 32;

/// The longest device name, in bytes.
pub const MAX_DEVICE_BYTES: usize = 256;

/// When something was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timestamp {
    /// Milliseconds since 1970-01-01T00:00:00Z, without leap seconds; 48 bits are kept.
    pub unix_ms: u64,
    /// Whether the clock it was read from was trusted (PROTOCOL.md, section 9).
    pub synced: bool,
    /// Where it was not: by what the time can be told later.
    pub since_boot: Option<SinceBoot>,
}

/// A moment by the one clock that is right on every board: the time since the board was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SinceBoot {
    /// Which boot: 32 bits of a digest of the kernel's boot id.
    pub boot: u32,
    /// Milliseconds since then, those asleep included; 48 bits are kept.
    pub uptime_ms: u64,
}

/// A boot whose beginning is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    /// As in [`SinceBoot`].
    pub boot: u32,
    /// When it began, in Unix milliseconds.
    pub began_ms: u64,
}

impl Timestamp {
    /// A time from a clock that is trusted.
    pub const fn synced(unix_ms: u64) -> Self {
        Self { unix_ms, synced: true, since_boot: None }
    }

    /// The same moment by a clock that is trusted, if it was heard in this boot; else as it is.
    pub fn rebased(self, boot: Option<Boot>) -> Self {
        match (self.since_boot, boot) {
            (Some(since), Some(boot)) if since.boot == boot.boot => {
                Self::synced(boot.began_ms.saturating_add(since.uptime_ms))
            }
            _ => self,
        }
    }
}

/// What a device published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading<'a> {
    /// The device's name.
    pub device: &'a str,
    /// The MQTT topic name.
    pub topic: &'a str,
    /// Whether it was a retained message.
    pub retained: bool,
    /// The payload, any bytes.
    pub payload: &'a [u8],
    /// Whether `payload` may travel as JSON text; see [`is_plain_json`].
    pub json: bool,
}

/// What the gateway itself reports, in the stream `events`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// A device came.
    Birth {
        /// Its name.
        device: String,
    },
    /// A device went.
    Death {
        /// Its name.
        device: String,
        /// `will`, `keep alive`, `disconnect` or `connection lost`.
        reason: String,
    },
    /// Publishes that were not taken.
    Refused {
        /// Whose, where it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<String>,
        /// Why: `too_large`, `bad_device`, `bad_topic`, `over_share` or `forbidden`.
        reason: String,
        /// How many.
        count: u64,
    },
    /// A step of a command.
    CommandStatus(Status),
}

/// A message from a device, as a source heard it.
#[derive(Debug, Clone)]
pub struct Publish {
    /// The MQTT topic name.
    pub topic: String,
    /// Any bytes.
    pub payload: Bytes,
    /// Whether it was a retained message.
    pub retained: bool,
    /// Which source heard it.
    pub source: SourceId,
    /// What the source waits for before it acknowledges; `None` when nobody waits (QoS 0).
    pub receipt: Option<Receipt>,
    /// Which packet of a persistent session it was; `None` where the session ends with its
    /// connection.
    pub packet: Option<Packet>,
}

/// A PUBLISH packet of an MQTT session that outlives its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Tells the sessions of this gateway apart; see [`session_key`].
    pub session: u64,
    /// The packet identifier (MQTT 3.1.1, 2.3.1).
    pub id: u16,
    /// The DUP flag: the sender may have sent it before (MQTT 3.1.1, 3.3.1.1).
    pub dup: bool,
}

/// The key of a session, the same at every start: of what it is a session (a broker's address, or
/// the listener) and the client identifier.
pub fn session_key(of: &str, client_id: &str) -> u64 {
    // Nobody gains by a collision with another device's session, for the packets would have to be
    // the same too.
    fnv1a(of.bytes().chain([0]).chain(client_id.bytes()))
}

/// FNV-1a, 64 bits: small and fixed for all time. Tells contents apart that come about by
/// themselves; an attacker can make two alike.
pub fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// One of the gateway's sources, numbered from 0 in the order of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SourceId(pub u8);

/// Stands for one publish that its source has yet to acknowledge. The source makes it; everyone
/// else only hands it on, and hands it back once the publish is safe (promise 1: fsynced here, or
/// acknowledged by the hub).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Receipt {
    /// Who waits.
    pub source: SourceId,
    /// On which connection; one that has ended waits for nothing any more.
    pub connection: u64,
    /// Which publish of that connection, counted from 0 in the order of receipt.
    pub number: u64,
}

/// Whether a payload may travel as the JSON it is: RFC 8259, UTF-8, at most [`MAX_JSON_DEPTH`]
/// deep, and no unpaired surrogate. Every peer's parser takes such a text; anything else travels as
/// base64.
pub fn is_plain_json(payload: &[u8]) -> bool {
    // A parser that recurses must never see a depth that we did not look at first.
    let Some(has_escaped_surrogate) = shallow_enough(payload) else { return false };
    let Ok(raw) = serde_json::from_slice::<&RawValue>(payload) else { return false };
    // The string parser checks surrogate pairs; the skipping one above does not.
    !has_escaped_surrogate || serde_json::from_str::<serde_json::Value>(raw.get()).is_ok()
}

/// `None` when brackets nest too deep; else whether an escaped surrogate may be in it.
fn shallow_enough(payload: &[u8]) -> Option<bool> {
    let (mut depth, mut in_string, mut escaped, mut surrogate) = (0_usize, false, false, false);
    for (index, byte) in payload.iter().enumerate() {
        match byte {
            b'u' if escaped => {
                surrogate |= matches!(payload.get(index + 1), Some(b'd' | b'D'));
                escaped = false;
            }
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > MAX_JSON_DEPTH {
                    return None;
                }
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Some(surrogate)
}

/// Whether `name` can name a device: 1 to 256 bytes, no wildcard, no control character, not led by
/// `$`.
pub fn is_device_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_DEVICE_BYTES
        && !name.starts_with('$')
        && !name.contains(|c: char| matches!(c, '+' | '#') || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_A_BOOT: Timestamp = Timestamp {
        unix_ms: 1_790_000_000_123,
        synced: false,
        since_boot: Some(SinceBoot { boot: 0x89ab_cdef, uptime_ms: 0x0123_4567_89ab }),
    };

    #[test]
    fn what_was_heard_before_the_time_was_known_gets_its_time_in_the_same_boot_only() {
        let boot = |boot| Some(Boot { boot, began_ms: 1_800_000_000_000 });
        let known = OF_A_BOOT.rebased(boot(0x89ab_cdef));
        assert_eq!(known, Timestamp::synced(1_800_000_000_000 + 0x0123_4567_89ab));
        assert_eq!(OF_A_BOOT.rebased(boot(1)), OF_A_BOOT);
        assert_eq!(OF_A_BOOT.rebased(None), OF_A_BOOT);
        assert_eq!(Timestamp::synced(7).rebased(boot(0x89ab_cdef)), Timestamp::synced(7));
    }

    #[test]
    fn only_json_that_every_parser_takes_travels_as_json() {
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        for good in [
            r#"{"a":[1,2,{"b":null}]}"#,
            "1",
            " true ",
            r#""\ud83d\ude00""#,
            r#""[[[[""#,
            &deep(32),
        ] {
            assert!(is_plain_json(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            "{",
            "NaN",
            "01",
            r#""\ud83d""#,
            r#""\ude00\ud83d""#,
            "{} {}",
            "{'a':1}",
            &deep(33),
            "\u{feff}1",
        ] {
            assert!(!is_plain_json(bad.as_bytes()), "{bad}");
        }
        assert!(!is_plain_json(b"\"\xff\""));
        assert!(!is_plain_json(deep(100_000).as_bytes()));
    }
}
