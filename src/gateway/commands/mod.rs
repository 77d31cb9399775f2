//! The life of a command, from the hub's frame to its final state (PROTOCOL.md, section 5).
//!
//! ```text
//! frame -> checked -> journal "sending" (fsync) -> accepted, delivered to the device
//!       -> PUBACK -> delivered -> the device's reply -> journal (fsync) -> succeeded | failed
//! ```
//!
//! The journal says `sending` before the first byte goes to a device, so that after a crash an id
//! either was surely not sent (`waiting`: it may be delivered), or may have been (it ends
//! `unknown`, unless it is idempotent), or is over (its last status is repeated). A command must
//! never be delivered twice, and never be forgotten before the hub can have stopped asking for it.

mod device;
mod reported;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use self::reported::Report;
pub use self::reported::without_result;
use super::{Now, Receipts};
use crate::{
    command::{Allow, Command, CommandId, Failure, State, Status, is_command_name},
    planted::{Bug, planted},
    record::{self, Receipt, SourceId},
    topic::Template,
};

/// Ids that the journal keeps. At the bound a new command is answered `busy`.
const MAX_JOURNAL: usize = 10_000;

/// How long a finished id is kept beside its ttl.
const KEPT_MS: u64 = 24 * 3600 * 1000;

/// How long a device that is not there is waited for before it is tried again, unless it comes
/// before.
const RETRY: Duration = Duration::from_secs(5);

/// The longest ttl that is taken; a longer one counts as this.
const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

/// The largest result that is reported; a larger one ends the command `failed`.
const MAX_RESULT_BYTES: usize = 64 * 1024;

/// Where commands go, where replies come from, and what may be asked of whom.
#[derive(Debug, Clone)]
pub struct Rules {
    /// `{device}`, `{command}`, `{id}`.
    pub topic: Template,
    /// `{id}`, and `{device}` if the device is to be checked.
    pub reply: Template,
    /// What may be asked of whom.
    pub allow: Vec<Allow>,
    /// How many may be under way.
    pub inflight: usize,
}

#[derive(Debug)]
pub(super) struct Commands {
    rules: Rules,
    /// What the journal keeps.
    known: BTreeMap<CommandId, Kept>,
    /// What is under way; an id out of the journal is not until the hub sends it again.
    live: BTreeMap<CommandId, Live>,
    /// Deliveries that are with a source, by token.
    deliveries: HashMap<u64, CommandId>,
    next_token: u64,
    journal: Vec<(String, Bytes)>,
    /// Ids whose `sending` the disk has yet to confirm.
    journalling: Vec<CommandId>,
    unjournalled: Vec<CommandId>,
    /// Final states that are reported once the journal has them, so that no crash can make another
    /// of them.
    reporting: Vec<(Status, Receipts)>,
    unreported: Vec<(Status, Receipts)>,
    /// What was reported and the hub has yet to acknowledge.
    reported: BTreeMap<CommandId, Report>,
    /// Ids whose result went, which the journal has yet to let go of. It does so beside its next
    /// change: that costs the card no write of its own.
    shed: Vec<CommandId>,
    out: VecDeque<Out>,
}

/// What the commands want done.
#[derive(Debug)]
pub(super) enum Out {
    /// Report a status; the receipts wait for the report to be safe.
    Report(Status, Receipts),
    /// Hand to the device's source.
    Deliver { token: u64, device: String, topic: String, payload: Bytes },
}

/// What the journal keeps of an id.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    fingerprint: u64,
    sending: bool,
    /// A delivery was cut off and another may follow: whatever comes of that one, it may have run.
    #[serde(default)]
    may_have_run: bool,
    last: Option<Status>,
    /// Unix milliseconds, after which the id may be forgotten once it is finished.
    keep_until_ms: u64,
    /// That moment was reckoned by a clock that was not trusted, and says nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unsynced: bool,
    /// Its end was skipped once on its way to the hub, and reported again.
    #[serde(skip)]
    was_skipped: bool,
}

#[derive(Debug)]
struct Live {
    command: Command,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// `sending` is on its way to the medium.
    Journalling { expires: Instant },
    /// Nobody is there to take it.
    Waiting { expires: Instant, retry: Instant },
    /// With the device's source, which has not answered.
    Sending { until: Instant, expires: Instant },
    /// The device has it.
    Delivered { until: Instant },
}

impl Commands {
    pub(super) fn new(rules: Rules, journal: impl IntoIterator<Item = (String, Bytes)>) -> Self {
        let mut commands = Self {
            rules,
            known: BTreeMap::new(),
            live: BTreeMap::new(),
            deliveries: HashMap::new(),
            next_token: 1,
            journal: Vec::new(),
            journalling: Vec::new(),
            unjournalled: Vec::new(),
            reporting: Vec::new(),
            unreported: Vec::new(),
            reported: BTreeMap::new(),
            shed: Vec::new(),
            out: VecDeque::new(),
        };
        commands.inherit(journal);
        commands
    }

    /// Takes over what the journal says of commands that nothing is known of yet.
    pub(super) fn inherit(&mut self, journal: impl IntoIterator<Item = (String, Bytes)>) {
        for (id, bytes) in journal {
            let kept = serde_json::from_slice(&bytes);
            let (Ok(kept), Ok(id)) = (kept, CommandId::try_from(id)) else {
                tracing::warn!("an entry of the command journal is unreadable and is left out");
                continue;
            };
            self.known.entry(id).or_insert(kept);
        }
    }

    pub(super) fn reply_filter(&self) -> String {
        self.rules.reply.filter()
    }

    /// Whether replies to commands come by this topic.
    pub(super) fn is_reply(&self, topic: &str) -> bool {
        self.rules.reply.matches(topic).is_some()
    }

    pub(super) fn poll(&mut self) -> Option<Out> {
        self.out.pop_front()
    }

    /// How many are under way, and how many ids the journal keeps.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.live.len(), self.known.len())
    }

    pub(super) fn handle_command(&mut self, now: Now, command: Command) {
        let fingerprint = fingerprint(&command);
        let held = hub_n(&command);
        let may_answer = self.may_answer(&command.id, held);
        let Some(kept) = self.known.get_mut(&command.id) else {
            return self.handle_new(now, command, fingerprint);
        };
        let is_untold = (self.unreported.iter().chain(&self.reporting))
            .any(|(status, _)| status.id == command.id);
        match &mut kept.last {
            _ if kept.fingerprint != fingerprint && !may_answer => {}
            _ if kept.fingerprint != fingerprint => {
                let why = "this id is known with another content";
                let n = kept.last.as_ref().map_or(0, |last| last.n).max(held) + 1;
                let status =
                    status(&command.id, n, State::Rejected, Some(Failure::new("conflict", why)));
                self.answer(status);
            }
            // The journal has yet to have its end, which is told when it has.
            Some(last) if last.state.is_final() && (is_untold || !may_answer) => {}
            Some(last) if last.state.is_final() => {
                last.n = last.n.max(held + 1);
                let last = last.clone();
                self.answer(last);
            }
            // The hub sends again what has no final state yet; it is under way.
            _ if self.live.contains_key(&command.id) => {}
            _ => self.resume(now, command),
        }
    }

    fn handle_new(&mut self, now: Now, command: Command, fingerprint: u64) {
        let refused = if command.hub_holds.is_some() {
            let why = "the journal of this gateway has no trace of the command";
            Some((State::Unknown, Failure::new("journal_lost", why)))
        } else {
            self.refusal(&command).map(|failure| (State::Rejected, failure))
        };
        let Some((state, failure)) = refused else {
            self.begin(now, &command, fingerprint);
            return self.send(now, command);
        };
        if self.known.len() < MAX_JOURNAL {
            // A refusal is kept like any other end: the same id must not be taken the next time.
            self.begin(now, &command, fingerprint);
            self.finish(now, &command.id, News { error: Some(failure), ..News::of(state) });
        } else if self.may_answer(&command.id, hub_n(&command)) {
            self.answer(status(&command.id, hub_n(&command) + 1, state, Some(failure)));
        }
    }

    pub(super) fn handle_cancel(&mut self, now: Now, id: &CommandId) {
        let step = self.live.get(id).map(|live| live.step);
        if let Some(Step::Journalling { .. } | Step::Waiting { .. }) = step {
            self.finish(now, id, News::of(State::Cancelled));
        }
    }

    /// Nobody will send again what the journal has open (plain mode): what was not surely unsent is
    /// unknown.
    pub(super) fn handle_no_resend(&mut self, now: Now) {
        let open: Vec<(CommandId, bool)> = (self.known.iter())
            .filter(|(id, kept)| !kept.is_final() && !self.live.contains_key(*id))
            .map(|(id, kept)| (id.clone(), kept.sending))
            .collect();
        for (id, sending) in open {
            let end = match sending {
                true => News::because(
                    State::Unknown,
                    "restarted",
                    "the gateway restarted while it was under way",
                ),
                false => News::because(
                    State::Expired,
                    "restarted",
                    "the gateway restarted before it was delivered",
                ),
            };
            self.finish(now, &id, end);
        }
    }

    /// After a restart the hub sends again: what was surely not sent is delivered, what may have
    /// been is not.
    fn resume(&mut self, now: Now, command: Command) {
        let id = command.id.clone();
        let kept = self.known.get_mut(&id).expect("the caller found it");
        match &mut kept.last {
            Some(last) => last.n = last.n.max(hub_n(&command)),
            // A report that is no end goes out before the journal has it, and may survive it.
            None => kept.last = held_by_hub(&command),
        }
        kept.may_have_run |= kept.sending;
        if kept.sending && !command.idempotent && !planted(Bug::CommandRunAgain) {
            let why = "the gateway restarted while it was under way";
            self.finish(now, &id, News::because(State::Unknown, "restarted", why));
        } else {
            self.send(now, command);
        }
    }

    fn refusal(&mut self, command: &Command) -> Option<Failure> {
        let Command { device, name, .. } = command;
        if !record::is_device_name(device) {
            let why = "1 to 256 bytes without + # and control characters name a device";
            return Some(Failure::new("unknown_device", why));
        }
        if !is_command_name(name) {
            return Some(Failure::new(
                "bad_params",
                "a command's name is one topic level of up to 128 bytes, without control characters",
            ));
        }
        if !self.rules.allow.iter().any(|allow| allow.permits(device, name)) {
            let why = format!("commands.allow of this gateway has no pattern for {device}/{name}");
            return Some(Failure::new("not_allowed", why));
        }
        if self.known.len() >= MAX_JOURNAL {
            return Some(Failure::new("busy", "the command journal is full"));
        }
        if self.live.len() >= self.rules.inflight {
            return Some(Failure::new("busy", "too many commands are under way"));
        }
        if !self.has_room_for_result() {
            return Some(Failure::new(
                "busy",
                "too many results wait for the hub to acknowledge them",
            ));
        }
        None
    }

    fn begin(&mut self, now: Now, command: &Command, fingerprint: u64) {
        let ttl = command.ttl.min(MAX_TTL).as_millis() as u64;
        let kept = Kept {
            fingerprint,
            sending: false,
            may_have_run: false,
            last: held_by_hub(command),
            keep_until_ms: now.wall.unix_ms + ttl + KEPT_MS,
            unsynced: !now.wall.synced,
            was_skipped: false,
        };
        self.known.insert(command.id.clone(), kept);
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.live.values().map(|live| live.step.due()).min()
    }

    pub(super) fn handle_deadline(&mut self, now: Now) {
        let due: Vec<CommandId> = (self.live.iter())
            .filter(|(_, live)| live.step.due() <= now.instant)
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            let live = self.live.get_mut(&id).expect("just found");
            match live.step {
                Step::Waiting { expires, .. } if expires > now.instant => {
                    live.step = Step::Journalling { expires };
                    self.write_sending(&id, true);
                    self.unjournalled.push(id);
                }
                Step::Waiting { .. } | Step::Journalling { .. } => {
                    self.finish(now, &id, News::of(State::Expired));
                }
                Step::Sending { .. } => {
                    let why = "the device's transport did not confirm the command";
                    self.finish(now, &id, News::because(State::Unknown, "no_ack", why));
                }
                Step::Delivered { .. } => {
                    self.finish(now, &id, News::of(State::TimedOut));
                }
            }
        }
    }

    /// Forgets what was finished long enough ago. By a clock that is not trusted nothing is; what
    /// such a clock had dated counts as new once there is one that is.
    pub(super) fn forget_old(&mut self, now: Now) {
        if !now.wall.synced {
            return;
        }
        let undated = self.known.iter().filter(|(_, kept)| kept.unsynced);
        for id in undated.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            let kept = self.known.get_mut(&id).expect("just found");
            kept.keep_until_ms = now.wall.unix_ms + MAX_TTL.as_millis() as u64 + KEPT_MS;
            kept.unsynced = false;
            self.write(&id);
        }
        let journal = &mut self.journal;
        self.known.retain(|id, kept| {
            let keep = !kept.is_final() || kept.keep_until_ms > now.wall.unix_ms;
            if !keep {
                journal.push((id.as_str().into(), Bytes::new()));
            }
            keep
        });
    }

    fn finish(&mut self, now: Now, id: &CommandId, end: News) {
        let Some(kept) = self.known.get_mut(id) else { return };
        kept.keep_until_ms = kept.keep_until_ms.max(now.wall.unix_ms + KEPT_MS);
        kept.unsynced |= !now.wall.synced;
        let ends_unrun = matches!(end.state, State::Expired | State::Cancelled);
        let end = if ends_unrun && kept.may_have_run {
            let why = "it was delivered once, and how that ended is not known";
            News { receipts: end.receipts, ..News::because(State::Unknown, "interrupted", why) }
        } else {
            end
        };
        self.live.remove(id);
        self.deliveries.retain(|_, delivered| delivered != id);
        self.advance(id, end);
    }

    /// Reports the next status of an id, and journals it.
    fn advance(&mut self, id: &CommandId, news: News) {
        let Some(kept) = self.known.get_mut(id) else { return };
        let n = kept.last.as_ref().map_or(0, |last| last.n) + 1;
        let News { state, result, error, receipts } = news;
        let next = Status { id: id.clone(), n, state, result, error };
        kept.last = Some(next.clone());
        self.write(id);
        if state.is_final() && !planted(Bug::FinalBeforeJournal) {
            self.unreported.push((next, receipts));
        } else {
            self.out.push_back(Out::Report(next, receipts));
        }
    }

    /// Journals whether a device may have the command from now on.
    fn write_sending(&mut self, id: &CommandId, sending: bool) {
        if let Some(kept) = self.known.get_mut(id) {
            kept.sending = sending;
            self.write(id);
        }
    }

    fn write(&mut self, id: &CommandId) {
        let Some(kept) = self.known.get(id) else { return };
        let bytes = serde_json::to_vec(kept).expect("a status has string keys only");
        self.journal.push((id.as_str().into(), bytes.into()));
    }
}

/// What there is to report of a command.
#[derive(Debug)]
struct News {
    state: State,
    result: Option<Box<RawValue>>,
    error: Option<Failure>,
    /// Who waits for the report to be safe.
    receipts: Receipts,
}

impl News {
    fn of(state: State) -> Self {
        Self { state, result: None, error: None, receipts: Receipts::None }
    }

    fn because(state: State, code: &str, why: impl Into<String>) -> Self {
        Self { error: Some(Failure::new(code, why)), ..Self::of(state) }
    }
}

/// What became of a publish to the topic of replies.
#[derive(Debug)]
pub(super) enum Reply {
    /// A command was waiting for it.
    Taken,
    /// None was: it came twice, or too late.
    Unexpected(Option<Receipt>),
}

impl Kept {
    fn is_final(&self) -> bool {
        self.last.as_ref().is_some_and(|last| last.state.is_final())
    }
}

impl Step {
    fn due(self) -> Instant {
        match self {
            Self::Journalling { expires } => expires,
            Self::Waiting { expires, retry } => expires.min(retry),
            Self::Sending { until, .. } | Self::Delivered { until } => until,
        }
    }
}

/// Which source has the device, for the gateway to ask.
pub(super) type Heard = HashMap<Box<str>, SourceId>;

fn hub_n(command: &Command) -> u32 {
    command.hub_holds.map_or(0, |(n, _)| n)
}

fn held_by_hub(command: &Command) -> Option<Status> {
    command.hub_holds.map(|(n, state)| status(&command.id, n, state, None))
}

fn status(id: &CommandId, n: u32, state: State, error: Option<Failure>) -> Status {
    Status { id: id.clone(), n, state, result: None, error }
}

/// Tells an id's content from another's; it guards against mistakes, not against attackers.
fn fingerprint(command: &Command) -> u64 {
    let parts = [command.device.as_str(), "\0", &command.name, "\0", command.params.get()];
    record::fnv1a(parts.iter().flat_map(|part| part.bytes()))
}
