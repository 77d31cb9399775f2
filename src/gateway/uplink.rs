//! The link's state: dialling, greeting, live, waiting; when it counts as dead, and when the next
//! attempt is.
//!
//! It must never give up, never retry faster than the back-off allows, and never take a slow link
//! for a dead one.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{Now, hubs::Hubs, random::Random};
use crate::protocol::{Drain, HELLO_TIMEOUT, HubLimits, Mode, Position, close};

/// A session that was taken over waits so long at least (PROTOCOL.md, section 3).
const TAKEN_OVER: Duration = Duration::from_secs(60);

/// What is final until reconfigured is tried again so seldom.
const FINAL: Duration = Duration::from_secs(3600);

/// A session must have lasted so long before the back-off begins anew.
const STABLE: Duration = Duration::from_secs(60);

/// The longest wait that a server can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// How long our own close may take.
const CLOSING: Duration = Duration::from_secs(1);

/// How the uplink is to behave.
#[derive(Debug, Clone)]
pub struct UplinkSettings {
    /// Which modes may be used.
    pub mode: Mode,
    /// For each hub, the preferred one first, whether its URL ever answered with a valid `welcome`:
    /// then it stays managed.
    pub proven_managed: Vec<bool>,
    /// A Ping is sent when nothing was received for so long.
    pub ping_interval: Duration,
    /// How long its Pong may take.
    pub ping_timeout: Duration,
    /// How long an ack may take.
    pub ack_timeout: Duration,
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
    token_retried: bool,
    pub(super) last_error: Option<String>,
    pub(super) attempts: u64,
}

#[derive(Debug)]
pub(super) enum Phase {
    /// Until then.
    Waiting { until: Instant },
    /// The link is being made.
    Dialing { managed: bool },
    /// `hello` is out.
    Greeting { deadline: Instant },
    /// Records may go.
    Live(Session),
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

/// A live session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) managed: bool,
    pub(super) name: String,
    pub(super) since: Instant,
    pub(super) limits: HubLimits,
    /// When a frame last came, and when there was last any sign of progress.
    heard: Instant,
    progress: Instant,
    /// When the next Ping is due, unless something is heard before.
    ping_at: Instant,
    ping_sent: Option<Instant>,
    next_ping: u64,
    /// Plain mode: what had been written before each Ping.
    barriers: VecDeque<(u64, Vec<Position>)>,
    /// Frames written since the last Ping (plain mode).
    pub(super) unbarred: usize,
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
            token_retried: false,
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
            Phase::Waiting { until } | Phase::Closing { until, .. } => Some(*until),
            Phase::Greeting { deadline } => Some(*deadline),
            Phase::Live(session) => {
                let deadline = session.deadline(&self.settings, oldest_flight);
                Some(self.hubs.home_at().map_or(deadline, |at| at.min(deadline)))
            }
            Phase::Dialing { .. } | Phase::Stopped => None,
        }
    }

    /// Begins an attempt; says whether it is to offer the managed subprotocols.
    pub(super) fn dial(&mut self) -> bool {
        let managed = match self.settings.mode {
            Mode::Managed => true,
            Mode::Plain => false,
            Mode::Auto => self.hubs.is_proven_managed() || !self.hubs.is_plain_known(),
        };
        self.attempts += 1;
        self.phase = Phase::Dialing { managed };
        managed
    }

    pub(super) fn greet(&mut self, now: Now) {
        self.phase = Phase::Greeting { deadline: now.instant + HELLO_TIMEOUT };
    }

    pub(super) fn go_live(&mut self, now: Now, managed: bool, name: String, limits: HubLimits) {
        // The first Ping comes at a random point, so that a fleet that restarts together doesn't
        // ping together.
        let first_ping = self.random.up_to(self.settings.ping_interval);
        self.phase = Phase::Live(Session {
            managed,
            name,
            since: now.instant,
            limits,
            heard: now.instant,
            progress: now.instant,
            ping_at: now.instant + first_ping,
            ping_sent: None,
            next_ping: 1,
            barriers: VecDeque::new(),
            unbarred: 0,
        });
        self.last_error = None;
        self.drain = None;
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
        self.drain = Some(drain);
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
        let was_plain_dial = matches!(self.phase, Phase::Dialing { managed: false });
        let was_managed_dial = matches!(self.phase, Phase::Dialing { managed: true });
        self.last_error = Some(ended.to_string());
        let auto = self.may_be_plain();
        let wait = match ended {
            Ended::Closed { code, .. } => self.wait_after_close(*code, auto && was_greeting),
            Ended::Cut(_) if auto && was_greeting => self.plain_after_backoff(),
            Ended::Http { status: 400, .. } if auto && was_managed_dial => {
                self.plain_after_backoff()
            }
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
            close::TAKEN_OVER => {
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
        self.doublings += 1;
        self.random.up_to(wait)
    }

    fn slow(&mut self) -> Duration {
        let longest = self.settings.backoff.1;
        longest / 2 + self.random.up_to(longest / 2)
    }

    fn note_stability(&mut self, now: Now) {
        if self.session().is_some_and(|session| now.instant - session.since >= STABLE) {
            self.doublings = 0;
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

/// What a live session's clock asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Send a Ping.
    Ping,
    /// The link is dead.
    Dead(&'static str),
}

impl Session {
    pub(super) fn handle_heard(&mut self, now: Instant, interval: Duration) {
        self.heard = now;
        self.progress = now;
        self.ping_sent = None;
        self.ping_at = now + interval;
    }

    /// Bytes left the socket.
    pub(super) fn handle_progress(&mut self, now: Instant) {
        self.progress = now;
    }

    /// Asks at once whether the link lives, unless it is being asked.
    fn probe(&mut self, now: Instant) {
        self.ping_at = self.ping_at.min(now);
    }

    fn deadline(&self, settings: &UplinkSettings, oldest_flight: Option<Instant>) -> Instant {
        let liveness = match self.ping_sent {
            Some(sent) => sent.max(self.progress) + settings.ping_timeout,
            None => self.ping_at,
        };
        let ack = oldest_flight.map(|sent| sent.max(self.progress) + settings.ack_timeout);
        ack.map_or(liveness, |ack| ack.min(liveness))
    }

    pub(super) fn due(
        &self,
        now: Instant,
        settings: &UplinkSettings,
        oldest_flight: Option<Instant>,
    ) -> Option<Due> {
        if let Some(sent) = oldest_flight
            && sent.max(self.progress) + settings.ack_timeout <= now
        {
            return Some(Due::Dead("no ack and no progress within ack_timeout"));
        }
        match self.ping_sent {
            Some(sent) if sent.max(self.progress) + settings.ping_timeout <= now => {
                Some(Due::Dead("no Pong and no progress within ping_timeout"))
            }
            None if self.ping_at <= now => Some(Due::Ping),
            _ => None,
        }
    }

    /// The payload of the next Ping, which is a barrier behind `positions` in plain mode.
    pub(super) fn ping(&mut self, now: Instant, positions: Vec<Position>) -> Vec<u8> {
        let counter = self.next_ping;
        self.next_ping += 1;
        self.unbarred = 0;
        if !self.managed {
            self.barriers.push_back((counter, positions));
        }
        self.ping_sent.get_or_insert(now);
        counter.to_string().into_bytes()
    }

    /// How many Pings wait for their Pong.
    pub(super) fn barriers(&self) -> usize {
        self.barriers.len()
    }

    /// What the peer's WebSocket stack has read, now that it answered this Ping.
    pub(super) fn handle_pong(&mut self, payload: &[u8]) -> Vec<Position> {
        let counter = std::str::from_utf8(payload).ok().and_then(|text| text.parse::<u64>().ok());
        let mut reached = Vec::new();
        while let Some((known, _)) = self.barriers.front()
            && counter.is_some_and(|counter| *known <= counter && counter < self.next_ping)
        {
            reached = self.barriers.pop_front().map_or_else(Vec::new, |(_, positions)| positions);
        }
        reached
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
            Self::Closed { code, reason } => write!(f, "closed by the hub with {code} {reason}"),
        }
    }
}
