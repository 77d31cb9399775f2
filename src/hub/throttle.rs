//! How often strangers may try: new connections of each address, refused credentials of each
//! address and of each claim there, new sessions of each gateway, attempts to enrol of all
//! together.
//!
//! No secret is protected by this: tokens and codes are too long to be guessed. It bounds what
//! guesses cost, and one address may be that of many: so it must hold off the honest least of all.
//!
//! Time is an argument, and what is remembered is bounded: a caller of whom too little is known is
//! let in, so that a flood of addresses can't shut others out.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher as _, Hash, RandomState},
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    authenticate::Shown,
    config::Rates,
    jwt::{Unverified, is_jwt},
};

/// The most callers that are remembered per kind. At the bound those that may do everything again
/// are forgotten, and if there are none, all.
const MAX_CALLERS: usize = 16_384;

/// How many times as many credentials of an address may be refused as of one claim there: one
/// address may be that of many, strangers to each other.
const CLAIMS: NonZeroU32 = NonZeroU32::new(10).expect("not zero");

/// How often the log is told of what somebody could fill it with.
const NEWS_INTERVAL: Duration = Duration::from_secs(60);

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

/// What a credential is known by before it was verified: itself or, where each one is new, whose it
/// claims to be. Hashed with a key of this process's, so that nobody finds two that fall together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Claim(u64);

/// Of what kind a claim is, so that no token falls together with somebody's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// An opaque token.
    Token,
    /// The subject of a JWT.
    Subject,
    /// The serial number of a client certificate that TLS verified.
    Certificate,
    /// A client certificate that TLS refused.
    RefusedCertificate,
    /// A code to enrol with.
    Code,
    /// No credential.
    Nothing,
}

/// What the hub allows to those who are not yet known to it.
#[derive(Debug)]
pub(super) struct Throttle {
    connections: Buckets<IpAddr>,
    failures: Buckets<(IpAddr, Claim)>,
    failures_of_address: Buckets<IpAddr>,
    accepted: Mutex<HashSet<Claim>>,
    failures_of_gateway: Buckets<String>,
    sessions: Buckets<String>,
    renewals: Buckets<String>,
    enrolments: Buckets<()>,
    news: Buckets<&'static str>,
    hasher: RandomState,
}

impl Throttle {
    pub(super) fn new(rates: &Rates) -> Self {
        let connections = rates.connections_per_second;
        let burst = connections.get().saturating_mul(10);
        Self {
            connections: Buckets::new(Allowance::per(Duration::from_secs(1), connections, burst)),
            failures: by_minute(rates.failures_per_minute),
            failures_of_address: by_minute(rates.failures_per_minute.saturating_mul(CLAIMS)),
            accepted: Mutex::default(),
            failures_of_gateway: by_minute(rates.failures_per_minute),
            sessions: by_minute(rates.sessions_per_minute),
            renewals: by_minute(rates.sessions_per_minute),
            enrolments: by_minute(rates.enrolments_per_minute),
            news: Buckets::new(Allowance::per(NEWS_INTERVAL, NonZeroU32::MIN, 1)),
            hasher: RandomState::new(),
        }
    }

    /// What a credential claims.
    pub(super) fn claim(&self, kind: Kind, what: &(impl Hash + ?Sized)) -> Claim {
        Claim(self.hasher.hash_one((kind, what)))
    }

    /// What a token claims: a JWT is a new one each time, but its subject is not.
    pub(super) fn claim_of_token(&self, token: &str) -> Claim {
        let unverified = is_jwt(token).then(|| Unverified::read(token).ok()).flatten();
        match unverified.as_ref().and_then(Unverified::subject) {
            Some(subject) => self.claim(Kind::Subject, subject),
            None => self.claim(Kind::Token, token),
        }
    }

    /// What a gateway claims by its token or else its client certificate.
    pub(super) fn claim_of_gateway(&self, token: Option<&str>, shown: Option<&Shown>) -> Claim {
        match (token, shown) {
            (Some(token), _) => self.claim_of_token(token),
            (None, Some(shown)) => self.claim(Kind::Certificate, &shown.certificate.serial),
            (None, None) => self.claim(Kind::Nothing, &()),
        }
    }

    /// A connection came.
    pub(super) fn connect(&self, now: Instant, address: IpAddr) -> Result<(), Duration> {
        self.connections.take(now, caller(address))
    }

    /// Whether a credential from this address is looked at, or how long to wait.
    ///
    /// Strangers behind the same address may fill its bucket; whoever was let in before needs room
    /// in its own alone.
    pub(super) fn may_try(
        &self,
        now: Instant,
        address: IpAddr,
        claim: Claim,
    ) -> Result<(), Duration> {
        let address = caller(address);
        self.failures.check(now, &(address, claim))?;
        if self.was_accepted(claim) {
            return Ok(());
        }
        self.failures_of_address.check(now, &address)
    }

    /// A credential from this address was refused.
    pub(super) fn failed(&self, now: Instant, address: IpAddr, claim: Claim) {
        let address = caller(address);
        self.failures.spend(now, (address, claim));
        self.failures_of_address.spend(now, address);
    }

    /// A credential was accepted. That is remembered without an end: what was revoked since is
    /// refused all the same, and a gateway may come back after a session of months.
    pub(super) fn accepted(&self, claim: Claim) {
        let mut accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        if accepted.len() >= MAX_CALLERS && !accepted.contains(&claim) {
            accepted.clear();
        }
        accepted.insert(claim);
    }

    /// Whether a further token of a gateway is looked at on its own live link. No stranger's
    /// failures count there, nor do its own count against its address.
    pub(super) fn may_replace(&self, now: Instant, gateway: &str) -> Result<(), Duration> {
        self.failures_of_gateway.check(now, &gateway.to_owned())
    }

    /// A token was refused on the live link.
    pub(super) fn not_replaced(&self, now: Instant, gateway: &str) {
        self.failures_of_gateway.spend(now, gateway.to_owned());
    }

    fn was_accepted(&self, claim: Claim) -> bool {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).contains(&claim)
    }

    /// A gateway begins a session.
    pub(super) fn begin_session(&self, now: Instant, gateway: &str) -> Result<(), Duration> {
        self.sessions.take(now, gateway.to_owned())
    }

    /// A gateway wants a new certificate.
    pub(super) fn renew(&self, now: Instant, gateway: &str) -> Result<(), Duration> {
        self.renewals.take(now, gateway.to_owned())
    }

    /// Somebody shows what may be a code.
    pub(super) fn enrol(&self, now: Instant) -> Result<(), Duration> {
        self.enrolments.take(now, ())
    }

    /// Whether the log is to be told of what somebody could fill it with.
    pub(super) fn is_news(&self, now: Instant, what: &'static str) -> bool {
        self.news.take(now, what).is_ok()
    }
}

fn by_minute<K: Eq + Hash>(count: NonZeroU32) -> Buckets<K> {
    Buckets::new(Allowance::per(Duration::from_secs(60), count, count.get()))
}

/// Who counts as one: an IPv4 address, or the /64 that one holder of IPv6 has at the least.
pub(super) fn caller(address: IpAddr) -> IpAddr {
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

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn throttle() -> Throttle {
        let text = "[limits]\nfailures_per_minute = 3\nsessions_per_minute = 2";
        let file = std::path::Path::new("/hub.toml");
        Throttle::new(&super::super::config::Config::parse(file, text).unwrap().rates)
    }

    // One bucket per address held off whoever shared it with somebody who guessed.
    #[test]
    fn what_is_refused_over_and_over_waits_and_others_of_its_address_do_not() {
        let (throttle, now) = (throttle(), Instant::now());
        let [wrong, right] = ["wrong", "right"].map(|token| throttle.claim(Kind::Token, token));
        for _ in 0..3 {
            assert_eq!(throttle.may_try(now, HERE, wrong), Ok(()));
            throttle.failed(now, HERE, wrong);
        }
        assert_eq!(throttle.may_try(now, HERE, wrong), Err(Duration::from_secs(20)));
        assert_eq!(throttle.may_try(now, HERE, right), Ok(()));
        assert_eq!(throttle.may_try(now, [192, 0, 2, 2].into(), wrong), Ok(()), "elsewhere");
    }

    #[test]
    fn an_address_that_guesses_waits_as_a_whole_but_for_those_who_were_let_in() {
        let (throttle, now) = (throttle(), Instant::now());
        let [known, other] = ["known", "other"].map(|token| throttle.claim(Kind::Token, token));
        throttle.accepted(known);
        for guess in 0..1000 {
            throttle.failed(now, HERE, throttle.claim(Kind::Token, &guess));
        }
        assert_eq!(throttle.may_try(now, HERE, other), Err(Duration::from_secs(2)));
        assert_eq!(throttle.may_try(now, HERE, known), Ok(()));
        // It has a bucket of its own all the same.
        (0..3).for_each(|_| throttle.failed(now, HERE, known));
        assert!(throttle.may_try(now, HERE, known).is_err());
        for token in 0..2 * MAX_CALLERS {
            throttle.accepted(throttle.claim(Kind::Token, &token));
        }
        assert!(throttle.accepted.lock().unwrap().len() <= MAX_CALLERS);
    }

    #[test]
    fn a_jwt_is_known_by_its_subject_and_no_kind_falls_together_with_another() {
        use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
        let throttle = throttle();
        let token = |claims: &str| {
            let [head, claims] = [r#"{"alg":"EdDSA"}"#, claims].map(|p| URL_SAFE_NO_PAD.encode(p));
            throttle.claim_of_token(&format!("{head}.{claims}.AAAA"))
        };
        let gw = token(r#"{"sub":"gw","exp":1}"#);
        assert_eq!(gw, token(r#"{"sub":"gw","exp":2}"#));
        assert_eq!(gw, throttle.claim(Kind::Subject, "gw"));
        assert_ne!(gw, token(r#"{"sub":"gw-2","exp":1}"#));
        assert_ne!(gw, throttle.claim_of_token("gw"));
        assert_ne!(throttle.claim_of_token("a.b"), throttle.claim_of_token("a.c"), "no JWT at all");
    }

    #[test]
    fn each_gateway_renews_by_itself() {
        let (throttle, now) = (throttle(), Instant::now());
        (0..2).for_each(|_| assert_eq!(throttle.renew(now, "gw"), Ok(())));
        assert!(throttle.renew(now, "gw").is_err());
        assert_eq!(throttle.renew(now, "gw-2"), Ok(()));
        assert_eq!(throttle.begin_session(now, "gw"), Ok(()), "a session is something else");
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
