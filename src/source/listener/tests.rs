//! The listener over real sockets: rumqttc as the device, raw bytes as the hostile one.

use std::time::Duration;

use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Outgoing, Packet, QoS};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};

use super::*;
use crate::{record::SourceId, source::Delivery};

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Bench {
    pub(super) running: Running,
    publishes: mpsc::Receiver<Publish>,
    notices: mpsc::Receiver<Notice>,
}

impl Bench {
    pub(super) async fn start(max_inflight: usize) -> Self {
        Self::start_paced(max_inflight, None).await
    }

    async fn start_paced(max_inflight: usize, max_publish_rate: Option<u16>) -> Self {
        let (publishes_in, publishes) = mpsc::channel(4);
        let (notices_in, notices) = mpsc::channel(NOTICES);
        let config = config::Listener {
            bind: Some(([127, 0, 0, 1], 0).into()),
            tls: None,
            users_file: None,
            anonymous: false,
            max_clients: 20,
            max_publish_rate,
            max_inflight,
        };
        let sink = Sink { source: SourceId(1), publishes: publishes_in, notices: notices_in };
        let running =
            start(&config, Topics::of_defaults(&["devices/#"]), None, sink).await.unwrap();
        Self { running, publishes, notices }
    }

    pub(super) async fn raw(&self) -> TcpStream {
        TcpStream::connect(self.running.plain.unwrap()).await.unwrap()
    }

    fn device(&self, name: &str) -> (AsyncClient, EventLoop) {
        let address = self.running.plain.unwrap();
        let mut options = MqttOptions::new(name, address.ip().to_string(), address.port());
        options.set_clean_session(false).set_max_packet_size(1 << 20, 1 << 20);
        AsyncClient::new(options, 1000)
    }

    async fn hear(&mut self) -> Publish {
        timeout(PATIENCE, self.publishes.recv()).await.unwrap().unwrap()
    }

    async fn notice(&mut self, wanted: &str) -> Notice {
        loop {
            let notice = timeout(PATIENCE, self.notices.recv()).await.unwrap().unwrap();
            if format!("{notice:?}").starts_with(wanted) {
                return notice;
            }
        }
    }

    /// Nobody here wants to know.
    pub(super) fn leave_out_notices(&mut self) {
        while self.notices.try_recv().is_ok() {}
    }

    fn ask(&self, request: Request) {
        self.running.requests.send(request).unwrap();
    }
}

pub(super) const NOTICES: usize = 64;

async fn until(eventloop: &mut EventLoop, wanted: impl Fn(&Packet) -> bool) -> Packet {
    let found = async {
        loop {
            match eventloop.poll().await.unwrap() {
                Event::Incoming(packet) if wanted(&packet) => return packet,
                _ => {}
            }
        }
    };
    timeout(PATIENCE, found).await.unwrap()
}

/// Everything the listener says until it closes.
pub(super) async fn answer(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is as good a close as any.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("it must close");
    bytes
}

pub(super) const CONNECT: &[u8] = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01z";

#[tokio::test]
async fn a_device_is_acknowledged_only_when_its_publish_is_safe() {
    let mut bench = Bench::start(10).await;
    let (client, mut eventloop) = bench.device("plc-01");
    client.try_publish("devices/plc-01/telemetry", QoS::AtLeastOnce, false, "1").unwrap();
    client.try_publish("devices/plc-01/telemetry", QoS::ExactlyOnce, false, "2").unwrap();
    until(&mut eventloop, |packet| matches!(packet, Packet::ConnAck(_))).await;
    let device = tokio::spawn(async move {
        until(&mut eventloop, |packet| matches!(packet, Packet::PubAck(_))).await;
        until(&mut eventloop, |packet| matches!(packet, Packet::PubComp(_))).await;
        eventloop
    });
    bench.notice("Birth").await;
    let (first, second) = (bench.hear().await, bench.hear().await);
    assert_eq!((&first.payload[..], &second.payload[..]), (&b"1"[..], &b"2"[..]));
    bench.ask(Request::Safe(second.receipt.unwrap()));
    bench.ask(Request::Safe(first.receipt.unwrap()));
    let mut eventloop = timeout(PATIENCE, device).await.unwrap().unwrap();
    client.try_disconnect().unwrap();
    while eventloop.poll().await.unwrap() != Event::Outgoing(Outgoing::Disconnect) {}
    let Notice::Death { reason, .. } = bench.notice("Death").await else { unreachable!() };
    assert_eq!(reason, "disconnect");
}

#[tokio::test]
async fn a_flood_waits_for_the_gateway_and_nothing_waits_in_a_circle() {
    let mut bench = Bench::start(8).await;
    let (client, mut eventloop) = bench.device("flood");
    for number in 0..500 {
        client.try_publish("devices/f", QoS::AtLeastOnce, false, number.to_string()).unwrap();
    }
    let device = tokio::spawn(async move {
        for _ in 0..500 {
            until(&mut eventloop, |packet| matches!(packet, Packet::PubAck(_))).await;
        }
    });
    for number in 0..500 {
        let publish = bench.hear().await;
        assert_eq!(publish.payload, number.to_string().as_bytes());
        bench.ask(Request::Safe(publish.receipt.unwrap()));
        while bench.notices.try_recv().is_ok() {}
    }
    timeout(PATIENCE, device).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_window_that_waits_as_a_whole_is_told_after_its_publishes() {
    let mut bench = Bench::start(2).await;
    let (client, mut eventloop) = bench.device("full");
    for number in 0..3 {
        client.try_publish("devices/f", QoS::AtLeastOnce, false, number.to_string()).unwrap();
    }
    let device = tokio::spawn(async move { while eventloop.poll().await.is_ok() {} });
    for _ in 0..2 {
        bench.notice("Exhausted").await;
        let publish = bench.publishes.try_recv().expect("it was handed on before the notice");
        bench.ask(Request::Safe(publish.receipt.unwrap()));
    }
    device.abort();
}

#[tokio::test]
async fn a_command_is_delivered_over_a_real_connection() {
    let mut bench = Bench::start(8).await;
    let (client, mut eventloop) = bench.device("plc-01");
    client.try_subscribe("cmd/plc-01/+", QoS::AtLeastOnce).unwrap();
    until(&mut eventloop, |packet| matches!(packet, Packet::SubAck(_))).await;
    let topic = "cmd/plc-01/open".to_owned();
    bench.ask(Request::Deliver(Delivery { token: 5, topic, payload: "{}".into() }));
    until(&mut eventloop, |packet| matches!(packet, Packet::Publish(_))).await;
    let device = tokio::spawn(async move { while eventloop.poll().await.is_ok() {} });
    assert!(matches!(bench.notice("Delivered").await, Notice::Delivered { token: 5 }));
    device.abort();
    bench.notice("Death").await;
    let topic = "cmd/plc-01/open".to_owned();
    bench.ask(Request::Deliver(Delivery { token: 6, topic, payload: "{}".into() }));
    assert!(matches!(bench.notice("Undelivered").await, Notice::Undelivered { token: 6 }));
}

#[tokio::test]
async fn hostile_clients_are_closed_and_others_go_on() {
    let mut bench = Bench::start(8).await;
    let (client, mut eventloop) = bench.device("good");
    until(&mut eventloop, |packet| matches!(packet, Packet::ConnAck(_))).await;
    let connected = |rest: &[u8]| [CONNECT, rest].concat();
    let cases: Vec<(Vec<u8>, &[u8])> = vec![
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), b""),
        (b"\x10\xff\xff\xff\xff\x01".to_vec(), b""),
        (b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x3c\x00\x01z".to_vec(), b"\x20\x02\x00\x01"),
        (b"\x10\x0e\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x00".to_vec(), b"\x20\x02\x00\x01"),
        (b"\x10\x0c\x00\x04MQTT\x04\x00\x00\x3c\x00\x00".to_vec(), b"\x20\x02\x00\x02"),
        (connected(CONNECT), b"\x20\x02\x00\x00"),
        (connected(b"\x30\x02\x00\x00"), b"\x20\x02\x00\x00"),
        (connected(b"\x30\xff\xff\xff\x7f"), b"\x20\x02\x00\x00"),
        (connected(b"\xd0\x00"), b"\x20\x02\x00\x00"),
    ];
    for (bytes, expected) in cases {
        let mut stream = bench.raw().await;
        stream.write_all(&bytes).await.unwrap();
        let answered = answer(&mut stream).await;
        // A client thrown out right after its CONNECT may not see the CONNACK any more.
        assert!(answered == expected || answered.is_empty(), "{bytes:x?} -> {answered:x?}");
    }
    client.try_publish("devices/good", QoS::AtMostOnce, false, "still here").unwrap();
    until_outgoing(&mut eventloop).await;
    assert_eq!(&bench.hear().await.payload[..], b"still here");
    bench.notice("Refused").await;
}

pub(super) async fn until_outgoing(eventloop: &mut EventLoop) {
    while !matches!(eventloop.poll().await.unwrap(), Event::Outgoing(Outgoing::Publish(_))) {}
}

#[tokio::test]
async fn one_byte_at_a_time_is_read_like_any_other() {
    let mut bench = Bench::start(8).await;
    let mut stream = bench.raw().await;
    stream.set_nodelay(true).unwrap();
    let bytes = [CONNECT, b"\x32\x0d\x00\x09devices/z\x00\x07\xc0\x00"].concat();
    for byte in bytes {
        stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let publish = bench.hear().await;
    let mut answered = [0; 6];
    stream.read_exact(&mut answered).await.unwrap();
    assert_eq!(answered, *b"\x20\x02\x00\x00\xd0\x00", "PINGRESP need not wait for the PUBACK");
    bench.ask(Request::Safe(publish.receipt.unwrap()));
    let mut puback = [0; 4];
    stream.read_exact(&mut puback).await.unwrap();
    assert_eq!(puback, *b"\x40\x02\x00\x07");
}

#[tokio::test]
async fn a_stop_flushes_what_is_due_and_ends() {
    let mut bench = Bench::start(8).await;
    let mut stream = bench.raw().await;
    stream.write_all(&[CONNECT, b"\x32\x0d\x00\x09devices/z\x00\x07"].concat()).await.unwrap();
    let publish = bench.hear().await;
    bench.ask(Request::Safe(publish.receipt.unwrap()));
    bench.ask(Request::Stop);
    assert_eq!(answer(&mut stream).await, b"\x20\x02\x00\x00\x40\x02\x00\x07");
    timeout(PATIENCE, bench.running.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_address_in_use_is_named_with_its_remedy() {
    let bench = Bench::start(8).await;
    let config = config::Listener {
        bind: bench.running.plain,
        tls: None,
        users_file: None,
        anonymous: false,
        max_clients: 1,
        max_publish_rate: None,
        max_inflight: 1,
    };
    let (publishes, _) = mpsc::channel(1);
    let (notices, _) = mpsc::channel(1);
    let sink = Sink { source: SourceId(1), publishes, notices };
    let error = start(&config, Topics::of_defaults(&[]), None, sink).await.unwrap_err().to_string();
    assert!(error.contains("listener.bind: can't listen on 127.0.0.1:"), "{error}");
    assert!(error.contains("another program"), "{error}");
}

#[tokio::test]
async fn a_silent_client_is_closed_after_one_and_a_half_keep_alives() {
    let mut bench = Bench::start(8).await;
    let mut stream = bench.raw().await;
    stream.write_all(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x01\x00\x01z").await.unwrap();
    assert_eq!(answer(&mut stream).await, b"\x20\x02\x00\x00");
    let Notice::Death { reason, .. } = bench.notice("Death").await else { unreachable!() };
    assert_eq!(reason, "keep alive");
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_and_keeps_nobody_waiting() {
    let mut bench = Bench::start(8).await;
    let mut lazy = bench.raw().await;
    let subscribe = b"\x82\x07\x00\x01\x00\x02t0\x00";
    lazy.write_all(&[CONNECT, subscribe].concat()).await.unwrap();
    let mut answered = [0; 9];
    lazy.read_exact(&mut answered).await.unwrap();
    assert_eq!(&answered[4..], b"\x90\x03\x00\x01\x00");
    // 32 MB of QoS 0 for it: far more than its outgoing bytes may be.
    let (client, mut eventloop) = bench.device("busy");
    let device = tokio::spawn(async move {
        for _ in 0..512 {
            client.publish("t0", QoS::AtMostOnce, false, vec![0; 65_000]).await.unwrap();
        }
        client.publish("devices/busy", QoS::AtMostOnce, false, "done").await.unwrap();
        // However much of that the sockets took, sometime they take no more.
        loop {
            sleep(Duration::from_millis(5)).await;
            client.publish("t0", QoS::AtMostOnce, false, vec![0; 65_000]).await.unwrap();
        }
    });
    let polling = tokio::spawn(async move { while eventloop.poll().await.is_ok() {} });
    assert_eq!(&bench.hear().await.payload[..], b"done");
    let cut_off = async {
        loop {
            let notice = bench.notices.recv().await.unwrap();
            if matches!(&notice, Notice::Death { device, .. } if device == "z") {
                return notice;
            }
        }
    };
    // The deadline for writing is half a minute.
    let notice = timeout(3 * PATIENCE, cut_off).await.unwrap();
    assert!(format!("{notice:?}").contains("connection lost"), "{notice:?}");
    device.abort();
    polling.abort();
}

#[tokio::test]
async fn a_client_is_read_no_faster_than_it_may_publish() {
    let mut bench = Bench::start_paced(8, Some(10)).await;
    let mut fast = bench.raw().await;
    let publish = b"\x30\x0b\x00\x09devices/z";
    let came = Instant::now();
    fast.write_all(&[CONNECT, &publish.repeat(25)].concat()).await.unwrap();
    for _ in 0..25 {
        assert_eq!(bench.hear().await.topic, "devices/z");
    }
    // A burst of one second's, and the rest at ten a second.
    assert!(came.elapsed() >= Duration::from_millis(1300), "{:?}", came.elapsed());
}

/// A byte now and then kept half a packet, and what it took of memory, for as long as the client
/// liked: each byte was a sign of life, and without a keep alive nothing was asked for.
#[tokio::test]
async fn a_packet_that_does_not_get_on_ends_its_client() {
    let mut bench = Bench::start(8).await;
    let (mut reader, mut writer) = bench.raw().await.into_split();
    // No keep alive, and the head of a publish of a megabyte.
    let connect = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01z";
    writer.write_all(&[&connect[..], b"\x30\x80\x80\x40\x00\x09devices/z"].concat()).await.unwrap();
    let dribbling = tokio::spawn(async move {
        while writer.write_all(b".").await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    });
    let mut said = Vec::new();
    // A reset is as good a close as any.
    let _ = timeout(3 * PATIENCE, reader.read_to_end(&mut said)).await.expect("it must close");
    assert_eq!(said, b"\x20\x02\x00\x00");
    let Notice::Death { reason, .. } = bench.notice("Death").await else { unreachable!() };
    assert_eq!(reason, "connection lost");
    dribbling.abort();
}
