//! What is kept, passed, refused and let go of: the order after an outage, age, floods, no disk,
//! and a great many starts.

use super::{link::Bench, *};
use crate::spool::Appended;

const EVENTS_LANE: usize = 0;

fn held(stream: usize, epoch: u64, next: u64) -> HeldRange {
    HeldRange { stream, epoch, acked: 0, next }
}

#[test]
fn after_an_outage_fresh_records_pass_the_backlog_in_an_epoch_of_their_own() {
    let mut world = World::with(1, Some(false));
    world.live_first = Some(20);
    world.crash();
    world.drain();
    let offline = 400;
    for _ in 0..40 {
        world.publish_count(offline / 40);
        world.pass(Duration::from_millis(300));
        while !world.jobs.is_empty() {
            world.work_disk();
            world.drain();
        }
    }
    while world.link != super::Link::Up {
        world.pass(Duration::from_secs(1));
        world.bring_up();
        world.drain();
    }
    // One at a time, while the backlog drains behind them.
    for _ in 0..20 {
        world.publish_count(1);
        for _ in 0..4 {
            world.work_disk();
            world.drain();
        }
        world.pass(Duration::from_millis(10));
    }
    world.run_until_idle();
    let applied = &world.hub.applied;
    let fresh = applied.iter().position(|number| *number > offline).unwrap();
    let last_old = applied.iter().rposition(|number| *number <= offline).unwrap();
    assert!(fresh < last_old, "fresh records at {fresh}, the backlog's last at {last_old}");
    let mut sorted = applied.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, Vec::from_iter(1..=world.published));
}

#[test]
fn old_readings_expire_as_a_skip_that_the_hub_hears_of() {
    let hour = Duration::from_secs(3600);
    let mut bench = Bench::new(Mode::Managed, |settings| settings.max_age = Some(hour));
    bench.publish(5);
    bench.pass(hour);
    bench.publish(3);
    bench.pass(Duration::from_secs(1));
    bench.welcomed();
    let texts = bench.texts();
    let skip = r#"{"type":"skip","stream":"telemetry","epoch":"000000000000e001","from":1,"to":6,"reason":"expired"}"#;
    assert!(texts.iter().any(|text| *text == skip), "{texts:#?}");
    assert!(texts.iter().any(|text| text.contains(r#""seq":6,"#)), "{texts:#?}");
}

#[test]
fn under_pressure_a_flood_is_refused_and_nobody_else() {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    let publish = |bench: &mut Bench, device: &str, count: usize| {
        for _ in 0..count {
            bench.gateway.handle_publish(
                bench.now,
                Publish {
                    topic: format!("devices/{device}/telemetry"),
                    payload: "x".repeat(900).into(),
                    retained: false,
                    source: SourceId(0),
                    receipt: None,
                    packet: None,
                },
            );
        }
        bench.look();
    };
    publish(&mut bench, "flood", 500);
    publish(&mut bench, "quiet", 2);
    assert_eq!(bench.gateway.reports.refused, 0, "there is room");
    let pressed = Appended { evicted: Vec::new(), pressed: true };
    bench.gateway.handle_appended(bench.now, Ok(pressed));
    publish(&mut bench, "flood", 10);
    publish(&mut bench, "quiet", 10);
    assert_eq!(bench.gateway.reports.refused, 10);
    bench.pass(Duration::from_secs(2));
    assert!(bench.gateway.lanes[EVENTS_LANE].held_records() > 0, "the hub hears of it");
}

/// A record by hand was taken in whatever the memory held: a timer that sent one a minute filled it
/// while the disk failed and no hub was there.
#[test]
fn a_record_by_hand_keeps_to_the_bound_of_memory() {
    let mut bench = Bench::new(Mode::Managed, |settings| settings.memory_bytes = 10_000);
    let sent = |bench: &mut Bench, payload: &str| {
        let publish = Publish {
            topic: "devices/d/telemetry".into(),
            payload: payload.to_owned().into(),
            retained: false,
            source: SourceId(u8::MAX),
            receipt: None,
            packet: None,
        };
        bench.gateway.handle_send(bench.now, publish)
    };
    let taken = (0..1000).take_while(|_| sent(&mut bench, &"1".repeat(900)).is_ok()).count();
    assert!((5..15).contains(&taken), "{taken}");
    let error = sent(&mut bench, "1").unwrap_err();
    assert!(error.contains("memory is full"), "{error}");
    assert_eq!(bench.gateway.counters.received, taken as u64);
}

#[test]
fn without_a_disk_records_are_relayed_and_later_what_it_held() {
    let mut bench = Bench::without_disk();
    bench.welcomed();
    bench.publish(3);
    assert!(bench.texts().iter().any(|text| text.contains(r#""type":"data""#)));
    bench.ack(3);
    assert_eq!(bench.safe, 3, "the hub has them");
    let streams = ["events", "telemetry"].map(|s| StreamName::try_from(s.to_owned()).unwrap());
    let found = Held { ranges: vec![held(1, 0xe000, 9)], ..Held::default() };
    bench.gateway.handle_opened(bench.now, streams.into(), found);
    bench.look();
    assert!(matches!(bench.sent.last(), Some(Transmit::Close { code: 1000, .. })));
    bench.end(closed_by_us());
    bench.up();
    let texts = bench.texts();
    let hello = texts.iter().rfind(|text| text.contains("hello")).unwrap();
    assert!(hello.contains("000000000000e000") && !hello.contains("partial"), "{hello}");
}

#[test]
fn a_hello_without_a_disk_says_that_it_leaves_out_what_it_does_not_know() {
    let mut bench = Bench::without_disk();
    bench.up();
    assert!(bench.texts()[0].contains(r#""partial":true"#));
}

#[test]
fn a_hello_fits_a_message_however_often_the_gateway_started() {
    let ranges = (0..3000).map(|epoch| held(1, epoch, 2)).collect();
    let mut bench = Bench::holding(Held { ranges, ..Held::default() });
    bench.up();
    let hello = bench.texts()[0];
    assert!(hello.len() < 64 * 1024 && hello.contains(r#""partial":true"#), "{}", hello.len());
}

fn closed_by_us() -> Ended {
    Ended::Closed { code: 1000, reason: String::new() }
}
