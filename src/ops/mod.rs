//! Operation: what a person and the service manager see of a running gateway.

pub mod control;
pub mod log;
pub mod notify;
