//! Several hubs, and a network that changes: which hub is dialled when.

use super::{link::*, *};
use crate::protocol::Drain;

/// A gateway with this many hubs, the first of them being dialled.
fn bench(hubs: usize) -> Bench {
    Bench::new(Mode::Managed, |settings| {
        settings.uplink.as_mut().expect("there is one").proven_managed = vec![false; hubs];
    })
}

fn refused() -> Ended {
    Ended::Dial("TCP: refused".into())
}

#[test]
fn each_failed_attempt_leads_to_the_next_hub_and_only_a_whole_round_to_the_back_off() {
    let mut bench = bench(3);
    let waits: Vec<Duration> = (0..60).map(|_| bench.end(refused())).collect();
    let order: Vec<usize> = (0..61).map(|attempt| attempt % 3).collect();
    assert_eq!(bench.hubs, order);
    let within = |at: usize| waits[at] <= Duration::from_millis(600);
    assert!((0..60).filter(|at| at % 3 != 2).all(within), "{waits:?}");
    let round: Duration = waits.iter().skip(2).step_by(3).skip(8).sum();
    assert!(round > Duration::from_secs(120), "twelve waits of 30 s on average: {round:?}");
}

#[test]
fn a_session_that_ends_is_tried_again_at_its_hub_first() {
    let mut bench = bench(2);
    bench.end(refused());
    bench.welcomed();
    bench.end(Ended::Cut("cut".into()));
    bench.end(refused());
    assert_eq!(bench.hubs, [0, 1, 1, 0]);
}

#[test]
fn a_hub_that_refuses_the_credential_rests_and_the_others_do_not_wait_for_it() {
    let mut bench = bench(2);
    let http = |status| Ended::Http { status, retry_after: None };
    assert!(bench.end(http(401)) <= Duration::from_millis(600), "the other hub is next");
    for _ in 0..4 {
        assert!(bench.end(refused()) <= Duration::from_secs(9));
    }
    assert_eq!(bench.hubs, [0, 1, 1, 1, 1, 1], "the first one rests");
    bench.pass(Duration::from_secs(61));
    bench.end(refused());
    assert_eq!(bench.hubs.last(), Some(&0), "and is preferred again when it has rested");
}

#[test]
fn when_every_hub_rests_the_first_to_be_ready_is_waited_for() {
    let mut bench = bench(2);
    let http = |after| Ended::Http { status: 503, retry_after: Some(Duration::from_secs(after)) };
    bench.end(http(300));
    let waited = bench.end(http(100));
    assert!((100.0..151.0).contains(&waited.as_secs_f64()), "{waited:?}");
    assert_eq!(bench.hubs, [0, 1, 1]);
}

#[test]
fn a_takeover_is_waited_for_whatever_hub_is_next() {
    let mut bench = bench(2);
    bench.welcomed();
    let waited = bench.end(Ended::Closed { code: 4009, reason: String::new() });
    assert!(waited >= Duration::from_secs(60), "{waited:?}");
}

#[test]
fn what_a_hub_is_known_to_be_is_known_of_it_alone() {
    let mut bench = Bench::new(Mode::Auto, |settings| {
        settings.uplink.as_mut().expect("there is one").proven_managed = vec![false, true];
    });
    bench.up();
    let hello = bench.texts()[0].clone();
    bench.gateway.handle_text(bench.now, &hello);
    bench.look();
    bench.end(Ended::Closed { code: 1000, reason: String::new() });
    bench.end(refused());
    assert_eq!((&bench.hubs[..], &bench.dials[..]), (&[0, 0, 1][..], &[true, false, true][..]));
}

#[test]
fn a_hub_that_drains_says_which_of_ours_is_next_and_the_others_follow() {
    let drained = |bench: &mut Bench, url: &str| {
        bench.welcomed();
        let url = Some(url.to_owned());
        bench.hear(HubMessage::Drain(Drain { retry_after_ms: 5000, spread_ms: 0, url }));
        bench.gateway.handle_ended(bench.now, &closed(1012));
        bench.gateway.handle_network_change(bench.now);
        bench.pass(Duration::from_millis(4900));
        assert!(!bench.gateway.is_live(), "the wait is kept to");
        let dials = bench.dials.len();
        bench.pass(Duration::from_millis(200));
        assert_eq!(bench.dials.len(), dials + 1);
    };
    let mut bench = bench(3);
    drained(&mut bench, "second");
    bench.end(refused());
    bench.end(refused());
    bench.end(refused());
    assert_eq!(bench.hubs, [0, 1, 2, 0, 0], "a whole round, then the usual order");
    drained(&mut bench, "elsewhere");
    assert_eq!(bench.hubs.last(), Some(&0));
    bench.end(closed(4501));
    drained(&mut bench, "first");
    assert_ne!(bench.hubs.last(), Some(&0), "that one refused us");
}

/// On the second of two hubs since just now.
fn on_the_second() -> Bench {
    let mut bench = bench(2);
    bench.end(refused());
    bench.welcomed();
    bench
}

fn live_for(bench: &mut Bench, seconds: u64) {
    for _ in 0..seconds {
        bench.pass(Duration::from_secs(1));
        bench.gateway.handle_frame(bench.now);
    }
}

#[test]
fn the_first_hub_is_seen_after_and_returned_to_once_nothing_is_in_flight() {
    let mut bench = on_the_second();
    live_for(&mut bench, 598);
    assert_eq!(bench.probes, 0);
    live_for(&mut bench, 3);
    assert_eq!(bench.probes, 1);
    bench.gateway.handle_probed(bench.now, false);
    live_for(&mut bench, 603);
    assert_eq!(bench.probes, 2, "once more after the same time");

    bench.publish(1);
    bench.sent.clear();
    bench.gateway.handle_probed(bench.now, true);
    bench.pass(Duration::from_secs(1));
    assert!(bench.gateway.is_live() && bench.sent.is_empty(), "a record is in flight");
    bench.ack(1);
    bench.pass(Duration::from_millis(200));
    assert!(matches!(bench.sent.last(), Some(Transmit::Close { code: 1000, .. })));
    bench.end(Ended::Closed { code: 1000, reason: String::new() });
    assert_eq!(bench.hubs, [0, 1, 0]);
    assert!(bench.end(refused()) <= Duration::from_millis(600), "the second is still there");
    assert_eq!(bench.hubs, [0, 1, 0, 1]);
}

#[test]
fn a_link_that_is_never_quiet_is_left_all_the_same() {
    let mut bench = on_the_second();
    live_for(&mut bench, 601);
    bench.gateway.handle_probed(bench.now, true);
    for round in 0..20 {
        bench.publish(1);
        bench.pass(Duration::from_secs(1));
        bench.ack(round);
    }
    assert!(!bench.gateway.is_live());
}

#[test]
fn the_first_hub_is_never_probed_from_itself_nor_an_answer_taken_after_the_session() {
    let mut bench = bench(2);
    bench.welcomed();
    live_for(&mut bench, 700);
    assert_eq!(bench.probes, 0);
    let mut bench = on_the_second();
    live_for(&mut bench, 601);
    bench.end(Ended::Cut("cut".into()));
    bench.welcomed();
    bench.gateway.handle_probed(bench.now, true);
    bench.pass(Duration::from_secs(5));
    assert!(bench.gateway.is_live(), "that was asked in another session");
}

#[test]
fn a_network_change_ends_a_back_off_but_no_wait_that_a_hub_asked_for() {
    let mut bench = bench(1);
    for _ in 0..20 {
        bench.end(refused());
    }
    bench.gateway.handle_ended(bench.now, &refused());
    let dials = bench.dials.len();
    bench.gateway.handle_network_change(bench.now);
    bench.pass(Duration::from_millis(600));
    assert_eq!(bench.dials.len(), dials + 1);

    let after = Some(Duration::from_secs(120));
    bench.gateway.handle_ended(bench.now, &Ended::Http { status: 503, retry_after: after });
    bench.gateway.handle_network_change(bench.now);
    bench.pass(Duration::from_secs(119));
    assert_eq!(bench.dials.len(), dials + 1);
    bench.pass(Duration::from_secs(62));
    assert_eq!(bench.dials.len(), dials + 2);
}

/// Addresses and routes come in stages. The change that came while an attempt hung in the network
/// of before was not heeded: that attempt took its time, and the back-off came on top.
#[test]
fn a_network_change_begins_an_attempt_anew() {
    let soon = Duration::from_millis(600);
    for greets in [false, true] {
        let mut bench = Bench::new(Mode::Auto, |_| {});
        if greets {
            bench.up();
        }
        bench.gateway.handle_network_change(bench.now);
        bench.pass(soon);
        assert_eq!((bench.hangups, &bench.dials[..]), (1, &[true, true][..]));
        bench.gateway.handle_network_change(bench.now);
        bench.pass(soon);
        assert_eq!((bench.hangups, bench.dials.len()), (2, 3), "the next stage");
        bench.welcomed();
        bench.pass(Duration::from_secs(5));
        assert!(bench.gateway.is_live());
    }
    let mut bench = bench(1);
    for _ in 0..20 {
        bench.end(refused());
    }
    bench.gateway.handle_network_change(bench.now);
    assert!(bench.end(refused()) <= soon, "an attempt that the change ended is no failed one");
    bench.up();
    bench.pass(Duration::from_millis(5100));
    bench.gateway.handle_network_change(bench.now);
    assert!(bench.end(closed(1000)) <= Duration::from_secs(2), "what follows a close comes soon");
}

#[test]
fn a_network_that_changes_all_the_time_leaves_an_attempt_its_time_and_makes_no_hot_loop() {
    for dial_fails in [false, true] {
        let mut bench = bench(1);
        let (mut dialled, mut longest) = (bench.now.instant, Duration::ZERO);
        for _ in 0..1200 {
            let dials = bench.dials.len();
            bench.gateway.handle_network_change(bench.now);
            bench.pass(Duration::from_millis(500));
            if bench.dials.len() > dials {
                longest = longest.max(bench.now.instant - dialled);
                dialled = bench.now.instant;
                if dial_fails {
                    bench.gateway.handle_ended(bench.now, &refused());
                }
            }
        }
        assert!(bench.dials.len() < 50, "{} attempts in ten minutes", bench.dials.len());
        assert!(longest >= Duration::from_secs(30), "{longest:?}");
    }
}

#[test]
fn a_reload_ends_the_rest_of_a_hub_that_refused_us_and_no_wait_that_a_hub_asked_for() {
    for ended in [closed(4501), closed(1008), Ended::Http { status: 401, retry_after: None }] {
        let mut bench = bench(1);
        bench.gateway.handle_ended(bench.now, &ended);
        bench.gateway.handle_network_change(bench.now);
        bench.pass(Duration::from_secs(20));
        assert_eq!(bench.dials.len(), 1, "another network is no other credential");
        bench.gateway.handle_reload(bench.now);
        bench.pass(Duration::from_millis(600));
        assert_eq!(bench.dials.len(), 2, "{ended:?}");
    }
    let busy = Ended::Http { status: 503, retry_after: Some(Duration::from_secs(120)) };
    for (ended, waits) in [(busy, 120), (closed(4009), 60)] {
        let mut bench = bench(1);
        bench.gateway.handle_ended(bench.now, &ended);
        bench.gateway.handle_reload(bench.now);
        bench.pass(Duration::from_secs(waits - 1));
        assert_eq!(bench.dials.len(), 1, "{ended:?}");
    }
}

#[test]
fn a_reload_begins_an_attempt_anew_and_counts_for_what_still_comes_of_the_old_one() {
    let mut bench = bench(1);
    bench.gateway.handle_reload(bench.now);
    bench.pass(Duration::from_millis(600));
    assert_eq!((bench.hangups, bench.dials.len()), (1, 2));
    bench.gateway.handle_reload(bench.now);
    assert!(bench.end(closed(4501)) <= Duration::from_secs(2), "that was said to who we were");
    bench.end(closed(4001));
    bench.end(closed(4001));
    bench.gateway.handle_reload(bench.now);
    bench.pass(Duration::from_secs(5));
    assert!(bench.end(closed(4001)) <= Duration::from_millis(100), "another token");
}

/// A first hub that said 4501, or named an hour, took the gateway off the second one every ten
/// minutes.
#[test]
fn the_first_hub_is_not_seen_after_before_it_may_be_tried() {
    let busy = Ended::Http { status: 503, retry_after: Some(Duration::from_secs(3000)) };
    for (ended, at_least, at_most) in [(closed(4501), 3600, 3602), (busy, 3000, 4502)] {
        let mut bench = bench(2);
        bench.end(ended);
        bench.welcomed();
        live_for(&mut bench, at_least - 1);
        assert_eq!(bench.probes, 0);
        live_for(&mut bench, at_most - at_least);
        assert_eq!(bench.probes, 1);
    }
    let mut bench = bench(2);
    bench.end(closed(4501));
    bench.welcomed();
    live_for(&mut bench, 590);
    bench.gateway.handle_reload(bench.now);
    live_for(&mut bench, 11);
    assert_eq!((bench.probes, bench.gateway.is_live()), (1, true), "who it refused was another");
}

#[test]
fn what_one_hub_finds_too_big_another_may_take_and_after_a_day_it_too() {
    let largest = |bench: &mut Bench| {
        bench.resumed(0);
        bench.texts().iter().map(|text| text.len()).max().expect("a message")
    };
    // By the peer, the same batch would be suspected of it.
    let lost = || Ended::Lost("the address is gone".into());
    let mut bench = bench(2);
    bench.publish_of(800, 30);
    let free = largest(&mut bench);
    bench.end(closed(1009));
    assert!(largest(&mut bench) <= free / 2);
    bench.end(lost());
    bench.end(refused());
    assert_eq!(largest(&mut bench), free, "the second hub never complained");
    bench.end(lost());
    bench.end(refused());
    assert!(largest(&mut bench) <= free / 2, "the first one did");
    bench.now.instant += Duration::from_secs(24 * 3600);
    bench.end(lost());
    assert_eq!((largest(&mut bench), bench.hubs.last()), (free, Some(&0)));
}

#[test]
fn a_network_change_has_a_live_link_asked_at_once() {
    let mut bench = bench(1);
    bench.welcomed();
    bench.gateway.handle_pong(bench.now, b"");
    bench.gateway.handle_network_change(bench.now);
    bench.pass(Duration::ZERO);
    assert_eq!(bench.pings(), 1);
    bench.gateway.handle_network_change(bench.now);
    bench.pass(Duration::from_secs(9));
    assert_eq!((bench.pings(), bench.hangups), (1, 0), "it is being asked");
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.hangups, 1, "silence is the answer of a dead link");
}
