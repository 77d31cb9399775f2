//! Commands on their way to the gateway. The store is their queue: a session takes as many as the
//! gateway bears at once.

use std::collections::HashSet;

use super::{Asked, Now, Output, Phase, Session};
use crate::{
    command::{CommandId, Failure, State},
    hub::engine::{Pending, Request},
    protocol::HubMessage,
};

#[derive(Debug, Default)]
pub(super) struct Commands {
    /// Sent, and no final state yet.
    under_way: HashSet<CommandId>,
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

    pub(super) fn ended(&mut self, id: &CommandId) {
        self.under_way.remove(id);
    }

    fn room(&self) -> usize {
        self.limit.saturating_sub(self.under_way.len())
    }
}

impl Session {
    /// Asks for commands when there is room for one, and for cancels at any time.
    pub(super) fn ask_for_commands(&mut self) {
        let commands = &mut self.commands;
        let room = commands.room();
        let wanted = commands.cancels || (commands.more && room > 0);
        if self.phase != Phase::Open || !self.store_up || commands.asked || !wanted {
            return;
        }
        commands.asked = true;
        commands.cancels = false;
        commands.more = false;
        self.asked.push_back(Asked::Take);
        let request = Request::TakeCommands { session: self.id.clone(), limit: room };
        self.outputs.push_back(Output::Ask(request));
    }

    pub(super) fn send_command(&mut self, now: Now, pending: Pending) {
        if self.phase != Phase::Open {
            // It has no final state: the next session has it again.
            return;
        }
        let Pending { mut command, expires_ms, cancelled } = pending;
        // A withdrawn one goes out expired: the gateway says how it ended and can't begin it.
        let ttl_ms = if cancelled { 0 } else { expires_ms.saturating_sub(now.unix_ms) };
        command.ttl_ms = ttl_ms;
        let id = command.id.clone();
        let text = HubMessage::Command(command).to_json();
        if text.len() > self.peer_message_bytes {
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
        self.commands.under_way.insert(id.clone());
        self.outputs.push_back(Output::Text(text));
        if cancelled {
            self.send(&HubMessage::Cancel { id });
        }
    }
}
