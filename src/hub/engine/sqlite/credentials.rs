//! Questions about credentials: whose they are, and whether they still stand.

use rusqlite::{OptionalExtension as _, params};

use super::reader::Reader;
use crate::hub::{engine::EngineError, jwt::PublicKey};

/// Who says who a gateway is that has neither a token of the hub's nor a key that the hub knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Voucher {
    /// The hub's own CA.
    OwnCa,
    /// An outside CA, or the issuer of tokens.
    Outside,
}

impl Reader {
    /// The gateway whose token has this SHA-256, and the digest as stored.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn gateway_of_token(
        &self,
        sha256: &[u8],
    ) -> Result<Option<(String, Vec<u8>)>, EngineError> {
        self.ask(|db| {
            db.prepare_cached(
                "SELECT id, token_sha256 FROM gateways
                 WHERE token_sha256 = ?1 AND revoked_ms IS NULL",
            )?
            .query_row([sha256], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()
        })
    }

    /// The scopes of the API token with this SHA-256, and the digest as stored.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn scopes_of_token(&self, sha256: &[u8]) -> Result<Option<(String, Vec<u8>)>, EngineError> {
        self.ask(|db| {
            db.prepare_cached(
                "SELECT scopes, sha256 FROM api_tokens WHERE sha256 = ?1 AND revoked_ms IS NULL",
            )?
            .query_row([sha256], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()
        })
    }

    /// Whether this gateway is let in on the word of `voucher`: on any CA's where it was added by
    /// name, on our own CA's while it has a certificate of that.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn is_admitted(&self, gateway: &str, voucher: Voucher) -> Result<bool, EngineError> {
        self.ask(|db| {
            db.prepare_cached(
                "SELECT 1 FROM gateways WHERE id = ?1 AND revoked_ms IS NULL AND (by_name OR ?2
                 AND EXISTS (SELECT 1 FROM certificates
                             WHERE gateway = no AND certificates.revoked_ms IS NULL))",
            )?
            .exists(params![gateway, voucher == Voucher::OwnCa])
        })
    }

    /// The keys of a gateway that is not shut out.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn keys_of_gateway(&self, gateway: &str) -> Result<Vec<PublicKey>, EngineError> {
        let keys = self.ask(|db| {
            db.prepare_cached(
                "SELECT spki FROM gateway_keys JOIN gateways ON no = gateway
                 WHERE id = ?1 AND revoked_ms IS NULL ORDER BY added_ms DESC",
            )?
            .query_map([gateway], |row| row.get(0))?
            .collect::<Result<Vec<Vec<u8>>, _>>()
        })?;
        Ok(keys.iter().filter_map(|spki| PublicKey::from_spki(spki)).collect())
    }

    /// Whether a code with this SHA-256 is good now: not spent, or spent on this very key.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn knows_code(
        &self,
        sha256: &[u8],
        key: Option<&PublicKey>,
        now_ms: i64,
    ) -> Result<bool, EngineError> {
        let key = key.map(PublicKey::sha256);
        self.ask(|db| {
            db.prepare_cached(
                "SELECT 1 FROM enrolment_codes WHERE sha256 = ?1 AND expires_ms > ?2
                 AND (key_sha256 IS NULL OR key_sha256 = ?3)",
            )?
            .exists(params![sha256, now_ms, key])
        })
    }

    /// Whether the hub's own CA signed a certificate of this serial number that was revoked since.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn is_revoked_certificate(&self, serial: &[u8]) -> Result<bool, EngineError> {
        self.ask(|db| {
            db.prepare_cached(
                "SELECT 1 FROM certificates WHERE serial = ?1 AND revoked_ms IS NOT NULL",
            )?
            .exists([serial])
        })
    }
}
