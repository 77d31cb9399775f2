//! Records: what travels from a device to the hub, and the compact form in which the spool keeps
//! one.
//!
//! A record is a reading (what a device published) or an event (what the gateway itself has to say:
//! a birth, a refusal, a command's status). It is made once, at intake, in its **stored form**; the
//! spool writes those bytes as they are and the uplink encodes the wire from them, so that a
//! payload is copied once on its whole way.
//!
//! # Stored form
//!
//! ```text
//! flags      1 byte    bit 0 event, 1 time not trusted, 2 retained, 3 payload may travel as JSON text,
//!                      4 the boot's mark follows `ts`; the others are 0
//! ts         6 bytes   Unix milliseconds, little endian; a best estimate where the time is not trusted
//! [boot]     4 bytes   which boot of the board it was, little endian: see [`SinceBoot`]
//! [uptime]   6 bytes   milliseconds since that boot, little endian
//! reading:   topic length, device offset in the topic + 1 (0: the device follows), device length   LEB128 each
//!            topic, [device], payload
//! event:     JSON
//! ```
//!
//! The form has no length and no checksum of its own: the spool's frame has both.
//!
//! Pure: no IO, no clock.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::command::Status;

/// The deepest nesting of a JSON payload that travels as JSON (PROTOCOL.md, section 4).
pub const MAX_JSON_DEPTH: usize = 32;

/// The longest device name, in bytes.
pub const MAX_DEVICE_BYTES: usize = 256;

const FLAG_EVENT: u8 = 1;
const FLAG_UNSYNCED: u8 = 2;
const FLAG_RETAINED: u8 = 4;
const FLAG_JSON: u8 = 8;
const FLAG_BOOT: u8 = 16;
const KNOWN_FLAGS: u8 = 0x1f;
const HEAD_BYTES: usize = 7;
const BOOT_BYTES: usize = 10;

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
        /// `will`, `keep alive` or `disconnect`.
        reason: String,
    },
    /// Publishes that were not taken.
    Refused {
        /// Whose, where it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<String>,
        /// Why: `too_large`, `memory`, `bad_topic` ….
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
    // FNV-1a, 64 bits: small, fixed for all time, and nobody gains by a collision with another
    // device's session, for the packets would have to be the same too.
    let bytes = of.bytes().chain([0]).chain(client_id.bytes());
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

/// A record in its stored form, taken apart without a copy.
#[derive(Debug)]
pub struct Stored<'a> {
    /// When it was heard.
    pub ts: Timestamp,
    /// What it says.
    pub body: Body<'a>,
}

/// What a stored record says.
#[derive(Debug)]
pub enum Body<'a> {
    /// A device's publish.
    Reading(Reading<'a>),
    /// The gateway's own report: the JSON object of an [`Event`].
    Event(&'a str),
}

/// A stored record that can't be read: it was written by a newer version, or is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stored record is malformed")]
pub struct MalformedRecord;

/// Makes the stored form of a reading.
pub fn store_reading(ts: Timestamp, reading: &Reading<'_>) -> Bytes {
    let device_at = offset_within(reading.topic, reading.device);
    let mut out = Vec::with_capacity(
        HEAD_BYTES
            + BOOT_BYTES
            + 9
            + reading.topic.len()
            + reading.device.len()
            + reading.payload.len(),
    );
    let mut flags = 0;
    flags |= if reading.retained { FLAG_RETAINED } else { 0 };
    flags |= if reading.json { FLAG_JSON } else { 0 };
    put_head(&mut out, flags, ts);
    put_varint(&mut out, reading.topic.len());
    put_varint(&mut out, device_at.map_or(0, |at| at + 1));
    put_varint(&mut out, reading.device.len());
    out.extend_from_slice(reading.topic.as_bytes());
    if device_at.is_none() {
        out.extend_from_slice(reading.device.as_bytes());
    }
    out.extend_from_slice(reading.payload);
    out.into()
}

/// Makes the stored form of an event.
pub fn store_event(ts: Timestamp, event: &Event) -> Bytes {
    let mut out = Vec::with_capacity(128);
    put_head(&mut out, FLAG_EVENT | FLAG_JSON, ts);
    serde_json::to_writer(&mut out, event)
        .expect("an event has only string keys and writing to memory can't fail");
    out.into()
}

impl<'a> Stored<'a> {
    /// Takes a stored record apart.
    ///
    /// # Errors
    /// [`MalformedRecord`] when the bytes don't follow the form.
    pub fn read(bytes: &'a [u8]) -> Result<Self, MalformedRecord> {
        let ts = stamp(bytes).ok_or(MalformedRecord)?;
        let flags = bytes[0];
        if flags & !KNOWN_FLAGS != 0 {
            return Err(MalformedRecord);
        }
        let mut rest = &bytes[head_bytes(flags)..];
        if flags & FLAG_EVENT != 0 {
            let text = std::str::from_utf8(rest).map_err(|_| MalformedRecord)?;
            return Ok(Self { ts, body: Body::Event(text) });
        }
        let topic_len = take_varint(&mut rest)?;
        let device_at = take_varint(&mut rest)?;
        let device_len = take_varint(&mut rest)?;
        let topic = take_text(&mut rest, topic_len)?;
        let device = match device_at {
            0 => take_text(&mut rest, device_len)?,
            at => topic.get(at - 1..(at - 1).saturating_add(device_len)).ok_or(MalformedRecord)?,
        };
        let (retained, json) = (flags & FLAG_RETAINED != 0, flags & FLAG_JSON != 0);
        Ok(Self {
            ts,
            body: Body::Reading(Reading { device, topic, retained, payload: rest, json }),
        })
    }

    /// The bytes that count against the hub's window: the payload before encoding (PROTOCOL.md,
    /// section 4).
    pub fn payload_bytes(&self) -> usize {
        match &self.body {
            Body::Reading(reading) => reading.payload.len(),
            Body::Event(json) => json.len(),
        }
    }
}

/// When a stored record was heard, without looking at the rest; `None` when it is too short.
pub fn stamp(stored: &[u8]) -> Option<Timestamp> {
    let flags = *stored.first()?;
    let head = stored.get(..head_bytes(flags))?;
    let since_boot = (flags & FLAG_BOOT != 0).then(|| SinceBoot {
        boot: little_endian(&head[HEAD_BYTES..HEAD_BYTES + 4]) as u32,
        uptime_ms: little_endian(&head[HEAD_BYTES + 4..]),
    });
    let unix_ms = little_endian(&head[1..HEAD_BYTES]);
    Some(Timestamp { unix_ms, synced: flags & FLAG_UNSYNCED == 0, since_boot })
}

fn head_bytes(flags: u8) -> usize {
    if flags & FLAG_BOOT == 0 { HEAD_BYTES } else { HEAD_BYTES + BOOT_BYTES }
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
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

fn put_head(out: &mut Vec<u8>, flags: u8, ts: Timestamp) {
    let unsynced = if ts.synced { 0 } else { FLAG_UNSYNCED };
    out.push(flags | unsynced | if ts.since_boot.is_some() { FLAG_BOOT } else { 0 });
    out.extend_from_slice(&ts.unix_ms.to_le_bytes()[..6]);
    if let Some(since) = ts.since_boot {
        out.extend_from_slice(&since.boot.to_le_bytes());
        out.extend_from_slice(&since.uptime_ms.to_le_bytes()[..6]);
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(rest: &mut &[u8]) -> Result<usize, MalformedRecord> {
    let mut value = 0_usize;
    for shift in (0..28).step_by(7) {
        let (&byte, after) = rest.split_first().ok_or(MalformedRecord)?;
        *rest = after;
        value |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(MalformedRecord)
}

fn take_text<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a str, MalformedRecord> {
    let (text, after) = rest.split_at_checked(len).ok_or(MalformedRecord)?;
    *rest = after;
    std::str::from_utf8(text).map_err(|_| MalformedRecord)
}

/// Where `part` begins in `whole`, if it is found there.
fn offset_within(whole: &str, part: &str) -> Option<usize> {
    if part.is_empty() { None } else { whole.find(part) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TS: Timestamp = Timestamp { unix_ms: 1_790_000_000_123, synced: false, since_boot: None };
    const OF_A_BOOT: Timestamp = Timestamp {
        since_boot: Some(SinceBoot { boot: 0x89ab_cdef, uptime_ms: 0x0123_4567_89ab }),
        ..TS
    };

    fn reading<'a>(device: &'a str, topic: &'a str, payload: &'a [u8]) -> Reading<'a> {
        Reading { device, topic, retained: true, payload, json: is_plain_json(payload) }
    }

    #[test]
    fn a_reading_survives_its_stored_form() {
        for (device, topic) in
            [("plc-01", "devices/plc-01/telemetry"), ("hall", "sensors/x"), ("é", "a/é/b")]
        {
            for ts in [TS, OF_A_BOOT, Timestamp::synced(7)] {
                let given = reading(device, topic, br#"{"t":21.5}"#);
                let bytes = store_reading(ts, &given);
                let stored = Stored::read(&bytes).unwrap();
                assert_eq!(stored.ts, ts);
                assert_eq!(stored.payload_bytes(), 10);
                let Body::Reading(read) = stored.body else { panic!("an event?") };
                assert_eq!(read, given);
            }
        }
    }

    #[test]
    fn an_event_of_a_boot_survives_its_stored_form() {
        let bytes = store_event(OF_A_BOOT, &Event::Birth { device: "plc-01".into() });
        let stored = Stored::read(&bytes).unwrap();
        assert_eq!(stored.ts, OF_A_BOOT);
        let Body::Event(json) = stored.body else { panic!("a reading?") };
        assert_eq!(json, r#"{"kind":"birth","device":"plc-01"}"#);
    }

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
    fn a_record_of_an_older_version_is_read_and_one_of_a_newer_is_not_misread() {
        let mut older = vec![FLAG_RETAINED | FLAG_UNSYNCED, 1, 0, 0, 0, 0, 0, 3, 1, 1];
        older.extend_from_slice(b"d/eX");
        let stored = Stored::read(&older).unwrap();
        let expected = Timestamp { unix_ms: 1, synced: false, since_boot: None };
        assert_eq!(stored.ts, expected);
        assert_eq!(stored.payload_bytes(), 1);
        older[0] |= 0x20;
        assert!(Stored::read(&older).is_err());
    }

    #[test]
    fn the_stored_form_costs_little_beside_the_topic() {
        let bytes = store_reading(TS, &reading("plc-01", "devices/plc-01/telemetry", b""));
        assert_eq!(bytes.len(), 10 + "devices/plc-01/telemetry".len());
    }

    #[test]
    fn no_cut_of_a_stored_record_panics() {
        for ts in [TS, OF_A_BOOT] {
            let bytes = store_reading(ts, &reading("d", "other/topic", b"x"));
            for cut in 0..bytes.len() - 1 {
                assert!(Stored::read(&bytes[..cut]).is_err(), "cut at {cut}");
            }
        }
        assert!(Stored::read(&[0xff; 40]).is_err());
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
