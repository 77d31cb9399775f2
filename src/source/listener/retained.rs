//! Retained messages: the last one of each topic, given to whoever subscribes later.
//!
//! They live in memory and end with the process: a device publishes its retained state again when
//! it connects, and the records themselves are the spool's. At a bound the message is delivered
//! live, but not kept.
//!
//! Pure.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use rumqttc::QoS;

use super::session::Message;
use crate::topic;

/// How many topics may have a retained message.
pub(super) const MAX_RETAINED: usize = 1000;

/// How many bytes all of them may have, topics included.
pub(super) const MAX_RETAINED_BYTES: usize = 1024 * 1024;

/// The retained messages.
#[derive(Debug, Default)]
pub(super) struct Retained {
    messages: HashMap<String, (QoS, Arc<Message>)>,
    bytes: usize,
    refused: u64,
}

impl Retained {
    /// Keeps a message in place of the topic's earlier one; an empty payload only removes that
    /// (MQTT-3.3.1-10). False when it was not kept for lack of room; the earlier one, out of date,
    /// is gone all the same.
    pub(super) fn set(&mut self, topic: &str, qos: QoS, payload: &[u8]) -> bool {
        if let Some((_, old)) = self.messages.remove(topic) {
            self.bytes -= old.cost();
        }
        if payload.is_empty() {
            return true;
        }
        // A copy of its own: the payload is a part of the connection's read buffer, which it would
        // keep alive.
        let message = Message { topic: topic.to_owned(), payload: Bytes::copy_from_slice(payload) };
        if self.messages.len() >= MAX_RETAINED || self.bytes + message.cost() > MAX_RETAINED_BYTES {
            self.refused += 1;
            return false;
        }
        self.bytes += message.cost();
        self.messages.insert(topic.to_owned(), (qos, Arc::new(message)));
        true
    }

    /// The messages whose topics match a filter, each with the QoS it was published at.
    pub(super) fn matching(&self, filter: &str) -> Vec<(QoS, Arc<Message>)> {
        if !filter.contains(['+', '#']) {
            return self.messages.get(filter).cloned().into_iter().collect();
        }
        let matching = self.messages.iter().filter(|(name, _)| topic::filter_matches(filter, name));
        matching.map(|(_, kept)| kept.clone()).collect()
    }

    /// How many were not kept for lack of room.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_message_is_kept_and_an_empty_one_removes_it() {
        let mut retained = Retained::default();
        assert!(retained.set("a/b", QoS::AtMostOnce, b"1"));
        assert!(retained.set("a/b", QoS::AtLeastOnce, b"22"));
        assert!(retained.set("$SYS/x", QoS::AtMostOnce, b"3"));
        let found = retained.matching("#");
        assert_eq!(found.len(), 1);
        assert_eq!(&found[0].1.payload[..], b"22");
        assert_eq!(retained.matching("a/b").len(), 1);
        retained.set("a/b", QoS::AtMostOnce, b"");
        retained.set("$SYS/x", QoS::AtMostOnce, b"");
        assert_eq!((retained.messages.len(), retained.bytes), (0, 0));
    }

    #[test]
    fn at_a_bound_nothing_more_is_kept() {
        let mut retained = Retained::default();
        for index in 0..MAX_RETAINED {
            assert!(retained.set(&format!("t/{index}"), QoS::AtMostOnce, b"x"));
        }
        assert!(!retained.set("one/more", QoS::AtMostOnce, b"x"));
        assert!(retained.set("t/5", QoS::AtMostOnce, b"y"), "an old topic still changes");
        assert!(!retained.set("t/5", QoS::AtMostOnce, &vec![0; MAX_RETAINED_BYTES]));
        assert_eq!(retained.refused(), 2);
    }
}
