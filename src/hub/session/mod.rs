//! One gateway's connection, from `hello` to the close, as PROTOCOL.md says.
//!
//! Inputs are `handle_*`, outputs [`Session::poll_output`], time is an argument, and
//! [`Session::poll_timeout`] says when it is wanted again. What is stored is decided by the engine;
//! the session keeps only how far it has handed records on, so that a hole is answered at once and
//! once.
//!
//! A session must never acknowledge what the engine has not answered for, never hand on what
//! follows a hole, never ask for more than its bounds, and never say anything after its close.
//!
//! Pure: no runtime, no file, no socket, no clock, no random source.

mod commands;
mod expiry;
mod flow;
mod liveness;
mod streams;
#[cfg(test)]
mod tests;
mod traffic;

use std::{collections::VecDeque, sync::Arc, time::Duration, time::Instant};

use commands::Commands;
use flow::Flow;
use liveness::{Liveness, Verdict};
use streams::Streams;
use traffic::Meter;

pub use expiry::{Expiry, Verified};
pub use traffic::Traffic;

use crate::{
    hub::engine::{Answer, EngineError, Request, SessionId, StatusChange},
    protocol::{
        self, Data, Decoded, Drain, ErrorMessage, GatewayMessage, Hello, HubLimits, HubMessage,
        Token, Welcome, Window, close,
    },
};

/// How many requests a session may have at the engine. At the bound its socket is not read.
const MAX_OUTSTANDING: usize = 32;

/// How many bytes of messages a session may have at the engine. At the bound its socket is not
/// read.
const MAX_OUTSTANDING_BYTES: usize = 2 << 20;

/// How many epochs one `hello` may list, and one session open beside them.
const MAX_EPOCHS: usize = 4096;

/// The largest record number: what every JSON parser reads exactly.
const MAX_SEQ: u64 = 1 << 53;

/// The time, by both of its measures.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For deadlines.
    pub instant: Instant,
    /// For people and for `ttl_ms`: Unix milliseconds.
    pub unix_ms: u64,
}

/// What a session is given.
#[derive(Debug, Clone)]
pub struct Options {
    /// The hub's node, as `welcome` names it.
    pub hub: String,
    /// What the hub takes.
    pub limits: HubLimits,
    /// What may be outstanding in each stream.
    pub window: Window,
    /// A Ping is sent when there was no progress for so long.
    pub ping_interval: Duration,
    /// The same for the first Ping: a random part of `ping_interval`.
    pub first_ping: Duration,
    /// How long any progress may then take.
    pub ping_timeout: Duration,
    /// What the gateway may send.
    pub traffic: Traffic,
    /// When the credential ends that it came with; `None`: never.
    pub expiry: Option<Expiry>,
}

/// What a session wants done.
#[derive(Debug)]
pub enum Output {
    /// Send a text message.
    Text(String),
    /// Send a Ping.
    Ping,
    /// Ask the engine; answers come back in the order of the requests.
    Ask(Request),
    /// Look whose token this is; see [`Session::handle_token`].
    CheckToken(Token),
    /// These records are stored: show them to whoever watches.
    Stored(Stored),
    /// Commands reached these states.
    Statuses(Vec<StatusChange>),
    /// The gateway is there: the session is welcomed.
    Welcomed,
    /// Close; nothing follows.
    Close {
        /// The close code.
        code: u16,
        /// The reason, at most 123 bytes.
        reason: &'static str,
    },
}

/// Records that were new and are durable.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The message that brought them.
    pub data: Arc<Data>,
    /// Those of its records that were not taken.
    pub rejected: Vec<(u64, &'static str)>,
    /// Its first record that was new.
    pub new_from: u64,
    /// The id of the first record that was stored.
    pub first_id: u64,
}

/// How a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waits for `hello`.
    Connected,
    /// Waits for the engine's positions.
    Opening,
    /// Welcomed.
    Open,
    /// Takes nothing more, and closes when the engine has answered.
    Draining,
    /// Over.
    Closed,
}

/// What an answer of the engine is to.
#[derive(Debug)]
enum Asked {
    Open(Arc<Hello>),
    Apply { data: Arc<Data>, rejected: Vec<(u64, &'static str)>, bytes: usize },
    Skip(protocol::Skip),
    Take,
    Finish,
}

/// One gateway's connection.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    options: Options,
    phase: Phase,
    liveness: Liveness,
    meter: Meter,
    expires_at: Option<Instant>,
    streams: Streams,
    commands: Commands,
    flow: Flow,
    /// The gateway's limit for a message of ours.
    peer_message_bytes: usize,
    outputs: VecDeque<Output>,
    asked: VecDeque<Asked>,
    asked_bytes: usize,
}

impl Session {
    /// A connection whose upgrade was answered; its credential named the gateway.
    pub fn new(now: Now, id: SessionId, options: Options) -> Self {
        let Options { ping_interval, ping_timeout, first_ping, .. } = options;
        let liveness = Liveness::new(now.instant, ping_interval, ping_timeout, first_ping);
        Self {
            id,
            phase: Phase::Connected,
            liveness,
            meter: Meter::new(now.instant, options.traffic),
            expires_at: options.expiry.map(|expiry| expiry.deadline(now)),
            streams: Streams::new(options.window),
            commands: Commands::default(),
            flow: Flow::new(),
            peer_message_bytes: protocol::DEFAULT_MESSAGE_BYTES,
            outputs: VecDeque::new(),
            asked: VecDeque::new(),
            asked_bytes: 0,
            options,
        }
    }

    /// A text message came.
    pub fn handle_message(&mut self, now: Now, text: &str) {
        self.take_message(now, text);
        self.note_asked(now);
    }

    fn take_message(&mut self, now: Now, text: &str) {
        self.handle_heard(now, text.len());
        if matches!(self.phase, Phase::Closed | Phase::Draining) {
            return;
        }
        if text.len() > self.options.limits.frame_bytes {
            return self.handle_oversize();
        }
        let message = match protocol::from_gateway(text) {
            Ok(Decoded::Message(message)) => message,
            Ok(Decoded::Unknown(_)) => return,
            Ok(Decoded::MustUnderstand(kind)) => {
                self.say_error("unsupported", format!("the hub does not know {kind:?}"));
                return self.close(close::UNSUPPORTED, "unsupported message");
            }
            Err(error) => {
                let code =
                    if error.is_data() { close::PROTOCOL_ERROR } else { close::INVALID_DATA };
                self.say_error("bad_message", error.to_string());
                return self.close(code, "bad message");
            }
        };
        match (self.phase, message) {
            (Phase::Connected, GatewayMessage::Hello(hello)) => self.handle_hello(hello),
            (Phase::Connected, _) => self.break_off("the first message must be hello"),
            (_, GatewayMessage::Hello(_)) => self.break_off("hello comes once"),
            (Phase::Opening, _) => self.break_off("wait for welcome"),
            (_, GatewayMessage::Data(data)) => self.handle_data(data, text.len()),
            (_, GatewayMessage::Skip(skip)) => self.handle_skip(skip),
            (_, GatewayMessage::Auth { token }) => {
                self.outputs.push_back(Output::CheckToken(token));
            }
            // What the gateway complains of is for the log of whoever runs it.
            (_, GatewayMessage::Error(_)) => {}
        }
    }

    /// A binary message came, although no binary subprotocol was selected.
    pub fn handle_binary(&mut self, now: Now) {
        self.liveness.handle_progress(now.instant);
        self.close(close::UNSUPPORTED_DATA, "fieldgate.v1.json has text messages only");
    }

    /// A message larger than `limits.frame_bytes` came, or began to.
    pub fn handle_oversize(&mut self) {
        self.say_error(
            "too_big",
            format!("a message has at most {} bytes", self.options.limits.frame_bytes),
        );
        self.close(close::TOO_BIG, "message too big");
    }

    /// A frame came that breaks RFC 6455; `code` says how.
    pub fn handle_broken_frame(&mut self, code: u16) {
        self.close(code, "a frame breaks RFC 6455");
    }

    /// A Pong, or any other frame, came.
    pub fn handle_frame(&mut self, now: Now) {
        self.handle_heard(now, 0);
    }

    /// Bytes came that are no whole frame yet, or left a socket that had been full.
    pub fn handle_progress(&mut self, now: Now) {
        self.liveness.handle_progress(now.instant);
    }

    /// Counts what came; a gateway that sends too much is told how long to wait, and sent away.
    fn handle_heard(&mut self, now: Now, bytes: usize) {
        self.liveness.handle_progress(now.instant);
        // However much comes, the timer is not waited for.
        self.check_expiry(now);
        if let Err(wait) = self.meter.take(now.instant, bytes) {
            let message = "too many messages or bytes in a second";
            let mut error = ErrorMessage::new("rate", message);
            error.retry_after_ms = u64::try_from(wait.as_millis()).ok();
            self.send(&HubMessage::Error(error));
            self.close(close::TOO_MANY, message);
        }
    }

    /// The engine answered the oldest request that has no answer yet.
    pub fn handle_answer(&mut self, now: Now, answer: Result<Answer, EngineError>) {
        let Some(asked) = self.asked.pop_front() else { return };
        if let Asked::Apply { bytes, .. } = &asked {
            self.asked_bytes -= bytes;
        }
        match (asked, answer) {
            (_, Ok(Answer::Superseded)) => self.handle_taken_over(),
            (_, Ok(Answer::UnknownGateway)) => {
                self.close(close::UNKNOWN_GATEWAY, "the hub does not know this gateway");
            }
            (Asked::Open(hello), Ok(Answer::Opened { positions, commands })) => {
                self.streams.open(positions);
                self.welcome(now, &hello);
                self.commands.open(hello.limits.inflight_commands);
                self.commands.hold(commands, &[]);
                self.commands.want();
            }
            (Asked::Apply { data, rejected, .. }, Ok(Answer::Applied(applied))) => {
                self.handle_applied(data, rejected, applied);
            }
            (Asked::Skip(skip), Ok(Answer::Applied(applied))) => {
                self.streams.applied(&skip.stream, skip.epoch, applied.next, &[]);
            }
            (Asked::Apply { data, .. }, Ok(Answer::Gap { expected })) => {
                let gap = self.streams.fell_back(&data.stream, data.epoch, expected);
                self.send_all(gap);
            }
            (Asked::Skip(skip), Ok(Answer::Gap { expected })) => {
                let gap = self.streams.fell_back(&skip.stream, skip.epoch, expected);
                self.send_all(gap);
            }
            (Asked::Take, Ok(Answer::Commands { commands, cancels, more })) => {
                self.commands.taken(more);
                for id in self.commands.hold(commands, &cancels) {
                    self.send(&HubMessage::Cancel { id });
                }
            }
            (_, Ok(Answer::TooManyEpochs)) => self.break_off("too many epochs are kept"),
            (Asked::Finish, Ok(Answer::Ended { statuses })) => self.handle_statuses(statuses),
            (asked, Err(_)) => self.handle_engine_failure(asked),
            (_, Ok(_)) => {}
        }
        self.note_answered(now);
        self.ask_for_commands();
        if self.phase == Phase::Draining && self.asked.is_empty() {
            self.close(close::RESTART, "the hub restarts");
        }
    }

    /// Commands or cancels may wait in the store.
    pub fn handle_commands_waiting(&mut self) {
        self.commands.want();
        self.ask_for_commands();
    }

    /// A newer session of the same gateway took over.
    pub fn handle_taken_over(&mut self) {
        self.close(close::TAKEN_OVER, "a newer session of this gateway took over");
    }

    /// The credential was revoked.
    pub fn handle_revoked(&mut self) {
        self.close(close::POLICY, "credential revoked");
    }

    /// The hub is about to stop: the gateway is to come back after `retry_after` and a random part
    /// of `spread`. What the engine was asked is still answered and acknowledged.
    pub fn handle_drain(&mut self, retry_after: Duration, spread: Duration) {
        if matches!(self.phase, Phase::Draining | Phase::Closed) {
            return;
        }
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.send(&HubMessage::Drain(Drain {
            retry_after_ms: ms(retry_after),
            spread_ms: ms(spread),
            url: None,
        }));
        self.phase = Phase::Draining;
        if self.asked.is_empty() {
            self.close(close::RESTART, "the hub restarts");
        }
    }

    /// The connection is gone. What the engine still answers is shown, and nothing is sent.
    pub fn handle_disconnected(&mut self) {
        self.phase = Phase::Closed;
    }

    /// It is [`poll_timeout`](Self::poll_timeout).
    pub fn handle_timeout(&mut self, now: Now) {
        self.check_expiry(now);
        self.check_stall(now);
        let waits_for_hello = self.phase == Phase::Connected;
        match self.liveness.check(now.instant, waits_for_hello, self.is_saturated()) {
            Verdict::Alive => {}
            Verdict::Ping => self.outputs.push_back(Output::Ping),
            Verdict::NoHello => self.close(close::NO_HELLO, "no hello in time"),
            Verdict::Dead => self.close(close::GOING_AWAY, "no pong in time"),
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is wanted.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Closed => None,
            phase => {
                let deadline = self.liveness.deadline(phase == Phase::Connected);
                let others = [self.expires_at, self.stall_at()];
                Some(others.into_iter().flatten().fold(deadline, Instant::min))
            }
        }
    }

    /// What to do next; `None` when there is nothing.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        if self.phase == Phase::Closed {
            return None;
        }
        // Acks wait for the queue to run dry, so that one answers for everything that was committed
        // together.
        let ack = self.streams.poll_ack(self.flow.is_open())?;
        Some(Output::Text(HubMessage::Ack(ack).to_json()))
    }

    /// Whether the socket is to be left alone until the engine has answered.
    pub fn is_saturated(&self) -> bool {
        self.asked.len() >= MAX_OUTSTANDING || self.asked_bytes >= MAX_OUTSTANDING_BYTES
    }

    /// Whether the session is over; answers that still come are only shown, not sent.
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Whether it takes nothing more.
    pub fn is_draining(&self) -> bool {
        matches!(self.phase, Phase::Draining | Phase::Closed)
    }

    /// How many answers of the engine are still to come.
    pub fn outstanding(&self) -> usize {
        self.asked.len()
    }

    fn handle_hello(&mut self, hello: Hello) {
        if *hello.gateway != *self.id.gateway {
            return self.close(close::FORBIDDEN, "hello.gateway is not the credential's subject");
        }
        if hello.streams.len() > MAX_EPOCHS {
            return self.break_off("hello lists too many epochs");
        }
        let in_order = |held: &protocol::HeldEpoch| {
            (1..=held.next).contains(&held.first) && held.next <= MAX_SEQ
        };
        if !hello.streams.iter().all(in_order) {
            return self.break_off("an epoch has 1 <= first <= next <= 2^53");
        }
        self.phase = Phase::Opening;
        self.peer_message_bytes = hello.limits.message_bytes;
        let hello = Arc::new(hello);
        self.asked.push_back(Asked::Open(hello.clone()));
        let request = Request::Open { session: self.id.clone(), hello };
        self.outputs.push_back(Output::Ask(request));
    }

    fn welcome(&mut self, now: Now, hello: &Hello) {
        if self.phase != Phase::Opening {
            return;
        }
        self.phase = Phase::Open;
        self.send(&HubMessage::Welcome(Welcome {
            session: format!("{:x}", self.id.number),
            hub: self.options.hub.clone(),
            time: Some(now.unix_ms),
            limits: self.options.limits,
            features: Vec::new(),
            token_expires: self.options.expiry.and_then(|expiry| expiry.told_ms),
            streams: self.streams.positions(hello, self.flow.is_open()),
        }));
        self.outputs.push_back(Output::Welcomed);
    }

    fn handle_statuses(&mut self, statuses: Vec<StatusChange>) {
        for status in &statuses {
            if status.state.is_final() {
                self.commands.ended(&status.id);
            }
        }
        if !statuses.is_empty() {
            self.outputs.push_back(Output::Statuses(statuses));
        }
    }

    /// Whether the request was carried out is not known: the gateway is paused, and asked again
    /// once the engine works.
    fn handle_engine_failure(&mut self, asked: Asked) {
        match asked {
            // Without positions there is no welcome, and a wrong one would be a lie.
            Asked::Open(_) => self.close(close::TRY_LATER, "the store is down"),
            Asked::Apply { data, .. } => self.streams.failed(&data.stream, data.epoch),
            Asked::Skip(skip) => self.streams.failed(&skip.stream, skip.epoch),
            // What was taken all the same counts as sent, and is sent again only after a `welcome`.
            Asked::Take => self.close(close::TRY_LATER, "the store is down"),
            // The command has no final state, so that the next session has it again.
            Asked::Finish => {}
        }
        self.handle_store(false);
    }

    fn break_off(&mut self, reason: &'static str) {
        self.say_error("bad_message", reason.into());
        self.close(close::PROTOCOL_ERROR, reason);
    }

    fn say_error(&mut self, code: &str, message: String) {
        self.send(&HubMessage::Error(ErrorMessage::new(code, message)));
    }

    fn close(&mut self, code: u16, reason: &'static str) {
        if self.phase == Phase::Closed {
            return;
        }
        while let Some(ack) = self.streams.poll_ack(self.flow.is_open()) {
            self.send(&HubMessage::Ack(ack));
        }
        self.phase = Phase::Closed;
        self.outputs.push_back(Output::Close { code, reason });
    }

    fn send_all(&mut self, messages: Vec<HubMessage>) {
        for message in messages {
            self.send(&message);
        }
    }

    fn send(&mut self, message: &HubMessage) {
        if self.phase != Phase::Closed {
            self.outputs.push_back(Output::Text(message.to_json()));
        }
    }
}
