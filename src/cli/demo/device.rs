//! A simulated device: an MQTT client that numbers its readings, and may obey commands.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use anyhow::{Context as _, bail};
use rumqttc::{
    AsyncClient, Event, EventLoop, MqttOptions, Outgoing, Packet, Publish, QoS, SubscribeFilter,
};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

/// How often a device publishes.
const PUBLISH_EVERY: Duration = Duration::from_millis(50);

/// Publishes that may wait for their acknowledgement: some seconds' worth. At the bound the device
/// rests, as a real one whose buffer is full would measure no further.
const MAX_WAITING: usize = 100;

/// Commands that may be under way; more are left unanswered, and time out at the gateway.
const MAX_ANSWERS: usize = 8;

/// How long the device takes for a command.
const TAKES: Duration = Duration::from_millis(700);

/// The size of rumqttc's queue of requests: everything that may wait, and a subscription.
const REQUESTS: usize = MAX_WAITING + MAX_ANSWERS + 1;

/// How long silence on the connection may last.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// What a device did so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    /// Readings published, numbered from 1.
    pub(super) published: u64,
    /// Readings acknowledged.
    pub(super) acknowledged: u64,
    /// Whether it is connected, and subscribed to its commands if it obeys any.
    pub(super) is_ready: bool,
}

/// A running device; it ends when dropped.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) name: &'static str,
    counts: watch::Receiver<Counts>,
    measures: watch::Sender<bool>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Device {
    /// Connects to the gateway's listener on this machine. It publishes from [`Self::begin`] on.
    pub(super) fn start(name: &'static str, port: u16, obeys: bool) -> Self {
        let (counter, counts) = watch::channel(Counts::default());
        let (measures, measuring) = watch::channel(false);
        let mut options = MqttOptions::new(name, "127.0.0.1", port);
        options.set_keep_alive(KEEP_ALIVE);
        let (client, eventloop) = AsyncClient::new(options, REQUESTS);
        let life = Life {
            name,
            client,
            obeys,
            counter,
            asked: VecDeque::new(),
            waiting: HashMap::new(),
            answers: VecDeque::new(),
        };
        let task = tokio::spawn(life.run(eventloop, measuring));
        Self { name, counts, measures, task }
    }

    /// Publishes readings.
    pub(super) fn begin(&self) {
        self.measures.send_replace(true);
    }

    /// Publishes no more; what was published is still waited for, and commands are obeyed.
    pub(super) fn rest(&self) {
        self.measures.send_replace(false);
    }

    pub(super) fn counts(&self) -> Counts {
        *self.counts.borrow()
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// It has failed.
    pub(super) async fn ready(&mut self) -> anyhow::Result<()> {
        if self.counts.wait_for(|counts| counts.is_ready).await.is_err() {
            (&mut self.task).await??;
        }
        Ok(())
    }

    /// Says so if it has failed.
    pub(super) async fn check(&mut self) -> anyhow::Result<()> {
        if self.task.is_finished() {
            (&mut self.task).await??;
            bail!("{}: it ended before the demo", self.name);
        }
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What waits for a PUBACK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Reading,
    Answer,
}

struct Life {
    name: &'static str,
    client: AsyncClient,
    obeys: bool,
    counter: watch::Sender<Counts>,
    /// Given to rumqttc, which has not given it a packet identifier yet.
    asked: VecDeque<Asked>,
    /// On the wire, by packet identifier.
    waiting: HashMap<u16, Asked>,
    /// Answers to commands, and when they are ready.
    answers: VecDeque<(Instant, String, Value)>,
}

impl Life {
    async fn run(
        mut self,
        eventloop: EventLoop,
        measuring: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let (sender, mut events) = mpsc::channel(REQUESTS);
        tokio::spawn(poll(eventloop, sender));
        let mut tick = interval(PUBLISH_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            let due = self.answers.front().map(|(at, ..)| *at);
            tokio::select! {
                event = events.recv() => {
                    let event = event.context("its connection ended")?;
                    self.handle(event).with_context(|| self.name)?;
                }
                () = until(due) => self.answer()?,
                _ = tick.tick() => {
                    let has_room = self.asked.len() + self.waiting.len() < MAX_WAITING;
                    if has_room && *measuring.borrow() && self.counter.borrow().is_ready {
                        self.measure()?;
                    }
                }
            }
        }
    }

    fn handle(&mut self, event: Result<Event, String>) -> anyhow::Result<()> {
        match event {
            Ok(Event::Incoming(Packet::ConnAck(_))) if self.obeys => {
                let filter = format!("devices/{}/commands/+", self.name);
                let filter = SubscribeFilter::new(filter, QoS::AtLeastOnce);
                self.client.try_subscribe_many([filter]).context("subscribing")?;
            }
            Ok(Event::Incoming(Packet::ConnAck(_) | Packet::SubAck(_))) => {
                self.counter.send_modify(|counts| counts.is_ready = true);
            }
            Ok(Event::Outgoing(Outgoing::Publish(packet))) => {
                // rumqttc takes requests in the order in which they were made.
                self.waiting.extend(self.asked.pop_front().map(|asked| (packet, asked)));
            }
            Ok(Event::Incoming(Packet::PubAck(ack))) => {
                if self.waiting.remove(&ack.pkid) == Some(Asked::Reading) {
                    self.counter.send_modify(|counts| counts.acknowledged += 1);
                }
            }
            Ok(Event::Incoming(Packet::Publish(command))) => self.obey(&command),
            Ok(_) => {}
            Err(fault) => bail!("the connection to the gateway failed: {fault}"),
        }
        Ok(())
    }

    fn obey(&mut self, command: &Publish) {
        let told: Value = serde_json::from_slice(&command.payload).unwrap_or_default();
        let Some(id) = told["id"].as_str() else { return };
        if self.answers.len() >= MAX_ANSWERS {
            return;
        }
        let topic = format!("devices/{}/replies/{id}", self.name);
        let answer = json!({"id": id, "ok": true, "result": {"done": told["params"]}});
        self.answers.push_back((Instant::now() + TAKES, topic, answer));
    }

    fn answer(&mut self) -> anyhow::Result<()> {
        let Some((_, topic, answer)) = self.answers.pop_front() else { return Ok(()) };
        self.publish(topic, &answer, Asked::Answer)
    }

    fn measure(&mut self) -> anyhow::Result<()> {
        let number = self.counter.borrow().published + 1;
        let temperature = 20.0 + f64::from((number % 100) as u32) / 10.0;
        let topic = format!("devices/{}/telemetry", self.name);
        self.publish(topic, &json!({"n": number, "temperature": temperature}), Asked::Reading)?;
        self.counter.send_modify(|counts| counts.published = number);
        Ok(())
    }

    fn publish(&mut self, topic: String, payload: &Value, asked: Asked) -> anyhow::Result<()> {
        let payload = payload.to_string();
        self.client
            .try_publish(topic, QoS::AtLeastOnce, false, payload)
            .with_context(|| format!("{}: publishing", self.name))?;
        self.asked.push_back(asked);
        Ok(())
    }
}

/// Polls in a task of its own: rumqttc's poll must not be cancelled. A full `events` stops the
/// reading.
async fn poll(mut eventloop: EventLoop, events: mpsc::Sender<Result<Event, String>>) {
    eventloop.network_options.set_tcp_nodelay(true);
    loop {
        let event = eventloop.poll().await.map_err(|error| error.to_string());
        let is_last = event.is_err();
        // Without a listener nobody wants to know.
        if events.send(event).await.is_err() || is_last {
            return;
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
