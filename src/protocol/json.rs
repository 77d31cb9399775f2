//! JSON in text frames (`fieldgate.v1.json`), and the text frames of plain mode (PROTOCOL.md,
//! sections 2 and 8).

use std::{borrow::Cow, fmt::Write as _};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeMap as _};
use serde_json::value::RawValue;

use super::{message::*, number};
use crate::{
    command::CommandId,
    record::{Body, Stored},
};

/// A message that was understood, or one that needn't be.
#[derive(Debug, Clone)]
pub enum Decoded<M> {
    /// A message of this version.
    Message(M),
    /// Of a type that this version does not know, to be ignored (section 1).
    Unknown(String),
    /// Of a type that this version does not know and must: close 4010 (section 1).
    MustUnderstand(String),
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(default)]
    must: bool,
}

/// Reads a message of the gateway's.
///
/// # Errors
/// Not JSON, no `type`, or a known type whose members don't fit.
pub fn from_gateway(text: &str) -> Result<Decoded<GatewayMessage>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Auth {
        token: Token,
    }
    let envelope: Envelope = serde_json::from_str(text)?;
    Ok(Decoded::Message(match envelope.kind.as_ref() {
        "hello" => GatewayMessage::Hello(serde_json::from_str(text)?),
        "data" => GatewayMessage::Data(serde_json::from_str::<RawData>(text)?.into_data()?),
        "skip" => GatewayMessage::Skip(serde_json::from_str(text)?),
        "error" => GatewayMessage::Error(serde_json::from_str(text)?),
        "auth" => GatewayMessage::Auth { token: serde_json::from_str::<Auth>(text)?.token },
        _ => return Ok(envelope.unknown()),
    }))
}

/// Reads a message of the hub's.
///
/// # Errors
/// Not JSON, no `type`, or a known type whose members don't fit.
pub fn from_hub(text: &str) -> Result<Decoded<HubMessage>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Cancel {
        id: CommandId,
    }
    #[derive(Deserialize)]
    struct AuthOk {
        #[serde(default, deserialize_with = "number::time")]
        token_expires: Option<u64>,
    }
    let envelope: Envelope = serde_json::from_str(text)?;
    Ok(Decoded::Message(match envelope.kind.as_ref() {
        "welcome" => HubMessage::Welcome(serde_json::from_str(text)?),
        "ack" => HubMessage::Ack(serde_json::from_str(text)?),
        "command" => HubMessage::Command(serde_json::from_str(text)?),
        "cancel" => HubMessage::Cancel { id: serde_json::from_str::<Cancel>(text)?.id },
        "error" => HubMessage::Error(serde_json::from_str(text)?),
        "drain" => HubMessage::Drain(serde_json::from_str(text)?),
        "auth_ok" => HubMessage::AuthOk {
            token_expires: serde_json::from_str::<AuthOk>(text)?.token_expires,
        },
        _ => return Ok(envelope.unknown()),
    }))
}

impl Envelope<'_> {
    fn unknown<M>(self) -> Decoded<M> {
        if self.must {
            Decoded::MustUnderstand(self.kind.into())
        } else {
            Decoded::Unknown(self.kind.into())
        }
    }
}

/// A message under its `type`.
#[derive(Serialize)]
struct Typed<'a, M> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(flatten)]
    members: M,
}

fn typed(kind: &str, members: impl Serialize) -> String {
    serde_json::to_string(&Typed { kind, members }).expect("messages have string keys only")
}

impl GatewayMessage {
    /// The text of the frame.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Auth<'a> {
            token: &'a Token,
        }
        match self {
            Self::Hello(hello) => typed("hello", hello),
            Self::Data(data) => data.to_json(),
            Self::Skip(skip) => typed("skip", skip),
            Self::Error(error) => typed("error", error),
            Self::Auth { token } => typed("auth", Auth { token }),
        }
    }
}

impl HubMessage {
    /// The text of the frame.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Cancel<'a> {
            id: &'a CommandId,
        }
        #[derive(Serialize)]
        struct AuthOk {
            #[serde(skip_serializing_if = "Option::is_none")]
            token_expires: Option<u64>,
        }
        match self {
            Self::Welcome(welcome) => typed("welcome", welcome),
            Self::Ack(ack) => typed("ack", ack),
            // `flatten` can't carry raw JSON, so that this one names its type itself.
            Self::Command(command) => {
                let members =
                    serde_json::to_string(command).expect("messages have string keys only");
                format!("{{\"type\":\"command\",{}", &members[1..])
            }
            Self::Cancel { id } => typed("cancel", Cancel { id }),
            Self::Error(error) => typed("error", error),
            Self::Drain(drain) => typed("drain", drain),
            Self::AuthOk { token_expires } => {
                typed("auth_ok", AuthOk { token_expires: *token_expires })
            }
        }
    }
}

#[derive(Deserialize)]
struct RawData<'a> {
    stream: StreamName,
    epoch: Epoch,
    seq: u64,
    #[serde(borrow)]
    records: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawRecord<'a> {
    ts: u64,
    #[serde(default)]
    unsynced: bool,
    #[serde(default)]
    retained: bool,
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    device: String,
    #[serde(default)]
    topic: String,
    #[serde(borrow, default, deserialize_with = "present")]
    payload: Option<&'a RawValue>,
    #[serde(borrow, default)]
    payload_base64: Option<Cow<'a, str>>,
}

/// `null` is a payload like any other; only an absent one is none.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl RawData<'_> {
    fn into_data(self) -> Result<Data, serde_json::Error> {
        let records = self.records.into_iter().map(read_record).collect::<Result<_, _>>()?;
        Ok(Data { stream: self.stream, epoch: self.epoch, seq: self.seq, records })
    }
}

fn read_record(raw: &RawValue) -> Result<WireRecord, serde_json::Error> {
    use serde::de::Error as _;
    let record: RawRecord = serde_json::from_str(raw.get())?;
    let body = match (record.kind, record.payload, record.payload_base64) {
        (Some(kind), _, _) => WireBody::Event { kind, json: raw.to_owned() },
        (None, Some(json), None) => {
            let payload = Payload::Json(json.get().into());
            WireBody::Reading {
                device: record.device,
                topic: record.topic,
                retained: record.retained,
                payload,
            }
        }
        (None, None, Some(text)) => {
            let bytes = BASE64.decode(text.as_bytes()).map_err(|_| {
                serde_json::Error::custom("payload_base64 is not base64 (RFC 4648, section 4)")
            })?;
            let payload = Payload::Bytes(bytes.into());
            WireBody::Reading {
                device: record.device,
                topic: record.topic,
                retained: record.retained,
                payload,
            }
        }
        _ => {
            return Err(serde_json::Error::custom(
                "a record has one of kind, payload, payload_base64",
            ));
        }
    };
    Ok(WireRecord { ts: record.ts, unsynced: record.unsynced, body })
}

impl Data {
    fn to_json(&self) -> String {
        let records: Vec<&WireRecord> = self.records.iter().collect();
        let records = serde_json::to_string(&records).expect("records have string keys only");
        let mut text = String::with_capacity(records.len() + 96);
        open_data(&mut text, &self.stream, self.epoch, self.seq);
        text.push_str(&records[1..]);
        text.push('}');
        text
    }
}

impl Serialize for WireRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (device, topic, retained, payload) = match &self.body {
            WireBody::Event { json, .. } => return json.serialize(serializer),
            WireBody::Reading { device, topic, retained, payload } => {
                (device, topic, retained, payload)
            }
        };
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("ts", &self.ts)?;
        if self.unsynced {
            map.serialize_entry("unsynced", &true)?;
        }
        map.serialize_entry("device", device)?;
        map.serialize_entry("topic", topic)?;
        if *retained {
            map.serialize_entry("retained", &true)?;
        }
        match payload {
            Payload::Json(json) => map.serialize_entry("payload", &as_raw(json))?,
            Payload::Bytes(bytes) => {
                map.serialize_entry("payload_base64", &BASE64.encode(bytes))?
            }
        }
        map.end()
    }
}

fn as_raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.into()).expect("a payload that was checked to be JSON")
}

fn open_data(text: &mut String, stream: &StreamName, epoch: Epoch, seq: u64) {
    write!(text, "{{\"type\":\"data\",\"stream\":\"{stream}\",\"epoch\":\"{epoch}\",\"seq\":{seq},\"records\":[")
        .expect("writing to memory can't fail");
}

/// Writes one `data` message, record by record, from their stored form.
#[derive(Debug)]
pub struct BatchWriter {
    text: String,
    records: u64,
}

impl BatchWriter {
    /// Opens the message whose first record is `seq`.
    pub fn new(stream: &StreamName, epoch: Epoch, seq: u64, capacity: usize) -> Self {
        let mut text = String::with_capacity(capacity);
        open_data(&mut text, stream, epoch, seq);
        Self { text, records: 0 }
    }

    /// Adds the next record.
    pub fn push(&mut self, record: &Stored<'_>) {
        if self.records > 0 {
            self.text.push(',');
        }
        self.records += 1;
        self.text.push('{');
        write_record(&mut self.text, record);
    }

    /// How many records are in it.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// How long the message has become, in bytes.
    pub fn len(&self) -> usize {
        self.text.len() + 2
    }

    /// Whether no record is in it yet.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Closes the message.
    pub fn finish(mut self) -> String {
        self.text.push_str("]}");
        self.text
    }
}

/// Writes the members of a record and its closing brace; the caller has opened the object.
pub fn write_record(text: &mut String, record: &Stored<'_>) {
    text.push_str("\"ts\":");
    text.push_str(itoa::Buffer::new().format(record.ts.unix_ms));
    if !record.ts.synced {
        text.push_str(",\"unsynced\":true");
    }
    match &record.body {
        Body::Event(json) => {
            text.push(',');
            text.push_str(json.strip_prefix('{').unwrap_or("}"));
        }
        Body::Reading(reading) => {
            text.push_str(",\"device\":");
            push_string(text, reading.device);
            text.push_str(",\"topic\":");
            push_string(text, reading.topic);
            if reading.retained {
                text.push_str(",\"retained\":true");
            }
            match std::str::from_utf8(reading.payload) {
                Ok(json) if reading.json => {
                    text.push_str(",\"payload\":");
                    text.push_str(json);
                }
                _ => {
                    text.push_str(",\"payload_base64\":\"");
                    BASE64.encode_string(reading.payload, text);
                    text.push('"');
                }
            }
            text.push('}');
        }
    }
}

fn push_string(text: &mut String, value: &str) {
    if value.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\') {
        text.push('"');
        text.push_str(value);
        text.push('"');
    } else {
        text.push_str(&serde_json::to_string(value).expect("a string is JSON"));
    }
}

/// The text frame of one record in plain mode (section 8).
pub fn plain_record(
    gateway: &str,
    stream: &StreamName,
    epoch: Epoch,
    seq: u64,
    record: &Stored<'_>,
) -> String {
    let kind = match record.body {
        Body::Reading(_) => "telemetry",
        Body::Event(_) => "event",
    };
    let mut text = String::with_capacity(record.payload_bytes() + 256);
    open_plain(&mut text, kind, gateway, stream, epoch);
    write!(text, ",\"seq\":{seq},").expect("writing to memory can't fail");
    write_record(&mut text, record);
    text
}

/// The text frame of a skip in plain mode (section 8).
pub fn plain_skip(gateway: &str, skip: &Skip) -> String {
    let mut text = String::new();
    open_plain(&mut text, "skip", gateway, &skip.stream, skip.epoch);
    write!(text, ",\"from\":{},\"to\":{},\"reason\":", skip.from, skip.to)
        .expect("writing to memory can't fail");
    push_string(&mut text, &skip.reason);
    text.push('}');
    text
}

fn open_plain(text: &mut String, kind: &str, gateway: &str, stream: &StreamName, epoch: Epoch) {
    write!(text, "{{\"type\":\"{kind}\",\"gateway\":").expect("writing to memory can't fail");
    push_string(text, gateway);
    write!(text, ",\"stream\":\"{stream}\",\"epoch\":\"{epoch}\"")
        .expect("writing to memory can't fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Event, Reading, Timestamp, store_event, store_reading};

    const TS: Timestamp = Timestamp::synced(1_790_000_000_100);

    fn stored(device: &str, payload: &[u8]) -> bytes::Bytes {
        let topic = format!("devices/{device}/telemetry");
        let json = crate::record::is_plain_json(payload);
        store_reading(TS, &Reading { device, topic: &topic, retained: false, payload, json })
    }

    fn gateway_message(text: &str) -> GatewayMessage {
        match from_gateway(text).unwrap() {
            Decoded::Message(message) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_batch_reads_as_it_was_written() {
        let epoch = Epoch(0x51d0);
        let mut batch = BatchWriter::new(&StreamName::events(), epoch, 7, 256);
        let records = [
            stored("plc-01", br#"{ "t": 21.50 }"#),
            stored("a\"b", b"\xff\x00"),
            stored("n", b"null"),
            store_event(TS, &Event::Birth { device: "plc-01".into() }),
        ];
        for bytes in &records {
            batch.push(&Stored::read(bytes).unwrap());
        }
        let expected_len = batch.len();
        let text = batch.finish();
        assert_eq!(text.len(), expected_len);
        let GatewayMessage::Data(data) = gateway_message(&text) else { panic!("{text}") };
        assert_eq!((data.epoch, data.seq, data.records.len()), (epoch, 7, 4));
        let payload = |index: usize| match &data.records[index].body {
            WireBody::Reading { payload, .. } => payload.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(payload(0), Payload::Json(r#"{ "t": 21.50 }"#.into()), "byte for byte");
        assert_eq!(payload(1), Payload::Bytes(bytes::Bytes::from_static(b"\xff\x00")));
        assert_eq!(payload(2), Payload::Json("null".into()), "null is a payload");
        assert!(matches!(&data.records[3].body, WireBody::Event { kind, .. } if kind == "birth"));
        assert_eq!(GatewayMessage::Data(data).to_json(), text, "both writers say the same");
    }

    #[test]
    fn plain_frames_have_the_members_of_section_8() {
        let epoch = Epoch(0x77aa);
        let bytes = stored("d", b"1");
        let record = Stored::read(&bytes).unwrap();
        let text = plain_record("gw", &StreamName::events(), epoch, 3, &record);
        assert_eq!(
            text,
            r#"{"type":"telemetry","gateway":"gw","stream":"events","epoch":"00000000000077aa","seq":3,"ts":1790000000100,"device":"d","topic":"devices/d/telemetry","payload":1}"#
        );
        let skip =
            Skip { stream: StreamName::events(), epoch, from: 1, to: 3, reason: "evicted".into() };
        let value: serde_json::Value = serde_json::from_str(&plain_skip("gw", &skip)).unwrap();
        assert_eq!((&value["type"], &value["to"]), (&"skip".into(), &3.into()));
    }

    #[test]
    fn unknown_types_are_ignored_unless_they_must_not_be() {
        assert!(
            matches!(from_hub(r#"{"type":"news","x":1}"#), Ok(Decoded::Unknown(kind)) if kind == "news")
        );
        assert!(matches!(
            from_hub(r#"{"type":"news","must":true}"#),
            Ok(Decoded::MustUnderstand(_))
        ));
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"type":"ack"}"#,
            r#"{"type":"ack","stream":"X","epoch":"1","acked":1}"#,
        ] {
            assert!(from_hub(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hub_messages_survive_the_wire() {
        let texts = [
            r#"{"type":"ack","stream":"telemetry","epoch":"51d0000000000000","acked":9,"window":{"records":5,"bytes":7},"rejected":[[3,"forbidden"]]}"#,
            r#"{"type":"command","id":"01","device":"d","name":"n","params":{"a": 1},"ttl_ms":5,"timeout_ms":6,"idempotent":false,"state":{"n":1,"state":"accepted"}}"#,
            r#"{"type":"cancel","id":"01"}"#,
            r#"{"type":"drain","retry_after_ms":1,"spread_ms":2}"#,
        ];
        for text in texts {
            let Decoded::Message(message) = from_hub(text).unwrap() else { panic!("{text}") };
            assert_eq!(message.to_json(), text);
        }
    }
}
