//! How much is put on the link, what a peer finds too big or too much, the token's life, and what
//! counts as standing still.

use super::{
    link::{Bench, closed},
    week::Log,
    *,
};
use crate::{
    protocol::HubLimits,
    spool::{Appended, Item},
};

/// A bench whose session has begun, with 1,000-byte payloads allowed.
fn welcomed() -> Bench {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    bench.welcomed();
    bench
}

/// The records of each `data` message that was sent since this was last asked.
fn batches(bench: &mut Bench) -> Vec<(u64, usize, usize)> {
    let sent = std::mem::take(&mut bench.sent);
    let data = sent.into_iter().filter_map(|sent| match sent {
        Transmit::Text(text) => match from_gateway(&text) {
            Ok(Decoded::Message(GatewayMessage::Data(data))) => {
                Some((data.seq, data.records.len(), text.len()))
            }
            _ => None,
        },
        _ => None,
    });
    data.collect()
}

fn skips(bench: &Bench) -> Vec<Skip> {
    let messages = bench.texts().into_iter().map(|text| from_gateway(text));
    let skips = messages.filter_map(|message| match message {
        Ok(Decoded::Message(GatewayMessage::Skip(skip))) => Some(skip),
        _ => None,
    });
    skips.collect()
}

#[test]
fn over_a_slow_link_batches_and_what_is_under_way_fit_it() {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    bench.publish(4000);
    bench.welcomed();
    let mut under_way = VecDeque::from(batches(&mut bench));
    let (mut arrived, mut largest) = (0, 0);
    while let Some((first, records, bytes)) = under_way.pop_front() {
        // 8,000 bytes a second, which leave one after another.
        for _ in 0..(bytes / 800) {
            bench.pass(Duration::from_millis(100));
            bench.gateway.handle_progress(bench.now);
        }
        arrived += bytes;
        bench.ack(first + records as u64 - 1);
        assert!(bench.gateway.is_live(), "slow is not dead");
        under_way.extend(batches(&mut bench));
        if arrived > 100_000 {
            largest = largest.max(bytes);
            let waiting: usize = under_way.iter().map(|(.., bytes)| bytes).sum();
            assert!(waiting < 50_000, "an alarm would wait {} s", waiting / 8_000);
        }
    }
    assert!((4_000..13_000).contains(&largest), "{largest}");
}

#[test]
fn a_message_that_is_too_big_is_halved_until_the_record_is_found() {
    let mut bench = Bench::new(Mode::Managed, |settings| settings.max_record_bytes = 10_000);
    let mut acked = 0;
    let mut skipped = Vec::new();
    for round in 0..40 {
        let payload = if round == 20 { 4_000 } else { 200 };
        bench.publish_of(payload, 1);
    }
    // A hub that takes no message of more than 2,000 bytes.
    for _ in 0..40 {
        bench.resumed(acked);
        let is_refused = loop {
            let new = skips(&bench);
            let sent = batches(&mut bench);
            if new.is_empty() && sent.is_empty() {
                break false;
            }
            acked = new.last().map_or(acked, |skip| skip.to - 1);
            skipped.extend(new);
            let taken = sent.iter().take_while(|(.., bytes)| *bytes <= 2_000);
            acked = taken.last().map_or(acked, |(first, records, _)| first + *records as u64 - 1);
            bench.ack(acked);
            if sent.iter().any(|(.., bytes)| *bytes > 2_000) {
                break true;
            }
        };
        if !is_refused {
            break;
        }
        bench.end(closed(1009));
    }
    assert_eq!(acked, 40, "all others arrive");
    let [skip] = &skipped[..] else { panic!("{skipped:?}") };
    assert_eq!((skip.from, skip.to, skip.reason.as_str()), (21, 22, "too_large"));
}

#[test]
fn a_small_record_is_never_found_too_big() {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    bench.publish(1);
    for _ in 0..20 {
        bench.resumed(0);
        assert_eq!(skips(&bench).len(), 0);
        assert_eq!(batches(&mut bench).len(), 1);
        bench.end(closed(1009));
    }
}

fn welcomed_by_a_hub_of(frame_bytes: usize) -> Bench {
    let mut bench = Bench::new(Mode::Managed, |settings| settings.max_record_bytes = 10_000);
    bench.up();
    bench.sent.clear();
    bench.hear(HubMessage::Welcome(Welcome {
        session: "s".into(),
        hub: "h".into(),
        time: None,
        limits: HubLimits { frame_bytes, ..HubLimits::default() },
        features: Vec::new(),
        token_expires: None,
        streams: Vec::new(),
    }));
    bench
}

/// Every record was skipped as too large for it, for good.
#[test]
fn a_hub_whose_messages_hold_no_record_gets_none() {
    let mut bench = welcomed_by_a_hub_of(0);
    assert!(!bench.gateway.is_live());
    let [Transmit::Close { code: 1002, reason }] = &bench.sent[..] else {
        panic!("{:?}", bench.sent)
    };
    assert!(reason.contains("frame_bytes"), "{reason}");
    bench.publish(1);
    bench.pass(Duration::from_secs(2));
    assert_eq!((skips(&bench).len(), bench.hangups), (0, 1));
    assert!(welcomed_by_a_hub_of(1024).gateway.is_live());
}

/// Topic and device count six times in the estimate of a record's size, for they may have to be
/// escaped. A record that fitted was once lost to that.
#[test]
fn a_record_with_a_long_topic_that_fits_a_message_is_sent() {
    let mut bench = welcomed_by_a_hub_of(2048);
    let device = "d".repeat(250);
    for (payload_bytes, fits) in [(1000, true), (1500, false)] {
        bench.sent.clear();
        bench.gateway.handle_publish(
            bench.now,
            Publish {
                topic: format!("devices/{device}/telemetry"),
                payload: "1".repeat(payload_bytes).into(),
                retained: false,
                source: SourceId(0),
                receipt: None,
                packet: None,
            },
        );
        bench.look();
        let largest = bench.texts().iter().map(|text| text.len()).max();
        assert!(largest <= Some(2048), "{largest:?}");
        let told = skips(&bench).into_iter().map(|skip| skip.reason);
        let told: Vec<String> = told.collect();
        assert_eq!(told, if fits { vec![] } else { vec!["too_large".to_owned()] });
    }
}

/// What is lost needs somebody to know; what is configured, or was told before, does not.
#[test]
fn a_skip_is_logged_as_what_it_is() {
    let reasons = ["expired", "evicted", "damaged", "too_large"];
    let logged = reasons.map(|reason| {
        let log = Log::default();
        log.of(tracing::Level::WARN, || {
            let ranges = vec![HeldRange { stream: 1, epoch: 7, acked: 0, next: 4 }];
            let mut bench = Bench::holding(Held { ranges, ..Held::default() });
            bench.welcomed();
            let skip = Item::Skip { from: 1, to: 4, reason: reason.into() };
            bench.gateway.handle_read(bench.now, 1, Epoch(7), Ok(vec![skip]));
            bench.look();
            assert_eq!(skips(&bench)[0].reason, reason);
        });
        log.text()
    });
    let [expired, evicted, damaged, too_large] = logged;
    assert_eq!((expired.as_str(), evicted.as_str()), ("", ""));
    for loss in [damaged, too_large] {
        assert!(loss.contains("ERROR"), "{loss}");
    }
}

/// It counted as sent, and nobody was told.
#[test]
fn a_damaged_record_is_a_skip_in_plain_mode_too() {
    let log = Log::default();
    log.of(tracing::Level::WARN, || {
        let ranges = vec![HeldRange { stream: 1, epoch: 7, acked: 0, next: 2 }];
        let mut settings = settings(1, false);
        settings.uplink.as_mut().unwrap().mode = Mode::Plain;
        let now = Bench::new(Mode::Plain, |_| {}).now;
        let held = Held { ranges, ..Held::default() };
        let mut bench = Bench::begin(now, settings, Ok(held));
        bench.up();
        let record = Item::Record { seq: 1, bytes: Bytes::from_static(b"\xff") };
        bench.gateway.handle_read(bench.now, 1, Epoch(7), Ok(vec![record]));
        bench.look();
        assert!(bench.texts()[0].contains("damaged"), "{:?}", bench.texts());
        let snapshot = bench.gateway.snapshot(bench.now);
        assert_eq!((snapshot.counters.sent, snapshot.streams[1].skipped), (0, 1));
    });
    assert!(log.text().contains("ERROR"), "{}", log.text());
}

#[test]
fn a_hub_that_has_too_much_says_when_to_come_back() {
    let mut bench = welcomed();
    let error = ErrorMessage { retry_after_ms: Some(40_000), ..ErrorMessage::new("rate", "") };
    bench.hear(HubMessage::Error(error));
    let waited = bench.end(closed(4029)).as_secs_f64();
    assert!((40.0..60.2).contains(&waited), "{waited}");
    bench.welcomed();
    assert!(bench.end(closed(4029)).as_secs_f64() < 1.2, "it asked for nothing this time");
}

#[test]
fn a_peer_that_answers_and_acknowledges_nothing_is_given_up() {
    let mut bench = welcomed();
    bench.publish(1);
    for _ in 0..59 {
        bench.pass(Duration::from_secs(1));
        bench.gateway.handle_frame(bench.now);
    }
    assert!(bench.gateway.is_live());
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.hangups, 1);
}

impl Bench {
    /// A second passes in which the hub says something that means nothing.
    fn noise(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.pass(Duration::from_secs(1));
            self.gateway.handle_frame(self.now);
        }
    }

    /// The hub's word on the telemetry: how far it is, and how many records it lets go out.
    fn position(&mut self, acked: u64, records: u64) {
        let stream = StreamName::try_from("telemetry".to_owned()).unwrap();
        let window = Some(Window { records, bytes: 1 << 20 });
        let position = Position { stream, epoch: Epoch(0xe001), acked, window };
        self.hear(HubMessage::Ack(Ack { position, rejected: Vec::new() }));
    }
}

/// A hub whose store was down for two minutes opened its windows, and the gateway hung up at this
/// very message: what had been sent before the outage had no ack for so long.
#[test]
fn a_window_that_opens_after_a_long_pause_begins_the_time_for_acks_anew() {
    let mut bench = welcomed();
    bench.publish(1);
    bench.position(0, 0);
    bench.noise(120);
    bench.position(0, 500);
    bench.noise(55);
    assert_eq!((bench.hangups, bench.gateway.is_live()), (0, true));
    bench.position(1, 500);
    bench.publish(1);
    bench.position(1, 0);
    bench.noise(120);
    bench.position(1, 500);
    bench.noise(62);
    assert_eq!(bench.hangups, 1, "but not for ever");
}

/// A server that sends Pings without end makes the gateway's socket full of Pongs. That room was
/// made in it once passed for progress, and the link was never given up.
#[test]
fn a_peer_that_floods_and_acknowledges_nothing_is_given_up() {
    let mut bench = welcomed();
    bench.publish_of(900, 500);
    for _ in 0..59 {
        bench.noise(1);
        bench.gateway.handle_progress(bench.now);
    }
    assert_eq!(bench.hangups, 0);
    for _ in 0..100 {
        bench.noise(1);
        bench.gateway.handle_progress(bench.now);
    }
    assert_eq!(bench.hangups, 1);
}

#[test]
fn a_peer_that_answers_each_batch_with_a_hole_is_given_up() {
    let mut bench = welcomed();
    bench.publish(10);
    for _ in 0..70 {
        bench.noise(1);
        let stream = StreamName::try_from("telemetry".to_owned()).unwrap();
        bench.hear(HubMessage::Error(ErrorMessage::gap(stream, Epoch(0xe001), 1)));
    }
    assert_eq!(bench.hangups, 1);
    assert!(batches(&mut bench).len() > 50, "it was sent again each time");
}

#[test]
fn a_large_record_on_a_line_of_8_kbit_per_second_has_its_time() {
    let mut bench = Bench::new(Mode::Managed, |settings| settings.max_record_bytes = 70_000);
    bench.welcomed();
    bench.publish_of(65_000, 1);
    bench.noise(90);
    assert_eq!((bench.hangups, bench.gateway.is_live()), (0, true));
}

#[test]
fn the_watchdog_is_more_patient_than_the_link_however_that_is_configured() {
    let uplink = settings(1, false).uplink.unwrap();
    let longest = super::super::live::longest_patience(&uplink);
    assert!(longest + Duration::from_secs(30) < Duration::from_secs(300), "{longest:?}");
    let mut bench = Bench::new(Mode::Managed, |settings| {
        settings.uplink.as_mut().unwrap().ack_timeout = Duration::from_secs(600);
    });
    bench.welcomed();
    bench.publish(1);
    bench.noise(10);
    bench.gateway.handle_appended(bench.now, Ok(Appended::default()));
    for _ in 1..360 {
        bench.noise(10);
        assert_eq!(bench.gateway.standstill(bench.now), None);
    }
    bench.noise(10);
    assert_eq!(bench.hangups, 1, "the link itself came first");
}

/// A hub that sent nothing else once filled memory with complaints, and the log.
#[test]
fn a_hub_that_floods_with_what_is_malformed_is_told_once() {
    let mut bench = welcomed();
    bench.sent.clear();
    for _ in 0..1000 {
        bench.gateway.handle_text(bench.now, "{");
    }
    bench.look();
    assert_eq!(bench.texts().len(), 1);
    bench.end(closed(1001));
    bench.welcomed();
    bench.sent.clear();
    bench.gateway.handle_text(bench.now, "{");
    bench.look();
    assert_eq!(bench.texts().len(), 1, "another session");
}

#[test]
fn a_dial_that_never_ends_is_given_up() {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    bench.pass(Duration::from_secs(62));
    assert_eq!((bench.dials.len(), bench.hangups), (2, 1));
}

#[test]
fn a_token_is_replaced_before_it_ends() {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    bench.up();
    let start = 1_790_000_000_000;
    bench.hear(HubMessage::Welcome(Welcome {
        session: "s".into(),
        hub: "h".into(),
        time: Some(start),
        limits: HubLimits::default(),
        features: Vec::new(),
        token_expires: Some(start + 600_000),
        streams: Vec::new(),
    }));
    let live_for = |bench: &mut Bench, seconds: u64| {
        for _ in 0..seconds {
            bench.pass(Duration::from_secs(1));
            bench.gateway.handle_frame(bench.now);
        }
    };
    live_for(&mut bench, 479);
    assert_eq!(bench.tokens, 0);
    live_for(&mut bench, 2);
    assert_eq!(bench.tokens, 1);
    bench.sent.clear();
    bench.gateway.handle_token("fresh");
    bench.look();
    assert_eq!(bench.texts(), [r#"{"type":"auth","token":"fresh"}"#]);
    assert!(!format!("{:?}", bench.sent).contains("fresh"));
    bench.hear(HubMessage::AuthOk { token_expires: Some(start + 1_200_000) });
    live_for(&mut bench, 500);
    assert_eq!(bench.tokens, 1);
    live_for(&mut bench, 100);
    assert_eq!(bench.tokens, 2);
    live_for(&mut bench, 119);
    assert_eq!(bench.tokens, 6, "no answer came: it tries again, and not too often");
}

/// The hub says of an opaque token that it does not end by saying nothing. The end of the token
/// before it once stayed in force, and a fresh one was shown every ten seconds.
#[test]
fn a_token_without_an_end_is_not_replaced() {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    bench.up();
    let start = 1_790_000_000_000;
    bench.hear(HubMessage::Welcome(Welcome {
        session: "s".into(),
        hub: "h".into(),
        time: Some(start),
        limits: HubLimits::default(),
        features: Vec::new(),
        token_expires: Some(start + 600_000),
        streams: Vec::new(),
    }));
    bench.noise(481);
    assert_eq!(bench.tokens, 1);
    bench.hear(HubMessage::AuthOk { token_expires: None });
    bench.noise(600);
    assert_eq!(bench.tokens, 1);
}

#[test]
fn no_number_of_a_hub_is_too_large_to_calculate_with() {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    bench.up();
    let most = u64::MAX;
    let text = format!(
        r#"{{"type":"welcome","time":{most},"token_expires":{most},
            "limits":{{"frame_bytes":{most},"record_bytes":{most},"batch_records":{most}}},
            "streams":[{{"stream":"telemetry","epoch":"000000000000e001","acked":9007199254740992,
                "window":{{"records":{most},"bytes":{most}}}}}]}}"#
    );
    bench.gateway.handle_text(bench.now, &text);
    bench.noise(60);
    let auth_ok = format!(r#"{{"type":"auth_ok","token_expires":{most}}}"#);
    bench.gateway.handle_text(bench.now, &auth_ok);
    bench.publish(3);
    bench.ack(3);
    bench.noise(10);
    assert!(bench.gateway.is_live());
    let drain = format!(r#"{{"type":"drain","retry_after_ms":{most},"spread_ms":{most}}}"#);
    bench.gateway.handle_text(bench.now, &drain);
    assert!(bench.end(closed(1012)) <= Duration::from_secs(3600 + 1800));
}

/// A hub that expected record 0 was sent a skip from there, which no hub takes.
#[test]
fn a_hole_before_the_first_record_is_none() {
    let mut bench = welcomed();
    bench.publish(2);
    bench.ack(2);
    bench.sent.clear();
    let gap = r#"{"type":"error","code":"gap","stream":"telemetry","epoch":"000000000000e001","expected":0}"#;
    bench.gateway.handle_text(bench.now, gap);
    bench.look();
    assert_eq!(skips(&bench).len(), 0);
    assert!(bench.texts()[0].contains("bad_message"), "{:?}", bench.texts());
}

#[test]
fn what_stands_still_is_told_at_the_second_look_and_what_waits_is_not() {
    let mut bench = welcomed();
    let looks = |bench: &mut Bench, seconds: u64| {
        let found = (0..seconds / 10).map(|_| {
            bench.now.instant += Duration::from_secs(10);
            bench.gateway.standstill(bench.now)
        });
        found.flatten().next()
    };
    assert_eq!(looks(&mut bench, 3600), None, "nothing to send");
    bench.publish(1);
    // The timers are not served: this is the fault that nobody thought of.
    assert_eq!(looks(&mut bench, 300), None);
    assert!(looks(&mut bench, 30).is_some_and(|what| what.contains("acknowledged")));
    bench.gateway.handle_ended(bench.now, &Ended::Cut("cut".into()));
    bench.gateway.handle_appended(bench.now, Ok(Appended::default()));
    assert_eq!(looks(&mut bench, 3600), None, "offline, and a timer runs");
}

#[test]
fn a_disk_that_does_not_answer_stands_still() {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    bench.publish(1);
    bench.pass(Duration::from_secs(5));
    assert!(!bench.disk.is_empty());
    assert_eq!(bench.gateway.standstill(bench.now), None);
    bench.pass(Duration::from_secs(301));
    assert_eq!(bench.gateway.standstill(bench.now), None);
    let what = bench.gateway.standstill(bench.now);
    assert!(what.is_some_and(|what| what.contains("disk")), "{what:?}");
}
