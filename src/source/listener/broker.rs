//! The listener's core: clients, their sessions, and what each packet does. Sans-IO.
//!
//! Inputs are `handle_*`, outputs are taken after each: [`Broker::take_heard`] for the gateway,
//! [`Broker::take_notices`], [`Broker::pop_woken`] for the connections that have something to
//! write. It must never owe an acknowledgement for a publish that its client may not yet forget
//! (promise 1), see [`receipts`](crate::source::receipts).
//!
//! What goes from client to client is `forwarding`'s. What the gateway wants is never dropped here.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use rumqttc::{ConnectReturnCode, Packet, QoS};

use super::{
    access::{Principal, Topics},
    delivery::Deliveries,
    retained::Retained,
    routes::Routes,
    session::{Link, OUTBOX_BYTES, Owner, Session},
    wire::{self, Connect, Violation},
};
use crate::{
    record::{self, Publish, Receipt, SourceId, is_device_name},
    source::{NOTICE_QUEUE, Notice, receipts::Ack},
};

/// How many sessions without a connection are kept; at the bound the one that left first is
/// forgotten.
const MAX_OFFLINE_SESSIONS: usize = 256;

/// How long a session without a connection is kept.
const SESSION_EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);

/// Queued messages of all sessions together, in bytes.
const SESSIONS_BYTES: usize = 8 * 1024 * 1024;

/// QoS 2 publishes of one client between PUBLISH and PUBREL; a client that leaves more open is
/// disconnected.
const MAX_RECEIVED: usize = 1024;

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The client said DISCONNECT: its will is not published.
    Disconnect,
    /// Nothing was heard for one and a half keep alives.
    KeepAlive,
    /// Anything else: closed, reset, thrown out, taken over.
    Lost,
}

/// The state of all clients.
#[derive(Debug)]
pub(super) struct Broker {
    pub(super) sessions: HashMap<u64, Session>,
    pub(super) deliveries: Deliveries,
    source: SourceId,
    max_clients: usize,
    max_inflight: usize,
    pub(super) by_client: HashMap<Owner, u64>,
    pub(super) by_connection: HashMap<u64, u64>,
    pub(super) routes: Routes,
    pub(super) retained: Retained,
    pub(super) budget: usize,
    next_session: u64,
    pub(super) dropped: u64,
    heard: Vec<Publish>,
    notices: VecDeque<Notice>,
    pub(super) woken: Vec<u64>,
}

impl Broker {
    /// A broker without clients.
    pub(super) fn new(
        source: SourceId,
        topics: Topics,
        max_clients: usize,
        max_inflight: usize,
    ) -> Self {
        Self {
            sessions: HashMap::new(),
            deliveries: Deliveries::default(),
            source,
            max_clients,
            max_inflight: max_inflight.max(1),
            by_client: HashMap::new(),
            by_connection: HashMap::new(),
            routes: Routes::new(topics),
            retained: Retained::default(),
            budget: SESSIONS_BYTES,
            next_session: 0,
            dropped: 0,
            heard: Vec::new(),
            notices: VecDeque::new(),
            woken: Vec::new(),
        }
    }

    /// A client that was let in as `principal` connects. `connection` was never given before.
    ///
    /// # Errors
    /// The CONNACK code to refuse it with; nothing is kept of it.
    pub(super) fn handle_connect(
        &mut self,
        now: Instant,
        connection: u64,
        connect: Connect,
        principal: Principal,
    ) -> Result<(), ConnectReturnCode> {
        let is_named = !connect.client_id.is_empty();
        let client_id = match connect.client_id {
            name if is_device_name(&name) => name,
            name if name.is_empty() && connect.clean_session => format!("unnamed-{connection}"),
            _ => return Err(ConnectReturnCode::BadClientId),
        };
        if connect.will.as_ref().is_some_and(|will| !self.may_publish(&principal, &will.topic)) {
            return Err(ConnectReturnCode::NotAuthorized);
        }
        let owner = (principal.name().cloned(), client_id);
        let earlier = self.by_client.get(&owner).copied();
        let taken_over = earlier.and_then(|key| self.sessions.get(&key)?.link.as_ref());
        match taken_over.map(|link| link.connection) {
            // The newest connection of a client identifier wins (MQTT-3.1.4-2).
            Some(older) => self.handle_end(now, older, End::Lost),
            None if self.by_connection.len() >= self.max_clients || self.is_crowded(&principal) => {
                return Err(ConnectReturnCode::ServiceUnavailable);
            }
            None => {}
        }
        let kept = self.by_client.get(&owner).copied();
        let resumed = kept.filter(|_| !connect.clean_session);
        let key = resumed.unwrap_or_else(|| {
            kept.into_iter().for_each(|key| self.forget(key));
            self.bound_sessions_of(&principal);
            self.add_session(Session::new(now, principal, owner.1, is_named, connect.clean_session))
        });
        let session = self.sessions.get_mut(&key).expect("found or made just before");
        let connack = [0x20, 2, u8::from(resumed.is_some()), 0];
        session.will = connect.will;
        session.connect(connection, BytesMut::from(&connack[..]), &mut self.budget);
        if let Some(device) = session.device() {
            let (device, source) = (device.to_owned(), self.source);
            self.notices.push_back(Notice::Birth { device, source });
        }
        self.by_connection.insert(connection, key);
        Ok(())
    }

    /// A connected client sent a packet.
    ///
    /// # Errors
    /// A packet that may not come: the connection is to be ended as [`End::Lost`].
    pub(super) fn handle_packet(
        &mut self,
        connection: u64,
        packet: Packet,
    ) -> Result<(), Violation> {
        let Some(key) = self.by_connection.get(&connection).copied() else { return Ok(()) };
        let Some(session) = self.sessions.get_mut(&key) else { return Ok(()) };
        let Some(link) = &mut session.link else { return Ok(()) };
        match packet {
            Packet::Publish(publish) => return self.handle_publish(key, connection, publish),
            Packet::PubAck(ack) => {
                if let Some(token) = session.handle_puback(ack.pkid, &mut self.budget) {
                    self.notices.extend(self.deliveries.handle_taken(token));
                }
            }
            Packet::PubRel(release) => {
                session.received.remove(&release.pkid);
                wire::put_ack(&mut link.outbox, wire::PUBCOMP, release.pkid);
            }
            Packet::Subscribe(subscribe) => self.handle_subscribe(key, subscribe),
            Packet::Unsubscribe(unsubscribe) => self.handle_unsubscribe(key, &unsubscribe),
            Packet::PingReq => link.outbox.extend_from_slice(&[0xd0, 0]),
            // Nothing is ever sent at QoS 2.
            Packet::PubRec(_) | Packet::PubComp(_) => {
                return Err(Violation::Unexpected("an answer to a QoS 2 publish"));
            }
            _ => return Err(Violation::Unexpected("not a client's packet")),
        }
        Ok(())
    }

    /// A connection ended. One that is already gone changes nothing.
    pub(super) fn handle_end(&mut self, now: Instant, connection: u64, end: End) {
        let Some(key) = self.by_connection.remove(&connection) else { return };
        let is_last = !self.has_another_link(key);
        let Some(session) = self.sessions.get_mut(&key) else { return };
        for token in session.disconnect(now) {
            self.notices.extend(self.deliveries.handle_cut_off(token));
        }
        let will = session.will.take().filter(|_| end != End::Disconnect);
        if let Some(device) = session.device().filter(|_| is_last) {
            let reason = match end {
                _ if will.is_some() => "will",
                End::Disconnect => "disconnect",
                End::KeepAlive => "keep alive",
                End::Lost => "connection lost",
            };
            self.notices.push_back(Notice::Death { device: device.to_owned(), reason });
        }
        if session.clean {
            self.forget(key);
        } else {
            self.bound_offline_sessions();
        }
        self.woken.push(connection);
        if let Some(will) = will {
            self.publish_will(will);
        }
    }

    /// A client sent a publish that is larger than the listener takes: it is accounted for, and
    /// thrown out after.
    pub(super) fn handle_too_large(&mut self, connection: u64) {
        let session = self.by_connection.get(&connection).and_then(|key| self.sessions.get(key));
        let device = session.and_then(Session::device).map(str::to_owned);
        self.notices.push_back(Notice::Refused { device, reason: "too_large", receipt: None });
    }

    /// A publish is safe.
    pub(super) fn handle_safe(&mut self, receipt: Receipt) {
        let Some(key) = self.by_connection.get(&receipt.connection) else { return };
        let Some(session) = self.sessions.get_mut(key) else { return };
        if let Some(link) = &mut session.link {
            link.acks.mark_safe(receipt.number);
        }
        if session.pay_acks() && self.woken.last() != Some(&receipt.connection) {
            self.woken.push(receipt.connection);
        }
    }

    /// All that a connection published is with the gateway. Whether its whole window waits there,
    /// which the gateway is told: not sooner, or it would write all but the last of it.
    pub(super) fn handle_forwarded(&mut self, connection: u64) -> bool {
        let window = self.max_inflight;
        let full = self.link(connection).is_some_and(|link| link.acks.len() >= window);
        if full {
            self.notices.push_back(Notice::Exhausted(self.source));
        }
        full
    }

    /// All output taken so far by a connection was written to its socket.
    pub(super) fn handle_written(&mut self, connection: u64) {
        let Some(key) = self.by_connection.get(&connection) else { return };
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(link) = &mut session.link else { return };
        for token in link.handle_written() {
            self.notices.extend(self.deliveries.handle_taken(token));
        }
        session.pump(&mut self.budget);
    }

    /// Time passed: sessions that were away for too long are forgotten. When to: every minute or
    /// so.
    pub(super) fn handle_tick(&mut self, now: Instant) {
        let expired: Vec<u64> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.link.is_none())
            .filter(|(_, session)| now.duration_since(session.offline_since) >= SESSION_EXPIRY)
            .map(|(key, _)| *key)
            .collect();
        expired.into_iter().for_each(|key| self.forget(key));
    }

    /// Moves what a connection is to write into `writing`, which must be empty. False when the
    /// connection has ended.
    pub(super) fn take_output(&mut self, connection: u64, writing: &mut BytesMut) -> bool {
        match self.link(connection) {
            Some(link) => {
                link.take_outbox(writing);
                true
            }
            None => false,
        }
    }

    /// Whether a connection's next packet may be handled: its in-flight window, its outgoing bytes
    /// and the notices have room.
    pub(super) fn may_read(&mut self, connection: u64) -> bool {
        let (window, notices) = (self.max_inflight, self.notices.len());
        self.link(connection).is_some_and(|link| {
            link.acks.len() < window && link.outbox.len() < OUTBOX_BYTES && notices < NOTICE_QUEUE
        })
    }

    /// Moves the publishes for the gateway into `heard`, in order.
    pub(super) fn take_heard(&mut self, heard: &mut VecDeque<Publish>) {
        heard.extend(self.heard.drain(..));
    }

    /// Notices for the gateway, in order.
    pub(super) fn take_notices(&mut self) -> VecDeque<Notice> {
        mem::take(&mut self.notices)
    }

    /// Whether there are any.
    pub(super) fn has_notices(&self) -> bool {
        !self.notices.is_empty()
    }

    /// A connection that has something to write, or has ended. One may be named twice.
    pub(super) fn pop_woken(&mut self) -> Option<u64> {
        self.woken.pop()
    }

    /// How many clients are connected, and how many messages between clients were dropped at a
    /// bound, ever.
    pub(super) fn account(&self) -> (usize, u64) {
        (self.by_connection.len(), self.dropped + self.retained.refused())
    }

    /// Something to tell the gateway.
    pub(super) fn notify(&mut self, notice: Notice) {
        self.notices.push_back(notice);
    }

    /// A session has something to write, if it is connected.
    pub(super) fn wake_session(&mut self, key: u64) {
        let link = self.sessions.get(&key).and_then(|session| session.link.as_ref());
        self.woken.extend(link.map(|link| link.connection));
    }

    fn link(&mut self, connection: u64) -> Option<&mut Link> {
        let key = self.by_connection.get(&connection)?;
        self.sessions.get_mut(key)?.link.as_mut()
    }

    fn handle_publish(
        &mut self,
        key: u64,
        connection: u64,
        publish: rumqttc::Publish,
    ) -> Result<(), Violation> {
        let Some(session) = self.sessions.get_mut(&key) else { return Ok(()) };
        let Some(link) = &mut session.link else { return Ok(()) };
        let ack = Ack::of(publish.qos, publish.pkid);
        if publish.qos == QoS::ExactlyOnce && !session.received.insert(publish.pkid) {
            // Sent again before its PUBREL: it was taken already, only the PUBREC is due once more.
            let again = Ack::PubRec(publish.pkid);
            if !link.acks.owes(again) {
                link.acks.push(again, true);
                session.pay_acks();
            }
            return Ok(());
        }
        if session.received.len() > MAX_RECEIVED {
            return Err(Violation::Unexpected("too many QoS 2 publishes without PUBREL"));
        }
        let packet = (ack.is_some() && !session.clean).then_some(record::Packet {
            session: session.hash,
            id: publish.pkid,
            dup: publish.dup,
        });
        let route = self.routes.find(&publish.topic, &self.sessions);
        if self.sessions.get(&key).is_some_and(|it| !route.holder.admits(&it.principal)) {
            self.refuse_publish(key, connection, &publish.topic, ack);
            return Ok(());
        }
        let receipt = ack.and_then(|ack| self.owe(key, connection, ack, !route.interesting));
        if publish.retain && !self.retained.set(&publish.topic, publish.qos, &publish.payload) {
            tracing::debug!(topic = publish.topic, "retained message not kept: no room");
        }
        self.forward(&route.sessions, &publish.topic, publish.qos, &publish.payload);
        if route.interesting {
            self.hear(publish.topic, publish.payload, receipt, packet);
        }
        Ok(())
    }

    /// A publish is for the gateway.
    pub(super) fn hear(
        &mut self,
        topic: String,
        payload: Bytes,
        receipt: Option<Receipt>,
        packet: Option<record::Packet>,
    ) {
        let source = self.source;
        self.heard.push(Publish { topic, payload, retained: false, source, receipt, packet });
    }

    /// Notes the acknowledgement of a publish; the receipt that it waits for, unless it is `safe`
    /// at once.
    pub(super) fn owe(
        &mut self,
        key: u64,
        connection: u64,
        ack: Ack,
        safe: bool,
    ) -> Option<Receipt> {
        let session = self.sessions.get_mut(&key)?;
        let link = session.link.as_mut()?;
        let number = link.acks.push(ack, safe);
        if safe {
            session.pay_acks();
            return None;
        }
        Some(Receipt { source: self.source, connection, number })
    }

    fn add_session(&mut self, session: Session) -> u64 {
        let key = self.next_session;
        self.next_session += 1;
        self.by_client.insert(session.owner(), key);
        self.sessions.insert(key, session);
        key
    }

    pub(super) fn forget(&mut self, key: u64) {
        let Some(mut session) = self.sessions.remove(&key) else { return };
        session.release(&mut self.budget);
        self.by_client.remove(&session.owner());
        if !session.subscriptions.is_empty() {
            self.routes.forget();
        }
    }

    fn bound_offline_sessions(&mut self) {
        let offline = self.sessions.len() - self.by_connection.len();
        if offline > MAX_OFFLINE_SESSIONS {
            let away = self.sessions.iter().filter(|(_, session)| session.link.is_none());
            let oldest = away.min_by_key(|(_, session)| session.offline_since).map(|(key, _)| *key);
            oldest.into_iter().for_each(|key| self.forget(key));
        }
    }
}

#[cfg(test)]
#[path = "broker_tests.rs"]
mod tests;
