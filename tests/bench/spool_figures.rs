//! The spool's table: medians, and beside them what other stores were measured to need.

use std::fmt::Write as _;

use crate::report;

/// Stores that were measured by the same method on the same kind of machine, when the format was
/// chosen, with the first sketch of it among them.
const PEERS: [&str; 3] = ["first sketch", "redb 4.6", "SQLite FULL"];

/// A figure of each of [`PEERS`], where there is one.
pub(crate) type Peers = [Option<f64>; PEERS.len()];

pub(crate) const NO_PEERS: Peers = [None; PEERS.len()];

/// A row of the table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figure {
    name: String,
    decimals: usize,
    goal: &'static str,
    peers: Peers,
}

pub(crate) fn figure(
    name: impl Into<String>,
    decimals: usize,
    goal: &'static str,
    peers: Peers,
) -> Figure {
    Figure { name: name.into(), decimals, goal, peers }
}

/// Rows in the order of their first measurement, each with one value per round.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<(Figure, Vec<f64>)>);

impl Figures {
    /// One more value of a figure.
    pub(crate) fn note(&mut self, figure: Figure, value: f64) {
        match self.0.iter_mut().find(|(known, _)| *known == figure) {
            Some((_, values)) => values.push(value),
            None => self.0.push((figure, vec![value])),
        }
    }

    /// As Markdown.
    pub(crate) fn table(self, rounds: usize) -> anyhow::Result<String> {
        let mut out = String::new();
        writeln!(out, "| | fieldgate | goal | {} |", PEERS.join(" | "))?;
        writeln!(out, "|---{}|", "|---:".repeat(2 + PEERS.len()))?;
        for (figure, values) in self.0 {
            let decimals = figure.decimals;
            let (least, most) =
                (values.iter().copied().reduce(f64::min), values.iter().copied().reduce(f64::max));
            let value = report::median(values).unwrap_or_default();
            write!(out, "| {} | {value:.decimals$}", figure.name)?;
            if let (Some(least), Some(most)) = (least, most)
                && rounds > 1
            {
                write!(out, " ({least:.decimals$} to {most:.decimals$})")?;
            }
            write!(out, " | {}", figure.goal)?;
            for peer in figure.peers {
                match peer {
                    Some(peer) => write!(out, " | {peer} ({:.2}×)", value / peer)?,
                    None => write!(out, " | –")?,
                }
            }
            writeln!(out, " |")?;
        }
        writeln!(
            out,
            "\nMedians of {rounds} rounds, least and most in brackets. Beside other stores' \
             figures, fieldgate's as a multiple of theirs. Appends: 300-byte records, one sync \
             per group, on an ext4 with a journal, on a loop device; bytes are the sectors that \
             the device was given, after a syncfs. CPU of appends and reads is that of the \
             thread, the kernel's part in it included; of the gateway, that of the process. \
             Whole gateway: the release build, 238-byte JSON, the sink in a process beside it on \
             the same cores.\n"
        )?;
        report::write_machine(&mut out)?;
        out.push('\n');
        Ok(out)
    }
}
