//! Connections that have yet to prove whose they are, how many count as one credential's, and whose
//! address a request counts for.
//!
//! Whoever proves nothing must keep nobody out, whatever it says and for however long. So a
//! connection is a stranger's until a credential was accepted on it. Strangers' connections have a
//! bound; beyond it, and where the hub has no place left for a newcomer, the oldest goes of the
//! address that has the most. One address pushes out only its own, then, and no address has a bound
//! of its own: the many gateways of one site are strangers for as long as their handshakes take.
//!
//! Whoever has one credential must not take all places either: so many connections count as that
//! credential's, and what it shows on further ones is refused.
//!
//! A trusted proxy's connections carry many clients, and are its own to bound. There each request
//! is its client's.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use axum::http::HeaderMap;
use tokio::sync::Notify;

use super::{config::Network, throttle::caller};

/// The header in which a proxy names its clients, each proxy adding at the end.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// The most addresses in that header that are looked at.
const MAX_HOPS: usize = 16;

/// All connections, and the requests of trusted proxies.
#[derive(Debug)]
pub(super) struct Arrivals {
    /// The most strangers.
    strangers: NonZeroUsize,
    /// The most connections of one credential.
    of_credential: NonZeroUsize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// The oldest first.
    strangers: VecDeque<Stranger>,
    /// How many connections count as a credential's.
    proven: HashMap<Holder, usize>,
}

#[derive(Debug)]
struct Stranger {
    number: u64,
    from: IpAddr,
    give_way: Arc<Notify>,
}

/// Whose a credential is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    /// A gateway's, whichever of its credentials it shows.
    Gateway(Arc<str>),
    /// An application's: the digest of its token.
    Application(Vec<u8>),
}

/// A connection, or a request of a trusted proxy's; dropped, it is gone.
#[derive(Debug)]
pub(super) struct Arrival {
    arrivals: Arc<Arrivals>,
    number: u64,
    /// Set once, under the lock of the state.
    holder: OnceLock<Holder>,
}

impl Arrivals {
    pub(super) fn new(strangers: NonZeroUsize, of_credential: NonZeroUsize) -> Arc<Self> {
        Arc::new(Self { strangers, of_credential, state: Mutex::default() })
    }

    /// A stranger came; it is told when it must give way.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> (Arc<Arrival>, Arc<Notify>) {
        let give_way = Arc::new(Notify::new());
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        let stranger = Stranger { number, from: caller(address), give_way: give_way.clone() };
        state.strangers.push_back(stranger);
        if state.strangers.len() > self.strangers.get() {
            state.push_out();
        }
        let arrival = Arrival { arrivals: self.clone(), number, holder: OnceLock::new() };
        (Arc::new(arrival), give_way)
    }

    /// The hub has no place for a newcomer: a stranger goes, if there is one.
    pub(super) fn make_room(&self) {
        self.state().push_out();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push_out(&mut self) {
        let mut of_address: HashMap<IpAddr, usize> = HashMap::new();
        for stranger in &self.strangers {
            *of_address.entry(stranger.from).or_default() += 1;
        }
        let most = of_address.values().max().copied();
        let crowd = self
            .strangers
            .iter()
            .position(|stranger| of_address.get(&stranger.from) == most.as_ref());
        if let Some(stranger) = crowd.and_then(|at| self.strangers.remove(at)) {
            stranger.give_way.notify_one();
        }
    }
}

impl Arrival {
    /// A credential was accepted here: from now on this is no stranger's. `false` when as many
    /// connections count as the holder's as may; so it is too when this one was told to give way.
    pub(super) fn prove(&self, holder: Holder) -> bool {
        let mut state = self.arrivals.state();
        if self.holder.get().is_some() {
            return true;
        }
        let place = state.strangers.iter().position(|stranger| stranger.number == self.number);
        let Some(place) = place else { return false };
        let of_holder = state.proven.entry(holder.clone()).or_default();
        if *of_holder >= self.arrivals.of_credential.get() {
            return false;
        }
        *of_holder += 1;
        state.strangers.remove(place);
        // It was empty, and is set nowhere else.
        let _ = self.holder.set(holder);
        true
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let mut state = self.arrivals.state();
        let Some(holder) = self.holder.get() else {
            state.strangers.retain(|stranger| stranger.number != self.number);
            return;
        };
        if let Some(of_holder) = state.proven.get_mut(holder) {
            *of_holder -= 1;
            if *of_holder == 0 {
                state.proven.remove(holder);
            }
        }
    }
}

/// Whether this is a proxy whose word is taken.
pub(super) fn is_trusted(proxies: &[Network], address: IpAddr) -> bool {
    proxies.iter().any(|network| network.contains(address))
}

/// Whom a request comes from: the connection's other end or, if that is a trusted proxy, the last
/// address that is none. What stands before it anybody could have written.
pub(super) fn client(proxies: &[Network], connected: IpAddr, headers: &HeaderMap) -> IpAddr {
    let connected = connected.to_canonical();
    if !is_trusted(proxies, connected) {
        return connected;
    }
    let lines = headers.get_all(FORWARDED_FOR).into_iter().collect::<Vec<_>>();
    let hops = lines.iter().rev().flat_map(|line| line.to_str().unwrap_or_default().rsplit(','));
    let mut nearest = connected;
    for hop in hops.take(MAX_HOPS) {
        let Ok(address) = hop.trim().parse::<IpAddr>() else { break };
        nearest = address.to_canonical();
        if !is_trusted(proxies, nearest) {
            break;
        }
    }
    nearest
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::hub::config::Config;

    fn arrivals(strangers: usize, of_credential: usize) -> Arc<Arrivals> {
        let number = |number| NonZeroUsize::new(number).unwrap();
        Arrivals::new(number(strangers), number(of_credential))
    }

    fn at(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn gateway(id: &str) -> Holder {
        Holder::Gateway(id.into())
    }

    fn is_told(give_way: &Notify) -> bool {
        give_way.notified().now_or_never().is_some()
    }

    // Connections were strangers until their first request, whatever it asked for: an address that
    // asked for /healthz on each of 10,000, and went on asking, had all places for itself.
    #[test]
    fn one_address_pushes_out_only_its_own() {
        let arrivals = arrivals(4, 1);
        let (_good, good_told) = arrivals.enter(at(1));
        let flood: Vec<_> = (0..100).map(|_| arrivals.enter(at(66))).collect();
        let (_late, late_told) = arrivals.enter(at(2));
        assert!(!is_told(&good_told) && !is_told(&late_told));
        let stay = flood.iter().filter(|(_, told)| !is_told(told)).count();
        assert_eq!(stay, 2, "the newest of the crowd, beside the two others");
        arrivals.make_room();
        arrivals.make_room();
        assert!(!is_told(&late_told), "the oldest of those that have equally many");
        assert!(is_told(&good_told));
    }

    #[test]
    fn many_of_one_address_get_in_while_each_proves_itself() {
        let arrivals = arrivals(4, 1);
        let mut site = Vec::new();
        for number in 0..1000 {
            let (arrival, told) = arrivals.enter(at(7));
            assert!(arrival.prove(gateway(&number.to_string())) && !is_told(&told));
            site.push(arrival);
        }
        let idle: Vec<_> = (1..=4).map(|last| arrivals.enter(at(last))).collect();
        assert!(idle.iter().all(|(_, told)| !is_told(told)), "those who proved it do not count");
    }

    #[test]
    fn a_holder_of_ipv6_is_one_address() {
        let arrivals = arrivals(2, 1);
        let of = |text: &str| arrivals.enter(text.parse().unwrap());
        let (_other, other_told) = of("2001:db8:0:1::1");
        let (_first, first_told) = of("2001:db8::1");
        let (_second, second_told) = of("2001:db8::2");
        assert!(is_told(&first_told) && !is_told(&second_told) && !is_told(&other_told));
    }

    #[test]
    fn one_credential_has_so_many_connections_and_no_more() {
        let arrivals = arrivals(8, 2);
        let (first, _) = arrivals.enter(at(1));
        let (second, _) = arrivals.enter(at(2));
        let (third, _) = arrivals.enter(at(3));
        assert!(first.prove(gateway("gw")) && second.prove(gateway("gw")));
        assert!(first.prove(gateway("gw")), "the same connection again");
        assert!(!third.prove(gateway("gw")));
        assert!(third.prove(Holder::Application(b"gw".into())), "somebody else");
        let (fourth, _) = arrivals.enter(at(4));
        drop(first);
        assert!(fourth.prove(gateway("gw")), "one has gone");
        drop((second, third, fourth));
        let state = arrivals.state();
        assert!(state.proven.is_empty() && state.strangers.is_empty());
    }

    #[test]
    fn whoever_was_told_to_give_way_can_prove_nothing_any_more() {
        let arrivals = arrivals(1, 9);
        let (first, told) = arrivals.enter(at(1));
        let (_second, _) = arrivals.enter(at(2));
        assert!(is_told(&told) && !first.prove(gateway("gw")));
    }

    #[test]
    fn only_a_trusted_proxy_is_believed_and_only_its_own_word() {
        let text = "trusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]";
        let config = Config::parse(std::path::Path::new("/hub.toml"), text).unwrap();
        let of = |connected: &str, lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(FORWARDED_FOR, line.parse().unwrap());
            }
            client(&config.trusted_proxies, connected.parse().unwrap(), &headers).to_string()
        };
        assert_eq!(of("192.0.2.9", &["198.51.100.1"]), "192.0.2.9", "a stranger's word");
        assert_eq!(of("127.0.0.1", &[]), "127.0.0.1");
        assert_eq!(of("127.0.0.1", &["198.51.100.1"]), "198.51.100.1");
        assert_eq!(of("127.0.0.1", &["203.0.113.5, 198.51.100.1"]), "198.51.100.1");
        assert_eq!(of("127.0.0.1", &["198.51.100.1, 10.1.2.3"]), "198.51.100.1");
        assert_eq!(of("127.0.0.1", &["203.0.113.5", "198.51.100.1"]), "198.51.100.1");
        assert_eq!(of("127.0.0.1", &["nonsense"]), "127.0.0.1");
        assert_eq!(of("::ffff:127.0.0.1", &["::ffff:198.51.100.1"]), "198.51.100.1");
    }
}
