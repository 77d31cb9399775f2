//! A board without a clock, or with one that jumps (PROTOCOL.md, section 9).

use std::path::Path;

use super::{
    identity::{hub_with_authority, invited},
    rotation::signing,
};
use crate::field::{
    Field, SOON,
    certificate::{Certified, TlsServer, issue, trusting},
    clock::{WrongClock, YEAR_S, is_kept, this_year, unix_s},
    device::{Account, Publisher},
    eventually, free_port,
    gateway::{Gateway, Setup, binary},
    hub::{CERT, Hub, KEY, Row},
    issuer::{CODE, Issuer},
    namespace::{instead, is_inside},
    process::run,
};

const GATEWAY: &str = "gw-1";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A record's time may lie so far beside the time at which the device published it. What a hub says
/// is as exact as the way from it is short.
const NEAR_MS: u64 = 2000;

/// A hub with a certificate that is valid this year and the next; it is not started.
fn hub(field: &Field) -> Hub {
    let mut hub = Hub::new(field);
    let Certified { ca, cert, key } = issue(field, "own", "localhost", this_year() + 2);
    for (from, to) in [(&ca, "ca.pem"), (&cert, CERT), (&key, KEY)] {
        std::fs::copy(from, field.path(to)).expect("files in an own directory");
    }
    hub.api.tls = Some(trusting(&ca));
    hub
}

fn gateway(field: &Field, setup: &Setup, clock: &WrongClock) -> Gateway {
    let mut gateway = Gateway::new(field, setup);
    gateway.environment = clock.environment();
    gateway
}

fn publish(gateway: &Gateway, device: &str, count: u64) -> Account {
    let publisher = Publisher::start(gateway.port, device, 100, count);
    eventually("all is acknowledged", SOON, || publisher.done().then_some(()));
    publisher.account()
}

fn is_marked(row: &Row) -> bool {
    row.all["unsynced"] == true
}

fn rows_of(hub: &Hub, device: &str, count: u64) -> Vec<Row> {
    hub.wait_for(GATEWAY, "the last one arrives", |row| {
        row.device.as_deref() == Some(device) && row.n == Some(count)
    });
    let mut rows = hub.all_records(GATEWAY);
    rows.retain(|row| row.n.is_some() && row.device.as_deref() == Some(device));
    let numbers: Vec<u64> = rows.iter().filter_map(|row| row.n).collect();
    assert_eq!(numbers, (1..=count).collect::<Vec<u64>>());
    rows
}

/// Each arrived once, in order, and with the time at which the device published it.
fn assert_right_times(rows: &[Row], account: &Account) {
    for (row, (sent_ms, acked_ms)) in rows.iter().zip(&account.spans_ms) {
        let ts = row.all["ts"].as_u64().expect("a record has a time");
        let right = (sent_ms - NEAR_MS..=acked_ms + NEAR_MS).contains(&ts);
        assert!(right && !is_marked(row), "published at {sent_ms}, acked at {acked_ms}: {row:?}");
    }
}

#[test]
fn a_board_that_wakes_in_1970_or_2040_connects_and_its_records_have_the_right_time() {
    for off_s in [10 - unix_s(), (2040 - i64::from(this_year())) * YEAR_S] {
        let field = Field::new();
        let mut hub = hub(&field);
        let clock = WrongClock::ahead(&field, off_s);
        let mut gateway = gateway(&field, &Setup::new(&field, &hub), &clock);
        gateway.start();
        let status = gateway.status().expect("it just answered");
        if is_kept(&status) {
            return;
        }
        assert_eq!(status["clock"]["trusted"], false, "{status}");
        let before = publish(&gateway, "before", 20);
        hub.start();
        let status = gateway.wait_connected();
        assert_eq!(status["clock"]["by"], "hub", "{status}");
        let found_s = status["clock"]["system_clock_off_ms"].as_i64().unwrap_or_default() / 1000;
        assert!((found_s - off_s).abs() <= 2, "{off_s}: {status}");
        let after = publish(&gateway, "after", 20);
        assert_right_times(&rows_of(&hub, "before", 20), &before);
        assert_right_times(&rows_of(&hub, "after", 20), &after);
        let log = gateway.log();
        assert_eq!(log.matches("the system clock is wrong").count(), 1, "{log}");
    }
}

/// The commands of the identity asked the system clock alone. In 2040 each new certificate was
/// "expired", the first one when its code had been spent already; in 1970 none was ever due, so
/// that the one in force ran out in the field.
#[test]
fn a_board_with_a_wrong_clock_is_enrolled_and_renewed_in_time() {
    for off_s in [10 - unix_s(), (2040 - i64::from(this_year())) * YEAR_S] {
        let field = Field::new();
        let hub = hub_with_authority(&field, "[ca]\ndays = 20");
        let clock = WrongClock::ahead(&field, off_s);
        let listener = format!("[listener]\nbind = \"127.0.0.1:{}\"\n", free_port());
        let config =
            field.write("gw.toml", "[gateway]\nstate_dir = \"state\"\n".to_owned() + &listener);
        let said = |words: &[&str]| {
            let mut command = binary();
            command.args(words).arg("--config").arg(&config).envs(clock.environment());
            let (code, stdout, stderr) = run(command, SOON);
            (code, stdout + &stderr)
        };
        let (_, text) = said(&["enroll", &invited(&hub)]);
        assert!(text.contains("ok    upgrade") && !text.contains("expired"), "{off_s}: {text}");

        let mut gateway = Gateway::of(config.clone(), 0, field.path("gw.log"));
        gateway.environment = clock.environment();
        gateway.start();
        let status = gateway.wait_connected();
        if is_kept(&status) {
            return;
        }
        assert_eq!(status["clock"]["by"], "hub", "{status}");
        gateway.terminate();
        let needs = |within| said(&["identity", "needs-renewal", "--within", within]).0;
        assert_eq!((needs("30d"), needs("5d")), (Some(0), Some(1)), "{off_s}");
        let (code, text) = said(&["identity", "renew"]);
        assert_eq!(code, Some(0), "{off_s}: {text}");
        let (_, text) = said(&["identity", "show"]);
        let is_fresh =
            ["19", "20"].iter().any(|days| text.contains(&format!("days_left       {days}")));
        assert!(is_fresh, "{off_s}: {text}");
    }
}

/// A token of a wrong time was refused, and the certificate taken for what the hub wants.
#[test]
fn a_board_with_a_wrong_clock_finds_out_that_the_hub_takes_tokens() {
    for off_s in [10 - unix_s(), (2040 - i64::from(this_year())) * YEAR_S] {
        let field = Field::new();
        let issuer = Issuer::start(true);
        let clock = WrongClock::ahead(&field, off_s);
        let mut command = binary();
        command.arg("enroll").arg(issuer.invitation(CODE, &issuer.fingerprint()));
        command.arg("--config").arg(field.path("gw.toml")).envs(clock.environment());
        command.env("STATE_DIRECTORY", field.path("state"));
        let (_, stdout, stderr) = run(command, SOON);
        let enrolment = std::fs::read_to_string(field.path("state/identity/uplink.toml"));
        let enrolment = enrolment.unwrap_or_else(|e| panic!("{e}: {stdout}{stderr}"));
        assert!(enrolment.contains("[uplink.jwt]"), "{off_s}: {enrolment}");
    }
}

/// Its first token is of a wrong time. The refusal says what the time is; that was learnt, and then
/// waited with for as long as after any refused credential.
#[test]
fn a_board_that_signs_its_tokens_connects_at_once_whatever_its_clock_says() {
    for off_s in [10 - unix_s(), (2040 - i64::from(this_year())) * YEAR_S] {
        let field = Field::new();
        let mut hub = hub(&field);
        hub.start();
        let clock = WrongClock::ahead(&field, off_s);
        let setup = Setup { backoff: ("200ms", "10m"), ..signing(&field, &hub, "") };
        let mut gateway = gateway(&field, &setup, &clock);
        gateway.start();
        let status = gateway.wait_connected();
        if is_kept(&status) {
            return;
        }
        assert_eq!(status["uplink"]["attempts"], 2, "{off_s}: {status}");
    }
}

#[test]
fn an_expired_certificate_is_refused_whatever_the_clock_says() {
    let field = Field::new();
    let expired = issue(&field, "expired", "localhost", 2024);
    let server = TlsServer::start(&expired);
    // At both it had not begun yet, or was valid.
    for year in [1971, 2022] {
        let clock = WrongClock::ahead(&field, (year - i64::from(this_year())) * YEAR_S);
        let url = format!("url = \"wss://localhost:{}/v1/gateway\"", server.port);
        let setup = Setup::towards(format!("{url}\nca_file = \"{}\"", expired.ca.display()));
        let mut gateway = gateway(&field, &setup, &clock);
        gateway.start();
        let status = gateway.wait_until("it says why", |status| {
            let error = status["uplink"]["last_error"].as_str().unwrap_or_default();
            error.contains("expired at 2024-01-01") && error.contains("the earliest that it can be")
        });
        assert!(status["uplink"]["state"] != "connected", "{status}");
    }
}

#[test]
fn a_clock_that_jumps_breaks_nothing() {
    const COUNT: u64 = 600;
    const DAY_S: i64 = 86_400;
    let field = Field::new();
    let mut hub = hub(&field);
    hub.start();
    let clock = WrongClock::ahead(&field, 0);
    let mut gateway = gateway(&field, &Setup::new(&field, &hub), &clock);
    gateway.start();
    let status = gateway.wait_connected();
    if is_kept(&status) {
        return;
    }
    assert_eq!(status["clock"]["by"], "system clock and hub", "{status}");
    let publisher = Publisher::start(gateway.port, "plc-01", 200, COUNT);
    for (part, off_s) in [(1, DAY_S), (2, -400 * DAY_S), (3, 20 * YEAR_S), (4, -unix_s()), (5, 0)] {
        eventually("the load is on", SOON, || (publisher.acked() >= part * 100).then_some(()));
        clock.jump(off_s);
    }
    eventually("all is acknowledged", SOON, || publisher.done().then_some(()));
    assert_right_times(&rows_of(&hub, "plc-01", COUNT), &publisher.account());
    let status = gateway.wait_until("the clock is right again", |status| {
        status["clock"]["by"] == "system clock and hub"
    });
    assert_eq!(status["uplink"]["attempts"], 1, "the link stays: {status}");
    let log = gateway.log();
    assert_eq!(log.matches("the system clock is wrong").count(), 1, "{log}");

    // Nor does a session that begins at a wrong time, with a ticket of a right one.
    clock.jump(20 * YEAR_S);
    hub.kill();
    gateway.wait_until("the hub is missed", |status| status["uplink"]["state"] != "connected");
    hub.start();
    gateway.wait_connected();
    assert_eq!(gateway.terminate().0.code(), Some(0));
}

#[test]
fn records_of_before_a_restart_get_their_time_in_the_same_boot_and_are_marked_after_another() {
    const TEST: &str = "time::records_of_before_a_restart_get_their_time_in_the_same_boot_and_are_\
                        marked_after_another";
    if !is_inside(TEST) {
        return;
    }
    crate::field::namespace::ip("link set lo up");
    let boot = |field: &Field, n: u8| {
        let id = format!("9e0cf64f-09ba-4279-9551-790d5a33e3a{n}\n");
        instead(field, Path::new(BOOT_ID), &id);
    };
    let field = Field::new();
    boot(&field, 1);
    let mut hub = hub(&field);
    let clock = WrongClock::ahead(&field, 10 - unix_s());
    let mut gateway = gateway(&field, &Setup::new(&field, &hub), &clock);
    gateway.start();
    publish(&gateway, "earlier", 5);
    gateway.terminate();
    boot(&field, 2);
    gateway.start();
    let before = publish(&gateway, "before", 5);
    gateway.kill();
    gateway.start();
    hub.start();
    gateway.wait_connected();
    assert_right_times(&rows_of(&hub, "before", 5), &before);
    let earlier = rows_of(&hub, "earlier", 5);
    assert!(earlier.iter().all(is_marked), "{earlier:?}");

    // What the hub confirmed is known to the next start, in this boot and as a bound in another.
    gateway.terminate();
    hub.kill();
    gateway.start();
    let status = gateway.status().expect("it just answered");
    assert_eq!(status["clock"]["by"], "hub", "{status}");
    let after = publish(&gateway, "after", 5);
    gateway.terminate();
    boot(&field, 3);
    gateway.start();
    let status = gateway.status().expect("it just answered");
    assert_eq!(status["clock"]["trusted"], false, "{status}");
    let estimate_s = status["clock"]["unix_ms"].as_i64().unwrap_or_default() / 1000;
    assert!(estimate_s >= unix_s() - 60, "{status}");
    hub.start();
    gateway.wait_connected();
    assert_right_times(&rows_of(&hub, "after", 5), &after);
}
