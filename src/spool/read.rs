//! Reading: records in the order of their numbers, and a skip for each that is gone.

use std::io;

use super::{
    Cursor, Disk, Item, READ_ATTEMPTS, READ_BYTES, Segment, Spool,
    segment::{self, Frame, HEADER_BYTES, Id, Scan},
};

impl<D: Disk> Spool<D> {
    /// Reads on from `from`: records and skips without a hole, at least one if there is any, about
    /// `max_bytes` of them.
    ///
    /// # Errors
    /// The medium could not be read; asked again, the third failure makes the segment a `damaged`
    /// skip.
    pub fn read(
        &mut self,
        stream: usize,
        epoch: u64,
        from: u64,
        max_bytes: usize,
    ) -> io::Result<Vec<Item>> {
        let Self { disk, streams, .. } = self;
        let stream = &mut streams[stream];
        let Some(log) = stream.logs.iter_mut().find(|log| log.epoch == epoch) else {
            return Ok(Vec::new());
        };
        let mut from = from.max(log.acked + 1);
        let mut items = Vec::new();
        let mut budget = max_bytes;
        while from < log.next && budget > 0 {
            if let Some(skip) = log.skips.iter().find(|skip| skip.from <= from && from < skip.to) {
                items.push(Item::Skip { from, to: skip.to, reason: skip.reason.clone() });
                from = skip.to;
                continue;
            }
            let limit = log.skips.iter().map(|s| s.from).find(|at| *at > from).unwrap_or(log.next);
            let Some(place) = log.segments.iter().position(|s| s.first <= from && from < s.next)
            else {
                let to = log.segments.iter().map(|s| s.first).find(|first| *first > from);
                let to = to.unwrap_or(log.next).min(limit);
                items.push(Item::Skip { from, to, reason: "damaged".into() });
                from = to;
                continue;
            };
            let segment = &mut log.segments[place];
            let place = Place { stream: &stream.name, ordinal: log.ordinal, epoch, limit };
            match place.read_segment(
                disk,
                segment,
                &mut stream.cursor,
                from,
                &mut budget,
                &mut items,
            ) {
                Ok(reached) => from = reached,
                Err(error) => {
                    stream.cursor = None;
                    segment.failed_reads += 1;
                    if segment.failed_reads < READ_ATTEMPTS {
                        return if items.is_empty() { Err(error) } else { Ok(items) };
                    }
                    let to = segment.next.min(limit);
                    items.push(Item::Skip { from, to, reason: "damaged".into() });
                    from = to;
                }
            }
        }
        Ok(items)
    }
}

/// Which segment is read, and up to where.
struct Place<'a> {
    stream: &'a str,
    ordinal: u32,
    epoch: u64,
    limit: u64,
}

impl Place<'_> {
    fn read_segment<D: Disk>(
        &self,
        disk: &D,
        segment: &Segment,
        cursor: &mut Option<Cursor<D::File>>,
        from: u64,
        budget: &mut usize,
        items: &mut Vec<Item>,
    ) -> io::Result<u64> {
        let (epoch, first) = (self.epoch, segment.first);
        let fits = |c: &Cursor<D::File>| c.epoch == epoch && c.first == first && c.seq <= from;
        let (file, mut offset) = match cursor.take().filter(fits) {
            Some(cursor) => (cursor.file, cursor.offset),
            None => {
                let name = segment::file_name(self.stream, self.ordinal, epoch, first);
                (disk.open(&name)?, HEADER_BYTES as u64)
            }
        };
        let id = Id::new(self.stream, epoch, first);
        let end = segment.next.min(self.limit);
        let mut from = from;
        while from < end && *budget > 0 {
            let mut scan = Scan::load(&file, id, offset, READ_BYTES)?;
            while from < end && *budget > 0 {
                let Some((seq, frame)) = scan.next_frame() else { break };
                let (Frame::Record(_, bytes), true) = (frame, seq >= from) else { continue };
                let seq = seq.min(end);
                if seq > from {
                    items.push(Item::Skip { from, to: seq, reason: "damaged".into() });
                }
                if seq < end {
                    *budget = budget.saturating_sub(bytes.len());
                    items.push(Item::Record { seq, bytes });
                }
                from = (seq + 1).min(end);
            }
            let progress = scan.offset() > offset;
            offset = scan.offset();
            if !progress {
                break;
            }
        }
        if from < end && *budget > 0 {
            items.push(Item::Skip { from, to: end, reason: "damaged".into() });
            from = end;
        }
        *cursor = Some(Cursor { epoch, first, seq: from, offset, file });
        Ok(from)
    }
}
