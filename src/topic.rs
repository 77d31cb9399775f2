//! MQTT topic names, topic filters, and the templates that say which part of a topic is the device.
//!
//! A template is a topic filter in which a level may be named: `devices/{device}/telemetry`.
//! `{name}` stands for one level, `{name...}` for all that remain; `+` and `#` work as in a filter.
//!
//! Pure: no IO, no clock. Source: MQTT 3.1.1, section 4.7.

use std::fmt;

/// The longest topic that is accepted, in bytes (MQTT 3.1.1, section 4.7.3 allows no more).
pub const MAX_TOPIC_BYTES: usize = 65_535;

/// How many levels of one template may be named.
const MAX_NAMES: usize = 4;

/// Whether `topic` can be published to: not empty, no wildcard, no NUL (MQTT 3.1.1, section 4.7.1
/// and 4.7.3).
pub fn is_valid_name(topic: &str) -> bool {
    !topic.is_empty() && topic.len() <= MAX_TOPIC_BYTES && !topic.contains(['+', '#', '\0'])
}

/// Whether `filter` can be subscribed to: wildcards alone in their level, `#` only at the end.
pub fn is_valid_filter(filter: &str) -> bool {
    if filter.is_empty() || filter.len() > MAX_TOPIC_BYTES || filter.contains('\0') {
        return false;
    }
    let last = filter.split('/').count() - 1;
    filter.split('/').enumerate().all(|(index, level)| match level {
        "+" => true,
        "#" => index == last,
        literal => !literal.contains(['+', '#']),
    })
}

/// Whether a publish to `topic` goes to a subscriber of `filter`. Both must be valid.
///
/// A wildcard in the first level matches no topic that begins with `$` (MQTT-4.7.2-1).
pub fn filter_matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        match (wanted, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (literal, Some(level)) if literal == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

/// Whether `broad` matches every topic that `narrow` matches. Both must be valid filters.
pub fn filter_covers(broad: &str, narrow: &str) -> bool {
    if narrow.starts_with('$') && broad.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = narrow.split('/');
    for wanted in broad.split('/') {
        match (wanted, levels.next()) {
            ("#", _) => return true,
            ("+", Some(level)) if level != "#" => {}
            (literal, Some(level)) if literal == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

/// What is wrong with a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// There is nothing in it.
    #[error("the topic is empty; write something like devices/{{device}}/telemetry")]
    Empty,
    /// A wildcard or a name shares its level with other text.
    #[error(
        "level {0:?} mixes text with a wildcard or a name; a level is either text, +, #, {{name}} or {{name...}}"
    )]
    Mixed(String),
    /// `#` or `{name...}` stands before the end.
    #[error("{0:?} takes all remaining levels, so nothing may follow it")]
    NotLast(String),
    /// A name is empty, has other characters than letters, digits and `_`, or comes twice.
    #[error(
        "{0:?} is not a name, or comes twice; a name is letters, digits and _, once in a topic"
    )]
    BadName(String),
    /// Too many names.
    #[error("at most {MAX_NAMES} levels can be named")]
    TooManyNames,
    /// A name or wildcard has no value where a topic is to be made.
    #[error("{0:?} has no value here; this topic can use {1}")]
    NoValue(String, &'static str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Level {
    Text(String),
    Any,
    Rest,
    Named(String),
    NamedRest(String),
}

/// A topic filter whose levels may have names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
    levels: Vec<Level>,
}

/// What the named levels of a template stood for in one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Captures<'a> {
    values: [(&'a str, &'a str); MAX_NAMES],
    count: usize,
}

impl<'a> Captures<'a> {
    /// What `{name}` or `{name...}` stood for, a part of the topic itself.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.values[..self.count].iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    fn push(&mut self, name: &'a str, value: &'a str) {
        self.values[self.count] = (name, value);
        self.count += 1;
    }
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// Says which level is wrong and what may stand there.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.is_empty() {
            return Err(TemplateError::Empty);
        }
        let mut levels = Vec::new();
        let mut names: Vec<&str> = Vec::new();
        for level in text.split('/') {
            if let Some(Level::Rest | Level::NamedRest(_)) = levels.last() {
                return Err(TemplateError::NotLast(
                    text.split('/').nth(levels.len() - 1).unwrap_or("#").into(),
                ));
            }
            let parsed = Level::parse(level)?;
            if let Level::Named(_) | Level::NamedRest(_) = parsed {
                let name = level.trim_matches(['{', '}']).trim_end_matches("...");
                if names.contains(&name) {
                    return Err(TemplateError::BadName(name.into()));
                }
                names.push(name);
            }
            levels.push(parsed);
        }
        if names.len() > MAX_NAMES {
            return Err(TemplateError::TooManyNames);
        }
        Ok(Self { text: text.into(), levels })
    }

    /// The topic filter that a broker is asked for: names become wildcards.
    pub fn filter(&self) -> String {
        let levels: Vec<&str> = self
            .levels
            .iter()
            .map(|level| match level {
                Level::Text(text) => text.as_str(),
                Level::Any | Level::Named(_) => "+",
                Level::Rest | Level::NamedRest(_) => "#",
            })
            .collect();
        levels.join("/")
    }

    /// The filter of all that lies at or below this topic of one device:
    /// `devices/plc-01/commands/#` for `devices/{device}/commands/{command}`. What follows the last
    /// level that is text or the device is open.
    pub fn filter_of_device(&self, device: &str) -> String {
        let is_fixed = |level: &Level| match level {
            Level::Text(_) => true,
            Level::Named(name) | Level::NamedRest(name) => name == "device",
            Level::Any | Level::Rest => false,
        };
        let fixed = self.levels.iter().rposition(is_fixed).map_or(0, |last| last + 1);
        let mut levels: Vec<&str> = self.levels[..fixed]
            .iter()
            .map(|level| match level {
                Level::Text(text) => text.as_str(),
                level if is_fixed(level) => device,
                _ => "+",
            })
            .collect();
        if fixed < self.levels.len() {
            levels.push("#");
        }
        levels.join("/")
    }

    /// Matches a topic name and says what the names stand for; `None` when it does not match.
    ///
    /// A named level matches no empty one: a device has a name.
    pub fn matches<'a>(&'a self, topic: &'a str) -> Option<Captures<'a>> {
        if topic.starts_with('$') && !matches!(self.levels.first(), Some(Level::Text(_))) {
            return None;
        }
        let mut captures = Captures { values: [("", ""); MAX_NAMES], count: 0 };
        let mut rest = Some(topic);
        for level in &self.levels {
            if let Level::Rest = level {
                return Some(captures);
            }
            let remaining = rest?;
            if let Level::NamedRest(name) = level {
                if remaining.is_empty() {
                    return None;
                }
                captures.push(name, remaining);
                return Some(captures);
            }
            let (here, after) = match remaining.split_once('/') {
                Some((here, after)) => (here, Some(after)),
                None => (remaining, None),
            };
            match level {
                Level::Text(text) if text == here => {}
                Level::Any => {}
                Level::Named(name) if !here.is_empty() => captures.push(name, here),
                _ => return None,
            }
            rest = after;
        }
        rest.is_none().then_some(captures)
    }

    /// Makes a topic name, every name replaced by its value.
    ///
    /// # Errors
    /// `NoValue` for a wildcard, or for a name that `value` does not know; `allowed` says which it
    /// does.
    pub fn fill<'v>(
        &self,
        allowed: &'static str,
        value: impl Fn(&str) -> Option<&'v str>,
    ) -> Result<String, TemplateError> {
        let mut topic = String::with_capacity(self.text.len() + 32);
        for (index, level) in self.levels.iter().enumerate() {
            if index > 0 {
                topic.push('/');
            }
            match level {
                Level::Text(text) => topic.push_str(text),
                Level::Named(name) | Level::NamedRest(name) => {
                    topic.push_str(
                        value(name).ok_or_else(|| TemplateError::NoValue(name.clone(), allowed))?,
                    );
                }
                Level::Any => return Err(TemplateError::NoValue("+".into(), allowed)),
                Level::Rest => return Err(TemplateError::NoValue("#".into(), allowed)),
            }
        }
        Ok(topic)
    }

    /// Whether a level of this name is in the template.
    pub fn names(&self, name: &str) -> bool {
        self.levels
            .iter()
            .any(|level| matches!(level, Level::Named(n) | Level::NamedRest(n) if n == name))
    }
}

impl Level {
    fn parse(level: &str) -> Result<Self, TemplateError> {
        match level {
            "+" => return Ok(Self::Any),
            "#" => return Ok(Self::Rest),
            _ => {}
        }
        if let Some(inner) = level.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            let (name, rest) = match inner.strip_suffix("...") {
                Some(name) => (name, true),
                None => (inner, false),
            };
            let is_name =
                !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            return match (is_name, rest) {
                (false, _) => Err(TemplateError::BadName(level.into())),
                (true, false) => Ok(Self::Named(name.into())),
                (true, true) => Ok(Self::NamedRest(name.into())),
            };
        }
        if level.contains(['+', '#', '{', '}', '\0']) {
            return Err(TemplateError::Mixed(level.into()));
        }
        Ok(Self::Text(level.into()))
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> Template {
        Template::parse(text).expect("a valid template")
    }

    #[test]
    fn filters_match_as_mqtt_says() {
        for (filter, topic, matches) in [
            ("a/b", "a/b", true),
            ("a/+", "a/b", true),
            ("a/+", "a/b/c", false),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("#", "a/b", true),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("+", "/a", false),
            ("/+", "/a", true),
            ("a/+/c", "a//c", true),
        ] {
            assert_eq!(filter_matches(filter, topic), matches, "{filter} against {topic}");
        }
    }

    #[test]
    fn a_filter_covers_what_it_always_matches() {
        for (broad, narrow, covers) in [
            ("a/#", "a/#", true),
            ("a/#", "a/+/c", true),
            ("a/#", "a", true),
            ("a/#", "#", false),
            ("a/#", "+/b", false),
            ("a/b/#", "a/+/#", false),
            ("a/+", "a/#", false),
            ("a/+", "a/+", true),
            ("a/+", "a/b", true),
            ("a/b", "a/+", false),
            ("#", "a/#", true),
            ("#", "$SYS/#", false),
            ("+/x", "$SYS/x", false),
        ] {
            assert_eq!(filter_covers(broad, narrow), covers, "{broad} over {narrow}");
        }
    }

    #[test]
    fn a_device_has_its_part_of_a_template() {
        for (text, filter) in [
            ("devices/{device}/commands/{command}", "devices/d/commands/#"),
            ("{device}/{command}", "d/#"),
            ("cmd/{command}/{device}", "cmd/+/d"),
            ("cmd/{device...}", "cmd/d"),
        ] {
            assert_eq!(template(text).filter_of_device("d"), filter, "{text}");
        }
    }

    #[test]
    fn filters_and_names_are_checked() {
        assert!(is_valid_filter("a/+/#") && is_valid_filter("#") && is_valid_filter("/"));
        assert!(!is_valid_filter("a/#/b") && !is_valid_filter("a+/b") && !is_valid_filter(""));
        assert!(
            is_valid_name("a/b")
                && !is_valid_name("a/+")
                && !is_valid_name("")
                && !is_valid_name("a\0")
        );
    }

    #[test]
    fn a_template_captures_its_names() {
        let captured = |text: &str, topic: &str| {
            template(text).matches(topic).map(|c| c.get("device").unwrap_or("-").to_owned())
        };
        assert_eq!(
            captured("devices/{device}/telemetry", "devices/plc-01/telemetry").as_deref(),
            Some("plc-01")
        );
        assert_eq!(captured("devices/{device}/telemetry", "devices/plc-01/state"), None);
        assert_eq!(captured("devices/{device}/telemetry", "devices//telemetry"), None);
        assert_eq!(
            captured("zigbee2mqtt/{device...}", "zigbee2mqtt/hall/lamp").as_deref(),
            Some("hall/lamp")
        );
        assert_eq!(captured("tele/+/{device}/#", "tele/a/b/c/d").as_deref(), Some("b"));
        assert_eq!(captured("{device}/x", "$SYS/x"), None);
        assert_eq!(template("devices/{device}/telemetry").filter(), "devices/+/telemetry");
        assert_eq!(template("z/{d...}").filter(), "z/#");
    }

    #[test]
    fn bad_templates_say_which_level() {
        for text in
            ["", "a/b{c}", "a/#/b", "a/{}", "{x}/{x}", "a/{b c}", "{a}/{b}/{c}/{d}/{e}", "{r...}/x"]
        {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_template_is_filled() {
        let commands = template("devices/{device}/commands/{command}");
        let fill = |name: &str| match name {
            "device" => Some("plc-01"),
            "command" => Some("set"),
            _ => None,
        };
        assert_eq!(commands.fill("{device}", fill).unwrap(), "devices/plc-01/commands/set");
        assert!(template("a/{other}").fill("{device}", fill).is_err());
        assert!(template("a/+").fill("{device}", fill).is_err());
    }
}
