//! The one timer of the event loop.

use std::{pin::Pin, time::Instant};

use tokio::time::{Sleep, sleep_until};

/// One timer for the whole run. The deadline moves on with every record, so that it is set anew
/// only to ring earlier, or when it rang; ringing too early costs one look.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
    at: Option<Instant>,
}

impl Alarm {
    /// Waits until the deadline, or what rang before it.
    pub(super) fn ring_by(&mut self, deadline: Option<Instant>) -> impl Future<Output = ()> + '_ {
        if let Some(deadline) = deadline
            && self.at.is_none_or(|at| deadline < at)
        {
            self.at = Some(deadline);
            match &mut self.sleep {
                Some(sleep) => sleep.as_mut().reset(deadline.into()),
                None => self.sleep = Some(Box::pin(sleep_until(deadline.into()))),
            }
        }
        async {
            match &mut self.sleep {
                Some(sleep) if self.at.is_some() => sleep.as_mut().await,
                _ => std::future::pending().await,
            }
            self.at = None;
        }
    }
}
