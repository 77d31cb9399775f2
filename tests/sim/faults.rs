//! What goes wrong, and how it heals. Each seed has some kinds of faults and not the others.

use fieldgate::{
    command::CommandId, hub::engine::Request, protocol::CommandMessage, spool::simulated::Random,
};
use serde_json::value::RawValue;

use crate::{
    coverage::Seen,
    hub::{Failure, NODES},
    world::{Event, MS, SECOND, Time, World},
};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Kill,
    PowerCut,
    Stop,
    DiskFails,
    DiskFull,
    DiskStalls,
    Unmounted,
    BitRot,
    Cut,
    OneSidedCut,
    Blackhole,
    OneWay,
    DeadForGood,
    NetworkChange,
    NodeKilled,
    NodeGone,
    Drain,
    CommitFails,
    EngineSlow,
    EngineStuck,
    Intruder,
    ClockJump,
    ClientLost,
}

/// How something heals by itself.
#[derive(Debug, Clone)]
pub(crate) enum Healing {
    Disk,
    Network,
    Connection(u64),
    Node(usize),
}

const ALL: [Fault; 23] = [
    Fault::Kill,
    Fault::PowerCut,
    Fault::Stop,
    Fault::DiskFails,
    Fault::DiskFull,
    Fault::DiskStalls,
    Fault::Unmounted,
    Fault::BitRot,
    Fault::Cut,
    Fault::OneSidedCut,
    Fault::Blackhole,
    Fault::OneWay,
    Fault::DeadForGood,
    Fault::NetworkChange,
    Fault::NodeKilled,
    Fault::NodeGone,
    Fault::Drain,
    Fault::CommitFails,
    Fault::EngineSlow,
    Fault::EngineStuck,
    Fault::Intruder,
    Fault::ClockJump,
    Fault::ClientLost,
];

impl Fault {
    /// Some of them: sometimes none, sometimes most.
    pub(crate) fn draw_some(random: &mut Random) -> Vec<Self> {
        let odds = 1 + random.below(4);
        let rare = |fault: &Self| *fault != Self::BitRot;
        let mut drawn: Vec<Self> = ALL.into_iter().filter(|_| random.one_in(odds)).collect();
        if !random.one_in(4) {
            drawn.retain(rare);
        }
        drawn
    }
}

impl World {
    /// The next fault, and when the one after it is.
    pub(crate) fn next_fault(&mut self) {
        if self.is_healing || self.plan.faults.is_empty() {
            return;
        }
        let at = self.random.below(self.plan.faults.len() as u64) as usize;
        let fault = self.plan.faults[at];
        self.note_with(|| format!("fault: {fault:?}"));
        self.inject(fault);
        let every = self.plan.fault_every;
        let wait = every / 4 + self.random.below(2 * every);
        self.after(wait, Event::Fault);
    }

    fn inject(&mut self, fault: Fault) {
        match fault {
            Fault::Kill => {
                self.kill();
                self.start_later();
            }
            Fault::PowerCut => {
                self.cut_power();
                self.start_later();
            }
            Fault::Stop => {
                self.stop();
                self.start_later();
            }
            Fault::DiskFails | Fault::DiskFull | Fault::DiskStalls => self.break_disk(fault),
            Fault::Unmounted => {
                self.cut_power();
                self.board.unmounted_until = self.now + self.some_time(40 * SECOND);
                self.start_later();
            }
            Fault::BitRot => self.flip_a_bit(),
            Fault::Cut | Fault::OneSidedCut => self.cut(fault == Fault::OneSidedCut),
            Fault::Blackhole | Fault::OneWay => self.stand_still(fault == Fault::OneWay),
            Fault::DeadForGood => {
                if let Some(id) = self.live_connection() {
                    self.coverage.note(Seen::DeadForGood);
                    self.kill_connection(id);
                }
            }
            Fault::NetworkChange => {
                self.coverage.note(Seen::NetworkChange);
                self.with_gateway(|gateway, now| gateway.handle_network_change(now));
            }
            Fault::NodeKilled | Fault::NodeGone => {
                let silently = fault == Fault::NodeGone;
                self.coverage.note(if silently { Seen::NodeGone } else { Seen::NodeKill });
                let node = self.some_node();
                self.lose_node(node, silently);
                let wait = self.some_time(60 * SECOND);
                self.after(wait, Event::Heal(Healing::Node(node)));
            }
            Fault::Drain => {
                let node = self.some_node();
                self.drain_node(node);
            }
            Fault::CommitFails => {
                let nonetheless = self.random.one_in(2);
                self.hub.failure = Some(match nonetheless {
                    true => Failure::KeptNonetheless,
                    false => Failure::NothingKept,
                });
            }
            Fault::EngineSlow => {
                self.coverage.note(Seen::SlowEngine);
                self.hub.slow_until = self.now + self.some_time(60 * SECOND);
            }
            Fault::EngineStuck => {
                self.coverage.note(Seen::StuckEngine);
                self.hub.stuck_until = self.now + self.some_time(90 * SECOND);
            }
            Fault::Intruder => self.intrude(),
            Fault::ClockJump => {
                self.coverage.note(Seen::ClockJump);
                let day = 86_400_000;
                let jumps = [-day, day, 60_000, -1_000_000_000_000, 500_000_000_000];
                let jump = jumps[self.random.below(jumps.len() as u64) as usize];
                self.board.wall_offset_ms = jump;
            }
            Fault::ClientLost => {
                let at = self.random.below(self.clients.len() as u64) as usize;
                self.disconnect(at);
                let wait = self.some_time(30 * SECOND);
                self.after(wait, Event::Connect { client: at });
            }
        }
    }

    fn break_disk(&mut self, fault: Fault) {
        match fault {
            Fault::DiskFull => {
                self.coverage.note(Seen::FullDisk);
                let room = self.random.below(4000);
                self.board.medium.leave_room(room);
            }
            Fault::DiskStalls => {
                self.coverage.note(Seen::SlowDisk);
                self.board.stalled_until = self.now + self.some_time(30 * SECOND);
                return;
            }
            _ => {
                self.coverage.note(Seen::FailedSync);
                let (after, times) = (self.random.below(8), self.random.below(40) + 1);
                self.board.medium.fail(after as u32, times as u32);
            }
        }
        let wait = self.some_time(60 * SECOND);
        self.after(wait, Event::Heal(Healing::Disk));
    }

    /// While the board is without power, a byte of a segment of telemetry changes.
    fn flip_a_bit(&mut self) {
        self.cut_power();
        self.start_later();
        let is_one = |name: &str| name.starts_with("telemetry.") && name.ends_with(".seg");
        let files: Vec<(String, u64)> = self.board.medium.files();
        let files: Vec<&(String, u64)> =
            files.iter().filter(|(name, len)| is_one(name) && *len > 0).collect();
        if files.is_empty() {
            return;
        }
        let (name, len) = files[self.random.below(files.len() as u64) as usize];
        let (at, bit) = (self.random.below(*len), self.random.below(8));
        self.coverage.note(Seen::BitRot);
        self.oracle.is_disk_damaged = true;
        self.board.medium.flip(name, at, 1 << bit);
    }

    fn cut(&mut self, one_sided: bool) {
        let Some(id) = self.live_connection() else { return };
        if one_sided {
            // The gateway has another address; what it sent before arrives when it pleases.
            self.coverage.note(Seen::OneSidedCut);
            let lag = self.random.below(8 * SECOND);
            let arrivals = self.connections.get_mut(&id).map(|c| c.up.delay_by(lag));
            for at in arrivals.into_iter().flatten() {
                self.at(at, Event::Arrive { connection: id });
            }
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.at_gateway = false;
            }
            let ended = fieldgate::gateway::Ended::Lost("the address is gone".into());
            self.link_ended(&ended);
        } else {
            self.coverage.note(Seen::Cut);
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.up.forget_all();
                connection.down.forget_all();
            }
            self.hub_lets_go(id);
            self.gateway_lets_go(id);
            self.hub_hears(id, crate::network::Frame::End);
            self.link_ended(&fieldgate::gateway::Ended::Cut("reset".into()));
        }
    }

    fn stand_still(&mut self, one_way: bool) {
        let now = self.now;
        let up_only = self.random.one_in(2);
        let time = self.some_time(90 * SECOND);
        let is_live = |c: &&mut crate::network::Connection| !c.is_dead && c.silent_since.is_none();
        let mut silent = Vec::new();
        for connection in self.connections.values_mut().filter(is_live) {
            if !one_way || up_only {
                connection.up.stop(now);
            }
            if !one_way || !up_only {
                connection.down.stop(now);
            }
            silent.push(connection.id);
        }
        self.coverage.note(if one_way { Seen::OneWay } else { Seen::Blackhole });
        for id in silent {
            self.begin_silence(id);
            self.after(time, Event::Heal(Healing::Connection(id)));
        }
        if !one_way {
            self.network_down_until = now + time;
        }
    }

    /// What was broken works again.
    pub(crate) fn heal(&mut self, healing: Healing) {
        self.note_with(|| format!("healed: {healing:?}"));
        match healing {
            Healing::Disk => self.board.medium.heal(),
            Healing::Network => self.network_down_until = 0,
            Healing::Connection(id) => self.end_silence(id),
            Healing::Node(node) => self.hub.is_up[node] = true,
        }
    }

    /// Everything heals, and nothing more goes wrong.
    pub(crate) fn heal_all(&mut self) {
        self.note("everything heals");
        self.is_healing = true;
        self.heal(Healing::Disk);
        self.heal(Healing::Network);
        (0..NODES).for_each(|node| self.heal(Healing::Node(node)));
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        ids.into_iter().for_each(|id| self.heal(Healing::Connection(id)));
        self.board.unmounted_until = 0;
        self.board.stalled_until = 0;
        self.hub.slow_until = 0;
        self.hub.stuck_until = self.hub.stuck_until.min(self.now);
        self.hub.failure = None;
        self.after(10 * SECOND, Event::Start);
        for at in 0..self.clients.len() {
            self.after(20 * SECOND, Event::Connect { client: at });
        }
    }

    /// Somebody at the hub wants something of a device, or no longer.
    pub(crate) fn operate(&mut self) {
        if self.is_healing {
            return;
        }
        let draw = self.random.next();
        if self.random.one_in(6)
            && let Some(id) = self.hub.engine.open_command(draw)
        {
            self.note_with(|| format!("{id} is to be cancelled"));
            self.ask_engine(Request::CancelCommand { gateway: "gw".into(), id });
        } else {
            self.next_command += 1;
            let id = format!("c-{}", self.next_command);
            let device = draw % self.plan.devices.len() as u64;
            let idempotent = self.plan.idempotent && draw & 1 << 20 != 0;
            let ttls = [500, 8000, 40_000, 300_000];
            let command = CommandMessage {
                id: CommandId::try_from(id.clone()).expect("an id"),
                device: format!("d{device}"),
                name: if draw & 0xf00 == 0 { "forbidden".into() } else { "do".into() },
                params: RawValue::from_string("{}".into()).expect("JSON"),
                ttl_ms: ttls[(draw >> 30) as usize % ttls.len()],
                timeout_ms: 10_000,
                idempotent,
                state: None,
            };
            self.coverage.note(Seen::Command);
            self.oracle.fates.created(&id, idempotent);
            let command = Box::new(command);
            self.ask_engine(Request::CreateCommand { gateway: "gw".into(), command });
        }
        let every = self.plan.command_every;
        let wait = every / 2 + self.random.below(every);
        self.after(wait, Event::Operate);
    }

    fn start_later(&mut self) {
        let wait = 100 * MS + self.some_time(20 * SECOND);
        self.after(wait, Event::Start);
    }

    /// Mostly short, at most `longest`.
    pub(crate) fn some_time(&mut self, longest: Time) -> Time {
        let longest = if self.random.one_in(3) { longest } else { longest / 8 };
        1 + self.random.below(longest)
    }

    fn some_node(&mut self) -> usize {
        self.random.below(NODES as u64) as usize
    }

    fn live_connection(&self) -> Option<u64> {
        let link = self.board.process.as_ref()?.link.as_ref()?;
        let id = link.connection?;
        self.connections.get(&id).filter(|c| c.silent_since.is_none()).map(|c| c.id)
    }
}
