//! How long the gateway waits, by what the hub said before and how the link ended (PROTOCOL.md,
//! section 10).

use super::{link::*, *};
use crate::protocol::{Drain, close};

/// How far the gateway had come when the link ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Dial,
    Hello,
    Session,
}

fn bench_of(seed: u64, at: At) -> Bench {
    let mut bench = Bench::new(Mode::Managed, |settings| settings.seed = seed);
    match at {
        At::Dial => {}
        At::Hello => bench.up(),
        At::Session => bench.welcomed(),
    }
    bench
}

fn http(status: u16, after_s: Option<u64>) -> Ended {
    Ended::Http { status, retry_after: after_s.map(Duration::from_secs) }
}

fn cut() -> Ended {
    Ended::Cut("cut".into())
}

fn drain(retry_after_ms: u64, spread_ms: u64) -> Option<HubMessage> {
    Some(HubMessage::Drain(Drain { retry_after_ms, spread_ms, url: None }))
}

fn come_back(after_ms: u64) -> Option<HubMessage> {
    let mut error = ErrorMessage::new("rate", String::new());
    error.retry_after_ms = Some(after_ms);
    Some(HubMessage::Error(error))
}

/// A wait has ended at the latest so much after it was to: time goes on in steps.
const STEP: f64 = 0.11;

#[test]
fn close_codes_and_statuses_lead_to_the_waits_of_the_table() {
    use At::{Dial, Hello, Session};
    const DAY_MS: u64 = 86_400_000;
    let table = [
        (Session, None, cut(), 0.0, 0.5),
        (Session, None, closed(1000), 0.0, 0.5),
        (Session, None, closed(1001), 0.0, 0.5),
        (Session, None, closed(1011), 0.0, 0.5),
        (Session, None, closed(1012), 0.0, 0.5),
        (Session, None, closed(1013), 0.0, 0.5),
        (Hello, None, closed(1013), 0.0, 0.5),
        (Hello, None, closed(4008), 0.0, 0.5),
        (Session, drain(5000, 2000), closed(1012), 5.0, 7.0),
        (Session, drain(5000, 2000), closed(1013), 5.0, 7.0),
        (Session, drain(5000, 2000), closed(1001), 5.0, 7.0),
        (Session, drain(5000, 2000), closed(4029), 5.0, 7.0),
        (Session, drain(5000, 2000), cut(), 5.0, 7.0),
        (Hello, drain(5000, 2000), closed(1012), 5.0, 7.0),
        (Session, drain(0, 0), closed(1012), 0.0, 0.5),
        (Session, drain(DAY_MS, 0), closed(1012), 3600.0, 3600.0),
        (Session, drain(DAY_MS, DAY_MS), closed(1012), 3600.0, 5400.0),
        (Session, None, closed(1008), 30.0, 60.0),
        (Hello, None, closed(1008), 30.0, 60.0),
        (Session, None, closed(4001), 0.0, 0.0),
        (Hello, None, closed(4001), 0.0, 0.0),
        (Session, None, closed(4009), 60.0, 120.0),
        (Session, None, closed(4010), 30.0, 60.0),
        (Session, None, closed(4029), 0.0, 0.5),
        (Session, come_back(40_000), closed(4029), 40.0, 60.0),
        (Session, come_back(0), closed(4029), 0.0, 0.5),
        (Session, come_back(DAY_MS), closed(4029), 3600.0, 5400.0),
        (Session, come_back(40_000), closed(1001), 0.0, 0.5),
        (Hello, None, closed(4500), 3600.0, 3600.0),
        (Hello, None, closed(4501), 3600.0, 3600.0),
        (Hello, None, closed(4502), 3600.0, 3600.0),
        (Hello, None, closed(4503), 3600.0, 3600.0),
        (Session, None, closed(4999), 3600.0, 3600.0),
        (Dial, None, http(302, None), 0.0, 0.5),
        (Dial, None, http(401, None), 30.0, 60.0),
        (Dial, None, http(403, None), 30.0, 60.0),
        (Dial, None, http(404, None), 30.0, 60.0),
        (Dial, None, http(426, None), 0.0, 0.5),
        (Dial, None, http(429, None), 0.0, 0.5),
        (Dial, None, http(429, Some(0)), 0.0, 0.5),
        (Dial, None, http(429, Some(10)), 10.0, 15.0),
        (Dial, None, http(500, None), 0.0, 0.5),
        (Dial, None, http(503, None), 0.0, 0.5),
        (Dial, None, http(503, Some(120)), 120.0, 180.0),
        (Dial, None, http(503, Some(86_400)), 3600.0, 5400.0),
    ];
    for (at, said, ended, least, most) in table {
        for seed in 0..8 {
            let mut bench = bench_of(seed, at);
            said.iter().for_each(|said| bench.hear(said.clone()));
            let waited = bench.end(ended.clone()).as_secs_f64();
            let is_within = (least..=most + STEP).contains(&waited);
            assert!(is_within, "{at:?} {said:?} {ended:?}: {waited} s, not {least} to {most}");
        }
    }
}

#[test]
fn a_token_that_expires_again_waits_like_a_refused_one_until_a_session_is_stable() {
    let mut bench = bench_of(1, At::Session);
    assert!(bench.end(closed(close::TOKEN_EXPIRED)) <= Duration::from_millis(100));
    bench.welcomed();
    assert!(bench.end(closed(close::TOKEN_EXPIRED)) >= Duration::from_secs(30));
    bench.welcomed();
    for _ in 0..61 {
        bench.pass(Duration::from_secs(1));
        bench.gateway.handle_frame(bench.now);
    }
    assert!(bench.end(closed(close::TOKEN_EXPIRED)) <= Duration::from_millis(100));
}

/// A server that asked for no wait was not waited for: a hub that welcomed and drained, named zero
/// seconds, or found the token expired each time was called as fast as the network allowed.
#[test]
fn a_server_that_asks_for_no_wait_gets_the_back_off_all_the_same() {
    use At::{Dial, Session};
    let table = [
        (Session, drain(0, 0), closed(1012)),
        (Session, come_back(0), closed(4029)),
        (Session, None, closed(4001)),
        (Dial, None, http(429, Some(0))),
        (Dial, None, http(503, Some(0))),
    ];
    for (at, said, ended) in table {
        for hubs in 1..=2 {
            let mut bench = Bench::new(Mode::Managed, |settings| {
                settings.uplink.as_mut().expect("there is one").proven_managed = vec![true; hubs];
            });
            let mut waited = Duration::ZERO;
            for _ in 0..40 {
                if at == Session {
                    bench.welcomed();
                }
                said.iter().for_each(|said| bench.hear(said.clone()));
                waited += bench.end(ended.clone());
            }
            let case = format!("{said:?} {ended:?} at {hubs} hubs");
            assert!(waited > Duration::from_secs(300), "{case}: {waited:?}");
        }
    }
}

/// A fleet behind one address that is told to come back in two minutes came back within half a
/// second.
#[test]
fn who_is_told_the_same_time_comes_back_spread_over_half_of_it() {
    for (at, said, ended) in [
        (At::Dial, None, http(503, Some(120))),
        (At::Session, come_back(120_000), closed(close::TOO_MANY)),
    ] {
        let mut by_quarter = [0; 4];
        for seed in 0..200 {
            let mut bench = bench_of(seed, at);
            said.iter().for_each(|said| bench.hear(said.clone()));
            let beyond = bench.end(ended.clone()) - Duration::from_secs(120);
            by_quarter[(beyond.as_secs_f64() / 15.1) as usize] += 1;
        }
        assert!(by_quarter.iter().all(|count| *count > 25), "{by_quarter:?}");
    }
}

/// A hub that stopped said so before its `welcome`, and was gone: the gateway gave up the greeting
/// by itself, and came back at once.
#[test]
fn what_a_hub_asked_for_before_its_welcome_is_kept_to_when_none_comes() {
    for seed in 0..8 {
        let mut bench = bench_of(seed, At::Hello);
        drain(20_000, 0).into_iter().for_each(|drain| bench.hear(drain));
        // The 5 s of the greeting and the second of the closing handshake are over by then.
        bench.pass(Duration::from_secs(18));
        assert_eq!((bench.gateway.is_live(), bench.dials.len()), (false, 1));
        bench.pass(Duration::from_secs(10));
        assert_eq!(bench.dials.len(), 2);
    }
}
