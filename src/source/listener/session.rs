//! One client's session: what it subscribed to, what waits for it, and, while it is connected, what
//! it is owed.
//!
//! A session with `clean_session = false` outlives its connection, in memory: subscriptions,
//! messages queued for it and messages in flight, which are sent again with DUP, in order, when it
//! comes back. A command never outlives the connection it was sent on.
//!
//! Bounds: [`QUEUE_MESSAGES`] and [`QUEUE_BYTES`] per session, the shared budget over all of them.
//! At a bound the session's oldest queued message is dropped and counted. Pure.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use rumqttc::{LastWill, QoS};

use super::{
    access::Principal,
    wire::{self, PublishHead},
};
use crate::{
    record,
    source::receipts::{Ack, AckOrder},
};

/// How many messages may wait for one client.
pub(super) const QUEUE_MESSAGES: usize = 1000;

/// How many bytes of messages may wait for one client, those in flight included.
pub(super) const QUEUE_BYTES: usize = 1024 * 1024;

/// How many messages are sent to a client before its PUBACKs are waited for.
pub(super) const WINDOW: usize = 16;

/// How many commands may wait for one client's PUBACK; more are `Undelivered`.
const MAX_COMMANDS: usize = 64;

/// From here on a client's outgoing bytes wait in its queue (QoS 1) or are dropped (QoS 0), and it
/// is not read.
pub(super) const OUTBOX_BYTES: usize = 64 * 1024;

/// A message on its way from one client to others.
#[derive(Debug)]
pub(super) struct Message {
    /// The topic name.
    pub(super) topic: String,
    /// Any bytes.
    pub(super) payload: Bytes,
}

impl Message {
    /// What it takes of the budgets, in bytes.
    pub(super) fn cost(&self) -> usize {
        self.topic.len() + self.payload.len() + 64
    }
}

/// A message that waits for one client.
#[derive(Debug, Clone)]
pub(super) struct Queued {
    pub(super) message: Arc<Message>,
    /// 0 or 1: the lower of what it was published at and what was granted.
    pub(super) qos: QoS,
    /// It is a retained message.
    pub(super) retain: bool,
}

/// One subscription.
#[derive(Debug, Clone)]
pub(super) struct Subscription {
    pub(super) filter: String,
    /// Granted: 0 or 1.
    pub(super) qos: QoS,
}

/// What waits for a PUBACK.
#[derive(Debug)]
enum InFlight {
    Message(Queued),
    Command(u64),
}

/// The connected side of a session.
#[derive(Debug)]
pub(super) struct Link {
    /// Unique over the life of the listener.
    pub(super) connection: u64,
    /// The PUBACKs and PUBRECs it is owed.
    pub(super) acks: AckOrder,
    /// Encoded packets that the connection has yet to take.
    pub(super) outbox: BytesMut,
    /// Bytes taken out of `outbox`, ever.
    taken: u64,
    /// Commands sent at QoS 0, and after how many bytes each is written.
    unwritten: VecDeque<(u64, u64)>,
}

/// Whose a session is, and the client identifier it has there.
pub(super) type Owner = (Option<Arc<str>>, String);

/// One client's session.
#[derive(Debug)]
pub(super) struct Session {
    /// Whose it is: two clients may have the same identifier, and have nothing to do with each
    /// other.
    pub(super) principal: Principal,
    pub(super) client_id: String,
    /// The client named itself.
    is_named: bool,
    /// The session as what came in it is known by.
    pub(super) hash: u64,
    /// That it published what it may not was logged since it connected.
    pub(super) is_reproved: bool,
    /// It ends with its connection.
    pub(super) clean: bool,
    pub(super) subscriptions: Vec<Subscription>,
    pub(super) will: Option<LastWill>,
    pub(super) link: Option<Link>,
    /// When it lost its connection; of no meaning while connected.
    pub(super) offline_since: Instant,
    /// Packet identifiers of QoS 2 publishes between PUBLISH and PUBREL.
    pub(super) received: HashSet<u16>,
    queue: VecDeque<Queued>,
    in_flight: VecDeque<(u16, InFlight)>,
    held_bytes: usize,
    last_packet_id: u16,
}

impl Session {
    /// A session that has yet to be connected.
    pub(super) fn new(
        now: Instant,
        principal: Principal,
        client_id: String,
        is_named: bool,
        clean: bool,
    ) -> Self {
        let hash = match principal.name() {
            None => record::session_key("listener", &client_id),
            // Neither has a NUL in it.
            Some(name) => record::session_key("listener", &format!("{name}\0{client_id}")),
        };
        Self {
            principal,
            client_id,
            is_named,
            hash,
            is_reproved: false,
            clean,
            subscriptions: Vec::new(),
            will: None,
            link: None,
            offline_since: now,
            received: HashSet::new(),
            queue: VecDeque::new(),
            in_flight: VecDeque::new(),
            held_bytes: 0,
            last_packet_id: 0,
        }
    }

    /// The device that it is the session of: the one that was proven, else the one that the client
    /// says it is. A service is none.
    pub(super) fn device(&self) -> Option<&str> {
        match &self.principal {
            Principal::Device(name) => Some(name),
            Principal::Service(_) => None,
            Principal::Anonymous => self.is_named.then_some(self.client_id.as_str()),
        }
    }

    /// What it is found by.
    pub(super) fn owner(&self) -> Owner {
        (self.principal.name().cloned(), self.client_id.clone())
    }

    /// Joins a connection to the session; `connack` goes first, then what was in flight, again and
    /// in order.
    pub(super) fn connect(&mut self, connection: u64, connack: BytesMut, budget: &mut usize) {
        let mut outbox = connack;
        for (packet_id, sent) in &self.in_flight {
            if let InFlight::Message(Queued { message, retain, .. }) = sent {
                let head = PublishHead { packet_id: *packet_id, dup: true, retain: *retain };
                wire::put_publish(&mut outbox, &message.topic, &message.payload, head);
            }
        }
        self.is_reproved = false;
        self.link = Some(Link {
            connection,
            acks: AckOrder::default(),
            outbox,
            taken: 0,
            unwritten: VecDeque::new(),
        });
        self.pump(budget);
    }

    /// Parts the session from its connection and names the commands whose fate is now unknown.
    ///
    /// QoS 2 publishes that were not safe yet are forgotten: the client sends them again, and they
    /// are taken again, because a duplicate can be told and a loss can't.
    pub(super) fn disconnect(&mut self, now: Instant) -> Vec<u64> {
        let Some(link) = self.link.take() else { return Vec::new() };
        for ack in link.acks.unpaid() {
            if let Ack::PubRec(packet_id) = ack {
                self.received.remove(&packet_id);
            }
        }
        self.offline_since = now;
        let mut cut_off: Vec<u64> = link.unwritten.iter().map(|(token, _)| *token).collect();
        self.in_flight.retain(|(_, sent)| match sent {
            InFlight::Message(_) => true,
            InFlight::Command(token) => {
                cut_off.push(*token);
                false
            }
        });
        cut_off
    }

    /// Gives back what the session holds of the budget; it is about to be forgotten.
    pub(super) fn release(&mut self, budget: &mut usize) {
        *budget += std::mem::take(&mut self.held_bytes);
    }

    /// Sends a live QoS 0 message if the client can take it now. False: it was dropped.
    pub(super) fn send_now(&mut self, topic: &str, payload: &[u8]) -> bool {
        match &mut self.link {
            Some(link) if self.queue.is_empty() && link.outbox.len() < OUTBOX_BYTES => {
                wire::put_publish(&mut link.outbox, topic, payload, PublishHead::default());
                true
            }
            _ => false,
        }
    }

    /// Queues a message and sends what can be sent. Gives how many messages were dropped for lack
    /// of room.
    pub(super) fn enqueue(&mut self, queued: Queued, budget: &mut usize) -> u64 {
        let cost = queued.message.cost();
        let mut dropped = 0;
        while self.queue.len() >= QUEUE_MESSAGES
            || self.held_bytes + cost > QUEUE_BYTES
            || cost > *budget
        {
            let Some(oldest) = self.queue.pop_front() else { return dropped + 1 };
            self.give_back(oldest.message.cost(), budget);
            dropped += 1;
        }
        self.held_bytes += cost;
        *budget -= cost;
        self.queue.push_back(queued);
        self.pump(budget);
        dropped
    }

    /// Sends queued messages while the client's window and outbox have room.
    pub(super) fn pump(&mut self, budget: &mut usize) {
        while self.in_flight.len() < WINDOW {
            let Some(link) = &mut self.link else { return };
            if link.outbox.len() >= OUTBOX_BYTES {
                return;
            }
            let Some(queued) = self.queue.pop_front() else { return };
            let message = Arc::clone(&queued.message);
            let mut head = PublishHead { retain: queued.retain, ..PublishHead::default() };
            if queued.qos == QoS::AtMostOnce {
                wire::put_publish(&mut link.outbox, &message.topic, &message.payload, head);
                self.give_back(message.cost(), budget);
                continue;
            }
            head.packet_id = next_packet_id(&mut self.last_packet_id, &self.in_flight);
            wire::put_publish(&mut link.outbox, &message.topic, &message.payload, head);
            self.in_flight.push_back((head.packet_id, InFlight::Message(queued)));
        }
    }

    /// Sends a command. False: there is no room for it, nothing was sent.
    pub(super) fn send_command(&mut self, token: u64, topic: &str, body: &[u8], qos: QoS) -> bool {
        let Some(link) = &mut self.link else { return false };
        let waiting = self.in_flight.len().saturating_sub(WINDOW) + link.unwritten.len();
        if waiting >= MAX_COMMANDS || link.outbox.len() >= OUTBOX_BYTES {
            return false;
        }
        let mut head = PublishHead::default();
        if qos == QoS::AtMostOnce {
            wire::put_publish(&mut link.outbox, topic, body, head);
            link.unwritten.push_back((token, link.taken + link.outbox.len() as u64));
        } else {
            head.packet_id = next_packet_id(&mut self.last_packet_id, &self.in_flight);
            wire::put_publish(&mut link.outbox, topic, body, head);
            self.in_flight.push_back((head.packet_id, InFlight::Command(token)));
        }
        true
    }

    /// A PUBACK came; gives the command it was for, if it was for one. An unknown identifier is let
    /// pass: it may answer a command of an earlier connection.
    pub(super) fn handle_puback(&mut self, packet_id: u16, budget: &mut usize) -> Option<u64> {
        let place = self.in_flight.iter().position(|(id, _)| *id == packet_id)?;
        let (_, sent) = self.in_flight.remove(place)?;
        let token = match sent {
            InFlight::Command(token) => Some(token),
            InFlight::Message(queued) => {
                self.give_back(queued.message.cost(), budget);
                None
            }
        };
        self.pump(budget);
        token
    }

    /// Puts the acknowledgements that are due into the outbox; whether there were any.
    pub(super) fn pay_acks(&mut self) -> bool {
        let Some(link) = &mut self.link else { return false };
        let before = link.outbox.len();
        while let Some(ack) = link.acks.pop_due() {
            match ack {
                Ack::PubAck(id) => wire::put_ack(&mut link.outbox, wire::PUBACK, id),
                Ack::PubRec(id) => wire::put_ack(&mut link.outbox, wire::PUBREC, id),
            }
        }
        link.outbox.len() > before
    }

    fn give_back(&mut self, cost: usize, budget: &mut usize) {
        self.held_bytes -= cost;
        *budget += cost;
    }
}

impl Link {
    /// Moves the outgoing bytes into `writing`, which must be empty, and leaves its memory behind
    /// for the next ones.
    pub(super) fn take_outbox(&mut self, writing: &mut BytesMut) {
        self.taken += self.outbox.len() as u64;
        std::mem::swap(&mut self.outbox, writing);
    }

    /// Everything taken so far was written: names the QoS 0 commands among it.
    pub(super) fn handle_written(&mut self) -> Vec<u64> {
        let mut written = Vec::new();
        while let Some((token, after)) = self.unwritten.front() {
            if *after > self.taken {
                break;
            }
            written.push(*token);
            self.unwritten.pop_front();
        }
        written
    }
}

/// The next packet identifier that is not in flight. At most [`WINDOW`] and [`MAX_COMMANDS`] are.
fn next_packet_id(last: &mut u16, in_flight: &VecDeque<(u16, InFlight)>) -> u16 {
    loop {
        *last = last.checked_add(1).unwrap_or(1);
        if in_flight.iter().all(|(id, _)| id != last) {
            return *last;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumqttc::Packet;

    fn session() -> Session {
        Session::new(Instant::now(), Principal::Anonymous, "plc-01".into(), true, false)
    }

    fn message(text: &str) -> Queued {
        let payload = Bytes::copy_from_slice(text.as_bytes());
        let message = Arc::new(Message { topic: "t".into(), payload });
        Queued { message, qos: QoS::AtLeastOnce, retain: false }
    }

    fn sent(session: &mut Session) -> Vec<(u16, bool, String)> {
        let mut bytes = BytesMut::new();
        session.link.as_mut().unwrap().take_outbox(&mut bytes);
        let mut publishes = Vec::new();
        while let Ok(packet) = Packet::read(&mut bytes, usize::MAX) {
            let Packet::Publish(publish) = packet else { panic!("{packet:?}") };
            let text = String::from_utf8(publish.payload.to_vec()).unwrap();
            publishes.push((publish.pkid, publish.dup, text));
        }
        publishes
    }

    #[test]
    fn what_was_in_flight_is_sent_again_in_order_with_dup() {
        let (mut session, mut budget) = (session(), 10_000);
        session.connect(1, BytesMut::new(), &mut budget);
        for text in ["a", "b", "c"] {
            session.enqueue(message(text), &mut budget);
        }
        assert_eq!(sent(&mut session).len(), 3);
        session.handle_puback(2, &mut budget);
        assert!(session.disconnect(Instant::now()).is_empty());
        session.enqueue(message("d"), &mut budget);
        session.connect(2, BytesMut::new(), &mut budget);
        let again = sent(&mut session);
        let expected = [(1, true, "a"), (3, true, "c"), (4, false, "d")];
        assert_eq!(again, expected.map(|(id, dup, text)| (id, dup, text.to_owned())));
        for id in [1, 3, 4] {
            session.handle_puback(id, &mut budget);
        }
        assert_eq!((budget, session.held_bytes), (10_000, 0));
    }

    #[test]
    fn at_a_bound_the_oldest_is_dropped_and_counted() {
        let (mut session, mut budget) = (session(), 200);
        let cost = message("a").message.cost();
        assert_eq!(200 / cost, 3, "three fit");
        let dropped: u64 = ["a", "b", "c", "d"]
            .iter()
            .map(|text| session.enqueue(message(text), &mut budget))
            .sum();
        assert_eq!(dropped, 1);
        assert_eq!(&session.queue[0].message.payload[..], b"b");
        assert_eq!(session.enqueue(message(&"x".repeat(300)), &mut budget), 4);
        assert_eq!(budget, 200);
    }

    #[test]
    fn a_command_ends_with_its_connection() {
        let (mut session, mut budget) = (session(), 10_000);
        assert!(!session.send_command(1, "t", b"{}", QoS::AtLeastOnce));
        session.connect(1, BytesMut::new(), &mut budget);
        assert!(session.send_command(2, "t", b"{}", QoS::AtLeastOnce));
        assert!(session.send_command(3, "t", b"{}", QoS::AtMostOnce));
        let mut cut_off = session.disconnect(Instant::now());
        cut_off.sort_unstable();
        assert_eq!(cut_off, [2, 3]);
        session.connect(2, BytesMut::new(), &mut budget);
        assert_eq!(sent(&mut session), []);
    }

    #[test]
    fn a_qos_0_command_is_written_when_the_bytes_before_it_are() {
        let (mut session, mut budget) = (session(), 10_000);
        session.connect(1, BytesMut::new(), &mut budget);
        session.send_command(3, "t", b"{}", QoS::AtMostOnce);
        assert!(session.link.as_mut().unwrap().handle_written().is_empty());
        sent(&mut session);
        assert_eq!(session.link.as_mut().unwrap().handle_written(), [3]);
    }
}
