//! What a seed is about: the configuration, the pace of things, and which faults there are. Not all
//! at once, for faults hide one another.

use std::time::Duration;

use fieldgate::{
    command::Allow,
    gateway::{CommandRules, Settings, TelemetryRule, UplinkSettings},
    protocol::{Epoch, HubLimits, Mode, StreamName, Window},
    spool::{Limits, simulated::Random},
    topic::Template,
};

use crate::{
    faults::Fault,
    world::{MS, SECOND, Time},
};

/// The streams, in the order of their priority.
pub(crate) const STREAMS: [&str; 3] = ["events", "alarms", "telemetry"];

/// The longest payload that the gateway takes.
pub(crate) const MAX_RECORD_BYTES: usize = 1000;

pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(25);
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(10);
pub(crate) const ACK_TIMEOUT: Duration = Duration::from_secs(10);

/// What happens to a restless board.
const RESTLESS: [Fault; 4] = [Fault::Kill, Fault::PowerCut, Fault::DiskFails, Fault::Cut];

/// One seed's world.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Devices connect to the gateway itself; otherwise all of them to a broker.
    pub(crate) has_listener: bool,
    pub(crate) devices: Vec<Habit>,
    pub(crate) client_window: usize,
    pub(crate) disk_first: bool,
    pub(crate) live_first: Option<u64>,
    pub(crate) write_after: Duration,
    pub(crate) memory_bytes: usize,
    pub(crate) limits: Limits,
    pub(crate) disk_latency: Time,
    pub(crate) bytes_per_s: u64,
    pub(crate) delay: Time,
    pub(crate) window: Window,
    pub(crate) hub_limits: HubLimits,
    pub(crate) engine_latency: Time,
    /// Commands come about so often.
    pub(crate) command_every: Time,
    pub(crate) idempotent: bool,
    /// How fast the board's clock runs too fast, parts in a million.
    pub(crate) drift_ppm: i64,
    pub(crate) faults: Vec<Fault>,
    pub(crate) fault_every: Time,
    /// The device whose record kills the hub's session, and which of its records.
    pub(crate) poison: Option<u64>,
    /// One in so many PUBACKs is lost with its connection.
    pub(crate) lost_pubacks: u64,
    /// The board's kernel gives up a connection of which bytes go unacknowledged for long.
    pub(crate) has_user_timeout: bool,
}

/// How a device behaves.
#[derive(Debug, Clone)]
pub(crate) struct Habit {
    pub(crate) every: Time,
    /// It publishes so many at once, now and then.
    pub(crate) burst: u64,
    pub(crate) payload_bytes: u64,
    /// Its session outlives its connections.
    pub(crate) is_persistent: bool,
    /// It takes the lowest packet identifier that is free.
    pub(crate) reuses_ids: bool,
}

impl Plan {
    pub(crate) fn draw(random: &mut Random) -> Self {
        let is_small = random.one_in(3);
        let devices = 2 + random.below(3);
        let flood = random.one_in(4);
        let segment_bytes = [512, 2048, 8192][random.below(3) as usize];
        // A board that is started over and over, with a bad card and a bad line.
        let is_restless = random.one_in(8);
        Self {
            has_listener: random.one_in(2),
            devices: (0..devices).map(|at| Habit::draw(random, flood && at == 0)).collect(),
            client_window: [4, 20, 100][random.below(3) as usize],
            disk_first: random.one_in(2),
            live_first: random.one_in(3).then_some(20),
            write_after: Duration::from_millis([50, 1000, 5000][random.below(3) as usize]),
            memory_bytes: if random.one_in(3) { 16 * 1024 } else { 1 << 20 },
            limits: Limits {
                max_bytes: if is_small { segment_bytes * (10 + random.below(20)) } else { 1 << 24 },
                segment_bytes,
                min_free_bytes: if random.one_in(4) { 4096 } else { 0 },
                tail: 256,
            },
            disk_latency: 1 + random.below(30) * MS,
            bytes_per_s: if random.one_in(4) { 8000 } else { 1_000_000 },
            delay: 1 + random.below(150) * MS,
            window: Window {
                records: [8, 100, 5000][random.below(3) as usize],
                bytes: [4096, 1 << 20][random.below(2) as usize],
            },
            hub_limits: HubLimits {
                record_bytes: if random.one_in(8) { 250 } else { 131_072 },
                batch_records: [5, 100, 1000][random.below(3) as usize],
                ..HubLimits::default()
            },
            engine_latency: 1 + random.below(60) * MS,
            command_every: (3 + random.below(40)) * SECOND,
            idempotent: random.one_in(4),
            drift_ppm: random.below(400) as i64 - 200,
            faults: if is_restless { RESTLESS.into() } else { Fault::draw_some(random) },
            fault_every: (if is_restless { 1 } else { 4 + random.below(40) }) * SECOND,
            poison: random.one_in(6).then(|| 20 + random.below(200)),
            lost_pubacks: if random.one_in(3) { 200 } else { u64::MAX },
            has_user_timeout: random.one_in(2),
        }
    }

    /// The gateway's settings at one of its starts.
    pub(crate) fn settings(&self, epoch: u64, seed: u64) -> Settings {
        let stream = |name: &str| StreamName::try_from(name.to_owned()).expect("a stream's name");
        let template = |text: &str| Template::parse(text).expect("a template");
        let rule = |topic: &str, lane| TelemetryRule { topic: template(topic), lane, device: None };
        Settings {
            id: "gw".into(),
            agent: String::new(),
            boot_id: String::new(),
            streams: STREAMS.map(stream).into(),
            telemetry: vec![
                rule("devices/{device}/telemetry", 2),
                rule("devices/{device}/alarms", 1),
            ],
            commands: CommandRules {
                topic: template("devices/{device}/commands/{command}"),
                reply: template("devices/{device}/replies/{id}"),
                allow: vec![Allow::parse("*/do").expect("a pattern")],
                inflight: 8,
            },
            uplink: Some(UplinkSettings {
                mode: Mode::Managed,
                proven_managed: vec![true; 2],
                ping_interval: PING_INTERVAL,
                ping_timeout: PING_TIMEOUT,
                ack_timeout: ACK_TIMEOUT,
                dial_timeout: Duration::from_secs(60),
                backoff: (Duration::from_millis(500), Duration::from_secs(60)),
                return_after: Duration::from_secs(120),
                plain_commands: false,
            }),
            disk_first: self.disk_first,
            live_first: self.live_first,
            max_age: None,
            window: self.client_window,
            write_after: self.write_after,
            max_record_bytes: MAX_RECORD_BYTES,
            memory_bytes: self.memory_bytes,
            epoch: Epoch(epoch),
            seed,
        }
    }
}

impl Habit {
    fn draw(random: &mut Random, flood: bool) -> Self {
        Self {
            every: if flood { SECOND } else { (1 + random.below(12)) * SECOND },
            burst: if flood { 80 } else { 1 + random.below(20) },
            payload_bytes: if flood { 300 } else { 10 + random.below(300) },
            is_persistent: !random.one_in(10),
            reuses_ids: random.one_in(4),
        }
    }
}
