//! The core of the gateway: what is heard, what is kept, what is sent, what is answered. A state
//! machine and nothing else: inputs are `handle_*`, outputs `poll_*`, the time is an argument.
//!
//! One reading: [`Gateway::handle_publish`] -> lane and number -> [`Gateway::poll_transmit`] in a
//! batch -> the hub's ack ([`Gateway::handle_text`]) -> [`Output::Safe`] -> the source
//! acknowledges. Beside it [`Output::Disk`] when a record has to be written. One command: frame ->
//! journal -> [`Output::Deliver`] -> reply -> event record, by the same road.
//!
//! After each input the driver drains [`Gateway::poll_output`] until it is empty, then
//! [`Gateway::poll_transmit`] as far as the link takes, and sets its one timer to
//! [`Gateway::poll_timeout`].
//!
//! The core has no clock, no socket, no file and no random source of its own. It must never give a
//! receipt back before its record is safe, never send a number twice for two records, and never run
//! a command twice.

mod commands;
mod hubs;
mod intake;
mod lane;
mod live;
mod pace;
mod random;
mod redelivery;
mod reports;
mod session;
mod shares;
mod snapshot;
mod standstill;
mod storage;
mod timers;
mod transmit;
mod uplink;

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;

use commands::{Commands, Heard, Out};
pub use commands::{Rules as CommandRules, without_result};
use lane::{Lane, Receipts};
use random::Random;
use redelivery::Redelivery;
use reports::Reports;
use shares::Shares;
pub use snapshot::{
    CommandStatus, CounterStatus, DiskStatus, Snapshot, StreamStatus, UplinkStatus,
};
use standstill::Standstill;
pub use uplink::{Ended, UplinkSettings};
use uplink::{Phase, Then, Uplink};

use crate::{
    protocol::{Epoch, StreamName, close},
    record::{self, Boot, Receipt, SourceId, Timestamp},
    spool::{Entry, HeldRange, Tail},
    topic::Template,
};

/// The time, twice: for deadlines and for stamps.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Monotonic.
    pub instant: Instant,
    /// What the clock says, and whether it is trusted.
    pub wall: Timestamp,
    /// When this boot began, if a trusted clock can tell: records that were heard before it could
    /// get their time by it.
    pub boot: Option<Boot>,
}

/// Everything the core needs to know.
#[derive(Debug)]
pub struct Settings {
    /// The gateway's id.
    pub id: String,
    /// Program and version.
    pub agent: String,
    /// The kernel's boot id.
    pub boot_id: String,
    /// The streams by index, `events` first, as the spool knows them.
    pub streams: Vec<StreamName>,
    /// Which publishes are telemetry; the first match wins.
    pub telemetry: Vec<TelemetryRule>,
    /// Commands.
    pub commands: CommandRules,
    /// The hub; `None`: everything is spooled.
    pub uplink: Option<UplinkSettings>,
    /// Whether a record must be on disk before it is sent or acknowledged.
    pub disk_first: bool,
    /// How long a record may wait in memory.
    pub write_after: Duration,
    /// Whether after an outage fresh records pass the backlog: from so many records on, for a
    /// smaller one is gone in a moment anyway.
    pub live_first: Option<u64>,
    /// Readings older than this are not sent any more.
    pub max_age: Option<Duration>,
    /// How many publishes a source may have in flight: so many of each session are remembered, to
    /// know them when they are sent again.
    pub window: usize,
    /// The largest payload.
    pub max_record_bytes: usize,
    /// How much memory records may take; at the bound the sources are not read.
    pub memory_bytes: usize,
    /// The epoch of this start.
    pub epoch: Epoch,
    /// Seed of jitter.
    pub seed: u64,
}

/// Which publishes are telemetry.
#[derive(Debug, Clone)]
pub struct TelemetryRule {
    /// Which topics.
    pub topic: Template,
    /// Index of the stream.
    pub lane: usize,
    /// The device, where the topic names none.
    pub device: Option<String>,
}

/// What the core wants done; the driver answers with the `handle_*` of the same name.
#[derive(Debug)]
pub enum Output {
    /// For the disk thread, in this order.
    Disk(DiskRequest),
    /// The source may acknowledge.
    Safe(Receipt),
    /// Deliver a command; answered by delivered, undelivered or interrupted.
    Deliver {
        /// Names the delivery.
        token: u64,
        /// The source that last heard the device, if any did.
        source: Option<SourceId>,
        /// The topic name.
        topic: String,
        /// What the device gets.
        payload: Bytes,
    },
    /// Make a link.
    Dial {
        /// Which hub, by its place in the settings.
        hub: usize,
        /// Whether to offer the managed subprotocols.
        managed: bool,
    },
    /// Drop the link at once.
    Hangup,
    /// The session's token ends soon: answered by a fresh one.
    Token,
    /// See whether the first hub can be reached, beside the link that lives; answered by probed.
    Probe {
        /// Whether to offer the managed subprotocols.
        managed: bool,
    },
    /// The hub that is about to close names another to go to; answered by named, if it is one of
    /// the settings'.
    Named {
        /// As the hub wrote it.
        url: String,
    },
    /// The hub said what the time is.
    TimeHeard {
        /// Unix milliseconds.
        unix_ms: u64,
    },
    /// This hub's URL answered with a valid `welcome`: remember it over restarts.
    RememberManaged {
        /// Which hub, by its place in the settings.
        hub: usize,
    },
}

/// Work for the disk thread.
#[derive(Debug)]
pub enum DiskRequest {
    /// Append and sync; answered.
    Append(Vec<Entry>),
    /// Read on; answered.
    Read {
        /// Index of the stream.
        lane: usize,
        /// The epoch.
        epoch: Epoch,
        /// The first record wanted.
        from: u64,
        /// About how much.
        max_bytes: usize,
    },
    /// Let go up to `acked`; not answered.
    Trim {
        /// Index of the stream.
        lane: usize,
        /// The epoch.
        epoch: Epoch,
        /// The last record to go.
        acked: u64,
    },
    /// Let go of an epoch for good; answered.
    Retire {
        /// Index of the stream.
        lane: usize,
        /// The epoch.
        epoch: Epoch,
    },
    /// Number what follows in a fresh epoch; not answered.
    Begin {
        /// Index of the stream.
        lane: usize,
        /// The epoch.
        epoch: Epoch,
    },
    /// Put into the command journal and sync; answered.
    Journal(Vec<(String, Bytes)>),
}

/// What goes on the link next. Its `Debug` tells no content: a token may be in it.
pub enum Transmit {
    /// A text message.
    Text(String),
    /// A Ping.
    Ping(Vec<u8>),
    /// The closing handshake.
    Close {
        /// RFC 6455, section 7.4.
        code: u16,
        /// For the peer's log.
        reason: String,
    },
}

impl std::fmt::Debug for Transmit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Ping(payload) => write!(f, "Ping({} bytes)", payload.len()),
            Self::Close { code, .. } => write!(f, "Close({code})"),
        }
    }
}

/// How much is handed to the disk in one group.
const GROUP_BYTES: usize = 1 << 20;

/// What stays in memory of what the disk has.
const KEEP_BYTES: usize = 512 * 1024;

/// How long records are gathered into one write while the link is down.
const OFFLINE_GATHER: Duration = Duration::from_millis(100);

/// How long a failed write is waited out.
const DISK_RETRY: Duration = Duration::from_secs(1);

/// Devices whose source is remembered.
const MAX_HEARD: usize = 4096;

/// What the disk holds from before.
#[derive(Debug, Default)]
pub struct Held<'a> {
    /// The records.
    pub ranges: Vec<HeldRange>,
    /// The commands.
    pub journal: Vec<(String, Bytes)>,
    /// The last publishes of each session.
    pub tails: Vec<(u64, &'a Tail)>,
}

/// The gateway.
#[derive(Debug)]
pub struct Gateway {
    settings: Settings,
    lanes: Vec<Lane>,
    commands: Commands,
    redelivery: Redelivery,
    shares: Shares,
    reports: Reports,
    uplink: Option<Uplink>,
    heard: Heard,
    outputs: VecDeque<Output>,
    control: VecDeque<Transmit>,
    disk: DiskState,
    turn: u64,
    standstill: Standstill,
    /// What the hub's clock said, and when.
    hub_clock: Option<(Instant, u64)>,
    stopping: bool,
    counters: Counters,
    forget_at: Instant,
    random: Random,
}

#[derive(Debug, Default)]
struct DiskState {
    /// Since when an append, and a change of the journal, is under way.
    appending: Option<Instant>,
    journalling: Option<Instant>,
    /// What is unsafe is to be written now.
    flush: bool,
    retry_at: Option<Instant>,
    error: Option<String>,
    /// It could not be opened yet: what it holds from before is not known.
    is_missing: bool,
    /// It is nearly full.
    pressed: bool,
    evicted: u64,
}

#[derive(Debug, Default)]
struct Counters {
    received: u64,
    sent: u64,
    rejected: u64,
    ignored_frames: u64,
    unexpected_replies: u64,
}

impl Gateway {
    /// A gateway that has just started, with what the disk holds from before, or why it could not
    /// be opened.
    pub fn new(now: Now, settings: Settings, held: Result<Held<'_>, String>) -> Self {
        let mut random = Random::new(settings.seed);
        let mut lanes: Vec<Lane> = (settings.streams.iter().enumerate())
            .map(|(index, name)| Lane::new(index, name.clone(), &settings))
            .collect();
        let (held, error) = match held {
            Ok(held) => (held, None),
            Err(error) => (Held::default(), Some(error)),
        };
        for range in &held.ranges {
            lanes[range.stream].inherit(range);
        }
        let disk = DiskState { is_missing: error.is_some(), error, ..DiskState::default() };
        let uplink = settings.uplink.clone().map(|uplink| Uplink::new(now, uplink, random.next()));
        Self {
            commands: Commands::new(settings.commands.clone(), held.journal),
            redelivery: Redelivery::new(settings.window, held.tails.into_iter()),
            shares: Shares::new(now.instant),
            settings,
            lanes,
            reports: Reports::default(),
            uplink,
            heard: HashMap::new(),
            outputs: VecDeque::new(),
            control: VecDeque::new(),
            disk,
            turn: 0,
            standstill: Standstill::new(now.instant),
            hub_clock: None,
            stopping: false,
            counters: Counters::default(),
            forget_at: now.instant + FORGET_EVERY,
            random,
        }
    }

    /// The MQTT topic filters that the sources are to listen to.
    pub fn interests(&self) -> Vec<String> {
        let mut filters: Vec<String> =
            self.settings.telemetry.iter().map(|rule| rule.topic.filter()).collect();
        filters.push(self.commands.reply_filter());
        filters.sort();
        filters.dedup();
        filters
    }

    /// The process stops: nothing more is taken in, what is unsafe is written, the link is closed
    /// in order.
    pub fn handle_stop(&mut self, now: Now) {
        self.stopping = true;
        self.disk.flush = true;
        self.settle(now);
    }

    /// Whether everything that was taken in is safe.
    pub fn is_settled(&self) -> bool {
        self.disk.appending.is_none()
            && self.disk.journalling.is_none()
            && self.lanes.iter().all(|lane| lane.oldest_unwritten().is_none())
            && !self.commands.has_journal_changes()
    }

    /// Whether records can go to the hub.
    pub fn is_live(&self) -> bool {
        self.uplink.as_ref().is_some_and(|uplink| uplink.session().is_some())
    }

    /// The hub that is connected or next, by its place in the settings.
    pub fn hub(&self) -> usize {
        self.uplink.as_ref().map_or(0, |uplink| uplink.hubs.current())
    }

    /// Nothing is under way at the hub that it has yet to acknowledge.
    pub fn is_drained(&self) -> bool {
        self.under_way().is_none()
    }

    /// Closes the link for good.
    pub fn handle_last_close(&mut self, now: Now) {
        if self.uplink.as_ref().is_some_and(|uplink| uplink.session().is_some()) {
            self.close(now, close::GOING_AWAY, Then::Stop, "the gateway stops".into());
        } else if let Some(uplink) = &mut self.uplink {
            uplink.phase = Phase::Stopped;
            self.outputs.push_back(Output::Hangup);
        }
    }

    /// Whether the link has been closed for good.
    pub fn is_closed(&self) -> bool {
        self.uplink.as_ref().is_none_or(|uplink| matches!(uplink.phase, Phase::Stopped))
    }

    /// What is to be done next; drain it after each input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// After each input: what follows from it inside.
    fn settle(&mut self, now: Now) {
        for (event, receipts) in self.reports.take_due(now.instant, self.stopping) {
            let bytes = record::store_event(now.wall, &event);
            self.lanes[EVENTS].push(now.instant, bytes, None, receipts);
        }
        while let Some(out) = self.commands.poll() {
            match out {
                Out::Report(status, receipts) => {
                    tracing::info!(id = %status.id, n = status.n, state = %status.state, "command");
                    let (id, n, state) = (status.id.clone(), status.n, status.state);
                    let event = record::Event::CommandStatus(status);
                    let bytes = record::store_event(now.wall, &event);
                    let place = self.lanes[EVENTS].push(now.instant, bytes, None, receipts);
                    self.commands.handle_reported(id, n, state, place);
                }
                Out::Deliver { token, device, topic, payload } => {
                    let source = self.heard.get(device.as_str()).copied();
                    self.outputs.push_back(Output::Deliver { token, source, topic, payload });
                }
            }
        }
        self.settle_disk(now);
    }

    fn memory_bytes(&self) -> usize {
        let lanes: usize = self.lanes.iter().map(Lane::memory_bytes).sum();
        lanes + self.redelivery.held_bytes()
    }
}

/// The index of the stream `events`.
const EVENTS: usize = 0;

/// How often finished commands are looked through.
const FORGET_EVERY: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests;
