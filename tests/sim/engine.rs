//! A model of the store that the hub's nodes share: what it has answered for is durable, and
//! nothing else. It keeps to the contract of `fieldgate::hub::engine`.

use std::{collections::BTreeMap, sync::Arc};

use fieldgate::{
    command::{CommandId, State, Status},
    hub::engine::{Answer, Applied, Held, Pending, Request, SessionId, StatusChange},
    protocol::{CommandMessage, Data, Epoch, Hello, HubState, Skip, StreamName, WireBody},
};

use crate::{
    coverage::{Coverage, Seen},
    oracle::Oracle,
};

/// What the engine keeps.
#[derive(Debug, Default)]
pub(crate) struct Engine {
    newest: u64,
    positions: BTreeMap<(StreamName, Epoch), u64>,
    commands: BTreeMap<CommandId, Row>,
}

#[derive(Debug)]
struct Row {
    command: CommandMessage,
    created_ms: u64,
    n: u32,
    state: Option<State>,
    was_sent: bool,
    is_cancelled: bool,
    cancel_sent: bool,
}

/// Who looks on.
pub(crate) struct Audience<'a> {
    pub(crate) oracle: &'a mut Oracle,
    pub(crate) coverage: &'a mut Coverage,
}

impl Engine {
    /// Does what is asked, durably.
    pub(crate) fn apply(
        &mut self,
        now_ms: u64,
        request: &Request,
        audience: &mut Audience,
    ) -> Answer {
        match request {
            Request::Open { session, hello } => self.open(session, hello, audience),
            Request::Close { .. } => Answer::Done,
            Request::CreateCommand { command, .. } => self.create(now_ms, command),
            Request::CancelCommand { id, .. } => self.cancel(id, audience),
            Request::Look => self.look(now_ms, audience),
            Request::Apply { session, .. }
            | Request::Skip { session, .. }
            | Request::TakeCommands { session, .. }
            | Request::FinishCommand { session, .. }
                if session.number != self.newest =>
            {
                Answer::Superseded
            }
            Request::Apply { session, data, rejected } => {
                self.append(session, data, rejected, audience)
            }
            Request::Skip { skip, .. } => self.skip(skip, audience),
            Request::TakeCommands { limit, .. } => self.take(*limit),
            Request::FinishCommand { session, id, state, .. } => {
                self.end(&session.gateway, id, *state, audience)
            }
        }
    }

    /// Every command that was ever created has ended.
    pub(crate) fn has_open_commands(&self) -> bool {
        self.commands.values().any(|row| !row.is_final())
    }

    /// Whether something waits for a session to take it.
    pub(crate) fn has_waiting(&self) -> bool {
        self.commands
            .values()
            .any(|row| !row.is_final() && (!row.was_sent || (row.is_cancelled && !row.cancel_sent)))
    }

    /// A command that has not ended, for a person to think better of it.
    pub(crate) fn open_command(&self, draw: u64) -> Option<CommandId> {
        let open: Vec<&CommandId> =
            self.commands.iter().filter(|(_, row)| !row.is_final()).map(|(id, _)| id).collect();
        let at = (!open.is_empty()).then(|| draw as usize % open.len())?;
        Some(open[at].clone())
    }

    fn open(&mut self, session: &SessionId, hello: &Hello, audience: &mut Audience) -> Answer {
        if self.newest > session.number {
            return Answer::Superseded;
        }
        self.newest = session.number;
        let mut positions = Vec::with_capacity(hello.streams.len());
        for held in &hello.streams {
            let key = (held.stream.clone(), held.epoch);
            let next = self.positions.entry(key).or_insert(held.first);
            if *next < held.first {
                panic!(
                    "promise 1: the gateway let go of {} {} up to {}, and the hub has it up to {next}",
                    held.stream, held.epoch, held.first
                );
            }
            positions.push(Held { stream: held.stream.clone(), epoch: held.epoch, next: *next });
        }
        if !hello.partial {
            let listed = |key: &(StreamName, Epoch)| {
                hello.streams.iter().any(|held| (&held.stream, held.epoch) == (&key.0, key.1))
            };
            self.positions.retain(|key, _| listed(key));
        }
        let sent = self.commands.values_mut().filter(|row| row.was_sent && !row.is_final());
        let commands: Vec<Pending> = sent.map(Row::pending).collect();
        audience.coverage.add(Seen::CommandResent, commands.len() as u64);
        self.commands.values_mut().for_each(|row| row.cancel_sent |= row.is_cancelled);
        Answer::Opened { positions, commands }
    }

    fn append(
        &mut self,
        session: &SessionId,
        data: &Data,
        rejected: &[(u64, &'static str)],
        audience: &mut Audience,
    ) -> Answer {
        audience.oracle.arrived(data);
        let end = data.seq + data.records.len() as u64;
        let key = (data.stream.clone(), data.epoch);
        let next = match self.positions.get(&key) {
            Some(next) => *next,
            None => 1,
        };
        if data.seq > next {
            return Answer::Gap { expected: next };
        }
        audience.coverage.add(Seen::Resent, next.min(end) - data.seq);
        let mut applied =
            Applied { next: next.max(end), new_from: next, first_id: 1, statuses: Vec::new() };
        if end > next {
            self.positions.insert(key, end);
            audience.oracle.applied(data, next, rejected, audience.coverage);
            let fresh = data.records.iter().zip(data.seq..).filter(|(_, seq)| *seq >= next);
            for (record, _) in fresh {
                let WireBody::Event { kind, json } = &record.body else { continue };
                if kind == "command_status"
                    && let Ok(status) = serde_json::from_str::<Status>(json.get())
                {
                    let (id, n, state) = (&status.id, status.n, status.state);
                    applied.statuses.extend(self.change(&session.gateway, id, n, state, audience));
                }
            }
        }
        Answer::Applied(applied)
    }

    fn skip(&mut self, skip: &Skip, audience: &mut Audience) -> Answer {
        let key = (skip.stream.clone(), skip.epoch);
        let next = self.positions.get(&key).copied().unwrap_or(1);
        if skip.from > next {
            return Answer::Gap { expected: next };
        }
        if skip.to > next {
            let Audience { oracle, coverage } = audience;
            oracle.skipped(&skip.stream, skip.epoch.0, next..skip.to, &skip.reason, coverage);
            self.positions.insert(key, skip.to);
        }
        Answer::Applied(Applied {
            next: next.max(skip.to),
            new_from: next,
            first_id: 1,
            statuses: Vec::new(),
        })
    }

    fn create(&mut self, now_ms: u64, command: &CommandMessage) -> Answer {
        let row = Row {
            command: command.clone(),
            created_ms: now_ms,
            n: 0,
            state: None,
            was_sent: false,
            is_cancelled: false,
            cancel_sent: false,
        };
        self.commands.insert(command.id.clone(), row);
        Answer::Created
    }

    fn cancel(&mut self, id: &CommandId, audience: &mut Audience) -> Answer {
        let Some(row) = self.commands.get_mut(id) else { return Answer::UnknownCommand };
        match row.state.filter(|_| row.is_final()) {
            Some(state) => Answer::AlreadyFinal(state),
            None if row.was_sent => {
                row.is_cancelled = true;
                Answer::CancelRequested
            }
            None => self.end(&Arc::from("gw"), id, State::Cancelled, audience),
        }
    }

    fn look(&mut self, now_ms: u64, audience: &mut Audience) -> Answer {
        let unsent = self.commands.iter().filter(|(_, row)| !row.was_sent && !row.is_final());
        let expired: Vec<CommandId> = unsent
            .filter(|(_, row)| row.created_ms + row.command.ttl_ms < now_ms)
            .map(|(id, _)| id.clone())
            .collect();
        for id in &expired {
            self.end(&Arc::from("gw"), id, State::Expired, audience);
        }
        Answer::Done
    }

    fn take(&mut self, limit: usize) -> Answer {
        let mut cancels = Vec::new();
        for (id, row) in &mut self.commands {
            if row.is_cancelled && !row.cancel_sent && !row.is_final() {
                row.cancel_sent = true;
                cancels.push(id.clone());
            }
        }
        let mut waiting: Vec<&mut Row> =
            self.commands.values_mut().filter(|row| !row.was_sent && !row.is_final()).collect();
        let more = waiting.len() > limit;
        waiting.truncate(limit);
        let commands = waiting.into_iter().map(|row| {
            row.was_sent = true;
            row.pending()
        });
        Answer::Commands { commands: commands.collect(), cancels, more }
    }

    fn end(
        &mut self,
        gateway: &Arc<str>,
        id: &CommandId,
        state: State,
        audience: &mut Audience,
    ) -> Answer {
        let n = self.commands.get(id).map_or(0, |row| row.n) + 1;
        let statuses = self.change(gateway, id, n, state, audience);
        Answer::Ended { statuses: statuses.into_iter().collect() }
    }

    /// `None` when this state or a later one is known: `n` only rises, and an end is an end.
    fn change(
        &mut self,
        gateway: &Arc<str>,
        id: &CommandId,
        n: u32,
        state: State,
        audience: &mut Audience,
    ) -> Option<StatusChange> {
        let row = self.commands.get_mut(id)?;
        if row.is_final() || n <= row.n {
            return None;
        }
        (row.n, row.state, row.was_sent) = (n, Some(state), true);
        if state.is_final() {
            audience.oracle.fates.ended(id.as_str(), state);
        }
        Some(StatusChange {
            gateway: gateway.clone(),
            device: row.command.device.clone(),
            id: id.clone(),
            n,
            state,
            result: None,
            error: None,
            ts: 0,
        })
    }
}

impl Row {
    fn is_final(&self) -> bool {
        self.state.is_some_and(State::is_final)
    }

    fn pending(&mut self) -> Pending {
        let state = self.state.map(|state| HubState { n: self.n, state });
        Pending {
            command: CommandMessage { state, ..self.command.clone() },
            expires_ms: self.created_ms + self.command.ttl_ms,
            cancelled: self.is_cancelled,
        }
    }
}
