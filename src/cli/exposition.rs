//! The state of a gateway as Prometheus reads it: text exposition format, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>). Pure formatting.

use std::fmt::Write as _;

use serde_json::Value;

/// A number of the snapshot: where it stands, its name here, whether it only grows, what it means.
struct Metric {
    place: &'static [&'static str],
    name: &'static str,
    counts: bool,
    help: &'static str,
}

const fn gauge(place: &'static [&'static str], name: &'static str, help: &'static str) -> Metric {
    Metric { place, name, counts: false, help }
}

const fn counter(place: &'static [&'static str], name: &'static str, help: &'static str) -> Metric {
    Metric { place, name, counts: true, help }
}

/// Those that stand once in a snapshot. One that is null is left out.
const METRICS: &[Metric] = &[
    gauge(&["uplink", "connected_for_s"], "uplink_session_seconds", "Age of the session"),
    gauge(&["uplink", "retry_in_s"], "uplink_retry_seconds", "Time until the next attempt"),
    counter(&["uplink", "attempts"], "uplink_attempts_total", "Attempts to reach the hub"),
    counter(&["counters", "received"], "received_records_total", "Publishes that are telemetry"),
    counter(
        &["counters", "sent"],
        "sent_records_total",
        "Records put on the link; one sent again counts again",
    ),
    counter(&["counters", "refused"], "refused_publishes_total", "Publishes that were not taken"),
    counter(
        &["counters", "rejected"],
        "rejected_records_total",
        "Records that the hub refused for good",
    ),
    counter(
        &["counters", "evicted"],
        "evicted_records_total",
        "Records that had to go because the spool was full",
    ),
    counter(
        &["counters", "ignored_frames"],
        "ignored_frames_total",
        "Frames of the server that meant nothing",
    ),
    counter(
        &["counters", "unexpected_replies"],
        "unexpected_replies_total",
        "Replies for which no command waited",
    ),
    counter(
        &["counters", "recognised"],
        "recognised_publishes_total",
        "Publishes that were sent again and recognised as kept already",
    ),
    counter(
        &["counters", "doubtful"],
        "doubtful_publishes_total",
        "Publishes that may have been sent before and were kept",
    ),
    gauge(
        &["clock", "system_clock_off_ms"],
        "system_clock_off_milliseconds",
        "How far the system clock is ahead of the time that is used",
    ),
    gauge(&["commands", "under_way"], "commands_under_way", "Commands accepted and not yet final"),
    gauge(&["commands", "journalled"], "commands_journalled", "Command ids that the journal keeps"),
    gauge(&["disk", "memory_bytes"], "memory_records_bytes", "Records in memory"),
    gauge(&["spool", "bytes"], "spool_bytes", "Bytes of the spool on disk"),
    counter(
        &["spool", "written_bytes"],
        "spool_written_bytes_total",
        "Bytes written to the medium",
    ),
    gauge(
        &["spool", "written_last_day_bytes"],
        "spool_written_last_day_bytes",
        "Bytes written to the medium in the last 24 hours",
    ),
    counter(
        &["spool", "appended_bytes"],
        "spool_appended_bytes_total",
        "Bytes of records that went to disk",
    ),
    gauge(
        &["spool", "written_per_appended_byte"],
        "spool_write_amplification_ratio",
        "Bytes written per byte of records that went to disk, since start",
    ),
    counter(&["spool", "syncs"], "spool_syncs_total", "How often the medium was asked to keep"),
];

/// Those that each stream has.
const STREAM_METRICS: &[Metric] = &[
    gauge(&["held"], "stream_held_records", "Records that the hub does not hold yet"),
    gauge(&["acked"], "stream_acked_seq", "The last record of this start that the hub holds"),
    counter(&["skipped"], "stream_lost_records_total", "Records that the hub was told are lost"),
];

/// Every number of a snapshot.
pub(super) fn exposition(status: &Value) -> String {
    let mut out = String::new();
    let labels = [("gateway", &status["gateway"]), ("version", &status["version"])];
    head(&mut out, "info", false, "Which gateway this is");
    sample(&mut out, "info", &labels, &Value::from(1));
    head(&mut out, "uplink_connected", false, "Whether a session with the hub is on");
    let connected = status["uplink"]["state"] == "connected";
    sample(&mut out, "uplink_connected", &[], &Value::from(u8::from(connected)));
    head(&mut out, "disk_failing", false, "Whether the last write to disk failed");
    let failing = !status["disk"]["error"].is_null();
    sample(&mut out, "disk_failing", &[], &Value::from(u8::from(failing)));
    head(&mut out, "clock_trusted", false, "Whether the time is known");
    let trusted = status["clock"]["trusted"] == true;
    sample(&mut out, "clock_trusted", &[], &Value::from(u8::from(trusted)));
    for metric in METRICS {
        let value = metric.place.iter().fold(status, |value, member| &value[*member]);
        if value.is_number() {
            head(&mut out, metric.name, metric.counts, metric.help);
            sample(&mut out, metric.name, &[], value);
        }
    }
    let all = |name: &str| status[name].as_array().map_or(&[] as &[Value], Vec::as_slice);
    for metric in STREAM_METRICS {
        head(&mut out, metric.name, metric.counts, metric.help);
        for stream in all("streams") {
            let labels = [("stream", &stream["stream"])];
            sample(&mut out, metric.name, &labels, &stream[metric.place[0]]);
        }
    }
    let certificates = all("certificates");
    if !certificates.is_empty() {
        let help = "Whole days until a certificate expires; negative when it has";
        head(&mut out, "certificate_days_left", false, help);
        for certificate in certificates {
            let labels = [("key", &certificate["key"])];
            sample(&mut out, "certificate_days_left", &labels, &certificate["days_left"]);
        }
    }
    head(&mut out, "source_up", false, "Whether a source hears its devices");
    for source in all("sources") {
        let up = Value::from(u8::from(source["up"] == true));
        sample(&mut out, "source_up", &[("source", &source["name"])], &up);
    }
    out
}

fn head(out: &mut String, name: &str, counts: bool, help: &str) {
    let kind = if counts { "counter" } else { "gauge" };
    writeln!(out, "# HELP fieldgate_{name} {help}.").expect("writing to memory can't fail");
    writeln!(out, "# TYPE fieldgate_{name} {kind}").expect("writing to memory can't fail");
}

fn sample(out: &mut String, name: &str, labels: &[(&str, &Value)], value: &Value) {
    let escape = |text: &str| text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', "\\n");
    let labels: Vec<String> = labels
        .iter()
        .map(|(label, value)| format!("{label}=\"{}\"", escape(value.as_str().unwrap_or_default())))
        .collect();
    let labels =
        if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    writeln!(out, "fieldgate_{name}{labels} {value}").expect("writing to memory can't fail");
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Instant};

    use serde_json::json;

    use super::*;
    use crate::{
        cli::wear::{Load, Wear},
        gateway::{CommandStatus, CounterStatus, DiskStatus, Snapshot, StreamStatus, UplinkStatus},
    };

    /// A status in which every number is another.
    fn status() -> Value {
        let mut next = 1000;
        let mut number = || {
            next += 1;
            next
        };
        let uplink = UplinkStatus {
            state: "connected",
            mode: Some("managed"),
            session: Some("s".into()),
            retry_in_s: Some(number()),
            connected_for_s: Some(number()),
            attempts: number(),
            last_error: None,
        };
        let stream = StreamStatus {
            stream: "telemetry".into(),
            held: number(),
            acked: number(),
            skipped: number(),
        };
        let counters = CounterStatus {
            received: number(),
            sent: number(),
            refused: number(),
            rejected: number(),
            evicted: number(),
            ignored_frames: number(),
            unexpected_replies: number(),
            recognised: number(),
            doubtful: number(),
        };
        let snapshot = Snapshot {
            gateway: "gw-\"1\"".into(),
            uplink,
            streams: vec![stream],
            counters,
            commands: CommandStatus { under_way: 7, journalled: 8 },
            disk: DiskStatus { error: None, memory_bytes: 9 },
        };
        let mut status = serde_json::to_value(snapshot).unwrap();
        let now = Instant::now();
        let wear = Wear::new(now);
        wear.note(now, Load { spool_bytes: 5, written_bytes: 21, appended_bytes: 20, syncs: 3 });
        status["spool"] = wear.to_json(now);
        status["version"] = "1.2.3".into();
        status["certificates"] = json!([{ "key": "listener.cert_file", "days_left": 1234 }]);
        status["sources"] = json!([{ "name": "listener", "up": true, "detail": "" }]);
        status
    }

    fn numbers(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Number(number) => drop(found.insert(number.to_string())),
            Value::Array(values) => values.iter().for_each(|value| numbers(value, found)),
            Value::Object(members) => members.values().for_each(|value| numbers(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_number_of_a_snapshot_is_there() {
        let status = status();
        let mut wanted = BTreeSet::new();
        numbers(&status, &mut wanted);
        let text = exposition(&status);
        let shown: BTreeSet<String> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit(' ').next().map(str::to_owned))
            .collect();
        assert_eq!(wanted.difference(&shown).collect::<Vec<_>>(), [""; 0], "{text}");
        assert!(wanted.len() > 15);
    }

    #[test]
    fn it_is_well_formed() {
        let text = exposition(&status());
        let mut typed = BTreeSet::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(typed.insert(name), "{name} has one TYPE");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            } else if !line.starts_with("# HELP ") {
                let (name, value) = line.rsplit_once(' ').unwrap();
                let name = name.split('{').next().unwrap();
                assert!(typed.contains(name), "{name} is told before its value");
                value.parse::<f64>().unwrap();
            }
        }
        let first = text.lines().nth(2).unwrap();
        assert_eq!(first, "fieldgate_info{gateway=\"gw-\\\"1\\\"\",version=\"1.2.3\"} 1");
        assert!(text.contains("\nfieldgate_stream_held_records{stream=\"telemetry\"} "));
        assert!(text.contains("\nfieldgate_source_up{source=\"listener\"} 1\n"));
    }
}
