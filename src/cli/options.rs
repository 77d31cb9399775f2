//! Options of the rarer commands, as tables: the code that clap's derive makes of each is a
//! kilobyte on the board.

use clap::{Arg, ArgAction, ArgMatches, Command};

/// An option: its name, what its value is called (empty for one without), and what it means.
pub(super) struct Opt(pub(super) &'static str, pub(super) &'static str, pub(super) &'static str);

/// The command with these options.
#[inline(never)]
pub(super) fn with(command: Command, options: &[Opt]) -> Command {
    options.iter().fold(command, |command, Opt(name, value, help)| {
        let option = Arg::new(*name).long(*name).help(*help);
        command.arg(match *value {
            "" => option.action(ArgAction::SetTrue),
            value => option.value_name(value),
        })
    })
}

/// An option's value, where it was written.
#[inline(never)]
pub(super) fn text(matches: &ArgMatches, name: &str) -> Option<String> {
    matches.get_one::<String>(name).cloned()
}
