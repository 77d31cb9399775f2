use std::{fs, ops::ControlFlow, path::Path};

use super::*;
use crate::spool::{DirectoryDisk, Entry, Item, Limits, Spool};

const LIMITS: Limits =
    Limits { max_bytes: 1 << 20, segment_bytes: 4096, min_free_bytes: 0, tail: 16 };
const EPOCH: u64 = 7;

fn spool(path: &Path, epoch: u64) -> Spool<DirectoryDisk> {
    let disk = DirectoryDisk::open(path).unwrap();
    Spool::open(disk, &["events", "telemetry"], LIMITS, epoch).unwrap().0
}

fn entries(seqs: std::ops::Range<u64>) -> Vec<Entry> {
    let bytes = |seq| format!("record {seq} {}", "x".repeat((seq % 50) as usize)).into();
    seqs.map(|seq| Entry { stream: 1, seq, bytes: bytes(seq), origin: None }).collect()
}

/// A spool of several segments, 1 to 499.
fn filled(path: &Path) -> Vec<std::path::PathBuf> {
    spool(path, EPOCH).append(&entries(1..500)).unwrap();
    let files = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "seg")).collect();
    files.sort();
    assert!(files.len() > 3, "{files:?}");
    files
}

fn look(path: &Path) -> Survey<ReadOnlyDirectory> {
    Survey::look(ReadOnlyDirectory::open(path).unwrap()).unwrap()
}

fn sights(survey: &Survey<ReadOnlyDirectory>) -> Vec<Sight> {
    let mut sights = Vec::new();
    for epoch in &survey.epochs {
        let walked = survey.walk(epoch, |sight| {
            sights.push(sight);
            ControlFlow::<()>::Continue(())
        });
        assert_eq!(walked, ControlFlow::Continue(()));
    }
    sights
}

/// Records and skips, as the spool itself would read them.
fn items(sights: Vec<Sight>) -> Vec<Item> {
    let items = sights.into_iter().filter_map(|sight| match sight {
        Sight::Record { seq, bytes } => Some(Item::Record { seq, bytes }),
        Sight::Skip(skip) => Some(Item::Skip { from: skip.from, to: skip.to, reason: skip.reason }),
        _ => None,
    });
    items.collect()
}

/// What the spool gives, after a survey of the same files.
fn agrees(path: &Path) {
    let seen = items(sights(&look(path)));
    let mut spool = spool(path, EPOCH + 1);
    let mut read = Vec::new();
    let mut from = 0;
    loop {
        let some = spool.read(1, EPOCH, from, 1000).unwrap();
        from = match some.last() {
            None => break,
            Some(Item::Record { seq, .. }) => seq + 1,
            Some(Item::Skip { to, .. }) => *to,
        };
        read.extend(some);
    }
    assert_eq!(joined(seen), joined(read));
}

/// Neighbouring skips of one reason as one.
fn joined(items: Vec<Item>) -> Vec<Item> {
    let mut joined: Vec<Item> = Vec::new();
    for item in items {
        if let (Some(Item::Skip { to, reason, .. }), Item::Skip { from, to: end, reason: why }) =
            (joined.last_mut(), &item)
            && to == from
            && reason == why
        {
            *to = *end;
            continue;
        }
        joined.push(item);
    }
    joined
}

#[test]
fn a_survey_sees_what_the_spool_reads() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let survey = look(dir.path());
    assert_eq!((survey.faults.len(), survey.unknown_files.len()), (0, 0));
    let [epoch] = survey.epochs.as_slice() else { panic!("{survey:?}") };
    assert_eq!((epoch.first(), epoch.next, epoch.records()), (1, 500, 499));
    assert_eq!(epoch.newest, Some(entries(499..500)[0].bytes.clone()));
    assert_eq!(survey.oldest(epoch), Some(entries(1..2)[0].bytes.clone()));
    agrees(dir.path());
}

#[test]
fn a_survey_writes_nothing_and_is_not_kept_out_by_a_gateway() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = spool(dir.path(), EPOCH);
    spool.append(&entries(1..200)).unwrap();
    let state = || {
        let files = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap());
        let mut files: Vec<_> =
            files.map(|file| (file.file_name(), fs::read(file.path()).unwrap())).collect();
        files.sort();
        files
    };
    let before = state();
    let survey = look(dir.path());
    assert_eq!(items(sights(&survey)).len(), 199);
    assert!(survey.disk().create("x").is_err() && survey.disk().remove("lock").is_err());
    assert_eq!(state(), before);
}

#[test]
fn a_flipped_byte_is_found_where_it_is_and_costs_what_the_spool_says() {
    let dir = tempfile::tempdir().unwrap();
    let files = filled(dir.path());
    let name = files[1].file_name().unwrap().to_str().unwrap().to_owned();
    let whole = fs::read(&files[1]).unwrap();
    for at in (HEADER_BYTES..whole.len()).step_by(97) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        fs::write(&files[1], &bytes).unwrap();
        let found = sights(&look(dir.path()));
        let damage: Vec<_> = found
            .iter()
            .filter_map(|sight| match sight {
                Sight::Damage { file, offset, from, to } => {
                    Some((file.clone(), *offset, *from..*to))
                }
                _ => None,
            })
            .collect();
        let [(Some(file), offset, lost)] = damage.as_slice() else { panic!("{at}: {damage:?}") };
        assert_eq!(*file, name);
        assert!(*offset <= at as u64 && at as u64 - offset < 100, "{at}: at {offset}");
        assert_eq!(lost.end - lost.start, 1);
        agrees(dir.path());
        fs::write(&files[1], &whole).unwrap();
    }
}

#[test]
fn missing_and_cut_files_are_told_and_accounted() {
    let dir = tempfile::tempdir().unwrap();
    let files = filled(dir.path());
    fs::remove_file(&files[1]).unwrap();
    fs::write(&files[3], fs::read(&files[3]).unwrap().split_off(1000)).unwrap();
    let survey = look(dir.path());
    assert_eq!(survey.faults.len(), 1, "the header of the second is gone");
    let found = sights(&survey);
    let in_no_file = |sight: &&Sight| matches!(sight, Sight::Damage { file: None, .. });
    assert_eq!(found.iter().filter(in_no_file).count(), 0, "the segment before was to reach there");
    assert!(found.iter().any(|sight| matches!(sight, Sight::Damage { from, to, .. } if to > from)));
    agrees(dir.path());
}

#[test]
fn a_torn_tail_is_no_damage_and_an_unknown_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let files = filled(dir.path());
    let last = files.last().unwrap();
    let mut bytes = fs::read(last).unwrap();
    bytes.extend_from_slice(b"a write that was cut off");
    fs::write(last, bytes).unwrap();
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    fs::write(dir.path().join("positions.new"), "").unwrap();
    let survey = look(dir.path());
    assert_eq!(survey.unknown_files, ["notes.txt"]);
    let found = sights(&survey);
    let tails = found.iter().filter(|sight| matches!(sight, Sight::Tail { bytes: 24, .. }));
    assert_eq!(tails.count(), 1);
    assert!(!found.iter().any(|sight| matches!(sight, Sight::Damage { .. })));
    agrees(dir.path());
}

#[test]
fn a_segment_that_goes_while_it_is_looked_at_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let files = filled(dir.path());
    let survey = look(dir.path());
    fs::remove_file(&files[0]).unwrap();
    // Recycled: another segment's bytes from the start on.
    let mut bytes = segment::header(Id::new("telemetry", EPOCH, 900), 0, 0);
    bytes.extend_from_slice(&fs::read(&files[1]).unwrap()[HEADER_BYTES + 10..]);
    fs::write(&files[1], bytes).unwrap();
    let found = sights(&survey);
    let gone = |sight: &&Sight| matches!(sight, Sight::PassedOver { why: Why::Gone, .. });
    assert_eq!(found.iter().filter(gone).count(), 2, "{found:?}");
    assert!(!found.iter().any(|sight| matches!(sight, Sight::Damage { .. } | Sight::Skip(_))));
}

#[test]
fn what_was_evicted_by_hand_is_a_skip_also_after_a_start() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let mut spool = spool(dir.path(), EPOCH + 1);
    spool.trim(1, EPOCH, 99).unwrap();
    assert_eq!(spool.evict_all(1).unwrap(), 400);
    assert_eq!(spool.evict_all(1).unwrap(), 0);
    drop(spool);
    let survey = look(dir.path());
    let epoch = &survey.epochs[0];
    assert_eq!((epoch.records(), epoch.skipped(), epoch.bytes()), (0, 400, 0));
    assert_eq!(
        items(sights(&survey)),
        [Item::Skip { from: 100, to: 500, reason: "evicted".into() }]
    );
    agrees(dir.path());
}
