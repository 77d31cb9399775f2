//! The configuration that an enrolment leads to.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::{Enrolled, Failure};
use crate::{
    config::{Config, HubUrl, Uplink},
    identity::{Jwt, Store},
};

/// What is needed of an environment whose other keys are about another hub.
const PROXY_KEYS: &str = "FIELDGATE_UPLINK__PROXY";

/// How long the plan's tokens are good.
const LIFETIME: std::time::Duration = std::time::Duration::from_secs(600);

/// How the gateway is to prove itself, and whom to believe.
pub(super) struct Plan {
    gateway: String,
    state_dir: PathBuf,
    uplink: String,
    ca_file: Option<PathBuf>,
    cert_file: PathBuf,
    key_file: PathBuf,
    audience: String,
    key_is_known: bool,
    signs: bool,
}

impl Plan {
    /// With the client certificate.
    pub(super) fn new(store: &Store, state_dir: &Path, enrolled: &Enrolled, with_ca: bool) -> Self {
        Self {
            gateway: enrolled.gateway.clone(),
            state_dir: state_dir.to_owned(),
            uplink: enrolled.uplink.clone(),
            ca_file: with_ca.then(|| store.ca_file()),
            cert_file: store.cert_file(),
            key_file: store.key_file(),
            audience: enrolled.audience.clone(),
            key_is_known: enrolled.public_key_registered,
            signs: false,
        }
    }

    pub(super) fn has_ca(&self) -> bool {
        self.ca_file.is_some()
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

    /// With tokens instead of the certificate.
    pub(super) fn sign(&mut self) {
        self.signs = true;
    }

    /// The keys that the enrolment stands for.
    fn keys(&self) -> String {
        let path = |path: &Path| quoted(&path.to_string_lossy());
        let mut text = format!(
            "[gateway]\nid = {}\nstate_dir = {}\n\n[uplink]\nurl = {}\n",
            quoted(&self.gateway),
            path(&self.state_dir),
            quoted(&self.uplink)
        );
        if let Some(file) = &self.ca_file {
            text += &format!("ca_file = {}\n", path(file));
        }
        if self.signs {
            text += &format!("\n[uplink.jwt]\naudience = {}\n", quoted(&self.audience));
        } else {
            let (cert, key) = (path(&self.cert_file), path(&self.key_file));
            text += &format!("client_cert_file = {cert}\nclient_key_file = {key}\n");
        }
        text
    }

    /// The least configuration with them.
    pub(super) fn to_toml(&self) -> String {
        format!(
            "# Written by `fieldgate enroll`. Every other key: man fieldgate.toml\n\n{}\n\
             # Devices on this machine.\n[listener]\nbind = \"127.0.0.1:1883\"\n",
            self.keys()
        )
    }

    /// The plan as a gateway would run it.
    ///
    /// # Errors
    /// The hub answered with what no configuration can have.
    pub(super) fn check(&self, file: &Path) -> Result<Config, Failure> {
        Ok(Config::from_text(&self.to_toml(), file, environment())?)
    }
}

/// Writes the configuration where there is none; else tells which keys to set in the one there is.
///
/// # Errors
/// It can't be written.
pub(super) fn write(file: &Path, text: &str, state_dir: &Path) -> Result<(), Failure> {
    let mut options = fs::OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o644).open(file);
    match opened.and_then(|mut opened| opened.write_all(text.as_bytes())) {
        Ok(()) => println!("configuration written: {}", file.display()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let keys = text.split_once("\n\n").map_or(text, |(_, keys)| keys);
            let keys = keys.split_once("# Devices").map_or(keys, |(keys, _)| keys);
            println!("{} is there and is left as it is; it needs:\n\n{keys}", file.display());
        }
        Err(error) => {
            return Err(Failure::Other(format!(
                "the identity is in {}, but {} can't be written: {error}; write into it:\n\n{text}",
                state_dir.display(),
                file.display()
            )));
        }
    }
    Ok(())
}

/// The way to a hub that no configuration names yet: as the one that is there goes, where there is
/// one; else through the environment's proxy, with every default.
///
/// # Errors
/// The environment's proxy is none.
pub(super) fn first_contact(file: &Path, hub: &HubUrl) -> Result<Uplink, Failure> {
    let text = format!("[uplink]\nurl = {}\n[listener]\n", quoted(&hub.to_string()));
    let made = Config::from_text(&text, file, environment())?;
    let mut uplink = made.uplink.expect("it has a URL");
    if let Some(there) = Config::load(file).ok().and_then(|config| config.uplink) {
        uplink.hubs[0].proxy.clone_from(&there.hubs[0].proxy);
        uplink.bind_interface = there.bind_interface;
        uplink.connect_timeout = there.connect_timeout;
    }
    Ok(uplink)
}

fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| !name.starts_with("FIELDGATE_") || name.starts_with(PROXY_KEYS))
}

/// Text as TOML writes it: JSON's form is one of TOML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let enrolled = Enrolled {
            gateway: "gw-7f3a".into(),
            certificate: String::new(),
            ca: String::new(),
            uplink: "wss://hub.example.com/v1/gateway".into(),
            audience: "hub".into(),
            public_key_registered: true,
        };
        Plan::new(&Store::of_state_dir(Path::new("/s")), Path::new("/s"), &enrolled, true)
    }

    #[test]
    fn what_is_written_is_a_configuration_that_says_what_was_planned() {
        let mut plan = plan();
        let config = plan.check(Path::new("/etc/f.toml")).unwrap();
        assert_eq!(config.gateway.id.as_deref(), Some("gw-7f3a"));
        assert_eq!(config.gateway.state_dir, Path::new("/s"));
        let uplink = config.uplink.unwrap();
        assert_eq!(uplink.ca_file.as_deref(), Some(Path::new("/s/identity/hub-ca.pem")));
        assert_eq!(uplink.client_cert.unwrap().1, Path::new("/s/identity/gateway.key"));
        plan.sign();
        let uplink = plan.check(Path::new("/etc/f.toml")).unwrap().uplink.unwrap();
        assert_eq!(uplink.client_cert, None);
        assert_eq!(uplink.jwt.unwrap().audience.as_deref(), Some("hub"));
        plan.gateway = "gw 1\"\n".into();
        assert!(plan.check(Path::new("/etc/f.toml")).is_err(), "no id");
    }

    #[test]
    fn a_configuration_that_is_there_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("f.toml");
        write(&file, "one", directory.path()).unwrap();
        write(&file, "two", directory.path()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "one");
        assert!(write(&file.join("x"), "three", directory.path()).is_err());
    }
}
