//! One client's connection: bytes to packets for the [`Broker`], its output to bytes, deadlines.
//!
//! One task does both directions. Reading rests while the client's in-flight window is full or the
//! gateway takes no more publishes; writing never rests, so that a PUBACK that falls due gets out
//! and nothing can wait in a circle.

use std::{
    collections::VecDeque,
    fmt,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use rumqttc::Packet;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{Notify, mpsc},
    time::{sleep_until, timeout},
};

use super::{
    Shared,
    access::Principal,
    broker::{Broker, End},
    door::Shown,
    progress::Progress,
    refusals,
    tls::Proof,
    wire::{self, Connect, Violation},
};
use crate::record::Publish;

/// How long a client may take from its TCP connection to the end of its CONNECT.
pub(super) const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// How long a client may take nothing of what is written to it.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// How long the last bytes may take when the listener stops, or a client is refused.
const FLUSH_DEADLINE: Duration = Duration::from_secs(1);

/// Publishes of one connection that may wait for the gateway's queue; at the bound the connection
/// is not read.
const HEARD: usize = 64;

/// How far a client may be ahead of its rate.
const BURST: Duration = Duration::from_secs(1);

/// How many bytes are read at once, at least; the buffer grows only by what has arrived.
const READ_BYTES: usize = 4096;

/// A stream that was accepted, and what is known of who is at its other end.
#[derive(Debug)]
pub(super) struct Caller {
    /// Unique over the life of the listener.
    pub(super) number: u64,
    pub(super) peer: SocketAddr,
    pub(super) shown: Shown,
    /// With a certificate: what it showed.
    pub(super) proof: Option<Proof>,
    /// Wakes it when it has to make room for others; of no meaning once it was let in.
    pub(super) leave: Arc<Notify>,
}

/// Serves one accepted stream to its end.
pub(super) async fn serve<S>(stream: S, caller: Caller, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (number, peer, door) = (caller.number, caller.peer, &shared.door);
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut read = BytesMut::with_capacity(READ_BYTES);
    let greeted = tokio::select! {
        greeted = greet(&mut reader, &mut read, &caller, &shared) => greeted,
        () = caller.leave.notified() => {
            door.refusals.say(peer, "client closed: too many others wait to connect");
            Greeted::Gone
        }
    };
    shared.leave_lobby(number);
    let (connect, principal) = match greeted {
        Greeted::Welcome(connect, principal) => (connect, principal),
        Greeted::Refused(code) => return refuse(&mut writer, code).await,
        Greeted::Gone => return,
    };
    // One and a half times what the client promised (MQTT-3.1.2-24).
    let silence = Duration::from_millis(u64::from(connect.keep_alive) * 1500);
    let client_id = connect.client_id.clone();
    let Some(wake) = shared.register(number, caller.proof) else {
        let fault = "client refused: its certificate is of no authority that is named now";
        return door.refusals.say(peer, fault);
    };
    let mut heard = VecDeque::new();
    let accepted = shared.with(|broker| {
        let accepted = broker.handle_connect(Instant::now(), number, connect, principal);
        broker.take_heard(&mut heard);
        accepted
    });
    if let Err(code) = accepted {
        let client_id = refusals::shortened(&client_id);
        door.refusals.say(peer, format_args!("client {client_id:?} refused: {code:?}"));
        shared.unregister(number);
        refuse(&mut writer, code as u8).await;
        return;
    }
    tracing::debug!(%peer, client_id, "client connected");
    let mut connection = Connection {
        reader,
        writer,
        number,
        peer,
        read,
        starved: false,
        reading: true,
        resting_since: None,
        progress: Progress::new(Instant::now()),
        paid_until: Instant::now(),
        resting_until: None,
        exhausted: false,
        writing: BytesMut::new(),
        heard,
        silence: (!silence.is_zero()).then_some(silence),
        last_heard: Instant::now(),
        last_progress: Instant::now(),
        publishes: shared.publishes.clone(),
        shared: Arc::clone(&shared),
        wake,
    };
    let end = connection.run().await;
    tracing::debug!(%peer, client_id, ?end, "client gone");
    connection.close(end).await;
}

/// What came of a client's first packet.
enum Greeted {
    /// It was let in.
    Welcome(Connect, Principal),
    /// It is to be told so by this CONNACK code.
    Refused(u8),
    /// There is nobody to tell.
    Gone,
}

async fn greet<R>(reader: &mut R, read: &mut BytesMut, caller: &Caller, shared: &Shared) -> Greeted
where
    R: AsyncRead + Unpin,
{
    let peer = caller.peer;
    let mut connect = match timeout(CONNECT_DEADLINE, read_connect(reader, read)).await {
        Ok(Ok(Some(connect))) => connect,
        Ok(Ok(None)) => return Greeted::Gone,
        Ok(Err(violation)) => {
            let fault = format_args!("client refused before CONNECT was read: {violation}");
            shared.door.refusals.say(peer, fault);
            return match violation {
                Violation::Level(_) => Greeted::Refused(1),
                _ => Greeted::Gone,
            };
        }
        Err(_) => {
            let fault = format_args!("client closed: no CONNECT within {CONNECT_DEADLINE:?}");
            shared.door.refusals.say(peer, fault);
            return Greeted::Gone;
        }
    };
    shared.refresh_users().await;
    match shared.door.admit(peer, &caller.shown, connect.login.take()).await {
        Ok(principal) => Greeted::Welcome(connect, principal),
        Err(code) => Greeted::Refused(code as u8),
    }
}

async fn read_connect<R>(reader: &mut R, read: &mut BytesMut) -> Result<Option<Connect>, Violation>
where
    R: AsyncRead + Unpin,
{
    loop {
        if let Some(connect) = wire::take_connect(read)? {
            return Ok(Some(connect));
        }
        read.reserve(READ_BYTES);
        if !matches!(reader.read_buf(read).await, Ok(1..)) {
            return Ok(None);
        }
    }
}

async fn refuse<W: AsyncWrite + Unpin>(writer: &mut W, code: u8) {
    // The client may be gone already, and nothing is lost with it.
    let _ = timeout(FLUSH_DEADLINE, async {
        writer.write_all(&[0x20, 2, 0, code]).await?;
        writer.shutdown().await
    })
    .await;
}

struct Connection<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    number: u64,
    peer: SocketAddr,
    read: BytesMut,
    /// `read` holds no whole packet.
    starved: bool,
    /// The broker takes packets of this connection.
    reading: bool,
    /// Since when the client is not read, if it is not.
    resting_since: Option<Instant>,
    /// How its packet under way gets on.
    progress: Progress,
    /// With a limit on its rate: when the client will have used up what it published beyond it.
    paid_until: Instant,
    /// It has published too much too fast, and is not read until then.
    resting_until: Option<Instant>,
    /// The gateway was told that this connection's whole window waits, and nothing came since.
    exhausted: bool,
    writing: BytesMut,
    /// Publishes on their way to the gateway.
    heard: VecDeque<Publish>,
    /// How long the client may be silent.
    silence: Option<Duration>,
    last_heard: Instant,
    /// When the client last took bytes, or there were none for it.
    last_progress: Instant,
    publishes: mpsc::Sender<Publish>,
    shared: Arc<Shared>,
    wake: Arc<Notify>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Runs until the connection ends. `None`: the listener stops.
    async fn run(&mut self) -> Option<End> {
        let mut timer = pin!(sleep_until(Instant::now().into()));
        let publishes = self.publishes.clone();
        loop {
            match self.step() {
                Ok(None) => {}
                Ok(Some(end)) => return Some(end),
                Err(violation) => {
                    self.say(format_args!("client thrown out: {violation}"));
                    return Some(End::Lost);
                }
            }
            if self.shared.is_stopping() {
                return None;
            }
            let hungry = self.is_hungry();
            let due = self.deadline();
            if due.is_some_and(|due| due < timer.deadline().into_std()) || timer.is_elapsed() {
                timer.as_mut().reset(due.unwrap_or_else(|| Instant::now() + WRITE_DEADLINE).into());
            }
            self.read.reserve(if hungry { READ_BYTES } else { 0 });
            tokio::select! {
                written = self.writer.write_buf(&mut self.writing), if !self.writing.is_empty() => {
                    if !matches!(written, Ok(1..)) {
                        return Some(End::Lost);
                    }
                    self.handle_written();
                }
                permit = publishes.reserve(), if !self.heard.is_empty() => match permit {
                    Ok(permit) => {
                        if let Some(publish) = self.heard.pop_front() {
                            permit.send(publish);
                        }
                    }
                    // The gateway is gone: so is the listener, in a moment.
                    Err(_) => self.wake.notified().await,
                },
                count = self.reader.read_buf(&mut self.read), if hungry => {
                    let Ok(bytes @ 1..) = count else { return Some(End::Lost) };
                    let now = Instant::now();
                    if self.read.len() == bytes {
                        self.progress = Progress::new(now);
                    }
                    self.progress.note(now, bytes);
                    self.last_heard = now;
                    self.starved = false;
                }
                () = self.wake.notified() => {}
                () = &mut timer => {
                    if let Some(end) = self.overdue() {
                        return Some(end);
                    }
                }
            }
        }
    }

    /// All that can be done without waiting.
    fn step(&mut self) -> Result<Option<End>, Violation> {
        while !self.heard.is_empty() {
            let Ok(permit) = self.publishes.try_reserve() else { break };
            if let Some(publish) = self.heard.pop_front() {
                permit.send(publish);
            }
        }
        let shared = Arc::clone(&self.shared);
        shared.with(|broker| {
            let end = self.handle_packets(broker)?;
            if !self.reading && !self.exhausted && self.heard.is_empty() {
                self.exhausted = broker.handle_forwarded(self.number);
            }
            if self.writing.is_empty() {
                // Taken even at the end: a DISCONNECT doesn't cancel the answers before it.
                if !broker.take_output(self.number, &mut self.writing) {
                    return Ok(Some(End::Lost));
                }
                if !self.writing.is_empty() {
                    self.last_progress = Instant::now();
                }
            }
            Ok(end)
        })
    }

    fn handle_packets(&mut self, broker: &mut Broker) -> Result<Option<End>, Violation> {
        loop {
            self.reading = broker.may_read(self.number);
            if self.starved || !self.reading || self.heard.len() >= HEARD {
                return Ok(None);
            }
            self.resting_until = self.rest();
            if self.resting_until.is_some() {
                self.reading = false;
                return Ok(None);
            }
            match wire::take_packet(&mut self.read) {
                Ok(Some(Packet::Disconnect)) => return Ok(Some(End::Disconnect)),
                Ok(Some(packet)) => {
                    self.exhausted = false;
                    if let (Packet::Publish(_), Some(every)) = (&packet, self.shared.publish_every)
                    {
                        self.paid_until = self.paid_until.max(Instant::now()) + every;
                    }
                    broker.handle_packet(self.number, packet)?;
                    self.progress = Progress::new(Instant::now());
                }
                Ok(None) => self.starved = true,
                Err(violation) => {
                    if violation == Violation::TooLarge {
                        broker.handle_too_large(self.number);
                    }
                    return Err(violation);
                }
            }
            broker.take_heard(&mut self.heard);
        }
    }

    /// Until when the client is not read, so that it keeps to its rate: it may be a second ahead.
    fn rest(&self) -> Option<Instant> {
        self.shared.publish_every?;
        let until = self.paid_until.checked_sub(BURST)?;
        (until > Instant::now()).then_some(until)
    }

    fn handle_written(&mut self) {
        self.last_progress = Instant::now();
        if self.writing.is_empty() {
            let number = self.number;
            self.shared.with(|broker| broker.handle_written(number));
        }
    }

    /// Whether the client is read now. One that was not could not be heard: its silence counts from
    /// here, and its packet under way is given the time.
    fn is_hungry(&mut self) -> bool {
        let (hungry, now) = (self.reading && self.starved && self.heard.is_empty(), Instant::now());
        match self.resting_since {
            None if !hungry => self.resting_since = Some(now),
            Some(since) if hungry => {
                self.resting_since = None;
                self.last_heard = now;
                self.progress.excuse(now, since);
            }
            _ => {}
        }
        hungry
    }

    fn say(&self, fault: impl fmt::Display) {
        self.shared.door.refusals.say(self.peer, fault);
    }

    /// When there is something to do, if nothing happens until then.
    fn deadline(&self) -> Option<Instant> {
        self.overdue_at().into_iter().chain(self.resting_until).min()
    }

    /// When the client is overdue, if nothing happens until then.
    fn overdue_at(&self) -> Option<Instant> {
        let is_heard = self.resting_since.is_none();
        let silent = self.silence.filter(|_| is_heard).map(|limit| self.last_heard + limit);
        let slow = (is_heard && !self.read.is_empty()).then(|| self.progress.due());
        let stuck = (!self.writing.is_empty()).then(|| self.last_progress + WRITE_DEADLINE);
        silent.into_iter().chain(slow).chain(stuck).min()
    }

    fn overdue(&self) -> Option<End> {
        let now = Instant::now();
        self.overdue_at().filter(|due| *due <= now)?;
        if !self.writing.is_empty() && self.last_progress + WRITE_DEADLINE <= now {
            self.say("client closed: it takes nothing of what is written to it");
            return Some(End::Lost);
        }
        if self.resting_since.is_none() && !self.read.is_empty() && self.progress.due() <= now {
            self.say("client closed: its packet comes too slowly");
            return Some(End::Lost);
        }
        Some(End::KeepAlive)
    }

    /// Ends the connection: its last bytes, its socket, its session's link, then what the gateway
    /// has yet to hear.
    async fn close(mut self, end: Option<End>) {
        let number = self.number;
        if end.is_none_or(|end| end == End::Disconnect) {
            let shared = Arc::clone(&self.shared);
            // The client may be gone already, and nothing is lost with it.
            let _ = timeout(FLUSH_DEADLINE, async {
                loop {
                    self.writer.write_all_buf(&mut self.writing).await?;
                    shared.with(|broker| broker.handle_written(number));
                    shared.with(|broker| broker.take_output(number, &mut self.writing));
                    if self.writing.is_empty() {
                        return self.writer.shutdown().await;
                    }
                }
            })
            .await;
        }
        self.shared.unregister(number);
        let Some(end) = end else {
            // Nobody need wait for a gateway that stops; QoS 1 publishes come again.
            while let Some(publish) = self.heard.pop_front() {
                if self.publishes.try_send(publish).is_err() {
                    return;
                }
            }
            return;
        };
        self.shared.with(|broker| {
            broker.handle_end(Instant::now(), number, end);
            broker.take_heard(&mut self.heard);
        });
        drop((self.reader, self.writer));
        for publish in self.heard {
            if self.publishes.send(publish).await.is_err() {
                return;
            }
        }
    }
}
