use std::sync::Arc;

use super::*;
use crate::{
    command::{Failure, State},
    hub::engine::{Applied, Pending, Retention},
    protocol::{
        CommandMessage, Data, Decoded, Epoch, GatewayMessage, HubState, Skip, StreamName,
        from_gateway,
    },
};

const E1: &str = "00000000000000e1";
const E2: &str = "00000000000000e2";

struct Bench {
    dir: tempfile::TempDir,
    engine: Sqlite,
    now_ms: u64,
}

fn options(dir: &tempfile::TempDir) -> SqliteOptions {
    SqliteOptions {
        path: dir.path().join("hub.db"),
        retention: Retention {
            max_records_per_gateway: 50,
            max_age_ms: 3_600_000,
            max_gaps_per_gateway: 3,
            max_pending_commands: 3,
        },
    }
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = Sqlite::open(options(&dir)).unwrap();
        let mut registry = Registry::open(&options(&dir).path).unwrap();
        registry.add_gateway("gw", Admission::Named, 1).unwrap();
        Self { dir, engine, now_ms: 1_790_000_000_000 }
    }

    fn ask(&mut self, request: Request) -> Answer {
        self.engine.commit(self.now_ms, &[request]).unwrap().remove(0)
    }

    /// The process dies and starts again: only what is on disk remains.
    fn crash(&mut self) {
        self.engine = Sqlite::open(options(&self.dir)).unwrap();
    }

    fn open(&mut self, number: u64, epochs: &[(&str, u64, u64)]) -> (Vec<u64>, Vec<Pending>) {
        self.open_listing(number, epochs, false)
    }

    fn open_listing(
        &mut self,
        number: u64,
        epochs: &[(&str, u64, u64)],
        partial: bool,
    ) -> (Vec<u64>, Vec<Pending>) {
        match self.hello(number, epochs, partial) {
            Answer::Opened { positions, commands } => {
                (positions.iter().map(|held| held.next).collect(), commands)
            }
            other => panic!("{other:?}"),
        }
    }

    fn hello(&mut self, number: u64, epochs: &[(&str, u64, u64)], partial: bool) -> Answer {
        let streams: Vec<_> = epochs
            .iter()
            .map(|(epoch, first, next)| {
                serde_json::json!({"stream": "telemetry", "epoch": epoch, "first": first, "next": next})
            })
            .collect();
        let hello = serde_json::json!({"gateway": "gw", "streams": streams, "partial": partial});
        let hello = Arc::new(serde_json::from_value(hello).unwrap());
        self.ask(Request::Open { session: session(number), hello })
    }

    fn apply(&mut self, number: u64, epoch: &str, seq: u64, count: u64) -> Answer {
        self.ask(Request::Apply {
            session: session(number),
            data: data(epoch, seq, count),
            rejected: Vec::new(),
        })
    }

    fn skip(&mut self, number: u64, from: u64, to: u64) -> Answer {
        let skip =
            Skip { stream: telemetry(), epoch: epoch(E1), from, to, reason: "evicted".into() };
        self.ask(Request::Skip { session: session(number), skip })
    }

    fn reader(&self) -> Reader {
        Reader::new(options(&self.dir).path)
    }

    fn stored(&self) -> Vec<(String, u64)> {
        let query = Query { limit: 10_000, ..Query::default() };
        let page = self.reader().records("gw", &query).unwrap().unwrap();
        let ids: Vec<u64> = page.records.iter().map(|row| row.id).collect();
        assert!(ids.windows(2).all(|pair| pair[1] == pair[0] + 1), "ids without a hole: {ids:?}");
        page.records.into_iter().map(|row| (format!("{:016x}", row.epoch), row.seq)).collect()
    }

    fn counters(&self) -> [i64; 5] {
        self.reader().gateways(Some("gw")).unwrap()[0].counters
    }

    fn create(&mut self, id: &str, ttl_ms: u64) -> Answer {
        let command = serde_json::json!({
            "id": id, "device": "d", "name": "set", "params": {"a": 1}, "ttl_ms": ttl_ms});
        let command: CommandMessage = serde_json::from_str(&command.to_string()).unwrap();
        self.ask(Request::CreateCommand { gateway: "gw".into(), command: Box::new(command) })
    }

    fn take(&mut self, number: u64, limit: usize) -> (Vec<String>, Vec<String>, bool) {
        match self.ask(Request::TakeCommands { session: session(number), limit }) {
            Answer::Commands { commands, cancels, more } => (
                commands.iter().map(|pending| pending.command.id.to_string()).collect(),
                cancels.iter().map(ToString::to_string).collect(),
                more,
            ),
            other => panic!("{other:?}"),
        }
    }

    /// An event record with a command's state, as the gateway sends it.
    fn status(&mut self, seq: u64, id: &str, n: u32, state: &str) -> Applied {
        let text = format!(
            r#"{{"type":"data","stream":"events","epoch":"{E1}","seq":{seq},"records":[{{"kind":"command_status","id":"{id}","n":{n},"state":"{state}","ts":5}}]}}"#
        );
        let request =
            Request::Apply { session: session(1), data: parsed(&text), rejected: Vec::new() };
        applied(self.ask(request))
    }
}

fn session(number: u64) -> SessionId {
    SessionId { gateway: "gw".into(), number }
}

fn telemetry() -> StreamName {
    StreamName::try_from("telemetry".to_owned()).unwrap()
}

fn epoch(hex: &str) -> Epoch {
    Epoch::try_from(hex.to_owned()).unwrap()
}

fn parsed(text: &str) -> Arc<Data> {
    match from_gateway(text) {
        Ok(Decoded::Message(GatewayMessage::Data(data))) => Arc::new(data),
        other => panic!("{other:?}"),
    }
}

fn data(epoch: &str, seq: u64, count: u64) -> Arc<Data> {
    let record = r#"{"ts":5,"device":"d","topic":"t","payload":{"v": 1.50}}"#;
    let records = vec![record; usize::try_from(count).unwrap()].join(",");
    parsed(&format!(
        r#"{{"type":"data","stream":"telemetry","epoch":"{epoch}","seq":{seq},"records":[{records}]}}"#
    ))
}

fn applied(answer: Answer) -> Applied {
    match answer {
        Answer::Applied(applied) => applied,
        other => panic!("{other:?}"),
    }
}

fn in_epoch(epoch: &str, seqs: impl IntoIterator<Item = u64>) -> Vec<(String, u64)> {
    seqs.into_iter().map(|seq| (epoch.to_owned(), seq)).collect()
}

#[test]
fn a_replay_is_acknowledged_and_stored_once() {
    let mut bench = Bench::new();
    assert_eq!(bench.open(1, &[(E1, 1, 4)]).0, [1]);
    assert_eq!(applied(bench.apply(1, E1, 1, 3)).next, 4);
    assert_eq!(applied(bench.apply(1, E1, 1, 3)).next, 4);
    assert_eq!(bench.stored(), in_epoch(E1, 1..4));
    assert_eq!(bench.counters(), [3, 3, 0, 0, 0]);
}

#[test]
fn of_an_overlap_the_new_part_is_stored() {
    let mut bench = Bench::new();
    bench.open(1, &[(E1, 1, 9)]);
    bench.apply(1, E1, 1, 3);
    let second = applied(bench.apply(1, E1, 2, 5));
    assert_eq!((second.next, second.new_from, second.first_id), (7, 4, 4));
    assert_eq!(bench.stored(), in_epoch(E1, 1..7));
}

#[test]
fn behind_a_hole_nothing_is_stored() {
    let mut bench = Bench::new();
    bench.open(1, &[(E1, 1, 9)]);
    bench.apply(1, E1, 1, 2);
    assert!(matches!(bench.apply(1, E1, 4, 2), Answer::Gap { expected: 3 }));
    assert!(matches!(bench.skip(1, 4, 5), Answer::Gap { expected: 3 }));
    assert!(matches!(bench.apply(1, E2, 2, 1), Answer::Gap { expected: 1 }));
    assert_eq!(bench.stored(), in_epoch(E1, 1..3));
}

#[test]
fn a_skip_counts_as_lost_only_what_lies_beyond_the_position() {
    let mut bench = Bench::new();
    bench.open(1, &[(E1, 1, 20)]);
    bench.apply(1, E1, 1, 5);
    assert_eq!(applied(bench.skip(1, 3, 9)).next, 9);
    assert_eq!(applied(bench.skip(1, 3, 9)).next, 9, "a repeated skip is acknowledged");
    assert_eq!(applied(bench.apply(1, E1, 9, 1)).next, 10);
    assert_eq!(bench.counters(), [6, 0, 3, 0, 0]);
    let gaps = bench.reader().gaps("gw", 10).unwrap();
    assert_eq!(gaps.len(), 1);
    assert_eq!((gaps[0].range, gaps[0].reason.as_str()), ((6, 9), "evicted"));
}

#[test]
fn epochs_are_apart_and_forgotten_when_no_longer_listed() {
    let mut bench = Bench::new();
    assert_eq!(bench.open(1, &[(E1, 7, 9)]).0, [7], "an unknown epoch begins where it is held");
    bench.apply(1, E1, 7, 2);
    bench.apply(1, E2, 1, 2);
    assert_eq!(bench.stored(), [in_epoch(E1, 7..9), in_epoch(E2, 1..3)].concat());
    assert_eq!(bench.open(2, &[(E2, 2, 3)]).0, [3]);
    assert_eq!(bench.open(3, &[(E1, 7, 9), (E2, 3, 3)]).0, [7, 3], "E1 was forgotten");
    bench.apply(3, E1, 7, 2);
    bench.open_listing(4, &[(E2, 3, 3)], true);
    assert_eq!(bench.open(5, &[(E1, 7, 9), (E2, 3, 3)]).0, [9, 3], "a partial list forgets none");
}

/// A gateway whose disk never opens says `partial` each time, with new epochs each time. Nothing of
/// them was ever forgotten, and each hello read them all.
#[test]
fn the_epochs_of_a_gateway_that_never_lists_all_are_bounded() {
    let mut bench = Bench::new();
    let names: Vec<String> = (1..=16_385_u64).map(|number| format!("{number:016x}")).collect();
    let epochs: Vec<_> = names.iter().map(|name| (name.as_str(), 1, 1)).collect();
    let (kept, new) = epochs.split_at(16_384);
    for (number, some) in (1..).zip(kept.chunks(4096)) {
        bench.open_listing(number, some, true);
    }
    assert_eq!(bench.open_listing(5, &kept[..2], true).0, [1, 1], "what is known has its place");
    assert!(matches!(bench.hello(6, new, true), Answer::TooManyEpochs));
    bench.apply(5, names[0].as_str(), 1, 1);
    assert_eq!(bench.stored().len(), 1, "the session before is still the newest");
    assert_eq!(bench.open(7, new).0, [1], "a whole list forgets the others");
}

#[test]
fn a_replaced_session_moves_nothing() {
    let mut bench = Bench::new();
    bench.open(1, &[(E1, 1, 9)]);
    bench.open(2, &[(E1, 1, 9)]);
    assert!(matches!(bench.apply(1, E1, 1, 1), Answer::Superseded));
    assert!(bench.stored().is_empty());
    bench.ask(Request::Close { session: session(1) });
    assert!(bench.reader().gateways(Some("gw")).unwrap()[0].connected, "the newer one stays");
    bench.ask(Request::Close { session: session(2) });
    assert!(!bench.reader().gateways(Some("gw")).unwrap()[0].connected);
}

#[test]
fn what_was_answered_survives_a_crash() {
    let mut bench = Bench::new();
    bench.open(1, &[(E1, 1, 9)]);
    bench.apply(1, E1, 1, 3);
    bench.create("c1", 60_000);
    bench.crash();
    assert_eq!(bench.open(2, &[(E1, 1, 9)]).0, [4]);
    bench.apply(2, E1, 1, 5);
    assert_eq!(bench.stored(), in_epoch(E1, 1..6));
    assert_eq!(bench.take(2, 8).0, ["c1"]);
}

#[test]
fn a_group_stands_or_falls_together() {
    let mut bench = Bench::new();
    bench.open(1, &[(E1, 1, 9)]);
    let apply =
        |seq| Request::Apply { session: session(1), data: data(E1, seq, 1), rejected: Vec::new() };
    // The table is taken away by another hand: the last statement of the group fails.
    let other = rusqlite::Connection::open(options(&bench.dir).path).unwrap();
    other.execute_batch("ALTER TABLE gaps RENAME TO hidden").unwrap();
    let skip =
        Skip { stream: telemetry(), epoch: epoch(E1), from: 2, to: 3, reason: "evicted".into() };
    let group = [apply(1), Request::Skip { session: session(1), skip }];
    assert!(bench.engine.commit(1, &group).is_err());
    other.execute_batch("ALTER TABLE hidden RENAME TO gaps").unwrap();
    bench.engine.reopen().unwrap();
    assert!(bench.stored().is_empty());
    assert_eq!(applied(bench.apply(1, E1, 1, 2)).first_id, 1);
    assert_eq!(bench.stored(), in_epoch(E1, 1..3));
}

#[test]
fn rejected_records_are_accounted_and_not_stored() {
    let mut bench = Bench::new();
    bench.open(1, &[(E1, 1, 9)]);
    let request = Request::Apply {
        session: session(1),
        data: data(E1, 1, 3),
        rejected: vec![(2, "too_large")],
    };
    assert_eq!(applied(bench.ask(request)).next, 4);
    assert_eq!(bench.stored(), in_epoch(E1, [1, 3]));
    assert_eq!(bench.counters(), [2, 0, 0, 0, 1]);
    assert_eq!(bench.reader().gaps("gw", 1).unwrap()[0].reason, "rejected: too_large");
}

#[test]
fn a_restored_database_does_not_ask_for_what_the_gateway_let_go() {
    let mut bench = Bench::new();
    bench.open(1, &[(E1, 1, 9)]);
    bench.apply(1, E1, 1, 2);
    assert_eq!(bench.open(2, &[(E1, 6, 9)]).0, [6]);
    assert_eq!(bench.counters(), [2, 0, 3, 0, 0]);
    assert_eq!(bench.reader().gaps("gw", 1).unwrap()[0].reason, "not_held");
}

#[test]
fn retention_forgets_by_number_and_by_age() {
    let mut bench = Bench::new();
    bench.open(1, &[(E1, 1, 200)]);
    bench.apply(1, E1, 1, 80);
    for seq in [81, 83, 85, 87] {
        bench.skip(1, seq, seq + 1);
        bench.apply(1, E1, seq + 1, 1);
    }
    bench.ask(Request::Look);
    assert_eq!(bench.stored().len(), 50);
    assert_eq!(bench.reader().gaps("gw", 10).unwrap().len(), 3);
    bench.now_ms += 3_600_001;
    bench.apply(1, E1, 89, 1);
    bench.ask(Request::Look);
    assert_eq!(bench.stored(), in_epoch(E1, [89]));
    let page = bench.reader().records("gw", &Query { limit: 5, ..Query::default() });
    assert_eq!(page.unwrap().unwrap().oldest, 85, "the reader sees what it missed");
}

#[test]
fn a_command_is_handed_out_once_and_again_only_after_a_new_hello() {
    let mut bench = Bench::new();
    bench.open(1, &[]);
    for id in ["c1", "c2", "c3"] {
        assert!(matches!(bench.create(id, 60_000), Answer::Created));
    }
    assert!(matches!(bench.create("c4", 60_000), Answer::TooManyCommands));
    assert_eq!(bench.take(1, 2), (vec!["c1".into(), "c2".into()], vec![], true));
    assert_eq!(bench.take(1, 2), (vec!["c3".into()], vec![], false));
    assert_eq!(bench.status(1, "c2", 1, "accepted").statuses.len(), 1);
    assert_eq!(bench.status(2, "c1", 3, "succeeded").statuses.len(), 1);
    bench.crash();
    let (_, again) = bench.open(2, &[]);
    let ids: Vec<&str> = again.iter().map(|pending| pending.command.id.as_str()).collect();
    assert_eq!(ids, ["c2", "c3"], "what the gateway spoke of goes first");
    assert_eq!(again[0].command.state, Some(HubState { n: 1, state: State::Accepted }));
    assert_eq!(again[0].command.params.get(), r#"{"a":1}"#);
}

#[test]
fn states_only_go_forward() {
    let mut bench = Bench::new();
    bench.open(1, &[]);
    bench.create("c1", 60_000);
    bench.take(1, 1);
    assert_eq!(bench.status(1, "c1", 2, "delivered").statuses.len(), 1);
    assert_eq!(bench.status(2, "c1", 1, "accepted").statuses.len(), 0, "an older number");
    assert_eq!(bench.status(3, "c1", 3, "succeeded").statuses.len(), 1);
    assert_eq!(bench.status(4, "c1", 4, "failed").statuses.len(), 0, "after the final state");
    assert_eq!(bench.status(5, "nobody", 1, "accepted").statuses.len(), 0);
    let (row, states) = bench.reader().command("gw", "c1").unwrap().unwrap();
    assert_eq!((row.state.as_deref(), row.is_final, states.len()), (Some("succeeded"), true, 2));
}

#[test]
fn only_what_was_never_sent_the_hub_ends_by_itself() {
    let mut bench = Bench::new();
    let id = |text: &str| crate::command::CommandId::try_from(text.to_owned()).unwrap();
    let cancel = |text: &str| Request::CancelCommand { gateway: "gw".into(), id: id(text) };
    bench.create("c1", 60_000);
    bench.create("c2", 60_000);
    let Answer::Ended { statuses } = bench.ask(cancel("c1")) else { panic!("not sent yet") };
    assert_eq!((statuses[0].n, statuses[0].state), (1, State::Cancelled));
    assert!(matches!(bench.ask(cancel("c1")), Answer::AlreadyFinal(State::Cancelled)));
    bench.open(1, &[]);
    bench.take(1, 8);
    assert!(matches!(bench.ask(cancel("c2")), Answer::CancelRequested));
    assert_eq!(bench.take(1, 8), (vec![], vec!["c2".into()], false));
    assert_eq!(bench.take(1, 8), (vec![], vec![], false), "a cancel goes out once per session");
    assert!(matches!(bench.ask(cancel("c9")), Answer::UnknownCommand));

    bench.create("c3", 1_000);
    bench.now_ms += 61_000;
    let Answer::Seen { expired, .. } = bench.ask(Request::Look) else { panic!("not seen") };
    let ended: Vec<&str> = expired.iter().map(|change| change.id.as_str()).collect();
    assert_eq!(ended, ["c3"], "c2 was sent: only the gateway knows");
    let failure = Failure { code: "too_large".into(), message: String::new() };
    let finish = Request::FinishCommand {
        session: session(1),
        id: id("c2"),
        state: State::Rejected,
        failure,
    };
    assert!(matches!(bench.ask(finish), Answer::Ended { statuses } if statuses.len() == 1));
}

#[test]
fn what_another_process_wrote_is_seen() {
    let mut bench = Bench::new();
    bench.open(1, &[]);
    let mut other = Sqlite::beside(options(&bench.dir)).unwrap();
    let command: CommandMessage =
        serde_json::from_str(r#"{"id":"c1","device":"d","name":"n","ttl_ms":1000}"#).unwrap();
    let request = Request::CreateCommand { gateway: "gw".into(), command: Box::new(command) };
    assert!(matches!(other.commit(bench.now_ms, &[request]).unwrap()[0], Answer::Created));
    let look = |bench: &mut Bench| match bench.ask(Request::Look) {
        Answer::Seen { waiting, changed, .. } => (waiting, changed),
        other => panic!("{other:?}"),
    };
    assert_eq!(look(&mut bench), (vec!["gw".to_owned()], true));
    assert!(!look(&mut bench).1, "told once");
    Registry::open(&options(&bench.dir).path).unwrap().revoke_gateway("gw", 5).unwrap();
    assert!(look(&mut bench).1);
    assert!(matches!(bench.apply(1, E1, 1, 1), Answer::UnknownGateway));
}

// A gateway writes the count in 64 bits; read in 32, an event with more was not counted at all.
#[test]
fn every_refusal_that_an_event_tells_of_is_counted() {
    let mut bench = Bench::new();
    bench.open(1, &[]);
    let mut tell = |seq: u64, count: u64| {
        let text = format!(
            r#"{{"type":"data","stream":"events","epoch":"{E1}","seq":{seq},"records":[{{"kind":"refused","device":"d","reason":"flood","count":{count},"ts":5}}]}}"#
        );
        let request =
            Request::Apply { session: session(1), data: parsed(&text), rejected: Vec::new() };
        applied(bench.ask(request));
        bench.counters()[3]
    };
    assert_eq!(tell(1, 7), 7);
    assert_eq!(tell(2, 1 << 40), (1 << 40) + 7);
    assert_eq!(tell(3, u64::MAX), (1 << 53) - 1, "what JSON holds exactly");
    assert_eq!(tell(4, 1), (1 << 53) - 1);
}

#[test]
fn a_foreign_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("hub.db"), "not a database, but long enough to be read as one")
        .unwrap();
    let error = Sqlite::open(options(&dir)).unwrap_err().to_string();
    assert!(error.contains("hub.db"), "{error}");
}
