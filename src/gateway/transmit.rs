//! What goes on the link next: greetings and Pings first, then records, lane by lane.
//!
//! Lanes in front go first, but never starve the others: every eighth batch is the last lane's that
//! has something.

use crate::{
    protocol::{
        BatchWriter, Clock, Epoch, GatewayLimits, GatewayMessage, Hello, HubLimits, Skip,
        plain_record, plain_skip,
    },
    record::Stored,
};

use super::{
    EVENTS, Gateway, Now, Transmit,
    lane::{Horizon, Lane, Next},
};

/// Every so many batches the order of the lanes is turned round.
const FAIR_TURN: u64 = 8;

/// Plain mode: so many frames go before a Ping is put behind them, at most.
const BARRIER_FRAMES: usize = 256;

/// Plain mode: so many Pings may wait for their Pongs.
const MAX_BARRIERS: usize = 4;

impl Gateway {
    /// What goes on the link next, if it is up and there is anything. Ask only when the link has
    /// room.
    pub fn poll_transmit(&mut self, now: Now) -> Option<Transmit> {
        if let Some(control) = self.control.pop_front() {
            return Some(control);
        }
        let session = self.uplink.as_ref()?.session()?;
        let (managed, limits) = (session.managed, session.limits);
        let (unbarred, barriers) = (session.unbarred, session.barriers());
        let barrier_due = !managed && unbarred > 0 && barriers < MAX_BARRIERS;
        if barrier_due && unbarred >= BARRIER_FRAMES {
            return Some(self.barrier(now));
        }
        self.turn += 1;
        let count = self.lanes.len();
        let turned = self.turn.is_multiple_of(FAIR_TURN);
        for place in 0..count {
            let lane = if turned { count - 1 - place } else { place };
            let text = match self.batch_room(now, lane) {
                None => None,
                Some(room) if managed => self.managed_message(now, lane, limits, room),
                Some(_) => self.plain_frame(now, lane),
            };
            if let Some(text) = text {
                self.settle_disk(now);
                return Some(Transmit::Text(text));
            }
        }
        self.settle_disk(now);
        barrier_due.then(|| self.barrier(now))
    }

    pub(super) fn hello(&self, now: Now) -> GatewayMessage {
        GatewayMessage::Hello(Hello {
            gateway: self.settings.id.clone(),
            agent: self.settings.agent.clone(),
            boot_id: self.settings.boot_id.clone(),
            clock: Some(Clock { ts: now.wall.unix_ms, trusted: now.wall.synced }),
            limits: GatewayLimits {
                inflight_commands: self.settings.commands.inflight,
                ..GatewayLimits::default()
            },
            features: Vec::new(),
            streams: self.lanes.iter().flat_map(|lane| lane.held()).collect(),
            partial: self.disk.is_missing || self.lanes.iter().any(Lane::is_listed_in_part),
        })
    }

    pub(super) fn ping(&mut self, now: Now) {
        let ping = self.barrier(now);
        self.control.push_back(ping);
    }

    /// A Ping; in plain mode its Pong confirms every frame before it.
    fn barrier(&mut self, now: Now) -> Transmit {
        let positions = self.lanes.iter().flat_map(|lane| lane.sent_positions()).collect();
        let session = self.uplink.as_mut().and_then(|uplink| uplink.session_mut());
        let payload = session.map_or_else(Vec::new, |session| session.ping(now.instant, positions));
        Transmit::Ping(payload)
    }

    /// How large the next message of a lane may be, in bytes; `None` while enough is under way.
    /// What is under way of a lane behind counts for nothing: an alarm waits for no backlog.
    fn batch_room(&self, now: Now, index: usize) -> Option<usize> {
        let uplink = self.uplink.as_ref()?;
        let session = uplink.session()?;
        let alone = session.alone_until.is_some_and(|until| now.instant < until);
        let counted = if alone { &self.lanes[..] } else { &self.lanes[..=index] };
        let under_way: u64 = counted.iter().map(Lane::flight_wire_bytes).sum();
        let has_room = under_way < if alone { 1 } else { session.pace.flight_bytes() };
        has_room.then(|| session.pace.batch_bytes().min(uplink.message_cap) as usize)
    }

    /// One `data` or `skip` of a lane, of about `batch_bytes` at most: a record that is larger goes
    /// alone.
    fn managed_message(
        &mut self,
        now: Now,
        index: usize,
        limits: HubLimits,
        batch_bytes: usize,
    ) -> Option<String> {
        let HubLimits { frame_bytes, batch_records, .. } = limits;
        let batch_bytes = batch_bytes.min(frame_bytes);
        let max_records = self.lanes[index].batch_limit().min(batch_records as u64);
        let byte_room = self.lanes[index].byte_room();
        let is_idle = self.lanes[index].flight_shape().0 == 0;
        let mut batch: Option<(Epoch, BatchWriter)> = None;
        let mut payload_bytes = 0;
        let mut at = 0;
        while let Some(next) = self.peek_sendable(now, index, at, frame_bytes) {
            let (epoch, seq, bytes) = match (next, &batch) {
                // The epoch that goes first is at its end.
                (Next::Record { epoch, .. }, Some((begun, _))) if epoch != *begun => break,
                (Next::Record { epoch, seq, bytes }, _) => (epoch, seq, bytes),
                (Next::Skip { .. }, Some(_)) => break,
                (Next::Skip { epoch, from, to, reason }, None) => {
                    let stream = self.lanes[index].name.clone();
                    tracing::warn!(%stream, from, to, reason, "records will not come; the hub is told");
                    let skip = Skip { stream, epoch, from, to, reason };
                    let text = GatewayMessage::Skip(skip).to_json();
                    self.lanes[index].sent(now.instant, epoch, to, 0, (0, text.len() as u64));
                    return Some(text);
                }
            };
            let Ok(mut record) = Stored::read(&bytes) else { break };
            record.ts = record.ts.rebased(now.boot);
            let payload = record.payload_bytes() as u64;
            let (_, writer) = batch.get_or_insert_with(|| {
                let capacity = (bytes.len() * 2 + 256).max(1024);
                (epoch, BatchWriter::new(&self.lanes[index].name, epoch, seq, capacity))
            });
            let full = writer.records() >= max_records
                || writer.len() + wire_bytes(&record, bytes.len()) > batch_bytes
                || payload_bytes + payload > byte_room;
            // With nothing under way one record may always go (PROTOCOL.md, section 4).
            let may_exceed = writer.is_empty() && (payload <= byte_room || is_idle);
            if full && !may_exceed {
                break;
            }
            writer.push(&record);
            payload_bytes += payload;
            at = seq + 1;
            self.lanes[index].advance(epoch, at);
        }
        let (epoch, writer) = batch.filter(|(_, writer)| !writer.is_empty())?;
        let records = writer.records();
        let text = writer.finish();
        self.counters.sent += records;
        let bytes = (payload_bytes, text.len() as u64);
        self.lanes[index].sent(now.instant, epoch, at, records, bytes);
        Some(text)
    }

    /// The next thing of a lane that can be sent; a record that no frame can carry is a skip.
    fn peek_sendable(
        &mut self,
        now: Now,
        index: usize,
        batch_from: u64,
        frame_bytes: usize,
    ) -> Option<Next> {
        let horizon = self.horizon(now, index);
        let next = self.lanes[index].peek(batch_from > 0, horizon)?;
        let Next::Record { epoch, seq, ref bytes } = next else { return Some(next) };
        let skip =
            |reason: &str| Next::Skip { epoch, from: seq, to: seq + 1, reason: reason.into() };
        match Stored::read(bytes) {
            Err(_) => Some(skip("damaged")),
            Ok(record) if wire_bytes(&record, bytes.len()) + 128 > frame_bytes => {
                Some(skip("too_large"))
            }
            Ok(_) => Some(next),
        }
    }

    /// Readings that were heard before this moment are not sent any more; events always are.
    fn horizon(&self, now: Now, index: usize) -> Horizon {
        let max_age = self.settings.max_age.filter(|_| index != EVENTS && now.wall.synced);
        let oldest_ms = max_age.map_or(0, |age| {
            let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            now.wall.unix_ms.saturating_sub(age_ms)
        });
        Horizon { oldest_ms, boot: now.boot }
    }

    fn plain_frame(&mut self, now: Now, index: usize) -> Option<String> {
        let horizon = self.horizon(now, index);
        let lane = &mut self.lanes[index];
        let next = lane.peek(false, horizon)?;
        let stream = lane.name.clone();
        let gateway = &self.settings.id;
        let text = match next {
            Next::Record { epoch, seq, bytes } => {
                let record = Stored::read(&bytes);
                let payload = record.as_ref().map_or(0, Stored::payload_bytes);
                let text = match record {
                    Ok(mut record) => {
                        record.ts = record.ts.rebased(now.boot);
                        plain_record(gateway, &stream, epoch, seq, &record)
                    }
                    Err(_) => {
                        let (from, to, reason) = (seq, seq + 1, "damaged".into());
                        plain_skip(gateway, &Skip { stream, epoch, from, to, reason })
                    }
                };
                lane.advance(epoch, seq + 1);
                let bytes = (payload as u64, text.len() as u64);
                lane.sent(now.instant, epoch, seq + 1, 1, bytes);
                self.counters.sent += 1;
                text
            }
            Next::Skip { epoch, from, to, reason } => {
                let text = plain_skip(gateway, &Skip { stream, epoch, from, to, reason });
                lane.sent(now.instant, epoch, to, 0, (0, text.len() as u64));
                text
            }
        };
        if let Some(session) = self.uplink.as_mut().and_then(|uplink| uplink.session_mut()) {
            session.unbarred += 1;
        }
        Some(text)
    }
}

/// At most how much of a message a record takes.
fn wire_bytes(record: &Stored<'_>, stored: usize) -> usize {
    let payload = record.payload_bytes();
    let growth = match &record.body {
        crate::record::Body::Reading(reading) if !reading.json => payload / 3 + 8,
        _ => 0,
    };
    // Device and topic may have to be escaped; names of members, brackets and numbers come on top.
    payload + growth + (stored - payload.min(stored)) * 6 + 160
}
