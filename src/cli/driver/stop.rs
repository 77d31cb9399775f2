//! The end of a run: everything is made safe and acknowledged, and the link closed in order, within
//! what a service manager waits.

use std::time::{Duration, Instant};

use tokio::time::timeout_at;

use super::{Driver, Event, next_of, room};
use crate::{gateway::Gateway, source};

/// How long a stop may take in all, and how much of it is for making everything safe, for the hub's
/// last acks, and for the closing handshake.
const STOP: Duration = Duration::from_millis(4500);
const STOP_SAFE: Duration = Duration::from_secs(2);
const STOP_ACKS: Duration = Duration::from_millis(500);
const STOP_CLOSE: Duration = Duration::from_millis(500);

impl Driver {
    /// Nothing more is taken in; what was taken is made safe and acknowledged; the link is closed.
    pub(super) async fn stop(mut self) {
        let end = Instant::now() + STOP;
        self.gateway.handle_stop(self.now());
        self.go_on_until(STOP_SAFE, Gateway::is_settled).await;
        if !self.gateway.is_settled() {
            tracing::error!("stopping with records that are not safe; they stay unacknowledged");
        }
        self.drain();
        for source in &self.sources {
            source.requests.send(source::Request::Stop).ok();
        }
        self.go_on_until(STOP_ACKS, Gateway::is_drained).await;
        self.gateway.handle_last_close(self.now());
        self.go_on_until(STOP_CLOSE, Gateway::is_closed).await;
        self.keep_time(true);
        let Self { sources, disk, .. } = self;
        for source in sources {
            let name = source.name;
            if timeout_at(end.into(), source.task).await.is_err() {
                tracing::warn!(source = name, "the source did not end in time");
            }
        }
        disk.stop();
        tracing::info!("stopped");
    }

    async fn go_on_until(&mut self, patience: Duration, done: fn(&Gateway) -> bool) {
        let end = Instant::now() + patience;
        loop {
            let waits_for_room = self.drain();
            if done(&self.gateway) || Instant::now() >= end {
                return;
            }
            let deadline = self.gateway.poll_timeout().map_or(end, |at| at.min(end));
            let alarm = self.state.alarm.ring_by(Some(deadline));
            let link = &mut self.state.link;
            let requests =
                link.as_ref().filter(|_| waits_for_room).map(|link| link.requests.clone());
            let event = tokio::select! {
                biased;
                Some(answer) = self.disk.answers.recv() => Event::Disk(answer),
                event = next_of(link), if link.is_some() => Event::Link(event),
                () = room(requests), if waits_for_room => Event::Room,
                Some(notice) = self.notices.recv() => Event::Notice(notice),
                () = alarm => Event::Timeout,
            };
            self.handle(event);
        }
    }
}
