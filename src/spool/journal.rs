//! A small durable map: the journal of commands. Each change is appended and synced; the last one
//! of a key counts.
//!
//! ```text
//! file       a segment (see the module above) of a stream without a name, epoch 0, first 0; each frame a record, numbered from 0
//! record     key length u8, key, value; an empty value removes the key
//! ```
//!
//! The file is rewritten, whole or not at all, when it has grown to several times what it keeps,
//! and after a failed write, for then nothing is known of its tail.

use std::{collections::BTreeMap, io};

use bytes::Bytes;

use super::{
    OpenError, READ_BYTES,
    disk::Disk,
    segment::{self, Frame, HEADER_BYTES, Header, Id, Scan},
};

pub(super) const FILE: &str = "commands.journal";

/// Below this size the file is never rewritten for its size.
const SMALL_BYTES: u64 = 64 * 1024;

/// How many times larger than its content the file may grow.
const SLACK: u64 = 4;

/// More than this version ever keeps. What an earlier one left beyond it is made lean while it is
/// read, so that a start never needs more memory than this.
const MAX_BYTES: u64 = 16 << 20;

/// What an entry costs beside its key and value.
const ENTRY_BYTES: u64 = 16;

/// What is left of a value when there is too much of all; `None`: it stays as it is.
pub type Lean = fn(&[u8]) -> Option<Bytes>;

/// The journal, open.
#[derive(Debug)]
pub struct Journal<F> {
    entries: BTreeMap<String, Bytes>,
    /// Of the entries.
    bytes: u64,
    /// `None` when the file can't be relied on and is to be rewritten.
    tail: Option<Tail<F>>,
    written_bytes: u64,
    syncs: u64,
}

#[derive(Debug)]
struct Tail<F> {
    file: F,
    len: u64,
    count: u64,
}

impl<F: super::DiskFile> Journal<F> {
    /// Opens the journal. A torn or damaged tail is left out and goes with the next rewrite. Where
    /// it is more than can be held, its values are made `lean`.
    ///
    /// # Errors
    /// The file is there and can't be read, or a newer version wrote it.
    pub fn open<D: Disk<File = F>>(disk: &D, lean: Lean) -> Result<Self, OpenError> {
        let (entries, tail) = (BTreeMap::new(), None);
        let mut journal = Self { entries, bytes: 0, tail, written_bytes: 0, syncs: 0 };
        let mut is_over = false;
        if !disk.list()?.iter().any(|name| name == FILE) {
            return Ok(journal);
        }
        let file = disk.open(FILE)?;
        if let Header::Newer(version) = segment::read_header(&file, id())? {
            return Err(OpenError::Newer { file: FILE.into(), version });
        }
        let mut offset = HEADER_BYTES as u64;
        loop {
            let mut scan = Scan::load(&file, id(), offset, READ_BYTES)?;
            while let Some((_, frame)) = scan.next_frame() {
                let Frame::Record(_, bytes) = frame else { continue };
                let Some((key, value)) = parts(&bytes) else { continue };
                let leaner = if is_over { lean(value) } else { None };
                journal.apply(key, leaner.as_deref().unwrap_or(value));
                if journal.bytes > MAX_BYTES && !is_over {
                    is_over = true;
                    journal.make_lean(lean);
                }
            }
            if scan.offset() == offset {
                return Ok(journal);
            }
            offset = scan.offset();
        }
    }

    /// Every key and its value, in the order of the keys.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Puts values and removes keys (an empty value), durably when this returns.
    ///
    /// # Errors
    /// Whether it is on the medium is not known; what this journal says from memory includes it,
    /// and the next call writes everything anew.
    pub fn put<D: Disk<File = F>>(
        &mut self,
        disk: &D,
        changes: &[(String, Bytes)],
    ) -> io::Result<()> {
        let records: Vec<Bytes> = changes.iter().map(|(key, value)| record(key, value)).collect();
        for (key, value) in changes {
            self.apply(key, value);
        }
        let limit = SMALL_BYTES.max(self.bytes * SLACK);
        match self.tail.take().filter(|tail| tail.len < limit) {
            Some(mut tail) => {
                self.written_bytes += tail.append(&records)?;
                self.syncs += 1;
                self.tail = Some(tail);
            }
            None => {
                let tail = self.rewrite(disk)?;
                self.written_bytes += tail.len;
                self.syncs += 2;
                self.tail = Some(tail);
            }
        }
        Ok(())
    }

    /// Bytes written since open, and how often the medium was asked to keep them.
    pub fn wear(&self) -> (u64, u64) {
        (self.written_bytes, self.syncs)
    }

    fn apply(&mut self, key: &str, value: &[u8]) {
        let size = |value: &[u8]| key.len() as u64 + value.len() as u64 + ENTRY_BYTES;
        let before = if value.is_empty() {
            self.entries.remove(key)
        } else {
            self.bytes += size(value);
            // A copy: what was read in one piece would stay in memory as long as any part of it.
            self.entries.insert(key.to_owned(), Bytes::copy_from_slice(value))
        };
        self.bytes -= before.map_or(0, |before| size(&before));
    }

    fn make_lean(&mut self, lean: Lean) {
        for value in self.entries.values_mut() {
            if let Some(leaner) = lean(value) {
                self.bytes = self.bytes - value.len() as u64 + leaner.len() as u64;
                *value = leaner;
            }
        }
    }

    fn rewrite<D: Disk<File = F>>(&self, disk: &D) -> io::Result<Tail<F>> {
        let mut content = segment::header(id(), 0, 0);
        for (number, (key, value)) in (0..).zip(&self.entries) {
            Frame::Record(None, record(key, value)).put(&mut content, id(), number);
        }
        disk.replace(FILE, &content)?;
        let count = self.entries.len() as u64;
        Ok(Tail { file: disk.open(FILE)?, len: content.len() as u64, count })
    }
}

impl<F: super::DiskFile> Tail<F> {
    /// Says how many bytes it wrote.
    fn append(&mut self, records: &[Bytes]) -> io::Result<u64> {
        let mut buffer = Vec::new();
        for record in records {
            Frame::Record(None, record.clone()).put(&mut buffer, id(), self.count);
            self.count += 1;
        }
        self.file.write_at(&buffer, self.len)?;
        self.len += buffer.len() as u64;
        self.file.sync()?;
        Ok(buffer.len() as u64)
    }
}

pub(super) fn id() -> Id {
    Id::new("", 0, 0)
}

/// Key and value of a record; `None` where it is none.
fn parts(record: &[u8]) -> Option<(&str, &[u8])> {
    let (&len, rest) = record.split_first()?;
    let (key, value) = rest.split_at_checked(usize::from(len))?;
    Some((std::str::from_utf8(key).ok()?, value))
}

/// # Panics
/// Never for a command id, which is at most 64 bytes long.
fn record(key: &str, value: &[u8]) -> Bytes {
    let len = u8::try_from(key.len()).expect("a journal key is at most 255 bytes long");
    let mut bytes = Vec::with_capacity(1 + key.len() + value.len());
    bytes.push(len);
    bytes.extend_from_slice(key.as_bytes());
    bytes.extend_from_slice(value);
    bytes.into()
}
