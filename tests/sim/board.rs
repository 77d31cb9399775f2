//! The board: the real core and the real spool, driven as `cli::driver` and `cli::disk` drive them,
//! started, stopped, killed and cut off from its power.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use fieldgate::{
    gateway::{DiskRequest, Ended, Gateway, Now, Output, Transmit},
    record::Timestamp,
    spool::simulated::SimulatedDisk,
};

use crate::{
    coverage::Seen,
    disk::{REOPEN, Store},
    link::LinkEnd,
    network::Frame,
    plan::STREAMS,
    world::{Event, MS, SECOND, Time, World},
};

/// As in `cli::driver`: how long a stop may take for each of its parts.
const STOP_SAFE: Time = 2 * SECOND;
const STOP_ACKS: Time = SECOND / 2;
const STOP_CLOSE: Time = SECOND / 2;

/// As in `cli::driver`: no system clock that was ever set is before this.
const EARLIEST_MS: u64 = 1_767_225_600_000;

/// A timer that is due again so often without a pause does nothing.
const SPINS: u32 = 200;

#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) medium: SimulatedDisk,
    pub(crate) process: Option<Process>,
    pub(crate) starts: u64,
    /// What the wall clock shows beyond the true time, milliseconds.
    pub(crate) wall_offset_ms: i64,
    /// Until then the spool's directory is not mounted, and the disk does nothing.
    pub(crate) unmounted_until: Time,
    pub(crate) stalled_until: Time,
    last_timer: (Time, u32),
}

/// The running program.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) start: u64,
    pub(crate) gateway: Gateway,
    pub(crate) link: Option<LinkEnd>,
    pub(crate) stopping: Option<Stage>,
    pub(crate) store: Option<Store>,
    pub(crate) jobs: VecDeque<DiskRequest>,
    pub(crate) is_working: bool,
    pub(crate) looks: bool,
}

/// How far an orderly stop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Safe(Time),
    Acks(Time),
    Close(Time),
}

impl Board {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            medium: SimulatedDisk::new(seed),
            process: None,
            starts: 0,
            wall_offset_ms: 0,
            unmounted_until: 0,
            stalled_until: 0,
            last_timer: (0, 0),
        }
    }
}

impl World {
    /// The board's clocks.
    pub(crate) fn board_now(&self) -> Now {
        let true_ms = crate::hub::EPOCH_MS + self.now / MS;
        let unix_ms = true_ms.saturating_add_signed(self.board.wall_offset_ms);
        let wall = Timestamp { unix_ms, synced: unix_ms >= EARLIEST_MS, since_boot: None };
        Now { instant: self.board_instant(self.now), wall, boot: None }
    }

    /// The program starts.
    pub(crate) fn start(&mut self) {
        if self.board.process.is_some() {
            return;
        }
        self.board.starts += 1;
        let (start, epoch, seed) = (self.board.starts, self.random.next(), self.random.next());
        let settings = self.plan.settings(epoch, seed);
        for stream in 0..STREAMS.len() {
            self.oracle.begun(stream, epoch);
        }
        self.oracle.wire.forget();
        let opened = self.open_store(epoch);
        self.note_with(|| format!("the gateway starts, {:?}", opened.as_ref().err()));
        let now = self.board_now();
        let (store, gateway) = match opened {
            Ok(store) => {
                let gateway = Gateway::new(now, settings, Ok(store.held()));
                (Some(store), gateway)
            }
            Err(error) => {
                self.coverage.note(Seen::UnopenedSpool);
                // What it holds goes behind what is sent meanwhile.
                self.oracle.is_order_free = true;
                self.after(REOPEN, Event::Reopen { start, epoch });
                (None, Gateway::new(now, settings, Err(error)))
            }
        };
        self.board.process = Some(Process {
            start,
            gateway,
            link: None,
            stopping: None,
            store,
            jobs: VecDeque::new(),
            is_working: false,
            looks: false,
        });
        self.board_timeout();
        self.reconnect_clients();
    }

    /// The process of this start, if it still runs.
    pub(crate) fn process(&mut self, start: u64) -> Option<&mut Process> {
        self.board.process.as_mut().filter(|process| process.start == start)
    }

    /// An input of the core, as the driver gives it: progress is looked at before, the timer after.
    pub(crate) fn with_gateway<T>(
        &mut self,
        input: impl FnOnce(&mut Gateway, Now) -> T,
    ) -> Option<T> {
        self.note_progress();
        let now = self.board_now();
        let gateway = &mut self.board.process.as_mut()?.gateway;
        let output = input(gateway, now);
        self.board_timeout();
        Some(output)
    }

    /// The next moment that the core asks for.
    pub(crate) fn gateway_timeout(&self) -> Option<Time> {
        let process = self.board.process.as_ref()?;
        self.board_time_of(process.gateway.poll_timeout()?)
    }

    pub(crate) fn board_timeout(&mut self) {
        let now = self.board_now();
        let Some(process) = &mut self.board.process else { return };
        if process.gateway.poll_timeout().is_some_and(|at| at <= now.instant) {
            process.gateway.handle_timeout(now);
            let (at, spins) = &mut self.board.last_timer;
            *spins = if *at == self.now { *spins + 1 } else { 0 };
            *at = self.now;
            assert!(*spins < SPINS, "promise 6: a timer is due again and again and does nothing");
        }
    }

    fn note_progress(&mut self) {
        let (now, at) = (self.board_now(), self.now);
        let Some(process) = &mut self.board.process else { return };
        let connection = process.link.as_ref().and_then(|link| link.connection);
        let connection = connection.and_then(|id| self.connections.get_mut(&id));
        let Some(connection) = connection else { return };
        if connection.up.has_made_room(at) {
            process.gateway.handle_progress(now);
        }
        if connection.down.has_brought_more(at) {
            process.gateway.handle_bytes(now);
        }
    }

    /// Carries out what the core wants.
    pub(crate) fn settle_board(&mut self) {
        loop {
            while let Some(output) =
                self.board.process.as_mut().and_then(|process| process.gateway.poll_output())
            {
                self.carry_out(output);
            }
            let now = self.board_now();
            if !self.link_has_room() {
                break;
            }
            let Some(process) = &mut self.board.process else { return };
            match process.gateway.poll_transmit(now) {
                Some(transmit) => self.transmit(transmit),
                None => match process.gateway.poll_output() {
                    Some(output) => self.carry_out(output),
                    None => break,
                },
            }
        }
        self.begin_disk_work();
        self.look_again_later();
        self.stop_on();
    }

    fn transmit(&mut self, transmit: Transmit) {
        let frame = match transmit {
            Transmit::Text(text) => {
                self.note_with(|| format!("gateway > {}", brief(&text)));
                self.oracle.wire.sent(&text);
                Frame::Text(text)
            }
            Transmit::Ping(payload) => Frame::Ping(payload),
            Transmit::Close { code, reason } => {
                self.note_with(|| format!("gateway > close {code} {reason}"));
                Frame::Close(code)
            }
        };
        self.send_up(frame);
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Disk(request) => {
                let process = self.board.process.as_mut().expect("it has just spoken");
                process.jobs.push_back(request);
            }
            Output::Safe(receipt) => self.safe(receipt),
            Output::Deliver { token, topic, payload, .. } => self.deliver(token, &topic, &payload),
            Output::Dial { hub, .. } => self.dial(hub),
            Output::Hangup => self.hang_up(),
            Output::Probe { .. } => {
                let start = self.board.starts;
                self.after(SECOND, Event::Probed { start });
            }
            Output::RememberManaged { .. }
            | Output::Token
            | Output::TimeHeard { .. }
            | Output::Named { .. } => {}
        }
    }

    /// As the driver looks every second at what left the socket, while something is under way.
    fn look_again_later(&mut self) {
        let Some(process) = &mut self.board.process else { return };
        if !process.looks && process.link.is_some() && !process.gateway.is_drained() {
            process.looks = true;
            let start = process.start;
            self.after(SECOND, Event::Look { start });
        }
        self.limit_silence_under_way();
    }

    /// The process is killed: at rest, in the middle of what the disk does for it, or after that
    /// and before it learns of it.
    pub(crate) fn kill(&mut self) {
        let Some(process) = &mut self.board.process else { return };
        let job = process.jobs.pop_front().filter(|_| process.is_working);
        self.coverage.note(Seen::Kill);
        match job {
            Some(job) if self.random.one_in(2) => {
                self.coverage.note(Seen::KillInDiskWork);
                let after = self.random.below(6) as u32;
                self.board.medium.kill(after);
                self.work(job);
                self.board.medium.heal();
            }
            Some(job) if self.random.one_in(2) => {
                self.coverage.note(Seen::KillBeforeAnswer);
                self.work(job);
            }
            _ => {}
        }
        self.note("the gateway is killed");
        self.end_process(false);
    }

    /// The power goes.
    pub(crate) fn cut_power(&mut self) {
        self.note("the power goes");
        self.coverage.note(Seen::PowerCut);
        if self.board.process.is_some() && self.random.one_in(2) {
            let after = self.random.below(6) as u32;
            self.board.medium.kill(after);
            let job = self.board.process.as_mut().and_then(|process| process.jobs.pop_front());
            job.map(|job| self.work(job));
        }
        self.end_process(true);
        self.board.medium.crash();
    }

    /// Takes in what only the process itself has counted.
    pub(crate) fn note_recognised(&mut self) {
        let now = self.board_now();
        let snapshot = self.board.process.as_ref().map(|process| process.gateway.snapshot(now));
        let recognised = snapshot.map_or(0, |snapshot| snapshot.counters.recognised);
        self.coverage.add(Seen::Recognised, recognised);
    }

    fn end_process(&mut self, silently: bool) {
        self.note_recognised();
        let link = self.board.process.as_mut().and_then(|process| process.link.take());
        if let Some(connection) = link.and_then(|link| link.connection) {
            if silently {
                self.kill_connection(connection);
            }
            self.gateway_lets_go(connection);
        }
        self.board.process = None;
        self.lose_clients();
    }

    /// SIGTERM.
    pub(crate) fn stop(&mut self) {
        let by = self.now + STOP_SAFE;
        let Some(process) = &mut self.board.process else { return };
        if process.stopping.is_none() {
            process.stopping = Some(Stage::Safe(by));
            self.coverage.note(Seen::Stop);
            self.note("the gateway is asked to stop");
            self.after(STOP_SAFE, Event::Nudge);
            self.with_gateway(|gateway, now| gateway.handle_stop(now));
        }
    }

    fn stop_on(&mut self) {
        let now = self.now;
        let Some(process) = &mut self.board.process else { return };
        let Some(stage) = process.stopping else { return };
        let gateway = &mut process.gateway;
        let next = match stage {
            Stage::Safe(by) if gateway.is_settled() || now >= by => Stage::Acks(now + STOP_ACKS),
            Stage::Acks(by) if gateway.is_drained() || now >= by => Stage::Close(now + STOP_CLOSE),
            Stage::Close(by) if gateway.is_closed() || now >= by => {
                if let Some(store) = &mut process.store {
                    // What is not kept is sent again.
                    store.spool.save_positions().ok();
                }
                self.note("the gateway has stopped");
                return self.end_process(false);
            }
            _ => return,
        };
        process.stopping = Some(next);
        if let Stage::Close(_) = next {
            self.with_gateway(|gateway, now| gateway.handle_last_close(now));
        }
        self.after(STOP_ACKS, Event::Nudge);
        self.settle_board();
    }

    /// The core hears how its link ended.
    pub(crate) fn link_ended(&mut self, ended: &Ended) {
        self.note_with(|| format!("the link ends: {ended}"));
        let now = self.board_now();
        if let Some(process) = &mut self.board.process {
            process.link = None;
            // Our own close is answered with a code that says nothing new.
            let is_ours = process.gateway.snapshot(now).uplink.state == "closing";
            let code = match ended {
                Ended::Closed { code, .. } if !is_ours => Some(*code),
                _ => None,
            };
            self.oracle.wire.ended(self.now, code);
        }
        self.with_gateway(|gateway, now| gateway.handle_ended(now, ended));
    }

    /// Whether nothing is left to be done here.
    pub(crate) fn board_rests(&self) -> bool {
        self.board.process.as_ref().is_some_and(|process| {
            let snapshot = process.gateway.snapshot(self.board_now());
            process.store.is_some()
                && process.gateway.is_live()
                && process.gateway.is_settled()
                && process.jobs.is_empty()
                && snapshot.commands.under_way == 0
                && snapshot.streams.iter().all(|stream| stream.held == 0)
        })
    }

    /// For people: what keeps it from resting.
    pub(crate) fn board_unrest(&self) -> String {
        let Some(process) = &self.board.process else { return "no process".into() };
        let snapshot = process.gateway.snapshot(self.board_now());
        let (jobs, works) = (&process.jobs, process.is_working);
        let is_settled = process.gateway.is_settled();
        format!("settled {is_settled}, working {works} {jobs:?}, {snapshot:?}")
    }

    pub(crate) fn board_instant(&self, at: Time) -> Instant {
        let drift = i128::from(at) * i128::from(self.plan.drift_ppm) / 1_000_000;
        let shown = i128::from(at) + drift + 1000;
        self.base + Duration::from_micros(u64::try_from(shown).unwrap_or(0))
    }

    fn board_time_of(&self, instant: Instant) -> Option<Time> {
        let shown = instant.checked_duration_since(self.base)?.as_micros() as i128 - 1000;
        let ppm = i128::from(self.plan.drift_ppm);
        let mut at = (shown * 1_000_000 / (1_000_000 + ppm)).max(0) as Time;
        while self.board_instant(at) < instant {
            at += 1;
        }
        Some(at)
    }
}

/// The beginning of a message, for the trace.
pub(crate) fn brief(text: &str) -> &str {
    let end = text.char_indices().map(|(at, _)| at).nth(160).unwrap_or(text.len());
    &text[..end]
}
