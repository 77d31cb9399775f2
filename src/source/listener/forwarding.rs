//! What goes from client to client: subscriptions, live messages, wills.
//!
//! A convenience beside the main job: it is bounded, in memory, and drops the oldest at its bounds.
//! It must never keep a publish from the gateway, nor hold up who sent it. Pure.

use std::sync::Arc;

use bytes::Bytes;
use rumqttc::{LastWill, QoS, Subscribe, Unsubscribe};

use super::{
    broker::Broker,
    routes::lower,
    session::{Message, Queued, Subscription},
    wire,
};

/// How many filters one client may subscribe to; more are refused in the SUBACK.
pub(super) const MAX_FILTERS: usize = 256;

/// How many levels a filter may have; a deeper one is refused in the SUBACK.
const MAX_FILTER_LEVELS: usize = 32;

impl Broker {
    /// Sends a live message to its subscribers.
    pub(super) fn forward(&mut self, to: &[(u64, QoS)], topic: &str, qos: QoS, payload: &Bytes) {
        let mut shared: Option<Arc<Message>> = None;
        for (key, granted) in to {
            let Some(session) = self.sessions.get_mut(key) else { continue };
            if lower(qos, *granted) == QoS::AtMostOnce {
                let online = session.link.is_some();
                self.dropped += u64::from(online && !session.send_now(topic, payload));
            } else {
                let message = shared.get_or_insert_with(|| {
                    // A copy of its own: the payload is a part of the sender's read buffer.
                    let payload = Bytes::copy_from_slice(payload);
                    Arc::new(Message { topic: topic.to_owned(), payload })
                });
                let message = Arc::clone(message);
                let queued = Queued { message, qos: QoS::AtLeastOnce, retain: false };
                self.dropped += session.enqueue(queued, &mut self.budget);
            }
            self.woken.extend(session.link.as_ref().map(|link| link.connection));
        }
    }

    /// A client subscribes.
    pub(super) fn handle_subscribe(&mut self, key: u64, subscribe: Subscribe) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let (mut granted, mut retained) = (Vec::with_capacity(subscribe.filters.len()), Vec::new());
        for wanted in subscribe.filters {
            if is_shared(&wanted.path)
                || !self.routes.topics.may_hear(&session.principal, &wanted.path)
            {
                granted.push(None);
                continue;
            }
            // MQTT-3.8.4-6 lets a server grant less than was asked for.
            let qos = lower(wanted.qos, QoS::AtLeastOnce);
            let too_many = session.subscriptions.len() >= MAX_FILTERS;
            let known = session.subscriptions.iter_mut().find(|kept| kept.filter == wanted.path);
            match known {
                Some(kept) => kept.qos = qos,
                None if too_many || wanted.path.split('/').count() > MAX_FILTER_LEVELS => {
                    granted.push(None);
                    continue;
                }
                None => {
                    let filter = wanted.path.clone();
                    session.subscriptions.push(Subscription { filter, qos });
                }
            }
            granted.push(Some(qos));
            let matching = self.retained.matching(&wanted.path).into_iter();
            retained.extend(matching.map(|(kept_qos, message)| Queued {
                message,
                qos: lower(kept_qos, qos),
                retain: true,
            }));
        }
        if let Some(link) = &mut session.link {
            wire::put_suback(&mut link.outbox, subscribe.pkid, &granted);
        }
        for queued in retained {
            self.dropped += session.enqueue(queued, &mut self.budget);
        }
        self.routes.forget();
    }

    /// A client unsubscribes.
    pub(super) fn handle_unsubscribe(&mut self, key: u64, unsubscribe: &Unsubscribe) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        session.subscriptions.retain(|kept| !unsubscribe.topics.contains(&kept.filter));
        if let Some(link) = &mut session.link {
            wire::put_ack(&mut link.outbox, wire::UNSUBACK, unsubscribe.pkid);
        }
        self.routes.forget();
    }

    /// A client is gone that had left this will.
    pub(super) fn publish_will(&mut self, will: LastWill) {
        let route = self.routes.find(&will.topic, &self.sessions);
        if will.retain {
            self.retained.set(&will.topic, will.qos, &will.message);
        }
        self.forward(&route.sessions, &will.topic, will.qos, &will.message);
        if route.interesting {
            self.hear(will.topic, will.message, None, None);
        }
    }
}

/// Whether this asks for a share of a group's messages: `$share/GROUP/FILTER`, which is of MQTT 5
/// and not offered here. As a filter like any other it would match nothing, and its client would
/// wait for ever.
fn is_shared(filter: &str) -> bool {
    filter.split('/').next() == Some("$share")
}
