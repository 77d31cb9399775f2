//! Who this gateway is and whom it believes: keys, certificates, tokens, names, and the clock that
//! dates are checked by.
//!
//! Everything here comes from files. A file that holds a secret is refused when others can read it,
//! as ssh does it. A secret never appears in an error, a log or a `Debug`, and nothing here ever
//! turns verification off.

pub mod calendar;
pub mod certificate;
mod clock;
mod credential;
mod name;
mod password;
mod token;
mod trust;
mod verify;

use std::path::{Path, PathBuf};

pub use self::{
    certificate::Certificate,
    clock::{CONFIRMED_TIME, Clock, RELEASED_MS, Word},
    credential::effective_uid,
    name::{boot_id, gateway_id},
    password::password,
    token::Token,
    trust::{client_tls, explain, server_tls},
};

/// Why a credential can't be used: the file, the fault and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {fault}; {remedy}", file.display())]
pub struct IdentityError {
    /// Which file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub fault: String,
    /// What mends it.
    pub remedy: String,
}

impl IdentityError {
    fn new(file: &Path, fault: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { file: file.to_owned(), fault: fault.into(), remedy: remedy.into() }
    }
}
