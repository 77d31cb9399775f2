//! From what was written to what is meant: each table becomes its part of the [`Config`], with its
//! defaults, or says why it can't.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use super::{
    Commands, Config, Durability, Gateway, Listener, Mqtt, Spool, Telemetry,
    error::{Fault, Origin},
    listener::listener,
    raw::Raw,
    reader::{Places, Reader},
    uplink::{jwt, uplink},
    values::{broker_url, is_loopback},
};
use crate::{
    command::Allow,
    protocol::{MAX_GATEWAY_BYTES, StreamName, is_gateway_id},
    record::is_device_name,
    topic::Template,
};

const MAX_LANES: usize = 16;
const MAX_ALLOWED: usize = 1_000;
/// What the sources take at most.
const MAX_RECORD_BYTES: u64 = 1 << 20;
const MIN_SPOOL_BYTES: u64 = 8 << 20;
const MAX_SPOOL_BYTES: u64 = 1 << 50;
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

/// Makes a [`Config`]; of use only when no fault was added.
pub(super) fn config(file: PathBuf, raw: &Raw, places: &Places, faults: &mut Vec<Fault>) -> Config {
    let mut notes = Vec::new();
    let gateway = gateway(&mut Reader::of(raw, "gateway", places, faults), places);
    let mut uplink = uplink(&mut Reader::of(raw, "uplink", places, faults), places);
    if !raw.all("uplink.jwt").is_empty() {
        let jwt = jwt(&mut Reader::of(raw, "uplink.jwt", places, faults), &gateway.state_dir);
        if let Some(uplink) = &mut uplink {
            uplink.jwt = Some(jwt);
            if uplink.token_file.take().is_some() {
                let note = "uplink.token_file: it is not used, for [uplink.jwt] makes the tokens";
                notes.push(note.into());
            }
        }
    }
    let spool = spool(&mut Reader::of(raw, "spool", places, faults), &mut notes);
    let mqtt = match raw.all("mqtt") {
        [] => None,
        _ => mqtt(&mut Reader::of(raw, "mqtt", places, faults), &mut notes),
    };
    let listener = match raw.all("listener") {
        [] => None,
        _ => listener(&mut Reader::of(raw, "listener", places, faults), &mut notes),
    };
    if let (Some(mqtt), Some(listener)) = (&mqtt, &listener) {
        let reader = &mut Reader::of(raw, "listener", places, faults);
        keep_apart(mqtt, listener, reader);
    }
    let telemetry = telemetry(raw, places, faults, &spool.lanes);
    let commands = commands(&mut Reader::of(raw, "commands", places, faults));
    // A fault elsewhere may well be the reason why there is none.
    if mqtt.is_none() && listener.is_none() && faults.is_empty() {
        let text = "no device can reach this gateway; add [listener] so that devices connect to \
                    it, or [mqtt] with the url of a broker";
        faults.push(Fault { origin: Origin::File, key: String::new(), text: text.into() });
    }
    let enrolled = None;
    Config { file, gateway, uplink, enrolled, spool, mqtt, listener, telemetry, commands, notes }
}

/// Where the gateway keeps everything: as it is written, else as systemd says, else the default.
pub(super) fn state_dir(reader: &mut Reader<'_>, places: &Places) -> PathBuf {
    let given = places.environment.state_directory.clone();
    let default = || given.unwrap_or_else(|| PathBuf::from("/var/lib/fieldgate"));
    reader.path("state_dir").unwrap_or_else(default)
}

fn gateway(reader: &mut Reader<'_>, places: &Places) -> Gateway {
    let id = reader.parsed("id", |id| match is_gateway_id(id) {
        true => Ok(id.to_owned()),
        false => Err(format!(
            "{id:?} is not a gateway id; write 1 to {MAX_GATEWAY_BYTES} of A-Z a-z 0-9 - _ . :"
        )),
    });
    Gateway { id, state_dir: state_dir(reader, places) }
}

fn spool(reader: &mut Reader<'_>, notes: &mut Vec<String>) -> Spool {
    let when = [("hub_or_disk", Durability::HubOrDisk), ("disk", Durability::Disk)];
    let order = [("oldest-first", false), ("live-first", true)];
    let max_bytes = reader.size("max_bytes", 512 << 20, MIN_SPOOL_BYTES..=MAX_SPOOL_BYTES);
    let max_record_bytes = reader.size("max_record_bytes", 128 << 10, 1..=MAX_RECORD_BYTES);
    // Else one record could evict everything else.
    if max_record_bytes > max_bytes / 4 {
        reader.fault("max_record_bytes", "it is more than a quarter of max_bytes; write less");
    }
    Spool {
        live_first: reader.one_of("order", false, &order),
        min_free_bytes: reader.size("min_free_bytes", 32 << 20, 0..=MAX_SPOOL_BYTES),
        max_age: reader
            .has("max_age")
            .then(|| reader.duration("max_age", HOUR, Duration::from_secs(60)..=HOUR * 24 * 3650)),
        durability: reader.one_of("durability", Durability::HubOrDisk, &when),
        write_after: reader.duration("write_after", SECOND, Duration::from_millis(1)..=HOUR),
        max_bytes,
        max_record_bytes: usize::try_from(max_record_bytes).unwrap_or(usize::MAX),
        lanes: lanes(reader, notes),
    }
}

fn lanes(reader: &mut Reader<'_>, notes: &mut Vec<String>) -> Vec<StreamName> {
    let mut lanes: Vec<StreamName> = Vec::new();
    for (origin, name) in reader.texts("lanes", MAX_LANES).unwrap_or_default() {
        match lane(&name) {
            Ok(lane) if lanes.contains(&lane) => {
                reader.fault_at(origin, "lanes", format!("{name:?} comes twice; remove one"));
            }
            Ok(lane) if lane == StreamName::events() => {
                let text = "\"events\" is the gateway's own and always goes first; remove it";
                reader.fault_at(origin, "lanes", text);
            }
            Ok(lane) => lanes.push(lane),
            Err(text) => reader.fault_at(origin, "lanes", text),
        }
    }
    let telemetry = telemetry_lane();
    if !lanes.contains(&telemetry) {
        if !lanes.is_empty() {
            notes.push("spool.lanes: the lane telemetry is always there; it was added last".into());
        }
        lanes.push(telemetry);
    }
    lanes
}

fn mqtt(reader: &mut Reader<'_>, notes: &mut Vec<String>) -> Option<Mqtt> {
    if !reader.has("url") {
        reader.fault("url", "it is missing; write url = \"mqtt://127.0.0.1:1883\"");
    }
    let url = reader.parsed("url", broker_url);
    let (tls, host, port) = url.clone().unwrap_or((true, String::new(), 0));
    if !tls {
        for key in ["ca_file", "client_cert_file", "client_key_file"] {
            if reader.has(key) {
                reader.fault(key, "an mqtt:// URL has no TLS; use mqtts:// or remove this key");
            }
        }
    }
    reader.both("username", "password_file");
    let username = reader.parsed("username", |name| not_empty(name, 65_535));
    let credentials = username.zip(reader.path("password_file"));
    if credentials.is_some() && !tls && !is_loopback(&host) {
        notes.push(format!(
            "mqtt.url: the password crosses the network to {host} in the clear; use mqtts://"
        ));
    }
    let keep_alive = reader.duration("keep_alive", 30 * SECOND, SECOND..=12 * HOUR);
    if keep_alive.subsec_millis() != 0 {
        reader.fault("keep_alive", "MQTT counts it in whole seconds; write it so");
    }
    let mqtt = Mqtt {
        tls,
        host,
        port,
        client_id: reader.parsed("client_id", |id| not_empty(id, 256)),
        credentials,
        ca_file: reader.path("ca_file"),
        client_cert: reader.paths("client_cert_file", "client_key_file"),
        keep_alive,
        max_inflight: reader.count("max_inflight", 20, 1..=u16::MAX),
    };
    url.map(|_| mqtt)
}

/// A broker on this machine and the listener can't have the same port: whichever starts first would
/// keep the other out, and the gateway might connect to itself.
fn keep_apart(mqtt: &Mqtt, listener: &Listener, reader: &mut Reader<'_>) {
    let same = listener.bind.is_some_and(|bind| {
        let host = mqtt.host.parse::<IpAddr>();
        bind.port() == mqtt.port && host.map_or(is_loopback(&mqtt.host), |ip| ip == bind.ip())
    });
    if same {
        let text = "mqtt.url names a broker at the same address; write another port, or keep one \
                    of [mqtt] and [listener]";
        reader.fault("bind", text);
    }
}

fn telemetry(
    raw: &Raw,
    places: &Places,
    faults: &mut Vec<Fault>,
    lanes: &[StreamName],
) -> Vec<Telemetry> {
    let mut all: Vec<Telemetry> = Vec::new();
    for section in raw.all("telemetry") {
        let reader = &mut Reader::of_section(section, places, faults);
        if !reader.has("topic") {
            reader.fault("topic", "it is missing; write topic = \"devices/{device}/telemetry\"");
        }
        let topic = reader.parsed("topic", template);
        let lane = reader.parsed("lane", |name| {
            let lane = lane(name)?;
            if lanes.contains(&lane) {
                return Ok(lane);
            }
            let known: Vec<&str> = lanes.iter().map(StreamName::as_str).collect();
            Err(format!(
                "there is no lane {name:?}; add it to spool.lanes or use {}",
                known.join(", ")
            ))
        });
        let device = reader.parsed("device", |name| match is_device_name(name) {
            true => Ok(name.to_owned()),
            false => {
                Err(format!("{name:?} can't name a device; write 1 to 256 bytes, without + and #"))
            }
        });
        let Some(topic) = topic else { continue };
        if device.is_some() && topic.names("device") {
            reader.fault("device", "the topic names the device already; remove one of them");
        }
        if all.iter().any(|earlier| earlier.topic.filter() == topic.filter()) {
            let text = "an earlier [[telemetry]] takes the same topics first; remove one of them";
            reader.fault("topic", text);
        }
        all.push(Telemetry { topic, lane: lane.unwrap_or_else(telemetry_lane), device });
    }
    if raw.all("telemetry").is_empty() {
        let topic = constant_template("devices/{device}/telemetry");
        all.push(Telemetry { topic, lane: telemetry_lane(), device: None });
    }
    all
}

fn commands(reader: &mut Reader<'_>) -> Commands {
    let topic = reader.parsed("topic", |text| {
        let topic = template(text)?;
        if !topic.names("device") {
            return Err("a command must reach one device; write {device} into the topic".into());
        }
        let known = |name: &str| ["device", "command", "id"].contains(&name).then_some("x");
        match topic.fill("{device}, {command} and {id}", known) {
            Ok(_) => Ok(topic),
            Err(error) => Err(error.to_string()),
        }
    });
    let reply = reader.parsed("reply", |text| match template(text)? {
        reply if reply.names("id") => Ok(reply),
        _ => Err("a reply is found by the command's id; write {id} into the topic".into()),
    });
    let mut allow = Vec::new();
    for (origin, text) in reader.texts("allow", MAX_ALLOWED).unwrap_or_default() {
        match Allow::parse(&text) {
            Ok(pattern) => allow.push(pattern),
            Err(text) => reader.fault_at(origin, "allow", text),
        }
    }
    Commands {
        topic: topic.unwrap_or_else(|| constant_template("devices/{device}/commands/{command}")),
        reply: reply.unwrap_or_else(|| constant_template("devices/{device}/replies/{id}")),
        allow,
    }
}

fn template(text: &str) -> Result<Template, String> {
    Template::parse(text).map_err(|error| error.to_string())
}

fn constant_template(text: &'static str) -> Template {
    Template::parse(text).expect("a topic written in this program is valid")
}

fn lane(name: &str) -> Result<StreamName, String> {
    StreamName::try_from(name.to_owned())
}

fn telemetry_lane() -> StreamName {
    lane("telemetry").expect("the name is valid")
}

fn not_empty(text: &str, most_bytes: usize) -> Result<String, String> {
    if text.is_empty() || text.len() > most_bytes || text.chars().any(char::is_control) {
        Err(format!(
            "it is empty, too long or has control characters; write 1 to {most_bytes} bytes of text"
        ))
    } else {
        Ok(text.to_owned())
    }
}
