//! How much is put on the link, what a peer finds too big or too much, the token's life, and what
//! counts as standing still.

use super::{
    link::{Bench, closed},
    *,
};
use crate::{
    protocol::{ErrorMessage, HubLimits},
    spool::Appended,
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
