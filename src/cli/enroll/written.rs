//! What an enrolment writes down: the hub, beside the identity; and the least configuration, where
//! there is none.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Enrolled, Failure};
use crate::{
    config::Config,
    identity::{Jwt, Store},
    ops::control::{Ask, ask},
};

/// How long the plan's tokens are good.
const LIFETIME: Duration = Duration::from_secs(600);

/// How long a running gateway may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the packaged service reads, where systemd says that it runs this machine, and where the
/// service's unit may be.
const PACKAGED: &str = "/etc/fieldgate/fieldgate.toml";
const SYSTEMD: &str = "/run/systemd/system";
const UNITS: [&str; 2] =
    ["/usr/lib/systemd/system/fieldgate.service", "/etc/systemd/system/fieldgate.service"];

/// How the gateway is to prove itself, and whom to believe.
pub(super) struct Plan {
    gateway: String,
    uplink: String,
    audience: String,
    key_is_known: bool,
    /// Whether it believes the CA beside the identity, rather than those of the system.
    pub(super) has_ca: bool,
    /// With tokens instead of the certificate.
    pub(super) signs: bool,
}

impl Plan {
    /// With the client certificate.
    pub(super) fn new(enrolled: &Enrolled) -> Self {
        Self {
            gateway: enrolled.gateway.clone(),
            uplink: enrolled.uplink.clone(),
            audience: enrolled.audience.clone(),
            key_is_known: enrolled.public_key_registered,
            has_ca: false,
            signs: false,
        }
    }

    /// Whether the hub knows the key, so that tokens of it may do.
    pub(super) fn may_sign(&self) -> bool {
        self.key_is_known && !self.audience.is_empty()
    }

    /// Tokens signed with this key, as the hub wants them.
    pub(super) fn jwt(&self, key_file: PathBuf) -> Jwt {
        Jwt {
            key_file,
            subject: self.gateway.clone(),
            audience: self.audience.clone(),
            issuer: None,
            kid: None,
            lifetime: LIFETIME,
        }
    }

    /// It as it stands beside the identity (`config::Enrolled`); `store` says how files are called.
    pub(super) fn to_toml(&self, store: &Store) -> String {
        let name = |file: PathBuf| quoted(&file.file_name().unwrap_or_default().to_string_lossy());
        let (id, url) = (quoted(&self.gateway), quoted(&self.uplink));
        let mut text = format!(
            "# Written by `fieldgate enroll`; it counts where the configuration names no hub.\n\
             [gateway]\nid = {id}\n\n[uplink]\nurl = {url}\n"
        );
        if self.has_ca {
            text += &format!("ca_file = {}\n", name(store.ca_file()));
        }
        if self.signs {
            text += &format!("\n[uplink.jwt]\naudience = {}\n", quoted(&self.audience));
        } else {
            let (cert, key) = (name(store.cert_file()), name(store.key_file()));
            text += &format!("client_cert_file = {cert}\nclient_key_file = {key}\n");
        }
        text
    }
}

/// The least configuration of a board that enrolled.
pub(super) fn least(state_dir: &Path) -> String {
    format!(
        "# Written by `fieldgate enroll`. Every other key: man fieldgate.toml\n\n\
         [gateway]\nstate_dir = {}\n\n# Devices on this machine.\n[listener]\nbind = \
         \"127.0.0.1:1883\"\n",
        quoted(&state_dir.to_string_lossy())
    )
}

/// Writes the configuration where there is none.
///
/// # Errors
/// It can't be written.
pub(super) fn write(file: &Path, text: &str) -> Result<(), Failure> {
    let mut options = fs::OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o644).open(file);
    match opened.and_then(|mut opened| opened.write_all(text.as_bytes())) {
        Ok(()) => println!("configuration written: {}", file.display()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => {
            return Err(Failure::Other(format!(
                "the identity is in force, but {} can't be written: {error}; write into it:\n\n\
                 {text}",
                file.display()
            )));
        }
    }
    Ok(())
}

/// What is left for the operator to do.
pub(super) fn next_step(config: &Config) -> String {
    let is_there = |file: &&str| Path::new(file).exists();
    let is_packaged = config.file == Path::new(PACKAGED) && UNITS.iter().any(is_there);
    if is_packaged && is_there(&SYSTEMD) {
        return "sudo systemctl restart fieldgate".into();
    }
    match ask(&config.gateway.state_dir, &Ask::Status {}, PATIENCE) {
        Ok(_) => "end the gateway that runs, and start it again".into(),
        Err(_) => format!("fieldgate run --config {}", config.file.display()),
    }
}

/// Text as TOML writes it: JSON's form is one of TOML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_a_configuration_that_says_what_was_planned() {
        let store = Store::of_state_dir(Path::new("/s"));
        let mut plan = Plan {
            gateway: "gw-7f3a".into(),
            uplink: "wss://hub.example.com/v1/gateway".into(),
            audience: "hub".into(),
            key_is_known: true,
            has_ca: true,
            signs: false,
        };
        let read = |plan: &Plan| {
            let text = least(Path::new("/s"));
            Config::enrolled(Path::new("/nowhere/f.toml"), &text, &plan.to_toml(&store))
        };
        let config = read(&plan).unwrap();
        assert_eq!(config.gateway.id.as_deref(), Some("gw-7f3a"));
        assert_eq!(config.gateway.state_dir, Path::new("/s"));
        let uplink = config.uplink.unwrap();
        assert_eq!(uplink.ca_file.as_deref(), Some(Path::new("/s/identity/hub-ca.pem")));
        assert_eq!(uplink.client_cert.unwrap().1, Path::new("/s/identity/gateway.key"));
        (plan.signs, plan.has_ca) = (true, false);
        let uplink = read(&plan).unwrap().uplink.unwrap();
        assert_eq!((uplink.client_cert, uplink.ca_file), (None, None));
        assert_eq!(uplink.jwt.unwrap().audience.as_deref(), Some("hub"));
        plan.gateway = "gw 1\"\n".into();
        assert!(read(&plan).is_err(), "no id");
    }

    #[test]
    fn a_configuration_that_is_there_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("f.toml");
        write(&file, "one").unwrap();
        write(&file, "two").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "one");
        assert!(write(&file.join("x"), "three").is_err());
    }
}
