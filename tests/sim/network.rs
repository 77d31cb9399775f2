//! Connections between the board and the hub's nodes: bytes take their time, stand still, get lost
//! with the connection, and arrive when a newer connection is already up.

use std::collections::VecDeque;

use crate::world::Time;

/// What the kernel takes of a connection before it is on the wire.
const SOCKET_BYTES: u64 = 24 * 1024;

/// What a frame costs beside its payload: WebSocket, TLS and TCP heads.
const FRAME_BYTES: u64 = 40;

/// How many messages the link's queue takes beside the one that is being written.
const LINK_QUEUE: usize = 5;

/// A WebSocket frame, or the end of the connection.
#[derive(Debug, Clone)]
pub(crate) enum Frame {
    Text(String),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(u16),
    End,
}

/// One direction of a connection.
#[derive(Debug)]
pub(crate) struct Pipe {
    bytes_per_s: u64,
    delay: Time,
    /// All bytes given to it so far, and when the last of them is on the wire.
    offered: u64,
    free_at: Time,
    /// Nothing moves since then.
    stopped_at: Option<Time>,
    last_arrival: Time,
    travelling: VecDeque<Travelling>,
    /// What the kernel had taken when it was last found full.
    full_at: Option<u64>,
    /// How much had arrived when that was last asked.
    arrived: u64,
}

#[derive(Debug)]
struct Travelling {
    frame: Frame,
    /// Its last byte, counted from the beginning of the connection.
    end: u64,
    arrives: Time,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) id: u64,
    pub(crate) up: Pipe,
    pub(crate) down: Pipe,
    /// Whether each side still has it.
    pub(crate) at_gateway: bool,
    pub(crate) at_hub: bool,
    /// It will never move again.
    pub(crate) is_dead: bool,
    /// A direction stands still since then, for the gateway to find out.
    pub(crate) silent_since: Option<Time>,
    /// Bytes went up since that the peer's kernel has not acknowledged.
    pub(crate) is_unanswered: bool,
    /// Records are under way meanwhile, and a limit is set for that.
    pub(crate) is_awaited: bool,
    /// Until then a direction of it stood still.
    pub(crate) moves_since: Time,
}

impl Connection {
    /// Whether nothing passes in either direction.
    pub(crate) fn is_mute(&self) -> bool {
        self.up.stopped_at.is_some() && self.down.stopped_at.is_some()
    }
}

impl Pipe {
    pub(crate) fn new(bytes_per_s: u64, delay: Time) -> Self {
        Self {
            bytes_per_s,
            delay,
            offered: 0,
            free_at: 0,
            stopped_at: None,
            last_arrival: 0,
            travelling: VecDeque::new(),
            full_at: None,
            arrived: 0,
        }
    }

    /// Takes a frame and says when it arrives, if nothing comes between.
    pub(crate) fn offer(&mut self, now: Time, frame: Frame) -> Time {
        let bytes = FRAME_BYTES
            + match &frame {
                Frame::Text(text) => text.len() as u64,
                Frame::Ping(payload) | Frame::Pong(payload) => payload.len() as u64,
                Frame::Close(_) | Frame::End => 0,
            };
        self.offered += bytes;
        let begins = self.free_at.max(self.stopped_at.unwrap_or(now));
        self.free_at = begins + bytes * 1_000_000 / self.bytes_per_s;
        let arrives = (self.free_at + self.delay).max(self.last_arrival);
        self.last_arrival = arrives;
        self.travelling.push_back(Travelling { frame, end: self.offered, arrives });
        self.full_at = self.full_at.or_else(|| self.full_at(now));
        arrives
    }

    /// The next frame that has arrived.
    pub(crate) fn arrive(&mut self, now: Time) -> Option<Frame> {
        if self.stopped_at.is_some() {
            return None;
        }
        let has_arrived = self.travelling.front().is_some_and(|first| first.arrives <= now);
        if has_arrived { self.travelling.pop_front().map(|first| first.frame) } else { None }
    }

    /// How many bytes the kernel has taken.
    pub(crate) fn taken(&self, now: Time) -> u64 {
        self.offered.min(self.on_wire(now) + SOCKET_BYTES)
    }

    /// As in `link::stream`: whether the kernel has taken something since it was found full. What
    /// it takes while it has room says nothing.
    pub(crate) fn has_made_room(&mut self, now: Time) -> bool {
        let taken = self.taken(now);
        let has_made_room = self.full_at.is_some_and(|before| before < taken);
        if has_made_room {
            self.full_at = self.full_at(now);
        }
        has_made_room
    }

    /// Whether more has arrived than when this was last asked: half a frame counts as well.
    pub(crate) fn has_brought_more(&mut self, now: Time) -> bool {
        let at = self.stopped_at.unwrap_or(now).min(now).saturating_sub(self.delay);
        let arrived = self.on_wire(at).max(self.arrived);
        std::mem::replace(&mut self.arrived, arrived) < arrived
    }

    fn full_at(&self, now: Time) -> Option<u64> {
        Some(self.taken(now)).filter(|taken| *taken < self.offered)
    }

    /// Whether the link's queue takes another message.
    pub(crate) fn has_room(&self, now: Time) -> bool {
        let taken = self.taken(now);
        self.travelling.iter().rev().take_while(|one| one.end > taken).count() < LINK_QUEUE
    }

    /// When there will be room for the next message.
    pub(crate) fn room_at(&self, now: Time) -> Option<Time> {
        if self.stopped_at.is_some() {
            return None;
        }
        let taken = self.taken(now);
        let first = self.travelling.iter().find(|one| one.end > taken)?;
        let left = self.offered - (first.end - SOCKET_BYTES.min(first.end));
        Some(self.free_at.saturating_sub(left * 1_000_000 / self.bytes_per_s).max(now) + 1)
    }

    /// Nothing moves any more.
    pub(crate) fn stop(&mut self, now: Time) {
        self.stopped_at.get_or_insert(now);
    }

    /// It moves again. Says when each of the frames under way arrives.
    pub(crate) fn go_on(&mut self, now: Time) -> Vec<Time> {
        let Some(stopped_at) = self.stopped_at.take() else { return Vec::new() };
        self.free_at = now + self.free_at.saturating_sub(stopped_at);
        let (free_at, offered, rate) = (self.free_at, self.offered, self.bytes_per_s);
        for one in &mut self.travelling {
            let on_wire = free_at.saturating_sub((offered - one.end) * 1_000_000 / rate);
            one.arrives = one.arrives.max(on_wire.max(now) + self.delay);
        }
        self.last_arrival = self.travelling.back().map_or(self.last_arrival, |last| last.arrives);
        self.travelling.iter().map(|one| one.arrives).collect()
    }

    /// Whether something waits that the peer has not got.
    pub(crate) fn is_unacknowledged(&self) -> bool {
        !self.travelling.is_empty()
    }

    /// The sender is gone: what its kernel did not take is lost.
    pub(crate) fn forget_untaken(&mut self, now: Time) {
        let taken = self.taken(now);
        self.travelling.retain(|one| one.end <= taken);
    }

    /// Everything under way is lost.
    pub(crate) fn forget_all(&mut self) {
        self.travelling.clear();
    }

    /// What is under way comes later than it would have.
    pub(crate) fn delay_by(&mut self, time: Time) -> Vec<Time> {
        for one in &mut self.travelling {
            one.arrives += time;
        }
        self.last_arrival += time;
        self.travelling.iter().map(|one| one.arrives).collect()
    }

    fn on_wire(&self, now: Time) -> u64 {
        let at = self.stopped_at.unwrap_or(now).min(now);
        let waits = self.free_at.saturating_sub(at) * self.bytes_per_s / 1_000_000;
        self.offered.saturating_sub(waits)
    }
}
