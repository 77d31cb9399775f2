//! Operation: what a person and the service manager see of a running gateway; the log is the hub's
//! as well.

#[cfg(feature = "gateway")]
pub mod control;
pub mod log;
#[cfg(feature = "gateway")]
pub mod notify;
