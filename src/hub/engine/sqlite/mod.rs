//! The embedded engine: SQLite with a write-ahead log, synced at every commit.

mod append;
mod commands;
mod credentials;
mod enrolment;
mod reader;
mod registry;
mod retention;
mod schema;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use super::{Answer, Engine, EngineError, Held, Request, SessionId, SqliteOptions};
use crate::protocol::Hello;

pub use credentials::Voucher;
pub use enrolment::{Certificate, Enrolled, RevokedCertificate};
pub use reader::{CommandRow, Gap, GatewayRow, Page, Query, Reader, RecordRow, StatusRow};
pub use registry::{Admission, ApiToken, NewToken, Registry};

/// How many epochs of one gateway are kept when a session begins; it may begin as many more as a
/// session may. A gateway that lists them all keeps itself far below: whole ones are forgotten.
const MAX_EPOCHS: usize = 16_384;

/// The embedded engine.
#[derive(Debug)]
pub struct Sqlite {
    options: SqliteOptions,
    db: Connection,
    /// The newest session of each gateway. Not stored: every session ends with the process.
    sessions: HashMap<Arc<str>, u64>,
    /// The number and the record ids of each gateway that spoke since the start.
    gateways: HashMap<Arc<str>, Numbers>,
    /// The gateways that this round of forgetting has yet to visit.
    to_visit: VecDeque<i64>,
    /// What `PRAGMA data_version` said last: it changes when another process wrote.
    data_version: i64,
    /// Another process wrote since the last look.
    changed: bool,
}

/// What is kept in memory of a gateway, so that an append need not look it up.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    no: i64,
    next_record: i64,
}

/// What one group adds to a gateway's counters, written once at its end.
#[derive(Debug, Default)]
struct Counts {
    received: i64,
    duplicate: i64,
    lost: i64,
    refused: i64,
    rejected: i64,
}

/// One group under way. Dropped without a commit, nothing of it remains.
struct Group<'a> {
    tx: Transaction<'a>,
    now_ms: i64,
    options: &'a SqliteOptions,
    sessions: &'a mut HashMap<Arc<str>, u64>,
    gateways: &'a mut HashMap<Arc<str>, Numbers>,
    to_visit: &'a mut VecDeque<i64>,
    changed: &'a mut bool,
    counts: HashMap<Arc<str>, Counts>,
}

impl Sqlite {
    /// Opens the database, makes it if it is not there, and notes that no gateway is connected.
    ///
    /// # Errors
    /// Names the file, the fault and the remedy.
    pub fn open(options: SqliteOptions) -> Result<Self, EngineError> {
        let engine = Self::beside(options)?;
        engine.db.execute("UPDATE gateways SET connected = 0 WHERE connected <> 0", [])?;
        Ok(engine)
    }

    /// Opens the database beside the engine of a running hub, for requests that concern no session.
    ///
    /// # Errors
    /// Names the file, the fault and the remedy.
    pub fn beside(options: SqliteOptions) -> Result<Self, EngineError> {
        let db = schema::open(&options.path)?;
        Ok(Self {
            options,
            db,
            sessions: HashMap::new(),
            gateways: HashMap::new(),
            to_visit: VecDeque::new(),
            data_version: 0,
            changed: false,
        })
    }
}

impl Engine for Sqlite {
    fn commit(&mut self, now_ms: u64, requests: &[Request]) -> Result<Vec<Answer>, EngineError> {
        let seen: i64 = self.db.pragma_query_value(None, "data_version", |row| row.get(0))?;
        let foreign_writes = seen != std::mem::replace(&mut self.data_version, seen);
        self.changed |= foreign_writes;
        let mut group = Group {
            tx: self.db.transaction_with_behavior(TransactionBehavior::Immediate)?,
            now_ms: i64::try_from(now_ms).unwrap_or(i64::MAX),
            options: &self.options,
            sessions: &mut self.sessions,
            gateways: &mut self.gateways,
            to_visit: &mut self.to_visit,
            changed: &mut self.changed,
            counts: HashMap::new(),
        };
        if foreign_writes {
            // Another process may have removed and added gateways.
            group.gateways.clear();
        }
        let mut answers = Vec::with_capacity(requests.len());
        for request in requests {
            answers.push(group.answer(request)?);
        }
        group.write_counts()?;
        group.tx.commit()?;
        Ok(answers)
    }

    fn reopen(&mut self) -> Result<(), EngineError> {
        // What a failed commit left in memory is not to be trusted, nor is its connection.
        self.gateways.clear();
        self.changed = true;
        self.db = schema::open(&self.options.path)?;
        self.db.execute("UPDATE gateways SET connected = connected", [])?;
        Ok(())
    }
}

impl Group<'_> {
    fn answer(&mut self, request: &Request) -> Result<Answer, EngineError> {
        match request {
            Request::Open { session, hello } => self.open(session, hello),
            Request::Close { session } => self.close(session),
            Request::Look => self.look(),
            Request::CreateCommand { gateway, command } => self.create_command(gateway, command),
            Request::CancelCommand { gateway, id } => self.cancel_command(gateway, id),
            Request::Apply { session, data, rejected } => match self.admit(session)? {
                Ok(numbers) => self.apply(session, numbers, data, rejected),
                Err(refusal) => Ok(refusal),
            },
            Request::Skip { session, skip } => match self.admit(session)? {
                Ok(numbers) => self.skip(session, numbers, skip),
                Err(refusal) => Ok(refusal),
            },
            Request::TakeCommands { session, limit } => match self.admit(session)? {
                Ok(numbers) => self.take_commands(numbers.no, *limit),
                Err(refusal) => Ok(refusal),
            },
            Request::FinishCommand { session, id, state, failure } => match self.admit(session)? {
                Ok(numbers) => self.finish_command(session, numbers.no, id, *state, failure),
                Err(refusal) => Ok(refusal),
            },
        }
    }

    /// Lets in only the newest session of a gateway: what a replaced one still sends is sent again
    /// by the newer.
    fn admit(&mut self, session: &SessionId) -> Result<Result<Numbers, Answer>, EngineError> {
        if self.sessions.get(&session.gateway) != Some(&session.number) {
            return Ok(Err(Answer::Superseded));
        }
        Ok(self.numbers(&session.gateway)?.ok_or(Answer::UnknownGateway))
    }

    /// `None`: no such gateway.
    fn numbers(&mut self, gateway: &Arc<str>) -> Result<Option<Numbers>, EngineError> {
        if let Some(numbers) = self.gateways.get(gateway) {
            return Ok(Some(*numbers));
        }
        let mut found = self.tx.prepare_cached(
            "SELECT no, next_record FROM gateways WHERE id = ?1 AND revoked_ms IS NULL",
        )?;
        let mut rows = found.query([gateway.as_ref()])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let numbers = Numbers { no: row.get(0)?, next_record: row.get(1)? };
        self.gateways.insert(gateway.clone(), numbers);
        Ok(Some(numbers))
    }

    fn open(&mut self, session: &SessionId, hello: &Hello) -> Result<Answer, EngineError> {
        let Some(numbers) = self.numbers(&session.gateway)? else {
            return Ok(Answer::UnknownGateway);
        };
        if self.sessions.get(&session.gateway).is_some_and(|newest| *newest > session.number) {
            return Ok(Answer::Superseded);
        }
        let known = self.positions(numbers.no)?;
        let listed: HashSet<(&str, u64)> =
            hello.streams.iter().map(|held| (held.stream.as_str(), held.epoch.0)).collect();
        let is_known =
            |(stream, epoch): &&(&str, u64)| known.contains_key(&((*stream).to_owned(), *epoch));
        let new = listed.len() - listed.iter().filter(is_known).count();
        if hello.partial && known.len() + new > MAX_EPOCHS {
            return Ok(Answer::TooManyEpochs);
        }
        self.sessions.insert(session.gateway.clone(), session.number);
        self.tx.execute(
            "UPDATE gateways SET connected = 1, agent = ?2, last_seen_ms = ?3,
             first_seen_ms = ifnull(first_seen_ms, ?3) WHERE no = ?1",
            params![numbers.no, hello.agent, self.now_ms],
        )?;
        let mut positions = Vec::with_capacity(hello.streams.len());
        for held in &hello.streams {
            let next = known.get(&(held.stream.as_str().to_owned(), held.epoch.0)).copied();
            positions.push(Held {
                stream: held.stream.clone(),
                epoch: held.epoch,
                next: self.resume(session, numbers.no, held, next)?,
            });
        }
        for (stream, epoch) in known.keys() {
            if !hello.partial && !listed.contains(&(stream.as_str(), *epoch)) {
                self.tx
                    .prepare_cached(
                        "DELETE FROM positions WHERE gateway = ?1 AND stream = ?2 AND epoch = ?3",
                    )?
                    .execute(params![numbers.no, stream, epoch.cast_signed()])?;
            }
        }
        let commands = self.sent_commands(numbers.no)?;
        Ok(Answer::Opened { positions, commands })
    }

    fn close(&mut self, session: &SessionId) -> Result<Answer, EngineError> {
        if self.sessions.get(&session.gateway) == Some(&session.number) {
            self.sessions.remove(&session.gateway);
            self.tx.execute(
                "UPDATE gateways SET connected = 0, last_seen_ms = ?2 WHERE id = ?1",
                params![session.gateway.as_ref(), self.now_ms],
            )?;
        }
        Ok(Answer::Done)
    }

    fn count(&mut self, gateway: &Arc<str>, add: impl FnOnce(&mut Counts)) {
        add(self.counts.entry(gateway.clone()).or_default());
    }

    fn write_counts(&mut self) -> Result<(), EngineError> {
        let mut write = self.tx.prepare_cached(
            "UPDATE gateways SET received = received + ?2, duplicate = duplicate + ?3,
             lost = min(lost + ?4, 9007199254740991),
             refused = min(refused + ?5, 9007199254740991), rejected = rejected + ?6,
             next_record = ?7, last_seen_ms = ?8 WHERE no = ?1",
        )?;
        for (gateway, counts) in &self.counts {
            let Some(numbers) = self.gateways.get(gateway) else { continue };
            write.execute(params![
                numbers.no,
                counts.received,
                counts.duplicate,
                counts.lost,
                counts.refused,
                counts.rejected,
                numbers.next_record,
                self.now_ms,
            ])?;
        }
        Ok(())
    }
}

impl From<rusqlite::Error> for EngineError {
    fn from(error: rusqlite::Error) -> Self {
        Self(format!("the database: {error}"))
    }
}
