//! The event loop that joins the core to the world: sources and disk on one side, the link on the
//! other.
//!
//! It decides nothing: every event becomes an input of the core, and every output of the core a
//! request to a part.

mod alarm;
mod questions;
mod sources;
mod stop;
mod time;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use alarm::Alarm;
pub(super) use time::now;

use super::{
    dialer::place_of,
    disk::{Answer, DiskThread, Job},
    reload::Reload,
    run,
};
use crate::{
    gateway::{Ended, Gateway, Now, Output, Transmit},
    identity::Clock,
    link::{self, Link},
    ops::{
        control::Question,
        notify::{self, Watchdog},
    },
    record::{Publish, SourceId},
    source::{self, Notice, PUBLISH_QUEUE},
    topic::Template,
};

/// How often the bytes that left the socket are looked at while something is under way.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Makes links: everything about a hub, by its place in the configuration, but the moment.
pub(super) type Dialer = Box<dyn FnMut(usize, bool) -> Result<link::Target, String> + Send>;

/// A running source.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) name: &'static str,
    pub(super) requests: mpsc::UnboundedSender<source::Request>,
    pub(super) task: JoinHandle<()>,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// All parts, and the core between them.
pub(super) struct Driver {
    pub(super) gateway: Gateway,
    pub(super) clock: Arc<Clock>,
    pub(super) disk: DiskThread,
    pub(super) publishes: mpsc::Receiver<Publish>,
    pub(super) notices: mpsc::Receiver<Notice>,
    pub(super) questions: mpsc::Receiver<Question>,
    /// Says when the board is on another network.
    pub(super) network: mpsc::Receiver<()>,
    /// By their [`SourceId`].
    pub(super) sources: Vec<Source>,
    pub(super) dialer: Dialer,
    /// The hubs' URLs.
    pub(super) urls: Vec<String>,
    pub(super) reload: Reload,
    /// The topic of `fieldgate send`.
    pub(super) send_topic: Option<Template>,
    pub(super) state: State,
}

/// What the driver itself remembers.
#[derive(Debug, Default)]
pub(super) struct State {
    link: Option<Link>,
    /// The end of the certificate that the hub on the link proved itself by, if it did.
    valid_until_ms: Option<u64>,
    made_room_bytes: u64,
    received_bytes: u64,
    /// What each source last said of itself.
    source_states: HashMap<SourceId, (bool, String)>,
    /// `fieldgate send` that waits for its record to be safe, by the number of its receipt.
    sends: HashMap<u64, oneshot::Sender<Result<Value, String>>>,
    next_send: u64,
    /// Deliveries that went to one source after another, by token.
    tried: HashMap<u64, (source::Delivery, SourceId)>,
    /// Whether the first hub can be reached, while a later one is connected.
    probe: Option<JoinHandle<bool>>,
    told: String,
    watchdog: Option<Watchdog>,
    alarm: Alarm,
}

enum Event {
    Signal(&'static str),
    Disk(Answer),
    Link(Option<link::Event>),
    Room,
    Notice(Notice),
    Publish(Publish),
    Question(Question),
    Probed(bool),
    Network,
    Reload,
    Timeout,
}

impl Driver {
    /// Runs until a signal says stop, then stops in order.
    ///
    /// # Errors
    /// The signals can't be listened to.
    pub(super) async fn run(mut self) -> std::io::Result<()> {
        let mut signals = Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        };
        self.state.watchdog = Watchdog::new(Instant::now());
        self.gateway.handle_timeout(self.now());
        notify::ready();
        loop {
            let waits_for_room = self.drain();
            self.tell();
            self.feed_watchdog();
            match self.next(&mut signals, waits_for_room).await {
                Event::Signal(name) => {
                    tracing::info!(signal = name, "stopping");
                    break;
                }
                event => self.handle(event),
            }
        }
        notify::stopping();
        self.stop().await;
        Ok(())
    }

    async fn next(&mut self, signals: &mut Signals, waits_for_room: bool) -> Event {
        let mut deadline = self.gateway.poll_timeout();
        if !self.gateway.is_drained() {
            let look = Instant::now() + PROGRESS_EVERY;
            deadline = Some(deadline.map_or(look, |at| at.min(look)));
        }
        if let Some(watchdog) = &self.state.watchdog {
            deadline = Some(deadline.map_or(watchdog.due(), |at| at.min(watchdog.due())));
        }
        let has_room = self.gateway.has_room();
        let alarm = self.state.alarm.ring_by(deadline);
        let link = &mut self.state.link;
        let requests = link.as_ref().filter(|_| waits_for_room).map(|link| link.requests.clone());
        tokio::select! {
            biased;
            _ = signals.terminate.recv() => Event::Signal("SIGTERM"),
            _ = signals.interrupt.recv() => Event::Signal("SIGINT"),
            _ = signals.hangup.recv() => Event::Reload,
            Some(answer) = self.disk.answers.recv() => Event::Disk(answer),
            event = next_of(link), if link.is_some() => Event::Link(event),
            () = room(requests), if waits_for_room => Event::Room,
            Some(notice) = self.notices.recv() => Event::Notice(notice),
            Some(publish) = self.publishes.recv(), if has_room => Event::Publish(publish),
            Some(question) = self.questions.recv() => Event::Question(question),
            Some(()) = self.network.recv() => Event::Network,
            reachable = answer_of(&mut self.state.probe) => Event::Probed(reachable),
            () = alarm => Event::Timeout,
        }
    }

    fn handle(&mut self, event: Event) {
        let now = self.now();
        self.note_progress(now);
        match event {
            Event::Disk(answer) => self.handle_disk(now, answer),
            Event::Link(event) => self.handle_link(now, event),
            Event::Notice(notice) => self.handle_notice(now, notice),
            Event::Publish(publish) => {
                self.gateway.handle_publish(now, publish);
                self.take_publishes(now);
            }
            Event::Question((ask, reply)) => self.handle_question(now, ask, reply),
            Event::Network => self.handle_network_change(now),
            Event::Probed(reachable) => self.gateway.handle_probed(now, reachable),
            // What came of it stands in the log.
            Event::Reload => drop(self.reload()),
            Event::Timeout => self.keep_time(false),
            Event::Room | Event::Signal(_) => {}
        }
        if self.gateway.poll_timeout().is_some_and(|at| at <= now.instant) {
            self.gateway.handle_timeout(now);
        }
    }

    fn take_publishes(&mut self, now: Now) {
        for _ in 0..PUBLISH_QUEUE {
            if !self.gateway.has_room() {
                return;
            }
            let Ok(publish) = self.publishes.try_recv() else { return };
            self.gateway.handle_publish(now, publish);
        }
    }

    fn handle_disk(&mut self, now: Now, answer: Answer) {
        match answer {
            Answer::Opened(found) => {
                found.report();
                match run::stream_names(&found.streams) {
                    Ok(streams) => self.gateway.handle_opened(now, streams, found.held()),
                    Err(error) => tracing::error!("{error:#}"),
                }
            }
            Answer::Appended(result) => self.gateway.handle_appended(now, result),
            Answer::Read { lane, epoch, result } => {
                self.gateway.handle_read(now, lane, epoch, result);
            }
            Answer::Retired { lane, epoch, result } => {
                self.gateway.handle_retired(now, lane, epoch, result);
            }
            Answer::Journalled(result) => self.gateway.handle_journalled(now, result),
        }
    }

    fn handle_link(&mut self, now: Now, event: Option<link::Event>) {
        let down = match event {
            Some(link::Event::Up { subprotocol, date_ms, valid_until_ms }) => {
                self.handle_date(date_ms, valid_until_ms);
                return self.gateway.handle_up(now, subprotocol.as_deref());
            }
            Some(link::Event::Text(text)) => return self.gateway.handle_text(now, &text),
            Some(link::Event::Pong(payload)) => return self.gateway.handle_pong(now, &payload),
            Some(link::Event::Binary { .. }) => return self.gateway.handle_binary(now),
            Some(link::Event::Heard) => return self.gateway.handle_frame(now),
            Some(link::Event::Down(down)) => down,
            None => link::Down::Cut("the link's task ended".into()),
        };
        self.state.link = None;
        let ended = match down {
            link::Down::Dial { step, error } => Ended::Dial(format!("{step}: {error}")),
            link::Down::Refused { status, retry_after, date_ms, valid_until_ms } => {
                let was_wrong = self.handle_date(date_ms, valid_until_ms);
                match status {
                    401 if was_wrong => Ended::WrongTime,
                    _ => Ended::Http { status, retry_after },
                }
            }
            link::Down::Closed { code, reason } => Ended::Closed { code, reason },
            link::Down::Cut(error) => Ended::Cut(error),
        };
        self.gateway.handle_ended(now, &ended);
    }

    fn handle_network_change(&mut self, now: Now) {
        tracing::info!("the network changed");
        if let Some(address) = self.state.link.as_ref().and_then(Link::lost_address) {
            self.state.link = None;
            let why = format!("the board no longer has the address {address}");
            self.gateway.handle_ended(now, &Ended::Lost(why));
        }
        self.gateway.handle_network_change(now);
    }

    fn note_progress(&mut self, now: Now) {
        let Some(link) = &self.state.link else { return };
        let made_room = link.counters.made_room.load(Relaxed);
        if made_room != self.state.made_room_bytes {
            self.state.made_room_bytes = made_room;
            self.gateway.handle_progress(now);
        }
        // Half a frame shows as well that the peer lives.
        let received = link.counters.received.load(Relaxed);
        if received != self.state.received_bytes {
            self.state.received_bytes = received;
            self.gateway.handle_bytes(now);
        }
    }

    /// Carries out what the core wants. Says whether more could be sent than the link has room for.
    fn drain(&mut self) -> bool {
        loop {
            while let Some(output) = self.gateway.poll_output() {
                self.carry_out(output);
            }
            let Some(link) = &self.state.link else { return false };
            let room = match link.requests.try_reserve() {
                Ok(room) => room,
                Err(mpsc::error::TrySendError::Full(())) => return true,
                // Its last event says why, and comes next.
                Err(mpsc::error::TrySendError::Closed(())) => return false,
            };
            match self.gateway.poll_transmit(self.now()) {
                Some(Transmit::Text(text)) => room.send(link::Request::Text(text)),
                Some(Transmit::Ping(payload)) => room.send(link::Request::Ping(payload)),
                Some(Transmit::Close { code, reason }) => {
                    room.send(link::Request::Close { code, reason });
                }
                None => {
                    drop(room);
                    // Sending may have asked for more to be read.
                    match self.gateway.poll_output() {
                        Some(output) => self.carry_out(output),
                        None => return false,
                    }
                }
            }
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            // The thread ends only after this loop.
            Output::Disk(request) => drop(self.disk.jobs.send(Job::Request(request))),
            Output::Safe(receipt) if receipt.source == CONTROL => {
                if let Some(reply) = self.state.sends.remove(&receipt.number) {
                    reply.send(Ok("safe".into())).ok();
                }
            }
            Output::Safe(receipt) => {
                if let Some(source) = self.sources.get(usize::from(receipt.source.0)) {
                    source.requests.send(source::Request::Safe(receipt)).ok();
                }
            }
            Output::Deliver { token, source, topic, payload } => {
                let first = source.filter(|source| usize::from(source.0) < self.sources.len());
                let delivery = source::Delivery { token, topic, payload };
                self.deliver(first.unwrap_or(SourceId(0)), delivery);
            }
            Output::Dial { hub, managed } => match (self.dialer)(hub, managed) {
                Ok(target) => {
                    (self.state.made_room_bytes, self.state.received_bytes) = (0, 0);
                    self.state.link = Some(link::open(target));
                }
                Err(error) => self.gateway.handle_ended(self.now(), &Ended::Dial(error)),
            },
            Output::Hangup => self.state.link = None,
            Output::Token => match (self.dialer)(self.gateway.hub(), true) {
                Ok(target) => {
                    if let Some(token) = target.bearer {
                        self.gateway.handle_token(token.reveal());
                    }
                }
                Err(error) => tracing::warn!(error, "no fresh token to show to the hub"),
            },
            Output::Probe { managed } => {
                let target = (self.dialer)(0, managed);
                self.state.probe = Some(tokio::spawn(async move {
                    match target {
                        Ok(target) => link::is_reachable(target).await,
                        Err(_) => false,
                    }
                }));
            }
            Output::Named { url } => match place_of(&self.urls, &url) {
                Some(hub) => self.gateway.handle_named(hub),
                None => tracing::info!("the hub names one that is not in uplink.url; not heeded"),
            },
            Output::TimeHeard { unix_ms } => self.handle_time(unix_ms),
            Output::RememberManaged { hub } => {
                self.disk.jobs.send(Job::RememberManaged(self.urls[hub].clone())).ok();
            }
        }
    }

    /// Tells the service manager, when it changes, how things stand.
    fn tell(&mut self) {
        let up = self.state.link.is_some() && self.gateway.is_live();
        let told = if up { "connected to the hub" } else { "offline; records are kept on disk" };
        if self.state.told != told {
            notify::status(told);
            self.state.told = told.into();
        }
    }

    /// Takes over what can be taken over of a changed configuration, and says what.
    ///
    /// # Errors
    /// The faults, which are logged as well; then nothing changes.
    fn reload(&mut self) -> Result<Value, String> {
        notify::reloading();
        let outcome = self.reload.read();
        notify::ready();
        outcome.map(|(dialer, account)| {
            self.dialer = dialer;
            self.gateway.handle_reload(self.now());
            account
        })
    }

    /// Says that the process may live on: the loop turns, or nobody would get here, and the gateway
    /// gets on.
    fn feed_watchdog(&mut self) {
        let Some(watchdog) = &mut self.state.watchdog else { return };
        let now = now(&self.clock);
        if !watchdog.is_due(now.instant) {
            return;
        }
        match self.gateway.standstill(now) {
            None => notify::alive(),
            Some(what) => {
                tracing::error!(what, "the gateway stands still; the watchdog is not fed")
            }
        }
    }
}

/// The source of `fieldgate send`.
const CONTROL: SourceId = SourceId(u8::MAX);

async fn next_of(link: &mut Option<Link>) -> Option<link::Event> {
    match link {
        Some(link) => link.events.recv().await,
        None => std::future::pending().await,
    }
}

/// What a probe found. A probe that is lost found nothing.
async fn answer_of(probe: &mut Option<JoinHandle<bool>>) -> bool {
    let Some(task) = probe else { return std::future::pending().await };
    let reachable = task.await.unwrap_or(false);
    *probe = None;
    reachable
}

async fn room(requests: Option<mpsc::Sender<link::Request>>) {
    match requests {
        // A closed queue counts as room: the link's last event comes next.
        Some(requests) => drop(requests.reserve().await),
        None => std::future::pending().await,
    }
}
