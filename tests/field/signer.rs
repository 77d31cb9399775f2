//! Device keys, and what is signed with them: tokens (JWT), good and bad, and certificate requests.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use ring::{
    hmac,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair},
};
use serde_json::{Value, json};

/// A device's key.
pub struct Signer {
    pair: KeyPair,
    alg: &'static str,
}

impl Signer {
    pub fn ed25519() -> Self {
        let pair = KeyPair::generate_for(&PKCS_ED25519).expect("ring makes keys");
        Self { pair, alg: "EdDSA" }
    }

    pub fn p256() -> Self {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("ring makes keys");
        Self { pair, alg: "ES256" }
    }

    pub fn public_pem(&self) -> String {
        self.pair.public_key_pem()
    }

    pub fn private_pem(&self) -> String {
        self.pair.serialize_pem()
    }

    /// A request for a certificate, PEM.
    pub fn request(&self) -> String {
        let request = CertificateParams::default().serialize_request(&self.pair);
        request.and_then(|request| request.pem()).expect("a request without wishes")
    }

    /// Its public key as a JSON Web Key.
    pub fn jwk(&self, kid: &str) -> Value {
        let raw = self.pair.public_key_raw();
        match self.alg {
            "EdDSA" => json!({"kty": "OKP", "crv": "Ed25519", "kid": kid,
                              "x": BASE64URL.encode(raw)}),
            _ => json!({"kty": "EC", "crv": "P-256", "kid": kid,
                        "x": BASE64URL.encode(&raw[1..33]), "y": BASE64URL.encode(&raw[33..])}),
        }
    }

    /// A token with these claims and a header that fits.
    pub fn token(&self, claims: &Value) -> String {
        self.token_under(&json!({"alg": self.alg, "typ": "JWT"}), claims)
    }

    /// A token with these claims under this header, whatever that says.
    pub fn token_under(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", coded(header), coded(claims));
        let pkcs8 = self.pair.serialized_der();
        let signature = if self.alg == "EdDSA" {
            let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).expect("its own key");
            key.sign(signed.as_bytes()).as_ref().to_vec()
        } else {
            let random = SystemRandom::new();
            let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
            let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8, &random).expect("its own key");
            key.sign(&random, signed.as_bytes()).expect("ring signs").as_ref().to_vec()
        };
        format!("{signed}.{}", BASE64URL.encode(signature))
    }
}

/// A token without a signature.
pub fn unsigned(claims: &Value) -> String {
    format!("{}.{}.", coded(&json!({"alg": "none"})), coded(claims))
}

/// A token with a MAC whose secret is what everybody knows.
pub fn with_mac(secret: &str, claims: &Value) -> String {
    let signed = format!("{}.{}", coded(&json!({"alg": "HS256", "typ": "JWT"})), coded(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    format!("{signed}.{}", BASE64URL.encode(hmac::sign(&key, signed.as_bytes())))
}

/// What a token of `gateway` for the hub `hub-1` says that ends `seconds` from now.
pub fn claims(gateway: &str, seconds: i64) -> Value {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.expect("a clock after 1970").as_secs().cast_signed();
    json!({"sub": gateway, "aud": "hub-1", "iat": now - 120, "exp": now + seconds})
}

fn coded(value: &Value) -> String {
    BASE64URL.encode(value.to_string())
}
