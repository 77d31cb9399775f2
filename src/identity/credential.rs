//! Credential files in PEM.

use std::path::Path;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::IdentityError;
use crate::files::{self, MAX_FILE_BYTES};
pub(super) use crate::files::{NO_SUCH_FILE, kept, secret};

/// Every certificate of a PEM file, at least one.
pub(super) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let pem = files::public(file, MAX_FILE_BYTES)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(chain) if chain.is_empty() => Err(IdentityError::new(
            file,
            "it holds no certificate",
            "it should hold a PEM block that begins with -----BEGIN CERTIFICATE-----",
        )),
        Ok(chain) => Ok(chain),
        Err(_) => Err(not_pem(file)),
    }
}

/// The first private key of a PEM file that nobody else can read.
pub(super) fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let pem = secret(file)?;
    match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(key) => Ok(key),
        Err(rustls::pki_types::pem::Error::NoItemsFound) => {
            let encrypted = pem.windows(9).any(|bytes| bytes == b"ENCRYPTED");
            let fault = if encrypted { "its key is encrypted" } else { "it holds no private key" };
            let remedy = if encrypted {
                "write it without a passphrase (openssl pkey -in FILE -out NEW), mode 600"
            } else {
                "it should hold a PEM block that begins with -----BEGIN PRIVATE KEY-----"
            };
            Err(IdentityError::new(file, fault, remedy))
        }
        // The error's own text may quote the file, so it is not passed on.
        Err(_) => Err(not_pem(file)),
    }
}

fn not_pem(file: &Path) -> IdentityError {
    IdentityError::new(
        file,
        "it is not well-formed PEM",
        "convert it (openssl x509 or openssl pkey, -inform DER -outform PEM), or copy it anew",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unusable_file_is_named_with_its_fault_and_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("gw.key");
        let write = |text: &str| files::replace(&file, 0o600, text.as_bytes()).unwrap();
        let says = |error: IdentityError, words: &str| {
            let text = error.to_string();
            assert!(text.contains(words) && text.contains("; "), "{text}");
            assert!(!text.contains("c2VjcmV0"), "{text}");
        };
        write("c2VjcmV0");
        says(private_key(&file).unwrap_err(), "no private key");
        says(certificates(&file).unwrap_err(), "no certificate");
        write("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n");
        says(private_key(&file).unwrap_err(), "not well-formed PEM");
        write("-----BEGIN c2VjcmV0\n");
        says(private_key(&file).unwrap_err(), "not well-formed PEM");
        let block = "ENCRYPTED PRIVATE KEY-----";
        write(&format!("-----BEGIN {block}\nc2VjcmV0\n-----END {block}\n"));
        says(private_key(&file).unwrap_err(), "encrypted");
    }
}
