//! The few members of a certificate that this program shows or names itself by: subject, and from
//! when to when.
//!
//! Reads the outer DER of RFC 5280, section 4.1: a parser for all of X.509 would cost a dozen
//! crates on the board. It must never decide whether a certificate is trusted: that is rustls's
//! alone. On a board without a clock its dates say at what time rustls is to look.

use std::path::Path;

use rustls::pki_types::CertificateDer;

use super::{IdentityError, calendar::Moment, credential};

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VERSION: u8 = 0xa0;

/// id-at-commonName, 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// What a certificate says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The subject's common name, if it has exactly one.
    pub common_name: Option<String>,
    /// Valid from this second on.
    pub not_before: Moment,
    /// Valid until this second.
    pub not_after: Moment,
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
        if body.next_tag() == Some(VERSION) {
            body.element()?;
        }
        let _serial = body.element()?;
        let _signature_algorithm = body.element()?;
        let _issuer = body.element()?;
        let mut validity = body.nested(SEQUENCE)?;
        let subject = body.nested(SEQUENCE)?;
        Some(Self {
            common_name: common_name(subject)?,
            not_before: validity.time()?,
            not_after: validity.time()?,
        })
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

/// `Some(None)` when there is no common name, or more than one: which of them would be meant?
fn common_name(mut subject: Reader<'_>) -> Option<Option<String>> {
    let mut found = None;
    while !subject.0.is_empty() {
        let mut set = subject.nested(SET)?;
        while !set.0.is_empty() {
            let mut attribute = set.nested(SEQUENCE)?;
            let kind = attribute.expect(OBJECT_IDENTIFIER)?;
            let (tag, value) = attribute.element()?;
            if kind != COMMON_NAME {
                continue;
            }
            if found.is_some() || !matches!(tag, UTF8_STRING | PRINTABLE_STRING | IA5_STRING) {
                return Some(None);
            }
            found = Some(String::from_utf8(value.to_vec()).ok()?);
        }
    }
    Some(found)
}

/// A walk over DER elements.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next_tag(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The next element's tag and content. Lengths up to four bytes, as every real certificate has.
    fn element(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], rest) = self.0.split_first_chunk()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
                let length = bytes.iter().fold(0u32, |sum, byte| sum << 8 | u32::from(*byte));
                (usize::try_from(length).ok()?, rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.element().and_then(|(found, content)| (found == tag).then_some(content))
    }

    fn nested(&mut self, tag: u8) -> Option<Reader<'a>> {
        self.expect(tag).map(Reader)
    }

    fn time(&mut self) -> Option<Moment> {
        match self.element()? {
            (UTC_TIME, bytes) if bytes.len() == 13 => Moment::from_certificate(bytes),
            (GENERALIZED_TIME, bytes) if bytes.len() == 15 => Moment::from_certificate(bytes),
            _ => None,
        }
    }
}

#[cfg(all(test, feature = "hub"))]
mod tests {
    use super::*;

    fn made(name: &str) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
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
