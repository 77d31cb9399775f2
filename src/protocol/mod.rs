//! The wire between gateway and hub, version 1: its messages, and their JSON.
//!
//! PROTOCOL.md is normative; each item here names its section. This module turns bytes into checked
//! messages and back; what a message means to a session is decided in `gateway` and in
//! `hub::session`.
//!
//! Pure: no IO, no clock, no random source.

pub mod close;
mod json;
mod message;

pub use json::{
    BatchWriter, Decoded, from_gateway, from_hub, plain_record, plain_skip, write_record,
};
pub use message::*;

/// The subprotocol of JSON in text frames (section 1).
pub const SUBPROTOCOL_JSON: &str = "fieldgate.v1.json";

/// What every subprotocol of ours begins with (section 1).
pub const SUBPROTOCOL_PREFIX: &str = "fieldgate.";

/// Carries a browser's token, which can set no header; never selected, never logged (section 11).
pub const SUBPROTOCOL_BEARER_PREFIX: &str = "base64url.bearer.fieldgate.";

/// The largest message a side takes unless it says otherwise in `limits`, in bytes.
pub const DEFAULT_MESSAGE_BYTES: usize = 262_144;

/// The largest record payload a hub takes unless it says otherwise, in bytes.
pub const DEFAULT_RECORD_BYTES: usize = 131_072;

/// How long `welcome` may take after `hello` (section 1).
pub const HELLO_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);
