use super::*;
use crate::source::{Delivery, listener::forwarding::MAX_FILTERS};
use rumqttc::{LastWill, Subscribe, mqttbytes::v4};

const SOURCE: SourceId = SourceId(0);

/// A broker and the packets its connections have been sent.
struct Bench {
    broker: Broker,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let broker = Broker::new(SOURCE, Topics::of_defaults(&["devices/#"]), 4, 3);
        Self { broker, now: Instant::now() }
    }

    fn connect(&mut self, connection: u64, client: &str, clean: bool) -> Vec<Packet> {
        self.connect_with(connection, client, clean, None)
    }

    fn connect_with(
        &mut self,
        connection: u64,
        client: &str,
        clean_session: bool,
        will: Option<LastWill>,
    ) -> Vec<Packet> {
        let client_id = client.into();
        let connect = Connect { client_id, clean_session, keep_alive: 60, will, login: None };
        let anonymous = Principal::Anonymous;
        self.broker.handle_connect(self.now, connection, connect, anonymous).unwrap();
        self.sent(connection)
    }

    fn subscribe(&mut self, connection: u64, filter: &str, qos: QoS) -> Vec<Packet> {
        let mut subscribe = Subscribe::new(filter, qos);
        subscribe.pkid = 1;
        self.broker.handle_packet(connection, Packet::Subscribe(subscribe)).unwrap();
        self.sent(connection)
    }

    fn publish(&mut self, connection: u64, topic: &str, qos: QoS, packet_id: u16) {
        let mut publish = rumqttc::Publish::new(topic, qos, "x");
        publish.pkid = packet_id;
        self.broker.handle_packet(connection, Packet::Publish(publish)).unwrap();
    }

    fn retain(&mut self, connection: u64, topic: &str) {
        let mut publish = rumqttc::Publish::new(topic, QoS::AtLeastOnce, "kept");
        (publish.pkid, publish.retain) = (1, true);
        self.broker.handle_packet(connection, Packet::Publish(publish)).unwrap();
    }

    fn deliver(&mut self, token: u64) {
        let payload = Bytes::from_static(b"{}");
        self.broker.handle_deliver(&Delivery { token, topic: "cmd/a".into(), payload });
    }

    fn sent(&mut self, connection: u64) -> Vec<Packet> {
        let mut bytes = BytesMut::new();
        if !self.broker.take_output(connection, &mut bytes) {
            return Vec::new();
        }
        self.broker.handle_written(connection);
        let packets = std::iter::from_fn(|| Packet::read(&mut bytes, usize::MAX).ok()).collect();
        assert!(bytes.is_empty(), "whole packets only");
        packets
    }

    fn heard(&mut self) -> Vec<Publish> {
        let mut heard = VecDeque::new();
        self.broker.take_heard(&mut heard);
        heard.into()
    }

    fn notices(&mut self) -> Vec<String> {
        self.broker.take_notices().iter().map(|notice| format!("{notice:?}")).collect()
    }
}

fn pubacks(ids: &[u16]) -> Vec<Packet> {
    ids.iter().map(|id| Packet::PubAck(v4::PubAck::new(*id))).collect()
}

#[test]
fn a_puback_waits_until_its_publish_is_safe_and_for_its_turn() {
    let mut bench = Bench::new();
    bench.connect(1, "a", true);
    bench.publish(1, "devices/a", QoS::AtLeastOnce, 10);
    bench.publish(1, "other/a", QoS::AtLeastOnce, 11);
    bench.publish(1, "devices/a", QoS::AtLeastOnce, 12);
    assert_eq!(bench.sent(1), []);
    assert!(!bench.broker.may_read(1), "the window is full");
    let heard = bench.heard();
    bench.notices();
    assert!(bench.broker.handle_forwarded(1));
    assert_eq!(bench.notices(), ["Exhausted(SourceId(0))"]);
    let numbers: Vec<_> = heard.iter().map(|p| p.receipt.unwrap().number).collect();
    assert_eq!(numbers, [0, 2]);
    bench.broker.handle_safe(heard[1].receipt.unwrap());
    assert_eq!(bench.sent(1), []);
    bench.broker.handle_safe(heard[0].receipt.unwrap());
    assert_eq!(bench.sent(1), pubacks(&[10, 11, 12]));
    assert!(bench.broker.may_read(1) && !bench.broker.handle_forwarded(1));
    bench.broker.handle_safe(heard[0].receipt.unwrap());
    assert_eq!(bench.sent(1), []);
}

#[test]
fn a_receipt_of_an_ended_connection_acknowledges_nothing() {
    let mut bench = Bench::new();
    bench.connect(1, "a", false);
    bench.publish(1, "devices/a", QoS::AtLeastOnce, 10);
    let receipt = bench.heard()[0].receipt.unwrap();
    bench.broker.handle_end(bench.now, 1, End::Lost);
    bench.connect(2, "a", false);
    bench.publish(2, "devices/a", QoS::AtLeastOnce, 10);
    bench.broker.handle_safe(receipt);
    assert_eq!(bench.sent(2), []);
}

#[test]
fn a_qos_2_publish_sent_again_is_taken_once() {
    let mut bench = Bench::new();
    bench.connect(1, "a", false);
    bench.publish(1, "devices/a", QoS::ExactlyOnce, 5);
    bench.publish(1, "devices/a", QoS::ExactlyOnce, 5);
    let heard = bench.heard();
    assert_eq!(heard.len(), 1);
    bench.broker.handle_safe(heard[0].receipt.unwrap());
    assert_eq!(bench.sent(1), [Packet::PubRec(v4::PubRec::new(5))]);
    bench.broker.handle_end(bench.now, 1, End::Lost);
    bench.connect(2, "a", false);
    bench.publish(2, "devices/a", QoS::ExactlyOnce, 5);
    assert!(bench.heard().is_empty());
    assert_eq!(bench.sent(2), [Packet::PubRec(v4::PubRec::new(5))]);
    bench.broker.handle_packet(2, Packet::PubRel(v4::PubRel::new(5))).unwrap();
    assert_eq!(bench.sent(2), [Packet::PubComp(v4::PubComp::new(5))]);
    bench.publish(2, "devices/a", QoS::ExactlyOnce, 5);
    assert_eq!(bench.heard().len(), 1, "after PUBREL the identifier is free");
}

#[test]
fn an_unsafe_qos_2_publish_is_taken_again_on_the_next_connection() {
    let mut bench = Bench::new();
    bench.connect(1, "a", false);
    bench.publish(1, "devices/a", QoS::ExactlyOnce, 5);
    bench.broker.handle_end(bench.now, 1, End::Lost);
    bench.connect(2, "a", false);
    bench.publish(2, "devices/a", QoS::ExactlyOnce, 5);
    assert_eq!(bench.heard().len(), 2);
}

#[test]
fn subscribers_get_live_and_retained_messages_once() {
    let mut bench = Bench::new();
    bench.connect(1, "a", true);
    bench.connect(2, "b", true);
    bench.retain(1, "t/kept");
    bench.retain(1, "$SYS/kept");
    bench.sent(1);
    let packets = bench.subscribe(2, "#", QoS::ExactlyOnce);
    let [Packet::SubAck(suback), Packet::Publish(kept)] = &packets[..] else {
        panic!("{packets:?}")
    };
    let granted = v4::SubscribeReasonCode::Success(QoS::AtLeastOnce);
    assert_eq!(suback.return_codes, [granted]);
    assert_eq!((kept.topic.as_str(), kept.retain), ("t/kept", true));
    bench.subscribe(2, "t/live", QoS::AtMostOnce);
    bench.publish(1, "t/live", QoS::AtLeastOnce, 2);
    let packets = bench.sent(2);
    let [Packet::Publish(live)] = &packets[..] else { panic!("{packets:?}") };
    assert_eq!((live.qos, live.retain, live.pkid), (QoS::AtLeastOnce, false, 2));
    assert!(bench.heard().is_empty(), "the gateway is not interested");
}

#[test]
fn a_filter_too_deep_or_too_many_is_refused_alone() {
    let mut bench = Bench::new();
    bench.connect(1, "a", true);
    let mut subscribe = Subscribe::new("x/".repeat(40), QoS::AtMostOnce);
    subscribe.pkid = 1;
    for index in 0..=MAX_FILTERS {
        subscribe.add(format!("f/{index}"), QoS::AtMostOnce);
    }
    bench.broker.handle_packet(1, Packet::Subscribe(subscribe)).unwrap();
    let packets = bench.sent(1);
    let [Packet::SubAck(suback)] = &packets[..] else { panic!("{packets:?}") };
    let codes = &suback.return_codes;
    let failure = v4::SubscribeReasonCode::Failure;
    assert_eq!((codes[0], codes[MAX_FILTERS + 1]), (failure, failure));
    assert_eq!(codes.iter().filter(|code| **code == failure).count(), 2);
}

/// A shared subscription was granted like any other filter, and nothing ever came.
#[test]
fn a_shared_subscription_is_refused_and_not_taken_for_a_filter() {
    let mut bench = Bench::new();
    bench.connect(1, "worker", true);
    let granted = |packets: Vec<Packet>| match &packets[..] {
        [Packet::SubAck(ack)] => ack.return_codes.clone(),
        other => panic!("no SUBACK alone but {other:?}"),
    };
    let failure = vec![v4::SubscribeReasonCode::Failure];
    for filter in ["$share/workers/devices/#", "$share/workers/#", "$share/workers", "$share/#"] {
        assert_eq!(granted(bench.subscribe(1, filter, QoS::AtLeastOnce)), failure, "{filter}");
    }
    let plain = granted(bench.subscribe(1, "$shared/x", QoS::AtLeastOnce));
    assert_ne!(plain, failure, "a topic like any other");
}

#[test]
fn an_offline_session_keeps_qos_1_messages_and_expires() {
    let mut bench = Bench::new();
    bench.connect(1, "a", false);
    bench.subscribe(1, "t", QoS::AtLeastOnce);
    bench.broker.handle_end(bench.now, 1, End::Disconnect);
    bench.connect(2, "b", true);
    bench.publish(2, "t", QoS::AtLeastOnce, 1);
    bench.publish(2, "t", QoS::AtMostOnce, 0);
    let packets = bench.connect(3, "a", false);
    let [Packet::ConnAck(connack), Packet::Publish(queued)] = &packets[..] else {
        panic!("{packets:?}")
    };
    assert!(connack.session_present && !queued.dup);
    bench.broker.handle_end(bench.now, 3, End::Lost);
    bench.broker.handle_tick(bench.now + SESSION_EXPIRY);
    let packets = bench.connect(4, "a", false);
    assert_eq!(packets.len(), 1);
    assert!(matches!(&packets[0], Packet::ConnAck(connack) if !connack.session_present));
    assert_eq!(bench.broker.budget, SESSIONS_BYTES);
}

#[test]
fn the_number_of_offline_sessions_is_bounded() {
    let mut bench = Bench::new();
    for index in 0..MAX_OFFLINE_SESSIONS as u64 + 3 {
        bench.now += Duration::from_secs(1);
        bench.connect(index, &format!("c{index}"), false);
        bench.broker.handle_end(bench.now, index, End::Lost);
    }
    assert_eq!(bench.broker.sessions.len(), MAX_OFFLINE_SESSIONS);
    assert!(!bench.broker.by_client.contains_key(&(None, "c2".to_owned())));
}

#[test]
fn births_and_deaths_are_told_with_their_reason_and_the_will_is_published() {
    let mut bench = Bench::new();
    let will = LastWill::new("devices/a/gone", "bye", QoS::AtLeastOnce, true);
    bench.connect_with(1, "a", true, Some(will.clone()));
    bench.broker.handle_end(bench.now, 1, End::Disconnect);
    assert!(bench.heard().is_empty());
    bench.connect_with(2, "a", true, Some(will));
    bench.connect(3, "a", true);
    assert_eq!(bench.sent(2), [], "the newer connection took over");
    bench.broker.handle_end(bench.now, 3, End::KeepAlive);
    let heard = bench.heard();
    assert_eq!((heard.len(), heard[0].receipt), (1, None));
    let reasons: Vec<_> = bench
        .broker
        .take_notices()
        .into_iter()
        .map(|notice| match notice {
            Notice::Birth { .. } => "birth",
            Notice::Death { reason, .. } => reason,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(reasons, ["birth", "disconnect", "birth", "will", "birth", "keep alive"]);
}

#[test]
fn clients_beyond_the_limit_and_bad_names_are_refused() {
    let mut bench = Bench::new();
    for connection in 0..4 {
        bench.connect(connection, &format!("c{connection}"), true);
    }
    let mut refused = |client: &str, clean_session| {
        let client_id = client.to_owned();
        let connect = Connect { client_id, clean_session, keep_alive: 0, will: None, login: None };
        let anonymous = Principal::Anonymous;
        bench.broker.handle_connect(bench.now, 9, connect, anonymous).unwrap_err()
    };
    assert_eq!(refused("one-more", true), ConnectReturnCode::ServiceUnavailable);
    assert_eq!(refused("", false), ConnectReturnCode::BadClientId);
    assert_eq!(refused("a/+", true), ConnectReturnCode::BadClientId);
    bench.connect(10, "c0", true);
    assert_eq!(bench.broker.account(), (4, 0));
}

#[test]
fn a_client_that_may_stay_nameless_is_no_device() {
    let mut bench = Bench::new();
    bench.connect(1, "", true);
    bench.broker.handle_end(bench.now, 1, End::Lost);
    assert!(bench.notices().is_empty());
}

#[test]
fn a_command_goes_to_the_connected_device_and_its_puback_delivers_it() {
    let mut bench = Bench::new();
    bench.connect(1, "a", false);
    bench.subscribe(1, "cmd/+", QoS::AtLeastOnce);
    bench.connect(2, "observer", true);
    bench.subscribe(2, "#", QoS::AtLeastOnce);
    bench.connect(3, "plain", true);
    bench.subscribe(3, "cmd/#", QoS::AtMostOnce);
    bench.notices();
    bench.deliver(70);
    let packets = bench.sent(1);
    let [Packet::Publish(command)] = &packets[..] else { panic!("{packets:?}") };
    assert_eq!(command.qos, QoS::AtLeastOnce);
    assert_eq!(bench.sent(2).len(), 1, "the observer sees it");
    assert_eq!(bench.sent(3).len(), 1, "and so does a second device without PUBACK");
    assert!(bench.notices().is_empty());
    let ack = Packet::PubAck(v4::PubAck::new(command.pkid));
    bench.broker.handle_packet(1, ack).unwrap();
    assert_eq!(bench.notices(), ["Delivered { token: 70 }"]);
}

#[test]
fn the_client_that_names_more_of_the_topic_is_the_device() {
    let mut bench = Bench::new();
    bench.connect(1, "dashboard", true);
    bench.subscribe(1, "cmd/#", QoS::AtLeastOnce);
    bench.connect(2, "a", true);
    bench.subscribe(2, "cmd/a", QoS::AtLeastOnce);
    bench.notices();
    bench.deliver(1);
    let qos = |packets: Vec<Packet>| match &packets[..] {
        [Packet::Publish(publish)] => publish.qos,
        other => panic!("{other:?}"),
    };
    assert_eq!(qos(bench.sent(1)), QoS::AtMostOnce);
    assert_eq!(qos(bench.sent(2)), QoS::AtLeastOnce);
}

#[test]
fn a_command_without_its_device_is_undelivered_and_one_cut_off_is_interrupted() {
    let mut bench = Bench::new();
    bench.connect(2, "observer", true);
    bench.subscribe(2, "#", QoS::AtLeastOnce);
    bench.connect(1, "a", false);
    bench.subscribe(1, "cmd/a", QoS::AtLeastOnce);
    bench.notices();
    bench.deliver(1);
    bench.broker.handle_end(bench.now, 1, End::Lost);
    bench.deliver(2);
    let notices = bench.notices();
    assert_eq!(notices[0], "Interrupted { token: 1 }");
    assert_eq!(notices[2], "Undelivered { token: 2 }");
    assert_eq!(bench.connect(3, "a", false).len(), 1, "a command is never sent again");
}

#[test]
fn with_qos_0_alone_a_written_command_is_delivered() {
    let mut bench = Bench::new();
    bench.connect(1, "a", true);
    bench.subscribe(1, "cmd/a", QoS::AtMostOnce);
    bench.notices();
    bench.deliver(1);
    assert!(bench.notices().is_empty());
    assert_eq!(bench.sent(1).len(), 1);
    assert_eq!(bench.notices(), ["Delivered { token: 1 }"]);
}

#[test]
fn a_second_connect_or_a_servers_packet_is_a_violation() {
    let mut bench = Bench::new();
    bench.connect(1, "a", true);
    let packet = Packet::PubRec(v4::PubRec::new(1));
    assert!(bench.broker.handle_packet(1, packet).is_err());
    assert!(bench.broker.handle_packet(1, Packet::PingResp).is_err());
}

#[test]
fn whatever_clients_do_the_books_balance() {
    for seed in 1..=20_u64 {
        let mut bench = Bench::new();
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut below = |limit: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % limit
        };
        let (mut next, mut receipts) = (0, Vec::new());
        for _ in 0..3000 {
            let connection = next - below(4).min(next);
            let packet_id = below(30) as u16 + 1;
            let topics = ["devices/a", "t", "t/x", "cmd/a", "$x"];
            let topic = topics[below(5) as usize];
            let packet = match below(12) {
                0 => {
                    next += 1;
                    let will = LastWill::new("t", "w", QoS::AtLeastOnce, below(2) == 0);
                    bench.connect_with(next, &format!("c{}", below(3)), below(2) == 0, Some(will));
                    continue;
                }
                1 => {
                    let end = [End::Disconnect, End::KeepAlive, End::Lost][below(3) as usize];
                    bench.broker.handle_end(bench.now, connection, end);
                    continue;
                }
                2 => {
                    bench.deliver(below(50));
                    continue;
                }
                3 | 4 => {
                    receipts.extend(bench.heard().into_iter().filter_map(|heard| heard.receipt));
                    receipts.drain(..).for_each(|receipt| bench.broker.handle_safe(receipt));
                    bench.sent(connection);
                    continue;
                }
                5 => {
                    let filter = ["#", "t/#", "cmd/a", "+"][below(4) as usize];
                    let mut subscribe = Subscribe::new(filter, mqtt_qos(below(3)));
                    subscribe.pkid = packet_id;
                    Packet::Subscribe(subscribe)
                }
                6 => Packet::Unsubscribe(v4::Unsubscribe { pkid: 1, topics: vec!["#".into()] }),
                7 => Packet::PubRel(v4::PubRel::new(packet_id)),
                8 | 9 => Packet::PubAck(v4::PubAck::new(packet_id)),
                _ => {
                    let payload = vec![b'x'; below(3) as usize * 9000];
                    let mut publish = rumqttc::Publish::new(topic, mqtt_qos(below(3)), payload);
                    (publish.pkid, publish.retain) = (packet_id, below(4) == 0);
                    Packet::Publish(publish)
                }
            };
            if bench.broker.may_read(connection) {
                bench.broker.handle_packet(connection, packet).unwrap();
            }
        }
        for connection in 0..=next {
            bench.broker.handle_end(bench.now, connection, End::Disconnect);
        }
        bench.broker.handle_tick(bench.now + SESSION_EXPIRY);
        assert!(bench.broker.sessions.is_empty() && bench.broker.by_client.is_empty());
        assert_eq!(bench.broker.budget, SESSIONS_BYTES, "seed {seed}");
    }
}

fn mqtt_qos(number: u64) -> QoS {
    rumqttc::mqttbytes::qos(number as u8).unwrap()
}
