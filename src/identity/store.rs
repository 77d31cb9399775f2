//! Where the device key and its certificate are kept: one directory, that is only ever replaced
//! whole.
//!
//! ```text
//! identity/gateway.key   0600  the private key, PKCS#8
//! identity/gateway.pub   0644  the public key, for a hub that is to know it
//! identity/gateway.pem   0644  its certificate and the chain to the CA
//! identity/hub-ca.pem    0644  whom to believe
//! identity/uplink.toml   0644  the hub that it is for, where it came by enrolment
//! identity.new/                what is being made; after an enrolment without an answer, its key
//! identity.old/                what the last change replaced
//! ```
//!
//! A change is staged in the directory of `.new`, synced, and put in place by one exchange of
//! names, so that key and certificate are those of before or those of after, whenever the power
//! goes.
//!
//! Root does this in a directory that belongs to the gateway's user, who may put anything there at
//! any moment. So each file is made new and handed over by its open handle, and so is the directory
//! around it, which never stays root's: a renewal by that user must be able to remove it. What is
//! read there to be written anew must be that user's own. Else a link would have root give away
//! what it points to.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, fchown},
    path::{Path, PathBuf},
};

use rustix::fs::{
    AtFlags, Mode, OFlags, RenameFlags, fsync, openat, renameat, renameat_with, unlinkat,
};
use zeroize::Zeroizing;

use super::{
    DeviceKey, IdentityError,
    credential::{self, NO_SUCH_FILE},
};
use crate::{config, files::effective_uid};

const PUBLIC_KEY_FILE: &str = "gateway.pub";
const CERT_FILE: &str = "gateway.pem";
const CA_FILE: &str = "hub-ca.pem";

const SECRET: Mode = Mode::from_raw_mode(0o600);
const OPEN: Mode = Mode::from_raw_mode(0o644);

/// The directory of an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    directory: PathBuf,
}

/// What an identity is made of, all in PEM but for the hub.
#[derive(Clone, Copy)]
pub struct Contents<'a> {
    /// The private key.
    pub key: &'a str,
    /// Its certificate, and the chain to the CA.
    pub certificate: Option<&'a str>,
    /// Whom to believe.
    pub ca: Option<&'a str>,
    /// The hub that it is for, as the configuration takes it (`config::Enrolled`).
    pub uplink: Option<&'a str>,
}

/// An identity that is ready and not yet in force. Nobody else changes the same one while this
/// lives. Dropping it lets go of it; what is in force stays so.
#[derive(Debug)]
pub struct Staged {
    target: Store,
    new: Store,
    /// The directory of `new`.
    files: File,
    owner: Option<(u32, u32)>,
    goes_with_this: bool,
    /// The directory of both, locked.
    parent: File,
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
    /// As [`Store::key`], or, for root, the file is not the owner's of the directories around it.
    pub fn key_pem(&self) -> Result<Zeroizing<String>, IdentityError> {
        let file = self.key_file();
        let bytes = credential::kept(&file, true, self.owner())?;
        let text = std::str::from_utf8(&bytes).map(|text| Zeroizing::new(text.to_owned()));
        text.map_err(|_| IdentityError::new(&file, "it is not PEM", "import the key again"))
    }

    /// The CA's file as it stands, where there is one.
    ///
    /// # Errors
    ///
    /// It can't be read, or, for root, is not the owner's of the directories around it.
    pub fn ca(&self) -> Result<Option<String>, IdentityError> {
        self.text(self.ca_file())
    }

    /// The hub that this identity is for, where it came by enrolment.
    ///
    /// # Errors
    ///
    /// As [`Store::ca`].
    pub fn uplink(&self) -> Result<Option<String>, IdentityError> {
        self.text(self.directory.join(config::IDENTITY_UPLINK))
    }

    /// The key of a change that was begun and not ended: of an enrolment whose answer never came.
    /// One that no request can be made with is none of an enrolment's.
    pub fn begun_key_pem(&self) -> Option<Zeroizing<String>> {
        let pem = Self { directory: self.beside(".new") }.key_pem().ok()?;
        DeviceKey::from_pem(&pem)?.kind().map(|_| pem)
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
        let unwritable = |error| unwritable(&self.directory, &error);
        let parent = self.parent();
        let mut private = DirBuilder::new();
        private.mode(0o700);
        if !parent.exists() {
            private.recursive(true).create(parent).map_err(unwritable)?;
        }
        let parent = lock(parent)?;
        let new = Self { directory: self.beside(".new") };
        remove(&new.directory).map_err(unwritable)?;
        private.recursive(false).create(&new.directory).map_err(unwritable)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let files = openat(&parent, name(&new.directory), flags, Mode::empty());
        let files = File::from(files.map_err(|error| unwritable(error.into()))?);
        let owner = heir(&parent).map_err(unwritable)?;
        hand_over(&files, owner).map_err(unwritable)?;
        let target = self.clone();
        let staged = Staged { target, new, files, owner, goes_with_this: true, parent };
        staged.put(config::IDENTITY_KEY, SECRET, contents.key)?;
        let public_key = DeviceKey::from_pem(contents.key).map(|key| key.public_key_pem());
        let public_key = public_key.ok_or_else(|| {
            IdentityError::new(&self.key_file(), "the key can't be used", "make another one")
        })?;
        staged.put(PUBLIC_KEY_FILE, OPEN, &public_key)?;
        let Contents { certificate, ca, uplink, key: _ } = contents;
        for (name, text) in
            [(CERT_FILE, certificate), (CA_FILE, ca), (config::IDENTITY_UPLINK, uplink)]
        {
            if let Some(text) = text {
                staged.put(name, OPEN, text)?;
            }
        }
        staged.sync()?;
        Ok(staged)
    }

    fn text(&self, file: PathBuf) -> Result<Option<String>, IdentityError> {
        match credential::kept(&file, false, self.owner()) {
            Err(error) if error.fault == NO_SUCH_FILE => Ok(None),
            Err(error) => Err(error),
            Ok(bytes) => match String::from_utf8(bytes.to_vec()) {
                Ok(text) => Ok(Some(text)),
                Err(_) => Err(IdentityError::new(&file, "it is not text", "write it anew")),
            },
        }
    }

    /// To whom root hands over what it makes here.
    fn owner(&self) -> Option<u32> {
        let heir = File::open(self.parent()).and_then(|parent| heir(&parent));
        heir.ok().flatten().map(|(user, _)| user)
    }

    fn parent(&self) -> &Path {
        self.directory.parent().unwrap_or(Path::new("/"))
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

    /// Puts a certificate in, and the chain to its CA.
    ///
    /// # Errors
    ///
    /// The directory can't be written to.
    pub fn put_certificate(&self, pem: &str) -> Result<(), IdentityError> {
        self.put(CERT_FILE, OPEN, pem)
    }

    /// Puts another CA in, or none.
    ///
    /// # Errors
    ///
    /// The directory can't be written to.
    pub fn put_ca(&self, pem: Option<&str>) -> Result<(), IdentityError> {
        match pem {
            Some(pem) => self.put(CA_FILE, OPEN, pem),
            None => self.take_out(CA_FILE),
        }
    }

    /// Puts in which hub it is for.
    ///
    /// # Errors
    ///
    /// The directory can't be written to.
    pub fn put_uplink(&self, text: &str) -> Result<(), IdentityError> {
        self.put(config::IDENTITY_UPLINK, OPEN, text)
    }

    /// Dropping it no longer lets go of it: its key may have been certified already.
    pub fn keep(&mut self) {
        self.goes_with_this = false;
    }

    /// Puts it in force, at once and durably; what was in force is kept as `.old`.
    ///
    /// # Errors
    ///
    /// The file system does not let it; then what was in force still is.
    pub fn promote(mut self) -> Result<(), IdentityError> {
        self.sync()?;
        // From here on the name may have what was in force.
        self.goes_with_this = false;
        let (new, current) = (name(&self.new.directory), name(&self.target.directory));
        let promoted = || -> io::Result<()> {
            if self.target.directory.exists() {
                let old = self.target.beside(".old");
                remove(&old)?;
                // After this the name of `.new` has what was in force.
                renameat_with(&self.parent, new, &self.parent, current, RenameFlags::EXCHANGE)?;
                renameat(&self.parent, new, &self.parent, name(&old))?;
            } else {
                renameat(&self.parent, new, &self.parent, current)?;
            }
            Ok(fsync(&self.parent)?)
        };
        promoted().map_err(|error| unwritable(&self.target.directory, &error))
    }

    /// Makes a file, in place of what has its name, and hands it over.
    fn put(&self, name: &str, mode: Mode, text: &str) -> Result<(), IdentityError> {
        self.take_out(name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let written = || -> io::Result<()> {
            let mut file = File::from(openat(&self.files, name, flags, mode)?);
            file.write_all(text.as_bytes())?;
            hand_over(&file, self.owner)?;
            file.sync_all()
        };
        written().map_err(|error| unwritable(&self.new.directory, &error))
    }

    fn take_out(&self, name: &str) -> Result<(), IdentityError> {
        match unlinkat(&self.files, name, AtFlags::empty()) {
            Err(error) if error != rustix::io::Errno::NOENT => {
                Err(unwritable(&self.new.directory, &error.into()))
            }
            _ => Ok(()),
        }
    }

    /// The names, too: a key that was certified and then lost would be a visit to the board.
    fn sync(&self) -> Result<(), IdentityError> {
        let synced = fsync(&self.files).and_then(|()| fsync(&self.parent));
        synced.map_err(|error| unwritable(&self.new.directory, &error.into()))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.goes_with_this {
            // What is left of it goes when the next one is staged.
            remove(&self.new.directory).ok();
        }
    }
}

/// Root works for whom the directory belongs to: the service's user.
fn heir(directory: &File) -> io::Result<Option<(u32, u32)>> {
    let owner = directory.metadata()?;
    let works_for_another = effective_uid() == Some(0) && owner.uid() != 0;
    Ok(works_for_another.then(|| (owner.uid(), owner.gid())))
}

fn hand_over(file: &File, owner: Option<(u32, u32)>) -> io::Result<()> {
    owner.map_or(Ok(()), |(user, group)| fchown(file, Some(user), Some(group)))
}

fn name(directory: &Path) -> &Path {
    directory.file_name().map_or(Path::new("."), Path::new)
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
        Contents { key, certificate: None, ca: None, uplink: None }
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
        let contents =
            Contents { key: &second, certificate: Some("c"), ca: Some("a"), uplink: Some("u") };
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

    #[test]
    fn what_is_kept_after_it_was_dropped_gives_its_key_to_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::of_state_dir(directory.path());
        assert_eq!(store.begun_key_pem(), None);
        let key = made();
        let mut staged = store.stage(only(&key), true).unwrap();
        staged.keep();
        drop(staged);
        assert_eq!(store.begun_key_pem().as_ref(), Some(&key));
        let staged = store.stage(only(&key), true).unwrap();
        staged.put_ca(Some("one")).unwrap();
        staged.put_ca(Some("other")).unwrap();
        staged.put_uplink("u").unwrap();
        staged.promote().unwrap();
        assert_eq!((store.ca(), store.uplink()), (Ok(Some("other".into())), Ok(Some("u".into()))));
        assert_eq!(store.begun_key_pem(), None);
        let staged = store.stage(only(&key), true).unwrap();
        staged.put_ca(Some("one")).unwrap();
        staged.put_ca(None).unwrap();
        staged.promote().unwrap();
        assert_eq!(store.ca(), Ok(None));
    }

    /// Root enrols in a directory of the gateway's user, who may have put links there: handing over
    /// by path gave him the file that the link pointed to, and taking the CA of before along gave
    /// him a copy of it.
    #[test]
    fn root_gives_the_gateways_user_nothing_that_a_link_points_to() {
        const USER: u32 = 65_534;
        if effective_uid() != Some(0) {
            return;
        }
        let (directory, of_root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let state = directory.path().join("state");
        fs::create_dir(&state).unwrap();
        std::os::unix::fs::chown(&state, Some(USER), Some(USER)).unwrap();
        let store = Store::of_state_dir(&state);
        let (key, secret) = (made(), of_root.path().join("secret"));
        fs::write(&secret, &*made()).unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let uid = |path: &Path| fs::symlink_metadata(path).unwrap().uid();

        // A whole directory in place of the one that is made.
        std::os::unix::fs::symlink(of_root.path(), state.join("identity.new")).unwrap();
        let staged = store.stage(only(&key), true).unwrap();
        assert_eq!((uid(&staged.files().key_file()), uid(&staged.files().directory)), (USER, USER));
        // A link in place of a file that is there already.
        std::os::unix::fs::symlink(&secret, staged.files().ca_file()).unwrap();
        staged.put_ca(Some("ca")).unwrap();
        staged.promote().unwrap();
        assert_eq!((uid(store.directory()), uid(&store.ca_file())), (USER, USER));
        assert_eq!((store.ca(), uid(&secret)), (Ok(Some("ca".into())), 0));
        assert_eq!(fs::read_dir(of_root.path()).unwrap().count(), 1);

        for file in [store.ca_file(), store.key_file()] {
            fs::remove_file(&file).unwrap();
            std::os::unix::fs::symlink(&secret, &file).unwrap();
        }
        for error in [store.ca().map(drop), store.key_pem().map(drop)] {
            let error = error.unwrap_err().to_string();
            assert!(error.contains("user 0 owns"), "{error}");
        }
    }
}
