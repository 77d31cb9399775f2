//! A file system of the benchmark's own on a loop device: what reaches its sectors is what a card
//! would have to bear. `/proc/PID/io` counts pages, and the journal's writes not at all.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

/// The unit of `/sys/block/*/stat`, whatever the device's own (Documentation/block/stat.rst).
const SECTOR_BYTES: u64 = 512;

/// A mounted ext4; it is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Medium {
    image: PathBuf,
    device: String,
    mount: PathBuf,
    directory: File,
}

impl Medium {
    /// Makes a sparse image in `dir` and mounts it.
    pub(crate) fn mount(dir: &Path, bytes: u64) -> anyhow::Result<Self> {
        let name = format!("spool-{}", std::process::id());
        let (image, mount) = (dir.join(format!("{name}.ext4")), dir.join(name));
        fs::create_dir_all(&mount)?;
        File::create(&image)?.set_len(bytes)?;
        // What a fresh file system would still do in the background is done now.
        let settled = "lazy_itable_init=0,lazy_journal_init=0";
        said(Command::new("mkfs.ext4").args(["-q", "-F", "-E", settled]).arg(&image))?;
        let device = said(Command::new("losetup").args(["--find", "--show"]).arg(&image))?;
        let mounted = said(Command::new("mount").args(["-t", "ext4", &device]).arg(&mount));
        if let Err(error) = mounted {
            said(Command::new("losetup").args(["--detach", &device])).ok();
            fs::remove_file(&image).ok();
            return Err(error);
        }
        let directory = File::open(&mount)?;
        Ok(Self { image, device, mount, directory })
    }

    /// An empty directory on it; one that was there is gone.
    pub(crate) fn fresh_dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.mount.join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir(&dir)?;
        Ok(dir)
    }

    /// Bytes written to the device since it was made, after all that is owed to it has been
    /// written.
    pub(crate) fn written_bytes(&self) -> anyhow::Result<u64> {
        const SECTORS_WRITTEN: usize = 6;
        rustix::fs::syncfs(&self.directory)?;
        let name = self.device.trim_start_matches("/dev/");
        let file = format!("/sys/block/{name}/stat");
        let text = fs::read_to_string(&file).with_context(|| file.clone())?;
        let sectors = text.split_whitespace().nth(SECTORS_WRITTEN);
        let sectors: u64 = sectors.with_context(|| format!("{file} is too short"))?.parse()?;
        Ok(sectors * SECTOR_BYTES)
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        // Our own handle keeps the mount busy: the device goes with the last user of it.
        let unmounted = said(Command::new("umount").arg("--lazy").arg(&self.mount));
        let detached = said(Command::new("losetup").args(["--detach", &self.device]));
        for error in [unmounted.err(), detached.err()].into_iter().flatten() {
            eprintln!("{error:#}");
        }
        fs::remove_file(&self.image).ok();
        fs::remove_dir(&self.mount).ok();
    }
}

/// Runs a command and gives what it said.
fn said(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("{command:?}; is it installed?"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
