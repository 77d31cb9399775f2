//! A spool of three segments, cut or flipped at every byte: it always opens, loses only the record
//! that was hit, and says so.

use super::{
    segment::{FRAME_BYTES, HEADER_BYTES},
    *,
};
use crate::spool::simulated::SimulatedDisk;

const SMALL: Limits = Limits { segment_bytes: 512, ..LIMITS };

/// A segment's file, and where in it each of its records ends.
struct File {
    name: String,
    content: Vec<u8>,
    records: std::ops::Range<u64>,
    ends: Vec<usize>,
}

fn three_segments() -> Vec<File> {
    let disk = SimulatedDisk::new(1);
    let (mut spool, _) = Spool::open(disk.clone(), &STREAMS, SMALL, 7).unwrap();
    let mut seq = 1;
    while disk.files().get(2).is_none_or(|(_, len)| *len < 300) {
        spool.append(&[record(seq)]).unwrap();
        seq += 1;
    }
    let names: Vec<String> = disk.files().into_iter().map(|(name, _)| name).collect();
    let firsts: Vec<u64> =
        names.iter().map(|name| segment::parse_name(name).expect("a segment").3).collect();
    assert_eq!(names.len(), 3);
    let files = names.into_iter().enumerate().map(|(at, name)| {
        let records = firsts[at]..firsts.get(at + 1).copied().unwrap_or(seq);
        let mut end = HEADER_BYTES;
        let lengths = records.clone().map(|seq| FRAME_BYTES + record(seq).bytes.len());
        let ends = lengths.map(|length| {
            end += length;
            end
        });
        let content = disk.content(&name);
        File { ends: ends.collect(), name, content, records }
    });
    files.collect()
}

/// Opens the files with one of them changed; gives the records that are gone, why, and the report.
fn open_changed(files: &[File], at: usize, changed: &[u8]) -> (Vec<u64>, Vec<String>, Report) {
    let disk = SimulatedDisk::new(1);
    for file in files {
        disk.put(&file.name, &file.content);
    }
    disk.put(&files[at].name, changed);
    let (mut spool, report) = Spool::open(disk, &STREAMS, SMALL, 8).unwrap();
    let (records, skipped) = numbers(&read_all(&mut spool, 7));
    let all = 1..files.last().expect("three files").records.end;
    let gone = all.filter(|seq| !records.contains(seq)).collect();
    (gone, skipped.into_values().collect(), report)
}

#[test]
fn every_truncation_opens_and_loses_only_the_end() {
    let files = three_segments();
    for (at, file) in files.iter().enumerate() {
        assert_eq!(file.ends.last(), Some(&file.content.len()), "records and nothing else");
        for len in file.ends[file.ends.len() - 3]..file.content.len() {
            let (gone, reasons, report) = open_changed(&files, at, &file.content[..len]);
            let whole = file.ends.iter().filter(|end| **end <= len).count();
            let expected: Vec<u64> = file.records.clone().skip(whole).collect();
            assert_eq!(gone, expected, "{} cut at {len}", file.name);
            if at + 1 == files.len() {
                let torn = (len - file.ends[whole - 1]) as u64;
                assert_eq!((report.torn_bytes, reasons.len()), (torn, 0), "cut at {len}");
            } else {
                assert_eq!(reasons, vec!["damaged"; expected.len()], "cut at {len}");
            }
        }
    }
}

#[test]
fn every_flipped_byte_costs_its_record_and_is_accounted() {
    let files = three_segments();
    for (at, file) in files.iter().enumerate() {
        for byte in 0..file.content.len() {
            let mut content = file.content.clone();
            content[byte] ^= 0x40;
            let (gone, reasons, report) = open_changed(&files, at, &content);
            if byte < HEADER_BYTES {
                assert_eq!((gone.len(), reasons.len()), (0, 0), "byte {byte} of the header");
                assert!(report.damage[0].contains(&file.name), "{:?}", report.damage);
                continue;
            }
            let hit = file.ends.iter().filter(|end| **end <= byte).count();
            let hit = file.records.start + hit as u64;
            assert_eq!(gone, [hit], "byte {byte} of {}", file.name);
            if hit + 1 == files.last().expect("three files").records.end {
                let torn = FRAME_BYTES + record(hit).bytes.len();
                assert_eq!(report.torn_bytes, torn as u64, "only the last record can look torn");
            } else {
                assert_eq!(reasons, ["damaged"], "byte {byte} of {}", file.name);
            }
        }
    }
}
