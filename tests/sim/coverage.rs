//! What happened over all seeds: a simulation that never meets an eviction proves nothing of
//! evictions.

use std::fmt::Write as _;

macro_rules! seen {
    ($($name:ident = $text:literal,)*) => {
        /// Something worth meeting.
        #[derive(Debug, Clone, Copy)]
        pub(crate) enum Seen {
            $(#[doc = $text] $name,)*
        }

        const TEXTS: &[&str] = &[$($text),*];
    };
}

seen! {
    Published = "publishes heard",
    Acknowledged = "publishes acknowledged to the device",
    Redelivered = "publishes sent again with DUP",
    Recognised = "publishes recognised as kept already",
    DuplicateKept = "publishes stored twice where in doubt",
    Refused = "publishes refused as too large",
    OverShare = "publishes of a flooding device refused",
    Exhausted = "in-flight window of a client used up",
    FullMemory = "memory full, sources not read",
    Appended = "groups appended to the spool",
    FailedAppend = "appends that failed",
    FailedSync = "disks that failed an fsync or write",
    FullDisk = "disks that were full",
    SlowDisk = "disks that stood still",
    UnopenedSpool = "starts without a spool",
    Eviction = "records evicted",
    BitRot = "flipped bytes on disk",
    DamageSkip = "skips for damage",
    EvictedSkip = "skips for evictions",
    PoisonRecord = "records that kill the hub's session",
    PoisonSkip = "skips for poison",
    RejectedRecord = "records that the hub rejected",
    Applied = "records applied",
    Resent = "records resent and already applied",
    EpochPassed = "fresh epochs that passed a backlog",
    Kill = "kills of the gateway",
    KillInDiskWork = "kills in the middle of disk work",
    KillBeforeAnswer = "kills between disk work and its answer",
    PowerCut = "power cuts",
    Stop = "orderly stops of the gateway",
    ReadBack = "reads of a backlog",
    Session = "sessions welcomed",
    OtherNode = "sessions at another hub node than the last",
    FailedDial = "dials that failed",
    Cut = "links cut",
    OneSidedCut = "links that only the gateway saw end",
    LateBytes = "bytes of an old connection after a newer one was up",
    Blackhole = "links that stood still and came back",
    OneWay = "links that stood still in one direction",
    DeadForGood = "links that died without a word",
    DeadFound = "dead links found by the gateway",
    DeadFoundByHub = "dead links found by the hub",
    UserTimeout = "dead links found by TCP",
    SlowLink = "links of 64 kbit/s",
    NetworkChange = "changes of the network told to the gateway",
    TakeOver = "sessions replaced by a newer one",
    Intruder = "sessions taken over by another gateway of the same name",
    Drain = "drains of a hub node",
    NodeKill = "hub nodes killed",
    NodeGone = "hub nodes that vanished",
    EngineFailure = "commits that failed",
    LostAnswer = "commits that failed after they were durable",
    SlowEngine = "engines that were slow",
    StuckEngine = "engines that never answered",
    Paused = "windows of 0",
    Gap = "holes that the hub told",
    ClockJump = "jumps of the wall clock",
    Command = "commands created",
    CommandResent = "commands that the hub sent again",
    CommandRan = "commands that a device ran",
    CrashAfterDelivery = "crashes while a device had a command",
    CommandInterrupted = "deliveries cut off",
    CommandUndelivered = "deliveries to a device that was away",
    CommandCancelled = "commands cancelled",
    CommandExpired = "commands expired",
    CommandFailed = "commands failed",
    CommandSucceeded = "commands succeeded",
    CommandTimedOut = "commands timed out",
    CommandUnknown = "commands of unknown fate",
}

/// How often, and in how many seeds.
#[derive(Debug, Clone)]
pub(crate) struct Coverage {
    counts: Vec<u64>,
    seeds: Vec<u64>,
}

impl Default for Coverage {
    fn default() -> Self {
        Self { counts: vec![0; TEXTS.len()], seeds: vec![0; TEXTS.len()] }
    }
}

impl Coverage {
    pub(crate) fn note(&mut self, seen: Seen) {
        self.add(seen, 1);
    }

    pub(crate) fn add(&mut self, seen: Seen, count: u64) {
        self.counts[seen as usize] += count;
    }

    /// Takes in what one seed saw.
    pub(crate) fn take_in(&mut self, seed: &Self) {
        for (at, count) in seed.counts.iter().enumerate() {
            self.counts[at] += count;
            self.seeds[at] += u64::from(*count > 0);
        }
    }

    /// What never happened.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let never = TEXTS.iter().zip(&self.counts).filter(|(_, count)| **count == 0);
        never.map(|(text, _)| *text).collect()
    }

    /// For people: how often each thing happened, and in how many seeds.
    pub(crate) fn table(&self) -> String {
        let mut table = format!("{:>12} {:>7}  what happened\n", "times", "seeds");
        for (at, text) in TEXTS.iter().enumerate() {
            writeln!(table, "{:>12} {:>7}  {text}", self.counts[at], self.seeds[at])
                .expect("a string takes what is written");
        }
        table
    }
}
