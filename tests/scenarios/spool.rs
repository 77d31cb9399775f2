//! `fieldgate spool …` beside a gateway and without one: what it prints, and that it only looks.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use fieldgate::{
    record::{Event, Reading, Timestamp, is_plain_json, store_event, store_reading},
    spool::{DirectoryDisk, Entry, Limits, Spool},
};
use serde_json::{Value, json};

use crate::field::{
    Field, SOON,
    device::Publisher,
    eventually,
    gateway::{Gateway, Setup},
    hub::Hub,
    process::run,
};

const EPOCH: u64 = 0x00c0_ffee;

/// A spool by the library: an event, three readings, two of which were acknowledged and one more
/// that is lost.
fn filled(field: &Field) {
    let ts = Timestamp::synced;
    let reading = |unix_ms, payload: &[u8]| {
        let (device, topic) = ("plc-01", "devices/plc-01/telemetry");
        let json = is_plain_json(payload);
        store_reading(ts(unix_ms), &Reading { device, topic, retained: false, payload, json })
    };
    let limits = Limits { max_bytes: 1 << 20, segment_bytes: 4096, min_free_bytes: 0, tail: 16 };
    let disk = DirectoryDisk::open(&field.path("state/spool")).expect("a directory of its own");
    let opened = Spool::open(disk, &["events", "telemetry"], limits, EPOCH);
    let (mut spool, _) = opened.expect("an empty directory opens");
    let birth = Event::Birth { device: "plc-01".into() };
    let payloads: [&[u8]; 4] = [b"1", b"2", b"{\"t\":\n 21.5}", b"\xff\x00"];
    let readings = (1..).zip(payloads).map(|(seq, payload)| Entry {
        stream: 1,
        seq,
        bytes: reading(1_790_000_000_000 + seq * 1000, payload),
        origin: None,
    });
    let bytes = store_event(ts(1_790_000_000_000), &birth);
    let event = Entry { stream: 0, seq: 1, bytes, origin: None };
    spool.append(&readings.chain([event]).collect::<Vec<_>>()).expect("there is room");
    spool.trim(1, EPOCH, 2).expect("a healthy disk");
    spool.save_positions().expect("a healthy disk");
}

/// Runs `fieldgate spool …` on the scenario's state directory: exit code, stdout, stderr.
fn spool(field: &Field, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = command(arguments);
    command.arg("--state-dir").arg(field.path("state"));
    run(command, SOON)
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldgate"));
    command.arg("spool").args(arguments).env_remove("FIELDGATE_CONFIG");
    command
}

fn segment(stream: &str) -> String {
    format!("{stream}.00000001.{EPOCH:016x}.0000000000000001.seg")
}

#[test]
fn inspect_shows_what_is_held() {
    let field = Field::new();
    filled(&field);
    let (code, stdout, stderr) = spool(&field, &["inspect"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let directory = field.path("state/spool");
    let [events, telemetry] = ["events", "telemetry"].map(|stream| length(&field, stream));
    let (head, at) = ("bytes  segments  oldest                   newest", "2026-09-21 14:13:2");
    let [from, to] =
        ["0000000000c0ffee        1      1     2", "0000000000c0ffee        2      3     5"];
    let expected = format!(
        "{}: {} bytes\n\
         stream     epoch             records  first  next  {head}\n\
         events     {from}  {events:>5}         1  {at}0 UTC  {at}0 UTC\n\
         telemetry  {to}  {telemetry:>5}         1  {at}3 UTC  {at}4 UTC\n\
         records are counted by their numbers; `spool verify` reads each\n\
         commands in the journal: 0\n",
        directory.display(),
        events + telemetry
    );
    assert_eq!(stdout, expected);
    let (code, stdout, _) = spool(&field, &["inspect", "--json"]);
    let seen: Value = serde_json::from_str(&stdout).expect("one JSON object");
    assert_eq!(code, Some(0));
    assert_eq!(
        seen["streams"][1],
        json!({ "stream": "telemetry", "epoch": "0000000000c0ffee", "start": 1, "first": 3,
            "next": 5, "records": 2, "bytes": telemetry, "segments": 1, "skips": [],
            "oldest_ts": 1_790_000_003_000_u64, "newest_ts": 1_790_000_004_000_u64,
            "oldest_unsynced": false, "newest_unsynced": false })
    );
}

#[test]
fn export_gives_each_record_as_a_line_and_a_loss_as_a_skip() {
    let field = Field::new();
    filled(&field);
    let lines = "{\"stream\":\"events\",\"epoch\":\"0000000000c0ffee\",\"seq\":1,\
         \"ts\":1790000000000,\"kind\":\"birth\",\"device\":\"plc-01\"}\n\
         {\"stream\":\"telemetry\",\"epoch\":\"0000000000c0ffee\",\"seq\":3,\
         \"ts\":1790000003000,\"device\":\"plc-01\",\"topic\":\"devices/plc-01/telemetry\",\
         \"payload\":{\"t\":  21.5}}\n\
         {\"stream\":\"telemetry\",\"epoch\":\"0000000000c0ffee\",\"seq\":4,\
         \"ts\":1790000004000,\"device\":\"plc-01\",\"topic\":\"devices/plc-01/telemetry\",\
         \"payload_base64\":\"/wA=\"}\n";
    let exported = spool(&field, &["export", "--format", "jsonl"]);
    assert_eq!(exported, (Some(0), lines.into(), String::new()));

    let file = field.path("out.jsonl");
    let name = file.to_str().expect("a path of letters");
    let (code, stdout, _) = spool(&field, &["export", "--stream", "events", "--output", name]);
    assert_eq!((code, stdout.as_str()), (Some(0), ""));
    let written = std::fs::read_to_string(file).expect("it was written");
    assert_eq!(written.lines().collect::<Vec<_>>(), [lines.lines().next().expect("a line")]);

    let (code, _, stderr) = spool(&field, &["export", "--stream", "alarms"]);
    let text = "--stream alarms: it holds nothing; those that do: events, telemetry\n";
    assert_eq!((code, stderr.as_str()), (Some(2), text));

    flip(&field.path("state/spool").join(segment("telemetry")), -1);
    let (code, stdout, _) = spool(&field, &["export", "--stream", "telemetry"]);
    assert_eq!((code, stdout.lines().count()), (Some(0), 2));
    let skip = "{\"skip\":{\"epoch\":\"0000000000c0ffee\",\"from\":4,\"reason\":\"damaged\",\
                \"stream\":\"telemetry\",\"to\":5}}";
    assert_eq!(stdout.lines().last(), Some(skip));
}

/// The last record's number is known by `positions`, so that its loss can't pass for a torn tail.
#[test]
fn verify_says_what_is_damaged_and_where() {
    let field = Field::new();
    filled(&field);
    let sound = (Some(0), "3 records in 2 segments: sound\n".to_owned(), String::new());
    assert_eq!(spool(&field, &["verify"]), sound);

    let file = segment("telemetry");
    flip(&field.path("state/spool").join(&file), -1);
    field.write("state/spool/notes.txt", "mine");
    // Frame, stored form, topic and payload.
    let offset = length(&field, "telemetry") - (12 + 10 + 24 + 2);
    let (code, stdout, _) = spool(&field, &["verify"]);
    let expected = format!(
        "{file}: damaged at byte {offset}; lost: record 4\n\
         notes.txt: not a file of the spool\n\
         2 records in 2 segments: damaged in 1 places\n"
    );
    assert_eq!((code, stdout), (Some(1), expected));
    let (code, stdout, _) = spool(&field, &["verify", "--json"]);
    let seen: Value = serde_json::from_str(&stdout).expect("one JSON object");
    let damage = json!([{ "file": file, "offset": offset, "stream": "telemetry",
        "epoch": "0000000000c0ffee", "from": 4, "to": 5 }]);
    assert_eq!((code, &seen["damage"], &seen["sound"]), (Some(1), &damage, &json!(false)));
    assert_eq!(seen["unknown_files"], json!(["notes.txt"]));
}

/// A `head` that has read enough is no failure, and leaves no message.
#[test]
fn a_closed_pipe_ends_an_export_quietly() {
    let field = Field::new();
    let disk = DirectoryDisk::open(&field.path("state/spool")).expect("a directory of its own");
    let limits = Limits { max_bytes: 1 << 30, segment_bytes: 1 << 20, min_free_bytes: 0, tail: 16 };
    let opened = Spool::open(disk, &["events", "telemetry"], limits, EPOCH);
    let (mut spool, _) = opened.expect("an empty directory opens");
    let bytes = bytes::Bytes::from(vec![b'x'; 1000]);
    let many = (1..5000).map(|seq| Entry { stream: 1, seq, bytes: bytes.clone(), origin: None });
    spool.append(&many.collect::<Vec<_>>()).expect("there is room");
    let mut export = command(&["export", "--state-dir"]);
    export.arg(field.path("state")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut export = export.spawn().expect("fieldgate starts");
    let mut first = [0; 1];
    let mut stdout = export.stdout.take().expect("stdout is piped");
    std::io::Read::read_exact(&mut stdout, &mut first).expect("it writes");
    drop(stdout);
    let output = export.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()));
}

#[test]
fn a_spool_is_found_by_a_configuration_with_faults_elsewhere() {
    let field = Field::new();
    filled(&field);
    let faulty =
        "[gateway]\nstate_dir = \"state\"\n[uplnk]\nurl = 5\n[spool]\nmax_bytes = \"1GiB\"";
    let config = field.write("faulty.toml", faulty);
    let with = |arguments: &[&str], config: &Path| {
        let mut command = command(arguments);
        command.arg("--config").arg(config);
        run(command, SOON)
    };
    let (code, stdout, stderr) = with(&["inspect"], &config);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.lines().next().is_some_and(|l| l.ends_with(" bytes of 1GiB")), "{stdout}");

    let misspelt = field.write("misspelt.toml", "[gateway]\nstate_dri = \"state\"\n");
    let (code, _, stderr) = with(&["inspect"], &misspelt);
    assert_eq!(code, Some(78));
    assert!(stderr.contains("misspelt.toml:2: gateway.state_dri"), "{stderr}");

    let nowhere = field.write("nowhere.toml", "[gateway]\nstate_dir = \"nowhere\"\n");
    let (code, _, stderr) = with(&["verify"], &nowhere);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("/nowhere/spool: there is no spool; name"), "{stderr}");
    assert!(!field.path("nowhere").exists(), "looking makes nothing");
}

#[test]
fn a_spool_can_be_read_beside_a_gateway_and_only_then_not_dropped() {
    let field = Field::new();
    let hub = Hub::new(&field);
    let mut gateway = Gateway::started(&field, &Setup::new(&field, &hub));
    let mut publisher = Publisher::start(gateway.port, "plc-01", 200, 3000);
    eventually("some are on disk", SOON, || (publisher.acked() > 200).then_some(()));
    let least = publisher.acked();
    let (code, stdout, stderr) = spool(&field, &["export", "--stream", "telemetry"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let numbers: Vec<u64> = stdout
        .lines()
        .filter_map(|line| {
            serde_json::from_str::<Value>(line).expect("JSON")["payload"]["n"].as_u64()
        })
        .collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "in order, none missing");
    assert!(numbers.len() as u64 >= least, "{} of {least}", numbers.len());
    let (code, stdout, _) = spool(&field, &["verify"]);
    assert_eq!(code, Some(0), "{stdout}");

    let (code, _, stderr) = spool(&field, &["drop"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("records that the hub does not hold would be lost"), "{stderr}");
    let (code, _, stderr) = spool(&field, &["drop", "--yes"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("a gateway runs with it; stop that first"), "{stderr}");
    publisher.stop();
    gateway.kill();
}

#[test]
fn what_is_dropped_by_hand_is_told_to_the_hub() {
    let field = Field::new();
    let mut hub = Hub::new(&field);
    let mut gateway = Gateway::started(&field, &Setup::new(&field, &hub));
    let publisher = Publisher::start(gateway.port, "plc-01", 200, 100);
    eventually("100 are acknowledged", SOON, || publisher.done().then_some(()));
    gateway.kill();
    let (code, stdout, _) = spool(&field, &["drop", "--yes", "--stream", "telemetry"]);
    let said = "100 records let go of; the hub will be told that they are lost\n";
    assert_eq!((code, stdout.as_str()), (Some(0), said));
    gateway.start();
    hub.start();
    gateway.wait_connected();
    let gaps = eventually("the hub knows of the gap", SOON, || {
        let gaps = hub.api.get("/v1/gateways/gw-1/gaps").ok()?.body;
        gaps.to_string().contains("evicted").then_some(gaps)
    });
    assert!(gaps.to_string().contains("\"from\":1"), "{gaps}");
    assert!(hub.all_records("gw-1").iter().all(|row| row.stream != "telemetry"));
}

fn length(field: &Field, stream: &str) -> u64 {
    let file = field.path("state/spool").join(segment(stream));
    file.metadata().expect("a segment of one stream").len()
}

/// Flips a byte; `at` counts from the end where it is negative.
fn flip(file: &Path, at: isize) {
    let mut bytes = std::fs::read(file).expect("a segment");
    let index = bytes.len().checked_add_signed(at).expect("within the file");
    bytes[index] ^= 0x40;
    std::fs::write(file, bytes).expect("an own file");
}
