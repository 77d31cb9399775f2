//! Many seeds, on all processors; a failing one is printed with the command that replays it.

use std::{
    cell::RefCell,
    panic::{self, AssertUnwindSafe},
    sync::{
        Mutex, Once,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use fieldgate::planted::{Bug, plant};

use crate::{coverage::Coverage, world::run_seed};

/// So many seeds in a run of all tests.
const SEEDS: u64 = 2000;

/// A seed that failed, and how.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) seed: u64,
    pub(crate) why: String,
}

/// Runs seeds from 0 on until one fails, with this fault planted. Gives what all of them saw.
pub(crate) fn search(count: u64, bug: Option<Bug>) -> (Coverage, Option<Failure>) {
    let (next, limit) = (AtomicU64::new(0), AtomicU64::new(count));
    let seen = Mutex::new(Coverage::default());
    let failure: Mutex<Option<Failure>> = Mutex::new(None);
    let work = || {
        plant(bug);
        loop {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= limit.load(Relaxed) {
                return;
            }
            match try_seed(seed, false) {
                Ok((coverage, _)) => {
                    seen.lock().expect("nobody panics with it").take_in(&coverage);
                }
                Err(why) => {
                    limit.fetch_min(seed, Relaxed);
                    let mut failure = failure.lock().expect("nobody panics with it");
                    if failure.as_ref().is_none_or(|earlier| seed < earlier.seed) {
                        *failure = Some(Failure { seed, why });
                    }
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    (seen.into_inner().expect("nobody panics with it"), failure.into_inner().expect("as above"))
}

thread_local! {
    static WHERE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// One seed; a panic becomes its words and place.
fn try_seed(seed: u64, is_traced: bool) -> Result<(Coverage, u64), String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        panic::set_hook(Box::new(|info| {
            WHERE.with(|place| *place.borrow_mut() = info.to_string());
        }));
    });
    panic::catch_unwind(AssertUnwindSafe(|| run_seed(seed, is_traced)))
        .map_err(|_| WHERE.with(|place| place.borrow().clone()))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

#[test]
fn the_promises_hold_whatever_goes_wrong() {
    if let Some(seed) = number("FIELDGATE_TEST_SEED") {
        if let Err(why) = try_seed(seed, true) {
            eprintln!("{why}");
            std::process::exit(1);
        }
        return;
    }
    let count = number("FIELDGATE_TEST_SEEDS").unwrap_or(SEEDS);
    let (coverage, failure) = search(count, None);
    if let Some(Failure { seed, why }) = failure {
        eprintln!("{why}\nreplay with FIELDGATE_TEST_SEED={seed} tests/run sim");
        std::process::exit(1);
    }
    println!("{count} seeds of ten minutes\n{}", coverage.table());
    let missing = coverage.missing();
    if count >= SEEDS && !missing.is_empty() {
        eprintln!("never happened: {}", missing.join(", "));
        std::process::exit(1);
    }
}

#[test]
fn a_seed_is_the_same_world_each_time() {
    for seed in [3, 17, 40] {
        let digest = |_| try_seed(seed, false).map(|(_, digest)| digest);
        let digests: Vec<_> = (0..2).map(digest).collect();
        assert_eq!(digests[0], digests[1], "seed {seed}");
    }
}
