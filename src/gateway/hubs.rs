//! Which of several hubs is dialled next, and when the first is tried again. What is known of each
//! (that it is plain, that it wants to be left alone, how large a message it takes) is kept for it.
//!
//! It must never name a hub before the time that this hub asked for, nor end a link that lives for
//! one that would refuse it, and never leave a hub out for good.
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

/// So long it is believed that a hub takes no larger messages: somebody may have mended that.
const TOO_BIG_FOR: Duration = Duration::from_secs(24 * 3600);

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
    /// It named the time until which it is to be left alone.
    asked: Option<Instant>,
    /// It refused us as we are, and is left alone until then, or until we are others.
    refused: Option<Instant>,
    too_big: Option<TooBig>,
}

/// A hub found a message too big.
#[derive(Debug, Clone, Copy)]
struct TooBig {
    since: Instant,
    /// What a message may have from then on, in bytes on the link.
    cap: u64,
    /// It is not known which message it was, and no session has been stable since.
    is_careful: bool,
}

/// Why a hub is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// It said for how long.
    Asked,
    /// It refused us as we are: the time is ours to choose.
    Refused,
}

impl Hub {
    /// It is left alone until then.
    fn not_before(&self) -> Option<Instant> {
        self.asked.max(self.refused)
    }
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

    pub(super) fn is_taken_for_plain(&self, hub: usize) -> bool {
        self.known[hub].plain_known && !self.known[hub].proven_managed
    }

    pub(super) fn set_plain_known(&mut self, plain: bool) {
        self.known[self.current].plain_known = plain;
    }

    pub(super) fn handle_live(&mut self, now: Instant, managed: bool, return_after: Duration) {
        let hub = &mut self.known[self.current];
        hub.proven_managed |= managed;
        (hub.asked, hub.refused) = (None, None);
        self.tried = 0;
        self.homecoming = match self.current {
            0 => Homecoming::No,
            _ => Homecoming::AskAt(now + return_after),
        };
    }

    /// A session with the current hub was stable.
    pub(super) fn handle_stable(&mut self) {
        if let Some(too_big) = &mut self.known[self.current].too_big {
            too_big.is_careful = false;
        }
    }

    /// A hub found a message too big: messages to it have `cap` bytes at most for a day.
    pub(super) fn handle_too_big(&mut self, now: Instant, hub: usize, cap: u64) {
        self.known[hub].too_big = Some(TooBig { since: now, cap, is_careful: true });
    }

    /// What a message to the current hub may have.
    pub(super) fn message_cap(&self, now: Instant) -> u64 {
        let too_big = self.known[self.current].too_big;
        let believed = too_big.filter(|too_big| now < too_big.since + TOO_BIG_FOR);
        believed.map_or(u64::MAX, |too_big| too_big.cap)
    }

    /// Whether messages to the current hub are to go one at a time.
    pub(super) fn is_careful(&self) -> bool {
        self.known[self.current].too_big.is_some_and(|too_big| too_big.is_careful)
    }

    /// The current hub is to be left alone until then.
    pub(super) fn rest(&mut self, why: Rest, until: Instant) {
        let hub = &mut self.known[self.current];
        match why {
            Rest::Asked => hub.asked = Some(until),
            Rest::Refused => hub.refused = Some(until),
        }
    }

    /// The current hub asks for it that all are left alone until then.
    pub(super) fn rest_all(&mut self, until: Instant) {
        self.known.iter_mut().for_each(|hub| hub.asked = hub.asked.max(Some(until)));
    }

    /// We are others than those who were refused.
    pub(super) fn handle_reload(&mut self) {
        self.known.iter_mut().for_each(|hub| hub.refused = None);
    }

    /// Whether every hub is to be left alone.
    pub(super) fn all_rest(&self, now: Instant) -> bool {
        self.known.iter().all(|hub| hub.not_before().is_some_and(|at| now < at))
    }

    /// The attempt at the current hub failed. Whether another one follows in this round.
    pub(super) fn handle_failed(&mut self, now: Instant) -> bool {
        self.tried += 1;
        while self.tried < self.known.len() {
            self.current = (self.current + 1) % self.known.len();
            if self.known[self.current].not_before().is_none_or(|at| at <= now) {
                return true;
            }
            self.tried += 1;
        }
        false
    }

    /// The next round begins at `at`, or later where every hub asked for that: when. It begins with
    /// the first hub that can be tried then.
    pub(super) fn begin_round(&mut self, at: Instant) -> Instant {
        let (first, begins) = self.next_round(at);
        (self.current, self.tried) = (first, 0);
        begins
    }

    /// The round that begins at `begins` begins with this hub, if that can be tried then.
    pub(super) fn begin_with(&mut self, hub: usize, begins: Instant) {
        if self.known[hub].not_before().is_none_or(|at| at <= begins) {
            self.current = hub;
        }
    }

    /// With which hub a round begins at `at`, or when later.
    pub(super) fn next_round(&self, at: Instant) -> (usize, Instant) {
        let ready = |hub: &Hub| hub.not_before().map_or(at, |not_before| at.max(not_before));
        (self.known.iter().map(ready).enumerate())
            .min_by_key(|(_, ready)| *ready)
            .expect("there is at least one hub")
    }

    /// A link to a later hub ended for the first one's sake, which is next.
    pub(super) fn return_home(&mut self) {
        (self.current, self.tried, self.homecoming) = (0, 0, Homecoming::No);
    }

    /// When [`Hubs::home_due`] is to be asked, while a session lives.
    pub(super) fn home_at(&self) -> Option<Instant> {
        match self.homecoming {
            Homecoming::AskAt(at) => {
                Some(self.known[0].not_before().map_or(at, |not_before| at.max(not_before)))
            }
            Homecoming::Leaving { look_at, .. } => Some(look_at),
            Homecoming::No | Homecoming::Asking => None,
        }
    }

    /// What the way back asks for now; `quiet`: nothing is in flight.
    pub(super) fn home_due(&mut self, now: Instant, quiet: bool) -> Option<Home> {
        if self.home_at().is_none_or(|at| now < at) {
            return None;
        }
        match self.homecoming {
            Homecoming::AskAt(_) => {
                self.homecoming = Homecoming::Asking;
                Some(Home::Ask)
            }
            Homecoming::Leaving { by, .. } => {
                if quiet || by <= now {
                    return Some(Home::Leave);
                }
                self.homecoming = Homecoming::Leaving { look_at: now + LOOK_EVERY, by };
                None
            }
            Homecoming::No | Homecoming::Asking => None,
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
