//! Faults on purpose, to prove that the simulation (`tests/sim`) would find such a fault.
//!
//! Each is a condition at the place where it would have been made. Without the feature `planted`,
//! which no program is built with, `planted` is a constant `false` and nothing of a fault is
//! compiled. With it, one fault is chosen per thread at run time, and none unless a test chooses.

/// A fault that can be planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bug {
    /// Receipts are given back when a write has ended, even if it failed.
    ReceiptAfterFailedWrite,
    /// A group is written and never synced.
    SyncLeftOut,
    /// An acknowledgement that is due overtakes those before it.
    AcksOutOfOrder,
    /// The receipt of a refused publish does not wait for its report.
    RefusalReceiptEarly,
    /// A publish marked DUP is taken for a known one.
    DupTakenForKnown,
    /// The hub acknowledges what it has only handed to its engine.
    AckBeforeStore,
    /// `hello` does not list an epoch that the disk has yet to let go of.
    FinishedEpochUnlisted,
    /// An ack lets the spool go of one record more than it names.
    TrimTooFar,
    /// What was evicted leaves no trace.
    EvictionUntold,
    /// Records are sent whatever the hub's window says.
    WindowIgnored,
    /// After a hole the gateway goes on one record too late.
    GapOneTooFar,
    /// A record that ends every session is never left out.
    PoisonNeverSkipped,
    /// A link that answers nothing counts as alive.
    DeadLinkNeverFound,
    /// A window that opens leaves what was under way as late as it is.
    PauseCountsAsWaiting,
    /// The wait between attempts does not grow.
    BackOffNeverGrows,
    /// What the hub said about coming back is not kept to.
    DrainIgnored,
    /// A session that was taken over comes back at once.
    TakeOverRushed,
    /// The journal does not say that a command is about to go to the device.
    CommandNotJournalled,
    /// A command that may have run is delivered again after a crash.
    CommandRunAgain,
    /// A final state is reported before the journal has it.
    FinalBeforeJournal,
    /// Of a command it is not looked at how long it may still be delivered.
    ExpiredCommandRuns,
}

#[cfg(feature = "planted")]
std::thread_local! {
    static CHOSEN: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Chooses the fault of this thread; `None` for none.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    CHOSEN.set(bug);
}

/// Whether this fault is there.
#[cfg(feature = "planted")]
pub(crate) fn planted(bug: Bug) -> bool {
    CHOSEN.get() == Some(bug)
}

/// Whether this fault is there: it is not.
#[cfg(not(feature = "planted"))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}
