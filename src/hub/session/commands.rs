//! Commands on their way to the gateway. The store is their queue: a session takes as many as the
//! gateway bears at once, and hands them over one by one, as the line takes them.
//!
//! A command must never go out before the line has room for it: acks would wait behind it, and its
//! `ttl_ms` would tell of another time. A cancel must never overtake its command.

use std::collections::{HashSet, VecDeque};

use super::{Asked, Now, Output, Phase, Session};
use crate::{
    command::{CommandId, Failure, State},
    hub::engine::{Pending, Request},
    protocol::HubMessage,
};

/// How many commands wait for the line at most, beside those that an earlier session sent.
const MAX_HELD: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Commands {
    /// Taken from the store, and no final state yet.
    under_way: HashSet<CommandId>,
    /// Of these, those that wait for the line.
    held: VecDeque<Pending>,
    /// How many the gateway bears.
    limit: usize,
    /// The store may hold more commands.
    more: bool,
    /// The store may hold cancels.
    cancels: bool,
    /// The store was asked and has not answered.
    asked: bool,
}

impl Commands {
    pub(super) fn open(&mut self, limit: usize) {
        self.limit = limit;
    }

    pub(super) fn want(&mut self) {
        self.more = true;
        self.cancels = true;
    }

    pub(super) fn taken(&mut self, more: bool) {
        self.asked = false;
        self.more |= more;
    }

    /// Holds these until the line has room. Gives back the cancels of commands that went out
    /// before; one that is still held goes out cancelled.
    pub(super) fn hold(&mut self, commands: Vec<Pending>, cancels: &[CommandId]) -> Vec<CommandId> {
        self.under_way.extend(commands.iter().map(|pending| pending.command.id.clone()));
        self.held.extend(commands);
        for pending in &mut self.held {
            pending.cancelled |= cancels.contains(&pending.command.id);
        }
        let is_out = |id: &&CommandId| !self.held.iter().any(|held| held.command.id == **id);
        cancels.iter().filter(is_out).cloned().collect()
    }

    pub(super) fn ended(&mut self, id: &CommandId) {
        self.under_way.remove(id);
        self.held.retain(|held| held.command.id != *id);
    }

    fn room(&self) -> usize {
        let held = MAX_HELD.saturating_sub(self.held.len());
        self.limit.saturating_sub(self.under_way.len()).min(held)
    }
}

impl Session {
    /// Asks for commands when there is room for one, and for cancels at any time.
    pub(super) fn ask_for_commands(&mut self) {
        let commands = &mut self.commands;
        let room = commands.room();
        let wanted = commands.cancels || (commands.more && room > 0);
        if self.phase != Phase::Open || !self.flow.is_open() || commands.asked || !wanted {
            return;
        }
        commands.asked = true;
        commands.cancels = false;
        commands.more = false;
        self.asked.push_back(Asked::Take);
        let request = Request::TakeCommands { session: self.id.clone(), limit: room };
        self.outputs.push_back(Output::Ask(request));
    }

    /// Whether [`handle_room`](Self::handle_room) is wanted.
    pub fn wants_room(&self) -> bool {
        // At the close they have no final state: the next session has them again.
        self.phase == Phase::Open && !self.commands.held.is_empty()
    }

    /// The line has taken, or almost, what was said before: it has room for a command.
    pub fn handle_room(&mut self, now: Now) {
        if self.wants_room()
            && let Some(pending) = self.commands.held.pop_front()
        {
            self.send_command(now, pending);
            self.ask_for_commands();
            self.note_asked(now);
        }
    }

    fn send_command(&mut self, now: Now, pending: Pending) {
        let Pending { mut command, expires_ms, cancelled } = pending;
        // A withdrawn one goes out expired: the gateway says how it ended and can't begin it.
        let ttl_ms = if cancelled { 0 } else { expires_ms.saturating_sub(now.unix_ms) };
        command.ttl_ms = ttl_ms;
        let id = command.id.clone();
        let text = HubMessage::Command(command).to_json();
        if text.len() > self.peer_message_bytes {
            self.commands.ended(&id);
            self.asked.push_back(Asked::Finish);
            self.outputs.push_back(Output::Ask(Request::FinishCommand {
                session: self.id.clone(),
                id,
                state: State::Rejected,
                failure: Failure {
                    code: "too_large".into(),
                    message: format!(
                        "the command has {} bytes and the gateway takes {}",
                        text.len(),
                        self.peer_message_bytes
                    ),
                },
            }));
            return;
        }
        self.outputs.push_back(Output::Text(text));
        if cancelled {
            self.send(&HubMessage::Cancel { id });
        }
    }
}
