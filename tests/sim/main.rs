//! The whole system in one thread, from a seed: the gateway's core and spool on a simulated disk,
//! the hub's sessions on a model of its engine, a network and devices that fail in every way that
//! is known, and an oracle that keeps the promises of ARCHITECTURE.md at every step.

mod board;
mod bugs;
mod coverage;
mod disk;
mod engine;
mod fate;
mod faults;
mod hub;
mod link;
mod network;
mod oracle;
mod plan;
mod seeds;
mod south;
mod wire;
mod world;
