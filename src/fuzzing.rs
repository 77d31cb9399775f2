//! Bytes from outside, any bytes: what the fuzz targets in tests/fuzz call, and what the unit tests
//! below call with bytes that a seeded generator has spoilt. Not part of any program.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use rcgen::{CertificateParams, DnType, date_time_ymd};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{
    config::Config,
    hub::jwt::{KeySet, PublicKey, Unverified},
    identity::Certificate,
    protocol::{self, Decoded},
};

pub use crate::{
    link::fuzzing::{answer, proxy},
    source::listener::fuzzing::client,
    spool::fuzzing::segment,
};

/// A way in, by its name, and what to begin with.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// As the file in tests/fuzz/targets.
    pub name: &'static str,
    /// Panics when what must hold doesn't.
    pub run: fn(&[u8]),
    /// Sound inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 9] = [
    Target { name: "segment", run: segment, seeds: crate::spool::fuzzing::segments },
    Target { name: "hub_message", run: hub_message, seeds: hub_messages },
    Target { name: "gateway_message", run: gateway_message, seeds: gateway_messages },
    Target { name: "client", run: client, seeds: crate::source::listener::fuzzing::sessions },
    Target { name: "config", run: config, seeds: configs },
    Target { name: "answer", run: answer, seeds: crate::link::fuzzing::answers },
    Target { name: "proxy", run: proxy, seeds: crate::link::fuzzing::conversations },
    Target { name: "certificate", run: certificate, seeds: certificates },
    Target { name: "token", run: token, seeds: tokens },
];

/// What a hub says. What is understood can be said again, and is understood again.
///
/// # Panics
/// When it isn't.
pub fn hub_message(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(Decoded::Message(message)) = protocol::from_hub(text) {
        let again = message.to_json();
        let read = protocol::from_hub(&again);
        assert!(matches!(read, Ok(Decoded::Message(_))), "{again}: {read:?}");
    }
}

/// What a gateway says, likewise.
///
/// # Panics
/// When what is understood is not understood again.
pub fn gateway_message(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(Decoded::Message(message)) = protocol::from_gateway(text) {
        let again = message.to_json();
        let read = protocol::from_gateway(&again);
        assert!(matches!(read, Ok(Decoded::Message(_))), "{again}: {read:?}");
    }
}

/// A configuration's text: it is taken, or each fault is told in a line.
///
/// # Panics
/// When it is refused without a word.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let file = Path::new("/etc/fieldgate/fieldgate.toml");
    if let Err(error) = Config::from_text(text, file, std::iter::empty()) {
        assert!(error.lines().count() > 0, "refused without a word: {text}");
    }
}

/// A certificate: what is shown of it is what a full parser reads.
///
/// # Panics
/// When it is something else.
pub fn certificate(bytes: &[u8]) {
    let shown = Certificate::from_der(&CertificateDer::from(bytes));
    let (Some(shown), Ok((_, read))) = (shown, X509Certificate::from_der(bytes)) else { return };
    let dates = (shown.not_before.unix_seconds, shown.not_after.unix_seconds);
    let validity = read.validity();
    assert_eq!(dates, (validity.not_before.timestamp(), validity.not_after.timestamp()));
    // The other parser leaves out what follows a key within its element.
    assert!(shown.public_key().starts_with(read.public_key().raw), "{:?}", shown.public_key());
    let mut names = read.subject().iter_common_name();
    let (first, second) = (names.next(), names.next());
    let only = first.filter(|_| second.is_none()).and_then(|name| name.as_str().ok());
    assert!(shown.common_name.is_none() || shown.common_name.as_deref() == only, "{only:?}");
}

/// A token, and the keys of an issuer: nothing verifies but what was signed.
///
/// # Panics
/// When something else does.
pub fn token(bytes: &[u8]) {
    drop(KeySet::from_json(bytes));
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(unverified) = Unverified::read(text) else { return };
    let key = signer().public_key().as_ref().try_into().expect("32 bytes");
    if let Ok(claims) = unverified.verify(&[PublicKey::Ed25519(key)], SIGNED_S, &[AUDIENCE.into()])
    {
        assert_eq!((claims.subject.as_str(), claims.expires_s), (SUBJECT, SIGNED_S + 600));
    }
}

const SUBJECT: &str = "gw-1";
const AUDIENCE: &str = "hub-1";
const SIGNED_S: u64 = 1_790_000_000;

/// PKCS#8 (RFC 8410, section 7) before the 32 bytes of an Ed25519 key.
const PKCS8: &[u8] = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";

/// No secret: the same each time, so that what fails fails again.
fn signer() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("any 32 bytes are a key")
}

fn tokens() -> Vec<Vec<u8>> {
    let signed = |header: &str, claims: String| {
        let signed = format!("{}.{}", BASE64URL.encode(header), BASE64URL.encode(claims));
        let signature = BASE64URL.encode(signer().sign(signed.as_bytes()));
        format!("{signed}.{signature}").into_bytes()
    };
    let (issued, expires) = (SIGNED_S - 10, SIGNED_S + 600);
    let public = signer().public_key().as_ref().to_vec();
    vec![
        signed(
            r#"{"alg":"EdDSA","typ":"JWT","kid":"k"}"#,
            format!(r#"{{"sub":"gw-1","aud":["x","hub-1"],"iat":{issued},"exp":{expires}}}"#),
        ),
        signed(
            r#"{"alg":"EdDSA"}"#,
            format!(r#"{{"iss":"i","sub":"gw-1","aud":"hub-1","nbf":{issued}.5,"exp":{expires}}}"#),
        ),
        format!(
            r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","use":"sig","kid":"k","x":"{}"}}]}}"#,
            BASE64URL.encode(public)
        )
        .into_bytes(),
    ]
}

fn certificates() -> Vec<Vec<u8>> {
    let key = rcgen::KeyPair::try_from([PKCS8, &[7; 32]].concat()).expect("a key");
    let certificate = |names: &[&str], years: (i32, i32)| {
        let alt_names: Vec<String> = vec!["hub.example.com".into(), "192.0.2.1".into()];
        let mut params = CertificateParams::new(alt_names).expect("names");
        for name in names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        params.distinguished_name.push(DnType::OrganizationName, "Example \u{e9}");
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 12, 31);
        params.self_signed(&key).expect("a certificate").der().to_vec()
    };
    vec![certificate(&["gw-1"], (2020, 2049)), certificate(&[], (1990, 2050))]
}

fn hub_messages() -> Vec<Vec<u8>> {
    let texts = [
        r#"{"type":"welcome","session":"s1","hub":"h","time":1790000000000,"limits":{"frame_bytes":262144,"record_bytes":131072,"batch_records":500},"features":["x"],"streams":[{"stream":"telemetry","epoch":"00000000000000aa","acked":7,"window":{"records":1000,"bytes":1048576}}]}"#,
        r#"{"type":"ack","stream":"telemetry","epoch":"00000000000000aa","acked":9,"window":{"records":9,"bytes":99}}"#,
        r#"{"type":"command","id":"01a20434-98a4-7364-be85-c078e17bfa84","device":"d","name":"identify","params":{"a":[1,2,{"b":null}]},"ttl_ms":60000,"timeout_ms":5000,"idempotent":true}"#,
        r#"{"type":"cancel","id":"01a20434-98a4-7364-be85-c078e17bfa84"}"#,
        r#"{"type":"error","code":"gap","message":"m","stream":"telemetry","epoch":"00000000000000aa","expected":4}"#,
        r#"{"type":"error","code":"too_many","message":"m","retry_after_ms":60000}"#,
        r#"{"type":"auth_ok","token_expires":1790003600000}"#,
        r#"{"type":"drain","retry_after_ms":500,"spread_ms":5000,"url":"wss://hub-2.example.com/v1/gateway"}"#,
        r#"{"type":"other","must":true}"#,
    ];
    texts.map(|text| text.as_bytes().to_vec()).into()
}

fn gateway_messages() -> Vec<Vec<u8>> {
    let texts = [
        r#"{"type":"hello","gateway":"gw-1","agent":"a/1","boot_id":"b","clock":{"ts":1790000000000,"trusted":true},"limits":{"message_bytes":262144,"inflight_commands":32},"features":[],"streams":[{"stream":"telemetry","epoch":"00000000000000aa","first":1,"next":9}]}"#,
        r#"{"type":"data","stream":"telemetry","epoch":"00000000000000aa","seq":3,"records":[{"ts":1790000000000,"device":"d","topic":"t/d","payload":{"n":1}},{"ts":1790000000001,"unsynced":true,"device":"d","topic":"t/d","retained":true,"payload_base64":"/wA="}]}"#,
        r#"{"type":"data","stream":"events","epoch":"00000000000000aa","seq":1,"records":[{"ts":1790000000000,"kind":"refused","reason":"too_large","count":3}]}"#,
        r#"{"type":"skip","stream":"telemetry","epoch":"00000000000000aa","from":1,"to":5,"reason":"evicted"}"#,
        r#"{"type":"error","code":"bad","message":"no"}"#,
        r#"{"type":"auth","token":"t"}"#,
    ];
    texts.map(|text| text.as_bytes().to_vec()).into()
}

fn configs() -> Vec<Vec<u8>> {
    let texts = [
        "[gateway]\nid = \"gw-1\"\nstate_dir = \"state\"\n[uplink]\nurl = \"wss://h.example/v1/gateway\"\n\
         ping_interval = \"25s\"\n[spool]\nmax_bytes = \"512MiB\"\nlanes = [\"alarms\", \"telemetry\"]\n[listener]\n",
        "[listener]\nbind = \"127.0.0.1:1883\"\n[[telemetry]]\ntopic = \"devices/{device}/telemetry\"\n\
         [[telemetry]]\ntopic = \"a/{device}/{rest...}\"\nlane = \"telemetry\"\n",
        "[mqtt]\nurl = \"mqtt://127.0.0.1:1883\"\nmax_inflight = 20\n\
         [commands]\nallow = [\"plc-*/set_valve\", \"*/identify\"]\n",
    ];
    texts.map(|text| text.as_bytes().to_vec()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A generator of numbers from one seed (xorshift64*), which a failure names.
    struct Spoiler(u64);

    impl Spoiler {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound.max(1)
        }

        /// One to four changes of what fuzzers are known to find things with.
        fn spoil(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
            let mut bytes = seeds[self.below(seeds.len())].clone();
            for _ in 0..=self.below(4) {
                let at = self.below(bytes.len() + 1);
                let end = (at + self.below(40)).min(bytes.len());
                match self.below(8) {
                    0 => bytes.truncate(at),
                    1 => drop(bytes.drain(at..end)),
                    2 => {
                        let other = &seeds[self.below(seeds.len())];
                        let from = self.below(other.len());
                        let to = (from + self.below(200)).min(other.len());
                        bytes.splice(at..end, other[from..to].iter().copied());
                    }
                    3 => {
                        let lengths = [0, 1, 0x7f, 0xff, 0xffff, 0x1000_0000, 0x2000_0008];
                        let length: u32 = lengths[self.below(lengths.len())];
                        let end = (at + 4).min(bytes.len());
                        bytes.splice(at..end, length.to_le_bytes());
                    }
                    4 => {
                        let noise: Vec<u8> =
                            (0..self.below(64)).map(|_| self.below(256) as u8).collect();
                        bytes.splice(at..at, noise);
                    }
                    5 => bytes.extend(std::iter::repeat_n(self.below(3) as u8, self.below(300))),
                    _ if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                    _ => {}
                }
            }
            bytes
        }
    }

    fn many(name: &str, inputs: u64) {
        let target = TARGETS.iter().find(|target| target.name == name).unwrap();
        let seeds = (target.seeds)();
        seeds.iter().for_each(|seed| (target.run)(seed));
        for seed in 1..=inputs {
            let bytes = Spoiler(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).spoil(&seeds);
            let done = std::panic::catch_unwind(|| (target.run)(&bytes));
            assert!(done.is_ok(), "{name}: the input of seed {seed}, {bytes:02x?}");
        }
    }

    fn write_seeds(corpus: &Path) {
        for target in TARGETS {
            let folder = corpus.join(target.name);
            std::fs::create_dir_all(&folder).unwrap();
            for (number, seed) in (target.seeds)().iter().enumerate() {
                std::fs::write(folder.join(number.to_string()), seed).unwrap();
            }
        }
    }

    #[test]
    fn no_spoilt_segment_is_believed() {
        many("segment", 20_000);
    }

    #[test]
    fn no_spoilt_message_of_a_hub_does_harm() {
        many("hub_message", 20_000);
    }

    #[test]
    fn no_spoilt_message_of_a_gateway_does_harm() {
        many("gateway_message", 20_000);
    }

    #[test]
    fn no_client_does_harm() {
        many("client", 20_000);
    }

    #[test]
    fn no_spoilt_configuration_does_harm() {
        many("config", 5_000);
    }

    #[test]
    fn no_spoilt_answer_of_a_server_is_an_upgrade() {
        many("answer", 20_000);
    }

    #[test]
    fn no_proxy_does_harm() {
        many("proxy", 20_000);
    }

    #[test]
    fn of_a_spoilt_certificate_nothing_false_is_shown() {
        many("certificate", 20_000);
    }

    #[test]
    fn no_spoilt_token_is_believed() {
        many("token", 5_000);
    }

    #[test]
    fn seeds_are_sound() {
        for seed in certificates() {
            Certificate::from_der(&CertificateDer::from(seed)).unwrap();
        }
        for seed in &tokens()[..2] {
            let token = Unverified::read(std::str::from_utf8(seed).unwrap()).unwrap();
            let key = signer().public_key().as_ref().try_into().unwrap();
            token.verify(&[PublicKey::Ed25519(key)], SIGNED_S, &[AUDIENCE.into()]).unwrap();
        }
        assert_eq!(KeySet::from_json(&tokens()[2]).unwrap().len(), 1);
        // What `tests/run fuzz` begins with: built here, where everything is built already.
        if let Some(corpus) = std::env::var_os("FUZZ_CORPUS") {
            write_seeds(Path::new(&corpus));
        }
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        for seed in hub_messages().into_iter().map(text) {
            protocol::from_hub(&seed).unwrap_or_else(|error| panic!("{seed}: {error}"));
        }
        for seed in gateway_messages().into_iter().map(text) {
            protocol::from_gateway(&seed).unwrap_or_else(|error| panic!("{seed}: {error}"));
        }
        for seed in configs().into_iter().map(text) {
            let file = Path::new("/etc/fieldgate/fieldgate.toml");
            Config::from_text(&seed, file, std::iter::empty()).unwrap();
        }
    }
}
