//! The core of the gateway: what is heard, what is kept, what is sent, what is answered. A state machine and nothing
//! else: inputs are `handle_*`, outputs `poll_*`, the time is an argument.
//!
//! One reading: [`Gateway::handle_publish`] -> lane and number -> [`Gateway::poll_transmit`] in a batch -> the hub's ack
//! ([`Gateway::handle_text`]) -> [`Output::Safe`] -> the source acknowledges. Beside it [`Output::Disk`] when a record has
//! to be written. One command: frame -> journal -> [`Output::Deliver`] -> reply -> event record, by the same road.
//!
//! After each input the driver drains [`Gateway::poll_output`] until it is empty, then [`Gateway::poll_transmit`] as far
//! as the link takes, and sets its one timer to [`Gateway::poll_timeout`].
//!
//! The core has no clock, no socket, no file and no random source of its own. It must never give a receipt back before
//! its record is safe, never send a number twice for two records, and never run a command twice.

mod commands;
mod lane;
mod random;
mod reports;
mod snapshot;
mod transmit;
mod uplink;

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;

pub use commands::Rules as CommandRules;
use commands::{Commands, Heard, Out, Reply};
use lane::{Lane, READ_AHEAD_BYTES, Receipts};
use random::Random;
use reports::Reports;
pub use snapshot::Snapshot;
use uplink::{Due, Phase, Then, Uplink};
pub use uplink::{Ended, Mode, UplinkSettings};

use crate::{
    command::Command,
    protocol::{
        Decoded, Epoch, ErrorMessage, HubMessage, Position, StreamName, Welcome, Window, close,
        from_hub,
    },
    record::{self, Publish, Reading, Receipt, SourceId, Timestamp},
    spool::{Entry, Evicted, HeldRange, Item},
    topic::Template,
};

/// The time, twice: for deadlines and for stamps.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Monotonic.
    pub instant: Instant,
    /// What the system clock says, and whether it is trusted.
    pub wall: Timestamp,
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
        /// Whether to offer the managed subprotocols.
        managed: bool,
    },
    /// Drop the link at once.
    Hangup,
    /// This URL answered with a valid `welcome`: remember it over restarts.
    RememberManaged,
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
    /// Put into the command journal and sync; answered.
    Journal(Vec<(String, Bytes)>),
}

/// What goes on the link next.
#[derive(Debug)]
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

/// How much is handed to the disk in one group.
const GROUP_BYTES: usize = 1 << 20;

/// What stays in memory of what the disk has.
const KEEP_BYTES: usize = 512 * 1024;

/// How long a failed write is waited out.
const DISK_RETRY: Duration = Duration::from_secs(1);

/// Devices whose source is remembered.
const MAX_HEARD: usize = 4096;

/// The gateway.
#[derive(Debug)]
pub struct Gateway {
    settings: Settings,
    lanes: Vec<Lane>,
    commands: Commands,
    reports: Reports,
    uplink: Option<Uplink>,
    heard: Heard,
    outputs: VecDeque<Output>,
    control: VecDeque<Transmit>,
    disk: DiskState,
    turn: u64,
    stopping: bool,
    counters: Counters,
    forget_at: Instant,
}

#[derive(Debug, Default)]
struct DiskState {
    appending: bool,
    journalling: bool,
    /// What is unsafe is to be written now.
    flush: bool,
    retry_at: Option<Instant>,
    error: Option<String>,
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
    /// A gateway that has just started, with what the spool and the journal hold from before.
    pub fn new(
        now: Now,
        settings: Settings,
        held: &[HeldRange],
        journal: impl IntoIterator<Item = (String, Bytes)>,
    ) -> Self {
        let mut random = Random::new(settings.seed);
        let mut lanes: Vec<Lane> = (settings.streams.iter().enumerate())
            .map(|(index, name)| {
                // An epoch is the start's own in every stream; streams are told apart by their names.
                Lane::new(index, name.clone(), settings.epoch, settings.disk_first)
            })
            .collect();
        for range in held {
            lanes[range.stream].inherit(range);
        }
        let uplink = settings.uplink.clone().map(|uplink| Uplink::new(now, uplink, random.next()));
        Self {
            commands: Commands::new(settings.commands.clone(), journal),
            settings,
            lanes,
            reports: Reports::default(),
            uplink,
            heard: HashMap::new(),
            outputs: VecDeque::new(),
            control: VecDeque::new(),
            disk: DiskState::default(),
            turn: 0,
            stopping: false,
            counters: Counters::default(),
            forget_at: now.instant + FORGET_EVERY,
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

    // --- from the sources --------------------------------------------------------------------------------------------

    /// Whether publishes may be handed in: false while memory is full of what is not safe.
    pub fn has_room(&self) -> bool {
        !self.stopping && self.memory_bytes() < self.settings.memory_bytes
    }

    /// A device published.
    pub fn handle_publish(&mut self, now: Now, publish: Publish) {
        let Publish { topic, payload, retained, source, receipt } = publish;
        let receipt = match self.commands.handle_reply(now, &topic, &payload, receipt) {
            Err(receipt) => receipt,
            Ok(Reply::Taken) => return self.settle(now),
            Ok(Reply::Unexpected(receipt)) => {
                self.counters.unexpected_replies += 1;
                tracing::info!(topic, "a reply came for which no command waits");
                self.outputs.extend(receipt.map(Output::Safe));
                return;
            }
        };
        let matched = self.settings.telemetry.iter().find_map(|rule| {
            rule.topic.matches(&topic).map(|captures| {
                let device = captures.get("device").or(rule.device.as_deref());
                (rule.lane, device.unwrap_or(&self.settings.id))
            })
        });
        let Some((lane, device)) = matched else {
            // A source may hear more than it was asked to; nobody wants this one.
            self.outputs.extend(receipt.map(Output::Safe));
            return;
        };
        self.counters.received += 1;
        if payload.len() > self.settings.max_record_bytes {
            let (bytes, limit) = (payload.len(), self.settings.max_record_bytes);
            tracing::info!(
                device,
                topic,
                bytes,
                limit,
                "a publish is larger than spool.max_record_bytes"
            );
            self.reports.refuse(now.instant, Some(device), "too_large", receipt);
        } else if !record::is_device_name(device) {
            self.reports.refuse(now.instant, None, "bad_device", receipt);
        } else {
            let json = record::is_plain_json(&payload);
            let reading = Reading { device, topic: &topic, retained, payload: &payload, json };
            let bytes = record::store_reading(now.wall, &reading);
            if !self.heard.contains_key(device) && self.heard.len() < MAX_HEARD {
                self.heard.insert(device.into(), source);
            }
            self.lanes[lane].push(now.instant, bytes, receipt.into());
        }
        self.settle(now);
    }

    /// A source could not take a publish.
    pub fn handle_refused(
        &mut self,
        now: Now,
        device: Option<&str>,
        reason: &str,
        receipt: Option<Receipt>,
    ) {
        self.reports.refuse(now.instant, device, reason, receipt);
        self.settle(now);
    }

    /// A source's in-flight window is used up: what is unsafe is written now.
    pub fn handle_exhausted(&mut self, now: Now) {
        self.disk.flush = true;
        self.settle(now);
    }

    /// A device came.
    pub fn handle_birth(&mut self, now: Now, device: &str, source: SourceId) {
        if self.heard.len() < MAX_HEARD || self.heard.contains_key(device) {
            self.heard.insert(device.into(), source);
        }
        self.reports.came(now.instant, device);
        self.commands.handle_device_seen(now, device);
        self.settle(now);
    }

    /// A device went.
    pub fn handle_death(&mut self, now: Now, device: &str, reason: &'static str) {
        self.reports.went(now.instant, device, reason);
        self.settle(now);
    }

    /// The device's transport took the command.
    pub fn handle_delivered(&mut self, now: Now, token: u64) {
        self.commands.handle_delivered(now, token);
        self.settle(now);
    }

    /// Nothing of the command was sent.
    pub fn handle_undelivered(&mut self, now: Now, token: u64) {
        self.commands.handle_undelivered(now, token);
        self.settle(now);
    }

    /// The command was sent, whether it arrived can't be known.
    pub fn handle_interrupted(&mut self, now: Now, token: u64) {
        self.commands.handle_interrupted(now, token);
        self.settle(now);
    }

    // --- from the disk ---------------------------------------------------------------------------------------------

    /// An append ended.
    pub fn handle_appended(&mut self, now: Now, result: Result<Vec<Evicted>, String>) {
        self.disk.appending = false;
        let mut safe = Vec::new();
        for lane in &mut self.lanes {
            lane.handle_appended(result.is_ok(), &mut safe);
            lane.shed(KEEP_BYTES);
        }
        self.outputs.extend(safe.into_iter().map(Output::Safe));
        self.note_disk(now, result.as_ref().err());
        for evicted in result.unwrap_or_default() {
            let stream = &self.lanes[evicted.stream].name;
            let records = evicted.records;
            self.disk.evicted += records;
            tracing::error!(%stream, records, "spool.max_bytes is reached: the oldest records were evicted");
        }
        self.settle(now);
    }

    /// A read ended.
    pub fn handle_read(
        &mut self,
        now: Now,
        lane: usize,
        epoch: Epoch,
        result: Result<Vec<Item>, String>,
    ) {
        match result {
            Ok(items) => self.lanes[lane].handle_read(epoch, items),
            Err(error) => {
                self.lanes[lane].handle_read_failed();
                self.note_disk(now, Some(&error));
            }
        }
        self.settle(now);
    }

    /// An epoch is gone for good, or could not be let go of.
    pub fn handle_retired(
        &mut self,
        now: Now,
        lane: usize,
        epoch: Epoch,
        result: Result<(), String>,
    ) {
        self.lanes[lane].handle_retired(epoch, result.is_ok());
        self.note_disk(now, result.err().as_ref());
        self.settle(now);
    }

    /// A change of the journal ended.
    pub fn handle_journalled(&mut self, now: Now, result: Result<(), String>) {
        self.disk.journalling = false;
        self.note_disk(now, result.as_ref().err());
        self.commands.handle_journalled(now, result.is_ok());
        self.settle(now);
    }

    fn note_disk(&mut self, now: Now, error: Option<&String>) {
        match error {
            None => {
                if self.disk.error.take().is_some() {
                    tracing::info!("the disk takes writes again");
                }
                self.disk.retry_at = None;
            }
            Some(error) => {
                if self.disk.error.as_ref() != Some(error) {
                    tracing::error!(error, "the disk fails; unsafe publishes stay unacknowledged");
                }
                self.disk.error = Some(error.clone());
                self.disk.retry_at = Some(now.instant + DISK_RETRY);
            }
        }
    }

    // --- from the link ---------------------------------------------------------------------------------------------

    /// The upgrade succeeded.
    pub fn handle_up(&mut self, now: Now, subprotocol: Option<&str>) {
        let Some(uplink) = &mut self.uplink else { return };
        let Phase::Dialing { managed } = uplink.phase else { return };
        tracing::debug!(managed, subprotocol, "the link is up");
        if managed {
            uplink.greet(now);
            let hello = self.hello(now);
            self.control.push_back(Transmit::Text(hello.to_json()));
        } else {
            self.begin_plain(now);
        }
    }

    /// A text message.
    pub fn handle_text(&mut self, now: Now, text: &str) {
        self.handle_heard(now);
        let greeting = match self.uplink.as_ref().map(|uplink| &uplink.phase) {
            Some(Phase::Greeting { .. }) => true,
            Some(Phase::Live(session)) if session.managed => false,
            Some(Phase::Live(_)) => return self.handle_plain_text(now, text),
            _ => return,
        };
        match from_hub(text) {
            Ok(Decoded::Message(HubMessage::Welcome(welcome))) if greeting => {
                self.handle_welcome(now, welcome);
            }
            // Our own hello coming back: an echo, not a hub.
            Ok(Decoded::Unknown(kind)) if greeting && kind == "hello" => {
                self.give_up_greeting(now, "the server sends back what it gets");
            }
            Ok(Decoded::Message(message)) if !greeting => self.handle_message(now, message),
            Ok(Decoded::MustUnderstand(kind)) => {
                let why =
                    format!("the hub sent a message of type {kind:?} that must be understood");
                self.close(now, close::UNSUPPORTED, Then::Slow, why);
            }
            Ok(_) => self.counters.ignored_frames += 1,
            Err(error) if greeting => {
                tracing::debug!(%error, "not a welcome");
                self.counters.ignored_frames += 1;
            }
            Err(error) => {
                self.counters.ignored_frames += 1;
                tracing::info!(%error, "a message of the hub is malformed");
                let message = ErrorMessage::new("bad_message", error.to_string());
                let reply = crate::protocol::GatewayMessage::Error(message).to_json();
                self.control.push_back(Transmit::Text(reply));
            }
        }
        self.settle(now);
    }

    /// Any other frame, or a binary message, which this version has no use for.
    pub fn handle_other(&mut self, now: Now) {
        self.handle_heard(now);
        self.counters.ignored_frames += 1;
    }

    /// A Pong.
    pub fn handle_pong(&mut self, now: Now, payload: &[u8]) {
        self.handle_heard(now);
        let Some(session) = self.uplink.as_mut().and_then(Uplink::session_mut) else { return };
        let reached = if session.managed { Vec::new() } else { session.handle_pong(payload) };
        for position in reached {
            self.handle_position(&position, false);
        }
        self.settle(now);
    }

    /// Bytes left the socket.
    pub fn handle_progress(&mut self, now: Now) {
        if let Some(session) = self.uplink.as_mut().and_then(Uplink::session_mut) {
            session.handle_progress(now.instant);
        }
    }

    /// The link ended.
    pub fn handle_ended(&mut self, now: Now, ended: &Ended) {
        let Some(uplink) = &mut self.uplink else { return };
        let by_peer = matches!(ended, Ended::Closed { .. } | Ended::Cut(_));
        let was_live = uplink.session().is_some();
        if let Phase::Closing { then, .. } = uplink.phase {
            uplink.after_close(now, then);
        } else {
            let wait = uplink.handle_ended(now, ended);
            let retry_ms = wait.as_millis() as u64;
            tracing::info!(reason = %ended, retry_ms, "the link is down");
        }
        if was_live && by_peer {
            self.lanes.iter_mut().for_each(Lane::handle_session_ended_by_peer);
        }
        self.forget_session();
        self.settle(now);
    }

    fn handle_heard(&mut self, now: Now) {
        let Some(uplink) = &mut self.uplink else { return };
        let interval = uplink.settings.ping_interval;
        if let Some(session) = uplink.session_mut() {
            session.handle_heard(now.instant, interval);
        }
    }

    fn handle_welcome(&mut self, now: Now, welcome: Welcome) {
        let Some(uplink) = &mut self.uplink else { return };
        if !uplink.settings.proven_managed {
            self.outputs.push_back(Output::RememberManaged);
        }
        let Welcome { session, hub, limits, streams, .. } = welcome;
        tracing::info!(hub, session, "the session with the hub is on");
        uplink.go_live(now, true, session, limits);
        for lane in &mut self.lanes {
            lane.rewind();
            lane.set_window(Window::default());
        }
        for position in streams {
            self.handle_position(&position, true);
        }
    }

    fn begin_plain(&mut self, now: Now) {
        let Some(uplink) = &mut self.uplink else { return };
        tracing::info!("plain mode: records go as text frames, the pong barrier confirms them");
        uplink.go_live(now, false, String::new(), crate::protocol::HubLimits::default());
        for lane in &mut self.lanes {
            lane.rewind();
            lane.set_window(Window { records: 1000, bytes: 1 << 20 });
        }
        self.commands.handle_no_resend(now);
        self.settle(now);
    }

    fn handle_message(&mut self, now: Now, message: HubMessage) {
        match message {
            HubMessage::Ack(ack) => {
                for (seq, reason) in &ack.rejected {
                    self.counters.rejected += 1;
                    let stream = &ack.position.stream;
                    tracing::info!(%stream, seq, reason, "the hub rejected a record for good");
                }
                self.handle_position(&ack.position, false);
            }
            HubMessage::Command(command) => {
                let command = Command {
                    id: command.id,
                    device: command.device,
                    name: command.name,
                    params: command.params,
                    ttl: Duration::from_millis(command.ttl_ms),
                    timeout: Duration::from_millis(command.timeout_ms.max(1)),
                    idempotent: command.idempotent,
                    hub_holds: command.state.map(|state| (state.n, state.state)),
                };
                self.commands.handle_command(now, command);
            }
            HubMessage::Cancel { id } => self.commands.handle_cancel(now, &id),
            HubMessage::Error(error) => self.handle_error(error),
            HubMessage::Drain(drain) => {
                if let Some(uplink) = &mut self.uplink {
                    uplink.handle_drain(drain);
                }
            }
            HubMessage::Welcome(_) | HubMessage::AuthOk { .. } => {}
        }
    }

    fn handle_error(&mut self, error: ErrorMessage) {
        match (error.code.as_str(), error.stream, error.epoch, error.expected) {
            ("gap", Some(stream), Some(epoch), Some(expected)) => {
                tracing::info!(%stream, %epoch, expected, "the hub misses records; sending on from there");
                if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.name == stream) {
                    lane.handle_gap(epoch, expected);
                }
            }
            (code, ..) => tracing::warn!(code, message = error.message, "the hub reports an error"),
        }
    }

    /// Echoes, greetings, broadcasts: counted and dropped. A command is obeyed if the configuration says so.
    fn handle_plain_text(&mut self, now: Now, text: &str) {
        let obeys = self.uplink.as_ref().is_some_and(|uplink| uplink.settings.plain_commands);
        match from_hub(text) {
            Ok(Decoded::Message(
                message @ (HubMessage::Command(_) | HubMessage::Cancel { .. }),
            )) if obeys => {
                self.handle_message(now, message);
            }
            _ => self.counters.ignored_frames += 1,
        }
        self.settle(now);
    }

    fn handle_position(&mut self, position: &Position, resume: bool) {
        let lane = self.lanes.iter_mut().position(|lane| lane.name == position.stream);
        let Some(lane) = lane else { return };
        let mut safe = Vec::new();
        let trim = self.lanes[lane].handle_position(position, resume, &mut safe);
        self.outputs.extend(safe.into_iter().map(Output::Safe));
        if let Some((epoch, acked)) = trim {
            self.outputs.push_back(Output::Disk(DiskRequest::Trim { lane, epoch, acked }));
        }
    }

    fn give_up_greeting(&mut self, now: Now, why: &str) {
        let Some(uplink) = &mut self.uplink else { return };
        let then = uplink.handle_no_welcome(now, why);
        if then == Then::Plain {
            tracing::info!(why, "the server is no hub; going on in plain mode");
        } else {
            tracing::warn!(why, "the hub gave no welcome");
        }
        self.control.clear();
        self.control.push_back(Transmit::Close { code: close::NORMAL, reason: String::new() });
    }

    fn close(&mut self, now: Now, code: u16, then: Then, why: String) {
        let Some(uplink) = &mut self.uplink else { return };
        tracing::info!(why, "closing the link");
        self.control.clear();
        self.control.push_back(Transmit::Close { code, reason: why.clone() });
        uplink.close(now, then, why);
    }

    fn forget_session(&mut self) {
        self.control.clear();
        for lane in &mut self.lanes {
            lane.rewind();
        }
    }

    // --- time and stopping -----------------------------------------------------------------------------------------

    /// When [`Gateway::handle_timeout`] is to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let oldest_flight = self.oldest_flight();
        [
            self.uplink.as_ref().and_then(|uplink| uplink.deadline(oldest_flight)),
            self.write_due().filter(|_| !self.disk.appending && self.disk.retry_at.is_none()),
            self.reports.next_due(),
            self.commands.next_deadline(),
            self.disk.retry_at,
            Some(self.forget_at),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Now) {
        if self.disk.retry_at.is_some_and(|at| at <= now.instant) {
            self.disk.retry_at = None;
        }
        if self.forget_at <= now.instant {
            self.forget_at = now.instant + FORGET_EVERY;
            self.commands.forget_old(now);
        }
        self.commands.handle_deadline(now);
        self.handle_uplink_timeout(now);
        self.settle(now);
    }

    fn handle_uplink_timeout(&mut self, now: Now) {
        let oldest_flight = self.oldest_flight();
        let Some(uplink) = &mut self.uplink else { return };
        match &mut uplink.phase {
            Phase::Waiting { until } if *until <= now.instant => {
                let managed = uplink.dial();
                self.outputs.push_back(Output::Dial { managed });
            }
            Phase::Greeting { deadline } if *deadline <= now.instant => {
                self.give_up_greeting(now, "none came within 5 s of hello");
            }
            Phase::Closing { until, then } if *until <= now.instant => {
                let then = *then;
                uplink.after_close(now, then);
                self.outputs.push_back(Output::Hangup);
                self.forget_session();
            }
            Phase::Live(session) => match session.due(now.instant, &uplink.settings, oldest_flight)
            {
                Some(Due::Ping) => self.ping(now),
                Some(Due::Dead(why)) => {
                    tracing::info!(why, "the link is dead");
                    uplink.close(now, Then::BackOff, why.into());
                    uplink.after_close(now, Then::BackOff);
                    self.outputs.push_back(Output::Hangup);
                    self.forget_session();
                }
                None => {}
            },
            _ => {}
        }
    }

    fn oldest_flight(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(Lane::oldest_flight).min()
    }

    /// The process stops: nothing more is taken in, what is unsafe is written, the link is closed in order.
    pub fn handle_stop(&mut self, now: Now) {
        self.stopping = true;
        self.disk.flush = true;
        self.settle(now);
    }

    /// Whether everything that was taken in is safe.
    pub fn is_settled(&self) -> bool {
        !self.disk.appending
            && !self.disk.journalling
            && self.lanes.iter().all(|lane| lane.oldest_unwritten().is_none())
            && !self.commands.has_journal_changes()
    }

    /// Whether records can go to the hub.
    pub fn is_live(&self) -> bool {
        self.uplink.as_ref().is_some_and(|uplink| uplink.session().is_some())
    }

    /// Nothing is under way at the hub that it has yet to acknowledge.
    pub fn is_drained(&self) -> bool {
        self.oldest_flight().is_none()
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

    // --- outputs ---------------------------------------------------------------------------------------------------

    /// What is to be done next; drain it after each input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// After each input: what follows from it inside.
    fn settle(&mut self, now: Now) {
        for (event, receipts) in self.reports.take_due(now.instant, self.stopping) {
            let bytes = record::store_event(now.wall, &event);
            self.lanes[EVENTS].push(now.instant, bytes, receipts);
        }
        while let Some(out) = self.commands.poll() {
            match out {
                Out::Report(status, receipts) => {
                    tracing::info!(id = %status.id, n = status.n, state = %status.state, "command");
                    let event = record::Event::CommandStatus(status);
                    let bytes = record::store_event(now.wall, &event);
                    self.lanes[EVENTS].push(now.instant, bytes, receipts);
                }
                Out::Deliver { token, device, topic, payload } => {
                    let source = self.heard.get(device.as_str()).copied();
                    self.outputs.push_back(Output::Deliver { token, source, topic, payload });
                }
            }
        }
        self.settle_disk(now);
    }

    fn settle_disk(&mut self, now: Now) {
        if self.disk.retry_at.is_some() {
            return;
        }
        if !self.disk.journalling {
            let changes = self.commands.take_journal();
            if !changes.is_empty() {
                self.disk.journalling = true;
                self.outputs.push_back(Output::Disk(DiskRequest::Journal(changes)));
            }
        }
        if !self.disk.appending && self.write_due().is_some_and(|due| due <= now.instant) {
            self.append();
        }
        let live = self.is_live();
        for (lane, state) in self.lanes.iter_mut().enumerate() {
            while let Some(epoch) = state.wants_retired() {
                self.outputs.push_back(Output::Disk(DiskRequest::Retire { lane, epoch }));
            }
            if let Some((epoch, from)) = live.then(|| state.wants_read()).flatten() {
                let max_bytes = READ_AHEAD_BYTES;
                let request = DiskRequest::Read { lane, epoch, from, max_bytes };
                self.outputs.push_back(Output::Disk(request));
            }
        }
    }

    fn append(&mut self) {
        let (mut entries, mut budget) = (Vec::new(), GROUP_BYTES);
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let before = entries.len();
            let trim = lane.trim_before_append();
            lane.take_unwritten(&mut entries, &mut budget);
            if let Some((epoch, acked)) = trim.filter(|_| entries.len() > before) {
                let request = DiskRequest::Trim { lane: index, epoch, acked };
                self.outputs.push_back(Output::Disk(request));
            }
        }
        self.disk.flush &= budget == 0;
        self.disk.appending = true;
        self.outputs.push_back(Output::Disk(DiskRequest::Append(entries)));
    }

    /// When the oldest unsafe record must go to the disk: at once when nothing else can make it safe.
    fn write_due(&self) -> Option<Instant> {
        let oldest = self.lanes.iter().filter_map(Lane::oldest_unwritten).min()?;
        let live = self.is_live();
        let at_once = self.settings.disk_first
            || self.disk.flush
            || !live
            || self.memory_bytes() >= self.settings.memory_bytes / 2;
        Some(if at_once { oldest } else { oldest + self.settings.write_after })
    }

    fn memory_bytes(&self) -> usize {
        self.lanes.iter().map(Lane::memory_bytes).sum()
    }
}

/// The index of the stream `events`.
const EVENTS: usize = 0;

/// How often finished commands are looked through.
const FORGET_EVERY: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests;
