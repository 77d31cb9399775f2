//! Who this gateway is and whom it believes: keys, certificates, tokens, names, and the clock that
//! dates are checked by.
//!
//! Everything here comes from files. A file that holds a secret is refused when others can read it,
//! as ssh does it. A secret never appears in an error, a log or a `Debug`. Verification is never
//! turned off: the one connection to a server that nobody vouches for yet (`enrolment`) fetches a
//! certificate that is then checked.

pub mod calendar;
pub mod certificate;
mod clock;
mod credential;
mod csr;
mod der;
pub mod enrolment;
mod followed;
mod jwt;
mod key;
mod name;
mod pair;
mod password;
mod password_digest;
mod store;
mod token;
mod trust;
mod users;
mod verify;

use std::path::{Path, PathBuf};

pub use self::{
    certificate::{Certificate, fingerprint},
    clock::{CONFIRMED_TIME, Clock, RELEASED_MS, Word},
    credential::{NOT_FOR_THIS_USER, effective_uid, usable},
    csr::certificate_request,
    followed::FollowedTls,
    jwt::Jwt,
    key::{DeviceKey, KeyType},
    name::{boot_id, gateway_id},
    pair::{Pair, certificate_pem, certificates},
    password::password,
    password_digest::{MIN_PASSWORD_BYTES, PasswordDigest, generate},
    store::{Contents, Staged, Store},
    token::{Token, TokenSource},
    trust::{ClientCertificates, client_tls, explain, server_tls},
    users::{Role, User, Users, change_users, is_user_name, table},
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
