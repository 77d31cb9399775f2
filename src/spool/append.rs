//! Writing: room is made, a group is written, and synced as a whole.

use std::io;

use super::{
    Active, Disk, DiskFile as _, EVENTS_SHARE, Entry, Evicted, Segment, Spool,
    segment::{self, Frame, HEADER_BYTES},
};

impl<D: Disk> Spool<D> {
    /// Appends a group and syncs it. When it returns `Ok`, every entry survives a power cut.
    ///
    /// Older segments are evicted first if the group doesn't fit in `max_bytes`; it says what went
    /// since the last success.
    ///
    /// # Errors
    /// Nothing of the group counts as kept; the files it went to are not written to again. The
    /// caller still has the entries and may append them anew.
    pub fn append(&mut self, entries: &[Entry]) -> io::Result<Vec<Evicted>> {
        self.make_room(entries)?;
        let touched = self.write_group(entries);
        let synced = match touched {
            Ok(streams) => self.sync_streams(&streams),
            Err(error) => Err(error),
        };
        match synced {
            Ok(()) => {
                for log in self.streams.iter_mut().filter_map(|stream| stream.logs.back_mut()) {
                    log.kept = log.next;
                }
                Ok(std::mem::take(&mut self.evicted))
            }
            Err(error) => {
                self.distrust(entries);
                Err(error)
            }
        }
    }

    /// Evicts, oldest first from the last stream forward, until the group fits.
    fn make_room(&mut self, entries: &[Entry]) -> io::Result<()> {
        for events in [true, false] {
            let wanted: u64 =
                entries.iter().filter(|e| !events || e.stream == 0).map(Entry::frame_bytes).sum();
            if wanted == 0 {
                continue;
            }
            loop {
                let (held, limit) = if events {
                    (self.stream_bytes(0), self.limits.max_bytes / EVENTS_SHARE)
                } else {
                    (self.bytes, self.limits.max_bytes)
                };
                if held + wanted + (HEADER_BYTES * 2) as u64 <= limit {
                    break;
                }
                let victim = if events {
                    (held > 0).then_some(0)
                } else {
                    (0..self.streams.len()).rev().find(|index| self.stream_bytes(*index) > 0)
                };
                let Some(victim) = victim else { break };
                self.evict_oldest(victim)?;
            }
        }
        Ok(())
    }

    fn stream_bytes(&self, stream: usize) -> u64 {
        self.streams[stream].logs.iter().flat_map(|log| &log.segments).map(|s| s.bytes).sum()
    }

    /// The skip is on the medium before the segment goes: a crash between leaves an announced
    /// eviction, which the next start completes.
    fn evict_oldest(&mut self, index: usize) -> io::Result<()> {
        let place = self.streams[index].logs.iter().position(|log| !log.segments.is_empty());
        let Some(place) = place else { return Ok(()) };
        let log = &mut self.streams[index].logs[place];
        let (epoch, before) = (log.epoch, log.skips.clone());
        let from = log.segments[0].first.max(log.acked + 1);
        let records = log.add_skip(from, log.segments[0].next, "evicted");
        if let Err(error) = self.save_positions() {
            self.streams[index].logs[place].skips = before;
            return Err(error);
        }
        self.unlink_oldest(index, epoch);
        if records > 0 {
            self.evicted.push(Evicted { stream: index, epoch, records });
        }
        Ok(())
    }

    fn write_group(&mut self, entries: &[Entry]) -> io::Result<Vec<usize>> {
        let mut touched = Vec::new();
        for index in 0..self.streams.len() {
            let group: Vec<&Entry> = entries.iter().filter(|entry| entry.stream == index).collect();
            let mut rest = group.as_slice();
            while let Some(first) = rest.first() {
                self.ensure_active(index, first.seq)?;
                let room = self.limits.segment_bytes;
                let stream = &mut self.streams[index];
                let log =
                    stream.logs.back_mut().expect("the current epoch's log exists since open");
                let active = stream.active.as_mut().expect("made above");
                let mut buffer = Vec::new();
                if log.acked > active.marked {
                    let mark = Frame::Mark { acked: log.acked };
                    mark.put(&mut buffer, log.epoch, first.seq, active.first);
                    active.marked = log.acked;
                }
                let mut taken = 0;
                for entry in rest {
                    if taken > 0 && active.len + buffer.len() as u64 >= room {
                        break;
                    }
                    let frame = Frame::Record(entry.bytes.clone());
                    frame.put(&mut buffer, log.epoch, entry.seq, active.first);
                    log.next = entry.seq + 1;
                    taken += 1;
                }
                active.file.write_at(&buffer, active.len)?;
                active.len += buffer.len() as u64;
                self.bytes += buffer.len() as u64;
                self.written_bytes += buffer.len() as u64;
                let segment = log.segments.back_mut().expect("the active segment is the last");
                segment.bytes = active.len;
                segment.next = log.next;
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

    /// Seals a full segment and begins the next; the name is on the medium before anything in it
    /// counts.
    fn ensure_active(&mut self, index: usize, first: u64) -> io::Result<()> {
        let Self { disk, streams, limits, ordinal, .. } = self;
        let stream = &mut streams[index];
        if stream.active.as_ref().is_some_and(|active| active.len >= limits.segment_bytes) {
            stream.active = None;
        }
        if stream.active.is_some() {
            return Ok(());
        }
        let log = stream.logs.back_mut().expect("the current epoch's log exists since open");
        let name = segment::file_name(&stream.name, *ordinal, log.epoch, first);
        let header = segment::header(log.epoch, first, log.acked);
        let begun = disk.create(&name).and_then(|mut file| {
            file.write_at(&header, 0)?;
            file.sync()?;
            disk.sync_directory()?;
            Ok(file)
        });
        let file = begun.inspect_err(|_| drop(disk.remove(&name)))?;
        let len = header.len() as u64;
        if let Some(before) = log.segments.back_mut() {
            before.next = before.next.min(first);
        }
        log.segments.retain(|segment| segment.first != first);
        log.segments.push_back(Segment { first, next: first, bytes: len, failed_reads: 0 });
        stream.active = Some(Active { file, first, len, marked: log.acked });
        self.bytes += len;
        self.written_bytes += len;
        self.syncs += 2;
        Ok(())
    }

    fn sync_streams(&mut self, touched: &[usize]) -> io::Result<()> {
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
            let Self { disk, streams, bytes, .. } = self;
            let stream = &mut streams[index];
            stream.active = None;
            stream.cursor = None;
            let log = stream.logs.back_mut().expect("the current epoch's log exists since open");
            log.next = log.kept;
            while let Some(last) =
                log.segments.back().filter(|last| last.first >= log.kept).cloned()
            {
                log.segments.pop_back();
                *bytes -= last.bytes;
                let name = segment::file_name(&stream.name, log.ordinal, log.epoch, last.first);
                // If it stays, the next segment of this number replaces it, or the next start
                // passes over it.
                drop(disk.remove(&name));
            }
            if let Some(last) = log.segments.back_mut() {
                last.next = last.next.min(log.kept);
            }
        }
    }
}

impl Entry {
    pub(super) fn frame_bytes(&self) -> u64 {
        (segment::FRAME_BYTES + self.bytes.len()) as u64
    }
}
