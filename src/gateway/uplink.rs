//! The link's state: dialling, greeting, live, waiting; when it counts as dead, and when the next
//! attempt is.
//!
//! It must never give up, never retry faster than the back-off allows, and never take a slow link
//! for a dead one.

use std::time::{Duration, Instant};

use super::{Now, hubs::Hubs, live::Session, random::Random};
use crate::planted::{Bug, planted};
use crate::protocol::{Drain, HELLO_TIMEOUT, HubLimits, Mode, close};

/// A session that was taken over waits so long at least (PROTOCOL.md, section 3).
const TAKEN_OVER: Duration = Duration::from_secs(60);

/// What is final until reconfigured is tried again so seldom.
const FINAL: Duration = Duration::from_secs(3600);

/// A session must have lasted so long before the back-off begins anew.
const STABLE: Duration = Duration::from_secs(60);

/// The longest wait that a server can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// How long the greetings may take in all, while bytes leave and come.
const SLOW_HELLO: Duration = Duration::from_secs(60);

/// How long our own close may take.
const CLOSING: Duration = Duration::from_secs(1);

/// No server can find a message of so few bytes too big.
const NEVER_TOO_BIG: u64 = 1024;

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
    /// The hub said, with an error, when to come back.
    retry_after: Option<Duration>,
    token_retried: bool,
    /// What a message may have, in bytes on the link, after one was too big.
    pub(super) message_cap: u64,
    /// A message was too big, and it is not known which.
    is_careful: bool,
    pub(super) last_error: Option<String>,
    pub(super) attempts: u64,
}

#[derive(Debug)]
pub(super) enum Phase {
    /// Until then.
    Waiting { until: Instant },
    /// The link is being made.
    Dialing { managed: bool, until: Instant },
    /// `hello` is out.
    Greeting { deadline: Instant, latest: Instant },
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

/// What is waited for before the next attempt.
enum Wait {
    /// Nothing: the same hub again.
    Nothing,
    /// The back-off, and the same hub again.
    Same,
    /// The back-off, or only the next hub.
    BackOff,
    /// This hub's time; the next hub need not wait for it.
    Hub(Duration),
    /// So long, whatever hub is next.
    Every(Duration),
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
            retry_after: None,
            token_retried: false,
            message_cap: u64::MAX,
            is_careful: false,
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

    pub(super) fn deadline(&self, oldest_flight: Option<Instant>) -> Option<Instant> {
        match &self.phase {
            Phase::Waiting { until }
            | Phase::Closing { until, .. }
            | Phase::Dialing { until, .. } => Some(*until),
            Phase::Greeting { deadline, .. } => Some(*deadline),
            Phase::Live(session) => {
                let deadline = session.deadline(&self.settings, oldest_flight);
                Some(self.hubs.home_at().map_or(deadline, |at| at.min(deadline)))
            }
            Phase::Stopped => None,
        }
    }

    /// Begins an attempt; says whether it is to offer the managed subprotocols.
    pub(super) fn dial(&mut self, now: Instant) -> bool {
        let managed = match self.settings.mode {
            Mode::Managed => true,
            Mode::Plain => false,
            Mode::Auto => self.hubs.is_proven_managed() || !self.hubs.is_plain_known(),
        };
        self.attempts += 1;
        self.phase = Phase::Dialing { managed, until: now + self.settings.dial_timeout };
        managed
    }

    pub(super) fn greet(&mut self, now: Now) {
        let (deadline, latest) = (now.instant + HELLO_TIMEOUT, now.instant + SLOW_HELLO);
        self.phase = Phase::Greeting { deadline, latest };
    }

    /// Bytes leave or come: a slow line takes long for greetings that list much.
    pub(super) fn handle_greeting_moves(&mut self, now: Instant) {
        if let Phase::Greeting { deadline, latest } = &mut self.phase {
            *deadline = (now + HELLO_TIMEOUT).min(*latest);
        }
    }

    /// The server has something else to say than `welcome`: it is waited for no longer than it is.
    pub(super) fn handle_other_greeting(&mut self) {
        if let Phase::Greeting { deadline, latest } = &mut self.phase {
            *latest = *deadline;
        }
    }

    pub(super) fn go_live(&mut self, now: Now, managed: bool, name: String, limits: HubLimits) {
        // The first Ping comes at a random point, so that a fleet that restarts together doesn't
        // ping together.
        let first_ping = self.random.up_to(self.settings.ping_interval);
        let mut session = Session::new(now.instant, managed, name, limits, first_ping);
        session.alone_until = self.is_careful.then(|| now.instant + STABLE);
        self.phase = Phase::Live(Box::new(session));
        self.last_error = None;
        self.drain = None;
        self.retry_after = None;
        self.token_retried = false;
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

    /// The hub said with an error when to come back, should it end the session.
    pub(super) fn handle_retry_after(&mut self, retry_after: Duration) {
        self.retry_after = Some(retry_after.min(MAX_RETRY_AFTER));
    }

    /// A message was too big for the peer; the largest of `batches` that were under way had
    /// `largest` bytes. Says whether it is certain that it was this one, and that a smaller one
    /// can't be made: else batches are halved, and go alone for a while.
    pub(super) fn handle_too_big(&mut self, batches: usize, records: u64, largest: u64) -> bool {
        let is_certain = batches == 1 && records == 1;
        if largest > NEVER_TOO_BIG && !is_certain {
            self.message_cap = self.message_cap.min(largest / 2).max(NEVER_TOO_BIG);
            self.is_careful = true;
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
            Then::BackOff => (Wait::BackOff, false),
            Then::NextHub => (Wait::BackOff, true),
            Then::Slow => (Wait::Hub(self.slow()), true),
            Then::FirstHub => {
                self.hubs.return_home();
                (Wait::Nothing, false)
            }
            Then::Stop => {
                self.phase = Phase::Stopped;
                return;
            }
        };
        self.wait(now, wait, failed);
    }

    /// The link ended, not by us. Says how long is waited.
    pub(super) fn handle_ended(&mut self, now: Now, ended: &Ended) -> Duration {
        self.note_stability(now);
        let was_live = self.session().is_some();
        let was_greeting = matches!(self.phase, Phase::Greeting { .. });
        let was_plain_dial = matches!(self.phase, Phase::Dialing { managed: false, .. });
        let was_managed_dial = matches!(self.phase, Phase::Dialing { managed: true, .. });
        self.last_error = Some(ended.to_string());
        let auto = self.may_be_plain();
        let wait = match ended {
            Ended::Closed { code, .. } => self.wait_after_close(*code, auto && was_greeting),
            Ended::Cut(_) if auto && was_greeting => self.plain_after_backoff(),
            Ended::Http { status: 400, .. } if auto && was_managed_dial => {
                self.plain_after_backoff()
            }
            Ended::WrongTime if !self.token_retried => {
                self.token_retried = true;
                Wait::Nothing
            }
            Ended::WrongTime => Wait::Hub(self.slow()),
            Ended::Http { status, retry_after } => {
                if was_plain_dial {
                    self.hubs.set_plain_known(false);
                }
                match (status, retry_after) {
                    (429 | 503, Some(after)) => {
                        let jitter = self.random.up_to(self.settings.backoff.0);
                        Wait::Hub((*after).min(MAX_RETRY_AFTER) + jitter)
                    }
                    (401 | 403 | 404, _) => Wait::Hub(self.slow()),
                    _ => Wait::BackOff,
                }
            }
            Ended::Dial(_) | Ended::Cut(_) | Ended::Lost(_) => self.wait_after_drain(),
        };
        self.wait(now, wait, !was_live)
    }

    fn wait_after_close(&mut self, code: u16, plain_server: bool) -> Wait {
        match code {
            close::POLICY | close::UNSUPPORTED => Wait::Hub(self.slow()),
            close::TOKEN_EXPIRED if !self.token_retried => {
                self.token_retried = true;
                Wait::Nothing
            }
            close::TOKEN_EXPIRED => Wait::Hub(self.slow()),
            close::TOO_MANY => match self.retry_after.take() {
                Some(after) => Wait::Hub(after + self.random.up_to(self.settings.backoff.0)),
                None => self.wait_after_drain(),
            },
            close::TAKEN_OVER if !planted(Bug::TakeOverRushed) => {
                Wait::Every(TAKEN_OVER + self.random.up_to(self.settings.backoff.1))
            }
            close::FINAL_FIRST..=close::FINAL_LAST => Wait::Hub(FINAL),
            // A stock server that ends the connection over our `hello` says so with one of the
            // ordinary codes.
            _ if plain_server
                && code < 4000
                && code != close::RESTART
                && code != close::TRY_LATER =>
            {
                self.plain_after_backoff()
            }
            _ => self.wait_after_drain(),
        }
    }

    fn wait_after_drain(&mut self) -> Wait {
        let Some(drain) = self.drain.take() else { return Wait::BackOff };
        let spread = self.random.up_to(Duration::from_millis(drain.spread_ms));
        let wait = Duration::from_millis(drain.retry_after_ms) + spread;
        Wait::Every(wait.min(MAX_RETRY_AFTER))
    }

    /// The server is no hub, but it is there: the next attempt is at the same one, in plain mode.
    fn plain_after_backoff(&mut self) -> Wait {
        self.hubs.set_plain_known(true);
        Wait::Same
    }

    /// Whether the current server may yet turn out to be plain.
    fn may_be_plain(&self) -> bool {
        self.settings.mode == Mode::Auto && !self.hubs.is_proven_managed()
    }

    /// Full jitter: anything between nothing and the wait, which doubles up to the longest.
    fn backoff(&mut self) -> Duration {
        let (first, longest) = self.settings.backoff;
        let wait = first.saturating_mul(1 << self.doublings.min(20)).min(longest);
        self.doublings += u32::from(!planted(Bug::BackOffNeverGrows));
        self.random.up_to(wait)
    }

    fn slow(&mut self) -> Duration {
        let longest = self.settings.backoff.1;
        longest / 2 + self.random.up_to(longest / 2)
    }

    fn note_stability(&mut self, now: Now) {
        if self.session().is_some_and(|session| now.instant - session.since >= STABLE) {
            self.doublings = 0;
            self.is_careful = false;
        }
    }

    /// Begins the wait and says how long it is. `failed`: the attempt did not lead to a session.
    fn wait(&mut self, now: Now, wait: Wait, failed: bool) -> Duration {
        let at = now.instant;
        let until = match wait {
            Wait::Nothing => at,
            Wait::Every(time) => {
                self.hubs.rest_all(at + time);
                self.hubs.begin_round(at)
            }
            Wait::Same => at + self.backoff(),
            Wait::BackOff if !failed => at + self.backoff(),
            Wait::BackOff => self.next_hub(at),
            Wait::Hub(time) => {
                self.hubs.rest(at + time);
                self.next_hub(at)
            }
        };
        self.phase = Phase::Waiting { until };
        until - at
    }

    /// When the next attempt is, after a failed one: soon, if it is at another hub of this round.
    fn next_hub(&mut self, now: Instant) -> Instant {
        if self.hubs.handle_failed(now) {
            return now + self.random.up_to(self.settings.backoff.0);
        }
        let begins = if self.hubs.all_rest(now) { now } else { now + self.backoff() };
        self.hubs.begin_round(begins)
    }

    /// The network is another one: a wait that is ours alone ends soon, a live link is asked
    /// whether it lives. What a hub asked for holds.
    pub(super) fn handle_network_change(&mut self, now: Now) {
        let soon = now.instant + self.random.up_to(self.settings.backoff.0);
        match &mut self.phase {
            Phase::Waiting { until } if soon < *until => {
                *until = self.hubs.begin_round(soon).min(*until);
            }
            Phase::Live(session) => session.probe(now.instant),
            _ => {}
        }
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
