//! Devices: publishers that know what was acknowledged, and one that obeys commands.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rumqttc::mqttbytes::v4::{Packet, PubAck};
use serde_json::{Value, json};

use super::mqtt::Mqtt;

/// What a device may have unacknowledged, as most client libraries do.
const INFLIGHT: usize = 20;
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// A device that publishes `{"n":1}`, `{"n":2}`, … at a steady rate, keeps what is not
/// acknowledged, and after a lost connection sends that again, in order, before anything new
/// (MQTT-4.4.0-1).
pub struct Publisher {
    pub device: String,
    account: Arc<Mutex<Account>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What became of a device's publishes.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// How many numbers were published at least once.
    pub published: u64,
    /// Those whose PUBACK came.
    pub acked: BTreeSet<u64>,
    /// Those sent again with DUP set.
    pub resent: BTreeSet<u64>,
    /// Connections made.
    pub connections: u32,
}

impl Publisher {
    /// Publishes `count` messages to `devices/{device}/telemetry`, `per_second` of them in a
    /// second.
    pub fn start(port: u16, device: &str, per_second: u32, count: u64) -> Self {
        Self::start_padded(port, device, per_second, count, 0)
    }

    /// As [`Publisher::start`], with payloads that are longer by `padding_bytes`.
    pub fn start_padded(
        port: u16,
        device: &str,
        per_second: u32,
        count: u64,
        padding_bytes: usize,
    ) -> Self {
        let account = Arc::new(Mutex::new(Account::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let mut work = Work {
            port,
            device: device.into(),
            period: Duration::from_secs(1) / per_second,
            count,
            padding: "x".repeat(padding_bytes),
            waiting: BTreeMap::new(),
            account: account.clone(),
            stop: stop.clone(),
        };
        let thread = std::thread::spawn(move || work.run());
        Self { device: device.into(), account, stop, thread: Some(thread) }
    }

    pub fn account(&self) -> Account {
        self.locked().clone()
    }

    pub fn acked(&self) -> u64 {
        self.locked().acked.len() as u64
    }

    /// All that it had to publish is acknowledged.
    pub fn done(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Stops publishing; what is unacknowledged stays so.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the thread of {} panicked", self.device);
        }
    }

    fn locked(&self) -> MutexGuard<'_, Account> {
        self.account.lock().expect("no holder panics")
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Work {
    port: u16,
    device: String,
    period: Duration,
    count: u64,
    padding: String,
    /// Packet identifiers that wait for their PUBACK, in the order of publishing: they grow and
    /// don't come round.
    waiting: BTreeMap<u16, u64>,
    account: Arc<Mutex<Account>>,
    stop: Arc<AtomicBool>,
}

impl Work {
    fn run(&mut self) {
        assert!(self.count < u64::from(u16::MAX), "a packet identifier for each publish");
        let mut due = Instant::now();
        while !self.done() {
            // A lost connection is what these scenarios are about.
            if self.connection(&mut due).is_err() {
                std::thread::sleep(RECONNECT_PAUSE);
            }
        }
    }

    fn done(&self) -> bool {
        let acked = self.account().acked.len() as u64;
        acked == self.count || self.stop.load(Ordering::Relaxed)
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().expect("no holder panics")
    }

    fn connection(&mut self, due: &mut Instant) -> io::Result<()> {
        let mut mqtt = Mqtt::connect(self.port, &self.device)?;
        self.account().connections += 1;
        for (pkid, n) in self.waiting.clone() {
            self.account().resent.insert(n);
            self.publish(&mut mqtt, pkid, true, n)?;
        }
        while !self.done() {
            let published = self.account().published;
            let open = published < self.count && self.waiting.len() < INFLIGHT;
            let now = Instant::now();
            if open && now >= *due {
                // After a stall the rate goes on from now: a burst would be another scenario.
                *due = (*due + self.period).max(now - self.period);
                let n = published + 1;
                let pkid = n as u16;
                self.waiting.insert(pkid, n);
                self.account().published = n;
                self.publish(&mut mqtt, pkid, false, n)?;
            }
            let wait = if open { due.saturating_duration_since(now) } else { self.period };
            if let Some(Packet::PubAck(ack)) = mqtt.receive(wait)?
                && let Some(n) = self.waiting.remove(&ack.pkid)
            {
                self.account().acked.insert(n);
            }
        }
        mqtt.send(&Packet::Disconnect)
    }

    fn publish(&self, mqtt: &mut Mqtt, pkid: u16, dup: bool, n: u64) -> io::Result<()> {
        let topic = format!("devices/{}/telemetry", self.device);
        let mut reading = reading(n);
        if !self.padding.is_empty() {
            reading["padding"] = self.padding.as_str().into();
        }
        mqtt.publish(&topic, pkid, dup, reading.to_string().as_bytes())
    }
}

/// The payload of reading `n`.
fn reading(n: u64) -> Value {
    json!({ "n": n, "temperature": 20.0 + (n % 50) as f64 / 10.0, "state": "running" })
}

/// A device that obeys: it subscribes to its commands and answers as it is told to.
pub struct Actuator {
    heard: Arc<Mutex<Vec<Value>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Actuator {
    /// `answer` makes the reply of a command, or none: a device that hangs.
    pub fn start(
        port: u16,
        device: &str,
        answer: impl Fn(&Value) -> Option<Value> + Send + 'static,
    ) -> Self {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (device, shared) = (device.to_owned(), (heard.clone(), stop.clone()));
        let thread = std::thread::spawn(move || {
            while !shared.1.load(Ordering::Relaxed) {
                if obey(port, &device, &answer, &shared.0, &shared.1).is_err() {
                    std::thread::sleep(RECONNECT_PAUSE);
                }
            }
        });
        Self { heard, stop, thread: Some(thread) }
    }

    /// The commands that came, in order, repeated ones too.
    pub fn heard(&self) -> Vec<Value> {
        self.heard.lock().expect("no holder panics").clone()
    }
}

impl Drop for Actuator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the thread of an actuator panicked");
        }
    }
}

fn obey(
    port: u16,
    device: &str,
    answer: &dyn Fn(&Value) -> Option<Value>,
    heard: &Mutex<Vec<Value>>,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut mqtt = Mqtt::connect(port, device)?;
    mqtt.subscribe(&format!("devices/{device}/commands/#"))?;
    let mut pkid = 1;
    while !stop.load(Ordering::Relaxed) {
        let Some(Packet::Publish(publish)) = mqtt.receive(Duration::from_millis(50))? else {
            continue;
        };
        let command: Value = serde_json::from_slice(&publish.payload).map_err(io::Error::other)?;
        heard.lock().expect("no holder panics").push(command.clone());
        mqtt.send(&Packet::PubAck(PubAck::new(publish.pkid)))?;
        if let Some(reply) = answer(&command) {
            let id = command["id"].as_str().unwrap_or("?");
            pkid += 1;
            let topic = format!("devices/{device}/replies/{id}");
            mqtt.publish(&topic, pkid, false, reply.to_string().as_bytes())?;
        }
    }
    Ok(())
}
