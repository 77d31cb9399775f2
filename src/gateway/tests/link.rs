//! The uplink as PROTOCOL.md says it: modes, liveness, back-off, what a batch is, when the disk is
//! spared. One link at a time, driven by hand.

use super::*;
use crate::{protocol::HubLimits, spool::Appended};

const INTERVAL: Duration = Duration::from_secs(25);

/// A gateway without a disk or a network: what it wants is kept for the test to look at.
pub(super) struct Bench {
    pub(super) now: Now,
    pub(super) gateway: Gateway,
    pub(super) disk: Vec<DiskRequest>,
    pub(super) dials: Vec<bool>,
    /// Which hub each dial was for.
    pub(super) hubs: Vec<usize>,
    pub(super) probes: usize,
    pub(super) hangups: usize,
    /// How often a fresh token was asked for.
    pub(super) tokens: usize,
    pub(super) safe: usize,
    pub(super) sent: Vec<Transmit>,
}

impl Bench {
    pub(super) fn new(mode: Mode, change: impl FnOnce(&mut Settings)) -> Self {
        let now = Self::start_of_time();
        let mut settings = settings(1, false);
        settings.uplink.as_mut().expect("there is one").mode = mode;
        change(&mut settings);
        Self::begin(now, settings, Ok(Held::default()))
    }

    /// The disk could not be opened.
    pub(super) fn without_disk() -> Self {
        let now = Self::start_of_time();
        Self::begin(now, settings(1, false), Err("the card is gone".into()))
    }

    pub(super) fn holding(held: Held<'_>) -> Self {
        Self::begin(Self::start_of_time(), settings(1, false), Ok(held))
    }

    fn start_of_time() -> Now {
        let wall = Timestamp::synced(1_790_000_000_000);
        Now { instant: Instant::now(), wall, boot: None }
    }

    pub(super) fn begin(now: Now, settings: Settings, held: Result<Held<'_>, String>) -> Self {
        let gateway = Gateway::new(now, settings, held);
        let (disk, dials, hubs, sent) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (probes, hangups, tokens, safe) = (0, 0, 0, 0);
        let mut bench =
            Self { now, gateway, disk, dials, hubs, probes, hangups, tokens, safe, sent };
        bench.pass(Duration::ZERO);
        bench
    }

    /// Time goes on in steps of at most 100 ms.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now.instant + time;
        loop {
            if self.gateway.poll_timeout().is_some_and(|at| at <= self.now.instant) {
                self.gateway.handle_timeout(self.now);
            }
            self.look();
            if self.now.instant >= end {
                return;
            }
            let step = (end - self.now.instant).min(Duration::from_millis(100));
            self.now.instant += step;
            self.now.wall.unix_ms += step.as_millis() as u64;
        }
    }

    pub(super) fn look(&mut self) {
        loop {
            while let Some(output) = self.gateway.poll_output() {
                match output {
                    Output::Disk(request) => self.disk.push(request),
                    Output::Dial { hub, managed } => {
                        self.dials.push(managed);
                        self.hubs.push(hub);
                    }
                    Output::Probe { .. } => self.probes += 1,
                    Output::Hangup => self.hangups += 1,
                    Output::Token => self.tokens += 1,
                    Output::Safe(_) => self.safe += 1,
                    Output::Named { url } => {
                        let hub = ["first", "second", "third"].iter().position(|hub| *hub == url);
                        hub.into_iter().for_each(|hub| self.gateway.handle_named(hub));
                    }
                    Output::Deliver { .. }
                    | Output::RememberManaged { .. }
                    | Output::TimeHeard { .. } => {}
                }
            }
            match self.gateway.poll_transmit(self.now) {
                Some(transmit) => self.sent.push(transmit),
                None => return,
            }
        }
    }

    /// What the disk was asked to put into the journal.
    pub(super) fn journalled(&mut self) -> Vec<(String, Bytes)> {
        self.look();
        let changes = self.disk.iter().filter_map(|request| match request {
            DiskRequest::Journal(changes) => Some(changes.clone()),
            _ => None,
        });
        changes.flatten().collect()
    }

    pub(super) fn up(&mut self) {
        self.gateway.handle_up(self.now, None);
        self.look();
    }

    pub(super) fn hear(&mut self, message: HubMessage) {
        self.gateway.handle_text(self.now, &message.to_json());
        self.look();
    }

    pub(super) fn welcomed(&mut self) {
        self.resumed(0);
    }

    /// A session with a hub that holds the telemetry up to `acked`.
    pub(super) fn resumed(&mut self, acked: u64) {
        self.up();
        self.sent.clear();
        let epoch = Epoch(0xe001);
        let streams = ["events", "telemetry"].map(|stream| Position {
            stream: StreamName::try_from(stream.to_owned()).unwrap(),
            epoch,
            acked: if stream == "telemetry" { acked } else { 0 },
            window: Some(Window { records: 500, bytes: 1 << 20 }),
        });
        self.hear(HubMessage::Welcome(Welcome {
            session: "s".into(),
            hub: "h".into(),
            time: None,
            limits: HubLimits::default(),
            features: Vec::new(),
            token_expires: None,
            streams: streams.into(),
        }));
    }

    pub(super) fn ack(&mut self, acked: u64) {
        let stream = StreamName::try_from("telemetry".to_owned()).unwrap();
        let position = Position { stream, epoch: Epoch(0xe001), acked, window: None };
        self.hear(HubMessage::Ack(Ack { position, rejected: Vec::new() }));
    }

    pub(super) fn publish(&mut self, count: u64) {
        self.publish_of(0, count);
    }

    /// Publishes a number, padded to so many bytes.
    pub(super) fn publish_of(&mut self, payload_bytes: usize, count: u64) {
        for number in 0..count {
            self.gateway.handle_publish(
                self.now,
                Publish {
                    topic: "devices/d/telemetry".into(),
                    payload: format!("{number:<payload_bytes$}").into(),
                    retained: false,
                    source: SourceId(0),
                    receipt: Some(Receipt { source: SourceId(0), connection: 1, number }),
                    packet: None,
                },
            );
        }
        self.look();
    }

    pub(super) fn end(&mut self, ended: Ended) -> Duration {
        let before = self.dials.len();
        self.gateway.handle_ended(self.now, &ended);
        let start = self.now.instant;
        while self.dials.len() == before {
            let due = self.gateway.poll_timeout().expect("a retry is always due");
            let step = due.saturating_duration_since(self.now.instant);
            self.pass(step.max(Duration::from_millis(1)));
        }
        self.now.instant - start
    }

    pub(super) fn pings(&self) -> usize {
        self.sent.iter().filter(|sent| matches!(sent, Transmit::Ping(_))).count()
    }

    pub(super) fn texts(&self) -> Vec<&String> {
        fn text(sent: &Transmit) -> Option<&String> {
            if let Transmit::Text(text) = sent { Some(text) } else { None }
        }
        self.sent.iter().filter_map(text).collect()
    }
}

pub(super) fn closed(code: u16) -> Ended {
    Ended::Closed { code, reason: String::new() }
}

#[test]
fn a_dead_link_is_found_within_ping_interval_and_timeout() {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    bench.welcomed();
    bench.pass(INTERVAL + Duration::from_secs(11));
    assert_eq!((bench.pings(), bench.hangups), (1, 1));
    assert!(!bench.gateway.is_live());
}

#[test]
fn a_link_that_answers_lives_and_one_that_speaks_is_not_pinged() {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    bench.welcomed();
    for _ in 0..400 {
        bench.pass(Duration::from_secs(5));
        bench.gateway.handle_frame(bench.now);
    }
    assert!(bench.gateway.is_live() && bench.pings() <= 1, "only the first, at its random point");
}

#[test]
fn data_without_an_ack_ends_the_link_unless_bytes_still_leave() {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    bench.welcomed();
    bench.publish(1);
    for _ in 0..30 {
        bench.pass(Duration::from_secs(2));
        bench.gateway.handle_progress(bench.now);
    }
    assert!(bench.gateway.is_live(), "slow is not dead");
    bench.pass(Duration::from_secs(11));
    assert_eq!(bench.hangups, 1);
}

#[test]
fn auto_turns_plain_when_no_welcome_comes_and_managed_again_when_plain_is_refused() {
    let mut bench = Bench::new(Mode::Auto, |_| {});
    assert_eq!(bench.dials, [true]);
    bench.up();
    bench.gateway.handle_text(bench.now, "hello, I am a greeting, not JSON");
    bench.pass(Duration::from_millis(5100));
    assert!(matches!(bench.sent.last(), Some(Transmit::Close { code: 1000, .. })));
    bench.end(closed(1000));
    assert_eq!(bench.dials, [true, false]);
    bench.end(Ended::Http { status: 426, retry_after: None });
    assert_eq!(bench.dials, [true, false, true]);
}

/// A server that streamed binary frames, or sent Pings, moved the deadline of the greetings with
/// each of them and turned plain only after a minute.
#[test]
fn only_bytes_that_may_be_a_welcome_are_waited_for() {
    let chatter: [fn(&mut Gateway, Now); 4] = [
        Gateway::handle_binary,
        Gateway::handle_frame,
        |gateway, now| gateway.handle_pong(now, b""),
        |gateway, now| gateway.handle_text(now, "tick"),
    ];
    for frame in chatter {
        let mut bench = Bench::new(Mode::Auto, |_| {});
        bench.up();
        for _ in 0..51 {
            bench.pass(Duration::from_millis(100));
            bench.gateway.handle_bytes(bench.now);
            frame(&mut bench.gateway, bench.now);
        }
        bench.pass(Duration::ZERO);
        assert!(matches!(bench.sent.last(), Some(Transmit::Close { code: 1000, .. })));
    }
    let mut bench = Bench::new(Mode::Auto, |_| {});
    bench.up();
    bench.gateway.handle_frame(bench.now);
    for _ in 0..14 {
        bench.pass(Duration::from_secs(4));
        bench.gateway.handle_bytes(bench.now);
    }
    bench.welcomed();
    assert!(bench.gateway.is_live(), "a welcome of nearly a minute");
}

#[test]
fn its_own_hello_coming_back_says_at_once_that_the_server_is_plain() {
    let mut bench = Bench::new(Mode::Auto, |_| {});
    bench.up();
    let hello = bench.texts()[0].clone();
    bench.gateway.handle_text(bench.now, &hello);
    bench.look();
    bench.end(closed(1000));
    assert_eq!(bench.dials, [true, false]);
}

#[test]
fn a_hub_that_ever_gave_a_welcome_never_becomes_plain() {
    let mut bench = Bench::new(Mode::Auto, |settings| {
        settings.uplink.as_mut().expect("there is one").proven_managed = vec![true];
    });
    for _ in 0..20 {
        bench.up();
        bench.pass(Duration::from_millis(5100));
        bench.end(Ended::Cut("slow".into()));
    }
    assert!(bench.dials.iter().all(|managed| *managed));
}

#[test]
fn a_pong_confirms_what_was_written_before_its_ping_and_no_more() {
    let mut bench = Bench::new(Mode::Plain, |_| {});
    bench.up();
    bench.publish(3);
    let Some(Transmit::Ping(first)) = bench.sent.pop() else { panic!("{:?}", bench.sent) };
    assert_eq!(bench.texts().len(), 3);
    bench.publish(2);
    bench.gateway.handle_pong(bench.now, b"7");
    bench.gateway.handle_pong(bench.now, b"x");
    bench.look();
    assert_eq!(bench.safe, 0, "no such Ping was sent");
    bench.gateway.handle_pong(bench.now, &first);
    bench.look();
    assert_eq!(bench.safe, 3);
    bench.gateway.handle_pong(bench.now, b"2");
    bench.look();
    assert_eq!(bench.safe, 5);
}

#[test]
fn commands_of_a_plain_server_are_dropped_unless_the_configuration_obeys() {
    for obeys in [false, true] {
        let mut bench = Bench::new(Mode::Plain, |settings| {
            settings.uplink.as_mut().expect("there is one").plain_commands = obeys;
        });
        bench.up();
        let command = r#"{"type":"command","id":"c","device":"d","name":"n","ttl_ms":1000}"#;
        bench.gateway.handle_text(bench.now, command);
        bench.look();
        let journalled = bench.disk.iter().any(|d| matches!(d, DiskRequest::Journal(_)));
        assert_eq!(journalled, obeys);
    }
}

#[test]
fn the_wait_doubles_to_its_longest_and_never_ends() {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    let waits: Vec<Duration> =
        (0..200).map(|_| bench.end(Ended::Dial("no route".into()))).collect();
    assert!(waits[0] <= Duration::from_millis(500));
    assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(61)));
    let late: Duration = waits[100..].iter().sum::<Duration>() / 100;
    assert!(
        (20..40).contains(&late.as_secs()),
        "full jitter: half of 60 s on average, not {late:?}"
    );
}

#[test]
fn only_a_stable_session_begins_the_back_off_anew() {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    let wait_after = |bench: &mut Bench, alive: Duration| -> Duration {
        (0..40)
            .map(|_| {
                bench.welcomed();
                for _ in 0..alive.as_secs() {
                    bench.pass(Duration::from_secs(1));
                    bench.gateway.handle_frame(bench.now);
                }
                bench.end(Ended::Cut("cut".into()))
            })
            .max()
            .expect("forty waits")
    };
    assert!(wait_after(&mut bench, Duration::from_secs(5)) > Duration::from_secs(20));
    assert!(wait_after(&mut bench, Duration::from_secs(61)) <= Duration::from_millis(500));
}

/// A board that woke in 1970 signs its token with that; the refusal says what the time is.
#[test]
fn a_token_of_a_wrong_time_is_followed_by_one_of_the_right_time_at_once_and_once() {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    assert!(bench.end(Ended::WrongTime) < Duration::from_millis(200));
    assert!(bench.end(Ended::WrongTime) > Duration::from_secs(29), "a hub whose time jumps");
}

#[test]
fn what_the_hub_acknowledges_in_time_never_touches_the_disk() {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    bench.welcomed();
    for round in 1..=1000 {
        bench.publish(1);
        bench.pass(Duration::from_millis(900));
        bench.ack(round);
    }
    assert_eq!(bench.safe, 1000);
    assert!(bench.disk.is_empty(), "{:?}", bench.disk);
}

#[test]
fn what_the_hub_leaves_too_long_is_written_in_one_group() {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    bench.welcomed();
    bench.publish(50);
    bench.pass(Duration::from_millis(900));
    assert!(bench.disk.is_empty());
    bench.pass(Duration::from_millis(200));
    let [DiskRequest::Append(entries)] = &bench.disk[..] else { panic!("{:?}", bench.disk) };
    assert_eq!((entries.len(), bench.safe), (50, 0));
    bench.gateway.handle_appended(bench.now, Ok(Appended::default()));
    bench.look();
    assert_eq!(bench.safe, 50);
}

#[test]
fn a_used_up_window_is_written_at_once_and_only_then() {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    bench.welcomed();
    bench.publish(1);
    bench.gateway.handle_exhausted(bench.now);
    bench.look();
    assert_eq!(bench.disk.len(), 1);
    bench.gateway.handle_appended(bench.now, Ok(Appended::default()));
    bench.look();
    bench.ack(1);
    bench.publish(1);
    bench.gateway.handle_exhausted(bench.now);
    bench.ack(2);
    bench.disk.clear();
    bench.publish(1);
    let appended = bench.disk.iter().any(|d| matches!(d, DiskRequest::Append(_)));
    assert!(!appended, "the hub's time begins anew");
}

/// Sessions with a hub that dies on record 5 and takes what comes before it; each lives for `life`.
fn with_a_hub_that_dies_on_record_5(life: Duration, sessions: usize) -> (u64, Vec<Skip>) {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    let (mut skips, mut acked) = (Vec::new(), 0);
    bench.publish(8);
    for _ in 0..sessions {
        bench.resumed(acked);
        let end = bench.now.instant + life;
        let mut dies = false;
        while !dies && (bench.now.instant < end || !bench.texts().is_empty()) {
            if bench.texts().is_empty() {
                bench.pass(Duration::from_secs(1));
                bench.gateway.handle_frame(bench.now);
                continue;
            }
            let Transmit::Text(text) = bench.sent.remove(0) else { continue };
            match from_gateway(&text) {
                Ok(Decoded::Message(GatewayMessage::Data(data))) => {
                    let end = data.seq + data.records.len() as u64;
                    dies = (data.seq..end).contains(&5);
                    if !dies {
                        acked = end - 1;
                        bench.ack(acked);
                    }
                }
                Ok(Decoded::Message(GatewayMessage::Skip(skip))) => {
                    acked = skip.to - 1;
                    skips.push(skip);
                    bench.ack(acked);
                }
                _ => {}
            }
        }
        bench.end(Ended::Cut("the hub died".into()));
    }
    (acked, skips)
}

#[test]
fn a_record_that_ends_every_session_becomes_a_poison_skip_and_no_other_is_lost() {
    let (acked, skips) = with_a_hub_that_dies_on_record_5(Duration::from_secs(60), 40);
    assert_eq!(acked, 8);
    let [skip] = &skips[..] else { panic!("{skips:?}") };
    assert_eq!((skip.from, skip.to, skip.reason.as_str()), (5, 6, "poison"));
}

#[test]
fn a_link_that_flaps_condemns_no_record() {
    let (acked, skips) = with_a_hub_that_dies_on_record_5(Duration::from_secs(20), 200);
    assert_eq!((acked, skips.len()), (4, 0));
}

/// The ack of a record that never touched the disk was once told to the spool with a group that had
/// nothing of that lane, and so not at all: after a crash the hole before the next record of the
/// lane looked like damage.
#[test]
fn the_spool_hears_of_acks_before_it_gets_what_follows_them() {
    let mut bench = Bench::new(Mode::Managed, |_| {});
    bench.welcomed();
    bench.publish(1);
    bench.ack(1);
    bench.gateway.handle_refused(bench.now, Some("d"), "too_large", None);
    bench.pass(Duration::from_secs(3));
    let [DiskRequest::Append(entries)] = &bench.disk[..] else { panic!("{:?}", bench.disk) };
    assert_eq!(entries[0].stream, 0, "the refusal alone");
    bench.gateway.handle_appended(bench.now, Ok(Appended::default()));
    bench.disk.clear();
    bench.publish(1);
    bench.gateway.handle_exhausted(bench.now);
    bench.look();
    let [DiskRequest::Trim { lane: 1, acked: 1, .. }, DiskRequest::Append(entries)] =
        &bench.disk[..]
    else {
        panic!("{:?}", bench.disk)
    };
    assert_eq!((entries[0].stream, entries[0].seq), (1, 2));
}
