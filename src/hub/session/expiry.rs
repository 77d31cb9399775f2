//! When a credential ends, and its renewal on the live link (PROTOCOL.md, section 6).
//!
//! A session must never outlive its credential, and never lose a good one to a token that is not.

use std::time::{Duration, Instant};

use super::{Now, Phase, Session};
use crate::{
    hub::engine::EngineError,
    protocol::{HubMessage, close},
};

/// When a credential ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// When the session is closed, Unix milliseconds.
    pub ends_ms: u64,
    /// What the gateway is told, Unix milliseconds: the end of its token, which is not the end of
    /// its session because clocks differ. Nothing where a token can't renew the credential.
    pub told_ms: Option<u64>,
}

impl Expiry {
    pub(super) fn deadline(&self, now: Now) -> Instant {
        /// Far enough for any certificate, and near enough for every clock to add.
        const MOST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
        let left = Duration::from_millis(self.ends_ms.saturating_sub(now.unix_ms));
        now.instant + left.min(MOST)
    }
}

/// What was found out about the token of an `auth` message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Whose it is.
    pub gateway: String,
    /// When it ends; `None`: never.
    pub expiry: Option<Expiry>,
}

impl Session {
    /// The token of an `auth` message was looked at; `None`: it is worth nothing.
    pub fn handle_token(&mut self, now: Now, found: Result<Option<Verified>, EngineError>) {
        match found {
            Ok(Some(verified)) if *verified.gateway == *self.id.gateway => {
                self.expires_at = verified.expiry.map(|expiry| expiry.deadline(now));
                let token_expires = verified.expiry.and_then(|expiry| expiry.told_ms);
                self.send(&HubMessage::AuthOk { token_expires });
            }
            Ok(Some(_)) => self.close(close::FORBIDDEN, "the token is another gateway's"),
            // The credential that the session has stands until it ends.
            Ok(None) => self.say_error("unauthorized", "the token is not valid".into()),
            Err(_) => self.say_error("unavailable", "the token can't be checked now".into()),
        }
    }

    /// Closes a session whose credential has ended.
    pub(super) fn check_expiry(&mut self, now: Now) {
        let is_over = self.expires_at.is_some_and(|expires_at| now.instant >= expires_at);
        if is_over && self.phase != Phase::Closed {
            self.close(close::TOKEN_EXPIRED, "the credential has expired");
        }
    }
}
