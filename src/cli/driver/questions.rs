//! What `fieldgate status`, `send` and `reload` ask of the running gateway.

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{CONTROL, Driver};
use crate::{
    gateway::Now,
    ops::control::Ask,
    record::{Publish, Receipt, SourceId},
    topic::Template,
};

impl Driver {
    pub(super) fn handle_question(
        &mut self,
        now: Now,
        ask: Ask,
        reply: oneshot::Sender<Result<Value, String>>,
    ) {
        match ask {
            Ask::Status {} => {
                // Whoever asked may have gone.
                reply.send(Ok(self.status(now))).ok();
            }
            Ask::Reload { wait: true } => {
                reply.send(self.reload()).ok();
            }
            Ask::Reload { wait: false } => {
                reply.send(Ok("asked".into())).ok();
                self.reload().ok();
            }
            Ask::Send { device, topic, payload } => {
                let filled = |template: &Template| {
                    template.fill("{device}", |name| (name == "device").then_some(device.as_str()))
                };
                let topic = match (topic, self.send_topic.as_ref().map(filled)) {
                    (Some(topic), _) | (None, Some(Ok(topic))) => topic,
                    _ => {
                        let why = "the first [[telemetry]] topic can't be filled in; give --topic";
                        reply.send(Err(why.into())).ok();
                        return;
                    }
                };
                let number = self.state.next_send;
                self.state.next_send += 1;
                let receipt = Some(Receipt { source: CONTROL, connection: 0, number });
                let (payload, retained) = (payload.into(), false);
                let publish =
                    Publish { topic, payload, retained, source: CONTROL, receipt, packet: None };
                match self.gateway.handle_send(now, publish) {
                    Ok(()) => {
                        // Those that nobody waits for any more are not to add up.
                        self.state.sends.retain(|_, reply| !reply.is_closed());
                        self.state.sends.insert(number, reply);
                    }
                    Err(error) => drop(reply.send(Err(error))),
                }
            }
        }
    }

    fn status(&self, now: Now) -> Value {
        let mut status = serde_json::to_value(self.gateway.snapshot(now)).expect("plain data");
        let sources = self.sources.iter().enumerate().map(|(index, source)| {
            let state = self.state.source_states.get(&SourceId(index as u8));
            let (up, detail) = state.map_or((false, "starting"), |(up, detail)| (*up, detail));
            json!({ "name": source.name, "up": up, "detail": detail })
        });
        status["version"] = env!("CARGO_PKG_VERSION").into();
        status["uplink"]["url"] = self.urls.get(self.gateway.hub()).cloned().into();
        status["certificates"] = self.reload.certificates();
        status["clock"] = self.clock.status();
        status["sources"] = sources.collect();
        status["spool"] = self.disk.wear.to_json(now.instant);
        status
    }
}
