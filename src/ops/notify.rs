//! Tells systemd how the service is doing (sd_notify). Without `$NOTIFY_SOCKET` nobody asked, and
//! nothing is done.
//!
//! Never an error: the service manager being hard of hearing is no reason to stop carrying records.
//! Source: sd_notify(3).

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

/// The service is alive. To be told at least twice per [`watchdog_interval`].
pub fn watchdog() {
    tell(&[NotifyState::Watchdog]);
}

/// How long systemd waits for [`watchdog`] before it kills the service; `None` when it does not
/// watch.
pub fn watchdog_interval() -> Option<std::time::Duration> {
    sd_notify::watchdog_enabled()
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
        stopping();
        watchdog();
    }
}
