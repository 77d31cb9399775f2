//! What the hub keeps, and the one door to it.
//!
//! An [`Engine`] applies requests in groups: all of a group, durably, or none of it. It alone
//! decides what is new: the position `(gateway, stream, epoch) -> next` moves in the same
//! transaction as the append, so that a record is stored once, whoever sends it how often.
//! [`Store`] runs an engine on a thread of its own and commits what many sessions ask for together.
//!
//! An engine must never answer before its commit, and never move a position for a session that a
//! newer one replaced.

mod sqlite;
mod thread;

use std::{path::PathBuf, sync::Arc};

use crate::{
    command::{CommandId, Failure, State},
    protocol::{CommandMessage, Data, Epoch, Hello, Skip, StreamName},
};

pub use sqlite::{
    Admission, ApiToken, Certificate, CommandRow, Enrolled, Gap, GatewayRow, NewToken, Page, Query,
    Reader, RecordRow, Registry, RevokedCertificate, Sqlite, StatusRow, Voucher,
};
pub use thread::{Reply, Store};

/// Keeps records, positions and commands.
pub trait Engine: Send + 'static {
    /// Applies the whole group in one durable step and answers each request, in order.
    ///
    /// # Errors
    /// Nothing of the group is kept. The caller [`reopen`](Engine::reopen)s before it tries
    /// anything else.
    fn commit(&mut self, now_ms: u64, group: &[Request]) -> Result<Vec<Answer>, EngineError>;

    /// Starts anew on what is durable, after a failed commit, and proves with a durable write that
    /// it works.
    ///
    /// # Errors
    /// As [`commit`](Engine::commit).
    fn reopen(&mut self) -> Result<(), EngineError>;
}

/// The store failed; the text is for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EngineError(pub String);

/// A session, as the engine knows it: a newer one of the same gateway has a higher number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionId {
    /// The gateway.
    pub gateway: Arc<str>,
    /// Unique and rising while the hub runs.
    pub number: u64,
}

/// What the engine is asked to do.
#[derive(Debug, Clone)]
pub enum Request {
    /// A gateway said `hello`: this session is its newest from now on.
    Open {
        /// Who asks.
        session: SessionId,
        /// What it said.
        hello: Arc<Hello>,
    },
    /// The session ended.
    Close {
        /// Which.
        session: SessionId,
    },
    /// Append what is new of these records.
    Apply {
        /// Who asks.
        session: SessionId,
        /// The records.
        data: Arc<Data>,
        /// Those of them that are not stored but counted, by number, with the reason.
        rejected: Vec<(u64, &'static str)>,
    },
    /// Account for records that will never come.
    Skip {
        /// Who asks.
        session: SessionId,
        /// Which.
        skip: Skip,
    },
    /// Hand out commands that were never sent, oldest first, and cancels.
    TakeCommands {
        /// Who asks.
        session: SessionId,
        /// The most commands.
        limit: usize,
    },
    /// End a command that the gateway can't be sent.
    FinishCommand {
        /// Who asks.
        session: SessionId,
        /// Which.
        id: CommandId,
        /// How it ends.
        state: State,
        /// Why.
        failure: Failure,
    },
    /// Keep a command for a gateway.
    CreateCommand {
        /// Whose.
        gateway: String,
        /// The command; its `ttl_ms` counts from now.
        command: Box<CommandMessage>,
    },
    /// Withdraw a command.
    CancelCommand {
        /// Whose.
        gateway: String,
        /// Which.
        id: CommandId,
    },
    /// Look at what other processes wrote, and forget what retention no longer covers.
    Look,
}

/// The answer to a [`Request`], durable when it is given.
#[derive(Debug, Clone)]
pub enum Answer {
    /// To `Open`.
    Opened {
        /// The position of every epoch in `hello`, in its order.
        positions: Vec<Held>,
        /// Every command that was sent before and has no final state.
        commands: Vec<Pending>,
    },
    /// To `Apply` and `Skip`.
    Applied(Applied),
    /// To `Apply` and `Skip`: a hole, nothing was stored.
    Gap {
        /// What the position is.
        expected: u64,
    },
    /// To anything of a session that a newer one replaced.
    Superseded,
    /// To `Open`: with what it lists, more epochs of the gateway would be kept than the bound.
    TooManyEpochs,
    /// To `TakeCommands`.
    Commands {
        /// To be sent.
        commands: Vec<Pending>,
        /// To be withdrawn; they were sent before.
        cancels: Vec<CommandId>,
        /// Whether more commands wait.
        more: bool,
    },
    /// To `FinishCommand`, `CancelCommand` and `Look`: commands that the hub itself has ended.
    Ended {
        /// What changed.
        statuses: Vec<StatusChange>,
    },
    /// To `CreateCommand`.
    Created,
    /// To `CancelCommand`: the gateway will be asked.
    CancelRequested,
    /// To `CancelCommand`: the command has this final state already.
    AlreadyFinal(State),
    /// No such gateway, or it is revoked.
    UnknownGateway,
    /// No such command of that gateway.
    UnknownCommand,
    /// To `CreateCommand`: as many commands of this gateway have no final state as the hub keeps.
    TooManyCommands,
    /// To `CreateCommand`: the id is taken.
    CommandExists,
    /// To `Look`.
    Seen {
        /// Connected gateways for which commands or cancels wait.
        waiting: Vec<String>,
        /// Whether another process, or enrolment, changed anything: credentials may have ended.
        changed: bool,
        /// Commands that expired without ever being sent.
        expired: Vec<StatusChange>,
    },
    /// Nothing to say.
    Done,
}

/// Where the engine is in an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The stream.
    pub stream: StreamName,
    /// The epoch.
    pub epoch: Epoch,
    /// What it expects next; all before is durable.
    pub next: u64,
}

/// What an `Apply` or `Skip` did.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// The position now.
    pub next: u64,
    /// The first record that was new; those before it had been applied already.
    pub new_from: u64,
    /// The id of the first record that was stored; the others follow without a hole.
    pub first_id: u64,
    /// The command states among them.
    pub statuses: Vec<StatusChange>,
}

/// A command that reached a new state.
#[derive(Debug, Clone)]
pub struct StatusChange {
    /// Whose gateway.
    pub gateway: Arc<str>,
    /// The command's device.
    pub device: String,
    /// The command.
    pub id: CommandId,
    /// The state's number.
    pub n: u32,
    /// The state.
    pub state: State,
    /// The JSON of `result`, where there is one.
    pub result: Option<String>,
    /// The JSON of `error`, where there is one.
    pub error: Option<String>,
    /// When, Unix milliseconds.
    pub ts: u64,
}

/// A command to be sent.
#[derive(Debug, Clone)]
pub struct Pending {
    /// The command; `ttl_ms` is to be set at the time of sending.
    pub command: CommandMessage,
    /// When it may no longer be delivered, Unix milliseconds.
    pub expires_ms: u64,
    /// Whether it was withdrawn: it goes out only so that the gateway says how it ended.
    pub cancelled: bool,
}

/// How much is kept.
#[derive(Debug, Clone)]
pub struct Retention {
    /// The most records of one gateway.
    pub max_records_per_gateway: u64,
    /// The longest time that a record, a gap or a finished command is kept, milliseconds.
    pub max_age_ms: u64,
    /// The most gaps of one gateway; the counters know of all.
    pub max_gaps_per_gateway: u64,
    /// The most commands of one gateway that have no final state.
    pub max_pending_commands: u64,
}

/// Where and how the embedded engine stores.
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// The database file.
    pub path: PathBuf,
    /// How much is kept.
    pub retention: Retention,
}

/// The device that an event names; of one that names none or can't be read, nothing.
pub(in crate::hub) fn device_of_event(json: &str) -> String {
    #[derive(serde::Deserialize)]
    struct Named {
        #[serde(default)]
        device: String,
    }
    serde_json::from_str::<Named>(json).map_or_else(|_| String::new(), |named| named.device)
}
