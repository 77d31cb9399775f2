//! A board, a carrier's network and the internet, each a network namespace: what the carrier does
//! to packets in passing, neither end is told.
//!
//! The test's own namespace is the board. A wire beside the carrier, that no fault touches, is for
//! asking the hub's API.

use std::{net::IpAddr, path::Path, process::Command};

use super::{
    Field, SOON,
    hub::NAME,
    namespace::{Namespace, etc, ip},
    process::Process,
};

/// The board's address, and the carrier's on that wire: the board's default route.
pub const BOARD: &str = "192.0.2.2";
pub const CARRIER: &str = "192.0.2.1";
/// The hub's.
pub const HUB: &str = "198.51.100.1";

/// The hub's address on the wire that no fault touches.
const HUB_BESIDE: &str = "10.9.0.2";

pub struct Carrier {
    network: Namespace,
    pub internet: Namespace,
    /// What carries packets between the two, where that is no mere wire.
    line: Option<Process>,
}

/// Which packets: the board's, or those for it.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    Up,
    Down,
}

/// A line that is slow, long, and queues as modems do.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// Each way.
    pub delay_ms: u32,
    pub bytes_per_second: u32,
    pub queue_bytes: u32,
}

impl Carrier {
    pub fn new(field: &Field) -> Self {
        Self::with(field, None)
    }

    /// One whose line to the internet is as `line` says.
    pub fn over(field: &Field, line: Line) -> Self {
        Self::with(field, Some(line))
    }

    fn with(field: &Field, line: Option<Line>) -> Self {
        let network = Namespace::new(field, "carrier");
        let internet = Namespace::new(field, "internet");
        let (net, far) = (network.id(), internet.id());
        for words in [
            "link set lo up".to_owned(),
            format!("link add wan0 type veth peer name wan1 netns {net}"),
            format!("link add lan0 type veth peer name lan1 netns {far}"),
            // Addresses that come by themselves would be news to the gateway.
            "link set wan0 addrgenmode none up".into(),
            "link set lan0 addrgenmode none up".into(),
            format!("addr add {BOARD}/24 dev wan0"),
            "addr add 10.9.0.1/30 dev lan0".into(),
        ] {
            ip(&words);
        }
        let mut carrier = Self { network, internet, line: None };
        carrier.line = line.map(|line| carrier.lay(field, line));
        if carrier.line.is_none() {
            carrier.network.run(&format!(
                "ip link add core0 type veth peer name core1 netns {}",
                carrier.internet.id()
            ));
        }
        carrier.network.run(&format!(
            "ip link set wan1 up
             ip link set core0 up
             ip addr add {CARRIER}/24 dev wan1
             ip addr add 203.0.113.1/24 dev core0
             echo 1 >/proc/sys/net/ipv4/ip_forward
             ip route add {HUB} dev core0",
        ));
        carrier.internet.run(&format!(
            "ip link set core1 up
             ip link set lan1 up
             ip addr add 203.0.113.2/24 dev core1
             ip addr add {HUB}/32 dev lo
             ip addr add {HUB_BESIDE}/30 dev lan1
             ip route add default via 203.0.113.1",
        ));
        add_default_route();
        etc(field, "hosts", &format!("127.0.0.1 localhost\n{HUB} {NAME}\n"));
        carrier
    }

    /// Where the hub's API is asked.
    pub fn beside() -> IpAddr {
        HUB_BESIDE.parse().expect("an address")
    }

    /// From now on this befalls the packets on a way: a statement of nft(8).
    pub fn afflict(&self, way: Way, statement: &str) {
        let interface = match way {
            Way::Up => "iifname",
            Way::Down => "oifname",
        };
        self.nft(&format!(
            "add table inet fault
             add chain inet fault passing {{ type filter hook forward priority 0; }}
             add rule inet fault passing {interface} wan1 {statement}"
        ));
    }

    /// Nothing passes any more, either way.
    pub fn swallow(&self) {
        self.afflict(Way::Up, "drop");
        self.afflict(Way::Down, "drop");
    }

    /// All passes again.
    pub fn heal(&self) {
        self.nft("delete table inet fault");
    }

    /// The board is behind an address translation that forgets a flow after so many seconds of
    /// silence, and then drops what belongs to none, as those of mobile networks do.
    pub fn translate(&self, forget_after_s: u32) {
        self.nft(
            "add table ip nat
             add chain ip nat post { type nat hook postrouting priority 100; }
             add rule ip nat post oifname core0 masquerade
             add table inet strict
             add chain inet strict passing { type filter hook forward priority 0; }
             add rule inet strict passing ct state invalid drop",
        );
        self.network.run(&format!(
            "cd /proc/sys/net/netfilter
             echo {forget_after_s} >nf_conntrack_tcp_timeout_established
             echo {forget_after_s} >nf_conntrack_tcp_timeout_unacknowledged
             echo 0 >nf_conntrack_tcp_loose"
        ));
    }

    fn nft(&self, rules: &str) {
        self.network.run(&format!("nft '{rules}'"));
    }

    /// Lays the line between carrier and internet.
    fn lay(&self, field: &Field, line: Line) -> Process {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/field/line.py");
        let mut command: Command = self.network.command("python3");
        command.arg(script).args(["core0", "core1"]);
        for number in [self.internet.id(), line.delay_ms, line.bytes_per_second, line.queue_bytes] {
            command.arg(number.to_string());
        }
        let mut process = Process::start("the line", command, &field.path("line.log"));
        process.wait_for_line(SOON, |said| said == "ready");
        process
    }
}

/// The board's way to the hub.
pub fn add_default_route() {
    ip(&format!("route add default via {CARRIER}"));
}
