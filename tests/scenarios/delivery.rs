//! Promises 1 and 2: nothing acknowledged is lost, nothing is doubled by the uplink.

use std::time::Duration;

use crate::field::{
    Field, SOON,
    broker::{self, Broker},
    device::Publisher,
    eventually,
    gateway::{Gateway, Setup},
    hub::Hub,
    ledger::Ledger,
};

const DEVICES: u64 = 5;
const PER_SECOND: u32 = 200;
const PUBLISHES: u64 = 4000;

/// How long a killed process stays away.
const OUTAGE: Duration = Duration::from_millis(1500);

/// How long 20,000 publishes and four outages may take on a loaded machine; they should take 25 s.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn no_acknowledged_record_is_lost_through_the_listener() {
    let field = Field::new();
    let mut hub = Hub::started(&field);
    let mut gateway = Gateway::started(&field, &Setup::new(&field, &hub));
    let publishers = publish_while_all_is_killed(&mut hub, &mut gateway);

    let ledger = collect(&hub, &publishers);
    assert_delivered(&ledger, &publishers);
    assert_doubled_by_devices_only(&ledger, &publishers);
}

#[test]
fn no_acknowledged_record_is_lost_through_mosquitto() {
    let field = Field::new();
    let broker = Broker::started(&field);
    let mut hub = Hub::started(&field);
    let setup = Setup::new(&field, &hub).through(broker.port);
    let mut gateway = Gateway::started(&field, &setup);
    wait_until_it_flows(&hub, &gateway);
    let publishers = publish_while_all_is_killed(&mut hub, &mut gateway);

    let ledger = collect(&hub, &publishers);
    let twice = assert_delivered(&ledger, &publishers);
    // Two kills of the gateway: mosquitto may send again what was in flight at each.
    let most = 2 * broker::MAX_INFLIGHT;
    assert!(twice <= most, "{twice} arrived twice; mosquitto redelivers at most {most}");
}

/// Kills the hub, the gateway, the hub, and the gateway while the hub is away, at fixed points of
/// the publishing.
fn publish_while_all_is_killed(hub: &mut Hub, gateway: &mut Gateway) -> Vec<Publisher> {
    let start = |n| Publisher::start(gateway.port, &format!("plc-{n:02}"), PER_SECOND, PUBLISHES);
    let publishers: Vec<Publisher> = (1..=DEVICES).map(start).collect();
    let total = DEVICES * PUBLISHES;
    let reach = |percent: u64| {
        let acked = || publishers.iter().map(Publisher::acked).sum::<u64>();
        let what = format!("{percent} % of {total} publishes are acknowledged");
        eventually(&what, PATIENCE, || (acked() >= total * percent / 100).then_some(()));
    };
    reach(15);
    hub.kill();
    std::thread::sleep(OUTAGE);
    hub.start();
    reach(35);
    gateway.kill();
    std::thread::sleep(OUTAGE);
    gateway.start();
    reach(55);
    hub.kill();
    reach(65);
    gateway.kill();
    std::thread::sleep(OUTAGE);
    gateway.start();
    reach(75);
    hub.start();
    reach(100);
    publishers
}

/// Publishes until something arrives: before a broker knows the gateway's subscription it keeps
/// nothing for it.
pub fn wait_until_it_flows(hub: &Hub, gateway: &Gateway) {
    let probe = Publisher::start(gateway.port, "probe", 20, 1000);
    hub.wait_for("gw-1", "a first record arrives at the hub", |row| {
        row.device.as_deref() == Some("probe") && row.n.is_some()
    });
    drop(probe);
}

/// Reads the hub until all that was acknowledged is there.
pub fn collect(hub: &Hub, publishers: &[Publisher]) -> Ledger {
    let mut ledger = Ledger::default();
    let mut after = 0;
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let rows = hub.records("gw-1", after);
        rows.iter().for_each(|row| ledger.add(row));
        after = rows.last().map_or(after, |row| row.id);
        if !rows.is_empty() {
            continue;
        }
        let missing = |p: &Publisher| (p.device.clone(), ledger.missing(&p.device, &p.account()));
        let missing: Vec<_> = publishers.iter().map(missing).filter(|m| !m.1.is_empty()).collect();
        if missing.is_empty() {
            return ledger;
        }
        let in_time = std::time::Instant::now() < deadline;
        assert!(in_time, "acknowledged, but not at the hub within {PATIENCE:?}: {missing:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Everything once from the uplink, and in each device's order. How many arrived twice because MQTT
/// sent them twice.
pub fn assert_delivered(ledger: &Ledger, publishers: &[Publisher]) -> u64 {
    let mut doubled = 0;
    assert!(ledger.repeated.is_empty(), "positions stored twice: {:?}", ledger.repeated);
    for publisher in publishers {
        let (device, account) = (&publisher.device, publisher.account());
        assert_eq!(account.acked.len() as u64, account.published, "{device}");
        let late = ledger.out_of_order(device);
        assert!(late.is_empty(), "{device}: arrived after a later one: {late:?}");
        let (twice, within_epoch) = ledger.duplicates(device);
        assert!(within_epoch.is_empty(), "{device}: doubled by one run: {within_epoch:?}");
        println!(
            "{device}: {} acknowledged, {} arrived, {} twice, {} sent again in {} connections",
            account.acked.len(),
            ledger.distinct(device),
            twice.len(),
            account.resent.len(),
            account.connections
        );
        doubled += twice.len() as u64;
    }
    doubled
}

/// What arrived twice, the device sent twice.
pub fn assert_doubled_by_devices_only(ledger: &Ledger, publishers: &[Publisher]) {
    for publisher in publishers {
        let (twice, _) = ledger.duplicates(&publisher.device);
        let resent = publisher.account().resent;
        let unexplained: Vec<_> = twice.iter().filter(|n| !resent.contains(n)).collect();
        assert!(
            unexplained.is_empty(),
            "{}: {unexplained:?} arrived twice, although the device sent them once",
            publisher.device
        );
    }
}

#[test]
fn terminates_in_order_under_load() {
    let field = Field::new();
    let hub = Hub::started(&field);
    let mut gateway = Gateway::started(&field, &Setup::new(&field, &hub));
    gateway.wait_connected();
    let mut publisher = Publisher::start(gateway.port, "plc-01", 500, 60_000);
    eventually("the load is on", SOON, || (publisher.acked() >= 500).then_some(()));

    let (status, after) = gateway.terminate();
    assert_eq!(status.code(), Some(0), "after {after:?}");
    assert!(after <= Duration::from_secs(5), "it took {after:?} to stop");
    publisher.stop();

    gateway.start();
    let ledger = collect(&hub, std::slice::from_ref(&publisher));
    let (twice, _) = ledger.duplicates("plc-01");
    assert!(ledger.repeated.is_empty(), "positions stored twice: {:?}", ledger.repeated);
    assert!(twice.is_empty(), "an orderly stop doubled {twice:?}");
    assert!(ledger.out_of_order("plc-01").is_empty());
}
