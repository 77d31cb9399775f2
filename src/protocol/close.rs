//! WebSocket close codes (RFC 6455 section 7.4, PROTOCOL.md section 10).

/// The session ends as planned.
pub const NORMAL: u16 = 1000;
/// The server goes away.
pub const GOING_AWAY: u16 = 1001;
/// A frame or message broke the protocol.
pub const PROTOCOL_ERROR: u16 = 1002;
/// A kind of message that is not taken.
pub const UNSUPPORTED_DATA: u16 = 1003;
/// Never sent: the peer's close frame had no code.
pub const NO_CODE: u16 = 1005;
/// A text message that is not UTF-8, or not the JSON that it must be.
pub const INVALID_DATA: u16 = 1007;
/// Credential refused or revoked.
pub const POLICY: u16 = 1008;
/// Message too big.
pub const TOO_BIG: u16 = 1009;
/// Restart; see `drain`.
pub const RESTART: u16 = 1012;
/// Try again later; see `drain`.
pub const TRY_LATER: u16 = 1013;
/// The token expired.
pub const TOKEN_EXPIRED: u16 = 4001;
/// No `hello` in time.
pub const NO_HELLO: u16 = 4008;
/// A newer session of the same gateway took over.
pub const TAKEN_OVER: u16 = 4009;
/// A `must` message or feature that this side does not know.
pub const UNSUPPORTED: u16 = 4010;
/// Too many connections or messages.
pub const TOO_MANY: u16 = 4029;
/// First of the codes that are final until reconfigured.
pub const FINAL_FIRST: u16 = 4500;
/// Last of the codes that are final until reconfigured.
pub const FINAL_LAST: u16 = 4999;
/// `hello.gateway` is not the credential's subject.
pub const FORBIDDEN: u16 = 4501;
/// The hub does not know the gateway.
pub const UNKNOWN_GATEWAY: u16 = 4502;

/// Whether a close with this code is orderly, or about the session: what was under way then has no
/// part in it.
pub fn is_of_session(code: u16) -> bool {
    let codes = [GOING_AWAY, RESTART, TRY_LATER, TOKEN_EXPIRED, TAKEN_OVER, TOO_MANY];
    codes.contains(&code)
}
