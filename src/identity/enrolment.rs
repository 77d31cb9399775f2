//! What an operator carries from the hub to a board: a code that is good once, and the fingerprint
//! of the CA that the board is to believe. Both are written in Crockford's base32, which survives
//! being read out and typed.

use std::{fmt, sync::Arc};

use ring::digest::{SHA256, digest};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use zeroize::Zeroizing;

use super::Certificate;
use crate::crypto;

/// Crockford's base32: no I, L, O and U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const BITS_PER_DIGIT: u32 = 5;

/// `XXXX-XXXX-XXXX`.
const CODE_DIGITS: usize = 12;
const CODE_GROUP: usize = 4;

const FINGERPRINT_BYTES: usize = 16;
const FINGERPRINT_DIGITS: usize = 26;

/// A code that lets one board in, once. Its `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct EnrolmentCode(Zeroizing<String>);

impl EnrolmentCode {
    /// Reads it as a person types it: in either case, with O for 0 and I or L for 1, with or
    /// without its hyphens. `None` if it is no code.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = digits(text).filter(|digits| digits.len() == CODE_DIGITS)?;
        let mut code = Zeroizing::new(String::with_capacity(CODE_DIGITS + 2));
        for (at, digit) in digits.iter().enumerate() {
            if at > 0 && at % CODE_GROUP == 0 {
                code.push('-');
            }
            code.push(char::from(ALPHABET[usize::from(*digit)]));
        }
        Some(Self(code))
    }

    /// The code itself, for the hub alone.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for EnrolmentCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnrolmentCode(hidden)")
    }
}

/// The first 16 bytes of the SHA-256 of a CA's public key. No secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaFingerprint([u8; FINGERPRINT_BYTES]);

impl CaFingerprint {
    /// Of this certificate.
    pub fn of(certificate: &Certificate) -> Self {
        let hash = digest(&SHA256, certificate.public_key());
        let mut bytes = [0; FINGERPRINT_BYTES];
        bytes.copy_from_slice(&hash.as_ref()[..FINGERPRINT_BYTES]);
        Self(bytes)
    }

    /// Reads its 26 digits; `None` if they are none.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = digits(text).filter(|digits| digits.len() == FINGERPRINT_DIGITS)?;
        // 130 bits: the last two are none of the 128.
        if digits.last()? & 0b11 != 0 {
            return None;
        }
        let mut bytes = Vec::with_capacity(FINGERPRINT_BYTES);
        let (mut window, mut bits) = (0_u32, 0);
        for digit in digits.iter() {
            window = window << BITS_PER_DIGIT | u32::from(*digit);
            bits += BITS_PER_DIGIT;
            if bits >= 8 {
                bits -= 8;
                bytes.push((window >> bits) as u8);
            }
        }
        Some(Self(bytes.try_into().ok()?))
    }
}

impl fmt::Display for CaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = u128::from_be_bytes(self.0);
        let digit = |at: usize| match at + 1 {
            // The last one has three bits of the number.
            FINGERPRINT_DIGITS => number << 2,
            before => number >> (128 - BITS_PER_DIGIT as usize * before),
        };
        (0..FINGERPRINT_DIGITS)
            .try_for_each(|at| write!(f, "{}", char::from(ALPHABET[(digit(at) & 31) as usize])))
    }
}

fn digits(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut digits = Zeroizing::new(Vec::with_capacity(text.len()));
    for byte in text.bytes().filter(|byte| *byte != b'-') {
        let meant = match byte.to_ascii_uppercase() {
            b'O' => b'0',
            b'I' | b'L' => b'1',
            other => other,
        };
        digits.push(ALPHABET.iter().position(|digit| *digit == meant)? as u8);
    }
    Some(digits)
}

/// TLS towards a server that nobody vouches for yet: only to ask for the CA's certificate, which is
/// then held against the fingerprint that the operator carried here. Nothing secret may be sent
/// over it, and nothing that comes over it be believed before that.
pub fn first_contact_tls() -> Arc<ClientConfig> {
    let provider = crypto::provider();
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("every provider has cipher suites for TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(FirstContact(provider)))
        .with_no_client_auth();
    Arc::new(config)
}

#[derive(Debug)]
struct FirstContact(Arc<CryptoProvider>);

impl ServerCertVerifier for FirstContact {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_as_people_type_it() {
        let code = |text| EnrolmentCode::parse(text).map(|code| code.reveal().to_owned());
        for typed in ["7F3K-0A1B-2CZ9", "7f3koaib2cz9", "7F3K-OALB-2cz9", "7-f3k0-a1b2cz9"] {
            assert_eq!(code(typed).as_deref(), Some("7F3K-0A1B-2CZ9"), "{typed}");
        }
        for bad in ["", "7F3K-0A1B-2CZ", "7F3K-0A1B-2CZ99", "7F3K-0A1B-2CZU", "7F3K 0A1B 2CZ9"] {
            assert_eq!(code(bad), None, "{bad}");
        }
        let hidden = format!("{:?}", EnrolmentCode::parse("7F3K-0A1B-2CZ9"));
        assert!(!hidden.contains("7F3K"), "{hidden}");
    }

    #[test]
    fn a_fingerprint_comes_back_and_every_bit_counts() {
        for bytes in [[0; 16], [0xff; 16], *b"0123456789abcdef"] {
            let shown = CaFingerprint(bytes).to_string();
            assert_eq!(shown.len(), FINGERPRINT_DIGITS);
            assert_eq!(CaFingerprint::parse(&shown.to_lowercase()), Some(CaFingerprint(bytes)));
        }
        // Base32 of the bytes (RFC 4648, no padding), its alphabet exchanged for Crockford's.
        assert_eq!(CaFingerprint(*b"0123456789abcdef").to_string(), "60RK4CSM6MV3EE1SC5H66S35CR");
        // Too short, too long, and with two bits too many.
        let all_ones = "Z".repeat(FINGERPRINT_DIGITS);
        for bad in ["", "60RK4CSM6MV3EE1SC5H66S35C", "60RK4CSM6MV3EE1SC5H66S35CR0", &all_ones] {
            assert_eq!(CaFingerprint::parse(bad), None, "{bad}");
        }
    }
}
