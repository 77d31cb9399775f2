//! The gateway's link: dialling, what goes up and comes down, and how it ends for each side.

use std::time::Duration;

use fieldgate::gateway::Ended;

use crate::{
    board::brief,
    coverage::Seen,
    network::{Connection, Frame, Pipe},
    plan::{ACK_TIMEOUT, PING_INTERVAL, PING_TIMEOUT},
    world::{Event, MS, SECOND, Time, World},
};

/// As in `link::connect`: how long sent bytes may go unacknowledged by the peer's kernel.
const UNACKED_LIMIT: Time = 30 * SECOND;

/// By then the gateway must have found out that one direction of its link stands still: what moves
/// in the other may be progress for a while, and the peer has its own limits.
const ONE_WAY_LIMIT: Time = 60 * SECOND;

/// By then, that both do: a Ping after `ping_interval`, and nothing within `ping_timeout`; where
/// records are under way, nothing within `ack_timeout`. The driver learns up to a second late that
/// the socket had made room, or brought half a frame.
const IDLE_LIMIT: Time = micros(PING_INTERVAL) + micros(PING_TIMEOUT) + LATE;
const UNDER_WAY_LIMIT: Time = micros(ACK_TIMEOUT) + LATE;
const LATE: Time = 3 * SECOND / 2;

/// A link that moves is given up only for what happened so shortly before.
const GRUDGE: Time = 90 * SECOND;

const fn micros(time: Duration) -> Time {
    time.as_micros() as Time
}

/// How long a step of dialling may take.
const CONNECT_TIMEOUT: Time = 10 * SECOND;

/// The gateway's end of its link.
#[derive(Debug)]
pub(crate) struct LinkEnd {
    pub(crate) attempt: u64,
    pub(crate) node: usize,
    /// Once it is up.
    pub(crate) connection: Option<u64>,
}

impl World {
    pub(crate) fn dial(&mut self, node: usize) {
        self.oracle.wire.dials(self.now);
        self.next_attempt += 1;
        let (start, attempt) = (self.board.starts, self.next_attempt);
        let process = self.board.process.as_mut().expect("it has just asked");
        assert!(process.link.is_none(), "a second link is dialled");
        process.link = Some(LinkEnd { attempt, node, connection: None });
        let handshake = 2 * self.plan.delay + self.random.below(50 * MS);
        let is_reachable = !self.is_network_down();
        let wait = if is_reachable { handshake } else { CONNECT_TIMEOUT };
        self.after(wait, Event::Dialled { start, attempt });
    }

    /// A dial comes to its end.
    pub(crate) fn dialled(&mut self, start: u64, attempt: u64) {
        let is_down = self.is_network_down();
        let (bytes_per_s, delay) = (self.plan.bytes_per_s, self.plan.delay);
        let Some(process) = self.process(start) else { return };
        let Some(link) = process.link.as_mut().filter(|link| link.attempt == attempt) else {
            return;
        };
        let node = link.node;
        if is_down || !self.hub.is_up[node] {
            self.coverage.note(Seen::FailedDial);
            return self.link_ended(&Ended::Dial("TCP: no answer".into()));
        }
        let id = self.next_connection;
        self.next_connection += 1;
        let process = self.board.process.as_mut().expect("looked at just now");
        process.link = Some(LinkEnd { attempt, node, connection: Some(id) });
        let pipe = || Pipe::new(bytes_per_s, 1 + delay);
        self.connections.insert(
            id,
            Connection {
                id,
                up: pipe(),
                down: pipe(),
                at_gateway: true,
                at_hub: true,
                is_dead: false,
                silent_since: None,
                is_unanswered: false,
                is_awaited: false,
                moves_since: 0,
            },
        );
        self.newest_connection = id;
        if bytes_per_s < 10_000 {
            self.coverage.note(Seen::SlowLink);
        }
        self.note_with(|| format!("connection {id} to node {node} is up"));
        self.oracle.wire.begin();
        self.hub_accepts(id, node);
        self.with_gateway(|gateway, now| gateway.handle_up(now, Some("fieldgate.v1.json")));
    }

    /// Whether the link is there and its queue takes a message.
    pub(crate) fn link_has_room(&mut self) -> bool {
        let Some(process) = &self.board.process else { return false };
        let Some(link) = &process.link else { return false };
        let Some(id) = link.connection else { return false };
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        if connection.up.has_room(self.now) {
            return true;
        }
        let room_at = connection.up.room_at(self.now);
        if let Some(at) = room_at.filter(|at| *at != self.room_asked) {
            self.room_asked = at;
            self.at(at, Event::Nudge);
        }
        false
    }

    pub(crate) fn send_up(&mut self, frame: Frame) {
        let link = self.board.process.as_ref().and_then(|process| process.link.as_ref());
        let Some(id) = link.and_then(|link| link.connection) else { return };
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let arrives = connection.up.offer(now, frame);
        let since = connection.silent_since.filter(|_| !connection.is_unanswered);
        connection.is_unanswered |= since.is_some();
        self.at(arrives, Event::Arrive { connection: id });
        if let Some(since) = since.filter(|_| self.plan.has_user_timeout) {
            self.after(UNACKED_LIMIT, Event::UserTimeout { connection: id, since });
        }
    }

    pub(crate) fn send_down(&mut self, id: u64, frame: Frame) {
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.at_hub {
            let arrives = connection.down.offer(now, frame);
            self.at(arrives, Event::Arrive { connection: id });
        }
    }

    /// What has arrived on either side is heard.
    pub(crate) fn arrive(&mut self, id: u64) {
        while let Some(frame) = self.connections.get_mut(&id).and_then(|c| c.up.arrive(self.now)) {
            if id != self.newest_connection && matches!(frame, Frame::Text(_)) {
                self.coverage.note(Seen::LateBytes);
            }
            self.hub_hears(id, frame);
            self.settle_hub();
        }
        while let Some(frame) = self.connections.get_mut(&id).and_then(|c| c.down.arrive(self.now))
        {
            self.gateway_hears(id, frame);
            self.settle_board();
        }
        self.connections.retain(|_, connection| connection.at_gateway || connection.at_hub);
    }

    fn gateway_hears(&mut self, id: u64, frame: Frame) {
        let link = self.board.process.as_ref().and_then(|process| process.link.as_ref());
        if link.and_then(|link| link.connection) != Some(id) {
            return;
        }
        match frame {
            Frame::Text(text) => {
                self.note_with(|| format!("hub > {}", brief(&text)));
                self.oracle.wire.got(self.now, &text, &mut self.oracle.fates);
                self.with_gateway(|gateway, now| gateway.handle_text(now, &text));
            }
            Frame::Ping(payload) => {
                self.with_gateway(|gateway, now| gateway.handle_frame(now));
                self.send_up(Frame::Pong(payload));
            }
            Frame::Pong(payload) => {
                self.with_gateway(|gateway, now| gateway.handle_pong(now, &payload));
            }
            Frame::Close(code) => {
                self.gateway_lets_go(id);
                self.link_ended(&Ended::Closed { code, reason: String::new() });
            }
            Frame::End => {
                self.gateway_lets_go(id);
                self.link_ended(&Ended::Cut("the connection was reset".into()));
            }
        }
    }

    /// The core drops its link.
    pub(crate) fn hang_up(&mut self) {
        let link = self.board.process.as_mut().and_then(|process| process.link.take());
        let Some(id) = link.and_then(|link| link.connection) else { return };
        self.note("the gateway hangs up");
        let connection = self.connections.get(&id);
        if connection.is_some_and(|connection| connection.silent_since.is_some()) {
            self.coverage.note(Seen::DeadFound);
        } else {
            self.check_is_right(id);
        }
        self.gateway_lets_go(id);
    }

    /// The gateway gives up a link that stands still in no direction: the hub must have kept it
    /// waiting.
    fn check_is_right(&self, id: u64) {
        let process = self.board.process.as_ref();
        let uplink = process.map(|process| process.gateway.snapshot(self.board_now()).uplink);
        let uplink = uplink.filter(|uplink| uplink.state == "waiting");
        let why = uplink.and_then(|uplink| uplink.last_error).unwrap_or_default();
        let is_verdict = why.contains("no progress") || why.contains("acknowledges nothing");
        let moves_since = self.connections.get(&id).map_or(0, |connection| connection.moves_since);
        let grudge = moves_since.max(self.hub.slow_until).max(self.hub.stuck_until);
        assert!(
            !is_verdict || self.now < grudge + GRUDGE || !self.hub_has_session(id),
            "promise 5: the gateway gives up connection {id}, which lives: {why}"
        );
    }

    /// The gateway's end is closed: what its kernel has taken may still arrive.
    pub(crate) fn gateway_lets_go(&mut self, id: u64) {
        let is_reset = self.random.one_in(3);
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if !std::mem::replace(&mut connection.at_gateway, false) {
            return;
        }
        connection.up.forget_untaken(now);
        if is_reset {
            connection.up.forget_all();
        }
        let arrives = connection.up.offer(now, Frame::End);
        self.at(arrives, Event::Arrive { connection: id });
    }

    /// The hub's end is closed.
    pub(crate) fn hub_lets_go(&mut self, id: u64) {
        self.send_down(id, Frame::End);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.at_hub = false;
        }
    }

    /// Nothing will ever pass on this connection, and nobody says so.
    pub(crate) fn kill_connection(&mut self, id: u64) {
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.is_dead = true;
        connection.up.stop(now);
        connection.down.stop(now);
        self.begin_silence(id);
    }

    /// From now on a direction of the connection stands still.
    pub(crate) fn begin_silence(&mut self, id: u64) {
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.silent_since.is_some() {
            return;
        }
        connection.silent_since = Some(now);
        connection.is_unanswered = connection.up.is_unacknowledged();
        connection.is_awaited = false;
        let limit = if connection.is_mute() { IDLE_LIMIT } else { ONE_WAY_LIMIT };
        if connection.is_unanswered && self.plan.has_user_timeout {
            self.after(UNACKED_LIMIT, Event::UserTimeout { connection: id, since: now });
        }
        self.after(limit, Event::SilenceLimit { connection: id, since: now });
    }

    /// Where records are under way on a link that stands still in both directions, the gateway must
    /// find it the sooner.
    pub(crate) fn limit_silence_under_way(&mut self) {
        let Some(process) = &self.board.process else { return };
        if process.gateway.is_drained() {
            return;
        }
        let link = process.link.as_ref().and_then(|link| link.connection);
        let Some(connection) = link.and_then(|id| self.connections.get_mut(&id)) else { return };
        let Some(since) = connection.silent_since.filter(|_| connection.is_mute()) else { return };
        if !std::mem::replace(&mut connection.is_awaited, true) {
            let connection = connection.id;
            self.after(UNDER_WAY_LIMIT, Event::SilenceLimit { connection, since });
        }
    }

    /// A connection that stood still moves again.
    pub(crate) fn end_silence(&mut self, id: u64) {
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.is_dead {
            return;
        }
        if connection.silent_since.take().is_some() {
            connection.moves_since = now;
        }
        connection.is_unanswered = false;
        let mut arrivals = connection.up.go_on(now);
        arrivals.extend(connection.down.go_on(now));
        for at in arrivals {
            self.at(at, Event::Arrive { connection: id });
        }
    }

    /// The kernel gives up on bytes that nobody acknowledges.
    pub(crate) fn user_timeout(&mut self, id: u64, since: Time) {
        let Some(connection) = self.connections.get(&id) else { return };
        if !connection.at_gateway || connection.silent_since != Some(since) {
            return;
        }
        self.coverage.note(Seen::UserTimeout);
        self.gateway_lets_go(id);
        self.link_ended(&Ended::Cut("TCP: connection timed out".into()));
    }

    /// By now the gateway must know.
    pub(crate) fn check_silence(&mut self, id: u64, since: Time) {
        let connection = self.connections.get(&id);
        let still = connection.is_some_and(|c| c.at_gateway && c.silent_since == Some(since));
        assert!(
            !still,
            "promise 5: connection {id} stands still for {} s and the gateway has not noticed",
            (self.now - since) / SECOND
        );
    }
}
