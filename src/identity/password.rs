//! A password, such as a proxy's or a broker's.

use std::path::Path;

use zeroize::Zeroizing;

use super::{IdentityError, credential};

/// What MQTT can carry; SOCKS takes 255, and says so itself.
const MAX_PASSWORD_BYTES: usize = 65_535;

/// Reads a password from a file that nobody else can read; a line break at its end is cut off.
///
/// # Errors
///
/// The file can't be read, is open to others, or holds what is no line of text.
pub fn password(file: &Path) -> Result<Zeroizing<String>, IdentityError> {
    let bytes = credential::secret(file)?;
    let text = std::str::from_utf8(&bytes).ok().map(|text| text.trim_end_matches(['\r', '\n']));
    match text {
        Some(text) if text.len() <= MAX_PASSWORD_BYTES && !text.contains(char::is_control) => {
            Ok(Zeroizing::new(text.to_owned()))
        }
        _ => Err(IdentityError::new(
            file,
            "it is not a password",
            format!("it should hold one line of at most {MAX_PASSWORD_BYTES} bytes"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_password_is_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        let reads = |content: &str| {
            std::fs::write(&file, content).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
            password(&file)
        };
        assert_eq!(*reads(" s3cr et \r\n").unwrap(), " s3cr et ");
        for bad in ["s3cret\nmore", &"s3cret".repeat(11_000)] {
            let error = reads(bad).unwrap_err().to_string();
            assert!(error.contains("one line") && !error.contains("s3cret"), "{error}");
        }
    }
}
