//! Power cuts, a full disk and one that went read-only, on file systems of the scenarios' own.
//! These need root; `tests/run` says so where it isn't.

use std::{path::Path, time::Duration};

use crate::field::{
    Field, SOON,
    device::Publisher,
    eventually,
    gateway::{Gateway, Setup},
    hub::Hub,
    ledger::Ledger,
    mount::{self, Mount},
    process::Process,
    writer::{self, Account, mixed, random},
};

const GATEWAY: &str = "gw-1";

/// The kernel's word, or the spool's own, that leaves a floor of the medium to others.
const FULL: &[&str] = &["No space left on device", "min_free_bytes"];
const READ_ONLY: &[&str] = &["Read-only file system"];

/// No commit but those that were asked for: what was not synced stays in memory.
const RARE_COMMITS: &str = "loop,commit=300";

#[test]
fn what_was_persisted_survives_power_cuts() {
    let field = Field::new();
    let mut medium = medium(&field);
    let mut account = Account::default();
    let seed = random();
    for round in 0..12 {
        let chance = mixed(seed ^ round);
        if let Err(error) = power_cut(&field, &mut medium, &mut account, chance, false) {
            panic!("round {round} of seed {seed}: {error}");
        }
    }
}

/// The harness is strong enough: it sees a spool that doesn't sync. Now and then somebody else on
/// the machine syncs everything; not every time.
#[test]
fn a_power_cut_tells_of_a_disk_that_does_not_sync() {
    let field = Field::new();
    let mut medium = medium(&field);
    let mut account = Account::default();
    let noticed =
        (0..5).any(|_| power_cut(&field, &mut medium, &mut account, random(), true).is_err());
    assert!(noticed, "nothing was synced, and all of it is there?");
}

#[test]
fn what_was_persisted_is_in_an_image_taken_while_it_is_written() {
    let field = Field::new();
    let medium = medium(&field);
    let mut writer = writer::start(&field, &medium.path.join("spool"), false);
    for round in 0..12 {
        if let Err(error) = image(&field, &mut writer, 20 + round * 30) {
            panic!("round {round}: {error}");
        }
    }
    writer.kill();
}

#[test]
fn an_image_tells_of_a_disk_that_does_not_sync() {
    let field = Field::new();
    let medium = medium(&field);
    let mut writer = writer::start(&field, &medium.path.join("spool"), true);
    let noticed = (1..6).any(|round| image(&field, &mut writer, round * 40).is_err());
    writer.kill();
    assert!(noticed, "nothing was synced, and all of it is there?");
}

fn medium(field: &Field) -> Mount {
    Mount::ext4(field.path("medium"), field.path("medium.img"), 64, RARE_COMMITS)
}

/// Cuts the power of a writer's disk, gives it back, and looks.
fn power_cut(
    field: &Field,
    medium: &mut Mount,
    account: &mut Account,
    chance: u64,
    careless: bool,
) -> Result<(), String> {
    let directory = medium.path.join("spool");
    let power = medium.power_switch(field);
    let mut writer = writer::start(field, &directory, careless);
    // So many that what is let go of before the power is off is not all of it.
    wait_for_groups(&mut writer, 40 + (chance % 60) as usize);
    let safe = writer.lines().len();
    power.cut();
    writer.kill();
    account.hear(&writer.lines(), safe);
    medium.unmount();
    medium.mount();
    account.check(&directory, chance.is_multiple_of(3))
}

/// Stops the writer, copies what its disk has, lets it go on, and looks at the copy.
fn image(field: &Field, writer: &mut Process, groups: usize) -> Result<(), String> {
    wait_for_groups(writer, groups);
    writer.signal("STOP");
    // Not before its last system call has ended is the disk at rest.
    eventually("the writer has stopped", SOON, || writer.is_stopped().then_some(()));
    let safe = writer.lines().len();
    mount::copy(&field.path("medium.img"), &field.path("copy.img"));
    writer.signal("CONT");
    // Its next words come after all that it said before.
    wait_for_groups(writer, groups + 3);
    let mut account = Account::default();
    account.hear(&writer.lines(), safe);
    let mut copy = Mount::image(field.path("copy"), field.path("copy.img"), RARE_COMMITS);
    let checked = account.check(&copy.path.join("spool"), false);
    copy.unmount();
    checked
}

fn wait_for_groups(writer: &mut Process, groups: usize) {
    let mut kept = 0;
    writer.wait_for_line(SOON, |line| {
        kept += usize::from(line.starts_with("kept"));
        kept >= groups
    });
}

#[test]
fn with_a_full_disk_records_go_on_live_and_nothing_unsafe_is_acknowledged() {
    let field = Field::new();
    let mut hub = Hub::started(&field);
    let state = Mount::tmpfs(field.path("state"), "16m");
    let mut gateway = Gateway::started(&field, &setup(&field, &hub));
    gateway.wait_connected();
    let ballast = fill(&state.path);
    let live = published(&gateway, "live");

    hub.kill();
    let first = nothing_more_is_acknowledged(&gateway, "first", FULL);
    hub.start();
    eventually("what waited in memory is with the hub", SOON, || first.done().then_some(()));

    hub.kill();
    let second = nothing_more_is_acknowledged(&gateway, "second", FULL);
    std::fs::remove_file(ballast).expect("space returns");
    eventually("the disk has what waited", SOON, || second.done().then_some(()));
    gateway.wait_until("status has nothing to complain of", |status| {
        status["disk"]["error"].is_null()
    });
    hub.start();
    all_arrived_once(&hub, [live, first, second]);
    // Nothing of the gateway's may be open when the file system goes.
    gateway.kill();
}

#[test]
fn with_a_disk_that_went_read_only_records_go_on_live_and_a_restart_heals() {
    let field = Field::new();
    let mut hub = Hub::started(&field);
    let (path, image) = (field.path("state"), field.path("state.img"));
    let mut state = Mount::ext4(path, image, 64, "loop,errors=remount-ro");
    let mut gateway = Gateway::started(&field, &setup(&field, &hub));
    gateway.wait_connected();
    state.break_down();
    let live = published(&gateway, "live");

    hub.kill();
    let first = nothing_more_is_acknowledged(&gateway, "first", READ_ONLY);
    hub.start();
    eventually("what waited in memory is with the hub", SOON, || first.done().then_some(()));

    hub.kill();
    let second = nothing_more_is_acknowledged(&gateway, "second", READ_ONLY);
    gateway.kill();
    state.unmount();
    state.mount();
    gateway.start();
    eventually("the disk has what waited", SOON, || second.done().then_some(()));
    hub.start();
    all_arrived_once(&hub, [live, first, second]);
    gateway.kill();
}

/// A gateway that writes only what the hub does not take.
fn setup(field: &Field, hub: &Hub) -> Setup {
    let spool = "durability = \"hub_or_disk\"\nmin_free_bytes = \"1MiB\"".into();
    Setup { spool, ..Setup::new(field, hub) }
}

fn published(gateway: &Gateway, device: &str) -> Publisher {
    let publisher = Publisher::start(gateway.port, device, 100, 50);
    eventually("50 publishes are acknowledged", SOON, || publisher.done().then_some(()));
    publisher
}

/// A device that publishes while neither disk nor hub can make anything safe, and status says why.
fn nothing_more_is_acknowledged(gateway: &Gateway, device: &str, faults: &[&str]) -> Publisher {
    gateway.wait_until("the hub is gone", |status| status["uplink"]["state"] != "connected");
    let publisher = Publisher::start(gateway.port, device, 100, 200);
    eventually("its window is used up", SOON, || {
        let account = publisher.account();
        (account.published - account.acked.len() as u64 == 20).then_some(())
    });
    gateway.wait_until("status tells of the disk", |status| {
        let error = status["disk"]["error"].as_str().unwrap_or_default();
        faults.iter().any(|fault| error.contains(fault))
    });
    let acked = publisher.acked();
    // Here time itself is the subject: the disk is tried every second, in vain.
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(publisher.acked(), acked, "acknowledged, and safe nowhere");
    publisher
}

/// Takes all that is free.
fn fill(directory: &Path) -> std::path::PathBuf {
    let path = directory.join("ballast");
    let mut file = std::fs::File::create(&path).expect("there is room yet");
    let block = [0; 4096];
    while std::io::Write::write_all(&mut file, &block).is_ok() {}
    path
}

fn all_arrived_once(hub: &Hub, publishers: [Publisher; 3]) {
    for publisher in &publishers {
        let device = &publisher.device;
        let account = publisher.account();
        let last = account.acked.last().copied();
        hub.wait_for(GATEWAY, &format!("the last of {device}"), |row| {
            row.device.as_deref() == Some(device) && row.n == last
        });
    }
    let mut ledger = Ledger::default();
    hub.all_records(GATEWAY).iter().for_each(|row| ledger.add(row));
    assert_eq!(ledger.repeated, []);
    for publisher in &publishers {
        let missing = ledger.missing(&publisher.device, &publisher.account());
        assert!(missing.is_empty(), "{}: {missing:?}", publisher.device);
        assert_eq!(ledger.out_of_order(&publisher.device), [0; 0]);
    }
}
