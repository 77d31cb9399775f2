//! Promise 1 on a real file system: what `append` said is kept is there after SIGKILL. What a power
//! cut leaves is in `mounted`, which needs root.

use std::{path::Path, time::Duration};

use fieldgate::spool::DirectoryDisk;

use crate::field::{
    Field, SOON,
    writer::{self, Account, mixed, random},
};

/// Also the writer's whole life, where the environment says so: a test program that starts itself
/// needs no second program.
#[test]
fn a_writer_says_only_what_is_kept() {
    if let Some(directory) = std::env::var_os(writer::DIRECTORY) {
        // A disk that fails ends it as well; it is not asked how it went.
        drop(writer::write_until_killed(Path::new(&directory)));
        return;
    }
    let field = Field::new();
    let directory = field.path("spool");
    let (epoch, mut said) = (random(), Vec::new());
    let disk = DirectoryDisk::open(&directory).expect("a directory of its own");
    writer::write(disk, epoch, 40, &mut said).expect("a healthy disk");
    let lines: Vec<String> =
        String::from_utf8(said).expect("lines of text").lines().map(str::to_owned).collect();
    let mut account = Account::default();
    account.hear(&lines, lines.len());
    assert!(account.kept() > 400, "{account:?}");
    account.check(&directory, false).expect("all that was kept is there");

    let mut more = account.clone();
    let next = lines.iter().rev().find(|line| line.starts_with("kept")).expect("40 groups");
    let mut words: Vec<&str> = next.split(' ').collect();
    words[3] = "100000";
    more.hear(&[words.join(" ")], 1);
    let error = more.check(&directory, false).expect_err("so many were never kept");
    assert!(error.contains("100000 was kept"), "{error}");
    let mut less = Account::default();
    less.hear(&lines[..lines.len() / 2], lines.len());
    less.check(&directory, false).expect_err("so many were never appended");
    account.check(&directory, true).expect("all is there, and is retired");
    account.check(&directory, false).expect("nothing is found again");
}

#[test]
fn what_was_persisted_survives_two_hundred_kills() {
    const ROUNDS: u64 = 200;
    let field = Field::new();
    let directory = field.path("spool");
    let seed = random();
    let mut account = Account::default();
    let mut kept = 0;
    for round in 0..ROUNDS {
        let chance = mixed(seed ^ round);
        let mut writer = writer::start(&field, &directory, false);
        if !chance.is_multiple_of(8) {
            writer.wait_for_line(SOON, |line| line.starts_with("kept"));
        }
        // Where in its work it dies is what the rounds differ by.
        std::thread::sleep(Duration::from_micros(chance / 8 % 20_000));
        writer.kill();
        let lines = writer.lines();
        account.hear(&lines, lines.len());
        kept += account.kept();
        // Some epochs stay for several starts.
        if let Err(error) = account.check(&directory, chance.is_multiple_of(3)) {
            panic!("round {round} of seed {seed}: {error}");
        }
    }
    assert!(kept > ROUNDS * 100, "{kept} records are too few to say anything");
}
