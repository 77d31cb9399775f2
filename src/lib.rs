//! fieldgate: devices publish telemetry over MQTT to a small board; every record is kept safe until
//! the hub has it; the hub's commands come back by the same connection.
//!
//! # The map of the house
//!
//! | module | what it is | may name |
//! |---|---|---|
//! | [`record`], [`topic`], [`command`] | the nouns: what a device said, where, what it is told to do | nothing else |
//! | [`protocol`] | the wire between gateway and hub: messages and their JSON (PROTOCOL.md) | the nouns |
//! | [`crypto`] | which cryptography TLS rests on | nothing else |
//! | `spool` | records on disk: segments, recovery, journal, behind one `Disk` trait | bytes only |
//! | `gateway` | the core state machine: intake, lanes, uplink window, command lifecycle, back-off | protocol, the spool's words |
//! | `config` | what the user wrote, checked | the nouns, protocol |
//! | [`files`] | credential files, and files that are replaced whole | nothing else |
//! | `identity`, `ops` | credentials; status, logs, the service manager | config; `identity` crypto, files |
//! | `source` | southbound: a broker (`mqtt`), devices (`listener`) | the nouns, config |
//! | `link` | northbound: dial, TLS, WebSocket | config, identity, close codes |
//! | `cli` | the command line and the driver that joins all of them | everything |
//! | `planted` | faults that the simulation must find; only for tests | nothing else |
//! | `fuzzing` | any bytes at the ways in; only for tests and fuzz targets | everything |
//! | `hub` | the server's side: sessions, store, API, live feed | the nouns, protocol, crypto, files, the log of `ops` |
//!
//! Imports point one way, as the table reads: a module names only what stands above it (`cli` alone
//! names all). The nouns, `protocol`, `gateway` and `hub::session` are pure: no runtime, no file,
//! no socket, no clock and no random source of their own.

#[cfg(feature = "gateway")]
pub mod cli;
pub mod command;
#[cfg(feature = "gateway")]
pub mod config;
pub mod crypto;
pub mod files;
#[cfg(all(feature = "gateway", feature = "hub", any(test, fuzzing)))]
pub mod fuzzing;
#[cfg(feature = "gateway")]
pub mod gateway;
#[cfg(feature = "hub")]
pub mod hub;
#[cfg(feature = "gateway")]
pub mod identity;
#[cfg(feature = "gateway")]
pub mod link;
#[cfg(any(feature = "gateway", feature = "hub"))]
pub mod ops;
pub mod planted;
pub mod protocol;
pub mod record;
#[cfg(feature = "gateway")]
pub mod source;
#[cfg(feature = "gateway")]
pub mod spool;
pub mod topic;
