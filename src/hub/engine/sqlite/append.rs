//! Records and losses: the only place where a position moves.

use std::{collections::HashMap, sync::Arc};

use rusqlite::{OptionalExtension as _, params, types::ToSqlOutput};
use serde::Deserialize;

use super::{Group, Numbers, schema::ID_BITS};
use crate::{
    command::Status,
    hub::engine::{Answer, Applied, EngineError, SessionId, StatusChange, device_of_event},
    protocol::{Data, Epoch, HeldEpoch, Payload, Skip, StreamName, WireBody, WireRecord},
};

/// Bits of `records.flags`.
pub(super) const FLAG_UNSYNCED: i64 = 1;
pub(super) const FLAG_RETAINED: i64 = 2;

/// A loss, to be entered in the account.
struct Loss<'a> {
    stream: &'a StreamName,
    epoch: Epoch,
    from: u64,
    to: u64,
    reason: &'a str,
}

impl Group<'_> {
    /// The positions of a gateway.
    pub(super) fn positions(
        &self,
        gateway: i64,
    ) -> Result<HashMap<(String, u64), u64>, EngineError> {
        let mut query = self
            .tx
            .prepare_cached("SELECT stream, epoch, next FROM positions WHERE gateway = ?1")?;
        let rows = query.query_map([gateway], |row| {
            let (stream, epoch, next): (String, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(((stream, epoch.cast_unsigned()), next.cast_unsigned()))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The position of an epoch that `hello` lists; a new one begins where the gateway's records
    /// do.
    pub(super) fn resume(
        &mut self,
        session: &SessionId,
        gateway: i64,
        held: &HeldEpoch,
        known: Option<u64>,
    ) -> Result<u64, EngineError> {
        match known {
            Some(next) if next >= held.first => Ok(next),
            Some(next) => {
                // The gateway let go of records that this store does not have: it was restored from
                // a backup. They are lost, and the gateway can't say so; without this line it would
                // be asked for them for ever.
                self.lose(
                    session,
                    gateway,
                    &Loss {
                        stream: &held.stream,
                        epoch: held.epoch,
                        from: next,
                        to: held.first,
                        reason: "not_held",
                    },
                )?;
                self.move_position(gateway, &held.stream, held.epoch, held.first)?;
                Ok(held.first)
            }
            None => {
                self.move_position(gateway, &held.stream, held.epoch, held.first)?;
                Ok(held.first)
            }
        }
    }

    pub(super) fn apply(
        &mut self,
        session: &SessionId,
        numbers: Numbers,
        data: &Data,
        rejected: &[(u64, &'static str)],
    ) -> Result<Answer, EngineError> {
        let count = data.records.len() as u64;
        let end = data.seq.saturating_add(count);
        let position = self.position(numbers.no, &data.stream, data.epoch)?;
        let next = match (position, data.seq) {
            (Some(next), _) => next,
            (None, 1) => 1,
            (None, _) => return Ok(Answer::Gap { expected: 1 }),
        };
        if data.seq > next {
            return Ok(Answer::Gap { expected: next });
        }
        let old = next.min(end) - data.seq;
        self.count(&session.gateway, |counts| counts.duplicate += old.cast_signed());
        let mut applied = Applied {
            next: next.max(end),
            new_from: next,
            first_id: numbers.next_record.cast_unsigned(),
            statuses: Vec::new(),
        };
        if end <= next {
            return Ok(Answer::Applied(applied));
        }
        let fresh = data.records.iter().zip(data.seq..).skip(usize::try_from(old).unwrap_or(0));
        for (record, seq) in fresh {
            if let Some((_, reason)) = rejected.iter().find(|(number, _)| *number == seq) {
                self.reject(session, numbers.no, data, seq, reason)?;
                continue;
            }
            self.append(session, numbers.no, data, seq, record)?;
            if let WireBody::Event { kind, json } = &record.body {
                self.fold_event(session, numbers.no, kind, json.get(), record.ts, &mut applied)?;
            }
        }
        self.move_position(numbers.no, &data.stream, data.epoch, end)?;
        Ok(Answer::Applied(applied))
    }

    pub(super) fn skip(
        &mut self,
        session: &SessionId,
        numbers: Numbers,
        skip: &Skip,
    ) -> Result<Answer, EngineError> {
        let next = match (self.position(numbers.no, &skip.stream, skip.epoch)?, skip.from) {
            (Some(next), _) => next,
            (None, 1) => 1,
            (None, _) => return Ok(Answer::Gap { expected: 1 }),
        };
        if skip.from > next {
            return Ok(Answer::Gap { expected: next });
        }
        if skip.to > next {
            // Only what lies beyond the position is lost: the rest is stored here.
            let (stream, epoch) = (&skip.stream, skip.epoch);
            let loss = Loss { stream, epoch, from: next, to: skip.to, reason: &skip.reason };
            self.lose(session, numbers.no, &loss)?;
            self.move_position(numbers.no, stream, epoch, skip.to)?;
        }
        Ok(Answer::Applied(Applied {
            next: next.max(skip.to),
            new_from: next,
            first_id: numbers.next_record.cast_unsigned(),
            statuses: Vec::new(),
        }))
    }

    fn position(
        &self,
        gateway: i64,
        stream: &StreamName,
        epoch: Epoch,
    ) -> Result<Option<u64>, EngineError> {
        let next: Option<i64> = self
            .tx
            .prepare_cached(
                "SELECT next FROM positions WHERE gateway = ?1 AND stream = ?2 AND epoch = ?3",
            )?
            .query_row(params![gateway, stream.as_str(), epoch.0.cast_signed()], |row| row.get(0))
            .optional()?;
        Ok(next.map(i64::cast_unsigned))
    }

    fn move_position(
        &self,
        gateway: i64,
        stream: &StreamName,
        epoch: Epoch,
        next: u64,
    ) -> Result<(), EngineError> {
        self.tx
            .prepare_cached(
                "INSERT INTO positions (gateway, stream, epoch, next) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET next = excluded.next",
            )?
            .execute(params![
                gateway,
                stream.as_str(),
                epoch.0.cast_signed(),
                next.cast_signed()
            ])?;
        Ok(())
    }

    fn append(
        &mut self,
        session: &SessionId,
        gateway: i64,
        data: &Data,
        seq: u64,
        record: &WireRecord,
    ) -> Result<(), EngineError> {
        let numbers = self
            .gateways
            .get_mut(&session.gateway)
            .expect("apply was given the numbers of this gateway");
        let key = (gateway << ID_BITS) | numbers.next_record;
        numbers.next_record += 1;
        let mut flags = if record.unsynced { FLAG_UNSYNCED } else { 0 };
        let named;
        let (device, topic, kind, payload) = match &record.body {
            WireBody::Reading { device, topic, retained, payload } => {
                flags |= if *retained { FLAG_RETAINED } else { 0 };
                let payload = match payload {
                    Payload::Json(json) => ToSqlOutput::from(json.as_str()),
                    Payload::Bytes(bytes) => ToSqlOutput::from(bytes.as_ref()),
                };
                (device.as_str(), topic.as_str(), None, payload)
            }
            WireBody::Event { kind, json } => {
                named = device_of_event(json.get());
                (named.as_str(), "", Some(kind.as_str()), ToSqlOutput::from(json.get()))
            }
        };
        self.tx
            .prepare_cached(
                "INSERT INTO records (key, stream, epoch, seq, ts, received_ms, flags, device,
                 topic, kind, payload) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            )?
            .execute(params![
                key,
                data.stream.as_str(),
                data.epoch.0.cast_signed(),
                seq.cast_signed(),
                i64::try_from(record.ts).unwrap_or(i64::MAX),
                self.now_ms,
                flags,
                device,
                topic,
                kind,
                payload,
            ])?;
        self.count(&session.gateway, |counts| counts.received += 1);
        Ok(())
    }

    fn reject(
        &mut self,
        session: &SessionId,
        gateway: i64,
        data: &Data,
        seq: u64,
        reason: &str,
    ) -> Result<(), EngineError> {
        let reason = format!("rejected: {reason}");
        let (stream, epoch) = (&data.stream, data.epoch);
        self.enter(gateway, &Loss { stream, epoch, from: seq, to: seq + 1, reason: &reason })?;
        self.count(&session.gateway, |counts| counts.rejected += 1);
        Ok(())
    }

    fn lose(
        &mut self,
        session: &SessionId,
        gateway: i64,
        loss: &Loss<'_>,
    ) -> Result<(), EngineError> {
        self.enter(gateway, loss)?;
        let lost = (loss.to - loss.from).cast_signed();
        self.count(&session.gateway, |counts| counts.lost = counts.lost.saturating_add(lost));
        Ok(())
    }

    fn enter(&self, gateway: i64, loss: &Loss<'_>) -> Result<(), EngineError> {
        self.tx
            .prepare_cached(
                "INSERT INTO gaps (gateway, stream, epoch, first, next, reason, at_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                gateway,
                loss.stream.as_str(),
                loss.epoch.0.cast_signed(),
                loss.from.cast_signed(),
                loss.to.cast_signed(),
                loss.reason,
                self.now_ms,
            ])?;
        Ok(())
    }

    /// An event that can't be read is stored like any other, and changes nothing else.
    fn fold_event(
        &mut self,
        session: &SessionId,
        gateway: i64,
        kind: &str,
        json: &str,
        ts: u64,
        applied: &mut Applied,
    ) -> Result<(), EngineError> {
        #[derive(Deserialize)]
        struct Refused {
            count: u64,
        }
        match kind {
            "refused" => {
                if let Ok(refused) = serde_json::from_str::<Refused>(json) {
                    let count = i64::try_from(refused.count).unwrap_or(i64::MAX);
                    self.count(&session.gateway, |counts| {
                        counts.refused = counts.refused.saturating_add(count);
                    });
                }
            }
            "command_status" => {
                if let Ok(status) = serde_json::from_str::<Status>(json) {
                    let change = self.fold_status(&session.gateway, gateway, &status, ts)?;
                    applied.statuses.extend(change);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// `None` when the status says nothing new.
    fn fold_status(
        &mut self,
        gateway: &Arc<str>,
        gateway_no: i64,
        status: &Status,
        ts: u64,
    ) -> Result<Option<StatusChange>, EngineError> {
        let result = status.result.as_ref().map(|json| json.get().to_owned());
        let error = status
            .error
            .as_ref()
            .map(|failure| serde_json::to_string(failure).expect("a failure has string keys only"));
        let Some(device) = self.device_of_command(gateway_no, &status.id)? else { return Ok(None) };
        let change = StatusChange {
            gateway: gateway.clone(),
            device,
            id: status.id.clone(),
            n: status.n,
            state: status.state,
            result,
            error,
            ts,
        };
        Ok(self.change_state(gateway_no, &change)?.then_some(change))
    }
}
