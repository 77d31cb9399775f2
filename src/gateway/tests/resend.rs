//! A device with a persistent session sends again what was not acknowledged, after crashes of the
//! gateway and of its own connection: with `durability = "disk"` nothing is lost, doubled or out of
//! order.

use super::*;
use crate::record::Packet;

const SEEDS: u64 = 100;
const STEPS: usize = 300;

/// How many publishes the device has in flight: as many as `settings` says are remembered.
const WINDOW: usize = 20;

struct Device {
    world: World,
    connection: u64,
    /// The packet identifier before the first, and what they are counted modulo.
    ids: (u64, u64),
    /// Whether all publishes have the same payload.
    same: bool,
}

impl Device {
    fn new(seed: u64, ids: (u64, u64), same: bool) -> Self {
        let world = World::with(seed, Some(true));
        Self { world, connection: 1, ids, same }
    }

    fn unacknowledged(&self) -> Vec<u64> {
        (1..=self.world.published).filter(|number| !self.world.safe.contains(number)).collect()
    }

    fn send(&mut self, number: u64, dup: bool) {
        let (first, modulus) = self.ids;
        let payload = if self.same { "0".into() } else { number.to_string().into() };
        let receipt = Receipt { source: SourceId(0), connection: self.connection, number };
        let id = ((first + number) % modulus) as u16 + 1;
        let publish = Publish {
            topic: "devices/d/telemetry".into(),
            payload,
            retained: false,
            source: SourceId(0),
            receipt: Some(receipt),
            packet: Some(Packet { session: 9, id, dup }),
        };
        self.world.gateway.handle_publish(self.world.now, publish);
        self.world.drain();
    }

    fn publish(&mut self) {
        while self.unacknowledged().len() < WINDOW && !self.world.random.next().is_multiple_of(4) {
            self.world.published += 1;
            self.send(self.world.published, false);
        }
    }

    fn reconnect(&mut self) {
        self.connection += 1;
        for number in self.unacknowledged() {
            if !self.world.safe.contains(&number) {
                self.send(number, true);
            }
        }
    }

    /// What was heard of a connection that has ended answers nobody.
    fn cut(&mut self) {
        self.world.deaf_before = self.connection + 1;
        self.reconnect();
    }

    fn run(mut self) -> Self {
        // The session has to be known before anything of it is recognised.
        for _ in 0..2 {
            self.publish_all(WINDOW as u64);
        }
        for _ in 0..STEPS {
            match self.world.random.next() % 100 {
                0..=1 => {
                    self.world.crash();
                    self.world.deaf_before = self.connection + 1;
                    self.reconnect();
                }
                2..=3 => self.cut(),
                4..=39 => self.publish(),
                40..=69 => self.world.work_disk(),
                70..=79 => self.world.pass(Duration::from_millis(300)),
                80..=89 => self.world.bring_up(),
                90..=92 => self.world.cut(),
                _ => self.world.gateway.handle_exhausted(self.world.now),
            }
            self.world.drain();
        }
        self.world.deaf_before = self.connection + 1;
        self.reconnect();
        self.world.run_until_idle();
        self
    }

    fn publish_all(&mut self, count: u64) {
        for _ in 0..count {
            self.world.published += 1;
            self.send(self.world.published, false);
        }
        while !self.world.jobs.is_empty() || !self.unacknowledged().is_empty() {
            self.world.pass(Duration::from_millis(300));
            self.world.work_disk();
            self.world.drain();
        }
    }
}

fn each_seed(run: impl Fn(u64) + std::panic::RefUnwindSafe) {
    for seed in seeds(SEEDS) {
        replayable(seed, || run(seed));
    }
}

#[test]
fn increasing_identifiers_cost_nothing_lost_doubled_or_out_of_order() {
    each_seed(|seed| {
        let device = Device::new(seed, (65_500, 65_535), false).run();
        let world = device.world;
        let mut applied = world.hub.applied;
        if world.live_first.is_some() {
            applied.sort_unstable();
        }
        assert_eq!(applied, Vec::from_iter(1..=world.published), "seed {seed}");
    });
}

#[test]
fn one_identifier_and_one_payload_cost_nothing_lost() {
    each_seed(|seed| {
        let device = Device::new(seed, (0, 1), true).run();
        let world = device.world;
        assert!(world.hub.applied.len() as u64 >= world.published, "seed {seed}");
    });
}

#[test]
fn few_identifiers_used_again_and_again_cost_nothing_lost() {
    each_seed(|seed| {
        let world = Device::new(seed, (0, WINDOW as u64), false).run().world;
        let applied: BTreeSet<u64> = world.hub.applied.iter().copied().collect();
        assert_eq!(applied, BTreeSet::from_iter(1..=world.published), "seed {seed}");
    });
}
