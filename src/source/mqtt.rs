//! A broker to connect to, with rumqttc: a persistent session, manual acknowledgements, reconnects
//! that never end.
//!
//! Two tasks. `poll` drives rumqttc's event loop and does nothing else: the loop is not known to be
//! safe to cancel, and waiting for the client inside it would wait for itself. This file's task
//! keeps the books.
//!
//! Every connection gets a fresh client and event loop. rumqttc carries requests over from one
//! connection to the next (acknowledgements of packet identifiers that now mean another publish,
//! commands that were cut off) and keeps a stale `collision`; with a loop per connection nothing
//! can be carried over. The session itself is the broker's to keep, and what was not acknowledged
//! comes again from there. Receipts of an earlier connection acknowledge nothing.
//!
//! It must never acknowledge a publish of the broker's before its receipt came back, and never one
//! of another connection: packet identifiers are used again. It must never send a command a second
//! time, wait inside the event loop's task, or make the runtime's thread wait for the disk. It must
//! never give up, nor end because of what a broker sends; and no password may get into a log or a
//! state that it tells.
//!
//! Known limits: where `max_inflight` is higher than the broker's own window, [`Notice::Exhausted`]
//! never comes and the spool's `write_after` paces the source; an IPv6 literal can't be the host of
//! an `mqtts` URL (rumqttc takes it for a name); while the gateway takes no publishes, QoS 0 ones
//! fill the backlog and then the event loop rests, so that after one and a half keep alives the
//! broker may close.

mod link;
mod poll;
mod subscriptions;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, VecDeque},
    hash::{BuildHasher, RandomState},
    path::PathBuf,
    time::{Duration, Instant},
};

use rumqttc::{
    AsyncClient, Event, MqttOptions, Outgoing, Packet, QoS, SubscribeFilter, SubscribeReasonCode,
    TlsConfiguration, Transport,
};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{sleep_until, timeout},
};

use self::{link::Link, poll::Heard, subscriptions::Subscriptions};
use super::{Delivery, Notice, Request, Sink, receipts::Ack};
use crate::{
    config,
    identity::FollowedTls,
    record::{self, Publish, Receipt},
    topic,
};

/// The largest packet MQTT knows, in bytes. With a lower limit a larger retained message would end
/// the connection, come again with the next one, and so for ever.
const MAX_PACKET_BYTES: usize = 268_435_455;

/// The largest payload that is handed on; a larger one is refused, accounted for and acknowledged.
const MAX_PAYLOAD_BYTES: usize = 1024 * 1024;

/// Commands that may wait for the broker's PUBACK; more are `Undelivered`.
const MAX_COMMANDS: usize = 64;

/// rumqttc's own window of outgoing publishes. Acknowledgements queue behind a full one, so it must
/// never be full; it also is the range of packet identifiers, and one that comes round again must
/// not be in use.
const OUTGOING_WINDOW: u16 = 256;

/// Requests that may wait for the event loop: one acknowledgement per packet identifier, commands,
/// subscriptions.
const CLIENT_QUEUE: usize = 65_535 + MAX_COMMANDS + 64;

/// Publishes that may wait for the gateway beside those the broker keeps in flight; at the bound
/// nothing more is read.
const BACKLOG: usize = 256;

/// The first wait after a lost connection, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A connection that lasted so long makes the next wait the first one again.
const STABLE: Duration = Duration::from_secs(10);

/// How long the last acknowledgements and DISCONNECT may take.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// A connection to a broker, at work.
#[derive(Debug)]
pub struct Running {
    /// What it is asked to do. Dropping it stops the source.
    pub requests: mpsc::UnboundedSender<Request>,
    /// Ends when the source has stopped.
    pub task: JoinHandle<()>,
}

/// Starts connecting, in tasks of the current runtime, and goes on for ever.
///
/// `interests` are the topic filters to subscribe to; `state_file` remembers those that the broker
/// confirmed; `tls` must be given when `config.tls` is set, and is looked at for each connection.
pub fn start(
    config: &config::Mqtt,
    gateway_id: &str,
    interests: Vec<String>,
    tls: Option<FollowedTls>,
    state_file: PathBuf,
    sink: Sink,
) -> Running {
    let named = config.client_id.clone().filter(|id| !id.is_empty());
    let client_id = named.unwrap_or_else(|| format!("fieldgate-{gateway_id}"));
    let broker = format!("{}:{}", config.host, config.port);
    let owner = format!("{client_id} at {broker}");
    let source = Source {
        session: record::session_key(&broker, &client_id),
        config: config.clone(),
        client_id,
        broker,
        tls,
        subscriptions: Subscriptions::load(state_file, owner, interests),
        sink,
        connection: 0,
        backlog: VecDeque::new(),
        told: None,
        released: BTreeSet::new(),
    };
    let (requests, incoming) = mpsc::unbounded_channel();
    Running { requests, task: tokio::spawn(source.run(incoming)) }
}

struct Source {
    config: config::Mqtt,
    client_id: String,
    broker: String,
    /// The session at the broker, which outlives the connections.
    session: u64,
    tls: Option<FollowedTls>,
    subscriptions: Subscriptions,
    sink: Sink,
    /// The number of the current connection.
    connection: u64,
    backlog: VecDeque<Publish>,
    /// The state last told.
    told: Option<(bool, String)>,
    /// QoS 2 packet identifiers whose PUBREL the next connection must know, see `poll`.
    released: BTreeSet<u16>,
}

/// Why a connection ended.
enum Ended {
    Lost(String),
    Stopped,
}

impl Source {
    async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>) {
        let mut failures = 0;
        loop {
            let began = Instant::now();
            let ended = match self.options() {
                Ok(options) => self.connect(options, &mut requests).await,
                Err(fault) => Ended::Lost(fault),
            };
            let Ended::Lost(fault) = ended else { break };
            self.tell_state(false, format!("{}: {fault}", self.broker)).await;
            failures = if began.elapsed() >= STABLE { 0 } else { failures + 1 };
            let until = Instant::now() + backoff(failures, RandomState::new().hash_one(began));
            if self.rest(until, &mut requests).await {
                break;
            }
        }
        self.tell_state(false, "stopped".into()).await;
    }

    fn options(&mut self) -> Result<MqttOptions, String> {
        let config = &self.config;
        let host = if config.host.contains(':') {
            format!("[{}]", config.host)
        } else {
            config.host.clone()
        };
        let mut options = MqttOptions::new(&self.client_id, host, config.port);
        let second = Duration::from_secs(1);
        options
            .set_clean_session(false)
            .set_manual_acks(true)
            .set_keep_alive(config.keep_alive.clamp(second, second * 65_535))
            .set_inflight(OUTGOING_WINDOW)
            .set_max_packet_size(MAX_PACKET_BYTES, MAX_PACKET_BYTES);
        if config.tls {
            let tls = self.tls.as_mut().map(FollowedTls::current);
            let tls = tls.ok_or("no TLS configuration was loaded; set mqtt.ca_file")?;
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)));
        }
        if let Some((user, file)) = &config.credentials {
            // Read for each connection: a password that was changed on disk needs no restart.
            let password = crate::identity::password(file)
                .map_err(|error| format!("mqtt.password_file: {error}"))?;
            options.set_credentials(user, password.as_str());
        }
        Ok(options)
    }

    /// One connection, from its start to its end.
    async fn connect(
        &mut self,
        options: MqttOptions,
        requests: &mut mpsc::UnboundedReceiver<Request>,
    ) -> Ended {
        self.connection += 1;
        let (client, eventloop) = AsyncClient::new(options, CLIENT_QUEUE);
        let (heard_in, mut heard) = mpsc::channel(16);
        // A set of one, so that its loop ends with this task, however that ends.
        let mut poller = JoinSet::new();
        poller.spawn(poll::poll(eventloop, self.released.clone(), heard_in));
        let mut link = Link::new(client);
        let ended = self.serve(&mut link, &mut heard, requests).await;
        if let Ended::Stopped = ended {
            self.disconnect(&mut link, &mut heard).await;
        }
        poller.shutdown().await;
        for (_, token) in link.sent.drain() {
            self.notify(Notice::Interrupted { token }).await;
        }
        for token in link.unsent.drain(..) {
            self.notify(Notice::Interrupted { token }).await;
        }
        // These come again from the broker.
        self.backlog.retain(|publish| publish.receipt.is_none());
        ended
    }

    async fn serve(
        &mut self,
        link: &mut Link,
        heard: &mut mpsc::Receiver<Heard>,
        requests: &mut mpsc::UnboundedReceiver<Request>,
    ) -> Ended {
        let publishes = self.sink.publishes.clone();
        let room = BACKLOG + usize::from(self.config.max_inflight);
        loop {
            tokio::select! {
                biased;
                request = requests.recv() => match request {
                    Some(Request::Safe(receipt)) => {
                        if receipt.connection == self.connection {
                            link.acks.mark_safe(receipt.number);
                        }
                        link.pay_acks();
                    }
                    Some(Request::Deliver(delivery)) => self.deliver(link, delivery).await,
                    Some(Request::Stop) | None => return Ended::Stopped,
                },
                permit = publishes.reserve(), if !self.backlog.is_empty() => {
                    // Without a gateway a stop is under way, and the backlog goes nowhere.
                    let publish = self.backlog.pop_front();
                    if let (Ok(permit), Some(publish)) = (permit, publish) {
                        permit.send(publish);
                    }
                    self.tell_exhausted(link).await;
                }
                event = heard.recv(), if self.backlog.len() < room => match event {
                    Some(Heard::Event(event)) => {
                        if let Err(fault) = self.handle_event(link, event).await {
                            return Ended::Lost(fault);
                        }
                    }
                    Some(Heard::Lost { fault, released }) => {
                        self.released.extend(released);
                        // No event of theirs was seen, so they never left.
                        for token in link.unsent.drain(..) {
                            self.notify(Notice::Undelivered { token }).await;
                        }
                        return Ended::Lost(fault);
                    }
                    None => return Ended::Lost("the event loop ended".into()),
                },
            }
        }
    }

    async fn handle_event(&mut self, link: &mut Link, event: Event) -> Result<(), String> {
        match event {
            Event::Incoming(Packet::ConnAck(connack)) => {
                link.connected = true;
                self.subscribe(link, connack.session_present).await;
                let session =
                    if connack.session_present { "session resumed" } else { "new session" };
                let pending = if link.confirmations > 0 { ", subscribing" } else { "" };
                let detail = format!("connected to {}, {session}{pending}", self.broker);
                self.tell_state(link.confirmations == 0, detail).await;
            }
            Event::Incoming(Packet::Publish(publish)) => self.handle_publish(link, publish).await,
            Event::Incoming(Packet::PubAck(ack)) => {
                if let Some(token) = link.sent.remove(&ack.pkid) {
                    self.notify(Notice::Delivered { token }).await;
                }
            }
            Event::Incoming(Packet::SubAck(suback)) => {
                let refused = suback.return_codes.iter().zip(&link.asked);
                let refused: Vec<&str> = refused
                    .filter(|(code, _)| **code == SubscribeReasonCode::Failure)
                    .map(|(_, filter)| filter.as_str())
                    .collect();
                if refused.is_empty() {
                    self.confirm(link).await;
                } else {
                    let detail = format!(
                        "{} refuses the subscription to {}; allow it in the broker's access list",
                        self.broker,
                        refused.join(", ")
                    );
                    tracing::error!("{detail}");
                    self.tell_state(false, detail).await;
                }
            }
            Event::Incoming(Packet::UnsubAck(_)) => self.confirm(link).await,
            Event::Outgoing(Outgoing::Publish(packet_id)) => {
                if let Some(token) = link.unsent.pop_front() {
                    link.sent.insert(packet_id, token);
                }
            }
            Event::Outgoing(Outgoing::AwaitAck(_)) => {
                // The client now waits for that PUBACK and sends nothing else, acknowledgements
                // included.
                return Err("the broker left a command without PUBACK for too long".into());
            }
            _ => {}
        }
        Ok(())
    }

    async fn handle_publish(&mut self, link: &mut Link, publish: rumqttc::Publish) {
        let receipt = Ack::of(publish.qos, publish.pkid).map(|ack| Receipt {
            source: self.sink.source,
            connection: self.connection,
            number: link.acks.push(ack, false),
        });
        let packet = (publish.qos != QoS::AtMostOnce).then_some(record::Packet {
            session: self.session,
            id: publish.pkid,
            dup: publish.dup,
        });
        let fault = match publish {
            _ if publish.payload.len() > MAX_PAYLOAD_BYTES => Some("too_large"),
            _ if !topic::is_valid_name(&publish.topic) => Some("bad_topic"),
            _ => None,
        };
        match fault {
            Some(reason) => {
                self.notify(Notice::Refused { device: None, reason, receipt }).await;
                self.tell_exhausted(link).await;
            }
            None => self.backlog.push_back(Publish {
                topic: publish.topic,
                payload: publish.payload,
                retained: publish.retain,
                source: self.sink.source,
                receipt,
                packet,
            }),
        }
    }

    /// Says that the whole window waits, once all of it is with the gateway; sooner, and it would
    /// write all but the last of it.
    async fn tell_exhausted(&self, link: &Link) {
        let window = usize::from(self.config.max_inflight).max(1);
        if self.backlog.is_empty() && link.acks.len() >= window {
            self.notify(Notice::Exhausted(self.sink.source)).await;
        }
    }

    /// Asks for what the session at the broker lacks, and for nothing more: each SUBSCRIBE brings
    /// the retained messages again.
    async fn subscribe(&mut self, link: &mut Link, session_present: bool) {
        if !session_present {
            self.subscriptions.handle_new_session().await;
        }
        let (missing, surplus) = self.subscriptions.changes();
        link.confirmations = surplus.len() + usize::from(!missing.is_empty());
        if !missing.is_empty() {
            let wanted = missing.iter().cloned();
            let filters = wanted.map(|path| SubscribeFilter { path, qos: QoS::AtLeastOnce });
            link.submit(|client| client.try_subscribe_many(filters));
        }
        link.asked = missing;
        for filter in surplus {
            link.submit(|client| client.try_unsubscribe(filter));
        }
    }

    async fn confirm(&mut self, link: &mut Link) {
        link.confirmations = link.confirmations.saturating_sub(1);
        if link.confirmations > 0 {
            return;
        }
        self.subscriptions.handle_confirmed().await;
        self.tell_state(true, format!("connected to {}, subscribed", self.broker)).await;
    }

    async fn deliver(&mut self, link: &mut Link, delivery: Delivery) {
        let Delivery { token, topic, payload } = delivery;
        let has_room = link.unsent.len() + link.sent.len() < MAX_COMMANDS;
        let taken = link.connected
            && has_room
            && link.client.try_publish(topic, QoS::AtLeastOnce, false, payload).is_ok();
        if taken {
            link.unsent.push_back(token);
        } else {
            self.notify(Notice::Undelivered { token }).await;
        }
    }

    /// Sends what is due and DISCONNECT, and waits until both have left.
    async fn disconnect(&mut self, link: &mut Link, heard: &mut mpsc::Receiver<Heard>) {
        if !link.connected || link.client.try_disconnect().is_err() {
            return;
        }
        let gone = async {
            while let Some(Heard::Event(event)) = heard.recv().await {
                match event {
                    Event::Outgoing(Outgoing::Disconnect) => return,
                    Event::Incoming(Packet::Publish(_)) => {}
                    // A connection that fails now has nothing more to lose.
                    other => _ = self.handle_event(link, other).await,
                }
            }
        };
        let _ = timeout(STOP_DEADLINE, gone).await;
    }

    /// Waits between two connections; whether it was asked to stop.
    async fn rest(
        &mut self,
        until: Instant,
        requests: &mut mpsc::UnboundedReceiver<Request>,
    ) -> bool {
        loop {
            tokio::select! {
                () = sleep_until(until.into()) => return false,
                request = requests.recv() => match request {
                    Some(Request::Safe(_)) => {}
                    Some(Request::Deliver(Delivery { token, .. })) => {
                        self.notify(Notice::Undelivered { token }).await;
                    }
                    Some(Request::Stop) | None => return true,
                },
            }
        }
    }

    /// Tells a state, unless it was the last one told: whoever hears it logs it, and a broker that
    /// is down must not fill the log.
    async fn tell_state(&mut self, up: bool, detail: String) {
        let state = (up, detail);
        if self.told.as_ref() == Some(&state) {
            return;
        }
        let detail = state.1.clone();
        self.told = Some(state);
        self.notify(Notice::State { source: self.sink.source, up, detail }).await;
    }

    async fn notify(&self, notice: Notice) {
        // Without a gateway nobody wants to know.
        let _ = self.sink.notices.send(notice).await;
    }
}

/// Doubles from the first wait to the longest; the lower half is certain, the upper half is chance.
fn backoff(failures: u32, random: u64) -> Duration {
    let ceiling = BACKOFF.0.saturating_mul(1 << failures.min(10)).min(BACKOFF.1);
    let half = ceiling / 2;
    half + half.mul_f64((random % 1000) as f64 / 1000.0)
}
