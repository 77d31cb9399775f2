//! Connections that have yet to say who they are: how many there may be, and who has to leave when
//! there are more.
//!
//! Whoever opens connections and says nothing must keep nobody out. Of one address the newest
//! [`OF_ADDRESS`] stay, and of all the newest [`OF_ALL`]; but one that is younger than its grace
//! need not leave for another address's sake, because a fleet that comes back after an outage comes
//! at once, and a slow board takes its time for each. Nor may one address come as often as it
//! likes: a handshake costs the board far more than the one who asks for it. Pure but for the means
//! to wake who leaves.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{
    buckets::{Bucket, Buckets},
    failures::network,
};

/// How many connections of all addresses may wait.
pub(super) const OF_ALL: usize = 128;

/// How many of one address may wait. On this machine there are no strangers, and all devices may be
/// behind one program's address.
const OF_ADDRESS: usize = 24;

/// How long a connection has to say who it is before it may have to leave for another: without TLS
/// that is one packet, which comes at once; a handshake waits for the processor.
pub(super) const GRACE: Duration = Duration::from_secs(1);
pub(super) const GRACE_TLS: Duration = Duration::from_secs(8);

/// How long it takes until an address may come once more, when it has come as often as there may be
/// clients: a fleet behind one address comes back at once, and a flood takes a tenth of a slow
/// board's time. On this machine there are no strangers.
const COME_AGAIN: Duration = Duration::from_millis(200);

/// The connections that wait, the oldest first.
#[derive(Debug)]
pub(super) struct Lobby {
    guests: VecDeque<Guest>,
    comings: Buckets<IpAddr>,
    of_address: Bucket,
}

#[derive(Debug)]
struct Guest {
    connection: u64,
    from: IpAddr,
    /// When it may have to leave.
    grace_ends: Instant,
    leave: Arc<Notify>,
}

impl Lobby {
    /// An empty one, of a listener that may have so many clients.
    pub(super) fn new(max_clients: usize) -> Self {
        let size = u32::try_from(max_clients.max(OF_ADDRESS)).unwrap_or(u32::MAX);
        let of_address = Bucket { size, drain: COME_AGAIN };
        Self { guests: VecDeque::new(), comings: Buckets::default(), of_address }
    }

    /// Whether another connection may come.
    pub(super) fn has_room(&self, now: Instant) -> bool {
        self.guests.len() < OF_ALL || self.guests.iter().any(|guest| guest.grace_ends <= now)
    }

    /// A connection comes. It is given what wakes it when it has to leave; who has to leave for it
    /// is woken. `None`: too many came from its address.
    pub(super) fn enter(
        &mut self,
        now: Instant,
        grace: Duration,
        connection: u64,
        address: IpAddr,
    ) -> Option<Arc<Notify>> {
        let (from, is_stranger) = (network(address), !address.to_canonical().is_loopback());
        if is_stranger {
            if !self.comings.has_room(now, from, self.of_address) {
                return None;
            }
            self.comings.fill(now, from, self.of_address);
        }
        let of_here = self.guests.iter().filter(|guest| guest.from == from).count();
        let place = if of_here >= OF_ADDRESS && is_stranger {
            self.guests.iter().position(|guest| guest.from == from)
        } else if self.guests.len() >= OF_ALL {
            self.guests.iter().position(|guest| guest.grace_ends <= now)
        } else {
            None
        };
        if let Some(guest) = place.and_then(|place| self.guests.remove(place)) {
            guest.leave.notify_one();
        }
        let leave = Arc::new(Notify::new());
        let guest = Guest { connection, from, grace_ends: now + grace, leave: Arc::clone(&leave) };
        self.guests.push_back(guest);
        Some(leave)
    }

    /// A connection said who it is, or is gone.
    pub(super) fn leave(&mut self, connection: u64) {
        self.guests.retain(|guest| guest.connection != connection);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has_to_leave(leave: &Notify) -> bool {
        use std::{future::Future as _, pin::pin, task};
        let mut context = task::Context::from_waker(task::Waker::noop());
        pin!(leave.notified()).poll(&mut context).is_ready()
    }

    /// A lobby in which the comings of an address are not counted.
    fn patient() -> Lobby {
        Lobby::new(100_000)
    }

    fn enter(lobby: &mut Lobby, now: Instant, number: u64, from: [u8; 4]) -> Arc<Notify> {
        lobby.enter(now, GRACE, number, from.into()).unwrap()
    }

    #[test]
    fn one_address_pushes_out_only_its_own() {
        let (mut lobby, now) = (patient(), Instant::now());
        let good = enter(&mut lobby, now, 0, [192, 0, 2, 1]);
        let flood: Vec<_> =
            (1..=1000).map(|n| enter(&mut lobby, now, n, [192, 0, 2, 66])).collect();
        assert_eq!(lobby.guests.len(), 1 + OF_ADDRESS);
        assert!(lobby.has_room(now) && !has_to_leave(&good));
        assert!(has_to_leave(&flood[0]) && !has_to_leave(&flood[999]));
    }

    #[test]
    fn when_all_wait_the_oldest_leaves_after_its_grace() {
        let (mut lobby, now) = (patient(), Instant::now());
        lobby.enter(now, GRACE_TLS, 1000, [10, 0, 1, 0].into());
        let first = enter(&mut lobby, now, 0, [10, 0, 0, 0]);
        for n in 2..OF_ALL as u64 {
            enter(&mut lobby, now, n, [10, 0, 0, n as u8]);
        }
        assert!(!lobby.has_room(now) && lobby.has_room(now + GRACE));
        enter(&mut lobby, now + GRACE, 999, [10, 0, 2, 0]);
        assert!(has_to_leave(&first));
        lobby.leave(999);
        assert!(lobby.has_room(now));
    }

    /// A stranger that only asked for handshakes, one after another, kept a board at nothing else:
    /// each cost it milliseconds, and all run on one thread.
    #[test]
    fn an_address_comes_as_often_as_there_may_be_clients_and_then_slowly() {
        let (mut lobby, mut now) = (Lobby::new(100), Instant::now());
        let mut come = |now, from: &str| {
            let came = lobby.enter(now, GRACE_TLS, 7, from.parse().unwrap()).is_some();
            lobby.leave(7);
            came
        };
        let mut often = |now, from: &str| (0..1000).filter(|_| come(now, from)).count();
        assert_eq!(often(now, "192.0.2.66"), 100);
        assert_eq!(often(now, "192.0.2.1"), 100, "another one");
        assert_eq!(often(now, "2001:db8::1") + often(now, "2001:db8::2"), 100, "one network");
        assert_eq!(often(now, "127.0.0.1") + often(now, "::1"), 2000, "this machine");
        now += 3 * COME_AGAIN;
        assert_eq!(often(now, "192.0.2.66"), 3);
    }
}
