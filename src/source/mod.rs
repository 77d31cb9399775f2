//! Southbound: where publishes come from and commands go to.
//!
//! A source hears devices and hands each publish on with a [`Receipt`]; it acknowledges (PUBACK)
//! only when that receipt comes back in [`Request::Safe`], and per connection in the order of
//! receipt (MQTT-4.6.0-2). It delivers commands and says what became of each.
//!
//! A source must never acknowledge by itself what the gateway is interested in, never reorder, and
//! never deliver a command twice: a delivery that was cut off before its PUBACK is reported as
//! [`Notice::Interrupted`], not repeated.

pub mod listener;
pub mod mqtt;
pub mod receipts;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::record::{Publish, Receipt, SourceId};

/// How many publishes may wait between a source and the gateway. A full queue stops the source's
/// reading.
pub const PUBLISH_QUEUE: usize = 256;

/// How many notices may wait between a source and the gateway.
pub const NOTICE_QUEUE: usize = 256;

/// Where a source puts what it hears.
#[derive(Debug, Clone)]
pub struct Sink {
    /// The source's own number.
    pub source: SourceId,
    /// Publishes that match an interest. Not read while the gateway's memory is full.
    pub publishes: mpsc::Sender<Publish>,
    /// All else. Always read.
    pub notices: mpsc::Sender<Notice>,
}

/// What a source has to say beside publishes.
#[derive(Debug, Clone)]
pub enum Notice {
    /// The source's whole in-flight window waits for receipts: what is unsafe is to be written now.
    Exhausted(SourceId),
    /// A device came.
    Birth {
        /// The device: its client identifier.
        device: String,
        /// Where.
        source: SourceId,
    },
    /// A device went.
    Death {
        /// The device: its client identifier.
        device: String,
        /// `will`, `keep alive`, `disconnect` or `connection lost`.
        reason: &'static str,
    },
    /// Publishes that the source itself could not take.
    Refused {
        /// Whose.
        device: Option<String>,
        /// Why, as in a `refused` event.
        reason: &'static str,
        /// Given back when the refusal is accounted for.
        receipt: Option<Receipt>,
    },
    /// The device's transport took the command (PUBACK; for a QoS 0 subscriber: written to its
    /// connection).
    Delivered {
        /// As in [`Delivery`].
        token: u64,
    },
    /// Nothing was sent: no subscriber is connected, or there is no connection to the broker. It
    /// may be tried again.
    Undelivered {
        /// As in [`Delivery`].
        token: u64,
    },
    /// The command was sent, and the connection ended before the PUBACK: whether the device has it
    /// can't be known.
    Interrupted {
        /// As in [`Delivery`].
        token: u64,
    },
    /// For `status` and the log: whether the source can hear anything, and details for a person.
    State {
        /// Which source.
        source: SourceId,
        /// Connected to the broker; the listener bound.
        up: bool,
        /// Such as `connected to 127.0.0.1:1883, session resumed` or `3 clients`.
        detail: String,
    },
}

/// What a source is asked to do. The queue of requests is not bounded by itself: each answers
/// something that is.
#[derive(Debug)]
pub enum Request {
    /// The publish is safe: acknowledge it when all before it on its connection are.
    Safe(Receipt),
    /// Deliver a command, at QoS 1, not retained; answered by one of three notices.
    Deliver(Delivery),
    /// Stop reading publishes, send the PUBACKs that are due, close in order, end the task.
    Stop,
}

/// A command on its way to a device.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Names this delivery in the notice that answers it.
    pub token: u64,
    /// The topic name.
    pub topic: String,
    /// The JSON that the device gets.
    pub payload: Bytes,
}
