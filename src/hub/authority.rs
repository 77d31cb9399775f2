//! The hub's own certificate authority: a directory with a key, a certificate, and the list of what
//! was revoked.
//!
//! It must never sign for a gateway that the caller has not authenticated, and what it signs never
//! outlives it. The registry knows every certificate that it signed for a gateway.

mod request;

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PublicKeyData, RevokedCertParams, SerialNumber, SubjectPublicKeyInfo, date_time_ymd,
};
use ring::digest;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, SubjectPublicKeyInfo as ReadKey, X509Certificate};
use zeroize::Zeroizing;

use super::{
    credential::{self, NoRandomness},
    engine::{Certificate, Registry},
    jwt::PublicKey,
};
use crate::files;

pub use request::{BadRequest, read_request};

const KEY: &str = "ca.key";
const CERTIFICATE: &str = "ca.pem";
const REVOKED: &str = "crl.pem";

const DAY_S: u64 = 24 * 3600;

/// How long the authority itself lasts: longer than the boards that have it pinned.
const LIFETIME_S: u64 = 30 * 365 * DAY_S;

/// How far back certificates begin, for the clocks of others.
const BACKDATED_S: u64 = 3600;

/// How many bytes of the SHA-256 of its key a person copies, or a board reads from a QR code.
const FINGERPRINT_BYTES: usize = 16;

/// The authority can't do it; the text names the thing, the fault and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct AuthorityError(String);

/// The hub's own authority.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    pem: String,
    spki: Vec<u8>,
    not_after_s: u64,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate that was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The certificate, PEM.
    pub pem: String,
    /// What the registry keeps of it.
    pub entry: Certificate,
}

impl Authority {
    /// The certificate's place in `dir`, to be trusted with clients.
    pub fn certificate_file(dir: &Path) -> PathBuf {
        dir.join(CERTIFICATE)
    }

    /// The revocation list's place in `dir`.
    pub fn revoked_file(dir: &Path) -> PathBuf {
        dir.join(REVOKED)
    }

    /// Refuses to make or change anything in `dir` as somebody else than the owner of the hub's
    /// state around it: the hub could not read its own authority any more, and not start.
    ///
    /// # Errors
    /// Whose it is, and how to run this.
    pub fn check_owner(dir: &Path) -> Result<(), AuthorityError> {
        let state = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        files::refuse_foreign(state.unwrap_or(Path::new(".")))
            .map_err(|error| AuthorityError(error.to_string()))?;
        let Ok(owner) = fs::metadata(dir).map(|metadata| metadata.uid()) else { return Ok(()) };
        match files::effective_uid() {
            Some(us) if us != owner => Err(AuthorityError(format!(
                "{0}: it belongs to user {owner}, and what is around it to user {us}; \
                 chown -R {us} {0}",
                dir.display()
            ))),
            _ => Ok(()),
        }
    }

    /// Makes an authority in `dir`, which is made too.
    ///
    /// # Errors
    /// There is one already, or a file can't be written.
    pub fn init(dir: &Path, name: &str, now_s: u64) -> Result<Self, AuthorityError> {
        let fault = |file: &Path, error: io::Error| {
            AuthorityError(match error.kind() {
                io::ErrorKind::AlreadyExists => format!(
                    "{}: there is an authority already, and every board that has it pinned would \
                     lose its hub; move it away first if that is what you want",
                    file.display()
                ),
                _ => format!("{}: can't be written: {error}", file.display()),
            })
        };
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.and_then(|()| files::sync_directory_of(dir)).map_err(|error| fault(dir, error))?;
        let key = KeyPair::generate().map_err(refused)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial().map_err(|error| AuthorityError(error.to_string()))?);
        params.not_before = at(now_s.saturating_sub(BACKDATED_S));
        params.not_after = at(now_s + LIFETIME_S);
        let certificate = params.self_signed(&key).map_err(refused)?;
        // The key comes first: whoever finds a certificate finds an authority that can sign.
        let key = Zeroizing::new(key.serialize_pem());
        for (name, mode, content) in [(KEY, 0o600, &*key), (CERTIFICATE, 0o644, &certificate.pem())]
        {
            let file = dir.join(name);
            files::create(&file, mode, content.as_bytes()).map_err(|error| fault(&file, error))?;
        }
        let authority = Self::open(dir)?;
        authority.write_revoked(&[], now_s)?;
        Ok(authority)
    }

    /// Opens the authority in `dir`.
    ///
    /// # Errors
    /// There is none, or its files can't be used.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let file = dir.join(CERTIFICATE);
        let fault =
            |what: &dyn std::fmt::Display| AuthorityError(format!("{}: {what}", file.display()));
        let pem = fs::read_to_string(&file).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => fault(&"there is no authority; make it with ca init"),
            _ => fault(&error),
        })?;
        let key = files::secret(&dir.join(KEY));
        let key = key.map_err(|error| AuthorityError(error.to_string()))?;
        let key = std::str::from_utf8(&key).ok().and_then(|key| KeyPair::from_pem(key).ok());
        let key = key.ok_or_else(|| {
            let key = dir.join(KEY);
            AuthorityError(format!("{}: holds no private key of an authority", key.display()))
        })?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| fault(&error))?;
        let (_, read) = X509Certificate::from_der(&der).map_err(|error| fault(&error))?;
        let spki = read.public_key().raw.to_vec();
        if key.subject_public_key_info() != spki {
            return Err(fault(&"was not made with the key beside it; restore both together"));
        }
        let not_after_s = u64::try_from(read.validity().not_after.timestamp()).unwrap_or(0);
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|error| fault(&error))?;
        Ok(Self { dir: dir.into(), pem, spki, not_after_s, issuer })
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// When it ends, Unix seconds.
    pub fn not_after_s(&self) -> u64 {
        self.not_after_s
    }

    /// The beginning of the SHA-256 of its SubjectPublicKeyInfo, in base32: what a board pins it by
    /// that knows nothing else of the hub.
    pub fn fingerprint(&self) -> String {
        let sha256 = digest::digest(&digest::SHA256, &self.spki);
        credential::base32(&sha256.as_ref()[..FINGERPRINT_BYTES])
    }

    /// Whether it signed this certificate.
    pub fn has_signed(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok((_, key)) = ReadKey::from_der(&self.spki) else { return false };
        X509Certificate::from_der(certificate)
            .is_ok_and(|(_, read)| read.verify_signature(Some(&key)).is_ok())
    }

    /// Signs a client certificate: the common name is the gateway's id.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn sign_client(
        &self,
        gateway: &str,
        key: &PublicKey,
        now_s: u64,
        days: u16,
    ) -> Result<Signed, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(gateway);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = SubjectPublicKeyInfo::from_der(&key.to_spki()).map_err(refused)?;
        self.sign(params, &key, now_s, days)
    }

    /// Makes a key, PEM, and a server certificate for `hosts`.
    ///
    /// # Errors
    /// A name that no certificate can carry.
    pub fn issue_server(
        &self,
        hosts: &[String],
        now_s: u64,
        days: u16,
    ) -> Result<(Signed, Zeroizing<String>), AuthorityError> {
        let mut params = CertificateParams::new(hosts).map_err(|error| {
            AuthorityError(format!("{hosts:?}: {error}; name hosts or addresses"))
        })?;
        params.distinguished_name = named(hosts.first().map_or("hub", String::as_str));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(refused)?;
        Ok((self.sign(params, &key, now_s, days)?, Zeroizing::new(key.serialize_pem())))
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        now_s: u64,
        days: u16,
    ) -> Result<Signed, AuthorityError> {
        let not_after_s = (now_s + u64::from(days) * DAY_S).min(self.not_after_s);
        let serial = serial().map_err(|error| AuthorityError(error.to_string()))?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.not_before = at(now_s.saturating_sub(BACKDATED_S));
        params.not_after = at(not_after_s);
        params.serial_number = Some(serial.clone());
        let certificate = params.signed_by(key, &self.issuer).map_err(refused)?;
        let not_after_ms = i64::try_from(not_after_s * 1000).unwrap_or(i64::MAX);
        let entry = Certificate { serial: serial.to_bytes(), not_after_ms };
        Ok(Signed { pem: certificate.pem(), entry })
    }

    /// Writes the list of what the registry says is revoked; the list's text.
    ///
    /// # Errors
    /// The registry can't be read, or the file not be written.
    pub fn renew_revoked(&self, registry: &Registry, now_s: u64) -> Result<String, AuthorityError> {
        let now_ms = i64::try_from(now_s * 1000).unwrap_or(i64::MAX);
        let revoked = registry.revoked_certificates(now_ms);
        let revoked = revoked.map_err(|error| AuthorityError(error.to_string()))?;
        let entries: Vec<RevokedCertParams> = revoked
            .into_iter()
            .map(|revoked| RevokedCertParams {
                serial_number: SerialNumber::from(revoked.serial),
                revocation_time: at(u64::try_from(revoked.revoked_ms / 1000).unwrap_or(0)),
                reason_code: None,
                invalidity_date: None,
            })
            .collect();
        self.write_revoked(&entries, now_s)
    }

    /// The list is good until the authority ends: a new one comes with the next revocation, and not
    /// by the calendar.
    fn write_revoked(
        &self,
        revoked: &[RevokedCertParams],
        now_s: u64,
    ) -> Result<String, AuthorityError> {
        let list = CertificateRevocationListParams {
            this_update: at(now_s.saturating_sub(BACKDATED_S)),
            next_update: at(self.not_after_s),
            crl_number: SerialNumber::from(now_s),
            issuing_distribution_point: None,
            revoked_certs: revoked.to_vec(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let pem = list.signed_by(&self.issuer).and_then(|list| list.pem()).map_err(refused)?;
        let file = self.dir.join(REVOKED);
        files::replace(&file, 0o644, pem.as_bytes()).map_err(|error| {
            AuthorityError(format!("{}: can't be written: {error}", file.display()))
        })?;
        Ok(pem)
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn at(unix_s: u64) -> OffsetDateTime {
    date_time_ymd(1970, 1, 1) + Duration::from_secs(unix_s)
}

fn refused(error: rcgen::Error) -> AuthorityError {
    AuthorityError(format!("the certificate can't be made: {error}"))
}

/// 126 random bits (RFC 5280, section 4.1.2.2); positive, and without a leading zero, so that its
/// bytes are those in the certificate.
fn serial() -> Result<SerialNumber, NoRandomness> {
    let mut bytes = credential::random::<16>()?;
    bytes[0] = (bytes[0] & 0x3f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

#[cfg(test)]
mod tests;
