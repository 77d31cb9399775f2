//! What fieldgate promises, each a claim, shown on real processes: gateway, hub, broker, devices
//! and peers of others. `tests/run scenarios` and `tests/run interop` install what they need and
//! run them.

// A test program exports nothing.
#![allow(unreachable_pub, missing_docs)]

#[path = "../field/mod.rs"]
mod field;

mod autobahn;
mod bad_input;
mod board;
mod commands;
mod credentials;
mod delivery;
mod faults;
mod framing;
mod harness;
mod identity;
mod identity_hub;
mod interop;
mod limits_hub;
mod link;
mod listener;
mod mounted;
mod operation;
mod power;
mod retention;
mod rotation;
mod secrets;
mod spool;
mod time;
mod tls_scan;
