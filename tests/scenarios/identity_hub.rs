//! Nobody gets into the hub but who should: each wrong credential is refused with a reason in the
//! hub's log, and a stranger learns nothing from it. What is revoked is cut.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use serde_json::{Value, json};

use crate::field::{
    Field, SOON,
    certificate::{private, trusting},
    eventually,
    hub::Hub,
    signer::{Signer, claims, unsigned, with_mac},
    uplink::Way,
};

/// RFC 6455, and PROTOCOL.md, section 10.
const POLICY: u16 = 1008;
const TOKEN_EXPIRED: u16 = 4001;
const FORBIDDEN: u16 = 4501;

const SECOND: Duration = Duration::from_secs(1);

fn way(field: &Field, hub: &Hub) -> Way {
    Way::new(hub.port, &field.path("ca.pem"), None)
}

/// Registers a gateway's key.
fn add_key(field: &Field, hub: &Hub, gateway: &str, signer: &Signer) {
    let file = field.write(format!("{gateway}.pub"), signer.public_pem());
    let file = file.to_str().expect("a path in UTF-8");
    hub.manage(&["gateway", "add", gateway, "--public-key", file]);
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    claims[name] = value;
    claims
}

fn without(mut claims: Value, name: &str) -> Value {
    claims.as_object_mut().expect("an object").remove(name);
    claims
}

#[test]
fn a_token_of_a_registered_key_gets_in_and_every_other_is_refused_alike() {
    let field = Field::new();
    let hub = Hub::started(&field);
    let way = way(&field, &hub);
    let (key, other) = (Signer::p256(), Signer::p256());
    add_key(&field, &hub, "gw-1", &key);
    add_key(&field, &hub, "gw-2", &other);
    let edwards = Signer::ed25519();
    add_key(&field, &hub, "gw-3", &edwards);
    let good = claims("gw-1", 600);
    let (_uplink, welcome) = way.session(Some(&key.token(&good)), "gw-1");
    let expected = good["exp"].as_u64().expect("a time") * 1000;
    assert_eq!(welcome["token_expires"], expected);
    way.session(Some(&edwards.token(&claims("gw-3", 600))), "gw-3");

    let day = 24 * 3600;
    let refused = [
        (unsigned(&good), "alg"),
        (with_mac(&key.public_pem(), &good), "alg"),
        (key.token_under(&json!({"alg": "EdDSA"}), &good), "alg"),
        (other.token(&good), "signature"),
        (edwards.token(&good), "alg"),
        (key.token(&with(good.clone(), "aud", json!("hub-2"))), "audience"),
        (key.token(&without(good.clone(), "aud")), "audience"),
        (key.token(&without(good.clone(), "exp")), "no exp"),
        (key.token(&claims("gw-1", -61)), "expired"),
        (key.token(&claims("gw-1", day + 90)), "more than 24 h"),
        (key.token(&with(good.clone(), "nbf", good["exp"].clone())), "from the future"),
        (key.token(&claims("gw-9", 600)), "no key is known"),
        (key.token(&claims("../../gw-1", 600)), "names no gateway"),
        (key.token(&claims(&"g".repeat(65), 600)), "names no gateway"),
        (key.token(&with(good.clone(), "pad", json!("x".repeat(4000)))), "too long"),
        ("a.b.c".into(), "malformed"),
        ("fgg_0123456789012345678901234567890123456789012".into(), "not known"),
    ];
    let mut answers = Vec::new();
    for (number, (token, reason)) in (2..).zip(refused) {
        let stranger = way.from(number);
        assert_eq!(stranger.upgrade(Some(&token)).err(), Some(401), "{reason}");
        let peer = format!("127.0.0.{number}");
        hub.wait_for_log(&["WARN", "a gateway was refused", &peer, reason]);
        let answer = stranger.ask("POST", "/v1/renew", Some(&token), "{}").expect("an answer");
        answers.push((answer.status, answer.body));
        assert!(!hub.log().contains(&token), "the log has a token");
    }
    let first = answers[0].clone();
    assert_eq!(first.0, 401);
    assert!(answers.iter().all(|answer| *answer == first), "a stranger can tell: {answers:?}");
    let oversize = key.token(&with(good, "pad", json!("x".repeat(30_000))));
    assert_eq!(way.from(200).upgrade(Some(&oversize)).err(), Some(431));
}

#[test]
fn a_token_is_renewed_on_the_live_link_and_its_end_ends_the_session() {
    let field = Field::new();
    let hub = Hub::started(&field);
    let way = way(&field, &hub);
    let (key, other) = (Signer::ed25519(), Signer::ed25519());
    add_key(&field, &hub, "gw-1", &key);
    add_key(&field, &hub, "gw-2", &other);
    let (mut uplink, _) = way.session(Some(&key.token(&claims("gw-1", 60))), "gw-1");
    let fresh = claims("gw-1", 900);
    uplink.say(&json!({"type": "auth", "token": key.token(&fresh)}));
    let expected = fresh["exp"].as_u64().expect("a time") * 1000;
    assert_eq!(uplink.hear(), json!({"type": "auth_ok", "token_expires": expected}));
    uplink.say(&json!({"type": "auth", "token": unsigned(&fresh)}));
    assert_eq!(uplink.hear()["code"], "unauthorized");
    hub.wait_for_log(&["WARN", "a new token was refused", "gw-1", "alg"]);
    uplink.say(&json!({"type": "auth", "token": other.token(&claims("gw-2", 600))}));
    assert_eq!(uplink.close_code(), FORBIDDEN);

    // The leeway of 60 s is all that is left of it.
    let begun = Instant::now();
    let (mut uplink, _) = way.session(Some(&key.token(&claims("gw-1", -57))), "gw-1");
    assert_eq!(uplink.close_code(), TOKEN_EXPIRED);
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[test]
fn what_is_revoked_or_replaced_is_cut_within_a_second() {
    let field = Field::new();
    let hub = Hub::started(&field);
    hub.manage(&["ca", "init"]);
    hub.manage(&["gateway", "add", "gw-cert", "--certificate"]);
    let dir = field.path("");
    let dir = dir.to_str().expect("a path in UTF-8");
    hub.manage(&["ca", "issue", "--gateway", "gw-cert", "--dir", dir]);
    hub.wait_for_log(&["new certificates or revocation lists are in use"]);
    let way = way(&field, &hub);
    let token = std::fs::read_to_string(hub.add_gateway(&field, "gw-token")).expect("a token");
    let key = Signer::p256();
    add_key(&field, &hub, "gw-key", &key);
    let chain = (&*field.path("gw-cert.pem"), &*field.path("gw-cert.key"));
    let certified = Way::new(hub.port, &field.path("ca.pem"), Some(chain));

    let mut cut = Vec::new();
    let mut measure = |what: &str, code: u16, since: Instant| {
        assert_eq!(code, POLICY, "{what}");
        cut.push((what.to_owned(), since.elapsed()));
    };
    let (mut uplink, _) = way.session(Some(token.trim()), "gw-token");
    hub.manage(&["gateway", "revoke", "gw-token"]);
    let since = Instant::now();
    measure("a token, revoked", uplink.close_code(), since);

    let (mut uplink, _) = way.session(Some(&key.token(&claims("gw-key", 600))), "gw-key");
    add_key(&field, &hub, "gw-key", &Signer::p256());
    let since = Instant::now();
    measure("a key, replaced", uplink.close_code(), since);
    assert_eq!(way.upgrade(Some(&key.token(&claims("gw-key", 600)))).err(), Some(401));

    let (mut uplink, welcome) = certified.session(None, "gw-cert");
    assert!(welcome["token_expires"].is_null(), "no token, no end of it: {welcome}");
    // What concerns another gateway leaves this one alone.
    add_key(&field, &hub, "gw-key", &key);
    hub.manage(&["gateway", "revoke", "gw-cert"]);
    let since = Instant::now();
    measure("a certificate, revoked", uplink.close_code(), since);
    assert!(matches!(certified.upgrade(None).err(), Some(0 | 401)));

    let token = hub.manage(&["api-token", "add", "feed", "--scopes", "live"]);
    let mut feed = way.live(token.trim()).expect("a live feed");
    hub.manage(&["api-token", "revoke", "feed"]);
    let since = Instant::now();
    measure("an API token, revoked", feed.close_code(), since);
    assert_eq!(way.live(token.trim()).err(), Some(401));
    println!("cut after {cut:?}");
    assert!(cut.iter().all(|(_, time)| *time < SECOND), "{cut:?}");
}

/// An authority of the test's own, so that it can sign what no authority should.
struct TestAuthority {
    issuer: Issuer<'static, KeyPair>,
}

impl TestAuthority {
    fn new(field: &Field, file: &str) -> Self {
        let must = "a certificate from fixed parameters";
        let key = KeyPair::generate().expect(must);
        let mut params = CertificateParams::new([]).expect(must);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, file);
        field.write(file, params.self_signed(&key).expect(must).pem());
        Self { issuer: Issuer::new(params, key) }
    }

    /// A client that is valid in these years.
    fn client(&self, field: &Field, hub: &Hub, name: &str, years: (i32, i32)) -> Way {
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        self.sign(field, hub, name, params)
    }

    /// A client whose certificate ends so soon.
    fn client_for(&self, field: &Field, hub: &Hub, name: &str, time: Duration) -> Way {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let mut params = CertificateParams::default();
        params.not_after = date_time_ymd(1970, 1, 1) + now.expect("a clock after 1970") + time;
        self.sign(field, hub, name, params)
    }

    fn sign(&self, field: &Field, hub: &Hub, name: &str, mut params: CertificateParams) -> Way {
        let must = "a certificate from fixed parameters";
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect(must);
        let chain = field.write("x.pem", params.signed_by(&key, &self.issuer).expect(must).pem());
        let key = field.write("x.key", key.serialize_pem());
        Way::new(hub.port, &field.path("ca.pem"), Some((&chain, &key)))
    }
}

#[test]
fn a_certificate_must_be_of_the_right_authority_time_and_name_and_not_revoked() {
    let field = Field::new();
    let own = TestAuthority::new(&field, "gateways-ca.pem");
    let other = TestAuthority::new(&field, "other-ca.pem");
    let mut hub = Hub::with(&field, "", "client_ca_file = \"gateways-ca.pem\"");
    hub.start();
    for gateway in ["gw-1", "gw-2"] {
        hub.manage(&["gateway", "add", gateway, "--certificate"]);
    }
    own.client(&field, &hub, "gw-1", (2020, 2100)).session(None, "gw-1");
    // What TLS itself refuses, and what the hub says of it.
    let refused = [
        (other.client(&field, &hub, "gw-1", (2020, 2100)), "UnknownIssuer"),
        (own.client(&field, &hub, "gw-1", (2020, 2021)), "Expired"),
        (own.client(&field, &hub, "gw-1", (2090, 2100)), "NotValidYet"),
    ];
    for (number, (way, reason)) in (2..).zip(refused) {
        assert_eq!(way.from(number).upgrade(None).err(), Some(0), "{reason}");
        let peer = format!("127.0.0.{number}");
        hub.wait_for_log(&["WARN", "a client certificate was refused", &peer, reason]);
    }
    // What the registry does not know.
    let mut answers = Vec::new();
    for (number, name) in (10..).zip(["gw-9", "../../gw-1", "gw-1\u{0}", ""]) {
        let way = own.client(&field, &hub, name, (2020, 2100)).from(number);
        let answer = way.ask("POST", "/v1/renew", None, "{}").expect("an answer");
        let peer = format!("127.0.0.{number}");
        hub.wait_for_log(&["WARN", "a gateway was refused", &peer, "names no gateway"]);
        answers.push((answer.status, answer.body));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0] && answer.0 == 401), "{answers:?}");
    let way = own.client(&field, &hub, "gw-2", (2020, 2100));
    let mut uplink = way.upgrade(None).unwrap_or_else(|status| panic!("status {status}"));
    uplink.say(&json!({"type": "hello", "gateway": "gw-1", "streams": []}));
    assert_eq!(uplink.close_code(), FORBIDDEN, "another gateway's name");
    // A session does not outlive its certificate, and the certificate no session.
    let way = own.client_for(&field, &hub, "gw-2", Duration::from_secs(4));
    let (mut uplink, _) = way.session(None, "gw-2");
    assert_eq!(uplink.close_code(), TOKEN_EXPIRED);
    assert!(matches!(way.upgrade(None).err(), Some(0 | 401)));
}

#[test]
fn a_list_of_the_revoked_is_used_without_a_restart_and_a_faulty_one_is_not() {
    let field = Field::new();
    let mut hub = Hub::new(&field);
    hub.manage(&["ca", "init"]);
    let dir = field.path("");
    let dir = dir.to_str().expect("a path in UTF-8");
    for gateway in ["gw-1", "gw-2"] {
        hub.manage(&["gateway", "add", gateway, "--certificate"]);
        hub.manage(&["ca", "issue", "--gateway", gateway, "--dir", dir]);
    }
    hub.start();
    let of = |gateway: &str| {
        let chain = field.path(format!("{gateway}.pem"));
        let key = field.path(format!("{gateway}.key"));
        Way::new(hub.port, &field.path("ca.pem"), Some((&chain, &key)))
    };
    of("gw-1").session(None, "gw-1");
    let (mut other, _) = of("gw-2").session(None, "gw-2");
    hub.manage(&["gateway", "revoke", "gw-1"]);
    hub.wait_for_log(&["new certificates or revocation lists are in use"]);
    // Let in again, its old certificate stays revoked: the list says so, not the registry alone.
    hub.manage(&["gateway", "add", "gw-1", "--certificate"]);
    let way = of("gw-1").from(2);
    assert_eq!(way.upgrade(None).err(), Some(0));
    hub.wait_for_log(&["WARN", "a client certificate was refused", "127.0.0.2", "Revoked"]);

    std::fs::write(field.path("hub/ca/crl.pem"), "no list\n").expect("a file of the test's own");
    hub.wait_for_log(&["ERROR", "crl.pem", "refused; the old go on"]);
    assert_eq!(of("gw-1").from(3).upgrade(None).err(), Some(0), "the old list goes on");
    other.say(&json!({"type": "auth", "token": "x.y.z"}));
    assert_eq!(other.hear()["code"], "unauthorized", "a session of another gateway goes on");
    hub.manage(&["ca", "crl"]);
    let again = "new certificates or revocation lists are in use";
    eventually("the mended list is in use", SOON, || {
        (hub.log().matches(again).count() >= 2).then_some(())
    });
}

#[test]
fn the_hubs_own_certificate_is_replaced_without_a_restart() {
    let field = Field::new();
    let hub = Hub::started(&field);
    hub.manage(&["ca", "init"]);
    let old = way(&field, &hub);
    let token = std::fs::read_to_string(hub.add_gateway(&field, "gw-1")).expect("a token");
    let (mut uplink, _) = old.session(Some(token.trim()), "gw-1");
    let dir = field.path("");
    let dir = dir.to_str().expect("a path in UTF-8");
    let key = std::fs::read(field.path("hub.key")).expect("the hub's key");
    let host = ["ca", "issue-server", "--host", "localhost", "--dir", dir];
    hub.manage(&host);
    let new = Way::new(hub.port, &field.path("hub/ca/ca.pem"), None);
    eventually("the new certificate is shown", SOON, || {
        new.ask("GET", "/healthz", None, "").ok().filter(|answer| answer.status == 200)
    });
    assert!(old.ask("GET", "/healthz", None, "").is_err(), "the old authority did not sign it");
    uplink.say(&json!({"type": "auth", "token": token.trim()}));
    assert_eq!(uplink.hear()["type"], "auth_ok", "the session goes on");

    let good = std::fs::read(field.path("hub.key")).expect("the hub's key");
    std::fs::write(field.path("hub.key"), key).expect("a file of the test's own");
    private(&field.path("hub.key"));
    hub.wait_for_log(&["ERROR", "hub.key", "refused; the old go on"]);
    let answer = new.ask("GET", "/healthz", None, "").expect("the old pair goes on");
    assert_eq!(answer.status, 200);
    std::fs::write(field.path("hub.key"), good).expect("a file of the test's own");
    assert_eq!(new.ask("GET", "/healthz", None, "").expect("an answer").status, 200);
}

#[test]
fn a_board_enrols_once_by_a_code_and_renews_what_it_got() {
    let field = Field::new();
    let mut hub = Hub::with(&field, "public_host = \"hub.example.com\"", "");
    hub.manage(&["ca", "init"]);
    let dir = field.path("");
    let dir = dir.to_str().expect("a path in UTF-8");
    hub.manage(&["ca", "issue-server", "--host", "localhost", "--dir", dir]);
    let pinned = field.path("hub/ca/ca.pem");
    hub.api.tls = Some(trusting(&pinned));
    hub.start();
    let way = Way::new(hub.port, &pinned, None);
    let shown = way.ask("GET", "/v1/enroll/ca", None, "").expect("an answer");
    let ca = std::fs::read_to_string(&pinned).expect("the authority's certificate");
    assert_eq!((shown.status, shown.body), (200, ca.clone()));

    // A board that is dead by now, and still has a session.
    let old = Signer::p256();
    add_key(&field, &hub, "gw-7f3a", &old);
    let (mut uplink, _) = way.session(Some(&old.token(&claims("gw-7f3a", 600))), "gw-7f3a");
    let said = hub.manage(&["enroll-code", "--gateway", "gw-7f3a"]);
    let (code, short) = said.trim().split_once('\n').expect("two lines");
    let fingerprint = hub.manage(&["ca", "show"]);
    let (_, fingerprint) = fingerprint.split_once("fingerprint ").expect("a fingerprint");
    let fingerprint = fingerprint.split(',').next().expect("it stands first");
    assert_eq!(short, format!("FIELDGATE:HUB.EXAMPLE.COM/{code}/{fingerprint}"));

    let key = Signer::p256();
    let body = json!({"code": code.to_lowercase(), "csr": key.request()}).to_string();
    let answer = way.ask("POST", "/v1/enroll", None, &body).expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    let issued: Value = serde_json::from_str(&answer.body).expect("JSON");
    let (gateway, uplink_url) = (&issued["gateway"], &issued["uplink"]);
    assert_eq!((gateway, &issued["audience"]), (&json!("gw-7f3a"), &json!("hub-1")));
    assert_eq!(
        (uplink_url, &issued["ca"]),
        (&json!("wss://hub.example.com/v1/gateway"), &json!(ca))
    );
    assert_eq!(issued["public_key_registered"], true);
    assert_eq!(uplink.close_code(), POLICY, "what was there before is revoked");

    let chain = field.write("board.pem", issued["certificate"].as_str().expect("a certificate"));
    let file = field.write("board.key", key.private_pem());
    let board = Way::new(hub.port, &pinned, Some((&chain, &file)));
    board.session(None, "gw-7f3a");
    way.session(Some(&key.token(&claims("gw-7f3a", 600))), "gw-7f3a");

    // Every other attempt gets one and the same answer.
    let expired = hub.manage(&["enroll-code", "--gateway", "gw-8", "--ttl", "1ms"]);
    let good = hub.manage(&["enroll-code", "--gateway", "gw-9"]);
    let line = |said: &str| said.lines().next().unwrap_or_default().to_owned();
    let broken = key.request().replace('A', "B");
    let attempts = [
        (code.to_owned(), Signer::p256().request(), "used or expired"),
        (line(&expired), key.request(), "used or expired"),
        ("0000-0000-0000".into(), key.request(), "used or expired"),
        ("../../etc/passwd".into(), key.request(), "used or expired"),
        (String::new(), String::new(), "no PEM block"),
        (line(&good), broken, "the code is good"),
        (line(&good), key.public_pem(), "no PEM block"),
        (line(&good), format!("{}{}", key.request(), " ".repeat(9000)), "no PEM block"),
    ];
    let mut answers = Vec::new();
    for (number, (code, csr, reason)) in (20..).zip(attempts) {
        let body = json!({"code": code, "csr": csr}).to_string();
        let answer = way.from(number).ask("POST", "/v1/enroll", None, &body).expect("an answer");
        let peer = format!("127.0.0.{number}");
        hub.wait_for_log(&["WARN", "an enrolment was refused", &peer, reason]);
        answers.push((answer.status, answer.body));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0] && answer.0 == 403), "{answers:?}");
    assert!(answers[0].1.contains("\"enrolment_refused\""), "{answers:?}");
    let large = json!({"code": "x", "csr": "x".repeat(17 << 10)}).to_string();
    let answer = way.from(40).ask("POST", "/v1/enroll", None, &large).expect("an answer");
    assert_eq!(answer.status, 413);
    assert!(!hub.log().contains(&line(&good)), "the log has a code");

    // Renewal: by the certificate, then by a token of the new key; never by nothing.
    let next = Signer::ed25519();
    let body = json!({"csr": next.request()}).to_string();
    let answer = board.ask("POST", "/v1/renew", None, &body).expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    for key in [&next, &key] {
        way.session(Some(&key.token(&claims("gw-7f3a", 600))), "gw-7f3a");
    }
    let token = next.token(&claims("gw-7f3a", 600));
    let answer = way.ask("POST", "/v1/renew", Some(&token), &body).expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(way.from(41).ask("POST", "/v1/renew", None, &body).expect("an answer").status, 401);
    let token = std::fs::read_to_string(hub.add_gateway(&field, "gw-1")).expect("a token");
    let answer = way.from(42).ask("POST", "/v1/renew", Some(token.trim()), &body);
    assert_eq!(answer.expect("an answer").status, 401, "a token that others could know");

    for bad in ["../x", "a b", "", "gw/1"] {
        assert!(hub.refuses(&["enroll-code", "--gateway", bad]).contains("no gateway id"));
        assert!(hub.refuses(&["gateway", "add", bad]).contains("no gateway id"));
    }
    assert!(hub.refuses(&["ca", "init"]).contains("there is an authority already"));
}

#[test]
fn an_issuers_tokens_are_taken_by_kid_and_it_is_not_besieged() {
    let field = Field::new();
    let (first, second) = (Signer::ed25519(), Signer::p256());
    let set = Arc::new(json!({"keys": [first.jwk("a"), second.jwk("b")]}).to_string());
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let port = listener.local_addr().expect("a bound socket").port();
    let fetched = Arc::new(AtomicUsize::new(0));
    std::thread::spawn({
        let (set, fetched) = (set.clone(), fetched.clone());
        move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let _ = stream.read(&mut [0; 4096]);
                fetched.fetch_add(1, Ordering::Relaxed);
                let length = set.len();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
                let _ = stream.write_all(format!("{head}{set}").as_bytes());
            }
        }
    });
    let jwt =
        format!("[jwt]\nissuer = \"https://iss\"\njwks_url = \"http://127.0.0.1:{port}/keys\"");
    let mut hub = Hub::with(&field, "", &jwt);
    hub.start();
    hub.manage(&["gateway", "add", "gw-1", "--certificate"]);
    let way = way(&field, &hub);
    let of_issuer = |gateway: &str| with(claims(gateway, 600), "iss", json!("https://iss"));
    let good = of_issuer("gw-1");
    way.session(Some(&first.token_under(&json!({"alg": "EdDSA", "kid": "a"}), &good)), "gw-1");
    way.session(Some(&second.token_under(&json!({"alg": "ES256", "kid": "b"}), &good)), "gw-1");
    let refused = [
        (first.token_under(&json!({"alg": "EdDSA", "kid": "b"}), &good), "alg"),
        (first.token_under(&json!({"alg": "EdDSA"}), &good), "no kid"),
        (first.token_under(&json!({"alg": "EdDSA", "kid": "a"}), &of_issuer("gw-9")), "is let in"),
        (first.token(&claims("gw-1", 600)), "no key is known"),
    ];
    for (number, (token, reason)) in (2..).zip(refused) {
        assert_eq!(way.from(number).upgrade(Some(&token)).err(), Some(401), "{reason}");
        hub.wait_for_log(&["WARN", &format!("127.0.0.{number}"), reason]);
    }
    for number in 50..80 {
        let header = json!({"alg": "EdDSA", "kid": format!("unknown-{number}")});
        let token = first.token_under(&header, &good);
        assert_eq!(way.from(number).upgrade(Some(&token)).err(), Some(401));
    }
    let fetched = fetched.load(Ordering::Relaxed);
    assert!((1..=2).contains(&fetched), "{fetched} fetches");
    hub.manage(&["gateway", "revoke", "gw-1"]);
    let token = first.token_under(&json!({"alg": "EdDSA", "kid": "a"}), &good);
    assert_eq!(way.upgrade(Some(&token)).err(), Some(401), "shut out, whatever the issuer says");
}

#[test]
fn every_endpoint_holds_a_token_to_its_scopes() {
    let field = Field::new();
    let hub = Hub::started(&field);
    hub.add_gateway(&field, "gw-1");
    let way = way(&field, &hub);
    let all = ["gateways:read", "records:read", "commands:read", "commands:write", "live"];
    let command = r#"{"device":"d","name":"n"}"#;
    let endpoints = [
        ("GET", "/v1/gateways", "", "gateways:read"),
        ("GET", "/v1/gateways/gw-1", "", "gateways:read"),
        ("GET", "/v1/gateways/gw-1/records", "", "records:read"),
        ("GET", "/v1/gateways/gw-1/gaps", "", "records:read"),
        ("GET", "/v1/gateways/gw-1/commands", "", "commands:read"),
        ("GET", "/v1/gateways/gw-1/commands/none", "", "commands:read"),
        ("POST", "/v1/gateways/gw-1/commands", command, "commands:write"),
        ("POST", "/v1/gateways/gw-1/commands/none/cancel", "", "commands:write"),
    ];
    for scope in all {
        let token = hub.manage(&["api-token", "add", scope, "--scopes", scope]);
        let token = token.trim();
        for (method, path, body, needed) in endpoints {
            let answer = way.ask(method, path, Some(token), body).expect("an answer");
            let told = format!("{scope}: {method} {path}: {answer:?}");
            if scope == needed {
                assert!(!matches!(answer.status, 401 | 403), "{told}");
            } else {
                assert!(answer.status == 403 && answer.body.contains(needed), "{told}");
            }
        }
        let live = way.live(token).err();
        assert_eq!(live, (scope != "live").then_some(403), "{scope}");
    }
    for (method, path, body, _) in endpoints {
        let answer = way.ask(method, path, None, body).expect("an answer");
        assert_eq!(answer.status, 401, "{method} {path}");
    }
    let traversal =
        hub.manage(&["api-token", "add", "t", "--scopes", "gateways:read,records:read"]);
    for path in ["..%2f..%2fetc%2fpasswd", "%00", "gw-1%27%20OR%201=1", &"g".repeat(3000)] {
        for rest in ["", "/records"] {
            let path = format!("/v1/gateways/{path}{rest}");
            let answer = way.ask("GET", &path, Some(traversal.trim()), "").expect("an answer");
            assert!(matches!(answer.status, 400 | 404), "{path}: {answer:?}");
        }
    }
}
