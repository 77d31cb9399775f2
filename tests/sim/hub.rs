//! The hub's nodes: the real sessions, driven as `hub::uplink` drives them, and the engine that all
//! nodes share, with its group commits and its failures.

use std::{collections::VecDeque, sync::Arc};

use fieldgate::hub::{
    engine::{Answer, EngineError, Request, SessionId},
    session::{Now, Options, Output, Session, Traffic},
};

use crate::{
    coverage::Seen,
    engine::{Audience, Engine},
    network::Frame,
    plan::{PING_INTERVAL, PING_TIMEOUT},
    world::{Event, MS, SECOND, Time, World},
};

pub(crate) const NODES: usize = 2;

/// The hub's clock at the world's beginning, Unix milliseconds.
pub(crate) const EPOCH_MS: u64 = 1_790_000_000_000;

/// How long a failed engine is left alone, and how long it may be beyond that.
const ENGINE_REST: Time = SECOND;
const ENGINE_OUTAGE: Time = 120 * SECOND;

/// Everything on the hub's side.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) is_up: [bool; NODES],
    pub(crate) sessions: Vec<HubSession>,
    pub(crate) engine: Engine,
    pub(crate) engine_up: bool,
    /// Until then a commit takes so long, and until then nothing is committed.
    pub(crate) slow_until: Time,
    pub(crate) stuck_until: Time,
    /// What the next commit does, if it fails.
    pub(crate) failure: Option<Failure>,
    queue: VecDeque<(Option<u64>, Request)>,
    is_committing: bool,
    pub(crate) next_session: u64,
    last_node: Option<usize>,
}

/// How a commit fails.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Failure {
    NothingKept,
    KeptNonetheless,
}

/// A session on its node.
#[derive(Debug)]
pub(crate) struct HubSession {
    pub(crate) connection: u64,
    pub(crate) node: usize,
    pub(crate) id: SessionId,
    session: Session,
    inbox: VecDeque<Frame>,
    has_ended: bool,
}

impl Hub {
    pub(crate) fn new() -> Self {
        Self {
            is_up: [true; NODES],
            sessions: Vec::new(),
            engine: Engine::default(),
            engine_up: true,
            slow_until: 0,
            stuck_until: 0,
            failure: None,
            queue: VecDeque::new(),
            is_committing: false,
            next_session: 1,
            last_node: None,
        }
    }

    /// Whether nothing waits for the engine, and every command has ended.
    pub(crate) fn rests(&self) -> bool {
        self.queue.is_empty() && !self.engine.has_open_commands()
    }
}

impl World {
    /// A gateway's upgrade was answered.
    pub(crate) fn hub_accepts(&mut self, connection: u64, node: usize) {
        let number = self.hub.next_session;
        self.hub.next_session += 1;
        let id = SessionId { gateway: Arc::from("gw"), number };
        let options = Options {
            hub: format!("hub-{node}"),
            limits: self.plan.hub_limits,
            window: self.plan.window,
            ping_interval: PING_INTERVAL,
            first_ping: PING_INTERVAL,
            ping_timeout: PING_TIMEOUT,
            traffic: Traffic { messages_per_second: 10_000, bytes_per_second: 1 << 26 },
            expiry: None,
        };
        let session = Session::new(self.hub_now(), id.clone(), options);
        let inbox = VecDeque::new();
        let session = HubSession { connection, node, id, session, inbox, has_ended: false };
        self.hub.sessions.push(session);
    }

    /// A frame arrives at the hub.
    pub(crate) fn hub_hears(&mut self, connection: u64, frame: Frame) {
        let Some(at) = self.session_of(connection) else { return };
        self.hub.sessions[at].inbox.push_back(frame);
        self.read_inbox(at);
    }

    /// Does what the sessions want done, and forgets those that are over.
    pub(crate) fn settle_hub(&mut self) {
        for at in 0..self.hub.sessions.len() {
            self.act(at);
        }
        self.hub.sessions.retain(|one| !one.has_ended || one.session.outstanding() > 0);
    }

    /// The next moment that a session asks for.
    pub(crate) fn hub_timeout(&self) -> Option<Time> {
        let sessions = self.hub.sessions.iter().filter(|one| !one.has_ended);
        sessions.filter_map(|one| self.time_of(one.session.poll_timeout()?)).min()
    }

    pub(crate) fn handle_hub_timeout(&mut self) {
        let now = self.hub_now();
        for one in self.hub.sessions.iter_mut().filter(|one| !one.has_ended) {
            if one.session.poll_timeout().is_some_and(|at| at <= now.instant) {
                one.session.handle_timeout(now);
            }
        }
    }

    /// Something that concerns no session is asked of the engine.
    pub(crate) fn ask_engine(&mut self, request: Request) {
        self.hub.queue.push_back((None, request));
        self.begin_commit();
    }

    /// The commit under way ends.
    pub(crate) fn commit(&mut self) {
        self.hub.is_committing = false;
        if self.hub.stuck_until > self.now {
            let until = self.hub.stuck_until;
            self.hub.is_committing = true;
            return self.at(until, Event::Commit);
        }
        let group: Vec<_> = self.hub.queue.drain(..).collect();
        let failure = self.hub.failure.take().filter(|_| self.hub.engine_up);
        if failure.is_some() {
            self.coverage.note(Seen::EngineFailure);
            self.note("the commit fails");
            self.hub.engine_up = false;
            let rest = ENGINE_REST + self.some_time(ENGINE_OUTAGE);
            self.after(rest, Event::EngineUp);
        }
        let is_kept = match failure {
            Some(Failure::KeptNonetheless) => {
                self.coverage.note(Seen::LostAnswer);
                true
            }
            Some(Failure::NothingKept) => false,
            None => self.hub.engine_up,
        };
        let is_told = failure.is_none() && is_kept;
        let now_ms = self.hub_now().unix_ms;
        for (session, request) in group {
            if !is_kept && session.is_none() {
                // What people ask for they ask for again.
                self.hub.queue.push_back((None, request));
                continue;
            }
            let answer = is_kept.then(|| {
                let (oracle, coverage) = (&mut self.oracle, &mut self.coverage);
                self.hub.engine.apply(now_ms, &request, &mut Audience { oracle, coverage })
            });
            let answer = answer.filter(|_| is_told);
            self.answer(session, answer.ok_or_else(|| EngineError("the store is down".into())));
        }
        if self.hub.engine.has_waiting() {
            let sessions = self.hub.sessions.iter_mut().filter(|one| !one.has_ended);
            sessions.for_each(|one| one.session.handle_commands_waiting());
        }
    }

    /// The engine was opened again.
    pub(crate) fn engine_recovers(&mut self) {
        self.note("the engine is up");
        self.hub.engine_up = true;
        for one in &mut self.hub.sessions {
            one.session.handle_store(true);
        }
        self.begin_commit();
    }

    /// A node stops in order.
    pub(crate) fn drain_node(&mut self, node: usize) {
        let sessions = self.hub.sessions.iter_mut().filter(|one| one.node == node);
        for one in sessions.filter(|one| !one.has_ended) {
            one.session.handle_drain(
                std::time::Duration::from_millis(500),
                std::time::Duration::from_secs(5),
            );
            self.coverage.note(Seen::Drain);
        }
    }

    /// A node is killed, or vanishes without a word.
    pub(crate) fn lose_node(&mut self, node: usize, silently: bool) {
        self.hub.is_up[node] = false;
        let lost: Vec<HubSession> =
            self.hub.sessions.extract_if(.., |one| one.node == node).collect();
        for one in lost {
            if self.random.one_in(2) {
                // It died before its requests were under way.
                self.hub.queue.retain(|(session, _)| *session != Some(one.id.number));
            }
            if silently {
                self.kill_connection(one.connection);
            }
            self.hub_lets_go(one.connection);
        }
    }

    /// Another gateway of the same name comes and goes.
    pub(crate) fn intrude(&mut self) {
        let number = self.hub.next_session;
        self.hub.next_session += 1;
        let session = SessionId { gateway: Arc::from("gw"), number };
        let hello = fieldgate::protocol::Hello {
            gateway: "gw".into(),
            agent: String::new(),
            boot_id: String::new(),
            clock: None,
            limits: Default::default(),
            features: Vec::new(),
            streams: Vec::new(),
            partial: true,
        };
        self.ask_engine(Request::Open { session, hello: Arc::new(hello) });
        for one in self.hub.sessions.iter_mut().filter(|one| !one.has_ended) {
            one.session.handle_taken_over();
            self.coverage.note(Seen::Intruder);
        }
    }

    pub(crate) fn hub_now(&self) -> Now {
        Now { instant: self.instant(self.now), unix_ms: EPOCH_MS + self.now / MS }
    }

    fn answer(&mut self, session: Option<u64>, answer: Result<Answer, EngineError>) {
        let found = self.hub.sessions.iter().position(|one| Some(one.id.number) == session);
        let Some(at) = found else { return };
        let (now, up) = (self.hub_now(), self.hub.engine_up);
        if matches!(answer, Ok(Answer::Gap { .. })) {
            self.coverage.note(Seen::Gap);
        }
        let one = &mut self.hub.sessions[at];
        one.session.handle_answer(now, answer);
        one.session.handle_store(up);
        self.act(at);
        self.read_inbox(at);
    }

    fn begin_commit(&mut self) {
        if self.hub.is_committing || self.hub.queue.is_empty() {
            return;
        }
        self.hub.is_committing = true;
        let is_slow = self.hub.slow_until > self.now;
        let latency =
            if is_slow { self.random.below(6 * SECOND) } else { self.plan.engine_latency };
        self.after(1 + latency, Event::Commit);
    }

    fn read_inbox(&mut self, at: usize) {
        loop {
            let now = self.hub_now();
            let one = &mut self.hub.sessions[at];
            if one.has_ended || one.session.is_saturated() {
                return;
            }
            let Some(frame) = one.inbox.pop_front() else { return };
            let connection = one.connection;
            match frame {
                Frame::Text(text) if text.contains("arsenic") => {
                    self.meet_poison(at, &text);
                    return;
                }
                Frame::Text(text) => self.hub.sessions[at].session.handle_message(now, &text),
                Frame::Ping(payload) => {
                    one.session.handle_frame(now);
                    self.send_down(connection, Frame::Pong(payload));
                }
                Frame::Pong(_) => one.session.handle_frame(now),
                Frame::Close(code) => {
                    self.send_down(connection, Frame::Close(code));
                    self.end_session(at);
                }
                Frame::End => self.end_session(at),
            }
            self.act(at);
        }
    }

    /// The session's task panics on a record.
    fn meet_poison(&mut self, at: usize, text: &str) {
        self.coverage.note(Seen::PoisonRecord);
        self.note("poison ends the session");
        if let Ok(fieldgate::protocol::Decoded::Message(
            fieldgate::protocol::GatewayMessage::Data(data),
        )) = fieldgate::protocol::from_gateway(text)
        {
            self.oracle.arrived(&data);
        }
        self.end_session(at);
    }

    fn end_session(&mut self, at: usize) {
        let one = &mut self.hub.sessions[at];
        if one.has_ended {
            return;
        }
        one.has_ended = true;
        one.inbox.clear();
        one.session.handle_disconnected();
        let (connection, session) = (one.connection, one.id.clone());
        self.hub.queue.push_back((Some(session.number), Request::Close { session }));
        self.begin_commit();
        self.hub_lets_go(connection);
    }

    fn act(&mut self, at: usize) {
        loop {
            self.drain(at);
            let now = self.hub_now();
            let one = &mut self.hub.sessions[at];
            if one.has_ended || !one.session.wants_room() {
                return;
            }
            one.session.handle_room(now);
        }
    }

    fn drain(&mut self, at: usize) {
        while let Some(output) = self.hub.sessions[at].session.poll_output() {
            let (connection, node) = (self.hub.sessions[at].connection, self.hub.sessions[at].node);
            let has_ended = self.hub.sessions[at].has_ended;
            match output {
                Output::Text(text) if !has_ended => {
                    self.note_hub_message(&text);
                    self.send_down(connection, Frame::Text(text));
                }
                Output::Ping if !has_ended => self.send_down(connection, Frame::Ping(Vec::new())),
                Output::Text(_) | Output::Ping => {}
                Output::Ask(request) => self.ask_for(at, request),
                Output::Welcomed => {
                    self.coverage.note(Seen::Session);
                    let last = self.hub.last_node.replace(node);
                    if last.is_some_and(|last| last != node) {
                        self.coverage.note(Seen::OtherNode);
                    }
                }
                Output::Close { code, reason } => {
                    self.note_with(|| format!("the hub closes: {code} {reason}"));
                    if reason == "no pong in time" {
                        self.coverage.note(Seen::DeadFoundByHub);
                    }
                    self.send_down(connection, Frame::Close(code));
                    self.end_session(at);
                }
                Output::CheckToken(_) | Output::Stored(_) | Output::Statuses(_) => {}
            }
        }
    }

    fn ask_for(&mut self, at: usize, request: Request) {
        let (number, node) = (self.hub.sessions[at].id.number, self.hub.sessions[at].node);
        if let Request::Open { .. } = request {
            // Each node knows the sessions that it has itself.
            for other in &mut self.hub.sessions {
                if other.node == node && other.id.number < number && !other.has_ended {
                    other.session.handle_taken_over();
                    self.coverage.note(Seen::TakeOver);
                }
            }
        }
        self.hub.queue.push_back((Some(number), request));
        self.begin_commit();
    }

    /// Whether the hub's side of a connection lives.
    pub(crate) fn hub_has_session(&self, connection: u64) -> bool {
        self.session_of(connection).is_some()
    }

    fn session_of(&self, connection: u64) -> Option<usize> {
        self.hub.sessions.iter().position(|one| one.connection == connection && !one.has_ended)
    }

    fn note_hub_message(&mut self, text: &str) {
        if text.contains("\"records\":0") {
            self.coverage.note(Seen::Paused);
        }
        if text.contains("\"gap\"") {
            self.coverage.note(Seen::Gap);
        }
    }
}
