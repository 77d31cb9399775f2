//! Where the device key and its certificate are kept: one directory, that is only ever replaced
//! whole.
//!
//! ```text
//! identity/gateway.key   0600  the private key, PKCS#8
//! identity/gateway.pub   0644  the public key, for a hub that is to know it
//! identity/gateway.pem   0644  its certificate and the chain to the CA
//! identity/hub-ca.pem    0644  whom to believe
//! identity.new/                what is being made; of no use after a crash
//! identity.old/                what the last change replaced
//! ```
//!
//! A change is staged in the directory of `.new`, synced, and put in place by one exchange of
//! names, so that key and certificate are those of before or those of after, whenever the power
//! goes.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use zeroize::Zeroizing;

use super::{DeviceKey, IdentityError, credential};
use crate::{config, files::effective_uid};

const PUBLIC_KEY_FILE: &str = "gateway.pub";
const CERT_FILE: &str = "gateway.pem";
const CA_FILE: &str = "hub-ca.pem";

/// The directory of an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    directory: PathBuf,
}

/// What an identity is made of, all in PEM.
#[derive(Clone, Copy)]
pub struct Contents<'a> {
    /// The private key.
    pub key: &'a str,
    /// Its certificate, and the chain to the CA.
    pub certificate: Option<&'a str>,
    /// Whom to believe.
    pub ca: Option<&'a str>,
}

/// An identity that is ready and not yet in force. Nobody else changes the same one while this
/// lives. Dropping it lets go of it; what is in force stays so.
#[derive(Debug)]
pub struct Staged {
    target: Store,
    new: Store,
    is_only_staged: bool,
    _lock: File,
}

impl Store {
    /// The one of a gateway with this state directory.
    pub fn of_state_dir(state_dir: &Path) -> Self {
        Self { directory: state_dir.join(config::IDENTITY_DIR) }
    }

    /// The one in this directory.
    pub fn at(directory: &Path) -> Self {
        Self { directory: std::path::absolute(directory).unwrap_or_else(|_| directory.into()) }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The private key's file.
    pub fn key_file(&self) -> PathBuf {
        self.directory.join(config::IDENTITY_KEY)
    }

    /// The public key's file.
    pub fn public_key_file(&self) -> PathBuf {
        self.directory.join(PUBLIC_KEY_FILE)
    }

    /// The certificate's file.
    pub fn cert_file(&self) -> PathBuf {
        self.directory.join(CERT_FILE)
    }

    /// The file of the CA to believe.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.join(CA_FILE)
    }

    /// The key.
    ///
    /// # Errors
    ///
    /// There is none, or it can't be used.
    pub fn key(&self) -> Result<DeviceKey, IdentityError> {
        let file = self.key_file();
        match fs::metadata(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let remedy = "make one with: fieldgate identity new";
                Err(IdentityError::new(&file, "there is no key", remedy))
            }
            _ => DeviceKey::from_file(&file),
        }
    }

    /// The key's file as it stands.
    ///
    /// # Errors
    ///
    /// As [`Store::key`].
    pub fn key_pem(&self) -> Result<Zeroizing<String>, IdentityError> {
        let file = self.key_file();
        let bytes = credential::secret(&file)?;
        let text = std::str::from_utf8(&bytes).map(|text| Zeroizing::new(text.to_owned()));
        text.map_err(|_| IdentityError::new(&file, "it is not PEM", "import the key again"))
    }

    /// Writes `contents` beside the identity in force, ready to take its place.
    ///
    /// # Errors
    ///
    /// There is one in force and `replace` is not set, another command is changing it, or the
    /// directory can't be written to.
    pub fn stage(&self, contents: Contents<'_>, replace: bool) -> Result<Staged, IdentityError> {
        if !replace && self.directory.join(config::IDENTITY_KEY).exists() {
            return Err(IdentityError::new(
                &self.directory,
                "there is an identity already",
                "keep it, or replace it with --replace (the old one is then kept as .old)",
            ));
        }
        let parent = self.directory.parent().unwrap_or(Path::new("/"));
        let unwritable = |error| unwritable(&self.directory, &error);
        let mut private = DirBuilder::new();
        private.mode(0o700);
        if !parent.exists() {
            private.recursive(true).create(parent).map_err(unwritable)?;
        }
        let lock = lock(parent)?;
        let new = Self { directory: self.beside(".new") };
        remove(&new.directory).map_err(unwritable)?;
        let owner = fs::metadata(parent).map_err(unwritable)?;
        private.recursive(false).create(&new.directory).map_err(unwritable)?;
        hand_over(&new.directory, &owner).map_err(unwritable)?;
        write(&new.key_file(), 0o600, contents.key, &owner).map_err(unwritable)?;
        let public_key = new.key()?.public_key_pem();
        let files = [
            (new.public_key_file(), 0o644, Some(&*public_key)),
            (new.cert_file(), 0o644, contents.certificate),
            (new.ca_file(), 0o644, contents.ca),
        ];
        for (path, mode, text) in files {
            if let Some(text) = text {
                write(&path, mode, text, &owner).map_err(unwritable)?;
            }
        }
        sync(&new.directory).map_err(unwritable)?;
        Ok(Staged { target: self.clone(), new, is_only_staged: true, _lock: lock })
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.directory.clone().into_os_string();
        name.push(suffix);
        name.into()
    }
}

impl Staged {
    /// The staged files.
    pub fn files(&self) -> &Store {
        &self.new
    }

    /// Puts it in force, at once and durably; what was in force is kept as `.old`.
    ///
    /// # Errors
    ///
    /// The file system does not let it; then what was in force still is.
    pub fn promote(mut self) -> Result<(), IdentityError> {
        self.is_only_staged = false;
        let (new, current) = (&self.new.directory, &self.target.directory);
        let promoted = || -> io::Result<()> {
            if current.exists() {
                let old = self.target.beside(".old");
                remove(&old)?;
                // After this the name of `.new` has what was in force.
                renameat_with(CWD, new, CWD, current, RenameFlags::EXCHANGE)?;
                fs::rename(new, old)?;
            } else {
                fs::rename(new, current)?;
            }
            sync(current.parent().unwrap_or(Path::new("/")))
        };
        promoted().map_err(|error| unwritable(current, &error))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Once it was to be promoted, the name may have what was in force.
        if self.is_only_staged {
            // What is left of it goes when the next one is staged.
            remove(&self.new.directory).ok();
        }
    }
}

fn lock(directory: &Path) -> Result<File, IdentityError> {
    let failed = |error| unwritable(directory, &error);
    let handle = File::open(directory).map_err(failed)?;
    match handle.try_lock() {
        Ok(()) => Ok(handle),
        Err(TryLockError::WouldBlock) => Err(IdentityError::new(
            directory,
            "another command is changing the identity there",
            "wait until it has ended",
        )),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn write(path: &Path, mode: u32, text: &str, owner: &fs::Metadata) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    hand_over(path, owner)
}

/// Root writes for whom the directory around it belongs to: the service's user.
fn hand_over(path: &Path, owner: &fs::Metadata) -> io::Result<()> {
    if effective_uid() != Some(0) || owner.uid() == 0 {
        return Ok(());
    }
    std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()))
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn unwritable(path: &Path, error: &io::Error) -> IdentityError {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => "run this as the gateway's user or as root",
        io::ErrorKind::StorageFull => "make room on the disk",
        _ => "see to the disk, and to the directories above",
    };
    IdentityError::new(path, format!("it can't be written: {error}"), remedy)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::identity::KeyType;

    fn made() -> zeroize::Zeroizing<String> {
        KeyType::P256.generate().unwrap()
    }

    fn only(key: &str) -> Contents<'_> {
        Contents { key, certificate: None, ca: None }
    }

    #[test]
    fn an_identity_is_private_and_is_replaced_only_when_that_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::of_state_dir(&directory.path().join("state"));
        assert!(store.key().unwrap_err().remedy.contains("identity new"));
        let (first, second) = (made(), made());
        store.stage(only(&first), false).unwrap().promote().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(store.directory()), mode(&store.key_file())), (0o700, 0o600));
        let kept = store.key().unwrap();

        let refused = store.stage(only(&second), false).unwrap_err();
        assert!(refused.remedy.contains("--replace"), "{refused}");
        assert_eq!(store.key().unwrap().public_key(), kept.public_key());
        let contents = Contents { key: &second, certificate: Some("c"), ca: Some("a") };
        store.stage(contents, true).unwrap().promote().unwrap();
        assert_ne!(store.key().unwrap().public_key(), kept.public_key());
        assert_eq!(fs::read_to_string(store.cert_file()).unwrap(), "c");
        let old = Store::at(&directory.path().join("state/identity.old"));
        assert_eq!(old.key().unwrap().public_key(), kept.public_key());
        assert!(!directory.path().join("state/identity.new").exists());
    }

    #[test]
    fn what_is_staged_changes_nothing_until_it_is_promoted() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::of_state_dir(directory.path());
        let (first, second) = (made(), made());
        store.stage(only(&first), false).unwrap().promote().unwrap();
        let kept = store.key().unwrap();
        let staged = store.stage(only(&second), true).unwrap();
        assert!(staged.files().key().is_ok());
        let busy = store.stage(only(&second), true).unwrap_err();
        assert!(busy.fault.contains("another command"), "{busy}");
        drop(staged);
        assert!(!directory.path().join("identity.new").exists());
        // As a crash leaves it.
        fs::create_dir(directory.path().join("identity.new")).unwrap();
        fs::write(directory.path().join("identity.new/gateway.key"), &*second).unwrap();
        assert_eq!(store.key().unwrap().public_key(), kept.public_key());
        store.stage(only(&second), true).unwrap().promote().unwrap();
        assert_ne!(store.key().unwrap().public_key(), kept.public_key());
    }
}
