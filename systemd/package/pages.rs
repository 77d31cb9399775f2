//! Writes the manual pages and shell completions of both programs:
//! `cargo run --example pages -- FOLDER DATE`.
//!
//! What can be typed comes from clap's definition, what can be configured from the commented files
//! in configs/: neither can say anything else than the programs do.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::{Arg, Command};
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Inline, Roff, bold, italic, roman},
};

const MANUAL: &str = "fieldgate";

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), Some(date)) = (arguments.next(), arguments.next()) else {
        return Err(io::Error::other("usage: pages FOLDER DATE"));
    };
    let folder = PathBuf::from(folder);
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    for (command, config, installed, see) in [
        (fieldgate::cli::definition(), "fieldgate.toml", "fieldgate.toml", GATEWAY_FILES),
        (fieldgate::hub::definition(), "hub.toml", "fieldgate-hub.toml", HUB_FILES),
    ] {
        let mut command = command.disable_help_subcommand(true);
        command.build();
        let program = command.get_name().to_owned();
        program_page(&command, &folder, &date, see, installed)?;
        let text = fs::read_to_string(configs.join(config))?;
        config_page(&text, &program, installed, &folder, &date)?;
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let completions = folder.join("completions").join(shell.to_string());
            fs::create_dir_all(&completions)?;
            clap_complete::generate_to(shell, &mut command, &program, completions)?;
        }
    }
    Ok(())
}

const GATEWAY_FILES: &[(&str, &str)] = &[
    ("/etc/fieldgate/fieldgate.toml", "The configuration."),
    (
        "/etc/fieldgate/credentials",
        "Secrets, root's alone; the service gets copies, $CREDENTIALS_DIRECTORY/cred_NAME.",
    ),
    (
        "/var/lib/fieldgate",
        "The spool, the journal of commands and the control socket of the service.",
    ),
    ("/var/lib/fieldgate/identity", "The device key, its certificate, and the hub's CA."),
];

const HUB_FILES: &[(&str, &str)] = &[
    ("/etc/fieldgate/hub.toml", "The configuration."),
    ("/etc/fieldgate/hub-credentials", "The TLS key and the like, root's alone."),
    ("/var/lib/fieldgate-hub", "The database."),
];

const EXIT_CODES: [(&str, &str); 4] = [
    ("0", "It is done."),
    ("1", "It failed; standard error says why and what to do."),
    ("2", "Wrong usage."),
    ("78", "A faulty configuration or credential file; the service is not started again on it."),
];

/// One page for the program, all its commands included.
fn program_page(
    command: &Command,
    folder: &Path,
    date: &str,
    files: &[(&str, &str)],
    config: &str,
) -> io::Result<()> {
    let name = command.get_name();
    let man = Man::new(command.clone()).section("1").date(date).manual(MANUAL);
    let mut page = fs::File::create(folder.join(format!("{name}.1")))?;
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let mut roff = Roff::new();
    roff.control("SH", ["COMMANDS"]);
    for leaf in leaves(command) {
        describe(leaf, &mut roff);
    }
    for (heading, list) in [("FILES", files), ("EXIT STATUS", EXIT_CODES.as_slice())] {
        roff.control("SH", [heading]);
        for (what, means) in list {
            roff.control("TP", []).text([bold(*what)]).text([roman(*means)]);
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold(config), roman("(5), "), bold("systemctl"), roman("(1)")]);
    page.write_all(roff.to_roff().as_bytes())
}

/// The commands that do something, those of commands included.
fn leaves(command: &Command) -> Vec<&Command> {
    let below = command.get_subcommands().filter(|below| !below.is_hide_set());
    below
        .flat_map(|below| if below.has_subcommands() { leaves(below) } else { vec![below] })
        .collect()
}

fn describe(command: &Command, roff: &mut Roff) {
    roff.control("SS", [command.get_bin_name().unwrap_or(command.get_name())]);
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    roff.text([roman(sentence(&about))]);
    let shown = |argument: &&Arg| !argument.is_hide_set() && !argument.is_global_set();
    for argument in command.get_arguments().filter(shown) {
        if matches!(argument.get_id().as_str(), "help" | "version") {
            continue;
        }
        roff.control("TP", []).text(head(argument));
        let mut help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        help = sentence(&help);
        let defaults: Vec<_> =
            argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        if argument.get_action().takes_values() && !defaults.is_empty() {
            help += &format!(" Default: {}", defaults.join(" "));
        }
        if let Some(variable) = argument.get_env() {
            help += &format!(" (environment: {})", variable.to_string_lossy());
        }
        roff.text([roman(help)]);
    }
}

/// `--config FILE`, or the name of what stands without one.
fn head(argument: &Arg) -> Vec<Inline> {
    let values = argument.get_value_names().unwrap_or_default().iter().map(ToString::to_string);
    let values = values.collect::<Vec<_>>().join(" ");
    match argument.get_long() {
        Some(long) if argument.get_action().takes_values() => {
            vec![bold(format!("--{long}")), roman(" "), italic(values)]
        }
        Some(long) => vec![bold(format!("--{long}"))],
        None => vec![italic(values)],
    }
}

/// With a full stop, as a page wants it and a help text does not.
fn sentence(text: &str) -> String {
    if text.is_empty() || text.ends_with(['.', ')', ']']) {
        text.into()
    } else {
        format!("{text}.")
    }
}

/// A page of a commented configuration: its comments are the text, its keys the terms.
fn config_page(text: &str, program: &str, name: &str, folder: &Path, date: &str) -> io::Result<()> {
    let mut page = ConfigPage::new(program, name, date);
    for line in text.lines() {
        page.line(line);
    }
    page.paragraph();
    page.roff.control("SH", ["SEE ALSO"]).text([bold(program), roman("(1)")]);
    fs::write(folder.join(format!("{name}.5")), page.roff.to_roff())
}

struct ConfigPage {
    roff: Roff,
    /// What was said since the last key.
    said: Vec<String>,
    table: String,
    /// Whether the line before was a key, which this one shares its explanation with.
    after_key: bool,
}

impl ConfigPage {
    fn new(program: &str, name: &str, date: &str) -> Self {
        let mut roff = Roff::new();
        roff.control("TH", [name, "5", date, "", MANUAL]);
        roff.control("SH", ["NAME"]).text([roman(format!("{name} - configuration of {program}"))]);
        roff.control("SH", ["DESCRIPTION"]);
        Self { roff, said: Vec::new(), table: String::new(), after_key: false }
    }

    fn line(&mut self, line: &str) {
        let plain = line.strip_prefix('#').unwrap_or(line);
        let plain = plain.strip_prefix(' ').unwrap_or(plain);
        let (plain, is_example) = match plain.strip_suffix("# example") {
            Some(plain) => (plain.trim_end(), true),
            None => (plain, false),
        };
        if plain.is_empty() {
            self.paragraph();
        } else if let Some((key, value)) = key_and_value(plain) {
            self.key(key, value, is_example);
        } else if plain.starts_with('[') && plain.ends_with(']') {
            self.table(plain);
        } else {
            self.said.push(plain.to_owned());
            self.after_key = false;
        }
    }

    fn table(&mut self, table: &str) {
        let said = std::mem::take(&mut self.said);
        if table == self.table {
            self.roff.control("PP", []);
        } else {
            if self.table.is_empty() {
                self.roff.control("SH", ["TABLES AND KEYS"]);
            }
            self.roff.control("SS", [table]);
            self.table = table.to_owned();
        }
        self.roff.text([roman(said.join(" "))]);
        self.after_key = false;
    }

    /// The explanation stands below the first of several keys, where a reader of the file finds it
    /// too; the others say that they belong to it.
    fn key(&mut self, key: &str, value: &str, is_example: bool) {
        if self.table.is_empty() {
            self.roff.control("SH", ["KEYS"]);
            self.table = "none".into();
        }
        let kind = if is_example { "such as" } else { "default" };
        let head = vec![bold(key), roman(format!(" ({kind}: ")), roman(value), roman(")")];
        self.roff.control("TP", []).text(head);
        let said = std::mem::take(&mut self.said);
        let text = if self.after_key { "As above.".into() } else { said.join(" ") };
        self.roff.text([roman(text)]);
        self.after_key = true;
    }

    fn paragraph(&mut self) {
        if !self.said.is_empty() {
            let said = std::mem::take(&mut self.said);
            self.roff.text([roman(said.join(" "))]).control("PP", []);
        }
        self.after_key = false;
    }
}

/// `key = value`, but not a sentence that has a sign of equality in it.
fn key_and_value(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once(" = ")?;
    let is_key = |c: char| c.is_ascii_lowercase() || c == '_';
    (!key.is_empty() && key.chars().all(is_key)).then_some((key, value))
}
