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
mod followed_server;
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

pub use self::{
    certificate::{Certificate, fingerprint},
    clock::{CONFIRMED_TIME, Clock, RELEASED_MS, Word},
    csr::certificate_request,
    followed::FollowedTls,
    followed_server::{FollowedServer, ServerFiles, ServerTls},
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
pub use crate::files::{FileError as IdentityError, NOT_FOR_THIS_USER, effective_uid, usable};
