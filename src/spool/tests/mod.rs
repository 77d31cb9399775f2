//! The spool in a real directory; below, on a simulated disk.

mod every_byte;
mod model;
mod seeds;

use std::{collections::BTreeMap, path::Path};

use super::{journal::Journal, segment::Id, *};

const LIMITS: Limits =
    Limits { max_bytes: 1 << 20, segment_bytes: 4096, min_free_bytes: 0, tail: 8 };
const STREAMS: [&str; 2] = ["events", "telemetry"];
const TELEMETRY: usize = 1;

fn open(path: &Path, epoch: u64) -> (Spool<DirectoryDisk>, Report) {
    open_with(path, epoch, LIMITS)
}

fn open_with(path: &Path, epoch: u64, limits: Limits) -> (Spool<DirectoryDisk>, Report) {
    Spool::open(DirectoryDisk::open(path).unwrap(), &STREAMS, limits, epoch).unwrap()
}

fn record(seq: u64) -> Entry {
    let body = format!("record {seq} {}", "x".repeat((seq % 50) as usize));
    Entry { stream: TELEMETRY, seq, bytes: body.into(), origin: None }
}

fn append(spool: &mut Spool<DirectoryDisk>, seqs: std::ops::Range<u64>) -> Vec<Evicted> {
    let entries: Vec<Entry> = seqs.map(record).collect();
    spool.append(&entries).unwrap().evicted
}

fn read_all<D: Disk>(spool: &mut Spool<D>, epoch: u64) -> Vec<Item> {
    let mut items = Vec::new();
    let mut from = 0;
    loop {
        let some = spool.read(TELEMETRY, epoch, from, 300).unwrap();
        match some.last() {
            None => return items,
            Some(Item::Record { seq, .. }) => from = seq + 1,
            Some(Item::Skip { to, .. }) => from = *to,
        }
        items.extend(some);
    }
}

/// The numbers of the records, and of the skipped ones; asserts that each record has its own bytes,
/// in order.
fn numbers(items: &[Item]) -> (Vec<u64>, BTreeMap<u64, String>) {
    let (mut records, mut skipped, mut at) = (Vec::new(), BTreeMap::new(), 0);
    for item in items {
        match item {
            Item::Record { seq, bytes } => {
                assert_eq!(bytes, &record(*seq).bytes);
                assert!(*seq >= at, "{seq} after {at}");
                at = seq + 1;
                records.push(*seq);
            }
            Item::Skip { from, to, reason } => {
                assert!(*from >= at && to > from, "{from}..{to} after {at}");
                at = *to;
                skipped.extend((*from..*to).map(|seq| (seq, reason.clone())));
            }
        }
    }
    (records, skipped)
}

fn segments(path: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "seg"))
        .collect();
    files.sort();
    files
}

#[test]
fn what_was_appended_is_there_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spool, report) = open(dir.path(), 7);
    assert_eq!(report, Report::default());
    append(&mut spool, 1..100);
    append(&mut spool, 100..500);
    assert!(segments(dir.path()).len() > 2, "several segments");
    drop(spool);
    let (mut spool, report) = open(dir.path(), 8);
    assert_eq!((report.torn_bytes, report.damage.len()), (0, 0));
    let held = HeldRange { stream: TELEMETRY, epoch: 7, acked: 0, next: 500 };
    assert_eq!(spool.held(), [held]);
    assert_eq!(numbers(&read_all(&mut spool, 7)).0, Vec::from_iter(1..500));
}

#[test]
fn trimmed_segments_are_deleted_and_finished_epochs_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spool, _) = open(dir.path(), 7);
    append(&mut spool, 1..500);
    let before = segments(dir.path()).len();
    spool.trim(TELEMETRY, 7, 450).unwrap();
    assert!(before > 5 && segments(dir.path()).len() <= 2, "{before} files");
    assert_eq!(numbers(&read_all(&mut spool, 7)).0, Vec::from_iter(451..500));
    drop(spool);
    let (mut spool, _) = open(dir.path(), 8);
    assert_eq!(numbers(&read_all(&mut spool, 7)).0, Vec::from_iter(451..500));
    append(&mut spool, 1..10);
    spool.retire(TELEMETRY, 7).unwrap();
    let held = HeldRange { stream: TELEMETRY, epoch: 8, acked: 0, next: 10 };
    assert_eq!(spool.held(), [held]);
    assert_eq!(segments(dir.path()).len(), 1);
}

#[test]
fn a_file_that_is_written_again_gives_nothing_of_its_earlier_use() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spool, _) = open(dir.path(), 7);
    append(&mut spool, 1..500);
    spool.trim(TELEMETRY, 7, 499).unwrap();
    let spares = spool.spares.len();
    assert!(spares > 1, "acknowledged files are kept");
    append(&mut spool, 500..510);
    assert_eq!(spool.spares.len(), spares - 1);
    drop(spool);
    let (mut spool, report) = open(dir.path(), 8);
    assert_eq!((report.torn_bytes, report.damage), (0, Vec::new()));
    assert_eq!(numbers(&read_all(&mut spool, 7)).0, Vec::from_iter(500..510));
    spool.append(&[Entry { stream: 0, ..record(1) }]).unwrap();
    drop(spool);
    let (spool, report) = open(dir.path(), 9);
    assert_eq!((report.torn_bytes, report.damage), (0, Vec::new()));
    assert_eq!(spool.held()[0], HeldRange { stream: 0, epoch: 8, acked: 0, next: 2 });
}

#[test]
fn a_full_medium_is_no_more_used_than_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { min_free_bytes: u64::MAX / 2, ..LIMITS };
    let (mut spool, _) = open_with(dir.path(), 7, limits);
    let error = spool.append(&[record(1)]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    drop(spool);
    let (mut spool, _) = open(dir.path(), 8);
    append(&mut spool, 1..500);
    drop(spool);
    let (mut spool, _) = open_with(dir.path(), 9, limits);
    let before = spool.bytes();
    let evicted = append(&mut spool, 1..500);
    assert!(!evicted.is_empty() && spool.bytes() <= before + 8192, "the oldest made room");
}

#[test]
fn the_tails_of_sessions_outlive_their_records() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spool, _) = open(dir.path(), 7);
    let origin =
        |seq: u64| Origin { session: 5, order: seq as u32, packet_id: seq as u16, digest: 1 };
    let with = |seq: u64| Entry { origin: Some(origin(seq)), ..record(seq) };
    spool.append(&Vec::from_iter((1..300).map(with))).unwrap();
    drop(spool);
    let tail = |spool: &Spool<DirectoryDisk>| {
        Vec::from_iter(spool.tails().flat_map(|(_, tail)| tail.iter().map(|o| o.order)))
    };
    let (mut spool, _) = open(dir.path(), 8);
    assert_eq!(tail(&spool), Vec::from_iter(292..300), "from the frames");
    spool.retire(TELEMETRY, 7).unwrap();
    drop(spool);
    let (spool, _) = open(dir.path(), 9);
    assert_eq!(tail(&spool), Vec::from_iter(292..300), "from the positions");
}

#[test]
fn an_epoch_is_used_once() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spool, _) = open(dir.path(), 7);
    append(&mut spool, 1..3);
    spool.begin_epoch(TELEMETRY, 9);
    append(&mut spool, 1..5);
    let held = |stream, epoch, next| HeldRange { stream, epoch, acked: 0, next };
    assert_eq!(spool.held(), [held(TELEMETRY, 7, 3), held(TELEMETRY, 9, 5)]);
    drop(spool);
    let disk = DirectoryDisk::open(dir.path()).unwrap();
    let error = Spool::open(disk, &STREAMS, LIMITS, 9).unwrap_err();
    assert!(error.to_string().contains("used before"), "{error}");
    let (mut spool, _) = open(dir.path(), 8);
    assert_eq!(spool.held(), [held(TELEMETRY, 7, 3), held(TELEMETRY, 9, 5)]);
    assert_eq!(numbers(&read_all(&mut spool, 9)).0, [1, 2, 3, 4]);
}

#[test]
fn a_hole_that_was_acknowledged_is_no_loss() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spool, _) = open(dir.path(), 7);
    append(&mut spool, 6..10);
    spool.trim(TELEMETRY, 7, 14).unwrap();
    assert_eq!(spool.held(), [], "an ack beyond what is on disk trims what is");
    append(&mut spool, 15..20);
    drop(spool);
    let (mut spool, report) = open(dir.path(), 8);
    assert_eq!(report.damage, [""; 0]);
    let (records, skipped) = numbers(&read_all(&mut spool, 7));
    assert_eq!((records, skipped.len()), (Vec::from_iter(15..20), 0));
}

#[test]
fn eviction_takes_the_oldest_and_says_so_durably() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { max_bytes: 20_000, segment_bytes: 2048, ..LIMITS };
    let (mut spool, _) = open_with(dir.path(), 7, limits);
    let mut evicted = 0;
    for start in (1..1000).step_by(10) {
        evicted += append(&mut spool, start..start + 10).iter().map(|e| e.records).sum::<u64>();
        assert!(spool.bytes() <= limits.max_bytes);
    }
    assert!(evicted > 500);
    drop(spool);
    let (mut spool, _) = open_with(dir.path(), 8, limits);
    let (records, skipped) = numbers(&read_all(&mut spool, 7));
    assert_eq!(records, Vec::from_iter(evicted + 1..1001));
    assert_eq!(skipped.len() as u64, evicted);
    assert!(skipped.values().all(|reason| reason == "evicted"));
    assert_eq!(spool.held()[0].acked, 0, "the skip is still owed to the hub");
}

#[test]
fn a_damaged_middle_segment_costs_only_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spool, _) = open(dir.path(), 7);
    append(&mut spool, 1..500);
    drop(spool);
    let files = segments(dir.path());
    std::fs::write(&files[1], b"nothing that makes sense").unwrap();
    let (mut spool, report) = open(dir.path(), 8);
    assert_eq!(report.damage.len(), 1);
    let (records, skipped) = numbers(&read_all(&mut spool, 7));
    assert_eq!(records.len() + skipped.len(), 499);
    assert!(records.contains(&1) && records.contains(&499) && records.len() > 300);
    assert!(skipped.values().all(|reason| reason == "damaged"));
}

#[test]
fn a_newer_version_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let name = segment::file_name("telemetry", 1, 7, 1);
    let mut header = segment::header(Id::new("telemetry", 7, 1), 0, 0);
    header[7] = 9;
    let end = header.len() - 4;
    let crc = crc32c::crc32c(&header[..end]).to_le_bytes();
    header[end..].copy_from_slice(&crc);
    std::fs::write(dir.path().join(&name), &header).unwrap();
    let disk = DirectoryDisk::open(dir.path()).unwrap();
    let error = Spool::open(disk, &STREAMS, LIMITS, 8).unwrap_err();
    assert!(error.to_string().contains("format version 9"), "{error}");
    assert_eq!(std::fs::read(dir.path().join(&name)).unwrap(), header);
}

#[test]
fn a_second_gateway_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let _first = DirectoryDisk::open(dir.path()).unwrap();
    let error = DirectoryDisk::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("held by another fieldgate"), "{error}");
}

#[test]
fn streams_that_are_no_longer_configured_are_still_held() {
    let dir = tempfile::tempdir().unwrap();
    let disk = DirectoryDisk::open(dir.path()).unwrap();
    let (mut spool, _) = Spool::open(disk, &["events", "alarms", "telemetry"], LIMITS, 7).unwrap();
    append(&mut spool, 1..5);
    drop(spool);
    let (spool, _) = open(dir.path(), 8);
    assert_eq!(Vec::from_iter(spool.streams()), ["events", "telemetry", "alarms"]);
}

#[test]
fn the_journal_keeps_the_last_value_of_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let disk = DirectoryDisk::open(dir.path()).unwrap();
    let mut journal = Journal::open(&disk, |_| None).unwrap();
    for round in 0..3000 {
        let key = format!("id-{}", round % 10);
        journal.put(&disk, &[(key, format!("value {round}").into())]).unwrap();
    }
    journal.put(&disk, &[("id-3".into(), Bytes::new())]).unwrap();
    assert!(dir.path().join("commands.journal").metadata().unwrap().len() < 2 * 64 * 1024);
    let path = dir.path().join("commands.journal");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.extend_from_slice(b"torn");
    std::fs::write(&path, bytes).unwrap();
    let again = Journal::open(&disk, |_| None).unwrap();
    let entries = Vec::from_iter(again.entries());
    assert_eq!(entries.len(), 9);
    assert_eq!(entries[9 - 1], ("id-9", &Bytes::from_static(b"value 2999")));
}

#[test]
fn a_last_segment_that_cannot_be_read_through_opens_and_says_that_something_is_lost() {
    let disk = simulated::SimulatedDisk::new(1);
    let (mut spool, _) = Spool::open(disk.clone(), &STREAMS, LIMITS, 7).unwrap();
    spool.append(&Vec::from_iter((1..40).map(record))).unwrap();
    drop(spool);
    let name = segment::file_name("telemetry", 1, 7, 1);
    disk.make_unreadable(&name, 0..4096);
    let (mut spool, report) = Spool::open(disk, &STREAMS, LIMITS, 8).unwrap();
    assert!(report.damage.iter().any(|damage| damage.contains("can't be read")), "{report:?}");
    let (records, skipped) = numbers(&read_all(&mut spool, 7));
    assert_eq!((records, skipped.len()), (Vec::new(), 1));
}
