//! Asks a table for its values, one key at a time, each in the type that its key has. What is wrong
//! becomes a fault, and a stand-in is given, so that one look finds all faults.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use super::{
    environment::Environment,
    error::{Fault, Origin},
    raw::{Entry, Raw, Section, TABLES, Table, Value},
    values::{duration, show_duration, show_size, size},
};

/// Reads one table.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    table: &'static Table,
    /// Absent when the table was not written: every key has its default.
    section: Option<&'a Section>,
    places: &'a Places,
    faults: &'a mut Vec<Fault>,
}

/// What paths are relative to.
#[derive(Debug)]
pub(super) struct Places {
    /// The folder of the file.
    pub(super) folder: PathBuf,
    /// What systemd says.
    pub(super) environment: Environment,
}

impl<'a> Reader<'a> {
    /// For a table that stands at most once.
    pub(super) fn of(
        raw: &'a Raw,
        table: &str,
        places: &'a Places,
        faults: &'a mut Vec<Fault>,
    ) -> Self {
        let known = TABLES.iter().find(|known| known.name == table);
        let table = known.expect("the table is named by this program and stands in TABLES");
        Self { table, section: raw.all(table.name).first(), places, faults }
    }

    /// For one of the tables that stand many times.
    pub(super) fn of_section(
        section: &'a Section,
        places: &'a Places,
        faults: &'a mut Vec<Fault>,
    ) -> Self {
        Self { table: section.table, section: Some(section), places, faults }
    }

    /// Whether the key was written.
    pub(super) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// Whether the key has a list.
    pub(super) fn is_list(&self, key: &str) -> bool {
        matches!(self.value(key), Some(Value::List(_)))
    }

    /// Where the key was written, or else its table.
    fn origin(&self, key: &str) -> Origin {
        let written = self.section.map(|section| match section.entries.get(key) {
            Some(entry) => &entry.origin,
            None => &section.origin,
        });
        written.unwrap_or(&Origin::File).clone()
    }

    /// Adds a fault at the key, or at its table where the key was not written.
    pub(super) fn fault(&mut self, key: &str, text: impl Into<String>) {
        self.fault_at(self.origin(key), key, text);
    }

    /// Adds a fault at a place.
    pub(super) fn fault_at(&mut self, origin: Origin, key: &str, text: impl Into<String>) {
        let key = format!("{}.{key}", self.table.name);
        self.faults.push(Fault { origin, key, text: text.into() });
    }

    /// Adds a fault of something else that this table depends on.
    pub(super) fn add(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    /// Text, made into something.
    pub(super) fn parsed<T>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.value(key)?;
        match value {
            Value::Text(text) => self.settle(key, parse(text)),
            other => self.wrong_type(key, other, "text"),
        }
    }

    /// One of some words.
    pub(super) fn one_of<T: Copy>(&mut self, key: &str, default: T, words: &[(&str, T)]) -> T {
        let pick = |text: &str| match words.iter().find(|(word, _)| *word == text) {
            Some((_, meaning)) => Ok(*meaning),
            None => {
                let words: Vec<String> =
                    words.iter().map(|(word, _)| format!("{word:?}")).collect();
                Err(format!("{text:?} is not known; write {}", words.join(" or ")))
            }
        };
        self.parsed(key, pick).unwrap_or(default)
    }

    /// A duration within bounds.
    pub(super) fn duration(
        &mut self,
        key: &str,
        default: Duration,
        bounds: RangeInclusive<Duration>,
    ) -> Duration {
        let within = |text: &str| {
            let length = duration(text)?;
            if bounds.contains(&length) {
                return Ok(length);
            }
            let (least, most) = (show_duration(*bounds.start()), show_duration(*bounds.end()));
            Err(format!("{text:?} is out of bounds; write {least} to {most}"))
        };
        let length = match self.value(key) {
            None => return default,
            Some(Value::Text(text)) => self.settle(key, within(text)),
            Some(other) => self.wrong_type(key, other, "a duration"),
        };
        length.unwrap_or(default)
    }

    /// A size in bytes within bounds: `"64KiB"` or a number.
    pub(super) fn size(&mut self, key: &str, default: u64, bounds: RangeInclusive<u64>) -> u64 {
        let read = match self.value(key) {
            None => return default,
            Some(Value::Text(text)) => size(text),
            Some(Value::Integer(bytes)) => Ok(u64::try_from(*bytes).unwrap_or(0)),
            Some(other) => return self.wrong_type(key, other, "a size").unwrap_or(default),
        };
        let within = read.and_then(|bytes| {
            if bounds.contains(&bytes) {
                return Ok(bytes);
            }
            let (least, most) = (show_size(*bounds.start()), show_size(*bounds.end()));
            Err(format!("{} is out of bounds; write {least} to {most}", show_size(bytes)))
        });
        self.settle(key, within).unwrap_or(default)
    }

    /// A number within bounds.
    pub(super) fn count(&mut self, key: &str, default: u16, bounds: RangeInclusive<u16>) -> u16 {
        let within = |number: i64| match u16::try_from(number) {
            Ok(number) if bounds.contains(&number) => Ok(number),
            _ => {
                let (least, most) = (bounds.start(), bounds.end());
                Err(format!("{number} is out of bounds; write {least} to {most}"))
            }
        };
        let number = match self.value(key) {
            None => return default,
            Some(Value::Integer(number)) => self.settle(key, within(*number)),
            Some(other) => self.wrong_type(key, other, "a number"),
        };
        number.unwrap_or(default)
    }

    /// `true` or `false`.
    pub(super) fn switch(&mut self, key: &str, default: bool) -> bool {
        match self.value(key) {
            None => default,
            Some(Value::Switch(switch)) => *switch,
            Some(other) => self.wrong_type(key, other, "true or false").unwrap_or(default),
        }
    }

    /// A list of texts, each with its place; `None` when the key was not written or is wrong.
    pub(super) fn texts(&mut self, key: &str, most: usize) -> Option<Vec<(Origin, String)>> {
        let list = match self.value(key)? {
            Value::List(list) => list,
            other => return self.wrong_type(key, other, "a list of texts"),
        };
        if list.len() > most {
            self.fault(key, format!("{} entries are too many; write at most {most}", list.len()));
            return None;
        }
        let mut texts = Vec::with_capacity(list.len());
        for Entry { origin, value } in list {
            match value {
                Value::Text(text) => texts.push((origin.clone(), text.clone())),
                other => return self.wrong_type(key, other, "text"),
            }
        }
        Some(texts)
    }

    /// A path, made absolute.
    pub(super) fn path(&mut self, key: &str) -> Option<PathBuf> {
        let places = self.places;
        self.parsed(key, |text| places.resolve(text))
    }

    /// Two paths of which neither is of use alone.
    pub(super) fn paths(&mut self, first: &str, second: &str) -> Option<(PathBuf, PathBuf)> {
        self.both(first, second);
        self.path(first).zip(self.path(second))
    }

    /// Adds a fault when only one of two keys was written.
    pub(super) fn both(&mut self, first: &str, second: &str) {
        for (has, lacks) in [(first, second), (second, first)] {
            if self.has(has) && !self.has(lacks) {
                self.fault(has, format!("it is of no use without {lacks}; write both or neither"));
            }
        }
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        debug_assert!(self.table.keys.iter().any(|known| known.name == key), "{key}");
        self.section?.entries.get(key).map(|entry| &entry.value)
    }

    fn settle<T>(&mut self, key: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|text| self.fault(key, text)).ok()
    }

    fn wrong_type<T>(&mut self, key: &str, found: &Value, wanted: &str) -> Option<T> {
        let keys = self.table.keys;
        let example = keys.iter().find(|known| known.name == key).map_or("", |key| key.example);
        let found = found.type_name();
        self.fault(key, format!("{found} is not {wanted}; write {key} = {example}"));
        None
    }
}

impl Places {
    /// A path as it was written, made absolute: relative to the file, or in systemd's credentials
    /// directory.
    fn resolve(&self, text: &str) -> Result<PathBuf, String> {
        const CREDENTIALS: &str = "$CREDENTIALS_DIRECTORY/";
        if let Some(name) = text.strip_prefix(CREDENTIALS) {
            let Some(directory) = &self.environment.credentials_directory else {
                return Err(
                    "systemd sets $CREDENTIALS_DIRECTORY only where the unit has LoadCredential=; \
                            add it, or write a path"
                        .into(),
                );
            };
            return Ok(directory.join(name));
        }
        match text.as_bytes() {
            [] => Err("the path is empty; write one or remove the key".into()),
            [b'$', ..] => Err(format!("only {CREDENTIALS} is expanded; write the whole path")),
            [b'~', ..] => Err("~ is not expanded; write the whole path".into()),
            bytes if bytes.contains(&0) => Err("the path holds a NUL; remove it".into()),
            _ => Ok(self.folder.join(text)),
        }
    }
}
