//! How far each epoch is: handed to the engine, and acknowledged.
//!
//! It must never acknowledge by what was handed on, only by what the engine answered, and never
//! hand on what lies behind a hole.

use std::{collections::BTreeMap, sync::Arc};

use super::{Asked, MAX_EPOCHS, MAX_SEQ, Output, Session, Stored};
use crate::{
    hub::engine::{Applied, Held, Request},
    planted::{Bug, planted},
    protocol::{
        Ack, Data, Epoch, ErrorMessage, Hello, HubMessage, Payload, Position, Skip, StreamName,
        Window, WireBody, close,
    },
    record::{is_device_name, is_plain_json},
};

const PAUSED: Window = Window { records: 0, bytes: 0 };

/// What becomes of a message.
#[derive(Debug)]
pub(super) enum Admission {
    /// It goes to the engine.
    Pass,
    /// It lies behind a hole that was answered already.
    Discard,
    /// It shows a hole.
    Gap(ErrorMessage),
    /// It would open one epoch too many.
    TooMany,
}

#[derive(Debug)]
struct Place {
    /// What is expected next from the gateway; all before was handed to the engine.
    next: u64,
    /// What the engine expects; all before is durable.
    durable: u64,
    /// The gateway was told of a hole and has not sent `next` yet.
    told: bool,
    /// The engine lost a request: the gateway is to be told once it works again.
    failed: bool,
    /// An ack is due.
    due: bool,
    rejected: Vec<(u64, String)>,
}

impl Place {
    fn at(next: u64) -> Self {
        let (told, failed, due) = (false, false, false);
        Self { next, durable: next, told, failed, due, rejected: Vec::new() }
    }

    fn fall_back(&mut self, expected: u64) {
        self.next = expected;
        self.durable = expected;
        self.told = true;
        self.failed = false;
    }
}

type Key = (StreamName, Epoch);

#[derive(Debug)]
pub(super) struct Streams {
    window: Window,
    places: BTreeMap<Key, Place>,
    /// Epochs with an ack due, oldest first.
    due: Vec<Key>,
}

impl Streams {
    pub(super) fn new(window: Window) -> Self {
        Self { window, places: BTreeMap::new(), due: Vec::new() }
    }

    pub(super) fn open(&mut self, positions: Vec<Held>) {
        for held in positions {
            self.places.insert((held.stream, held.epoch), Place::at(held.next));
        }
    }

    /// The positions that `welcome` names, in the order of `hello`.
    pub(super) fn positions(&self, hello: &Hello, is_open: bool) -> Vec<Position> {
        let key = |held: &crate::protocol::HeldEpoch| (held.stream.clone(), held.epoch);
        hello.streams.iter().filter_map(|held| self.position(&key(held), is_open)).collect()
    }

    pub(super) fn admit(
        &mut self,
        stream: &StreamName,
        epoch: Epoch,
        from: u64,
        to: u64,
    ) -> Admission {
        let key = (stream.clone(), epoch);
        if self.places.len() >= 2 * MAX_EPOCHS && !self.places.contains_key(&key) {
            return Admission::TooMany;
        }
        let place = self.places.entry(key).or_insert_with(|| Place::at(1));
        if place.failed || (from > place.next && place.told) {
            return Admission::Discard;
        }
        if from > place.next {
            place.told = true;
            return Admission::Gap(ErrorMessage::gap(stream.clone(), epoch, place.next));
        }
        if to > place.next {
            place.told = false;
            place.next = to;
        }
        Admission::Pass
    }

    /// The engine answered: everything before `next` is durable.
    pub(super) fn applied(
        &mut self,
        stream: &StreamName,
        epoch: Epoch,
        next: u64,
        rejected: &[(u64, &'static str)],
    ) {
        let key = (stream.clone(), epoch);
        let Some(place) = self.places.get_mut(&key) else { return };
        place.durable = place.durable.max(next);
        place.next = place.next.max(next);
        place.rejected.extend(rejected.iter().map(|(seq, reason)| (*seq, (*reason).to_owned())));
        if !std::mem::replace(&mut place.due, true) {
            self.due.push(key);
        }
    }

    /// The engine sees a hole where this session saw none. Later messages that are under way fare
    /// alike and say nothing more.
    pub(super) fn fell_back(
        &mut self,
        stream: &StreamName,
        epoch: Epoch,
        expected: u64,
    ) -> Vec<HubMessage> {
        let Some(place) = self.places.get_mut(&(stream.clone(), epoch)) else { return Vec::new() };
        if place.told && place.next == expected {
            return Vec::new();
        }
        place.fall_back(expected);
        vec![HubMessage::Error(ErrorMessage::gap(stream.clone(), epoch, expected))]
    }

    /// The engine failed on a request of this epoch.
    pub(super) fn failed(&mut self, stream: &StreamName, epoch: Epoch) {
        if let Some(place) = self.places.get_mut(&(stream.clone(), epoch)) {
            place.failed = true;
        }
    }

    /// Window 0 for every epoch.
    pub(super) fn pause(&self) -> Vec<HubMessage> {
        self.unprompted(false)
    }

    /// The window opens again; where records were lost on the way to the engine, the gateway sends
    /// them again.
    pub(super) fn resume(&mut self) -> Vec<HubMessage> {
        let mut messages = self.unprompted(true);
        for ((stream, epoch), place) in &mut self.places {
            if place.failed {
                place.fall_back(place.durable);
                let gap = ErrorMessage::gap(stream.clone(), *epoch, place.durable);
                messages.push(HubMessage::Error(gap));
            }
        }
        messages
    }

    pub(super) fn poll_ack(&mut self, is_open: bool) -> Option<Ack> {
        let key = if self.due.is_empty() { return None } else { self.due.remove(0) };
        let position = self.position(&key, is_open)?;
        let place = self.places.get_mut(&key)?;
        place.due = false;
        Some(Ack { position, rejected: std::mem::take(&mut place.rejected) })
    }

    fn unprompted(&self, is_open: bool) -> Vec<HubMessage> {
        self.places
            .keys()
            .filter_map(|key| self.position(key, is_open))
            .map(|position| HubMessage::Ack(Ack { position, rejected: Vec::new() }))
            .collect()
    }

    fn position(&self, key: &Key, is_open: bool) -> Option<Position> {
        let place = self.places.get(key)?;
        Some(Position {
            stream: key.0.clone(),
            epoch: key.1,
            acked: place.durable - 1,
            window: Some(if is_open { self.window } else { PAUSED }),
        })
    }
}

impl Session {
    pub(super) fn handle_data(&mut self, data: Data, bytes: usize) {
        let end = data.seq.checked_add(data.records.len() as u64);
        if data.seq == 0 || end.is_none_or(|end| end > MAX_SEQ) {
            return self.break_off("seq is from 1 to 2^53");
        }
        if data.records.len() > self.options.limits.batch_records {
            let most = self.options.limits.batch_records;
            self.say_error("too_big", format!("a data message has at most {most} records"));
            return self.close(close::TOO_BIG, "too many records in a message");
        }
        match self.streams.admit(&data.stream, data.epoch, data.seq, end.unwrap_or(MAX_SEQ)) {
            Admission::Pass => {}
            Admission::Discard => return,
            Admission::Gap(error) => return self.send(&HubMessage::Error(error)),
            Admission::TooMany => return self.break_off("too many epochs are open"),
        }
        if planted(Bug::AckBeforeStore) {
            self.streams.applied(&data.stream, data.epoch, end.unwrap_or(MAX_SEQ), &[]);
        }
        let rejected = rejected(&data, self.options.limits.record_bytes);
        let data = Arc::new(data);
        self.outputs.push_back(Output::Ask(Request::Apply {
            session: self.id.clone(),
            data: data.clone(),
            rejected: rejected.clone(),
        }));
        self.asked_bytes += bytes;
        self.asked.push_back(Asked::Apply { data, rejected, bytes });
    }

    pub(super) fn handle_skip(&mut self, skip: Skip) {
        if skip.from == 0 || skip.from >= skip.to || skip.to > MAX_SEQ {
            return self.break_off("a skip has 1 <= from < to <= 2^53");
        }
        match self.streams.admit(&skip.stream, skip.epoch, skip.from, skip.to) {
            Admission::Pass => {}
            Admission::Discard => return,
            Admission::Gap(error) => return self.send(&HubMessage::Error(error)),
            Admission::TooMany => return self.break_off("too many epochs are open"),
        }
        let request = Request::Skip { session: self.id.clone(), skip: skip.clone() };
        self.outputs.push_back(Output::Ask(request));
        self.asked.push_back(Asked::Skip(skip));
    }

    pub(super) fn handle_applied(
        &mut self,
        data: Arc<Data>,
        mut rejected: Vec<(u64, &'static str)>,
        applied: Applied,
    ) {
        let Applied { next, new_from, first_id, statuses } = applied;
        self.streams.applied(&data.stream, data.epoch, next, &rejected);
        rejected.retain(|(seq, _)| *seq >= new_from);
        if new_from < data.seq + data.records.len() as u64 {
            self.outputs.push_back(Output::Stored(Stored { data, rejected, new_from, first_id }));
        }
        self.handle_statuses(statuses);
    }
}

/// The records that are not taken, with the reason (PROTOCOL.md, section 4).
fn rejected(data: &Data, record_bytes: usize) -> Vec<(u64, &'static str)> {
    let mut rejected = Vec::new();
    for (seq, record) in (data.seq..).zip(&data.records) {
        let reason = match &record.body {
            WireBody::Event { json, .. } if json.get().len() > record_bytes => "too_large",
            WireBody::Event { .. } => continue,
            WireBody::Reading { device, .. } if !is_device_name(device) => "unknown_device",
            WireBody::Reading { payload: Payload::Json(json), .. } => {
                if json.len() > record_bytes {
                    "too_large"
                } else if is_plain_json(json.as_bytes()) {
                    continue;
                } else {
                    "bad_payload"
                }
            }
            WireBody::Reading { payload: Payload::Bytes(bytes), .. } => {
                if bytes.len() <= record_bytes {
                    continue;
                }
                "too_large"
            }
        };
        rejected.push((seq, reason));
    }
    rejected
}
