use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use rumqttc::{ConnectReturnCode, LastWill, Packet, QoS, Subscribe};

use super::*;
use crate::{
    record::{Publish, Receipt, SourceId},
    source::{
        Delivery,
        listener::{access::Topics, wire::Connect},
    },
};

struct Bench {
    broker: Broker,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let topics = Topics::of_defaults(&["devices/+/telemetry", "devices/+/replies/+"]);
        Self { broker: Broker::new(SourceId(0), topics, 20, 4), now: Instant::now() }
    }

    fn try_connect(
        &mut self,
        connection: u64,
        who: &Principal,
        client_id: &str,
        will: Option<&str>,
    ) -> Result<(), ConnectReturnCode> {
        let will = will.map(|topic| LastWill::new(topic, "gone", QoS::AtMostOnce, false));
        let (client_id, clean_session) = (client_id.into(), false);
        let connect = Connect { client_id, clean_session, keep_alive: 60, will, login: None };
        self.broker.handle_connect(self.now, connection, connect, who.clone())
    }

    fn connect(&mut self, connection: u64, who: &Principal, client_id: &str) {
        self.try_connect(connection, who, client_id, None).unwrap();
        self.sent(connection);
    }

    fn subscribe(&mut self, connection: u64, filter: &str) -> bool {
        let mut subscribe = Subscribe::new(filter, QoS::AtLeastOnce);
        subscribe.pkid = 1;
        self.broker.handle_packet(connection, Packet::Subscribe(subscribe)).unwrap();
        let sent = self.sent(connection);
        let Some(Packet::SubAck(ack)) = sent.first() else { panic!("{sent:?}") };
        !format!("{ack:?}").contains("Failure")
    }

    fn publish(&mut self, connection: u64, topic: &str, qos: QoS, packet_id: u16) {
        let mut publish = rumqttc::Publish::new(topic, qos, "x");
        publish.pkid = packet_id;
        self.broker.handle_packet(connection, Packet::Publish(publish)).unwrap();
    }

    fn sent(&mut self, connection: u64) -> Vec<Packet> {
        let mut bytes = BytesMut::new();
        self.broker.take_output(connection, &mut bytes);
        self.broker.handle_written(connection);
        std::iter::from_fn(|| Packet::read(&mut bytes, usize::MAX).ok()).collect()
    }

    fn heard(&mut self) -> Vec<Publish> {
        let mut heard = VecDeque::new();
        self.broker.take_heard(&mut heard);
        heard.into()
    }

    fn refusals(&mut self) -> Vec<(Option<String>, Option<Receipt>)> {
        let refusal = |notice| match notice {
            Notice::Refused { device, reason: "forbidden", receipt } => Some((device, receipt)),
            _ => None,
        };
        self.broker.take_notices().into_iter().filter_map(refusal).collect()
    }

    fn presence(&mut self) -> Vec<String> {
        let notices = self.broker.take_notices();
        notices
            .iter()
            .map(|notice| format!("{notice:?}"))
            .filter(|it| !it.contains("Ref"))
            .collect()
    }
}

fn device(name: &str) -> Principal {
    Principal::Device(name.into())
}

#[test]
fn a_refused_publish_is_acknowledged_when_its_refusal_is_safe_and_goes_nowhere() {
    let mut bench = Bench::new();
    bench.connect(1, &device("a"), "esp");
    bench.connect(2, &Principal::Service("log".into()), "log");
    assert!(bench.subscribe(2, "#"));
    bench.refusals();
    bench.publish(1, "devices/b/telemetry", QoS::AtLeastOnce, 1);
    bench.publish(1, "devices/a/telemetry", QoS::AtLeastOnce, 2);
    bench.publish(1, "devices/a/commands/open", QoS::ExactlyOnce, 3);
    bench.publish(1, "elsewhere", QoS::AtMostOnce, 0);
    let heard = bench.heard();
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert_eq!(bench.sent(2).len(), 1, "who looks on hears none of it either");
    let refusals = bench.refusals();
    assert!(refusals.iter().all(|(device, _)| device.as_deref() == Some("a")));
    let receipts: Vec<Receipt> = refusals.iter().filter_map(|(_, receipt)| *receipt).collect();
    assert_eq!((refusals.len(), receipts.len()), (3, 2));
    bench.broker.handle_safe(heard[0].receipt.unwrap());
    assert_eq!(bench.sent(1), [], "in the order of receipt");
    receipts.into_iter().for_each(|receipt| bench.broker.handle_safe(receipt));
    let sent = bench.sent(1);
    assert!(
        matches!(&sent[..], [Packet::PubAck(one), Packet::PubAck(two), Packet::PubRec(three)]
            if (one.pkid, two.pkid, three.pkid) == (1, 2, 3)),
        "{sent:?}"
    );
}

#[test]
fn a_refused_retained_message_is_not_kept() {
    let mut bench = Bench::new();
    bench.connect(1, &device("a"), "esp");
    let mut publish = rumqttc::Publish::new("devices/b/commands/open", QoS::AtMostOnce, "x");
    publish.retain = true;
    bench.broker.handle_packet(1, Packet::Publish(publish)).unwrap();
    bench.connect(2, &device("b"), "esp");
    assert!(bench.subscribe(2, "devices/b/commands/#"));
    assert_eq!(bench.sent(2), []);
}

#[test]
fn nobody_but_the_gateway_publishes_a_command() {
    let mut bench = Bench::new();
    bench.connect(1, &device("a"), "a");
    assert!(bench.subscribe(1, "devices/a/commands/#"));
    let others = [Principal::Anonymous, Principal::Service("s".into()), device("b"), device("a")];
    for (connection, who) in (2..).zip(&others) {
        bench.connect(connection, who, "other");
        bench.publish(connection, "devices/a/commands/open", QoS::AtMostOnce, 0);
        assert_eq!(bench.sent(1), [], "{who:?}");
    }
    let (topic, payload) = ("devices/a/commands/open".into(), Bytes::from_static(b"{}"));
    bench.broker.handle_deliver(&Delivery { token: 1, topic, payload });
    assert_eq!(bench.sent(1).len(), 1);
}

#[test]
fn no_filter_gets_at_what_is_anothers() {
    let mut bench = Bench::new();
    bench.connect(1, &device("a"), "a");
    for filter in ["#", "+/+/+/+", "devices/b/commands/#", "devices/+/commands/open", "devices/#"] {
        assert!(!bench.subscribe(1, filter), "{filter}");
    }
    assert!(bench.subscribe(1, "devices/a/commands/+"));
    let (topic, payload) = ("devices/b/commands/open".into(), Bytes::from_static(b"{}"));
    bench.broker.handle_deliver(&Delivery { token: 1, topic, payload });
    assert_eq!(bench.sent(1), []);
}

#[test]
fn a_will_that_is_not_its_clients_to_publish_keeps_it_out() {
    let mut bench = Bench::new();
    let refused = Err(ConnectReturnCode::NotAuthorized);
    let a = device("a");
    assert_eq!(bench.try_connect(1, &a, "a", Some("devices/b/telemetry")), refused);
    assert_eq!(bench.try_connect(2, &a, "a", Some("devices/b/commands/open")), refused);
    let command = Some("devices/a/commands/open");
    assert_eq!(bench.try_connect(3, &Principal::Anonymous, "a", command), refused);
    assert_eq!(bench.try_connect(4, &a, "a", Some("devices/a/telemetry")), Ok(()));
}

#[test]
fn the_same_client_identifier_is_another_session_for_another_device() {
    let mut bench = Bench::new();
    bench.connect(1, &device("a"), "esp");
    assert!(bench.subscribe(1, "devices/a/commands/#"));
    bench.connect(2, &device("b"), "esp");
    bench.connect(3, &Principal::Anonymous, "esp");
    bench.connect(4, &Principal::Anonymous, "a");
    for connection in 1..=4 {
        assert!(bench.broker.may_read(connection), "{connection} was not taken over");
    }
    bench.publish(2, "devices/b/telemetry", QoS::AtLeastOnce, 1);
    bench.publish(1, "devices/a/telemetry", QoS::AtLeastOnce, 1);
    let sessions: Vec<_> = bench.heard().iter().map(|it| it.packet.unwrap().session).collect();
    assert_ne!(sessions[0], sessions[1], "nor is one's publish taken for the other's");
    bench.connect(5, &device("a"), "esp");
    assert!(!bench.broker.may_read(1) && bench.broker.may_read(2), "its own it does take over");
}

#[test]
fn a_device_is_here_while_any_of_its_connections_is() {
    let mut bench = Bench::new();
    bench.connect(1, &device("a"), "one");
    bench.connect(2, &device("a"), "two");
    bench.connect(3, &Principal::Service("s".into()), "s");
    bench.broker.handle_end(bench.now, 1, End::Lost);
    bench.broker.handle_end(bench.now, 3, End::Lost);
    let birth = "Birth { device: \"a\", source: SourceId(0) }";
    assert_eq!(bench.presence(), [birth, birth]);
    bench.broker.handle_end(bench.now, 2, End::Disconnect);
    assert_eq!(bench.presence(), ["Death { device: \"a\", reason: \"disconnect\" }"]);
}

#[test]
fn one_name_has_a_bounded_number_of_connections_and_sessions() {
    let mut bench = Bench::new();
    bench.connect(0, &device("b"), "kept");
    bench.broker.handle_end(bench.now, 0, End::Lost);
    for connection in 1..=MAX_CONNECTIONS as u64 {
        bench.connect(connection, &device("a"), &connection.to_string());
    }
    let one_more = bench.try_connect(99, &device("a"), "more", None);
    assert_eq!(one_more, Err(ConnectReturnCode::ServiceUnavailable));
    bench.connect(100, &device("c"), "c");
    bench.connect(101, &device("a"), "1");
    for connection in 2..1000 {
        bench.broker.handle_end(bench.now, 101 + connection - 2, End::Lost);
        bench.connect(100 + connection, &device("a"), &format!("n{connection}"));
    }
    assert!(bench.broker.sessions.len() <= MAX_CONNECTIONS + 2);
    let kept = (Some("b".into()), "kept".to_owned());
    assert!(bench.broker.by_client.contains_key(&kept), "another's session is not pushed out");
}

#[test]
fn a_device_that_is_shut_out_loses_its_connections_and_what_it_had() {
    let mut bench = Bench::new();
    for (connection, name) in [(1, "a"), (2, "b")] {
        bench.connect(connection, &device(name), "esp");
        assert!(bench.subscribe(connection, &format!("devices/{name}/commands/#")));
    }
    bench.broker.handle_revoked(bench.now, "a", false);
    assert!(!bench.broker.may_read(1) && bench.broker.may_read(2));
    assert_eq!(bench.broker.pop_woken(), Some(1));
    assert_eq!(bench.broker.sessions.len(), 2, "another password, the same device");
    bench.connect(3, &device("a"), "esp");
    bench.broker.handle_revoked(bench.now, "a", true);
    assert_eq!(bench.broker.sessions.len(), 1);
    let mut bytes = BytesMut::new();
    assert!(!bench.broker.take_output(3, &mut bytes));
}
