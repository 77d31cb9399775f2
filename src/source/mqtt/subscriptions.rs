//! Which filters the session at the broker has, as far as it confirmed them, kept in a file.
//!
//! A SUBSCRIBE brings every retained message again, so a resumed session is asked only for what it
//! lacks. The file has the session's owner (client and broker) in its first line and one confirmed
//! filter in each other; when it is missing, of another owner or unreadable, nothing is confirmed
//! and everything is asked for: retained messages come once more, and no filter is missed.
//!
//! The file is written and synced beside the event loop, and waited for: before filters are asked
//! for, and only after they were confirmed.
//!
//! One gap is left: a gateway that dies within the milliseconds between the CONNACK of a new
//! session and the note of it takes that session for subscribed when it starts again. Deleting the
//! file mends it.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use tokio::task::spawn_blocking;

/// The wanted and the confirmed filters.
#[derive(Debug)]
pub(super) struct Subscriptions {
    file: PathBuf,
    owner: String,
    wanted: Vec<String>,
    confirmed: Vec<String>,
}

impl Subscriptions {
    /// Reads what was confirmed to `owner` earlier.
    pub(super) fn load(file: PathBuf, owner: String, mut wanted: Vec<String>) -> Self {
        wanted.sort_unstable();
        wanted.dedup();
        let text = fs::read_to_string(&file).unwrap_or_default();
        let mut lines = text.lines();
        let confirmed = match lines.next() {
            Some(first) if first == owner => lines.map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        Self { file, owner, wanted, confirmed }
    }

    /// What the session lacks, and what it has too much.
    pub(super) fn changes(&self) -> (Vec<String>, Vec<String>) {
        let without = |some: &[String], others: &[String]| {
            some.iter().filter(|filter| !others.contains(filter)).cloned().collect()
        };
        (without(&self.wanted, &self.confirmed), without(&self.confirmed, &self.wanted))
    }

    /// The broker began a new session: it has no filter. Noted on disk before any is asked for, so
    /// that a crash before the SUBACK does not leave a session that is taken for subscribed.
    pub(super) async fn handle_new_session(&mut self) {
        if !self.confirmed.is_empty() {
            self.confirmed.clear();
            self.save().await;
        }
    }

    /// The broker confirmed all changes.
    pub(super) async fn handle_confirmed(&mut self) {
        self.confirmed.clone_from(&self.wanted);
        self.save().await;
    }

    async fn save(&self) {
        let mut text = self.owner.clone();
        for filter in &self.confirmed {
            text.push('\n');
            text.push_str(filter);
        }
        text.push('\n');
        let file = self.file.clone();
        let replaced = spawn_blocking(move || replace(&file, text.as_bytes())).await;
        if let Err(error) = replaced.expect("replacing a file does not panic") {
            let file = self.file.display();
            tracing::warn!(
                "{file}: {error}; retained messages may come again; free or mend the disk"
            );
        }
    }
}

/// Puts a file in place of another so that a crash leaves the one or the other.
fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = file.with_extension("new");
    let mut out = File::create(&new)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    fs::rename(&new, file)?;
    match file.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &Path, owner: &str, wanted: &[&str]) -> Subscriptions {
        let wanted = wanted.iter().map(|filter| (*filter).to_owned()).collect();
        Subscriptions::load(file.to_owned(), owner.to_owned(), wanted)
    }

    fn changes(subscriptions: &Subscriptions) -> String {
        let (missing, surplus) = subscriptions.changes();
        format!("+{} -{}", missing.join(","), surplus.join(","))
    }

    #[tokio::test]
    async fn only_the_difference_to_what_was_confirmed_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("subscriptions");
        let mut first = load(&file, "gw at b:1", &["b/#", "a/#", "a/#"]);
        assert_eq!(changes(&first), "+a/#,b/# -");
        first.handle_confirmed().await;
        assert_eq!(changes(&first), "+ -");
        assert_eq!(changes(&load(&file, "gw at b:1", &["b/#", "c/#"])), "+c/# -a/#");
        assert_eq!(changes(&load(&file, "gw at other:1", &["b/#"])), "+b/# -");
        first.handle_new_session().await;
        assert_eq!(changes(&load(&file, "gw at b:1", &["b/#"])), "+b/# -");
    }

    /// The whole gateway stood still while a slow card took its time to sync this file.
    #[tokio::test]
    async fn the_event_loop_goes_on_while_the_medium_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("subscriptions");
        // Opening a FIFO waits until its other end is opened, too.
        let slow = file.with_extension("new");
        assert!(std::process::Command::new("mkfifo").arg(&slow).status().unwrap().success());
        let mut subscriptions = load(&file, "gw", &["a"]);
        let meanwhile = async { spawn_blocking(move || fs::read(slow)).await.unwrap() };
        let ((), written) = tokio::join!(subscriptions.handle_confirmed(), meanwhile);
        assert_eq!(written.unwrap(), b"gw\na\n");
    }

    #[test]
    fn a_damaged_file_confirms_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("subscriptions");
        fs::write(&file, b"\xff\xfe\n").unwrap();
        assert_eq!(changes(&load(&file, "gw", &["a"])), "+a -");
    }
}
