//! MQTT 3.1.1 without a broker: devices connect straight to the gateway.
//!
//! A pure core (`broker`, with `session`, `routes`, `forwarding`, `retained`, `delivery`, and
//! `wire` for the bytes) under a thin layer of IO (`connection`, and this file). The core is behind
//! one mutex that is never held across a wait; on the gateway's single-threaded runtime nobody ever
//! waits for it.
//!
//! Why not a ready-made broker: none lets the PUBACK wait until the publish is safe.
//!
//! Who may come in is `door`'s to say, and how many may wait there `lobby`'s; whose a topic is,
//! `access`'s. `tls` follows the certificates.
//!
//! What it does not do: QoS 2 towards subscribers (QoS 1 is granted), keep sessions or retained
//! messages over a restart, bridge.

mod access;
mod authority;
mod broker;
mod buckets;
mod connection;
mod delivery;
mod door;
mod failures;
mod forwarding;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod lobby;
mod progress;
mod refusals;
mod retained;
mod routes;
mod session;
mod tls;
mod wire;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    future, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    task::{JoinHandle, JoinSet, spawn_blocking},
    time::{MissedTickBehavior, interval, sleep, timeout},
};

pub use self::access::Topics;
use self::{
    broker::{Broker, End},
    connection::Caller,
    door::{Door, Shown},
    lobby::Lobby,
    tls::Proof,
};
use super::{NOTICE_QUEUE, Notice, Request, Sink};
use crate::{
    config,
    identity::{FollowedServer, ServerTls},
    record::Publish,
};

/// Connections beyond `max_clients` that may be open: those that wait to be let in, and as many
/// that are being ended. Still more stay in the kernel's backlog.
const SPARE_CONNECTIONS: usize = 2 * lobby::OF_ALL;

/// How often the files are looked at, that of users also at each CONNECT: a device that was removed
/// is cut off within this time, and a new certificate counts after two of these.
const LOOK_EVERY: Duration = Duration::from_secs(5);

const SECOND: Duration = Duration::from_secs(1);

/// How long accepting rests when it can't go on.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How long all connections together may take to end when the listener stops.
const STOP_DEADLINE: Duration = Duration::from_millis(1500);

/// How many requests are handled before the connections they concern are woken.
const REQUEST_BATCH: usize = 256;

/// A listener at work.
#[derive(Debug)]
pub struct Running {
    /// What it is asked to do. Dropping it stops the listener.
    pub requests: mpsc::UnboundedSender<Request>,
    /// Where plain MQTT is listened for.
    pub plain: Option<SocketAddr>,
    /// Where MQTT over TLS is listened for.
    pub tls: Option<SocketAddr>,
    /// Ends when the listener has stopped.
    pub task: JoinHandle<()>,
}

/// Binds the configured addresses, then serves clients in tasks of the current runtime.
///
/// `topics` say what goes to `sink.publishes`, and who may publish it. `tls` must be given when
/// `config.tls` is; it is what asks clients for their certificate.
///
/// # Errors
/// An address that can't be bound, or users that can't be read, named, with the remedy.
pub async fn start(
    config: &config::Listener,
    topics: Topics,
    tls: Option<FollowedServer>,
    sink: Sink,
) -> io::Result<Running> {
    let plain = match config.bind {
        Some(address) => Some(bind(address, "listener.bind").await?),
        None => None,
    };
    let secure = match (&config.tls, &tls) {
        (Some(wanted), Some(_)) => Some(bind(wanted.bind, "listener.tls_bind").await?),
        (Some(_), None) => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "listener.tls_bind has no certificate loaded; set cert_file and key_file",
            ));
        }
        (None, _) => None,
    };
    let plain_at = plain.as_ref().map(TcpListener::local_addr).transpose()?;
    let tls_at = secure.as_ref().map(TcpListener::local_addr).transpose()?;
    let door = Door::open(config)
        .map_err(|error| io::Error::other(format!("listener.users_file: {error}")))?;
    let (requests, incoming) = mpsc::unbounded_channel();
    let server = Server {
        plain,
        secure,
        max_connections: config.max_clients.saturating_add(SPARE_CONNECTIONS),
        next_connection: 0,
        source: sink.source,
        shared: Arc::new(Shared {
            core: Mutex::new(Core {
                broker: Broker::new(sink.source, topics, config.max_clients, config.max_inflight),
                connections: HashMap::new(),
                lobby: Lobby::new(config.max_clients),
                tls: tls.as_ref().map(|followed| Arc::clone(followed.current())),
            }),
            door,
            notices_due: Notify::new(),
            stopping: AtomicBool::new(false),
            publishes: sink.publishes,
            publish_every: config.max_publish_rate.map(|rate| SECOND / u32::from(rate)),
        }),
        followed: tls,
        connections: JoinSet::new(),
    };
    let bound: Vec<String> = plain_at.iter().chain(&tls_at).map(SocketAddr::to_string).collect();
    let detail = format!("listening on {}", bound.join(" and "));
    let task = tokio::spawn(server.run(incoming, sink.notices, detail));
    Ok(Running { requests, plain: plain_at, tls: tls_at, task })
}

async fn bind(address: SocketAddr, key: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another program (a broker?) listens there; stop it or choose another port"
            }
            io::ErrorKind::AddrNotAvailable => "this machine has no such address; choose another",
            io::ErrorKind::PermissionDenied => "ports under 1024 need a privilege; choose another",
            _ => "choose another address",
        };
        io::Error::new(error.kind(), format!("{key}: can't listen on {address}: {error}; {remedy}"))
    })
}

/// What the connections share.
#[derive(Debug)]
struct Shared {
    core: Mutex<Core>,
    door: Door,
    notices_due: Notify,
    stopping: AtomicBool,
    publishes: mpsc::Sender<Publish>,
    /// How far apart one client's publishes must be on average.
    publish_every: Option<Duration>,
}

#[derive(Debug)]
struct Core {
    broker: Broker,
    connections: HashMap<u64, Connected>,
    lobby: Lobby,
    /// What handshakes are made by now.
    tls: Option<Arc<ServerTls>>,
}

#[derive(Debug)]
struct Connected {
    wake: Arc<Notify>,
    /// By what it was let in, if that was a certificate.
    proof: Option<Proof>,
}

impl Shared {
    /// Gives the broker an input, then wakes whoever has to do with its outputs.
    fn with<T>(&self, input: impl FnOnce(&mut Broker) -> T) -> T {
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        let result = input(&mut core.broker);
        while let Some(number) = core.broker.pop_woken() {
            if let Some(connected) = core.connections.get(&number) {
                connected.wake.notify_one();
            }
        }
        if core.broker.has_notices() {
            self.notices_due.notify_one();
        }
        result
    }

    /// What wakes a connection from now on. `None`: the certificate that it was let in by does not
    /// count any more.
    fn register(&self, number: u64, proof: Option<Proof>) -> Option<Arc<Notify>> {
        let wake = Arc::new(Notify::new());
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        if proof.as_ref().is_some_and(|proof| !proof.counts(core.tls.as_ref())) {
            return None;
        }
        core.connections.insert(number, Connected { wake: Arc::clone(&wake), proof });
        Some(wake)
    }

    fn unregister(&self, number: u64) {
        self.core.lock().unwrap_or_else(PoisonError::into_inner).connections.remove(&number);
    }

    /// Ends the connections of devices that the file of users says something else of than before.
    async fn refresh_users(&self) {
        let changes = self.door.refresh().await;
        self.with(|broker| {
            for change in changes {
                broker.handle_revoked(Instant::now(), &change.name, change.forget);
            }
        });
    }

    /// Handshakes are made by `tls` from now on. Ends the connections of devices whose certificates
    /// it does not trust.
    async fn change_tls(&self, tls: Arc<ServerTls>) {
        let proofs: Vec<(u64, Proof)> = {
            let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
            core.tls = Some(Arc::clone(&tls));
            let proven = core.connections.iter();
            proven.filter_map(|(number, it)| Some((*number, it.proof.clone()?))).collect()
        };
        // A signature takes a small board its time, and there may be many.
        let gone = spawn_blocking(move || {
            let gone = proofs.into_iter().filter(|(_, proof)| !proof.counts(Some(&tls)));
            gone.map(|(number, _)| number).collect::<Vec<_>>()
        });
        let gone = gone.await.expect("verifying a certificate does not panic");
        if !gone.is_empty() {
            tracing::info!(
                connections = gone.len(),
                "ended: their certificates are of no authority that listener.client_ca_file names"
            );
        }
        self.with(|broker| {
            let now = Instant::now();
            gone.iter().for_each(|number| broker.handle_end(now, *number, End::Lost));
        });
    }

    fn with_lobby<T>(&self, input: impl FnOnce(&mut Lobby) -> T) -> T {
        input(&mut self.core.lock().unwrap_or_else(PoisonError::into_inner).lobby)
    }

    fn leave_lobby(&self, number: u64) {
        self.with_lobby(|lobby| lobby.leave(number));
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.wake_all();
    }

    fn wake_all(&self) {
        let core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        core.connections.values().for_each(|connected| connected.wake.notify_one());
    }
}

struct Server {
    plain: Option<TcpListener>,
    secure: Option<TcpListener>,
    followed: Option<FollowedServer>,
    max_connections: usize,
    next_connection: u64,
    source: crate::record::SourceId,
    shared: Arc<Shared>,
    connections: JoinSet<()>,
}

impl Server {
    async fn run(
        mut self,
        mut requests: mpsc::UnboundedReceiver<Request>,
        notices: mpsc::Sender<Notice>,
        detail: String,
    ) {
        let source = self.source;
        let shared = Arc::clone(&self.shared);
        let mut teller = tokio::spawn(tell(Arc::clone(&shared), notices));
        shared.with(|broker| broker.notify(Notice::State { source, up: true, detail }));

        self.serve(&mut requests).await;

        self.plain = None;
        self.secure = None;
        shared.stop();
        let all_ended = async { while self.connections.join_next().await.is_some() {} };
        if timeout(STOP_DEADLINE, all_ended).await.is_err() {
            self.connections.shutdown().await;
        }
        let detail = "stopped".to_owned();
        shared.with(|broker| broker.notify(Notice::State { source, up: false, detail }));
        shared.notices_due.notify_one();
        if timeout(STOP_DEADLINE, &mut teller).await.is_err() {
            teller.abort();
        }
    }

    /// Serves until it is asked to stop.
    async fn serve(&mut self, requests: &mut mpsc::UnboundedReceiver<Request>) {
        let mut batch = Vec::with_capacity(REQUEST_BATCH);
        let mut can_accept = true;
        let mut minute = interval(Duration::from_secs(60));
        let mut files = interval(LOOK_EVERY);
        minute.set_missed_tick_behavior(MissedTickBehavior::Delay);
        files.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let has_room = self.shared.with_lobby(|lobby| lobby.has_room(Instant::now()));
            let open = can_accept && has_room && self.connections.len() < self.max_connections;
            let accepted = tokio::select! {
                biased;
                count = requests.recv_many(&mut batch, REQUEST_BATCH) => {
                    let stop = self.handle_requests(&mut batch);
                    if stop || count == 0 {
                        return;
                    }
                    continue;
                }
                Some(_) = self.connections.join_next() => continue,
                _ = minute.tick() => {
                    self.handle_minute();
                    continue;
                }
                _ = files.tick(), if self.follows_files() => {
                    self.shared.refresh_users().await;
                    self.refresh_tls().await;
                    continue;
                }
                () = sleep(ACCEPT_PAUSE), if !can_accept || !has_room => {
                    can_accept = true;
                    continue;
                }
                accepted = accept(self.plain.as_ref()), if open => accepted.map(|it| (it, None)),
                accepted = accept(self.secure.as_ref()), if open => {
                    accepted.map(|it| (it, self.followed.as_ref().map(FollowedServer::current)))
                }
            };
            match accepted {
                Ok(((stream, peer), tls)) => {
                    let tls = tls.cloned();
                    self.spawn(stream, peer, tls);
                }
                Err(error) => {
                    // Too many open files, or the peer is gone: neither is helped by spinning.
                    self.shared.door.refusals.warn_of(&error);
                    can_accept = false;
                }
            }
        }
    }

    /// Handles a batch; whether a stop was among them, which leaves the rest undone.
    fn handle_requests(&mut self, batch: &mut Vec<Request>) -> bool {
        self.shared.with(|broker| {
            for request in batch.drain(..) {
                match request {
                    Request::Safe(receipt) => broker.handle_safe(receipt),
                    Request::Deliver(delivery) => broker.handle_deliver(&delivery),
                    Request::Stop => return true,
                }
            }
            false
        })
    }

    fn handle_minute(&mut self) {
        let (clients, dropped) = self.shared.with(|broker| {
            broker.handle_tick(Instant::now());
            broker.account()
        });
        tracing::debug!(clients, dropped, "listener");
    }

    fn follows_files(&self) -> bool {
        self.followed.is_some() || self.shared.door.has_users()
    }

    /// Looks at the files of TLS, which are read beside the event loop.
    async fn refresh_tls(&mut self) {
        let Some(mut followed) = self.followed.take() else { return };
        let looked = spawn_blocking(move || {
            let new = followed.look().cloned();
            (followed, new)
        });
        let (followed, new) = looked.await.expect("looking at files does not panic");
        self.followed = Some(followed);
        if let Some(new) = new {
            self.shared.change_tls(new).await;
        }
    }

    fn spawn(&mut self, stream: TcpStream, peer: SocketAddr, tls: Option<Arc<ServerTls>>) {
        let number = self.next_connection;
        self.next_connection += 1;
        let shared = Arc::clone(&self.shared);
        let grace = if tls.is_some() { lobby::GRACE_TLS } else { lobby::GRACE };
        let enter = |lobby: &mut Lobby| lobby.enter(Instant::now(), grace, number, peer.ip());
        let Some(leave) = shared.with_lobby(enter) else {
            let fault = "client closed: too many connections came from its address";
            return shared.door.refusals.say(peer, fault);
        };
        // A PUBACK must not wait for the next one; a socket that can't do this still works.
        let _ = stream.set_nodelay(true);
        let mut caller = Caller { number, peer, shown: Shown::Nothing, proof: None, leave };
        self.connections.spawn(async move {
            let Some(tls) = tls else {
                return connection::serve(stream, caller, shared).await;
            };
            match tls::shake_hands(stream, tls, &mut caller, &shared).await {
                Some(stream) => connection::serve(stream, caller, shared).await,
                None => shared.leave_lobby(number),
            }
        });
    }
}

/// Hands the broker's notices on, in order; ends after the listener stopped and the last one is
/// told.
async fn tell(shared: Arc<Shared>, notices: mpsc::Sender<Notice>) {
    loop {
        let mut due = shared.with(Broker::take_notices);
        if due.len() >= NOTICE_QUEUE {
            // They had stopped reading for lack of room here.
            shared.wake_all();
        }
        for notice in due.drain(..) {
            let last = matches!(notice, Notice::State { up: false, .. });
            if notices.send(notice).await.is_err() || last {
                return;
            }
        }
        shared.notices_due.notified().await;
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => future::pending().await,
    }
}
