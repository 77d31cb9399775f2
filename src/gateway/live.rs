//! A live session: whether the peer is there, what it has read, and how much it is given.
//!
//! It must never take a slow link for a dead one: whatever leaves or comes is progress. But a peer
//! that only makes noise is given up, for of what it owes the acks alone count.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{pace::Pace, uplink::UplinkSettings};
use crate::protocol::{HubLimits, Position};

/// A peer that lives and acknowledges nothing is given up after so many `ack_timeout`s and the time
/// that what is under way takes on a link of so many bytes a second, which is at most so long.
const PATIENCE: u32 = 6;
const SLOWEST_BYTES_PER_S: u64 = 1000;
const LONGEST_CARRIAGE: Duration = Duration::from_secs(180);

/// A fresh token is shown when so much of the old one's life is left, and not more often than this.
const REFRESH_LEFT: u32 = 5;
const REFRESH_EVERY: Duration = Duration::from_secs(10);

/// A live session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) managed: bool,
    pub(super) name: String,
    pub(super) since: Instant,
    pub(super) limits: HubLimits,
    pub(super) pace: Pace,
    /// One batch at a time until then: a message was too big, and it must be seen which.
    pub(super) alone_until: Option<Instant>,
    /// When there was last any sign of progress, and when the hub last acknowledged something, or
    /// let a paused stream go on.
    progress: Instant,
    acked: Instant,
    /// When the next Ping is due, unless something is heard before.
    ping_at: Instant,
    ping_sent: Option<Instant>,
    next_ping: u64,
    /// Plain mode: what had been written before each Ping.
    barriers: VecDeque<(u64, Vec<Position>)>,
    /// Frames written since the last Ping (plain mode).
    pub(super) unbarred: usize,
    /// The hub was told that it sends what is malformed.
    pub(super) has_complained: bool,
    /// When the hub's token is to be replaced, and when it ends.
    token: Option<TokenLife>,
}

/// What waits for its ack.
#[derive(Debug, Clone, Copy)]
pub(super) struct UnderWay {
    /// When the oldest of it was sent, and since when it does without an ack: earlier, where the
    /// hub missed it and it was sent again.
    pub(super) sent: Instant,
    pub(super) since: Instant,
    /// All of it, on the link.
    pub(super) wire_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct TokenLife {
    refresh_at: Instant,
    ends_at: Instant,
}

/// How long a live link may go without an ack before it is given up, at the most.
pub(super) fn longest_patience(settings: &UplinkSettings) -> Duration {
    settings.ack_timeout * PATIENCE + LONGEST_CARRIAGE
}

/// What a live session's clock asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Send a Ping.
    Ping,
    /// Show a fresh token.
    Token,
    /// The link is dead.
    Dead(&'static str),
}

impl Session {
    pub(super) fn new(
        now: Instant,
        managed: bool,
        name: String,
        limits: HubLimits,
        first_ping: Duration,
    ) -> Self {
        Self {
            managed,
            name,
            since: now,
            limits,
            pace: Pace::default(),
            alone_until: None,
            progress: now,
            acked: now,
            ping_at: now + first_ping,
            ping_sent: None,
            next_ping: 1,
            barriers: VecDeque::new(),
            unbarred: 0,
            has_complained: false,
            token: None,
        }
    }

    pub(super) fn handle_heard(&mut self, now: Instant, interval: Duration) {
        self.progress = now;
        self.ping_sent = None;
        self.ping_at = now + interval;
    }

    /// Bytes left the socket.
    pub(super) fn handle_progress(&mut self, now: Instant) {
        self.progress = now;
    }

    /// The hub has more than before, or lets a paused stream go on.
    pub(super) fn handle_acked(&mut self, now: Instant) {
        self.acked = now;
    }

    /// The token of this session lives so long from now on.
    pub(super) fn handle_token_life(&mut self, now: Instant, left: Duration) {
        let refresh_at = now + (left - left / REFRESH_LEFT).max(REFRESH_EVERY);
        self.token = Some(TokenLife { refresh_at, ends_at: now + left });
    }

    /// The token of this session does not end.
    pub(super) fn handle_endless_token(&mut self) {
        self.token = None;
    }

    /// A fresh token is asked for; should it not do, there is another try in half of the time left.
    pub(super) fn handle_token_asked(&mut self, now: Instant) {
        if let Some(token) = &mut self.token {
            let left = token.ends_at.saturating_duration_since(now);
            token.refresh_at = now + (left / 2).max(REFRESH_EVERY);
        }
    }

    /// Asks at once whether the link lives, unless it is being asked.
    pub(super) fn probe(&mut self, now: Instant) {
        self.ping_at = self.ping_at.min(now);
    }

    pub(super) fn deadline(
        &self,
        settings: &UplinkSettings,
        under_way: Option<UnderWay>,
    ) -> Instant {
        let liveness = match self.ping_sent {
            Some(sent) => sent.max(self.progress) + settings.ping_timeout,
            None => self.ping_at,
        };
        let ack = under_way.map(|under_way| self.ack_deadline(settings, under_way));
        let token = self.token.map(|token| token.refresh_at);
        [ack, token].into_iter().flatten().fold(liveness, Instant::min)
    }

    /// Something of what is under way must be acknowledged by then.
    fn ack_deadline(&self, settings: &UplinkSettings, under_way: UnderWay) -> Instant {
        let UnderWay { sent, since, wire_bytes } = under_way;
        let carriage = Duration::from_millis(wire_bytes.saturating_mul(1000) / SLOWEST_BYTES_PER_S);
        let patience = settings.ack_timeout * PATIENCE + carriage.min(LONGEST_CARRIAGE);
        let silent = sent.max(self.progress) + settings.ack_timeout;
        silent.min(since.max(self.acked) + patience)
    }

    pub(super) fn due(
        &self,
        now: Instant,
        settings: &UplinkSettings,
        under_way: Option<UnderWay>,
    ) -> Option<Due> {
        if under_way.is_some_and(|under_way| self.ack_deadline(settings, under_way) <= now) {
            let is_silent = self.progress + settings.ack_timeout <= now;
            return Some(Due::Dead(if is_silent {
                "no ack and no progress within ack_timeout"
            } else {
                "the peer is there, and acknowledges nothing"
            }));
        }
        match self.ping_sent {
            Some(sent) if sent.max(self.progress) + settings.ping_timeout <= now => {
                return Some(Due::Dead("no Pong and no progress within ping_timeout"));
            }
            None if self.ping_at <= now => return Some(Due::Ping),
            _ => {}
        }
        self.token.filter(|token| token.refresh_at <= now).map(|_| Due::Token)
    }

    /// The payload of the next Ping, which is a barrier behind `positions` in plain mode.
    pub(super) fn ping(
        &mut self,
        now: Instant,
        positions: impl FnOnce() -> Vec<Position>,
    ) -> Vec<u8> {
        let counter = self.next_ping;
        self.next_ping += 1;
        self.unbarred = 0;
        if !self.managed {
            self.barriers.push_back((counter, positions()));
        }
        self.ping_sent.get_or_insert(now);
        counter.to_string().into_bytes()
    }

    /// How many Pings wait for their Pong.
    pub(super) fn barriers(&self) -> usize {
        self.barriers.len()
    }

    /// What the peer's WebSocket stack has read, now that it answered this Ping.
    pub(super) fn handle_pong(&mut self, payload: &[u8]) -> Vec<Position> {
        let counter = std::str::from_utf8(payload).ok().and_then(|text| text.parse::<u64>().ok());
        let mut reached = Vec::new();
        while let Some((known, _)) = self.barriers.front()
            && counter.is_some_and(|counter| *known <= counter && counter < self.next_ping)
        {
            reached = self.barriers.pop_front().map_or_else(Vec::new, |(_, positions)| positions);
        }
        reached
    }
}
