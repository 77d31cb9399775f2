//! Commands: what the hub asks of a device, and the states one goes through.
//!
//! Pure: no IO, no clock. The lifecycle itself is in `gateway::commands`. Source: PROTOCOL.md,
//! section 5.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The longest command id that is accepted, in bytes.
pub const MAX_ID_BYTES: usize = 64;

/// A command's id, given by the hub (a UUIDv7 from ours): 1 to 64 letters, digits, `-`, `_` or `.`.
///
/// It may become a topic level, so that no other character is let in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct CommandId(String);

impl CommandId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for CommandId {
    type Error = String;

    fn try_from(id: String) -> Result<Self, Self::Error> {
        let fits = !id.is_empty()
            && id.len() <= MAX_ID_BYTES
            && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if fits {
            Ok(Self(id))
        } else {
            Err(format!("{id:?} is not a command id: 1 to 64 of A-Z a-z 0-9 - _ ."))
        }
    }
}

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The longest name of a command, in bytes.
const MAX_NAME_BYTES: usize = 128;

/// Whether `name` can name a command: 1 to 128 bytes, one topic level, no control character.
pub fn is_command_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && !name.contains(|c: char| matches!(c, '/' | '+' | '#') || c.is_control())
}

/// One pattern of `commands.allow`: `device/command`, `*` standing for any run of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    /// Matches the device's name.
    pub device: String,
    /// Matches the command's name.
    pub command: String,
}

impl Allow {
    /// Reads `device/command`. The command is what follows the last `/`, for a device's name may
    /// hold some.
    ///
    /// # Errors
    /// Says what is wrong and what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.rsplit_once('/') {
            Some((device, command)) if !device.is_empty() && !command.is_empty() => {
                Ok(Self { device: device.into(), command: command.into() })
            }
            _ => Err(format!("{text:?} is not device/command; write one such as \"*/identify\"")),
        }
    }

    /// Whether this pattern lets `command` be sent to `device`.
    pub fn permits(&self, device: &str, command: &str) -> bool {
        matches_pattern(&self.device, device) && matches_pattern(&self.command, command)
    }
}

/// Whether `text` is what `pattern` says, `*` standing for any run of characters, also an empty
/// one. Takes at most the product of both lengths in steps.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    let Some((head, mut rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(head) else { return false };
    // Taking the first place where a part fits leaves the most for those that follow.
    while let Some((part, after)) = rest.split_once('*') {
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
        rest = after;
    }
    text.ends_with(rest)
}

/// What a device is to do.
#[derive(Debug, Clone)]
pub struct Command {
    /// Given by the hub; a command is executed at most once per id.
    pub id: CommandId,
    /// The device it is for.
    pub device: String,
    /// What to do; see [`is_command_name`].
    pub name: String,
    /// Any JSON.
    pub params: Box<RawValue>,
    /// How long from now it may still be delivered.
    pub ttl: Duration,
    /// How long from delivery the device has to answer.
    pub timeout: Duration,
    /// Whether it may be delivered again when a crash leaves its fate open.
    pub idempotent: bool,
    /// The last status that the hub holds of this id; `None` for a new command.
    pub hub_holds: Option<(u32, State)>,
}

/// A command's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// In the journal, fsynced.
    Accepted,
    /// The device's transport took it.
    Delivered,
    /// The device says that it is at it.
    Executing,
    /// Done; final.
    Succeeded,
    /// The device says that it could not; final.
    Failed,
    /// The gateway refused it; final.
    Rejected,
    /// Not delivered in time; final.
    Expired,
    /// Withdrawn by the hub before delivery; final.
    Cancelled,
    /// Delivered, but no answer in time; final.
    TimedOut,
    /// Whether the device ran it cannot be known; final.
    Unknown,
}

impl State {
    /// Whether no other state can follow.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Accepted | Self::Delivered | Self::Executing)
    }

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Delivered => "delivered",
            Self::Executing => "executing",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a command failed or was rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A short code: one of PROTOCOL.md section 5 where the gateway speaks, the device's own
    /// otherwise.
    pub code: String,
    /// For a person.
    #[serde(default)]
    pub message: String,
}

impl Failure {
    /// A failure of this code.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into() }
    }
}

/// One step of a command, as the hub is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Whose.
    pub id: CommandId,
    /// Strictly increasing per id, from 1.
    pub n: u32,
    /// The state reached.
    pub state: State,
    /// The device's answer, with `succeeded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<RawValue>>,
    /// What went wrong, with the other final states.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_could_leave_its_topic_level_is_refused() {
        for bad in ["", "a/b", "a+", "#", "a b", "é", &"x".repeat(65)] {
            assert!(CommandId::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
        assert!(CommandId::try_from("0191e2c4-7b1a-7def-8000-1234567890ab".to_owned()).is_ok());
    }

    #[test]
    fn a_name_that_could_leave_its_topic_level_is_refused() {
        for bad in ["", "a/b", "a+", "#", "a\0", "a\n", "\u{85}", &"x".repeat(129)] {
            assert!(!is_command_name(bad), "{bad:?}");
        }
        for good in ["identify", "set valve", "é", "$on", &"x".repeat(128)] {
            assert!(is_command_name(good), "{good:?}");
        }
    }

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, device, command, permits) in [
            ("plc-*/set", "plc-01", "set", true),
            ("plc-*/set", "xplc-01", "set", false),
            ("*/*", "", "", true),
            ("a*b*c/*", "a-b-b-c", "x", true),
            ("a*b/*", "a-b-c", "x", false),
            ("ab*ba/*", "aba", "x", false),
            ("hall/*/on", "hall/lamp", "on", true),
            ("same/same", "same", "other", false),
        ] {
            let allow = Allow::parse(pattern).unwrap();
            assert_eq!(allow.permits(device, command), permits, "{pattern}: {device}/{command}");
        }
        assert!(Allow::parse("no-slash").is_err() && Allow::parse("/x").is_err());
    }

    #[test]
    fn the_names_of_states_are_those_of_the_wire() {
        for state in [State::Accepted, State::TimedOut, State::Unknown] {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{state}\""));
        }
        assert!(!State::Executing.is_final() && State::TimedOut.is_final());
    }
}
