//! The hub's limits: who misbehaves is held off, at little cost, and others get in meanwhile.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::field::{
    Field, SOON, eventually,
    hub::Hub,
    signer::{Signer, claims},
    uplink::{Tls, Way},
};

/// PROTOCOL.md, section 10.
const TOO_MANY: u16 = 4029;

const MIB: u64 = 1 << 20;

fn way(field: &Field, hub: &Hub) -> Way {
    Way::new(hub.port, &field.path("ca.pem"), None)
}

fn token(field: &Field, hub: &Hub) -> String {
    let file = hub.add_gateway(field, "gw-1");
    std::fs::read_to_string(file).expect("a token").trim().to_owned()
}

/// Asks for what anybody may have, and keeps the connection.
fn ask_and_stay(stream: &mut Tls, client: &str) -> io::Result<()> {
    let request =
        format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\nx-forwarded-for: {client}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        answer.push(byte[0]);
    }
    Ok(())
}

/// Dropped, also by a panic, it ends who looks at it.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn resident_bytes(hub: &Hub) -> u64 {
    let id = hub.process.as_ref().expect("the hub runs").id();
    let statm = std::fs::read_to_string(format!("/proc/{id}/statm")).expect("a live process");
    let pages: u64 = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number");
    pages * 4096
}

#[test]
fn a_thousand_half_open_handshakes_keep_nobody_out() {
    const MOST_GROWTH: u64 = 48 * MIB;
    let field = Field::new();
    let hub = Hub::started(&field);
    let token = token(&field, &hub);
    let way = way(&field, &hub);
    way.session(Some(&token), "gw-1");
    let before = resident_bytes(&hub);
    // Each begins a ClientHello, and says no more.
    let mut half_open: Vec<TcpStream> = Vec::new();
    for number in 0..1000 {
        let mut socket = way.from(100 + (number % 4) as u8).tcp().expect("the hub accepts");
        let begun = socket.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
        begun.expect("a fresh connection");
        half_open.push(socket);
    }
    way.session(Some(&token), "gw-1");
    way.from(100).session(Some(&token), "gw-1");
    let growth = resident_bytes(&hub).saturating_sub(before);
    println!("1,000 half-open handshakes: the hub grew by {growth} bytes");
    assert!(growth < MOST_GROWTH, "the hub grew by {growth} bytes");
    // The oldest gave way, and none outlives its deadline.
    half_open[0].set_read_timeout(Some(Duration::from_secs(2))).expect("a socket option");
    assert!(matches!(half_open[0].read(&mut [0]), Ok(0) | Err(_)), "it says nothing");
    for socket in &mut half_open {
        socket.set_nonblocking(true).expect("a socket option");
    }
    eventually("every half-open connection is cut", SOON, || {
        let is_cut = |socket: &mut TcpStream| match socket.read(&mut [0; 64]) {
            Ok(0) => true,
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
            Ok(_) => false,
        };
        half_open.retain_mut(|socket| !is_cut(socket));
        half_open.is_empty().then_some(())
    });
}

#[test]
fn a_request_that_never_ends_is_cut() {
    const HEADER: Duration = Duration::from_secs(10);
    let field = Field::new();
    let mut hub = Hub::new(&field);
    hub.manage(&["ca", "init"]);
    hub.start();
    let way = way(&field, &hub);
    let begun = Instant::now();
    let mut slow_head = way.tls().expect("the hub accepts");
    slow_head.write_all(b"GET /healthz HTTP/1.1\r\nx: ").expect("a fresh connection");
    let mut slow_body = way.tls().expect("the hub accepts");
    let head = b"POST /v1/enroll HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9000\r\n\r\n{";
    slow_body.write_all(head).expect("a fresh connection");
    let mut said = Vec::new();
    // Cut, with TLS's goodbye or without.
    let _ = slow_head.read_to_end(&mut said);
    assert!(begun.elapsed() < HEADER + SOON, "{:?}", begun.elapsed());
    let mut answer = [0; 64];
    let read = slow_body.read(&mut answer).expect("an answer");
    let answer = String::from_utf8_lossy(&answer[..read]);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

// A connection was taken for honest from its first request on, whatever that asked for: an address
// that asked for /healthz on as many connections as there are places, and never stopped asking,
// shut everybody else out.
#[test]
fn an_address_that_holds_every_place_keeps_no_other_out() {
    const PLACES: usize = 24;
    let field = Field::new();
    let mut hub = Hub::with(&field, "", &format!("[limits]\nmax_connections = {PLACES}"));
    hub.start();
    let token = token(&field, &hub);
    let way = way(&field, &hub);
    let (mut uplink, _) = way.session(Some(&token), "gw-1");
    let stop = AtomicBool::new(false);
    let (told, is_full) = mpsc::channel();
    thread::scope(|scope| {
        let ends = Ends(&stop);
        scope.spawn(|| {
            let told = told;
            let crowd = way.from(2);
            // One place is the gateway's.
            let mut held: Vec<Option<Tls>> = (1..PLACES).map(|_| None).collect();
            while !stop.load(Ordering::Relaxed) {
                for slot in &mut held {
                    let stream = slot.take().or_else(|| crowd.tls().ok());
                    *slot = stream.and_then(|mut stream| {
                        ask_and_stay(&mut stream, "").is_ok().then_some(stream)
                    });
                }
                let _ = told.send(());
            }
        });
        is_full.recv().expect("the crowd lives");
        for number in 3..8 {
            let gateway = format!("gw-{number}");
            let file = hub.add_gateway(&field, &gateway);
            let token = std::fs::read_to_string(file).expect("a token");
            way.from(number).session(Some(token.trim()), &gateway);
        }
        drop(ends);
    });
    // Who proved itself before is not cut for anybody.
    uplink.say(&json!({"type": "auth", "token": token}));
    assert_eq!(uplink.hear()["type"], "auth_ok");
}

#[test]
fn a_trusted_proxy_keeps_its_connections_and_a_stranger_only_so_many() {
    const STRANGERS: usize = 3;
    let field = Field::new();
    let limits = format!("[limits]\nhandshakes = {STRANGERS}");
    let mut hub = Hub::with(&field, "trusted_proxies = [\"127.0.0.1\"]", &limits);
    hub.start();
    let way = way(&field, &hub);
    let stay = |way: &Way| -> usize {
        let come = |number: usize| {
            let mut stream = way.tls().expect("a connection");
            // A stranger's word about whom it speaks for counts for nothing.
            ask_and_stay(&mut stream, &format!("192.0.2.{number}")).expect("an answer");
            stream
        };
        let mut streams: Vec<Tls> = (0..10).map(come).collect();
        let again = |stream: &mut Tls| ask_and_stay(stream, "192.0.2.99").is_ok();
        streams.iter_mut().map(again).filter(|stays| *stays).count()
    };
    assert_eq!(stay(&way), 10);
    assert_eq!(stay(&way.from(9)), STRANGERS);
}

#[test]
fn a_credential_has_so_many_connections_and_leaves_the_others_theirs() {
    let field = Field::new();
    let mut hub = Hub::with(&field, "", "[limits]\nconnections_per_credential = 2");
    hub.start();
    let way = way(&field, &hub);
    let live = |token: &str| way.live(token);
    let first = live(&hub.api.token).expect("a live feed");
    let _second = live(&hub.api.token).expect("another");
    assert_eq!(live(&hub.api.token).err(), Some(429));
    let answer = way.ask("GET", "/v1/gateways", Some(&hub.api.token), "").expect("an answer");
    assert_eq!(answer.status, 429, "{answer:?}");
    assert!(answer.body.contains("too many connections"), "{answer:?}");
    let other = hub.manage(&["api-token", "add", "other", "--scopes", "live"]);
    live(other.trim()).expect("somebody else's");
    drop(first);
    eventually("the place of a feed that ended is free", SOON, || live(&hub.api.token).ok());
}

#[test]
fn an_answer_that_nobody_reads_is_given_up() {
    /// How long a peer may take nothing.
    const WRITE: Duration = Duration::from_secs(30);
    let field = Field::new();
    let mut hub = Hub::with(&field, "", "[limits]\nconnections_per_credential = 1");
    hub.start();
    let way = way(&field, &hub);
    let (mut uplink, _) = way.session(Some(&token(&field, &hub)), "gw-1");
    // More than what the system takes for a reader that does not read.
    let record = json!({"ts": 5, "device": "d", "topic": "t", "payload": "x".repeat(100_000)});
    for number in 0..40 {
        let records = [&record, &record];
        uplink.say(&json!({"type": "data", "stream": "telemetry", "epoch": "00000000000000e1",
                           "seq": 1 + 2 * number, "records": records}));
        while uplink.hear()["type"] != "ack" {}
    }
    let mut unread = way.tls().expect("the hub accepts");
    let api = &hub.api.token;
    let request = format!(
        "GET /v1/gateways/gw-1/records?limit=1000 HTTP/1.1\r\nhost: localhost\r\nauthorization: \
         Bearer {api}\r\n\r\n"
    );
    unread.write_all(request.as_bytes()).expect("a fresh connection");
    let mut begun = [0; 12];
    unread.read_exact(&mut begun).expect("the head of the answer");
    assert_eq!(&begun, b"HTTP/1.1 200");
    let status = || way.ask("GET", "/v1/gateways", Some(api), "").expect("an answer").status;
    assert_eq!(status(), 429, "the token's one connection is at it");
    eventually("the connection is given up", WRITE + SOON, || (status() == 200).then_some(()));
}

// Thirty refusals a minute held off everybody behind their address: boards of one site, and those
// that share the address of a mobile network with strangers.
#[test]
fn a_guess_is_held_off_before_any_look_up_and_others_of_its_address_are_not() {
    let field = Field::new();
    let mut hub = Hub::with(&field, "", "[limits]\nfailures_per_minute = 3");
    hub.start();
    let right = token(&field, &hub);
    let way = way(&field, &hub);
    let guesser = way.from(9);
    let guess = format!("{right}x");
    for _ in 0..3 {
        assert_eq!(guesser.upgrade(Some(&guess)).err(), Some(401));
    }
    assert_eq!(guesser.upgrade(Some(&guess)).err(), Some(429));
    for (method, path) in [("GET", "/v1/gateways"), ("POST", "/v1/renew"), ("GET", "/v1/live")] {
        let answer = guesser.ask(method, path, Some(&guess), "").expect("an answer");
        let expected = if path == "/v1/live" { 426 } else { 429 };
        assert_eq!(answer.status, expected, "{path}: {answer:?}");
        if expected == 429 {
            let after = answer.head.lines().find_map(|line| line.strip_prefix("retry-after: "));
            let seconds: u64 = after.and_then(|after| after.parse().ok()).expect("Retry-After");
            assert!((1..=21).contains(&seconds), "{seconds}");
        }
    }
    let (mut uplink, _) = guesser.session(Some(&right), "gw-1");
    let guesses: Vec<_> =
        (0..60).map(|number| guesser.upgrade(Some(&format!("{right}{number}"))).err()).collect();
    assert!(guesses[..20].iter().all(|status| *status == Some(401)), "{guesses:?}");
    assert!(guesses.contains(&Some(429)), "the address has a bound too: {guesses:?}");
    // Who was let in before is let in again, and nobody's guesses count on a live link.
    uplink.say(&json!({"type": "auth", "token": right}));
    assert_eq!(uplink.hear()["type"], "auth_ok");
    guesser.session(Some(&right), "gw-1");
    way.session(Some(&right), "gw-1");
    assert_eq!(guesser.ask("GET", "/healthz", None, "").expect("an answer").status, 200);
}

#[test]
fn attempts_to_enrol_have_a_bound_for_all_addresses_together() {
    let field = Field::new();
    let mut hub = Hub::with(&field, "", "[limits]\nenrolments_per_minute = 5");
    hub.manage(&["ca", "init"]);
    hub.start();
    let way = way(&field, &hub);
    let body = json!({"code": "0000-0000-0000", "csr": Signer::p256().request()}).to_string();
    let mut statuses: Vec<u16> = Vec::new();
    for number in 1..=8 {
        let answer = way.from(number).ask("POST", "/v1/enroll", None, &body);
        statuses.push(answer.expect("an answer").status);
    }
    assert_eq!(statuses, [403, 403, 403, 403, 403, 429, 429, 429]);
}

// One bound for all addresses was spent before a body was read, and renewals shared it: one request
// a second without any code kept boards from enrolling, and from renewing what was about to end.
#[test]
fn whoever_has_no_code_keeps_nobody_from_enrolling_or_renewing() {
    let field = Field::new();
    let mut hub =
        Hub::with(&field, "", "[limits]\nenrolments_per_minute = 2\nfailures_per_minute = 5");
    hub.manage(&["ca", "init"]);
    hub.start();
    let way = way(&field, &hub);
    let status = |last: u8, body: &str| {
        way.from(last).ask("POST", "/v1/enroll", None, body).expect("an answer").status
    };
    let no_code = json!({"code": "nonsense", "csr": ""}).to_string();
    let refused: Vec<u16> =
        ["{}", "", "[1]", &no_code, &no_code, "{}"].iter().map(|body| status(2, body)).collect();
    assert_eq!(refused, [400, 400, 400, 403, 403, 429]);
    let wrong = json!({"code": "0000-0000-0000", "csr": Signer::p256().request()}).to_string();
    assert_eq!([3, 4, 5].map(|last| status(last, &wrong)), [403, 403, 429]);
    hub.wait_for_log(&["WARN", "too many attempts to enrol"]);
    // That it came when too many did is not counted as its own failure.
    assert!((0..8).all(|_| status(6, &wrong) == 429));
    assert_eq!(status(6, "{}"), 400);

    let key = Signer::p256();
    let file = field.write("gw-1.pub", key.public_pem());
    hub.manage(&["gateway", "add", "gw-1", "--public-key", file.to_str().expect("UTF-8")]);
    let body = json!({"csr": key.request()}).to_string();
    let token = key.token(&claims("gw-1", 600));
    let renewed = way.ask("POST", "/v1/renew", Some(&token), &body).expect("an answer");
    assert_eq!(renewed.status, 200, "{renewed:?}");
}

#[test]
fn a_gateway_that_runs_wild_is_told_to_wait() {
    let field = Field::new();
    let mut hub =
        Hub::with(&field, "", "[limits]\nmessages_per_second = 10\nsessions_per_minute = 3");
    hub.start();
    let token = token(&field, &hub);
    let way = way(&field, &hub);
    let (mut uplink, _) = way.session(Some(&token), "gw-1");
    // The hello was the first.
    for _ in 0..20 {
        uplink.say(&json!({"type": "news"}));
    }
    let error = uplink.hear();
    assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("rate")));
    assert!((1..=1000).contains(&error["retry_after_ms"].as_u64().expect("a time")), "{error}");
    assert_eq!(uplink.close_code(), TOO_MANY);

    way.session(Some(&token), "gw-1");
    way.session(Some(&token), "gw-1");
    assert_eq!(way.upgrade(Some(&token)).err(), Some(429), "too many sessions");
    hub.wait_for_log(&["WARN", "gw-1", "begins too many sessions"]);
}

#[test]
fn an_address_that_connects_too_often_is_cut_and_a_trusted_proxy_speaks_for_others() {
    let field = Field::new();
    let limits = "[limits]\nconnections_per_second = 1\nfailures_per_minute = 1";
    let mut hub = Hub::with(&field, "trusted_proxies = [\"127.0.0.1\"]", limits);
    hub.start();
    let way = way(&field, &hub);
    let often = way.from(9);
    let outcomes: Vec<bool> =
        (0..15).map(|_| often.ask("GET", "/healthz", None, "").is_ok()).collect();
    assert!(outcomes[..10].iter().all(|ok| *ok) && outcomes[10..].contains(&false), "{outcomes:?}");

    let key = Signer::p256();
    let token = key.token(&claims("gw-1", 600));
    let status = |client: &str| {
        let head = format!("{token}\r\nx-forwarded-for: 203.0.113.200, {client}");
        way.ask("GET", "/v1/gateways", Some(&head), "").expect("an answer").status
    };
    assert_eq!(status("192.0.2.1"), 401);
    assert_eq!(status("192.0.2.1"), 429);
    assert_eq!(status("192.0.2.2"), 401, "another client of the same proxy");
    hub.wait_for_log(&["WARN", "an application was refused", "192.0.2.2"]);
}
