//! What the network between does: it swallows, loses, delays, forgets.

use std::time::{Duration, Instant};

use serde_json::json;

use super::outpost::{
    BRISK, BRISK_SILENT, BRISK_UNACKED, DEFAULT_SILENT, DEFAULT_UNACKED, GATEWAY, Outpost,
};
use crate::field::{
    SOON,
    carrier::{Line, Way},
    device::{Actuator, Habits, Publisher},
    eventually,
    namespace::is_inside,
};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_minute_without_a_packet_is_found_by_the_missing_acks() {
    const CLAIM: &str = "faults::carrier::a_minute_without_a_packet_is_found_by_the_missing_acks";
    if !is_inside(CLAIM) {
        return;
    }
    let mut outpost = Outpost::connected(CLAIM, "");
    outpost.publish(20);
    let link = outpost.link();
    let began = Instant::now();
    outpost.carrier.swallow();
    outpost.assert_found(&link, began, DEFAULT_UNACKED);
    outpost.wait_out(began, MINUTE, None);
    outpost.carrier.heal();
    outpost.assert_back();
    outpost.assert_nothing_lost_nor_doubled();
}

#[test]
fn a_minute_without_a_packet_is_found_by_the_missing_pong() {
    const CLAIM: &str = "faults::carrier::a_minute_without_a_packet_is_found_by_the_missing_pong";
    if !is_inside(CLAIM) {
        return;
    }
    let mut outpost = Outpost::connected(CLAIM, "");
    let link = outpost.link();
    let began = Instant::now();
    outpost.carrier.swallow();
    outpost.assert_found(&link, began, DEFAULT_SILENT);
    outpost.wait_out(began, MINUTE, None);
    outpost.publish(20);
    outpost.carrier.heal();
    outpost.assert_back();
    outpost.assert_nothing_lost_nor_doubled();
}

#[test]
fn packets_that_only_arrive_are_found_missing() {
    const CLAIM: &str = "faults::carrier::packets_that_only_arrive_are_found_missing";
    if is_inside(CLAIM) {
        one_way_only(CLAIM, Way::Up);
    }
}

#[test]
fn packets_that_only_leave_are_found_missing() {
    const CLAIM: &str = "faults::carrier::packets_that_only_leave_are_found_missing";
    if is_inside(CLAIM) {
        one_way_only(CLAIM, Way::Down);
    }
}

/// Idle first, then while data flows. Where packets still arrive, the hub, which hears nothing,
/// sends its first Ping at a moment that is random: a sign of life from which the time counts anew,
/// once, for it gives up before its second.
fn one_way_only(claim: &'static str, dead: Way) {
    let times = if matches!(dead, Way::Up) { 2 } else { 1 };
    let mut outpost = Outpost::connected(claim, BRISK);
    let link = outpost.link();
    let began = Instant::now();
    outpost.carrier.afflict(dead, "drop");
    outpost.assert_found(&link, began, BRISK_SILENT * times);
    outpost.carrier.heal();
    let link = outpost.assert_back();

    outpost.publish(20);
    let began = Instant::now();
    outpost.carrier.afflict(dead, "drop");
    outpost.assert_found(&link, began, BRISK_UNACKED * times);
    outpost.carrier.heal();
    outpost.assert_back();
    outpost.assert_nothing_lost_nor_doubled();
}

#[test]
fn three_packets_lost_of_ten_lose_no_record() {
    const CLAIM: &str = "faults::carrier::three_packets_lost_of_ten_lose_no_record";
    if !is_inside(CLAIM) {
        return;
    }
    let mut outpost = Outpost::connected(CLAIM, "");
    outpost.publish(20);
    let began = Instant::now();
    outpost.carrier.afflict(Way::Up, "numgen random mod 100 < 30 drop");
    outpost.carrier.afflict(Way::Down, "numgen random mod 100 < 30 drop");
    let mut connected = 0;
    let mut looks = 0;
    while began.elapsed() < MINUTE {
        looks += 1;
        connected += u32::from(outpost.status()["uplink"]["state"] == "connected");
        std::thread::sleep(Duration::from_millis(100));
    }
    outpost.carrier.heal();
    outpost
        .note(format!("30 % lost each way: connected {} % of a minute", 100 * connected / looks));
    outpost.assert_back();
    outpost.assert_nothing_lost_nor_doubled();
}

/// 64 kbit/s and 300 ms each way, with a queue that takes 8 s to drain.
const SLOW: Line = Line { delay_ms: 300, bytes_per_second: 8000, queue_bytes: 64_000 };

#[test]
fn a_slow_and_long_line_with_a_backlog_is_no_dead_one() {
    const CLAIM: &str = "faults::carrier::a_slow_and_long_line_with_a_backlog_is_no_dead_one";
    if is_inside(CLAIM) {
        let habits = Habits { per_second: 200, count: 600, filler_bytes: 450, ..Habits::default() };
        crosses_a_slow_line(CLAIM, habits);
    }
}

#[test]
fn records_of_the_largest_size_cross_a_slow_and_long_line() {
    const CLAIM: &str = "faults::carrier::records_of_the_largest_size_cross_a_slow_and_long_line";
    if is_inside(CLAIM) {
        let habits =
            Habits { per_second: 10, count: 3, filler_bytes: 130_000, ..Habits::default() };
        crosses_a_slow_line(CLAIM, habits);
    }
}

/// A backlog of what the device publishes crosses the line in one session.
fn crosses_a_slow_line(claim: &'static str, habits: Habits) {
    let mut outpost = Outpost::new(claim, "", Some(SLOW));
    outpost.gateway.start();
    let bytes = habits.count * (habits.filler_bytes as u64 + 50);
    let publisher = Publisher::with(outpost.gateway.port, "plc-01", habits);
    eventually("a backlog waits", SOON, || publisher.done().then_some(()));
    outpost.publisher = Some(publisher);
    outpost.hub.start();
    let link = outpost.link();
    let began = Instant::now();
    let drained = Duration::from_secs(150);
    let held = |stream: &serde_json::Value| stream["held"].as_u64() > Some(0);
    while outpost.status()["streams"].as_array().is_some_and(|all| all.iter().any(held)) {
        outpost.assert_held(&link);
        assert!(began.elapsed() < drained, "not within {drained:?}: {}", outpost.status());
        std::thread::sleep(Duration::from_millis(250));
    }
    outpost.assert_held(&link);
    outpost.note(format!(
        "64 kbit/s, 300 ms each way: {} kB drained in {:.0} s on one session",
        bytes / 1000,
        began.elapsed().as_secs_f64()
    ));
    outpost.assert_nothing_lost_nor_doubled();
}

/// A command of 240 kB takes half a minute at 64 kbit/s, and a second one takes no less to find
/// room in the socket. The hub cut the line after 20 s of that, the gateway dialled anew, and was
/// sent the same commands again, for ever.
#[test]
fn commands_that_take_longer_than_every_deadline_cross_a_slow_line_once() {
    const CLAIM: &str =
        "faults::carrier::commands_that_take_longer_than_every_deadline_cross_a_slow_line_once";
    if !is_inside(CLAIM) {
        return;
    }
    let mut outpost = Outpost::new(CLAIM, "", Some(SLOW));
    outpost.hub.start();
    outpost.gateway.start();
    let link = outpost.link();
    // Acks have to pass the commands.
    outpost.publish(5);
    let obeys = |command: &serde_json::Value| Some(json!({ "id": command["id"], "ok": true }));
    let valve = Actuator::start(outpost.gateway.port, "valve-1", obeys);
    let began = Instant::now();
    let within = Duration::from_secs(150);
    let sizes = [240_000, 240_000, 20_000];
    let ids = sizes.map(|bytes| {
        let params = json!({ "recipe": "x".repeat(bytes) });
        outpost.hub.command_with(GATEWAY, "valve-1", "cook", within * 2, params)
    });
    while valve.heard().len() < ids.len() {
        outpost.assert_held(&link);
        assert!(began.elapsed() < within, "{CLAIM}: {} came", valve.heard().len());
        std::thread::sleep(Duration::from_millis(250));
    }
    outpost.note(format!(
        "64 kbit/s, 300 ms each way: {} kB of commands in {:.0} s on one session",
        sizes.iter().sum::<usize>() / 1000,
        began.elapsed().as_secs_f64()
    ));
    for id in &ids {
        assert_eq!(outpost.hub.outcome(GATEWAY, id, MINUTE).state, "succeeded", "{CLAIM}: {id}");
    }
    outpost.assert_held(&link);
    let heard: Vec<_> = valve.heard().iter().map(|command| command["id"].clone()).collect();
    assert_eq!(heard, ids, "each once, in their order");
    outpost.assert_nothing_lost_nor_doubled();
}

#[test]
fn a_hole_for_large_packets_is_noticed_and_outlived() {
    const CLAIM: &str = "faults::carrier::a_hole_for_large_packets_is_noticed_and_outlived";
    if !is_inside(CLAIM) {
        return;
    }
    let mut outpost = Outpost::connected(CLAIM, BRISK);
    let link = outpost.link();
    let began = Instant::now();
    for way in [Way::Up, Way::Down] {
        outpost.carrier.afflict(way, "meta length > 600 drop");
    }
    // What is alone in its packet still passes.
    outpost.wait_out(began, Duration::from_secs(10), Some(&link));
    let habits = Habits { per_second: 20, count: u64::MAX, filler_bytes: 900, ..Habits::default() };
    let publisher = Publisher::with(outpost.gateway.port, "plc-01", habits);
    outpost.publisher = Some(publisher);
    let began = Instant::now();
    outpost.note("idle: held for 10 s; with large records".into());
    outpost.assert_found(&link, began, BRISK_UNACKED);
    // A resumed TLS session has small packets only: an attempt through the hole may well succeed,
    // and is found out by the same deadlines.
    outpost.gateway.wait_until("the next one through the hole has ended too", |status| {
        status["uplink"]["attempts"].as_u64() > Some(2)
    });
    let sessions = outpost.gateway.log().matches("the session with the hub is on").count();
    outpost.note(format!("{} of the next attempts got through the hole", sessions - 1));
    outpost.carrier.heal();
    outpost.assert_back();
    outpost.assert_nothing_lost_nor_doubled();
}

#[test]
fn an_address_translation_that_forgets_is_outpinged() {
    const CLAIM: &str = "faults::carrier::an_address_translation_that_forgets_is_outpinged";
    if !is_inside(CLAIM) {
        return;
    }
    let mut outpost = Outpost::new(CLAIM, "ping_interval = \"2s\"\nping_timeout = \"2s\"", None);
    outpost.carrier.translate(5);
    outpost.hub.start();
    outpost.gateway.start();
    let link = outpost.link();
    outpost.wait_out(Instant::now(), Duration::from_secs(20), Some(&link));
    outpost.note("forgets after 5 s, pinged every 2 s: held for 20 s of silence".into());
    outpost.publish(20);
    outpost.assert_held(&link);
    outpost.assert_nothing_lost_nor_doubled();
}

#[test]
fn an_address_translation_that_forgot_is_found_by_a_ping() {
    const CLAIM: &str = "faults::carrier::an_address_translation_that_forgot_is_found_by_a_ping";
    if !is_inside(CLAIM) {
        return;
    }
    let mut outpost = Outpost::new(CLAIM, "ping_interval = \"12s\"\nping_timeout = \"3s\"", None);
    outpost.carrier.translate(3);
    outpost.hub.start();
    outpost.gateway.start();
    let link = outpost.link();
    // The first Ping comes at a random point of its interval, perhaps before the flow is forgotten.
    outpost.assert_found(&link, Instant::now(), Duration::from_secs(3 + 12 + 3));
    outpost.assert_back();
    outpost.publish(20);
    outpost.assert_nothing_lost_nor_doubled();
}

#[test]
fn an_address_translation_that_forgot_is_found_by_data() {
    const CLAIM: &str = "faults::carrier::an_address_translation_that_forgot_is_found_by_data";
    if !is_inside(CLAIM) {
        return;
    }
    let mut outpost = Outpost::new(CLAIM, "ping_interval = \"1h\"\nack_timeout = \"5s\"", None);
    outpost.carrier.translate(3);
    outpost.hub.start();
    outpost.gateway.start();
    let link = outpost.link();
    outpost.wait_out(Instant::now(), Duration::from_secs(6), Some(&link));
    let began = Instant::now();
    outpost.publish(20);
    outpost.assert_found(&link, began, BRISK_UNACKED);
    outpost.assert_back();
    outpost.assert_nothing_lost_nor_doubled();
}
