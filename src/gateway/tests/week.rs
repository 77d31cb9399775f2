//! A week of a normal day: what the seventh day takes is what the second took.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use super::*;

const DAYS: u64 = 7;
const DEVICES: u64 = 10;
/// Each device publishes every 30 s, one after the other.
const TICK: Duration = Duration::from_secs(3);
const TICKS_OF_AN_HOUR: u64 = 1200;
const BURST: u64 = 50;

/// What the gateway takes at its worst moment of a day.
#[derive(Debug, Clone, Copy, Default)]
struct Footprint {
    files: usize,
    file_bytes: u64,
    open_files: usize,
    memory_bytes: usize,
    positions_bytes: u64,
    journal_keys: usize,
    maps: usize,
    /// In all of the day.
    written_bytes: u64,
    syncs: u64,
}

impl Footprint {
    fn of(world: &World) -> Self {
        let files = world.medium.files();
        let positions = files.iter().find(|(name, _)| name == "positions");
        let gateway = &world.gateway;
        Self {
            files: files.len(),
            file_bytes: files.iter().map(|(_, len)| len).sum(),
            open_files: world.medium.open_files(),
            memory_bytes: gateway.memory_bytes(),
            positions_bytes: positions.map_or(0, |(_, len)| *len),
            journal_keys: world.journal.entries().count(),
            written_bytes: 0,
            syncs: 0,
            maps: gateway.heard.len() + gateway.outputs.len() + world.spool.held().len(),
        }
    }

    fn worst(self, other: Self) -> Self {
        Self {
            files: self.files.max(other.files),
            file_bytes: self.file_bytes.max(other.file_bytes),
            open_files: self.open_files.max(other.open_files),
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
            positions_bytes: self.positions_bytes.max(other.positions_bytes),
            journal_keys: self.journal_keys.max(other.journal_keys),
            maps: self.maps.max(other.maps),
            ..self
        }
    }

    /// By at most a tenth more, for numbers get longer.
    fn is_within(self, other: Self) -> bool {
        let within = |mine: u64, theirs: u64| mine <= theirs + theirs / 10;
        self.files <= other.files + 1
            && within(self.file_bytes, other.file_bytes)
            && self.open_files <= other.open_files
            && within(self.memory_bytes as u64, other.memory_bytes as u64)
            && within(self.positions_bytes, other.positions_bytes)
            && self.journal_keys <= other.journal_keys
            && self.maps <= other.maps
            && within(self.written_bytes, other.written_bytes)
            && within(self.syncs, other.syncs)
    }
}

impl World {
    fn day(&mut self) -> Footprint {
        let before = self.medium.account();
        let mut worst = Footprint::default();
        for hour in 0..24 {
            for tick in 0..TICKS_OF_AN_HOUR {
                match (hour, tick) {
                    (3, 0) | (15, 0) => self.cut(),
                    (_, 600) => (0..BURST).for_each(|device| self.publish_of(device)),
                    (_, 700 | 900) => self.command(),
                    _ => {}
                }
                let is_out = hour == 15 || hour == 3 && tick < 200;
                if self.link == Link::Dialing && is_out {
                    self.link = Link::None;
                    self.gateway.handle_ended(self.now, &Ended::Dial("no route".into()));
                } else {
                    self.bring_up();
                }
                self.publish_of(tick);
                self.go_on();
                if tick % 100 == 99 {
                    worst = worst.worst(Footprint::of(self));
                }
            }
        }
        self.gateway.handle_stop(self.now);
        self.go_on();
        assert!(self.gateway.is_settled(), "a stop makes everything safe");
        self.spool.save_positions().unwrap();
        self.start_again();
        self.drain();
        let after = self.medium.account();
        worst.written_bytes = after.bytes - before.bytes;
        worst.syncs = after.syncs - before.syncs;
        worst
    }

    fn publish_of(&mut self, device: u64) {
        assert!(self.gateway.has_room(), "a normal day keeps no device waiting");
        self.publish_from(&format!("d{}", device % DEVICES));
    }

    /// The disk and the devices are quick; then time goes on.
    fn go_on(&mut self) {
        self.drain();
        while !self.jobs.is_empty() {
            self.work_disk();
            self.drain();
        }
        while let Some((token, id)) = self.deliveries.pop() {
            self.reached.insert(id);
            self.gateway.handle_delivered(self.now, token);
            self.drain();
        }
        self.pass(TICK);
    }
}

#[test]
fn a_normal_week_leaves_no_trace_and_logs_no_warning() {
    let log = Log::default();
    log.of(tracing::Level::WARN, || {
        let mut world = World::with(7, Some(false));
        world.hub.steady = true;
        let days: Vec<Footprint> = (0..DAYS).map(|_| world.day()).collect();
        for day in &days[2..] {
            assert!(day.is_within(days[1]), "{days:#?}");
        }
        assert!(days[1].files > 1 && days[1].journal_keys > 0 && days[1].memory_bytes > 0);
        world.settle();
        assert_eq!(world.hub.applied, Vec::from_iter(1..=world.published));
    });
    assert_eq!(log.text(), "");
}

/// What was logged.
#[derive(Debug, Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Takes in what this logs, of this level and above.
    pub(super) fn of(&self, level: tracing::Level, work: impl FnOnce()) {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_ansi(false)
            .with_writer(move || log.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, work);
    }

    pub(super) fn text(&self) -> String {
        let bytes = self.0.lock().expect("no writer panics").clone();
        String::from_utf8(bytes).expect("a log is text")
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no writer panics").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
