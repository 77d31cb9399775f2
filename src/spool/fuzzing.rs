//! Any bytes as a segment: what must hold whatever they are.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
    ops::ControlFlow,
    rc::Rc,
};

use bytes::Bytes;

use super::{
    Disk, DiskFile, Entry, Item, Limits, OpenError, Origin, Spool,
    segment::{self, FRAME_BYTES, Frame, HEADER_BYTES, Id, ORIGIN_BYTES},
    survey::{Sight, Survey},
};

const LIMITS: Limits =
    Limits { max_bytes: 1 << 30, segment_bytes: 1 << 20, min_free_bytes: 0, tail: 8 };
const STREAMS: [&str; 2] = ["events", "telemetry"];
const TELEMETRY: usize = 1;
const EPOCH: u64 = 7;

/// How often the bytes may be read in all, by a survey, at opening and while reading; and how much
/// beside.
const READS: u64 = 16;
const READ_BESIDE_BYTES: u64 = 16 << 20;

/// Opens a spool whose only segment is `bytes`, and reads all of it.
///
/// # Panics
/// When something is read that no sound frame holds, or twice, or out of order, or not accounted
/// for; when a survey sees something else; when the bytes are read over and over.
pub fn segment(bytes: &[u8]) {
    let disk = MemoryDisk::default();
    let name = segment::file_name(STREAMS[TELEMETRY], 1, EPOCH, 1);
    disk.files.borrow_mut().insert(name, Rc::new(RefCell::new(bytes.to_vec())));
    let surveyed = match surveyed(disk.clone()) {
        Ok(items) => items,
        Err(OpenError::Newer { .. }) => return,
        Err(error) => panic!("a survey fails: {error}"),
    };
    let opened = Spool::open(disk.clone(), &STREAMS, LIMITS, EPOCH + 1);
    let (mut spool, _) = opened.unwrap_or_else(|error| panic!("it does not open: {error}"));
    let mut items = Vec::new();
    let held = spool.held().into_iter().find(|range| range.epoch == EPOCH);
    if let Some(range) = held {
        let mut at = range.acked + 1;
        while at < range.next {
            let read = spool.read(TELEMETRY, EPOCH, at, 64 * 1024);
            let read = read.expect("this disk fails nobody");
            assert!(!read.is_empty(), "nothing from {at} on, of {range:?}");
            for item in read {
                let (from, to) = span(&item);
                assert!(from == at && to > from, "{from} to {to} at {at}");
                at = to;
                items.push(item);
            }
        }
    }
    all_are_in(bytes, &items);
    assert_eq!(joined(surveyed), joined(items), "a survey and the spool differ");
    let (read, limit) = (disk.read.get(), READS * bytes.len() as u64 + READ_BESIDE_BYTES);
    assert!(read <= limit, "{read} bytes were read of {}", bytes.len());
}

fn span(item: &Item) -> (u64, u64) {
    match item {
        Item::Record { seq, .. } => (*seq, seq + 1),
        Item::Skip { from, to, .. } => (*from, *to),
    }
}

fn surveyed(disk: MemoryDisk) -> Result<Vec<Item>, OpenError> {
    let survey = Survey::look(disk)?;
    let mut items = Vec::new();
    for epoch in &survey.epochs {
        let walked = survey.walk(epoch, |sight| {
            match sight {
                Sight::Record { seq, bytes } => items.push(Item::Record { seq, bytes }),
                Sight::Skip(skip) => {
                    let (from, to, reason) = (skip.from, skip.to, skip.reason);
                    items.push(Item::Skip { from, to, reason });
                }
                Sight::Damage { .. } | Sight::Tail { .. } => {}
                Sight::PassedOver { .. } => panic!("nobody changes this disk"),
            }
            ControlFlow::<()>::Continue(())
        });
        assert_eq!(walked, ControlFlow::Continue(()));
    }
    Ok(items)
}

/// Neighbouring skips as one.
fn joined(items: Vec<Item>) -> Vec<Item> {
    let mut joined: Vec<Item> = Vec::new();
    for item in items {
        match (joined.last_mut(), &item) {
            (Some(Item::Skip { to, .. }), Item::Skip { from, to: end, .. }) if to == from => {
                *to = *end;
            }
            _ => joined.push(item),
        }
    }
    joined
}

/// Each record stands in the file, behind the one before, as it would have been written: found
/// without the reader that is tried here.
fn all_are_in(file: &[u8], items: &[Item]) {
    let id = Id::new(STREAMS[TELEMETRY], EPOCH, 1);
    let mut at = HEADER_BYTES.min(file.len());
    for item in items {
        let Item::Record { seq, bytes } = item else { continue };
        let found = (at..file.len()).find_map(|at| {
            let frame = frame_at(&file[at..], bytes)?;
            let mut written = Vec::new();
            frame.put(&mut written, id, *seq);
            file[at..].starts_with(&written).then_some(at + written.len())
        });
        at = found.unwrap_or_else(|| panic!("record {seq} is in no sound frame"));
    }
}

/// The frame that would hold `bytes` here.
fn frame_at(rest: &[u8], bytes: &Bytes) -> Option<Frame> {
    let body = rest.get(FRAME_BYTES..)?;
    let origin = match body_bytes(rest).checked_sub(bytes.len())? {
        0 => None,
        ORIGIN_BYTES => {
            let part = |at: usize, len: usize| body.get(at..at + len);
            Some(Origin {
                session: u64::from_le_bytes(part(0, 8)?.try_into().ok()?),
                order: u32::from_le_bytes(part(8, 4)?.try_into().ok()?),
                packet_id: u16::from_le_bytes(part(12, 2)?.try_into().ok()?),
                digest: u32::from_le_bytes(part(14, 4)?.try_into().ok()?),
            })
        }
        _ => return None,
    };
    Some(Frame::Record(origin, bytes.clone()))
}

fn body_bytes(rest: &[u8]) -> usize {
    let head = u32::from_le_bytes(rest[..4].try_into().expect("four bytes"));
    head as usize & ((1 << 28) - 1)
}

/// Sound segments to begin with: plain, with origins and marks, and one in a file that was used
/// before.
pub fn segments() -> Vec<Vec<u8>> {
    let plain = written(9, false);
    let marked = written(18, true);
    let id = Id::new(STREAMS[TELEMETRY], EPOCH, 1);
    let mut used_again = segment::header(id, 0, marked.len() as u64);
    for seq in 1..5 {
        Frame::Record(None, body(seq)).put(&mut used_again, id, seq);
    }
    used_again.extend_from_slice(&marked[used_again.len()..]);
    vec![plain, marked, used_again]
}

fn body(seq: u64) -> Bytes {
    vec![seq as u8; 1 + (seq * 7 % 40) as usize].into()
}

fn written(records: u64, marked: bool) -> Vec<u8> {
    let disk = MemoryDisk::default();
    let opened = Spool::open(disk.clone(), &STREAMS, LIMITS, EPOCH);
    let (mut spool, _) = opened.expect("an empty disk opens");
    for seq in 1..=records {
        let origin = Origin { session: 1, order: seq as u32, packet_id: seq as u16, digest: 9 };
        let origin = Some(origin).filter(|_| marked && seq % 3 == 0);
        let entry = Entry { stream: TELEMETRY, seq, bytes: body(seq), origin };
        spool.append(&[entry]).expect("this disk fails nobody");
        if marked && seq % 6 == 0 {
            spool.trim(TELEMETRY, EPOCH, seq - 3).expect("this disk fails nobody");
        }
    }
    let files = disk.files.borrow();
    let file = files.iter().find(|(name, _)| name.ends_with(".seg")).expect("one segment").1;
    file.borrow().clone()
}

/// A disk in memory that counts what is read.
#[derive(Debug, Clone, Default)]
struct MemoryDisk {
    files: Rc<RefCell<BTreeMap<String, Content>>>,
    read: Rc<Cell<u64>>,
}

type Content = Rc<RefCell<Vec<u8>>>;

#[derive(Debug)]
struct MemoryFile {
    content: Content,
    read: Rc<Cell<u64>>,
}

impl MemoryDisk {
    fn file(&self, content: &Content) -> MemoryFile {
        MemoryFile { content: content.clone(), read: self.read.clone() }
    }
}

impl Disk for MemoryDisk {
    type File = MemoryFile;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files.borrow().keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<MemoryFile> {
        let content = Content::default();
        self.files.borrow_mut().insert(name.into(), content.clone());
        Ok(self.file(&content))
    }

    fn open(&self, name: &str) -> io::Result<MemoryFile> {
        let files = self.files.borrow();
        Ok(self.file(files.get(name).ok_or(io::ErrorKind::NotFound)?))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let removed = self.files.borrow_mut().remove(name);
        removed.map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.files.borrow_mut();
        let content = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.into(), content);
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.create(name)?.write_at(content, 0)
    }

    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for MemoryFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.content.borrow().len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let content = self.content.borrow();
        let rest = content.get(offset as usize..).unwrap_or_default();
        let filled = rest.len().min(buffer.len());
        buffer[..filled].copy_from_slice(&rest[..filled]);
        self.read.set(self.read.get() + filled as u64);
        Ok(filled)
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut content = self.content.borrow_mut();
        let end = offset as usize + bytes.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.content.borrow_mut().resize(len as usize, 0);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn settle(&mut self) -> io::Result<()> {
        Ok(())
    }
}
