//! What a gateway was given ends what it had before, whatever the two are; an outside authority's
//! word counts where it was asked for, and ends when it is taken back.

use std::{
    io::{Read as _, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use rcgen::{CertificateParams, DistinguishedName, DnType, SanType, SerialNumber};
use serde_json::{Value, json};

use crate::field::{
    Field, SOON,
    certificate::{Authority, issue, private},
    eventually,
    hub::Hub,
    signer::{Signer, claims},
    uplink::{Uplink, Way},
};

const POLICY: u16 = 1008;
const SECOND: Duration = Duration::from_secs(1);
const IN_USE: &str = "new certificates or revocation lists are in use";

/// A hub with an authority of its own, an outside one, and an issuer of tokens.
struct Bench {
    field: Field,
    hub: Hub,
    outside: Authority,
    issuer: Signer,
}

/// What a gateway comes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Token,
    Key,
    OwnCertificate,
    OutsideCertificate,
    IssuersToken,
    Enrolment,
}

impl Bench {
    fn new() -> Self {
        let field = Field::new();
        let outside = Authority::new(&field, "outside");
        let issuer = Signer::ed25519();
        field.write("keys.json", json!({"keys": [issuer.jwk("a")]}).to_string());
        let sections = "client_ca_file = \"outside.pem\"\n[jwt]\nissuer = \"https://iss\"\n\
                        jwks_file = \"keys.json\"";
        let mut hub = Hub::with(&field, "", sections);
        hub.manage(&["ca", "init"]);
        hub.start();
        Self { field, hub, outside, issuer }
    }

    fn bare(&self) -> Way {
        Way::new(self.hub.port, &self.field.path("ca.pem"), None)
    }

    fn with_files(&self, chain: &Path, key: &Path) -> Way {
        Way::new(self.hub.port, &self.field.path("ca.pem"), Some((chain, key)))
    }

    /// Gives the gateway this kind of credential; how it then comes, and with which token.
    fn give(&self, gateway: &str, kind: Kind) -> (Way, Option<String>) {
        let dir = self.field.path("");
        let dir = dir.to_str().expect("a path in UTF-8");
        match kind {
            Kind::Token => {
                let file = self.hub.add_gateway(&self.field, gateway);
                let token = std::fs::read_to_string(file).expect("just written");
                (self.bare(), Some(token.trim().into()))
            }
            Kind::Key => {
                let signer = Signer::p256();
                let file = self.field.write("key.pub", signer.public_pem());
                let file = file.to_str().expect("a path in UTF-8");
                self.hub.manage(&["gateway", "add", gateway, "--public-key", file]);
                (self.bare(), Some(signer.token(&claims(gateway, 600))))
            }
            Kind::OwnCertificate => {
                self.hub.manage(&["gateway", "add", gateway, "--certificate"]);
                self.hub.manage(&["ca", "issue", "--gateway", gateway, "--dir", dir]);
                let file = |end: &str| self.field.path(format!("{gateway}.{end}"));
                (self.with_files(&file("pem"), &file("key")), None)
            }
            Kind::OutsideCertificate => {
                self.hub.manage(&["gateway", "add", gateway, "--certificate"]);
                let client = self.outside.client(&self.field.path("ca.pem"), gateway);
                (Way::with(self.hub.port, client), None)
            }
            Kind::IssuersToken => {
                self.hub.manage(&["gateway", "add", gateway, "--certificate"]);
                let mut says = claims(gateway, 600);
                says["iss"] = json!("https://iss");
                let header = json!({"alg": "EdDSA", "kid": "a"});
                (self.bare(), Some(self.issuer.token_under(&header, &says)))
            }
            Kind::Enrolment => {
                let key = Signer::p256();
                let answer = enrol(&self.bare(), &self.code(gateway), &key);
                (self.certified(&answer.1, &key), None)
            }
        }
    }

    fn code(&self, gateway: &str) -> String {
        let said = self.hub.manage(&["enroll-code", "--gateway", gateway]);
        said.lines().next().expect("a code").to_owned()
    }

    /// Comes with what an enrolment was answered with.
    fn certified(&self, issued: &Value, key: &Signer) -> Way {
        let certificate = issued["certificate"].as_str().expect("a certificate");
        let chain = self.field.write("board.pem", certificate);
        self.with_files(&chain, &self.field.write("board.key", key.private_pem()))
    }
}

/// The status and the answer.
fn enrol(way: &Way, code: &str, key: &Signer) -> (u16, Value) {
    let body = json!({"code": code, "csr": key.request()}).to_string();
    let answer = way.ask("POST", "/v1/enroll", None, &body).expect("an answer");
    (answer.status, serde_json::from_str(&answer.body).expect("JSON"))
}

/// A gateway whose certificate had got out was given a token in its place, and the certificate went
/// on to get in; enrolment ended neither an outside authority's certificate nor an issuer's token.
#[test]
fn whatever_replaces_a_credential_cuts_its_session_and_keeps_it_out() {
    use Kind::{Enrolment, IssuersToken, Key, OutsideCertificate, OwnCertificate, Token};
    let bench = Bench::new();
    let pairs = [
        (OwnCertificate, Token),
        (OwnCertificate, Key),
        (Enrolment, Token),
        (Enrolment, Enrolment),
        (OutsideCertificate, Token),
        (OutsideCertificate, Enrolment),
        (IssuersToken, Key),
        (IssuersToken, Enrolment),
        (Token, Enrolment),
        (Key, OwnCertificate),
    ];
    let mut cut = Vec::new();
    for (number, (had, got)) in (1_u8..).zip(pairs) {
        let what = format!("{had:?}, then {got:?}");
        let gateway = format!("gw-{number}");
        let (way, token) = bench.give(&gateway, had);
        let (mut old, _) = way.session(token.as_deref(), &gateway);
        let (next, next_token) = bench.give(&gateway, got);
        let since = Instant::now();
        assert_eq!(old.close_code(), POLICY, "{what}");
        cut.push((what.clone(), since.elapsed()));
        let refused = way.from(100 + number).upgrade(token.as_deref()).err();
        assert!(matches!(refused, Some(0 | 401)), "{what}: {refused:?}");
        next.session(next_token.as_deref(), &gateway);
    }
    println!("cut after {cut:?}");
    assert!(cut.iter().all(|(_, time)| *time < SECOND), "{cut:?}");
}

#[test]
fn a_code_and_an_outside_certificate_do_not_outlive_what_replaced_them() {
    let bench = Bench::new();
    let code = bench.code("gw-1");
    let (way, token) = bench.give("gw-1", Kind::Token);
    let (status, _) = enrol(&bench.bare().from(2), &code, &Signer::p256());
    assert_eq!(status, 403, "the code was for whoever the token is for now");
    way.session(token.as_deref(), "gw-1");

    // Shut out and let in again by a token: nobody asked for the outside certificate.
    let (outside, _) = bench.give("gw-1", Kind::OutsideCertificate);
    outside.session(None, "gw-1");
    bench.hub.manage(&["gateway", "revoke", "gw-1"]);
    let (way, token) = bench.give("gw-1", Kind::Token);
    assert_eq!(outside.from(3).upgrade(None).err(), Some(401));
    way.session(token.as_deref(), "gw-1");
    bench.hub.wait_for_log(&["WARN", "127.0.0.3", "names no gateway that is let in"]);
}

/// A renewal whose body came slowly was authenticated when it began: the credential was replaced,
/// and whoever had it got another.
#[test]
fn a_renewal_that_began_before_the_credential_was_replaced_is_refused() {
    let bench = Bench::new();
    let (way, _) = bench.give("gw-1", Kind::OwnCertificate);
    let body = json!({"csr": Signer::p256().request()}).to_string();
    let (first, rest) = body.split_at(9);
    let head = format!(
        "POST /v1/renew HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-length: {}\r\nexpect: 100-continue\r\n\r\n",
        body.len()
    );
    let mut slow = way.from(2).tls().expect("a connection");
    slow.write_all(head.as_bytes()).expect("it takes a request");
    // The hub asks for the body when it has looked at the credential.
    let mut answer = [0; 4096];
    let length = slow.read(&mut answer).expect("it asks for the rest");
    assert!(answer[..length].starts_with(b"HTTP/1.1 100"), "it waits for the body");
    slow.write_all(first.as_bytes()).expect("it takes a part");
    bench.give("gw-1", Kind::Token);
    slow.write_all(rest.as_bytes()).expect("it takes the rest");
    let length = slow.read(&mut answer).expect("an answer");
    let answer = String::from_utf8_lossy(&answer[..length]);
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    bench.hub.wait_for_log(&["WARN", "gw-1", "127.0.0.2", "revoked meanwhile"]);
}

/// The answer was lost on the line, and the board that had enrolled was refused with its own code.
#[test]
fn a_lost_answer_to_an_enrolment_is_given_again_to_the_same_key_alone() {
    let bench = Bench::new();
    let (code, key) = (bench.code("gw-1"), Signer::p256());
    let way = bench.bare();
    let (status, first) = enrol(&way, &code, &key);
    assert_eq!(status, 200);
    let (mut session, _) = bench.certified(&first, &key).session(None, "gw-1");
    assert_eq!(enrol(&way, &code, &key), (200, first), "the very same");
    bench.hub.wait_for_log(&["gw-1", "it came again"]);
    session.say(&json!({"type": "auth", "token": "x.y.z"}));
    assert_eq!(session.hear()["code"], "unauthorized", "the session goes on: nothing was ended");
    let (status, refused) = enrol(&way.from(2), &code, &Signer::p256());
    assert_eq!((status, &refused["error"]["code"]), (403, &json!("enrolment_refused")));

    // Two boards with one code: one of them gets it, whichever.
    let code = bench.code("gw-2");
    let mut answers: Vec<u16> = std::thread::scope(|scope| {
        let board = |last: u8| {
            let (way, code) = (way.from(last), &code);
            scope.spawn(move || enrol(&way, code, &Signer::p256()).0)
        };
        let boards: Vec<_> = (10..16).map(board).collect();
        boards.into_iter().map(|board| board.join().expect("a status")).collect()
    });
    answers.sort_unstable();
    assert_eq!(answers, [200, 403, 403, 403, 403, 403]);
}

/// A client with a serial number that an authority can revoke.
fn client(field: &Field, hub: &Hub, authority: &Authority, name: &str, serial: u64) -> Way {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from(serial));
    Way::with(hub.port, authority.client_with(&field.path("ca.pem"), &params))
}

/// How often a line of this was logged.
fn said(hub: &Hub, words: &str) -> usize {
    hub.log().matches(words).count()
}

#[test]
fn an_outside_list_cuts_whom_it_names_and_a_faulty_one_changes_nothing() {
    let field = Field::new();
    let outside = Authority::new(&field, "outside");
    let list = |serials: &[u64], next: i32| {
        field.write("outside-crl.pem", outside.list(serials, next));
    };
    list(&[], 2090);
    let sections = "client_ca_file = \"outside.pem\"\ncrl_file = \"outside-crl.pem\"";
    let mut hub = Hub::with(&field, "", sections);
    for gateway in ["gw-1", "gw-2", "gw-3"] {
        hub.manage(&["gateway", "add", gateway, "--certificate"]);
    }
    hub.start();
    let of = |gateway: &str, serial| client(&field, &hub, &outside, gateway, serial);
    let (mut first, _) = of("gw-1", 1).session(None, "gw-1");
    let (mut second, _) = of("gw-2", 2).session(None, "gw-2");
    let goes_on = |session: &mut Uplink| {
        session.say(&json!({"type": "auth", "token": "x.y.z"}));
        assert_eq!(session.hear()["code"], "unauthorized", "a session goes on");
    };
    let in_use = |count: usize| {
        eventually("the new list is in use", SOON, || (said(&hub, IN_USE) >= count).then_some(()));
    };
    list(&[1], 2090);
    assert_eq!(first.close_code(), POLICY);
    assert_eq!(of("gw-1", 1).from(2).upgrade(None).err(), Some(0));
    hub.wait_for_log(&["WARN", "a client certificate was refused", "127.0.0.2", "Revoked"]);
    goes_on(&mut second);
    in_use(1);

    // Of the right name and not of its key: with it TLS would refuse everybody.
    let other = Authority::new(&Field::new(), "outside");
    field.write("outside-crl.pem", other.list(&[], 2090));
    hub.wait_for_log(&["ERROR", "outside-crl.pem: a list is signed by none", "the old go on"]);
    assert_eq!(of("gw-1", 1).from(3).upgrade(None).err(), Some(0), "the old list goes on");
    of("gw-3", 3).session(None, "gw-3");
    goes_on(&mut second);

    // Nobody brought the next one in time: it still revokes, and the operator hears of it.
    list(&[1, 3], 2021);
    in_use(2);
    hub.wait_for_log(&["WARN", "outside-crl.pem", "out of date"]);
    assert_eq!(of("gw-1", 1).from(4).upgrade(None).err(), Some(0));
    assert_eq!(of("gw-3", 3).from(4).upgrade(None).err(), Some(0));
    goes_on(&mut second);
    assert_eq!(said(&hub, "out of date"), 1, "once");

    // The connection that was there before the list is no way around it.
    let mut kept = of("gw-2", 2).from(5).tls().expect("a connection");
    let request = |line: &str| {
        format!(
            "{line} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
             sec-websocket-protocol: fieldgate.v1.json\r\n\r\n"
        )
    };
    kept.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .expect("it takes a request");
    let mut answer = [0; 4096];
    let length = kept.read(&mut answer).expect("an answer");
    assert!(answer[..length].starts_with(b"HTTP/1.1 200"), "it is kept alive");
    list(&[1, 2, 3], 2090);
    assert_eq!(second.close_code(), POLICY);
    kept.write_all(request("GET /v1/gateway").as_bytes()).expect("it takes a request");
    let length = kept.read(&mut answer).expect("an answer");
    let answer = String::from_utf8_lossy(&answer[..length]);
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    hub.wait_for_log(&["WARN", "a gateway was refused", "127.0.0.5", "is revoked"]);

    // The hub's own certificate is not replaced by one that nobody would take.
    let expired = issue(&field, "expired", "localhost", 2021);
    let copy = |from: &Path, to: &str| {
        std::fs::copy(from, field.path(to)).expect("a file of the test's own");
    };
    copy(&expired.key, "hub.key");
    copy(&expired.cert, "hub.pem");
    hub.wait_for_log(&["ERROR", "hub.pem: has expired", "the old go on"]);
    let way = Way::new(hub.port, &field.path("ca.pem"), None);
    assert_eq!(way.ask("GET", "/healthz", None, "").expect("an answer").status, 200);
}

/// The first name that was let in counted: whoever had a certificate of two names became the second
/// when the first was revoked.
#[test]
fn a_certificate_has_one_name_whoever_is_let_in() {
    let field = Field::new();
    let outside = Authority::new(&field, "outside");
    let mut hub = Hub::with(&field, "", "client_ca_file = \"outside.pem\"");
    for gateway in ["gw-1", "gw-2", "urn:dev:gw-3"] {
        hub.manage(&["gateway", "add", gateway, "--certificate"]);
    }
    hub.start();
    let way = |common_names: &[&str], alternatives: &[SanType]| {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // The same attribute, which rcgen has only once by its name.
        let again = DnType::CustomDnType(vec![2, 5, 4, 3]);
        for (kind, name) in [DnType::CommonName, again].into_iter().zip(common_names) {
            params.distinguished_name.push(kind, *name);
        }
        params.subject_alt_names = alternatives.to_vec();
        Way::with(hub.port, outside.client_with(&field.path("ca.pem"), &params))
    };
    let dns = |name: &str| SanType::DnsName(name.try_into().expect("a name"));
    let uri = |name: &str| SanType::URI(name.try_into().expect("a URI"));
    let both = way(&["gw-1"], &[dns("gw-2")]);
    both.session(None, "gw-1");
    way(&["Pump room, left"], &[uri("urn:dev:gw-3"), dns("gw-2")]).session(None, "gw-2");
    way(&["Pump room, left"], &[uri("urn:dev:gw-3")]).session(None, "urn:dev:gw-3");
    let refused = [
        way(&["gw-1", "gw-2"], &[]),
        way(&[], &[uri("spiffe://site/gw-1")]),
        way(&["Pump room, left"], &[]),
    ];
    for (number, way) in (2..).zip(refused) {
        assert_eq!(way.from(number).upgrade(None).err(), Some(401));
        let peer = format!("127.0.0.{number}");
        hub.wait_for_log(&["WARN", "a gateway was refused", &peer, "names no gateway"]);
    }
    hub.manage(&["gateway", "revoke", "gw-1"]);
    assert_eq!(both.from(9).upgrade(None).err(), Some(401), "it is gw-1's, and never gw-2's");
}

/// A look-up that failed was taken for good, and the next came with the next change: whoever was
/// revoked in that moment stayed.
#[test]
fn a_credential_that_can_not_be_looked_up_is_looked_up_again_without_a_change() {
    let field = Field::new();
    let mut hub = Hub::new(&field);
    hub.log_level = "debug";
    hub.start();
    let token = std::fs::read_to_string(hub.add_gateway(&field, "gw-1")).expect("a token");
    let way = Way::new(hub.port, &field.path("ca.pem"), None);
    let (mut session, _) = way.session(Some(token.trim()), "gw-1");
    let database = rusqlite::Connection::open(field.path("hub/hub.db")).expect("the database");
    database.busy_timeout(SOON).expect("a time");
    let change = |sql: &str| database.execute_batch(sql).expect("the database takes a change");
    change("ALTER TABLE gateways RENAME COLUMN token_sha256 TO elsewhere");
    eventually("it is looked up again and again", SOON, || {
        (said(&hub, "its credential can't be looked up") >= 3).then_some(())
    });
    change(
        "BEGIN; ALTER TABLE gateways RENAME COLUMN elsewhere TO token_sha256;
         UPDATE gateways SET revoked_ms = 1; COMMIT",
    );
    assert_eq!(session.close_code(), POLICY);
}

/// A board that has the authority pinned would not find its hub.
#[test]
fn a_code_is_given_out_with_a_warning_where_the_hub_shows_another_authoritys_certificate() {
    let field = Field::new();
    let hub = Hub::new(&field);
    hub.manage(&["ca", "init"]);
    let dir = field.path("");
    let dir = dir.to_str().expect("a path in UTF-8");
    let warned = |hub: &Hub| {
        let wanted = ["enroll-code", "--gateway", "gw-1", "--host", "localhost"];
        let (code, stdout, stderr) = hub.says(&wanted);
        assert!(code == Some(0) && stdout.contains("FIELDGATE:LOCALHOST/"), "{stdout}{stderr}");
        stderr.contains("hub.pem is not of the hub's own authority")
            && stderr.contains("ca issue-server --host")
    };
    assert!(warned(&hub));
    hub.manage(&["ca", "issue-server", "--host", "localhost", "--dir", dir]);
    private(&field.path("hub.key"));
    assert!(!warned(&hub));
}
