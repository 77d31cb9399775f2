//! `GET /v1/gateway`: the WebSocket of gateways. Drives a [`Session`] over a socket and the store.
//!
//! Three futures of one task: the driver reads and does what the session wants, the [`outbox`]
//! writes, and [`submit`] hands requests to the store. None waits for another.
//!
//! It must never decide anything that the session could, never let a line that takes nothing or a
//! store that stalls keep it from reading, and never look at a timer before what already came.

use std::{future::pending, sync::Arc, time::Duration};

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{Request, Response, header},
    response::IntoResponse as _,
};
use futures_util::{StreamExt as _, stream::SplitStream};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_tungstenite::tungstenite::{
    self, Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use super::{
    authenticate::{self, Denied, Identity},
    credential::{bearer, random},
    engine::{Answer, EngineError, Request as Ask, SessionId, Store},
    outbox::{self, Outbox},
    patience::Progress,
    presence::{Order, Orders},
    refusal::Refusal,
    server::{Hub, Peer, now, stopped},
    session::{Options, Output, Session, Verified},
    upgrade::{self, Socket},
};
use crate::protocol::{SUBPROTOCOL_BEARER_PREFIX, SUBPROTOCOL_JSON, SUBPROTOCOL_PREFIX, close};

/// When a gateway is to come back after a restart of the hub, and over what time all of them
/// spread.
const DRAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// How long after a credential could not be looked up it is looked up again.
const RECHECK_PAUSE: Duration = Duration::from_millis(500);

type Reply = mpsc::UnboundedSender<Result<Answer, EngineError>>;
type Answers = mpsc::UnboundedReceiver<Result<Answer, EngineError>>;

/// Answers the upgrade.
pub(super) async fn upgrade(
    State(hub): State<Arc<Hub>>,
    Extension(peer): Extension<Peer>,
    Extension(progress): Extension<Arc<Progress>>,
    request: Request<Body>,
) -> Response<Body> {
    let offered = upgrade::offered(&request).unwrap_or_default();
    let is_ours = |name: &&String| {
        name.starts_with(SUBPROTOCOL_PREFIX) && !name.starts_with(SUBPROTOCOL_BEARER_PREFIX)
    };
    // A gateway in mode `auto` must not turn plain against a hub, and a hub has no plain endpoint.
    if !offered.iter().filter(is_ours).any(|name| name == SUBPROTOCOL_JSON) {
        let message = format!("this is the WebSocket of gateways; offer {SUBPROTOCOL_JSON}");
        return Refusal::upgrade_required(message).into_response();
    }
    // Before the look-up, so that no change after it is missed.
    let changes = hub.changes();
    let authorization = request.headers().get(header::AUTHORIZATION);
    let token = authorization.and_then(|value| value.to_str().ok()).and_then(bearer);
    let identity = match authenticate::gateway(&hub, &peer, token).await {
        Ok(identity) => identity,
        Err(refusal) => return refusal.into_response(),
    };
    if let Err(wait) = hub.throttle.begin_session(now().instant, &identity.gateway) {
        let gateway = &identity.gateway;
        tracing::warn!(%gateway, peer = %peer.address, "the gateway begins too many sessions");
        return Refusal::too_often(wait).into_response();
    }
    let frame_bytes = hub.config.limits.frame_bytes;
    upgrade::accept(request, SUBPROTOCOL_JSON, frame_bytes, move |socket| {
        serve(hub, Caller { peer, identity, progress }, changes, socket)
    })
}

/// Who is at the other end.
struct Caller {
    peer: Peer,
    identity: Identity,
    progress: Arc<Progress>,
}

async fn serve(hub: Arc<Hub>, caller: Caller, changes: watch::Receiver<u64>, socket: Socket) {
    let Caller { peer, identity, progress } = caller;
    let id = SessionId { gateway: identity.gateway.clone(), number: hub.next_session() };
    let options = Options {
        hub: hub.config.name.clone(),
        limits: hub.config.limits,
        window: hub.config.window,
        ping_interval: hub.config.ping_interval,
        first_ping: part_of(hub.config.ping_interval),
        ping_timeout: hub.config.ping_timeout,
        traffic: hub.config.rates.traffic,
        expiry: identity.expiry,
    };
    let session = Session::new(now(), id.clone(), options);
    let (reply, answers) = mpsc::unbounded_channel();
    let (asks, asked) = mpsc::unbounded_channel();
    let (outbox, writer) = outbox::open();
    let (sink, stream) = socket.split();
    tracing::debug!(gateway = %id.gateway, peer = %peer.address, "a gateway's connection is up");
    let signals = Signals { store_up: hub.store.up(), stopping: hub.stopping(), changes };
    let store = hub.store.clone();
    let mut driver = Driver {
        hub,
        id,
        peer,
        identity,
        session,
        stream,
        outbox,
        seen: progress.bytes(),
        progress,
        asks,
        orders: None,
        welcomed: false,
        recheck: None,
        end: None,
    };
    tokio::select! {
        () = driver.run(answers, signals) => {}
        () = submit(&store, asked, reply) => {}
        () = writer.write(sink) => {}
    }
    driver.finish().await;
}

/// Hands requests to the store, in their order. It never ends, so that it can stand beside what
/// does.
async fn submit(store: &Store, mut asked: mpsc::UnboundedReceiver<Box<Ask>>, reply: Reply) {
    while let Some(request) = asked.recv().await {
        let reply = reply.clone();
        let reply = Box::new(move |answer| {
            // The driver that asked outlives its requests, unless the runtime ends.
            let _ = reply.send(answer);
        });
        store.submit(*request, reply).await;
    }
    pending().await
}

/// A random part of a time; half of it where the system has no randomness.
fn part_of(time: Duration) -> Duration {
    let random = random().map_or(u16::MAX / 2, u16::from_le_bytes);
    time * u32::from(random) / u32::from(u16::MAX)
}

/// How a connection ended, for the log.
#[derive(Debug)]
enum End {
    /// We closed.
    Ours(u16, &'static str),
    /// The gateway closed, or the connection broke.
    Theirs(String),
}

struct Driver {
    hub: Arc<Hub>,
    id: SessionId,
    peer: Peer,
    identity: Identity,
    session: Session,
    stream: SplitStream<Socket>,
    outbox: Outbox,
    progress: Arc<Progress>,
    /// What it was when it was last looked at.
    seen: u64,
    /// Never holds more than the session has asked, which is bounded there. Boxed, because a queue
    /// has room for many from the start, and most connections ask for nothing.
    asks: mpsc::UnboundedSender<Box<Ask>>,
    /// From `hello` on.
    orders: Option<Orders>,
    welcomed: bool,
    /// When the credential is to be looked up again, where it could not be.
    recheck: Option<Instant>,
    end: Option<End>,
}

/// What concerns every driver.
struct Signals {
    store_up: watch::Receiver<bool>,
    stopping: watch::Receiver<bool>,
    /// Credentials may have ended.
    changes: watch::Receiver<u64>,
}

/// What woke the driver.
enum Event {
    Socket(Option<Result<Message, tungstenite::Error>>),
    /// The line has room again.
    Room,
    /// Writing failed.
    Unwritable(Arc<tungstenite::Error>),
    Answer(Result<Answer, EngineError>),
    Timeout,
    Order(Order),
    Commands,
    Store,
    Changes,
    Stopping,
}

impl Driver {
    async fn run(&mut self, mut answers: Answers, mut signals: Signals) {
        loop {
            self.act().await;
            if self.end.is_some() {
                break;
            }
            match self.next_event(&mut answers, &mut signals).await {
                Event::Socket(message) => self.hear(message),
                Event::Room => {}
                Event::Unwritable(error) => self.end = Some(End::Theirs(brief(&error))),
                Event::Answer(answer) => {
                    self.session.handle_answer(now(), answer);
                    while let Ok(answer) = answers.try_recv() {
                        self.session.handle_answer(now(), answer);
                    }
                    self.session.handle_store(*signals.store_up.borrow());
                }
                Event::Timeout => {
                    self.note_progress();
                    self.session.handle_timeout(now());
                }
                Event::Order(Order::Stay) => {}
                Event::Order(Order::TakenOver) => self.session.handle_taken_over(),
                Event::Commands => self.session.handle_commands_waiting(),
                Event::Store => {
                    self.session.handle_store(*signals.store_up.borrow_and_update());
                    self.check_credential().await;
                }
                Event::Changes => self.check_credential().await,
                Event::Stopping => self.session.handle_drain(DRAIN.0, DRAIN.1),
            }
        }
        if let Some(End::Theirs(_)) = &self.end {
            self.outbox.part(&mut self.stream).await;
        }
        self.session.handle_disconnected();
        // The engine answers everything; what it stored is shown although nobody is there to be
        // told.
        while self.session.outstanding() > 0 {
            let Some(answer) = answers.recv().await else { break };
            self.session.handle_answer(now(), answer);
            self.act().await;
        }
    }

    async fn next_event(&mut self, answers: &mut Answers, signals: &mut Signals) -> Event {
        let deadline = self.session.poll_timeout().map_or_else(Instant::now, Instant::from_std);
        let orders = self.orders.as_mut();
        let is_full = self.outbox.is_full();
        let is_read = !is_full && !self.session.is_saturated();
        let wants_room = self.session.wants_room();
        let recheck = self.recheck;
        tokio::select! {
            biased;
            // What comes seldom goes first, so that no flood can hold it off, and the timer last: a
            // Pong that has come is heard before it is missed.
            Ok(()) = signals.store_up.changed() => Event::Store,
            Ok(()) = signals.changes.changed() => Event::Changes,
            () = sleep_until(recheck.unwrap_or(deadline)), if recheck.is_some() => Event::Changes,
            () = stopped(&mut signals.stopping), if !self.session.is_draining() => Event::Stopping,
            event = listen(orders) => event,
            Some(answer) = answers.recv() => Event::Answer(answer),
            fault = self.outbox.room(wants_room, is_full) => {
                fault.map_or(Event::Room, Event::Unwritable)
            }
            message = self.stream.next(), if is_read => Event::Socket(message),
            () = sleep_until(deadline) => Event::Timeout,
        }
    }

    /// On a slow line a large frame takes longer than any deadline: that some of it came, or left,
    /// shows that the gateway lives. While the outbox is full it is not read, so that its silence
    /// shows nothing; should it take nothing any more, the write fails.
    fn note_progress(&mut self) {
        let seen = self.progress.bytes();
        if std::mem::replace(&mut self.seen, seen) != seen || self.outbox.is_full() {
            self.session.handle_progress(now());
        }
    }

    fn hear(&mut self, message: Option<Result<Message, tungstenite::Error>>) {
        match message {
            Some(Ok(Message::Text(text))) => self.session.handle_message(now(), &text),
            Some(Ok(Message::Binary(_))) => self.session.handle_binary(now()),
            Some(Ok(Message::Close(frame))) => {
                let code = frame.map_or(close::NO_CODE, |frame| u16::from(frame.code));
                self.end = Some(End::Theirs(format!("closed with {code}")));
            }
            Some(Ok(_)) => self.session.handle_frame(now()),
            Some(Err(tungstenite::Error::Capacity(_))) => self.session.handle_oversize(),
            Some(Err(error)) => match upgrade::fault_code(&error) {
                Some(code) => self.session.handle_broken_frame(code),
                None => self.end = Some(End::Theirs(brief(&error))),
            },
            None => self.end = Some(End::Theirs("the connection ended".into())),
        }
    }

    /// Does everything that the session wants done.
    async fn act(&mut self) {
        loop {
            self.drain().await;
            if !self.session.wants_room() || !self.outbox.has_room() {
                break;
            }
            self.session.handle_room(now());
        }
    }

    async fn drain(&mut self) {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Text(text) => self.write(Message::Text(text.into())),
                Output::Ping => self.write(Message::Ping(Default::default())),
                Output::Ask(request) => self.ask(request),
                Output::CheckToken(token) => {
                    let found = self.verify(&token.0).await;
                    self.session.handle_token(now(), found);
                }
                Output::Stored(stored) => self.hub.live.show_stored(&self.id.gateway, &stored),
                Output::Statuses(statuses) => self.hub.live.show_statuses(&statuses),
                Output::Welcomed => {
                    self.welcomed = true;
                    tracing::info!(gateway = %self.id.gateway, "gateway connected");
                    self.hub.live.show_gateway(&self.id.gateway, true);
                }
                Output::Close { code, reason } => self.close(code, reason).await,
            }
        }
    }

    /// What can't be looked up says nothing about the credential: it is asked again until it does,
    /// for no other change need come.
    async fn check_credential(&mut self) {
        let stands = authenticate::still_stands(&self.hub, &self.peer, &self.identity).await;
        if let Err(error) = &stands {
            tracing::debug!(gateway = %self.id.gateway, %error, "its credential can't be looked up");
        }
        self.recheck = stands.is_err().then(|| Instant::now() + RECHECK_PAUSE);
        if let Ok(false) = stands {
            self.session.handle_revoked();
        }
    }

    /// Verifies a token that came on the live link; a good one of this gateway is its credential
    /// from now on.
    async fn verify(&mut self, token: &str) -> Result<Option<Verified>, EngineError> {
        if let Err(wait) = self.hub.throttle.may_replace(now().instant, &self.id.gateway) {
            tracing::debug!(gateway = %self.id.gateway, ?wait, "too many new tokens were refused");
            return Ok(None);
        }
        match authenticate::of_token(&self.hub, token).await {
            Ok(identity) => {
                let Identity { gateway, expiry, .. } = &identity;
                let verified = Verified { gateway: gateway.to_string(), expiry: *expiry };
                if *gateway == self.id.gateway {
                    self.identity = identity;
                }
                Ok(Some(verified))
            }
            Err(Denied::Refused(reason)) => {
                let (gateway, peer) = (&self.id.gateway, self.peer.address);
                self.hub.throttle.not_replaced(now().instant, gateway);
                tracing::warn!(%gateway, %peer, reason, "a new token was refused");
                Ok(None)
            }
            Err(Denied::Store(error)) => Err(error),
        }
    }

    fn ask(&mut self, request: Ask) {
        if let Ask::Open { .. } = &request {
            self.orders = Some(self.hub.presence.enter(&self.id));
        }
        // The receiver stands beside the driver as long as that runs.
        let _ = self.asks.send(Box::new(request));
    }

    fn write(&self, message: Message) {
        if self.end.is_none() {
            self.outbox.put(message);
        }
    }

    async fn close(&mut self, code: u16, reason: &'static str) {
        if self.end.is_some() {
            return;
        }
        self.end = Some(End::Ours(code, reason));
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
        self.outbox.put(Message::Close(Some(frame)));
        self.outbox.part(&mut self.stream).await;
    }

    async fn finish(self) {
        let Self { hub, id, peer, welcomed, end, orders, .. } = self;
        let gateway = &id.gateway;
        match &end {
            Some(End::Ours(code, reason)) => {
                tracing::info!(%gateway, peer = %peer.address, code, reason, "gateway closed");
            }
            Some(End::Theirs(reason)) => {
                tracing::info!(%gateway, peer = %peer.address, reason, "gateway gone");
            }
            None => {}
        }
        if orders.is_none() {
            return;
        }
        if hub.presence.leave(&id) && welcomed {
            hub.live.show_gateway(gateway, false);
        }
        // An error means that the store is down: a session there that nobody speaks for is replaced
        // by the gateway's next one.
        let _ = hub.store.ask(Ask::Close { session: id }).await;
    }
}

/// A link that is cut is an everyday thing, and one line in the log.
fn brief(error: &tungstenite::Error) -> String {
    match error {
        tungstenite::Error::Io(error) => format!("cut: {}", error.kind()),
        error => error.to_string(),
    }
}

async fn listen(orders: Option<&mut Orders>) -> Event {
    let Some(orders) = orders else { return std::future::pending().await };
    tokio::select! {
        Ok(()) = orders.order.changed() => Event::Order(*orders.order.borrow_and_update()),
        () = orders.commands.notified() => Event::Commands,
    }
}
