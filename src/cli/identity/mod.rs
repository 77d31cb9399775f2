//! `fieldgate identity …`: the device key and its certificate, made, requested, taken in, shown and
//! renewed.

mod renew;
mod show;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{ArgMatches, Args as _, FromArgMatches as _};

use super::{
    ConfigFile, EXIT_USAGE, expiry,
    options::{Opt, text, with},
};
use crate::{
    config::{Config, ConfigError, SpoolPlace, duration},
    identity::{
        self, Certificate, Clock, Contents, IdentityError, KeyType, Pair, Store, calendar::Moment,
        certificate_request, certificates, fingerprint,
    },
    protocol::is_gateway_id,
};

/// A certificate that ends within this is renewed, unless it lives for less than three times that.
const SOON: Duration = Duration::from_secs(30 * 86_400);

/// The commands, what they do, and their options.
const COMMANDS: [(&str, &str, &[Opt]); 6] = [
    (
        "new",
        "Make a device key; it never leaves the board",
        &[
            Opt(
                "key-type",
                "TYPE",
                "p256 (ECDSA, which every server takes) or ed25519 [default: p256]",
            ),
            Opt(
                "out",
                "DIR",
                "The directory to make it in [default: identity in the state directory]",
            ),
            Opt("replace", "", "In place of the one that is there, which is kept as .old"),
        ],
    ),
    (
        "csr",
        "Make a certificate request for one's own CA",
        &[
            Opt("subject", "ID", "The subject's common name [default: the gateway's id]"),
            Opt("out", "FILE", "Where to [default: standard output]"),
            DIR,
        ],
    ),
    (
        "import",
        "Take in a certificate and its key, after a look at both",
        &[
            Opt("cert", "FILE", "The certificate and its chain, in PEM"),
            Opt(
                "key",
                "FILE",
                "The key, in PEM, without a passphrase [default: the device key here]",
            ),
            Opt("ca", "FILE", "The CA of the hub's certificate, in PEM"),
            Opt("replace", "", "In place of a key that is there, which is kept as .old"),
            DIR,
        ],
    ),
    (
        "show",
        "Show the certificate and the public key, never the private one",
        &[Opt("json", "", "As one JSON object"), DIR],
    ),
    (
        "needs-renewal",
        "Whether the certificate ends soon: exit code 0 if so, 1 if not, 2 if that can't be told",
        &[
            Opt(
                "within",
                "DURATION",
                "How soon, such as 12h [default: 30d, or a third of its life if that is less]",
            ),
            DIR,
        ],
    ),
    (
        "renew",
        "Have the hub issue a new certificate, try it, and put it in force",
        &[
            Opt("url", "URL", "The hub, such as https://hub.example.com [default: of uplink.url]"),
            Opt("new-key", "", "With a new key"),
        ],
    ),
];

const DIR: Opt =
    Opt("dir", "DIR", "The identity's directory [default: identity in the state directory]");

/// What to do with the identity.
#[derive(Debug)]
pub(super) struct Command {
    name: String,
    options: ArgMatches,
}

impl clap::FromArgMatches for Command {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let (name, options) = matches.subcommand().expect("clap asks for one");
        Ok(Self { name: name.to_owned(), options: options.clone() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Subcommand for Command {
    fn augment_subcommands(command: clap::Command) -> clap::Command {
        let commands = COMMANDS.iter().map(|(name, about, options)| {
            ConfigFile::augment_args(with(clap::Command::new(*name).about(*about), options))
        });
        command.subcommand_required(true).arg_required_else_help(true).subcommands(commands)
    }

    fn augment_subcommands_for_update(command: clap::Command) -> clap::Command {
        Self::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        COMMANDS.iter().any(|(known, ..)| *known == name)
    }
}

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The configuration is faulty.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file of the identity can't be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// What was typed can't be meant.
    #[error("{0}")]
    Usage(String),
    /// In words.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// What the process ends with.
    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_) => ExitCode::from(ConfigError::EXIT_CODE),
            Self::Usage(_) => ExitCode::from(EXIT_USAGE),
            Self::Identity(_) | Self::Other(_) => ExitCode::FAILURE,
        }
    }
}

/// Does it.
pub(super) fn identity(command: &Command) -> ExitCode {
    match command.run() {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("{failure}");
            match command.name.as_str() {
                // Its 1 says that there is no need.
                "needs-renewal" => ExitCode::from(EXIT_USAGE),
                _ => failure.exit_code(),
            }
        }
    }
}

impl Command {
    fn run(&self) -> Result<ExitCode, Failure> {
        let config = ConfigFile::from_arg_matches(&self.options)
            .map_err(|error| Failure::Usage(error.to_string()))?
            .config;
        let option = |name: &str| text(&self.options, name);
        let flag = |name: &str| self.options.get_flag(name);
        if self.name == "renew" {
            return renew::renew(&config, option("url").as_deref(), flag("new-key"));
        }
        let state_dir = state_dir(&config)?;
        // A board may have no clock: what a hub said is kept beside the spool.
        let clock = Clock::open(&state_dir.join("spool"));
        let now = expiry::moment(&clock);
        let directory = option(if self.name == "new" { "out" } else { "dir" });
        let store = match &directory {
            Some(directory) => Store::at(Path::new(directory)),
            None => Store::of_state_dir(&state_dir),
        };
        match self.name.as_str() {
            "new" => new(&store, option("key-type").as_deref(), flag("replace")),
            "csr" => csr(&store, option("subject"), option("out"), &config),
            "import" => {
                let cert = option("cert").ok_or_else(|| {
                    Failure::Usage("--cert is missing; name the certificate's file".into())
                })?;
                let (key, ca) = (option("key"), option("ca"));
                import(&store, Path::new(&cert), key, ca, flag("replace"), &config, &clock)
            }
            "show" => show::show(&store, now, flag("json")),
            _ => {
                let configured = directory.is_none().then(|| configured_certificate(&config));
                let cert = configured.flatten().unwrap_or_else(|| store.cert_file());
                needs_renewal(&cert, option("within").as_deref(), now)
            }
        }
    }
}

/// The state directory that the configuration names; the default where there is none yet: the
/// identity comes first.
fn state_dir(file: &Path) -> Result<PathBuf, ConfigError> {
    let is_there = file.exists();
    Ok(SpoolPlace::load(is_there.then_some(file))?.state_dir)
}

fn new(store: &Store, kind: Option<&str>, replace: bool) -> Result<ExitCode, Failure> {
    let kind = match kind {
        None | Some("p256") => KeyType::P256,
        Some("ed25519") => KeyType::Ed25519,
        Some(other) => {
            let text = format!("--key-type {other:?} is not known; write p256 or ed25519");
            return Err(Failure::Usage(text));
        }
    };
    let key = kind.generate().map_err(|error| Failure::Other(error.into()))?;
    let ca = store.ca()?;
    let contents = Contents { key: &key, certificate: None, ca: ca.as_deref(), uplink: None };
    store.stage(contents, replace)?.promote()?;
    println!("{}", fingerprint(store.key()?.public_key()));
    println!("public key: {}", store.public_key_file().display());
    Ok(ExitCode::SUCCESS)
}

fn csr(
    store: &Store,
    subject: Option<String>,
    out: Option<String>,
    config: &Path,
) -> Result<ExitCode, Failure> {
    let key = store.key()?;
    let configured = || Config::load(config).ok().and_then(|config| config.gateway.id);
    let subject = match subject.or_else(configured) {
        Some(subject) => subject,
        None => identity::gateway_id(None)?,
    };
    if !is_gateway_id(&subject) {
        let text =
            format!("--subject {subject:?} can't name a gateway; write 1 to 64 letters and digits");
        return Err(Failure::Other(text));
    }
    let request = certificate_request(&key, &subject)
        .map_err(|fault| Failure::Other(format!("{}: {fault}", store.key_file().display())))?;
    match out {
        None => print!("{request}"),
        Some(file) => std::fs::write(&file, request)
            .map_err(|error| Failure::Other(format!("{file}: {error}")))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn import(
    store: &Store,
    cert: &Path,
    key: Option<String>,
    ca: Option<String>,
    replace: bool,
    config: &Path,
    clock: &Clock,
) -> Result<ExitCode, Failure> {
    let held = store.key_file();
    let ca_file = ca.clone().unwrap_or_else(|| store.ca_file().display().to_string());
    let ca = match ca {
        Some(file) => Some(
            std::fs::read_to_string(&file)
                .map_err(|error| Failure::Other(format!("{file}: {error}")))?,
        ),
        None => store.ca()?,
    };
    let cas = ca.as_deref().map(|text| certificates(&ca_file, text)).transpose()?;
    let key_file = key.as_deref().map_or(&*held, Path::new);
    let pair = Pair::from_files(cert, key_file, &cas.unwrap_or_default(), clock)?;
    let id = Config::load(config).ok().and_then(|config| config.gateway.id);
    check_name(cert, &pair.certificate, id.as_deref(), clock)?;
    let uplink = store.uplink()?;
    let contents = Contents {
        key: &pair.key,
        certificate: Some(&pair.chain),
        ca: ca.as_deref(),
        uplink: uplink.as_deref(),
    };
    // A certificate for the key that is there replaces no key.
    store.stage(contents, replace || key.is_none())?.promote()?;
    show::show(store, expiry::moment(clock), false)
}

fn check_name(
    file: &Path,
    own: &Certificate,
    id: Option<&str>,
    clock: &Clock,
) -> Result<(), Failure> {
    let fits = match id {
        Some(id) => own.common_name.as_deref() == Some(id) || own.alt_names.iter().any(|n| n == id),
        None => own.common_name.as_deref().is_some_and(is_gateway_id),
    };
    if !fits {
        let text = match id {
            Some(id) => format!(
                "it is for {:?}, and the gateway is called {id} (gateway.id); have it issued for \
                 that name, or change gateway.id",
                own.subject
            ),
            None => "its subject has no common name that could name a gateway; have it issued \
                     with the gateway's id as CN, or set gateway.id"
                .into(),
        };
        return Err(Failure::Other(format!("{}: {text}", file.display())));
    }
    let now = clock.moment_for(own.not_before);
    if let Some(remark) = own.remark(now) {
        eprintln!("{}: it is {remark}", file.display());
    } else if expiry::threshold(own, now).is_some() {
        eprintln!("{}: it ends in {} days; renew it soon", file.display(), own.days_left(now));
    }
    Ok(())
}

fn configured_certificate(config: &Path) -> Option<PathBuf> {
    let uplink = Config::load(config).ok()?.uplink?;
    uplink.client_cert.map(|(cert, _)| cert)
}

fn needs_renewal(cert: &Path, within: Option<&str>, now: Moment) -> Result<ExitCode, Failure> {
    let within = within.map(days).transpose();
    let within = within.map_err(|fault| Failure::Usage(format!("--within: {fault}")))?;
    let certificate = Certificate::from_file(cert)?;
    let within = within.unwrap_or_else(|| soon(&certificate));
    let left = certificate.not_after.unix_seconds.saturating_sub(now.unix_seconds);
    let is_soon = left <= i64::try_from(within.as_secs()).unwrap_or(i64::MAX);
    println!("{} days left", certificate.days_left(now));
    Ok(if is_soon { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How long before its end a certificate is renewed: one that lives for a day is not to be renewed
/// at each look.
fn soon(certificate: &Certificate) -> Duration {
    let Certificate { not_before, not_after, .. } = certificate;
    let life_s = not_after.unix_seconds.saturating_sub(not_before.unix_seconds);
    Duration::from_secs(u64::try_from(life_s / 3).unwrap_or(0)).min(SOON)
}

/// A duration that may be in days.
fn days(text: &str) -> Result<Duration, String> {
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u32>().ok());
    days.map_or_else(|| duration(text), |days| Ok(Duration::from_secs(86_400 * u64::from(days))))
}

#[cfg(all(test, feature = "hub"))]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_in_the_last_third_of_its_life_or_the_last_thirty_days() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("gw.pem");
        let soon_of = |end: (i32, u8)| {
            let mut params = rcgen::CertificateParams::new(vec!["gw-1".to_owned()]).unwrap();
            params.not_before = rcgen::date_time_ymd(2050, 1, 1);
            params.not_after = rcgen::date_time_ymd(end.0, 1, end.1);
            let key = rcgen::KeyPair::generate().unwrap();
            std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
            soon(&Certificate::from_file(&file).unwrap())
        };
        assert_eq!(soon_of((2050, 2)), Duration::from_secs(8 * 3600));
        assert_eq!(soon_of((2051, 1)), SOON);
    }
}
