use std::os::unix::fs::MetadataExt as _;

use rcgen::{CertificateSigningRequestParams, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use x509_parser::prelude::{CertificateRevocationList, parse_x509_pem};

use super::*;
use crate::hub::{credential::read_certificate, engine::Admission};

const NOW_S: u64 = 1_790_000_000;

fn authority(dir: &tempfile::TempDir) -> Authority {
    Authority::init(&dir.path().join("ca"), "fieldgate CA", NOW_S).unwrap()
}

fn request(key: &KeyPair) -> String {
    CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
}

#[test]
fn an_authority_is_made_once_and_its_key_is_its_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let made = authority(&dir);
    let key = dir.path().join("ca").join(KEY);
    assert_eq!(fs::metadata(&key).unwrap().mode() & 0o777, 0o600);
    let again = Authority::init(&dir.path().join("ca"), "fieldgate CA", NOW_S).unwrap_err();
    assert!(again.to_string().contains("there is an authority already"), "{again}");
    let opened = Authority::open(&dir.path().join("ca")).unwrap();
    assert_eq!((opened.pem(), opened.fingerprint()), (made.pem(), made.fingerprint()));
    assert_eq!(opened.fingerprint().len(), 26);

    fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let error = Authority::open(&dir.path().join("ca")).unwrap_err().to_string();
    assert!(error.contains("not made with the key"), "{error}");
    let error = Authority::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("ca init"), "{error}");
}

#[test]
fn a_signed_certificate_names_the_gateway_and_never_outlives_the_authority() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(&dir);
    for algorithm in [&PKCS_ED25519, &rcgen::PKCS_ECDSA_P256_SHA256] {
        let pair = KeyPair::generate_for(algorithm).unwrap();
        let key = read_request(&request(&pair)).unwrap();
        let signed = authority.sign_client("gw-1", &key, NOW_S, 90).unwrap();
        let der = CertificateDer::from_pem_slice(signed.pem.as_bytes()).unwrap();
        let read = read_certificate(&der).unwrap();
        assert_eq!(read.gateway.as_deref(), Some("gw-1"));
        assert_eq!(read.not_after_ms, (NOW_S + 90 * DAY_S) * 1000);
        assert_eq!(read.serial, signed.entry.serial, "as the registry keeps it");
    }
    let key = read_request(&request(&KeyPair::generate().unwrap())).unwrap();
    let late = NOW_S + LIFETIME_S - DAY_S;
    let signed = authority.sign_client("gw-1", &key, late, 90).unwrap();
    let end_ms = i64::try_from(authority.not_after_s() * 1000).unwrap();
    assert_eq!(signed.entry.not_after_ms, end_ms);
}

#[test]
fn a_request_must_be_signed_with_its_own_key_of_a_kind_that_is_taken() {
    let pair = KeyPair::generate().unwrap();
    let good = request(&pair);
    assert!(read_request(&good).is_ok());
    let der = rustls::pki_types::CertificateSigningRequestDer::from_pem_slice(good.as_bytes());
    let mut der = der.unwrap().to_vec();
    let last = der.len() - 1;
    der[last] ^= 1;
    assert_eq!(read_request(&pem_of(&der)), Err(BadRequest::Signature));
    der[last] ^= 1;
    der.push(0);
    assert_eq!(read_request(&pem_of(&der)), Err(BadRequest::Malformed));
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    assert_eq!(read_request(&request(&p384)), Err(BadRequest::Key));
    for bad in ["", "nonsense", pair.public_key_pem().as_str(), &good[..good.len() / 2]] {
        assert_eq!(read_request(bad), Err(BadRequest::Malformed));
    }
    let long = format!("{good}{}", " ".repeat(16 << 10));
    assert_eq!(read_request(&long), Err(BadRequest::Malformed));
    assert!(CertificateSigningRequestParams::from_pem(&good).is_ok(), "others read it too");
}

#[test]
fn the_list_of_the_revoked_has_what_the_registry_says() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(&dir);
    let mut registry = Registry::open(&dir.path().join("hub.db")).unwrap();
    registry.add_gateway("gw-1", Admission::Named, 1).unwrap();
    let key = read_request(&request(&KeyPair::generate().unwrap())).unwrap();
    let signed = authority.sign_client("gw-1", &key, NOW_S, 90).unwrap();
    assert!(registry.add_certificate("gw-1", &signed.entry, 1).unwrap());
    let serials = |pem: &str| -> Vec<Vec<u8>> {
        let (_, pem) = parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, list) = CertificateRevocationList::from_der(&pem.contents).unwrap();
        list.iter_revoked_certificates().map(|entry| entry.raw_serial().to_vec()).collect()
    };
    let empty: [Vec<u8>; 0] = [];
    assert_eq!(serials(&authority.renew_revoked(&registry, NOW_S).unwrap()), empty);
    registry.revoke_gateway("gw-1", 1_790_000_000_000).unwrap();
    let pem = authority.renew_revoked(&registry, NOW_S).unwrap();
    assert_eq!(serials(&pem), [signed.entry.serial]);
    let file = Authority::revoked_file(&dir.path().join("ca"));
    assert_eq!(fs::read_to_string(file).unwrap(), pem);
}

#[test]
fn a_server_certificate_has_the_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(&dir);
    let hosts = ["hub.example.com".to_owned(), "127.0.0.1".to_owned()];
    let (signed, key) = authority.issue_server(&hosts, NOW_S, 90).unwrap();
    assert!(KeyPair::from_pem(&key).is_ok());
    let der = CertificateDer::from_pem_slice(signed.pem.as_bytes()).unwrap();
    let (_, read) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(read.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 2);
    assert!(authority.issue_server(&["é".into()], NOW_S, 90).is_err());
}

fn pem_of(der: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let coded = STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{coded}\n-----END CERTIFICATE REQUEST-----\n")
}
