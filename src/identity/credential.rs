//! Credential files: reading them, and refusing those whose secret others can read.

use std::{
    fs::{File, Metadata},
    io::{self, Read},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use zeroize::Zeroizing;

use super::IdentityError;

/// The largest credential file: the system's bundle of trust anchors has about 220 KB. A larger one
/// is refused.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The fault of a file that this user may not read; the gateway's may.
pub const NOT_FOR_THIS_USER: &str = "it may not be read by this user";

/// The fault of a file that is not there.
pub(super) const NO_SUCH_FILE: &str = "there is no such file";

/// Every certificate of a PEM file, at least one.
pub(super) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let pem = read(file, None)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(chain) if chain.is_empty() => Err(IdentityError::new(
            file,
            "it holds no certificate",
            "it should hold a PEM block that begins with -----BEGIN CERTIFICATE-----",
        )),
        Ok(chain) => Ok(chain),
        Err(_) => Err(not_pem(file)),
    }
}

/// The first private key of a PEM file that nobody else can read.
pub(super) fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let pem = secret(file)?;
    match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(key) => Ok(key),
        Err(rustls::pki_types::pem::Error::NoItemsFound) => {
            let encrypted = pem.windows(9).any(|bytes| bytes == b"ENCRYPTED");
            let fault = if encrypted { "its key is encrypted" } else { "it holds no private key" };
            let remedy = if encrypted {
                "write it without a passphrase (openssl pkey -in FILE -out NEW), mode 600"
            } else {
                "it should hold a PEM block that begins with -----BEGIN PRIVATE KEY-----"
            };
            Err(IdentityError::new(file, fault, remedy))
        }
        // The error's own text may quote the file, so it is not passed on.
        Err(_) => Err(not_pem(file)),
    }
}

/// Whether a credential's file can be used, by the rules by which it will be.
///
/// # Errors
///
/// Why not.
pub fn usable(file: &Path, is_secret: bool) -> Result<(), IdentityError> {
    if is_secret { secret(file) } else { read(file, None) }.map(drop)
}

/// The content of a file that nobody else can read.
pub(super) fn secret(file: &Path) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    // The directory that systemd makes for this service alone: root owns it, and its modes show the
    // access list's mask.
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let of_systemd = directory.is_some_and(|dir| dir.is_absolute() && file.starts_with(dir));
    let guard = if of_systemd { Guard::Systemd } else { Guard::Owner };
    read(file, Some(guard))
}

/// The content of a file that is to be written anew for `owner`, in whose directory it stands: only
/// what is his own is read for him. Without an owner it is read as any other.
pub(super) fn kept(
    file: &Path,
    is_secret: bool,
    owner: Option<u32>,
) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    read_of(file, is_secret.then_some(Guard::Owner), owner)
}

/// Whose rules a secret's mode and owner follow.
#[derive(Clone, Copy)]
enum Guard {
    /// ssh's: nobody but the owner, who is us or root.
    Owner,
    /// A systemd credential: the group's read bit is the access list's mask.
    Systemd,
}

fn read(file: &Path, guard: Option<Guard>) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    read_of(file, guard, None)
}

fn read_of(
    file: &Path,
    guard: Option<Guard>,
    owner: Option<u32>,
) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    // Asked before the opening, which would wait forever on a FIFO.
    let unreadable = |error| unreadable(file, &error);
    if !std::fs::metadata(file).map_err(unreadable)?.is_file() {
        return Err(IdentityError::new(file, "it is not a file", "name a regular file"));
    }
    let opened = File::open(file).map_err(unreadable)?;
    let metadata = opened.metadata().map_err(unreadable)?;
    if let Some(guard) = guard {
        check_guarded(file, &metadata, guard, effective_uid())?;
    }
    if let Some(owner) = owner.filter(|owner| *owner != metadata.uid()) {
        let fault =
            format!("user {} owns it, not user {owner}, whose directory it is in", metadata.uid());
        return Err(IdentityError::new(file, fault, "remove it, or give it to that user"));
    }
    // Room for all of it at once: what a growing vector leaves behind is not wiped.
    let room = metadata.len().min(MAX_FILE_BYTES) as usize + 32;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    opened.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let fault = format!("it is larger than {MAX_FILE_BYTES} bytes");
        return Err(IdentityError::new(file, fault, "name the credential's own file"));
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(IdentityError::new(file, "it is empty", "write the credential into it"));
    }
    Ok(bytes)
}

fn check_guarded(
    file: &Path,
    metadata: &Metadata,
    guard: Guard,
    us: Option<u32>,
) -> Result<(), IdentityError> {
    let mode = metadata.permissions().mode() & 0o777;
    let (open_to_others, owner_matters) = match guard {
        Guard::Owner => (mode & 0o077, true),
        Guard::Systemd => (mode & 0o037, false),
    };
    if open_to_others != 0 {
        return Err(IdentityError::new(
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
        return Err(IdentityError::new(
            file,
            format!("user {owner} owns this secret, not user {us} who runs this"),
            format!("chown {us} {0} && chmod 600 {0}", file.display()),
        ));
    }
    Ok(())
}

fn unreadable(file: &Path, error: &io::Error) -> IdentityError {
    match error.kind() {
        io::ErrorKind::NotFound => {
            IdentityError::new(file, NO_SUCH_FILE, "create it, or correct the path")
        }
        io::ErrorKind::PermissionDenied => IdentityError::new(
            file,
            NOT_FOR_THIS_USER,
            "let the user that runs fieldgate own it, and every directory above be open to it",
        ),
        _ => IdentityError::new(file, format!("it can't be read: {error}"), "check the disk"),
    }
}

fn not_pem(file: &Path) -> IdentityError {
    IdentityError::new(
        file,
        "it is not well-formed PEM",
        "convert it (openssl x509 or openssl pkey, -inform DER -outform PEM), or copy it anew",
    )
}

/// Who this process acts as. The standard library doesn't tell; `/proc` does.
pub fn effective_uid() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
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
    fn every_unusable_file_is_named_with_its_fault_and_remedy() {
        let (directory, file) = file_with(0o600, b" \n");
        let says = |error: IdentityError, words: &str| {
            let text = error.to_string();
            assert!(text.contains(words) && text.contains("; "), "{text}");
            assert!(!text.contains("c2VjcmV0"), "{text}");
        };
        says(secret(&file).unwrap_err(), "it is empty");
        says(secret(&directory.path().join("none")).unwrap_err(), "no such file");
        says(secret(directory.path()).unwrap_err(), "not a file");
        write(&file, "c2VjcmV0").unwrap();
        says(private_key(&file).unwrap_err(), "no private key");
        says(certificates(&file).unwrap_err(), "no certificate");
        write(&file, "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n").unwrap();
        says(private_key(&file).unwrap_err(), "not well-formed PEM");
        write(&file, "-----BEGIN c2VjcmV0\n").unwrap();
        says(private_key(&file).unwrap_err(), "not well-formed PEM");
        let block = "ENCRYPTED PRIVATE KEY-----";
        write(&file, format!("-----BEGIN {block}\nc2VjcmV0\n-----END {block}\n")).unwrap();
        says(private_key(&file).unwrap_err(), "encrypted");
        write(&file, vec![b'x'; MAX_FILE_BYTES as usize + 1]).unwrap();
        says(secret(&file).unwrap_err(), "larger than");
    }
}
