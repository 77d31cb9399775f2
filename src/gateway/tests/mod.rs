//! The core with the real spool on a simulated disk, and a hub that keeps to PROTOCOL.md, driven by
//! one seed: links are cut, acks lost, writes fail, the gateway crashes, the power goes. A failing
//! seed is printed and replays.

mod commands;
mod hubs;
mod link;
mod live;
mod poison;
mod resend;
mod retention;
mod sim_hub;
mod time;
mod waits;
mod week;

use std::collections::BTreeSet;

use sim_hub::SimHub;

use super::*;
use crate::{
    command::{CommandId, State},
    protocol::{
        Ack, CommandMessage, Decoded, ErrorMessage, GatewayMessage, HubMessage, Mode, Position,
        Skip, Welcome, Window, WireBody, from_gateway,
    },
    record::Publish,
    spool::{
        Limits, Spool,
        journal::Journal,
        simulated::{SimulatedDisk, SimulatedFile},
    },
};

const SEEDS: u64 = 400;
const STEPS: usize = 400;

struct World {
    random: Random,
    now: Now,
    medium: SimulatedDisk,
    disk_first: bool,
    live_first: Option<u64>,
    /// Receipts of earlier connections answer nobody.
    deaf_before: u64,
    gateway: Gateway,
    spool: Spool<SimulatedDisk>,
    journal: Journal<SimulatedFile>,
    jobs: VecDeque<DiskRequest>,
    hub: SimHub,
    link: Link,
    published: u64,
    /// What the source was told is safe.
    safe: BTreeSet<u64>,
    /// Handed to the device's source, and not answered.
    deliveries: Vec<(u64, String)>,
    /// Commands that the device has, or may have.
    reached: BTreeSet<String>,
    commands: Vec<CommandMessage>,
    starts: u64,
    power_cuts: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Link {
    None,
    Dialing,
    Up,
}

fn settings(starts: u64, disk_first: bool) -> Settings {
    let template = |text: &str| Template::parse(text).unwrap();
    Settings {
        id: "gw".into(),
        agent: String::new(),
        boot_id: String::new(),
        streams: ["events", "telemetry"]
            .map(|s| StreamName::try_from(s.to_owned()).unwrap())
            .into(),
        telemetry: vec![TelemetryRule {
            topic: template("devices/{device}/telemetry"),
            lane: 1,
            device: None,
        }],
        commands: CommandRules {
            topic: template("devices/{device}/commands/{command}"),
            reply: template("devices/{device}/replies/{id}"),
            allow: vec![crate::command::Allow::parse("*/*").unwrap()],
            inflight: 32,
        },
        uplink: Some(UplinkSettings {
            mode: Mode::Managed,
            proven_managed: vec![false],
            ping_interval: Duration::from_secs(25),
            ping_timeout: Duration::from_secs(10),
            ack_timeout: Duration::from_secs(10),
            dial_timeout: Duration::from_secs(60),
            backoff: (Duration::from_millis(500), Duration::from_secs(60)),
            return_after: Duration::from_secs(600),
            plain_commands: false,
        }),
        disk_first,
        live_first: None,
        max_age: None,
        window: 20,
        write_after: Duration::from_secs(1),
        max_record_bytes: 1000,
        memory_bytes: 1 << 20,
        epoch: Epoch(0xe000 + starts),
        seed: starts,
    }
}

impl World {
    fn new(seed: u64) -> Self {
        Self::with(seed, None)
    }

    fn with(seed: u64, disk_first: Option<bool>) -> Self {
        let mut random = Random::new(seed);
        let wall = Timestamp::synced(1_790_000_000_000);
        let now = Now { instant: Instant::now(), wall, boot: None };
        let medium = SimulatedDisk::new(seed);
        let disk_first = disk_first.unwrap_or(random.next().is_multiple_of(2));
        let live_first = random.next().is_multiple_of(2).then_some(20);
        let first = Settings { live_first, ..settings(1, disk_first) };
        let (gateway, spool, journal) = start(now, &medium, first);
        Self {
            random,
            now,
            medium,
            disk_first,
            live_first,
            deaf_before: 0,
            gateway,
            spool,
            journal,
            jobs: VecDeque::new(),
            hub: SimHub::default(),
            link: Link::None,
            published: 0,
            safe: BTreeSet::new(),
            deliveries: Vec::new(),
            reached: BTreeSet::new(),
            commands: Vec::new(),
            starts: 1,
            power_cuts: 0,
        }
    }

    fn step(&mut self) {
        match self.random.next() % 100 {
            0..=39 => self.publish(),
            40..=59 => self.work_disk(),
            60..=69 => self.pass(Duration::from_millis(300)),
            70..=73 => self.pass(Duration::from_secs(7)),
            74..=83 => self.bring_up(),
            84..=85 => self.cut(),
            86 => self.crash(),
            87 => {
                let left = self.random.next() % 5;
                self.medium.fail(left as u32, u32::MAX);
            }
            88..=90 => self.medium.heal(),
            91..=93 => self.command(),
            94..=97 => self.answer_delivery(),
            _ => self.gateway.handle_exhausted(self.now),
        }
        self.drain();
    }

    fn publish(&mut self) {
        let count = 1 + self.random.next() % 8;
        self.publish_count(count);
    }

    fn publish_count(&mut self, count: u64) {
        for _ in 0..count {
            if self.gateway.has_room() {
                self.publish_from("d");
            }
        }
    }

    fn publish_from(&mut self, device: &str) {
        self.published += 1;
        let receipt = Receipt { source: SourceId(0), connection: 1, number: self.published };
        self.gateway.handle_publish(
            self.now,
            Publish {
                topic: format!("devices/{device}/telemetry"),
                payload: self.published.to_string().into(),
                retained: false,
                source: SourceId(0),
                receipt: Some(receipt),
                packet: None,
            },
        );
    }

    fn work_disk(&mut self) {
        let Some(job) = self.jobs.pop_front() else { return };
        match job {
            DiskRequest::Append(entries) => {
                let result = self.spool.append(&entries).map_err(|error| error.to_string());
                self.gateway.handle_appended(self.now, result);
            }
            DiskRequest::Read { lane, epoch, from, max_bytes } => {
                let max_bytes = max_bytes.min(400);
                let result = self.spool.read(lane, epoch.0, from, max_bytes);
                let result = result.map_err(|error| error.to_string());
                self.gateway.handle_read(self.now, lane, epoch, result);
            }
            DiskRequest::Trim { lane, epoch, acked } => {
                self.spool.trim(lane, epoch.0, acked).ok();
            }
            DiskRequest::Begin { lane, epoch } => self.spool.begin_epoch(lane, epoch.0),
            DiskRequest::Retire { lane, epoch } => {
                let result = self.spool.retire(lane, epoch.0).map_err(|error| error.to_string());
                self.gateway.handle_retired(self.now, lane, epoch, result);
            }
            DiskRequest::Journal(changes) => {
                let result = self.journal.put(&self.medium, &changes);
                let result = result.map_err(|error| error.to_string());
                self.gateway.handle_journalled(self.now, result);
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.wall.unix_ms += time.as_millis() as u64;
        while self.gateway.poll_timeout().is_some_and(|at| at <= self.now.instant) {
            self.gateway.handle_timeout(self.now);
            self.drain();
            if self.gateway.poll_timeout().is_some_and(|at| at <= self.now.instant) {
                // What is due and waits for the disk must not spin.
                assert!(!self.jobs.is_empty(), "a timer that is due does nothing");
                self.work_disk();
            }
        }
    }

    fn bring_up(&mut self) {
        if self.link == Link::Dialing {
            self.link = Link::Up;
            self.gateway.handle_up(self.now, Some("fieldgate.v1.json"));
        }
    }

    fn cut(&mut self) {
        if self.link != Link::None {
            self.link = Link::None;
            self.gateway.handle_ended(self.now, &Ended::Cut("cut".into()));
        }
    }

    fn crash(&mut self) {
        if self.random.next().is_multiple_of(2) {
            self.medium.crash();
            self.power_cuts += 1;
        }
        self.start_again();
    }

    fn start_again(&mut self) {
        self.medium.heal();
        self.jobs.clear();
        self.reached.extend(self.deliveries.drain(..).map(|(_, id)| id));
        self.link = Link::None;
        self.starts += 1;
        let settings =
            Settings { live_first: self.live_first, ..settings(self.starts, self.disk_first) };
        let started = start(self.now, &self.medium, settings);
        (self.gateway, self.spool, self.journal) = started;
        // What was not safe is the source's to publish again; here it is simply gone.
    }

    fn command(&mut self) {
        let id = CommandId::try_from(format!("c-{}", self.commands.len())).unwrap();
        self.commands.push(CommandMessage {
            id,
            device: "d".into(),
            name: "n".into(),
            params: serde_json::value::RawValue::from_string("{}".into()).unwrap(),
            ttl_ms: 20_000,
            timeout_ms: 5_000,
            idempotent: false,
            state: None,
        });
        if self.gateway.is_live() {
            let text = HubMessage::Command(self.commands.last().unwrap().clone()).to_json();
            self.gateway.handle_text(self.now, &text);
        }
    }

    fn answer_delivery(&mut self) {
        let Some((token, id)) = self.deliveries.pop() else { return };
        match self.random.next() % 3 {
            0 => self.gateway.handle_undelivered(self.now, token),
            1 => {
                self.reached.insert(id);
                self.gateway.handle_delivered(self.now, token);
            }
            _ => {
                self.reached.insert(id);
                self.gateway.handle_interrupted(self.now, token);
            }
        }
    }

    fn drain(&mut self) {
        loop {
            while let Some(output) = self.gateway.poll_output() {
                self.carry_out(output);
            }
            if self.link != Link::Up {
                return;
            }
            let Some(transmit) = self.gateway.poll_transmit(self.now) else {
                match self.gateway.poll_output() {
                    Some(output) => self.carry_out(output),
                    None => return,
                }
                continue;
            };
            let Transmit::Text(text) = transmit else { continue };
            let greeting = text.contains("\"hello\"");
            for answer in self.hub.handle(&text, &mut self.random) {
                self.gateway.handle_text(self.now, &answer.to_json());
            }
            let resent = if greeting { self.commands.clone() } else { Vec::new() };
            for command in resent {
                let states = self.hub.statuses.get(&command.id);
                if states.is_none_or(|states| !states.last().unwrap().is_final()) {
                    let state = states.map(|states| crate::protocol::HubState {
                        n: states.len() as u32,
                        state: *states.last().unwrap(),
                    });
                    let command = CommandMessage { state, ..command };
                    self.gateway.handle_text(self.now, &HubMessage::Command(command).to_json());
                }
            }
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Disk(request) => self.jobs.push_back(request),
            Output::Safe(receipt) if receipt.connection < self.deaf_before => {}
            Output::Safe(receipt) => {
                assert!(self.safe.insert(receipt.number), "a receipt was given back twice");
            }
            Output::Deliver { token, payload, .. } => {
                let payload: serde_json::Value = serde_json::from_slice(&payload).unwrap();
                let id = payload["id"].to_string();
                assert!(!self.reached.contains(&id), "{id} is delivered again");
                self.deliveries.push((token, id));
            }
            Output::Dial { .. } => {
                assert_eq!(self.link, Link::None, "a second link");
                self.link = Link::Dialing;
            }
            Output::Hangup => self.link = Link::None,
            Output::RememberManaged { .. }
            | Output::TimeHeard { .. }
            | Output::Probe { .. }
            | Output::Named { .. }
            | Output::Token => {}
        }
    }

    /// Everything heals, and everything is at the hub.
    fn run_until_idle(&mut self) {
        self.medium.heal();
        for _ in 0..3000 {
            while !self.jobs.is_empty() {
                self.work_disk();
                self.drain();
            }
            self.bring_up();
            self.drain();
            while let Some((token, id)) = self.deliveries.pop() {
                self.reached.insert(id);
                self.gateway.handle_delivered(self.now, token);
            }
            let held: u64 = self.gateway.lanes.iter().map(Lane::held_records).sum();
            let idle = self.jobs.is_empty()
                && self.gateway.commands.counts().0 == 0
                && self.gateway.is_settled();
            if held == 0 && idle && self.link == Link::Up {
                break;
            }
            self.pass(Duration::from_secs(1));
            self.drain();
        }
        let held: u64 = self.gateway.lanes.iter().map(Lane::held_records).sum();
        assert_eq!(held, 0, "something is stuck: {:#?}", self.gateway);
        let unacknowledged = self.gateway.commands.unacknowledged();
        assert_eq!(unacknowledged.0, 0, "what the hub holds counts as unacknowledged");
    }

    /// Everything that was safe is at the hub, once and in order.
    fn settle(&mut self) {
        self.run_until_idle();
        // A write that the power cut tore may look like damage; what was safe is never in it.
        let torn = self.power_cuts > 0;
        assert!(self.hub.lost == 0 || torn, "nothing was evicted or damaged");
        let applied: BTreeSet<u64> = self.hub.applied.iter().copied().collect();
        assert_eq!(applied.len(), self.hub.applied.len(), "a record came twice");
        let in_order = self.live_first.is_some() || self.hub.applied.is_sorted();
        assert!(in_order && !self.hub.disorder, "out of order");
        let lost: Vec<&u64> = self.safe.difference(&applied).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        for (id, states) in &self.hub.statuses {
            // A repeated id is answered with its last status again; the hub takes the first end.
            let end = states.iter().find(|state| state.is_final());
            let end = end.unwrap_or_else(|| panic!("{id} has no end: {states:?}"));
            let unsent = [State::Expired, State::Cancelled, State::Rejected].contains(end);
            assert!(
                !unsent || !self.reached.contains(&format!("{:?}", id.as_str())),
                "{id}: {states:?}"
            );
        }
    }
}

fn start(
    now: Now,
    medium: &SimulatedDisk,
    settings: Settings,
) -> (Gateway, Spool<SimulatedDisk>, Journal<SimulatedFile>) {
    let limits =
        Limits { max_bytes: 1 << 24, segment_bytes: 512, min_free_bytes: 0, tail: settings.window };
    let opened = Spool::open(medium.clone(), &["events", "telemetry"], limits, settings.epoch.0);
    let (spool, _) = opened.unwrap();
    let journal = Journal::open(medium, without_result).unwrap();
    let entries: Vec<(String, Bytes)> =
        journal.entries().map(|(key, value)| (key.to_owned(), value.clone())).collect();
    let tails = spool.tails().collect();
    let held = Held { ranges: spool.held(), journal: entries, tails };
    (Gateway::new(now, settings, Ok(held)), spool, journal)
}

#[test]
fn what_was_acknowledged_arrives_once_and_in_order() {
    for seed in seeds(SEEDS) {
        replayable(seed, || {
            let mut world = World::new(seed);
            for _ in 0..STEPS {
                world.step();
            }
            world.settle();
        });
    }
}

fn seeds(count: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse().ok());
    match number("FIELDGATE_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("FIELDGATE_TEST_SEEDS").unwrap_or(count),
    }
}

fn replayable(seed: u64, run: impl FnOnce() + std::panic::UnwindSafe) {
    if let Err(panic) = std::panic::catch_unwind(run) {
        eprintln!("replay with FIELDGATE_TEST_SEED={seed}");
        std::panic::resume_unwind(panic);
    }
}
