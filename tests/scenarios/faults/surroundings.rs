//! What the board's own surroundings do: addresses and routes that go, names that nobody answers,
//! a proxy that dies, a hub that stands still.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use super::outpost::{BACK, BRISK, BRISK_UNACKED, DEFAULT_UNACKED, Outpost};
use crate::field::{
    carrier::{BOARD, HUB, add_default_route},
    name_server::NameServer,
    namespace::{etc, ip, is_inside},
    proxy::Proxy,
};

/// Timers that would find a fault only long after the test.
const PATIENT: &str = "ping_interval = \"10m\"\nping_timeout = \"3s\"\nack_timeout = \"10m\"";

#[test]
fn another_address_is_dialled_from_at_once() {
    const CLAIM: &str = "faults::surroundings::another_address_is_dialled_from_at_once";
    if !is_inside(CLAIM) {
        return;
    }
    let mut outpost = Outpost::connected(CLAIM, PATIENT);
    outpost.publish(20);
    let link = outpost.link();
    let began = Instant::now();
    // Routes go along with the address that they go by.
    ip(&format!("addr del {BOARD}/24 dev wan0"));
    ip("addr add 192.0.2.7/24 dev wan0");
    add_default_route();
    outpost.assert_found(&link, began, Duration::from_secs(1));
    outpost.assert_back_within(BACK);
    outpost.assert_nothing_lost_nor_doubled();
}

#[test]
fn a_default_route_that_comes_back_ends_the_wait() {
    const CLAIM: &str = "faults::surroundings::a_default_route_that_comes_back_ends_the_wait";
    if !is_inside(CLAIM) {
        return;
    }
    let mut outpost = Outpost::connected(CLAIM, PATIENT);
    outpost.publish(20);
    let link = outpost.link();
    let began = Instant::now();
    ip("route del default");
    outpost.wait_out(began, Duration::from_millis(1500), Some(&link));
    add_default_route();
    let began = Instant::now();
    outpost.wait_out(began, Duration::from_secs(4), Some(&link));
    outpost.note("without a route for 1.5 s: held; for longer".into());

    let began = Instant::now();
    ip("route del default");
    // A Ping asks at once, and its time is what finds it.
    outpost.assert_found(&link, began, Duration::from_secs(1 + 3));
    outpost.wait_out(began, Duration::from_secs(25), None);
    add_default_route();
    outpost.assert_back_within(BACK);
    outpost.assert_nothing_lost_nor_doubled();
}

#[test]
fn a_hub_that_stands_still_is_found_and_waited_for() {
    const CLAIM: &str = "faults::surroundings::a_hub_that_stands_still_is_found_and_waited_for";
    if !is_inside(CLAIM) {
        return;
    }
    let mut outpost = Outpost::connected(CLAIM, "");
    outpost.publish(20);
    let link = outpost.link();
    let began = Instant::now();
    let hub = |outpost: &Outpost, signal| {
        outpost.hub.process.as_ref().expect("the hub runs").signal(signal);
    };
    hub(&outpost, "STOP");
    outpost.assert_found(&link, began, DEFAULT_UNACKED);
    outpost.wait_out(began, Duration::from_secs(30), None);
    hub(&outpost, "CONT");
    outpost.assert_back();
    outpost.assert_nothing_lost_nor_doubled();
}

#[test]
fn a_proxy_that_is_killed_is_waited_for() {
    const CLAIM: &str = "faults::surroundings::a_proxy_that_is_killed_is_waited_for";
    if !is_inside(CLAIM) {
        return;
    }
    let mut outpost = Outpost::new(CLAIM, BRISK, None);
    let mut proxy = Proxy::tinyproxy(&outpost.field, "apasswordofthistest");
    let members = proxy.members(&outpost.field, "http", "apasswordofthistest");
    outpost.add_to_uplink(&members);
    outpost.hub.start();
    outpost.gateway.start();
    outpost.publish(20);
    let link = outpost.link();
    let began = Instant::now();
    proxy.process.kill();
    outpost.assert_found(&link, began, Duration::from_secs(1));
    outpost.wait_out(began, Duration::from_secs(8), None);
    proxy.restart();
    outpost.assert_back();
    outpost.assert_nothing_lost_nor_doubled();
}

#[test]
fn a_silent_name_server_costs_the_next_attempt_and_no_live_link() {
    const CLAIM: &str =
        "faults::surroundings::a_silent_name_server_costs_the_next_attempt_and_no_live_link";
    if !is_inside(CLAIM) {
        return;
    }
    let mut outpost = Outpost::new(CLAIM, BRISK, None);
    etc(&outpost.field, "hosts", "127.0.0.1 localhost\n");
    etc(&outpost.field, "nsswitch.conf", "hosts: files dns\n");
    etc(&outpost.field, "resolv.conf", "nameserver 127.0.0.53\n");
    let hub: Ipv4Addr = HUB.parse().expect("an address");
    let names = NameServer::start(SocketAddr::from(([127, 0, 0, 53], 53)), hub);
    outpost.hub.start();
    outpost.gateway.start();
    let blamed = |status: &serde_json::Value| {
        status["uplink"]["last_error"].as_str().is_some_and(|error| error.starts_with("DNS: "))
    };
    outpost.gateway.wait_until("the name server is blamed", blamed);
    assert!(names.heard() > 0, "nobody asked");
    outpost.publish(20);
    names.set_silent(false);
    outpost.note("silent at the start".into());
    outpost.assert_back();

    let link = outpost.link();
    names.set_silent(true);
    let began = Instant::now();
    outpost.wait_out(began, Duration::from_secs(6), Some(&link));
    outpost.note("silent for 6 s beside a live link: held; then with the link cut".into());
    let began = Instant::now();
    outpost.hub.kill();
    outpost.hub.start();
    outpost.assert_found(&link, began, BRISK_UNACKED);
    outpost.gateway.wait_until("the name server is blamed again", blamed);
    names.set_silent(false);
    outpost.assert_back();
    outpost.assert_nothing_lost_nor_doubled();
}
