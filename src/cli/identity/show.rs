//! `fieldgate identity show`.

use std::{path::Path, process::ExitCode};

use serde_json::{Map, Value};

use super::Failure;
use crate::identity::{Certificate, Store, calendar::Moment, fingerprint};

/// Prints what is known of the identity; of the private key only where it is.
pub(super) fn show(store: &Store, now: Moment, as_json: bool) -> Result<ExitCode, Failure> {
    let key = store.key()?;
    let mut known = vec![("fingerprint", fingerprint(key.public_key()))];
    let cert = store.cert_file();
    if cert.exists() {
        let Certificate { subject, issuer, serial, alt_names, not_before, not_after, .. } =
            &Certificate::from_file(&cert)?;
        let left = not_after.unix_seconds.saturating_sub(now.unix_seconds);
        known.extend([
            ("subject", subject.clone()),
            ("names", alt_names.join(", ")),
            ("issuer", issuer.clone()),
            ("serial", serial.clone()),
            ("not_before", not_before.to_string()),
            ("not_after", not_after.to_string()),
            ("days_left", left.div_euclid(86_400).to_string()),
            ("cert_file", shown(&cert)),
        ]);
    }
    known.extend([
        ("key_file", shown(&store.key_file())),
        ("public_key_file", shown(&store.public_key_file())),
    ]);
    if store.ca_file().exists() {
        known.push(("ca_file", shown(&store.ca_file())));
    }
    if as_json {
        let members = known.into_iter().map(|(name, value)| {
            let number = (name == "days_left").then(|| value.parse::<i64>().ok()).flatten();
            (name.to_owned(), number.map_or_else(|| value.into(), Value::from))
        });
        println!("{}", Value::Object(members.collect::<Map<_, _>>()));
    } else {
        for (name, value) in known.into_iter().filter(|(_, value)| !value.is_empty()) {
            println!("{name:<15} {value}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(file: &Path) -> String {
    file.display().to_string()
}
