//! What the demo shows: lines of story, and under them the account; rewritten in place on a terminal.

use std::io::{self, IsTerminal as _, Stdout, Write as _};

/// Carriage return, erase the line (ECMA-48).
const REWRITE: &str = "\r\x1b[2K";

/// Standard output. An error is that it is gone.
#[derive(Debug)]
pub(super) struct Screen {
    out: Stdout,
    is_terminal: bool,
    /// What stands in the last line of a terminal and is to be rewritten.
    live: String,
}

impl Screen {
    pub(super) fn new() -> Self {
        let out = io::stdout();
        Self { is_terminal: out.is_terminal(), out, live: String::new() }
    }

    /// A line that stays.
    pub(super) fn say(&mut self, line: &str) -> io::Result<()> {
        if self.live.is_empty() {
            return writeln!(self.out, "{line}");
        }
        write!(self.out, "{REWRITE}{line}\n{}", self.live)?;
        self.out.flush()
    }

    /// The live line, in place of the one before.
    pub(super) fn show(&mut self, line: String) -> io::Result<()> {
        if !self.is_terminal {
            return writeln!(self.out, "{line}");
        }
        self.live = line;
        write!(self.out, "{REWRITE}{}", self.live)?;
        self.out.flush()
    }

    /// Leaves the live line as it stands.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        match std::mem::take(&mut self.live).is_empty() {
            true => Ok(()),
            false => writeln!(self.out),
        }
    }
}
