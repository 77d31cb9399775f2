//! `fieldgate status`: how a running gateway stands.

use std::{fmt::Write as _, process::ExitCode, time::Duration};

use serde_json::Value;

use crate::{
    config::Config,
    ops::control::{Ask, ask},
};

const PATIENCE: Duration = Duration::from_secs(5);

/// Prints the state once, or every second.
pub(super) fn status(config: &Config, json: bool, watch: bool) -> ExitCode {
    loop {
        let status = match ask(&config.gateway.state_dir, &Ask::Status {}, PATIENCE) {
            Ok(status) => status,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        };
        if json {
            println!("{status}");
        } else if watch {
            // Clear the screen, cursor home (ECMA-48).
            print!("\x1b[2J\x1b[H{}", describe(&status));
        } else {
            print!("{}", describe(&status));
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
    let (bytes, written) = (text(&spool["bytes"]), text(&spool["written_bytes"]));
    line("spool", format!("{bytes} bytes, {written} written since start"));
    if !status["disk"]["error"].is_null() {
        line("disk", format!("FAILS: {}", text(&status["disk"]["error"])));
    }
    out
}
