//! `fieldgate identity show`.

use serde_json::{Value, json};

use super::Failure;
use crate::identity::{Certificate, Store, calendar::Moment, fingerprint};

/// Prints what is known of the identity; of the private key only where it is.
pub(super) fn show(store: &Store, as_json: bool) -> Result<(), Failure> {
    let key = store.key()?;
    let file = store.cert_file();
    let certificate = match file.exists() {
        true => Some(Certificate::from_file(&file)?),
        false => None,
    };
    let mut told = json!({
        "fingerprint": fingerprint(key.public_key()),
        "key_file": store.key_file(),
        "public_key_file": store.public_key_file(),
    });
    if let Some(certificate) = &certificate {
        told["certificate"] = describe(certificate, Moment::now());
        told["certificate"]["file"] = file.display().to_string().into();
    }
    if store.ca_file().exists() {
        told["ca_file"] = store.ca_file().display().to_string().into();
    }
    if as_json {
        println!("{told}");
    } else {
        print_lines(&told);
    }
    Ok(())
}

fn describe(certificate: &Certificate, now: Moment) -> Value {
    json!({
        "subject": certificate.subject,
        "names": certificate.alt_names,
        "issuer": certificate.issuer,
        "serial": certificate.serial,
        "not_before": certificate.not_before.to_string(),
        "not_after": certificate.not_after.to_string(),
        "not_after_unix_s": certificate.not_after.unix_seconds,
        "days_left": certificate.days_left(now),
    })
}

fn print_lines(told: &Value) {
    let certificate = &told["certificate"];
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    };
    let until = certificate["not_after"].as_str().map_or(Value::Null, |until| {
        format!("{until} ({} days left)", certificate["days_left"]).into()
    });
    for (name, value) in [
        ("fingerprint", &told["fingerprint"]),
        ("subject", &certificate["subject"]),
        ("names", &certificate["names"]),
        ("issuer", &certificate["issuer"]),
        ("serial", &certificate["serial"]),
        ("valid from", &certificate["not_before"]),
        ("valid until", &until),
        ("certificate", &certificate["file"]),
        ("key", &told["key_file"]),
        ("public key", &told["public_key_file"]),
        ("CA", &told["ca_file"]),
    ] {
        if !value.is_null() && !text(value).is_empty() {
            println!("{name:<12} {}", text(value));
        }
    }
}
