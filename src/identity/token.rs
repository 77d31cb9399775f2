//! A bearer token: opaque to the gateway, or a JWT; and where the next one comes from.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::{IdentityError, Jwt, credential};
use crate::config::Uplink;

/// The longest token: servers commonly refuse header lines of more than 8 KiB.
const MAX_TOKEN_BYTES: usize = 7_168;

/// A bearer token that may stand in an HTTP header. Its `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// Reads it from a file that nobody else can read; white space around it is cut off.
    ///
    /// # Errors
    ///
    /// The file can't be read, is open to others, or holds something else than the `b64token` of
    /// RFC 6750, section 2.1.
    pub fn from_file(file: &Path) -> Result<Self, IdentityError> {
        let bytes = credential::secret(file)?;
        let text = bytes.trim_ascii();
        let Some(token) = std::str::from_utf8(text).ok().and_then(Self::parse) else {
            let fault = if text.len() > MAX_TOKEN_BYTES {
                format!("its token is longer than {MAX_TOKEN_BYTES} bytes")
            } else {
                "its token has characters that can't stand in an HTTP header".to_owned()
            };
            let remedy = "it should hold the token alone: letters, digits and any of -._~+/=";
            return Err(IdentityError::new(file, fault, remedy));
        };
        Ok(token)
    }

    /// Takes a token as it stands; `None` unless it is a `b64token`.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = !text.is_empty() && text.len() <= MAX_TOKEN_BYTES;
        let safe = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
        (fits && text.bytes().all(safe)).then(|| Self(Zeroizing::new(text.to_owned())))
    }

    /// The secret itself, for the `Authorization` header alone.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

/// Where tokens come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// A file, read anew each time: a changed one needs no restart.
    File(PathBuf),
    /// The device key, which signs a new one each time.
    Jwt(Jwt),
}

impl TokenSource {
    /// That of a gateway called `id`; `None` where it shows no token.
    pub fn of(uplink: &Uplink, id: &str) -> Option<Self> {
        let Some(jwt) = &uplink.jwt else { return uplink.token_file.clone().map(Self::File) };
        let host = || uplink.hubs.first().map(|hub| hub.url.host.clone());
        Some(Self::Jwt(Jwt {
            key_file: jwt.key_file.clone(),
            subject: id.to_owned(),
            audience: jwt.audience.clone().or_else(host).unwrap_or_default(),
            issuer: jwt.issuer.clone(),
            kid: jwt.kid.clone(),
            lifetime: jwt.lifetime,
        }))
    }

    /// A token to be shown at `unix_now_ms`; and when it expires, in Unix milliseconds, where that
    /// is known.
    ///
    /// # Errors
    ///
    /// The file can't be used.
    pub fn token(&self, unix_now_ms: u64) -> Result<(Token, Option<u64>), IdentityError> {
        match self {
            Self::File(file) => Token::from_file(file).map(|token| (token, None)),
            Self::Jwt(jwt) => {
                jwt.sign(unix_now_ms).map(|(token, expires_ms)| (token, Some(expires_ms)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_is_trimmed_checked_and_hidden() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        let reads = |content: &str| {
            std::fs::write(&file, content).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
            Token::from_file(&file)
        };
        let token = reads(" eyJhbGciOiJFUzI1NiJ9.e30.c2ln-_\r\n").unwrap();
        assert_eq!(token.reveal(), "eyJhbGciOiJFUzI1NiJ9.e30.c2ln-_");
        assert_eq!(format!("{token:?}"), "Token(hidden)");
        for bad in ["two words", "a\nb: c", "häuser", &"x".repeat(MAX_TOKEN_BYTES + 1)] {
            let error = reads(bad).unwrap_err().to_string();
            assert!(error.contains("token") && !error.contains(bad), "{error}");
        }
    }
}
