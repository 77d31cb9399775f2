//! Connections whose first request has not come, and whose address a request counts for.
//!
//! Half-open connections have a bound. Beyond it the oldest is cut: an honest peer is through its
//! handshake in a moment, so that it is the idle ones that go.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::http::HeaderMap;
use tokio::sync::Notify;

use super::config::Network;

/// The header in which a proxy names its clients, each proxy adding at the end.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// The most addresses in that header that are looked at.
const MAX_HOPS: usize = 16;

/// All half-open connections.
#[derive(Debug)]
pub(super) struct Arrivals {
    limit: usize,
    next: AtomicU64,
    waiting: Mutex<VecDeque<(u64, Arc<Notify>)>>,
}

/// A half-open connection; dropped, it is through or gone.
#[derive(Debug)]
pub(super) struct Arrival {
    arrivals: Arc<Arrivals>,
    number: u64,
}

impl Arrivals {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, next: AtomicU64::new(0), waiting: Mutex::default() })
    }

    /// A connection came; it is told when it must give way.
    pub(super) fn enter(self: &Arc<Self>) -> (Arrival, Arc<Notify>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let give_way = Arc::new(Notify::new());
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push_back((number, give_way.clone()));
        if waiting.len() > self.limit
            && let Some((_, oldest)) = waiting.pop_front()
        {
            oldest.notify_one();
        }
        (Arrival { arrivals: self.clone(), number }, give_way)
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let mut waiting = self.arrivals.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|(number, _)| *number != self.number);
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

    #[test]
    fn beyond_the_bound_the_oldest_gives_way() {
        let arrivals = Arrivals::new(2);
        let is_told = |give_way: &Notify| give_way.notified().now_or_never().is_some();
        let (first, first_told) = arrivals.enter();
        let (second, second_told) = arrivals.enter();
        drop(first);
        let (_third, third_told) = arrivals.enter();
        assert!(!is_told(&first_told) && !is_told(&second_told), "one had left");
        let (_fourth, _) = arrivals.enter();
        assert!(is_told(&second_told) && !is_told(&third_told));
        drop(second);
        assert_eq!(arrivals.waiting.lock().unwrap().len(), 2);
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
