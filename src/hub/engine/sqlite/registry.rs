//! Who may connect: gateways and API tokens. The command line changes this beside a running hub,
//! which notices.

use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use super::schema;
use crate::hub::{engine::EngineError, jwt::PublicKey};

/// The registry, opened for a change.
#[derive(Debug)]
pub struct Registry {
    pub(super) db: Connection,
}

/// What a gateway may come with.
#[derive(Debug, Clone, Copy)]
pub enum Admission<'a> {
    /// A token with this SHA-256.
    Token(&'a [u8]),
    /// Tokens that it signs with this key.
    Key(&'a PublicKey),
    /// A client certificate of an outside CA, or a token of the issuer, that names it.
    Named,
}

/// An API token to be added.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// Names it.
    pub name: String,
    /// The SHA-256 of the token.
    pub sha256: Vec<u8>,
    /// Separated by a space.
    pub scopes: String,
}

/// An API token as it is known.
#[derive(Debug, Clone)]
pub struct ApiToken {
    /// Names it.
    pub name: String,
    /// Separated by a space.
    pub scopes: String,
    /// Unix milliseconds.
    pub created_ms: i64,
    /// Whether it still works.
    pub revoked: bool,
}

impl Registry {
    /// Opens the database, makes it if it is not there.
    ///
    /// # Errors
    /// Names the file, the fault and the remedy.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        Ok(Self { db: schema::open(path)? })
    }

    /// Adds a gateway, or gives a known one another credential in the place of whatever it had, and
    /// lets it in again.
    ///
    /// # Errors
    /// The database can't be written.
    pub fn add_gateway(
        &mut self,
        id: &str,
        admission: Admission<'_>,
        now_ms: i64,
    ) -> Result<(), EngineError> {
        let step = self.begin()?;
        let no = admit(&step, id, now_ms)?;
        match admission {
            Admission::Named => {
                step.execute("UPDATE gateways SET by_name = 1 WHERE no = ?1", [no])?;
            }
            Admission::Token(sha256) => {
                let sql = "UPDATE gateways SET token_sha256 = ?2 WHERE no = ?1";
                step.execute(sql, params![no, sha256])?;
            }
            Admission::Key(key) => add_key(&step, no, key, now_ms)?,
        }
        Ok(step.commit()?)
    }

    /// Shuts a gateway out; `false`: no such gateway. What it sent stays.
    ///
    /// # Errors
    /// The database can't be written.
    pub fn revoke_gateway(&mut self, id: &str, now_ms: i64) -> Result<bool, EngineError> {
        let step = self.begin()?;
        let changed = step.execute(
            "UPDATE gateways SET revoked_ms = ifnull(revoked_ms, ?2) WHERE id = ?1",
            params![id, now_ms],
        )?;
        end_credentials(&step, id, now_ms)?;
        step.commit()?;
        Ok(changed == 1)
    }

    /// Adds an API token; `false`: the name is taken.
    ///
    /// # Errors
    /// The database can't be written.
    pub fn add_token(&self, token: &NewToken, now_ms: i64) -> Result<bool, EngineError> {
        let added = self.db.execute(
            "INSERT INTO api_tokens (name, sha256, scopes, created_ms) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (name) DO UPDATE SET sha256 = excluded.sha256, scopes = excluded.scopes,
             created_ms = excluded.created_ms, revoked_ms = NULL WHERE revoked_ms IS NOT NULL",
            params![token.name, token.sha256, token.scopes, now_ms],
        )?;
        Ok(added == 1)
    }

    /// Ends an API token; `false`: no such token.
    ///
    /// # Errors
    /// The database can't be written.
    pub fn revoke_token(&self, name: &str, now_ms: i64) -> Result<bool, EngineError> {
        let changed = self.db.execute(
            "UPDATE api_tokens SET revoked_ms = ifnull(revoked_ms, ?2) WHERE name = ?1",
            params![name, now_ms],
        )?;
        Ok(changed == 1)
    }

    /// All API tokens, without what would let anyone in.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn tokens(&self) -> Result<Vec<ApiToken>, EngineError> {
        let mut query = self
            .db
            .prepare("SELECT name, scopes, created_ms, revoked_ms FROM api_tokens ORDER BY name")?;
        let rows = query.query_map([], |row| {
            Ok(ApiToken {
                name: row.get(0)?,
                scopes: row.get(1)?,
                created_ms: row.get(2)?,
                revoked: row.get::<_, Option<i64>>(3)?.is_some(),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    pub(super) fn begin(&mut self) -> Result<Transaction<'_>, EngineError> {
        Ok(self.db.transaction_with_behavior(TransactionBehavior::Immediate)?)
    }
}

/// Lets a gateway in that has no credential yet, whatever it had before; its number.
pub(super) fn admit(step: &Transaction<'_>, id: &str, now_ms: i64) -> rusqlite::Result<i64> {
    let no = step.query_row(
        "INSERT INTO gateways (id, created_ms) VALUES (?1, ?2)
         ON CONFLICT (id) DO UPDATE SET revoked_ms = NULL RETURNING no",
        params![id, now_ms],
        |row| row.get(0),
    )?;
    end_credentials(step, id, now_ms)?;
    Ok(no)
}

/// Ends whatever a gateway could come with, a code that it was yet to enrol with included.
fn end_credentials(step: &Transaction<'_>, id: &str, now_ms: i64) -> rusqlite::Result<()> {
    step.execute("UPDATE gateways SET token_sha256 = NULL, by_name = 0 WHERE id = ?1", [id])?;
    step.execute(
        "DELETE FROM gateway_keys WHERE gateway = (SELECT no FROM gateways WHERE id = ?1)",
        [id],
    )?;
    step.execute(
        "UPDATE certificates SET revoked_ms = ?2 WHERE revoked_ms IS NULL
         AND gateway = (SELECT no FROM gateways WHERE id = ?1)",
        params![id, now_ms],
    )?;
    step.execute("DELETE FROM enrolment_codes WHERE gateway = ?1", [id])?;
    Ok(())
}

pub(super) fn add_key(
    step: &Transaction<'_>,
    no: i64,
    key: &PublicKey,
    now_ms: i64,
) -> rusqlite::Result<()> {
    step.execute(
        "INSERT INTO gateway_keys (gateway, sha256, spki, added_ms) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (gateway, sha256) DO UPDATE SET added_ms = excluded.added_ms",
        params![no, key.sha256(), key.to_spki(), now_ms],
    )?;
    Ok(())
}
