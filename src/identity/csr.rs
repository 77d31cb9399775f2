//! A certificate request, PKCS#10 (RFC 2986): the subject, the public key, and a signature that
//! shows who has the private one.
//!
//! Sixty bytes around a key, so by hand: the crate that the hub makes certificates with adds
//! 110 KB to the gateway for it.

use super::{
    certificate::COMMON_NAME,
    der::{BIT_STRING, CONTEXT_0, INTEGER, OBJECT_IDENTIFIER, SEQUENCE, SET, UTF8_STRING, element},
    key::{DeviceKey, KeyType, pem},
};

/// ecdsa-with-SHA256, 1.2.840.10045.4.3.2 (RFC 5758)
const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

/// id-Ed25519, 1.3.101.112 (RFC 8410)
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];

/// A request in PEM for a certificate of `key` whose common name is `subject`.
///
/// # Errors
///
/// In words: the key is of a kind that this program makes no request with.
pub fn certificate_request(key: &DeviceKey, subject: &str) -> Result<String, String> {
    let (kind, signer) = key.signer().ok_or(
        "it is neither a P-256 nor an Ed25519 key; make the request with: openssl req -new -key \
         FILE -subj /CN=ID",
    )?;
    let name = element(UTF8_STRING, &[subject.as_bytes()]);
    let attribute = element(SEQUENCE, &[&element(OBJECT_IDENTIFIER, &[COMMON_NAME]), &name]);
    let subject = element(SEQUENCE, &[&element(SET, &[&attribute])]);
    let version = element(INTEGER, &[&[0]]);
    let no_attributes = element(CONTEXT_0, &[]);
    let info = element(SEQUENCE, &[&version, &subject, key.public_key(), &no_attributes]);
    let algorithm = match kind {
        KeyType::P256 => ECDSA_WITH_SHA256,
        KeyType::Ed25519 => ED25519,
    };
    let algorithm = element(SEQUENCE, &[&element(OBJECT_IDENTIFIER, &[algorithm])]);
    let signature = signer.sign(&info).map_err(|error| format!("it can't sign: {error}"))?;
    // A bit string begins with how many of its last bits don't count.
    let signature = element(BIT_STRING, &[&[0], &signature]);
    let request = element(SEQUENCE, &[&info, &algorithm, &signature]);
    Ok(pem("CERTIFICATE REQUEST", &request))
}

#[cfg(all(test, feature = "hub"))]
mod tests {
    use ring::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey};
    use rustls::pki_types::{CertificateSigningRequestDer, pem::PemObject as _};
    use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer as _};

    use super::*;
    use crate::identity::key::tests::written;

    #[test]
    fn another_parser_reads_the_request_and_its_signature_is_the_keys() {
        let directory = tempfile::tempdir().unwrap();
        for kind in [KeyType::P256, KeyType::Ed25519] {
            let file = written(directory.path(), &kind.generate().unwrap());
            let key = DeviceKey::from_file(&file).unwrap();
            let text = certificate_request(&key, "gw-7f3a").unwrap();
            let der = CertificateSigningRequestDer::from_pem_slice(text.as_bytes()).unwrap();
            let (rest, request) = X509CertificationRequest::from_der(&der).unwrap();
            assert!(rest.is_empty());
            let info = &request.certification_request_info;
            assert_eq!(info.subject.to_string(), "CN=gw-7f3a");
            assert_eq!(info.subject_pki.raw, key.public_key());
            let algorithm: &dyn ring::signature::VerificationAlgorithm = match kind {
                KeyType::P256 => &ECDSA_P256_SHA256_ASN1,
                KeyType::Ed25519 => &ED25519,
            };
            UnparsedPublicKey::new(algorithm, &info.subject_pki.subject_public_key.data)
                .verify(info.raw, &request.signature_value.data)
                .expect("the signature of this key");
        }
    }

    #[test]
    fn a_key_of_another_kind_is_told_of_with_the_way_by_openssl() {
        let directory = tempfile::tempdir().unwrap();
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let file = written(directory.path(), &other.serialize_pem());
        let key = DeviceKey::from_file(&file).unwrap();
        assert!(certificate_request(&key, "gw-1").unwrap_err().contains("openssl req"));
    }
}
