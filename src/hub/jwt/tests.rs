use ring::{
    hmac,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
};
use serde_json::{Value, json};

use super::*;

const NOW: u64 = 1_790_000_000;

enum Signer {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
}

impl Signer {
    fn ed25519() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self::Ed25519(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap())
    }

    fn p256() -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self::P256(EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap())
    }

    fn public(&self) -> PublicKey {
        match self {
            Self::Ed25519(key) => PublicKey::Ed25519(key.public_key().as_ref().try_into().unwrap()),
            Self::P256(key) => PublicKey::P256(key.public_key().as_ref().try_into().unwrap()),
        }
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", coded(header), coded(claims));
        let signature = match self {
            Self::Ed25519(key) => key.sign(signed.as_bytes()).as_ref().to_vec(),
            Self::P256(key) => {
                key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap().as_ref().to_vec()
            }
        };
        format!("{signed}.{}", BASE64URL.encode(signature))
    }
}

fn coded(value: &Value) -> String {
    BASE64URL.encode(value.to_string())
}

fn claims() -> Value {
    json!({"sub": "gw-1", "aud": "hub-1", "iat": NOW - 300, "exp": NOW + 600})
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

/// A hub's name, and the host that gateways know it by.
fn audiences() -> [String; 2] {
    ["hub-1".into(), "hub.example.com".into()]
}

fn verify(token: &str, key: &PublicKey) -> Result<Claims, Fault> {
    Unverified::read(token)?.verify(std::slice::from_ref(key), NOW, &audiences())
}

#[test]
fn tokens_of_both_algorithms_are_taken() {
    for (signer, alg) in [(Signer::ed25519(), "EdDSA"), (Signer::p256(), "ES256")] {
        let token = signer.sign(&json!({"alg": alg, "typ": "JWT"}), &claims());
        let key = signer.public();
        let expected = Claims { subject: "gw-1".into(), expires_s: NOW + 600, key };
        assert_eq!(verify(&token, &signer.public()), Ok(expected));
        let among = [Signer::p256().public(), Signer::ed25519().public(), signer.public()];
        assert!(Unverified::read(&token).unwrap().verify(&among, NOW, &audiences()).is_ok());
    }
}

/// What an unverified token shows of itself could be in a log.
#[test]
fn a_token_is_not_shown_by_debug() {
    let signer = Signer::ed25519();
    let token = signer.sign(&json!({"alg": "EdDSA"}), &claims());
    let shown = format!("{:?}", Unverified::read(&token).unwrap());
    assert!(token.split('.').all(|part| !shown.contains(part)), "{shown}");
    assert!(!shown.contains("signature"), "{shown}");
}

#[test]
fn a_signature_by_another_key_or_over_another_text_is_refused() {
    let (signer, other) = (Signer::ed25519(), Signer::ed25519());
    let token = signer.sign(&json!({"alg": "EdDSA"}), &claims());
    assert_eq!(verify(&token, &other.public()), Err(Fault::Signature));
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let (header, _) = signed.split_once('.').unwrap();
    let forged = format!("{header}.{}.{signature}", coded(&with("sub", json!("gw-2"))));
    assert_eq!(verify(&forged, &signer.public()), Err(Fault::Signature));
    assert_eq!(verify(&format!("{signed}."), &signer.public()), Err(Fault::Signature));
    let none: &[PublicKey] = &[];
    let refused = Unverified::read(&token).unwrap().verify(none, NOW, &audiences());
    assert_eq!(refused, Err(Fault::UnknownKey));
}

#[test]
fn the_key_decides_the_algorithm_and_not_the_token() {
    let signer = Signer::p256();
    let public = signer.public();
    let unsigned = format!("{}.{}.", coded(&json!({"alg": "none"})), coded(&claims()));
    assert_eq!(verify(&unsigned, &public), Err(Fault::Algorithm));
    // The public key as the secret of a MAC, in each form that it is known in.
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}", BASE64URL.encode(public.to_spki()));
    for secret in [public.to_spki(), pem.into_bytes()] {
        let signed = format!("{}.{}", coded(&json!({"alg": "HS256"})), coded(&claims()));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), signed.as_bytes());
        let token = format!("{signed}.{}", BASE64URL.encode(tag));
        assert_eq!(verify(&token, &public), Err(Fault::Algorithm));
    }
    for alg in ["EdDSA", "es256", "ES384", "RS256", ""] {
        let token = signer.sign(&json!({"alg": alg}), &claims());
        assert_eq!(verify(&token, &public), Err(Fault::Algorithm), "{alg:?}");
    }
}

#[test]
fn claims_are_held_to_the_clock_the_audience_and_the_gateway() {
    let signer = Signer::ed25519();
    let mut without_expiry = claims();
    without_expiry.as_object_mut().unwrap().remove("exp");
    let mut without_subject = claims();
    without_subject.as_object_mut().unwrap().remove("sub");
    let day = 24 * 3600;
    for (claims, expected) in [
        (with("exp", json!(NOW - LEEWAY_S + 1)), Ok(NOW - LEEWAY_S + 1)),
        (with("exp", json!(NOW as f64 + 1.5)), Ok(NOW + 1)),
        (with("exp", json!(NOW + day + LEEWAY_S)), Ok(NOW + day + LEEWAY_S)),
        (with("nbf", json!(NOW + LEEWAY_S)), Ok(NOW + 600)),
        (with("aud", json!(["other", "hub-1"])), Ok(NOW + 600)),
        (with("aud", json!("hub.example.com")), Ok(NOW + 600)),
        (without_expiry, Err(Fault::NoExpiry)),
        (with("exp", json!(NOW - LEEWAY_S)), Err(Fault::Expired)),
        (with("exp", json!(0)), Err(Fault::Expired)),
        (with("exp", json!(NOW + day + LEEWAY_S + 1)), Err(Fault::TooLongLived)),
        (with("exp", json!(1e300)), Err(Fault::Malformed)),
        (with("exp", json!(-1)), Err(Fault::Malformed)),
        (with("exp", json!("soon")), Err(Fault::Malformed)),
        (with("nbf", json!(NOW + LEEWAY_S + 1)), Err(Fault::NotYetValid)),
        (with("iat", json!(NOW + LEEWAY_S + 1)), Err(Fault::NotYetValid)),
        (with("aud", json!("hub-2")), Err(Fault::Audience)),
        (with("aud", json!([])), Err(Fault::Audience)),
        (with("aud", json!(vec!["hub-1"; 17])), Err(Fault::Malformed)),
        (without_subject, Err(Fault::Subject)),
    ] {
        let token = signer.sign(&json!({"alg": "EdDSA"}), &claims);
        let verified = verify(&token, &signer.public()).map(|claims| claims.expires_s);
        assert_eq!(verified, expected, "{claims}");
    }
    let late = with("iat", json!(NOW - 10));
    let token = signer.sign(&json!({"alg": "EdDSA"}), &{
        let mut claims = late;
        claims["exp"] = json!(NOW - 20);
        claims
    });
    assert_eq!(verify(&token, &signer.public()), Err(Fault::NotYetValid), "iat after exp");
}

#[test]
fn the_decoys_are_keys_that_verify() {
    for alg in ["EdDSA", "ES256"] {
        assert_eq!(PublicKey::decoy(alg).algorithm(), alg);
        assert!(!PublicKey::decoy(alg).verifies(b"message", &[1; 64]));
    }
}

#[test]
fn what_is_no_token_is_refused_whatever_its_size() {
    let signer = Signer::ed25519();
    let good = signer.sign(&json!({"alg": "EdDSA"}), &claims());
    let (header, rest) = good.split_once('.').unwrap();
    let twice = BASE64URL.encode(r#"{"alg":"EdDSA","alg":"none"}"#);
    for (token, fault) in [
        (String::new(), Fault::Malformed),
        ("..".into(), Fault::Malformed),
        ("a.b".into(), Fault::Malformed),
        (format!("{good}.x"), Fault::Malformed),
        (format!("{header}=.{rest}"), Fault::Malformed),
        (format!("{good}\n"), Fault::Malformed),
        (format!("{twice}.{rest}"), Fault::Malformed),
        (format!("{}.{rest}", BASE64URL.encode("[]")), Fault::Malformed),
        (format!("{}.{rest}", BASE64URL.encode("[".repeat(2000))), Fault::Malformed),
        (format!("{}.{rest}", coded(&json!({"alg": "EdDSA", "crit": ["x"]}))), Fault::Header),
        (format!("{}.{rest}", coded(&json!({"alg": "EdDSA", "typ": "JWE"}))), Fault::Header),
        (format!("{header}.{}.x", "A".repeat(MAX_BYTES)), Fault::TooLong),
    ] {
        let read = Unverified::read(&token).map(drop);
        let told = token.chars().take(60).collect::<String>();
        assert_eq!(read.unwrap_err(), fault, "{told}");
    }
}
