//! Promise 4: a command runs at most once, ends in exactly one final state, and the hub learns
//! which.

use std::time::Duration;

use serde_json::{Value, json};

use crate::field::{
    Field, SOON,
    broker::Broker,
    device::Actuator,
    eventually,
    gateway::{Gateway, Setup},
    hub::Hub,
};

const GATEWAY: &str = "gw-1";
const TTL: Duration = Duration::from_secs(30);

#[test]
fn a_command_runs_once_and_its_states_come_in_order() {
    let field = Field::new();
    let (hub, gateway) = connected(&field, "[\"*/*\"]");
    let device = Actuator::start(gateway.port, "plc-01", obeys);
    wait_until_known(&gateway);

    let id = hub.command(GATEWAY, "plc-01", "set_valve", TTL);
    let outcome = hub.outcome(GATEWAY, &id, SOON);
    assert_eq!(outcome.state, "succeeded", "{outcome:?}");
    assert_in_order(&outcome.states, &["accepted", "delivered", "succeeded"]);
    assert!(outcome.all.to_string().contains("\"valve\""), "the result came: {outcome:?}");
    let heard = device.heard();
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert_eq!(heard[0]["id"], *id);
    assert_eq!(heard[0]["name"], "set_valve");
    assert_eq!(heard[0]["params"], json!({ "open": true }));
}

#[test]
fn a_command_through_mosquitto_runs_once() {
    let field = Field::new();
    let broker = Broker::started(&field);
    let hub = Hub::started(&field);
    let gateway = Gateway::started(&field, &Setup::new(&field, &hub).through(broker.port));
    gateway.wait_connected();
    gateway.wait_until("mosquitto is connected", |status| Gateway::source_up(status, "mqtt"));
    let device = Actuator::start(broker.port, "plc-01", obeys);
    // The broker tells nobody who is subscribed: a command to a device that is not yet there is
    // lost on the way, and a second one shows that the device is.
    let outcome = eventually("a command succeeds", SOON, || {
        let id = hub.command(GATEWAY, "plc-01", "set_valve", TTL);
        let outcome = hub.outcome(GATEWAY, &id, SOON);
        (outcome.state == "succeeded").then_some(outcome)
    });
    assert_in_order(&outcome.states, &["accepted", "delivered", "succeeded"]);
    let mut ids: Vec<String> = device.heard().iter().map(|c| c["id"].to_string()).collect();
    let all = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), all, "a command came twice: {:?}", device.heard());
}

#[test]
fn a_command_whose_outcome_a_crash_hides_ends_unknown_and_is_not_run_again() {
    let field = Field::new();
    let (hub, mut gateway) = connected(&field, "[\"*/*\"]");
    let device = Actuator::start(gateway.port, "plc-01", |_| None);
    wait_until_known(&gateway);

    let id = hub.command(GATEWAY, "plc-01", "set_valve", TTL);
    eventually("the device has the command", SOON, || (!device.heard().is_empty()).then_some(()));
    gateway.kill();
    gateway.start();
    let outcome = hub.outcome(GATEWAY, &id, SOON);
    assert_eq!(outcome.state, "unknown", "{outcome:?}");
    // A second command goes by the same road: had the first been sent again, it would have come
    // before.
    let second = hub.command(GATEWAY, "plc-01", "identify", TTL);
    eventually("the device has the second command", SOON, || {
        device.heard().iter().any(|command| command["id"] == *second).then_some(())
    });
    let times = device.heard().iter().filter(|command| command["id"] == *id).count();
    assert_eq!(times, 1, "{:?}", device.heard());
}

#[test]
fn a_command_that_succeeded_stays_so_when_gateway_and_hub_are_killed() {
    let field = Field::new();
    let (mut hub, mut gateway) = connected(&field, "[\"*/*\"]");
    let device = Actuator::start(gateway.port, "plc-01", obeys);
    wait_until_known(&gateway);
    let id = hub.command(GATEWAY, "plc-01", "set_valve", TTL);
    assert_eq!(hub.outcome(GATEWAY, &id, SOON).state, "succeeded");

    gateway.kill();
    hub.kill();
    hub.start();
    gateway.start();
    gateway.wait_connected();
    assert_eq!(hub.outcome(GATEWAY, &id, SOON).state, "succeeded");
    assert_eq!(device.heard().len(), 1, "{:?}", device.heard());
}

#[test]
fn a_command_that_is_not_allowed_never_reaches_the_device() {
    let field = Field::new();
    let (hub, gateway) = connected(&field, "[\"*/identify\"]");
    let device = Actuator::start(gateway.port, "plc-01", obeys);
    wait_until_known(&gateway);

    let refused = hub.command(GATEWAY, "plc-01", "set_valve", TTL);
    let outcome = hub.outcome(GATEWAY, &refused, SOON);
    assert_eq!(outcome.state, "rejected", "{outcome:?}");
    assert!(outcome.says("not_allowed"), "{outcome:?}");
    let allowed = hub.command(GATEWAY, "plc-01", "identify", TTL);
    assert_eq!(hub.outcome(GATEWAY, &allowed, SOON).state, "succeeded");
    assert!(device.heard().iter().all(|command| command["id"] != *refused), "{:?}", device.heard());
}

#[test]
fn a_command_to_a_device_that_is_away_expires() {
    let field = Field::new();
    let (hub, _gateway) = connected(&field, "[\"*/*\"]");
    let id = hub.command(GATEWAY, "plc-99", "set_valve", Duration::from_millis(1500));
    let outcome = hub.outcome(GATEWAY, &id, SOON);
    assert_eq!(outcome.state, "expired", "{outcome:?}");
}

#[test]
fn a_device_that_does_not_answer_times_the_command_out() {
    let field = Field::new();
    let (hub, gateway) = connected(&field, "[\"*/*\"]");
    let device = Actuator::start(gateway.port, "plc-01", |_| None);
    wait_until_known(&gateway);
    let id = hub.command(GATEWAY, "plc-01", "set_valve", TTL);
    let outcome = hub.outcome(GATEWAY, &id, SOON);
    assert_eq!(outcome.state, "timed_out", "{outcome:?}");
    assert_eq!(device.heard().len(), 1);
}

#[test]
fn a_malformed_command_is_refused_by_the_hub() {
    let field = Field::new();
    let hub = Hub::started(&field);
    hub.add_gateway(&field, GATEWAY);
    let path = format!("/v1/gateways/{GATEWAY}/commands");
    for body in [
        "",
        "{",
        "[]",
        r#"{"device":"plc-01"}"#,
        r#"{"name":"set_valve"}"#,
        r#"{"device":7,"name":"set_valve"}"#,
        r#"{"device":"plc-01","name":"set_valve","ttl_ms":"soon"}"#,
    ] {
        let response = hub.api.post(&path, body).expect("the hub answers");
        assert!((400..500).contains(&response.status), "{body}: {response:?}");
        let error = &response.body["error"];
        assert!(error["code"].is_string() && error["message"].is_string(), "{body}: {response:?}");
    }
    let response = hub.api.post("/v1/gateways/nobody/commands", r#"{"device":"d","name":"n"}"#);
    assert_eq!(response.expect("the hub answers").status, 404);
}

fn connected(field: &Field, allow: &'static str) -> (Hub, Gateway) {
    let hub = Hub::started(field);
    let setup = Setup { allow, ..Setup::new(field, &hub) };
    let gateway = Gateway::started(field, &setup);
    gateway.wait_connected();
    (hub, gateway)
}

/// Waits until the device is connected: before that a command waits, which is another scenario.
fn wait_until_known(gateway: &Gateway) {
    gateway.wait_until("the listener is up", |status| Gateway::source_up(status, "listener"));
}

fn obeys(command: &Value) -> Option<Value> {
    Some(json!({ "id": command["id"], "ok": true, "result": { "valve": "open" } }))
}

/// Whether `wanted` come in this order among `states`.
fn assert_in_order(states: &[String], wanted: &[&str]) {
    let mut rest = states.iter();
    let found = wanted.iter().all(|state| rest.any(|s| s == state));
    assert!(found, "{states:?} has not {wanted:?} in this order");
}
