//! One stream: its epochs, what of them is in memory, what is under way, and who waits for it.
//!
//! A lane numbers records, hands them to the disk when they are due, gives the next one to send, and lets go of what
//! the hub holds. It must never give a number twice, never send past the hub's window, and never let go of a receipt
//! before its record is safe.

use std::{collections::VecDeque, time::Instant};

use bytes::Bytes;

use crate::{
    protocol::{Epoch, HeldEpoch, Position, StreamName, Window},
    record::Receipt,
    spool::{Entry, HeldRange, Item},
};

/// What a record costs in memory beside its bytes.
const OVERHEAD_BYTES: usize = 96;

/// How much of a backlog is read ahead of the link.
pub(super) const READ_AHEAD_BYTES: usize = 256 * 1024;

/// After so many sessions that the peer ended on the same unacknowledged batch, the batch is halved (PROTOCOL.md, 4).
const STRIKES: u32 = 3;

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) name: StreamName,
    /// The lane's index, by which the spool knows it.
    index: usize,
    /// Oldest first; the last is the current one and never goes.
    epochs: VecDeque<EpochState>,
    /// Epochs that the hub holds in full and the disk has yet to let go of for good. `hello` lists them until then:
    /// a hub that had forgotten one would take it for new if a crash brought it back.
    retiring: Vec<Retiring>,
    memory: VecDeque<Kept>,
    memory_bytes: usize,
    /// The number of the first record in memory; all after it up to `next` are there too.
    memory_first: u64,
    /// Up to here receipts have been given back.
    released: u64,
    /// Up to here the current epoch was handed to the disk or acknowledged, and up to here it is safe.
    appending: u64,
    synced: u64,
    /// One past the last number of the current epoch that the disk was given, and how far it was told to trim it.
    disk_end: u64,
    trimmed: u64,
    /// Whether only what is on disk may be sent.
    disk_first: bool,
    ahead: VecDeque<Item>,
    reading: bool,
    flight: VecDeque<Batch>,
    flight_records: u64,
    flight_bytes: u64,
    window: Window,
    suspect: Suspect,
    /// Since start: skipped records, as the hub was told.
    pub(super) skipped: u64,
}

#[derive(Debug)]
struct EpochState {
    epoch: Epoch,
    acked: u64,
    next: u64,
    /// The next to send in this session.
    send: u64,
    /// The hub wants to hear of numbers that this side let go of already.
    owed: Option<u64>,
}

#[derive(Debug)]
struct Retiring {
    epoch: Epoch,
    next: u64,
    asked: bool,
}

#[derive(Debug)]
struct Kept {
    bytes: Bytes,
    heard: Instant,
    receipts: Receipts,
}

/// Who waits for a record.
#[derive(Debug, Default)]
pub(super) enum Receipts {
    /// Nobody.
    #[default]
    None,
    /// One publish: the usual case costs no allocation.
    One(Receipt),
    /// Several publishes that one report accounts for.
    Many(Vec<Receipt>),
}

#[derive(Debug)]
struct Batch {
    first: u64,
    /// One past the last number.
    end: u64,
    records: u64,
    bytes: u64,
    sent: Instant,
}

/// What ended sessions have in common.
#[derive(Debug, Default)]
struct Suspect {
    epoch: Option<Epoch>,
    first: u64,
    strikes: u32,
    /// How many records a batch that begins at `first` may have.
    limit: Option<u64>,
}

/// The next thing to send.
#[derive(Debug)]
pub(super) enum Next {
    Record { epoch: Epoch, seq: u64, bytes: Bytes },
    Skip { epoch: Epoch, from: u64, to: u64, reason: String },
}

impl Lane {
    pub(super) fn new(index: usize, name: StreamName, epoch: Epoch, disk_first: bool) -> Self {
        Self {
            name,
            index,
            epochs: VecDeque::from([EpochState::new(epoch, 0, 1)]),
            retiring: Vec::new(),
            memory: VecDeque::new(),
            memory_bytes: 0,
            memory_first: 1,
            released: 1,
            appending: 1,
            synced: 1,
            disk_end: 1,
            trimmed: 0,
            disk_first,
            ahead: VecDeque::new(),
            reading: false,
            flight: VecDeque::new(),
            flight_records: 0,
            flight_bytes: 0,
            window: Window::default(),
            suspect: Suspect::default(),
            skipped: 0,
        }
    }

    /// Takes over what an earlier start left on disk.
    pub(super) fn inherit(&mut self, held: &HeldRange) {
        let epoch = Epoch(held.epoch);
        if held.next == held.acked + 1 {
            self.retiring.push(Retiring { epoch, next: held.next, asked: false });
            return;
        }
        let state = EpochState::new(epoch, held.acked, held.next);
        let current = self.epochs.len() - 1;
        self.epochs.insert(current, state);
    }

    /// Numbers a record and keeps it.
    pub(super) fn push(&mut self, now: Instant, bytes: Bytes, receipts: Receipts) -> u64 {
        self.memory_bytes += bytes.len() + OVERHEAD_BYTES;
        self.memory.push_back(Kept { bytes, heard: now, receipts });
        let current = self.current();
        current.next += 1;
        current.next - 1
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Records that the hub does not hold yet.
    pub(super) fn held_records(&self) -> u64 {
        self.epochs.iter().map(|epoch| epoch.next - 1 - epoch.acked).sum()
    }

    /// What `hello` says of this stream.
    pub(super) fn held(&self) -> impl Iterator<Item = HeldEpoch> {
        let retiring = self.retiring.iter().map(|old| (old.epoch, old.next, old.next));
        let held = self.epochs.iter().map(|state| (state.epoch, state.acked + 1, state.next));
        retiring.chain(held).map(|(epoch, first, next)| HeldEpoch {
            stream: self.name.clone(),
            epoch,
            first,
            next,
        })
    }

    // --- the disk ------------------------------------------------------------------------------------------------

    /// When the oldest record that is neither on disk nor on its way there was heard.
    pub(super) fn oldest_unwritten(&self) -> Option<Instant> {
        let at = self.appending.max(self.last().acked + 1);
        self.memory
            .get(usize::try_from(at.checked_sub(self.memory_first)?).ok()?)
            .map(|kept| kept.heard)
    }

    /// Hands everything that is not on disk to it, about `budget` bytes of it.
    pub(super) fn take_unwritten(&mut self, entries: &mut Vec<Entry>, budget: &mut usize) {
        let next = self.last().next;
        let mut seq = self.appending.max(self.last().acked + 1).max(self.memory_first);
        while seq < next && *budget > 0 {
            let bytes = self.memory[(seq - self.memory_first) as usize].bytes.clone();
            *budget = budget.saturating_sub(bytes.len());
            entries.push(Entry { stream: self.index, seq, bytes });
            seq += 1;
            self.disk_end = seq;
        }
        self.appending = seq;
    }

    /// All that was handed over is on the medium, or none of it counts.
    pub(super) fn handle_appended(&mut self, kept: bool, safe: &mut Vec<Receipt>) {
        if !kept {
            self.appending = self.synced.max(self.last().acked + 1);
            return;
        }
        self.synced = self.appending;
        self.release(safe);
    }

    /// Up to where the current epoch is acknowledged.
    pub(super) fn acked(&self) -> u64 {
        self.last().acked
    }

    /// How far the spool is to trim the current epoch before it is given more of it.
    pub(super) fn trim_before_append(&mut self) -> Option<(Epoch, u64)> {
        let (epoch, acked) = (self.last().epoch, self.last().acked);
        let behind = self.trimmed < acked;
        self.trimmed = acked;
        behind.then_some((epoch, acked))
    }

    /// What the spool is to trim now that `acked` of an epoch is held by the hub.
    fn trim_after_ack(
        &mut self,
        is_current: bool,
        epoch: Epoch,
        acked: u64,
    ) -> Option<(Epoch, u64)> {
        if is_current && self.trimmed + 1 >= self.disk_end {
            return None;
        }
        if is_current {
            self.trimmed = acked;
        }
        Some((epoch, acked))
    }

    /// An epoch that the disk is to let go of for good.
    pub(super) fn wants_retired(&mut self) -> Option<Epoch> {
        let old = self.retiring.iter_mut().find(|old| !old.asked)?;
        old.asked = true;
        Some(old.epoch)
    }

    pub(super) fn handle_retired(&mut self, epoch: Epoch, gone: bool) {
        if gone {
            self.retiring.retain(|old| old.epoch != epoch);
        } else if let Some(old) = self.retiring.iter_mut().find(|old| old.epoch == epoch) {
            old.asked = false;
        }
    }

    /// Lets go of the memory of what the disk has, down to `keep_bytes`.
    pub(super) fn shed(&mut self, keep_bytes: usize) {
        while self.memory_bytes > keep_bytes && self.memory_first < self.synced {
            self.forget_first();
        }
    }

    /// The next piece of the backlog to read, if the link will want it.
    pub(super) fn wants_read(&mut self) -> Option<(Epoch, u64)> {
        if self.reading || self.window.records == 0 {
            return None;
        }
        let on_disk = self.on_disk_end();
        let front = &self.epochs[0];
        let from = match self.ahead.back() {
            Some(last) => end_of(last),
            None => front.send,
        };
        let ahead: usize = self.ahead.iter().map(item_bytes).sum();
        let wanted = from < on_disk && ahead < READ_AHEAD_BYTES / 2 && front.owed.is_none();
        self.reading = wanted;
        wanted.then_some((front.epoch, from))
    }

    /// Up to where the front epoch must be read from disk.
    fn on_disk_end(&self) -> u64 {
        if self.epochs.len() > 1 { self.epochs[0].next } else { self.memory_first }
    }

    pub(super) fn handle_read(&mut self, epoch: Epoch, items: Vec<Item>) {
        self.reading = false;
        let front = &self.epochs[0];
        if front.epoch != epoch {
            return;
        }
        let wanted = self.ahead.back().map_or(front.send, end_of);
        // A session may have ended meanwhile, and the reading begun anew: what doesn't continue is read again.
        if items.first().is_some_and(|item| start_of(item) == wanted) {
            self.ahead.extend(items);
        }
    }

    pub(super) fn handle_read_failed(&mut self) {
        self.reading = false;
    }

    // --- the uplink ----------------------------------------------------------------------------------------------

    /// A session begins or ends: nothing is under way.
    pub(super) fn rewind(&mut self) {
        self.flight.clear();
        (self.flight_records, self.flight_bytes) = (0, 0);
        self.ahead.clear();
        for state in &mut self.epochs {
            state.send = state.acked + 1;
            state.owed = None;
        }
    }

    /// The peer ended a session while something was under way: the same batch again and again is suspect.
    pub(super) fn handle_session_ended_by_peer(&mut self) {
        let Some(batch) = self.flight.front() else { return };
        let (epoch, first) = (Some(self.epochs[0].epoch), batch.first);
        if (self.suspect.epoch, self.suspect.first) != (epoch, first) {
            self.suspect = Suspect { epoch, first, strikes: 0, limit: None };
        }
        self.suspect.strikes += 1;
        if self.suspect.strikes >= STRIKES {
            self.suspect.strikes = 0;
            // Below one record there is nothing left to halve: `peek` makes it a skip.
            self.suspect.limit =
                Some(self.suspect.limit.map_or(batch.records / 2, |limit| limit / 2));
        }
    }

    /// The hub's position and window. Says what the spool is to trim.
    pub(super) fn handle_position(
        &mut self,
        position: &Position,
        resume: bool,
        safe: &mut Vec<Receipt>,
    ) -> Option<(Epoch, u64)> {
        if let Some(window) = position.window {
            self.window = window;
        }
        let place = self.epochs.iter().position(|state| state.epoch == position.epoch)?;
        let is_current = place == self.epochs.len() - 1;
        let state = &mut self.epochs[place];
        if resume && position.acked < state.acked {
            state.owed = Some(position.acked + 1);
        }
        // What was never sent in this session may still be held: an earlier session sent it.
        let acked = position.acked.min(if resume { state.next } else { state.send } - 1);
        if acked <= state.acked {
            return None;
        }
        state.acked = acked;
        state.send = state.send.max(acked + 1);
        let epoch = state.epoch;
        let done = !is_current && state.next == acked + 1;
        if is_current {
            while self.memory_first <= acked && !self.memory.is_empty() {
                let receipts = self.forget_first();
                receipts.give_back(safe);
            }
            self.memory_first = self.memory_first.max(acked + 1);
            self.appending = self.appending.max(acked + 1).min(self.last().next);
            self.released = self.released.max(acked + 1);
        }
        if place == 0 {
            self.land(acked);
        }
        if done {
            let next = acked + 1;
            self.epochs.remove(place);
            self.retiring.push(Retiring { epoch, next, asked: false });
            self.ahead.clear();
            return None;
        }
        self.trim_after_ack(is_current, epoch, acked)
    }

    /// The hub misses something: on with `expected`.
    pub(super) fn handle_gap(&mut self, epoch: Epoch, expected: u64) {
        let Some(place) = self.epochs.iter().position(|state| state.epoch == epoch) else { return };
        let state = &mut self.epochs[place];
        if expected >= state.next {
            return;
        }
        state.owed = (expected <= state.acked).then_some(expected);
        state.send = expected.max(state.acked + 1);
        if place == 0 {
            self.flight.clear();
            (self.flight_records, self.flight_bytes) = (0, 0);
            self.ahead.clear();
        }
    }

    /// What is to be sent next, if there is anything and it may be sent. The window is looked at only for the first
    /// of a batch; the batch itself keeps to [`Lane::batch_limit`] and [`Lane::byte_room`].
    pub(super) fn peek(&mut self, in_batch: bool) -> Option<Next> {
        let state = &self.epochs[0];
        let (epoch, seq) = (state.epoch, state.send);
        if let Some(from) = state.owed {
            let reason = "damaged".into();
            return Some(Next::Skip { epoch, from, to: state.acked + 1, reason });
        }
        let end = match (self.epochs.len() > 1, self.disk_first) {
            (true, _) => state.next,
            (false, true) => self.synced.max(state.acked + 1),
            (false, false) => state.next,
        };
        if seq >= end || !(in_batch || self.has_room()) {
            return None;
        }
        if self.suspect.epoch == Some(epoch)
            && self.suspect.first == seq
            && self.suspect.limit == Some(0)
        {
            return Some(Next::Skip { epoch, from: seq, to: seq + 1, reason: "poison".into() });
        }
        if seq >= self.on_disk_end() {
            let bytes = self.memory[(seq - self.memory_first) as usize].bytes.clone();
            return Some(Next::Record { epoch, seq, bytes });
        }
        while self.ahead.front().is_some_and(|item| end_of(item) <= seq) {
            self.ahead.pop_front();
        }
        match self.ahead.front()? {
            Item::Record { seq: found, bytes } if *found == seq => {
                Some(Next::Record { epoch, seq, bytes: bytes.clone() })
            }
            Item::Skip { from, to, reason } if *from <= seq => {
                Some(Next::Skip { epoch, from: seq, to: (*to).min(end), reason: reason.clone() })
            }
            _ => {
                self.ahead.clear();
                None
            }
        }
    }

    fn has_room(&self) -> bool {
        self.window.records > 0
            && (self.flight_records == 0
                || (self.flight_records < self.window.records
                    && self.flight_bytes < self.window.bytes))
    }

    /// How many records the next batch may have: the window's rest, less where a batch is suspect.
    pub(super) fn batch_limit(&self) -> u64 {
        let state = &self.epochs[0];
        let room = self.window.records.saturating_sub(self.flight_records).max(1);
        match self.suspect.limit {
            Some(limit)
                if self.suspect.epoch == Some(state.epoch) && self.suspect.first == state.send =>
            {
                room.min(limit.max(1))
            }
            _ => room,
        }
    }

    /// The payload bytes that the window still has room for; a record that is alone always fits.
    pub(super) fn byte_room(&self) -> u64 {
        self.window.bytes.saturating_sub(self.flight_bytes)
    }

    /// The record before `send` is in the batch.
    pub(super) fn advance(&mut self, send: u64) {
        self.epochs[0].send = send;
    }

    /// `records` records or one skip, up to `end`, have been put on the link.
    pub(super) fn sent(&mut self, now: Instant, end: u64, records: u64, bytes: u64) {
        let state = &mut self.epochs[0];
        let first =
            if records > 0 { end - records } else { state.owed.take().unwrap_or(state.send) };
        state.send = state.send.max(end);
        if records == 0 {
            self.skipped += end - first;
        }
        self.flight_records += records;
        self.flight_bytes += bytes;
        self.flight.push_back(Batch { first, end, records, bytes, sent: now });
    }

    /// When the oldest batch that is still under way was sent; `None` while the hub pauses the stream.
    pub(super) fn oldest_flight(&self) -> Option<Instant> {
        if self.window.records == 0 { None } else { self.flight.front().map(|batch| batch.sent) }
    }

    /// The position up to which this session has sent, for the pong barrier.
    pub(super) fn sent_position(&self) -> Option<Position> {
        let state = &self.epochs[0];
        (state.send > state.acked + 1).then(|| Position {
            stream: self.name.clone(),
            epoch: state.epoch,
            acked: state.send - 1,
            window: None,
        })
    }

    pub(super) fn set_window(&mut self, window: Window) {
        self.window = window;
    }

    fn land(&mut self, acked: u64) {
        while let Some(batch) = self.flight.front_mut() {
            if batch.end > acked + 1 {
                break;
            }
            self.flight_records -= batch.records;
            self.flight_bytes -= batch.bytes;
            self.flight.pop_front();
        }
        if self.suspect.first <= acked {
            self.suspect = Suspect::default();
        }
    }

    fn release(&mut self, safe: &mut Vec<Receipt>) {
        let from = self.released.max(self.memory_first);
        for seq in from..self.synced {
            let Some(kept) = self.memory.get_mut((seq - self.memory_first) as usize) else { break };
            std::mem::take(&mut kept.receipts).give_back(safe);
        }
        self.released = self.released.max(self.synced);
    }

    fn forget_first(&mut self) -> Receipts {
        let Some(kept) = self.memory.pop_front() else { return Receipts::None };
        self.memory_bytes -= kept.bytes.len() + OVERHEAD_BYTES;
        self.memory_first += 1;
        kept.receipts
    }

    fn current(&mut self) -> &mut EpochState {
        self.epochs.back_mut().expect("the current epoch never goes")
    }

    fn last(&self) -> &EpochState {
        self.epochs.back().expect("the current epoch never goes")
    }
}

impl EpochState {
    fn new(epoch: Epoch, acked: u64, next: u64) -> Self {
        Self { epoch, acked, next, send: acked + 1, owed: None }
    }
}

impl Receipts {
    pub(super) fn give_back(self, safe: &mut Vec<Receipt>) {
        match self {
            Self::None => {}
            Self::One(receipt) => safe.push(receipt),
            Self::Many(receipts) => safe.extend(receipts),
        }
    }
}

impl From<Option<Receipt>> for Receipts {
    fn from(receipt: Option<Receipt>) -> Self {
        receipt.map_or(Self::None, Self::One)
    }
}

fn start_of(item: &Item) -> u64 {
    match item {
        Item::Record { seq, .. } => *seq,
        Item::Skip { from, .. } => *from,
    }
}

fn end_of(item: &Item) -> u64 {
    match item {
        Item::Record { seq, .. } => seq + 1,
        Item::Skip { to, .. } => *to,
    }
}

fn item_bytes(item: &Item) -> usize {
    match item {
        Item::Record { bytes, .. } => bytes.len() + OVERHEAD_BYTES,
        Item::Skip { .. } => OVERHEAD_BYTES,
    }
}
