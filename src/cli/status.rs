//! `fieldgate status`: how a running gateway stands.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use serde_json::Value;

use super::exposition::exposition;
use crate::{
    config::Config,
    identity::calendar::Moment,
    ops::control::{Ask, ask},
};

const PATIENCE: Duration = Duration::from_secs(5);

/// How the state is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For a person
    Text,
    /// One JSON object
    Json,
    /// Text exposition format 0.0.4, for node_exporter's textfile collector and the like
    Prometheus,
}

/// Prints the state once, or every second.
pub(super) fn status(config: &Config, format: Format, watch: bool) -> ExitCode {
    loop {
        let status = match ask(&config.gateway.state_dir, &Ask::Status {}, PATIENCE) {
            Ok(status) => status,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        };
        let text = match format {
            Format::Json => format!("{status}\n"),
            Format::Prometheus => exposition(&status),
            // Clear the screen, cursor home (ECMA-48).
            Format::Text if watch => format!("\x1b[2J\x1b[H{}", describe(&status)),
            Format::Text => describe(&status),
        };
        if let Err(error) = io::stdout().write_all(text.as_bytes()) {
            // Whoever closed the pipe has read enough.
            let enough = error.kind() == io::ErrorKind::BrokenPipe;
            return if enough { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        if !watch {
            return ExitCode::SUCCESS;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn describe(status: &Value) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    };
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        writeln!(out, "{name:<12} {value}").expect("writing to memory can't fail");
    };
    line("gateway", format!("{}, version {}", text(&status["gateway"]), text(&status["version"])));
    let uplink = &status["uplink"];
    let mut link = format!("{} {}", text(&uplink["state"]), text(&uplink["url"]));
    for (member, before, after) in [
        ("mode", ", ", ""),
        ("connected_for_s", ", for ", " s"),
        ("retry_in_s", ", next attempt in ", " s"),
        ("last_error", ", last error: ", ""),
    ] {
        if !uplink[member].is_null() {
            link += &format!("{before}{}{after}", text(&uplink[member]));
        }
    }
    line("uplink", link);
    for certificate in status["certificates"].as_array().into_iter().flatten() {
        let days_left = text(&certificate["days_left"]);
        let until = format!("{days_left} days left, {}", text(&certificate["key"]));
        line("certificate", until);
    }
    line("clock", clock(&status["clock"]));
    for source in status["sources"].as_array().into_iter().flatten() {
        let up = if source["up"] == true { "up" } else { "down" };
        line(&text(&source["name"]), format!("{up}, {}", text(&source["detail"])));
    }
    for stream in status["streams"].as_array().into_iter().flatten() {
        let (held, skipped) = (text(&stream["held"]), text(&stream["skipped"]));
        line(&text(&stream["stream"]), format!("{held} records held, {skipped} lost since start"));
    }
    let counters = &status["counters"];
    let counted = ["received", "sent", "refused", "rejected", "evicted"]
        .map(|name| format!("{} {name}", text(&counters[name])));
    line("records", counted.join(", "));
    let commands = &status["commands"];
    let (under_way, kept) = (text(&commands["under_way"]), text(&commands["journalled"]));
    line("commands", format!("{under_way} under way, {kept} in the journal"));
    let spool = &status["spool"];
    line("spool", format!("{} bytes on disk", text(&spool["bytes"])));
    let mut written = format!("{} bytes since start", text(&spool["written_bytes"]));
    if !spool["written_per_appended_byte"].is_null() {
        let per_byte = text(&spool["written_per_appended_byte"]);
        written += &format!(" ({per_byte} per byte of records on disk)");
    }
    written += &format!(", {} in the last 24 hours", text(&spool["written_last_day_bytes"]));
    line("written", written);
    if !status["disk"]["error"].is_null() {
        line("disk", format!("FAILS: {}", text(&status["disk"]["error"])));
    }
    out
}

fn clock(status: &Value) -> String {
    let moment = |ms: &Value| ms.as_i64().map(|ms| Moment { unix_seconds: ms.div_euclid(1000) });
    let Some(now) = moment(&status["unix_ms"]) else { return "-".into() };
    let mut text = match status["by"].as_str() {
        Some(by) => format!("{now}, trusted: {by}"),
        None => format!("{now}, not trusted: records are marked until a hub says the time"),
    };
    let off_s = status["system_clock_off_ms"].as_i64().unwrap_or(0) / 1000;
    if off_s != 0 {
        text += &format!(", the system clock is off by {off_s} s");
    }
    if let Some(confirmed) = moment(&status["confirmed_ms"]) {
        text += &format!(", last confirmed by a hub: {confirmed}");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_clock_is_told_in_words() {
        let lost = json!({ "unix_ms": 1_795_305_607_000_u64, "trusted": false, "by": null,
            "system_clock_off_ms": -1_795_305_600_000_i64, "confirmed_ms": null });
        let expected = "2026-11-22 00:00:07 UTC, not trusted: records are marked until a hub says \
                        the time, the system clock is off by -1795305600 s";
        assert_eq!(clock(&lost), expected);
        let kept = json!({ "unix_ms": 1_795_305_607_000_u64, "trusted": true, "by": "hub",
            "system_clock_off_ms": -400, "confirmed_ms": 1_795_305_607_000_u64 });
        let expected = "2026-11-22 00:00:07 UTC, trusted: hub, last confirmed by a hub: \
                        2026-11-22 00:00:07 UTC";
        assert_eq!(clock(&kept), expected);
    }

    #[test]
    fn wear_is_told_in_words() {
        let spool = json!({ "bytes": 5, "written_bytes": 1064, "written_last_day_bytes": 64,
            "appended_bytes": 1000, "written_per_appended_byte": 1.064, "syncs": 3 });
        let text = describe(&json!({ "spool": spool }));
        let expected = "written      1064 bytes since start (1.064 per byte of records on disk), \
                        64 in the last 24 hours";
        assert!(text.lines().any(|line| line == expected), "{text}");
    }
}
