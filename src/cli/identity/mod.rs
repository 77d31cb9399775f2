//! `fieldgate identity …`: the device key and its certificate, made, requested, taken in, shown and
//! renewed.

mod renew;
mod show;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use super::ConfigFile;
use crate::{
    config::{Config, ConfigError, SpoolPlace, duration},
    identity::{
        self, Certificate, Contents, IdentityError, KeyType, Pair, Store, calendar::Moment,
        certificate_request, certificates, fingerprint,
    },
};

/// A certificate that has fewer days left is told of.
const FEW_DAYS: i64 = 30;

/// What to do with the identity.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make a device key; it never leaves the board
    New {
        /// What kind of key
        #[arg(long, value_enum, default_value_t = Kind::P256)]
        key_type: Kind,
        /// The directory to make it in [default: identity in the gateway's state directory]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// In place of the one that is there, which is kept as .old
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Make a certificate request for one's own CA
    Csr {
        /// The subject's common name [default: the gateway's id]
        #[arg(long, value_name = "ID")]
        subject: Option<String>,
        /// Where to [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        place: Place,
    },
    /// Take in a certificate and its key, after a look at both
    Import {
        /// The certificate and its chain, in PEM
        #[arg(long, value_name = "FILE")]
        cert: PathBuf,
        /// The key, in PEM, without a passphrase [default: the device key that is there]
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// The CA of the hub's certificate, in PEM
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
        /// In place of a key that is there, which is kept as .old
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Show the certificate and the public key, never the private one
    Show {
        /// As one JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Whether the certificate ends soon: exit code 0 if so, 1 if not, 2 if that can't be told
    NeedsRenewal {
        /// How soon (such as 30d or 12h)
        #[arg(long, value_name = "DURATION", default_value = "30d", value_parser = days)]
        within: Duration,
        #[command(flatten)]
        place: Place,
    },
    /// Have the hub issue a new certificate, try it, and put it in force
    Renew {
        /// The hub to ask, such as https://hub.example.com [default: that of uplink.url]
        #[arg(long)]
        url: Option<String>,
        /// With a new key
        #[arg(long)]
        new_key: bool,
        #[command(flatten)]
        file: ConfigFile,
    },
}

/// Which identity.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// The directory of the identity [default: identity in the gateway's state directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    file: ConfigFile,
}

/// The kinds of key.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Kind {
    /// ECDSA, which every server takes
    P256,
    /// EdDSA
    Ed25519,
}

impl From<Kind> for KeyType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::P256 => Self::P256,
            Kind::Ed25519 => Self::Ed25519,
        }
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
    /// In words.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// What the process ends with.
    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_) => ExitCode::from(ConfigError::EXIT_CODE),
            Self::Identity(_) | Self::Other(_) => ExitCode::FAILURE,
        }
    }
}

/// Does it.
pub(super) fn identity(command: &Command) -> ExitCode {
    let done = match command {
        Command::New { key_type, out, replace, file } => {
            store_of(out.as_deref(), file).and_then(|store| new(&store, *key_type, *replace))
        }
        Command::Csr { subject, out, place } => csr(subject.as_deref(), out.as_deref(), place),
        Command::Import { cert, key, ca, replace, place } => {
            import(cert, key.as_deref(), ca.as_deref(), *replace, place)
        }
        Command::Show { json, place } => place.store().and_then(|store| show::show(&store, *json)),
        Command::NeedsRenewal { within, place } => return needs_renewal(place, *within),
        Command::Renew { url, new_key, file } => {
            renew::renew(&file.config, url.as_deref(), *new_key)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            failure.exit_code()
        }
    }
}

impl Place {
    fn store(&self) -> Result<Store, Failure> {
        store_of(self.dir.as_deref(), &self.file)
    }
}

/// The directory that was named, or that of the gateway, whatever else is wrong with its
/// configuration.
fn store_of(directory: Option<&Path>, file: &ConfigFile) -> Result<Store, Failure> {
    match directory {
        Some(directory) => Ok(Store::at(directory)),
        None => Ok(Store::of_state_dir(&state_dir(file)?)),
    }
}

/// The state directory that the configuration names; the default where there is none yet: the
/// identity comes first.
pub(super) fn state_dir(file: &ConfigFile) -> Result<PathBuf, ConfigError> {
    let is_there = file.config.exists();
    Ok(SpoolPlace::load(is_there.then_some(&*file.config))?.state_dir)
}

fn new(store: &Store, kind: Kind, replace: bool) -> Result<(), Failure> {
    let key = KeyType::from(kind).generate().map_err(|error| Failure::Other(error.into()))?;
    let ca = std::fs::read_to_string(store.ca_file()).ok();
    let contents = Contents { key: &key, certificate: None, ca: ca.as_deref() };
    store.stage(contents, replace)?.promote()?;
    println!("{}", fingerprint(store.key()?.public_key()));
    println!("public key: {}", store.public_key_file().display());
    Ok(())
}

fn csr(subject: Option<&str>, out: Option<&Path>, place: &Place) -> Result<(), Failure> {
    let store = place.store()?;
    let key = store.key()?;
    let subject = match subject {
        Some(subject) => subject.to_owned(),
        None => match Config::load(&place.file.config).ok().and_then(|it| it.gateway.id) {
            Some(id) => id,
            None => identity::gateway_id(None)?,
        },
    };
    if !crate::record::is_device_name(&subject) {
        let text = format!("--subject {subject:?} can't name a gateway; write letters and digits");
        return Err(Failure::Other(text));
    }
    let request = certificate_request(&key, &subject)
        .map_err(|fault| Failure::Other(format!("{}: {fault}", store.key_file().display())))?;
    match out {
        None => print!("{request}"),
        Some(file) => std::fs::write(file, request)
            .map_err(|error| Failure::Other(format!("{}: {error}", file.display())))?,
    }
    Ok(())
}

fn import(
    cert: &Path,
    key: Option<&Path>,
    ca: Option<&Path>,
    replace: bool,
    place: &Place,
) -> Result<(), Failure> {
    let store = place.store()?;
    let held = store.key_file();
    let pair = Pair::from_files(cert, key.unwrap_or(&held))?;
    let id = Config::load(&place.file.config).ok().and_then(|config| config.gateway.id);
    check_name(cert, &pair.certificate, id.as_deref())?;
    let read = |file: &Path| {
        std::fs::read_to_string(file)
            .map_err(|error| Failure::Other(format!("{}: {error}", file.display())))
    };
    let ca = match ca {
        Some(file) => {
            let text = read(file)?;
            certificates(&file.display().to_string(), &text)?;
            Some(text)
        }
        None => std::fs::read_to_string(store.ca_file()).ok(),
    };
    let contents = Contents { key: &pair.key, certificate: Some(&pair.chain), ca: ca.as_deref() };
    // A certificate for the key that is there replaces no key.
    store.stage(contents, replace || key.is_none())?.promote()?;
    show::show(&store, false)
}

fn check_name(file: &Path, own: &Certificate, id: Option<&str>) -> Result<(), Failure> {
    let said = |text: String| Failure::Other(format!("{}: {text}", file.display()));
    let fits = match id {
        Some(id) => own.common_name.as_deref() == Some(id) || own.alt_names.iter().any(|n| n == id),
        None => own.common_name.as_deref().is_some_and(crate::record::is_device_name),
    };
    if !fits {
        return Err(said(match id {
            Some(id) => format!(
                "it is for {:?}, and the gateway is called {id} (gateway.id); have it issued for \
                 that name, or change gateway.id",
                own.subject
            ),
            None => "its subject has no common name that could name a gateway; have it issued \
                     with the gateway's id as CN, or set gateway.id"
                .into(),
        }));
    }
    let now = Moment::now();
    if let Some(remark) = own.remark(now) {
        eprintln!("{}: it is {remark}", file.display());
    } else if own.days_left(now) <= FEW_DAYS {
        eprintln!("{}: it ends in {} days; renew it soon", file.display(), own.days_left(now));
    }
    Ok(())
}

fn needs_renewal(place: &Place, within: Duration) -> ExitCode {
    let configured = || {
        let uplink = Config::load(&place.file.config).ok()?.uplink?;
        uplink.client_cert.map(|(cert, _)| cert)
    };
    let cert = match (&place.dir, configured()) {
        (None, Some(cert)) => Ok(cert),
        _ => place.store().map(|store| store.cert_file()),
    };
    let certificate = cert.and_then(|file| Ok(Certificate::from_file(&file)?));
    match certificate {
        Ok(certificate) => {
            let now = Moment::now();
            let left = certificate.not_after.unix_seconds.saturating_sub(now.unix_seconds);
            let soon = left <= i64::try_from(within.as_secs()).unwrap_or(i64::MAX);
            println!("{} days left", certificate.days_left(now));
            if soon { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(super::EXIT_USAGE)
        }
    }
}

/// A duration that may be in days.
fn days(text: &str) -> Result<Duration, String> {
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u32>().ok());
    days.map_or_else(|| duration(text), |days| Ok(Duration::from_secs(86_400 * u64::from(days))))
}
