//! Keeps account of every publish and every record, and panics at the step that breaks a promise.

use std::collections::{BTreeMap, HashMap};

use fieldgate::{
    command::Status,
    protocol::{Data, Payload, StreamName, WireBody},
    record::{Body, Event, Stored},
    spool::{Entry, HeldRange},
};

use crate::{
    coverage::{Coverage, Seen},
    fate::Fates,
    plan::STREAMS,
    wire::Wire,
};

/// What a publish is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Reading,
    /// Larger than the gateway takes.
    Oversize,
    /// A device's answer to a command.
    Reply,
}

/// One publish of a device; its number is its place.
#[derive(Debug)]
struct Account {
    device: usize,
    kind: Kind,
    /// How often the gateway got it.
    heard: u32,
    is_acknowledged: bool,
    is_on_disk: bool,
    /// Records at the hub with it.
    applied: u32,
    /// Said to be lost, for a reason that a promise allows.
    is_accounted: bool,
}

type Key = (usize, u64);

/// The promises of records, and of everything else in its parts.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) fates: Fates,
    pub(crate) wire: Wire,
    publishes: Vec<Account>,
    /// What each number of a stream's epoch stands for.
    readings: HashMap<(usize, u64, u64), u64>,
    events: HashMap<(usize, u64, u64), u64>,
    /// How far the hub is in each epoch, as the oracle counts.
    applied: HashMap<Key, u64>,
    /// The order of the epochs, and of the devices' readings within them.
    ranks: HashMap<Key, u64>,
    newest_applied: [u64; STREAMS.len()],
    last_of_device: HashMap<(Key, usize), u64>,
    attempts: Vec<(usize, u64, u64, u64)>,
    refusals: BTreeMap<(usize, String), Refusals>,
    counted: HashMap<(u64, u64), ()>,
    /// Whether epochs may come in another order than they were begun.
    pub(crate) is_order_free: bool,
    /// Whether damage may be told of records that were safe.
    pub(crate) is_disk_damaged: bool,
    /// Whether reports may be gone, as their skip tells.
    pub(crate) has_lost_events: bool,
}

#[derive(Debug, Default)]
struct Refusals {
    /// Told by events that are safe here or at the hub; told to the hub; acknowledged.
    safe: u64,
    at_hub: u64,
    acknowledged: u64,
}

impl Oracle {
    /// A device publishes something new; gives its number.
    pub(crate) fn publish(&mut self, device: usize, kind: Kind) -> u64 {
        self.publishes.push(Account {
            device,
            kind,
            heard: 0,
            is_acknowledged: false,
            is_on_disk: false,
            applied: 0,
            is_accounted: false,
        });
        self.publishes.len() as u64 - 1
    }

    /// The gateway gets it.
    pub(crate) fn heard(&mut self, number: u64) {
        self.publishes[number as usize].heard += 1;
    }

    /// An epoch of a stream begins.
    pub(crate) fn begun(&mut self, stream: usize, epoch: u64) {
        let rank = self.ranks.len() as u64;
        let old = self.ranks.insert((stream, epoch), rank);
        assert!(old.is_none(), "the epoch {epoch:016x} of {} begins twice", STREAMS[stream]);
    }

    /// The disk has these records, synced.
    pub(crate) fn appended(&mut self, entries: &[Entry], epochs: &[u64]) {
        for entry in entries {
            let epoch = epochs[entry.stream];
            let Ok(stored) = Stored::read(&entry.bytes) else { panic!("a record is malformed") };
            match stored.body {
                Body::Reading(reading) => {
                    let number = number_in(reading.payload);
                    self.identify(entry.stream, epoch, entry.seq, number);
                    self.publishes[number as usize].is_on_disk = true;
                }
                Body::Event(json) => self.count_refusals(epoch, entry.seq, json, false),
            }
        }
    }

    /// The disk failed with these records: it may have them or not.
    pub(crate) fn attempted(&mut self, entries: &[Entry], epochs: &[u64]) {
        for entry in entries {
            let body = Stored::read(&entry.bytes).map(|stored| stored.body);
            if let Ok(Body::Reading(reading)) = body {
                let number = number_in(reading.payload);
                self.attempts.push((entry.stream, epochs[entry.stream], entry.seq, number));
            }
        }
    }

    /// A start finds these on disk, and has synced them.
    pub(crate) fn found(&mut self, held: &[HeldRange]) {
        for (stream, epoch, seq, number) in std::mem::take(&mut self.attempts) {
            let is_found = held.iter().any(|range| {
                (range.stream, range.epoch) == (stream, epoch)
                    && (range.acked + 1..range.next).contains(&seq)
            });
            if is_found {
                self.identify(stream, epoch, seq, number);
                self.publishes[number as usize].is_on_disk = true;
            }
        }
    }

    /// The device has its PUBACK: promise 1.
    pub(crate) fn acknowledged(&mut self, number: u64, coverage: &mut Coverage) {
        coverage.note(Seen::Acknowledged);
        let publish = &mut self.publishes[number as usize];
        publish.is_acknowledged = true;
        if publish.kind == Kind::Reply || publish.is_safe() {
            return;
        }
        let reason = match publish.kind {
            Kind::Oversize => "too_large",
            _ => "over_share",
        };
        coverage.note(if reason == "too_large" { Seen::Refused } else { Seen::OverShare });
        let refusals = self.refusals.entry((publish.device, reason.into())).or_default();
        refusals.acknowledged += 1;
        publish.is_accounted = true;
        assert!(
            refusals.acknowledged <= refusals.safe,
            "promise 1: publish {number} of d{} is acknowledged, and is neither on disk nor at \
             the hub nor accounted for by a report that is",
            publish.device
        );
    }

    /// The hub's engine got these records, new or not.
    pub(crate) fn arrived(&mut self, data: &Data) {
        let stream = place_of(&data.stream);
        for (seq, record) in (data.seq..).zip(&data.records) {
            match &record.body {
                WireBody::Reading { payload, .. } => {
                    self.identify(stream, data.epoch.0, seq, number_of(payload));
                }
                WireBody::Event { json, .. } => {
                    let digest = fieldgate::record::session_key(json.get(), "");
                    let old = self.events.insert((stream, data.epoch.0, seq), digest);
                    let same = old.is_none_or(|old| old == digest);
                    assert!(same, "promise 2: event {seq} of {} is two events", data.epoch);
                }
            }
        }
    }

    /// These of its records are durable at the hub now, and were not before.
    pub(crate) fn applied(
        &mut self,
        data: &Data,
        from: u64,
        rejected: &[(u64, &'static str)],
        coverage: &mut Coverage,
    ) {
        let stream = place_of(&data.stream);
        let key = (stream, data.epoch.0);
        self.move_on(key, from, data.seq + data.records.len() as u64);
        for (seq, record) in (data.seq..).zip(&data.records).filter(|(seq, _)| *seq >= from) {
            match &record.body {
                _ if rejected.iter().any(|(number, _)| *number == seq) => {
                    coverage.note(Seen::RejectedRecord);
                    let number = self.readings[&(stream, data.epoch.0, seq)];
                    self.publishes[number as usize].is_accounted = true;
                }
                WireBody::Reading { payload, .. } => {
                    coverage.note(Seen::Applied);
                    self.apply_reading(key, number_of(payload), coverage);
                }
                WireBody::Event { kind, json } => {
                    self.count_refusals(data.epoch.0, seq, json.get(), true);
                    if kind == "command_status"
                        && let Ok(status) = serde_json::from_str::<Status>(json.get())
                    {
                        self.fates.reported(&status, coverage);
                    }
                }
            }
        }
    }

    fn apply_reading(&mut self, key: Key, number: u64, coverage: &mut Coverage) {
        let publish = &mut self.publishes[number as usize];
        publish.applied += 1;
        assert!(
            publish.applied <= publish.heard,
            "promise 2: publish {number} was heard {} times and is at the hub {} times",
            publish.heard,
            publish.applied
        );
        if publish.applied > 1 {
            coverage.note(Seen::DuplicateKept);
        }
        let last = self.last_of_device.entry((key, publish.device)).or_default();
        assert!(
            number > *last || publish.heard > 1 || *last == 0,
            "publish {number} of d{} comes after {last}: out of order",
            publish.device
        );
        *last = (*last).max(number);
    }

    /// Records that will never come, beyond the hub's position.
    pub(crate) fn skipped(
        &mut self,
        stream: &StreamName,
        epoch: u64,
        range: std::ops::Range<u64>,
        reason: &str,
        coverage: &mut Coverage,
    ) {
        let place = place_of(stream);
        self.move_on((place, epoch), range.start, range.end);
        self.has_lost_events |= place == 0;
        coverage.note(match reason {
            "damaged" => Seen::DamageSkip,
            "evicted" => Seen::EvictedSkip,
            _ => Seen::PoisonSkip,
        });
        // A torn write may look like damage; what was safe is never in it.
        if reason == "damaged" && !self.is_disk_damaged {
            return;
        }
        for seq in range {
            if let Some(number) = self.readings.get(&(place, epoch, seq)) {
                self.publishes[*number as usize].is_accounted = true;
            }
        }
    }

    /// Promise 2: every number of an epoch comes once, and in order.
    fn move_on(&mut self, key: Key, from: u64, to: u64) {
        let next = self.applied.entry(key).or_insert(1);
        assert!(
            from >= *next,
            "promise 2: {from} of {} {:016x} is applied again; the hub had all before {next}",
            STREAMS[key.0],
            key.1
        );
        *next = to;
        let rank = self.ranks.get(&key).copied().unwrap_or(0);
        let newest = &mut self.newest_applied[key.0];
        assert!(
            rank >= *newest || self.is_order_free,
            "an older epoch of {} comes after a newer one",
            STREAMS[key.0]
        );
        *newest = (*newest).max(rank);
    }

    /// A number stands for one record, wherever it is met.
    fn identify(&mut self, stream: usize, epoch: u64, seq: u64, number: u64) {
        let old = self.readings.insert((stream, epoch, seq), number);
        assert!(
            old.is_none_or(|old| old == number),
            "promise 2: {seq} of {} {epoch:016x} is publish {old:?} and publish {number}",
            STREAMS[stream]
        );
    }

    fn count_refusals(&mut self, epoch: u64, seq: u64, json: &str, at_hub: bool) {
        let Ok(Event::Refused { device, reason, count }) = serde_json::from_str(json) else {
            return;
        };
        let device = device.and_then(|name| name.strip_prefix('d')?.parse().ok());
        let refusals = self.refusals.entry((device.unwrap_or(usize::MAX), reason)).or_default();
        if self.counted.insert((epoch, seq), ()).is_none() {
            refusals.safe += count;
        }
        refusals.at_hub += if at_hub { count } else { 0 };
    }

    /// Everything has healed and has come to rest: what was acknowledged is at the hub.
    pub(crate) fn check_end(&self) {
        for (number, publish) in self.publishes.iter().enumerate() {
            // A flipped byte in the last record of a file looks like a torn write.
            let may_be_damaged = self.is_disk_damaged && publish.is_on_disk;
            let is_owed = publish.is_acknowledged && publish.kind == Kind::Reading;
            let is_owed = is_owed && !may_be_damaged;
            assert!(
                !is_owed || publish.applied > 0 || publish.is_accounted,
                "promise 1: publish {number} of d{} was acknowledged and is lost: {publish:?}",
                publish.device
            );
        }
        for ((device, reason), refusals) in &self.refusals {
            assert!(
                refusals.acknowledged <= refusals.at_hub || self.has_lost_events,
                "promise 3: the hub knows of {} of {} refusals of d{device} ({reason})",
                refusals.at_hub,
                refusals.acknowledged
            );
        }
    }
}

impl Account {
    fn is_safe(&self) -> bool {
        self.is_on_disk || self.applied > 0 || self.is_accounted
    }
}

/// The stream's place.
pub(crate) fn place_of(stream: &StreamName) -> usize {
    STREAMS.iter().position(|name| *name == stream.as_str()).expect("a stream of ours")
}

fn number_of(payload: &Payload) -> u64 {
    match payload {
        Payload::Json(json) => number_in(json.as_bytes()),
        Payload::Bytes(bytes) => number_in(bytes),
    }
}

/// The number that a payload begins with, behind what is no digit.
fn number_in(payload: &[u8]) -> u64 {
    let digits = payload.iter().skip_while(|byte| !byte.is_ascii_digit());
    let digits = digits.take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}
