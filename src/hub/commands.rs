//! New commands, from whichever side they are asked for.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    credential::new_command_id,
    engine::{Answer, Request},
    refusal::Refusal,
    server::{Hub, now},
};
use crate::{
    command::{CommandId, is_command_name},
    protocol::{self, CommandMessage, DEFAULT_MESSAGE_BYTES, HubMessage},
    record::is_device_name,
};

/// The longest that a command may wait for its gateway, and a device for its answer: 30 days.
const MAX_MS: u64 = 30 * 24 * 3_600_000;

/// A command as an application asks for it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewCommand {
    pub(super) device: String,
    pub(super) name: String,
    #[serde(default = "protocol::no_params")]
    pub(super) params: Box<RawValue>,
    #[serde(default = "default_ttl_ms")]
    pub(super) ttl_ms: u64,
    #[serde(default = "protocol::default_timeout_ms")]
    pub(super) timeout_ms: u64,
    #[serde(default)]
    pub(super) idempotent: bool,
}

impl NewCommand {
    /// Checks it and gives it its id.
    pub(super) fn into_message(self, id: CommandId) -> Result<CommandMessage, Refusal> {
        if !is_command_name(&self.name) {
            let message = "name is 1 to 128 bytes, without / + # and control characters";
            return Err(Refusal::bad_request(message));
        }
        if !is_device_name(&self.device) {
            let message =
                "device is 1 to 256 bytes, without $ in front, + # and control characters";
            return Err(Refusal::bad_request(message));
        }
        for (key, ms) in [("ttl_ms", self.ttl_ms), ("timeout_ms", self.timeout_ms)] {
            if !(1..=MAX_MS).contains(&ms) {
                return Err(Refusal::bad_request(format!("{key} is 1 to {MAX_MS}")));
            }
        }
        let message = CommandMessage {
            id,
            device: self.device,
            name: self.name,
            params: self.params,
            ttl_ms: self.ttl_ms,
            timeout_ms: self.timeout_ms,
            idempotent: self.idempotent,
            state: None,
        };
        let bytes = HubMessage::Command(message.clone()).to_json().len();
        if bytes > DEFAULT_MESSAGE_BYTES {
            let most = DEFAULT_MESSAGE_BYTES;
            return Err(Refusal::too_large(format!(
                "the command has {bytes} bytes; at most {most}"
            )));
        }
        Ok(message)
    }
}

/// Keeps a command for its gateway, and tells the gateway's session of it.
pub(super) async fn create(
    hub: &Arc<Hub>,
    gateway: String,
    new: NewCommand,
) -> Result<CommandId, Refusal> {
    let id = new_command_id(now().unix_ms).map_err(|error| {
        tracing::error!(%error, "no command id could be made");
        Refusal::unavailable()
    })?;
    let command = Box::new(new.into_message(id.clone())?);
    let request = Request::CreateCommand { gateway: gateway.clone(), command };
    match hub.store.ask(request).await? {
        Answer::Created => {
            hub.presence.wake(&gateway);
            Ok(id)
        }
        Answer::TooManyCommands => {
            Err(Refusal::too_many("too many commands of this gateway have no final state"))
        }
        Answer::CommandExists => Err(Refusal::conflict("the id is taken; try again")),
        _ => Err(Refusal::not_found("gateway")),
    }
}

fn default_ttl_ms() -> u64 {
    30_000
}
