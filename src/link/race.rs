//! Which of a name's addresses is tried when: RFC 8305, sections 4 and 5. Pure: the time is an
//! argument, and who connects is somebody else.
//!
//! The resolver answers with both families at once and in its order of preference (RFC 6724), so
//! that there is no resolution delay here; the families take turns from the first one on.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// RFC 8305, section 8: how long an attempt is alone before the next one begins beside it.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Addresses that are tried; more are left for the next dial (resolvers rotate them).
const MAX_ADDRESSES: usize = 16;

/// Attempts that begin one after another until one of them succeeds.
#[derive(Debug)]
pub(super) struct Race {
    waiting: VecDeque<SocketAddr>,
    running: usize,
    /// When the next attempt begins; `None`: at once.
    next_at: Option<Instant>,
    delay: Duration,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Begin to connect, beside what is under way.
    Try(SocketAddr),
    /// Wait for what is under way, and poll again at this time.
    Wait(Option<Instant>),
    /// Every attempt failed.
    Lost,
}

impl Race {
    /// For these addresses, in the resolver's order, with `limit` for all of them together.
    pub(super) fn new(addresses: &[SocketAddr], limit: Duration) -> Self {
        let waiting = in_turn(addresses);
        let shares = u32::try_from(waiting.len() + 1).unwrap_or(u32::MAX);
        // A short limit is no reason to leave the last one out.
        let delay = ATTEMPT_DELAY.min(limit / shares);
        Self { waiting, running: 0, next_at: None, delay }
    }

    pub(super) fn poll(&mut self, now: Instant) -> Step {
        if !self.waiting.is_empty() && self.next_at.is_some_and(|at| now < at) {
            return Step::Wait(self.next_at);
        }
        match self.waiting.pop_front() {
            Some(address) => {
                self.running += 1;
                self.next_at = Some(now + self.delay);
                Step::Try(address)
            }
            None if self.running > 0 => Step::Wait(None),
            None => Step::Lost,
        }
    }

    /// An attempt failed: the next one need not wait for its turn.
    pub(super) fn handle_failed(&mut self) {
        self.running -= 1;
        self.next_at = None;
    }
}

/// Each address once, the families by turns, the resolver's first one first.
fn in_turn(addresses: &[SocketAddr]) -> VecDeque<SocketAddr> {
    let first_family = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let of = |first: bool| {
        addresses.iter().filter(move |address| (address.is_ipv6() == first_family) == first)
    };
    let (mut ours, mut others) = (of(true), of(false));
    let mut turns = VecDeque::new();
    loop {
        let pair = [ours.next(), others.next()];
        if pair == [None, None] {
            return turns;
        }
        for address in pair.into_iter().flatten() {
            if turns.len() < MAX_ADDRESSES && !turns.contains(address) {
                turns.push_back(*address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn v4(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 443))
    }

    fn v6(last: u16) -> SocketAddr {
        SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, last], 443))
    }

    #[test]
    fn families_take_turns_from_the_resolvers_first_on() {
        assert_eq!(
            in_turn(&[v6(1), v6(2), v6(2), v6(3), v4(1), v4(2)]),
            [v6(1), v4(1), v6(2), v4(2), v6(3)]
        );
        assert_eq!(in_turn(&[v4(1), v4(2), v6(1)]), [v4(1), v6(1), v4(2)]);
        assert!(in_turn(&[]).is_empty());
    }

    #[test]
    fn a_crowd_is_cut_and_both_families_stay() {
        let crowd: Vec<SocketAddr> = (0..100).map(v6).chain((0..100).map(v4)).collect();
        let turns = in_turn(&crowd);
        assert_eq!(turns.len(), MAX_ADDRESSES);
        assert_eq!(turns.iter().filter(|address| address.is_ipv4()).count(), MAX_ADDRESSES / 2);
    }

    #[test]
    fn the_next_begins_after_the_delay_or_a_failure() {
        let start = Instant::now();
        let mut race = Race::new(&[v6(1), v4(1), v4(2)], LIMIT);
        assert_eq!(race.poll(start), Step::Try(v6(1)));
        let second = start + ATTEMPT_DELAY;
        assert_eq!(race.poll(start), Step::Wait(Some(second)));
        assert_eq!(race.poll(second - Duration::from_millis(1)), Step::Wait(Some(second)));
        assert_eq!(race.poll(second), Step::Try(v4(1)));
        race.handle_failed();
        assert_eq!(race.poll(second), Step::Try(v4(2)), "at once after a failure");
        assert_eq!(race.poll(second), Step::Wait(None), "two are under way");
        race.handle_failed();
        race.handle_failed();
        assert_eq!(race.poll(second), Step::Lost);
    }

    #[test]
    fn every_address_has_its_turn_within_a_short_limit() {
        let limit = Duration::from_millis(100);
        let start = Instant::now();
        let mut race = Race::new(&[v6(1), v4(1), v6(2)], limit);
        let mut now = start;
        let mut tried = 0;
        loop {
            match race.poll(now) {
                Step::Try(_) => tried += 1,
                Step::Wait(Some(at)) => now = at,
                Step::Wait(None) => break,
                Step::Lost => panic!("nothing failed"),
            }
        }
        assert_eq!(tried, 3);
        assert!(now < start + limit);
    }

    #[test]
    fn no_address_is_lost_at_once() {
        assert_eq!(Race::new(&[], LIMIT).poll(Instant::now()), Step::Lost);
    }
}
