//! Writing: room is made, a group is written, and synced as a whole.

use std::io;

use super::{
    Active, Appended, Disk, DiskFile as _, Entry, Segment, Spool,
    segment::{self, Frame, Id, SPAN},
    tails,
};
use crate::planted::{Bug, planted};

impl<D: Disk> Spool<D> {
    /// Appends a group and syncs it. When it returns `Ok`, every entry survives a power cut.
    ///
    /// Older segments are evicted first if the group doesn't fit.
    ///
    /// # Errors
    /// Nothing of the group counts as kept; the files it went to are not written to again. The
    /// caller still has the entries and may append them anew.
    pub fn append(&mut self, entries: &[Entry]) -> io::Result<Appended> {
        self.make_room(entries)?;
        let touched = self.write_group(entries);
        let synced = match touched {
            Ok(streams) => self.sync_streams(&streams),
            Err(error) => Err(error),
        };
        if let Err(error) = synced {
            self.distrust(entries);
            return Err(error);
        }
        for stream in &mut self.streams {
            let log = stream.newest_mut();
            log.kept = log.next;
        }
        let origins = entries.iter().filter_map(|entry| entry.origin);
        tails::extend(&mut self.tails, origins, self.limits.tail);
        // What a session has in older segments is found again without reading them.
        if std::mem::take(&mut self.has_begun) && !self.tails.is_empty() {
            self.save_positions().inspect_err(|error| tracing::debug!(%error, "positions")).ok();
        }
        Ok(Appended { evicted: std::mem::take(&mut self.evicted), pressed: self.is_pressed() })
    }

    fn write_group(&mut self, entries: &[Entry]) -> io::Result<Vec<usize>> {
        let mut touched = Vec::new();
        for index in 0..self.streams.len() {
            let group: Vec<&Entry> = entries.iter().filter(|entry| entry.stream == index).collect();
            let mut rest = group.as_slice();
            while let Some(first) = rest.first() {
                self.ensure_active(index, first.seq)?;
                let room = self.limits.segment_bytes;
                let smallest = self.smallest_segment();
                let stream = &mut self.streams[index];
                let log = stream.logs.back_mut().expect("a stream has a newest epoch from open on");
                let active = stream.active.as_mut().expect("made above");
                let id = Id::new(&stream.name, log.epoch, active.first);
                let mut buffer = Vec::new();
                if log.acked > active.marked {
                    let mark = Frame::Mark { acked: log.acked };
                    mark.put(&mut buffer, id, first.seq);
                    active.marked = log.acked;
                }
                let mut taken = 0;
                for entry in rest {
                    let full = active.len + buffer.len() as u64 >= room;
                    if taken > 0 && (full || entry.seq - active.first >= SPAN) {
                        break;
                    }
                    let frame = Frame::Record(entry.origin, entry.bytes.clone());
                    frame.put(&mut buffer, id, entry.seq);
                    log.next = entry.seq + 1;
                    taken += 1;
                }
                active.file.write_at(&buffer, active.len)?;
                active.len += buffer.len() as u64;
                self.written_bytes += buffer.len() as u64;
                let segment = log.segments.back_mut().expect("the active segment is the last");
                segment.bytes = active.len;
                segment.next = log.next;
                let file_bytes = segment.file_bytes.max(active.len).max(smallest);
                self.bytes += file_bytes - segment.file_bytes;
                segment.file_bytes = file_bytes;
                rest = &rest[taken..];
                if !rest.is_empty() {
                    self.sync_streams(&[index])?;
                    self.streams[index].active = None;
                }
            }
            if !group.is_empty() {
                touched.push(index);
            }
        }
        Ok(touched)
    }

    /// Seals a full segment and begins the next, in a file that was used before if there is one;
    /// the name is on the medium before anything in it counts.
    fn ensure_active(&mut self, index: usize, first: u64) -> io::Result<()> {
        let room = self.limits.segment_bytes;
        let full = |active: &Active<_>| active.len >= room || first - active.first >= SPAN;
        if self.streams[index].active.as_ref().is_some_and(|active| !full(active)) {
            return Ok(());
        }
        self.streams[index].active = None;
        self.remove_unwanted()?;
        let spare = self.take_spare(index)?;
        let smallest = self.smallest_segment();
        let Self { disk, streams, .. } = self;
        let stream = &mut streams[index];
        let log = stream.logs.back_mut().expect("a stream has a newest epoch from open on");
        let name = segment::file_name(&stream.name, log.ordinal, log.epoch, first);
        let id = Id::new(&stream.name, log.epoch, first);
        let begin = || -> io::Result<_> {
            let (mut file, stale_bytes) = match spare {
                Some(spare) => {
                    disk.rename(&spare, &name)?;
                    let file = disk.open(&name)?;
                    let len = file.length()?;
                    (file, len)
                }
                None => (disk.create(&name)?, 0),
            };
            // The name first: a header that is another segment's tells that this one is not begun.
            disk.sync_directory()?;
            file.write_at(&segment::header(id, log.acked, stale_bytes), 0)?;
            file.sync()?;
            Ok((file, stale_bytes))
        };
        let (file, stale_bytes) = match begin() {
            Ok(begun) => begun,
            Err(error) => {
                self.unwanted.push(name);
                self.remove_unwanted().ok();
                return Err(error);
            }
        };
        let len = segment::HEADER_BYTES as u64;
        if let Some(before) = log.segments.back_mut() {
            before.next = before.next.min(first);
        }
        let file_bytes = stale_bytes.max(smallest);
        log.segments.push_back(Segment {
            first,
            next: first,
            bytes: len,
            file_bytes,
            failed_reads: 0,
        });
        stream.active = Some(Active { file, first, len, marked: log.acked });
        self.bytes += file_bytes;
        self.has_begun = true;
        self.written_bytes += len;
        self.syncs += 2;
        Ok(())
    }

    fn sync_streams(&mut self, touched: &[usize]) -> io::Result<()> {
        let touched = if planted(Bug::SyncLeftOut) { &[] } else { touched };
        for index in touched {
            let stream = &mut self.streams[*index];
            let active = stream.active.as_mut().expect("a touched stream has an active segment");
            self.syncs += 1;
            active.file.sync()?;
        }
        Ok(())
    }

    /// After a failed write or fsync: nothing of the group counts, and its files are left alone.
    /// What of it did reach the medium does no harm: the caller appends the same records under
    /// the same numbers again.
    fn distrust(&mut self, entries: &[Entry]) {
        for index in 0..self.streams.len() {
            if !entries.iter().any(|entry| entry.stream == index) {
                continue;
            }
            let Self { streams, bytes, unwanted, .. } = self;
            let stream = &mut streams[index];
            stream.active = None;
            stream.cursor = None;
            let log = stream.logs.back_mut().expect("a stream has a newest epoch from open on");
            log.next = log.kept;
            while let Some(last) =
                log.segments.back().filter(|last| last.first >= log.kept).cloned()
            {
                log.segments.pop_back();
                *bytes -= last.file_bytes;
                let name = segment::file_name(&stream.name, log.ordinal, log.epoch, last.first);
                unwanted.push(name);
            }
            if let Some(last) = log.segments.back_mut() {
                last.next = last.next.min(log.kept);
            }
        }
        self.remove_unwanted().ok();
    }

    /// Removes what failed appends have left. Nothing is appended before that is done: by its name
    /// such a file would stand, at the next start, before records that were kept since.
    fn remove_unwanted(&mut self) -> io::Result<()> {
        while let Some(name) = self.unwanted.last() {
            match self.disk.remove(name) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => self.unwanted.pop(),
            };
        }
        Ok(())
    }
}

impl Entry {
    pub(super) fn frame_bytes(&self) -> u64 {
        (segment::FRAME_BYTES + self.bytes.len()) as u64
    }
}
