//! The load: devices that publish over MQTT 3.1.1, QoS 1, each on its own connection.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout},
};

use crate::arrivals::Arrivals;

/// How many devices publish.
pub(crate) const DEVICES: usize = 50;

/// What a device has in flight at most: the default of the Paho clients.
const INFLIGHT: usize = 20;

/// No load takes longer to be acknowledged, and no contender longer to start.
const LOAD_PATIENCE: Duration = Duration::from_secs(120);
const START_PATIENCE: Duration = Duration::from_secs(15);

const KEEP_ALIVE_S: u16 = 600;
const PUBACK_BYTES: usize = 4;

/// One device's connection.
#[derive(Debug)]
pub(crate) struct Device {
    index: usize,
    topic: String,
    stream: TcpStream,
    packet_id: u16,
}

impl Device {
    /// Connects and waits for the CONNACK.
    pub(crate) async fn connect(broker: SocketAddr, index: usize) -> io::Result<Self> {
        let mut stream = TcpStream::connect(broker).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&connect_packet(&format!("bench-{index}"))).await?;
        let mut connack = [0; 4];
        stream.read_exact(&mut connack).await?;
        if connack != [0x20, 2, 0, 0] {
            return Err(io::Error::other(format!("CONNACK {connack:02x?}; the broker refused")));
        }
        Ok(Self { index, topic: format!("devices/plc-{index:02}/telemetry"), stream, packet_id: 0 })
    }

    fn publish_packet(&mut self, out: &mut Vec<u8>, payload: &[u8]) {
        self.packet_id = self.packet_id.checked_add(1).unwrap_or(1);
        out.push(0x32);
        put_length(out, 2 + self.topic.len() + 2 + payload.len());
        put_text(out, &self.topic);
        out.extend_from_slice(&self.packet_id.to_be_bytes());
        out.extend_from_slice(payload);
    }

    /// Publishes `numbers` as fast as the broker acknowledges, [`INFLIGHT`] at a time.
    async fn flood(mut self, arrivals: &Arrivals, numbers: std::ops::Range<u64>) -> io::Result<()> {
        let mut next = numbers.start;
        let (mut inflight, mut acked_bytes) = (0, 0);
        let mut out = Vec::new();
        let mut acks = [0; 1024];
        while next < numbers.end || inflight > 0 {
            out.clear();
            while inflight < INFLIGHT && next < numbers.end {
                let payload = arrivals.payload(next, self.index);
                self.publish_packet(&mut out, payload.as_bytes());
                (next, inflight) = (next + 1, inflight + 1);
            }
            self.stream.write_all(&out).await?;
            // Nothing else comes back on this connection: no subscription, a keep alive longer than
            // the phase.
            let read = self.stream.read(&mut acks).await?;
            if read == 0 {
                return Err(io::Error::other("the broker closed a device's connection"));
            }
            acked_bytes += read;
            inflight -= acked_bytes / PUBACK_BYTES;
            acked_bytes %= PUBACK_BYTES;
        }
        Ok(())
    }

    /// Publishes one message and does not wait for its PUBACK; what came back until now is read and
    /// thrown away.
    async fn publish(&mut self, arrivals: &Arrivals, number: u64) -> io::Result<()> {
        let mut unread = [0; 1024];
        while matches!(self.stream.try_read(&mut unread), Ok(1..)) {}
        let mut out = Vec::with_capacity(300);
        let payload = arrivals.payload(number, self.index);
        self.publish_packet(&mut out, payload.as_bytes());
        self.stream.write_all(&out).await
    }
}

/// Connects all devices.
pub(crate) async fn connect_all(broker: SocketAddr) -> io::Result<Vec<Device>> {
    let mut devices = Vec::with_capacity(DEVICES);
    for index in 0..DEVICES {
        devices.push(Device::connect(broker, index).await?);
    }
    Ok(devices)
}

/// Every device publishes its share of `count` messages from `first` on, flat out.
pub(crate) async fn flood(
    devices: Vec<Device>,
    arrivals: &Arrivals,
    first: u64,
    count: usize,
) -> io::Result<()> {
    let share = (count / DEVICES) as u64;
    let mut floods = JoinSet::new();
    for device in devices {
        let from = first + device.index as u64 * share;
        let arrivals = arrivals.clone();
        floods.spawn(async move { device.flood(&arrivals, from..from + share).await });
    }
    timeout(LOAD_PATIENCE, async {
        while let Some(done) = floods.join_next().await {
            done.expect("a device's task does not panic")?;
        }
        Ok(())
    })
    .await
    .map_err(|_| io::Error::other("the broker did not acknowledge the load within 120 s"))?
}

/// The devices take turns, `per_second` messages in all, evenly spaced.
pub(crate) async fn pace(
    devices: &mut [Device],
    arrivals: &Arrivals,
    first: u64,
    count: usize,
    per_second: u32,
) -> io::Result<()> {
    let period = Duration::from_secs(1) / per_second;
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for at in 0..count {
        ticks.tick().await;
        devices[at % DEVICES].publish(arrivals, first + at as u64).await?;
    }
    Ok(())
}

/// Publishes again and again, from before the broker is there, until something has `come_out`;
/// gives that moment.
pub(crate) async fn knock(
    broker: SocketAddr,
    arrivals: &Arrivals,
    first: u64,
    come_out: impl Future<Output = anyhow::Result<std::time::Instant>>,
) -> anyhow::Result<std::time::Instant> {
    let mut number = first;
    let knocking = async {
        loop {
            let Ok(mut device) = Device::connect(broker, 0).await else {
                sleep(Duration::from_millis(1)).await;
                continue;
            };
            while device.publish(arrivals, number).await.is_ok() {
                number += 1;
                sleep(Duration::from_millis(2)).await;
            }
        }
    };
    tokio::select! {
        () = knocking => unreachable!("knocking never ends by itself"),
        moment = come_out => moment,
        () = sleep(START_PATIENCE) => anyhow::bail!("no message came through within 15 s"),
    }
}

/// Subscribes to everything at QoS 0 and hands each payload on, until the broker closes.
pub(crate) async fn subscribe(broker: SocketAddr, arrivals: Arrivals) -> io::Result<()> {
    let mut stream = Device::connect(broker, DEVICES).await?.stream;
    let mut out = vec![0x82];
    let filter = "devices/#";
    put_length(&mut out, 2 + 2 + filter.len() + 1);
    out.extend_from_slice(&1_u16.to_be_bytes());
    put_text(&mut out, filter);
    out.push(0);
    stream.write_all(&out).await?;
    let mut suback = [0; 5];
    stream.read_exact(&mut suback).await?;
    tokio::spawn(read_publishes(stream, arrivals));
    Ok(())
}

async fn read_publishes(mut stream: TcpStream, arrivals: Arrivals) {
    let mut buffer = Vec::with_capacity(1 << 16);
    while matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {
        let mut rest = &buffer[..];
        while let Some((body, after)) = take_packet(rest) {
            // QoS 0: the topic, then at once the payload.
            let topic = body.get(..2).map_or(0, |n| usize::from(u16::from_be_bytes([n[0], n[1]])));
            arrivals.arrived(body.get(2 + topic..).unwrap_or_default());
            rest = after;
        }
        let done = buffer.len() - rest.len();
        buffer.drain(..done);
    }
}

/// The body of the first packet and what follows it, if the packet is whole.
fn take_packet(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (mut length, mut at) = (0, 1);
    for shift in [0, 7, 14, 21] {
        let byte = *bytes.get(at)?;
        length |= usize::from(byte & 0x7f) << shift;
        at += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    bytes.get(at..)?.split_at_checked(length)
}

fn connect_packet(client_id: &str) -> Vec<u8> {
    const CLEAN_SESSION: u8 = 2;
    let mut out = vec![0x10];
    put_length(&mut out, 10 + 2 + client_id.len());
    put_text(&mut out, "MQTT");
    out.extend_from_slice(&[4, CLEAN_SESSION]);
    out.extend_from_slice(&KEEP_ALIVE_S.to_be_bytes());
    put_text(&mut out, client_id);
    out
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// MQTT 3.1.1, section 2.2.3.
fn put_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}
