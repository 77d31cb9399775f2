//! A board behind a carrier, a device that publishes, and the account of what a fault did.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::field::{
    Field, SOON,
    carrier::{Carrier, Line},
    device::{Habits, Publisher},
    eventually,
    gateway::{Gateway, Setup},
    hub::{Hub, NAME},
    ledger::Ledger,
};

pub(super) const GATEWAY: &str = "gw-1";
const DEVICE: &str = "plc-01";

/// How often a status is asked for: each asking is a process.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What finding may take beyond the deadline itself: the gateway looks once a second whether bytes
/// left, and the machine has other tests to run.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// Back within so long of the healing, or of the end of the announced wait.
pub(super) const BACK: Duration = Duration::from_secs(2);

/// How long an attempt may take that began before the healing (`uplink.connect_timeout`, and once
/// more for the step after the one that was held up).
const ATTEMPT: Duration = Duration::from_secs(20);

/// How long the rest may take to arrive once the link is back.
const ARRIVAL: Duration = Duration::from_secs(120);

/// Deadlines that make a case short. They are what is found, not how.
pub(super) const BRISK: &str =
    "ping_interval = \"5s\"\nping_timeout = \"3s\"\nack_timeout = \"5s\"";

/// `ping_interval`; it and `ping_timeout`; and `ack_timeout`, of [`BRISK`].
pub(super) const BRISK_INTERVAL: Duration = Duration::from_secs(5);
pub(super) const BRISK_SILENT: Duration = Duration::from_secs(8);
pub(super) const BRISK_UNACKED: Duration = Duration::from_secs(5);

/// The same as a gateway that is told nothing has them.
pub(super) const DEFAULT_SILENT: Duration = Duration::from_secs(35);
pub(super) const DEFAULT_UNACKED: Duration = Duration::from_secs(10);

/// Fields end in this order: the device first, the networks last.
pub(super) struct Outpost {
    claim: &'static str,
    pub(super) publisher: Option<Publisher>,
    pub(super) gateway: Gateway,
    pub(super) hub: Hub,
    pub(super) carrier: Carrier,
    measured: Vec<String>,
    setup: Setup,
    pub(super) field: Field,
}

/// A link at one moment.
pub(super) struct Link {
    session: Value,
    attempts: u64,
}

impl Outpost {
    /// A gateway with more members of `[uplink]`, connected to its hub.
    pub(super) fn connected(claim: &'static str, uplink: &str) -> Self {
        let mut outpost = Self::new(claim, uplink, None);
        outpost.hub.start();
        outpost.gateway.start();
        outpost.gateway.wait_connected();
        outpost
    }

    /// Neither hub nor gateway is started yet.
    pub(super) fn new(claim: &'static str, uplink: &str, line: Option<Line>) -> Self {
        let field = Field::new();
        let carrier = match line {
            Some(line) => Carrier::over(&field, line),
            None => Carrier::new(&field),
        };
        let hub = Hub::within(&field, &carrier.internet, Carrier::beside());
        let mut setup = Setup::new(&field, &hub);
        setup.uplink = setup.uplink.replace("//localhost:", &format!("//{NAME}:"));
        setup.uplink += &format!("\n{uplink}");
        setup.backoff = ("500ms", "60s");
        let gateway = Gateway::new(&field, &setup);
        let measured = Vec::new();
        Self { claim, publisher: None, gateway, hub, carrier, measured, setup, field }
    }

    /// More members of `[uplink]`, before the gateway is started.
    pub(super) fn add_to_uplink(&mut self, members: &str) {
        self.setup.uplink += &format!("\n{members}");
        self.gateway = Gateway::new(&self.field, &self.setup);
    }

    /// The device begins to publish, without end.
    pub(super) fn publish(&mut self, per_second: u32) {
        let habits = Habits { per_second, count: u64::MAX, ..Habits::default() };
        let publisher = Publisher::with(self.gateway.port, DEVICE, habits);
        eventually("the load is on", SOON, || (publisher.acked() >= 20).then_some(()));
        self.publisher = Some(publisher);
    }

    /// What is connected now.
    pub(super) fn link(&self) -> Link {
        let status = self.gateway.wait_connected();
        let attempts = status["uplink"]["attempts"].as_u64().expect("status counts attempts");
        Link { session: status["uplink"]["session"].clone(), attempts }
    }

    /// Waits until the loss of `link` is found, which is to be `within` so long since `began`.
    pub(super) fn assert_found(&mut self, link: &Link, began: Instant, within: Duration) {
        let (took, status) = self.until_found(link, began, within + GRACE);
        let why = status["uplink"]["last_error"].as_str().unwrap_or("unknown");
        self.measured.push(format!("found after {:.1} s ({why})", took.as_secs_f64()));
    }

    fn until_found(&self, link: &Link, began: Instant, within: Duration) -> (Duration, Value) {
        let deadline = began + within;
        loop {
            let status = self.status();
            if status["uplink"]["session"] != link.session {
                return (began.elapsed(), status);
            }
            let claim = self.claim;
            assert!(Instant::now() < deadline, "{claim}: not found within {within:?}: {status}");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until the link is back, which is to be within [`BACK`] of the healing just now, or of
    /// the end of the wait that was announced when it was next looked.
    pub(super) fn assert_back(&mut self) -> Link {
        let healed = Instant::now();
        let before = self.status();
        let is_waiting = |status: &Value| status["uplink"]["state"] == "waiting";
        let (mut announced, mut deadline) = (None, healed + BACK);
        if !is_waiting(&before) && before["uplink"]["state"] != "connected" {
            deadline = healed + ATTEMPT + BACK;
        }
        loop {
            let status = self.status();
            if status["uplink"]["state"] == "connected" {
                break;
            }
            // The first wait that is seen counts: an attempt that was under way may have failed.
            if announced.is_none() && is_waiting(&status) {
                let whole_seconds = status["uplink"]["retry_in_s"].as_u64().expect("it waits");
                announced = Some(whole_seconds);
                deadline = Instant::now() + Duration::from_secs(whole_seconds + 1) + BACK;
            }
            let claim = self.claim;
            assert!(Instant::now() < deadline, "{claim}: not back in time: {status}");
            std::thread::sleep(LOOK_EVERY);
        }
        let took = healed.elapsed().as_secs_f64();
        let wait = announced
            .map_or_else(String::new, |s| format!(" (announced: {s} s and less than one more)"));
        self.measured.push(format!("back {took:.1} s after healing{wait}"));
        self.link()
    }

    /// Waits until the link is back, which is to be within so long of the healing just now,
    /// whatever was announced before.
    pub(super) fn assert_back_within(&mut self, within: Duration) {
        let healed = Instant::now();
        let announced = self.status()["uplink"]["retry_in_s"].clone();
        eventually("the link is back at once", within, || {
            (self.status()["uplink"]["state"] == "connected").then_some(())
        });
        let took = healed.elapsed().as_secs_f64();
        self.measured
            .push(format!("back {took:.1} s after healing (announced before: {announced} s)"));
    }

    /// The link is what it was.
    pub(super) fn assert_held(&self, link: &Link) {
        let status = self.status();
        let claim = self.claim;
        assert_eq!(status["uplink"]["state"], "connected", "{claim}: {status}");
        assert_eq!(status["uplink"]["session"], link.session, "{claim}: {status}");
        assert_eq!(status["uplink"]["attempts"], link.attempts, "{claim}: {status}");
    }

    /// Lets so long a time pass since `began`; what is looked at meanwhile is `link`, if any.
    pub(super) fn wait_out(&self, began: Instant, time: Duration, held: Option<&Link>) {
        while began.elapsed() < time {
            if let Some(link) = held {
                self.assert_held(link);
            }
            std::thread::sleep(LOOK_EVERY.min(time.saturating_sub(began.elapsed())));
        }
    }

    /// One more thing to say in the line of figures.
    pub(super) fn note(&mut self, what: String) {
        self.measured.push(what);
    }

    pub(super) fn status(&self) -> Value {
        self.gateway.status().expect("the gateway answers `fieldgate status`")
    }

    /// The device has published all; all of it is at the hub once, in order, and the figures are
    /// said.
    pub(super) fn assert_nothing_lost_nor_doubled(mut self) {
        let publisher = self.publisher.take().expect("the device published");
        publisher.finish();
        eventually("all is acknowledged to the device", SOON, || publisher.done().then_some(()));
        let count = publisher.account().planned;
        assert_exact(&self.hub, &publisher);
        let status = self.status();
        let (sessions, sent) = (&status["uplink"]["attempts"], &status["counters"]["sent"]);
        self.measured.push(format!(
            "{count} records, {sent} sent, {sessions} attempts; 0 lost, doubled or out of order"
        ));
        say(self.claim, &self.measured.join("; "));
    }
}

/// All that the device saw acknowledged arrives at the hub, once and in order.
pub(super) fn assert_exact(hub: &Hub, publisher: &Publisher) {
    let device = publisher.device.as_str();
    let (mut ledger, mut last) = (Ledger::default(), 0);
    let account = publisher.account();
    eventually("all has arrived at the hub", ARRIVAL, || {
        let page = hub.records(GATEWAY, last);
        last = page.last().map_or(last, |row| row.id);
        page.iter().for_each(|row| ledger.add(row));
        (page.is_empty() && ledger.missing(device, &account).is_empty()).then_some(())
    });
    assert_eq!(ledger.distinct(device) as u64, account.planned, "what was never published");
    assert_eq!(ledger.duplicates(device).0, [0; 0], "doubled");
    assert_eq!(ledger.out_of_order(device), [0; 0], "out of order");
    assert!(ledger.repeated.is_empty(), "{:?}", ledger.repeated);
}

/// One line of figures: to stdout, and into the file that `tests/run faults` shows.
pub(super) fn say(claim: &str, figures: &str) {
    let line = format!("{claim}: {figures}\n");
    print!("{line}");
    if let Some(path) = std::env::var_os("FIELD_FIGURES") {
        let file = std::fs::File::options().create(true).append(true).open(path);
        let mut file = file.expect("a file for the figures");
        file.write_all(line.as_bytes()).expect("a file for the figures");
    }
}
