//! A thousand gateways and one hub that goes away: they come back, and not all at once. The cores,
//! links and handshakes are real; what devices and disks do is left out.

use std::{
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use fieldgate::{
    config::HubUrl,
    gateway::{
        CommandRules, Ended, Gateway, Held, Now, Output, Settings, Transmit, UplinkSettings,
    },
    identity::Token,
    link::{self, Down, Event, Link, Request, Target},
    protocol::{Epoch, Mode, StreamName},
    record::Timestamp,
    topic::Template,
};
use tokio::{runtime::Runtime, time::sleep_until};

use super::outpost::say;
use crate::field::{Field, SOON, certificate::trusting, eventually, hub::Hub};

const CLAIM: &str = "faults::storm";
const FLEET: usize = 1000;
const BUCKET: Duration = Duration::from_millis(100);

/// `uplink.backoff_min` and `backoff_max` by default.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// What a hub that is stopped in order says (PROTOCOL.md, section 12).
const DRAIN_SPREAD: Duration = Duration::from_secs(5);

/// In the field they have as many addresses as they are.
const EACH_ITS_ADDRESS: &str = "[limits]\nconnections_per_second = 10000";

/// A thousand TLS handshakes take a while on a machine that does other things too.
const ALL_BACK: Duration = Duration::from_secs(90);

#[test]
fn a_thousand_gateways_come_back_to_a_killed_hub_without_a_spike() {
    allow_open_files(4 * FLEET);
    let field = Field::new();
    let mut hub = Hub::with(&field, "", EACH_ITS_ADDRESS);
    hub.start();
    let fleet = Fleet::connected(&field, &hub);
    // The wait before attempt i is anything up to twice that before attempt i - 1: whatever came
    // before, a bucket expects no more of these attempts than its share of that time. The sum of
    // all shares is twice the first.
    let expected = 2.0 * share(BACKOFF.0);
    let began = Instant::now();
    let back = fleet.comes_back(began, |tally| {
        hub.kill();
        eventually("most gateways have tried in vain twice", ALL_BACK, || {
            (tally.dials_since(began).len() > 5 * FLEET / 2).then_some(())
        });
        hub.start();
    });
    back.assert_no_spike("kill", expected);
}

#[test]
fn a_thousand_gateways_come_back_to_a_drained_hub_without_a_spike() {
    allow_open_files(4 * FLEET);
    let field = Field::new();
    let mut hub = Hub::with(&field, "", EACH_ITS_ADDRESS);
    hub.start();
    let fleet = Fleet::connected(&field, &hub);
    let began = Instant::now();
    let back = fleet.comes_back(began, |_| {
        let mut process = hub.process.take().expect("the hub runs");
        process.terminate(SOON);
        hub.start();
    });
    // First attempts spread as the hub asked. Those that come too early for it go on by their
    // back-off, each wait of which only spreads them further: no bucket expects more of the second
    // attempts than of the first, nor of the third; and then the hub is there.
    back.assert_no_spike("drain", 3.0 * share(DRAIN_SPREAD));
}

/// How many attempts of the fleet a bucket expects that are spread evenly over `time`.
fn share(time: Duration) -> f64 {
    FLEET as f64 * BUCKET.as_secs_f64() / time.as_secs_f64()
}

struct Fleet {
    tally: Arc<Tally>,
    /// Ends the gateways when dropped.
    _runtime: Runtime,
}

#[derive(Default)]
struct Tally {
    /// When attempts were due: a busy machine begins some later, in bunches of its own.
    dials: Mutex<Vec<Instant>>,
    connected: AtomicUsize,
}

impl Tally {
    fn dials_since(&self, began: Instant) -> Vec<Duration> {
        let dials = self.dials.lock().expect("no holder panics");
        dials.iter().filter_map(|at| at.checked_duration_since(began)).collect()
    }
}

/// What a return took.
struct Return {
    hub_away: Duration,
    all_back: Duration,
    /// Attempts of each bucket since the hub went.
    buckets: Vec<usize>,
}

impl Fleet {
    fn connected(field: &Field, hub: &Hub) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let tally = Arc::new(Tally::default());
        let tls = trusting(&field.path("ca.pem"));
        let ids: Vec<String> = (0..FLEET).map(|n| format!("gw-{n}")).collect();
        let tokens: Vec<Token> = std::thread::scope(|scope| {
            let add = |ids: &[String]| -> Vec<Token> {
                let files = ids.iter().map(|id| hub.add_gateway(field, id));
                files.map(|file| Token::from_file(&file).expect("a fresh token")).collect()
            };
            let parts: Vec<_> =
                ids.chunks(FLEET / 4).map(|part| scope.spawn(move || add(part))).collect();
            parts.into_iter().flat_map(|part| part.join().expect("tokens")).collect()
        });
        for (n, (id, token)) in ids.into_iter().zip(tokens).enumerate() {
            let target = target(hub.port, &tls, token);
            let gateway = Gateway::new(now(), settings(id, n as u64), Ok(Held::default()));
            runtime.spawn(run(gateway, target, tally.clone()));
        }
        let fleet = Self { tally, _runtime: runtime };
        eventually("the whole fleet is connected", ALL_BACK, || fleet.is_whole().then_some(()));
        fleet
    }

    fn is_whole(&self) -> bool {
        self.tally.connected.load(Relaxed) == FLEET
    }

    /// The hub went at `began`, and `restart` brings it back.
    fn comes_back(self, began: Instant, restart: impl FnOnce(&Tally)) -> Return {
        restart(&self.tally);
        let hub_away = began.elapsed();
        eventually("the whole fleet is back", ALL_BACK, || self.is_whole().then_some(()));
        let all_back = began.elapsed();
        let mut buckets = Vec::new();
        for since in self.tally.dials_since(began) {
            let bucket = (since.as_micros() / BUCKET.as_micros()) as usize;
            buckets.resize(buckets.len().max(bucket + 1), 0);
            buckets[bucket] += 1;
        }
        Return { hub_away, all_back, buckets }
    }
}

impl Return {
    /// No bucket has more attempts than it expects at most, and five deviations.
    fn assert_no_spike(&self, how: &str, expected: f64) {
        let peak = *self.buckets.iter().max().expect("there were attempts");
        let per_second = (self.buckets.chunks(10)).map(|second| second.iter().sum::<usize>());
        let peak_second = per_second.max().unwrap_or(0);
        let bound = expected + 5.0 * expected.sqrt();
        say(
            CLAIM,
            &format!(
                "{how}: hub away for {:.1} s; {FLEET} gateways, {} attempts, at most {peak} in \
                 {BUCKET:?} (bound {bound:.0}), {peak_second} in a second; all back after {:.1} s",
                self.hub_away.as_secs_f64(),
                self.buckets.iter().sum::<usize>(),
                self.all_back.as_secs_f64()
            ),
        );
        assert!(peak as f64 <= bound, "{:?}", self.buckets);
    }
}

/// Drives one core, as the program does.
async fn run(mut gateway: Gateway, target: Target, tally: Arc<Tally>) {
    let mut link: Option<Link> = None;
    let (mut was_connected, mut due) = (false, Instant::now());
    gateway.handle_timeout(now());
    loop {
        while let Some(output) = gateway.poll_output() {
            match output {
                Output::Dial { .. } => {
                    tally.dials.lock().expect("no holder panics").push(due);
                    link = Some(link::open(target.clone()));
                }
                Output::Hangup => link = None,
                // Without devices there is nothing for the disk, and nobody to answer.
                _ => {}
            }
        }
        if let Some(link) = &link {
            while let Ok(room) = link.requests.try_reserve() {
                let Some(transmit) = gateway.poll_transmit(now()) else { break };
                room.send(match transmit {
                    Transmit::Text(text) => Request::Text(text),
                    Transmit::Ping(payload) => Request::Ping(payload),
                    Transmit::Close { code, reason } => Request::Close { code, reason },
                });
            }
        }
        let is_connected = gateway.snapshot(now()).uplink.state == "connected";
        match (was_connected, is_connected) {
            (false, true) => drop(tally.connected.fetch_add(1, Relaxed)),
            (true, false) => drop(tally.connected.fetch_sub(1, Relaxed)),
            _ => {}
        }
        was_connected = is_connected;
        let deadline = gateway.poll_timeout().expect("a gateway always has something to come");
        tokio::select! {
            event = next_of(&mut link) => {
                if handle(&mut gateway, event) {
                    link = None;
                }
            }
            () = sleep_until(deadline.into()) => {
                due = deadline;
                gateway.handle_timeout(now());
            }
        }
    }
}

async fn next_of(link: &mut Option<Link>) -> Option<Event> {
    match link {
        Some(link) => link.events.recv().await,
        None => std::future::pending().await,
    }
}

/// Whether the link has ended.
fn handle(gateway: &mut Gateway, event: Option<Event>) -> bool {
    let now = now();
    let down = match event {
        Some(Event::Down(down)) => down,
        Some(event) => {
            match event {
                Event::Up { subprotocol, .. } => gateway.handle_up(now, subprotocol.as_deref()),
                Event::Text(text) => gateway.handle_text(now, &text),
                Event::Pong(payload) => gateway.handle_pong(now, &payload),
                _ => gateway.handle_frame(now),
            }
            return false;
        }
        None => Down::Cut("the link's task ended".into()),
    };
    let ended = match down {
        Down::Dial { step, error } => Ended::Dial(format!("{step}: {error}")),
        Down::Refused { status, retry_after, .. } => Ended::Http { status, retry_after },
        Down::Closed { code, reason } => Ended::Closed { code, reason },
        Down::Cut(error) => Ended::Cut(error),
    };
    gateway.handle_ended(now, &ended);
    true
}

fn now() -> Now {
    let unix_ms = std::time::UNIX_EPOCH.elapsed().expect("it is after 1970").as_millis() as u64;
    let wall = Timestamp { unix_ms, synced: true, since_boot: None };
    Now { instant: Instant::now(), wall, boot: None }
}

fn target(port: u16, tls: &Arc<rustls::ClientConfig>, token: Token) -> Target {
    let path = "/v1/gateway".to_owned();
    Target {
        url: HubUrl { tls: true, host: "127.0.0.1".into(), port, path },
        subprotocols: vec!["fieldgate.v1.json".into()],
        bearer: Some(token),
        tls: Some(tls.clone()),
        ca_file: None,
        proxy: None,
        bind_interface: None,
        connect_timeout: Duration::from_secs(10),
        max_message_bytes: 256 * 1024,
    }
}

fn settings(id: String, seed: u64) -> Settings {
    let template = |text| Template::parse(text).expect("a template");
    let stream = |name: &str| StreamName::try_from(name.to_owned()).expect("a stream");
    Settings {
        id,
        agent: "fieldgate".into(),
        boot_id: String::new(),
        streams: vec![stream("events"), stream("telemetry")],
        telemetry: Vec::new(),
        commands: CommandRules {
            topic: template("devices/{device}/commands/{command}"),
            reply: template("devices/{device}/replies/{id}"),
            allow: Vec::new(),
            inflight: 32,
        },
        uplink: Some(UplinkSettings {
            mode: Mode::Managed,
            proven_managed: vec![true],
            ping_interval: Duration::from_secs(25),
            ping_timeout: Duration::from_secs(10),
            ack_timeout: Duration::from_secs(10),
            dial_timeout: Duration::from_secs(60),
            backoff: BACKOFF,
            return_after: Duration::from_secs(600),
            plain_commands: false,
        }),
        disk_first: false,
        live_first: None,
        max_age: None,
        window: 20,
        write_after: Duration::from_secs(1),
        max_record_bytes: 128 * 1024,
        memory_bytes: 1 << 20,
        epoch: Epoch(1 + seed),
        seed,
    }
}

/// A connection is an open file, of this process and of the hub, which inherits the limit.
fn allow_open_files(count: usize) {
    let own = std::process::id().to_string();
    let limit = format!("--nofile={count}:");
    let status = Command::new("prlimit").args(["--pid", &own, &limit]).status();
    assert!(status.expect("prlimit of util-linux runs").success(), "{count} open files");
}
