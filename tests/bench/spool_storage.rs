//! The spool by itself: appends in groups, a backlog read back, and the opening of one.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use fieldgate::spool::{DirectoryDisk, Entry, Item, Limits, Spool};

use crate::{
    meter,
    spool_figures::{Figures, NO_PEERS, Peers, figure},
    spool_medium::Medium,
};

/// The stream that is measured; `events` is before it, as in a gateway.
const STREAMS: [&str; 2] = ["events", "telemetry"];
const TELEMETRY: usize = 1;

/// The size of a record: what other stores were measured with.
const RECORD_BYTES: usize = 300;

/// Larger than any backlog of the benchmark: nothing is evicted.
pub(crate) const MAX_BYTES: u64 = 2 << 30;

/// What a gateway takes for a spool of that size, and reads ahead of its link.
const SEGMENT_BYTES: u64 = 4 << 20;
const READ_BYTES: usize = 256 * 1024;

/// Records of a full segment, and of a group that fills a backlog.
const SEGMENT_RECORDS: u64 = SEGMENT_BYTES / (RECORD_BYTES as u64 + 12) + 1;
const FILL_GROUP: u64 = 3_000;

/// One group size: how many records show it, and what other stores were measured to need.
struct Group {
    size: u64,
    records: u64,
    goal: &'static str,
    written: Peers,
    cpu: Peers,
}

const GROUPS: [Group; 4] = [
    Group {
        size: 1,
        records: 4_000,
        goal: "",
        written: [Some(34.0), Some(94.0), Some(84.0)],
        cpu: [Some(2.4), Some(8.5), Some(5.5)],
    },
    Group {
        size: 10,
        records: 20_000,
        goal: "",
        written: [Some(4.1), Some(10.4), Some(14.4)],
        cpu: NO_PEERS,
    },
    Group {
        size: 100,
        records: 100_000,
        goal: "",
        written: [Some(1.28), Some(2.0), Some(3.5)],
        cpu: [Some(0.12), Some(0.30), Some(0.44)],
    },
    Group {
        size: 1_000,
        records: 200_000,
        goal: "≤ 1.15",
        written: [Some(1.06), Some(1.15), Some(2.6)],
        cpu: NO_PEERS,
    },
];

/// Backlogs whose opening is measured.
const BACKLOGS: [(&str, u64); 3] = [("10 MB", 10), ("100 MB", 100), ("1 GB", 1_000)];

/// Where the records go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Files {
    /// One file and nothing around the records: what the medium and the kernel take in any case.
    Bare,
    /// Offline: the backlog grows, every segment's file is new.
    New,
    /// Each segment finds a file of one that was acknowledged.
    Recycled,
}

/// What the appends of one group size took.
struct Cost {
    written: u64,
    syncs: u64,
    elapsed: Duration,
    cpu: Duration,
}

/// Appends in each group size, to new files and to recycled ones, and without a spool.
pub(crate) fn measure_appends(medium: &Medium, figures: &mut Figures) -> anyhow::Result<()> {
    for (files, words) in [
        (Files::Bare, "bare file"),
        (Files::New, "new segments"),
        (Files::Recycled, "recycled segments"),
    ] {
        for group in &GROUPS {
            let cost = measure_group(medium, files, group)
                .with_context(|| format!("groups of {}, {words}", group.size))?;
            // The sketch was measured with recycled segments only.
            let others = |peers: Peers| [None, peers[1], peers[2]];
            let (goal, written, cpu) = match files {
                Files::Bare => ("", NO_PEERS, NO_PEERS),
                Files::New => (group.goal, others(group.written), others(group.cpu)),
                Files::Recycled => (group.goal, group.written, group.cpu),
            };
            let mut note = |what: &str, decimals, goal, peers, value| {
                let name = format!("{words}, groups of {}: {what}", group.size);
                figures.note(figure(name, decimals, goal, peers), value);
            };
            let records = group.records as f64;
            let payload = records * RECORD_BYTES as f64;
            let amplification = cost.written as f64 / payload;
            note("device bytes per payload byte", 2, goal, written, amplification);
            note("CPU s per 100k", 2, "", cpu, per_100k(cost.cpu, group.records));
            note("appends/s", 0, "", NO_PEERS, records / cost.elapsed.as_secs_f64());
            note("syncs per 100k", 0, "", NO_PEERS, cost.syncs as f64 * 1e5 / records);
        }
    }
    Ok(())
}

fn measure_group(medium: &Medium, files: Files, group: &Group) -> anyhow::Result<Cost> {
    let dir = medium.fresh_dir("appends")?;
    if files == Files::Bare {
        let bytes = record().repeat(usize::try_from(group.size)?);
        let file = File::create(dir.join("bare"))?;
        let groups = group.records / group.size;
        return metered(medium, || {
            for at in 0..groups {
                file.write_all_at(&bytes, at * bytes.len() as u64)?;
                file.sync_data()?;
            }
            Ok(groups)
        });
    }
    let mut log = Log::open(&dir)?;
    if files == Files::Recycled {
        log.append(6 * SEGMENT_RECORDS, FILL_GROUP)?;
        log.trim(log.next - 1)?;
    }
    let (first, syncs) = (log.next, log.spool.wear().1);
    metered(medium, || {
        while log.next < first + group.records {
            log.append(group.size, group.size)?;
            if files == Files::Recycled && log.next > first + SEGMENT_RECORDS {
                log.trim(log.next - 1 - SEGMENT_RECORDS)?;
            }
        }
        Ok(log.spool.wear().1 - syncs)
    })
}

/// Runs `appends`, which tells how often it synced.
fn metered(medium: &Medium, appends: impl FnOnce() -> anyhow::Result<u64>) -> anyhow::Result<Cost> {
    let before = medium.written_bytes()?;
    let (cpu, since) = (meter::thread_cpu()?, Instant::now());
    let syncs = appends()?;
    let (elapsed, cpu) = (since.elapsed(), meter::thread_cpu()?.saturating_sub(cpu));
    Ok(Cost { written: medium.written_bytes()? - before, syncs, elapsed, cpu })
}

/// Opens backlogs of each size, and reads one back.
pub(crate) fn measure_backlog(medium: &Medium, figures: &mut Figures) -> anyhow::Result<()> {
    for (name, megabytes) in BACKLOGS {
        let dir = medium.fresh_dir("backlog")?;
        let records = megabytes * 1_000_000 / (RECORD_BYTES as u64 + 12);
        let mut log = Log::open(&dir)?;
        log.append(records, FILL_GROUP)?;
        let epoch = log.epoch;
        drop(log);
        let since = Instant::now();
        let mut log = Log::open(&dir)?;
        let opened = since.elapsed();
        let title = format!("opening a backlog of {name}, ms");
        figures.note(figure(title, 1, "< 200", NO_PEERS), opened.as_secs_f64() * 1e3);
        if megabytes == 1_000 {
            let (elapsed, cpu) = log.drain(epoch, records)?;
            let title = "spool alone: read and trim a backlog of 1 GB, records/s";
            let rate = records as f64 / elapsed.as_secs_f64();
            figures.note(figure(title, 0, "", NO_PEERS), rate);
            let peers = [Some(0.02), Some(0.08), Some(0.19)];
            let title = "spool alone: read and trim, CPU s per 100k";
            figures.note(figure(title, 3, "", peers), per_100k(cpu, records));
        }
        drop(log);
        fs::remove_dir_all(dir)?;
    }
    Ok(())
}

fn per_100k(cpu: Duration, records: u64) -> f64 {
    cpu.as_secs_f64() * 1e5 / records as f64
}

/// A spool with a count of what it was given.
pub(crate) struct Log {
    spool: Spool<DirectoryDisk>,
    record: Bytes,
    epoch: u64,
    next: u64,
}

impl Log {
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        let limits = Limits {
            max_bytes: MAX_BYTES,
            segment_bytes: SEGMENT_BYTES,
            min_free_bytes: 0,
            tail: 0,
        };
        // No two opens share a nanosecond.
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
        let (spool, _) = Spool::open(DirectoryDisk::open(dir)?, &STREAMS, limits, epoch)?;
        Ok(Self { spool, record: record(), epoch, next: 1 })
    }

    /// Appends records of [`RECORD_BYTES`], `group` at a time.
    fn append(&mut self, records: u64, group: u64) -> anyhow::Result<()> {
        let end = self.next + records;
        while self.next < end {
            let taken = group.min(end - self.next);
            let record = self.record.clone();
            self.append_group((0..taken).map(|_| record.clone()))?;
        }
        Ok(())
    }

    /// Appends one group of telemetry.
    pub(crate) fn append_group(
        &mut self,
        records: impl Iterator<Item = Bytes>,
    ) -> anyhow::Result<()> {
        let entries: Vec<Entry> = (self.next..)
            .zip(records)
            .map(|(seq, bytes)| Entry { stream: TELEMETRY, seq, bytes, origin: None })
            .collect();
        let kept = self.spool.append(&entries)?;
        ensure!(kept.evicted.is_empty(), "the spool is too small for the benchmark");
        self.next += entries.len() as u64;
        Ok(())
    }

    fn trim(&mut self, acked: u64) -> anyhow::Result<()> {
        Ok(self.spool.trim(TELEMETRY, self.epoch, acked)?)
    }

    /// Reads and trims all of an earlier epoch; gives the time it took and the processor's.
    fn drain(&mut self, epoch: u64, records: u64) -> anyhow::Result<(Duration, Duration)> {
        let (cpu, since) = (meter::thread_cpu()?, Instant::now());
        let mut from = 1;
        while from <= records {
            let items = self.spool.read(TELEMETRY, epoch, from, READ_BYTES)?;
            for item in &items {
                let Item::Record { seq, .. } = item else { anyhow::bail!("{item:?} at {from}") };
                ensure!(*seq == from, "{seq} came where {from} was due");
                from += 1;
            }
            ensure!(!items.is_empty(), "nothing more came at {from}");
            self.spool.trim(TELEMETRY, epoch, from - 1)?;
        }
        self.spool.retire(TELEMETRY, epoch)?;
        Ok((since.elapsed(), meter::thread_cpu()?.saturating_sub(cpu)))
    }
}

/// Bytes that no file system could compress or leave out.
fn record() -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = vec![0; RECORD_BYTES];
    for byte in &mut bytes {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        *byte = state.to_le_bytes()[7];
    }
    bytes.into()
}
