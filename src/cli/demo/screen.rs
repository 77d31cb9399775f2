//! What the demo shows: lines of story, and under them the account, rewritten in place on a
//! terminal.

use std::io::{self, IsTerminal as _, Stdout, Write as _};

use anyhow::Context as _;

/// Carriage return, erase the line (ECMA-48).
const REWRITE: &str = "\r\x1b[2K";

/// Says what is wrong on standard error, so far as anyone is there to read it: a closed terminal
/// must not keep the demo from cleaning up.
pub(super) fn complain(what: &str) {
    writeln!(io::stderr(), "{what}").ok();
}

/// Standard output. Every error is that it is gone, or full.
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
    pub(super) fn say(&mut self, line: &str) -> anyhow::Result<()> {
        match self.live.is_empty() {
            true => self.write(&format!("{line}\n")),
            false => self.write(&format!("{REWRITE}{line}\n{}", self.live)),
        }
    }

    /// The live line, in place of the one before.
    pub(super) fn show(&mut self, line: String) -> anyhow::Result<()> {
        if !self.is_terminal {
            return self.write(&format!("{line}\n"));
        }
        self.write(&format!("{REWRITE}{line}"))?;
        self.live = line;
        Ok(())
    }

    /// Leaves the live line as it stands.
    pub(super) fn settle(&mut self) -> anyhow::Result<()> {
        match std::mem::take(&mut self.live).is_empty() {
            true => Ok(()),
            false => self.write("\n"),
        }
    }

    fn write(&mut self, text: &str) -> anyhow::Result<()> {
        let written = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        written.context("standard output can't be written to")
    }
}
