//! The server's side: it lets gateways in, keeps what they send exactly once, shows it, and sends
//! them commands.
//!
//! | module | what it is |
//! |---|---|
//! | [`session`] | one gateway's connection, as PROTOCOL.md says; pure |
//! | [`engine`] | what is kept, and the thread that commits it |
//! | [`server`] | the process: store, listener, start and stop; `tls`, `upgrade` |
//! | `uplink` | `/v1/gateway`: drives a session over a socket and the store; `presence` knows all of them |
//! | `api` | the HTTP API; `access` (tokens and scopes), `commands`, `view`, and `refusal`, how it says no |
//! | [`watch`] | `/v1/live`, for applications and browsers; `live` has the queues |
//! | [`config`], [`credential`], [`ca`] | `hub.toml`; tokens and certificates; throwaway ones |
//! | `cli` | the command line |
//!
//! The hub must never acknowledge what its engine has not committed.

mod access;
mod api;
pub mod ca;
mod cli;
mod commands;
pub mod config;
pub mod credential;
pub mod engine;
mod live;
mod logging;
mod presence;
mod refusal;
pub mod server;
pub mod session;
#[cfg(test)]
mod tests;
mod tls;
mod upgrade;
mod uplink;
mod view;
pub mod watch;

pub use cli::{definition, main_from};
