//! Commands, from their creation to their final state.
//!
//! `sent_ms` is durable before a command leaves: what was never sent the hub may end by itself, of
//! all else only the gateway can say how it ended.

use std::sync::Arc;

use rusqlite::{OptionalExtension as _, Row, params};
use serde_json::value::RawValue;

use super::Group;
use crate::{
    command::{CommandId, Failure, State},
    hub::engine::{Answer, EngineError, Pending, SessionId, StatusChange},
    protocol::{CommandMessage, HubState},
};

/// `commands.cancel`.
const CANCEL_REQUESTED: i64 = 1;
const CANCEL_SENT: i64 = 2;

/// The most cancels handed out at once; the rest goes with the next look.
const CANCELS_AT_ONCE: i64 = 256;

const COLUMNS: &str = "id, device, name, params, created_ms, ttl_ms, timeout_ms, idempotent, n, \
                       state, cancel";

impl Group<'_> {
    pub(super) fn create_command(
        &mut self,
        gateway: &str,
        command: &CommandMessage,
    ) -> Result<Answer, EngineError> {
        let Some(numbers) = self.numbers(&Arc::from(gateway))? else {
            return Ok(Answer::UnknownGateway);
        };
        let limit = self.options.retention.max_pending_commands;
        let pending: i64 = self.tx.query_row(
            "SELECT count(*) FROM commands WHERE gateway = ?1 AND final = 0",
            [numbers.no],
            |row| row.get(0),
        )?;
        if pending.cast_unsigned() >= limit {
            return Ok(Answer::TooManyCommands);
        }
        let added = self.tx.execute(
            "INSERT INTO commands (id, gateway, device, name, params, created_ms, ttl_ms, timeout_ms,
             idempotent) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT DO NOTHING",
            params![
                command.id.as_str(),
                numbers.no,
                command.device,
                command.name,
                command.params.get(),
                self.now_ms,
                i64::try_from(command.ttl_ms).unwrap_or(i64::MAX),
                i64::try_from(command.timeout_ms).unwrap_or(i64::MAX),
                command.idempotent,
            ],
        )?;
        Ok(if added == 1 { Answer::Created } else { Answer::CommandExists })
    }

    pub(super) fn cancel_command(
        &mut self,
        gateway: &str,
        id: &CommandId,
    ) -> Result<Answer, EngineError> {
        let gateway: Arc<str> = Arc::from(gateway);
        let Some(numbers) = self.numbers(&gateway)? else {
            return Ok(Answer::UnknownGateway);
        };
        let found: Option<(bool, Option<i64>, Option<String>)> = self
            .tx
            .query_row(
                "SELECT final, sent_ms, state FROM commands WHERE id = ?1 AND gateway = ?2",
                params![id.as_str(), numbers.no],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .optional()?;
        match found {
            None => Ok(Answer::UnknownCommand),
            Some((true, _, state)) => {
                Ok(Answer::AlreadyFinal(state.and_then(read_state).unwrap_or(State::Unknown)))
            }
            Some((false, Some(_), _)) => {
                self.tx.execute(
                    "UPDATE commands SET cancel = ?2 WHERE id = ?1 AND cancel = 0",
                    params![id.as_str(), CANCEL_REQUESTED],
                )?;
                Ok(Answer::CancelRequested)
            }
            Some((false, None, _)) => {
                let failure = failure("cancelled", "withdrawn before it was sent");
                self.end(&gateway, numbers.no, id, State::Cancelled, &failure)
            }
        }
    }

    pub(super) fn take_commands(
        &mut self,
        gateway: i64,
        limit: usize,
    ) -> Result<Answer, EngineError> {
        let cancels = self.take_cancels(gateway)?;
        let wanted = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
        let mut commands = self.pending(
            &format!(
                "SELECT {COLUMNS} FROM commands WHERE gateway = ?1 AND final = 0 AND sent_ms IS NULL
                 ORDER BY created_ms, id LIMIT ?2"
            ),
            gateway,
            wanted,
        )?;
        let more = commands.len() > limit;
        commands.truncate(limit);
        for pending in &commands {
            self.tx
                .prepare_cached("UPDATE commands SET sent_ms = ?2 WHERE id = ?1")?
                .execute(params![pending.command.id.as_str(), self.now_ms])?;
        }
        Ok(Answer::Commands { commands, cancels, more })
    }

    /// What was sent and has no final state; what the gateway spoke of goes first, for it waits for
    /// that.
    pub(super) fn sent_commands(&self, gateway: i64) -> Result<Vec<Pending>, EngineError> {
        let commands = self.pending(
            &format!(
                "SELECT {COLUMNS} FROM commands WHERE gateway = ?1 AND final = 0
                 AND sent_ms IS NOT NULL ORDER BY n = 0, created_ms, id LIMIT ?2"
            ),
            gateway,
            i64::MAX,
        )?;
        self.tx.execute(
            "UPDATE commands SET cancel = ?2 WHERE gateway = ?1 AND final = 0 AND cancel = ?3",
            params![gateway, CANCEL_SENT, CANCEL_REQUESTED],
        )?;
        Ok(commands)
    }

    pub(super) fn finish_command(
        &mut self,
        session: &SessionId,
        gateway: i64,
        id: &CommandId,
        state: State,
        failure: &Failure,
    ) -> Result<Answer, EngineError> {
        self.end(&session.gateway, gateway, id, state, failure)
    }

    pub(super) fn device_of_command(
        &self,
        gateway: i64,
        id: &CommandId,
    ) -> Result<Option<String>, EngineError> {
        let mut query =
            self.tx.prepare_cached("SELECT device FROM commands WHERE id = ?1 AND gateway = ?2")?;
        Ok(query.query_row(params![id.as_str(), gateway], |row| row.get(0)).optional()?)
    }

    /// `false` when the hub knows this state or a later one: `n` rises strictly, and nothing follows a final state.
    pub(super) fn change_state(
        &self,
        gateway: i64,
        change: &StatusChange,
    ) -> Result<bool, EngineError> {
        let changed = self
            .tx
            .prepare_cached(
                "UPDATE commands SET n = ?3, state = ?4, final = ?5, sent_ms = ifnull(sent_ms, ?6)
                 WHERE id = ?1 AND gateway = ?2 AND final = 0 AND n < ?3",
            )?
            .execute(params![
                change.id.as_str(),
                gateway,
                change.n,
                change.state.as_str(),
                change.state.is_final(),
                self.now_ms,
            ])?;
        if changed == 0 {
            return Ok(false);
        }
        self.tx
            .prepare_cached(
                "INSERT INTO command_statuses (command, n, state, ts, result, error)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                change.id.as_str(),
                change.n,
                change.state.as_str(),
                i64::try_from(change.ts).unwrap_or(i64::MAX),
                change.result,
                change.error,
            ])?;
        Ok(true)
    }

    /// Ends what expired without ever being sent: no gateway can have run it.
    pub(super) fn expire_unsent(&mut self) -> Result<Vec<StatusChange>, EngineError> {
        let rows: Vec<(String, i64, String)> = self
            .tx
            .prepare_cached(
                "SELECT commands.id, gateway, gateways.id FROM commands
                 JOIN gateways ON gateways.no = commands.gateway
                 WHERE final = 0 AND sent_ms IS NULL AND ttl_ms < ?1 - commands.created_ms LIMIT 256",
            )?
            .query_map([self.now_ms], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<Result<_, _>>()?;
        let failure = failure("expired", "the gateway did not connect in time");
        let mut changes = Vec::with_capacity(rows.len());
        for (id, no, gateway) in rows {
            let Ok(id) = CommandId::try_from(id) else { continue };
            let ended = self.end(&Arc::from(gateway), no, &id, State::Expired, &failure)?;
            if let Answer::Ended { statuses } = ended {
                changes.extend(statuses);
            }
        }
        Ok(changes)
    }

    /// The hub's own last word on a command.
    fn end(
        &mut self,
        gateway: &Arc<str>,
        gateway_no: i64,
        id: &CommandId,
        state: State,
        failure: &Failure,
    ) -> Result<Answer, EngineError> {
        let found: Option<(u32, String)> = self
            .tx
            .prepare_cached("SELECT n, device FROM commands WHERE id = ?1 AND gateway = ?2")?
            .query_row(params![id.as_str(), gateway_no], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((n, device)) = found else { return Ok(Answer::UnknownCommand) };
        let change = StatusChange {
            gateway: gateway.clone(),
            device,
            id: id.clone(),
            n: n.saturating_add(1),
            state,
            result: None,
            error: Some(serde_json::to_string(failure).expect("a failure has string keys only")),
            ts: self.now_ms.cast_unsigned(),
        };
        let changed = self.change_state(gateway_no, &change)?;
        Ok(Answer::Ended { statuses: if changed { vec![change] } else { Vec::new() } })
    }

    fn take_cancels(&mut self, gateway: i64) -> Result<Vec<CommandId>, EngineError> {
        let ids: Vec<String> = self
            .tx
            .prepare_cached(
                "SELECT id FROM commands WHERE gateway = ?1 AND final = 0 AND cancel = ?2 LIMIT ?3",
            )?
            .query_map(params![gateway, CANCEL_REQUESTED, CANCELS_AT_ONCE], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        for id in &ids {
            self.tx
                .prepare_cached("UPDATE commands SET cancel = ?2 WHERE id = ?1")?
                .execute(params![id, CANCEL_SENT])?;
        }
        Ok(ids.into_iter().filter_map(|id| CommandId::try_from(id).ok()).collect())
    }

    fn pending(&self, sql: &str, gateway: i64, limit: i64) -> Result<Vec<Pending>, EngineError> {
        let mut query = self.tx.prepare_cached(sql)?;
        let rows = query.query_map([gateway, limit], read_pending)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn failure(code: &str, message: &str) -> Failure {
    Failure { code: code.into(), message: message.into() }
}

fn read_pending(row: &Row<'_>) -> rusqlite::Result<Pending> {
    let unreadable = |what: String| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, what.into())
    };
    let params: String = row.get("params")?;
    let (n, state): (u32, Option<String>) = (row.get("n")?, row.get("state")?);
    let (created, ttl): (i64, i64) = (row.get("created_ms")?, row.get("ttl_ms")?);
    let timeout: i64 = row.get("timeout_ms")?;
    let cancel: i64 = row.get("cancel")?;
    Ok(Pending {
        command: CommandMessage {
            id: CommandId::try_from(row.get::<_, String>("id")?).map_err(unreadable)?,
            device: row.get("device")?,
            name: row.get("name")?,
            params: RawValue::from_string(params).map_err(|error| unreadable(error.to_string()))?,
            ttl_ms: ttl.cast_unsigned(),
            timeout_ms: timeout.cast_unsigned(),
            idempotent: row.get("idempotent")?,
            state: state.and_then(read_state).map(|state| HubState { n, state }),
        },
        expires_ms: created.saturating_add(ttl).cast_unsigned(),
        cancelled: cancel != 0,
    })
}

fn read_state(name: String) -> Option<State> {
    serde_json::from_value(serde_json::Value::String(name)).ok()
}
