//! Credentials: tokens, codes, their digests, and what a client certificate says.
//!
//! A token is 32 random bytes; the store knows its SHA-256 alone. The look-up by digest is not
//! constant in time, and need not be: what leaks is about the digest of a guess, which says nothing
//! about a token.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use ring::{
    digest,
    rand::{SecureRandom as _, SystemRandom},
};
use x509_parser::{extensions::GeneralName, prelude::*};

pub use crate::protocol::is_gateway_id;
use crate::{command::CommandId, protocol::SUBPROTOCOL_BEARER_PREFIX};

/// The longest of our own tokens that is looked at, in bytes.
const MAX_TOKEN_BYTES: usize = 256;

/// The system gives no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random bytes")]
pub struct NoRandomness;

/// Makes a fresh token: `prefix` and 32 random bytes.
///
/// # Errors
/// [`NoRandomness`].
pub fn new_token(prefix: &str) -> Result<String, NoRandomness> {
    Ok(format!("{prefix}{}", BASE64URL.encode(random::<32>()?)))
}

/// Makes a fresh command id: a UUIDv7 (RFC 9562, section 5.7).
///
/// # Errors
/// [`NoRandomness`].
pub fn new_command_id(unix_ms: u64) -> Result<CommandId, NoRandomness> {
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&unix_ms.to_be_bytes()[2..]);
    bytes[6..].copy_from_slice(&random::<10>()?);
    bytes[6] = 0x70 | (bytes[6] & 0x0f);
    bytes[8] = 0x80 | (bytes[8] & 0x3f);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    Ok(CommandId::try_from(format!("{a}-{b}-{c}-{d}-{e}")).expect("hexadecimal digits and hyphens"))
}

/// The SHA-256 of a token; `None` for what can't be one.
pub fn token_digest(token: &str) -> Option<Vec<u8>> {
    let plausible = (16..=MAX_TOKEN_BYTES).contains(&token.len());
    plausible.then(|| digest::digest(&digest::SHA256, token.as_bytes()).as_ref().to_vec())
}

/// Whether two digests are the same, in a time that does not say where they differ.
pub fn same_digest(a: &[u8], b: &[u8]) -> bool {
    let differing = a.iter().zip(b).fold(0, |bits, (x, y)| bits | (x ^ y));
    a.len() == b.len() && std::hint::black_box(differing) == 0
}

/// The token of an `Authorization: Bearer …` header (RFC 6750, section 2.1).
pub fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The token that a browser offers as a subprotocol (PROTOCOL.md, section 11).
pub fn bearer_subprotocol(offered: &str) -> Option<String> {
    let coded = offered.strip_prefix(SUBPROTOCOL_BEARER_PREFIX)?;
    String::from_utf8(BASE64URL.decode(coded.trim_end_matches('=')).ok()?).ok()
}

/// What a client certificate says of its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Whose it is: the first of the common name, the DNS names and the URIs that can be a
    /// gateway's. Never another one, whoever is let in: what a certificate of several names gets
    /// its holder does not change with what is revoked. `None`: nobody's, or of more than one
    /// common name.
    pub gateway: Option<String>,
    /// Its serial number, as it stands there.
    pub serial: Vec<u8>,
    /// When it ends, Unix milliseconds.
    pub not_after_ms: u64,
}

/// Reads a certificate whose chain was verified by TLS; `None`: it can't be read.
pub fn read_certificate(der: &[u8]) -> Option<ClientCertificate> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let mut common_names = certificate.subject().iter_common_name();
    let common_name = common_names.next().and_then(|name| name.as_str().ok());
    let is_ambiguous = common_names.next().is_some();
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let alternatives = alternatives.map_or(&[][..], |found| &found.value.general_names);
    let dns_names = alternatives.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    });
    let uris = alternatives.iter().filter_map(|name| match name {
        GeneralName::URI(name) => Some(*name),
        _ => None,
    });
    let mut names = common_name.into_iter().chain(dns_names).chain(uris);
    let gateway = names.find(|name| is_gateway_id(name)).filter(|_| !is_ambiguous);
    let gateway = gateway.map(str::to_owned);
    let not_after_s = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    let serial = certificate.raw_serial().to_vec();
    Some(ClientCertificate { gateway, serial, not_after_ms: not_after_s.saturating_mul(1000) })
}

/// Crockford's base32: no I, L, O and U, so that nobody reads a 1 or 0 for them, or a word.
const BASE32: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// How many symbols a code has: 60 bits.
const CODE_SYMBOLS: usize = 12;

/// Bytes in Crockford's base32, most significant bit first; the last symbol is filled with zeros.
pub fn base32(bytes: &[u8]) -> String {
    let bit = |at: usize| bytes.get(at / 8).map_or(0, |byte| usize::from(byte >> (7 - at % 8)) & 1);
    let symbol = |first: usize| (first..first + 5).fold(0, |value, at| value << 1 | bit(at));
    (0..bytes.len() * 8).step_by(5).map(|first| char::from(BASE32[symbol(first)])).collect()
}

/// Makes a fresh code to enrol with: `XXXX-XXXX-XXXX`.
///
/// # Errors
/// [`NoRandomness`].
pub fn new_code() -> Result<String, NoRandomness> {
    let symbols = base32(&random::<8>()?);
    Ok([&symbols[..4], &symbols[4..8], &symbols[8..CODE_SYMBOLS]].join("-"))
}

/// The SHA-256 of a code, however a person wrote it; `None` for what can't be one.
pub fn code_digest(code: &str) -> Option<Vec<u8>> {
    let mut symbols = String::new();
    for c in code.chars().filter(|c| !matches!(c, '-' | ' ')) {
        let symbol = match c.to_ascii_uppercase() {
            'O' => '0',
            'I' | 'L' => '1',
            c if c.is_ascii() && BASE32.contains(&(c as u8)) => c,
            _ => return None,
        };
        symbols.push(symbol);
        if symbols.len() > CODE_SYMBOLS {
            return None;
        }
    }
    let sha256 = || digest::digest(&digest::SHA256, symbols.as_bytes()).as_ref().to_vec();
    (symbols.len() == CODE_SYMBOLS).then(sha256)
}

/// Fresh random bytes of the system.
///
/// # Errors
/// [`NoRandomness`].
pub fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_id_is_a_uuid_of_version_7() {
        let id = new_command_id(0x0191_e2c4_7b1a).unwrap();
        let text = id.as_str();
        assert!(text.starts_with("0191e2c4-7b1a-7") && text.len() == 36, "{text}");
        assert!(matches!(text.as_bytes()[19], b'8' | b'9' | b'a' | b'b'), "{text}");
        assert_ne!(id, new_command_id(0x0191_e2c4_7b1a).unwrap());
    }

    #[test]
    fn a_token_is_found_in_a_header_and_in_a_subprotocol() {
        assert_eq!(bearer("Bearer abc"), Some("abc"));
        assert_eq!(bearer("bearer  abc "), Some("abc"));
        assert_eq!(bearer("Basic abc"), None);
        let offered = format!("{SUBPROTOCOL_BEARER_PREFIX}{}", BASE64URL.encode("abc"));
        assert_eq!(bearer_subprotocol(&offered).as_deref(), Some("abc"));
        assert_eq!(bearer_subprotocol("fieldgate.v1.json"), None);
    }

    #[test]
    fn digests_are_compared_whole() {
        let digest = token_digest(&new_token("fgg_").unwrap()).unwrap();
        assert!(same_digest(&digest, &digest.clone()));
        assert!(!same_digest(&digest, &digest[..31]));
        assert_eq!(token_digest("short"), None);
    }

    #[test]
    fn a_certificate_names_its_holder() {
        use rcgen::{DistinguishedName, DnType, SanType};
        let key = rcgen::KeyPair::generate().unwrap();
        let of = |common_names: &[&str], alternatives: &[SanType]| {
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            // The same attribute, which rcgen has only one of by its name.
            let again = DnType::CustomDnType(vec![2, 5, 4, 3]);
            for (kind, name) in [DnType::CommonName, again].into_iter().zip(common_names) {
                params.distinguished_name.push(kind, *name);
            }
            params.subject_alt_names = alternatives.to_vec();
            let certificate = params.self_signed(&key).unwrap();
            read_certificate(certificate.der()).unwrap().gateway
        };
        let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
        let uri = |name: &str| SanType::URI(name.try_into().unwrap());
        let is = |gateway: &str| Some(gateway.to_owned());
        assert_eq!(of(&["gw-1"], &[dns("gw-2")]), is("gw-1"));
        assert_eq!(of(&["Pump room, left"], &[uri("urn:dev:gw-3"), dns("gw-2")]), is("gw-2"));
        assert_eq!(of(&[], &[uri("spiffe://site/gw-1"), uri("urn:dev:gw-3")]), is("urn:dev:gw-3"));
        assert_eq!(of(&[], &[uri("spiffe://site/gw-1")]), None);
        assert_eq!(of(&["gw-1", "gw-2"], &[]), None, "two common names");
        assert_eq!(of(&["gw-1", "gw-2"], &[dns("gw-1")]), None, "two common names");
        assert_eq!(read_certificate(b"nonsense"), None);
    }

    #[test]
    fn base32_is_crockfords() {
        assert_eq!(base32(b""), "");
        assert_eq!(base32(&[0xff]), "ZW");
        assert_eq!(base32(b"hello"), "D1JPRV3F");
        assert_eq!(base32(&[0; 16]).len(), 26);
    }

    #[test]
    fn a_code_is_the_same_however_it_is_written() {
        let code = new_code().unwrap();
        assert_eq!(code.len(), 14);
        let digest = code_digest(&code);
        assert!(digest.is_some());
        assert_eq!(code_digest(&code.to_lowercase().replace('-', "")), digest);
        assert_eq!(code_digest("o1IL-0000-00o0"), code_digest("0111-0000-0000"));
        assert_ne!(code_digest(&new_code().unwrap()), digest);
        for bad in ["", "0000-0000-000", "0000-0000-0000-0", "0000-0000-000U", "0000-0000-000é"] {
            assert_eq!(code_digest(bad), None, "{bad}");
        }
    }
}
