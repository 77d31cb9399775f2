//! One file on a disk that loses what was not synced, sector by sector.

use std::{collections::BTreeMap, ops::Range};

use super::Random;

const SECTOR_BYTES: usize = 512;

#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    /// What programs read, and what is on the medium for certain.
    pub(super) cached: Vec<u8>,
    synced: Vec<u8>,
    /// Since the last sync: each sector as each write left it, and the lengths.
    dirty: Vec<(usize, Vec<u8>)>,
    lengths: Vec<usize>,
    pub(super) unreadable: Vec<Range<u64>>,
}

/// What a power cut makes of unsynced sectors: some are kinder than others.
#[derive(Debug)]
pub(super) enum Fate {
    AllKept,
    AllLost,
    EachForItself,
}

impl Fate {
    pub(super) fn draw(random: &mut Random) -> Self {
        match random.below(6) {
            0 => Self::AllKept,
            1 => Self::AllLost,
            _ => Self::EachForItself,
        }
    }
}

impl Content {
    pub(super) fn synced(content: Vec<u8>) -> Self {
        Self { cached: content.clone(), synced: content, ..Self::default() }
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: usize) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len();
        if end > self.cached.len() {
            self.cached.resize(end, 0);
            self.lengths.push(end);
        }
        self.cached[offset..end].copy_from_slice(bytes);
        for sector in offset / SECTOR_BYTES..=(end - 1) / SECTOR_BYTES {
            self.touch(sector);
        }
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.cached.resize(len, 0);
        self.lengths.push(len);
        if !len.is_multiple_of(SECTOR_BYTES) {
            self.touch(len / SECTOR_BYTES);
        }
    }

    fn touch(&mut self, sector: usize) {
        let start = sector * SECTOR_BYTES;
        let end = self.cached.len().min(start + SECTOR_BYTES);
        self.dirty.push((sector, self.cached[start..end].to_vec()));
    }

    pub(super) fn sync(&mut self) {
        for (sector, bytes) in self.dirty.drain(..) {
            place(&mut self.synced, sector, &bytes);
        }
        self.lengths.clear();
        self.synced.resize(self.cached.len(), 0);
    }

    /// An fsync that fails forgets what it could not write.
    pub(super) fn fail_to_sync(&mut self, random: &mut Random) {
        self.synced = self.after_power_cut(&Fate::draw(random), random).synced;
        self.dirty.clear();
        self.lengths.clear();
    }

    /// Reads come from the medium again, but for what is still to be written.
    pub(super) fn forget_cached(&mut self) {
        if self.dirty.is_empty() && self.lengths.is_empty() {
            self.cached.clone_from(&self.synced);
        }
    }

    pub(super) fn after_power_cut(&self, fate: &Fate, random: &mut Random) -> Self {
        let mut left = self.clone();
        match fate {
            _ if self.dirty.is_empty() && self.lengths.is_empty() => {}
            Fate::AllLost => {}
            Fate::AllKept => left.sync(),
            Fate::EachForItself => {
                let mut versions: BTreeMap<usize, Vec<&[u8]>> = BTreeMap::new();
                for (sector, bytes) in &self.dirty {
                    versions.entry(*sector).or_default().push(bytes);
                }
                for (sector, versions) in versions {
                    draw_sector(&mut left.synced, sector, &versions, random);
                }
                left.synced.resize(self.draw_length(random), 0);
            }
        }
        let unreadable = left.unreadable;
        Self { unreadable, ..Self::synced(left.synced) }
    }

    /// The length is written for itself, and between two moments when it grew sector by sector.
    fn draw_length(&self, random: &mut Random) -> usize {
        let before = self.synced.len();
        let at = random.below(self.lengths.len() as u64 + 1) as usize;
        let drawn = if at == 0 { before } else { self.lengths[at - 1] };
        if drawn > before && random.one_in(4) {
            let between = before + random.below((drawn - before) as u64) as usize;
            return (between / SECTOR_BYTES * SECTOR_BYTES).max(before);
        }
        drawn
    }
}

/// One sector after a power cut: as it was, as one of the writes left it, or half and half.
fn draw_sector(content: &mut Vec<u8>, sector: usize, versions: &[&[u8]], random: &mut Random) {
    let old: Vec<u8> =
        content.iter().skip(sector * SECTOR_BYTES).take(SECTOR_BYTES).copied().collect();
    let mut draw = || {
        let at = random.below(versions.len() as u64 + 1) as usize;
        let mut bytes = if at == 0 { old.clone() } else { versions[at - 1].to_vec() };
        bytes.resize(SECTOR_BYTES, 0);
        bytes
    };
    let (mut drawn, other) = (draw(), draw());
    if random.one_in(4) {
        let cut = random.below(SECTOR_BYTES as u64) as usize;
        drawn[cut..].copy_from_slice(&other[cut..]);
    }
    place(content, sector, &drawn);
}

fn place(content: &mut Vec<u8>, sector: usize, bytes: &[u8]) {
    let start = sector * SECTOR_BYTES;
    if content.len() < start + bytes.len() {
        content.resize(start + bytes.len(), 0);
    }
    content[start..start + bytes.len()].copy_from_slice(bytes);
}
