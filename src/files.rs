//! Files with credentials, and files that are replaced while others read them: what gateway and hub
//! ask of them alike.
//!
//! A secret that others can use is refused, as ssh does it, and what was read of it is wiped when
//! it is let go of.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

/// The largest credential file: the system's bundle of trust anchors has about 220 KB. A larger one
/// is refused.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// The fault of a file that this user may not read; the gateway's may.
pub const NOT_FOR_THIS_USER: &str = "it may not be read by this user";

/// The fault of a file that is not there.
pub const NO_SUCH_FILE: &str = "there is no such file";

/// Why a file can't be used: the file, the fault and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {fault}; {remedy}", file.display())]
pub struct FileError {
    /// Which file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub fault: String,
    /// What mends it.
    pub remedy: String,
}

impl FileError {
    pub(crate) fn new(file: &Path, fault: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { file: file.to_owned(), fault: fault.into(), remedy: remedy.into() }
    }
}

/// Whether a credential's file can be used, by the rules by which it will be.
///
/// # Errors
/// Why not.
pub fn usable(file: &Path, is_secret: bool) -> Result<(), FileError> {
    if is_secret { secret(file) } else { public(file, MAX_FILE_BYTES) }.map(drop)
}

/// The content of a file that is to be written anew for `owner`, in whose directory it stands: only
/// what is his own is read for him. Without an owner it is read as any other.
///
/// # Errors
/// It can't be read, is empty or too large, is another's, or a secret that others can use.
pub fn kept(
    file: &Path,
    is_secret: bool,
    owner: Option<u32>,
) -> Result<Zeroizing<Vec<u8>>, FileError> {
    read_of(file, is_secret.then_some(Guard::Owner), MAX_FILE_BYTES, owner)
}

/// The content of a file that nobody else can read.
///
/// # Errors
/// It can't be read, is empty or too large, or others can use it.
pub fn secret(file: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    // The directory that systemd makes for this service alone: root owns it, and its modes show the
    // access list's mask.
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let of_systemd = directory.is_some_and(|dir| dir.is_absolute() && file.starts_with(dir));
    let guard = if of_systemd { Guard::Systemd } else { Guard::Owner };
    read(file, Some(guard), MAX_FILE_BYTES)
}

/// The content of a file that everybody may read, of at most so many bytes.
///
/// # Errors
/// It can't be read, is empty or too large.
pub fn public(file: &Path, max_bytes: u64) -> Result<Zeroizing<Vec<u8>>, FileError> {
    read(file, None, max_bytes)
}

/// Whose rules a secret's mode and owner follow.
#[derive(Clone, Copy)]
enum Guard {
    /// ssh's: nobody but the owner, who is us or root.
    Owner,
    /// A systemd credential: the group's read bit is the access list's mask.
    Systemd,
}

fn read(
    file: &Path,
    guard: Option<Guard>,
    max_bytes: u64,
) -> Result<Zeroizing<Vec<u8>>, FileError> {
    read_of(file, guard, max_bytes, None)
}

fn read_of(
    file: &Path,
    guard: Option<Guard>,
    max_bytes: u64,
    owner: Option<u32>,
) -> Result<Zeroizing<Vec<u8>>, FileError> {
    // Asked before the opening, which would wait forever on a FIFO.
    let unreadable = |error| unreadable(file, &error);
    if !fs::metadata(file).map_err(unreadable)?.is_file() {
        return Err(FileError::new(file, "it is not a file", "name a regular file"));
    }
    let opened = File::open(file).map_err(unreadable)?;
    let metadata = opened.metadata().map_err(unreadable)?;
    if let Some(guard) = guard {
        check_guarded(file, &metadata, guard, effective_uid())?;
    }
    if let Some(owner) = owner.filter(|owner| *owner != metadata.uid()) {
        let fault =
            format!("user {} owns it, not user {owner}, whose directory it is in", metadata.uid());
        return Err(FileError::new(file, fault, "remove it, or give it to that user"));
    }
    // Room for all of it at once: what a growing vector leaves behind is not wiped.
    let room = metadata.len().min(max_bytes) as usize + 32;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    opened.take(max_bytes + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > max_bytes {
        let fault = format!("it is larger than {max_bytes} bytes");
        return Err(FileError::new(file, fault, "name the credential's own file"));
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(FileError::new(file, "it is empty", "write the credential into it"));
    }
    Ok(bytes)
}

fn check_guarded(
    file: &Path,
    metadata: &Metadata,
    guard: Guard,
    us: Option<u32>,
) -> Result<(), FileError> {
    let mode = metadata.permissions().mode() & 0o777;
    let (open_to_others, owner_matters) = match guard {
        Guard::Owner => (mode & 0o077, true),
        Guard::Systemd => (mode & 0o037, false),
    };
    if open_to_others != 0 {
        return Err(FileError::new(
            file,
            format!("others than its owner can use this secret (mode {mode:03o})"),
            format!("chmod 600 {}", file.display()),
        ));
    }
    let owner = metadata.uid();
    // Without /proc nobody tells who we are; that the file could be opened then says enough. Root
    // enrols and examines a gateway whose files are its user's.
    if owner_matters && owner != 0 && us.is_some_and(|us| us != owner && us != 0) {
        let us = us.unwrap_or_default();
        return Err(FileError::new(
            file,
            format!("user {owner} owns this secret, not user {us} who runs this"),
            format!("chown {us} {0} && chmod 600 {0}", file.display()),
        ));
    }
    Ok(())
}

fn unreadable(file: &Path, error: &io::Error) -> FileError {
    match error.kind() {
        io::ErrorKind::NotFound => {
            FileError::new(file, NO_SUCH_FILE, "create it, or correct the path")
        }
        io::ErrorKind::PermissionDenied => FileError::new(
            file,
            NOT_FOR_THIS_USER,
            "let the user that runs fieldgate own it, and every directory above be open to it",
        ),
        _ => FileError::new(file, format!("it can't be read: {error}"), "check the disk"),
    }
}

/// Who this process acts as. The standard library doesn't tell; `/proc` does.
pub fn effective_uid() -> Option<u32> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Refuses a directory of another user, root's included: files that we made in it would lock its
/// owner out of what is its own. Without `/proc` nothing is refused.
///
/// # Errors
/// It is another user's, or not there.
pub fn refuse_foreign(directory: &Path) -> Result<(), FileError> {
    let owner = fs::metadata(directory).map_err(|error| unreadable(directory, &error))?.uid();
    check_owner(directory, owner, effective_uid())
}

fn check_owner(directory: &Path, owner: u32, us: Option<u32>) -> Result<(), FileError> {
    match us {
        Some(us) if us != owner => Err(FileError::new(
            directory,
            format!("it belongs to user {owner} and this runs as user {us}"),
            format!("run it as its owner: sudo -u '#{owner}' …"),
        )),
        _ => Ok(()),
    }
}

/// Writes a file that must not be there yet, and has its mode from its first byte on.
///
/// # Errors
/// It is there, or can't be written.
pub fn create(file: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    write(file, mode, content)?;
    sync_directory_of(file)
}

/// Writes a file that has its mode from its first byte on, whatever was there before. A reader sees
/// the old content or the new, whole, and so does whoever comes after a power cut; once this
/// returned it is the new.
///
/// # Errors
/// It can't be written; the old content stays.
pub fn replace(file: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = file.with_file_name(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    write(&new, mode, content)?;
    fs::rename(new, file)?;
    sync_directory_of(file)
}

fn write(file: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(file)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Brings a name to the medium, which is not there before its directory is.
///
/// # Errors
/// The directory can't be synced.
pub fn sync_directory_of(file: &Path) -> io::Result<()> {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions, write};

    use super::*;

    fn file_with(mode: u32, content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("gw.key");
        write(&file, content).unwrap();
        set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        (directory, file)
    }

    #[test]
    fn a_secret_that_others_can_use_is_refused_and_the_chmod_named() {
        for mode in [0o644, 0o640, 0o604, 0o660, 0o610, 0o601] {
            let (_directory, file) = file_with(mode, b"secret");
            let error = secret(&file).unwrap_err().to_string();
            assert!(error.contains(&format!("chmod 600 {}", file.display())), "{error}");
            assert!(error.contains(&format!("mode {mode:03o}")), "{error}");
        }
        for mode in [0o600, 0o400, 0o700] {
            let (_directory, file) = file_with(mode, b"secret");
            assert_eq!(*secret(&file).unwrap(), b"secret");
        }
    }

    #[test]
    fn a_secret_of_another_user_is_refused_unless_systemd_gave_it() {
        let (_directory, file) = file_with(0o600, b"secret");
        let metadata = std::fs::metadata(&file).unwrap();
        let (owner, other) = (metadata.uid(), metadata.uid() + 1);
        assert_eq!(effective_uid(), Some(owner));
        assert!(check_guarded(&file, &metadata, Guard::Owner, Some(owner)).is_ok());
        assert!(check_guarded(&file, &metadata, Guard::Systemd, Some(other)).is_ok());
        let refused = check_guarded(&file, &metadata, Guard::Owner, Some(other));
        assert!(check_guarded(&file, &metadata, Guard::Owner, Some(0)).is_ok());
        // Root's files are nobody else's secret.
        assert_eq!(refused.is_err(), owner != 0);

        set_permissions(&file, Permissions::from_mode(0o440)).unwrap();
        let metadata = std::fs::metadata(&file).unwrap();
        assert!(check_guarded(&file, &metadata, Guard::Systemd, Some(other)).is_ok());
        assert!(check_guarded(&file, &metadata, Guard::Owner, Some(owner)).is_err());
    }

    #[test]
    fn an_unusable_file_is_named_with_its_fault_and_remedy() {
        let (directory, file) = file_with(0o600, b" \n");
        let says = |error: FileError, words: &str| {
            let text = error.to_string();
            assert!(text.contains(words) && text.contains("; "), "{text}");
        };
        says(secret(&file).unwrap_err(), "it is empty");
        says(secret(&directory.path().join("none")).unwrap_err(), "no such file");
        says(secret(directory.path()).unwrap_err(), "not a file");
        write(&file, vec![b'x'; MAX_FILE_BYTES as usize + 1]).unwrap();
        says(secret(&file).unwrap_err(), "larger than");
        assert_eq!(public(&file, MAX_FILE_BYTES + 1).unwrap().len() as u64, MAX_FILE_BYTES + 1);
    }

    /// `sudo fieldgate-hub ca init` made a directory of root's in the hub's own, and the hub did
    /// not start again.
    #[test]
    fn a_directory_of_another_user_is_refused_to_root_too() {
        let directory = tempfile::tempdir().unwrap();
        assert!(refuse_foreign(directory.path()).is_ok());
        assert!(refuse_foreign(&directory.path().join("none")).is_err());
        let refused = check_owner(directory.path(), 998, Some(0)).unwrap_err().to_string();
        assert!(refused.contains("user 998") && refused.contains("sudo -u '#998'"), "{refused}");
        assert!(check_owner(directory.path(), 998, Some(998)).is_ok());
        assert!(check_owner(directory.path(), 998, None).is_ok());
    }

    #[test]
    fn a_file_is_replaced_with_its_mode_and_made_only_once() {
        let (directory, file) = file_with(0o644, b"old");
        replace(&file, 0o600, b"new").unwrap();
        assert_eq!(*secret(&file).unwrap(), b"new");
        assert!(create(&file, 0o600, b"x").is_err());
        create(&directory.path().join("other"), 0o600, b"other").unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "nothing is left behind");
    }
}
