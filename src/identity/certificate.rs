//! What this program shows of a certificate, or names itself by: names, dates, its public key.
//!
//! Reads the outer DER of RFC 5280, section 4.1: a parser for all of X.509 would cost a dozen
//! crates on the board. It must never decide whether a certificate is trusted: that is rustls's
//! alone. On a board without a clock its dates say at what time rustls is to look.

use std::path::Path;

use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;

use super::{
    IdentityError,
    calendar::Moment,
    credential,
    der::{
        CONTEXT_0, CONTEXT_3, IA5_STRING, INTEGER, OBJECT_IDENTIFIER, OCTET_STRING,
        PRINTABLE_STRING, Reader, SEQUENCE, SET, UTF8_STRING, element,
    },
};

/// id-at-commonName, 2.5.4.3
pub(super) const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// id-ce-subjectAltName, 2.5.29.17
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// The GeneralNames (RFC 5280, section 4.2.1.6) that are text, and those that are an address.
const TEXT_NAMES: [u8; 3] = [0x81, 0x82, 0x86];
const IP_NAME: u8 = 0x87;

const SECONDS_PER_DAY: i64 = 86_400;

/// What a certificate says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The subject's common name, if it has exactly one.
    pub common_name: Option<String>,
    /// The subject, such as `O=Example, CN=gw-7f3a`.
    pub subject: String,
    /// Who issued it, likewise.
    pub issuer: String,
    /// Its number at the issuer, in hexadecimal.
    pub serial: String,
    /// The names and addresses of its subjectAltName.
    pub alt_names: Vec<String>,
    /// Valid from this second on.
    pub not_before: Moment,
    /// Valid until this second.
    pub not_after: Moment,
    public_key: Vec<u8>,
    subject_der: Vec<u8>,
    issuer_der: Vec<u8>,
}

impl Certificate {
    /// Reads the first certificate of a PEM file.
    ///
    /// # Errors
    ///
    /// The file can't be read, has no certificate, or its first one is malformed.
    pub fn from_file(file: &Path) -> Result<Self, IdentityError> {
        let chain = credential::certificates(file)?;
        Self::from_der(&chain[0]).ok_or_else(|| malformed(file))
    }

    /// Reads a certificate; `None` if it is not one.
    pub fn from_der(der: &CertificateDer<'_>) -> Option<Self> {
        let mut certificate = Reader(der.as_ref()).nested(SEQUENCE)?;
        let mut body = certificate.nested(SEQUENCE)?;
        if body.next_tag() == Some(CONTEXT_0) {
            body.element()?;
        }
        let serial = body.expect(INTEGER)?;
        let _signature_algorithm = body.element()?;
        let issuer = body.expect(SEQUENCE)?;
        let mut validity = body.nested(SEQUENCE)?;
        let subject = body.expect(SEQUENCE)?;
        let public_key = body.expect(SEQUENCE)?;
        Some(Self {
            common_name: common_name(Reader(subject))?,
            subject: shown_name(Reader(subject))?,
            issuer: shown_name(Reader(issuer))?,
            serial: hex(serial.strip_prefix(&[0]).filter(|s| !s.is_empty()).unwrap_or(serial)),
            alt_names: alt_names(body).unwrap_or_default(),
            not_before: validity.time()?,
            not_after: validity.time()?,
            public_key: element(SEQUENCE, &[public_key]),
            subject_der: subject.to_vec(),
            issuer_der: issuer.to_vec(),
        })
    }

    /// Its public key, as the DER of a SubjectPublicKeyInfo.
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// Whether `other` names itself as this one's issuer is named. No signature is looked at.
    pub fn names_as_issuer(&self, other: &Self) -> bool {
        self.issuer_der == other.subject_der
    }

    /// Whole days until it expires; negative when it has.
    pub fn days_left(&self, now: Moment) -> i64 {
        let left = self.not_after.unix_seconds.saturating_sub(now.unix_seconds);
        left.div_euclid(SECONDS_PER_DAY)
    }

    /// What a person should know about the dates; `None` on a normal day.
    pub fn remark(&self, now: Moment) -> Option<String> {
        if now < self.not_before {
            Some(format!("not valid before {}; the clock here says {now}", self.not_before))
        } else if now > self.not_after {
            Some(format!("expired at {}; the clock here says {now}", self.not_after))
        } else {
            None
        }
    }
}

pub(super) fn malformed(file: &Path) -> IdentityError {
    IdentityError::new(
        file,
        "its first certificate is malformed",
        "check it with: openssl x509 -noout -text -in FILE",
    )
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256 of a public key's SubjectPublicKeyInfo: what key files and certificates of one key
/// have in common.
pub fn fingerprint(public_key: &[u8]) -> String {
    format!("sha256:{}", hex(digest(&SHA256, public_key).as_ref()))
}

/// Every attribute of a name: its type and its text, where it is text.
fn attributes(mut name: Reader<'_>) -> Option<Vec<(&[u8], Option<String>)>> {
    let mut found = Vec::new();
    while !name.0.is_empty() {
        let mut set = name.nested(SET)?;
        while !set.0.is_empty() {
            let mut attribute = set.nested(SEQUENCE)?;
            let kind = attribute.expect(OBJECT_IDENTIFIER)?;
            let (tag, value) = attribute.element()?;
            let is_text = matches!(tag, UTF8_STRING | PRINTABLE_STRING | IA5_STRING);
            let text = is_text.then(|| String::from_utf8(value.to_vec()).ok()).flatten();
            found.push((kind, text));
        }
    }
    Some(found)
}

/// `Some(None)` when there is no common name, or more than one: which of them would be meant?
fn common_name(subject: Reader<'_>) -> Option<Option<String>> {
    let mut names = attributes(subject)?.into_iter().filter(|(kind, _)| *kind == COMMON_NAME);
    let first = names.next().and_then(|(_, text)| text);
    Some(first.filter(|_| names.next().is_none()))
}

fn shown_name(name: Reader<'_>) -> Option<String> {
    let shown = attributes(name)?.into_iter().map(|(kind, text)| {
        let text = text.unwrap_or_else(|| "?".into());
        match kind {
            COMMON_NAME => format!("CN={text}"),
            [0x55, 0x04, 0x06] => format!("C={text}"),
            [0x55, 0x04, 0x0a] => format!("O={text}"),
            [0x55, 0x04, 0x0b] => format!("OU={text}"),
            _ => text,
        }
    });
    // Whatever stands in a name, a terminal and a log must survive it.
    Some(shown.collect::<Vec<_>>().join(", ").replace(char::is_control, "?"))
}

/// What follows the public key has the subjectAltName among its extensions.
fn alt_names(mut body: Reader<'_>) -> Option<Vec<String>> {
    while body.next_tag()? != CONTEXT_3 {
        body.element()?;
    }
    let mut extensions = body.nested(CONTEXT_3)?.nested(SEQUENCE)?;
    while !extensions.0.is_empty() {
        let mut extension = extensions.nested(SEQUENCE)?;
        if extension.expect(OBJECT_IDENTIFIER)? != SUBJECT_ALT_NAME {
            continue;
        }
        if extension.next_tag()? != OCTET_STRING {
            let _critical = extension.element()?;
        }
        let mut names = extension.nested(OCTET_STRING)?.nested(SEQUENCE)?;
        let mut found = Vec::new();
        while !names.0.is_empty() {
            let (tag, value) = names.element()?;
            let address = || match value.len() {
                4 => Some(<[u8; 4]>::try_from(value).ok()?.into()),
                16 => Some(<[u8; 16]>::try_from(value).ok()?.into()),
                _ => None::<std::net::IpAddr>,
            };
            if TEXT_NAMES.contains(&tag) {
                found.push(String::from_utf8_lossy(value).replace(char::is_control, "?"));
            } else if tag == IP_NAME {
                found.extend(address().map(|address| address.to_string()));
            }
        }
        return Some(found);
    }
    None
}

#[cfg(all(test, feature = "hub"))]
mod tests {
    use super::*;

    fn made(name: &str) -> Vec<u8> {
        let mut params =
            rcgen::CertificateParams::new(vec!["localhost".to_owned(), "192.0.2.7".to_owned()])
                .unwrap();
        params.serial_number = Some(0x0123_4567_89ab_cdef_u64.into());
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "Example");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.not_before = rcgen::date_time_ymd(2020, 2, 29);
        params.not_after = rcgen::date_time_ymd(2051, 1, 1);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn subject_and_dates_are_read() {
        let der = made("gw-7f3a");
        let certificate = Certificate::from_der(&der.into()).unwrap();
        assert_eq!(certificate.common_name.as_deref(), Some("gw-7f3a"));
        assert_eq!(certificate.subject, "O=Example, CN=gw-7f3a");
        assert_eq!(certificate.issuer, certificate.subject);
        assert_eq!(certificate.alt_names, ["localhost", "192.0.2.7"]);
        assert_eq!(certificate.serial, "0123456789abcdef");
        let day = 86_400;
        let at = |unix_seconds| Moment {
            unix_seconds: certificate.not_after.unix_seconds + unix_seconds,
        };
        assert_eq!([certificate.days_left(at(-day)), certificate.days_left(at(1))], [1, -1]);
        assert_eq!(certificate.not_before.to_string(), "2020-02-29 00:00:00 UTC");
        assert_eq!(certificate.not_after.to_string(), "2051-01-01 00:00:00 UTC");
        assert_eq!(certificate.remark(certificate.not_after), None);
        let early = certificate.remark(Moment { unix_seconds: 0 }).unwrap();
        assert!(early.contains("not valid before 2020-02-29"), "{early}");
        let late = certificate.remark(Moment { unix_seconds: i64::MAX }).unwrap();
        assert!(late.contains("expired at 2051-01-01"), "{late}");
    }

    #[test]
    fn no_truncated_or_flipped_certificate_panics() {
        let der = made("gw-7f3a");
        for length in 0..der.len() {
            let _ = Certificate::from_der(&der[..length].into());
        }
        for at in 0..der.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bad = der.clone();
                bad[at] ^= flip;
                let _ = Certificate::from_der(&bad.into());
            }
        }
    }
}
