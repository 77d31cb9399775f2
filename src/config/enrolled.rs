//! What an enrolment left beside the identity: which hub it is for, and how the gateway proves
//! itself there. It stands in where the configuration names no hub, so that the packaged one works
//! as it is, and stays the package's to upgrade.
//!
//! It is a piece of a configuration, of the keys in [`KEYS`] alone, and names files of its own
//! directory by their bare names. That directory is the gateway's user's, so nothing may stand here
//! that would have root read other files.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use super::{
    error::{Fault, Origin},
    raw::{Entry, Raw, Value, find_key, find_table},
    uplink::{IDENTITY_DIR, IDENTITY_UPLINK},
};

/// What an enrolment says.
const KEYS: [(&str, &str); 6] = [
    ("gateway", "id"),
    ("uplink", "url"),
    ("uplink", "ca_file"),
    ("uplink", "client_cert_file"),
    ("uplink", "client_key_file"),
    ("uplink.jwt", "audience"),
];

/// Who proves itself by one of these needs no proof of the enrolment's.
const OTHER_PROOFS: [(&str, &str); 4] = [
    ("uplink", "client_cert_file"),
    ("uplink", "client_key_file"),
    ("uplink", "token_file"),
    ("uplink.jwt", "key_file"),
];

/// Which keys of a configuration are an enrolment's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// The file that they stand in.
    pub file: PathBuf,
    /// Each, such as `uplink.url`, with its value; files with their whole paths.
    pub keys: Vec<(String, String)>,
}

/// How the file is read.
pub(super) type Read<'a> = &'a dyn Fn(&Path) -> io::Result<String>;

/// Sets what `raw` leaves to the enrolment of this state directory, if there is one that counts.
pub(super) fn apply(
    raw: &mut Raw,
    state_dir: &Path,
    read: Read<'_>,
    notes: &mut Vec<String>,
    faults: &mut Vec<Fault>,
) -> Option<Enrolled> {
    let directory = state_dir.join(IDENTITY_DIR);
    let file = directory.join(IDENTITY_UPLINK);
    let own_url = raw.entry("uplink", "url").is_some();
    let text = match read(&file) {
        Ok(text) => text,
        Err(error) => {
            let file_shown = file.display();
            match error.kind() {
                _ if own_url => {}
                ErrorKind::NotFound | ErrorKind::NotADirectory => {}
                ErrorKind::PermissionDenied => notes.push(format!(
                    "uplink.url: whether this board is enrolled can't be told, {file_shown} is not \
                     for this user to read; run this as root"
                )),
                _ => faults.push(of(
                    &file,
                    "",
                    format!("it can't be read: {error}; see to the disk"),
                )),
            }
            return None;
        }
    };
    let read = read_text(&text, &file, &directory);
    if own_url {
        if read.is_ok_and(|found| is_another(raw, &found)) {
            notes.push(format!(
                "uplink.url: it goes before that of the enrolment, which is in {}; remove it and \
                 what proves the gateway there, so that the enrolment counts",
                file.display()
            ));
        }
        return None;
    }
    match read {
        Ok(found) => Some(Enrolled { keys: take_over(raw, found, &file), file }),
        Err(wrong) => {
            faults.extend(wrong);
            None
        }
    }
}

/// A key of [`KEYS`] and its value.
type Found = Vec<((&'static str, &'static str), String)>;

fn read_text(text: &str, file: &Path, directory: &Path) -> Result<Found, Vec<Fault>> {
    let mut faults = Vec::new();
    let read = Raw::read(text, &mut faults).map_err(|fault| vec![fault]);
    let mut found = Vec::new();
    if let Ok(read) = &read {
        for (table, key, entry) in read.entries() {
            let Some(known) = KEYS.iter().find(|known| **known == (table, key)) else {
                let text = "an enrolment does not say this; enrol the board anew with --replace";
                faults.push(of(file, &format!("{table}.{key}"), text.into()));
                continue;
            };
            match &entry.value {
                Value::Text(text) if !key.ends_with("_file") => found.push((*known, text.clone())),
                Value::Text(text) if Path::new(text).file_name() == Some(text.as_ref()) => {
                    let path = directory.join(text).to_string_lossy().into_owned();
                    found.push((*known, path));
                }
                _ => {
                    let text = "it is no bare name; enrol the board anew with --replace";
                    faults.push(of(file, &format!("{table}.{key}"), text.into()));
                }
            }
        }
    }
    let wrong = read.err().unwrap_or(faults);
    if wrong.is_empty() {
        return Ok(found);
    }
    let here = |fault: Fault| Fault { origin: Origin::Beside(file.into()), ..fault };
    Err(wrong.into_iter().map(here).collect())
}

fn is_another(raw: &Raw, found: &Found) -> bool {
    let url = raw.entry("uplink", "url").map(|entry| &entry.value);
    let same = |text: &String| matches!(url, Some(Value::Text(own)) if own == text);
    found.iter().any(|((_, key), text)| *key == "url" && !same(text))
}

fn take_over(raw: &mut Raw, found: Found, file: &Path) -> Vec<(String, String)> {
    let proves_itself = OTHER_PROOFS.iter().any(|(table, key)| raw.entry(table, key).is_some());
    let signs = !raw.all("uplink.jwt").is_empty();
    let mut keys = Vec::new();
    for ((table, key), text) in found {
        let is_unwanted = match (table, key) {
            (_, "client_cert_file" | "client_key_file") => proves_itself || signs,
            ("uplink.jwt", _) => proves_itself,
            _ => false,
        };
        if is_unwanted || raw.entry(table, key).is_some() {
            continue;
        }
        let table_of = find_table(table).expect("KEYS names tables of TABLES");
        let name = find_key(table_of, key).expect("KEYS names keys of TABLES").name;
        let origin = Origin::Beside(file.into());
        raw.set(table_of, name, Entry { origin, value: Value::Text(text.clone()) });
        keys.push((format!("{table}.{key}"), text));
    }
    keys
}

fn of(file: &Path, key: &str, text: String) -> Fault {
    Fault { origin: Origin::Beside(file.into()), key: key.into(), text }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, ConfigError};
    use super::*;

    const ENROLMENT: &str = "[gateway]\nid = 'gw-1'\n[uplink]\nurl = 'wss://hub/v1/gateway'\n\
         ca_file = 'hub-ca.pem'\nclient_cert_file = 'gateway.pem'\nclient_key_file = 'gateway.key'";

    fn loaded(text: &str, enrolment: io::Result<&str>) -> Result<Config, ConfigError> {
        let read = |file: &Path| {
            assert_eq!(file, Path::new("/s/identity/uplink.toml"));
            match &enrolment {
                Ok(text) => Ok((*text).to_owned()),
                Err(error) => Err(error.kind().into()),
            }
        };
        let env = vec![("STATE_DIRECTORY".to_owned(), "/s".to_owned())];
        Config::checked(text, Path::new("/etc/f.toml"), env, &read)
    }

    #[test]
    fn a_configuration_without_a_hub_has_the_one_that_the_board_enrolled_at() {
        let config = loaded("[listener]\n[uplink]\nack_timeout = '3s'", Ok(ENROLMENT)).unwrap();
        assert_eq!(config.gateway.id.as_deref(), Some("gw-1"));
        let uplink = config.uplink.unwrap();
        let identity = Path::new("/s/identity");
        assert_eq!(uplink.ca_file, Some(identity.join("hub-ca.pem")));
        let pair = (identity.join("gateway.pem"), identity.join("gateway.key"));
        assert_eq!(uplink.client_cert, Some(pair));
        assert_eq!(uplink.ack_timeout.as_secs(), 3);
        let enrolled = config.enrolled.unwrap();
        assert_eq!(enrolled.file, identity.join("uplink.toml"));
        assert_eq!(enrolled.keys.len(), 5, "{enrolled:?}");
        assert_eq!(config.notes, [""; 0]);
    }

    #[test]
    fn what_is_written_goes_before_what_was_enrolled() {
        let own = "[listener]\n[gateway]\nid = 'gw-2'\n[uplink]\n";
        let config = loaded(&format!("{own}token_file = 't'\nca_file = 'c'"), Ok(ENROLMENT));
        let config = config.unwrap();
        let uplink = config.uplink.unwrap();
        assert_eq!((config.gateway.id.as_deref(), uplink.client_cert), (Some("gw-2"), None));
        assert_eq!(uplink.ca_file.as_deref(), Some(Path::new("/etc/c")));
        assert_eq!(config.enrolled.unwrap().keys.len(), 1, "the URL");

        let config = loaded(&format!("{own}url = 'wss://other/'"), Ok(ENROLMENT)).unwrap();
        let uplink = config.uplink.unwrap();
        assert_eq!((uplink.hubs[0].url.host.as_str(), uplink.client_cert), ("other", None));
        assert!(config.enrolled.is_none() && config.notes[0].contains("goes before"));
        let same = loaded(&format!("{own}url = 'wss://hub/v1/gateway'"), Ok(ENROLMENT)).unwrap();
        assert!(same.enrolled.is_none() && same.notes.is_empty(), "{:?}", same.notes);
    }

    #[test]
    fn where_it_was_enrolled_to_sign_the_length_of_tokens_is_still_ones_own() {
        let enrolment = "[uplink]\nurl = 'wss://hub'\n[uplink.jwt]\naudience = 'field'";
        let config = loaded("[listener]\n[uplink.jwt]\nlifetime = '2m'", Ok(enrolment)).unwrap();
        let jwt = config.uplink.unwrap().jwt.unwrap();
        assert_eq!((jwt.audience.as_deref(), jwt.lifetime.as_secs()), (Some("field"), 120));
        assert_eq!(jwt.key_file, Path::new("/s/identity/gateway.key"));
        let config = loaded("[listener]\n[uplink]\ntoken_file = 't'", Ok(enrolment)).unwrap();
        assert_eq!(config.uplink.unwrap().jwt, None);
    }

    #[test]
    fn a_file_that_was_tampered_with_is_refused_and_named() {
        for (enrolment, says) in [
            ("url =", "/s/identity/uplink.toml: this is not TOML"),
            ("[uplink]\nurl = 'http://hub'", "/s/identity/uplink.toml: uplink.url: scheme"),
            ("[uplink]\nproxy = 'http://p:1'", "uplink.proxy: an enrolment does not say this"),
            ("[uplink]\nca_file = '/etc/shadow'", "uplink.ca_file: it is no bare name"),
            ("[uplink]\nca_file = '../x'", "uplink.ca_file: it is no bare name"),
        ] {
            let error = loaded("[listener]", Ok(enrolment)).unwrap_err().to_string();
            assert!(error.contains(says), "{enrolment}: {error}");
            // Nor does it matter to who names a hub of his own.
            loaded("[listener]\n[uplink]\nurl = 'wss://hub'", Ok(enrolment)).unwrap();
        }
        let failed = |kind: ErrorKind| loaded("[listener]", Err(kind.into()));
        assert_eq!(failed(ErrorKind::NotFound).unwrap().notes, [""; 0]);
        let unseen = failed(ErrorKind::PermissionDenied).unwrap();
        assert!(unseen.uplink.is_none() && unseen.notes[0].contains("run this as root"));
        assert!(failed(ErrorKind::StorageFull).is_err());
    }
}
