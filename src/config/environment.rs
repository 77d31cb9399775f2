//! The environment: any key can be set by a variable, and systemd tells its directories.
//!
//! `FIELDGATE_UPLINK__URL` sets `uplink.url`: two underscores stand for the dot. The value is text
//! as it is, or TOML where the key is no text: `FIELDGATE_SPOOL__LANES='["alarms"]'`.
//! `FIELDGATE_TELEMETRY` is a whole list: `[{topic="a/{device}"}]`, and takes the place of the
//! file's. Unknown names are errors, as in the file. A proxy is taken from where every program
//! looks for it (see `proxy`).

use std::path::PathBuf;

use toml::de::DeValue;

use super::{
    error::{Fault, Origin},
    proxy::ProxyEnvironment,
    raw::{Entry, Key, Raw, TABLES, Value, find_key, find_table},
};

const PREFIX: &str = "FIELDGATE_";

/// Variables of ours that are no keys: options of the command line.
const NOT_KEYS: [&str; 2] = ["FIELDGATE_CONFIG", "FIELDGATE_LOG"];

/// What the environment says.
#[derive(Debug, Default)]
pub(super) struct Environment {
    /// `FIELDGATE_…`, in the order of their names.
    keys: Vec<(String, String)>,
    /// `$STATE_DIRECTORY`: what `StateDirectory=` of the unit made, the first of several.
    pub(super) state_directory: Option<PathBuf>,
    /// `$CREDENTIALS_DIRECTORY`: where `LoadCredential=` of the unit put its files.
    pub(super) credentials_directory: Option<PathBuf>,
    /// The proxy, for an uplink that names none.
    pub(super) proxies: ProxyEnvironment,
}

impl Environment {
    /// Picks out what concerns the configuration.
    pub(super) fn read(variables: impl Iterator<Item = (String, String)>) -> Self {
        let mut environment = Self::default();
        for (name, value) in variables {
            match name.as_str() {
                "STATE_DIRECTORY" => {
                    environment.state_directory = value.split(':').next().and_then(directory);
                }
                "CREDENTIALS_DIRECTORY" => environment.credentials_directory = directory(&value),
                _ if is_key(&name) => environment.keys.push((name, value)),
                _ => _ = environment.proxies.take(&name, &value),
            }
        }
        environment.keys.sort();
        environment
    }

    /// Lets each variable take the place of what the file says.
    pub(super) fn apply(&self, raw: &mut Raw, faults: &mut Vec<Fault>) {
        for (name, value) in &self.keys {
            let path = name[PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
            if let Err(text) = apply(name, &path, value, raw, faults) {
                faults.push(Fault { origin: Origin::Variable(name.clone()), key: path, text });
            }
        }
    }
}

/// Whether a variable of this name is meant to set a key.
pub(super) fn is_key(name: &str) -> bool {
    name.starts_with(PREFIX) && !NOT_KEYS.contains(&name)
}

fn apply(
    name: &str,
    path: &str,
    value: &str,
    raw: &mut Raw,
    faults: &mut Vec<Fault>,
) -> Result<(), String> {
    let origin = Origin::Variable(name.into());
    let within = TABLES.iter().find_map(|table| {
        let key = path.strip_prefix(table.name)?.strip_prefix('.')?;
        table.name.contains('.').then_some((table.name, key))
    });
    let Some((table, key)) = within.or_else(|| path.split_once('.')) else {
        let table = find_table(path)?;
        if !table.many {
            return Err(format!(
                "a table is set key by key; write {name}__{} and so on",
                table.keys[0].name.to_ascii_uppercase()
            ));
        }
        let list = DeValue::parse(value)
            .map_err(|_| "this is not a list of tables; write [{topic=\"a/{device}\"}]")?;
        raw.all_mut(table).clear();
        raw.add(table, list, origin, value, faults);
        return Ok(());
    };
    let table = find_table(table)?;
    if table.many {
        return Err(format!(
            "[[{0}]] is set as a whole; write {PREFIX}{1}",
            table.name,
            table.name.to_ascii_uppercase()
        ));
    }
    if let Some((first, _)) = key.split_once('.') {
        find_key(table, first)?;
        return Err(format!("{}.{first} has no keys of its own; set {first} itself", table.name));
    }
    let key = find_key(table, key)?;
    let value = typed(value, key, &origin);
    raw.set(table, key.name, Entry { origin, value });
    Ok(())
}

/// A variable's value in the type of its key: an id of digits stays text, and quotes may be written
/// or left out.
fn typed(value: &str, key: &Key, origin: &Origin) -> Value {
    match DeValue::parse(value) {
        Ok(toml) if !key.is_text() || matches!(toml.get_ref(), DeValue::String(_)) => {
            Value::read(toml.into_inner(), origin, value)
        }
        _ => Value::Text(value.into()),
    }
}

fn directory(value: &str) -> Option<PathBuf> {
    (!value.is_empty()).then(|| PathBuf::from(value))
}
