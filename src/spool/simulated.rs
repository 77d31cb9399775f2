//! A disk in memory that keeps the promises which the module above lists, and no other.
//!
//! What was synced stays. Of what was not, a power cut keeps each sector as it was, or as one of
//! the writes to it left it, or torn between two of these, each sector for itself; the length is
//! one of those that the file had since; names go back to some earlier moment, or, for a file
//! system without an ordered journal, each name for itself. A failed fsync leaves the medium as a
//! power cut would, while reads go on to show what was written and the next fsync says that all is
//! well: so does Linux.

mod content;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io,
    ops::Range,
    rc::Rc,
};

use content::{Content, Fate};

use super::{Disk, DiskFile};

/// A disk whose every choice follows from a seed. Clones are the same disk.
#[derive(Debug, Clone)]
pub struct SimulatedDisk(Rc<RefCell<Medium>>);

/// An open file of a [`SimulatedDisk`].
#[derive(Debug)]
pub struct SimulatedFile {
    disk: SimulatedDisk,
    file: Rc<RefCell<Content>>,
    _handle: Rc<()>,
}

/// What was asked of the disk so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Account {
    /// Bytes written to files.
    pub bytes: u64,
    /// Syncs of files and of the directory.
    pub syncs: u64,
}

#[derive(Debug)]
struct Medium {
    random: Random,
    /// What programs see, and what a power cut leaves at the least.
    names: Names,
    synced: Names,
    changes: Vec<NameChange>,
    failing: Option<Failing>,
    killed: bool,
    capacity: Option<u64>,
    read_only: bool,
    account: Account,
    /// Each open file holds one.
    handles: Rc<()>,
}

type Names = BTreeMap<String, Rc<RefCell<Content>>>;

#[derive(Debug)]
struct Failing {
    after: u32,
    times: u32,
}

#[derive(Debug)]
enum NameChange {
    Link(String, Rc<RefCell<Content>>),
    Unlink(String),
    Rename(String, String),
}

impl SimulatedDisk {
    /// An empty one.
    pub fn new(seed: u64) -> Self {
        Self(Rc::new(RefCell::new(Medium {
            random: Random::new(seed),
            names: Names::new(),
            synced: Names::new(),
            changes: Vec::new(),
            failing: None,
            killed: false,
            capacity: None,
            read_only: false,
            account: Account::default(),
            handles: Rc::new(()),
        })))
    }

    /// The power goes, and comes again: what is open is lost, no fault is left.
    pub fn crash(&self) {
        let medium = &mut *self.0.borrow_mut();
        let Medium { random, synced, changes, .. } = medium;
        let in_order = random.one_in(2).then(|| random.below(changes.len() as u64 + 1) as usize);
        let mut lost: BTreeSet<String> = BTreeSet::new();
        for (at, change) in changes.drain(..).enumerate() {
            let survives = match in_order {
                Some(kept) => at < kept,
                None => random.one_in(2) && !change.names().any(|name| lost.contains(name)),
            };
            if survives {
                change.apply(synced);
            } else {
                lost.extend(change.names().map(str::to_owned));
            }
        }
        let fate = Fate::draw(random);
        for file in synced.values_mut() {
            let left = file.borrow().after_power_cut(&fate, random);
            *file = Rc::new(RefCell::new(left));
        }
        medium.names = medium.synced.clone();
        medium.handles = Rc::new(());
        medium.failing = None;
        medium.killed = false;
        medium.capacity = None;
        medium.read_only = false;
    }

    /// From now on `after` operations succeed, then `times` fail.
    pub fn fail(&self, after: u32, times: u32) {
        self.0.borrow_mut().failing = Some(Failing { after, times });
    }

    /// The process is killed after so many operations: the disk takes nothing more of it, and
    /// forgets nothing.
    pub fn kill(&self, after: u32) {
        let mut medium = self.0.borrow_mut();
        medium.failing = Some(Failing { after, times: u32::MAX });
        medium.killed = true;
    }

    /// No operation fails any more.
    pub fn heal(&self) {
        let mut medium = self.0.borrow_mut();
        medium.failing = None;
        medium.killed = false;
        medium.capacity = None;
        medium.read_only = false;
    }

    /// `room` bytes more can be written.
    pub fn leave_room(&self, room: u64) {
        let mut medium = self.0.borrow_mut();
        medium.capacity = Some(medium.used() + room);
    }

    /// Every write is refused until the disk is healed.
    pub fn make_read_only(&self) {
        self.0.borrow_mut().read_only = true;
    }

    /// Reads of a part of a file fail from now on.
    pub fn make_unreadable(&self, name: &str, range: Range<u64>) {
        self.0.borrow().names[name].borrow_mut().unreadable.push(range);
    }

    /// Bits of a synced byte turn over.
    pub fn flip(&self, name: &str, at: u64, bits: u8) {
        let mut content = self.content(name);
        content[at as usize] ^= bits;
        self.put(name, &content);
    }

    /// Puts a file there as if it had been synced long ago.
    pub fn put(&self, name: &str, content: &[u8]) {
        let mut medium = self.0.borrow_mut();
        let file = Rc::new(RefCell::new(Content::synced(content.to_vec())));
        medium.names.insert(name.into(), file.clone());
        medium.synced.insert(name.into(), file);
    }

    /// What a program reads in a file.
    pub fn content(&self, name: &str) -> Vec<u8> {
        self.0.borrow().names[name].borrow().cached.clone()
    }

    /// Every file and its length.
    pub fn files(&self) -> Vec<(String, u64)> {
        let medium = self.0.borrow();
        let length = |file: &Rc<RefCell<Content>>| file.borrow().cached.len() as u64;
        medium.names.iter().map(|(name, file)| (name.clone(), length(file))).collect()
    }

    /// Bytes and syncs since the disk was made.
    pub fn account(&self) -> Account {
        self.0.borrow().account
    }

    /// How many files are open.
    pub fn open_files(&self) -> usize {
        Rc::strong_count(&self.0.borrow().handles) - 1
    }

    /// An operation that changes something: whether it may.
    fn spend(&self) -> io::Result<()> {
        let mut medium = self.0.borrow_mut();
        if medium.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        match &mut medium.failing {
            Some(Failing { after: 0, times: 0 }) | None => Ok(()),
            Some(Failing { after: 0, times }) => {
                *times -= 1;
                Err(io::Error::other("the simulated disk fails"))
            }
            Some(Failing { after, .. }) => {
                *after -= 1;
                Ok(())
            }
        }
    }

    fn change(&self, change: NameChange) {
        let medium = &mut *self.0.borrow_mut();
        change.apply(&mut medium.names);
        medium.changes.push(change);
    }

    fn hand_out(&self, file: Rc<RefCell<Content>>) -> SimulatedFile {
        SimulatedFile { disk: self.clone(), file, _handle: self.0.borrow().handles.clone() }
    }

    fn find(&self, name: &str) -> io::Result<Rc<RefCell<Content>>> {
        let file = self.0.borrow().names.get(name).cloned();
        file.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Medium {
    fn used(&self) -> u64 {
        self.names.values().map(|file| file.borrow().cached.len() as u64).sum()
    }
}

impl NameChange {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Link(name, file) => drop(names.insert(name.clone(), file.clone())),
            Self::Unlink(name) => drop(names.remove(name)),
            Self::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
        }
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let (one, other) = match self {
            Self::Link(name, _) | Self::Unlink(name) => (name, None),
            Self::Rename(from, to) => (from, Some(to)),
        };
        [one].into_iter().chain(other).map(String::as_str)
    }
}

impl Disk for SimulatedDisk {
    type File = SimulatedFile;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.borrow().names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<SimulatedFile> {
        self.spend()?;
        if let Ok(file) = self.find(name) {
            file.borrow_mut().truncate(0);
            return Ok(self.hand_out(file));
        }
        let file = Rc::new(RefCell::new(Content::default()));
        self.change(NameChange::Link(name.into(), file.clone()));
        Ok(self.hand_out(file))
    }

    fn open(&self, name: &str) -> io::Result<SimulatedFile> {
        Ok(self.hand_out(self.find(name)?))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.spend()?;
        self.find(name)?;
        self.change(NameChange::Unlink(name.into()));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.spend()?;
        self.find(from)?;
        self.change(NameChange::Rename(from.into(), to.into()));
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let medium = self.0.borrow();
        Ok(medium.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(medium.used())))
    }

    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let temporary = format!("{name}.new");
        let mut file = self.create(&temporary)?;
        file.write_at(content, 0)?;
        file.sync()?;
        self.rename(&temporary, name)?;
        self.sync_directory()
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.0.borrow_mut().account.syncs += 1;
        self.spend()?;
        let medium = &mut *self.0.borrow_mut();
        medium.changes.clear();
        medium.synced = medium.names.clone();
        Ok(())
    }
}

impl DiskFile for SimulatedFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.file.borrow().cached.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let content = self.file.borrow();
        let from = (offset as usize).min(content.cached.len());
        let len = buffer.len().min(content.cached.len() - from);
        let end = offset + len as u64;
        if content.unreadable.iter().any(|bad| bad.start < end && offset < bad.end) {
            return Err(io::Error::other("the simulated disk can't be read here"));
        }
        buffer[..len].copy_from_slice(&content.cached[from..from + len]);
        Ok(len)
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let spent = self.disk.spend();
        let medium = &mut *self.disk.0.borrow_mut();
        medium.account.bytes += bytes.len() as u64;
        let growth = (offset + bytes.len() as u64).saturating_sub(self.length()?);
        let lacking = match medium.capacity {
            Some(capacity) => (medium.used() + growth).saturating_sub(capacity).min(growth),
            None => 0,
        };
        let mut whole = bytes.len() - lacking as usize;
        if let Err(error) = spent {
            if error.kind() == io::ErrorKind::ReadOnlyFilesystem {
                return Err(error);
            }
            whole = medium.random.below(whole as u64 + 1) as usize;
            self.file.borrow_mut().write(&bytes[..whole], offset as usize);
            return Err(error);
        }
        self.file.borrow_mut().write(&bytes[..whole], offset as usize);
        if lacking > 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.disk.spend()?;
        self.file.borrow_mut().truncate(len as usize);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let spent = self.disk.spend();
        let medium = &mut *self.disk.0.borrow_mut();
        medium.account.syncs += 1;
        match &spent {
            Ok(()) => self.file.borrow_mut().sync(),
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {}
            Err(_) if medium.killed => {}
            Err(_) => self.file.borrow_mut().fail_to_sync(&mut medium.random),
        }
        spent
    }

    fn settle(&mut self) -> io::Result<()> {
        let synced = self.sync();
        self.file.borrow_mut().forget_cached();
        synced
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same seed gives the same run.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The generator of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number of all.
    #[expect(clippy::should_implement_trait, reason = "it never ends, and is no iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// Any number below `end`, and nothing else for an `end` of nothing.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}
