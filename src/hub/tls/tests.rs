use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber, date_time_ymd,
};

use super::*;
use crate::hub::{demo_ca, jwt::PublicKey};

/// A directory with the hub's certificate and an authority of its own.
struct Bench {
    dir: tempfile::TempDir,
    own: Authority,
    tls: Tls,
    ca: Ca,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hosts = ["localhost".to_owned()];
        demo_ca::make(&demo_ca::DemoCa { dir: dir.path(), hosts: &hosts, clients: &[] }).unwrap();
        let path = |name: &str| dir.path().join(name);
        let tls = Tls {
            cert_file: path("hub.pem"),
            key_file: path("hub.key"),
            client_ca_file: Some(path("outside.pem")),
            crl_file: None,
        };
        let ca = Ca { dir: path("ca"), days: 90 };
        let own = Authority::init(&ca.dir, "own", UnixTime::now().as_secs()).unwrap();
        Self { dir, own, tls, ca }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.dir.path().join(name);
        fs::write(&file, text).unwrap();
        file
    }

    fn load(&self) -> Result<Loaded, TlsError> {
        load(&self.tls, &self.ca)
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// An outside authority, and its certificate, PEM.
fn outside(name: &str) -> (Issuer<'static, KeyPair>, String) {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

fn client_of(issuer: &Issuer<'_, KeyPair>, serial: u64) -> Vec<CertificateDer<'static>> {
    let mut params = params("gw-1");
    params.serial_number = Some(SerialNumber::from(serial));
    let key = KeyPair::generate().unwrap();
    vec![params.signed_by(&key, issuer).unwrap().der().clone()]
}

fn list_of(issuer: &Issuer<'_, KeyPair>, serials: &[u64], next_year: i32) -> String {
    let revoked = |serial: &u64| RevokedCertParams {
        serial_number: SerialNumber::from(*serial),
        revocation_time: date_time_ymd(2020, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(next_year, 1, 1),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(issuer).unwrap().pem().unwrap()
}

#[test]
fn who_vouches_for_a_client_is_told_apart() {
    let mut bench = Bench::new();
    let (issuer, pem) = outside("outside");
    let (stranger, _) = outside("outside");
    bench.write("outside.pem", &pem);
    let key = PublicKey::from_pem(KeyPair::generate().unwrap().public_key_pem().as_bytes());
    let signed = bench.own.sign_client("gw-1", &key.unwrap(), UnixTime::now().as_secs(), 1);
    let of_own = vec![CertificateDer::from_pem_slice(signed.unwrap().pem.as_bytes()).unwrap()];
    let loaded = bench.load().unwrap();
    assert_eq!(loaded.voucher(&of_own), Some(Voucher::OwnCa));
    assert_eq!(loaded.voucher(&client_of(&issuer, 1)), Some(Voucher::Outside));
    assert_eq!(loaded.voucher(&client_of(&stranger, 1)), None);
    assert_eq!(loaded.voucher(&[]), None);

    let list = bench.write("outside-crl.pem", &list_of(&issuer, &[1], 2021));
    bench.tls.crl_file = Some(list);
    let loaded = bench.load().unwrap();
    assert_eq!(loaded.voucher(&client_of(&issuer, 1)), None, "revoked, by a stale list too");
    assert_eq!(loaded.voucher(&client_of(&issuer, 2)), Some(Voucher::Outside));
    assert_eq!(loaded.next_list_s, Some(1_609_459_200));
}

/// TLS looks at a list's signature only when a client of its CA comes, and refuses the client: a
/// wrongly signed list locked all of them out.
#[test]
fn a_list_that_its_ca_did_not_sign_is_refused() {
    let mut bench = Bench::new();
    let (issuer, pem) = outside("outside");
    bench.write("outside.pem", &pem);
    // Of the same name, and of another.
    for name in ["outside", "elsewhere"] {
        let (other, _) = outside(name);
        let both = list_of(&issuer, &[], 2090) + &list_of(&other, &[], 2090);
        bench.tls.crl_file = Some(bench.write("outside-crl.pem", &both));
        let error = bench.load().unwrap_err().to_string();
        assert!(error.contains("outside-crl.pem: a list is signed by none"), "{error}");
        assert!(error.contains("client_ca_file"), "{error}");
    }
    bench.write("outside-crl.pem", "");
    assert!(bench.load().unwrap_err().to_string().contains("it is empty"));
}

#[test]
fn an_expired_certificate_does_not_replace_another() {
    let bench = Bench::new();
    bench.write("outside.pem", &outside("outside").1);
    let now_s = UnixTime::now().as_secs();
    let old = bench.load().unwrap();
    assert!(bench.load().unwrap().replacing(&old, now_s, &bench.tls).is_ok());
    let end_s = old.validity_s.1;
    let after = |loaded: Loaded| loaded.replacing(&old, end_s, &bench.tls);
    assert!(after(bench.load().unwrap()).is_ok(), "what is in use stays, and lists come beside it");

    let (mut params, key) = (params("hub"), KeyPair::generate().unwrap());
    params.not_after = date_time_ymd(2021, 1, 1);
    bench.write("hub.key", &key.serialize_pem());
    bench.write("hub.pem", &params.self_signed(&key).unwrap().pem());
    let expired = bench.load().unwrap().replacing(&old, now_s, &bench.tls);
    let error = expired.unwrap_err().to_string();
    assert!(error.contains("hub.pem: has expired"), "{error}");
}

#[test]
fn a_key_that_others_can_read_is_refused_and_the_chmod_named() {
    let bench = Bench::new();
    bench.write("outside.pem", &outside("outside").1);
    let own_key = bench.ca.dir.join("ca.key");
    for key in [&bench.tls.key_file, &own_key] {
        fs::set_permissions(key, fs::Permissions::from_mode(0o644)).unwrap();
    }
    let error = bench.load().unwrap_err().to_string();
    assert!(error.contains(&format!("chmod 600 {}", bench.tls.key_file.display())), "{error}");
    let error = Authority::open(&bench.ca.dir).unwrap_err().to_string();
    assert!(error.contains(&format!("chmod 600 {}", own_key.display())), "{error}");
}

#[test]
fn no_key_is_shown_by_debug() {
    let bench = Bench::new();
    bench.write("outside.pem", &outside("outside").1);
    let material = Material::read(&bench.tls, &bench.ca).unwrap();
    let shown = format!("{material:?} {:?} {:?}", bench.load().unwrap(), bench.own);
    // The marker of PEM in the list of bytes that `Debug` makes of a vector.
    assert!(!shown.contains("45, 45, 45") && !shown.contains("PRIVATE KEY"), "{shown}");
}

fn material(chain: &[u8]) -> Result<Material, TlsError> {
    Ok(Material {
        chain: chain.to_vec().into(),
        key: b"key".to_vec().into(),
        client_ca: None,
        own_ca: None,
        revoked: None,
        own_revoked: None,
    })
}

#[test]
fn files_are_taken_when_they_rest_and_a_fault_is_told_once() {
    let old = material(b"old").map(|old| old.digest());
    let mut look = Look { used: old.clone(), seen: old };
    let good = |_: &Material| Ok(());
    let bad = |_: &Material| Err::<(), _>(TlsError("mismatch".into()));
    for _ in 0..3 {
        assert_eq!(look.take(material(b"old"), good), None);
    }
    assert_eq!(look.take(material(b"half"), bad), None, "still being written");
    assert_eq!(look.take(material(b"new"), good), None);
    assert_eq!(look.take(material(b"new"), good), Some(Ok(())));
    assert_eq!(look.take(material(b"new"), good), None);
    assert_eq!(look.take(material(b"bad"), bad), None);
    assert_eq!(look.take(material(b"bad"), bad), Some(Err(TlsError("mismatch".into()))));
    assert_eq!(look.take(material(b"bad"), bad), None, "told once");
    let gone = || Err(TlsError("no such file".into()));
    assert_eq!(look.take(gone(), good), None);
    assert_eq!(look.take(gone(), good), Some(Err(TlsError("no such file".into()))));
    assert_eq!(look.take(gone(), good), None);
}
