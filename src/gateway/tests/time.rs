//! Records and commands of a board whose clock is not known to be right (PROTOCOL.md, section 9).

use super::{link::Bench, *};
use crate::record::{Boot, SinceBoot};

const BEGAN_MS: u64 = 1_790_000_000_000;
const HERE: u32 = 7;

impl Bench {
    /// The clock says 1970, so long after the boot.
    fn lose_clock(&mut self, uptime_ms: u64) {
        let since_boot = Some(SinceBoot { boot: HERE, uptime_ms });
        self.now.wall = Timestamp { unix_ms: uptime_ms, synced: false, since_boot };
        self.now.boot = None;
    }

    fn find_clock(&mut self, boot: u32, uptime_ms: u64) {
        self.now.wall = Timestamp::synced(BEGAN_MS + uptime_ms);
        self.now.boot = Some(Boot { boot, began_ms: BEGAN_MS });
    }
}

#[test]
fn records_of_this_boot_get_their_time_before_they_are_sent_and_others_are_marked() {
    for mode in [Mode::Managed, Mode::Plain] {
        for (boot, ts) in [(HERE, "\"ts\":1790000005000,"), (8, "\"ts\":5000,\"unsynced\":true,")] {
            let mut bench = Bench::new(mode, |_| {});
            bench.lose_clock(5000);
            bench.publish(3);
            bench.find_clock(boot, 9000);
            match mode {
                Mode::Plain => bench.up(),
                _ => bench.welcomed(),
            }
            let texts = bench.texts();
            let readings: String = texts
                .iter()
                .filter(|text| text.contains("devices/d/"))
                .map(|s| s.as_str())
                .collect();
            assert_eq!(readings.matches(ts).count(), 3, "{mode:?} in boot {boot}: {texts:#?}");
        }
    }
}

#[test]
fn an_event_of_before_gets_its_time_too() {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    bench.lose_clock(5000);
    bench.gateway.handle_refused(bench.now, Some("d"), "too_large", None);
    bench.pass(Duration::from_secs(2));
    bench.find_clock(HERE, 9000);
    bench.welcomed();
    let texts = bench.texts();
    let event = texts.iter().find(|text| text.contains("too_large")).expect("the event");
    assert!(event.contains("\"ts\":1790000005") && !event.contains("unsynced"), "{event}");
}

#[test]
fn age_counts_by_the_time_that_a_record_gets() {
    let hour = Duration::from_secs(3600);
    let mut bench = Bench::new(Mode::Managed, |settings| settings.max_age = Some(hour));
    bench.lose_clock(0);
    bench.publish(5);
    bench.lose_clock(3_500_000);
    bench.publish(3);
    bench.find_clock(HERE, 3_700_000);
    bench.welcomed();
    let texts = bench.texts();
    let expired = |text: &&&String| text.contains(r#""from":1,"to":6,"reason":"expired""#);
    assert!(texts.iter().any(|text| expired(&text)), "{texts:#?}");
    assert!(texts.iter().any(|text| text.contains(r#""seq":6,"#)), "{texts:#?}");
}

#[test]
fn what_the_hub_says_the_time_is_is_handed_out_and_hello_tells_what_is_known() {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    bench.lose_clock(5000);
    bench.up();
    let hello = bench.texts()[0];
    assert!(hello.contains(r#""clock":{"ts":5000,"trusted":false}"#), "{hello}");
    let welcome = r#"{"type":"welcome","time":1790000000123,"streams":[]}"#;
    bench.gateway.handle_text(bench.now, welcome);
    let mut heard = Vec::new();
    while let Some(output) = bench.gateway.poll_output() {
        if let Output::TimeHeard { unix_ms } = output {
            heard.push(unix_ms);
        }
    }
    assert_eq!(heard, [1_790_000_000_123]);
}

/// A finished id that a wrong clock had dated was forgotten as soon as the clock was put right, and
/// the command would have run again.
#[test]
fn a_finished_command_is_not_forgotten_because_the_clock_was_wrong() {
    let entry = |keep_until_ms: u64, unsynced: bool| {
        let kept = serde_json::json!({
            "fingerprint": 1, "sending": true, "keep_until_ms": keep_until_ms,
            "unsynced": unsynced, "last": { "id": "c", "n": 3, "state": "succeeded" },
        });
        vec![("c".to_owned(), kept.to_string().into())]
    };
    let look = Duration::from_secs(601);
    let journalled = |bench: &Bench| bench.gateway.snapshot(bench.now).commands.journalled;
    let day_ms = 24 * 3600 * 1000;
    for (unsynced, left) in [(true, 1), (false, 0)] {
        let held = Held { journal: entry(day_ms, unsynced), ..Held::default() };
        let mut bench = Bench::holding(held);
        bench.lose_clock(2 * day_ms);
        bench.pass(look);
        assert_eq!(journalled(&bench), 1, "by a clock that nobody trusts nothing is old");
        bench.find_clock(HERE, 0);
        bench.pass(look);
        assert_eq!(journalled(&bench), left, "dated by a clock that was wrong: {unsynced}");
        // Nor is it kept for good.
        bench.now.wall.unix_ms += 9 * day_ms;
        bench.pass(look);
        assert_eq!(journalled(&bench), 0);
    }
}
