//! The server's side: it lets gateways in, keeps what they send exactly once, shows it, and sends them commands.
//!
//! | module | what it is |
//! |---|---|
//! | [`session`] | one gateway's connection, as PROTOCOL.md says; pure |
//! | [`engine`] | what is kept, and the thread that commits it |
//!
//! The hub must never acknowledge what its engine has not committed.

mod access;
mod api;
mod commands;
pub mod config;
pub mod credential;
pub mod engine;
mod live;
mod presence;
mod refusal;
pub mod server;
pub mod session;
mod tls;
mod upgrade;
mod uplink;
mod view;
pub mod watch;
