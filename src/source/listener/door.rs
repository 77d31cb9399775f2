//! Who is let in: by certificate, by name and password, or without a word where that is allowed.
//!
//! A wrong password and an unknown name are the same from outside: the same answer, after the same
//! pause, for the same work. A password that takes long to check is checked on a thread of its own,
//! one at a time, so that the memory it takes is bounded and the event loop turns; one that was
//! right is known again by a keyed digest, so that a fleet that comes back costs nothing. Must
//! never let a password, right or wrong, into a log.

use std::{
    collections::HashMap,
    fs,
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ring::{hmac, rand::SystemRandom};
use rumqttc::ConnectReturnCode;
use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{sleep_until, timeout},
};

use super::{access::Principal, failures::Failures, refusals::Refusals, wire::Login};
use crate::{
    config,
    identity::{IdentityError, PasswordDigest, Role, User, Users, is_user_name},
};

/// How long after its CONNECT a client is told that it is refused, whatever was looked at.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// How long a password may wait for its turn to be checked.
const SLOW_PATIENCE: Duration = Duration::from_secs(8);

/// What a client showed before its CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shown {
    /// No certificate.
    Nothing,
    /// A certificate that names it.
    Name(Arc<str>),
    /// A certificate that names nobody.
    Nameless,
}

impl Shown {
    /// What a verified certificate says.
    pub(super) fn certificate(common_name: Option<String>) -> Self {
        match common_name.filter(|name| is_user_name(name)) {
            Some(name) => Self::Name(name.into()),
            None => Self::Nameless,
        }
    }
}

/// What became of a device since the file was last read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    /// The device.
    pub(super) name: String,
    /// It is not known any more, or may do something else: what it had is not for it.
    pub(super) forget: bool,
}

/// The listener's door.
#[derive(Debug)]
pub(super) struct Door {
    users_file: Option<PathBuf>,
    anonymous: bool,
    state: Mutex<State>,
    pub(super) refusals: Refusals,
    slow: Arc<Semaphore>,
    /// Of this process alone, for what it remembers.
    key: hmac::Key,
    hasher: RandomState,
}

#[derive(Debug)]
struct State {
    users: Arc<Users>,
    read_as: Option<Stamp>,
    failures: Failures,
    /// The keyed digests of passwords that took long to check and were right, by name.
    known: HashMap<String, hmac::Tag>,
}

/// By what a file is known to be as it was: another content has another of these.
type Stamp = (u64, u64, i64, i64, i64);

impl Door {
    /// Reads the users.
    ///
    /// # Errors
    /// They can't be read.
    pub(super) fn open(config: &config::Listener) -> Result<Self, IdentityError> {
        let file = config.users_file.as_deref();
        let read_as = file.and_then(stamp);
        let users = file.map(Users::from_file).transpose()?.unwrap_or_default();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        Ok(Self {
            users_file: config.users_file.clone(),
            anonymous: config.takes_anonymous(),
            state: Mutex::new(State {
                users: Arc::new(users),
                read_as,
                failures: Failures::default(),
                known: HashMap::new(),
            }),
            refusals: Refusals::default(),
            slow: Arc::new(Semaphore::new(1)),
            key: key.expect("the kernel gives random numbers once it has booted"),
            hasher: RandomState::new(),
        })
    }

    /// Whether there is a file of users, which may change.
    pub(super) fn has_users(&self) -> bool {
        self.users_file.is_some()
    }

    /// Reads the users anew if their file changed. Gives what that means for the devices that were
    /// known. A file that can't be used changes nothing, and is complained of once.
    pub(super) async fn refresh(&self) -> Vec<Change> {
        let Some(file) = self.users_file.clone() else { return Vec::new() };
        let now = stamp(&file);
        if std::mem::replace(&mut self.lock().read_as, now) == now {
            return Vec::new();
        }
        let read = spawn_blocking(move || Users::from_file(&file)).await;
        match read.expect("reading a file does not panic") {
            Ok(users) => {
                let mut state = self.lock();
                let before = std::mem::replace(&mut state.users, Arc::new(users));
                let changes = changes(&before, &state.users);
                state.known.retain(|name, _| changes.iter().all(|change| change.name != *name));
                tracing::info!(
                    devices = state.users.iter().count(),
                    changed = changes.len(),
                    "the listener's users were read anew"
                );
                changes
            }
            Err(error) => {
                tracing::error!("listener.users_file: {error}; the devices known so far stay");
                Vec::new()
            }
        }
    }

    /// Says who a client is.
    ///
    /// # Errors
    /// The CONNACK code to refuse it with.
    pub(super) async fn admit(
        &self,
        peer: SocketAddr,
        shown: &Shown,
        login: Option<Login>,
    ) -> Result<Principal, ConnectReturnCode> {
        match (shown, login) {
            (Shown::Nameless, _) => {
                let fault = "its certificate has no common name that a device can have";
                self.refusals.warn(peer, None, fault);
                Err(ConnectReturnCode::NotAuthorized)
            }
            (Shown::Name(name), login) => {
                if let Some(login) = login.filter(|login| login.user != **name) {
                    let fault = "not the name of its certificate";
                    self.refusals.warn(peer, Some(&login.user), fault);
                    return Err(ConnectReturnCode::BadUserNamePassword);
                }
                let role = self.users().get(name).map_or(Role::Device, |user| user.role);
                Ok(principal(name, role))
            }
            (Shown::Nothing, Some(login)) if self.has_users() => self.check(peer, login).await,
            (Shown::Nothing, _) if self.anonymous => Ok(Principal::Anonymous),
            (Shown::Nothing, _) => {
                self.refusals.say(peer, "client refused: it does not say who it is");
                Err(ConnectReturnCode::NotAuthorized)
            }
        }
    }

    async fn check(&self, peer: SocketAddr, login: Login) -> Result<Principal, ConnectReturnCode> {
        let came = Instant::now();
        let name = self.hasher.hash_one(&login.user);
        let fault = if self.lock().failures.may_try(came, peer.ip(), name) {
            let fits = timeout(SLOW_PATIENCE, self.fits(&login)).await;
            let fits = fits.map_err(|_| ConnectReturnCode::ServiceUnavailable)?;
            // The users may have changed while the password was looked at.
            let users = self.users();
            let user = users.get(&login.user).filter(|user| fits.as_ref() == Some(&user.digest));
            if let Some(user) = user {
                return Ok(principal(&login.user.into(), user.role));
            }
            self.lock().failures.note(came, peer.ip(), name);
            "wrong user name or password"
        } else {
            "not looked at: too many wrong passwords before"
        };
        self.refusals.warn(peer, Some(&login.user), fault);
        sleep_until((came + FAILURE_PAUSE).into()).await;
        Err(ConnectReturnCode::BadUserNamePassword)
    }

    /// What is kept of the password, if it is the right one.
    async fn fits(&self, login: &Login) -> Option<PasswordDigest> {
        let users = self.users();
        let user = users.get(&login.user);
        if let Some(User { digest, .. }) = user {
            let right = if digest.is_slow() {
                self.knows(login, digest)
            } else {
                digest.fits(&login.password)
            };
            if right {
                return Some(digest.clone());
            }
        }
        // Who fails must not tell by the time it takes whether there is such a name.
        let decoy = users.decoy()?;
        let slow = user.map(|user| &user.digest).filter(|digest| digest.is_slow());
        let digest = slow.cloned().unwrap_or(decoy);
        let turn = Arc::clone(&self.slow).acquire_owned().await.expect("it is never closed");
        let (password, looked_at) = (login.password.clone(), digest.clone());
        let fits = spawn_blocking(move || {
            // Held to its end, also when nobody waits for it any more.
            let _turn = turn;
            looked_at.fits(&password)
        })
        .await;
        if !fits.expect("checking a password does not panic") || slow.is_none() {
            return None;
        }
        let tag = hmac::sign(&self.key, &remembered(login, &digest));
        self.lock().known.insert(login.user.clone(), tag);
        Some(digest)
    }

    /// Whether the password was right before, for what is still kept of it.
    fn knows(&self, login: &Login, digest: &PasswordDigest) -> bool {
        let tag = self.lock().known.get(&login.user).copied();
        tag.is_some_and(|tag| {
            hmac::verify(&self.key, &remembered(login, digest), tag.as_ref()).is_ok()
        })
    }

    fn users(&self) -> Arc<Users> {
        Arc::clone(&self.lock().users)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn principal(name: &Arc<str>, role: Role) -> Principal {
    match role {
        Role::Device => Principal::Device(Arc::clone(name)),
        Role::Service => Principal::Service(Arc::clone(name)),
    }
}

/// What stands for a password that was right: it, and what it was right for.
fn remembered(login: &Login, digest: &PasswordDigest) -> zeroize::Zeroizing<Vec<u8>> {
    let mut bytes = digest.to_string().into_bytes();
    // So that it never grows, which would leave a copy behind.
    bytes.reserve_exact(1 + login.password.len());
    bytes.push(0);
    bytes.extend_from_slice(&login.password);
    bytes.into()
}

fn changes(before: &Users, after: &Users) -> Vec<Change> {
    let changed = before.iter().filter(|(name, user)| after.get(name) != Some(user));
    changed
        .map(|(name, user)| Change {
            name: name.to_owned(),
            forget: after.get(name).is_none_or(|now| now.role != user.role),
        })
        .collect()
}

fn stamp(file: &Path) -> Option<Stamp> {
    let data = fs::metadata(file).ok()?;
    Some((data.ino(), data.size(), data.mtime_nsec(), data.ctime(), data.ctime_nsec()))
}

#[cfg(test)]
#[path = "door_tests.rs"]
mod tests;
