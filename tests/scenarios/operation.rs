//! Promise 5: it always starts and always comes back; and a quiet day is quiet.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};

use crate::field::{
    Field, SOON,
    broker::Broker,
    device::Publisher,
    eventually,
    gateway::{Gateway, Setup, binary},
    hub::Hub,
    process::{Process, run},
};

const GATEWAY: &str = "gw-1";

#[test]
fn comes_up_in_any_order_with_a_broker() {
    let field = Field::new();
    let mut broker = Broker::new(&field);
    let mut hub = Hub::new(&field);
    let gateway = Gateway::started(&field, &Setup::new(&field, &hub).through(broker.port));
    gateway.wait_until("it says that it has neither broker nor hub", |status| {
        status["uplink"]["state"] != "connected" && !Gateway::source_up(status, "mqtt")
    });

    hub.start();
    gateway.wait_connected();
    broker.start();
    gateway.wait_until("mosquitto is connected", |status| Gateway::source_up(status, "mqtt"));
    arrives(&hub, &gateway, "first");

    broker.terminate();
    gateway.wait_until("it says that the broker is gone", |status| {
        !Gateway::source_up(status, "mqtt")
    });
    broker.start();
    gateway.wait_until("mosquitto is back", |status| Gateway::source_up(status, "mqtt"));
    arrives(&hub, &gateway, "second");
}

#[test]
fn comes_up_in_any_order_with_devices_only() {
    let field = Field::new();
    let mut hub = Hub::new(&field);
    let mut gateway = Gateway::started(&field, &Setup::new(&field, &hub));
    let publisher = Publisher::start(gateway.port, "plc-01", 100, 100);
    eventually("100 publishes are acknowledged without a hub", SOON, || {
        publisher.done().then_some(())
    });
    let terminated = gateway.terminate().0;
    assert_eq!(terminated.code(), Some(0), "it stops without ever having had a hub");
    gateway.start();
    hub.start();
    hub.wait_for(GATEWAY, "what was acknowledged before the hub existed", |row| row.n == Some(100));
    let rows = hub.all_records(GATEWAY);
    let numbers: Vec<u64> = rows.iter().filter_map(|row| row.n).collect();
    assert_eq!(numbers, (1..=100).collect::<Vec<u64>>());
}

#[test]
fn a_record_that_is_refused_is_accounted_for_and_any_bytes_are_a_payload() {
    let field = Field::new();
    let hub = Hub::started(&field);
    let spool = "durability = \"disk\"\nmax_record_bytes = \"1KiB\"".to_owned();
    let gateway = Gateway::started(&field, &Setup { spool, ..Setup::new(&field, &hub) });
    gateway.wait_connected();

    let topic = "devices/plc-01/telemetry";
    let bytes = b"\xff\x00 not JSON {";
    mosquitto_pub(&field, gateway.port, topic, &[b'x'; 4096]);
    mosquitto_pub(&field, gateway.port, topic, bytes);
    mosquitto_pub(&field, gateway.port, topic, b"{ \"n\": 7 }");

    let refused = hub.wait_for(GATEWAY, "the refusal of 4096 bytes", |row| row.is_event("refused"));
    assert_eq!(refused.event("reason"), "too_large", "{refused:?}");
    assert_eq!(refused.event("count"), 1, "{refused:?}");
    let odd = hub.wait_for(GATEWAY, "what is not JSON, as base64", |row| {
        row.all["payload_base64"].is_string()
    });
    assert_eq!(odd.all["payload_base64"], BASE64.encode(bytes));
    hub.wait_for(GATEWAY, "the next record", |row| row.n == Some(7));
    let readings = hub.all_records(GATEWAY).iter().filter(|row| row.stream != "events").count();
    assert_eq!(readings, 2, "refused means not stored");
}

/// A day in 20 s: pings every second instead of every 25, devices that come, publish and go.
#[test]
fn an_idle_day_logs_no_warning() {
    const DAY: Duration = Duration::from_secs(20);
    let field = Field::new();
    let hub = Hub::started(&field);
    let mut setup = Setup::new(&field, &hub);
    setup.uplink += "\nping_interval = \"1s\"";
    let mut gateway = Gateway::started(&field, &setup);
    gateway.wait_connected();
    let evening = Instant::now() + DAY;
    let mut hour = 0;
    while Instant::now() < evening {
        hour += 1;
        let publisher = Publisher::start(gateway.port, &format!("meter-{hour}"), 10, 5);
        eventually("a meter's publishes are acknowledged", SOON, || publisher.done().then_some(()));
        // Here time itself is the subject: nothing is to happen.
        std::thread::sleep(Duration::from_secs(3));
    }
    assert_eq!(gateway.terminate().0.code(), Some(0));
    let hub_log = hub.process.as_ref().expect("the hub runs").log();
    for (name, log) in [("gateway", gateway.log()), ("hub", hub_log)] {
        let complaints: Vec<&str> = log.lines().filter(|line| complains(line)).collect();
        assert!(complaints.is_empty(), "the {name} complained: {complaints:#?}");
        assert!(!log.is_empty(), "the {name} logged nothing at all: is the level right?");
    }
}

/// A payload over the limit and a reply's topic both gave `safe`, exit code 0: nothing of them was
/// kept.
#[test]
fn a_record_by_hand_that_is_not_kept_is_not_called_safe() {
    let field = Field::new();
    let spool = "max_record_bytes = \"1KiB\"".to_owned();
    let setup = Setup { spool, ..Setup::towards(String::new()) };
    let gateway = Gateway::started(&field, &setup);
    for (arguments, why) in [
        (vec!["--device", "plc-01", &"1".repeat(2000)], "spool.max_record_bytes is 1024"),
        (vec!["--device", "d", "--topic", "devices/plc-01/replies/7", "1"], "replies to commands"),
        (vec!["--device", "d", "--topic", "elsewhere", "1"], "no [[telemetry]] topic matches"),
        (vec!["--device", "d", "--topic", "devices/$d/telemetry", "1"], "name of a device"),
    ] {
        let (code, stdout, stderr) = run(send(&field, &arguments), SOON);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{arguments:?}");
        assert!(stderr.contains(why), "{stderr}");
    }
    let (code, stdout, _) = run(send(&field, &["--device", "plc-01", "1"]), SOON);
    assert_eq!((code, stdout.as_str()), (Some(0), "safe\n"));
    let counters = gateway.status().expect("it runs")["counters"].clone();
    assert_eq!((&counters["received"], &counters["refused"]), (&1.into(), &0.into()));
}

/// The first thing that a newcomer pastes is `fieldgate run &` and right behind it `fieldgate
/// send`, which said that no gateway runs.
#[test]
fn a_record_by_hand_waits_for_a_gateway_that_is_just_starting() {
    let field = Field::new();
    let mut gateway = Gateway::new(&field, &Setup::towards(String::new()));
    let sent = send(&field, &["--device", "plc-01", "1"]);
    let mut sent = Process::start("fieldgate send", sent, &field.path("send.log"));
    gateway.start();
    let status = sent.exit(SOON);
    assert!(status.success(), "{status}: {}", sent.log());

    gateway.kill();
    std::fs::remove_file(field.path("state/control.sock")).expect("a killed gateway leaves it");
    let begin = Instant::now();
    assert!(gateway.status().is_none(), "nothing answers");
    let told = begin.elapsed();
    let (code, _, stderr) = run(send(&field, &["--device", "plc-01", "1"]), SOON);
    let given_up = begin.elapsed() - told;
    assert_eq!(code, Some(1));
    assert!(stderr.contains("no gateway runs with the state directory"), "{stderr}");
    assert!(told < given_up, "status took {told:?}, as long as send with {given_up:?}");
}

fn send(field: &Field, arguments: &[&str]) -> Command {
    let mut command = binary();
    command.args(["send", "--config"]).arg(field.path("gw-1.toml")).args(arguments);
    command
}

/// A line of level WARN or ERROR, for people or for journald.
fn complains(line: &str) -> bool {
    let words = || line.split(|c: char| !c.is_ascii_alphanumeric());
    let by_priority = ["<0>", "<1>", "<2>", "<3>", "<4>"].iter().any(|at| line.starts_with(at));
    by_priority || words().any(|word| matches!(word, "WARN" | "ERROR"))
}

/// Publishes as `device` until the hub has all of it.
fn arrives(hub: &Hub, gateway: &Gateway, device: &str) {
    let publisher = Publisher::start(gateway.port, device, 100, 50);
    eventually("50 publishes are acknowledged", SOON, || publisher.done().then_some(()));
    hub.wait_for(GATEWAY, &format!("the last publish of {device}"), |row| {
        row.device.as_deref() == Some(device) && row.n == Some(50)
    });
}

/// A publish at QoS 1 by mosquitto's own client.
fn mosquitto_pub(field: &Field, port: u16, topic: &str, payload: &[u8]) {
    let file = field.write("payload", payload);
    let mut command = Command::new("mosquitto_pub");
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-q", "1", "-t", topic, "-f"]);
    command.arg(file);
    let (code, _, stderr) = run(command, SOON);
    assert_eq!(code, Some(0), "mosquitto_pub (installed by tests/run): {stderr}");
}
