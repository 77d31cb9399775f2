//! A server that is none: it welcomes the gateway and is then deaf, mute, loud, or out of its mind.
//! The gateway finds it in time, says what is wrong, keeps what it has, and stays small.

use std::time::{Duration, Instant};

use super::outpost::{BRISK, BRISK_INTERVAL, BRISK_SILENT, BRISK_UNACKED, GRACE, say};
use crate::field::{
    Field, SOON,
    device::{Habits, Publisher},
    eventually,
    gateway::{Gateway, Setup},
    rogue::{Rogue, Vice},
};

/// What a gateway has at its highest, whatever the server does. It is bounded by the records in
/// memory (8 MiB), the largest message (256 KiB) and the program itself.
const MAX_RESIDENT_KIB: u64 = 40 * 1024;

/// RFC 6455, section 7.4.1.
const PROTOCOL_ERROR: u16 = 1002;
const NOT_UTF8: u16 = 1007;
const TOO_BIG: u16 = 1009;

/// Publishes this often against a rogue, and says after how long a link to it ended, and how.
struct Trial {
    per_second: u32,
    within: Duration,
    says: &'static str,
    close: Option<u16>,
}

fn started(field: &Field, rogue: &Rogue) -> Gateway {
    let url = format!("url = \"ws://127.0.0.1:{}/\"\nprotocol = \"managed\"", rogue.port);
    Gateway::started(field, &Setup::towards(format!("{url}\n{BRISK}")))
}

fn publisher(gateway: &Gateway, per_second: u32) -> Publisher {
    let habits = Habits { per_second, count: u64::MAX, filler_bytes: 2000, ..Habits::default() };
    Publisher::with(gateway.port, "plc-01", habits)
}

/// How many records the device saw acknowledged, all of which are held.
fn assert_held(gateway: &Gateway, publisher: &Publisher) -> u64 {
    publisher.finish();
    eventually("all is acknowledged to the device", SOON, || publisher.done().then_some(()));
    let streams = gateway.status().expect("it answers")["streams"].clone();
    let telemetry = streams.as_array().into_iter().flatten().find(|s| s["stream"] == "telemetry");
    let held = telemetry.and_then(|stream| stream["held"].as_u64());
    assert_eq!(held, Some(publisher.acked()), "what nobody acknowledged is held");
    publisher.acked()
}

/// How many megabytes it had at its highest.
fn assert_small(gateway: &Gateway) -> u64 {
    let peak = gateway.peak_resident_kib();
    assert!(peak < MAX_RESIDENT_KIB, "{peak} KiB resident");
    peak / 1024
}

fn try_on(claim: &str, vice: Vice, trial: &Trial) {
    let field = Field::new();
    let rogue = Rogue::start(vice);
    let gateway = started(&field, &rogue);
    let publisher = (trial.per_second > 0).then(|| publisher(&gateway, trial.per_second));
    let began = Instant::now();
    // In the log: the status forgets it with the next session, which the rogue grants at once.
    let found = eventually("the fault is named", trial.within + GRACE, || {
        gateway.log().contains(trial.says).then(|| began.elapsed())
    });
    if let Some(code) = trial.close {
        eventually("the rogue is told", SOON, || rogue.closes().contains(&code).then_some(()));
    }
    // It goes on: another attempt, another end of the same kind.
    let attempts = gateway.status().expect("it answers")["uplink"]["attempts"].as_u64();
    eventually("it tries again", SOON, || {
        (gateway.status()?["uplink"]["attempts"].as_u64() > attempts).then_some(())
    });
    let held = publisher.map_or(0, |publisher| assert_held(&gateway, &publisher));
    let (peak, took) = (assert_small(&gateway), found.as_secs_f64());
    let close = trial.close.map_or("no close".to_owned(), |code| format!("closed with {code}"));
    let says = trial.says;
    let figures = format!(
        "named after {took:.1} s ({says}), {close}, {held} records held, {peak} MB at its highest"
    );
    say(claim, &figures);
}

#[test]
fn a_server_that_reads_no_more_is_found_by_the_missing_acks() {
    let says = "and no progress within";
    let trial = Trial { per_second: 500, within: BRISK_UNACKED, says, close: None };
    try_on("faults::wedged: deaf, with data", Vice::Deaf, &trial);
}

#[test]
fn a_server_that_answers_no_ping_is_found_by_it() {
    let trial = Trial { per_second: 0, within: BRISK_SILENT, says: "no Pong", close: None };
    try_on("faults::wedged: mute, idle", Vice::Mute, &trial);
}

#[test]
fn a_server_that_reads_and_acknowledges_nothing_is_found_by_it() {
    let says = "and no progress within";
    let trial = Trial { per_second: 500, within: BRISK_UNACKED, says, close: None };
    try_on("faults::wedged: mute, with data", Vice::Mute, &trial);
}

#[test]
fn a_flood_costs_neither_memory_nor_records() {
    // Which a gateway that does not know it has to ignore (PROTOCOL.md, section 1).
    let unknown = br#"{"type":"weather","sky":"clear"}"#;
    let text = [&[0x81, unknown.len() as u8][..], unknown].concat();
    let ping = [&[0x89, 125][..], &[b'p'; 125]].concat();
    for (what, frame) in [("a flood of messages", text), ("a flood of Pings", ping)] {
        let field = Field::new();
        let rogue = Rogue::start(Vice::Floods(frame));
        let gateway = started(&field, &rogue);
        let publisher = publisher(&gateway, 500);
        let began = Instant::now();
        eventually("devices are heard and answered all the while", 4 * SOON, || {
            (publisher.acked() >= 3000).then_some(())
        });
        let took = began.elapsed().as_secs_f64();
        let acked = assert_held(&gateway, &publisher);
        let peak = assert_small(&gateway);
        let figures =
            format!("{acked} records taken in {took:.1} s and held, {peak} MB at its highest");
        say(&format!("faults::wedged: {what}"), &figures);
    }
}

#[test]
fn half_a_frame_and_silence_is_found_by_a_ping() {
    // It shows once that the peer lives, and an idle gateway notices that when the Ping is due.
    let within = BRISK_SILENT + BRISK_INTERVAL;
    let trial = Trial { per_second: 0, within, says: "no Pong", close: None };
    try_on("faults::wedged: half a frame", Vice::Says(b"\x81\x7e\x10\x00half".to_vec()), &trial);
}

#[test]
fn what_breaks_the_framing_is_closed_with_its_code() {
    let cases: [(&str, &[u8], &str, u16); 5] = [
        ("100 MB announced", b"\x81\x7f\0\0\0\0\x06\0\0\0", "too large a message", TOO_BIG),
        (
            "all there is announced",
            b"\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff",
            "too large a message",
            TOO_BIG,
        ),
        ("no UTF-8", b"\x81\x02\xc3\x28", "not UTF-8", NOT_UTF8),
        ("a mask", b"\x81\x82\0\0\0\0hi", "broke the WebSocket protocol", PROTOCOL_ERROR),
        ("a reserved bit", b"\xc1\x02hi", "broke the WebSocket protocol", PROTOCOL_ERROR),
    ];
    for (what, bytes, says, code) in cases {
        let trial = Trial { per_second: 0, within: Duration::ZERO, says, close: Some(code) };
        try_on(&format!("faults::wedged: {what}"), Vice::Says(bytes.to_vec()), &trial);
    }
}
