//! The database: its tables, and how a connection is opened.
//!
//! `records.key` is `gateway << 40 | id`: one B-tree, appended at one place per gateway, and a page
//! of a gateway's records is a range of it. So there are at most 2^23 gateways and 2^40 records of
//! each, ever.
//!
//! Epochs are the 64 bits of the wire, as SQLite's signed integers. Times are Unix milliseconds.

use std::{fs, os::unix::fs::OpenOptionsExt as _, path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags};

use super::super::EngineError;
use crate::files;

/// How many bits of a record's key are its id.
pub(super) const ID_BITS: u32 = 40;

/// `application_id`: "fgh1".
const APPLICATION_ID: i32 = 0x6667_6831;

/// What each version added to the one before it.
const VERSIONS: [&str; 3] = [TABLES, IDENTITIES, ADMISSIONS];
const VERSION: i32 = VERSIONS.len() as i32;

/// How long a connection waits for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const TABLES: &str = "
CREATE TABLE gateways (
    no INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, token_sha256 BLOB UNIQUE,
    created_ms INTEGER NOT NULL, revoked_ms INTEGER,
    first_seen_ms INTEGER, last_seen_ms INTEGER, connected INTEGER NOT NULL DEFAULT 0,
    agent TEXT NOT NULL DEFAULT '',
    first_record INTEGER NOT NULL DEFAULT 1, next_record INTEGER NOT NULL DEFAULT 1,
    received INTEGER NOT NULL DEFAULT 0, duplicate INTEGER NOT NULL DEFAULT 0,
    lost INTEGER NOT NULL DEFAULT 0, refused INTEGER NOT NULL DEFAULT 0,
    rejected INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE positions (
    gateway INTEGER NOT NULL, stream TEXT NOT NULL, epoch INTEGER NOT NULL, next INTEGER NOT NULL,
    PRIMARY KEY (gateway, stream, epoch)) STRICT, WITHOUT ROWID;
CREATE TABLE records (
    key INTEGER PRIMARY KEY, stream TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
    ts INTEGER NOT NULL, received_ms INTEGER NOT NULL, flags INTEGER NOT NULL,
    device TEXT NOT NULL, topic TEXT NOT NULL, kind TEXT, payload ANY NOT NULL) STRICT;
CREATE TABLE gaps (
    id INTEGER PRIMARY KEY, gateway INTEGER NOT NULL, stream TEXT NOT NULL, epoch INTEGER NOT NULL,
    first INTEGER NOT NULL, next INTEGER NOT NULL, reason TEXT NOT NULL, at_ms INTEGER NOT NULL)
    STRICT;
CREATE INDEX gaps_of_gateway ON gaps (gateway, id);
CREATE TABLE commands (
    id TEXT PRIMARY KEY, gateway INTEGER NOT NULL, device TEXT NOT NULL, name TEXT NOT NULL,
    params TEXT NOT NULL, created_ms INTEGER NOT NULL, ttl_ms INTEGER NOT NULL,
    timeout_ms INTEGER NOT NULL, idempotent INTEGER NOT NULL, sent_ms INTEGER,
    cancel INTEGER NOT NULL DEFAULT 0, n INTEGER NOT NULL DEFAULT 0, state TEXT,
    final INTEGER NOT NULL DEFAULT 0) STRICT, WITHOUT ROWID;
CREATE INDEX commands_of_gateway ON commands (gateway, final, created_ms, id);
CREATE INDEX open_commands ON commands (gateway) WHERE final = 0;
CREATE TABLE command_statuses (
    command TEXT NOT NULL, n INTEGER NOT NULL, state TEXT NOT NULL, ts INTEGER NOT NULL,
    result TEXT, error TEXT, PRIMARY KEY (command, n)) STRICT, WITHOUT ROWID;
CREATE TABLE api_tokens (
    name TEXT PRIMARY KEY, sha256 BLOB NOT NULL UNIQUE, scopes TEXT NOT NULL,
    created_ms INTEGER NOT NULL, revoked_ms INTEGER) STRICT, WITHOUT ROWID;
";

/// What version 2 added: the keys of gateways, certificates that the hub's own CA signed, and codes
/// to enrol with.
const IDENTITIES: &str = "
CREATE TABLE gateway_keys (
    gateway INTEGER NOT NULL, sha256 BLOB NOT NULL, spki BLOB NOT NULL, added_ms INTEGER NOT NULL,
    PRIMARY KEY (gateway, sha256)) STRICT, WITHOUT ROWID;
CREATE TABLE certificates (
    serial BLOB PRIMARY KEY, gateway INTEGER NOT NULL, created_ms INTEGER NOT NULL,
    not_after_ms INTEGER NOT NULL, revoked_ms INTEGER) STRICT, WITHOUT ROWID;
CREATE INDEX certificates_of_gateway ON certificates (gateway);
CREATE TABLE enrolment_codes (
    gateway TEXT PRIMARY KEY, sha256 BLOB NOT NULL UNIQUE, expires_ms INTEGER NOT NULL)
    STRICT, WITHOUT ROWID;
";

/// What version 3 added: whether a certificate of an outside CA, or the issuer, may name a gateway,
/// and whose key a code was spent on, with what was answered. Who had neither token nor key could
/// come by name alone.
const ADMISSIONS: &str = "
ALTER TABLE gateways ADD COLUMN by_name INTEGER NOT NULL DEFAULT 0;
UPDATE gateways SET by_name = 1 WHERE token_sha256 IS NULL AND revoked_ms IS NULL
    AND no NOT IN (SELECT gateway FROM gateway_keys);
ALTER TABLE enrolment_codes ADD COLUMN key_sha256 BLOB;
ALTER TABLE enrolment_codes ADD COLUMN certificate TEXT;
";

/// Opens the database for writing; makes it, readable by its owner alone, if it is not there.
pub(super) fn open(path: &Path) -> Result<Connection, EngineError> {
    let fault = |what: &dyn std::fmt::Display| EngineError(format!("{}: {what}", path.display()));
    refuse_foreign_directory(path)?;
    // SQLite gives its -wal and -shm files the mode of the database.
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| fault(&format_args!("can't be opened for writing: {error}")))?;
    let mut db = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let sql = |error: rusqlite::Error| fault(&error);
    db.pragma_update(None, "journal_mode", "WAL").map_err(sql)?;
    // FULL: the log is synced at every commit, which is what an acknowledgement promises.
    db.pragma_update(None, "synchronous", "FULL").map_err(sql)?;
    db.pragma_update(None, "wal_autocheckpoint", 4000).map_err(sql)?;
    db.pragma_update(None, "journal_size_limit", 64 << 20).map_err(sql)?;
    let step =
        db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(sql)?;
    let version: i32 =
        step.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(sql)?;
    let application: i32 =
        step.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(sql)?;
    match (application, version) {
        (APPLICATION_ID, VERSION) => {}
        (0, 0) | (APPLICATION_ID, 1..VERSION) => {
            for added in VERSIONS.iter().skip(version as usize) {
                step.execute_batch(added).map_err(sql)?;
            }
            step.pragma_update(None, "user_version", VERSION).map_err(sql)?;
            step.pragma_update(None, "application_id", APPLICATION_ID).map_err(sql)?;
        }
        (APPLICATION_ID, newer) => {
            return Err(fault(&format_args!(
                "is of version {newer} and this program knows {VERSION}; install the newer program"
            )));
        }
        _ => return Err(fault(&"is the database of another program; name another state_dir")),
    }
    step.commit().map_err(sql)?;
    Ok(db)
}

/// Opens the database for reading; it must be there.
pub(super) fn open_for_reading(path: &Path) -> Result<Connection, EngineError> {
    // The write-ahead log's index must be writable even for a reader.
    let db = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    db.pragma_update(None, "query_only", true)
        .map_err(|error| EngineError(format!("{}: {error}", path.display())))?;
    Ok(db)
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, EngineError> {
    let opened = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .and_then(|db| {
            db.busy_timeout(BUSY_TIMEOUT)?;
            db.pragma_update(None, "cache_size", -8000)?;
            Ok(db)
        });
    opened.map_err(|error| EngineError(format!("{}: {error}", path.display())))
}

fn refuse_foreign_directory(path: &Path) -> Result<(), EngineError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    files::refuse_foreign(directory.unwrap_or(Path::new(".")))
        .map_err(|error| EngineError(format!("{error}, or name another state_dir")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_of_an_older_version_is_brought_forward() {
        for version in 1..VERSION {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("hub.db");
            let old = Connection::open(&path).unwrap();
            for added in &VERSIONS[..version as usize] {
                old.execute_batch(added).unwrap();
            }
            old.pragma_update(None, "user_version", version).unwrap();
            old.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
            let add = "INSERT INTO gateways (id, token_sha256, created_ms) VALUES (?1, ?2, 1)";
            old.execute(add, ("by-name", None::<&[u8]>)).unwrap();
            old.execute(add, ("by-token", Some(&b"digest"[..]))).unwrap();
            drop(old);
            for _ in 0..2 {
                let db = open(&path).unwrap();
                let by_name = |id| {
                    let sql = "SELECT by_name FROM gateways WHERE id = ?1";
                    db.query_row(sql, [id], |row| row.get::<_, bool>(0)).unwrap()
                };
                assert!(by_name("by-name") && !by_name("by-token"), "from version {version}");
            }
        }
    }
}
