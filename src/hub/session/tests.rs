use super::*;
use crate::{
    command::{CommandId, State},
    hub::engine::{Applied, Held, Pending},
    protocol::{Epoch, StreamName},
};

mod line;

const E1: &str = "00000000000000e1";
const PING: Duration = Duration::from_secs(25);
const PONG: Duration = Duration::from_secs(10);

/// A session whose engine answers when the test says so.
struct Bench {
    session: Session,
    now: Now,
}

/// What a session did, in the words of the tests.
#[derive(Debug, PartialEq, Eq)]
enum Did {
    Said(String),
    Ping,
    Asked(&'static str),
    Showed { new_from: u64, first_id: u64 },
    Closed(u16),
}

impl Bench {
    fn new() -> Self {
        Self::expiring(None)
    }

    fn expiring(expiry: Option<Expiry>) -> Self {
        Self::with(expiry, PING)
    }

    fn with(expiry: Option<Expiry>, first_ping: Duration) -> Self {
        let now = Now { instant: Instant::now(), unix_ms: 1_790_000_000_000 };
        let options = Options {
            hub: "hub-1".into(),
            limits: HubLimits { frame_bytes: 4096, record_bytes: 64, batch_records: 10 },
            window: Window { records: 100, bytes: 1000 },
            ping_interval: PING,
            first_ping,
            ping_timeout: PONG,
            traffic: Traffic { messages_per_second: 50, bytes_per_second: 1 << 20 },
            expiry,
        };
        let id = SessionId { gateway: "gw".into(), number: 1 };
        Self { session: Session::new(now, id, options), now }
    }

    /// Welcomed, with one epoch at `next`; the question for commands was answered with none.
    fn welcomed(next: u64) -> Self {
        let mut bench = Self::new();
        bench.hear(&hello(1, next.max(1)));
        bench.answer(opened(next, Vec::new()));
        bench.answer(no_commands());
        bench.did();
        bench
    }

    fn hear(&mut self, text: &str) {
        self.session.handle_message(self.now, text);
    }

    fn answer(&mut self, answer: Answer) {
        self.session.handle_answer(self.now, Ok(answer));
    }

    fn fail(&mut self) {
        self.session.handle_answer(self.now, Err(EngineError("disk full".into())));
    }

    fn later(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.unix_ms += u64::try_from(time.as_millis()).unwrap();
        self.session.handle_timeout(self.now);
    }

    /// What it did, on a line that always has room.
    fn did(&mut self) -> Vec<Did> {
        let mut all = self.did_without_room();
        while self.session.wants_room() {
            self.session.handle_room(self.now);
            all.extend(self.did_without_room());
        }
        all
    }

    fn did_without_room(&mut self) -> Vec<Did> {
        let mut all = Vec::new();
        while let Some(output) = self.session.poll_output() {
            all.push(match output {
                Output::Text(text) => Did::Said(brief(&text)),
                Output::Ping => Did::Ping,
                Output::Ask(request) => Did::Asked(match request {
                    Request::Open { .. } => "open",
                    Request::Apply { .. } => "apply",
                    Request::Skip { .. } => "skip",
                    Request::TakeCommands { .. } => "take",
                    Request::FinishCommand { .. } => "finish",
                    _ => "other",
                }),
                Output::Stored(Stored { new_from, first_id, .. }) => {
                    Did::Showed { new_from, first_id }
                }
                Output::Close { code, .. } => Did::Closed(code),
                Output::CheckToken(_) => Did::Asked("token"),
                Output::Statuses(_) | Output::Welcomed => continue,
            });
        }
        all
    }
}

/// The members that the tests look at.
fn brief(text: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(text).unwrap();
    let kind = value["type"].as_str().unwrap();
    match kind {
        "ack" => {
            let rejected = match &value["rejected"] {
                serde_json::Value::Null => String::new(),
                some => format!(" rejected {some}"),
            };
            format!("ack {} window {}{rejected}", value["acked"], value["window"]["records"])
        }
        "error" if value["code"] == "gap" => format!("gap {}", value["expected"]),
        "error" => format!("error {}", value["code"].as_str().unwrap()),
        "welcome" => format!("welcome {}", value["streams"][0]["acked"]),
        "command" => format!(
            "command {} ttl {} state {}",
            value["id"].as_str().unwrap(),
            value["ttl_ms"],
            value["state"]["state"]
        ),
        "cancel" => format!("cancel {}", value["id"].as_str().unwrap()),
        other => other.into(),
    }
}

fn said(text: &str) -> Did {
    Did::Said(text.into())
}

fn hello(first: u64, next: u64) -> String {
    format!(
        r#"{{"type":"hello","gateway":"gw","limits":{{"message_bytes":300,"inflight_commands":2}},"streams":[{{"stream":"telemetry","epoch":"{E1}","first":{first},"next":{next}}}]}}"#
    )
}

fn opened(next: u64, commands: Vec<Pending>) -> Answer {
    let stream = StreamName::try_from("telemetry".to_owned()).unwrap();
    Answer::Opened { positions: vec![Held { stream, epoch: Epoch(0xe1), next }], commands }
}

fn no_commands() -> Answer {
    Answer::Commands { commands: Vec::new(), cancels: Vec::new(), more: false }
}

fn data(seq: u64, payloads: &[&str]) -> String {
    let records: Vec<String> = payloads
        .iter()
        .map(|payload| format!(r#"{{"ts":5,"device":"d","topic":"t","payload":{payload}}}"#))
        .collect();
    let records = records.join(",");
    format!(
        r#"{{"type":"data","stream":"telemetry","epoch":"{E1}","seq":{seq},"records":[{records}]}}"#
    )
}

fn skip(from: u64, to: u64) -> String {
    format!(
        r#"{{"type":"skip","stream":"telemetry","epoch":"{E1}","from":{from},"to":{to},"reason":"evicted"}}"#
    )
}

fn applied(next: u64, new_from: u64) -> Answer {
    Answer::Applied(Applied { next, new_from, first_id: new_from, statuses: Vec::new() })
}

fn pending(id: &str, ttl: u64, params: &str) -> Pending {
    let text = format!(
        r#"{{"id":"{id}","device":"d","name":"n","ttl_ms":0,"params":{params},"state":null}}"#
    );
    Pending {
        command: serde_json::from_str(&text).unwrap(),
        expires_ms: 1_790_000_000_000 + ttl,
        cancelled: false,
    }
}

fn change(id: &str, state: State) -> StatusChange {
    StatusChange {
        gateway: "gw".into(),
        device: "d".into(),
        id: CommandId::try_from(id.to_owned()).unwrap(),
        n: 9,
        state,
        result: None,
        error: None,
        ts: 5,
    }
}

#[test]
fn a_welcome_waits_for_the_positions() {
    let mut bench = Bench::new();
    bench.hear(&hello(5, 9));
    assert_eq!(bench.did(), [Did::Asked("open")]);
    bench.answer(opened(7, Vec::new()));
    assert_eq!(bench.did(), [said("welcome 6"), Did::Asked("take")]);
}

#[test]
fn an_ack_waits_for_the_commit_and_answers_for_all_of_it() {
    let mut bench = Bench::welcomed(1);
    bench.hear(&data(1, &["1", "2"]));
    bench.hear(&data(3, &["3"]));
    assert_eq!(bench.did(), [Did::Asked("apply"), Did::Asked("apply")]);
    bench.answer(applied(3, 1));
    bench.answer(applied(4, 3));
    let shown = |new_from| Did::Showed { new_from, first_id: new_from };
    assert_eq!(bench.did(), [shown(1), shown(3), said("ack 3 window 100")]);
    bench.hear(&data(2, &["2", "3"]));
    bench.answer(applied(4, 4));
    assert_eq!(bench.did(), [Did::Asked("apply"), said("ack 3 window 100")], "shown once");
}

#[test]
fn a_hole_is_answered_once_until_it_is_filled() {
    let mut bench = Bench::welcomed(3);
    bench.hear(&data(5, &["5"]));
    bench.hear(&data(6, &["6"]));
    bench.hear(&skip(7, 9));
    assert_eq!(bench.did(), [said("gap 3")]);
    bench.hear(&data(3, &["3", "4"]));
    bench.hear(&data(6, &["6"]));
    assert_eq!(bench.did(), [Did::Asked("apply"), said("gap 5")]);
}

#[test]
fn a_skip_is_acknowledged_like_data() {
    let mut bench = Bench::welcomed(3);
    bench.hear(&skip(2, 6));
    bench.hear(&data(6, &["6"]));
    assert_eq!(bench.did(), [Did::Asked("skip"), Did::Asked("apply")]);
    bench.answer(applied(6, 3));
    assert_eq!(bench.did(), [said("ack 5 window 100")]);
}

#[test]
fn what_is_not_taken_is_acknowledged_with_the_reason() {
    let mut bench = Bench::welcomed(1);
    let long = format!("\"{}\"", "x".repeat(64));
    bench.hear(&data(1, &["1", &long, r#""\ud800""#]));
    bench.answer(applied(4, 1));
    let expected = r#"ack 3 window 100 rejected [[2,"too_large"],[3,"bad_payload"]]"#;
    assert_eq!(bench.did()[2], said(expected));
}

#[test]
fn a_failed_store_closes_the_window_and_asks_again_when_it_works() {
    let mut bench = Bench::welcomed(1);
    bench.hear(&data(1, &["1"]));
    bench.hear(&data(2, &["2"]));
    bench.hear(&data(3, &["3"]));
    bench.did();
    bench.answer(applied(2, 1));
    bench.fail();
    assert_eq!(
        bench.did(),
        [Did::Showed { new_from: 1, first_id: 1 }, said("ack 1 window 0"), said("ack 1 window 0")]
    );
    bench.fail();
    bench.hear(&data(4, &["4"]));
    assert_eq!(bench.did(), [], "nothing is handed on, and nothing is promised");
    bench.session.handle_store(true);
    assert_eq!(bench.did(), [said("ack 1 window 100"), said("gap 2")]);
    bench.hear(&data(2, &["2", "3", "4"]));
    bench.answer(applied(5, 2));
    assert_eq!(bench.did().last(), Some(&said("ack 4 window 100")));
}

#[test]
fn without_a_store_there_is_no_welcome() {
    let mut bench = Bench::new();
    bench.hear(&hello(1, 1));
    bench.did();
    bench.fail();
    assert_eq!(bench.did(), [Did::Closed(close::TRY_LATER)]);
}

#[test]
fn a_gateway_with_too_many_epochs_is_told_so() {
    let mut bench = Bench::new();
    bench.hear(&hello(1, 1));
    bench.did();
    bench.answer(Answer::TooManyEpochs);
    assert_eq!(bench.did(), [said("error bad_message"), Did::Closed(close::PROTOCOL_ERROR)]);
}

#[test]
fn commands_come_after_the_welcome_as_many_as_the_gateway_bears() {
    let mut bench = Bench::new();
    bench.hear(&hello(1, 1));
    bench.did();
    let mut known = pending("c1", 5000, "1");
    known.command.state = Some(crate::protocol::HubState { n: 1, state: State::Accepted });
    bench.answer(opened(1, vec![known]));
    let resend = said(r#"command c1 ttl 5000 state "accepted""#);
    assert_eq!(bench.did(), [said("welcome 0"), Did::Asked("take"), resend]);
    bench.now.unix_ms += 1000;
    let commands = vec![pending("c2", 900, "1")];
    bench.answer(Answer::Commands { commands, cancels: Vec::new(), more: true });
    assert_eq!(bench.did(), [said("command c2 ttl 0 state null")], "the third has to wait");
    bench.hear(&data(1, &["1"]));
    bench.answer(Answer::Applied(Applied {
        next: 2,
        new_from: 1,
        first_id: 1,
        statuses: vec![change("c1", State::Succeeded)],
    }));
    assert!(bench.did().contains(&Did::Asked("take")));
}

#[test]
fn a_withdrawn_command_goes_out_expired_and_cancelled() {
    let mut bench = Bench::new();
    bench.hear(&hello(1, 1));
    bench.did();
    let withdrawn = Pending { cancelled: true, ..pending("c1", 5000, "1") };
    bench.answer(opened(1, vec![withdrawn]));
    let did = bench.did();
    assert_eq!(did[2..4], [said("command c1 ttl 0 state null"), said("cancel c1")]);
}

#[test]
fn a_command_larger_than_the_gateway_takes_is_ended_by_the_hub() {
    let mut bench = Bench::welcomed(1);
    bench.session.handle_commands_waiting();
    assert_eq!(bench.did(), [Did::Asked("take")]);
    let large = pending("c1", 5000, &format!("\"{}\"", "x".repeat(300)));
    bench.answer(Answer::Commands { commands: vec![large], cancels: Vec::new(), more: false });
    assert_eq!(bench.did(), [Did::Asked("finish")]);
}

#[test]
fn what_breaks_the_protocol_is_closed_with_its_code() {
    let close_of = |texts: &[&str]| {
        let mut bench = Bench::new();
        for (index, text) in texts.iter().enumerate() {
            bench.hear(text);
            if index == 0 && texts.len() > 1 {
                bench.answer(opened(1, Vec::new()));
            }
        }
        bench.did().into_iter().find_map(|did| match did {
            Did::Closed(code) => Some(code),
            _ => None,
        })
    };
    let greeting = hello(1, 1);
    let foreign = greeting.replace("\"gw\"", "\"other\"");
    let many = data(1, &["1"; 11]);
    let large = data(1, &[&format!("\"{}\"", "x".repeat(4096))]);
    assert_eq!(close_of(&[&greeting]), None);
    assert_eq!(close_of(&[&foreign]), Some(close::FORBIDDEN));
    assert_eq!(close_of(&[&data(1, &["1"])]), Some(close::PROTOCOL_ERROR));
    assert_eq!(close_of(&[&greeting, &greeting]), Some(close::PROTOCOL_ERROR));
    assert_eq!(close_of(&["nonsense"]), Some(1007));
    assert_eq!(close_of(&[r#"{"type":"hello"}"#]), Some(close::PROTOCOL_ERROR));
    assert_eq!(close_of(&[r#"{"type":"news"}"#]), None);
    assert_eq!(close_of(&[r#"{"type":"news","must":true}"#]), Some(close::UNSUPPORTED));
    assert_eq!(close_of(&[&greeting, &large]), Some(close::TOO_BIG));
    assert_eq!(close_of(&[&greeting, &many]), Some(close::TOO_BIG));
    assert_eq!(close_of(&[&greeting, &data(0, &["1"])]), Some(close::PROTOCOL_ERROR));
    assert_eq!(close_of(&[&greeting, &data(u64::MAX, &["1"])]), Some(close::PROTOCOL_ERROR));
    assert_eq!(close_of(&[&greeting, &skip(3, 3)]), Some(close::PROTOCOL_ERROR));
    assert_eq!(close_of(&[&hello(0, 1)]), Some(close::PROTOCOL_ERROR));
}

#[test]
fn silence_is_pinged_and_then_cut() {
    let mut bench = Bench::new();
    bench.later(Duration::from_secs(4));
    assert_eq!(bench.did(), []);
    bench.later(Duration::from_secs(1));
    assert_eq!(bench.did(), [Did::Closed(close::NO_HELLO)]);

    let mut bench = Bench::welcomed(1);
    bench.later(PING);
    assert_eq!(bench.did(), [Did::Ping]);
    bench.session.handle_frame(bench.now);
    bench.later(PING);
    assert_eq!(bench.did(), [Did::Ping]);
    bench.later(PONG);
    assert_eq!(bench.did(), [Did::Closed(close::GOING_AWAY)]);
    assert_eq!(bench.session.poll_timeout(), None);
}

#[test]
fn the_newest_session_wins() {
    let mut bench = Bench::welcomed(1);
    bench.session.handle_taken_over();
    assert_eq!(bench.did(), [Did::Closed(close::TAKEN_OVER)]);
    let mut bench = Bench::welcomed(1);
    bench.hear(&data(1, &["1"]));
    bench.did();
    bench.answer(Answer::Superseded);
    assert_eq!(bench.did(), [Did::Closed(close::TAKEN_OVER)]);
}

#[test]
fn a_drain_finishes_what_was_begun() {
    let mut bench = Bench::welcomed(1);
    bench.hear(&data(1, &["1"]));
    bench.did();
    bench.session.handle_drain(Duration::from_secs(1), Duration::from_secs(2));
    bench.hear(&data(2, &["2"]));
    assert_eq!(bench.did(), [said("drain")]);
    bench.answer(applied(2, 1));
    let did = bench.did();
    assert_eq!(did[1..], [said("ack 1 window 100"), Did::Closed(close::RESTART)]);
}

fn verified(gateway: &str, expiry: Option<Expiry>) -> Result<Option<Verified>, EngineError> {
    Ok(Some(Verified { gateway: gateway.into(), expiry }))
}

#[test]
fn a_fresh_token_is_of_the_same_gateway_or_ends_the_session() {
    let mut bench = Bench::welcomed(1);
    bench.hear(r#"{"type":"auth","token":"t"}"#);
    assert_eq!(bench.did(), [Did::Asked("token")]);
    bench.session.handle_token(bench.now, verified("gw", None));
    assert_eq!(bench.did(), [said("auth_ok")]);
    bench.session.handle_token(bench.now, Ok(None));
    assert_eq!(bench.did(), [said("error unauthorized")], "and the session lives on");
    bench.session.handle_token(bench.now, Err(EngineError("disk full".into())));
    assert_eq!(bench.did(), [said("error unavailable")]);
    bench.session.handle_token(bench.now, verified("other", None));
    assert_eq!(bench.did(), [Did::Closed(close::FORBIDDEN)]);
}

#[test]
fn a_session_ends_with_its_credential_unless_that_is_renewed() {
    let start = 1_790_000_000_000;
    let until = |s: u64| Some(Expiry { ends_ms: start + s * 1000, told_ms: Some(start) });
    let mut bench = Bench::expiring(until(5));
    bench.hear(&hello(1, 1));
    bench.answer(opened(1, Vec::new()));
    bench.answer(no_commands());
    bench.did();
    assert_eq!(bench.session.poll_timeout(), Some(bench.now.instant + Duration::from_secs(5)));
    bench.later(Duration::from_secs(4));
    bench.session.handle_token(bench.now, verified("gw", until(20)));
    bench.session.handle_token(bench.now, Ok(None));
    assert_eq!(bench.did(), [said("auth_ok"), said("error unauthorized")]);
    bench.later(Duration::from_secs(15));
    assert_eq!(bench.did(), []);
    bench.later(Duration::from_secs(1));
    assert_eq!(bench.did(), [Did::Closed(close::TOKEN_EXPIRED)]);
    bench.session.handle_timeout(bench.now);
    assert_eq!(bench.did(), [], "once");

    let mut bench = Bench::expiring(until(2));
    bench.later(Duration::from_secs(2));
    assert_eq!(bench.did(), [Did::Closed(close::TOKEN_EXPIRED)], "before hello too");
    let mut bench = Bench::expiring(Some(Expiry { ends_ms: u64::MAX, told_ms: None }));
    bench.later(Duration::from_secs(1));
    assert_eq!(bench.did(), [], "the end of time is far");
}

#[test]
fn the_welcome_tells_when_the_token_ends() {
    let expiry = |told_ms| Some(Expiry { ends_ms: 1_790_000_060_000, told_ms });
    for (expiry, told) in [
        (expiry(Some(1_790_000_000_000)), serde_json::json!(1_790_000_000_000_u64)),
        (expiry(None), serde_json::Value::Null),
        (None, serde_json::Value::Null),
    ] {
        let mut bench = Bench::expiring(expiry);
        bench.hear(&hello(1, 1));
        bench.answer(opened(1, Vec::new()));
        let welcome = std::iter::from_fn(|| bench.session.poll_output())
            .find_map(|output| match output {
                Output::Text(text) => Some(text),
                _ => None,
            })
            .unwrap();
        let welcome: serde_json::Value = serde_json::from_str(&welcome).unwrap();
        assert_eq!((&welcome["type"], &welcome["token_expires"]), (&"welcome".into(), &told));
    }
}

#[test]
fn a_gateway_that_runs_wild_is_told_so_and_sent_away() {
    let mut bench = Bench::welcomed(1);
    bench.later(Duration::from_secs(1));
    for _ in 0..100 {
        bench.session.handle_frame(bench.now);
    }
    assert_eq!(bench.did(), []);
    bench.hear(r#"{"type":"news"}"#);
    assert_eq!(bench.did(), [said("error rate"), Did::Closed(close::TOO_MANY)]);
}
