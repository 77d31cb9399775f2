//! What the file may say: its tables and keys, and the file as it was written, every value with its
//! place.
//!
//! [`TABLES`] is the contract. Reading finds unknown and repeated names and says which were meant;
//! whether a value is right is decided in `checked`, which asks for each by its key.

use std::collections::BTreeMap;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    error::{Fault, Origin},
    nearest::nearest,
};

/// A table that the file may have.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    /// Whether it may come many times: `[[name]]`.
    pub(super) many: bool,
    pub(super) keys: &'static [Key],
}

/// A key that a table may have.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    /// A value as TOML, shown to whoever wrote another type.
    pub(super) example: &'static str,
}

/// The most tables of one name.
const MAX_SECTIONS: usize = 256;

const fn key(name: &'static str, example: &'static str) -> Key {
    Key { name, example }
}

impl Key {
    /// Whether its value is written as text.
    pub(super) fn is_text(&self) -> bool {
        self.example.starts_with('"')
    }
}

/// Every table and key (the contract of the configuration: names and meanings stay).
pub(super) const TABLES: [Table; 8] = [
    Table {
        name: "gateway",
        many: false,
        keys: &[key("id", r#""gw-7f3a""#), key("state_dir", r#""/var/lib/fieldgate""#)],
    },
    Table {
        name: "uplink",
        many: false,
        keys: &[
            key("url", r#""wss://hub.example.com/v1/gateway""#),
            key("protocol", r#""auto""#),
            key("ca_file", r#""hub-ca.pem""#),
            key("client_cert_file", r#""gw.pem""#),
            key("client_key_file", r#""gw.key""#),
            key("token_file", r#""token""#),
            key("proxy", r#""http://proxy.lan:3128""#),
            key("proxy_user", r#""gw-7f3a""#),
            key("proxy_password_file", r#""proxy-password""#),
            key("bind_interface", r#""wwan0""#),
            key("ping_interval", r#""25s""#),
            key("ping_timeout", r#""10s""#),
            key("ack_timeout", r#""10s""#),
            key("connect_timeout", r#""10s""#),
            key("backoff_min", r#""500ms""#),
            key("backoff_max", r#""60s""#),
            key("return_after", r#""10m""#),
            key("plain_commands", "false"),
        ],
    },
    Table {
        name: "uplink.jwt",
        many: false,
        keys: &[
            key("key_file", r#""gw.key""#),
            key("audience", r#""hub.example.com""#),
            key("lifetime", r#""10m""#),
            key("issuer", r#""gw-7f3a""#),
            key("kid", r#""gw-7f3a""#),
        ],
    },
    Table {
        name: "spool",
        many: false,
        keys: &[
            key("durability", r#""hub_or_disk""#),
            key("write_after", r#""1s""#),
            key("max_bytes", r#""512MiB""#),
            key("min_free_bytes", r#""32MiB""#),
            key("max_age", r#""720h""#),
            key("max_record_bytes", r#""128KiB""#),
            key("order", r#""oldest-first""#),
            key("lanes", r#"["alarms", "telemetry"]"#),
        ],
    },
    Table {
        name: "mqtt",
        many: false,
        keys: &[
            key("url", r#""mqtt://127.0.0.1:1883""#),
            key("client_id", r#""fieldgate-gw-7f3a""#),
            key("username", r#""fieldgate""#),
            key("password_file", r#""mqtt-password""#),
            key("ca_file", r#""broker-ca.pem""#),
            key("client_cert_file", r#""mqtt.pem""#),
            key("client_key_file", r#""mqtt.key""#),
            key("keep_alive", r#""30s""#),
            key("max_inflight", "20"),
        ],
    },
    Table {
        name: "listener",
        many: false,
        keys: &[
            key("bind", r#""127.0.0.1:1883""#),
            key("tls_bind", r#""0.0.0.0:8883""#),
            key("cert_file", r#""listener.pem""#),
            key("key_file", r#""listener.key""#),
            key("client_ca_file", r#""devices-ca.pem""#),
            key("users_file", r#""devices""#),
            key("allow_anonymous", "false"),
            key("allow_cleartext_passwords", "false"),
            key("max_clients", "100"),
            key("max_publish_rate", "100"),
            key("max_inflight", "100"),
        ],
    },
    Table {
        name: "telemetry",
        many: true,
        keys: &[
            key("topic", r#""devices/{device}/telemetry""#),
            key("lane", r#""alarms""#),
            key("device", r#""boiler""#),
        ],
    },
    Table {
        name: "commands",
        many: false,
        keys: &[
            key("topic", r#""devices/{device}/commands/{command}""#),
            key("reply", r#""devices/{device}/replies/{id}""#),
            key("allow", r#"["*/identify"]"#),
        ],
    },
];

/// What the contract has and this version has not, and what to do instead. Refused rather than
/// ignored: a gateway that only seems to do as it is told is worse than one that says that it
/// can't.
const NOT_AVAILABLE: [(&str, &str, &str); 1] =
    [("socket", "a socket for programs", "remove it; they can publish to the [listener]")];

/// The fault and remedy of something that is in the contract but not in this version; `at` is a
/// dotted key.
pub(super) fn not_available(at: &str) -> Option<String> {
    let (_, what, remedy) = NOT_AVAILABLE.iter().find(|(known, ..)| *known == at)?;
    Some(format!("{what} is not available in this version; {remedy}"))
}

/// A configuration as it was written.
#[derive(Debug)]
pub(super) struct Raw {
    sections: Vec<(&'static Table, Vec<Section>)>,
}

/// One table as it was written.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) table: &'static Table,
    pub(super) origin: Origin,
    pub(super) entries: BTreeMap<&'static str, Entry>,
}

/// A value and its place.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) origin: Origin,
    pub(super) value: Value,
}

/// A value, so far as any key can use it.
#[derive(Debug)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Switch(bool),
    List(Vec<Entry>),
    /// Of a type that no key has; the type, for the complaint.
    Other(&'static str),
}

impl Raw {
    /// Reads the file's text. Faults in names are added to `faults` and what is wrong is left out.
    ///
    /// # Errors
    /// When the text is not TOML, with that one fault: nothing after it can be trusted.
    pub(super) fn read(text: &str, faults: &mut Vec<Fault>) -> Result<Self, Fault> {
        let document = DeTable::parse(text).map_err(|error| Fault {
            origin: line_at(text, error.span().map_or(0, |span| span.start)),
            key: String::new(),
            // Its full form would repeat the line, and a line may hold what should be secret.
            text: format!("this is not TOML: {}", error.message().trim_end().replace('\n', ", ")),
        })?;
        let mut raw = Self { sections: TABLES.iter().map(|table| (table, Vec::new())).collect() };
        for (name, value) in document.into_inner() {
            let origin = line_at(text, name.span().start);
            match find_table(name.as_ref()) {
                Ok(table) => raw.add(table, value, origin, text, faults),
                Err(text) => faults.push(Fault { origin, key: name.as_ref().to_string(), text }),
            }
        }
        Ok(raw)
    }

    /// All tables of this name, in order.
    pub(super) fn all(&self, name: &str) -> &[Section] {
        self.sections.iter().find(|(table, _)| table.name == name).map_or(&[], |(_, all)| all)
    }

    /// What was written under this key of a table that stands at most once.
    pub(super) fn entry(&self, table: &str, key: &str) -> Option<&Entry> {
        self.all(table).first()?.entries.get(key)
    }

    /// Everything that was written: the table, the key, the value.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'static str, &'static str, &Entry)> {
        let sections = self.sections.iter().flat_map(|(_, sections)| sections);
        sections.flat_map(|section| {
            section.entries.iter().map(|(key, entry)| (section.table.name, *key, entry))
        })
    }

    /// Sets a key of a table that stands at most once, in place of what was written.
    pub(super) fn set(&mut self, table: &'static Table, key: &'static str, entry: Entry) {
        let sections = self.all_mut(table);
        if sections.is_empty() {
            let origin = entry.origin.clone();
            sections.push(Section { table, origin, entries: BTreeMap::new() });
        }
        sections[0].entries.insert(key, entry);
    }

    /// The tables of this name, to be changed.
    pub(super) fn all_mut(&mut self, table: &Table) -> &mut Vec<Section> {
        let index = self.sections.iter().position(|(known, _)| known.name == table.name);
        &mut self.sections[index.expect("every table of TABLES has its place in sections")].1
    }

    /// Adds what stands under a table's name; `text` is what spans count in.
    pub(super) fn add(
        &mut self,
        table: &'static Table,
        value: Spanned<DeValue<'_>>,
        origin: Origin,
        text: &str,
        faults: &mut Vec<Fault>,
    ) {
        match value.into_inner() {
            DeValue::Table(mut entries) if !table.many => {
                for inner in TABLES.iter().filter(|inner| inner.is_within(table)) {
                    let key = inner.name.rsplit('.').next().unwrap_or_default();
                    if let Some((key, value)) = entries.remove_entry(key) {
                        let origin = origin.at(text, key.span().start);
                        self.add(inner, value, origin, text, faults);
                    }
                }
                let section = Section::read(table, entries, origin, text, faults);
                self.all_mut(table).push(section);
            }
            DeValue::Array(elements) if table.many => {
                if elements.len() > MAX_SECTIONS {
                    faults.push(table.misplaced(origin.clone(), "a list of more than 256"));
                }
                for element in elements.into_iter().take(MAX_SECTIONS) {
                    let origin = origin.at(text, element.span().start);
                    match element.into_inner() {
                        DeValue::Table(entries) => {
                            let section = Section::read(table, entries, origin, text, faults);
                            self.all_mut(table).push(section);
                        }
                        other => faults.push(table.misplaced(origin, type_of(&other))),
                    }
                }
            }
            other => faults.push(table.misplaced(origin, type_of(&other))),
        }
    }
}

impl Table {
    /// Whether it is written as a part of `outer`: `[outer.name]`.
    fn is_within(&self, outer: &Table) -> bool {
        self.name.split_once('.').is_some_and(|(name, _)| name == outer.name)
    }

    /// The fault of something else that stands where this table must.
    fn misplaced(&self, origin: Origin, found: &str) -> Fault {
        let header =
            if self.many { format!("[[{}]]", self.name) } else { format!("[{}]", self.name) };
        let text =
            format!("{found} stands where a table must; write {header} on a line of its own");
        Fault { origin, key: self.name.into(), text }
    }
}

impl Section {
    fn read(
        table: &'static Table,
        entries: DeTable<'_>,
        origin: Origin,
        text: &str,
        faults: &mut Vec<Fault>,
    ) -> Self {
        let mut section = Self { table, origin, entries: BTreeMap::new() };
        for (name, value) in entries {
            let origin = section.origin.at(text, name.span().start);
            match find_key(table, name.as_ref()) {
                Ok(key) => {
                    let value = Value::read(value.into_inner(), &origin, text);
                    section.entries.insert(key.name, Entry { origin, value });
                }
                Err(text) => {
                    faults.push(Fault {
                        origin,
                        key: format!("{}.{}", table.name, name.as_ref()),
                        text,
                    });
                }
            }
        }
        section
    }
}

impl Value {
    pub(super) fn read(value: DeValue<'_>, origin: &Origin, text: &str) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.into_owned()),
            DeValue::Boolean(switch) => Self::Switch(switch),
            DeValue::Integer(integer) => {
                match i64::from_str_radix(integer.as_str(), integer.radix()) {
                    Ok(integer) => Self::Integer(integer),
                    Err(_) => Self::Other("an integer beyond 64 bits"),
                }
            }
            DeValue::Array(elements) => {
                let entry = |element: Spanned<DeValue<'_>>| {
                    let origin = origin.at(text, element.span().start);
                    let value = Self::read(element.into_inner(), &origin, text);
                    Entry { origin, value }
                };
                Self::List(elements.into_iter().map(entry).collect())
            }
            other => Self::Other(type_of(&other)),
        }
    }

    /// The type, for a complaint.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Switch(_) => "true or false",
            Self::List(_) => "a list",
            Self::Other(name) => name,
        }
    }
}

impl Origin {
    /// The place of something within this: a line of the file, or the same variable.
    fn at(&self, text: &str, offset: usize) -> Self {
        match self {
            Self::Variable(_) | Self::Beside(_) => self.clone(),
            Self::Line(_) | Self::File => line_at(text, offset),
        }
    }
}

/// The table of this name, or what to say to whoever wrote it.
pub(super) fn find_table(name: &str) -> Result<&'static Table, String> {
    if let Some(table) = TABLES.iter().find(|table| table.name == name) {
        return Ok(table);
    }
    if let Some(text) = not_available(name) {
        return Err(text);
    }
    let names = TABLES.iter().map(|table| table.name).filter(|name| !name.contains('.'));
    Err(match (nearest(name, names.clone()), homes_of(name)) {
        (Some(near), _) => format!("there is no such table; did you mean `{near}`?"),
        (None, homes) if !homes.is_empty() => {
            format!("this key stands in no table; put it under {homes}")
        }
        _ => {
            let names: Vec<&str> = names.collect();
            format!("there is no such table; there are {}", names.join(", "))
        }
    })
}

/// The key of this name, or what to say to whoever wrote it.
pub(super) fn find_key(table: &'static Table, name: &str) -> Result<&'static Key, String> {
    if let Some(key) = table.keys.iter().find(|key| key.name == name) {
        return Ok(key);
    }
    if let Some(text) = not_available(&format!("{}.{name}", table.name)) {
        return Err(text);
    }
    let names = table.keys.iter().map(|key| key.name);
    Err(match (homes_of(name), nearest(name, names.clone())) {
        (homes, _) if !homes.is_empty() => {
            format!("there is no such key in [{}]; it belongs in {homes}", table.name)
        }
        (_, Some(near)) => format!("there is no such key; did you mean `{near}`?"),
        _ => {
            let names: Vec<&str> = names.collect();
            format!("there is no such key; [{}] has {}", table.name, names.join(", "))
        }
    })
}

/// The tables that have a key of this name.
fn homes_of(key: &str) -> String {
    let has = |table: &&Table| table.keys.iter().any(|known| known.name == key);
    let homes: Vec<String> =
        TABLES.iter().filter(has).map(|table| format!("[{}]", table.name)).collect();
    homes.join(" or ")
}

fn line_at(text: &str, offset: usize) -> Origin {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    Origin::Line(1 + before.iter().filter(|byte| **byte == b'\n').count())
}

fn type_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
