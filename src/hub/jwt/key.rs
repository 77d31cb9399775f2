//! Public keys: Ed25519 and P-256, and nothing else.
//!
//! A key decides the algorithm, never the token: so neither `none` nor a MAC made with a public key
//! can pass.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use ring::{digest, signature};
use rustls::pki_types::{SubjectPublicKeyInfoDer, pem::PemObject as _};
use serde::Deserialize;

/// The SubjectPublicKeyInfo of an Ed25519 key up to its 32 bytes (RFC 8410, section 4).
const ED25519_PREFIX: &[u8] = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";

/// The SubjectPublicKeyInfo of a P-256 key up to its uncompressed point (RFC 5480, section 2).
const P256_PREFIX: &[u8] = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\
    \x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";

/// What begins an uncompressed point (SEC 1, section 2.3.3).
const UNCOMPRESSED: u8 = 4;

const ED25519_EXAMPLE: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

/// SEC 2, section 2.4.2.
const P256_BASE_POINT: &str = "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296\
    4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";

/// A public key that can verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicKey {
    /// Ed25519: `EdDSA`.
    Ed25519([u8; 32]),
    /// P-256, its uncompressed point: `ES256`.
    P256([u8; 65]),
}

/// Not a public key of a kind that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no public key of Ed25519 or P-256; name a PEM file that begins BEGIN PUBLIC KEY")]
pub struct NoPublicKey;

impl PublicKey {
    /// Reads `-----BEGIN PUBLIC KEY-----` (RFC 7468, section 13).
    ///
    /// # Errors
    /// [`NoPublicKey`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, NoPublicKey> {
        let spki = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| NoPublicKey)?;
        Self::from_spki(&spki).ok_or(NoPublicKey)
    }

    /// Reads a SubjectPublicKeyInfo in DER.
    pub fn from_spki(der: &[u8]) -> Option<Self> {
        if let Some(key) = der.strip_prefix(ED25519_PREFIX) {
            return key.try_into().ok().map(Self::Ed25519);
        }
        let point: [u8; 65] = der.strip_prefix(P256_PREFIX)?.try_into().ok()?;
        (point[0] == UNCOMPRESSED).then_some(Self::P256(point))
    }

    /// Its SubjectPublicKeyInfo in DER.
    pub fn to_spki(&self) -> Vec<u8> {
        match self {
            Self::Ed25519(key) => [ED25519_PREFIX, key].concat(),
            Self::P256(point) => [P256_PREFIX, point].concat(),
        }
    }

    /// The SHA-256 of its SubjectPublicKeyInfo.
    pub fn sha256(&self) -> Vec<u8> {
        digest::digest(&digest::SHA256, &self.to_spki()).as_ref().to_vec()
    }

    /// The `alg` of its tokens (RFC 7518, section 3.1; RFC 8037, section 3.1).
    pub(super) fn algorithm(&self) -> &'static str {
        match self {
            Self::Ed25519(_) => "EdDSA",
            Self::P256(_) => "ES256",
        }
    }

    /// A key that nobody signs with: RFC 8032's first example, or the base point of P-256.
    pub(super) fn decoy(algorithm: &str) -> Self {
        let hex = |text: &str| -> Vec<u8> {
            let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("two digits");
            (0..text.len()).step_by(2).map(digit).collect()
        };
        let spki = if algorithm == "ES256" {
            [P256_PREFIX, &hex(P256_BASE_POINT)].concat()
        } else {
            [ED25519_PREFIX, &hex(ED25519_EXAMPLE)].concat()
        };
        Self::from_spki(&spki).expect("a key of this kind")
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let verified = match self {
            Self::Ed25519(key) => signature::UnparsedPublicKey::new(&signature::ED25519, &key[..])
                .verify(message, signature),
            Self::P256(point) => {
                let algorithm = &signature::ECDSA_P256_SHA256_FIXED;
                signature::UnparsedPublicKey::new(algorithm, &point[..]).verify(message, signature)
            }
        };
        verified.is_ok()
    }
}

/// The keys of an issuer, by `kid` (RFC 7517).
#[derive(Debug, Clone, Default)]
pub struct KeySet(Vec<(String, PublicKey)>);

/// The most keys of one issuer that are read.
const MAX_KEYS: usize = 64;

impl KeySet {
    /// Reads a JSON Web Key Set. Keys of other kinds, for other uses, or without a `kid` are passed
    /// over.
    ///
    /// # Errors
    /// Not a key set.
    pub fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = serde_json::from_slice(json)?;
        let keys = set.keys.into_iter().take(MAX_KEYS);
        Ok(Self(keys.filter_map(|key| serde_json::from_value::<Jwk>(key).ok()?.read()).collect()))
    }

    /// The key of this `kid`.
    pub fn get(&self, kid: &str) -> Option<&PublicKey> {
        self.0.iter().find(|(name, _)| name == kid).map(|(_, key)| key)
    }

    /// How many keys it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[derive(Deserialize)]
struct Jwk {
    kid: String,
    kty: String,
    crv: String,
    x: String,
    y: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    alg: Option<String>,
}

impl Jwk {
    fn read(self) -> Option<(String, PublicKey)> {
        let key = match (self.kty.as_str(), self.crv.as_str(), &self.y) {
            ("OKP", "Ed25519", None) => PublicKey::Ed25519(coordinate(&self.x)?),
            ("EC", "P-256", Some(y)) => {
                let mut point = [UNCOMPRESSED; 65];
                point[1..33].copy_from_slice(&coordinate(&self.x)?);
                point[33..].copy_from_slice(&coordinate(y)?);
                PublicKey::P256(point)
            }
            _ => return None,
        };
        let for_signatures = self.purpose.is_none_or(|purpose| purpose == "sig");
        let alg_fits = self.alg.is_none_or(|alg| alg == key.algorithm());
        (for_signatures && alg_fits).then_some((self.kid, key))
    }
}

fn coordinate(text: &str) -> Option<[u8; 32]> {
    BASE64URL.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8037, appendix A.2, and RFC 7515, appendix A.3.
    const SET: &str = r#"{"keys":[
        {"kid":"ed","kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        {"kid":"p256","kty":"EC","crv":"P-256","use":"sig","alg":"ES256",
         "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
         "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
        {"kid":"enc","kty":"EC","crv":"P-256","use":"enc",
         "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
         "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
        {"kid":"short","kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7T"},
        {"kid":"rsa","kty":"RSA","n":"AQAB","e":"AQAB"}]}"#;

    #[test]
    fn a_key_set_gives_the_keys_that_can_verify() {
        let set = KeySet::from_json(SET.as_bytes()).unwrap();
        assert_eq!(set.len(), 2);
        assert!(matches!(set.get("ed"), Some(PublicKey::Ed25519(_))));
        assert!(matches!(set.get("p256"), Some(PublicKey::P256(_))));
        assert!(set.get("enc").is_none() && set.get("rsa").is_none() && set.get("").is_none());
        assert!(KeySet::from_json(b"{}").is_err() && KeySet::from_json(b"[1").is_err());
    }

    #[test]
    fn a_key_reads_as_it_was_written_and_no_other_kind_does() {
        for key in ["ed", "p256"] {
            let key = KeySet::from_json(SET.as_bytes()).unwrap().get(key).unwrap().clone();
            let spki = key.to_spki();
            assert_eq!(PublicKey::from_spki(&spki), Some(key));
            assert_eq!(PublicKey::from_spki(&spki[..spki.len() - 1]), None);
            assert_eq!(PublicKey::from_spki(&[&spki[..], b"x"].concat()), None);
        }
        let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert_eq!(PublicKey::from_pem(p384.public_key_pem().as_bytes()), Err(NoPublicKey));
        let p256 = rcgen::KeyPair::generate().unwrap();
        assert!(PublicKey::from_pem(p256.public_key_pem().as_bytes()).is_ok());
        assert_eq!(PublicKey::from_pem(p256.serialize_pem().as_bytes()), Err(NoPublicKey));
        assert_eq!(PublicKey::from_pem(b"nonsense"), Err(NoPublicKey));
    }
}
