//! All of a board's work in one go. `tests/run qemu` runs it with the gateways of other processors,
//! `tests/run memory` with one that has little memory.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    delivery::{assert_delivered, assert_doubled_by_devices_only, collect},
    field::{
        Field, SOON,
        device::{Actuator, Habits, Publisher},
        eventually,
        gateway::{Gateway, Setup},
        hub::Hub,
    },
};

const GATEWAY: &str = "gw-1";
const DEVICES: u64 = 4;
const PER_SECOND: u32 = 2000;
const PUBLISHES: u64 = 4000;

/// With it the backlog is more than twice what the gateway keeps in memory.
const PADDING_BYTES: usize = 2000;

/// How long all publishes may take on an emulated processor; on a real one it takes 10 s.
const PATIENCE: Duration = Duration::from_secs(200);

#[test]
fn the_uplink_loses_and_doubles_nothing_and_commands_run_once_through_outages_and_kills() {
    let field = Field::new();
    let mut hub = Hub::started(&field);
    let mut gateway = Gateway::started(&field, &Setup::new(&field, &hub));
    gateway.wait_connected();
    let valve = Actuator::start(gateway.port, "valve-01", |command: &Value| {
        Some(json!({ "id": command["id"], "ok": true, "result": { "valve": "open" } }))
    });
    command_succeeds(&hub);

    let start = Instant::now();
    let publishers: Vec<Publisher> = (1..=DEVICES).map(|n| publisher(gateway.port, n)).collect();
    reach(&publishers, 5);
    hub.kill();
    reach(&publishers, 50);
    gateway.kill();
    gateway.start();
    reach(&publishers, 60);
    hub.start();
    hub.wait_for(GATEWAY, "the backlog begins to arrive", |row| row.n.is_some_and(|n| n > 1000));
    println!("resident at most while a backlog grew: {} KiB", gateway.peak_resident_kib());
    gateway.kill();
    gateway.start();
    reach(&publishers, 100);
    command_succeeds(&hub);

    let ledger = collect(&hub, &publishers);
    assert_delivered(&ledger, &publishers);
    assert_doubled_by_devices_only(&ledger, &publishers);
    println!("{} publishes took {:?}", DEVICES * PUBLISHES, start.elapsed());
    println!("resident at most while it was drained: {} KiB", gateway.peak_resident_kib());
    assert_eq!(valve.heard().len(), 2, "each command once: {:?}", valve.heard());
    assert_eq!(gateway.terminate().0.code(), Some(0));
}

fn publisher(port: u16, n: u64) -> Publisher {
    let device = format!("plc-{n:02}");
    let habits = Habits {
        per_second: PER_SECOND,
        count: PUBLISHES,
        padding_bytes: PADDING_BYTES,
        ..Habits::default()
    };
    Publisher::with(port, &device, habits)
}

/// Waits until so much of all publishes is acknowledged.
fn reach(publishers: &[Publisher], percent: u64) {
    let total = DEVICES * PUBLISHES;
    let acked = || publishers.iter().map(Publisher::acked).sum::<u64>();
    let what = format!("{percent} % of {total} publishes are acknowledged");
    eventually(&what, PATIENCE, || (acked() >= total * percent / 100).then_some(()));
}

fn command_succeeds(hub: &Hub) {
    let id = hub.command(GATEWAY, "valve-01", "set_valve", Duration::from_secs(60));
    let outcome = hub.outcome(GATEWAY, &id, SOON);
    assert_eq!(outcome.state, "succeeded", "{outcome:?}");
    // A reply that overtakes the news of the PUBACK leaves `delivered` out.
    let mut states = outcome.states.iter().filter(|state| *state != "delivered");
    assert!(states.any(|state| state == "accepted"), "{outcome:?}");
    assert_eq!(states.collect::<Vec<_>>(), ["succeeded"], "{outcome:?}");
}
