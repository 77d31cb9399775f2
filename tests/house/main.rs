//! The house's own rules: what is pure stays pure, imports point one way as the table in src/lib.rs
//! reads, and files and lines stay short enough to be read.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A file longer than this fails; one longer than [`LONG_FILE`] is named.
const LONGEST_FILE: usize = 600;
const LONG_FILE: usize = 500;
const LONGEST_LINE: usize = 100;
const LONGEST_PROSE: usize = 120;

/// What is handed everything it needs: no runtime, file, socket, clock, environment or random
/// source of its own.
const PURE: &[&str] = &["record", "topic.rs", "command.rs", "protocol", "gateway", "hub/session"];

const IMPURE_PATHS: &[&str] = &[
    "tokio",
    "tokio_rustls",
    "tokio_tungstenite",
    "rand",
    "getrandom",
    "ring::rand",
    "std::env",
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::SystemTime",
];

const IMPURE_CALLS: &[&str] = &["Instant::now", "SystemTime::", "thread::sleep"];

/// A room and the rooms it may name beside itself. What is not listed (`cli`, the programs) may
/// name every room.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("command", NOUNS),
    ("record", NOUNS),
    ("topic", NOUNS),
    ("protocol", NOUNS),
    ("gateway", &["command", "record", "topic", "protocol", "spool"]),
    ("spool", &[]),
    ("source", SOUTH_AND_NORTH),
    ("link", SOUTH_AND_NORTH),
    ("config", &["command", "record", "topic", "protocol"]),
    ("crypto", &[]),
    ("files", &[]),
    ("identity", &["command", "record", "topic", "protocol", "config", "crypto", "files"]),
    ("ops", &["command", "record", "topic", "protocol", "config"]),
    ("hub", &["command", "record", "topic", "protocol", "crypto", "files", "ops"]),
];

const NOUNS: &[&str] = &["command", "record", "topic"];
const SOUTH_AND_NORTH: &[&str] =
    &["command", "record", "topic", "protocol", "config", "identity", "ops"];

#[test]
fn pure_modules_have_no_world_of_their_own() {
    let mut faults = Vec::new();
    for source in sources("src").iter().filter(|source| is_pure(&source.name)) {
        for (line, path) in source.paths() {
            if let Some(impure) = IMPURE_PATHS.iter().find(|impure| starts_with(&path, impure)) {
                faults.push(format!("{}:{line}: names {impure}; hand it in", source.name));
            }
        }
        for (number, line) in source.code() {
            if let Some(call) = IMPURE_CALLS.iter().find(|call| line.contains(*call)) {
                faults.push(format!("{}:{number}: calls {call}; hand it in", source.name));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn imports_point_one_way() {
    let mut faults = Vec::new();
    let sources = sources("src");
    let rooms: Vec<&str> = MAY_NAME.iter().map(|(room, _)| *room).chain(["cli"]).collect();
    for source in &sources {
        let module = source.module();
        let Some(room) = module.first() else { continue };
        let Some((_, may)) = MAY_NAME.iter().find(|(name, _)| name == room) else { continue };
        for (line, path) in source.paths() {
            let Some(named) = room_of(&path, &module) else { continue };
            if rooms.contains(&named.as_str()) && named != *room && !may.contains(&named.as_str()) {
                faults.push(format!("{}:{line}: {room} names {named}", source.name));
            }
        }
    }
    assert!(faults.is_empty(), "see the table in src/lib.rs\n{}", faults.join("\n"));
}

/// No clock is believed that is before this version was made: a date in the future would refuse
/// every clock, and one before the last release would believe clocks that are surely wrong.
#[cfg(feature = "gateway")]
#[test]
fn the_date_of_the_release_is_not_in_the_future_and_not_before_the_changelogs() {
    let released_ms = fieldgate::identity::RELEASED_MS;
    let since = std::time::UNIX_EPOCH.elapsed().expect("a clock that is set");
    assert!(u128::from(released_ms) < since.as_millis(), "RELEASED_MS is in the future");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("CHANGELOG.md");
    let changelog = fs::read_to_string(path).expect("CHANGELOG.md");
    let seconds = i64::try_from(released_ms / 1000).expect("a moment");
    let released = fieldgate::identity::calendar::Moment { unix_seconds: seconds }.to_string();
    // `## [0.1.0] - 2026-12-01`: dates of this form are in the order of their letters.
    let dates = changelog.lines().filter_map(|line| line.strip_prefix("## [")?.split_once("] - "));
    for (version, date) in dates {
        assert!(date.trim() <= &released[..10], "RELEASED_MS is before the release of {version}");
    }
}

#[test]
fn files_can_be_read_in_one_sitting() {
    let mut faults = Vec::new();
    for source in sources("src") {
        let lines = source.text.lines().count();
        if lines > LONGEST_FILE {
            faults.push(format!("{}: {lines} lines, at most {LONGEST_FILE}", source.name));
        } else if lines > LONG_FILE {
            println!("{}: {lines} lines: time to divide it", source.name);
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn lines_fit_a_window() {
    let mut faults = Vec::new();
    for source in sources("src").iter().chain(&sources("tests")) {
        for (at, line) in source.text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > LONGEST_LINE && !must_be_long(line) {
                faults.push(format!("{}:{}: {columns} columns", source.name, at + 1));
            }
        }
    }
    assert!(faults.is_empty(), "at most {LONGEST_LINE} columns\n{}", faults.join("\n"));
}

/// But for tables, and for code, which has its own reasons.
#[test]
fn prose_fits_a_window() {
    let mut faults = Vec::new();
    for name in ["ARCHITECTURE.md", "CHANGELOG.md", "PROTOCOL.md", "README.md", "SECURITY.md"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let text = fs::read_to_string(path).expect("a document");
        let mut is_code = false;
        for (number, line) in (1..).zip(text.lines()) {
            is_code ^= line.starts_with("```");
            let columns = line.chars().count();
            if columns > LONGEST_PROSE && !is_code && !line.starts_with('|') {
                faults.push(format!("{name}:{number}: {columns} columns"));
            }
        }
    }
    assert!(faults.is_empty(), "at most {LONGEST_PROSE} columns\n{}", faults.join("\n"));
}

/// What can't be broken: a row of a table in a document, and a string that is one piece.
fn must_be_long(line: &str) -> bool {
    let line = line.trim_start();
    let comment = line.starts_with("//");
    let table = line.starts_with("//! |") || line.contains("   ");
    if comment { table } else { line.contains('"') }
}

fn is_pure(name: &str) -> bool {
    let below = name.strip_prefix("src/").unwrap_or(name);
    let is = |pure: &&str| {
        let rest = below.strip_prefix(pure);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '.', '_']))
    };
    PURE.iter().any(is)
}

/// Whether `path` is `start` or something in it.
fn starts_with(path: &str, start: &str) -> bool {
    path.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// The room that a path leads into, seen from `module`.
fn room_of(path: &str, module: &[String]) -> Option<String> {
    let mut parts = path.split("::");
    let mut here = module.to_vec();
    match parts.next()? {
        "crate" | "fieldgate" => return parts.next().map(str::to_owned),
        "super" => here.pop(),
        _ => return None,
    };
    for part in parts {
        match part {
            "super" => drop(here.pop()),
            part if here.is_empty() => return Some(part.to_owned()),
            _ => break,
        }
    }
    here.into_iter().next()
}

struct Source {
    name: String,
    text: String,
}

impl Source {
    /// Its lines without comments, up to its tests, which may do as they like.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(at, line)| (at + 1, line));
        let all_tests = self.name.ends_with("/tests.rs") || self.name.contains("/tests/");
        let lines = lines.take_while(move |(_, line)| !all_tests && *line != "#[cfg(test)]");
        lines.map(|(at, line)| (at, line.split("//").next().unwrap_or_default()))
    }

    /// Every path of two or more parts that the code names, with its line; braces taken apart.
    fn paths(&self) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        let mut statement: Option<(usize, String)> = None;
        for (at, line) in self.code() {
            let starts = ["use ", "pub use ", "pub(crate) use ", "pub(super) use "];
            let used = starts.iter().find_map(|start| line.trim_start().strip_prefix(start));
            match (&mut statement, used) {
                (Some((_, text)), _) => text.push_str(line),
                (None, Some(used)) => statement = Some((at, used.to_owned())),
                (None, None) => found.extend(inline_paths(line).map(|path| (at, path))),
            }
            if statement.as_ref().is_some_and(|(_, text)| text.contains(';'))
                && let Some((first, text)) = statement.take()
            {
                let tree: String = text.chars().filter(|c| !c.is_whitespace()).collect();
                let tree = tree.split(';').next().unwrap_or_default();
                found.extend(expand("", tree).into_iter().map(|path| (first, path)));
            }
        }
        found
    }

    /// The path of its module below the crate's root.
    fn module(&self) -> Vec<String> {
        let path = Path::new(&self.name).strip_prefix("src").unwrap_or(Path::new(&self.name));
        let path = path.with_extension("");
        let parts = path.iter().map(|part| part.to_string_lossy().into_owned());
        parts.filter(|part| !matches!(part.as_str(), "mod" | "lib" | "main")).collect()
    }
}

/// `a::{b, c::{d}}` as `a::b` and `a::c::d`.
fn expand(before: &str, tree: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let (mut depth, mut start) = (0, 0);
    let ends = tree.char_indices().chain([(tree.len(), ',')]);
    for (at, c) in ends {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let item = &tree[start..at];
                start = at + 1;
                match item.split_once('{') {
                    Some((head, rest)) => {
                        let inner = rest.strip_suffix('}').unwrap_or(rest);
                        paths.extend(expand(&format!("{before}{head}"), inner));
                    }
                    None if !item.is_empty() => paths.push(format!("{before}{item}")),
                    None => {}
                }
            }
            _ => {}
        }
    }
    paths
}

/// The paths in a line of code that is no `use`.
fn inline_paths(line: &str) -> impl Iterator<Item = String> {
    let words = line.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    words.map(|word| word.trim_matches(':').to_owned()).filter(|word| word.contains("::"))
}

fn sources(directory: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut waiting: Vec<PathBuf> = vec![root.join(directory)];
    let mut sources = Vec::new();
    while let Some(directory) = waiting.pop() {
        let entries = fs::read_dir(&directory);
        let entries = entries.unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
        for entry in entries {
            let path = entry.expect("a directory that can be read").path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).expect("below the root").display().to_string();
                let text = fs::read_to_string(&path);
                let text = text.unwrap_or_else(|e| panic!("{name}: {e}"));
                sources.push(Source { name, text });
            }
        }
    }
    assert!(!sources.is_empty(), "no sources in {directory}");
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    sources
}

#[test]
fn security_md_names_only_tests_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("SECURITY.md")).expect("SECURITY.md is there");
    let (_, table) = text.split_once("shown by |").expect("the table of requirements");
    let sources: Vec<String> =
        sources("src").into_iter().chain(sources("tests")).map(|source| source.text).collect();
    let names: Vec<&str> = (table.lines().skip(2).take_while(|line| line.starts_with('|')))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter(|name| name.matches('_').count() > 1)
        .collect();
    let is_there = |name: &&str| {
        let function = format!("fn {name}(");
        sources.iter().any(|text| text.contains(&function))
    };
    let missing: Vec<_> = names.iter().filter(|name| !is_there(name)).collect();
    assert!(names.len() > 30 && missing.is_empty(), "no such tests: {missing:?}");
}

#[test]
fn the_rules_see_what_they_are_to_see() {
    let source = Source {
        name: "src/hub/session/apply.rs".into(),
        text: "use std::{\n    collections::HashMap,\n    fs,\n};\nuse super::super::engine;\n\
               use crate::{gateway::Core, protocol};\n\
               fn f() { crate::spool::open() } // crate::cli\n\
               #[cfg(test)]\nuse tokio::time;\n"
            .into(),
    };
    let paths: Vec<String> = source.paths().into_iter().map(|(_, path)| path).collect();
    let expected = [
        "std::collections::HashMap",
        "std::fs",
        "super::super::engine",
        "crate::gateway::Core",
        "crate::protocol",
        "crate::spool::open",
    ];
    assert_eq!(paths, expected);
    assert!(is_pure(&source.name) && !is_pure("src/hub/server.rs") && !is_pure("src/records.rs"));
    let module = source.module();
    let rooms: Vec<Option<String>> = paths.iter().map(|path| room_of(path, &module)).collect();
    let room = |name: &str| Some(name.to_owned());
    assert_eq!(rooms[2..], [room("hub"), room("gateway"), room("protocol"), room("spool")]);
}
