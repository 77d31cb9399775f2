//! The compact form in which the spool keeps a record.
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

use super::{Event, Reading, SinceBoot, Timestamp};

const FLAG_EVENT: u8 = 1;
const FLAG_UNSYNCED: u8 = 2;
const FLAG_RETAINED: u8 = 4;
const FLAG_JSON: u8 = 8;
const FLAG_BOOT: u8 = 16;
const KNOWN_FLAGS: u8 = 0x1f;
const HEAD_BYTES: usize = 7;
const BOOT_BYTES: usize = 10;

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
    use crate::record::is_plain_json;

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
}
