//! The world of one seed: one clock, one queue of events, and everything that is in it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::{Duration, Instant},
};

use fieldgate::spool::simulated::Random;

use crate::{
    board::Board, coverage::Coverage, faults::Healing, hub::Hub, network::Connection,
    oracle::Oracle, plan::Plan, south::Client,
};

/// Microseconds since the world began.
pub(crate) type Time = u64;

pub(crate) const MS: Time = 1000;
pub(crate) const SECOND: Time = 1_000_000;

/// How long things go wrong, and how long the system then has to come to rest.
const TROUBLE: Time = 600 * SECOND;
const RECOVERY: Time = 1800 * SECOND;

/// A record that ends each session is found by halving what is under way, at most 5,000 records:
/// each of fourteen sizes takes three sessions with the longest back-off between them. Then it is
/// on trial.
const RECOVERY_FROM_POISON: Time = RECOVERY + 14 * 3 * 60 * SECOND;

/// How often the hub looks for what expired, and the end is looked for.
const LOOK: Time = SECOND / 2;

/// What happens at a moment.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Start,
    Reopen {
        start: u64,
        epoch: u64,
    },
    DiskDone {
        start: u64,
    },
    Dialled {
        start: u64,
        attempt: u64,
    },
    Probed {
        start: u64,
    },
    Look {
        start: u64,
    },
    /// Something may go on.
    Nudge,
    Arrive {
        connection: u64,
    },
    UserTimeout {
        connection: u64,
        since: Time,
    },
    SilenceLimit {
        connection: u64,
        since: Time,
    },
    Publish {
        device: usize,
    },
    Connect {
        client: usize,
    },
    Disconnect {
        client: usize,
    },
    Taken {
        client: usize,
        connection: u64,
        token: u64,
    },
    Undelivered {
        start: u64,
        token: u64,
    },
    Reply {
        device: usize,
        id: String,
    },
    Commit,
    EngineUp,
    Operate,
    HubLooks,
    Fault,
    Heal(Healing),
}

/// One seed.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) base: Instant,
    pub(crate) random: Random,
    pub(crate) plan: Plan,
    pub(crate) board: Board,
    pub(crate) hub: Hub,
    pub(crate) connections: BTreeMap<u64, Connection>,
    pub(crate) clients: Vec<Client>,
    pub(crate) oracle: Oracle,
    pub(crate) coverage: Coverage,
    pub(crate) next_attempt: u64,
    pub(crate) next_connection: u64,
    pub(crate) newest_connection: u64,
    pub(crate) next_client_connection: u64,
    pub(crate) next_command: u64,
    pub(crate) network_down_until: Time,
    pub(crate) room_asked: Time,
    pub(crate) is_healing: bool,
    pub(crate) wants_pour: bool,
    /// The gateway's memory had no room for what a client has.
    pub(crate) is_blocked: bool,
    is_traced: bool,
    queue: BinaryHeap<Reverse<(Time, u64)>>,
    events: BTreeMap<u64, Event>,
    next_event: u64,
    /// Of all that happened: the same seed gives the same.
    pub(crate) digest: u64,
}

impl World {
    pub(crate) fn new(seed: u64, is_traced: bool) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::draw(&mut random);
        let mut world = Self {
            now: 0,
            base: Instant::now(),
            board: Board::new(random.next()),
            random,
            plan,
            hub: Hub::new(),
            connections: BTreeMap::new(),
            clients: Vec::new(),
            oracle: Oracle::default(),
            coverage: Coverage::default(),
            next_attempt: 0,
            next_connection: 1,
            newest_connection: 0,
            next_client_connection: 0,
            next_command: 0,
            network_down_until: 0,
            room_asked: 0,
            is_healing: false,
            wants_pour: false,
            is_blocked: false,
            is_traced,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            next_event: 0,
            digest: 0,
        };
        world.oracle.is_order_free = world.plan.live_first.is_some();
        world.make_clients();
        world
    }

    /// Ten minutes in which things go wrong; then all heals, and comes to rest.
    pub(crate) fn run(&mut self) {
        let plan = self.plan.clone();
        self.note_with(|| format!("{plan:?}"));
        self.start();
        for device in 0..self.plan.devices.len() {
            let wait = self.random.below(self.plan.devices[device].every);
            self.after(wait, Event::Publish { device });
        }
        self.after(5 * SECOND, Event::Operate);
        self.after(LOOK, Event::HubLooks);
        self.after(self.plan.fault_every, Event::Fault);
        while self.now < TROUBLE {
            self.step();
        }
        self.heal_all();
        while !self.rests() {
            let recovery = self.plan.poison.map_or(RECOVERY, |_| RECOVERY_FROM_POISON);
            let in_time = self.now < TROUBLE + recovery;
            assert!(in_time, "promise 5: it does not come to rest: {}", self.unrest());
            self.step();
        }
        self.oracle.check_end();
        self.oracle.fates.check_end();
    }

    fn step(&mut self) {
        let event_at = self.queue.peek().map_or(Time::MAX, |Reverse((at, _))| *at);
        let gateway_at = self.gateway_timeout().unwrap_or(Time::MAX);
        let hub_at = self.hub_timeout().unwrap_or(Time::MAX);
        let next = event_at.min(gateway_at).min(hub_at);
        assert!(next < Time::MAX, "promise 5: nothing will ever happen again");
        self.now = self.now.max(next);
        if event_at <= self.now {
            if let Some(Reverse((_, number))) = self.queue.pop()
                && let Some(event) = self.events.remove(&number)
            {
                self.handle(event);
            }
        } else if hub_at <= self.now {
            self.handle_hub_timeout();
        } else {
            self.with_gateway(|_, _| ());
        }
        self.settle();
        self.digest = self.digest.rotate_left(5) ^ self.now ^ self.random.clone().next();
    }

    fn settle(&mut self) {
        self.settle_board();
        while std::mem::take(&mut self.wants_pour) || self.has_room_again() {
            self.pour_all();
            self.settle_board();
        }
        self.settle_hub();
    }

    fn has_room_again(&mut self) -> bool {
        let process = self.board.process.as_ref();
        let has_room = process.is_some_and(|process| process.gateway.has_room());
        has_room && std::mem::take(&mut self.is_blocked)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Start => self.start(),
            Event::Reopen { start, epoch } => self.reopen(start, epoch),
            Event::DiskDone { start } => self.disk_done(start),
            Event::Dialled { start, attempt } => self.dialled(start, attempt),
            Event::Probed { start } => {
                let reachable = !self.is_network_down() && self.hub.is_up[0];
                if self.process(start).is_some() {
                    self.with_gateway(|gateway, now| gateway.handle_probed(now, reachable));
                }
            }
            Event::Look { start } => {
                if let Some(process) = self.process(start) {
                    process.looks = false;
                    self.with_gateway(|_, _| ());
                }
            }
            Event::Nudge => {}
            Event::Arrive { connection } => self.arrive(connection),
            Event::UserTimeout { connection, since } => self.user_timeout(connection, since),
            Event::SilenceLimit { connection, since } => self.check_silence(connection, since),
            Event::Publish { device } => self.publish(device),
            Event::Connect { client } => self.connect(client),
            Event::Disconnect { client } => {
                self.disconnect(client);
                self.after(SECOND, Event::Connect { client });
            }
            Event::Taken { client, connection, token } => self.taken(client, connection, token),
            Event::Undelivered { start, token } => {
                if self.process(start).is_some() {
                    self.with_gateway(|gateway, now| gateway.handle_undelivered(now, token));
                }
            }
            Event::Reply { device, id } => self.reply(device, &id),
            Event::Commit => self.commit(),
            Event::EngineUp => self.engine_recovers(),
            Event::Operate => self.operate(),
            Event::HubLooks => {
                if self.hub.engine.has_open_commands() {
                    self.ask_engine(fieldgate::hub::engine::Request::Look);
                }
                self.after(LOOK, Event::HubLooks);
            }
            Event::Fault => self.next_fault(),
            Event::Heal(healing) => self.heal(healing),
        }
    }

    fn rests(&self) -> bool {
        self.south_rests() && self.board_rests() && self.hub.rests()
    }

    /// What keeps it from coming to rest.
    fn unrest(&self) -> String {
        let south: Vec<bool> = self.clients.iter().map(Client::is_quiet).collect();
        let open = self.hub.engine.open_command(0);
        format!("clients quiet {south:?}, open command {open:?}, {}", self.board_unrest())
    }

    pub(crate) fn is_network_down(&self) -> bool {
        self.now < self.network_down_until
    }

    pub(crate) fn after(&mut self, wait: Time, event: Event) {
        self.at(self.now + wait, event);
    }

    pub(crate) fn at(&mut self, at: Time, event: Event) {
        self.next_event += 1;
        self.queue.push(Reverse((at.max(self.now), self.next_event)));
        self.events.insert(self.next_event, event);
    }

    /// The hub's monotonic clock.
    pub(crate) fn instant(&self, at: Time) -> Instant {
        self.base + Duration::from_micros(at)
    }

    pub(crate) fn time_of(&self, instant: Instant) -> Option<Time> {
        Some(instant.checked_duration_since(self.base)?.as_micros() as Time + 1)
    }

    pub(crate) fn note(&self, what: &str) {
        self.note_with(|| what.to_owned());
    }

    /// A line of the trace, where somebody wants it.
    pub(crate) fn note_with(&self, what: impl FnOnce() -> String) {
        if self.is_traced {
            println!("{:>12.6} {}", self.now as f64 / SECOND as f64, what());
        }
    }
}

/// What one seed saw, or how it failed.
pub(crate) fn run_seed(seed: u64, is_traced: bool) -> (Coverage, u64) {
    let mut world = World::new(seed, is_traced);
    world.run();
    world.note_recognised();
    (world.coverage, world.digest)
}
