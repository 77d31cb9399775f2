//! Certificate signing requests (PKCS #10, RFC 2986): what a stranger sends.
//!
//! Of a request the hub takes the key, and the proof that its sender has it. Subject and extensions
//! it decides itself.

use rustls::pki_types::{CertificateSigningRequestDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, X509CertificationRequest};

use crate::hub::jwt::PublicKey;

/// The longest request that is looked at, in bytes.
const MAX_BYTES: usize = 8 << 10;

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// Not a PEM block of a request.
    #[error("the request is no PEM block that begins BEGIN CERTIFICATE REQUEST")]
    Malformed,
    /// Neither Ed25519 nor P-256.
    #[error("the request's key is neither Ed25519 nor P-256")]
    Key,
    /// The sender does not have the key, or the request was changed.
    #[error("the request is not signed with its own key")]
    Signature,
}

/// The key of a request that proves to have been signed with it.
///
/// # Errors
/// Why it is refused.
pub fn read_request(pem: &str) -> Result<PublicKey, BadRequest> {
    if pem.len() > MAX_BYTES {
        return Err(BadRequest::Malformed);
    }
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| BadRequest::Malformed)?;
    let (rest, request) =
        X509CertificationRequest::from_der(&der).map_err(|_| BadRequest::Malformed)?;
    if !rest.is_empty() {
        return Err(BadRequest::Malformed);
    }
    let spki = request.certification_request_info.subject_pki.raw;
    let key = PublicKey::from_spki(spki).ok_or(BadRequest::Key)?;
    request.verify_signature().map_err(|_| BadRequest::Signature)?;
    Ok(key)
}
