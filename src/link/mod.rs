//! Northbound: one WebSocket connection to a hub, from the name to the closed socket.
//!
//! [`open`] starts a task that dials ([`dial`]: DNS, TCP, TLS, upgrade, each with a deadline), then carries frames both
//! ways until the connection ends. Reading never stops while writing: against an echo server a client that stops
//! reading deadlocks (PROTOCOL.md, section 8).
//!
//! The link must never retry (the gateway decides when), never interpret a message, and never hold more than its
//! queues: a full request queue is how the gateway learns that the network is slower than it is.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use tokio::sync::mpsc;

/// How many requests may wait for the socket.
pub const REQUEST_QUEUE: usize = 4;

/// How many events may wait for the gateway.
pub const EVENT_QUEUE: usize = 64;

/// A live connection, or one being made. Dropping it ends the task and the socket.
#[derive(Debug)]
pub struct Link {
    /// What to send.
    pub requests: mpsc::Sender<Request>,
    /// What happened; ends with [`Event::Down`].
    pub events: mpsc::Receiver<Event>,
    /// Bytes that the socket took and gave, TLS included: a slow link that moves is not a dead one.
    pub counters: Arc<Counters>,
}

/// Bytes on the wire.
#[derive(Debug, Default)]
pub struct Counters {
    /// Taken by the socket.
    pub sent: AtomicU64,
    /// Given by the socket.
    pub received: AtomicU64,
}

/// What the link is asked to do.
#[derive(Debug)]
pub enum Request {
    /// A text message.
    Text(String),
    /// A Ping with this payload (at most 125 bytes).
    Ping(Vec<u8>),
    /// Close in order: the frame is sent, the peer's answer awaited for one second.
    Close {
        /// RFC 6455, section 7.4.
        code: u16,
        /// At most 123 bytes.
        reason: String,
    },
}

/// What happened on the link.
#[derive(Debug)]
pub enum Event {
    /// The upgrade was answered with 101.
    Up {
        /// The subprotocol that the server selected, if any; a selection that was never offered is a failed dial.
        subprotocol: Option<String>,
        /// The answer's `Date`, Unix milliseconds.
        date_ms: Option<u64>,
    },
    /// A text message.
    Text(String),
    /// A binary message; its content is not kept.
    Binary {
        /// How long it was.
        bytes: usize,
    },
    /// A Pong.
    Pong(Vec<u8>),
    /// Any other frame.
    Heard,
    /// The end; nothing follows.
    Down(Down),
}

/// How a link ended.
#[derive(Debug, Clone)]
pub enum Down {
    /// It never came up. The text names the step, the thing and the remedy.
    Dial {
        /// Which step: `DNS`, `TCP`, `TLS`, `upgrade`.
        step: &'static str,
        /// What went wrong.
        error: String,
    },
    /// The server answered the upgrade with another status than 101.
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The peer closed, or answered our close.
    Closed {
        /// 1005 when it gave none.
        code: u16,
        /// Its words.
        reason: String,
    },
    /// The connection broke, or the peer broke the protocol.
    Cut(String),
}
