//! A record that ends every session: how soon it is found, and what is never taken for one.

use super::{
    link::{Bench, closed},
    *,
};
use crate::spool::Item;

const RECORDS: u64 = 60;

/// A hub that ends each session in this way when a certain record comes, and acknowledges what
/// comes before it.
struct Touchy {
    bench: Bench,
    record: u64,
    end: Ended,
    acked: u64,
    sessions: u64,
    /// How many records the last message had that ended a session.
    last: usize,
    skips: Vec<Skip>,
}

impl Touchy {
    fn new(record: u64, end: Ended) -> Self {
        let mut bench = Bench::new(Mode::Managed, |_| {});
        bench.publish(RECORDS);
        Self { bench, record, end, acked: 0, sessions: 0, last: 0, skips: Vec::new() }
    }

    /// One session, of a minute at most.
    fn session(&mut self) {
        self.sessions += 1;
        self.bench.resumed(self.acked);
        let end = self.bench.now.instant + Duration::from_secs(60);
        while self.bench.now.instant < end {
            if self.bench.sent.is_empty() {
                self.bench.pass(Duration::from_secs(1));
                self.bench.gateway.handle_frame(self.bench.now);
                continue;
            }
            let Transmit::Text(text) = self.bench.sent.remove(0) else { continue };
            match from_gateway(&text) {
                Ok(Decoded::Message(GatewayMessage::Data(data))) => {
                    let end = data.seq + data.records.len() as u64;
                    if (data.seq..end).contains(&self.record) {
                        self.last = data.records.len();
                        break;
                    }
                    self.acked = end - 1;
                }
                Ok(Decoded::Message(GatewayMessage::Skip(skip))) => {
                    self.acked = skip.to - 1;
                    self.skips.push(skip);
                }
                _ => continue,
            }
            self.bench.ack(self.acked);
        }
        self.bench.sent.clear();
        self.bench.end(self.end.clone());
    }
}

/// Once each half that arrived threw away what was known, so that a search took hours: about
/// 3 * log2(n)^2 sessions with the longest back-off between them.
#[test]
fn a_poison_record_is_found_by_one_search_of_halves() {
    for record in (1..=RECORDS).step_by(7) {
        let mut hub = Touchy::new(record, Ended::Cut("the hub died".into()));
        while hub.acked < RECORDS {
            hub.session();
            // Six halves of 60, and a whole; then the trial, and the skip.
            assert!(hub.sessions <= 3 * 7 + 2, "{} of {record}", hub.sessions);
        }
        let [skip] = &hub.skips[..] else { panic!("{:?}", hub.skips) };
        assert_eq!((skip.from, skip.to, skip.reason.as_str()), (record, record + 1, "poison"));
    }
}

/// A hub that was restarted, or full, whenever the same batch was under way once seemed to fall
/// over it, and in the end a good record was left out.
#[test]
fn a_hub_that_ends_its_sessions_in_order_condemns_no_record() {
    for code in [1001, 1012, 1013, 4001, 4009, 4029] {
        let mut hub = Touchy::new(5, closed(code));
        (0..40).for_each(|_| hub.session());
        assert_eq!((hub.acked, hub.skips.len()), (0, 0), "{code}");
        assert_eq!(hub.last as u64, RECORDS, "{code}: nor is its batch made smaller");
    }
}

/// In plain mode the first of all records that waited for a Pong was taken for the culprit, one
/// after the other, and each was left out in turn until it was the one.
#[test]
fn in_plain_mode_a_poison_record_is_found_among_all_that_wait_for_a_pong() {
    let mut bench = Bench::new(Mode::Plain, |_| {});
    bench.publish(RECORDS);
    let poison = RECORDS / 2 + 3;
    let (mut skips, mut read, mut sessions) = (Vec::new(), BTreeSet::new(), 0);
    while bench.gateway.lanes[1].held_records() > 0 {
        sessions += 1;
        assert!(sessions <= 3 * 7 + 2, "{skips:?}");
        bench.up();
        let end = bench.now.instant + Duration::from_secs(60);
        while bench.now.instant < end {
            if bench.sent.is_empty() {
                bench.pass(Duration::from_secs(1));
                bench.gateway.handle_frame(bench.now);
                continue;
            }
            match bench.sent.remove(0) {
                Transmit::Ping(payload) => bench.gateway.handle_pong(bench.now, &payload),
                Transmit::Text(text) if text.contains("\"skip\"") => skips.push(text),
                Transmit::Text(text) => {
                    let frame: serde_json::Value = serde_json::from_str(&text).unwrap();
                    let seq = frame["seq"].as_u64().unwrap();
                    if seq == poison {
                        break;
                    }
                    read.insert(seq);
                }
                Transmit::Close { .. } => {}
            }
        }
        bench.sent.clear();
        bench.end(Ended::Cut("the server died".into()));
    }
    assert_eq!(read.len() as u64, RECORDS - 1, "all others arrive");
    assert_eq!(skips.len(), 1, "{skips:?}");
    assert!(skips[0].contains(&format!(r#""from":{poison},"to":{},"#, poison + 1)), "{skips:?}");
}

/// With live-first each session begins with fresh records, other ones each time, and once only
/// these were suspect: what was behind them in an older epoch ended sessions without end.
#[test]
fn a_poison_record_in_a_backlog_is_found_while_fresh_records_pass_it() {
    let (old, poison, end) = (Epoch(7), 5, 9);
    let ranges = vec![HeldRange { stream: 1, epoch: old.0, acked: 0, next: end }];
    let now = Bench::new(Mode::Managed, |_| {}).now;
    let settings = Settings { live_first: Some(1), ..settings(1, false) };
    let mut bench = Bench::begin(now, settings, Ok(Held { ranges, ..Held::default() }));
    let ts = Timestamp::synced(1_790_000_000_000);
    let reading = record::Reading {
        device: "d",
        topic: "devices/d/telemetry",
        retained: false,
        payload: b"1",
        json: true,
    };
    let kept = record::store_reading(ts, &reading);
    let (mut fresh, mut skips, mut acked) = (0, Vec::new(), 0);
    for _ in 0..3 * 4 + 2 {
        bench.publish(1);
        bench.resumed(fresh);
        let until = bench.now.instant + Duration::from_secs(60);
        while bench.now.instant < until {
            let asked = std::mem::take(&mut bench.disk);
            for request in asked {
                if let DiskRequest::Read { lane, epoch, from, .. } = request {
                    let record = |seq| Item::Record { seq, bytes: kept.clone() };
                    let items = (from..end).map(record).collect();
                    bench.gateway.handle_read(bench.now, lane, epoch, Ok(items));
                    bench.look();
                }
            }
            if bench.sent.is_empty() {
                bench.ack(fresh);
                bench.pass(Duration::from_secs(1));
                bench.gateway.handle_frame(bench.now);
                continue;
            }
            let Transmit::Text(text) = bench.sent.remove(0) else { continue };
            let (epoch, from, to) = match from_gateway(&text) {
                Ok(Decoded::Message(GatewayMessage::Data(data))) => {
                    (data.epoch, data.seq, data.seq + data.records.len() as u64)
                }
                Ok(Decoded::Message(GatewayMessage::Skip(skip))) => {
                    skips.push((skip.from, skip.to));
                    acked = skip.to - 1;
                    (skip.epoch, 0, 0)
                }
                _ => continue,
            };
            match epoch == old {
                false => fresh = to - 1,
                true if (from..to).contains(&poison) => break,
                true => acked = acked.max(to.saturating_sub(1)),
            }
            let stream = StreamName::try_from("telemetry".to_owned()).unwrap();
            let position = Position { stream, epoch: old, acked, window: None };
            bench.hear(HubMessage::Ack(Ack { position, rejected: Vec::new() }));
        }
        bench.sent.clear();
        bench.end(Ended::Cut("the hub died".into()));
    }
    assert_eq!((acked, skips), (end - 1, vec![(poison, poison + 1)]));
}
