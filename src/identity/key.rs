//! The device key: made on the board, and used there for certificate requests and tokens.

use std::{fmt, path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{
    rand::{SecureRandom as _, SystemRandom},
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
};
use rustls::{
    SignatureScheme,
    crypto::ring::sign::any_supported_type,
    pki_types::{PrivateKeyDer, pem::PemObject as _},
    sign::{Signer, SigningKey},
};
use zeroize::Zeroizing;

use super::{IdentityError, credential};

/// What a PKCS#8 Ed25519 key begins with (RFC 8410, section 7); the seed follows. Without the
/// public key, which ring would add in a form that OpenSSL does not read.
const ED25519_PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
const ED25519_SEED_BYTES: usize = 32;

/// Which kind of key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// ECDSA over P-256: what every TLS library takes.
    P256,
    /// Ed25519.
    Ed25519,
}

impl KeyType {
    /// Makes a key; gives it as PKCS#8 in PEM.
    ///
    /// # Errors
    ///
    /// The kernel gives no random numbers.
    pub fn generate(self) -> Result<Zeroizing<String>, &'static str> {
        let random = SystemRandom::new();
        let none = |_| "the kernel gives no random numbers; try again when it has booted";
        let der = match self {
            Self::P256 => {
                let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random);
                Zeroizing::new(made.map_err(none)?.as_ref().to_vec())
            }
            Self::Ed25519 => {
                let mut der = Zeroizing::new(vec![0; ED25519_PKCS8.len() + ED25519_SEED_BYTES]);
                let (head, seed) = der.split_at_mut(ED25519_PKCS8.len());
                head.copy_from_slice(&ED25519_PKCS8);
                random.fill(seed).map_err(none)?;
                der
            }
        };
        Ok(Zeroizing::new(pem("PRIVATE KEY", &der)))
    }

    fn scheme(self) -> SignatureScheme {
        match self {
            Self::P256 => SignatureScheme::ECDSA_NISTP256_SHA256,
            Self::Ed25519 => SignatureScheme::ED25519,
        }
    }
}

/// A private key and what it can sign with. Its `Debug` hides it.
#[derive(Clone)]
pub struct DeviceKey {
    key: Arc<dyn SigningKey>,
    public_key: Vec<u8>,
}

impl DeviceKey {
    /// Reads the key of a PEM file that nobody else can read.
    ///
    /// # Errors
    ///
    /// The file can't be read, is open to others, or has no key that could be used.
    pub fn from_file(file: &Path) -> Result<Self, IdentityError> {
        let der = Zeroizing::new(credential::private_key(file)?);
        Self::from_der(&der).ok_or_else(|| {
            IdentityError::new(
                file,
                "its key can't be used",
                "use an ECDSA (P-256, P-384), Ed25519 or RSA (2048 bits and more) key",
            )
        })
    }

    /// Reads a key in PEM; `None` if it is none.
    pub fn from_pem(pem: &str) -> Option<Self> {
        Self::from_der(&Zeroizing::new(PrivateKeyDer::from_pem_slice(pem.as_bytes()).ok()?))
    }

    fn from_der(der: &PrivateKeyDer<'_>) -> Option<Self> {
        let key = any_supported_type(der).ok()?;
        let public_key = key.public_key()?.as_ref().to_vec();
        Some(Self { key, public_key })
    }

    /// The public key, as the DER of a SubjectPublicKeyInfo.
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// The public key in PEM.
    pub fn public_key_pem(&self) -> String {
        pem("PUBLIC KEY", &self.public_key)
    }

    /// Its kind, if it is one that this program makes.
    pub fn kind(&self) -> Option<KeyType> {
        self.signer().map(|(kind, _)| kind)
    }

    /// Its kind and what signs with it: ECDSA signatures are in ASN.1. `None` for kinds that this
    /// program makes no requests and tokens with.
    pub(super) fn signer(&self) -> Option<(KeyType, Box<dyn Signer>)> {
        [KeyType::P256, KeyType::Ed25519]
            .into_iter()
            .find_map(|kind| Some((kind, self.key.choose_scheme(&[kind.scheme()])?)))
    }
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeviceKey(hidden)")
    }
}

/// DER as PEM (RFC 7468).
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let text = Zeroizing::new(STANDARD.encode(der));
    // In one piece, so that no shorter copy of a key is left behind.
    let mut pem = String::with_capacity(text.len() + text.len() / 64 + 2 * label.len() + 40);
    pem.extend(["-----BEGIN ", label, "-----\n"]);
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.extend([line, "\n"]);
        rest = after;
    }
    pem.extend(["-----END ", label, "-----\n"]);
    pem
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A key's file, made now.
    pub(crate) fn written(directory: &Path, text: &str) -> std::path::PathBuf {
        let file = directory.join("gateway.key");
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        file
    }

    #[test]
    fn a_key_that_was_made_can_be_used_and_no_two_are_equal() {
        let directory = tempfile::tempdir().unwrap();
        for kind in [KeyType::P256, KeyType::Ed25519] {
            let made = kind.generate().unwrap();
            assert_ne!(*made, *kind.generate().unwrap());
            assert!(made.lines().all(|line| line.len() <= 64), "{}", made.lines().count());
            let key = DeviceKey::from_file(&written(directory.path(), &made)).unwrap();
            assert_eq!(key.signer().unwrap().0, kind);
            let secret = made.lines().nth(1).unwrap();
            assert!(!format!("{key:?}").contains(secret));
            let public = key.public_key_pem();
            assert!(public.starts_with("-----BEGIN PUBLIC KEY-----\n"), "{public}");
            assert!(!public.contains(secret));
        }
    }
}
