//! Files with secrets, and files that are replaced while others read them.

use std::{
    env, fs,
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Writes a file that has its mode from its first byte on, whatever was there before. A reader sees
/// the old content or the new, whole.
pub(super) fn replace(file: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = file.with_file_name(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    create(&new, mode, content)?;
    fs::rename(new, file)
}

/// Writes a file that must not be there yet.
pub(super) fn create(file: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(file)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Reads a file that nobody else may read; the error says why not.
pub(super) fn secret(file: &Path) -> Result<Vec<u8>, String> {
    let fault = |what: &dyn std::fmt::Display| format!("{}: {what}", file.display());
    let mode = fs::metadata(file).map_err(|error| fault(&error))?.mode();
    // In the directory that systemd makes for this service alone, the group's bit is the mask of
    // an access list.
    let directory = env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let of_systemd = directory.is_some_and(|dir| dir.is_absolute() && file.starts_with(dir));
    if mode & if of_systemd { 0o037 } else { 0o077 } != 0 {
        let mode = mode & 0o777;
        let remedy = format!("chmod 600 {}", file.display());
        return Err(fault(&format_args!("mode {mode:03o} lets others use the key; {remedy}")));
    }
    fs::read(file).map_err(|error| fault(&error))
}
