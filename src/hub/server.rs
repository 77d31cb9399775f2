//! The hub's process: its store, its listener, and how it starts and stops.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Response, header},
    response::IntoResponse as _,
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};
use tower_service::Service as _;

use super::{
    api,
    arrivals::{self, Arrival, Arrivals, is_trusted},
    authenticate::Shown,
    config::Config,
    credential::read_certificate,
    engine::{Answer, EngineError, Reader, Request, Sqlite, Store, Voucher},
    issuer::IssuerKeys,
    live::Live,
    patience::{Patient, Progress},
    presence::Presence,
    refusal::Refusal,
    session::Now,
    throttle::{Kind, Throttle},
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

/// How long a stranger that was told to give way may take before another one is.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

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

    /// Who vouches for a client's chain, were it to come now; `None`: nobody.
    pub(super) fn voucher(&self, chain: &[CertificateDer<'static>]) -> Option<Voucher> {
        self.tls.as_ref()?.borrow().voucher(chain)
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
    /// Where it proves whose it is.
    pub(super) arrival: Arc<Arrival>,
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
        let arrivals = Arrivals::new(config.rates.handshakes, config.connections_per_credential);
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
        let place = place_for_newcomer(hub, places).await;
        let (hub, router, progress) = (hub.clone(), router.clone(), Arc::default());
        let greeting = Greeting { hub, router, place, progress };
        tokio::spawn(async move {
            if let Err(error) = greeting.greet(socket, address.ip()).await {
                tracing::debug!(peer = %address, %error, "a connection failed");
            }
        });
    }
}

/// At the bound a stranger goes; where there is none, the system's own queue holds further
/// newcomers until somebody leaves.
async fn place_for_newcomer(hub: &Hub, places: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    loop {
        if let Ok(place) = places.clone().try_acquire_owned() {
            return place;
        }
        hub.arrivals.make_room();
        let freed = timeout(LEAVE_TIMEOUT, places.clone().acquire_owned()).await;
        if let Ok(Ok(place)) = freed {
            return place;
        }
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
        if is_trusted(&self.hub.config.trusted_proxies, address) {
            return self.serve(socket, address, None).await;
        }
        let (arrival, give_way) = self.hub.arrivals.enter(address);
        tokio::select! {
            served = self.serve(socket, address, Some(arrival)) => served,
            () = give_way.notified() => Err("cut: others come, and it has proven nothing".into()),
        }
    }

    /// `arrival` is `None` for a trusted proxy's connection.
    async fn serve(
        self,
        socket: TcpStream,
        address: IpAddr,
        arrival: Option<Arc<Arrival>>,
    ) -> Served {
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
            let (throttle, now) = (&self.hub.throttle, now().instant);
            let claim = throttle.claim(Kind::RefusedCertificate, &());
            let is_news = throttle.may_try(now, address, claim).is_ok();
            throttle.failed(now, address, claim);
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
        arrival: Option<Arc<Arrival>>,
    ) -> Served {
        let Self { hub, router, place, progress } = self;
        let place = Arc::new(place);
        let mut stopping = hub.stopping();
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(progress.clone());
            let address =
                arrivals::client(&hub.config.trusted_proxies, connected, request.headers());
            let entered = match &arrival {
                Some(arrival) => Ok((arrival.clone(), None)),
                None => enter_by_proxy(&hub, address),
            };
            let (shown, place, router) = (shown.clone(), place.clone(), router.clone());
            async move {
                let (arrival, give_way) = match entered {
                    Ok(entered) => entered,
                    Err(refusal) => return Ok(refusal.into_response()),
                };
                let peer = Peer { address, shown, arrival, _place: place };
                answer(router, request, peer, give_way).await
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

/// A request by way of a trusted proxy counts as a connection of its client's.
fn enter_by_proxy(
    hub: &Hub,
    client: IpAddr,
) -> Result<(Arc<Arrival>, Option<Arc<Notify>>), Refusal> {
    hub.throttle.connect(now().instant, client).map_err(Refusal::too_often)?;
    let (arrival, give_way) = hub.arrivals.enter(client);
    Ok((arrival, Some(give_way)))
}

/// Answers a request, unless it is told to give way to others.
async fn answer(
    mut router: Router,
    mut request: hyper::Request<Incoming>,
    peer: Peer,
    give_way: Option<Arc<Notify>>,
) -> Result<Response<Body>, std::convert::Infallible> {
    request.extensions_mut().insert(peer);
    let answered = router.call(request.map(Body::new));
    let Some(give_way) = give_way else { return answered.await };
    tokio::select! {
        answer = answered => answer,
        () = give_way.notified() => {
            let mut response = Refusal::too_often(Duration::ZERO).into_response();
            // The place is wanted for somebody else.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            Ok(response)
        }
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
