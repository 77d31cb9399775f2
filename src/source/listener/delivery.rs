//! Commands: to whom one goes, and what is said of it.
//!
//! A command goes to the clients that are connected now and subscribed to its topic, and is never kept for one that is
//! not. Only a subscriber that asked for the topic by name decides its fate: one whose filters all begin with a
//! wildcard (`mosquitto_sub -t '#'`) is an observer, gets it at QoS 0, and its presence does not count as the device's.
//! With several deciding subscribers the first PUBACK makes it `Delivered`. Where all of them were granted QoS 0 there
//! is no PUBACK, and the command is delivered when it is written to one connection. Pure.

use std::collections::HashMap;

use rumqttc::QoS;

use super::{broker::Broker, session::Session};
use crate::{
    source::{Delivery, Notice},
    topic,
};

/// Commands that were sent, each with the number of connections that may still take it.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    open: HashMap<u64, usize>,
}

impl Deliveries {
    /// A client took the command; only the first one counts.
    pub(super) fn handle_taken(&mut self, token: u64) -> Option<Notice> {
        self.open.remove(&token).map(|_| Notice::Delivered { token })
    }

    /// A connection ended before its client took the command.
    pub(super) fn handle_cut_off(&mut self, token: u64) -> Option<Notice> {
        let left = self.open.get_mut(&token)?;
        *left -= 1;
        if *left > 0 {
            return None;
        }
        self.open.remove(&token);
        Some(Notice::Interrupted { token })
    }
}

/// How a connected client follows a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follows {
    /// By a filter that begins with a wildcard.
    Observer,
    /// By name, at this QoS.
    Device(QoS),
}

impl Broker {
    /// A command is to be delivered.
    pub(super) fn handle_deliver(&mut self, delivery: &Delivery) {
        let Delivery { token, topic, payload } = delivery;
        let followers: Vec<(u64, Follows)> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.link.is_some())
            .filter_map(|(key, session)| Some((*key, follows(session, topic)?)))
            .collect();
        let decides = [QoS::AtLeastOnce, QoS::AtMostOnce].into_iter().find_map(|qos| {
            let sent = self.send_to_devices(delivery, &followers, qos);
            (sent > 0).then_some((Follows::Device(qos), sent))
        });
        let Some((decides, sent)) = decides else {
            self.notify(Notice::Undelivered { token: *token });
            return;
        };
        self.deliveries.open.insert(*token, sent);
        for (key, follows) in followers {
            let Some(session) = self.sessions.get_mut(&key) else { continue };
            if follows != decides {
                session.send_now(topic, payload);
            }
            let connection = session.link.as_ref().map(|link| link.connection);
            connection.into_iter().for_each(|connection| self.wake(connection));
        }
    }

    /// Sends to the devices that were granted `qos`, and counts them.
    fn send_to_devices(
        &mut self,
        delivery: &Delivery,
        followers: &[(u64, Follows)],
        qos: QoS,
    ) -> usize {
        let Delivery { token, topic, payload } = delivery;
        let devices = followers.iter().filter(|(_, follows)| *follows == Follows::Device(qos));
        let sent = devices.filter(|(key, _)| {
            self.sessions
                .get_mut(key)
                .is_some_and(|session| session.send_command(*token, topic, payload, qos))
        });
        sent.count()
    }
}

fn follows(session: &Session, topic: &str) -> Option<Follows> {
    let matching = session
        .subscriptions
        .iter()
        .filter(|subscription| topic::filter_matches(&subscription.filter, topic));
    matching.fold(None, |known, subscription| {
        if subscription.filter.starts_with(['+', '#']) {
            return known.or(Some(Follows::Observer));
        }
        match known {
            Some(Follows::Device(QoS::AtLeastOnce)) => known,
            _ => Some(Follows::Device(subscription.qos)),
        }
    })
}
