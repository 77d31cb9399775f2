//! Devices: publishers that know what was acknowledged, and one that obeys commands.

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rumqttc::mqttbytes::v4::{Packet, PubAck};
use serde_json::{Value, json};

use super::mqtt::Mqtt;

/// What a device may have unacknowledged, as most client libraries do.
const INFLIGHT: usize = 20;
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// How a device publishes.
#[derive(Debug, Clone)]
pub struct Habits {
    /// Publishes in a second, and in all.
    pub per_second: u32,
    pub count: u64,
    /// The packet identifier of the first publish. They rise by one, and 1 follows 65,535.
    pub first_packet_id: u16,
    /// One identifier and one payload for all publishes, one at a time: nothing tells a new one
    /// from the last one sent again.
    pub is_forgetful: bool,
    /// Bytes that make each payload longer.
    pub padding_bytes: usize,
}

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
    /// How many numbers are to be published, and how many were, at least once.
    pub planned: u64,
    pub published: u64,
    /// Those whose PUBACK came.
    pub acked: BTreeSet<u64>,
    /// Those sent again with DUP set.
    pub resent: BTreeSet<u64>,
    /// When each acknowledged publish was first sent and when its PUBACK came, in Unix
    /// milliseconds.
    pub spans_ms: Vec<(u64, u64)>,
    /// Connections made.
    pub connections: u32,
}

impl Publisher {
    /// Publishes `count` messages to `devices/{device}/telemetry`, `per_second` of them in a
    /// second.
    pub fn start(port: u16, device: &str, per_second: u32, count: u64) -> Self {
        Self::with(port, device, Habits { per_second, count, ..Habits::default() })
    }

    /// Publishes to `devices/{device}/telemetry` as `habits` say.
    pub fn with(port: u16, device: &str, habits: Habits) -> Self {
        let account = Account { planned: habits.count, ..Account::default() };
        let account = Arc::new(Mutex::new(account));
        let stop = Arc::new(AtomicBool::new(false));
        let mut work = Work {
            port,
            device: device.into(),
            habits,
            waiting: VecDeque::new(),
            account: account.clone(),
            stop: stop.clone(),
        };
        let thread = std::thread::spawn(move || work.run());
        Self { device: device.into(), account, stop, thread: Some(thread) }
    }

    /// Nothing new is published; what is unacknowledged is still waited for.
    pub fn finish(&self) {
        let mut account = self.locked();
        account.planned = account.published;
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
    habits: Habits,
    /// What has no PUBACK yet, in the order of publishing.
    waiting: VecDeque<Sent>,
    account: Arc<Mutex<Account>>,
    stop: Arc<AtomicBool>,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    n: u64,
    packet_id: u16,
    at_ms: u64,
}

impl Work {
    fn run(&mut self) {
        let mut due = Instant::now();
        while !self.done() {
            // A lost connection is what these scenarios are about.
            if self.connection(&mut due).is_err() {
                std::thread::sleep(RECONNECT_PAUSE);
            }
        }
    }

    fn done(&self) -> bool {
        let account = self.account();
        account.acked.len() as u64 == account.planned || self.stop.load(Ordering::Relaxed)
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().expect("no holder panics")
    }

    fn connection(&mut self, due: &mut Instant) -> io::Result<()> {
        let period = Duration::from_secs(1) / self.habits.per_second;
        let mut mqtt = Mqtt::connect(self.port, &self.device)?;
        self.account().connections += 1;
        for sent in self.waiting.clone() {
            self.account().resent.insert(sent.n);
            self.publish(&mut mqtt, sent, true)?;
        }
        while !self.done() {
            let has_room = self.waiting.len() < self.habits.window();
            let now = Instant::now();
            if has_room && now >= *due {
                // After a stall the rate goes on from now: a burst would be another scenario.
                *due = (*due + period).max(now - period);
                if let Some(sent) = self.next() {
                    self.waiting.push_back(sent);
                    self.publish(&mut mqtt, sent, false)?;
                }
            }
            let wait = if has_room { due.saturating_duration_since(now) } else { period };
            if let Some(Packet::PubAck(ack)) = mqtt.receive(wait)? {
                self.handle_ack(ack.pkid);
            }
        }
        mqtt.send(&Packet::Disconnect)
    }

    fn next(&self) -> Option<Sent> {
        let mut account = self.account();
        if account.published == account.planned {
            return None;
        }
        account.published += 1;
        let n = account.published;
        Some(Sent { n, packet_id: self.habits.packet_id(n), at_ms: unix_ms() })
    }

    fn handle_ack(&mut self, packet_id: u16) {
        let at = self.waiting.iter().position(|sent| sent.packet_id == packet_id);
        let Some(sent) = at.and_then(|at| self.waiting.remove(at)) else { return };
        let mut account = self.account();
        account.acked.insert(sent.n);
        account.spans_ms.push((sent.at_ms, unix_ms()));
    }

    fn publish(&self, mqtt: &mut Mqtt, sent: Sent, dup: bool) -> io::Result<()> {
        let topic = format!("devices/{}/telemetry", self.device);
        let n = if self.habits.is_forgetful { 1 } else { sent.n };
        let payload = reading(n, self.habits.padding_bytes).to_string();
        mqtt.publish(&topic, sent.packet_id, dup, payload.as_bytes())
    }
}

impl Habits {
    fn window(&self) -> usize {
        if self.is_forgetful { 1 } else { INFLIGHT }
    }

    fn packet_id(&self, n: u64) -> u16 {
        let steps = if self.is_forgetful { 0 } else { n - 1 };
        let from_zero = (u64::from(self.first_packet_id) - 1 + steps) % u64::from(u16::MAX);
        1 + from_zero as u16
    }
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            per_second: 100,
            count: 100,
            first_packet_id: 1,
            is_forgetful: false,
            padding_bytes: 0,
        }
    }
}

/// The payload of reading `n`.
fn reading(n: u64, padding_bytes: usize) -> Value {
    let mut reading =
        json!({ "n": n, "temperature": 20.0 + (n % 50) as f64 / 10.0, "state": "running" });
    if padding_bytes > 0 {
        reading["padding"] = "x".repeat(padding_bytes).into();
    }
    reading
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    since.as_millis() as u64
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
