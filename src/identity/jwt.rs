//! JSON web tokens that the gateway signs for itself (RFC 7519), in the compact form of RFC 7515:
//! ES256 with a P-256 key, EdDSA with Ed25519 (RFC 8037).

use std::{path::PathBuf, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::Value;
use zeroize::Zeroizing;

use super::{
    IdentityError, Token,
    certificate::hex,
    der::{INTEGER, Reader, SEQUENCE},
    key::{DeviceKey, KeyType},
};

/// What a coordinate of P-256 counts.
const P256_BYTES: usize = 32;

/// What a gateway's own tokens say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jwt {
    /// What they are signed with; read anew for each.
    pub key_file: PathBuf,
    /// `sub`: the gateway's id.
    pub subject: String,
    /// `aud`: the hub that they are for.
    pub audience: String,
    /// `iss`.
    pub issuer: Option<String>,
    /// The key's name at the hub, in the header.
    pub kid: Option<String>,
    /// How long each is good.
    pub lifetime: Duration,
}

impl Jwt {
    /// A token that is good from `unix_now_ms` on, and when it expires, in Unix milliseconds.
    ///
    /// # Errors
    ///
    /// The key can't be used.
    pub fn sign(&self, unix_now_ms: u64) -> Result<(Token, u64), IdentityError> {
        let key = DeviceKey::from_file(&self.key_file)?;
        let unusable = |fault: &str| {
            let remedy = "use a P-256 or Ed25519 key: fieldgate identity new";
            IdentityError::new(&self.key_file, fault, remedy)
        };
        let (kind, signer) = key
            .signer()
            .ok_or_else(|| unusable("tokens can't be signed with a key of its kind"))?;
        let algorithm = match kind {
            KeyType::P256 => "ES256",
            KeyType::Ed25519 => "EdDSA",
        };
        let mut unique = [0; 16];
        let random = SystemRandom::new().fill(&mut unique);
        random.map_err(|_| unusable("the kernel gives no random numbers"))?;
        let issued = unix_now_ms / 1000;
        let expires = issued + self.lifetime.as_secs();
        let header = [("alg", Some(algorithm)), ("typ", Some("JWT")), ("kid", self.kid.as_deref())];
        let jti = hex(&unique);
        let claims = [
            ("sub", Some(&*self.subject)),
            ("aud", Some(&self.audience)),
            ("iss", self.issuer.as_deref()),
            ("jti", Some(&jti)),
        ];
        let header = encoded(&header, String::new());
        let claims = encoded(&claims, format!(",\"iat\":{issued},\"exp\":{expires}"));
        let mut text = Zeroizing::new(format!("{header}.{claims}"));
        let signature = signer.sign(text.as_bytes()).ok().and_then(|signature| match kind {
            KeyType::P256 => fixed(&signature),
            KeyType::Ed25519 => Some(signature),
        });
        let signature = signature.ok_or_else(|| unusable("its key can't sign"))?;
        text.extend([".", &URL_SAFE_NO_PAD.encode(signature)]);
        let token = Token::parse(&text).ok_or_else(|| unusable("its tokens would be too long"))?;
        Ok((token, expires * 1000))
    }
}

/// A JSON object of these members and `rest`, in base64url.
fn encoded(members: &[(&str, Option<&str>)], rest: String) -> String {
    let mut json = rest;
    for (name, value) in members {
        if let Some(value) = value {
            json += &format!(",\"{name}\":{}", Value::from(*value));
        }
    }
    // Each begins with a comma.
    URL_SAFE_NO_PAD.encode(format!("{{{}}}", &json[1..]))
}

/// An ECDSA signature as RFC 7518, section 3.4, wants it: r and s, each in 32 bytes.
fn fixed(signature: &[u8]) -> Option<Vec<u8>> {
    let mut numbers = Reader(signature).nested(SEQUENCE)?;
    let mut fixed = Vec::with_capacity(2 * P256_BYTES);
    for _ in 0..2 {
        let number = numbers.expect(INTEGER)?;
        let number = &number[number.iter().take_while(|byte| **byte == 0).count()..];
        fixed.resize(fixed.len() + P256_BYTES.checked_sub(number.len())?, 0);
        fixed.extend_from_slice(number);
    }
    Some(fixed)
}

#[cfg(test)]
mod tests {
    use ring::signature::{
        ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey, VerificationAlgorithm,
    };
    use serde_json::json;

    use super::*;
    use crate::identity::key::tests::written;

    fn signing(directory: &std::path::Path, kind: KeyType) -> Jwt {
        Jwt {
            key_file: written(directory, &kind.generate().unwrap()),
            subject: "gw-7f3a".into(),
            audience: "hub.example.com".into(),
            issuer: None,
            kid: None,
            lifetime: Duration::from_secs(600),
        }
    }

    fn part(text: &str) -> Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap()
    }

    #[test]
    fn a_verifier_takes_the_token_and_its_claims_are_those_of_the_protocol() {
        let directory = tempfile::tempdir().unwrap();
        for (kind, algorithm, verification) in [
            (KeyType::P256, "ES256", &ECDSA_P256_SHA256_FIXED as &dyn VerificationAlgorithm),
            (KeyType::Ed25519, "EdDSA", &ED25519),
        ] {
            let mut jwt = signing(directory.path(), kind);
            jwt.kid = Some("k-1".into());
            jwt.issuer = Some("gw-7f3a".into());
            let spki = DeviceKey::from_file(&jwt.key_file).unwrap().public_key().to_vec();
            // A point of P-256 counts 65 bytes, an Ed25519 key 32; both stand last.
            let length = if kind == KeyType::P256 { 65 } else { 32 };
            let public = UnparsedPublicKey::new(verification, &spki[spki.len() - length..]);
            // Often enough that an r or s shorter than 32 bytes is among them.
            let mut seen = std::collections::HashSet::new();
            for _ in 0..600 {
                let (token, expires_ms) = jwt.sign(1_800_000_000_123).unwrap();
                let text = token.reveal();
                let (signed, signature) = text.rsplit_once('.').unwrap();
                let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
                public.verify(signed.as_bytes(), &signature).expect("the key's own signature");
                let (header, claims) = signed.split_once('.').unwrap();
                let (header, claims) = (part(header), part(claims));
                assert_eq!(header, json!({ "alg": algorithm, "typ": "JWT", "kid": "k-1" }));
                assert_eq!(expires_ms, 1_800_000_600_000);
                assert!(seen.insert(claims["jti"].as_str().unwrap().to_owned()), "no jti twice");
                let mut claims = claims;
                claims["jti"].take();
                let expected = json!({ "sub": "gw-7f3a", "aud": "hub.example.com", "jti": null,
                    "iat": 1_800_000_000, "exp": 1_800_000_600, "iss": "gw-7f3a" });
                assert_eq!(claims, expected);
            }
        }
    }

    #[test]
    fn a_key_that_others_can_read_signs_nothing() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let jwt = signing(directory.path(), KeyType::P256);
        std::fs::set_permissions(&jwt.key_file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(jwt.sign(0).unwrap_err().remedy.contains("chmod 600"));
    }
}
