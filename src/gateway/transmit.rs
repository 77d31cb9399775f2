//! What goes on the link next: greetings and Pings first, then records, lane by lane.
//!
//! Lanes in front go first, but never starve the others: every eighth batch is the last lane's that
//! has something.

use crate::{
    protocol::{
        BatchWriter, Clock, Epoch, GatewayLimits, GatewayMessage, Hello, HubLimits, Skip,
        StreamName, plain_record, plain_skip,
    },
    record::Stored,
};

use super::{
    EVENTS, Gateway, Now, Transmit,
    lane::{Horizon, Lane, Next},
};

/// Every so many batches the order of the lanes is turned round.
const FAIR_TURN: u64 = 8;

/// At most what a `data` message has beside its records.
const HEAD_BYTES: usize = 128;

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
        let lanes = &self.lanes;
        let positions = || lanes.iter().flat_map(Lane::sent_positions).collect();
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
        let horizon = self.horizon(now, index);
        let lane = &mut self.lanes[index];
        let max_records = lane.batch_limit().min(batch_records as u64);
        let byte_room = lane.byte_room();
        let is_idle = lane.flight_shape().0 == 0;
        let mut batch: Option<(Epoch, BatchWriter)> = None;
        let mut payload_bytes = 0;
        let mut at = 0;
        while let Some(next) = lane.peek(at > 0, horizon) {
            let piece = Piece::read(&next, now, &lane.name, frame_bytes);
            let (epoch, seq, record, wire_bytes) = match (piece, &batch) {
                // The epoch that goes first is at its end.
                (Piece::Record { epoch, .. }, Some((begun, _))) if epoch != *begun => break,
                (Piece::Record { epoch, seq, record, wire_bytes }, _) => {
                    (epoch, seq, record, wire_bytes)
                }
                (Piece::Skip(_), Some(_)) => break,
                (Piece::Skip(skip), None) => {
                    return Some(send_skip(lane, now, skip, |skip| {
                        GatewayMessage::Skip(skip).to_json()
                    }));
                }
            };
            let payload = record.payload_bytes() as u64;
            let (_, writer) = batch.get_or_insert_with(|| {
                let capacity = (wire_bytes + HEAD_BYTES).max(1024);
                (epoch, BatchWriter::new(&lane.name, epoch, seq, capacity))
            });
            let full = writer.records() >= max_records
                || writer.len() + wire_bytes > batch_bytes
                || payload_bytes + payload > byte_room;
            // With nothing under way one record may always go (PROTOCOL.md, section 4).
            let may_exceed = writer.is_empty() && (payload <= byte_room || is_idle);
            if full && !may_exceed {
                break;
            }
            writer.push(&record);
            payload_bytes += payload;
            at = seq + 1;
            lane.advance(epoch, at);
        }
        let (epoch, writer) = batch.filter(|(_, writer)| !writer.is_empty())?;
        let records = writer.records();
        let text = writer.finish();
        let bytes = (payload_bytes, text.len() as u64);
        lane.sent(now.instant, epoch, at, records, bytes);
        self.counters.sent += records;
        Some(text)
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
        let gateway = &self.settings.id;
        // What the server takes is not known: only its 1009 says that something is too large.
        let text = match Piece::read(&next, now, &lane.name, usize::MAX) {
            Piece::Record { epoch, seq, record, .. } => {
                let text = plain_record(gateway, &lane.name, epoch, seq, &record);
                let bytes = (record.payload_bytes() as u64, text.len() as u64);
                lane.advance(epoch, seq + 1);
                lane.sent(now.instant, epoch, seq + 1, 1, bytes);
                self.counters.sent += 1;
                text
            }
            Piece::Skip(skip) => send_skip(lane, now, skip, |skip| plain_skip(gateway, &skip)),
        };
        if let Some(session) = self.uplink.as_mut().and_then(|uplink| uplink.session_mut()) {
            session.unbarred += 1;
        }
        Some(text)
    }
}

/// What goes next of a lane, as it can be sent.
enum Piece<'a> {
    Record { epoch: Epoch, seq: u64, record: Stored<'a>, wire_bytes: usize },
    Skip(Skip),
}

impl<'a> Piece<'a> {
    /// A record that can't be read, or that no message of so many bytes can carry, is a skip.
    fn read(next: &'a Next, now: Now, stream: &StreamName, frame_bytes: usize) -> Self {
        let skip = |epoch, from, to, reason: &str| {
            Self::Skip(Skip { stream: stream.clone(), epoch, from, to, reason: reason.into() })
        };
        let (epoch, seq, bytes) = match next {
            Next::Record { epoch, seq, bytes } => (*epoch, *seq, bytes),
            Next::Skip { epoch, from, to, reason } => return skip(*epoch, *from, *to, reason),
        };
        let Ok(mut record) = Stored::read(bytes) else {
            return skip(epoch, seq, seq + 1, "damaged");
        };
        record.ts = record.ts.rebased(now.boot);
        let wire_bytes = wire_bytes(&record, bytes.len());
        // The estimate may be far too much: before a record is lost for it, it is made exact.
        if wire_bytes + HEAD_BYTES > frame_bytes {
            let mut alone = BatchWriter::new(stream, epoch, seq, wire_bytes + HEAD_BYTES);
            alone.push(&record);
            if alone.len() > frame_bytes {
                return skip(epoch, seq, seq + 1, "too_large");
            }
        }
        Self::Record { epoch, seq, record, wire_bytes }
    }
}

/// A skip goes on the link.
fn send_skip(lane: &mut Lane, now: Now, skip: Skip, text: impl FnOnce(Skip) -> String) -> String {
    let Skip { epoch, from, to, ref reason, ref stream } = skip;
    match reason.as_str() {
        // As it is configured; and what was told when it happened.
        "expired" | "evicted" => {
            tracing::info!(%stream, from, to, reason, "records will not come; the hub is told");
        }
        _ => tracing::error!(%stream, from, to, reason, "records are lost; the hub is told"),
    }
    let text = text(skip);
    lane.sent(now.instant, epoch, to, 0, (0, text.len() as u64));
    text
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
