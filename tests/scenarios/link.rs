//! Promise 5, on the way to the hub: proxies, addresses and names that lead nowhere, hubs that come
//! and go, a network that changes.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::field::{
    Field, SOON,
    device::Publisher,
    eventually, free_port,
    gateway::{Gateway, Setup},
    hub::Hub,
    namespace::{OWN_V4, VOID_V4, VOID_V6, etc, ip, is_inside, make_wire},
    proxy::Proxy,
    relay::Relay,
};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A gateway that is sent to `urls` with more members of `[uplink]`, where `hub` is.
fn setup(field: &Field, hub: &Hub, urls: &str, more: &str) -> Setup {
    let mut setup = Setup::new(field, hub);
    let rest = setup.uplink.split_once('\n').expect("a url and more").1;
    setup.uplink = format!("url = {urls}\n{rest}\n{more}");
    setup
}

fn url(port: u16) -> String {
    format!("\"wss://localhost:{port}/v1/gateway\"")
}

/// A password as good as any, made anew in each run.
fn password() -> String {
    let mut bytes = [0; 12];
    let random = ring::rand::SystemRandom::new();
    ring::rand::SecureRandom::fill(&random, &mut bytes).expect("the kernel has random numbers");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn last_error(status: &Value) -> &str {
    status["uplink"]["last_error"].as_str().unwrap_or_default()
}

/// All of the device's publishes are at the hub, each once.
fn assert_all_arrive_once(hub: &Hub, publisher: &Publisher, count: u64) {
    eventually("all is acknowledged", SOON, || publisher.done().then_some(()));
    hub.wait_for("gw-1", "the last one arrives", |row| row.n == Some(count));
    let rows = hub.all_records("gw-1");
    let numbers: Vec<u64> = rows.iter().filter_map(|row| row.n).collect();
    assert_eq!(numbers, (1..=count).collect::<Vec<u64>>());
}

#[test]
fn goes_through_an_http_proxy_that_asks_for_a_password_and_is_killed() {
    let field = Field::new();
    let (right, wrong) = (password(), password());
    let hub = Hub::started(&field);
    let mut proxy = Proxy::tinyproxy(&field, &right);
    let members = proxy.members(&field, "http", &wrong);
    let gateway = Gateway::started(&field, &setup(&field, &hub, &url(hub.port), &members));
    let status = gateway.wait_until("the proxy refuses it", |status| {
        last_error(status).contains("proxy_password_file")
    });
    assert!(last_error(&status).starts_with("proxy: "), "{status}");

    // The next attempt reads it anew.
    proxy.members(&field, "http", &right);
    gateway.wait_connected();
    let publisher = Publisher::start(gateway.port, "plc-01", 200, 1000);
    eventually("the load is on", SOON, || (publisher.acked() >= 300).then_some(()));
    proxy.process.kill();
    gateway.wait_until("the proxy is missed", |status| last_error(status).contains("TCP: "));
    proxy.restart();
    gateway.wait_connected();
    assert_all_arrive_once(&hub, &publisher, 1000);
    let log = gateway.log();
    assert!(!log.contains(&right) && !log.contains(&wrong), "a password is in the log");
}

#[test]
fn goes_through_a_socks_proxy_that_asks_for_a_password() {
    let field = Field::new();
    let (right, wrong) = (password(), password());
    let hub = Hub::started(&field);
    let proxy = Proxy::microsocks(&field, &right);
    let members = proxy.members(&field, "socks5", &wrong);
    // By its address: this proxy tries the first address of a name alone.
    let urls = format!("\"wss://127.0.0.1:{}/v1/gateway\"", hub.port);
    let gateway = Gateway::started(&field, &setup(&field, &hub, &urls, &members));
    gateway.wait_until("the proxy refuses it", |status| {
        last_error(status).contains("refuses the credentials")
    });
    proxy.members(&field, "socks5", &right);
    gateway.wait_connected();
    let publisher = Publisher::start(gateway.port, "plc-01", 200, 200);
    assert_all_arrive_once(&hub, &publisher, 200);
}

#[test]
fn a_hub_that_has_ipv6_alone_is_reached() {
    if !is_inside("link::a_hub_that_has_ipv6_alone_is_reached") {
        return;
    }
    make_wire();
    let field = Field::new();
    let hub = Hub::started(&field);
    let port = free_port();
    let _relay = Relay::start(SocketAddr::from((Ipv6Addr::LOCALHOST, port)), hub.port);
    etc(&field, "hosts", "127.0.0.1 localhost\n::1 localhost\n");
    let gateway = Gateway::started(&field, &setup(&field, &hub, &url(port), ""));
    gateway.wait_connected();
    let publisher = Publisher::start(gateway.port, "plc-01", 200, 200);
    assert_all_arrive_once(&hub, &publisher, 200);
}

#[test]
fn a_first_address_that_swallows_packets_holds_nothing_up() {
    if !is_inside("link::a_first_address_that_swallows_packets_holds_nothing_up") {
        return;
    }
    make_wire();
    let field = Field::new();
    etc(&field, "hosts", &format!("{VOID_V6} localhost\n{VOID_V4} localhost\n127.0.0.1 localhost"));
    let hub = Hub::started(&field);
    let setup = setup(&field, &hub, &url(hub.port), "connect_timeout = \"30s\"");
    let began = Instant::now();
    let gateway = Gateway::started(&field, &setup);
    let status = gateway.wait_connected();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(status["uplink"]["attempts"], 1, "{status}");
}

#[test]
fn a_silent_name_server_is_named_and_holds_up_no_stop() {
    if !is_inside("link::a_silent_name_server_is_named_and_holds_up_no_stop") {
        return;
    }
    make_wire();
    let field = Field::new();
    etc(&field, "resolv.conf", &format!("nameserver {VOID_V4}\n"));
    etc(&field, "nsswitch.conf", "hosts: files dns\n");
    let hub = Hub::started(&field);
    let urls = "\"wss://hub.example.test/v1/gateway\"";
    let more = "connect_timeout = \"500ms\"";
    let mut gateway = Gateway::started(&field, &setup(&field, &hub, urls, more));
    gateway.wait_until("the name server is blamed, more than once", |status| {
        last_error(status).starts_with("DNS: hub.example.test")
            && last_error(status).contains("resolv.conf")
            && status["uplink"]["attempts"].as_u64() > Some(5)
    });
    let (status, after) = gateway.terminate();
    assert_eq!(status.code(), Some(0), "after {after:?}");
    assert!(after < Duration::from_secs(5), "it took {after:?} to stop");
}

#[test]
fn a_dead_first_hub_leads_to_the_second_and_back_once_it_lives() {
    let field = Field::new();
    let hub = Hub::started(&field);
    let (first, second) = (free_port(), free_port());
    let node = |port| Relay::start(SocketAddr::from((LOCALHOST, port)), hub.port);
    let urls = format!("[{}, {}]", url(first), url(second));
    let on = |port: u16| {
        move |status: &Value| {
            let url = status["uplink"]["url"].as_str().unwrap_or_default();
            status["uplink"]["state"] == "connected" && url.contains(&format!(":{port}/"))
        }
    };
    let _second = node(second);
    let setup = setup(&field, &hub, &urls, "return_after = \"1s\"");
    let gateway = Gateway::started(&field, &setup);
    gateway.wait_until("the second hub is used", on(second));
    let publisher = Publisher::start(gateway.port, "plc-01", 100, 1000);
    eventually("the load is on", SOON, || (publisher.acked() >= 100).then_some(()));

    let alive = node(first);
    gateway.wait_until("it is back on the first", on(first));
    drop(alive);
    gateway.wait_until("it is on the second again", on(second));
    assert_all_arrive_once(&hub, &publisher, 1000);
}

#[test]
fn an_address_that_goes_takes_the_link_along_at_once() {
    if !is_inside("link::an_address_that_goes_takes_the_link_along_at_once") {
        return;
    }
    make_wire();
    let field = Field::new();
    let hosts = |address: &str| etc(&field, "hosts", &format!("{address} localhost\n"));
    hosts(OWN_V4);
    let hub = Hub::started(&field);
    let port = free_port();
    let _relay = Relay::start(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), hub.port);
    // Neither a Ping nor an ack that is missed shall be what finds it.
    let more = "ping_interval = \"10m\"\nack_timeout = \"10m\"";
    let gateway = Gateway::started(&field, &setup(&field, &hub, &url(port), more));
    gateway.wait_connected();

    let moved = "192.0.2.7";
    hosts(moved);
    ip(&format!("addr add {moved}/32 dev wire0"));
    let began = Instant::now();
    ip(&format!("addr del {OWN_V4}/24 dev wire0"));
    gateway.wait_until("the address is missed", |status| {
        last_error(status).contains("no longer has the address 192.0.2.2")
            || status["uplink"]["attempts"].as_u64() > Some(1)
    });
    gateway.wait_connected();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(gateway.log().contains("no longer has the address 192.0.2.2"), "{}", gateway.log());
}
