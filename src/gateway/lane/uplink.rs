//! A lane's records on their way to the hub, and the hub's word that it has them.

use std::time::{Duration, Instant};

use super::{Batch, Landed, Lane, Next, QUIET, Retiring, STRIKES, SUDDEN, Suspect, disk::end_of};
use crate::{
    planted::{Bug, planted},
    protocol::{Epoch, Position, Window},
    record::{self, Boot, Receipt},
    spool::Item,
};

impl Lane {
    /// A session begins or ends: nothing is under way.
    pub(in crate::gateway) fn rewind(&mut self) {
        self.flight.clear();
        self.measure_flight();
        self.waited = Duration::ZERO;
        self.ahead.clear();
        self.quiet_until = None;
        self.wants_epoch = false;
        for state in &mut self.epochs {
            state.send = state.acked + 1;
            state.owed = None;
        }
    }

    /// A session with `window` begins.
    pub(in crate::gateway) fn begin(&mut self, now: Instant, window: Window) {
        self.rewind();
        self.window = window;
        let on_trial = self.suspect.limit == Some(0) && self.suspect.guilt.is_none();
        self.quiet_until = on_trial.then(|| now + QUIET);
        self.consider_epoch();
    }

    /// When a record that is held back may go.
    pub(in crate::gateway) fn quiet_until(&self) -> Option<Instant> {
        self.quiet_until
    }

    pub(in crate::gateway) fn handle_timeout(&mut self, now: Instant) {
        self.quiet_until = self.quiet_until.filter(|until| *until > now);
    }

    /// The peer ended a session while something was under way: if it is the same again and again,
    /// it is suspect. All of it is: in plain mode each record is a batch, and a Pong is for many.
    pub(in crate::gateway) fn handle_session_ended_by_peer(&mut self, now: Instant) {
        if planted(Bug::PoisonNeverSkipped) {
            return;
        }
        // With live-first the fresh epoch is under way in each session, with other records each
        // time: what was suspect stays so, and what has waited longest comes first.
        let known = (self.suspect.epoch, self.suspect.first);
        let is_known = |batch: &&Batch| (Some(batch.epoch), batch.first) == known;
        let mut waiting = self.epochs.iter().map(|state| state.epoch);
        let of_oldest =
            waiting.find_map(|epoch| self.flight.iter().find(|batch| batch.epoch == epoch));
        let Some(batch) = self.flight.iter().find(is_known).or(of_oldest) else { return };
        let (epoch, first) = (Some(batch.epoch), batch.first);
        if (self.suspect.epoch, self.suspect.first) != (epoch, first) {
            self.suspect = Suspect { epoch, first, ..Suspect::default() };
        }
        if self.suspect.limit == Some(0) {
            self.suspect.guilt = (now - batch.sent <= SUDDEN).then_some("poison");
            return;
        }
        self.suspect.strikes += 1;
        if self.suspect.strikes >= STRIKES {
            self.suspect.strikes = 0;
            let under_way = self.flight.iter().filter(|other| other.epoch == batch.epoch);
            let records = under_way.clone().map(|batch| batch.records).sum();
            self.suspect.end = under_way.map(|batch| batch.end).fold(batch.end, u64::max);
            let limit = self.suspect.limit.unwrap_or(u64::MAX).min(records);
            self.suspect.limit = Some(limit / 2);
        }
    }

    /// Everything up to `acked` is good: the culprit is in the rest of the suspect batch.
    fn acquit(&mut self, epoch: Epoch, acked: u64) {
        let suspect = &mut self.suspect;
        if suspect.epoch != Some(epoch) || acked < suspect.first {
            return;
        }
        if suspect.limit.is_some() && suspect.guilt.is_none() && acked + 1 < suspect.end {
            (suspect.first, suspect.strikes) = (acked + 1, 0);
        } else {
            *suspect = Suspect::default();
        }
    }

    /// The hub's position and window. Says what the spool is to trim.
    pub(in crate::gateway) fn handle_position(
        &mut self,
        position: &Position,
        resume: bool,
        safe: &mut Vec<Receipt>,
        landed: &mut Landed,
    ) -> Option<(Epoch, u64)> {
        if let Some(window) = position.window {
            let opens = self.window.records == 0 && window.records > 0;
            landed.goes_on = opens && !planted(Bug::PauseCountsAsWaiting);
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
        landed.goes_on = true;
        self.land(epoch, acked, landed);
        self.waited = Duration::ZERO;
        if done {
            let next = acked + 1;
            self.epochs.remove(place);
            self.retiring.push(Retiring { epoch, next, asked: false });
            return None;
        }
        self.trim_after_ack(is_current, epoch, acked)
    }

    /// The hub misses something: on with `expected`.
    pub(in crate::gateway) fn handle_gap(&mut self, now: Instant, epoch: Epoch, expected: u64) {
        let Some(place) = self.epochs.iter().position(|state| state.epoch == epoch) else { return };
        let state = &mut self.epochs[place];
        if expected >= state.next {
            return;
        }
        state.owed = (expected <= state.acked).then_some(expected);
        state.send = expected.max(state.acked + 1);
        state.send += u64::from(planted(Bug::GapOneTooFar));
        // A hub that answers all that it gets with a hole is to be found out all the same.
        let oldest = self.flight.front().filter(|batch| batch.epoch == epoch);
        self.waited += oldest.map_or(Duration::ZERO, |batch| now - batch.sent);
        self.drop_flight(|batch| batch.epoch == epoch);
        if self.ahead_epoch == epoch {
            self.ahead.clear();
        }
    }

    /// What is to be sent next, if there is anything and it may be sent. The window is looked at
    /// only for the first of a batch; the batch itself keeps to [`Lane::batch_limit`] and
    /// [`Lane::byte_room`]. What was heard before the horizon is not sent any more.
    pub(in crate::gateway) fn peek(&mut self, in_batch: bool, horizon: Horizon) -> Option<Next> {
        let place = self.sending();
        let state = &self.epochs[place];
        let (epoch, seq) = (state.epoch, state.send);
        if let Some(from) = state.owed {
            let reason = "damaged".into();
            return Some(Next::Skip { epoch, from, to: state.acked + 1, reason });
        }
        let end = self.sendable_end(place);
        if seq >= end || !(in_batch || self.has_room()) {
            return None;
        }
        let suspect = &self.suspect;
        // Nothing goes behind what is suspect, so that what ends the session is in it.
        let is_behind = suspect.half_of(epoch).is_some_and(|(_, end)| end <= seq);
        if is_behind && !in_batch && !self.flight.is_empty() {
            return None;
        }
        if (suspect.epoch, suspect.first, suspect.limit) == (Some(epoch), seq, Some(0)) {
            if let Some(reason) = suspect.guilt {
                return Some(Next::Skip { epoch, from: seq, to: seq + 1, reason: reason.into() });
            }
            if self.quiet_until.is_some() {
                return None;
            }
        }
        if seq >= self.on_disk_end(place) {
            let waiting = self.memory.range((seq - self.memory_first) as usize..);
            let expired = waiting.take_while(|kept| horizon.is_past(&kept.bytes)).count();
            if expired > 0 {
                let to = (seq + expired as u64).min(end);
                return Some(Next::Skip { epoch, from: seq, to, reason: "expired".into() });
            }
            let bytes = self.memory[(seq - self.memory_first) as usize].bytes.clone();
            return Some(Next::Record { epoch, seq, bytes });
        }
        if self.ahead_epoch != epoch {
            return None;
        }
        while self.ahead.front().is_some_and(|item| end_of(item) <= seq) {
            self.ahead.pop_front();
        }
        match self.ahead.front()? {
            Item::Record { seq: found, bytes } if *found == seq => {
                let expired = self.ahead.iter().map_while(|item| match item {
                    Item::Record { bytes, .. } if horizon.is_past(bytes) => Some(end_of(item)),
                    _ => None,
                });
                if let Some(to) = expired.last() {
                    return Some(Next::Skip { epoch, from: seq, to, reason: "expired".into() });
                }
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
        if planted(Bug::WindowIgnored) {
            return true;
        }
        self.window.records > 0
            && (self.flight_records == 0
                || (self.flight_records < self.window.records
                    && self.flight_bytes < self.window_bytes()))
    }

    /// How many records the next batch may have: the window's rest, less where a batch is suspect.
    pub(in crate::gateway) fn batch_limit(&self) -> u64 {
        let state = &self.epochs[self.sending()];
        let room = self.window.records.saturating_sub(self.flight_records).max(1);
        match self.suspect.half_of(state.epoch) {
            Some((first, end)) if (first..end).contains(&state.send) => room.min(end - state.send),
            _ => room,
        }
    }

    /// The payload bytes that the window still has room for; a record that is alone always fits.
    pub(in crate::gateway) fn byte_room(&self) -> u64 {
        self.window_bytes().saturating_sub(self.flight_bytes)
    }

    /// The record before `send` is in the batch.
    pub(in crate::gateway) fn advance(&mut self, epoch: Epoch, send: u64) {
        if let Some(state) = self.epochs.iter_mut().find(|state| state.epoch == epoch) {
            state.send = send;
        }
    }

    /// `records` records or one skip, up to `end`, have been put on the link.
    pub(in crate::gateway) fn sent(
        &mut self,
        now: Instant,
        epoch: Epoch,
        end: u64,
        records: u64,
        (bytes, wire_bytes): (u64, u64),
    ) {
        let place = self.epochs.iter().position(|state| state.epoch == epoch);
        let Some(place) = place else { return };
        let state = &mut self.epochs[place];
        let first =
            if records > 0 { end - records } else { state.owed.take().unwrap_or(state.send) };
        state.send = state.send.max(end);
        if place + 1 == self.epochs.len() {
            self.sent_end = self.sent_end.max(end);
        }
        if records == 0 {
            self.skipped += end - first;
        }
        self.flight_records += records;
        self.flight_bytes += bytes;
        self.flight_wire_bytes += wire_bytes;
        let batch = Batch { epoch, first, end, records, bytes, wire_bytes, sent: now };
        self.flight.push_back(batch);
    }

    /// What is under way, in bytes on the link.
    pub(in crate::gateway) fn flight_wire_bytes(&self) -> u64 {
        self.flight_wire_bytes
    }

    /// What is under way: how many batches, the records of the first, the size of the largest.
    pub(in crate::gateway) fn flight_shape(&self) -> (usize, u64, u64) {
        let records = self.flight.front().map_or(0, |batch| batch.records);
        let largest = self.flight.iter().map(|batch| batch.wire_bytes).max().unwrap_or(0);
        (self.flight.len(), records, largest)
    }

    /// The single record that is under way is more than the peer takes.
    pub(in crate::gateway) fn handle_too_big(&mut self) {
        let Some(Batch { epoch, first, .. }) = self.flight.front() else { return };
        let (epoch, first) = (Some(*epoch), *first);
        self.suspect = Suspect {
            epoch,
            first,
            limit: Some(0),
            guilt: Some("too_large"),
            ..Suspect::default()
        };
    }

    /// Whether something is under way, or could be sent.
    pub(in crate::gateway) fn has_to_move(&self) -> bool {
        let place = self.sending();
        let is_sendable = self.epochs[place].send < self.sendable_end(place);
        self.window.records > 0
            && self.quiet_until.is_none()
            && (!self.flight.is_empty() || is_sendable)
    }

    /// When the oldest batch that is still under way was sent; `None` while the hub pauses the
    /// stream.
    pub(in crate::gateway) fn oldest_flight(&self) -> Option<Instant> {
        if self.window.records == 0 { None } else { self.flight.front().map(|batch| batch.sent) }
    }

    /// Since when the oldest batch waits for its ack, this time and the times before.
    pub(in crate::gateway) fn waits_since(&self) -> Option<Instant> {
        self.oldest_flight().map(|sent| sent.checked_sub(self.waited).unwrap_or(sent))
    }

    /// The positions up to which this session has sent, for the pong barrier.
    pub(in crate::gateway) fn sent_positions(&self) -> impl Iterator<Item = Position> {
        let sent = self.epochs.iter().filter(|state| state.send > state.acked + 1);
        sent.map(|state| Position {
            stream: self.name.clone(),
            epoch: state.epoch,
            acked: state.send - 1,
            window: None,
        })
    }

    fn land(&mut self, epoch: Epoch, acked: u64, landed: &mut Landed) {
        let is_landed = |batch: &Batch| batch.epoch == epoch && batch.end <= acked + 1;
        while self.flight.front().is_some_and(is_landed) {
            let batch = self.flight.pop_front().expect("looked at just now");
            self.flight_records -= batch.records;
            self.flight_bytes -= batch.bytes;
            self.flight_wire_bytes -= batch.wire_bytes;
            landed.sent.get_or_insert(batch.sent);
            landed.wire_bytes += batch.wire_bytes;
            if batch.records == 0 {
                landed.skips.push((batch.epoch, batch.first, batch.end));
            }
        }
        if self.flight.front().is_some_and(|batch| batch.epoch != epoch) {
            self.drop_flight(is_landed);
        }
        self.acquit(epoch, acked);
    }

    fn drop_flight(&mut self, done: impl Fn(&Batch) -> bool) {
        self.flight.retain(|batch| !done(batch));
        self.measure_flight();
    }

    fn measure_flight(&mut self) {
        self.flight_records = self.flight.iter().map(|batch| batch.records).sum();
        self.flight_bytes = self.flight.iter().map(|batch| batch.bytes).sum();
        self.flight_wire_bytes = self.flight.iter().map(|batch| batch.wire_bytes).sum();
    }
}

/// What was heard before this is too old to be sent.
#[derive(Debug, Clone, Copy)]
pub(in crate::gateway) struct Horizon {
    /// Unix milliseconds; 0: nothing is too old.
    pub(in crate::gateway) oldest_ms: u64,
    /// By which records of this boot get their time.
    pub(in crate::gateway) boot: Option<Boot>,
}

impl Horizon {
    /// Whether a record was heard before, by a clock that is trusted.
    fn is_past(self, bytes: &[u8]) -> bool {
        self.oldest_ms > 0
            && record::stamp(bytes)
                .map(|ts| ts.rebased(self.boot))
                .is_some_and(|ts| ts.synced && ts.unix_ms < self.oldest_ms)
    }
}
