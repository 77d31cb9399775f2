//! A process that does nothing but append to a spool and say what is kept, so that it can be killed
//! anywhere; and the account of what it said, held against what is on the medium afterwards.
//!
//! The process is this test program itself, with the directory in its environment: see
//! `power::a_writer_says_only_what_is_kept`.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::Path,
    process::Command,
};

use bytes::Bytes;
use fieldgate::spool::{DirectoryDisk, Disk, DiskFile, Entry, Item, Limits, Spool};

use super::{Field, process::Process};

/// The writer's directory; in no other process of the tests.
pub const DIRECTORY: &str = "SPOOL_WRITER_DIRECTORY";
/// Set for a writer whose disk syncs nothing.
const CARELESS: &str = "SPOOL_WRITER_CARELESS";
/// The test whose process it is.
const TEST: &str = "power::a_writer_says_only_what_is_kept";

const STREAMS: [&str; 2] = ["events", "telemetry"];
/// Small, so that segments are sealed, deleted and used again all the time.
const LIMITS: Limits =
    Limits { max_bytes: 32 << 20, segment_bytes: 16 * 1024, min_free_bytes: 0, tail: 16 };
const MAX_GROUP: u64 = 40;

/// Starts a writer on a directory.
pub fn start(field: &Field, directory: &Path, careless: bool) -> Process {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args([TEST, "--exact", "--nocapture", "--test-threads=1"]);
    command.env(DIRECTORY, directory);
    if careless {
        command.env(CARELESS, "yes");
    }
    Process::start("writer", command, &field.path("writer.log"))
}

/// What a writer's process does until it is killed.
pub fn write_until_killed(directory: &Path) -> io::Result<()> {
    let disk = DirectoryDisk::open(directory)?;
    let mut out = io::stdout();
    // What the test harness has begun to print ends here.
    out.write_all(b"\n")?;
    if std::env::var_os(CARELESS).is_some() {
        write(Careless(disk), random(), u64::MAX, &mut out)
    } else {
        write(disk, random(), u64::MAX, &mut out)
    }
}

/// Appends `groups` groups to both streams and says of each, in a line of its own: `try` before,
/// `kept` when it is persisted; and `trim` before it lets go of something. The numbers are the last
/// of each stream.
pub fn write<D: Disk>(disk: D, epoch: u64, groups: u64, out: &mut impl Write) -> io::Result<()> {
    let (mut spool, _) =
        Spool::open(disk, &STREAMS, LIMITS, epoch).map_err(|e| io::Error::other(e.to_string()))?;
    let mut say = |what: &str, numbers: [u64; 2]| {
        let line = format!("{what} {epoch:x} {} {}\n", numbers[0], numbers[1]);
        // One write of less than PIPE_BUF: a line is there whole or not at all (POSIX, write).
        out.write_all(line.as_bytes()).and_then(|()| out.flush())
    };
    let mut last = [0, 0];
    for group in 0..groups {
        let count = 1 + mixed(epoch ^ group) % MAX_GROUP;
        let mut entries = Vec::new();
        for n in 0..count {
            let stream = usize::from(n % 8 > 0);
            last[stream] += 1;
            let bytes = record(stream, epoch, last[stream]);
            entries.push(Entry { stream, seq: last[stream], bytes, origin: None });
        }
        say("try", last)?;
        spool.append(&entries)?;
        say("kept", last)?;
        if group % 16 == 15 {
            let acked = last.map(|last| last * 3 / 4);
            say("trim", acked)?;
            for (stream, acked) in acked.into_iter().enumerate() {
                spool.trim(stream, epoch, acked)?;
            }
        }
    }
    Ok(())
}

/// What a record of these numbers says; every byte depends on all of them.
fn record(stream: usize, epoch: u64, seq: u64) -> Bytes {
    let mut state = mixed(epoch ^ seq.rotate_left(20) ^ stream as u64);
    let length = 8 + state % 300;
    let mut bytes = Vec::with_capacity(length as usize);
    for _ in 0..length {
        state = mixed(state);
        bytes.push(state as u8);
    }
    bytes.into()
}

/// SplitMix64's finalizer.
pub fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A number that no other run has.
pub fn random() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed().expect("the clock is past 1970");
    mixed(since.as_nanos() as u64 ^ u64::from(std::process::id()).rotate_left(40))
}

/// What writers said.
#[derive(Debug, Clone, Default)]
pub struct Account {
    epochs: BTreeMap<u64, Said>,
}

/// The last number of each stream.
#[derive(Debug, Clone, Copy, Default)]
struct Said {
    tried: [u64; 2],
    kept: [u64; 2],
    trimmed: [u64; 2],
}

impl Account {
    /// Takes in what a writer said; what it said of persisted records counts only in the first
    /// `safe` lines.
    pub fn hear(&mut self, lines: &[String], safe: usize) {
        for (index, line) in lines.iter().enumerate() {
            let words: Vec<&str> = line.split(' ').collect();
            let [what @ ("try" | "kept" | "trim"), epoch, events, telemetry] = words[..] else {
                continue;
            };
            let number = |text: &str| text.parse().expect("a writer's line is whole");
            let epoch = u64::from_str_radix(epoch, 16).expect("a writer's line is whole");
            let said = self.epochs.entry(epoch).or_default();
            let last = [number(events), number(telemetry)];
            match what {
                "try" => said.tried = last,
                "trim" => said.trimmed = last,
                _ if index < safe => said.kept = last,
                _ => {}
            }
        }
    }

    /// How many records were said to be kept.
    pub fn kept(&self) -> u64 {
        self.epochs.values().flat_map(|said| said.kept).sum()
    }

    /// Opens the spool as a start of the gateway would, and reads all of it: all that was kept is
    /// there, in order, and nothing that was not appended. With `retire`, all of it is then
    /// acknowledged, and must not be found again.
    pub fn check(&mut self, directory: &Path, retire: bool) -> Result<(), String> {
        let disk = DirectoryDisk::open(directory).map_err(|error| error.to_string())?;
        let opened = Spool::open(disk, &STREAMS, LIMITS, random());
        let (mut spool, report) = opened.map_err(|error| error.to_string())?;
        if !report.damage.is_empty() {
            return Err(format!("damage: {:?}", report.damage));
        }
        // An epoch that is acknowledged to its end may be told of until the next one is.
        let held: Vec<_> = spool.held().into_iter().filter(|r| r.next > r.acked + 1).collect();
        for range in &held {
            let place = format!("{} of epoch {:x}", STREAMS[range.stream], range.epoch);
            let said = self.epochs.get(&range.epoch);
            let said = said.ok_or_else(|| format!("{place}: it was never written, or retired"))?;
            let [tried, trimmed] = [said.tried, said.trimmed].map(|all| all[range.stream]);
            if range.acked > trimmed {
                return Err(format!("{place}: {} acked of {trimmed}", range.acked));
            }
            let mut at = range.acked + 1;
            while at < range.next {
                let items = spool.read(range.stream, range.epoch, at, 100_000);
                for item in items.map_err(|error| format!("{place}: {error}"))? {
                    let Item::Record { seq, bytes } = item else {
                        return Err(format!("{place}: {item:?}"));
                    };
                    if seq != at || seq > tried || bytes != record(range.stream, range.epoch, seq) {
                        return Err(format!("{place}: {seq} for {at}, {tried} tried"));
                    }
                    at += 1;
                }
            }
        }
        for (epoch, said) in &self.epochs {
            for (stream, kept) in said.kept.into_iter().enumerate() {
                let range = held.iter().find(|r| (r.stream, r.epoch) == (stream, *epoch));
                let next = range.map_or(said.trimmed[stream] + 1, |range| range.next);
                if next <= kept {
                    return Err(format!(
                        "{} of epoch {epoch:x}: {kept} was kept, and all from \
                                        {next} on is lost",
                        STREAMS[stream]
                    ));
                }
            }
        }
        if retire {
            for range in &held {
                let retired = spool.retire(range.stream, range.epoch);
                retired.map_err(|error| format!("retire: {error}"))?;
            }
            self.epochs.clear();
        }
        Ok(())
    }
}

/// A disk that says it has synced and has not: what a harness must notice.
#[derive(Debug)]
struct Careless<T>(T);

impl<D: Disk> Disk for Careless<D> {
    type File = Careless<D::File>;

    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }

    fn create(&self, name: &str) -> io::Result<Self::File> {
        self.0.create(name).map(Careless)
    }

    fn open(&self, name: &str) -> io::Result<Self::File> {
        self.0.open(name).map(Careless)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.0.free_bytes()
    }

    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let temporary = format!("{name}.new");
        self.0.create(&temporary)?.write_at(content, 0)?;
        self.0.rename(&temporary, name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }
}

impl<F: DiskFile> DiskFile for Careless<F> {
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn settle(&mut self) -> io::Result<()> {
        Ok(())
    }
}
