//! Promises 1, 2, 3 and 7 over many crashes, floods and outages: what is sent again is known, what
//! is lost is counted, what is quick needs no disk.

use std::{
    collections::BTreeMap,
    fs,
    hash::{BuildHasher as _, RandomState},
    net::Ipv4Addr,
    os::unix::fs::{MetadataExt as _, symlink},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use super::delivery::{collect, wait_until_it_flows};
use crate::field::{
    Field, SOON,
    broker::Broker,
    device::{Habits, Publisher},
    eventually, free_port,
    gateway::{Gateway, Setup},
    hub::{Hub, Row},
    relay::Relay,
};

const GATEWAY: &str = "gw-1";
const DEVICE: &str = "plc-01";

/// How long a scenario's publishes and outages may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

const PER_SECOND: u32 = 500;
const PUBLISHES: u64 = 7500;

/// How often the gateway is killed; the hub goes at the second of these kills and at the sixth, and
/// is back two kills later.
const KILLS: u64 = 9;
const HUB_KILLS: [u64; 2] = [1, 5];
const HUB_STARTS: [u64; 2] = [3, 7];

#[test]
fn nothing_is_lost_doubled_or_reordered_through_mosquitto_however_often_the_gateway_is_killed() {
    let field = Field::new();
    // What mosquitto has in flight is its own default.
    let mut broker = Broker::with(&field, "");
    broker.start();
    let mut hub = Hub::started(&field);
    let mut gateway = Gateway::started(&field, &Setup::new(&field, &hub).through(broker.port));
    wait_until_it_flows(&hub, &gateway);
    let publisher = Publisher::start(gateway.port, DEVICE, PER_SECOND, PUBLISHES);
    kill_at_random(&mut hub, &mut gateway, &publisher);
    assert_once_and_in_order(&hub, &[publisher]);
}

#[test]
fn nothing_is_lost_doubled_or_reordered_from_a_device_whose_identifiers_rise_and_wrap() {
    let field = Field::new();
    let mut hub = Hub::started(&field);
    let mut gateway = Gateway::started(&field, &Setup::new(&field, &hub));
    let habits = Habits { first_packet_id: 65_400, ..steady() };
    let publisher = Publisher::with(gateway.port, DEVICE, habits);
    kill_at_random(&mut hub, &mut gateway, &publisher);
    let account = publisher.account();
    assert!(!account.resent.is_empty(), "no kill made it send anything again");
    assert_once_and_in_order(&hub, &[publisher]);
}

#[test]
fn nothing_is_lost_from_a_device_that_has_one_identifier_and_one_payload() {
    let field = Field::new();
    let mut hub = Hub::started(&field);
    let mut gateway = Gateway::started(&field, &Setup::new(&field, &hub));
    let habits = Habits { is_forgetful: true, count: PUBLISHES / 3, ..steady() };
    let publisher = Publisher::with(gateway.port, DEVICE, habits);
    let recognised = kill_at_random(&mut hub, &mut gateway, &publisher);
    assert_eq!(recognised, 0, "nothing tells what it sends again from what is new");

    // It waits for each PUBACK, so of each publish there must be a record from between.
    let spans = publisher.account().spans_ms;
    let doubled = eventually("a record of each acknowledged publish", PATIENCE, || {
        let rows = rows_of(&hub, DEVICE);
        (without_record(&spans, &rows) == 0).then_some(rows.len() - spans.len())
    });
    println!("{} acknowledged, {doubled} doubled", spans.len());
    assert!(doubled as u64 <= KILLS, "{doubled} doubled; each kill can double one");
}

fn steady() -> Habits {
    Habits { per_second: PER_SECOND, count: PUBLISHES, ..Habits::default() }
}

/// Kills the gateway and the hub again and again while `publisher` publishes, until all is
/// acknowledged. How many publishes the gateway knew again, as far as it still could say.
fn kill_at_random(hub: &mut Hub, gateway: &mut Gateway, publisher: &Publisher) -> u64 {
    let acked = |n: u64| {
        let what = format!("{n} publishes are acknowledged");
        eventually(&what, PATIENCE, || (publisher.acked() >= n).then_some(()));
    };
    let stretch = publisher.account().planned / (KILLS + 1);
    let mut recognised = 0;
    for kill in 0..KILLS {
        // The first while identifiers that begin at 65,400 come round.
        let at = if kill == 0 { 120 + dice(20) } else { kill * stretch + dice(stretch) };
        acked(at);
        let status = gateway.wait_until("enough is heard to know a run by", |status| {
            kill > 0 || status["counters"]["received"].as_u64() >= Some(50)
        });
        recognised += status["counters"]["recognised"].as_u64().expect("a count");
        gateway.kill();
        if HUB_KILLS.contains(&kill) {
            hub.kill();
        }
        gateway.start();
        if HUB_STARTS.contains(&kill) {
            hub.start();
        }
        println!("killed at {at}, {recognised} known again so far");
    }
    eventually("all is acknowledged", PATIENCE, || publisher.done().then_some(()));
    recognised
}

/// Less than `end`.
fn dice(end: u64) -> u64 {
    RandomState::new().hash_one(()) % end
}

fn assert_once_and_in_order(hub: &Hub, publishers: &[Publisher]) {
    let ledger = collect(hub, publishers);
    assert!(ledger.repeated.is_empty(), "positions stored twice: {:?}", ledger.repeated);
    for publisher in publishers {
        let (device, account) = (&publisher.device, publisher.account());
        assert_eq!(account.acked.len() as u64, account.planned, "{device}");
        let twice = ledger.duplicates(device).0;
        assert!(twice.is_empty(), "{device}: {twice:?} arrived twice");
        let late = ledger.out_of_order(device);
        assert!(late.is_empty(), "{device}: arrived after a later one: {late:?}");
    }
}

fn rows_of(hub: &Hub, device: &str) -> Vec<Row> {
    let rows = hub.all_records(GATEWAY).into_iter();
    rows.filter(|row| row.device.as_deref() == Some(device) && row.n.is_some()).collect()
}

/// How many of the spans, which don't overlap, have no record of their own heard within them.
fn without_record(spans_ms: &[(u64, u64)], rows: &[Row]) -> usize {
    let mut heard: Vec<u64> = rows.iter().map(|row| number(row, "ts")).collect();
    heard.sort_unstable();
    let mut heard = heard.into_iter().peekable();
    let has_none = |&&(from, to): &&(u64, u64)| {
        while heard.next_if(|at| *at < from).is_some() {}
        heard.next_if(|at| *at <= to).is_none()
    };
    spans_ms.iter().filter(has_none).count()
}

fn number(row: &Row, name: &str) -> u64 {
    row.all[name].as_u64().unwrap_or_else(|| panic!("a record without {name}: {row:?}"))
}

#[test]
fn fresh_records_pass_the_backlog_of_an_outage_with_live_first() {
    let (fresh, backlog) = after_an_outage("live-first");
    let last_of_backlog = backlog.iter().map(|row| row.id).max();
    let last_fresh = fresh.iter().map(|row| row.id).max();
    assert!(last_fresh < last_of_backlog, "the backlog was gone before the fresh records were");
    let ages: Vec<u64> =
        fresh.iter().map(|row| number(row, "received") - number(row, "ts")).collect();
    println!("ages of the fresh records in ms: {ages:?}");
    let late = ages.iter().filter(|age| **age > 2000).count();
    assert_eq!(late, 0, "fresh records came later than after 2 s: {ages:?}");
}

#[test]
fn fresh_records_follow_the_backlog_of_an_outage_with_oldest_first() {
    let (fresh, backlog) = after_an_outage("oldest-first");
    let last_of_backlog = backlog.iter().map(|row| row.id).max();
    let first_fresh = fresh.iter().map(|row| row.id).min();
    assert!(first_fresh > last_of_backlog, "{first_fresh:?} came before {last_of_backlog:?}");
}

/// 20,000 records wait for a hub that comes back behind a line of 200 kB/s; meanwhile a device
/// publishes every 100 ms. What the hub has of that device, and of the others.
fn after_an_outage(order: &str) -> (Vec<Row>, Vec<Row>) {
    const LINE: u32 = 200_000;
    let field = Field::new();
    let mut hub = Hub::new(&field);
    let port = free_port();
    let mut setup = Setup::new(&field, &hub);
    setup.uplink = setup.uplink.replace(&format!(":{}/", hub.port), &format!(":{port}/"));
    setup.spool += &format!("\norder = \"{order}\"");
    let gateway = Gateway::started(&field, &setup);
    let habits = Habits { per_second: 1000, count: 2000, padding_bytes: 100, ..Habits::default() };
    let start = |n| Publisher::with(gateway.port, &format!("meter-{n}"), habits.clone());
    let mut publishers: Vec<Publisher> = (0..10).map(start).collect();
    let is_done = |publishers: &[Publisher]| publishers.iter().all(Publisher::done).then_some(());
    eventually("the backlog is acknowledged", PATIENCE, || is_done(&publishers));

    hub.start();
    let _line = Relay::slow((Ipv4Addr::LOCALHOST, port).into(), hub.port, LINE);
    gateway.wait_connected();
    publishers.push(Publisher::start(gateway.port, "fresh", 10, 50));
    eventually("the fresh records are acknowledged", PATIENCE, || is_done(&publishers));
    assert_once_and_in_order(&hub, &publishers);
    let rows = hub.all_records(GATEWAY).into_iter().filter(|row| row.n.is_some());
    rows.partition(|row| row.device.as_deref() == Some("fresh"))
}

#[test]
fn a_flooding_device_pushes_out_its_own_records_and_is_refused_before_it_costs_its_neighbours() {
    let field = Field::new();
    let mut hub = Hub::new(&field);
    let mut setup = Setup::new(&field, &hub);
    setup.spool += "\nmax_bytes = \"8MiB\"";
    let gateway = Gateway::started(&field, &setup);
    let habits =
        Habits { per_second: 5000, count: 100_000, padding_bytes: 4000, ..Habits::default() };
    let flood = Publisher::with(gateway.port, "flood", habits);
    eventually("the flood pushes its own oldest records out", PATIENCE, || {
        let status = gateway.status()?;
        (status["counters"]["evicted"].as_u64() > Some(0)).then_some(())
    });
    let start = |n| Publisher::start(gateway.port, &format!("quiet-{n}"), 50, 250);
    let quiet: Vec<Publisher> = (1..=9).map(start).collect();
    eventually("the quiet ones are acknowledged", PATIENCE, || {
        quiet.iter().all(Publisher::done).then_some(())
    });
    flood.finish();
    eventually("the rest of the flood is acknowledged", SOON, || flood.done().then_some(()));
    let held = gateway.status().expect("the gateway answers")["spool"]["bytes"].as_u64();
    assert!(held <= Some(8 << 20), "{held:?} bytes are more than spool.max_bytes");

    hub.start();
    assert_once_and_in_order(&hub, &quiet);
    let published = flood.account().published;
    let (arrived, counters) = eventually("the flood's account is closed", SOON, || {
        let arrived = rows_of(&hub, "flood").len() as u64;
        let counters = counters(&hub);
        let lost = |name: &str| counters[name].as_u64().unwrap_or_default();
        (arrived + lost("lost") + lost("refused") >= published).then_some((arrived, counters))
    });
    println!("of {published} of the flood {arrived} arrived; {counters}");
    let [lost, refused] = ["lost", "refused"].map(|name| counters[name].as_u64().expect("a count"));
    assert!(lost > 0 && refused > 0, "{counters}");
    assert_eq!(arrived + lost + refused, published, "{counters}");
    assert_eq!(counters["duplicate"], 0, "{counters}");
    for event in hub.all_records(GATEWAY).iter().filter(|row| row.is_event("refused")) {
        assert_eq!(
            (event.event("device"), event.event("reason")),
            (&"flood".into(), &"over_share".into())
        );
    }
}

fn counters(hub: &Hub) -> Value {
    let path = format!("/v1/gateways/{GATEWAY}");
    let answer = hub.api.get(&path).expect("the hub answers");
    assert_eq!(answer.status, 200, "GET {path}: {answer:?}");
    answer.body["counters"].clone()
}

/// The shortest `max_age` is a minute, and this waits for it.
#[test]
fn what_is_older_than_max_age_is_not_sent_and_is_accounted() {
    const STALE: u64 = 200;
    let field = Field::new();
    let mut hub = Hub::new(&field);
    let mut setup = Setup::new(&field, &hub);
    setup.spool += "\nmax_age = \"60s\"";
    let gateway = Gateway::started(&field, &setup);
    let stale = Publisher::start(gateway.port, "stale", 500, STALE);
    eventually("the first are acknowledged", SOON, || stale.done().then_some(()));
    let expiry =
        UNIX_EPOCH + Duration::from_millis(stale.account().spans_ms[STALE as usize - 1].1 + 60_000);
    let patience = Duration::from_secs(70);
    eventually("they are a minute old", patience, || (SystemTime::now() > expiry).then_some(()));
    let fresh = Publisher::start(gateway.port, "fresh", 500, 50);
    eventually("fresh ones are acknowledged", SOON, || fresh.done().then_some(()));

    hub.start();
    assert_once_and_in_order(&hub, &[fresh]);
    assert!(rows_of(&hub, "stale").is_empty(), "older than max_age, and sent");
    assert_eq!(counters(&hub)["lost"], STALE);
    let gaps = hub.api.get(&format!("/v1/gateways/{GATEWAY}/gaps")).expect("the hub answers").body;
    let gaps = gaps["gaps"].as_array().expect("a list of gaps");
    assert!(gaps.iter().all(|gap| gap["reason"] == "expired") && !gaps.is_empty(), "{gaps:?}");
}

#[test]
fn nothing_is_written_while_the_hub_acknowledges_in_time() {
    let field = Field::new();
    let hub = Hub::started(&field);
    // A loaded machine may be slower than the default of a second, which is not the subject.
    let spool = "write_after = \"30s\"".to_owned();
    let gateway = Gateway::started(&field, &Setup { spool, ..Setup::new(&field, &hub) });
    gateway.wait_connected();
    let written =
        || gateway.status().expect("the gateway answers")["spool"]["written_bytes"].clone();
    let before = (written(), files(&field.path("state/spool")));
    let publisher = Publisher::start(gateway.port, DEVICE, PER_SECOND, 1000);
    eventually("all is acknowledged", PATIENCE, || publisher.done().then_some(()));
    assert_once_and_in_order(&hub, &[publisher]);
    assert_eq!((written(), files(&field.path("state/spool"))), before);
}

/// Each file of a directory with its length and when it was last written to, in nanoseconds.
fn files(directory: &Path) -> BTreeMap<String, (u64, i64, i64)> {
    let entries =
        fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let entry = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.expect("a directory that is read");
        let about = entry.metadata().expect("a file that stays");
        let times = (about.len(), about.mtime(), about.mtime_nsec());
        (entry.file_name().to_string_lossy().into_owned(), times)
    };
    entries.map(entry).collect()
}

#[test]
fn what_twenty_starts_without_a_hub_left_drains_in_order() {
    const STARTS: u64 = 20;
    const EACH: u64 = 5;
    let field = Field::new();
    let mut hub = Hub::new(&field);
    let mut gateway = Gateway::new(&field, &Setup::new(&field, &hub));
    for start in 0..STARTS {
        gateway.start();
        let publisher = Publisher::start(gateway.port, &format!("day-{start}"), 500, EACH);
        eventually("a day's publishes are acknowledged", SOON, || publisher.done().then_some(()));
        drop(publisher);
        if start % 2 == 0 {
            gateway.kill();
        } else {
            assert_eq!(gateway.terminate().0.code(), Some(0));
        }
    }
    gateway.start();
    hub.start();
    let wanted: Vec<(String, u64)> = (0..STARTS)
        .flat_map(|start| (1..=EACH).map(move |n| (format!("day-{start}"), n)))
        .collect();
    let arrived = eventually("as many records as were published", SOON, || {
        let rows = hub.all_records(GATEWAY).into_iter();
        let rows = rows.filter_map(|row| Some((row.device?, row.n?)));
        let arrived: Vec<(String, u64)> = rows.collect();
        (arrived.len() >= wanted.len()).then_some(arrived)
    });
    assert_eq!(arrived, wanted);
    gateway.wait_until("nothing is held any more", |status| {
        let streams = status["streams"].as_array().into_iter().flatten();
        streams.map(|stream| stream["held"].as_u64()).all(|held| held == Some(0))
    });
    let counters = counters(&hub);
    for name in ["duplicate", "lost", "refused", "rejected"] {
        assert_eq!(counters[name], 0, "{name}: {counters}");
    }
}

/// A card that is not mounted when the gateway starts: a file stands where the spool should be.
#[test]
fn a_spool_that_can_not_be_opened_costs_nothing_and_heals_by_itself() {
    let field = Field::new();
    let mut hub = Hub::new(&field);
    let spool = "durability = \"hub_or_disk\"".to_owned();
    let mut gateway = Gateway::started(&field, &Setup { spool, ..Setup::new(&field, &hub) });
    let old = Publisher::start(gateway.port, "old", 500, 300);
    eventually("the old spool has all", SOON, || old.done().then_some(()));
    gateway.kill();
    let (place, card) = (field.path("state/spool"), field.path("card"));
    fs::rename(&place, &card).expect("a directory of the scenario's own");
    symlink(field.write("not-a-directory", ""), &place).expect("a free name");

    hub.start();
    gateway.start();
    gateway.wait_connected();
    gateway.wait_until("it says what is wrong with the disk", |status| {
        status["disk"]["error"].as_str().is_some_and(|error| error.contains("state/spool"))
    });
    let live = Publisher::start(gateway.port, "live", 200, 200);
    eventually("it relays without a disk", SOON, || live.done().then_some(()));
    assert!(rows_of(&hub, "old").is_empty(), "the old spool can't be read");

    let mounted = field.path("mounted");
    symlink(&card, &mounted).expect("a free name");
    fs::rename(&mounted, &place).expect("a name in the same directory");
    gateway.wait_until("the disk is well", |status| status["disk"]["error"].is_null());
    let after = Publisher::start(gateway.port, "after", 200, 200);
    eventually("it goes on", SOON, || after.done().then_some(()));
    assert_once_and_in_order(&hub, &[old, live, after]);
    assert_eq!(counters(&hub)["lost"], 0);
}
