//! The link's state: dialling, greeting, live, waiting; when it counts as dead, and when the next
//! attempt is.
//!
//! It must never give up, never retry faster than the back-off allows, and never take a slow link
//! for a dead one. How long is waited after which end stands in [`waits`].

mod waits;

use std::time::{Duration, Instant};

use self::waits::{Haste, Wait};
use super::{
    Now,
    hubs::Hubs,
    live::{Session, UnderWay},
    random::Random,
};
use crate::planted::{Bug, planted};
use crate::protocol::{Drain, HELLO_TIMEOUT, HubLimits, Mode};

/// A session must have lasted so long before the back-off begins anew.
const STABLE: Duration = Duration::from_secs(60);

/// How long the greetings may take in all, while bytes leave and come.
const SLOW_HELLO: Duration = Duration::from_secs(60);

/// How long our own close may take.
const CLOSING: Duration = Duration::from_secs(1);

/// No server can find a message of so few bytes too big.
pub(super) const NEVER_TOO_BIG: u64 = 1024;

/// How the uplink is to behave.
#[derive(Debug, Clone)]
pub struct UplinkSettings {
    /// Which modes may be used.
    pub mode: Mode,
    /// For each hub, the preferred one first, whether its URL ever answered with a valid
    /// `welcome`: then it stays managed.
    pub proven_managed: Vec<bool>,
    /// A Ping is sent when nothing was received for so long.
    pub ping_interval: Duration,
    /// How long its Pong may take.
    pub ping_timeout: Duration,
    /// How long an ack may take.
    pub ack_timeout: Duration,
    /// A dial has ended by then, one way or another.
    pub dial_timeout: Duration,
    /// The first wait after a lost link, and the longest.
    pub backoff: (Duration, Duration),
    /// After how long on a later hub the first is tried again.
    pub return_after: Duration,
    /// Whether commands of a plain server are obeyed.
    pub plain_commands: bool,
}

/// How a link ended.
#[derive(Debug, Clone)]
pub enum Ended {
    /// It never came up.
    Dial(String),
    /// The upgrade was answered with this HTTP status.
    Http {
        /// The status.
        status: u16,
        /// Its `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The upgrade was answered with 401, and the answer's date showed that our time was wrong: the
    /// token that was refused was signed with it.
    WrongTime,
    /// The peer closed.
    Closed {
        /// RFC 6455, section 7.4.
        code: u16,
        /// Its words.
        reason: String,
    },
    /// The connection broke.
    Cut(String),
    /// This side of it is gone.
    Lost(String),
}

#[derive(Debug)]
pub(super) struct Uplink {
    pub(super) settings: UplinkSettings,
    pub(super) phase: Phase,
    pub(super) hubs: Hubs,
    random: Random,
    /// How often the wait was doubled.
    doublings: u32,
    /// The hub said when to come back.
    drain: Option<Drain>,
    /// And to which hub.
    named: Option<usize>,
    /// The hub said, with an error, when to come back.
    retry_after: Option<Duration>,
    /// A token had expired, and no session has been stable since.
    token_retried: bool,
    /// When the attempt that is under way is begun anew: the ground changed beneath it.
    anew_at: Option<Instant>,
    haste: Haste,
    /// What a message of this session may have, in bytes on the link.
    pub(super) message_cap: u64,
    pub(super) last_error: Option<String>,
    pub(super) attempts: u64,
}

#[derive(Debug)]
pub(super) enum Phase {
    /// Until then.
    Waiting { until: Instant },
    /// The link is being made.
    Dialing { managed: bool, until: Instant },
    /// `hello` is out, and `welcome` is waited for until `deadline`: that is `by`, or later while
    /// bytes come that may be its own.
    Greeting { by: Instant, deadline: Instant, latest: Instant },
    /// Records may go.
    Live(Box<Session>),
    /// Our close frame is out, or the link is to be dropped.
    Closing { until: Instant, then: Then },
    /// The gateway stops.
    Stopped,
}

/// What follows our own close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// The next attempt, in plain mode, at once.
    Plain,
    /// The back-off.
    BackOff,
    /// The next hub; after the last the back-off.
    NextHub,
    /// The next hub; this one is left alone for long.
    Slow,
    /// The first hub, at once.
    FirstHub,
    /// Nothing.
    Stop,
}

impl Uplink {
    pub(super) fn new(now: Now, settings: UplinkSettings, seed: u64) -> Self {
        Self {
            hubs: Hubs::new(&settings.proven_managed),
            settings,
            phase: Phase::Waiting { until: now.instant },
            random: Random::new(seed),
            doublings: 0,
            drain: None,
            named: None,
            retry_after: None,
            token_retried: false,
            anew_at: None,
            haste: Haste::default(),
            message_cap: u64::MAX,
            last_error: None,
            attempts: 0,
        }
    }

    pub(super) fn session(&self) -> Option<&Session> {
        if let Phase::Live(session) = &self.phase { Some(session) } else { None }
    }

    pub(super) fn session_mut(&mut self) -> Option<&mut Session> {
        if let Phase::Live(session) = &mut self.phase { Some(session) } else { None }
    }

    pub(super) fn deadline(&self, under_way: Option<UnderWay>) -> Option<Instant> {
        let deadline = match &self.phase {
            Phase::Waiting { until }
            | Phase::Closing { until, .. }
            | Phase::Dialing { until, .. } => Some(*until),
            Phase::Greeting { deadline, .. } => Some(*deadline),
            Phase::Live(session) => {
                let deadline = session.deadline(&self.settings, under_way);
                Some(self.hubs.home_at().map_or(deadline, |at| at.min(deadline)))
            }
            Phase::Stopped => None,
        };
        deadline.into_iter().chain(self.anew_at()).min()
    }

    /// Begins an attempt; says whether it is to offer the managed subprotocols.
    pub(super) fn dial(&mut self, now: Instant) -> bool {
        let managed = self.offers_managed(self.hubs.current());
        self.attempts += 1;
        // What was said on a link counts for its own end.
        (self.anew_at, self.drain, self.retry_after) = (None, None, None);
        self.named = None;
        self.phase = Phase::Dialing { managed, until: now + self.settings.dial_timeout };
        managed
    }

    /// Whether an attempt at this hub offers the managed subprotocols.
    pub(super) fn offers_managed(&self, hub: usize) -> bool {
        match self.settings.mode {
            Mode::Managed => true,
            Mode::Plain => false,
            Mode::Auto => !self.hubs.is_taken_for_plain(hub),
        }
    }

    pub(super) fn greet(&mut self, now: Now) {
        let (by, latest) = (now.instant + HELLO_TIMEOUT, now.instant + SLOW_HELLO);
        self.phase = Phase::Greeting { by, deadline: by, latest };
    }

    /// Bytes leave: a slow line takes long for a `hello` that lists much.
    pub(super) fn handle_greeting_leaves(&mut self, now: Instant) {
        if let Phase::Greeting { by, deadline, latest } = &mut self.phase {
            *by = (now + HELLO_TIMEOUT).min(*latest);
            *deadline = *by;
        }
    }

    /// Bytes come, which may be those of a `welcome` that lists much.
    pub(super) fn handle_greeting_comes(&mut self, now: Instant) {
        if let Phase::Greeting { deadline, latest, .. } = &mut self.phase {
            *deadline = (now + HELLO_TIMEOUT).min(*latest);
        }
    }

    /// The bytes that came were those of something else: for their sake nothing is waited for.
    pub(super) fn handle_other_greeting(&mut self) {
        if let Phase::Greeting { by, deadline, .. } = &mut self.phase {
            *deadline = *by;
        }
    }

    pub(super) fn go_live(&mut self, now: Now, managed: bool, name: String, limits: HubLimits) {
        // The first Ping comes at a random point, so that a fleet that restarts together doesn't
        // ping together.
        let first_ping = self.random.up_to(self.settings.ping_interval);
        let mut session = Session::new(now.instant, managed, name, limits, first_ping);
        session.alone_until = self.hubs.is_careful().then(|| now.instant + STABLE);
        self.message_cap = self.hubs.message_cap(now.instant);
        self.phase = Phase::Live(Box::new(session));
        self.last_error = None;
        self.anew_at = None;
        self.hubs.handle_live(now.instant, managed, self.settings.return_after);
    }

    /// The server gave no `welcome`. In mode auto it is taken to be plain.
    pub(super) fn handle_no_welcome(&mut self, now: Now, why: &str) -> Then {
        self.last_error = Some(format!("no welcome: {why}"));
        let plain = self.may_be_plain();
        if plain {
            self.hubs.set_plain_known(true);
        }
        let then = if plain { Then::Plain } else { Then::NextHub };
        self.phase = Phase::Closing { until: now.instant + CLOSING, then };
        then
    }

    pub(super) fn handle_drain(&mut self, drain: Drain) {
        self.drain = Some(drain).filter(|_| !planted(Bug::DrainIgnored));
    }

    pub(super) fn handle_named(&mut self, hub: usize) {
        self.named = Some(hub);
    }

    /// The hub said with an error when to come back, should it end the session.
    pub(super) fn handle_retry_after(&mut self, retry_after: Duration) {
        self.retry_after = Some(retry_after);
    }

    /// A message was too big for a hub; the largest of `batches` that were under way had `largest`
    /// bytes. Says whether it is certain that it was this one, and that a smaller one can't be
    /// made: else batches to this hub are halved, and go alone for a while.
    pub(super) fn handle_too_big(
        &mut self,
        now: Instant,
        hub: usize,
        (batches, records, largest): (usize, u64, u64),
    ) -> bool {
        let is_certain = batches == 1 && records == 1;
        if largest > NEVER_TOO_BIG && !is_certain {
            let cap = self.message_cap.min(largest / 2).max(NEVER_TOO_BIG);
            self.hubs.handle_too_big(now, hub, cap);
        }
        is_certain && largest > NEVER_TOO_BIG
    }

    /// We end the session ourselves.
    pub(super) fn close(&mut self, now: Now, then: Then, why: String) {
        self.note_stability(now);
        self.last_error = Some(why);
        self.phase = Phase::Closing { until: now.instant + CLOSING, then };
    }

    /// Our close was answered, or had its time.
    pub(super) fn after_close(&mut self, now: Now, then: Then) {
        let (wait, failed) = match then {
            Then::Plain => (Wait::Nothing, false),
            Then::BackOff => (self.wait_after_drain(), false),
            Then::NextHub => (self.wait_after_drain(), true),
            Then::Slow => (Wait::Refused(self.slow()), true),
            Then::FirstHub => {
                self.hubs.return_home();
                (Wait::Nothing, false)
            }
            Then::Stop => {
                self.phase = Phase::Stopped;
                return;
            }
        };
        self.wait(now.instant, wait, failed);
    }

    /// The link ended, not by us. Says how long is waited.
    pub(super) fn handle_ended(&mut self, now: Now, ended: &Ended) -> Duration {
        self.note_stability(now);
        let was_live = self.session().is_some();
        self.last_error = Some(ended.to_string());
        let wait = self.wait_after(ended);
        self.wait(now.instant, wait, !was_live)
    }

    /// Whether the current server may yet turn out to be plain. A silence proves nothing on a
    /// network that has just changed.
    fn may_be_plain(&self) -> bool {
        let may_be = self.settings.mode == Mode::Auto && !self.hubs.is_proven_managed();
        may_be && self.anew_at().is_none()
    }

    fn note_stability(&mut self, now: Now) {
        if self.session().is_some_and(|session| now.instant - session.since >= STABLE) {
            self.doublings = 0;
            self.token_retried = false;
            self.hubs.handle_stable();
        }
    }

    /// The network is another one: a wait that is ours alone ends soon, an attempt is begun anew, a
    /// live link is asked whether it lives. What a hub asked for holds.
    pub(super) fn handle_network_change(&mut self, now: Now) {
        match &mut self.phase {
            Phase::Live(session) => session.probe(now.instant),
            _ => self.bring_forward(now.instant),
        }
    }

    /// The configuration was read anew, credentials included: a hub that refused us as we were is
    /// tried again soon. What a hub asked for holds.
    pub(super) fn handle_reload(&mut self, now: Now) {
        self.token_retried = false;
        self.hubs.handle_reload();
        self.bring_forward(now.instant);
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dial(error) | Self::Cut(error) | Self::Lost(error) => f.write_str(error),
            Self::Http { status, .. } => {
                let remedy = match status {
                    401 | 403 => {
                        "; the credential was refused: check uplink.token_file or uplink.client_cert_file"
                    }
                    404 => "; check the path of uplink.url",
                    426 => {
                        "; the server wants the managed protocol: set uplink.protocol = \"auto\""
                    }
                    300..=399 => {
                        "; redirects are not followed: put the final address in uplink.url"
                    }
                    _ => "",
                };
                write!(f, "the upgrade was answered with HTTP status {status}{remedy}")
            }
            Self::WrongTime => f.write_str(
                "the upgrade was answered with HTTP status 401, by a hub whose time is another than \
                 that of our token; the next one has the hub's",
            ),
            Self::Closed { code, reason } => write!(f, "closed by the hub with {code} {reason}"),
        }
    }
}
