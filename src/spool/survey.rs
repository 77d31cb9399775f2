//! The read-only view of a spool: what is held, frame by frame, also beside a running gateway.
//!
//! It takes no lock and never writes. What it looks at may go on changing: positions are read
//! before and after the names until both agree, records beyond what was then there are left out,
//! and a segment that is deleted or recycled while it is read is passed over and said.

mod walk;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{
    Disk, DiskFile, OpenError,
    positions::{self, Positions},
    segment::{self, Frame, HEADER_BYTES, Header, Id},
};

use walk::Frames;
pub use walk::{Sight, Why};

/// How often a look is taken at a spool that changes meanwhile.
const LOOKS: usize = 20;

/// The files of a spool that are neither segments nor spares, by their whole name or its end.
const KNOWN: [&str; 3] = [positions::FILE, super::journal::FILE, "lock"];
const KNOWN_END: &str = ".new";

/// A directory that is only looked at: neither made nor locked, and every write is refused.
#[derive(Debug)]
pub struct ReadOnlyDirectory {
    path: PathBuf,
}

/// What a spool holds.
#[derive(Debug)]
pub struct Survey<D: Disk> {
    disk: D,
    /// By stream, oldest first.
    pub epochs: Vec<HeldEpoch>,
    /// What does not fit, apart from damaged frames, which only [`Survey::walk`] finds.
    pub faults: Vec<Fault>,
    /// Files that no spool has.
    pub unknown_files: Vec<String>,
    /// Bytes of acknowledged segments' files that wait to be written again.
    pub spare_bytes: u64,
    /// Whether it never stood still long enough: a gateway is at work, and the view may be off by
    /// what it did meanwhile.
    pub unsettled: bool,
}

/// What is held of one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldEpoch {
    /// The stream's name.
    pub stream: String,
    /// Which start of the gateway.
    pub start: u32,
    /// The epoch.
    pub epoch: u64,
    /// Everything up to here is trimmed, as far as the disk tells.
    pub acked: u64,
    /// One past the last record or skip.
    pub next: u64,
    /// Oldest first.
    pub segments: Vec<HeldSegment>,
    /// Losses that are known and not yet acknowledged, in order.
    pub skips: Vec<HeldSkip>,
    /// The last record that was found, as it was appended.
    pub newest: Option<Bytes>,
}

/// A segment's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldSegment {
    /// Its name.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    pub(super) first: u64,
    /// Whether it was more than named.
    pub(super) begun: bool,
    /// Up to where an earlier use may have left something.
    pub(super) stale_bytes: u64,
    pub(super) sound_header: bool,
}

/// Records that are known to be lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldSkip {
    /// The first.
    pub from: u64,
    /// One past the last.
    pub to: u64,
    /// Why.
    pub reason: String,
}

/// A file that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Its name.
    pub file: String,
    /// What is wrong with it.
    pub what: &'static str,
}

impl<D: Disk> Survey<D> {
    /// Looks at names, headers, positions, and the last segment of each epoch.
    ///
    /// # Errors
    /// The directory or a file in it can't be read, or a newer version wrote it.
    pub fn look(disk: D) -> Result<Self, OpenError> {
        let mut survey = Self {
            disk,
            epochs: Vec::new(),
            faults: Vec::new(),
            unknown_files: Vec::new(),
            spare_bytes: 0,
            unsettled: false,
        };
        for look in 1..=LOOKS {
            let before = survey.read_positions()?;
            let seen = survey.look_once(before.as_deref());
            survey.unsettled = match seen {
                // A segment went between its name and its header.
                Err(OpenError::Io(error))
                    if error.kind() == io::ErrorKind::NotFound && look < LOOKS =>
                {
                    true
                }
                Err(error) => return Err(error),
                Ok(()) => survey.read_positions()? != before,
            };
            if !survey.unsettled {
                break;
            }
        }
        Ok(survey)
    }

    /// The disk that is looked at.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// The first record that is still held, as it was appended. Reads until it is found.
    pub fn oldest(&self, epoch: &HeldEpoch) -> Option<Bytes> {
        use std::ops::ControlFlow::{Break, Continue};
        let found = self.walk(epoch, |sight| match sight {
            Sight::Record { bytes, .. } => Break(bytes),
            _ => Continue(()),
        });
        found.break_value()
    }

    fn read_positions(&self) -> io::Result<Option<Vec<u8>>> {
        let file = match self.disk.open(positions::FILE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut bytes = vec![0; usize::try_from(file.length()?).unwrap_or(0)];
        let filled = file.read_at(&mut bytes, 0)?;
        bytes.truncate(filled);
        Ok(Some(bytes))
    }

    fn look_once(&mut self, positions: Option<&[u8]>) -> Result<(), OpenError> {
        self.epochs.clear();
        self.faults.clear();
        self.unknown_files.clear();
        self.spare_bytes = 0;
        if let Some(text) = positions {
            self.note_positions(text)?;
        }
        let mut files = self.disk.list()?;
        files.sort();
        for file in files {
            self.note_file(file)?;
        }
        self.epochs
            .sort_by(|a, b| (&a.stream, a.start, a.epoch).cmp(&(&b.stream, b.start, b.epoch)));
        for index in 0..self.epochs.len() {
            self.look_at_end(index)?;
        }
        Ok(())
    }

    fn note_positions(&mut self, text: &[u8]) -> Result<(), OpenError> {
        let file = || positions::FILE.to_owned();
        let text = std::str::from_utf8(text);
        let logs = match text.map_or(Positions::Damaged, positions::read) {
            Positions::Whole { logs, .. } => logs,
            Positions::Newer(version) => return Err(OpenError::Newer { file: file(), version }),
            Positions::Damaged => {
                let what = "it can't be read: acknowledged records may be held again";
                self.faults.push(Fault { file: file(), what });
                return Ok(());
            }
        };
        for (stream, log) in logs {
            let mut epoch = HeldEpoch::new(stream, log.ordinal, log.epoch);
            (epoch.acked, epoch.next) = (log.acked, log.next);
            let skips = log.skips.into_iter();
            epoch.skips = skips
                .map(|skip| HeldSkip { from: skip.from, to: skip.to, reason: skip.reason })
                .collect();
            self.epochs.push(epoch);
        }
        Ok(())
    }

    fn note_file(&mut self, file: String) -> Result<(), OpenError> {
        let Some((stream, start, epoch, first)) = segment::parse_name(&file) else {
            if file.starts_with(segment::SPARE) {
                self.spare_bytes += self.disk.open(&file)?.length()?;
            } else if !KNOWN.contains(&file.as_str()) && !file.ends_with(KNOWN_END) {
                self.unknown_files.push(file);
            }
            return Ok(());
        };
        let opened = self.disk.open(&file)?;
        let bytes = opened.length()?;
        let header = segment::read_header(&opened, Id::new(stream, epoch, first))?;
        let begun = bytes >= HEADER_BYTES as u64 && header != Header::Unbegun;
        let is_its = |held: &&mut HeldEpoch| {
            (held.stream.as_str(), held.start, held.epoch) == (stream, start, epoch)
        };
        let held = match self.epochs.iter_mut().find(is_its) {
            Some(held) => held,
            None => {
                self.epochs.push(HeldEpoch::new(stream.into(), start, epoch));
                self.epochs.last_mut().expect("just pushed")
            }
        };
        match header {
            Header::Good { acked, .. } => held.acked = held.acked.max(acked),
            Header::Newer(version) => return Err(OpenError::Newer { file, version }),
            Header::Damaged if begun => {
                let what = "its header is damaged; the name is gone by";
                self.faults.push(Fault { file: file.clone(), what });
            }
            // What follows decides whether that is a fault.
            Header::Damaged | Header::Unbegun => {}
        }
        let (stale_bytes, sound_header) = match header {
            Header::Good { stale_bytes, .. } => (stale_bytes, true),
            _ => (0, false),
        };
        held.segments.push(HeldSegment { file, bytes, first, begun, stale_bytes, sound_header });
        Ok(())
    }

    /// How far an epoch goes, and what its last segment says of acknowledgements.
    fn look_at_end(&mut self, index: usize) -> Result<(), OpenError> {
        let Self { disk, epochs, faults, .. } = self;
        let held = &mut epochs[index];
        held.segments.sort_by_key(|segment| segment.first);
        // A segment whose beginning was cut off is no fault, if nothing follows it.
        held.segments.pop_if(|last| !last.begun);
        let lost = |segment: &&HeldSegment| !segment.begun;
        let before = held.segments.len().saturating_sub(1);
        faults.extend(
            held.segments[..before].iter().filter(lost).map(|segment| Fault {
                file: segment.file.clone(),
                what: "it has lost its content",
            }),
        );
        if let Some(last) = held.segments.last().filter(|last| last.begun) {
            held.next = held.next.max(last.first);
        }
        // A segment that was only just begun has no record: the one before has the newest.
        for segment in held.segments.iter().rev().filter(|segment| segment.begun) {
            let file = disk.open(&segment.file)?;
            let id = Id::new(&held.stream, held.epoch, segment.first);
            let mut frames = Frames::new(&file, id);
            while let Some(found) = frames.next()? {
                match found.frame {
                    Frame::Mark { acked } => held.acked = held.acked.max(acked),
                    Frame::Record(_, bytes) => {
                        held.newest = Some(bytes);
                        held.next = held.next.max(found.seq + 1);
                    }
                }
            }
            if held.newest.is_some() {
                break;
            }
        }
        held.next = held.next.max(held.acked + 1);
        let acked = held.acked;
        held.skips.retain(|skip| skip.to > acked + 1);
        Ok(())
    }
}

impl HeldEpoch {
    fn new(stream: String, start: u32, epoch: u64) -> Self {
        let (segments, skips) = (Vec::new(), Vec::new());
        Self { stream, start, epoch, acked: 0, next: 1, segments, skips, newest: None }
    }

    /// The first number that is not acknowledged.
    pub fn first(&self) -> u64 {
        self.acked + 1
    }

    /// Numbers that are known to be lost.
    pub fn skipped(&self) -> u64 {
        self.skips.iter().map(|skip| skip.to - skip.from.max(self.first())).sum()
    }

    /// Records that are held if no frame is damaged.
    pub fn records(&self) -> u64 {
        (self.next - self.first()).saturating_sub(self.skipped())
    }

    /// Bytes of its segments.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }
}

impl ReadOnlyDirectory {
    /// A directory that is there.
    ///
    /// # Errors
    /// It can't be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::read_dir(path)?;
        Ok(Self { path: path.into() })
    }
}

fn refused<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Disk for ReadOnlyDirectory {
    type File = File;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            // What has another name than UTF-8 is none of ours, and is shown as well as it can be.
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    fn create(&self, _name: &str) -> io::Result<File> {
        refused()
    }

    fn open(&self, name: &str) -> io::Result<File> {
        File::open(self.path.join(name))
    }

    fn remove(&self, _name: &str) -> io::Result<()> {
        refused()
    }

    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        refused()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stats = rustix::fs::statvfs(&self.path)?;
        Ok(stats.f_bavail.saturating_mul(stats.f_frsize))
    }

    fn replace(&self, _name: &str, _content: &[u8]) -> io::Result<()> {
        refused()
    }

    fn sync_directory(&self) -> io::Result<()> {
        refused()
    }
}

#[cfg(test)]
mod tests;
