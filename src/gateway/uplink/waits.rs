//! When the next attempt is, and at which hub: what PROTOCOL.md, section 10, says of close codes
//! and HTTP statuses.
//!
//! A wait must never be shorter than the back-off for a server's sake: what a server asks for only
//! makes it longer, or one that asks for nothing at all would be called without end. It must never
//! be without a bound either, and a fleet must never come back in the same moment.

use std::time::{Duration, Instant};

use super::{Ended, Phase, Uplink};
use crate::gateway::hubs::Rest;
use crate::planted::{Bug, planted};
use crate::protocol::close;

/// A session that was taken over waits so long at least (PROTOCOL.md, section 3).
const TAKEN_OVER: Duration = Duration::from_secs(60);

/// What is final until reconfigured is tried again so seldom.
const FINAL: Duration = Duration::from_secs(3600);

/// The longest wait that a server can ask for, and how far it can spread those who wait.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
const MAX_SPREAD: Duration = Duration::from_secs(1800);

/// What is waited for before the next attempt.
pub(super) enum Wait {
    /// Nothing: the same hub again.
    Nothing,
    /// The back-off, and the same hub again.
    Same,
    /// The back-off, or only the next hub.
    BackOff,
    /// The time that this hub asked for; the next hub need not wait for it.
    Asked(Duration),
    /// This hub refuses us as we are, and is left alone for so long; the next hub need not be.
    Refused(Duration),
    /// So long, whatever hub is next.
    Every(Duration),
}

/// Attempts that were brought forward: at once, but where reasons for that come in crowds (an
/// interface that flaps, containers that come and go) ever further apart, so that an attempt gets
/// the time that it needs.
#[derive(Debug, Default)]
pub(super) struct Haste {
    last: Option<Instant>,
    gap: Duration,
}

impl Haste {
    fn next(&self, now: Instant) -> Instant {
        self.last.map_or(now, |last| now.max(last + self.gap))
    }

    /// An attempt is brought forward to `at`.
    fn note(&mut self, at: Instant, (shortest, longest): (Duration, Duration)) {
        let calm = self.last.is_none_or(|last| last + 2 * longest <= at);
        self.gap = if calm { shortest } else { (2 * self.gap).min(longest) };
        self.last = Some(at);
    }
}

impl Uplink {
    pub(super) fn wait_after(&mut self, ended: &Ended) -> Wait {
        let auto = self.may_be_plain();
        match (ended, &self.phase) {
            (Ended::Closed { code, .. }, phase) => {
                let plain = auto && matches!(phase, Phase::Greeting { .. });
                self.wait_after_close(*code, plain)
            }
            (Ended::Cut(_), Phase::Greeting { .. }) if auto => self.plain_after_backoff(),
            (Ended::Http { status: 400, .. }, Phase::Dialing { managed: true, .. }) if auto => {
                self.plain_after_backoff()
            }
            (Ended::WrongTime, _) if !self.token_retried => {
                self.token_retried = true;
                Wait::Nothing
            }
            (Ended::WrongTime, _) => Wait::Refused(self.slow()),
            (Ended::Http { status, retry_after }, phase) => {
                if matches!(phase, Phase::Dialing { managed: false, .. }) {
                    self.hubs.set_plain_known(false);
                }
                match (status, retry_after) {
                    (429 | 503, Some(after)) => self.wait_as_asked(*after),
                    (401 | 403 | 404, _) => Wait::Refused(self.slow()),
                    _ => Wait::BackOff,
                }
            }
            (Ended::Dial(_) | Ended::Cut(_) | Ended::Lost(_), _) => self.wait_after_drain(),
        }
    }

    fn wait_after_close(&mut self, code: u16, plain_server: bool) -> Wait {
        match code {
            close::POLICY | close::UNSUPPORTED => Wait::Refused(self.slow()),
            close::TOKEN_EXPIRED if !self.token_retried => {
                self.token_retried = true;
                Wait::Nothing
            }
            close::TOKEN_EXPIRED => Wait::Refused(self.slow()),
            close::TOO_MANY => match self.retry_after.take() {
                Some(after) => self.wait_as_asked(after),
                None => self.wait_after_drain(),
            },
            close::TAKEN_OVER if !planted(Bug::TakeOverRushed) => {
                Wait::Every(TAKEN_OVER + self.random.up_to(self.settings.backoff.1))
            }
            close::FINAL_FIRST..=close::FINAL_LAST => Wait::Refused(FINAL),
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

    pub(super) fn wait_after_drain(&mut self) -> Wait {
        let Some(drain) = self.drain.take() else { return Wait::BackOff };
        let ms = Duration::from_millis;
        Wait::Every(self.at_least_asked(ms(drain.retry_after_ms), ms(drain.spread_ms)))
    }

    /// Who names a time names it to many, and says nothing of how they are to be spread.
    fn wait_as_asked(&mut self, after: Duration) -> Wait {
        let spread = (after / 2).max(self.settings.backoff.0);
        Wait::Asked(self.at_least_asked(after, spread))
    }

    fn at_least_asked(&mut self, after: Duration, spread: Duration) -> Duration {
        let spread = self.random.up_to(spread.min(MAX_SPREAD));
        (after.min(MAX_RETRY_AFTER) + spread).max(self.backoff())
    }

    /// The server is no hub, but it is there: the next attempt is at the same one, in plain mode.
    fn plain_after_backoff(&mut self) -> Wait {
        self.hubs.set_plain_known(true);
        Wait::Same
    }

    /// Full jitter: anything between nothing and the wait, which doubles up to the longest.
    fn backoff(&mut self) -> Duration {
        let (first, longest) = self.settings.backoff;
        let wait = first.saturating_mul(1 << self.doublings.min(20)).min(longest);
        self.doublings += u32::from(!planted(Bug::BackOffNeverGrows));
        self.random.up_to(wait)
    }

    pub(super) fn slow(&mut self) -> Duration {
        let longest = self.settings.backoff.1;
        longest / 2 + self.random.up_to(longest / 2)
    }

    /// Begins the wait and says how long it is. `failed`: the attempt did not lead to a session.
    pub(super) fn wait(&mut self, now: Instant, wait: Wait, failed: bool) -> Duration {
        let anew_at = self.anew_at.take();
        let until = match wait {
            Wait::Nothing => now,
            Wait::Every(time) => {
                self.hubs.rest_all(now + time);
                let begins = self.hubs.begin_round(now);
                self.named.iter().for_each(|hub| self.hubs.begin_with(*hub, begins));
                begins
            }
            Wait::Same => now + self.backoff(),
            Wait::BackOff if !failed => now + self.backoff(),
            Wait::BackOff => self.next_hub(now),
            Wait::Asked(time) => {
                self.hubs.rest(Rest::Asked, now + time);
                self.next_hub(now)
            }
            Wait::Refused(time) => {
                // Who was refused may no longer be who asks.
                if anew_at.is_none() {
                    self.hubs.rest(Rest::Refused, now + time);
                }
                self.next_hub(now)
            }
        };
        self.phase = Phase::Waiting { until };
        // What was to begin this attempt anew ends the wait after it.
        if let Some(at) = anew_at {
            self.wait_only_until(at);
        }
        match self.phase {
            Phase::Waiting { until } => until.saturating_duration_since(now),
            _ => Duration::ZERO,
        }
    }

    /// When the next attempt is, after a failed one: soon, if it is at another hub of this round.
    fn next_hub(&mut self, now: Instant) -> Instant {
        if self.hubs.handle_failed(now) {
            return now + self.random.up_to(self.settings.backoff.0);
        }
        let begins = if self.hubs.all_rest(now) { now } else { now + self.backoff() };
        self.hubs.begin_round(begins)
    }

    /// There is news: the next attempt comes soon, and one that is under way is begun anew. A close
    /// that is under way is waited for, and only what follows it comes soon.
    pub(super) fn bring_forward(&mut self, now: Instant) {
        let spread = now + self.random.up_to(self.settings.backoff.0);
        let soon = self.haste.next(now).max(spread);
        match self.phase {
            Phase::Waiting { .. } => self.wait_only_until(soon),
            Phase::Dialing { .. } | Phase::Greeting { .. } | Phase::Closing { .. } => {
                self.anew_at.get_or_insert(soon);
            }
            Phase::Live(_) | Phase::Stopped => {}
        }
    }

    /// The wait ends then, where it is ours alone.
    fn wait_only_until(&mut self, soon: Instant) {
        let Phase::Waiting { until } = &mut self.phase else { return };
        let (_, begins) = self.hubs.next_round(soon);
        if begins < *until {
            *until = self.hubs.begin_round(soon);
            self.haste.note(begins, self.settings.backoff);
        }
    }

    /// When the attempt that is under way is to be begun anew.
    pub(in crate::gateway) fn anew_at(&self) -> Option<Instant> {
        let is_attempt = matches!(self.phase, Phase::Dialing { .. } | Phase::Greeting { .. });
        self.anew_at.filter(|_| is_attempt)
    }

    /// The attempt that was under way is dropped, and no failed one: the next begins at once.
    pub(in crate::gateway) fn begin_anew(&mut self, now: Instant) {
        self.haste.note(now, self.settings.backoff);
        self.phase = Phase::Waiting { until: self.hubs.begin_round(now) };
    }
}
