//! The devices that connect to the listener by name and password: the file that `fieldgate device`
//! writes and the listener reads.
//!
//! Text, a device a line, parted by single spaces and read from the end, so that a name may have
//! spaces; lines that begin with `#` and empty ones mean nothing:
//!
//! ```text
//! NAME ROLE DIGEST
//! plc-01 device $hmac-sha256$…$…
//! node red service $argon2id$v=19$m=7168,t=5,p=1$…$…
//! ```
//!
//! It is written whole, beside itself, and moved into its place, under a lock on the file that is
//! replaced: two that change it at once both do, and a reader sees the one or the other.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown},
    path::{Path, PathBuf},
};

use super::{IdentityError, PasswordDigest, credential};
use crate::record::is_device_name;

/// The most devices in a file.
const MAX_USERS: usize = 10_000;

const HEADER: &str = "# Devices of the listener, one a line: NAME ROLE DIGEST. Written by \
                      `fieldgate device`; nobody else may read it.\n";

/// What a device may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Publish under its own name, and hear its own commands.
    Device,
    /// Publish and hear anything but for publishing commands: a program that speaks for devices.
    Service,
}

impl Role {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Service => "service",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Device, Self::Service].into_iter().find(|role| role.as_str() == text)
    }
}

/// What is known of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// What it may do.
    pub role: Role,
    /// What its password must fit.
    pub digest: PasswordDigest,
}

/// The devices, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Users(BTreeMap<String, User>);

impl Users {
    /// Reads a file that nobody else can read.
    ///
    /// # Errors
    /// The file can't be read, is open to others, or a line of it is none of ours.
    pub fn from_file(file: &Path) -> Result<Self, IdentityError> {
        let bytes = credential::secret(file).map_err(|error| match error.fault.as_str() {
            credential::NO_SUCH_FILE => IdentityError {
                remedy: format!(
                    "make it with: fieldgate device add NAME --users {}",
                    file.display()
                ),
                ..error
            },
            _ => error,
        })?;
        let text = std::str::from_utf8(&bytes).map_err(|_| {
            IdentityError::new(file, "it is not UTF-8 text", "restore it, or add the devices anew")
        })?;
        Self::parse(text).map_err(|fault| IdentityError::new(file, fault, WANTED_LINE))
    }

    /// Reads the lines. The error says which is wrong, and never repeats it.
    fn parse(text: &str) -> Result<Self, String> {
        let mut users = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |what: &str| Err(format!("line {} {what}", index + 1));
            let mut fields = line.rsplitn(3, ' ');
            let (digest, role, name) = (fields.next(), fields.next(), fields.next());
            let Some(digest) = digest.and_then(PasswordDigest::parse) else {
                return wrong("has no digest of a password that is known here");
            };
            let Some(role) = role.and_then(Role::parse) else {
                return wrong("has no role, device or service");
            };
            let Some(name) = name.filter(|name| is_user_name(name)) else {
                return wrong("has no name that a device can have");
            };
            if users.insert(name.to_owned(), User { role, digest }).is_some() {
                return wrong("names a device that an earlier line names");
            }
            if users.len() > MAX_USERS {
                return wrong("is one device too many");
            }
        }
        Ok(Self(users))
    }

    /// What is known of a device.
    pub fn get(&self, name: &str) -> Option<&User> {
        self.0.get(name)
    }

    /// All of them, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &User)> {
        self.0.iter().map(|(name, user)| (name.as_str(), user))
    }

    /// What a password is held against that is nobody's: it takes as long to check as the slowest
    /// of the known ones. `None`: no password takes long.
    pub fn decoy(&self) -> Option<PasswordDigest> {
        self.0.values().max_by_key(|user| user.digest.work())?.digest.decoy()
    }

    /// Adds a device, or gives a known one another role and password. Whether it was known.
    ///
    /// # Errors
    /// There are too many.
    pub fn set(&mut self, name: &str, user: User) -> Result<bool, String> {
        let known = self.0.contains_key(name);
        if !known && self.0.len() >= MAX_USERS {
            return Err(format!("there are {MAX_USERS} devices already; remove some"));
        }
        self.0.insert(name.to_owned(), user);
        Ok(known)
    }

    /// Removes a device. Whether it was known.
    pub fn remove(&mut self, name: &str) -> bool {
        self.0.remove(name).is_some()
    }
}

const WANTED_LINE: &str = "a line is NAME ROLE DIGEST; have it written by: fieldgate device add";

/// Whether a device can have this name here: one that can stand in a topic as one level, and in a
/// line of the file.
pub fn is_user_name(name: &str) -> bool {
    is_device_name(name) && !name.contains('/') && name.trim() == name
}

impl fmt::Display for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HEADER)?;
        self.iter().try_for_each(|(name, User { role, digest })| {
            writeln!(f, "{name} {} {digest}", role.as_str())
        })
    }
}

/// Changes the file, which is made if there is none. It keeps its mode and owner; a new one is open
/// to its owner alone, and belongs to whom its directory belongs to.
///
/// # Errors
/// The file can't be read or written, or `change` says why not.
pub fn change_users<T>(
    file: &Path,
    change: impl FnOnce(&mut Users) -> Result<T, String>,
) -> Result<T, IdentityError> {
    let failed = |error: io::Error| {
        IdentityError::new(
            file,
            format!("it can't be written: {error}"),
            "run this as the gateway's user or as root, on a disk with room",
        )
    };
    // Through a symbolic link: what it points to is replaced, not the link.
    let file = &fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let locked = lock(file).map_err(failed)?;
    let mut users = match locked.metadata().map_err(failed)?.len() {
        0 => Users::default(),
        _ => Users::from_file(file)?,
    };
    let result = change(&mut users)
        .map_err(|fault| IdentityError::new(file, fault, "see: fieldgate device list"))?;
    replace(file, &locked, &users.to_string()).map_err(failed)?;
    Ok(result)
}

/// The file, locked; an empty one if there was none.
fn lock(file: &Path) -> io::Result<File> {
    loop {
        let made =
            OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(file);
        let opened = match made {
            Ok(made) => {
                let directory = fs::metadata(directory_of(file))?;
                // Who may not give files away keeps them.
                let _ = fchown(&made, Some(directory.uid()), Some(directory.gid()));
                made
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => File::open(file)?,
            Err(error) => return Err(error),
        };
        opened.lock()?;
        // Whoever held the lock may have replaced the file meanwhile.
        let (ours, there) = (opened.metadata()?, fs::metadata(file));
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            return Ok(opened);
        }
    }
}

fn replace(file: &Path, old: &File, text: &str) -> io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = file.with_file_name(name);
    // What is there is of one that held the lock and was killed.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    let written = (|| {
        let before = old.metadata()?;
        let made = new.metadata()?;
        if (before.uid(), before.gid()) != (made.uid(), made.gid()) {
            fchown(&new, Some(before.uid()), Some(before.gid()))?;
        }
        new.set_permissions(before.permissions())?;
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        fs::rename(&beside, file)
    })();
    if written.is_err() {
        // It is the same error that is told.
        let _ = fs::remove_file(&beside);
    }
    written?;
    File::open(directory_of(file))?.sync_all()
}

fn directory_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// What `fieldgate device list` shows.
pub fn table(users: &Users) -> String {
    let mut text = String::new();
    for (name, User { role, digest }) in users.iter() {
        let kind = if digest.is_slow() { "chosen" } else { "generated" };
        // Writing to memory can't fail.
        let _ = writeln!(text, "{name}\t{}\t{kind} password", role.as_str());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use ring::rand::SystemRandom;

    use super::*;
    use crate::identity::password_digest::generate;

    fn user(role: Role) -> User {
        User { role, digest: generate(&SystemRandom::new()).unwrap().1 }
    }

    fn add(file: &Path, name: &str) {
        change_users(file, |users| users.set(name, user(Role::Device))).unwrap();
    }

    #[test]
    fn what_is_written_is_read_and_nobody_else_can() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("devices");
        let service = user(Role::Service);
        add(&file, "plc-01");
        change_users(&file, |users| users.set("node red", service.clone())).unwrap();
        let users = Users::from_file(&file).unwrap();
        assert_eq!(users.get("node red"), Some(&service));
        assert_eq!(users.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["node red", "plc-01"]);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(change_users(&file, |users| Ok(users.remove("plc-01"))).unwrap());
        assert!(!change_users(&file, |users| Ok(users.remove("plc-01"))).unwrap());
        change_users(&file, |users| Ok(users.remove("node red"))).unwrap();
        assert_eq!(Users::from_file(&file), Ok(Users::default()), "none is well, too");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn mode_and_link_are_kept_and_a_file_that_is_open_to_others_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("devices"), directory.path().join("link"));
        add(&file, "a");
        let set_mode = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        set_mode(0o400);
        std::os::unix::fs::symlink(&file, &link).unwrap();
        add(&link, "b");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o400);
        assert_eq!(Users::from_file(&file).unwrap().iter().count(), 2);
        set_mode(0o644);
        let error = change_users(&file, |users| users.set("c", user(Role::Device))).unwrap_err();
        assert!(error.remedy.contains("chmod 600"), "{error}");
        assert!(Users::from_file(&file).is_err());
    }

    #[test]
    fn none_of_many_that_add_at_once_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("devices");
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let file = &file;
                scope.spawn(move || (0..10).for_each(|n| add(file, &format!("d-{thread}-{n}"))));
            }
        });
        assert_eq!(Users::from_file(&file).unwrap().iter().count(), 80);
    }

    /// Digests that were written elsewhere may cost more than ours; an unknown name was looked at
    /// for as long as one of ours takes, and told by that.
    #[test]
    fn what_nobody_is_held_against_takes_as_long_as_the_slowest_password() {
        let mut users = Users::default();
        assert_eq!(users.decoy(), None);
        users.set("a", user(Role::Device)).unwrap();
        assert_eq!(users.decoy(), None, "a generated one takes no time");
        let ours = PasswordDigest::of_chosen(b"correct horse", &SystemRandom::new()).unwrap();
        let (salt, tag) = ("c29tZXNhbHRzb21lc2FsdA", "CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc");
        let slow = format!("$argon2id$v=19$m=19456,t=3,p=1${salt}${tag}");
        for (name, digest) in [("b", ours), ("c", PasswordDigest::parse(&slow).unwrap())] {
            users.set(name, User { role: Role::Device, digest: digest.clone() }).unwrap();
            let decoy = users.decoy().unwrap();
            assert_eq!(
                (decoy.work(), decoy.to_string().len()),
                (digest.work(), digest.to_string().len())
            );
            assert_ne!(decoy, digest);
        }
    }

    #[test]
    fn a_bad_line_is_named_and_never_repeated() {
        let (good, digest) = (user(Role::Device), user(Role::Device).digest);
        for (line, says) in [
            ("plc-01 secret".to_owned(), "no digest"),
            (format!("plc-01 admin {digest}"), "no role"),
            (format!("device {digest}"), "no name"),
            (format!("a/b device {digest}"), "no name"),
            (format!(" a device {digest}"), "no name"),
            (format!("ok device {digest}"), "an earlier line"),
        ] {
            let text = format!("{HEADER}ok device {}\n\n{line}\n", good.digest);
            let fault = Users::parse(&text).unwrap_err();
            assert!(fault.starts_with("line 4 ") && fault.contains(says), "{line}: {fault}");
            assert!(!fault.contains("secret"), "{fault}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_says_how_to_make_one() {
        let error = Users::from_file(Path::new("/nowhere/devices")).unwrap_err().to_string();
        assert!(error.contains("fieldgate device add"), "{error}");
    }
}
