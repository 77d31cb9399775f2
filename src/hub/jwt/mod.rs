//! JSON Web Tokens (RFC 7519) in compact form, signed with EdDSA or ES256 (PROTOCOL.md, section
//! 11).
//!
//! Read and verified here with ring, which the hub has for TLS: the crate `jsonwebtoken` brings
//! either aws-lc or the pure Rust primitives, a second body of cryptography, for what is a page.
//!
//! Pure: whose key, what time it is and what was configured is handed in. A value of [`Claims`] was
//! verified.

mod key;
#[cfg(test)]
mod tests;

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde::{Deserialize, Deserializer};

pub use key::{KeySet, NoPublicKey, PublicKey};

/// The longest token that is looked at, in bytes.
pub const MAX_BYTES: usize = 4096;

/// How far the clocks of the signer and the hub may differ, in seconds.
pub const LEEWAY_S: u64 = 60;

/// How far ahead `exp` may lie, in seconds.
pub const MAX_LIFETIME_S: u64 = 24 * 3600;

/// The most audiences of one token.
const MAX_AUDIENCES: usize = 16;

/// Why a token was refused: for the operator, never for its bearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not three parts of base64url with JSON objects in the first two.
    #[error("the token is malformed")]
    Malformed,
    /// More than [`MAX_BYTES`].
    #[error("the token is too long")]
    TooLong,
    /// `none`, a MAC, or anything else than what the key is for.
    #[error("the token's alg is not the one of the key; EdDSA and ES256 are taken")]
    Algorithm,
    /// `crit` names an extension (RFC 7515, section 4.1.11), or `typ` is no JWT's.
    #[error("the token's header asks for what the hub does not know")]
    Header,
    /// No such key.
    #[error("no key is known for the token")]
    UnknownKey,
    /// Signed by another key, or changed since.
    #[error("the token's signature is wrong")]
    Signature,
    /// No `exp`.
    #[error("the token has no exp")]
    NoExpiry,
    /// `exp` is over.
    #[error("the token has expired")]
    Expired,
    /// `exp` lies more than [`MAX_LIFETIME_S`] ahead.
    #[error("the token's exp is more than 24 h ahead")]
    TooLongLived,
    /// `nbf` or `iat` lies in the future, or `iat` after `exp`.
    #[error("the token is from the future: the signer's clock, or the hub's, is wrong")]
    NotYetValid,
    /// `aud` does not name this hub.
    #[error("the token is for another audience")]
    Audience,
    /// No `sub`, or one that is no gateway's.
    #[error("the token names no gateway")]
    Subject,
}

/// A token that was taken apart and not verified. Its `Debug` does not show it: it may be good.
pub struct Unverified<'a> {
    signed: &'a str,
    signature: Vec<u8>,
    header: Header,
    claims: RawClaims,
}

/// What a verified token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// The gateway.
    pub subject: String,
    /// When it ends, Unix seconds.
    pub expires_s: u64,
    /// The key that it was signed with.
    pub key: PublicKey,
}

#[derive(Debug, Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct RawClaims {
    iss: Option<String>,
    sub: Option<String>,
    #[serde(default, deserialize_with = "audiences")]
    aud: Vec<String>,
    exp: Option<f64>,
    nbf: Option<f64>,
    iat: Option<f64>,
}

impl fmt::Debug for Unverified<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unverified").field("header", &self.header).finish_non_exhaustive()
    }
}

/// Whether a bearer token has the form of a JWT; the hub's own tokens never have.
pub fn is_jwt(token: &str) -> bool {
    token.contains('.')
}

impl<'a> Unverified<'a> {
    /// Takes a token apart.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(token: &'a str) -> Result<Self, Fault> {
        if token.len() > MAX_BYTES {
            return Err(Fault::TooLong);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Fault::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(Fault::Malformed)?;
        let decode = |part: &str| BASE64URL.decode(part).map_err(|_| Fault::Malformed);
        let header: Header =
            serde_json::from_slice(&decode(header)?).map_err(|_| Fault::Malformed)?;
        let typ_fits = header.typ.as_deref().is_none_or(|typ| typ.eq_ignore_ascii_case("jwt"));
        if header.crit.is_some() || !typ_fits {
            return Err(Fault::Header);
        }
        let claims = serde_json::from_slice(&decode(claims)?).map_err(|_| Fault::Malformed)?;
        Ok(Self { signed, signature: decode(signature)?, header, claims })
    }

    /// The `kid` that it claims.
    pub fn kid(&self) -> Option<&str> {
        self.header.kid.as_deref()
    }

    /// The `iss` that it claims.
    pub fn issuer(&self) -> Option<&str> {
        self.claims.iss.as_deref()
    }

    /// The `sub` that it claims.
    pub fn subject(&self) -> Option<&str> {
        self.claims.sub.as_deref()
    }

    /// Verifies it with the first of `keys` that fits, for one of `audiences`; `now_s` is Unix
    /// seconds.
    ///
    /// The signature comes first: what an unsigned token claims is of no interest.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn verify(
        self,
        keys: &[PublicKey],
        now_s: u64,
        audiences: &[String],
    ) -> Result<Claims, Fault> {
        if !matches!(self.header.alg.as_str(), "EdDSA" | "ES256") {
            return Err(Fault::Algorithm);
        }
        let verifies = |key: &&PublicKey| key.verifies(self.signed.as_bytes(), &self.signature);
        let mut fitting = keys.iter().filter(|key| key.algorithm() == self.header.alg).peekable();
        if fitting.peek().is_none() {
            // As much work as for a gateway that has such a key, so that the time does not tell
            // which there are, and with what keys.
            let decoy = PublicKey::decoy(&self.header.alg);
            std::hint::black_box(verifies(&&decoy));
            return Err(if keys.is_empty() { Fault::UnknownKey } else { Fault::Algorithm });
        }
        let key = fitting.find(verifies).ok_or(Fault::Signature)?;
        self.claims.check(now_s, audiences, key)
    }
}

impl RawClaims {
    fn check(self, now_s: u64, audiences: &[String], key: &PublicKey) -> Result<Claims, Fault> {
        let expires_s = seconds(self.exp.ok_or(Fault::NoExpiry)?)?;
        if expires_s + LEEWAY_S <= now_s {
            return Err(Fault::Expired);
        }
        if expires_s > now_s + MAX_LIFETIME_S + LEEWAY_S {
            return Err(Fault::TooLongLived);
        }
        for time in [self.nbf, self.iat].into_iter().flatten() {
            if seconds(time)? > now_s + LEEWAY_S {
                return Err(Fault::NotYetValid);
            }
        }
        if self.iat.map(seconds).transpose()?.is_some_and(|issued| issued > expires_s) {
            return Err(Fault::NotYetValid);
        }
        if !self.aud.iter().any(|named| audiences.contains(named)) {
            return Err(Fault::Audience);
        }
        let subject = self.sub.ok_or(Fault::Subject)?;
        Ok(Claims { subject, expires_s, key: key.clone() })
    }
}

/// A NumericDate (RFC 7519, section 2), which may have a fraction, in whole seconds.
fn seconds(date: f64) -> Result<u64, Fault> {
    /// Beyond this, a number of JSON is not exact.
    const LAST: f64 = 9_007_199_254_740_992.0;
    if (0.0..LAST).contains(&date) { Ok(date as u64) } else { Err(Fault::Malformed) }
}

/// One audience or a list of them (RFC 7519, section 4.1.3).
fn audiences<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Many(Vec<String>),
    }
    match Audience::deserialize(deserializer)? {
        Audience::One(one) => Ok(vec![one]),
        Audience::Many(many) if many.len() <= MAX_AUDIENCES => Ok(many),
        Audience::Many(_) => Err(serde::de::Error::custom("too many audiences")),
    }
}
