//! Which of several hubs is dialled next, and when the first is tried again. What each is known to
//! be (mode `auto`) is kept for each.
//!
//! A **round** is one attempt at every hub that has not asked to be left alone. After a failed
//! attempt the next hub of the round follows within the shortest wait; the back-off comes, and
//! grows, only after a whole round, and the next round begins with the first hub. A session that
//! ends is no failed attempt: its hub is tried again first.

use std::time::{Duration, Instant};

/// How often it is looked whether nothing is in flight, and how long that is waited for, before a
/// link is closed for the first hub's sake.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const QUIET_WITHIN: Duration = Duration::from_secs(10);

/// The hubs, the preferred one first; at least one.
#[derive(Debug)]
pub(super) struct Hubs {
    known: Vec<Hub>,
    current: usize,
    /// Attempts of this round that failed, or were skipped.
    tried: usize,
    homecoming: Homecoming,
}

/// What is known of a hub.
#[derive(Debug, Default)]
struct Hub {
    /// It ever gave a valid `welcome`: then it stays managed.
    proven_managed: bool,
    /// It was seen to be plain (mode auto).
    plain_known: bool,
    /// It asked to be left alone until then.
    not_before: Option<Instant>,
}

/// The way back from a later hub to the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Homecoming {
    No,
    AskAt(Instant),
    Asking,
    /// The first can be reached: this link ends when nothing is in flight, at the latest by `by`.
    Leaving {
        look_at: Instant,
        by: Instant,
    },
}

/// What the way back asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// See whether the first hub can be reached.
    Ask,
    /// Close this link and dial the first.
    Leave,
}

impl Hubs {
    /// For each hub, whether it is proven to be managed.
    pub(super) fn new(proven_managed: &[bool]) -> Self {
        let hub = |proven: &bool| Hub { proven_managed: *proven, ..Hub::default() };
        let known = proven_managed.iter().map(hub).collect();
        Self { known, current: 0, tried: 0, homecoming: Homecoming::No }
    }

    /// The hub that is dialled, or connected.
    pub(super) fn current(&self) -> usize {
        self.current
    }

    pub(super) fn is_proven_managed(&self) -> bool {
        self.known[self.current].proven_managed
    }

    pub(super) fn is_plain_known(&self) -> bool {
        self.known[self.current].plain_known
    }

    pub(super) fn set_plain_known(&mut self, plain: bool) {
        self.known[self.current].plain_known = plain;
    }

    pub(super) fn handle_live(&mut self, now: Instant, managed: bool, return_after: Duration) {
        let hub = &mut self.known[self.current];
        hub.proven_managed |= managed;
        hub.not_before = None;
        self.tried = 0;
        self.homecoming = match self.current {
            0 => Homecoming::No,
            _ => Homecoming::AskAt(now + return_after),
        };
    }

    /// The current hub is to be left alone until then.
    pub(super) fn rest(&mut self, until: Instant) {
        self.known[self.current].not_before = Some(until);
    }

    /// So is every hub.
    pub(super) fn rest_all(&mut self, until: Instant) {
        self.known.iter_mut().for_each(|hub| hub.not_before = Some(until));
    }

    /// Whether every hub asked to be left alone.
    pub(super) fn all_rest(&self, now: Instant) -> bool {
        self.known.iter().all(|hub| hub.not_before.is_some_and(|at| now < at))
    }

    /// The attempt at the current hub failed. Whether another one follows in this round.
    pub(super) fn handle_failed(&mut self, now: Instant) -> bool {
        self.tried += 1;
        while self.tried < self.known.len() {
            self.current = (self.current + 1) % self.known.len();
            if self.known[self.current].not_before.is_none_or(|at| at <= now) {
                return true;
            }
            self.tried += 1;
        }
        false
    }

    /// The next round begins at `at`, or later where every hub asked for that: when. It begins with
    /// the first hub that can be tried then.
    pub(super) fn begin_round(&mut self, at: Instant) -> Instant {
        let ready = |hub: &Hub| hub.not_before.map_or(at, |not_before| at.max(not_before));
        let (first, begins) = (self.known.iter().map(ready).enumerate())
            .min_by_key(|(_, ready)| *ready)
            .expect("there is at least one hub");
        (self.current, self.tried) = (first, 0);
        begins
    }

    /// A link to a later hub ended for the first one's sake, which is next.
    pub(super) fn return_home(&mut self) {
        (self.current, self.tried, self.homecoming) = (0, 0, Homecoming::No);
    }

    /// When [`Hubs::home_due`] is to be asked, while a session lives.
    pub(super) fn home_at(&self) -> Option<Instant> {
        match self.homecoming {
            Homecoming::AskAt(at) | Homecoming::Leaving { look_at: at, .. } => Some(at),
            Homecoming::No | Homecoming::Asking => None,
        }
    }

    /// What the way back asks for now; `quiet`: nothing is in flight.
    pub(super) fn home_due(&mut self, now: Instant, quiet: bool) -> Option<Home> {
        match self.homecoming {
            Homecoming::AskAt(at) if at <= now => {
                self.homecoming = Homecoming::Asking;
                Some(Home::Ask)
            }
            Homecoming::Leaving { look_at, by } if look_at <= now => {
                if quiet || by <= now {
                    return Some(Home::Leave);
                }
                self.homecoming = Homecoming::Leaving { look_at: now + LOOK_EVERY, by };
                None
            }
            _ => None,
        }
    }

    /// Whether the first hub can be reached.
    pub(super) fn handle_asked(&mut self, now: Instant, reachable: bool, return_after: Duration) {
        if self.homecoming == Homecoming::Asking {
            self.homecoming = match reachable {
                true => Homecoming::Leaving { look_at: now, by: now + QUIET_WITHIN },
                false => Homecoming::AskAt(now + return_after),
            };
        }
    }
}
