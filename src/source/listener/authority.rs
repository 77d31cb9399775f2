//! What the broker does with who may do what: a publish that is refused, a device that is shut out,
//! how many connections one name may have. Pure.

use std::time::Instant;

use super::{
    access::Principal,
    broker::{Broker, End},
};
use crate::source::{Notice, receipts::Ack};

/// How many connections one name may have at once: a password that got out must not keep all other
/// devices out.
const MAX_CONNECTIONS: usize = 8;

impl Broker {
    /// Whether a client may publish to a topic.
    pub(super) fn may_publish(&mut self, client: &Principal, topic: &str) -> bool {
        self.routes.topics.holder(topic).admits(client)
    }

    /// Whether a name has all the connections that it may have.
    pub(super) fn is_crowded(&self, client: &Principal) -> bool {
        client.name().is_some_and(|name| {
            let connected = self.sessions.values().filter(|session| session.link.is_some());
            connected.filter(|it| it.principal.name() == Some(name)).count() >= MAX_CONNECTIONS
        })
    }

    /// Makes room for another session of a name: its own oldest goes, not somebody else's.
    pub(super) fn bound_sessions_of(&mut self, client: &Principal) {
        let Some(name) = client.name() else { return };
        let of_name = self.sessions.iter().filter(|(_, it)| it.principal.name() == Some(name));
        let (count, away) = (of_name.clone().count(), of_name.filter(|(_, it)| it.link.is_none()));
        let oldest = away.min_by_key(|(_, it)| it.offline_since).map(|(key, _)| *key);
        oldest.filter(|_| count >= MAX_CONNECTIONS).into_iter().for_each(|key| self.forget(key));
    }

    /// Whether the device of a session is connected by another one, too.
    pub(super) fn has_another_link(&self, key: u64) -> bool {
        let of = |key: &u64| self.sessions.get(key).and_then(|session| session.principal.name());
        of(&key).is_some_and(|name| {
            let mut others = self.by_connection.values().filter(|other| **other != key);
            others.any(|other| of(other) == Some(name))
        })
    }

    /// A publish that its client may not make is accounted for, and acknowledged when that is safe:
    /// MQTT 3.1.1 has no other answer, and a client that got none would send it again for ever.
    pub(super) fn refuse_publish(
        &mut self,
        key: u64,
        connection: u64,
        topic: &str,
        ack: Option<Ack>,
    ) {
        let receipt = ack.and_then(|ack| self.owe(key, connection, ack, false));
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let device = session.device().map(str::to_owned);
        if !std::mem::replace(&mut session.is_reproved, true) {
            let name = session.principal.name().map_or("anonymous", |name| name);
            let client_id = &session.client_id;
            tracing::warn!(name, client_id, topic, "a publish is refused: not its topic");
        }
        self.notify(Notice::Refused { device, reason: "forbidden", receipt });
    }

    /// A device's password changed, or it is shut out: its connections end. With `forget`, what it
    /// subscribed to and what waits for it is forgotten, too.
    pub(super) fn handle_revoked(&mut self, now: Instant, name: &str, forget: bool) {
        let of_name = self
            .sessions
            .iter()
            .filter(|(_, session)| session.principal.name().is_some_and(|owner| **owner == *name));
        let keys: Vec<u64> = of_name.map(|(key, _)| *key).collect();
        for key in keys {
            let link = self.sessions.get(&key).and_then(|session| session.link.as_ref());
            if let Some(connection) = link.map(|link| link.connection) {
                tracing::info!(name, "connection ended: the device's line of users_file changed");
                self.handle_end(now, connection, End::Lost);
            }
            if forget {
                self.forget(key);
            }
        }
    }
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
