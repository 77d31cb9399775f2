//! Whether the scenarios would see what they are to see.

use serde_json::json;

use crate::field::{
    Field, SOON,
    broker::Broker,
    certificate::{TlsServer, issue, trusting},
    device::{Account, Publisher},
    eventually,
    http::Client,
    hub::Row,
    ledger::Ledger,
    mqtt::Mqtt,
};
use rumqttc::mqttbytes::v4::{Packet, PubAck};

#[test]
fn the_ledger_sees_a_loss_a_repetition_a_duplicate_and_a_disorder() {
    let mut ledger = Ledger::default();
    let rows = [("a", 1, 1), ("a", 2, 2), ("a", 2, 2), ("b", 1, 5), ("b", 2, 3), ("b", 3, 5)];
    for (epoch, seq, n) in rows {
        ledger.add(&row(epoch, seq, n));
    }
    let account = Account { acked: (1..=5).collect(), ..Account::default() };
    assert_eq!(ledger.missing("plc-01", &account), [4]);
    assert_eq!(ledger.repeated, [("telemetry".to_owned(), "a".to_owned(), 2)]);
    assert_eq!(ledger.duplicates("plc-01"), (vec![2, 5], vec![2, 5]));
    assert_eq!(ledger.out_of_order("plc-01"), [3]);
    assert_eq!(ledger.distinct("plc-01"), 4);

    let mut again = Ledger::default();
    for (epoch, seq, n) in [("a", 1, 1), ("a", 2, 2), ("b", 1, 2), ("b", 2, 3)] {
        again.add(&row(epoch, seq, n));
    }
    assert_eq!(again.duplicates("plc-01"), (vec![2], vec![]), "another run, another epoch");
    assert!(again.out_of_order("plc-01").is_empty(), "only first arrivals have an order");
}

#[test]
fn a_publisher_sends_again_what_a_lost_broker_did_not_acknowledge() {
    let field = Field::new();
    let mut broker = Broker::started(&field);
    let mut publisher = Publisher::start(broker.port, "plc-01", 500, 3000);
    eventually("the load is on", SOON, || (publisher.acked() > 300).then_some(()));
    broker.terminate();
    broker.start();
    let subscribed = subscribe(broker.port);
    eventually("all is acknowledged", SOON, || publisher.done().then_some(()));
    publisher.stop();
    let account = publisher.account();
    assert_eq!(account.acked, (1..=3000).collect());
    assert_eq!(account.connections, 2);
    let last = subscribed.join().expect("the subscriber does not panic");
    assert_eq!(last, 3000, "the numbers rise by one");
}

#[test]
fn a_client_does_not_speak_to_a_server_that_it_does_not_trust() {
    let field = Field::new();
    let (one, other) =
        (issue(&field, "one", "localhost", 2100), issue(&field, "other", "localhost", 2100));
    let server = TlsServer::start(&one);
    let tls = Some(trusting(&other.ca));
    let address = std::net::Ipv4Addr::LOCALHOST.into();
    let client = Client { address, port: server.port, tls, token: "t".into() };
    let error = client.get("/").expect_err("an unknown authority").to_string();
    assert!(error.contains("UnknownIssuer"), "{error}");
}

fn row(epoch: &str, seq: u64, n: u64) -> Row {
    let all = json!({ "id": 1, "stream": "telemetry", "epoch": epoch, "seq": seq,
        "device": "plc-01", "payload": { "n": n } });
    Row::read(all)
}

/// Hears until number 3000, each one more than the one before, but for those sent again.
fn subscribe(port: u16) -> std::thread::JoinHandle<u64> {
    let mut mqtt = Mqtt::connect(port, "observer").expect("mosquitto listens");
    mqtt.subscribe("devices/#").expect("mosquitto takes a subscription");
    std::thread::spawn(move || {
        let mut last = None;
        while last != Some(3000) {
            let packet = mqtt.receive(SOON).expect("the connection stays");
            let Some(Packet::Publish(publish)) = packet else { panic!("no publish: {packet:?}") };
            mqtt.send(&Packet::PubAck(PubAck::new(publish.pkid))).expect("the connection stays");
            let payload: serde_json::Value =
                serde_json::from_slice(&publish.payload).expect("readings are JSON");
            let n = payload["n"].as_u64().expect("readings are numbered");
            assert!(last.is_none_or(|last| n <= last + 1), "{n} after {last:?}");
            last = Some(last.unwrap_or(0).max(n));
        }
        last.unwrap_or(0)
    })
}
