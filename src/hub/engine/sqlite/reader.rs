//! Questions to the database, on connections of their own: the log lets them read beside the
//! engine's commits.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use rusqlite::{Connection, OptionalExtension as _, Row, params, types::ValueRef};

use super::{
    append::{FLAG_RETAINED, FLAG_UNSYNCED},
    schema::{self, ID_BITS},
};
use crate::hub::engine::EngineError;

/// How many idle connections are kept.
const IDLE_CONNECTIONS: usize = 4;

/// The most records that one page looks at, whether they match or not.
const ROWS_PER_PAGE: i64 = 50_000;

/// The most payload bytes in one page.
const BYTES_PER_PAGE: usize = 8 << 20;

/// Answers questions about what is stored.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

/// A gateway as it is known.
#[derive(Debug, Clone)]
pub struct GatewayRow {
    /// Its id.
    pub id: String,
    /// Whether a session is open.
    pub connected: bool,
    /// Whether it was shut out.
    pub revoked: bool,
    /// Whether it has a token; else it comes with a key or a certificate.
    pub has_token: bool,
    /// Whether a key is registered that signs its tokens.
    pub has_key: bool,
    /// Program and version, as it says.
    pub agent: String,
    /// When it was added, and first and last seen; Unix milliseconds.
    pub times_ms: (i64, Option<i64>, Option<i64>),
    /// The oldest record kept, and one past the newest.
    pub records: (i64, i64),
    /// Received, duplicate, lost, refused, rejected, all since it was added.
    pub counters: [i64; 5],
}

/// Which records.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Those with a higher id.
    pub after: u64,
    /// At most so many.
    pub limit: usize,
    /// Of this device.
    pub device: Option<String>,
    /// Of this stream.
    pub stream: Option<String>,
}

/// Records, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// The records.
    pub records: Vec<RecordRow>,
    /// Go on with `after` set to this.
    pub next_after: u64,
    /// Whether there is more now.
    pub more: bool,
    /// The oldest id that is kept: a reader who is behind it has missed what retention forgot.
    pub oldest: u64,
}

/// A record.
#[derive(Debug, Clone)]
pub struct RecordRow {
    /// Rising per gateway, without a hole.
    pub id: u64,
    /// Where it came from.
    pub stream: String,
    /// Where it came from.
    pub epoch: u64,
    /// Where it came from.
    pub seq: u64,
    /// When it was heard, Unix milliseconds.
    pub ts: i64,
    /// When it was stored, Unix milliseconds.
    pub received_ms: i64,
    /// The clock of the gateway was not trusted.
    pub unsynced: bool,
    /// It was a retained message.
    pub retained: bool,
    /// The device; empty for an event without one.
    pub device: String,
    /// The topic; empty for an event.
    pub topic: String,
    /// The kind of an event.
    pub kind: Option<String>,
    /// JSON text, or bytes.
    pub payload: Result<String, Vec<u8>>,
}

/// Records that never came, or were not taken.
#[derive(Debug, Clone)]
pub struct Gap {
    /// The stream.
    pub stream: String,
    /// The epoch.
    pub epoch: u64,
    /// The first missing record, and one past the last.
    pub range: (u64, u64),
    /// Why.
    pub reason: String,
    /// When it was entered, Unix milliseconds.
    pub at_ms: i64,
}

/// A command as it stands.
#[derive(Debug, Clone)]
pub struct CommandRow {
    /// Its id.
    pub id: String,
    /// Its gateway.
    pub gateway: String,
    /// Its device.
    pub device: String,
    /// What to do.
    pub name: String,
    /// JSON.
    pub params: String,
    /// When it was given, Unix milliseconds.
    pub created_ms: i64,
    /// How long it may be delivered.
    pub ttl_ms: i64,
    /// How long the device has.
    pub timeout_ms: i64,
    /// Whether it may be delivered twice.
    pub idempotent: bool,
    /// Whether it was handed to a session.
    pub sent: bool,
    /// Whether it was asked to be withdrawn.
    pub cancel_requested: bool,
    /// The last state; `None` until the gateway speaks of it.
    pub state: Option<String>,
    /// Whether that is final.
    pub is_final: bool,
}

/// A state that a command went through.
#[derive(Debug, Clone)]
pub struct StatusRow {
    /// Its number.
    pub n: u32,
    /// Its name.
    pub state: String,
    /// When, Unix milliseconds.
    pub ts: i64,
    /// JSON.
    pub result: Option<String>,
    /// JSON.
    pub error: Option<String>,
}

impl Reader {
    /// Reads the database at `path`; it is opened at the first question.
    pub fn new(path: PathBuf) -> Self {
        Self { path, idle: Mutex::new(Vec::new()) }
    }

    /// All gateways by name, or the one named.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn gateways(&self, id: Option<&str>) -> Result<Vec<GatewayRow>, EngineError> {
        self.ask(|db| {
            db.prepare_cached(
                "SELECT *, no IN (SELECT gateway FROM gateway_keys) AS has_key
                 FROM gateways WHERE ?1 IS NULL OR id = ?1 ORDER BY id LIMIT 100000",
            )?
            .query_map([id], read_gateway)?
            .collect()
        })
    }

    /// A page of a gateway's records; `None`: no such gateway.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn records(&self, gateway: &str, query: &Query) -> Result<Option<Page>, EngineError> {
        self.ask(|db| {
            let found: Option<(i64, i64)> = db
                .prepare_cached("SELECT no, first_record FROM gateways WHERE id = ?1")?
                .query_row([gateway], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let Some((no, first)) = found else { return Ok(None) };
            read_page(db, no, first, query).map(Some)
        })
    }

    /// A gateway's gaps, newest first.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn gaps(&self, gateway: &str, limit: usize) -> Result<Vec<Gap>, EngineError> {
        self.ask(|db| {
            db.prepare_cached(
                "SELECT stream, epoch, first, next, reason, at_ms FROM gaps
                 WHERE gateway = (SELECT no FROM gateways WHERE id = ?1) ORDER BY id DESC LIMIT ?2",
            )?
            .query_map(params![gateway, limit.cast_signed()], |row| {
                let (epoch, first, next): (i64, i64, i64) = (row.get(1)?, row.get(2)?, row.get(3)?);
                Ok(Gap {
                    stream: row.get(0)?,
                    epoch: epoch.cast_unsigned(),
                    range: (first.cast_unsigned(), next.cast_unsigned()),
                    reason: row.get(4)?,
                    at_ms: row.get(5)?,
                })
            })?
            .collect()
        })
    }

    /// Commands, newest first: of one gateway, or all.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn commands(
        &self,
        gateway: Option<&str>,
        limit: usize,
    ) -> Result<Vec<CommandRow>, EngineError> {
        self.ask(|db| {
            db.prepare_cached(
                "SELECT commands.*, gateways.id AS gateway_id FROM commands
                 JOIN gateways ON gateways.no = commands.gateway
                 WHERE ?1 IS NULL OR gateways.id = ?1
                 ORDER BY commands.created_ms DESC, commands.id DESC LIMIT ?2",
            )?
            .query_map(params![gateway, limit.cast_signed()], read_command)?
            .collect()
        })
    }

    /// A command and the states it went through.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn command(
        &self,
        gateway: &str,
        id: &str,
    ) -> Result<Option<(CommandRow, Vec<StatusRow>)>, EngineError> {
        self.ask(|db| {
            let command = db
                .prepare_cached(
                    "SELECT commands.*, gateways.id AS gateway_id FROM commands
                     JOIN gateways ON gateways.no = commands.gateway
                     WHERE commands.id = ?1 AND gateways.id = ?2",
                )?
                .query_row([id, gateway], read_command)
                .optional()?;
            let Some(command) = command else { return Ok(None) };
            let states = db
                .prepare_cached(
                    "SELECT n, state, ts, result, error FROM command_statuses
                     WHERE command = ?1 ORDER BY n",
                )?
                .query_map([id], |row| {
                    Ok(StatusRow {
                        n: row.get(0)?,
                        state: row.get(1)?,
                        ts: row.get(2)?,
                        result: row.get(3)?,
                        error: row.get(4)?,
                    })
                })?
                .collect::<Result<_, _>>()?;
            Ok(Some((command, states)))
        })
    }

    pub(super) fn ask<T>(
        &self,
        question: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, EngineError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let db = match idle {
            Some(db) => db,
            None => schema::open_for_reading(&self.path)?,
        };
        // A connection that failed is dropped: the next question opens another.
        let answer = question(&db)?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_CONNECTIONS {
            idle.push(db);
        }
        Ok(answer)
    }
}

fn read_page(db: &Connection, no: i64, first: i64, query: &Query) -> rusqlite::Result<Page> {
    let base = no << ID_BITS;
    let after = query.after.min((1 << ID_BITS) - 1);
    let mut page = Page { next_after: after, oldest: first.cast_unsigned(), ..Page::default() };
    let mut select = db.prepare_cached(
        "SELECT * FROM records WHERE key > ?1 AND key < ?2 ORDER BY key LIMIT ?3",
    )?;
    let mut rows =
        select.query(params![base | after.cast_signed(), base + (1 << ID_BITS), ROWS_PER_PAGE])?;
    let (mut seen, mut bytes) = (0, 0);
    while let Some(row) = rows.next()? {
        seen += 1;
        if page.records.len() >= query.limit || bytes >= BYTES_PER_PAGE {
            page.more = true;
            return Ok(page);
        }
        let key: i64 = row.get("key")?;
        page.next_after = (key - base).cast_unsigned();
        let matches = |wanted: &Option<String>, column| -> rusqlite::Result<bool> {
            let Some(wanted) = wanted else { return Ok(true) };
            Ok(row.get_ref(column)?.as_str()? == wanted)
        };
        if matches(&query.device, "device")? && matches(&query.stream, "stream")? {
            let record = read_record(row, base)?;
            bytes += match &record.payload {
                Ok(text) => text.len(),
                Err(bytes) => bytes.len(),
            };
            page.records.push(record);
        }
    }
    page.more = seen == ROWS_PER_PAGE;
    Ok(page)
}

fn read_record(row: &Row<'_>, base: i64) -> rusqlite::Result<RecordRow> {
    let (key, epoch, seq): (i64, i64, i64) = (row.get("key")?, row.get("epoch")?, row.get("seq")?);
    let flags: i64 = row.get("flags")?;
    Ok(RecordRow {
        id: (key - base).cast_unsigned(),
        stream: row.get("stream")?,
        epoch: epoch.cast_unsigned(),
        seq: seq.cast_unsigned(),
        ts: row.get("ts")?,
        received_ms: row.get("received_ms")?,
        unsynced: flags & FLAG_UNSYNCED != 0,
        retained: flags & FLAG_RETAINED != 0,
        device: row.get("device")?,
        topic: row.get("topic")?,
        kind: row.get("kind")?,
        payload: match row.get_ref("payload")? {
            ValueRef::Blob(bytes) => Err(bytes.to_vec()),
            text => Ok(text.as_str()?.to_owned()),
        },
    })
}

fn read_gateway(row: &Row<'_>) -> rusqlite::Result<GatewayRow> {
    Ok(GatewayRow {
        id: row.get("id")?,
        connected: row.get("connected")?,
        revoked: row.get::<_, Option<i64>>("revoked_ms")?.is_some(),
        has_token: row.get::<_, Option<Vec<u8>>>("token_sha256")?.is_some(),
        has_key: row.get("has_key")?,
        agent: row.get("agent")?,
        times_ms: (row.get("created_ms")?, row.get("first_seen_ms")?, row.get("last_seen_ms")?),
        records: (row.get("first_record")?, row.get("next_record")?),
        counters: [
            row.get("received")?,
            row.get("duplicate")?,
            row.get("lost")?,
            row.get("refused")?,
            row.get("rejected")?,
        ],
    })
}

fn read_command(row: &Row<'_>) -> rusqlite::Result<CommandRow> {
    Ok(CommandRow {
        id: row.get("id")?,
        gateway: row.get("gateway_id")?,
        device: row.get("device")?,
        name: row.get("name")?,
        params: row.get("params")?,
        created_ms: row.get("created_ms")?,
        ttl_ms: row.get("ttl_ms")?,
        timeout_ms: row.get("timeout_ms")?,
        idempotent: row.get("idempotent")?,
        sent: row.get::<_, Option<i64>>("sent_ms")?.is_some(),
        cancel_requested: row.get::<_, i64>("cancel")? != 0,
        state: row.get("state")?,
        is_final: row.get("final")?,
    })
}
