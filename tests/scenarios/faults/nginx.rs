//! nginx in front of the hub, with the product's own configs/nginx.conf: reloaded, restarted, and
//! with the hub behind it gone for a while.

use std::{net::TcpStream, path::Path, process::Command, time::Instant};

use super::outpost::{BACK, assert_exact, say};
use crate::field::{
    Field, SOON,
    device::{Habits, Publisher},
    eventually,
    gateway::{Gateway, Setup},
    hub::{CERT, Hub, KEY, authority},
    namespace::{ip, is_inside, mount_over, root_path},
    process::Process,
};

/// What the product's configuration says.
const PORT: u16 = 443;
const HUB_PORT: u16 = 8080;

struct Nginx {
    process: Process,
}

impl Nginx {
    /// nginx with /etc/nginx, and the directories that it writes into, of the test's own.
    fn start(field: &Field) -> Self {
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/nginx.conf");
        let text = std::fs::read_to_string(config).expect("configs/nginx.conf");
        // In a user namespace there is nobody else to become.
        let own = text.replace("user www-data;", "user root;");
        assert_ne!(own, text, "configs/nginx.conf names a user");
        for (name, place) in [
            ("nginx", "/etc/nginx"),
            ("nginx-log", "/var/log/nginx"),
            ("nginx-lib", "/var/lib/nginx"),
            ("nginx-run", "/run"),
        ] {
            mount_over(field, name, place);
        }
        field.write("nginx/nginx.conf", own);
        std::fs::create_dir(field.path("nginx/tls")).expect("a directory in an own directory");
        for file in [CERT, KEY] {
            let to = field.path("nginx/tls").join(file);
            std::fs::copy(field.path(file), to).expect("the hub's certificate");
        }
        Self { process: Self::listening(field) }
    }

    fn listening(field: &Field) -> Process {
        let mut command = Command::new("nginx");
        command.args(["-g", "daemon off;"]).env("PATH", root_path());
        let process = Process::start("nginx", command, &field.path("nginx.log"));
        eventually("nginx listens (installed by tests/run)", SOON, || {
            TcpStream::connect(("127.0.0.1", PORT)).ok()
        });
        process
    }
}

#[test]
fn what_is_behind_nginx_outlives_its_reload_and_all_restarts() {
    const CLAIM: &str = "faults::nginx::what_is_behind_nginx_outlives_its_reload_and_all_restarts";
    if !is_inside(CLAIM) {
        return;
    }
    ip("link set lo up");
    let field = Field::new();
    authority(&field);
    let mut hub = Hub::without_tls(&field, HUB_PORT);
    hub.start();
    let mut nginx = Nginx::start(&field);
    let mut setup = Setup::new(&field, &hub);
    setup.uplink = setup.uplink.replace(&format!(":{HUB_PORT}/"), &format!(":{PORT}/"));
    let gateway = Gateway::started(&field, &setup);
    let session = |gateway: &Gateway| gateway.wait_connected()["uplink"]["session"].clone();
    let habits = Habits { per_second: 200, count: u64::MAX, ..Habits::default() };
    let publisher = Publisher::with(gateway.port, "plc-01", habits);
    assert_flows(&hub, "through nginx");
    let before = session(&gateway);

    let settled = workers(nginx.process.id());
    nginx.process.signal("HUP");
    eventually("nginx has new workers beside the old ones", SOON, || {
        (workers(nginx.process.id()) > settled).then_some(())
    });
    assert_flows(&hub, "through the old worker");
    assert_eq!(session(&gateway), before, "a reload cut the link");

    let began = Instant::now();
    nginx.process.terminate(SOON);
    nginx.process = Nginx::listening(&field);
    eventually("another session", SOON, || (session(&gateway) != before).then_some(()));
    let restart = began.elapsed();
    assert_flows(&hub, "through the new nginx");

    hub.kill();
    gateway.wait_until("nginx answers for the hub", |status| {
        let error = status["uplink"]["last_error"].as_str().unwrap_or_default();
        error.contains("HTTP status 502")
    });
    hub.start();
    let began = Instant::now();
    gateway.wait_connected();
    let back = began.elapsed();
    assert!(back < BACK + BACK, "{back:?} after the hub, with a longest wait of 2 s");
    assert_flows(&hub, "to the new hub");

    publisher.finish();
    eventually("all is acknowledged to the device", SOON, || publisher.done().then_some(()));
    assert_exact(&hub, &publisher);
    let count = publisher.account().planned;
    say(
        CLAIM,
        &format!(
            "reload: no cut; restart of nginx: back {:.1} s after; hub away: 502, back {:.1} s \
             after it; {count} records, 0 lost, doubled or out of order",
            restart.as_secs_f64(),
            back.as_secs_f64()
        ),
    );
}

/// Records go on to arrive at the hub.
fn assert_flows(hub: &Hub, way: &str) {
    let received = || hub.api.get("/v1/gateways/gw-1").ok()?.body["counters"]["received"].as_u64();
    let before = eventually("the hub counts", SOON, received);
    eventually(&format!("records arrive {way}"), SOON, || {
        received().filter(|now| *now >= before + 100)
    });
}

/// How many workers a master process has.
fn workers(master: u32) -> usize {
    let path = format!("/proc/{master}/task/{master}/children");
    let children = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    children.split_whitespace().count()
}
