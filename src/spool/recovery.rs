//! Opening: what the names, headers, positions and tails on the medium amount to.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
};

use super::{
    Disk, DiskFile, EpochLog, Limits, MAX_SPARES, Origin, READ_ATTEMPTS, READ_BYTES, Segment,
    Spare, Spool, Stream, Tail,
    positions::{self, Positions},
    segment::{self, Frame, HEADER_BYTES, Header, Id, Scan},
    tails,
};

/// So many segments behind the last one are looked through for origins, at most: more than the
/// largest group fills.
const MAX_LEARNT_SEGMENTS: usize = 8;

/// Why the spool did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The medium failed, or another process holds the spool.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The numbers of a fresh epoch must never have been given before.
    #[error("the epoch {0:016x} was used before")]
    EpochUsed(u64),
    /// It was left as it is.
    #[error(
        "{file} has format version {version}, newer than this program reads; install the newer fieldgate again"
    )]
    Newer {
        /// Which file.
        file: String,
        /// Its version.
        version: u8,
    },
}

/// What opening found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Segments that hold something.
    pub segments: usize,
    /// Bytes of a torn tail that were cut: a write that a power cut stopped; nothing in it was
    /// acknowledged.
    pub torn_bytes: u64,
    /// What is damaged, each as a sentence's part that names the file.
    pub damage: Vec<String>,
}

pub(super) fn open<D: Disk>(
    disk: D,
    names: &[&str],
    limits: Limits,
    epoch: u64,
) -> Result<(Spool<D>, Report), OpenError> {
    let mut report = Report::default();
    let mut found = Found::look(&disk, &mut report)?;
    if found.logs.keys().any(|key| key.2 == epoch) {
        return Err(OpenError::EpochUsed(epoch));
    }
    let ordinal = found.logs.keys().map(|key| key.1).max().unwrap_or(0) + 1;
    let mut streams: Vec<Stream<D::File>> = names.iter().map(|name| Stream::new(name)).collect();
    let mut unlink = Vec::new();
    while let Some(((name, _, _), mut log)) = found.logs.pop_first() {
        found.recover_log(&disk, &name, &mut log, limits.tail > 0, &mut report)?;
        let gone = |segment: &Segment| {
            let from = segment.first.max(log.acked + 1);
            from >= segment.next
                || log.skips.iter().any(|skip| skip.from <= from && segment.next <= skip.to)
        };
        // A finished epoch stays until it is retired: its end must be on the medium before the hub
        // may forget it.
        log.next = log.next.max(log.acked + 1);
        let (dead, kept): (VecDeque<Segment>, VecDeque<Segment>) =
            log.segments.iter().cloned().partition(|segment| gone(segment));
        unlink.extend(
            dead.iter().map(|s| segment::file_name(&name, log.ordinal, log.epoch, s.first)),
        );
        log.segments = kept;
        report.segments += log.segments.len();
        match streams.iter_mut().find(|stream| stream.name == name) {
            Some(stream) => stream.logs.push_back(log),
            None => {
                let mut stream = Stream::new(&name);
                stream.logs.push_back(log);
                streams.push(stream);
            }
        }
    }
    for stream in &mut streams {
        stream.logs.iter_mut().for_each(|log| log.kept = log.next);
        stream.logs.push_back(EpochLog::new(ordinal, epoch));
    }
    let Found { mut tails, origins, spares, next_spare, mut leftovers, .. } = found;
    tails::extend(&mut tails, origins.into_iter(), limits.tail);
    let mut spool = Spool {
        disk,
        limits,
        streams,
        bytes: 0,
        spares,
        next_spare,
        tails,
        written_bytes: 0,
        syncs: 0,
        evicted: Vec::new(),
        unwanted: Vec::new(),
        has_begun: false,
    };
    let smallest = spool.smallest_segment();
    for segment in spool.streams.iter_mut().flat_map(|s| &mut s.logs).flat_map(|l| &mut l.segments)
    {
        segment.file_bytes = segment.file_bytes.max(smallest);
        spool.bytes += segment.file_bytes;
    }
    // How far an epoch is trimmed may stand in nothing but the segments that go for it.
    if !unlink.is_empty() && spool.save_positions().is_ok() {
        leftovers.extend(unlink);
    }
    // Opening needs no free space and no writable medium: what can't be deleted now is met again at
    // the next start.
    for name in &leftovers {
        if let Err(error) = spool.disk.remove(name) {
            tracing::debug!(%error, file = name, "a finished segment could not be deleted");
        }
    }
    Ok((spool, report))
}

/// Everything that was found, in the order of stream, ordinal, epoch.
#[derive(Default)]
struct Found {
    logs: BTreeMap<(String, u32, u64), EpochLog>,
    leftovers: Vec<String>,
    spares: Vec<Spare>,
    next_spare: u32,
    tails: BTreeMap<u64, Tail>,
    /// From the frames at the ends of the epochs.
    origins: Vec<Origin>,
}

impl Found {
    fn look<D: Disk>(disk: &D, report: &mut Report) -> Result<Self, OpenError> {
        let mut found = Self::default();
        let mut files = disk.list()?;
        files.sort();
        if files.iter().any(|name| name == positions::FILE) {
            match read_positions(disk)? {
                Positions::Whole { logs, tails } => {
                    found.tails = tails;
                    for (stream, log) in logs {
                        found.logs.insert((stream, log.ordinal, log.epoch), log);
                    }
                }
                Positions::Damaged => {
                    report.damage.push(format!("{} is unreadable", positions::FILE));
                }
                Positions::Newer(version) => {
                    return Err(OpenError::Newer { file: positions::FILE.into(), version });
                }
            }
        }
        let mut unbegun: Option<String> = None;
        for name in files {
            if name.ends_with(".new") {
                found.leftovers.push(name);
                continue;
            }
            if let Some(number) = name.strip_prefix(segment::SPARE) {
                found.keep_spare(disk, number);
                continue;
            }
            let Some((stream, ordinal, epoch, first)) = segment::parse_name(&name) else {
                continue;
            };
            let file = disk.open(&name)?;
            let file_bytes = file.length()?;
            // What can't be read is damaged: it must not keep the rest from being sent.
            let header = segment::read_header(&file, Id::new(stream, epoch, first));
            let header = header.unwrap_or(Header::Damaged);
            if file_bytes < HEADER_BYTES as u64 || header == Header::Unbegun {
                // The header is synced before anything in the file counts: the last one may never
                // have been begun.
                found.leftovers.push(name.clone());
                unbegun = Some(name);
                continue;
            }
            let key = (stream.to_owned(), ordinal, epoch);
            let is_before = |before: &String| {
                segment::parse_name(before)
                    .is_some_and(|b| (b.0, b.1, b.2) == (stream, ordinal, epoch))
            };
            if let Some(before) = unbegun.take().filter(is_before) {
                report.damage.push(format!("{before} has lost its content"));
            }
            let log = found.logs.entry(key).or_insert_with(|| EpochLog::new(ordinal, epoch));
            match header {
                Header::Good { acked, .. } => log.acked = log.acked.max(acked),
                Header::Newer(version) => return Err(OpenError::Newer { file: name, version }),
                Header::Damaged | Header::Unbegun => {
                    report.damage.push(format!("{name} has a damaged header"));
                }
            }
            // The names sort by number, so that the segment before ends where this one begins.
            if let Some(before) = log.segments.back_mut() {
                before.next = first;
            }
            let (next, bytes) = (first, file_bytes);
            log.segments.push_back(Segment { first, next, bytes, file_bytes, failed_reads: 0 });
        }
        Ok(found)
    }

    fn keep_spare<D: Disk>(&mut self, disk: &D, number: &str) {
        let name = format!("{}{number}", segment::SPARE);
        let bytes = disk.open(&name).and_then(|file| file.length());
        match (u32::from_str_radix(number, 16), bytes) {
            (Ok(number), Ok(bytes)) if (self.spares.len() as u64) < MAX_SPARES => {
                self.next_spare = self.next_spare.max(number.wrapping_add(1));
                self.spares.push(Spare { name, bytes });
            }
            _ => self.leftovers.push(name),
        }
    }
}

fn read_positions<D: Disk>(disk: &D) -> io::Result<Positions> {
    let file = disk.open(positions::FILE)?;
    let mut bytes = vec![0; usize::try_from(file.length()?).unwrap_or(0)];
    let filled = file.read_at(&mut bytes, 0)?;
    Ok(std::str::from_utf8(&bytes[..filled]).map_or(Positions::Damaged, positions::read))
}

/// A medium that fails once may not fail the next time.
fn load_patiently(file: &impl DiskFile, id: Id, offset: u64) -> io::Result<Scan> {
    let mut loaded = Scan::load(file, id, offset, READ_BYTES);
    for _ in 1..READ_ATTEMPTS {
        if loaded.is_ok() {
            break;
        }
        loaded = Scan::load(file, id, offset, READ_BYTES);
    }
    loaded
}

impl Found {
    /// Scans the last segment: cuts a torn tail, turns damage before good frames into a skip.
    fn recover_log<D: Disk>(
        &mut self,
        disk: &D,
        stream: &str,
        log: &mut EpochLog,
        learns: bool,
        report: &mut Report,
    ) -> Result<(), OpenError> {
        let Some(last) = log.segments.back() else { return Ok(()) };
        let first = last.first;
        let is_newest = self.logs.keys().next().is_none_or(|key| key.0 != stream);
        let before = log.segments.iter().rev().skip(1).take(MAX_LEARNT_SEGMENTS);
        let untold = before.take_while(|segment| learns && is_newest && segment.next > log.next);
        for segment in untold {
            self.learn_origins(disk, stream, log, segment)?;
        }
        // What `positions` has seen was on the medium: if it is gone now, it is damage, not a torn
        // tail.
        log.next = log.next.max(first);
        let name = segment::file_name(stream, log.ordinal, log.epoch, first);
        let id = Id::new(stream, log.epoch, first);
        let mut file = disk.open(&name)?;
        // A medium that takes no write still opens.
        if let Err(error) = file.settle() {
            tracing::debug!(%error, file = name, "what was written last may not be on the medium");
        }
        let mut reached = first;
        let mut offset = HEADER_BYTES as u64;
        let mut good = offset;
        let mut is_cut_short = false;
        loop {
            let mut scan = match load_patiently(&file, id, offset) {
                Ok(scan) => scan,
                Err(error) => {
                    let damage = format!("{name} can't be read from byte {offset} on: {error}");
                    report.damage.push(damage);
                    is_cut_short = true;
                    break;
                }
            };
            let mut damaged = false;
            while let Some((seq, frame)) = scan.next_frame() {
                damaged |= scan.damaged();
                good = scan.good_end();
                let origin = match frame {
                    Frame::Mark { acked } => {
                        log.acked = log.acked.max(acked);
                        continue;
                    }
                    Frame::Record(origin, _) => origin,
                };
                self.origins.extend(origin);
                let from = reached.max(log.acked + 1);
                if from < seq {
                    log.add_skip(from, seq, "damaged");
                }
                reached = reached.max(seq + 1);
            }
            if damaged {
                report.damage.push(format!("{name} is damaged before byte {good}"));
            }
            if scan.offset() == offset {
                break;
            }
            offset = scan.offset();
        }
        if is_cut_short {
            // How many follow can't be known; that there is a loss must be.
            log.add_skip(reached, reached + 1, "damaged");
            reached += 1;
        }
        log.next = log.next.max(reached);
        let len = file.length()?;
        let stale_bytes = match segment::read_header(&file, id) {
            Ok(Header::Good { stale_bytes, .. }) => stale_bytes,
            _ => 0,
        };
        let end = if is_cut_short { len } else { good.max(stale_bytes) };
        report.torn_bytes += len.saturating_sub(end);
        // A medium that takes no write still opens: the tail is left alone, and what reads as good
        // is still good.
        if len <= end || file.truncate(end).is_ok() {
            file.sync().ok();
        }
        let last = log.segments.back_mut().expect("looked at above");
        last.bytes = good.min(len);
        last.next = reached;
        Ok(())
    }

    /// The last segments may have been begun by one group, and the end have come before the
    /// positions told of it.
    fn learn_origins<D: Disk>(
        &mut self,
        disk: &D,
        stream: &str,
        log: &EpochLog,
        segment: &Segment,
    ) -> io::Result<()> {
        let Segment { first, next, .. } = *segment;
        let file = disk.open(&segment::file_name(stream, log.ordinal, log.epoch, first))?;
        let mut offset = HEADER_BYTES as u64;
        loop {
            // What can't be read is not known, and kept if it comes again.
            let id = Id::new(stream, log.epoch, first);
            let Ok(mut scan) = Scan::load(&file, id, offset, READ_BYTES) else { return Ok(()) };
            while let Some((seq, frame)) = scan.next_frame() {
                match frame {
                    // What a failed append left behind its good end is nowhere kept.
                    Frame::Record(Some(origin), _) if seq < next => self.origins.push(origin),
                    _ => {}
                }
            }
            if scan.offset() == offset {
                return Ok(());
            }
            offset = scan.offset();
        }
    }
}
