//! Real faults between a real gateway and a real hub: what a carrier's network, an address, a name
//! server, a proxy or a stopped hub can do to the link. Each is found in time (PROTOCOL.md,
//! section 10), nothing is lost, doubled or out of order, and the link is back within 2 s of the
//! healing, or within the retry that `fieldgate status` announces.
//!
//! `tests/run faults` runs them, many at a time: they mostly wait. Each is alone in namespaces of
//! its own.

mod carrier;
mod nginx;
mod outpost;
mod storm;
mod surroundings;
mod wedged;
