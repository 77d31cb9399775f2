//! `fieldgate device`: which devices may connect to the listener by name and password.

use std::{
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use ring::rand::SystemRandom;
use zeroize::Zeroizing;

use super::ConfigFile;
use crate::{
    config::{Config, ConfigError},
    identity::{self, MIN_PASSWORD_BYTES, PasswordDigest, Role, User, Users},
};

/// The longest password that somebody may choose, in bytes.
const MAX_PASSWORD_BYTES: usize = 255;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Let a device in, with a new password that is shown this once; a known one gets another
    Add {
        /// The device's name, as in its topics: its MQTT user name
        name: String,
        /// Use the password in this file instead; - reads standard input
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// What it may do: a service publishes and hears any topic but publishes no commands
        #[arg(long, value_enum, default_value_t = AsRole::Device)]
        role: AsRole,
        #[command(flatten)]
        file: UsersFile,
    },
    /// Show who may connect
    List {
        #[command(flatten)]
        file: UsersFile,
    },
    /// Shut a device out, also while it is connected; a certificate lets it in all the same
    Remove {
        /// The device's name
        name: String,
        #[command(flatten)]
        file: UsersFile,
    },
}

#[derive(Debug, Args)]
pub(super) struct UsersFile {
    /// The file of users [default: listener.users_file of the configuration]
    #[arg(long, value_name = "FILE")]
    users: Option<PathBuf>,
    #[command(flatten)]
    file: ConfigFile,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum AsRole {
    Device,
    Service,
}

/// Runs one of them.
pub(super) fn device(command: Command) -> ExitCode {
    let done = match command {
        Command::Add { name, password_file, role, file } => {
            file.find().map(|(file, _)| add(&file, &name, password_file.as_deref(), role))
        }
        Command::List { file } => file.find().map(|(file, _)| list(&file)),
        Command::Remove { name, file } => {
            file.find().map(|(file, certificates)| remove(&file, &name, certificates))
        }
    };
    match done {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
        Err(fault) => {
            eprintln!("{fault}");
            ExitCode::from(ConfigError::EXIT_CODE)
        }
    }
}

impl UsersFile {
    /// The file that is meant and what is known of certificates, or what is wrong with the
    /// configuration.
    fn find(&self) -> Result<(PathBuf, Certificates), String> {
        if let Some(file) = &self.users {
            return Ok((file.clone(), Certificates::Unknown));
        }
        let config = Config::load(&self.file.config).map_err(|error| error.to_string())?;
        let tls = config.listener.as_ref().and_then(|listener| listener.tls.as_ref());
        let certificates = match tls.and_then(|tls| tls.client_ca_file.as_ref()) {
            Some(_) => Certificates::Taken,
            None => Certificates::NotTaken,
        };
        let file = config.listener.and_then(|listener| listener.users_file).ok_or_else(|| {
            let config = config.file.display();
            format!("{config}: listener.users_file is not set; set it, or name a file with --users")
        })?;
        Ok((file, certificates))
    }
}

/// Whether devices may show a certificate instead of a password.
#[derive(Debug, Clone, Copy)]
enum Certificates {
    Taken,
    NotTaken,
    /// No configuration was asked for.
    Unknown,
}

fn add(file: &Path, name: &str, password_file: Option<&Path>, role: AsRole) -> anyhow::Result<()> {
    ensure!(
        identity::is_user_name(name),
        "{name:?} can't name a device here; write 1 to 256 bytes, without / + # and control \
         characters, not beginning with $ or a space"
    );
    let role = match role {
        AsRole::Device => Role::Device,
        AsRole::Service => Role::Service,
    };
    let random = SystemRandom::new();
    let (shown, digest) = match password_file {
        Some(from) => {
            let digest = PasswordDigest::of_chosen(chosen(from)?.as_bytes(), &random);
            (None, digest.context("the kernel gives no random numbers")?)
        }
        None => {
            let made = identity::generate(&random);
            let (password, digest) = made.context("the kernel gives no random numbers")?;
            (Some(password), digest)
        }
    };
    let user = User { role, digest };
    let was_known = identity::change_users(file, |users| users.set(name, user))?;
    let what = if was_known { "has another password now" } else { "may connect now" };
    eprintln!("{name} {what}, as a {}, by {}", role.as_str(), file.display());
    if let Some(password) = shown {
        eprintln!("its password, which is shown only this once and kept nowhere:");
        // To standard output alone, so that it can be handed on without being seen.
        let line = Zeroizing::new(format!("{}\n", *password));
        std::io::stdout().write_all(line.as_bytes()).context("standard output")?;
    }
    Ok(())
}

/// A password that somebody chose: never from the command line, where everybody can see it.
fn chosen(from: &Path) -> anyhow::Result<Zeroizing<String>> {
    if from != Path::new("-") {
        return check_chosen(identity::password(from)?, &from.display().to_string());
    }
    let mut text = Zeroizing::new(String::with_capacity(2 * MAX_PASSWORD_BYTES));
    let mut stdin = std::io::stdin().take(2 * MAX_PASSWORD_BYTES as u64);
    stdin.read_to_string(&mut text).context("standard input")?;
    let line = Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned());
    check_chosen(line, "standard input")
}

fn check_chosen(password: Zeroizing<String>, from: &str) -> anyhow::Result<Zeroizing<String>> {
    let bounds = MIN_PASSWORD_BYTES..=MAX_PASSWORD_BYTES;
    if !bounds.contains(&password.len()) || password.contains(char::is_control) {
        bail!(
            "{from}: a password is one line of {MIN_PASSWORD_BYTES} to {MAX_PASSWORD_BYTES} bytes; \
             write such a one, or leave --password-file out to have one generated"
        );
    }
    Ok(password)
}

fn list(file: &Path) -> anyhow::Result<()> {
    let table = identity::table(&Users::from_file(file)?);
    // Whoever closed the pipe has read enough.
    let _ = std::io::stdout().write_all(table.as_bytes());
    Ok(())
}

fn remove(file: &Path, name: &str, certificates: Certificates) -> anyhow::Result<()> {
    // Looked at first: a file that is not there is not to be made for this.
    Users::from_file(file)?;
    let was_known = identity::change_users(file, |users| Ok(users.remove(name)))?;
    ensure!(
        was_known,
        "{}: there is no device {name:?}; see: fieldgate device list",
        file.display()
    );
    match certificates {
        Certificates::NotTaken => {
            eprintln!("{name} is shut out; a running gateway cuts it off within 5 s");
        }
        Certificates::Unknown => eprintln!(
            "{name} has no password any more, and a running gateway cuts it off within 5 s; if it \
             has a certificate of listener.client_ca_file's authority, that lets it in again"
        ),
        Certificates::Taken => eprintln!(
            "{name} has no password any more, and a running gateway cuts it off within 5 s; but a \
             certificate of listener.client_ca_file's authority lets it in again: if it has one, \
             give the other devices certificates of a new authority, and replace that file by it"
        ),
    }
    Ok(())
}
