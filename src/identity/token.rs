//! A bearer token: opaque to the gateway, or a JWT.

use std::{fmt, path::Path};

use super::{IdentityError, credential};

/// The longest token: servers commonly refuse header lines of more than 8 KiB.
const MAX_TOKEN_BYTES: usize = 7_168;

/// A bearer token that may stand in an HTTP header. Its `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

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
        (fits && text.bytes().all(safe)).then(|| Self(text.to_owned()))
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
