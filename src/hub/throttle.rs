//! How often strangers may try: new connections and refused credentials of each address, new
//! sessions of each gateway, attempts to enrol of all together.
//!
//! Time is an argument, and what is remembered is bounded: a caller of whom too little is known is
//! let in, so that a flood of addresses can't shut others out.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::config::Rates;

/// The most callers that are remembered per kind. At the bound those that may do everything again
/// are forgotten, and if there are none, all.
const MAX_CALLERS: usize = 16_384;

/// How often a thing may be done: `burst` at once, one more after each `interval`.
///
/// Kept as the time when the bucket will be full again (the generic cell rate algorithm of ITU-T
/// I.371), so that a caller costs one instant.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    interval: Duration,
    burst: u32,
}

impl Allowance {
    fn per(time: Duration, count: NonZeroU32, burst: u32) -> Self {
        Self { interval: time / count.get(), burst }
    }

    fn span(&self) -> Duration {
        self.interval * self.burst
    }

    /// How long to wait until one more is allowed.
    fn wait(&self, now: Instant, full_at: Option<Instant>) -> Option<Duration> {
        let debt = full_at?.saturating_duration_since(now) + self.interval;
        debt.checked_sub(self.span()).filter(|wait| !wait.is_zero())
    }

    fn spend(&self, now: Instant, full_at: Option<Instant>) -> Instant {
        full_at.map_or(now, |full_at| full_at.max(now)) + self.interval
    }
}

/// One allowance for each caller.
#[derive(Debug)]
struct Buckets<K> {
    allowance: Allowance,
    full_at: Mutex<HashMap<K, Instant>>,
}

impl<K: Eq + Hash> Buckets<K> {
    fn new(allowance: Allowance) -> Self {
        Self { allowance, full_at: Mutex::default() }
    }

    /// Whether one more is allowed; else how long to wait.
    fn check(&self, now: Instant, caller: &K) -> Result<(), Duration> {
        let full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        self.allowance.wait(now, full_at.get(caller).copied()).map_or(Ok(()), Err)
    }

    /// Takes one, whether it is allowed or not.
    fn spend(&self, now: Instant, caller: K) {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        self.enter(&mut full_at, now, caller);
    }

    /// Takes one if it is allowed; else how long to wait.
    fn take(&self, now: Instant, caller: K) -> Result<(), Duration> {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(wait) = self.allowance.wait(now, full_at.get(&caller).copied()) {
            return Err(wait);
        }
        self.enter(&mut full_at, now, caller);
        Ok(())
    }

    fn enter(&self, full_at: &mut HashMap<K, Instant>, now: Instant, caller: K) {
        if full_at.len() >= MAX_CALLERS && !full_at.contains_key(&caller) {
            full_at.retain(|_, full_at| *full_at > now);
            if full_at.len() >= MAX_CALLERS {
                full_at.clear();
            }
        }
        // A debt has a bound, so that a caller who never stops is not shut out forever.
        let most = now + self.allowance.span();
        let spent = self.allowance.spend(now, full_at.get(&caller).copied());
        full_at.insert(caller, spent.min(most));
    }
}

/// What the hub allows to those who are not yet known to it.
#[derive(Debug)]
pub(super) struct Throttle {
    connections: Buckets<IpAddr>,
    failures: Buckets<IpAddr>,
    sessions: Buckets<String>,
    enrolments: Buckets<()>,
}

impl Throttle {
    pub(super) fn new(rates: &Rates) -> Self {
        let connections = rates.connections_per_second;
        let burst = connections.get().saturating_mul(10);
        Self {
            connections: Buckets::new(Allowance::per(Duration::from_secs(1), connections, burst)),
            failures: by_minute(rates.failures_per_minute),
            sessions: by_minute(rates.sessions_per_minute),
            enrolments: by_minute(rates.enrolments_per_minute),
        }
    }

    /// A connection came.
    pub(super) fn connect(&self, now: Instant, address: IpAddr) -> Result<(), Duration> {
        self.connections.take(now, caller(address))
    }

    /// Whether this address may show a credential.
    pub(super) fn may_try(&self, now: Instant, address: IpAddr) -> Result<(), Duration> {
        self.failures.check(now, &caller(address))
    }

    /// A credential from this address was refused.
    pub(super) fn failed(&self, now: Instant, address: IpAddr) {
        self.failures.spend(now, caller(address));
    }

    /// A gateway begins a session.
    pub(super) fn begin_session(&self, now: Instant, gateway: &str) -> Result<(), Duration> {
        self.sessions.take(now, gateway.to_owned())
    }

    /// Somebody wants a certificate.
    pub(super) fn enrol(&self, now: Instant) -> Result<(), Duration> {
        self.enrolments.take(now, ())
    }
}

fn by_minute<K: Eq + Hash>(count: NonZeroU32) -> Buckets<K> {
    Buckets::new(Allowance::per(Duration::from_secs(60), count, count.get()))
}

/// Who counts as one: an IPv4 address, or the /64 that one holder of IPv6 has at the least.
fn caller(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets(per_minute: u32) -> Buckets<u32> {
        let count = NonZeroU32::new(per_minute).unwrap();
        Buckets::new(Allowance::per(Duration::from_secs(60), count, per_minute))
    }

    #[test]
    fn a_burst_is_allowed_and_then_one_after_each_interval() {
        let buckets = buckets(6);
        let now = Instant::now();
        for _ in 0..6 {
            assert_eq!(buckets.take(now, 1), Ok(()));
        }
        assert_eq!(buckets.take(now, 1), Err(Duration::from_secs(10)));
        assert_eq!(buckets.take(now, 2), Ok(()), "another caller has its own");
        let later = now + Duration::from_secs(10);
        assert_eq!(buckets.take(later, 1), Ok(()));
        assert_eq!(buckets.check(later, &1), Err(Duration::from_secs(10)));
        let rested = now + Duration::from_secs(3600);
        for _ in 0..6 {
            assert_eq!(buckets.take(rested, 1), Ok(()));
        }
        assert!(buckets.take(rested, 1).is_err(), "rest is not saved up beyond the burst");
    }

    #[test]
    fn whoever_never_stops_waits_no_longer_than_the_burst_takes() {
        let buckets = buckets(6);
        let now = Instant::now();
        for _ in 0..1000 {
            buckets.spend(now, 1);
        }
        assert_eq!(buckets.check(now, &1), Err(Duration::from_secs(10)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let buckets = buckets(1);
        let now = Instant::now();
        for caller in 0..3 * u32::try_from(MAX_CALLERS).unwrap() {
            assert_eq!(buckets.take(now, caller), Ok(()));
            assert!(buckets.full_at.lock().unwrap().len() <= MAX_CALLERS);
        }
    }

    #[test]
    fn a_holder_of_ipv6_is_one_caller() {
        let of = |text: &str| caller(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
