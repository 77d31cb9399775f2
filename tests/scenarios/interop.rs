//! The other end written by others: stock Node and Python servers, two hubs written from
//! PROTOCOL.md alone, a browser.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};

use crate::field::{
    Field, SOON,
    device::{Actuator, Publisher},
    eventually,
    gateway::{Gateway, Setup},
    hub::{Hub, authority},
    peer::{Peer, interpreter},
    process::Process,
};

/// A browser takes its time to start.
const PATIENCE: Duration = Duration::from_secs(45);

#[test]
fn plain_mode_delivers_all_to_a_node_server_that_echoes_and_is_killed() {
    let field = Field::new();
    let (mut peer, gateway) = stock(&field, "broadcast.js", "plain");
    let publisher = Publisher::start(gateway.port, "plc-01", 400, 2000);
    // `ws` hands a frame to the program before it answers a later Ping: even SIGKILL loses nothing
    // that a Pong covered.
    eventually("500 publishes are acknowledged", SOON, || (publisher.acked() > 500).then_some(()));
    peer.process.kill();
    let before = peer.process.lines();
    eventually("700 more are acknowledged while the server is away", SOON, || {
        (publisher.acked() > 1200).then_some(())
    });
    peer.restart();
    assert_all_arrive(&publisher, &before, &peer);
}

#[test]
fn plain_mode_delivers_all_to_a_python_server_that_echoes_and_is_restarted() {
    let field = Field::new();
    let (mut peer, gateway) = stock(&field, "echo.py", "plain");
    let first = Publisher::start(gateway.port, "plc-01", 400, 600);
    // Python answers Pings before the program has read the frames: it is stopped when it has read
    // them all.
    eventually("the first 600 arrive", SOON, || {
        (numbers(&peer.process.lines(), "plc-01").len() == 600).then_some(())
    });
    peer.process.kill();
    let second = Publisher::start(gateway.port, "plc-02", 400, 600);
    eventually("600 are acknowledged while the server is away", SOON, || {
        second.done().then_some(())
    });
    let before = peer.process.lines();
    peer.restart();
    assert_all_arrive(&first, &before, &peer);
    assert_all_arrive(&second, &[], &peer);
}

#[test]
fn auto_ends_plain_with_stock_servers() {
    for script in ["broadcast.js", "echo.py"] {
        let field = Field::new();
        let (peer, gateway) = stock(&field, script, "auto");
        let publisher = Publisher::start(gateway.port, "plc-01", 200, 400);
        assert_all_arrive(&publisher, &[], &peer);
        let status = gateway.wait_connected();
        assert_eq!(status["uplink"]["mode"], "plain", "{script}: {status}");
    }
}

#[test]
fn a_hub_in_60_lines_of_node_holds_exactly_what_was_published() {
    holds_exactly_what_was_published("hub.js");
}

#[test]
fn a_hub_in_60_lines_of_python_holds_exactly_what_was_published() {
    holds_exactly_what_was_published("hub.py");
}

#[test]
fn a_browser_page_shows_records_sends_a_command_and_comes_back() {
    let field = Field::new();
    let mut hub = Hub::started(&field);
    let gateway = Gateway::started(&field, &Setup::new(&field, &hub));
    gateway.wait_connected();
    let _device = Actuator::start(gateway.port, "plc-01", |command| {
        Some(json!({ "id": command["id"], "ok": true }))
    });
    let mut page = interpreter("browser.mjs");
    page.arg(format!("wss://localhost:{}/v1/live", hub.port)).arg(&hub.api.token);
    let mut page = Process::start("browser.mjs", page, &field.path("browser.log"));
    page.wait_for_line(PATIENCE, |line| shows(line, |page| page["state"] == "here"));

    let first = Publisher::start(gateway.port, "meter-1", 50, 50);
    page.wait_for_line(SOON, |line| shows(line, |page| shows_reading(page, "meter-1", 50)));
    assert!(first.done());
    page.wait_for_line(SOON, |line| shows(line, |page| page["pongs"].as_u64() >= Some(2)));
    page.say(&json!({ "gateway": "gw-1", "device": "plc-01", "name": "identify" }).to_string());
    page.wait_for_line(SOON, |line| shows(line, |page| page["status"] == "succeeded"));

    hub.kill();
    page.wait_for_line(SOON, |line| shows(line, |page| page["state"] == "away"));
    hub.start();
    page.wait_for_line(SOON, |line| {
        shows(line, |page| page["state"] == "here" && page["connections"].as_u64() >= Some(2))
    });
    let _second = Publisher::start(gateway.port, "meter-2", 50, 50);
    page.wait_for_line(SOON, |line| shows(line, |page| shows_reading(page, "meter-2", 50)));
}

/// A stock server and a gateway that delivers to it.
fn stock(field: &Field, script: &'static str, protocol: &str) -> (Peer, Gateway) {
    authority(field);
    let peer = Peer::start(field, script, None);
    let gateway = Gateway::started(field, &towards(&peer, protocol));
    (peer, gateway)
}

fn towards(peer: &Peer, protocol: &str) -> Setup {
    let url = format!("url = \"wss://localhost:{}/gateway\"", peer.port);
    Setup::towards(format!("{url}\nca_file = \"ca.pem\"\nprotocol = \"{protocol}\""))
}

/// Waits until each of the publisher's numbers was seen by the server, in this life or in the one
/// `before`.
fn assert_all_arrive(publisher: &Publisher, before: &[String], peer: &Peer) {
    let device = &publisher.device;
    eventually(&format!("all of {device} is acknowledged"), SOON, || {
        publisher.done().then_some(())
    });
    let acked = publisher.account().acked;
    let what = format!("all that {device} saw acknowledged is at {}", peer.script);
    eventually(&what, SOON, || {
        let mut arrived = numbers(before, device);
        arrived.extend(numbers(&peer.process.lines(), device));
        arrived.is_superset(&acked).then_some(())
    });
    let lines: Vec<String> = before.iter().cloned().chain(peer.process.lines()).collect();
    let twice = frames(&lines, device).len() - numbers(&lines, device).len();
    println!("{device}: {} arrived, {twice} of them again after a lost link", acked.len());
}

/// The numbers of `device` among a plain server's lines.
fn numbers(lines: &[String], device: &str) -> BTreeSet<u64> {
    frames(lines, device).into_iter().collect()
}

fn frames(lines: &[String], device: &str) -> Vec<u64> {
    let frames = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_device = frames.filter(|f| f["type"] == "telemetry" && f["device"] == device);
    of_device.filter_map(|frame| frame["payload"]["n"].as_u64()).collect()
}

/// A managed session with a small hub that is killed in the middle, a gateway that is killed too,
/// and a command.
fn holds_exactly_what_was_published(script: &'static str) {
    let field = Field::new();
    authority(&field);
    let mut peer = Peer::start(&field, script, Some("store"));
    let mut gateway = Gateway::started(&field, &towards(&peer, "managed"));
    let publisher = Publisher::start(gateway.port, "plc-01", 400, 2000);
    let reach = |n: u64| {
        let what = format!("{n} publishes are acknowledged");
        eventually(&what, PATIENCE, || (publisher.acked() >= n).then_some(()));
    };
    reach(400);
    peer.process.kill();
    reach(800);
    peer.restart();
    reach(1200);
    gateway.kill();
    gateway.start();
    reach(2000);
    let kept = eventually("everything is in the hub's store", PATIENCE, || {
        let kept = store(&field);
        let numbers: BTreeSet<u64> = kept.iter().filter_map(reading).collect();
        (numbers.len() == 2000).then_some(kept)
    });
    assert_exact(&kept, &publisher);

    let status = gateway.wait_connected();
    assert_eq!(status["uplink"]["mode"], "managed", "{status}");
    let device = Actuator::start(gateway.port, "plc-02", |command| {
        Some(json!({ "id": command["id"], "ok": true, "result": 7 }))
    });
    peer.process.say(&json!({ "device": "plc-02", "name": "set_valve", "params": {} }).to_string());
    peer.process.wait_for_line(SOON, |line| line.contains("succeeded"));
    assert_eq!(device.heard().len(), 1, "{:?}", device.heard());
}

/// Each position once and without a hole; a number twice only if its device sent it twice.
fn assert_exact(kept: &[Value], publisher: &Publisher) {
    let mut next: BTreeMap<String, u64> = BTreeMap::new();
    let mut counts: BTreeMap<u64, u32> = BTreeMap::new();
    for line in kept {
        let epoch = format!("{} {}", line["stream"], line["epoch"]);
        let position = line["next"].as_u64().expect("the store's lines have it");
        let before = next.insert(epoch.clone(), position).unwrap_or(1);
        assert_eq!(position, before + 1, "{epoch}: a hole or a repetition: {line}");
        if let Some(n) = reading(line) {
            *counts.entry(n).or_default() += 1;
        }
    }
    let resent = publisher.account().resent;
    let doubled = counts.iter().filter(|(n, count)| **count > 1 && !resent.contains(n));
    let doubled: Vec<_> = doubled.collect();
    assert!(doubled.is_empty(), "stored twice, published once: {doubled:?}");
}

fn store(field: &Field) -> Vec<Value> {
    let text = std::fs::read_to_string(field.path("store")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn reading(line: &Value) -> Option<u64> {
    line["record"]["payload"]["n"].as_u64()
}

/// Whether a line of browser.mjs shows a page that fits.
fn shows(line: &str, fits: impl Fn(&Value) -> bool) -> bool {
    serde_json::from_str(line).is_ok_and(|page: Value| fits(&page))
}

/// Whether one of the page's rows is reading `n` of `device`.
fn shows_reading(page: &Value, device: &str, n: u64) -> bool {
    let rows = page["rows"].as_array();
    rows.into_iter().flatten().any(|row| {
        let payload = row[3].as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
        row[2] == device && payload.is_some_and(|payload| payload["n"] == n)
    })
}
