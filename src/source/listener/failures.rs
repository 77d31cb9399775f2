//! How often wrong passwords came from where, so that guessing is slow and one device with an old
//! password keeps no other out.
//!
//! Two buckets for each failure: one of its address and name, one of its address. A failure fills
//! both by one, time drains them, and while either is full nothing from there is looked at. A
//! device that is set up wrongly fills its own bucket, and what is refused unseen counts nowhere:
//! its address stays open to others. Pure.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use super::buckets::{Bucket, Buckets};

/// Failures of one name from one address that are taken at once, and how long each counts.
const OF_NAME: Bucket = Bucket { size: 5, drain: Duration::from_secs(30) };

/// Failures of one address.
const OF_ADDRESS: Bucket = Bucket { size: 30, drain: Duration::from_secs(5) };

/// Who failed: an address, and the name that was given there.
type Key = (IpAddr, Option<u64>);

/// The failures that still count.
#[derive(Debug, Default)]
pub(super) struct Failures(Buckets<Key>);

impl Failures {
    /// Whether a password for this name (its hash) from this address may be looked at.
    pub(super) fn may_try(&self, now: Instant, address: IpAddr, name: u64) -> bool {
        of(address, name).iter().all(|(key, bucket)| self.0.has_room(now, *key, *bucket))
    }

    /// A password was wrong.
    pub(super) fn note(&mut self, now: Instant, address: IpAddr, name: u64) {
        for (key, bucket) in of(address, name) {
            self.0.fill(now, key, bucket);
        }
    }
}

fn of(address: IpAddr, name: u64) -> [(Key, Bucket); 2] {
    let address = network(address);
    [((address, Some(name)), OF_NAME), ((address, None), OF_ADDRESS)]
}

/// The address by which somebody is known: of an IPv6 address the half that a network hands out,
/// since the other half is the client's to choose.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn after_five_failures_a_name_waits_and_others_do_not() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        for _ in 0..5 {
            assert!(failures.may_try(now, HERE, 7));
            failures.note(now, HERE, 7);
        }
        assert!(!failures.may_try(now, HERE, 7));
        assert!(failures.may_try(now, HERE, 8), "another name at the same address");
        assert!(failures.may_try(now, [192, 0, 2, 2].into(), 7), "the same name elsewhere");
        assert!(!failures.may_try(now + Duration::from_secs(29), HERE, 7));
        assert!(failures.may_try(now + Duration::from_secs(30), HERE, 7));
    }

    #[test]
    fn an_address_that_tries_many_names_waits_as_a_whole() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        (0..30).for_each(|name| failures.note(now, HERE, name));
        assert!(!failures.may_try(now, HERE, 99));
        assert!(failures.may_try(now + Duration::from_secs(5), HERE, 99));
        let (one, other) = ("2001:db8::1".parse().unwrap(), "2001:db8::ffff:2".parse().unwrap());
        (0..30).for_each(|name| failures.note(now, one, name));
        assert!(!failures.may_try(now, other, 99), "one network, many addresses");
    }

    #[test]
    fn an_address_is_not_forgotten_for_its_names() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        (0..10_000).for_each(|name| failures.note(now, HERE, name));
        assert!(!failures.may_try(now, HERE, 1));
    }
}
