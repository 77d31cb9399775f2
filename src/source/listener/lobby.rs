//! Connections that have yet to say who they are: how many there may be, and who has to leave when
//! there are more.
//!
//! Whoever opens connections and says nothing must keep nobody out. Of one address the newest
//! [`OF_ADDRESS`] stay, and of all the newest [`OF_ALL`]; but one that is younger than its grace
//! need not leave for another address's sake, because a fleet that comes back after an outage comes
//! at once, and a slow board takes its time for each. Pure but for the means to wake who leaves.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::failures::network;

/// How many connections of all addresses may wait.
pub(super) const OF_ALL: usize = 128;

/// How many of one address may wait. On this machine there are no strangers, and all devices may be
/// behind one program's address.
const OF_ADDRESS: usize = 24;

/// How long a connection has to say who it is before it may have to leave for another: without TLS
/// that is one packet, which comes at once; a handshake waits for the processor.
pub(super) const GRACE: Duration = Duration::from_secs(1);
pub(super) const GRACE_TLS: Duration = Duration::from_secs(8);

/// The connections that wait, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Lobby {
    guests: VecDeque<Guest>,
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
    /// Whether another connection may come.
    pub(super) fn has_room(&self, now: Instant) -> bool {
        self.guests.len() < OF_ALL || self.guests.iter().any(|guest| guest.grace_ends <= now)
    }

    /// A connection comes. It is given what wakes it when it has to leave; who has to leave for it
    /// is woken.
    pub(super) fn enter(
        &mut self,
        now: Instant,
        grace: Duration,
        connection: u64,
        address: IpAddr,
    ) -> Arc<Notify> {
        let from = network(address);
        let of_here = self.guests.iter().filter(|guest| guest.from == from).count();
        let place = if of_here >= OF_ADDRESS && !address.is_loopback() {
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
        leave
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

    #[test]
    fn one_address_pushes_out_only_its_own() {
        let (mut lobby, now) = (Lobby::default(), Instant::now());
        let good = lobby.enter(now, GRACE, 0, [192, 0, 2, 1].into());
        let flood: Vec<_> =
            (1..=1000).map(|n| lobby.enter(now, GRACE, n, [192, 0, 2, 66].into())).collect();
        assert_eq!(lobby.guests.len(), 1 + OF_ADDRESS);
        assert!(lobby.has_room(now) && !has_to_leave(&good));
        assert!(has_to_leave(&flood[0]) && !has_to_leave(&flood[999]));
    }

    #[test]
    fn when_all_wait_the_oldest_leaves_after_its_grace() {
        let (mut lobby, now) = (Lobby::default(), Instant::now());
        lobby.enter(now, GRACE_TLS, 1000, [10, 0, 1, 0].into());
        let first = lobby.enter(now, GRACE, 0, [10, 0, 0, 0].into());
        for n in 2..OF_ALL as u64 {
            lobby.enter(now, GRACE, n, [10, 0, 0, n as u8].into());
        }
        assert!(!lobby.has_room(now) && lobby.has_room(now + GRACE));
        lobby.enter(now + GRACE, GRACE, 999, [10, 0, 2, 0].into());
        assert!(has_to_leave(&first));
        lobby.leave(999);
        assert!(lobby.has_room(now));
    }
}
