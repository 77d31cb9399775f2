//! The hub's process: its store, its listener, and how it starts and stops.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{Router, body::Body, response::IntoResponse as _};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};
use tower_service::Service as _;

use super::{
    api,
    arrivals::{self, Arrival, Arrivals, is_trusted},
    authenticate::Shown,
    config::Config,
    credential::read_certificate,
    engine::{Answer, EngineError, Reader, Request, Sqlite, Store},
    issuer::IssuerKeys,
    live::Live,
    patience::{Patient, Progress},
    presence::Presence,
    refusal::Refusal,
    session::Now,
    throttle::Throttle,
    tls::{self, Loaded, TlsError},
};

/// How long a peer may take for its TLS handshake.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a peer may take for the head of a request, and be idle between two.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a peer may take nothing of an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Unsent bytes in the kernel above which a socket takes no more: so little that a slow line shows
/// its progress, and that what is said last has little before it.
const NOT_SENT_LOW_WATER: u32 = 16 << 10;

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
    pub(super) throttle: Throttle,
    /// Whose tokens are taken beside the gateways' own.
    pub(super) issuer: Option<Arc<IssuerKeys>>,
    /// What `[tls]` names, as it was last found to be of use.
    tls: Option<watch::Sender<Arc<Loaded>>>,
    arrivals: Arc<Arrivals>,
    /// Rises when credentials may have ended.
    changes: watch::Sender<u64>,
    sessions: AtomicU64,
    stopping: watch::Receiver<bool>,
}

impl Hub {
    /// Rises from connection to connection, and from one run of the hub to the next.
    pub(super) fn next_session(&self) -> u64 {
        self.sessions.fetch_add(1, Ordering::Relaxed)
    }

    /// Changes when a credential may have ended: another process, an enrolment, or a new list of
    /// the revoked ended it.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) fn note_change(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Whether a client's chain still would be verified.
    pub(super) fn still_trusts(&self, chain: &[CertificateDer<'static>]) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.borrow().still_trusts(chain))
    }

    /// Turns `true` when the hub is to stop.
    pub(super) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.clone()
    }
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    /// The other end, or whom a trusted proxy speaks for.
    pub(super) address: IpAddr,
    /// Its client certificate, if it showed one that a CA of ours signed.
    pub(super) shown: Option<Arc<Shown>>,
    /// Held as long as anything of the connection lives, an upgraded one too.
    _place: Arc<OwnedSemaphorePermit>,
}

/// A hub that listens and has not served yet.
pub struct Server {
    hub: Arc<Hub>,
    listener: TcpListener,
    engine: std::thread::JoinHandle<()>,
    stop: watch::Sender<bool>,
}

impl Server {
    /// Reads the TLS files, opens the store, binds.
    ///
    /// # Errors
    /// Names the thing, the fault and the remedy.
    pub async fn start(config: Config) -> Result<Self, ServerError> {
        let tls = config.tls.as_ref().map(|tls| tls::load(tls, &config.ca)).transpose()?;
        let listener = TcpListener::bind(config.bind)
            .await
            .map_err(|error| ServerError::Bind(config.bind, error))?;
        let (store, engine) =
            Store::start(Sqlite::open(config.store.clone())?).map_err(ServerError::Thread)?;
        let (stop, stopping) = watch::channel(false);
        let throttle = Throttle::new(&config.rates);
        let issuer = config.jwt.issuer.clone().map(IssuerKeys::new);
        let arrivals = Arrivals::new(config.rates.handshakes);
        let hub = Arc::new(Hub {
            reader: Arc::new(Reader::new(config.store.path.clone())),
            config,
            store,
            presence: Presence::default(),
            live: Live::default(),
            throttle,
            issuer,
            tls: tls.map(|tls| watch::channel(Arc::new(tls)).0),
            arrivals,
            changes: watch::channel(0).0,
            sessions: AtomicU64::new(now().unix_ms << 12),
            stopping,
        });
        Ok(Self { hub, listener, engine, stop })
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
        let Self { hub, listener, engine, stop: stopping } = self;
        let places = Arc::new(Semaphore::new(hub.config.max_connections));
        let looking = tokio::spawn(look(hub.clone()));
        let watching = tokio::spawn(watch_certificates(hub.clone()));
        tokio::select! {
            () = accept(&hub, &listener, &places) => {}
            () = stop => {}
        }
        drop(listener);
        tracing::info!(gateways = hub.presence.count(), "stopping");
        stopping.send_replace(true);
        looking.abort();
        watching.abort();
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

async fn accept(hub: &Arc<Hub>, listener: &TcpListener, places: &Arc<Semaphore>) {
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
        let is_proxy = is_trusted(&hub.config.trusted_proxies, address.ip());
        if !is_proxy && hub.throttle.connect(now().instant, address.ip()).is_err() {
            tracing::debug!(peer = %address, "cut: this address connects too often");
            continue;
        }
        let (hub, router, progress) = (hub.clone(), router.clone(), Arc::default());
        let greeting = Greeting { hub, router, place, progress };
        tokio::spawn(async move {
            if let Err(error) = greeting.greet(socket, address.ip()).await {
                tracing::debug!(peer = %address, %error, "a connection failed");
            }
        });
    }
}

/// A connection that came in.
struct Greeting {
    hub: Arc<Hub>,
    router: Router,
    place: OwnedSemaphorePermit,
    progress: Arc<Progress>,
}

type Served = Result<(), Box<dyn std::error::Error + Send + Sync>>;

impl Greeting {
    async fn greet(self, socket: TcpStream, address: IpAddr) -> Served {
        let (arrival, give_way) = self.hub.arrivals.enter();
        tokio::select! {
            served = self.serve(socket, address, arrival) => served,
            () = give_way.notified() => Err("cut: too many handshakes are under way".into()),
        }
    }

    async fn serve(self, socket: TcpStream, address: IpAddr, arrival: Arrival) -> Served {
        socket.set_nodelay(true)?;
        if let Err(error) = SockRef::from(&socket).set_tcp_notsent_lowat(NOT_SENT_LOW_WATER) {
            tracing::debug!(%error, "the kernel refused a socket option");
        }
        let socket = Patient::new(socket, WRITE_TIMEOUT, self.progress.clone());
        let Some(tls) = &self.hub.tls else {
            return self.serve_http(socket, address, None, arrival).await;
        };
        let acceptor = tls.borrow().acceptor.clone();
        let mut stopping = self.hub.stopping();
        let accepted = tokio::select! {
            accepted = timeout(TLS_TIMEOUT, acceptor.accept(socket)) => accepted?,
            () = stopped(&mut stopping) => return Ok(()),
        };
        let socket = accepted.inspect_err(|error| self.note_certificate(address, error))?;
        let chain = socket.get_ref().1.peer_certificates().unwrap_or_default();
        let certificate = chain.first().and_then(|leaf| read_certificate(leaf));
        let shown = certificate.map(|certificate| {
            let chain = chain.iter().map(|link| link.clone().into_owned()).collect();
            Arc::new(Shown { certificate, chain })
        });
        self.serve_http(socket, address, shown, arrival).await
    }

    /// A client certificate that was refused is a refused credential; anything else that goes wrong
    /// in a handshake is nobody's business.
    fn note_certificate(&self, address: IpAddr, error: &io::Error) {
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::InvalidCertificate(fault)) = cause {
            let fault = format!("{fault:?}");
            let is_news = self.hub.throttle.may_try(now().instant, address).is_ok();
            self.hub.throttle.failed(now().instant, address);
            if is_news {
                tracing::warn!(peer = %address, fault, "a client certificate was refused");
            }
        }
    }

    async fn serve_http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        self,
        socket: S,
        connected: IpAddr,
        shown: Option<Arc<Shown>>,
        arrival: Arrival,
    ) -> Served {
        let Self { hub, router, place, progress } = self;
        let place = Arc::new(place);
        let arrival = Mutex::new(Some(arrival));
        let mut stopping = hub.stopping();
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            // From the first request on, the connection is no longer half-open.
            drop(arrival.lock().unwrap_or_else(PoisonError::into_inner).take());
            let proxies = &hub.config.trusted_proxies;
            let address = arrivals::client(proxies, connected, request.headers());
            let too_often = if is_trusted(proxies, connected) {
                hub.throttle.connect(now().instant, address).err()
            } else {
                None
            };
            let peer = Peer { address, shown: shown.clone(), _place: place.clone() };
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(progress.clone());
            let mut router = router.clone();
            async move {
                match too_often {
                    Some(wait) => Ok(Refusal::too_often(wait).into_response()),
                    None => router.call(request.map(Body::new)).await,
                }
            }
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
}

/// Carries what other processes changed to the sessions, and gives retention its turn.
async fn look(hub: Arc<Hub>) {
    loop {
        sleep(LOOK_INTERVAL).await;
        // A store that is down says so itself, and is tried again by this very request.
        let Ok(Answer::Seen { waiting, changed, expired }) = hub.store.ask(Request::Look).await
        else {
            continue;
        };
        waiting.iter().for_each(|gateway| hub.presence.wake(gateway));
        if changed {
            hub.note_change();
        }
        hub.live.show_statuses(&expired);
    }
}

/// Takes new certificate files into use; sessions that came with a certificate look whether theirs
/// still stands.
async fn watch_certificates(hub: Arc<Hub>) {
    let (Some(tls), Some(loaded)) = (&hub.config.tls, &hub.tls) else { return };
    let mut files = tls::Watch::new(tls, &hub.config.ca);
    loop {
        let in_use = loaded.borrow().clone();
        if let Some(new) = files.next(&in_use).await {
            loaded.send_replace(Arc::new(new));
            hub.note_change();
        }
    }
}
