//! What the sources say, and the commands that go to one after another.

use super::Driver;
use crate::{
    gateway::Now,
    record::SourceId,
    source::{self, Notice},
};

impl Driver {
    pub(super) fn handle_notice(&mut self, now: Now, notice: Notice) {
        match notice {
            Notice::Exhausted(_) => {
                // The publishes it speaks of are in the other queue, which is read after this one.
                self.take_publishes(now);
                self.gateway.handle_exhausted(now);
            }
            Notice::Birth { device, source } => self.gateway.handle_birth(now, &device, source),
            Notice::Death { device, reason } => self.gateway.handle_death(now, &device, reason),
            Notice::Refused { device, reason, receipt } => {
                self.gateway.handle_refused(now, device.as_deref(), reason, receipt);
            }
            Notice::Delivered { token } => {
                self.state.tried.remove(&token);
                self.gateway.handle_delivered(now, token);
            }
            Notice::Undelivered { token } => self.try_next_source(now, token),
            Notice::Interrupted { token } => {
                self.state.tried.remove(&token);
                self.gateway.handle_interrupted(now, token);
            }
            Notice::State { source, up, detail } => {
                let name = self.sources.get(usize::from(source.0)).map_or("?", |s| s.name);
                tracing::info!(source = name, up, detail, "source");
                self.state.source_states.insert(source, (up, detail));
            }
        }
    }

    /// A command is offered to the source that last heard the device, then to those behind it, one
    /// after another.
    fn try_next_source(&mut self, now: Now, token: u64) {
        let Some((delivery, first)) = self.state.tried.remove(&token) else { return };
        let here = usize::from(first.0);
        let next = here + 1;
        if next < self.sources.len() {
            let source = SourceId(next as u8);
            self.deliver(source, delivery);
        } else {
            self.gateway.handle_undelivered(now, token);
        }
    }

    pub(super) fn deliver(&mut self, source: SourceId, delivery: source::Delivery) {
        let token = delivery.token;
        self.state.tried.insert(token, (delivery.clone(), source));
        let sent = self
            .sources
            .get(usize::from(source.0))
            .is_some_and(|source| source.requests.send(source::Request::Deliver(delivery)).is_ok());
        if !sent {
            self.state.tried.remove(&token);
            self.gateway.handle_undelivered(self.now(), token);
        }
    }
}
