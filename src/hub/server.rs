//! The hub's process: its store, its listener, and how it starts and stops.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{Router, body::Body};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tower_service::Service as _;

use super::{
    api,
    config::Config,
    credential::certificate_names,
    engine::{Answer, EngineError, Reader, Request, Sqlite, Store},
    live::Live,
    presence::Presence,
    session::Now,
    tls::{self, TlsError},
};

/// How long a peer may take for its TLS handshake.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a peer may take for the head of a request, and be idle between two.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// What is buffered of a request's head.
const HEADER_BYTES: usize = 16 << 10;

/// How often other processes' changes are looked for, and the old is forgotten.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How long everything may take to end in order.
const STOP_TIMEOUT: Duration = Duration::from_secs(4);

/// How long the listener rests when the system has no descriptor for a new connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The hub could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address can't be had.
    #[error("bind = \"{0}\": {1}; name another address, or end who holds it")]
    Bind(SocketAddr, io::Error),
    /// `[tls]` names files that can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The store can't be opened.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The system refuses something else.
    #[error("the system refuses a thread: {0}")]
    Thread(io::Error),
}

/// What every part of the running hub knows.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) config: Config,
    pub(super) store: Store,
    pub(super) reader: Arc<Reader>,
    pub(super) presence: Presence,
    pub(super) live: Live,
    sessions: AtomicU64,
    stopping: watch::Receiver<bool>,
}

impl Hub {
    /// Rises from connection to connection, and from one run of the hub to the next.
    pub(super) fn next_session(&self) -> u64 {
        self.sessions.fetch_add(1, Ordering::Relaxed)
    }

    /// Turns `true` when the hub is to stop.
    pub(super) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.clone()
    }
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// The names in its client certificate, if it showed one that the client CA signed.
    pub(super) names: Arc<[String]>,
    /// Held as long as anything of the connection lives, an upgraded one too.
    _place: Arc<OwnedSemaphorePermit>,
}

/// A hub that listens and has not served yet.
pub struct Server {
    hub: Arc<Hub>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    engine: std::thread::JoinHandle<()>,
    stop: watch::Sender<bool>,
}

impl Server {
    /// Reads the TLS files, opens the store, binds.
    ///
    /// # Errors
    /// Names the thing, the fault and the remedy.
    pub async fn start(config: Config) -> Result<Self, ServerError> {
        let tls = config.tls.as_ref().map(tls::acceptor).transpose()?;
        let listener = TcpListener::bind(config.bind)
            .await
            .map_err(|error| ServerError::Bind(config.bind, error))?;
        let (store, engine) =
            Store::start(Sqlite::open(config.store.clone())?).map_err(ServerError::Thread)?;
        let (stop, stopping) = watch::channel(false);
        let hub = Arc::new(Hub {
            reader: Arc::new(Reader::new(config.store.path.clone())),
            config,
            store,
            presence: Presence::default(),
            live: Live::default(),
            sessions: AtomicU64::new(now().unix_ms << 12),
            stopping,
        });
        Ok(Self { hub, listener, tls, engine, stop })
    }

    /// Where it listens, the port that the system chose for port 0 included.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` resolves; then sends gateways away, commits what is under way, and ends
    /// within 5 s.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let Self { hub, listener, tls, engine, stop: stopping } = self;
        let places = Arc::new(Semaphore::new(hub.config.max_connections));
        let looking = tokio::spawn(look(hub.clone()));
        tokio::select! {
            () = accept(&hub, &listener, tls.as_ref(), &places) => {}
            () = stop => {}
        }
        drop(listener);
        tracing::info!(gateways = hub.presence.count(), "stopping");
        stopping.send_replace(true);
        looking.abort();
        let all = u32::try_from(hub.config.max_connections).unwrap_or(u32::MAX);
        if timeout(STOP_TIMEOUT, places.acquire_many(all)).await.is_err() {
            tracing::warn!("connections did not end in time and were cut; nothing is lost by it");
        }
        drop(hub);
        // The engine's thread ends with its last door; a connection that hangs must not hold the
        // process.
        let ended = tokio::task::spawn_blocking(move || engine.join());
        let _ = timeout(Duration::from_millis(500), ended).await;
    }
}

/// Resolves when the hub is to stop.
pub(super) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error is a hub that is gone already.
    let _ = stopping.wait_for(|stop| *stop).await.map(drop);
}

/// The time, for sessions.
pub(super) fn now() -> Now {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now {
        instant: std::time::Instant::now(),
        unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
    }
}

/// Asks the database, off the runtime's own threads.
pub(super) async fn blocking<T: Send + 'static>(
    question: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    tokio::task::spawn_blocking(question)
        .await
        .unwrap_or_else(|error| Err(EngineError(format!("a question was not answered: {error}"))))
}

async fn accept(
    hub: &Arc<Hub>,
    listener: &TcpListener,
    tls: Option<&TlsAcceptor>,
    places: &Arc<Semaphore>,
) {
    let router = api::router(hub.clone());
    loop {
        // At the bound the system's own queue holds newcomers until somebody leaves.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (socket, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "no connection was accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (router, tls, stopping) = (router.clone(), tls.cloned(), hub.stopping());
        tokio::spawn(async move {
            if let Err(error) = greet(router, socket, address, tls, place, stopping).await {
                tracing::debug!(peer = %address, %error, "a connection failed");
            }
        });
    }
}

async fn greet(
    router: Router,
    socket: TcpStream,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    place: OwnedSemaphorePermit,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    socket.set_nodelay(true)?;
    let peer = |names: Vec<String>| Peer { address, names: names.into(), _place: Arc::new(place) };
    match tls {
        None => serve_http(router, socket, peer(Vec::new()), stopping).await,
        Some(tls) => {
            let socket = tokio::select! {
                accepted = timeout(TLS_TIMEOUT, tls.accept(socket)) => accepted??,
                () = stopped(&mut stopping) => return Ok(()),
            };
            let (_, connection) = socket.get_ref();
            let leaf = connection.peer_certificates().and_then(|chain| chain.first());
            let names = leaf.map(|leaf| certificate_names(leaf)).unwrap_or_default();
            serve_http(router, socket, peer(names), stopping).await
        }
    }
}

async fn serve_http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    router: Router,
    socket: S,
    peer: Peer,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        router.clone().call(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        () = stopped(&mut stopping) => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}

/// Carries what other processes changed to the sessions, and gives retention its turn.
async fn look(hub: Arc<Hub>) {
    loop {
        sleep(LOOK_INTERVAL).await;
        // A store that is down says so itself, and is tried again by this very request.
        let Ok(Answer::Seen { waiting, revoked, expired }) = hub.store.ask(Request::Look).await
        else {
            continue;
        };
        waiting.iter().for_each(|gateway| hub.presence.wake(gateway));
        revoked.iter().for_each(|gateway| hub.presence.revoke(gateway));
        hub.live.show_statuses(&expired);
    }
}
