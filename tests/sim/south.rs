//! Devices, and the MQTT sessions that they or their broker have with the gateway: QoS 1, a window,
//! what is unacknowledged is sent again with DUP and the same packet identifier. PUBACKs leave by
//! the order of the real sources.

use std::collections::VecDeque;

use bytes::Bytes;
use fieldgate::{
    record::{Packet, Publish, Receipt, SourceId, session_key},
    source::receipts::{Ack, AckOrder},
};
use rumqttc::QoS;

use crate::{
    coverage::Seen,
    oracle::Kind,
    world::{Event, MS, SECOND, World},
};

/// One MQTT session: a device's, or the one at the broker for all of them.
#[derive(Debug)]
pub(crate) struct Client {
    session: u64,
    is_persistent: bool,
    reuses_ids: bool,
    connection: Option<u64>,
    last_packet: u16,
    /// Sent, or to be sent again, and not acknowledged.
    in_flight: VecDeque<InFlight>,
    order: AckOrder,
    backlog: VecDeque<Message>,
    /// Commands on their way to the device.
    deliveries: Vec<Delivery>,
    /// Its connection is about to end: what is on its way to it is lost.
    is_parting: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Message {
    number: u64,
    topic: String,
    payload: Bytes,
}

#[derive(Debug)]
struct InFlight {
    message: Message,
    packet: u16,
    was_sent: bool,
    /// Whether it was sent on this connection.
    is_here: bool,
}

#[derive(Debug)]
struct Delivery {
    token: u64,
    id: String,
    device: usize,
}

impl Client {
    fn new(name: &str, is_persistent: bool, reuses_ids: bool) -> Self {
        Self {
            session: session_key("simulated", name),
            is_persistent,
            reuses_ids,
            connection: None,
            last_packet: 0,
            in_flight: VecDeque::new(),
            order: AckOrder::default(),
            backlog: VecDeque::new(),
            deliveries: Vec::new(),
            is_parting: false,
        }
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.in_flight.is_empty() && self.backlog.is_empty()
    }

    fn next_packet(&mut self) -> u16 {
        let is_free = |id: u16, flying: &VecDeque<InFlight>| flying.iter().all(|f| f.packet != id);
        if self.reuses_ids {
            let free = (1..=u16::MAX).find(|id| is_free(*id, &self.in_flight));
            return free.expect("the window is far smaller");
        }
        loop {
            self.last_packet = self.last_packet.checked_add(1).unwrap_or(1);
            if is_free(self.last_packet, &self.in_flight) {
                return self.last_packet;
            }
        }
    }
}

impl World {
    pub(crate) fn make_clients(&mut self) {
        let habits = self.plan.devices.clone();
        self.clients = if self.plan.has_listener {
            let client = |(at, habit): (usize, &crate::plan::Habit)| {
                Client::new(&format!("d{at}"), habit.is_persistent, habit.reuses_ids)
            };
            habits.iter().enumerate().map(client).collect()
        } else {
            vec![Client::new("broker", true, habits[0].reuses_ids)]
        };
    }

    /// The sessions of the devices come to a gateway that has just started.
    pub(crate) fn reconnect_clients(&mut self) {
        for at in 0..self.clients.len() {
            let wait = 10 * MS + self.random.below(3 * SECOND);
            self.after(wait, Event::Connect { client: at });
        }
    }

    /// A client connects.
    pub(crate) fn connect(&mut self, at: usize) {
        let stops = self.board.process.as_ref().is_none_or(|process| process.stopping.is_some());
        if stops || self.clients[at].connection.is_some() {
            return;
        }
        self.next_client_connection += 1;
        let connection = self.next_client_connection;
        let client = &mut self.clients[at];
        client.connection = Some(connection);
        client.is_parting = false;
        client.order = AckOrder::default();
        if self.plan.has_listener {
            let device = format!("d{at}");
            self.with_gateway(|gateway, now| gateway.handle_birth(now, &device, SourceId(0)));
        }
        self.pour(at);
    }

    /// A client's connection ends.
    pub(crate) fn disconnect(&mut self, at: usize) {
        let client = &mut self.clients[at];
        if client.connection.take().is_none() {
            return;
        }
        client.order = AckOrder::default();
        client.in_flight.iter_mut().for_each(|flying| flying.is_here = false);
        if !client.is_persistent {
            client.in_flight.clear();
        }
        let cut_off = std::mem::take(&mut client.deliveries);
        for delivery in cut_off {
            self.coverage.note(Seen::CommandInterrupted);
            if self.random.one_in(2) {
                // The device had it, and its PUBACK is lost.
                self.device_runs(delivery.device, &delivery.id);
            }
            let token = delivery.token;
            self.with_gateway(|gateway, now| gateway.handle_interrupted(now, token));
        }
        if self.plan.has_listener && self.board.process.is_some() {
            let device = format!("d{at}");
            self.with_gateway(|g, now| g.handle_death(now, &device, "connection lost"));
        }
    }

    /// The gateway is gone, and with it every connection.
    pub(crate) fn lose_clients(&mut self) {
        for at in 0..self.clients.len() {
            if !self.clients[at].deliveries.is_empty() {
                self.coverage.note(Seen::CrashAfterDelivery);
            }
            self.disconnect(at);
        }
    }

    /// A device publishes what it has to say, and will again.
    pub(crate) fn publish(&mut self, device: usize) {
        let habit = self.plan.devices[device].clone();
        let count = if self.random.one_in(8) { habit.burst } else { 1 };
        for _ in 0..count {
            let is_oversize = self.random.one_in(60);
            let kind = if is_oversize { Kind::Oversize } else { Kind::Reading };
            let number = self.oracle.publish(device, kind);
            let bytes = match kind {
                Kind::Oversize => 1200,
                _ => self.random.below(habit.payload_bytes) as usize,
            };
            let filler = "x".repeat(bytes);
            let is_poison = self.plan.poison == Some(number) && kind == Kind::Reading;
            let payload = match number % 10 {
                _ if is_poison => format!(r#"{{"n":{number},"v":"arsenic"}}"#),
                // Not JSON: it travels as base64.
                7 => format!("n {number} {filler}"),
                _ => format!(r#"{{"n":{number},"v":"{filler}"}}"#),
            };
            let lane = if number.is_multiple_of(7) { "alarms" } else { "telemetry" };
            let topic = format!("devices/d{device}/{lane}");
            self.queue(device, Message { number, topic, payload: payload.into() });
        }
        if !self.is_healing {
            let wait = habit.every / 2 + self.random.below(habit.every);
            self.after(wait, Event::Publish { device });
        }
        self.pour_all();
    }

    fn queue(&mut self, device: usize, message: Message) {
        let at = if self.plan.has_listener { device } else { 0 };
        self.clients[at].backlog.push_back(message);
    }

    pub(crate) fn pour_all(&mut self) {
        (0..self.clients.len()).for_each(|at| self.pour(at));
    }

    /// A client sends what its window and the gateway's memory have room for.
    fn pour(&mut self, at: usize) {
        let window = self.plan.client_window;
        let mut heard = false;
        while let Some(connection) = self.clients[at].connection {
            let Some(process) = &self.board.process else { return };
            let stops = process.stopping.is_some();
            if stops || !process.gateway.has_room() {
                if !stops {
                    self.is_blocked = true;
                    self.coverage.note(Seen::FullMemory);
                }
                break;
            }
            let Some(publish) = self.clients[at].next_publish(connection, window) else { break };
            heard = true;
            let (number, packet, publish) = publish;
            self.coverage.note(Seen::Published);
            if packet.dup {
                self.coverage.note(Seen::Redelivered);
            }
            self.oracle.heard(number);
            self.with_gateway(|gateway, now| gateway.handle_publish(now, publish));
            self.settle_board();
        }
        if heard && self.clients[at].order_is_full(window) {
            self.coverage.note(Seen::Exhausted);
            self.with_gateway(|gateway, now| gateway.handle_exhausted(now));
        }
    }

    /// The core gives a receipt back: the PUBACKs that are due leave, in their order.
    pub(crate) fn safe(&mut self, receipt: Receipt) {
        let found = self.clients.iter().position(|c| c.connection == Some(receipt.connection));
        let Some(at) = found.filter(|at| !self.clients[*at].is_parting) else { return };
        self.clients[at].order.mark_safe(receipt.number);
        while let Some(Ack::PubAck(packet)) = self.clients[at].order.pop_due() {
            if self.random.one_in(self.plan.lost_pubacks) {
                // It is on its way when the connection ends.
                self.clients[at].is_parting = true;
                self.after(1, Event::Disconnect { client: at });
                return;
            }
            let first = self.clients[at].in_flight.pop_front();
            let first = first.expect("a PUBACK is for something in flight");
            assert_eq!(
                first.packet, packet,
                "PUBACKs leave out of order (MQTT-4.6.0-2): {} is the oldest",
                first.message.number
            );
            self.oracle.acknowledged(first.message.number, &mut self.coverage);
        }
        self.wants_pour = true;
    }

    /// The core hands a command on.
    pub(crate) fn deliver(&mut self, token: u64, topic: &str, payload: &[u8]) {
        let payload: serde_json::Value =
            serde_json::from_slice(payload).expect("a command's payload is JSON");
        let id = payload["id"].as_str().expect("a command has an id").to_owned();
        let device = topic.split('/').nth(1).and_then(|name| name[1..].parse::<usize>().ok());
        let device = device.expect("a command's topic names its device");
        self.note_with(|| format!("command {id} goes to d{device}"));
        self.oracle.fates.handed_over(self.now, &id);
        let at = if self.plan.has_listener { device } else { 0 };
        let start = self.board.starts;
        let Some(connection) = self.clients[at].connection else {
            self.coverage.note(Seen::CommandUndelivered);
            return self.after(1, Event::Undelivered { start, token });
        };
        self.clients[at].deliveries.push(Delivery { token, id, device });
        let wait = 5 * MS + self.random.below(400 * MS);
        self.after(wait, Event::Taken { client: at, connection, token });
    }

    /// The device's transport takes the command, and the device runs it.
    pub(crate) fn taken(&mut self, at: usize, connection: u64, token: u64) {
        let client = &mut self.clients[at];
        let is_here = client.connection == Some(connection);
        let found = client.deliveries.iter().position(|one| one.token == token && is_here);
        let Some(place) = found else { return };
        let delivery = client.deliveries.remove(place);
        self.with_gateway(|gateway, now| gateway.handle_delivered(now, token));
        self.device_runs(delivery.device, &delivery.id);
    }

    fn device_runs(&mut self, device: usize, id: &str) {
        self.note_with(|| format!("d{device} runs {id}"));
        self.oracle.fates.ran(id, &mut self.coverage);
        let replies = match self.random.below(10) {
            0 => 0,
            1 => 2,
            _ => 1,
        };
        let is_late = self.random.one_in(10);
        for _ in 0..replies {
            let wait = 20 * MS + self.random.below(if is_late { 40 * SECOND } else { 2 * SECOND });
            self.after(wait, Event::Reply { device, id: id.to_owned() });
        }
    }

    /// The device says how it went.
    pub(crate) fn reply(&mut self, device: usize, id: &str) {
        let number = self.oracle.publish(device, Kind::Reply);
        let payload = match self.random.below(8) {
            0 => r#"{"ok":false,"error":{"code":"jammed","message":""}}"#,
            _ => r#"{"ok":true,"result":1}"#,
        };
        let topic = format!("devices/d{device}/replies/{id}");
        self.queue(device, Message { number, topic, payload: payload.into() });
        self.pour_all();
    }

    /// Whether every device has said all it had to say, and has its PUBACK.
    pub(crate) fn south_rests(&self) -> bool {
        self.clients.iter().all(Client::is_quiet)
    }
}

impl Client {
    fn order_is_full(&self, window: usize) -> bool {
        self.in_flight.iter().filter(|flying| flying.is_here).count() >= window
    }

    /// What goes next: what was sent before goes first, in its order.
    fn next_publish(&mut self, connection: u64, window: usize) -> Option<(u64, Packet, Publish)> {
        let at = match self.in_flight.iter().position(|flying| !flying.is_here) {
            Some(at) => at,
            None if self.in_flight.len() >= window => return None,
            None => {
                let message = self.backlog.pop_front()?;
                let packet = self.next_packet();
                let flying = InFlight { message, packet, was_sent: false, is_here: false };
                self.in_flight.push_back(flying);
                self.in_flight.len() - 1
            }
        };
        let flying = &mut self.in_flight[at];
        let packet = Packet { session: self.session, id: flying.packet, dup: flying.was_sent };
        (flying.is_here, flying.was_sent) = (true, true);
        let ack = Ack::of(QoS::AtLeastOnce, flying.packet).expect("QoS 1 has one");
        let receipt =
            Receipt { source: SourceId(0), connection, number: self.order.push(ack, false) };
        let publish = Publish {
            topic: flying.message.topic.clone(),
            payload: flying.message.payload.clone(),
            retained: false,
            source: SourceId(0),
            receipt: Some(receipt),
            packet: self.is_persistent.then_some(packet),
        };
        Some((flying.message.number, packet, publish))
    }
}
