//! How applications see things: the JSON of records, gateways, gaps and commands.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};

use super::engine::{CommandRow, Gap, GatewayRow, RecordRow, StatusChange, StatusRow};
use crate::protocol::{Data, Epoch, Payload, WireBody, WireRecord};

/// A record, as `records` and `/v1/live` show it.
#[derive(Debug, Serialize)]
pub(super) struct RecordView<'a> {
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind_of_message: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<&'a str>,
    id: u64,
    stream: &'a str,
    epoch: String,
    seq: u64,
    ts: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    received: Option<i64>,
    #[serde(skip_serializing_if = "is_false")]
    unsynced: bool,
    #[serde(skip_serializing_if = "is_false")]
    retained: bool,
    device: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    topic: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

impl<'a> RecordView<'a> {
    /// A record out of the store.
    pub(super) fn of_row(row: &'a RecordRow) -> Self {
        let (payload, payload_base64) = match &row.payload {
            Ok(text) => json_or_base64(text),
            Err(bytes) => (None, Some(BASE64.encode(bytes))),
        };
        Self {
            kind_of_message: None,
            gateway: None,
            id: row.id,
            stream: &row.stream,
            epoch: Epoch(row.epoch).to_string(),
            seq: row.seq,
            ts: row.ts,
            received: Some(row.received_ms),
            unsynced: row.unsynced,
            retained: row.retained,
            device: &row.device,
            topic: &row.topic,
            kind: row.kind.as_deref(),
            payload,
            payload_base64,
        }
    }

    /// A record that was just stored, for `/v1/live`; `device` is the one that it concerns.
    pub(super) fn of_wire(
        gateway: &'a str,
        data: &'a Data,
        record: &'a WireRecord,
        device: &'a str,
        (id, seq): (u64, u64),
    ) -> Self {
        let mut view = Self {
            kind_of_message: Some("record"),
            gateway: Some(gateway),
            id,
            stream: data.stream.as_str(),
            epoch: data.epoch.to_string(),
            seq,
            ts: i64::try_from(record.ts).unwrap_or(i64::MAX),
            received: None,
            unsynced: record.unsynced,
            retained: false,
            device,
            topic: "",
            kind: None,
            payload: None,
            payload_base64: None,
        };
        match &record.body {
            WireBody::Event { kind, json } => {
                view.kind = Some(kind);
                view.payload = Some(json);
            }
            WireBody::Reading { topic, retained, payload, .. } => {
                view.topic = topic;
                view.retained = *retained;
                match payload {
                    Payload::Json(text) => {
                        (view.payload, view.payload_base64) = json_or_base64(text);
                    }
                    Payload::Bytes(bytes) => view.payload_base64 = Some(BASE64.encode(bytes)),
                }
            }
        }
        view
    }
}

/// What is stored as text was checked to be JSON; a text that is not any more is shown as the bytes
/// it is.
fn json_or_base64(text: &str) -> (Option<&RawValue>, Option<String>) {
    match serde_json::from_str(text) {
        Ok(raw) => (Some(raw), None),
        Err(_) => (None, Some(BASE64.encode(text))),
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// A gateway.
pub(super) fn gateway(row: &GatewayRow, connected: bool) -> Value {
    let [received, duplicate, lost, refused, rejected] = row.counters;
    let (created, first_seen, last_seen) = row.times_ms;
    json!({
        "id": row.id,
        "connected": connected,
        "revoked": row.revoked,
        "credential": match row {
            GatewayRow { has_token: true, .. } => "token",
            GatewayRow { has_key: true, .. } => "key",
            _ => "certificate",
        },
        "agent": row.agent,
        "created": created,
        "first_seen": first_seen,
        "last_seen": last_seen,
        "records": {"oldest": row.records.0, "newest": row.records.1 - 1},
        "counters": {
            "received": received, "duplicate": duplicate, "lost": lost,
            "refused": refused, "rejected": rejected,
        },
    })
}

/// A gap.
pub(super) fn gap(gap: &Gap) -> Value {
    json!({
        "stream": gap.stream,
        "epoch": Epoch(gap.epoch).to_string(),
        "from": gap.range.0,
        "to": gap.range.1,
        "reason": gap.reason,
        "at": gap.at_ms,
    })
}

/// A command, with its states where they are known.
pub(super) fn command(row: &CommandRow, states: Option<&[StatusRow]>) -> Value {
    let mut view = json!({
        "id": row.id,
        "gateway": row.gateway,
        "device": row.device,
        "name": row.name,
        "params": parsed(&row.params),
        "created": row.created_ms,
        "ttl_ms": row.ttl_ms,
        "timeout_ms": row.timeout_ms,
        "idempotent": row.idempotent,
        "sent": row.sent,
        "cancel_requested": row.cancel_requested,
        // The gateway has not spoken of it yet.
        "state": row.state.as_deref().unwrap_or("queued"),
        "final": row.is_final,
    });
    if let Some(states) = states {
        view["states"] = states.iter().map(status).collect();
    }
    view
}

fn status(row: &StatusRow) -> Value {
    let mut view = json!({"n": row.n, "state": row.state, "ts": row.ts});
    for (name, text) in [("result", &row.result), ("error", &row.error)] {
        if let Some(text) = text {
            view[name] = parsed(text);
        }
    }
    view
}

/// A state that a command reached, for `/v1/live`.
pub(super) fn status_change(change: &StatusChange) -> Value {
    let mut view = json!({
        "type": "command_status",
        "gateway": *change.gateway,
        "device": change.device,
        "id": change.id,
        "n": change.n,
        "state": change.state,
        "final": change.state.is_final(),
        "ts": change.ts,
    });
    for (name, text) in [("result", &change.result), ("error", &change.error)] {
        if let Some(text) = text {
            view[name] = parsed(text);
        }
    }
    view
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.into()))
}
