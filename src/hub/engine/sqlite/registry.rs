//! Who may connect: gateways and API tokens. The command line changes this beside a running hub,
//! which notices.

use std::path::Path;

use rusqlite::{Connection, params};

use super::schema;
use crate::hub::engine::EngineError;

/// The registry, opened for a change.
#[derive(Debug)]
pub struct Registry {
    db: Connection,
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

    /// Adds a gateway, or gives a known one a new token and lets it in again. Without a token it
    /// comes with a certificate.
    ///
    /// # Errors
    /// The database can't be written.
    pub fn add_gateway(
        &self,
        id: &str,
        token_sha256: Option<&[u8]>,
        now_ms: i64,
    ) -> Result<(), EngineError> {
        self.db.execute(
            "INSERT INTO gateways (id, token_sha256, created_ms) VALUES (?1, ?2, ?3)
             ON CONFLICT (id) DO UPDATE SET token_sha256 = excluded.token_sha256, revoked_ms = NULL",
            params![id, token_sha256, now_ms],
        )?;
        Ok(())
    }

    /// Shuts a gateway out; `false`: no such gateway. What it sent stays.
    ///
    /// # Errors
    /// The database can't be written.
    pub fn revoke_gateway(&self, id: &str, now_ms: i64) -> Result<bool, EngineError> {
        let changed = self.db.execute(
            "UPDATE gateways SET revoked_ms = ifnull(revoked_ms, ?2), token_sha256 = NULL
             WHERE id = ?1",
            params![id, now_ms],
        )?;
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
}
