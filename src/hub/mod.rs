//! The server's side: it lets gateways in, keeps what they send exactly once, shows it, and sends
//! them commands.
//!
//! | module | what it is |
//! |---|---|
//! | [`session`] | one gateway's connection, as PROTOCOL.md says; pure |
//! | [`engine`] | what is kept, and the thread that commits it |
//! | [`server`] | the process: store, listener, start and stop; `tls`, [`upgrade`] |
//! | `authenticate` | who a gateway is; [`jwt`], `issuer` (keys of an outside one) and `fetch`, [`authority`] (the hub's own CA), `enrol` |
//! | `throttle`, `arrivals`, `patience` | how often strangers may try, how many at once, and how long they may take nothing |
//! | `uplink` | `/v1/gateway`: drives a session over a socket and the store; `presence` knows all of them |
//! | `api` | the HTTP API; `access` (tokens and scopes), `commands`, `view`, and `refusal`, how it says no |
//! | [`watch`] | `/v1/live`, for applications and browsers; `live` has the queues |
//! | `outbox` | what either has yet to write, and its writing |
//! | [`config`], [`credential`], [`demo_ca`] | `hub.toml`; tokens and codes; throwaway certificates |
//! | `cli` | the command line |
//!
//! The hub must never acknowledge what its engine has not committed.

mod access;
mod api;
mod arrivals;
mod authenticate;
pub mod authority;
mod cli;
mod commands;
pub mod config;
pub mod credential;
pub mod demo_ca;
pub mod engine;
mod enrol;
mod fetch;
mod issuer;
pub mod jwt;
mod live;
mod outbox;
mod patience;
mod presence;
mod refusal;
pub mod server;
pub mod session;
#[cfg(test)]
mod tests;
mod throttle;
mod tls;
pub mod upgrade;
mod uplink;
mod view;
pub mod watch;

pub use cli::{definition, main_from};
