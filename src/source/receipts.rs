//! The order in which the publishes of one connection are acknowledged.
//!
//! MQTT wants PUBACKs and PUBRECs in the order of the publishes (MQTT-4.6.0-2, -3), and promise 1
//! wants none before its publish is safe. A publish that becomes safe early therefore waits for its
//! elders.
//!
//! Must never give out an acknowledgement twice, nor one whose publish is not safe. Pure.

use std::collections::VecDeque;

use rumqttc::QoS;

use crate::planted::{Bug, planted};

/// What a publish is acknowledged with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// PUBACK, for QoS 1.
    PubAck(u16),
    /// PUBREC, for QoS 2.
    PubRec(u16),
}

impl Ack {
    /// For a publish of this QoS and packet identifier; QoS 0 has none.
    pub fn of(qos: QoS, packet_id: u16) -> Option<Self> {
        match qos {
            QoS::AtMostOnce => None,
            QoS::AtLeastOnce => Some(Self::PubAck(packet_id)),
            QoS::ExactlyOnce => Some(Self::PubRec(packet_id)),
        }
    }
}

/// The acknowledgements that one connection owes. Its owner bounds it: at its in-flight window it
/// stops reading.
#[derive(Debug, Default)]
pub struct AckOrder {
    /// The number of the publish at the head.
    first: u64,
    owed: VecDeque<(Ack, bool)>,
}

impl AckOrder {
    /// How many publishes wait for their acknowledgement.
    pub(in crate::source) fn len(&self) -> usize {
        self.owed.len()
    }

    /// Takes the next publish in; `safe` when nobody needs to keep it. Gives its number, from 0.
    pub fn push(&mut self, ack: Ack, safe: bool) -> u64 {
        self.owed.push_back((ack, safe));
        self.first + self.owed.len() as u64 - 1
    }

    /// Notes that a publish is safe. A number that was never given, or is done with, changes
    /// nothing.
    pub fn mark_safe(&mut self, number: u64) {
        let place = number.checked_sub(self.first).and_then(|place| usize::try_from(place).ok());
        if let Some((_, safe)) = place.and_then(|place| self.owed.get_mut(place)) {
            *safe = true;
        }
    }

    /// The next acknowledgement that may leave.
    pub fn pop_due(&mut self) -> Option<Ack> {
        if planted(Bug::AcksOutOfOrder) {
            self.owed.make_contiguous().sort_by_key(|(_, safe)| !safe);
        }
        let (ack, safe) = *self.owed.front()?;
        if !safe {
            return None;
        }
        self.owed.pop_front();
        self.first += 1;
        Some(ack)
    }

    /// Whether this acknowledgement is still owed.
    pub fn owes(&self, ack: Ack) -> bool {
        self.owed.iter().any(|(owed, _)| *owed == ack)
    }

    /// What is still owed, in order.
    pub fn unpaid(&self) -> impl Iterator<Item = Ack> + '_ {
        self.owed.iter().map(|(ack, _)| *ack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(order: &mut AckOrder) -> Vec<Ack> {
        std::iter::from_fn(|| order.pop_due()).collect()
    }

    #[test]
    fn acknowledgements_leave_in_the_order_of_receipt() {
        let mut order = AckOrder::default();
        assert_eq!(order.push(Ack::PubAck(7), false), 0);
        assert_eq!(order.push(Ack::PubRec(3), true), 1);
        assert_eq!(order.push(Ack::PubAck(9), false), 2);
        order.mark_safe(2);
        assert_eq!(due(&mut order), []);
        order.mark_safe(0);
        assert_eq!(due(&mut order), [Ack::PubAck(7), Ack::PubRec(3), Ack::PubAck(9)]);
        assert_eq!(order.push(Ack::PubAck(1), false), 3);
    }

    #[test]
    fn a_number_that_is_done_with_or_unknown_changes_nothing() {
        let mut order = AckOrder::default();
        order.push(Ack::PubAck(1), true);
        assert_eq!(due(&mut order).len(), 1);
        order.push(Ack::PubAck(2), false);
        for number in [0, 2, u64::MAX] {
            order.mark_safe(number);
        }
        assert_eq!(due(&mut order), []);
        assert!(order.owes(Ack::PubAck(2)) && !order.owes(Ack::PubAck(1)));
    }
}
