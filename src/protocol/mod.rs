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
mod number;

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

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything in PROTOCOL.md's blocks marked `json`.
    fn examples() -> Vec<serde_json::Value> {
        let mut blocks = include_str!("../../PROTOCOL.md").split("```json\n");
        let _prose = blocks.next();
        let ended = |block: &'static str| block.split("```").next().unwrap_or_default();
        let read = |text| serde_json::Deserializer::from_str(text).into_iter();
        blocks.map(ended).flat_map(read).collect::<Result<_, _>>().expect("examples are JSON")
    }

    #[test]
    fn every_message_has_an_example_in_the_document_and_each_decodes() {
        let mut kinds = Vec::new();
        for example in examples() {
            let text = example.to_string();
            let understood = [
                from_gateway(&text).map(|message| understood(&message)),
                from_hub(&text).map(|message| understood(&message)),
            ];
            assert!(understood.iter().any(|side| matches!(side, Ok(true))), "{text}");
            assert!(understood.iter().all(Result::is_ok), "{text}: {understood:?}");
            kinds.push(example["type"].as_str().unwrap_or_default().to_owned());
        }
        kinds.sort();
        kinds.dedup();
        assert_eq!(
            kinds.join(" "),
            "ack auth auth_ok cancel command data drain error hello skip welcome"
        );
    }

    fn understood<M>(message: &Decoded<M>) -> bool {
        matches!(message, Decoded::Message(_))
    }
}
