//! Commands: to whom one goes, and what is said of it.
//!
//! A command goes to the clients that are connected now and subscribed to its topic, and is never
//! kept for one that is not. Those whose filter names the most levels of the topic before its first
//! wildcard decide its fate: they are the device. The others look on (`mosquitto_sub -t '#'`, a
//! dashboard on `devices/#`), get it at QoS 0, and their PUBACK means nothing; a filter that begins
//! with a wildcard never makes a device. The first PUBACK makes the command `Delivered`. Where all
//! deciding clients were granted QoS 0 there is no PUBACK, and the command is delivered when it is
//! written to one connection. Pure.

use std::collections::HashMap;

use rumqttc::QoS;

use super::{
    broker::Broker,
    routes::higher,
    session::{Session, Subscription},
};
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

/// A connected client that is subscribed to a command's topic.
#[derive(Debug, Clone, Copy)]
struct Follower {
    session: u64,
    /// How many levels its closest filter names before the first wildcard.
    named_levels: usize,
    /// The highest it was granted.
    qos: QoS,
}

impl Broker {
    /// A command is to be delivered.
    pub(super) fn handle_deliver(&mut self, delivery: &Delivery) {
        let Delivery { token, topic, payload } = delivery;
        let followers: Vec<Follower> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.link.is_some())
            .filter_map(|(key, session)| Follower::of(*key, session, topic))
            .collect();
        let closest = followers.iter().map(|follower| follower.named_levels).max().unwrap_or(0);
        let (devices, mut onlookers): (Vec<Follower>, Vec<Follower>) = followers
            .into_iter()
            .partition(|follower| closest > 0 && follower.named_levels == closest);
        let (acknowledging, silent): (Vec<Follower>, Vec<Follower>) =
            devices.into_iter().partition(|device| device.qos >= QoS::AtLeastOnce);
        let mut sent = self.send_command(delivery, &acknowledging);
        if sent > 0 {
            onlookers.extend(silent);
        } else {
            sent = self.send_command(delivery, &silent);
        }
        if sent == 0 {
            self.notify(Notice::Undelivered { token: *token });
            return;
        }
        self.deliveries.open.insert(*token, sent);
        for onlooker in onlookers {
            let Some(session) = self.sessions.get_mut(&onlooker.session) else { continue };
            session.send_now(topic, payload);
            self.wake_session(onlooker.session);
        }
    }

    /// Sends the command to all of these, and counts those that had room for it.
    fn send_command(&mut self, delivery: &Delivery, devices: &[Follower]) -> usize {
        let Delivery { token, topic, payload } = delivery;
        let mut sent = 0;
        for device in devices {
            let Some(session) = self.sessions.get_mut(&device.session) else { continue };
            sent += usize::from(session.send_command(*token, topic, payload, device.qos));
            self.wake_session(device.session);
        }
        sent
    }
}

impl Follower {
    fn of(key: u64, session: &Session, topic: &str) -> Option<Self> {
        session
            .subscriptions
            .iter()
            .filter(|subscription| topic::filter_matches(&subscription.filter, topic))
            .map(|Subscription { filter, qos }| Self {
                session: key,
                named_levels: filter.split('/').take_while(|level| !is_wildcard(level)).count(),
                qos: *qos,
            })
            .reduce(|one, other| Self {
                session: key,
                named_levels: one.named_levels.max(other.named_levels),
                qos: higher(one.qos, other.qos),
            })
    }
}

fn is_wildcard(level: &str) -> bool {
    matches!(level, "+" | "#")
}
