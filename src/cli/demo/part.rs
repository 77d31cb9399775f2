//! The demo's folder, and the processes that it runs from its own executable.
//!
//! A process of the demo ends with it, however the demo ends: it holds one end of a pipe as its
//! standard input, and stops in order, as after SIGTERM, when the other end is closed; the system
//! closes that when the demo is gone.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read as _},
    os::unix::{fs::DirBuilderExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Signal, getpid, kill_process};
use tokio::time::{Instant, sleep};

use super::screen::complain;

/// How long a process may take to stop in order before it is killed. Gateway and hub promise 5 s.
const STOP_PATIENCE: Duration = Duration::from_secs(6);

/// How often it is looked whether it has stopped.
const STOP_LOOK: Duration = Duration::from_millis(10);

/// What is shown of a log: its end.
const LOG_LINES: usize = 15;

/// Names tried for the folder; a demo that was killed may have left one.
const FOLDER_NAMES: u32 = 100;

/// A fresh folder that nobody else can look into; removed with everything in it when dropped.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// In the system's place for such folders, `TMPDIR`.
    ///
    /// # Errors
    /// It can't be made.
    pub(super) fn new() -> anyhow::Result<Self> {
        let base = std::env::temp_dir();
        let own = std::process::id();
        for number in 0..FOLDER_NAMES {
            let path = base.join(format!("fieldgate-demo-{own}-{number}"));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    let remedy = "set TMPDIR to a directory that can be written to";
                    bail!("{}: a folder can't be made: {error}; {remedy}", path.display());
                }
            }
        }
        bail!("{}: full of earlier demos; remove fieldgate-demo-*", base.display())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(super) fn make(&self, name: &str) -> anyhow::Result<()> {
        let folder = self.join(name);
        let made = DirBuilder::new().mode(0o700).create(&folder);
        made.with_context(|| format!("{}: can't be made", folder.display()))
    }

    pub(super) fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let file = self.join(name);
        fs::write(&file, text).with_context(|| format!("{}: can't be written", file.display()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            complain(&format!("{}: can't be removed: {error}", self.0.display()));
        }
    }
}

/// A process that runs beside the demo; killed when dropped.
#[derive(Debug)]
pub(super) struct Part {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Part {
    /// Starts `fieldgate ARGUMENTS`; what it says goes to `NAME.log`.
    ///
    /// # Errors
    /// It can't be started.
    pub(super) fn start(
        name: &'static str,
        folder: &Folder,
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        let log = folder.join(&format!("{name}.log"));
        let file = File::create(&log).with_context(|| log.display().to_string())?;
        let child = ourselves(folder)?
            .arg(super::PART_COMMAND)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .with_context(|| format!("the {name} can't be started"))?;
        Ok(Self { name, child, log })
    }

    /// Says so if it has ended.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait().with_context(|| format!("the {} is out of sight", self.name))? {
            None => Ok(()),
            Some(status) => bail!("the {} ended by itself: {status}", self.name),
        }
    }

    /// Has it stop in order, and waits for that.
    pub(super) async fn stop(mut self) {
        drop(self.child.stdin.take());
        let end = Instant::now() + STOP_PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            sleep(STOP_LOOK).await;
        }
    }

    /// The end of its log.
    pub(super) fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().rev().take(LOG_LINES).collect();
        let mut words = format!("the end of the {}'s log:", self.name);
        for line in lines.iter().rev() {
            words += "\n    ";
            words += line;
        }
        words
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // It may have ended in this moment, or long before.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Runs `fieldgate ARGUMENTS` to its end.
///
/// # Errors
/// It can't be started, or says no.
pub(super) fn run(folder: &Folder, arguments: &[&str]) -> anyhow::Result<()> {
    let what = || format!("fieldgate {}", arguments.join(" "));
    let ended = ourselves(folder)?
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{}: can't be started", what()))?;
    let words = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.success(), "{}: {}: {}", what(), ended.status, words.trim_end());
    Ok(())
}

/// Has this process stop as after SIGTERM when standard input ends: the demo that started it is
/// gone.
pub(in crate::cli) fn end_with_standard_input() {
    thread::spawn(|| {
        let mut ignored = [0; 64];
        let mut input = io::stdin().lock();
        // An error is an end, too.
        while matches!(input.read(&mut ignored), Ok(1..)) {}
        if let Err(error) = kill_process(getpid(), Signal::TERM) {
            complain(&format!("can't signal myself: {error}"));
        }
        // Longer than the stop may take; whoever hangs is of no use to anyone.
        thread::sleep(STOP_PATIENCE);
        std::process::exit(1);
    });
}

/// This executable, in the folder, untouched by the environment's settings of another gateway, and
/// by the terminal's Ctrl-C, which is the demo's to obey.
fn ourselves(folder: &Folder) -> anyhow::Result<Command> {
    let executable = std::env::current_exe().context("this executable can't be found")?;
    let mut command = Command::new(executable);
    command.current_dir(folder.path()).process_group(0);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("FIELDGATE_") || text == "NOTIFY_SOCKET" || text == "WATCHDOG_USEC" {
            command.env_remove(&name);
        }
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_folder_is_its_owners_alone_and_goes_with_what_is_in_it() {
        let first = Folder::new().unwrap();
        let second = Folder::new().unwrap();
        assert_ne!(first.path(), second.path());
        let mode = fs::metadata(first.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        first.write("file", "text").unwrap();
        let path = first.path().to_owned();
        drop(first);
        assert!(!path.exists() && second.path().exists());
    }
}
