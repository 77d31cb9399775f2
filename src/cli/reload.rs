//! Reading the configuration anew while the gateway runs: on SIGHUP and by `fieldgate reload`.
//!
//! How the uplink proves itself, and whom it trusts, is taken over and counts from the next
//! connection on, so that a renewed certificate needs no restart. A hub that refused the gateway as
//! it was is not waited for any longer, also where the file is the same and only the files that it
//! names have changed. Everything else is only compared
//! with what the gateway was started with, and named.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};

use super::{dialer::dialer, driver::Dialer, expiry, run::prepare};
use crate::{
    config::{Config, Uplink},
    identity::Clock,
    ops::control::{Ask, ask},
};

/// A card may be slow to give a file out.
const PATIENCE: Duration = Duration::from_secs(20);

/// The keys that count without a restart.
const LIVE: [&str; 6] = [
    "uplink.ca_file",
    "uplink.client_cert_file",
    "uplink.client_key_file",
    "uplink.token_file",
    "uplink.jwt",
    "uplink.connect_timeout",
];

/// `fieldgate reload`.
pub(super) fn reload(config: &Config, wait: bool) -> ExitCode {
    let told = ask(&config.gateway.state_dir, &Ask::Reload { wait }, PATIENCE);
    match told {
        Ok(account) => {
            if wait {
                print!("{}", describe(&account));
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn describe(account: &Value) -> String {
    let keys = |member: &str| {
        let keys = account[member].as_array().into_iter().flatten().filter_map(Value::as_str);
        keys.collect::<Vec<_>>().join(", ")
    };
    let mut text =
        String::from("read anew; certificates and token count from the next connection on\n");
    for (member, means) in [("changed", "changed"), ("restart", "needs a restart")] {
        let keys = keys(member);
        if !keys.is_empty() {
            text += &format!("{means}: {keys}\n");
        }
    }
    text
}

/// What a running gateway knows of its configuration.
pub(super) struct Reload {
    /// What it runs with now.
    running: Config,
    clock: Arc<Clock>,
    /// What was written when it was started, and when it was last read.
    started: Keys,
    last: Keys,
}

/// Each key that is written, as `table.key`, and its value.
type Keys = BTreeMap<String, toml::Value>;

impl Reload {
    /// `running` was just loaded.
    pub(super) fn new(running: Config, clock: Arc<Clock>) -> Self {
        // A file that was just read and now can't be is told of when someone asks to reload it.
        let started = written(&running).unwrap_or_default();
        Self { running, clock, last: started.clone(), started }
    }

    /// The gateway's own certificates and their days, for `status`.
    pub(super) fn certificates(&self) -> Value {
        expiry::account(&self.running, expiry::moment(&self.clock))
    }

    /// Reads the file. Gives what dials from now on, and an account for whoever asked.
    ///
    /// # Errors
    /// All faults, a line each; they are logged, and the gateway goes on as it is.
    pub(super) fn read(&mut self) -> Result<(Dialer, Value), String> {
        let outcome = self.take_over();
        if let Err(faults) = &outcome {
            for fault in faults.lines() {
                tracing::error!("the configuration is not taken over: {fault}");
            }
        }
        outcome
    }

    fn take_over(&mut self) -> Result<(Dialer, Value), String> {
        let new = Config::load(&self.running.file).map_err(|error| error.to_string())?;
        let last = written(&new)?;
        let mut merged = self.running.clone();
        if let (Some(uplink), Some(new)) = (&mut merged.uplink, new.uplink) {
            take_over_live(uplink, new);
        }
        let parts = prepare(&merged, &self.clock).map_err(|error| format!("{error:#}"))?;
        let is_live = |key: &String| LIVE.contains(&key.as_str()) && merged.uplink.is_some();
        let mut changed = differing(&self.last, &last);
        changed.retain(is_live);
        let mut restart = differing(&self.started, &last);
        restart.retain(|key| !is_live(key));
        let account = json!({ "changed": changed, "restart": restart });
        if restart.is_empty() {
            tracing::info!(?changed, "the configuration is read anew");
        } else {
            tracing::warn!(?changed, ?restart, "the configuration is read anew; restart for these");
        }
        let dialer =
            dialer(merged.uplink.clone(), parts.tokens, parts.uplink_tls, self.clock.clone());
        self.running = merged;
        self.last = last;
        Ok((dialer, account))
    }
}

/// What [`LIVE`] says.
fn take_over_live(running: &mut Uplink, new: Uplink) {
    running.ca_file = new.ca_file;
    running.client_cert = new.client_cert;
    running.token_file = new.token_file;
    running.jwt = new.jwt;
    running.connect_timeout = new.connect_timeout;
}

/// What stands in the file of a configuration, and in its enrolment.
fn written(config: &Config) -> Result<Keys, String> {
    let file = &config.file;
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    let text = std::fs::read_to_string(file).map_err(|error| failed(&error))?;
    let tables: toml::Table = toml::from_str(&text).map_err(|error| failed(&error))?;
    let mut keys = Keys::new();
    for (name, value) in tables {
        match value {
            toml::Value::Table(table) => {
                let dotted = |(key, value)| (format!("{name}.{key}"), value);
                keys.extend(table.into_iter().map(dotted));
            }
            many => drop(keys.insert(name, many)),
        }
    }
    for (key, value) in config.enrolled.iter().flat_map(|enrolled| &enrolled.keys) {
        // A table within a table counts as one key.
        let key = key.strip_suffix(".audience").unwrap_or(key);
        keys.entry(key.to_owned()).or_insert_with(|| value.clone().into());
    }
    Ok(keys)
}

fn differing(one: &Keys, other: &Keys) -> BTreeSet<String> {
    let all = one.keys().chain(other.keys());
    all.filter(|key| one.get(*key) != other.get(*key)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = "[listener]\n[uplink]\nurl = 'wss://hub/v1/gateway'\n";

    fn started(text: &str) -> (tempfile::TempDir, Reload) {
        let folder = tempfile::tempdir().expect("a folder for temporary files");
        let file = folder.path().join("fieldgate.toml");
        std::fs::write(&file, text).expect("a file in an own folder");
        let config = Config::load(&file).expect("a valid configuration");
        (folder, Reload::new(config, Clock::of_system()))
    }

    fn rewrite(reload: &Reload, text: &str) {
        std::fs::write(&reload.running.file, text).expect("a file in an own folder");
    }

    #[test]
    fn what_can_be_taken_over_is_and_the_rest_is_named() {
        let (_folder, mut reload) = started(START);
        let (_, account) = reload.read().expect("it is valid");
        assert_eq!(account, json!({ "changed": [], "restart": [] }));

        rewrite(
            &reload,
            "[uplink]\nurl = 'wss://other/v1/gateway'\nconnect_timeout = '3s'\n\
             [listener]\n[[telemetry]]\ntopic = 'a/{device}'",
        );
        let (_, account) = reload.read().expect("it is valid");
        let restart = ["telemetry", "uplink.url"];
        assert_eq!(account, json!({ "changed": ["uplink.connect_timeout"], "restart": restart }));
        let uplink = reload.running.uplink.as_ref().expect("it has an uplink");
        assert_eq!(uplink.connect_timeout, Duration::from_secs(3));
        assert_eq!(uplink.hubs[0].url.host, "hub", "the gateway still runs towards the first");

        let (_, account) = reload.read().expect("it is valid");
        assert_eq!(account, json!({ "changed": [], "restart": restart }), "still to be restarted");
    }

    #[test]
    fn a_broken_file_changes_nothing_and_every_fault_is_told() {
        let (_folder, mut reload) = started(START);
        rewrite(&reload, "[uplink]\nurl = 'http://hub'\nconnect_timeout = 'soon'\n[listener]\n");
        let faults = reload.read().err().expect("it is broken");
        assert_eq!(faults.lines().count(), 2, "{faults}");
        rewrite(&reload, &START.replace("hub/", "hub/\u{0}"));
        assert!(reload.read().is_err(), "not TOML");
        rewrite(&reload, &format!("{START}token_file = 'absent'"));
        assert!(reload.read().is_err(), "a token that can't be read");
        rewrite(&reload, START);
        let (_, account) = reload.read().expect("it is mended");
        assert_eq!(account, json!({ "changed": [], "restart": [] }));
    }

    #[test]
    fn without_an_uplink_at_the_start_a_new_one_wants_a_restart() {
        let (_folder, mut reload) = started("[listener]\n");
        rewrite(&reload, START);
        let (_, account) = reload.read().expect("it is valid");
        assert_eq!(account["restart"], json!(["uplink.url"]));
        assert!(reload.running.uplink.is_none());
    }

    #[test]
    fn what_was_enrolled_meanwhile_is_named_as_what_was_written_would_be() {
        let text = "[gateway]\nstate_dir = 'state'\n[listener]\n";
        let (folder, mut reload) = started(text);
        let identity = folder.path().join("state/identity");
        std::fs::create_dir_all(&identity).expect("a folder in an own folder");
        let enrolment = "[uplink]\nurl = 'wss://hub'\n[uplink.jwt]\naudience = 'hub-1'";
        std::fs::write(identity.join("uplink.toml"), enrolment).expect("a file there");
        let (_, account) = reload.read().expect("it is valid");
        assert_eq!(account["restart"], json!(["uplink.jwt", "uplink.url"]));
    }

    #[test]
    fn the_account_is_told_in_words() {
        let account = json!({ "changed": [], "restart": ["listener.bind", "uplink.url"] });
        assert!(describe(&account).ends_with("\nneeds a restart: listener.bind, uplink.url\n"));
    }
}
