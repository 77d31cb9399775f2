//! MQTT 3.1.1 packets as the listener reads and writes them.
//!
//! Framing and most packets are rumqttc's codec; in front of it stand the checks that it leaves out
//! (fixed header flags, lengths that don't fit, identifiers of 0), because the bytes come from
//! anybody. CONNECT is read here: the codec can't tell an older or newer protocol level from noise,
//! and takes no binary password.
//!
//! Must never allocate by a declared length, and never panic. Pure.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rumqttc::{LastWill, Packet, QoS, mqttbytes};
use zeroize::{Zeroize as _, Zeroizing};

use crate::topic;

/// The largest packet a connected client may send, in bytes after the fixed header: 1 MiB of
/// payload and its topic.
pub(super) const MAX_PACKET_BYTES: usize = 1024 * 1024 + 65_535 + 4;

/// The largest CONNECT, before anything is known of the client: room for a modest will, not for a
/// flood.
pub(super) const MAX_CONNECT_BYTES: usize = 128 * 1024;

/// Why a connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    /// The packet is larger than the limit.
    #[error("a packet is larger than the listener takes")]
    TooLarge,
    /// The bytes are no MQTT 3.1.1.
    #[error("malformed packet: {0}")]
    Malformed(&'static str),
    /// A packet that may not come here or now.
    #[error("unexpected packet: {0}")]
    Unexpected(&'static str),
    /// A protocol level other than 4: answered with CONNACK 0x01.
    #[error("protocol level {0}; the listener speaks MQTT 3.1.1 (level 4)")]
    Level(u8),
}

/// A user name, and the password that is to prove it. Its `Debug` hides the password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Login {
    /// Any text.
    pub(super) user: String,
    /// Any bytes; empty when there was none.
    pub(super) password: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// A CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Connect {
    /// May be empty.
    pub(super) client_id: String,
    /// Forget the earlier session, and this one at its end.
    pub(super) clean_session: bool,
    /// Seconds; 0 for none.
    pub(super) keep_alive: u16,
    /// What to publish when the connection ends without DISCONNECT.
    pub(super) will: Option<LastWill>,
    /// Who it says it is.
    pub(super) login: Option<Login>,
}

/// Takes the first packet of a connection, once it is there in full.
///
/// # Errors
/// Anything but a well-formed CONNECT.
pub(super) fn take_connect(buffer: &mut BytesMut) -> Result<Option<Connect>, Violation> {
    match buffer.first() {
        None => return Ok(None),
        Some(0x10) => {}
        Some(_) => return Err(Violation::Unexpected("the first packet is not CONNECT")),
    }
    let Some((header, frame)) = frame_of(buffer, MAX_CONNECT_BYTES)? else { return Ok(None) };
    let mut packet = buffer.split_to(frame);
    let connect = read_connect(&packet[header..]);
    // A password may be in it.
    packet.zeroize();
    connect.map(Some)
}

/// Takes the next packet of a connected client, once it is there in full.
///
/// # Errors
/// Bytes that are no MQTT, and packets that only a server sends.
pub(super) fn take_packet(buffer: &mut BytesMut) -> Result<Option<Packet>, Violation> {
    let Some((header, frame)) = frame_of(buffer, MAX_PACKET_BYTES)? else { return Ok(None) };
    let (kind, flags, remaining) = (buffer[0] >> 4, buffer[0] & 0x0f, frame - header);
    let (flags_fit, length_fits) = match kind {
        3 => (flags & 0b0110 != 0b0110, remaining >= 3),
        4 | 5 | 7 => (flags == 0, remaining == 2),
        6 => (flags == 0b0010, remaining == 2),
        8 => (flags == 0b0010, remaining >= 6),
        10 => (flags == 0b0010, remaining >= 5),
        12 | 14 => (flags == 0, remaining == 0),
        1 => return Err(Violation::Unexpected("a second CONNECT")),
        _ => return Err(Violation::Unexpected("not a client's packet")),
    };
    if !flags_fit {
        return Err(Violation::Malformed("flags of the fixed header"));
    }
    if !length_fits {
        return Err(Violation::Malformed("remaining length"));
    }
    let packet = Packet::read(buffer, MAX_PACKET_BYTES)
        .map_err(|_| Violation::Malformed("fields don't fit the packet"))?;
    check(&packet)?;
    Ok(Some(packet))
}

/// Appends a PUBLISH. A packet identifier of 0 stands for QoS 0.
pub(super) fn put_publish(out: &mut BytesMut, topic: &str, payload: &[u8], head: PublishHead) {
    let qos = if head.packet_id == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
    let identifier = if head.packet_id == 0 { 0 } else { 2 };
    let length = 2 + topic.len() + identifier + payload.len();
    out.reserve(5 + length);
    out.put_u8(0x30 | u8::from(head.dup) << 3 | (qos as u8) << 1 | u8::from(head.retain));
    let mut rest = length;
    while rest >= 0x80 {
        out.put_u8((rest % 0x80) as u8 | 0x80);
        rest /= 0x80;
    }
    out.put_u8(rest as u8);
    // A topic came in by a length of 16 bits, so its length fits them.
    out.put_u16(topic.len() as u16);
    out.put_slice(topic.as_bytes());
    if head.packet_id != 0 {
        out.put_u16(head.packet_id);
    }
    out.put_slice(payload);
}

/// What stands in front of a PUBLISH's topic and payload.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PublishHead {
    /// 0: QoS 0; else QoS 1.
    pub(super) packet_id: u16,
    /// It was sent before.
    pub(super) dup: bool,
    /// It is a retained message.
    pub(super) retain: bool,
}

/// Appends PUBACK, PUBREC, PUBCOMP or UNSUBACK, by the packet's first byte.
pub(super) fn put_ack(out: &mut BytesMut, first_byte: u8, packet_id: u16) {
    out.put_slice(&[first_byte, 2]);
    out.put_u16(packet_id);
}

/// PUBACK's first byte.
pub(super) const PUBACK: u8 = 0x40;
/// PUBREC's first byte.
pub(super) const PUBREC: u8 = 0x50;
/// PUBCOMP's first byte.
pub(super) const PUBCOMP: u8 = 0x70;
/// UNSUBACK's first byte.
pub(super) const UNSUBACK: u8 = 0xb0;

/// Appends a SUBACK; `None` stands for a refused filter.
pub(super) fn put_suback(out: &mut BytesMut, packet_id: u16, granted: &[Option<QoS>]) {
    use mqttbytes::v4::{SubAck, SubscribeReasonCode};
    let codes = granted
        .iter()
        .map(|qos| qos.map_or(SubscribeReasonCode::Failure, SubscribeReasonCode::Success));
    SubAck::new(packet_id, codes.collect())
        .write(out)
        .expect("a SUBACK is shorter than the SUBSCRIBE it answers, whose length was valid");
}

/// Where the variable header begins and the frame ends, once the whole frame is there.
fn frame_of(buffer: &BytesMut, max: usize) -> Result<Option<(usize, usize)>, Violation> {
    let mut remaining = 0_usize;
    for index in 0..4 {
        let Some(&byte) = buffer.get(1 + index) else { return Ok(None) };
        remaining |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let (header, frame) = (2 + index, 2 + index + remaining);
            return match remaining {
                _ if remaining > max => Err(Violation::TooLarge),
                _ if buffer.len() < frame => Ok(None),
                _ => Ok(Some((header, frame))),
            };
        }
    }
    Err(Violation::Malformed("remaining length is longer than four bytes"))
}

fn check(packet: &Packet) -> Result<(), Violation> {
    let zero = match packet {
        Packet::Publish(publish) if !topic::is_valid_name(&publish.topic) => {
            return Err(Violation::Malformed("topic name is empty or has a wildcard or NUL"));
        }
        Packet::Subscribe(subscribe) => {
            if !subscribe.filters.iter().all(|filter| topic::is_valid_filter(&filter.path)) {
                return Err(Violation::Malformed("topic filter"));
            }
            subscribe.pkid == 0
        }
        Packet::Unsubscribe(unsubscribe) => unsubscribe.pkid == 0 || unsubscribe.topics.is_empty(),
        Packet::PubAck(ack) => ack.pkid == 0,
        Packet::PubRec(rec) => rec.pkid == 0,
        Packet::PubRel(rel) => rel.pkid == 0,
        Packet::PubComp(comp) => comp.pkid == 0,
        _ => false,
    };
    if zero { Err(Violation::Malformed("packet identifier 0")) } else { Ok(()) }
}

fn read_connect(mut body: &[u8]) -> Result<Connect, Violation> {
    let name = take_field(&mut body)?;
    let level = body.try_get_u8().map_err(|_| SHORT)?;
    match (name, level) {
        (b"MQTT", 4) => {}
        (b"MQTT", _) | (b"MQIsdp", 3) => return Err(Violation::Level(level)),
        _ => return Err(Violation::Malformed("protocol name")),
    }
    let flags = body.try_get_u8().map_err(|_| SHORT)?;
    let keep_alive = body.try_get_u16().map_err(|_| SHORT)?;
    let (will_qos, has_will) = ((flags >> 3) & 3, flags & 0b100 != 0);
    let (has_user, has_password) = (flags & 0x80 != 0, flags & 0x40 != 0);
    if flags & 1 != 0
        || will_qos == 3
        || (!has_will && flags & 0b0011_1000 != 0)
        || (has_password && !has_user)
    {
        return Err(Violation::Malformed("CONNECT flags"));
    }
    let client_id = take_text(&mut body)?.to_owned();
    let will = if has_will {
        let topic = take_text(&mut body)?;
        if !topic::is_valid_name(topic) {
            return Err(Violation::Malformed("topic of the will"));
        }
        let topic = topic.to_owned();
        let message = Bytes::copy_from_slice(take_field(&mut body)?);
        let qos = mqttbytes::qos(will_qos).map_err(|_| Violation::Malformed("QoS of the will"))?;
        Some(LastWill { topic, message, qos, retain: flags & 0b0010_0000 != 0 })
    } else {
        None
    };
    let user = has_user.then(|| take_text(&mut body)).transpose()?;
    let password = if has_password { take_field(&mut body)? } else { b"" };
    let login = user
        .map(|user| Login { user: user.to_owned(), password: Zeroizing::new(password.to_vec()) });
    if !body.is_empty() {
        return Err(Violation::Malformed("bytes after CONNECT's last field"));
    }
    Ok(Connect { client_id, clean_session: flags & 0b10 != 0, keep_alive, will, login })
}

const SHORT: Violation = Violation::Malformed("CONNECT ends too early");

fn take_field<'a>(body: &mut &'a [u8]) -> Result<&'a [u8], Violation> {
    let length = usize::from(body.try_get_u16().map_err(|_| SHORT)?);
    let (field, rest) = body.split_at_checked(length).ok_or(SHORT)?;
    *body = rest;
    Ok(field)
}

fn take_text<'a>(body: &mut &'a [u8]) -> Result<&'a str, Violation> {
    match std::str::from_utf8(take_field(body)?) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(Violation::Malformed("text is not UTF-8 or has a NUL")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect_bytes() -> BytesMut {
        let mut connect = mqttbytes::v4::Connect::new("plc-01");
        connect.last_will = Some(LastWill::new("gone/plc-01", "bye", QoS::AtLeastOnce, true));
        connect.set_login("user", "secret");
        let mut bytes = BytesMut::new();
        connect.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_connect_is_read_once_it_is_whole() {
        let whole = connect_bytes();
        for cut in 0..whole.len() {
            assert_eq!(take_connect(&mut BytesMut::from(&whole[..cut])), Ok(None), "{cut}");
        }
        let connect = take_connect(&mut whole.clone()).unwrap().unwrap();
        assert_eq!((connect.client_id.as_str(), connect.clean_session), ("plc-01", true));
        assert_eq!(connect.will.unwrap().topic, "gone/plc-01");
        let login = connect.login.unwrap();
        assert_eq!((login.user.as_str(), login.password.as_slice()), ("user", &b"secret"[..]));
        assert_eq!(format!("{login:?}"), "Login { user: \"user\", .. }");
    }

    #[test]
    fn a_connect_of_another_level_or_shape_is_refused() {
        let edited = |at: usize, byte: u8| {
            let mut bytes = connect_bytes();
            bytes[at] = byte;
            take_connect(&mut bytes)
        };
        assert_eq!(edited(8, 5), Err(Violation::Level(5)));
        for first in [0x00, 0x20, 0x30, 0x82, 0xc0, 0xe0, 0xf0] {
            assert!(matches!(edited(0, first), Err(Violation::Unexpected(_))), "{first:x}");
        }
        assert!(matches!(edited(0, 0x11), Err(Violation::Unexpected(_))), "its flags");
        assert!(matches!(edited(4, b'X'), Err(Violation::Malformed(_))));
        assert!(matches!(edited(9, 0b0100_0110), Err(Violation::Malformed(_))));
        assert!(matches!(edited(13, 200), Err(Violation::Malformed(_))));
        let old = BytesMut::from(&b"\x10\x0e\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x00"[..]);
        assert_eq!(take_connect(&mut old.clone()), Err(Violation::Level(3)));
        let mut longer = connect_bytes();
        longer[1] += 1;
        longer.put_u8(0);
        assert!(matches!(take_connect(&mut longer), Err(Violation::Malformed(_))));
    }

    #[test]
    fn hostile_packets_are_refused() {
        let cases: [(&[u8], &str); 17] = [
            (b"\x30\x02\x00\x00", "zero-length topic"),
            (b"\x30\x03\x00\x01#", "wildcard"),
            (b"\x30\x03\x00\x01\xff", "not UTF-8"),
            (b"\x30\x05\x00\x03a\0b", "NUL"),
            (b"\x82\x08\x00\x01\x00\x03a\0b\x00", "NUL in a filter"),
            (b"\x30\x03\x00\x09a", "length mismatch"),
            (b"\x32\x04\x00\x01a\x00", "half an identifier"),
            (b"\x82\x06\x00\x01\x00\x09a\x00", "length mismatch in a SUBSCRIBE"),
            (b"\x82\x05\x00\x01\x00\x00\x00", "zero-length filter"),
            (b"\x82\x02\x00\x01", "a SUBSCRIBE to nothing"),
            (b"\xa2\x02\x00\x01", "an UNSUBSCRIBE from nothing"),
            (b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01z", "a second CONNECT"),
            (b"\x36\x05\x00\x01a\x00\x01", "QoS 3"),
            (b"\x32\x05\x00\x01a\x00\x00", "identifier 0"),
            (b"\x80\x06\x00\x01\x00\x01a\x00", "flags"),
            (b"\x40\x03\x00\x01\x00", "PUBACK too long"),
            (b"\xd0\x00", "a server's packet"),
        ];
        for (bytes, what) in cases {
            assert!(take_packet(&mut BytesMut::from(bytes)).is_err(), "{what}");
        }
        let declared = b"\x30\xff\xff\xff\x7f";
        assert_eq!(take_packet(&mut BytesMut::from(&declared[..])), Err(Violation::TooLarge));
    }

    #[test]
    fn no_bytes_make_the_reader_panic() {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for round in 0..60_000 {
            let mut bytes: BytesMut =
                if round % 3 == 0 { connect_bytes() } else { BytesMut::new() };
            let len = random() as usize % 40;
            bytes.extend((0..len).map(|_| random() as u8));
            if round % 3 == 1 && len > 2 {
                bytes[1] = (len - 2) as u8;
            }
            for _ in 0..random() % 4 {
                let at = random() as usize % bytes.len().max(1);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random() as u8;
                }
            }
            let _ = take_connect(&mut bytes.clone());
            while let Ok(Some(_)) = take_packet(&mut bytes) {}
        }
    }

    #[test]
    fn what_is_put_is_what_the_codec_reads() {
        let mut out = BytesMut::new();
        let head = PublishHead { packet_id: 9, dup: true, retain: true };
        put_publish(&mut out, "a/b", &[7; 300], head);
        put_publish(&mut out, "a/b", b"", PublishHead::default());
        put_ack(&mut out, PUBCOMP, 3);
        put_suback(&mut out, 4, &[Some(QoS::AtLeastOnce), None]);
        let mut read = || Packet::read(&mut out, MAX_PACKET_BYTES).unwrap();
        let Packet::Publish(publish) = read() else { panic!("no PUBLISH") };
        assert_eq!((publish.pkid, publish.dup, publish.retain), (9, true, true));
        assert_eq!((publish.topic.as_str(), publish.payload.len()), ("a/b", 300));
        let Packet::Publish(publish) = read() else { panic!("no PUBLISH") };
        assert_eq!((publish.qos, publish.payload.len()), (QoS::AtMostOnce, 0));
        assert!(matches!(read(), Packet::PubComp(comp) if comp.pkid == 3));
        assert!(matches!(read(), Packet::SubAck(ack) if ack.return_codes.len() == 2));
    }
}
