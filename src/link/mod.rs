//! Northbound: one WebSocket connection to a hub, from the name to the closed socket.
//!
//! [`open`] starts a task that dials (DNS, TCP, proxy, TLS, upgrade, each with a deadline), then
//! carries frames both ways until the connection ends. Reading never stops while writing: against
//! an echo server a client that stops reading deadlocks (PROTOCOL.md, section 8).
//!
//! The link must never retry (the gateway decides when), never interpret a message, and never hold
//! more than its queues: a full request queue is how the gateway learns that the network is slower
//! than it is. A full event queue stops the reading, so whoever waits for room in the request queue
//! must go on taking events meanwhile.

mod connect;
mod dial;
mod exchange;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod network;
mod proxy;
mod race;
mod socket;
mod stream;
mod upgrade;

use std::{
    fmt,
    io::ErrorKind,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, OnceLock, atomic::AtomicU64},
    time::Duration,
};

use rustls::ClientConfig;
use tokio::sync::mpsc;

pub use self::{
    dial::Passed,
    exchange::{Reply, exchange},
    network::watch_network,
    proxy::Via,
};

use crate::{config::HubUrl, identity::Token, protocol::close};

/// How many requests may wait for the socket.
pub const REQUEST_QUEUE: usize = 4;

/// How many events may wait for the gateway.
pub const EVENT_QUEUE: usize = 8;

/// Where to, and what to show there.
#[derive(Clone)]
pub struct Target {
    /// The hub.
    pub url: HubUrl,
    /// The subprotocols to offer, the best first; none for a plain server.
    pub subprotocols: Vec<String>,
    /// Sent as `Authorization: Bearer`.
    pub bearer: Option<Token>,
    /// Whom to believe, and the client certificate; `None` only for a `ws` URL.
    pub tls: Option<Arc<ClientConfig>>,
    /// What `tls` trusts, named in errors; `None`: the system's store.
    pub ca_file: Option<PathBuf>,
    /// The proxy on the way.
    pub proxy: Option<Via>,
    /// The network interface to be bound to. Lookups of names are the system's and go their own
    /// way.
    pub bind_interface: Option<String>,
    /// How long DNS, TCP, proxy, TLS and upgrade may take, each.
    pub connect_timeout: Duration,
    /// A message of the server larger than this ends the connection (1009).
    pub max_message_bytes: usize,
}

/// Dials `target` in a task of its own. The first event is [`Event::Up`] or [`Event::Down`];
/// requests made before it wait for it.
pub fn open(target: Target) -> Link {
    let (request_sender, requests) = mpsc::channel(REQUEST_QUEUE);
    let (events, event_receiver) = mpsc::channel(EVENT_QUEUE);
    let counters = Arc::new(Counters::default());
    tokio::spawn(run(target, requests, events, counters.clone()));
    Link { requests: request_sender, events: event_receiver, counters }
}

/// Goes the way to `target`, DNS, TCP, proxy and TLS, and no further.
///
/// # Errors
/// The step that failed, and why.
pub async fn reach(target: &Target) -> Result<(), Down> {
    dial::reach(target, Arc::default(), &mut |_| ()).await.map(drop)
}

/// Whether `target` answers the upgrade with 101: a host whose TLS is up may have no hub behind it.
/// The connection is closed in order, with nothing said on it.
pub async fn is_reachable(target: Target) -> bool {
    let url = target.url.to_string();
    let mut link = open(target);
    // The queue is empty, and the link takes nothing out of it before it is up.
    let _ = link.requests.try_send(Request::Close { code: close::NORMAL, reason: String::new() });
    let mut is_up = false;
    while let Some(event) = link.events.recv().await {
        match event {
            Event::Up { .. } => is_up = true,
            Event::Down(down) if !is_up => tracing::debug!(url, ?down, "not reachable"),
            _ => {}
        }
    }
    is_up
}

/// Dials `target` as the gateway does, up to and with the upgrade, tells of each step that is done,
/// and hangs up. Gives the subprotocol that the server selected.
///
/// # Errors
/// The step that failed, and why.
pub async fn examine(
    target: &Target,
    note: &mut (dyn FnMut(Passed) + Send),
) -> Result<Option<String>, Down> {
    dial::dial(target, Arc::default(), note).await.map(|dialed| dialed.answer.subprotocol)
}

/// A live connection, or one being made. Dropping it ends the task and the socket at once, without
/// a close frame: [`Request::Close`] and [`Event::Down`] come before that in an orderly end.
#[derive(Debug)]
pub struct Link {
    /// What to send.
    pub requests: mpsc::Sender<Request>,
    /// What happened; ends with [`Event::Down`].
    pub events: mpsc::Receiver<Event>,
    /// Bytes that the socket took and gave, TLS included: a slow link that moves is not a dead one.
    pub counters: Arc<Counters>,
}

impl Link {
    /// The address that this side of the connection has, if the board no longer has it: then
    /// nothing that the peer sends can arrive.
    pub fn lost_address(&self) -> Option<IpAddr> {
        let local = (*self.counters.local.get()?)?;
        let bound = std::net::UdpSocket::bind((local, 0));
        let lost = bound.is_err_and(|error| error.kind() == ErrorKind::AddrNotAvailable);
        lost.then_some(local)
    }
}

/// What is known of the connection from outside its task.
#[derive(Debug, Default)]
pub struct Counters {
    /// Taken by the socket.
    pub sent: AtomicU64,
    /// Of these, what it took once it had been full: somebody at the other end made the room. That
    /// the kernel takes what little there is to send says nothing about the link.
    pub made_room: AtomicU64,
    /// Given by the socket.
    pub received: AtomicU64,
    /// The address that this side has, once there is a connection.
    pub(crate) local: OnceLock<Option<IpAddr>>,
}

/// What the link is asked to do.
#[derive(Debug)]
pub enum Request {
    /// A text message.
    Text(String),
    /// A Ping with this payload (at most 125 bytes).
    Ping(Vec<u8>),
    /// Close in order: the frame is sent, the peer's answer awaited for one second in all. It waits
    /// its turn: a link that takes nothing is dropped instead.
    Close {
        /// RFC 6455, section 7.4.
        code: u16,
        /// At most 123 bytes.
        reason: String,
    },
}

/// What happened on the link.
#[derive(Debug)]
pub enum Event {
    /// The upgrade was answered with 101.
    Up {
        /// The subprotocol that the server selected, if any; a selection that was never offered is
        /// a failed dial.
        subprotocol: Option<String>,
        /// The answer's `Date`, Unix milliseconds.
        date_ms: Option<u64>,
        /// When the first certificate of the chain that was verified ends, Unix milliseconds;
        /// `None` without TLS.
        valid_until_ms: Option<u64>,
    },
    /// A text message.
    Text(String),
    /// A binary message; its content is not kept.
    Binary {
        /// How long it was.
        bytes: usize,
    },
    /// A Pong.
    Pong(Vec<u8>),
    /// Any other frame.
    Heard,
    /// The end; nothing follows.
    Down(Down),
}

/// How a link ended.
#[derive(Debug, Clone)]
pub enum Down {
    /// It never came up. The text names the step, the thing and the remedy.
    Dial {
        /// Which step: `DNS`, `TCP`, `proxy`, `TLS`, `upgrade`.
        step: &'static str,
        /// What went wrong.
        error: String,
    },
    /// The server answered the upgrade with another status than 101.
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its `Retry-After`.
        retry_after: Option<Duration>,
        /// As in [`Event::Up`].
        date_ms: Option<u64>,
        /// As in [`Event::Up`].
        valid_until_ms: Option<u64>,
    },
    /// The peer closed, or answered our close.
    Closed {
        /// 1005 when it gave none.
        code: u16,
        /// Its words.
        reason: String,
    },
    /// The connection broke, or the peer broke the protocol.
    Cut(String),
}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dial { step, error } => write!(f, "{step}: {error}"),
            Self::Refused { status: 401 | 403, .. } => f.write_str(
                "the hub refuses the credential; see that it knows this gateway (fieldgate-hub \
                 gateway list), and its log",
            ),
            Self::Refused { status: 404, .. } => {
                f.write_str("there is nothing at this path (HTTP 404); correct the URL")
            }
            Self::Refused { status, .. } => {
                write!(f, "the server answers with HTTP {status}; its log should say why")
            }
            Self::Closed { code, reason } => write!(f, "the peer closed with {code} {reason}"),
            Self::Cut(error) => f.write_str(error),
        }
    }
}

async fn run(
    target: Target,
    requests: mpsc::Receiver<Request>,
    events: mpsc::Sender<Event>,
    counters: Arc<Counters>,
) {
    let dropped = events.clone();
    let live = async {
        let down = match dial::dial(&target, counters, &mut |_| ()).await {
            Err(down) => down,
            Ok(dialed) => socket::carry(dialed, &target, requests, &events).await,
        };
        // Refused only when nobody listens any more.
        let _ = events.send(Event::Down(down)).await;
    };
    tokio::select! {
        biased;
        () = dropped.closed() => {}
        () = live => {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        time::timeout,
    };
    use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

    use super::*;

    /// What takes longer is stuck.
    pub(super) const WAIT: Duration = Duration::from_secs(20);

    pub(super) fn target_at(port: u16) -> Target {
        Target {
            url: HubUrl { tls: false, host: "127.0.0.1".to_owned(), port, path: "/".to_owned() },
            subprotocols: Vec::new(),
            bearer: None,
            tls: None,
            ca_file: None,
            proxy: None,
            bind_interface: None,
            connect_timeout: Duration::from_secs(5),
            max_message_bytes: 64 * 1024,
        }
    }

    pub(super) async fn bound() -> (TcpListener, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    pub(super) async fn next(link: &mut Link) -> Event {
        timeout(WAIT, link.events.recv()).await.expect("an event in time").expect("an event")
    }

    /// The head of the request that a client sent.
    pub(super) async fn read_head(tcp: &mut TcpStream) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            assert_ne!(tcp.read_buf(&mut head).await.unwrap(), 0, "the whole request");
        }
        String::from_utf8(head).unwrap()
    }

    /// The 101 to a request, with these header lines beside the required ones.
    pub(super) fn answer_to(request: &str, headers: &str) -> String {
        let key = request.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "));
        let accept = derive_accept_key(key.unwrap().as_bytes());
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\n\
             connection: keep-alive, upgrade\r\nSec-WebSocket-Accept: {accept}\r\n{headers}\r\n"
        )
    }

    /// Takes one client and answers 101.
    pub(super) async fn accept_by_hand(listener: &TcpListener, headers: &str) -> TcpStream {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let request = read_head(&mut tcp).await;
        tcp.write_all(answer_to(&request, headers).as_bytes()).await.unwrap();
        tcp
    }

    #[tokio::test]
    async fn a_dropped_link_ends_its_task_and_its_socket() {
        let (listener, port) = bound().await;
        let mut link = open(target_at(port));
        let mut tcp = accept_by_hand(&listener, "").await;
        assert!(matches!(next(&mut link).await, Event::Up { .. }));
        let counters = Arc::downgrade(&link.counters);
        drop(link);
        let mut rest = Vec::new();
        timeout(WAIT, tcp.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert!(rest.is_empty());
        assert!(counters.upgrade().is_none(), "the task has let go of everything");
    }

    #[tokio::test]
    async fn reachable_is_what_answers_the_upgrade_and_it_is_left_in_order() {
        let (listener, port) = bound().await;
        let asked = tokio::spawn(is_reachable(target_at(port)));
        let mut tcp = accept_by_hand(&listener, "").await;
        let mut frame = [0; 8];
        timeout(WAIT, tcp.read_exact(&mut frame)).await.unwrap().unwrap();
        assert_eq!(frame[..2], [0x88, 0x82], "a close frame with a code, masked");
        drop(tcp);
        assert!(timeout(WAIT, asked).await.unwrap().unwrap());

        let asked = tokio::spawn(is_reachable(target_at(port)));
        let (mut tcp, _) = listener.accept().await.unwrap();
        read_head(&mut tcp).await;
        tcp.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await.unwrap();
        assert!(!timeout(WAIT, asked).await.unwrap().unwrap(), "a proxy without a hub behind it");
    }

    #[tokio::test]
    async fn a_link_dropped_while_dialing_lets_go_at_once() {
        let (listener, port) = bound().await;
        let link = open(target_at(port));
        let (mut tcp, _) = listener.accept().await.unwrap();
        read_head(&mut tcp).await;
        drop(link);
        let mut rest = Vec::new();
        timeout(WAIT, tcp.read_to_end(&mut rest)).await.unwrap().unwrap();
    }
}
