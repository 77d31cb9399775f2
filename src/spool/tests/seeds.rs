//! The spool on a disk that keeps only its promises, driven by one seed: appends fail, the power
//! goes, and at each start all that was promised is asked for.
//!
//! `FIELDGATE_TEST_SEED=n` replays one seed, `FIELDGATE_TEST_SEEDS=n` runs so many.

use std::panic::{catch_unwind, resume_unwind};

use super::{
    model::{Model, body},
    *,
};
use crate::spool::simulated::{Random, SimulatedDisk};

const SEEDS: u64 = 10_000;
const QUARTERS: u64 = 4;
const STEPS: u64 = 20;
const DAMAGE_SEEDS: u64 = 1_000;
const STREAMS: [&str; 3] = ["events", "alarms", "telemetry"];

#[test]
fn what_append_calls_kept_survives_every_crash_1() {
    run_quarter(0);
}

#[test]
fn what_append_calls_kept_survives_every_crash_2() {
    run_quarter(1);
}

#[test]
fn what_append_calls_kept_survives_every_crash_3() {
    run_quarter(2);
}

#[test]
fn what_append_calls_kept_survives_every_crash_4() {
    run_quarter(3);
}

#[test]
fn damage_costs_what_it_hits_and_is_told() {
    for seed in seeds(DAMAGE_SEEDS) {
        replayable(seed, World::run_damaged);
    }
}

fn run_quarter(quarter: u64) {
    for seed in seeds(SEEDS).filter(|seed| seed % QUARTERS == quarter) {
        replayable(seed, World::run);
    }
}

fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("FIELDGATE_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("FIELDGATE_TEST_SEEDS").unwrap_or(usual),
    }
}

fn replayable(seed: u64, run: fn(u64)) {
    if let Err(panic) = catch_unwind(|| run(seed)) {
        eprintln!("replay with FIELDGATE_TEST_SEED={seed}");
        resume_unwind(panic);
    }
}

struct World {
    random: Random,
    disk: SimulatedDisk,
    limits: Limits,
    spool: Spool<SimulatedDisk>,
    model: Model,
    epoch: u64,
    /// Of each stream, the first number that is not kept.
    next: [u64; STREAMS.len()],
    faultless: bool,
    /// No fault since the power went last: what is read is on the medium, as it may not be after
    /// an fsync that failed.
    unspoilt: bool,
    /// Evictions are said with the next success, whatever they were for.
    unsaid: bool,
}

impl World {
    fn run(seed: u64) {
        let mut world = Self::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        world.disk.heal();
        world.start_again(true);
    }

    /// All is synced; then bytes flip and places can't be read any more.
    fn run_damaged(seed: u64) {
        let mut world = Self::new(seed);
        for _ in 0..STEPS {
            match world.random.below(8) {
                0 => world.trim(),
                1 => world.retire(),
                2 => world.start_again(false),
                _ => world.append(),
            }
        }
        let (mut flips, mut told) = (0, true);
        for _ in 0..1 + world.random.below(3) {
            let files = world.disk.files();
            let drawn = files.get(world.random.below(files.len() as u64) as usize);
            let Some((name, len)) = drawn.filter(|(_, len)| *len > 0) else { continue };
            told &= name != "positions";
            flips += 1;
            world.disk.flip(name, world.random.below(*len), 1 << world.random.below(8));
        }
        let mut spool = Spool::open(world.disk.clone(), &STREAMS, world.limits, seed)
            .expect("it always opens")
            .0;
        if world.random.one_in(4) {
            told = false;
            for (name, _) in world.disk.files() {
                world.disk.make_unreadable(&name, 512..600);
            }
        }
        let lost = world.model.check_damaged(&mut spool);
        assert!(lost <= flips || !told, "{flips} bytes flipped, {lost} records lost");
    }

    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let disk = SimulatedDisk::new(random.next());
        let segment_bytes = 256 << random.below(4);
        let may_evict = random.one_in(2);
        let max_bytes = if may_evict { segment_bytes * (4 + random.below(12)) } else { 1 << 24 };
        let limits = Limits { max_bytes, segment_bytes, min_free_bytes: 0, tail: 8 };
        let epoch = random.next();
        let (spool, report) = Spool::open(disk.clone(), &STREAMS, limits, epoch).unwrap();
        assert_eq!(report, Report::default());
        let model = Model::new(may_evict);
        Self {
            random,
            disk,
            limits,
            spool,
            model,
            epoch,
            next: [1; 3],
            faultless: true,
            unspoilt: true,
            unsaid: false,
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..45 => self.append(),
            45..63 => self.trim(),
            63..66 => self.retire(),
            66..70 => self.save_positions(),
            70..78 => self.read(),
            78..84 => self.break_disk(),
            84..90 => self.heal_disk(),
            90..92 => self.start_again(false),
            92..94 => self.kill(),
            _ => self.start_again(true),
        }
    }

    /// What failed is appended again before anything else of its stream.
    fn append(&mut self) {
        let mut entries = Vec::new();
        for stream in 0..STREAMS.len() {
            if self.random.one_in(3) {
                continue;
            }
            let first = self.next[stream].max(self.model.acked(stream, self.epoch) + 1);
            let count = if self.random.one_in(10) { 40 } else { 1 + self.random.below(6) };
            entries.extend((first..first + count).map(|seq| self.entry(stream, seq)));
        }
        let pressed = self.spool.bytes() + entries.iter().map(Entry::frame_bytes).sum::<u64>();
        self.model.attempt(&entries, self.epoch);
        let Ok(Appended { evicted, .. }) = self.spool.append(&entries) else {
            assert!(!self.faultless, "no fault was planned");
            self.unsaid = true;
            return;
        };
        self.model.keep(&entries, self.epoch);
        for entry in &entries {
            self.next[entry.stream] = entry.seq + 1;
        }
        let unsaid = std::mem::replace(&mut self.unsaid, false);
        let events = evicted.iter().all(|evicted| evicted.stream == 0);
        assert!(
            events || unsaid || !self.faultless || pressed > self.limits.max_bytes / 2,
            "{evicted:?} with {pressed} of {:?}",
            self.limits
        );
    }

    fn entry(&self, stream: usize, seq: u64) -> Entry {
        Entry { stream, seq, bytes: body(stream, self.epoch, seq), origin: None }
    }

    /// Of the newest epoch, also what was never handed over: the hub had it from memory.
    fn trim(&mut self) {
        let Some((range, acked)) = self.draw_held() else { return };
        let acked = if range.epoch == self.epoch && self.random.one_in(3) {
            self.next[range.stream].max(range.next) - 1 + self.random.below(6)
        } else {
            acked
        };
        self.model.trim(range.stream, range.epoch, acked);
        let trimmed = self.spool.trim(range.stream, range.epoch, acked);
        assert!(trimmed.is_ok() || !self.faultless, "{trimmed:?}");
    }

    fn retire(&mut self) {
        let Some((range, _)) = self.draw_held().filter(|held| held.0.epoch != self.epoch) else {
            return;
        };
        let done = self.spool.retire(range.stream, range.epoch).is_ok();
        assert!(done || !self.faultless, "no fault was planned");
        self.model.retire(range.stream, range.epoch, range.next - 1, done);
    }

    fn save_positions(&mut self) {
        if self.spool.save_positions().is_ok() {
            self.model.save_positions();
        }
    }

    fn read(&mut self) {
        let Some((range, _)) = self.draw_held() else { return };
        let piece = 1 + self.random.below(500) as usize;
        let records = self.model.check(&mut self.spool, &range, piece);
        if range.epoch == self.epoch {
            self.model.check_current(range.stream, range.epoch, &records);
        }
    }

    /// An epoch and a number in it.
    fn draw_held(&mut self) -> Option<(HeldRange, u64)> {
        let held = self.spool.held();
        let range = held.get(self.random.below(held.len() as u64) as usize)?.clone();
        let acked = range.acked + self.random.below(range.next - range.acked);
        Some((range, acked))
    }

    fn break_disk(&mut self) {
        self.faultless = false;
        self.unspoilt = false;
        match self.random.below(6) {
            0 => self.disk.make_read_only(),
            1 => {
                self.disk.leave_room(self.random.below(3000));
                self.model.may_evict = true;
            }
            2 | 3 => self.disk.fail(self.random.below(12) as u32, u32::MAX),
            _ => {
                let times = 1 + self.random.below(3);
                self.disk.fail(self.random.below(12) as u32, times as u32);
            }
        }
    }

    fn heal_disk(&mut self) {
        self.disk.heal();
        self.faultless = true;
    }

    /// The process is killed in the middle of an append: the medium has no fault.
    fn kill(&mut self) {
        if !self.faultless {
            return;
        }
        self.disk.kill(self.random.below(12) as u32);
        self.faultless = false;
        self.append();
        self.heal_disk();
        self.start_again(false);
    }

    /// The process is killed, or the power goes, and the gateway starts anew.
    fn start_again(&mut self, power_cut: bool) {
        if power_cut {
            self.disk.crash();
            self.faultless = true;
            self.unspoilt = true;
        }
        if self.faultless && self.random.one_in(8) {
            self.break_disk();
        }
        self.epoch = self.random.next();
        let opened = Spool::open(self.disk.clone(), &STREAMS, self.limits, self.epoch);
        let (spool, report) = opened.unwrap();
        self.spool = spool;
        self.next = [1; STREAMS.len()];
        assert!(
            !report.damage.iter().any(|damage| damage.contains("unreadable")),
            "{:?}",
            report.damage
        );
        self.model.check_start(&mut self.spool, self.unspoilt);
    }
}
