//! MQTT 3.1.1 over TCP, as a device speaks it: one packet at a time, nothing done by itself.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use rumqttc::{
    QoS,
    mqttbytes::{
        Error,
        v4::{Connect, ConnectReturnCode, Packet, Publish, Subscribe, SubscribeReasonCode},
    },
};

const MAX_PACKET_BYTES: usize = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a client shows of itself, and how it reaches the other side.
#[derive(Clone, Default)]
pub struct Papers<'a> {
    /// User name and password.
    pub login: Option<(&'a str, &'a str)>,
    /// TLS, towards `localhost`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

pub struct Mqtt {
    /// For its timeouts.
    socket: TcpStream,
    stream: Box<dyn Stream>,
    heard: BytesMut,
    to_send: BytesMut,
}

impl Mqtt {
    /// Connects with a persistent session.
    pub fn connect(port: u16, client_id: &str) -> io::Result<Self> {
        let refused =
            |code| io::Error::other(format!("{client_id}: no CONNACK but a refusal: {code:?}"));
        Self::knock(port, client_id, &Papers::default())?.map_err(refused)
    }

    /// Connects likewise, with papers; the code of a refusal is no error of the connection.
    pub fn knock(
        port: u16,
        client_id: &str,
        papers: &Papers<'_>,
    ) -> io::Result<Result<Self, ConnectReturnCode>> {
        let socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_nodelay(true)?;
        socket.set_write_timeout(Some(CONNECT_TIMEOUT))?;
        let plain = socket.try_clone()?;
        let stream: Box<dyn Stream> = match &papers.tls {
            None => Box::new(plain),
            Some(config) => {
                let name = "localhost".try_into().map_err(io::Error::other)?;
                let session = rustls::ClientConnection::new(config.clone(), name);
                Box::new(rustls::StreamOwned::new(session.map_err(io::Error::other)?, plain))
            }
        };
        let mut mqtt = Self { socket, stream, heard: BytesMut::new(), to_send: BytesMut::new() };
        let mut connect = Connect::new(client_id);
        connect.clean_session = false;
        connect.keep_alive = 60;
        if let Some((user, password)) = papers.login {
            connect.set_login(user, password);
        }
        mqtt.send(&Packet::Connect(connect))?;
        match mqtt.receive(CONNECT_TIMEOUT)? {
            Some(Packet::ConnAck(ack)) if ack.code == ConnectReturnCode::Success => Ok(Ok(mqtt)),
            Some(Packet::ConnAck(ack)) => Ok(Err(ack.code)),
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
        self.may_subscribe(filter).map(|_| ())
    }

    /// Subscribes likewise; whether it was granted.
    pub fn may_subscribe(&mut self, filter: &str) -> io::Result<bool> {
        let mut subscribe = Subscribe::new(filter, QoS::AtLeastOnce);
        subscribe.pkid = 1;
        self.send(&Packet::Subscribe(subscribe))?;
        match self.receive(CONNECT_TIMEOUT)? {
            Some(Packet::SubAck(ack)) => {
                Ok(!ack.return_codes.contains(&SubscribeReasonCode::Failure))
            }
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
            self.socket.set_read_timeout(Some(within.max(Duration::from_millis(1))))?;
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
