//! The hub's limits: who misbehaves is held off, at little cost, and others get in meanwhile.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::field::{
    Field, SOON, eventually,
    hub::Hub,
    signer::{Signer, claims},
    uplink::Way,
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

#[test]
fn an_address_that_guesses_is_held_off_before_any_look_up_and_others_are_not() {
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
    // Whatever it shows now, and wherever.
    assert_eq!(guesser.upgrade(Some(&right)).err(), Some(429));
    for (method, path) in [
        ("GET", "/v1/gateways"),
        ("POST", "/v1/enroll"),
        ("POST", "/v1/renew"),
        ("GET", "/v1/live"),
    ] {
        let body = json!({"code": "0000-0000-0000", "csr": ""}).to_string();
        let answer = guesser.ask(method, path, Some(&guess), &body).expect("an answer");
        let expected = if path == "/v1/live" { 426 } else { 429 };
        assert_eq!(answer.status, expected, "{path}: {answer:?}");
        if expected == 429 {
            let after = answer.head.lines().find_map(|line| line.strip_prefix("retry-after: "));
            let seconds: u64 = after.and_then(|after| after.parse().ok()).expect("Retry-After");
            assert!((1..=21).contains(&seconds), "{seconds}");
        }
    }
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
