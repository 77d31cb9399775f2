//! Lines and stores that are slow, and not dead.

use super::*;

/// What a gateway waits for an ack (`ack_timeout`).
const ACK_TIMEOUT: Duration = Duration::from_secs(10);

#[test]
fn a_gateway_that_sends_faster_than_the_store_is_not_read() {
    let mut bench = Bench::welcomed(1);
    for seq in 1..=32 {
        assert!(!bench.session.is_saturated());
        bench.hear(&data(seq, &["1"]));
    }
    assert!(bench.session.is_saturated());
    bench.later(PING);
    bench.later(PONG);
    bench.answer(applied(2, 1));
    assert!(!bench.session.is_saturated() && !bench.session.is_closed());
}

/// An engine waited 20 s for its disk, without failing. No session that had handed something on
/// said a word meanwhile: every gateway that was sending gave the hub up after its `ack_timeout`,
/// dialled anew, and sent everything again to the same engine.
#[test]
fn a_store_that_stalls_closes_the_window_before_the_gateway_gives_up() {
    let mut bench = Bench::welcomed(1);
    for seq in 1..=32 {
        bench.hear(&data(seq, &["1"]));
    }
    bench.did();
    let deadline = bench.session.poll_timeout().unwrap();
    assert!(deadline < bench.now.instant + ACK_TIMEOUT, "in time");
    bench.later(deadline - bench.now.instant);
    assert_eq!(bench.did(), [said("ack 0 window 0")]);
    bench.later(PING);
    assert_eq!(bench.did(), [Did::Ping], "it is not read, but it hears that the hub lives");
    bench.later(PING);
    assert_eq!(bench.did(), [Did::Ping], "as often as it takes");

    bench.answer(applied(2, 1));
    let shown = Did::Showed { new_from: 1, first_id: 1 };
    let opened = said("ack 1 window 100");
    assert_eq!(bench.did(), [shown, opened, said("ack 1 window 100")]);
    bench.later(Duration::from_secs(5));
    assert_eq!(bench.did(), [said("ack 1 window 0")], "it stalls again");
}

#[test]
fn a_store_that_is_slow_and_answers_does_not_stall() {
    let mut bench = Bench::welcomed(1);
    bench.hear(&data(1, &["1"]));
    bench.hear(&data(2, &["2"]));
    bench.later(Duration::from_secs(4));
    bench.answer(applied(2, 1));
    bench.later(Duration::from_secs(4));
    bench.answer(applied(3, 2));
    bench.later(Duration::from_secs(6));
    let did = bench.did();
    assert!(!did.contains(&said("ack 1 window 0")) && !did.contains(&said("ack 2 window 0")));
}

#[test]
fn a_store_that_fails_after_a_stall_opens_the_window_only_when_it_works() {
    let mut bench = Bench::welcomed(1);
    bench.hear(&data(1, &["1"]));
    bench.later(Duration::from_secs(5));
    assert_eq!(bench.did(), [Did::Asked("apply"), said("ack 0 window 0")]);
    bench.fail();
    assert_eq!(bench.did(), []);
    bench.session.handle_store(true);
    assert_eq!(bench.did(), [said("ack 0 window 100"), said("gap 1")]);
}

/// A command of 256 KB takes 33 s at 64 kbit/s. The hub heard nothing meanwhile, took the line for
/// dead, and the next session began with the same command.
#[test]
fn bytes_that_leave_are_progress() {
    let mut bench = Bench::welcomed(1);
    bench.later(PING);
    assert_eq!(bench.did(), [Did::Ping]);
    for _ in 0..20 {
        bench.now.instant += PONG / 2;
        bench.session.handle_progress(bench.now);
        bench.session.handle_timeout(bench.now);
    }
    assert_eq!(bench.did(), [], "not dead, and not asked what its answer would be late for");
    bench.later(PING);
    bench.later(PONG);
    assert_eq!(bench.did(), [Did::Ping, Did::Closed(close::GOING_AWAY)]);
}

/// After a restart of the hub all gateways are there at once; they are not pinged at once.
#[test]
fn the_first_ping_comes_before_the_interval_is_over() {
    let mut bench = Bench::with(None, PING / 5);
    bench.hear(&hello(1, 1));
    bench.answer(opened(1, Vec::new()));
    bench.answer(no_commands());
    bench.did();
    bench.later(PING / 5);
    assert_eq!(bench.did(), [Did::Ping]);
    bench.session.handle_frame(bench.now);
    bench.later(PING / 5);
    assert_eq!(bench.did(), []);
    bench.later(PING - PING / 5);
    assert_eq!(bench.did(), [Did::Ping]);
}

#[test]
fn commands_wait_for_room_and_acks_pass_them() {
    let mut bench = Bench::welcomed(1);
    bench.session.handle_commands_waiting();
    let commands = vec![pending("c1", 5000, "1"), pending("c2", 5000, "2")];
    bench.answer(Answer::Commands { commands, cancels: Vec::new(), more: false });
    assert_eq!(bench.did_without_room(), [Did::Asked("take")]);
    assert!(bench.session.wants_room());
    bench.session.handle_room(bench.now);
    assert_eq!(bench.did_without_room(), [said("command c1 ttl 5000 state null")]);
    bench.hear(&data(1, &["1"]));
    bench.answer(applied(2, 1));
    assert_eq!(bench.did_without_room().last(), Some(&said("ack 1 window 100")));
    bench.now.unix_ms += 4000;
    bench.session.handle_room(bench.now);
    let late = said("command c2 ttl 1000 state null");
    assert_eq!(bench.did_without_room(), [late], "its time is that of its sending");
    assert!(!bench.session.wants_room());
}

#[test]
fn a_cancel_never_overtakes_its_command() {
    let mut bench = Bench::welcomed(1);
    bench.session.handle_commands_waiting();
    let commands = vec![pending("c1", 5000, "1"), pending("c2", 5000, "2")];
    bench.answer(Answer::Commands { commands, cancels: Vec::new(), more: false });
    bench.session.handle_room(bench.now);
    bench.session.handle_commands_waiting();
    bench.did_without_room();
    let cancels = ["c1", "c2"].map(|id| CommandId::try_from(id.to_owned()).unwrap());
    let cancels = cancels.to_vec();
    bench.answer(Answer::Commands { commands: Vec::new(), cancels, more: false });
    assert_eq!(bench.did_without_room(), [said("cancel c1")]);
    let (expired, cancel) = (said("command c2 ttl 0 state null"), said("cancel c2"));
    assert_eq!(bench.did(), [expired, cancel]);
}

/// A gateway that sends without a pause never lets the timer have its turn.
#[test]
fn a_credential_ends_under_a_flood_too() {
    let ends_ms = 1_790_000_005_000;
    let mut bench = Bench::expiring(Some(Expiry { ends_ms, told_ms: None }));
    bench.hear(&hello(1, 1));
    bench.did();
    bench.now.instant += Duration::from_secs(5);
    bench.hear(r#"{"type":"news"}"#);
    assert_eq!(bench.did(), [Did::Closed(close::TOKEN_EXPIRED)]);
}
