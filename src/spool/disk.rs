//! The one door to the medium, so that a simulated one can stand in.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// A directory of files.
pub trait Disk {
    /// An open file.
    type File: DiskFile;

    /// The names of all files.
    ///
    /// # Errors
    /// The directory can't be read.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes an empty file, or empties one that is there.
    ///
    /// # Errors
    /// As the medium says.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Opens a file to read and write.
    ///
    /// # Errors
    /// As the medium says.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Deletes a file.
    ///
    /// # Errors
    /// As the medium says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Gives a file another name; one that had it is gone.
    ///
    /// # Errors
    /// As the medium says; the file has its old name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// The bytes that the medium has left for us.
    ///
    /// # Errors
    /// As the medium says.
    fn free_bytes(&self) -> io::Result<u64>;

    /// Puts `content` in place of a file's, whole or not at all: temporary file, fsync, rename,
    /// fsync of the directory.
    ///
    /// # Errors
    /// The old content stands.
    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()>;

    /// Makes the names durable.
    ///
    /// # Errors
    /// As the medium says.
    fn sync_directory(&self) -> io::Result<()>;
}

/// An open file of a [`Disk`].
pub trait DiskFile {
    /// Its length in bytes.
    ///
    /// # Errors
    /// As the medium says.
    fn length(&self) -> io::Result<u64>;

    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end.
    ///
    /// # Errors
    /// As the medium says.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// Some of it may have been written.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Cuts the file.
    ///
    /// # Errors
    /// As the medium says.
    fn truncate(&mut self, len: u64) -> io::Result<()>;

    /// Makes content and length durable.
    ///
    /// # Errors
    /// What was written since the last sync may or may not be there, and asking again proves
    /// nothing.
    fn sync(&mut self) -> io::Result<()>;

    /// Has the file read from now on as the medium has it: what a sync failed to write may still be
    /// read otherwise, by the next process too, and a later sync doesn't write it.
    ///
    /// # Errors
    /// As for [`DiskFile::sync`].
    fn settle(&mut self) -> io::Result<()>;
}

/// A real directory, locked for as long as this lives.
#[derive(Debug)]
pub struct DirectoryDisk {
    path: PathBuf,
    directory: File,
    _lock: File,
}

impl DirectoryDisk {
    /// Makes the directory (mode 0700) if need be, and takes its lock.
    ///
    /// # Errors
    /// `WouldBlock` when another process holds it; otherwise as the file system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode_0700()
            .create(path)
            .or_else(|error| if path.is_dir() { Ok(()) } else { Err(error) })?;
        let lock_path = path.join("lock");
        let lock = options().create(true).truncate(false).open(&lock_path)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::WouldBlock,
                format!("{} is held by another fieldgate", path.display()),
            ),
            TryLockError::Error(error) => error,
        })?;
        Ok(Self { path: path.into(), directory: File::open(path)?, _lock: lock })
    }
}

trait PrivateDirectory {
    fn mode_0700(&mut self) -> &mut Self;
}

impl PrivateDirectory for fs::DirBuilder {
    fn mode_0700(&mut self) -> &mut Self {
        std::os::unix::fs::DirBuilderExt::mode(self, 0o700)
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

impl Disk for DirectoryDisk {
    type File = File;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            // A name that is not UTF-8 is none of ours.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<File> {
        options().create(true).truncate(true).open(self.path.join(name))
    }

    fn open(&self, name: &str) -> io::Result<File> {
        let path = self.path.join(name);
        // A read-only file system must still give back what it holds.
        options().open(&path).or_else(|_| File::open(&path))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stats = rustix::fs::fstatvfs(&self.directory)?;
        Ok(stats.f_bavail.saturating_mul(stats.f_frsize))
    }

    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let temporary = format!("{name}.new");
        let mut file = self.create(&temporary)?;
        file.write_at(content, 0)?;
        DiskFile::sync(&mut file)?;
        fs::rename(self.path.join(&temporary), self.path.join(name))?;
        self.sync_directory()
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.directory.sync_all()
    }
}

impl DiskFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match std::os::unix::fs::FileExt::read_at(
                self,
                &mut buffer[filled..],
                offset + filled as u64,
            ) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn settle(&mut self) -> io::Result<()> {
        let synced = self.sync_data();
        // After a failed write the kernel takes its copy for clean; it is to ask the medium.
        rustix::fs::fadvise(&*self, 0, None, rustix::fs::Advice::DontNeed)?;
        synced
    }
}
