//! Which publishes are on disk: the last ones of each session, so that after a crash those that a
//! device sends again are known (`gateway::redelivery`).
//!
//! They are learnt from the frames at the ends of the epochs, and from `positions` where the frames
//! have gone. Only what is kept is in a tail. Bounded: [`super::Limits::tail`] publishes of each of
//! [`MAX_SESSIONS`] sessions; of more, those that were quiet longest are forgotten.

use std::collections::{BTreeMap, VecDeque};

/// Sessions that are remembered.
const MAX_SESSIONS: usize = 256;

/// Which publish a record was. The spool keeps it and gives it back; what it means is not its
/// business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The MQTT session.
    pub session: u64,
    /// Counts the session's publishes; wraps.
    pub order: u32,
    /// The MQTT packet identifier.
    pub packet_id: u16,
    /// Of topic and payload.
    pub digest: u32,
}

/// The last publishes of a session, oldest first.
pub type Tail = VecDeque<Origin>;

/// Takes in what is kept now, given in any order.
pub(super) fn extend(
    tails: &mut BTreeMap<u64, Tail>,
    origins: impl Iterator<Item = Origin>,
    limit: usize,
) {
    for origin in origins {
        if !tails.contains_key(&origin.session) && tails.len() >= MAX_SESSIONS {
            forget_quietest(tails);
        }
        let tail = tails.entry(origin.session).or_default();
        let later = |other: &Origin| (other.order.wrapping_sub(origin.order) as i32) >= 0;
        let place = tail.iter().rposition(|other| !later(other)).map_or(0, |place| place + 1);
        if tail.get(place).is_none_or(|other| other.order != origin.order) {
            tail.insert(place, origin);
        }
        while tail.len() > limit {
            tail.pop_front();
        }
    }
    tails.retain(|_, tail| !tail.is_empty());
}

/// A session whose last publish has the lowest order had the fewest; there is no better clock here.
fn forget_quietest(tails: &mut BTreeMap<u64, Tail>) {
    let order = |tail: &Tail| tail.back().map_or(0, |origin| origin.order);
    let quietest = tails.iter().min_by_key(|(_, tail)| order(tail)).map(|(session, _)| *session);
    if let Some(session) = quietest {
        tails.remove(&session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(session: u64, order: u32) -> Origin {
        Origin { session, order, packet_id: order as u16, digest: 0 }
    }

    fn orders(tails: &BTreeMap<u64, Tail>, session: u64) -> Vec<u32> {
        tails[&session].iter().map(|origin| origin.order).collect()
    }

    #[test]
    fn a_tail_is_in_order_and_bounded_whatever_came_first() {
        let mut tails = BTreeMap::new();
        let given = [5, 3, 4, 4, 7, 6].map(|order| origin(1, order));
        extend(&mut tails, given.into_iter(), 4);
        assert_eq!(orders(&tails, 1), [4, 5, 6, 7]);
    }

    #[test]
    fn the_order_goes_on_where_the_count_wraps() {
        let mut tails = BTreeMap::new();
        let given = [u32::MAX, 1, 0, u32::MAX - 1].map(|order| origin(1, order));
        extend(&mut tails, given.into_iter(), 8);
        assert_eq!(orders(&tails, 1), [u32::MAX - 1, u32::MAX, 0, 1]);
    }

    #[test]
    fn sessions_are_bounded() {
        let mut tails = BTreeMap::new();
        let many = (0..MAX_SESSIONS as u64 + 10).map(|session| origin(session, session as u32));
        extend(&mut tails, many, 8);
        assert_eq!(tails.len(), MAX_SESSIONS);
        assert!(!tails.contains_key(&0) && tails.contains_key(&(MAX_SESSIONS as u64)));
    }
}
