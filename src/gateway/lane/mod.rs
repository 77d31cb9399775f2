//! One stream: its epochs, what of them is in memory, what is under way, and who waits for it.
//!
//! A lane numbers records, hands them to the disk when they are due, gives the next one to send,
//! and lets go of what the hub holds. It must never give a number twice, never send past the hub's
//! window, and never let go of a receipt before its record is safe.

mod disk;
mod fresh;
mod uplink;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;

pub(super) use self::uplink::Horizon;
use super::Settings;
use crate::{
    planted::{Bug, planted},
    protocol::{Epoch, HeldEpoch, StreamName, Window},
    record::Receipt,
    spool::{HeldRange, Item, Origin},
};

/// What a record costs in memory beside its bytes.
const OVERHEAD_BYTES: usize = 96;

/// How much of a backlog is read ahead of the link.
pub(super) const READ_AHEAD_BYTES: usize = 256 * 1024;

/// How many epochs of a stream `hello` lists, so that a gateway that starts over and over without a
/// hub still has a `hello` that fits a message.
const MAX_LISTED: usize = 256;

/// After so many sessions that the peer ended on the same unacknowledged batch, the batch is halved
/// (PROTOCOL.md, 4).
const STRIKES: u32 = 3;

/// So long a session must live without a single suspect record before that is sent, and so soon it
/// must end then for the record to be the cause. A link that flaps condemns nothing.
const QUIET: Duration = Duration::from_secs(30);
const SUDDEN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) name: StreamName,
    /// The lane's index, by which the spool knows it.
    index: usize,
    /// Oldest first; the last is the current one and never goes.
    epochs: VecDeque<EpochState>,
    /// Epochs that the hub holds in full and the disk has yet to let go of for good. `hello` lists
    /// them until then: a hub that had forgotten one would take it for new if a crash brought
    /// it back.
    retiring: Vec<Retiring>,
    memory: VecDeque<Kept>,
    memory_bytes: usize,
    /// The number of the first record in memory; all after it up to `next` are there too.
    memory_first: u64,
    /// Up to here receipts have been given back.
    released: u64,
    /// Up to here the current epoch was handed to the disk or acknowledged, and up to here it is
    /// safe.
    appending: u64,
    synced: u64,
    /// One past the last number of the current epoch that the disk was given, and how far it was
    /// told to trim it.
    disk_end: u64,
    trimmed: u64,
    /// Whether only what is on disk may be sent.
    disk_first: bool,
    /// Whether after an outage fresh records go first, in an epoch of their own.
    live_first: Option<u64>,
    wants_epoch: bool,
    /// One past the last number of the current epoch that was ever put on a link.
    sent_end: u64,
    /// Read from disk for the link, and of which epoch.
    ahead: VecDeque<Item>,
    ahead_epoch: Epoch,
    reading: bool,
    flight: VecDeque<Batch>,
    flight_records: u64,
    flight_bytes: u64,
    flight_wire_bytes: u64,
    /// How long what the hub missed had waited for an ack: it waits on when it is sent again.
    waited: Duration,
    window: Window,
    suspect: Suspect,
    /// A single suspect record is held back until then: does the session live without it?
    quiet_until: Option<Instant>,
    /// Since start: skipped records, as the hub was told.
    pub(super) skipped: u64,
}

#[derive(Debug)]
struct EpochState {
    epoch: Epoch,
    acked: u64,
    next: u64,
    /// The next to send in this session.
    send: u64,
    /// The hub wants to hear of numbers that this side let go of already.
    owed: Option<u64>,
}

#[derive(Debug)]
struct Retiring {
    epoch: Epoch,
    next: u64,
    asked: bool,
}

#[derive(Debug)]
struct Kept {
    bytes: Bytes,
    heard: Instant,
    origin: Option<Origin>,
    receipts: Receipts,
}

/// Who waits for a record.
#[derive(Debug, Default)]
pub(super) enum Receipts {
    /// Nobody.
    #[default]
    None,
    /// One publish: the usual case costs no allocation.
    One(Receipt),
    /// Several publishes that one report accounts for.
    Many(Vec<Receipt>),
}

#[derive(Debug)]
struct Batch {
    epoch: Epoch,
    first: u64,
    /// One past the last number.
    end: u64,
    records: u64,
    /// Of payload, which the window counts.
    bytes: u64,
    /// Of the message.
    wire_bytes: u64,
    sent: Instant,
}

/// What an ack says has arrived.
#[derive(Debug, Default)]
pub(super) struct Landed {
    /// The hub has more than before, or lets the paused stream go on.
    pub(super) goes_on: bool,
    /// When the oldest message of it was sent.
    pub(super) sent: Option<Instant>,
    /// Of the messages.
    pub(super) wire_bytes: u64,
}

/// What ended sessions have in common.
#[derive(Debug, Default)]
struct Suspect {
    epoch: Option<Epoch>,
    /// Where what is suspect begins; its good half moves this on. Once there is a limit: the
    /// culprit comes before `end`.
    first: u64,
    end: u64,
    strikes: u32,
    /// How many records from `first` on may be under way; 0 when a single one is suspect.
    limit: Option<u64>,
    /// The single record ended a session that had lived well without it, or the peer said so; the
    /// reason of its skip.
    guilt: Option<&'static str>,
}

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) lane: usize,
    pub(super) epoch: Epoch,
    pub(super) seq: u64,
}

/// The next thing to send.
#[derive(Debug)]
pub(super) enum Next {
    Record { epoch: Epoch, seq: u64, bytes: Bytes },
    Skip { epoch: Epoch, from: u64, to: u64, reason: String },
}

impl Lane {
    pub(super) fn new(index: usize, name: StreamName, settings: &Settings) -> Self {
        // An epoch is the start's own in every stream; streams are told apart by their names.
        let epoch = settings.epoch;
        Self {
            name,
            index,
            epochs: VecDeque::from([EpochState::new(epoch, 0, 1)]),
            retiring: Vec::new(),
            memory: VecDeque::new(),
            memory_bytes: 0,
            memory_first: 1,
            released: 1,
            appending: 1,
            synced: 1,
            disk_end: 1,
            trimmed: 0,
            disk_first: settings.disk_first,
            live_first: settings.live_first,
            wants_epoch: false,
            sent_end: 1,
            ahead: VecDeque::new(),
            ahead_epoch: epoch,
            reading: false,
            flight: VecDeque::new(),
            flight_records: 0,
            flight_bytes: 0,
            flight_wire_bytes: 0,
            waited: Duration::ZERO,
            window: Window::default(),
            suspect: Suspect::default(),
            quiet_until: None,
            skipped: 0,
        }
    }

    /// Takes over what an earlier start left on disk.
    pub(super) fn inherit(&mut self, held: &HeldRange) {
        let epoch = Epoch(held.epoch);
        if held.next == held.acked + 1 {
            self.retiring.push(Retiring { epoch, next: held.next, asked: false });
            return;
        }
        let state = EpochState::new(epoch, held.acked, held.next);
        let current = self.epochs.len() - 1;
        self.epochs.insert(current, state);
    }

    /// Numbers a record and keeps it; `origin` is kept with it where that outlives a crash.
    pub(super) fn push(
        &mut self,
        now: Instant,
        bytes: Bytes,
        origin: Option<Origin>,
        receipts: Receipts,
    ) -> Place {
        self.memory_bytes += bytes.len() + OVERHEAD_BYTES;
        let origin = origin.filter(|_| self.disk_first);
        self.memory.push_back(Kept { bytes, heard: now, origin, receipts });
        let (lane, epoch) = (self.index, self.last().epoch);
        let current = self.current();
        current.next += 1;
        Place { lane, epoch, seq: current.next - 1 }
    }

    /// One more publish that waits for a record; it is given back if the record is safe.
    pub(super) fn attach(&mut self, place: Place, receipt: Receipt) -> Option<Receipt> {
        let unsafe_from = self.released.max(self.memory_first);
        if place.epoch != self.last().epoch || place.seq < unsafe_from {
            return Some(receipt);
        }
        let Some(kept) = self.memory.get_mut((place.seq - self.memory_first) as usize) else {
            return Some(receipt);
        };
        kept.receipts.add(receipt);
        None
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Records that the hub does not hold yet.
    pub(super) fn held_records(&self) -> u64 {
        self.epochs.iter().map(|epoch| epoch.next - 1 - epoch.acked).sum()
    }

    /// What `hello` says of this stream: an epoch that was never begun at the hub may be left out.
    pub(super) fn held(&self) -> impl Iterator<Item = HeldEpoch> {
        let retiring = self.retiring.iter().filter(|_| !planted(Bug::FinishedEpochUnlisted));
        let retiring = retiring.map(|old| (old.epoch, old.next, old.next));
        let newest = self.epochs.len() - 1;
        let listed = move |place: usize, state: &EpochState| {
            place < MAX_LISTED || place == newest || state.acked > 0
        };
        let held = self.epochs.iter().enumerate().filter(move |(at, state)| listed(*at, state));
        let held = held.map(|(_, state)| (state.epoch, state.acked + 1, state.next));
        retiring.chain(held).map(|(epoch, first, next)| HeldEpoch {
            stream: self.name.clone(),
            epoch,
            first,
            next,
        })
    }

    /// Whether `hello` leaves something out.
    pub(super) fn is_listed_in_part(&self) -> bool {
        self.epochs.len() > MAX_LISTED
    }

    fn current(&mut self) -> &mut EpochState {
        self.epochs.back_mut().expect("the current epoch never goes")
    }

    fn last(&self) -> &EpochState {
        self.epochs.back().expect("the current epoch never goes")
    }
}

impl Suspect {
    /// The numbers that may go while a culprit is searched for in this epoch: from the first up to
    /// and without the second.
    fn half_of(&self, epoch: Epoch) -> Option<(u64, u64)> {
        let limit = self.limit.filter(|_| self.epoch == Some(epoch) && self.guilt.is_none())?;
        Some((self.first, self.first + limit.max(1)))
    }
}

impl EpochState {
    fn new(epoch: Epoch, acked: u64, next: u64) -> Self {
        Self { epoch, acked, next, send: acked + 1, owed: None }
    }
}

impl Receipts {
    fn add(&mut self, receipt: Receipt) {
        match self {
            Self::None => *self = Self::One(receipt),
            Self::One(first) => *self = Self::Many(vec![*first, receipt]),
            Self::Many(receipts) => receipts.push(receipt),
        }
    }

    pub(super) fn give_back(self, safe: &mut Vec<Receipt>) {
        match self {
            Self::None => {}
            Self::One(receipt) => safe.push(receipt),
            Self::Many(receipts) => safe.extend(receipts),
        }
    }
}

impl From<Option<Receipt>> for Receipts {
    fn from(receipt: Option<Receipt>) -> Self {
        receipt.map_or(Self::None, Self::One)
    }
}
