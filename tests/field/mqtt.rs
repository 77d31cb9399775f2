//! MQTT 3.1.1 over TCP, as a device speaks it: one packet at a time, nothing done by itself.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use bytes::BytesMut;
use rumqttc::{
    QoS,
    mqttbytes::{
        Error,
        v4::{Connect, ConnectReturnCode, Packet, Publish, Subscribe},
    },
};

const MAX_PACKET_BYTES: usize = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub struct Mqtt {
    stream: TcpStream,
    heard: BytesMut,
    to_send: BytesMut,
}

impl Mqtt {
    /// Connects with a persistent session.
    pub fn connect(port: u16, client_id: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(CONNECT_TIMEOUT))?;
        let mut mqtt = Self { stream, heard: BytesMut::new(), to_send: BytesMut::new() };
        let mut connect = Connect::new(client_id);
        connect.clean_session = false;
        connect.keep_alive = 60;
        mqtt.send(&Packet::Connect(connect))?;
        match mqtt.receive(CONNECT_TIMEOUT)? {
            Some(Packet::ConnAck(ack)) if ack.code == ConnectReturnCode::Success => Ok(mqtt),
            other => Err(io::Error::other(format!("{client_id}: no CONNACK but {other:?}"))),
        }
    }

    pub fn send(&mut self, packet: &Packet) -> io::Result<()> {
        packet.write(&mut self.to_send, MAX_PACKET_BYTES).map_err(io::Error::other)?;
        let sent = self.stream.write_all(&self.to_send);
        self.to_send.clear();
        sent
    }

    /// A publish at QoS 1.
    pub fn publish(&mut self, topic: &str, pkid: u16, dup: bool, payload: &[u8]) -> io::Result<()> {
        let mut publish = Publish::new(topic, QoS::AtLeastOnce, payload);
        publish.pkid = pkid;
        publish.dup = dup;
        self.send(&Packet::Publish(publish))
    }

    /// Subscribes at QoS 1 and waits for the SUBACK.
    pub fn subscribe(&mut self, filter: &str) -> io::Result<()> {
        let mut subscribe = Subscribe::new(filter, QoS::AtLeastOnce);
        subscribe.pkid = 1;
        self.send(&Packet::Subscribe(subscribe))?;
        match self.receive(CONNECT_TIMEOUT)? {
            Some(Packet::SubAck(_)) => Ok(()),
            other => Err(io::Error::other(format!("{filter}: no SUBACK but {other:?}"))),
        }
    }

    /// The next packet, or `None` when none came in time.
    pub fn receive(&mut self, within: Duration) -> io::Result<Option<Packet>> {
        loop {
            match Packet::read(&mut self.heard, MAX_PACKET_BYTES) {
                Ok(packet) => return Ok(Some(packet)),
                Err(Error::InsufficientBytes(_)) => {}
                Err(e) => return Err(io::Error::other(e)),
            }
            // A read timeout of zero would mean none.
            self.stream.set_read_timeout(Some(within.max(Duration::from_millis(1))))?;
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(ErrorKind::ConnectionAborted.into()),
                Ok(length) => self.heard.extend_from_slice(&bytes[..length]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(e) => return Err(e),
            }
        }
    }
}
