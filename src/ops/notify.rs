//! Tells systemd how the service is doing (sd_notify). Without `$NOTIFY_SOCKET` nobody asked, and
//! nothing is done.
//!
//! Never an error: the service manager being hard of hearing is no reason to stop carrying records.
//! Source: sd_notify(3).

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// The service works: `systemctl start` returns.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// One line for a person, shown by `systemctl status`. A line break in it becomes a space, for what
/// follows one would be another message to systemd.
pub fn status(line: &str) {
    let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    tell(&[NotifyState::Status(&line)]);
}

/// The service is on its way down, in order.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// The configuration is being read anew; [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        // Type=notify-reload tells this reload from an earlier one by the time.
        Ok(at) => tell(&[NotifyState::Reloading, at]),
        Err(error) => tracing::debug!(%error, "the monotonic clock can't be read"),
    }
}

/// systemd's watchdog over this process (WatchdogSec=).
///
/// To be fed by the event loop alone: a task or thread of its own would go on feeding while the
/// loop hangs.
#[derive(Debug)]
pub struct Watchdog {
    every: Duration,
    due: Instant,
}

impl Watchdog {
    /// `None` when systemd does not watch.
    pub fn new(now: Instant) -> Option<Self> {
        // Half of the time that it waits, as sd_watchdog_enabled(3) advises.
        sd_notify::watchdog_enabled().map(|patience| Self { every: patience / 2, due: now })
    }

    /// When it is to be fed next.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Whether it is to be fed now; then the next time is set.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let is_due = now >= self.due;
        if is_due {
            self.due = now + self.every;
        }
        is_due
    }
}

/// The service lives, and gets on: feeds the watchdog.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_asking_is_no_error() {
        ready();
        status("two\nlines");
        reloading();
        stopping();
        alive();
        assert!(Watchdog::new(Instant::now()).is_none());
    }

    #[test]
    fn the_watchdog_is_fed_when_due_and_then_half_its_patience_later() {
        let start = Instant::now();
        let every = Duration::from_secs(15);
        let mut watchdog = Watchdog { every, due: start };
        assert!(watchdog.is_due(start));
        assert_eq!(watchdog.due(), start + every);
        assert!(!watchdog.is_due(start + every / 2));
        assert_eq!(watchdog.due(), start + every);
        assert!(watchdog.is_due(start + 2 * every));
        assert_eq!(watchdog.due(), start + 3 * every);
    }
}
