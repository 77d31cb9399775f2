//! What the sources hear: publishes become records or replies, or are refused; devices come and go.

use super::{Gateway, MAX_HEARD, Now, Output, commands::Reply};
use crate::record::{self, Publish, Reading, Receipt, SourceId};

impl Gateway {
    /// Whether publishes may be handed in: false while memory is full of what is not safe.
    pub fn has_room(&self) -> bool {
        !self.stopping && self.memory_bytes() < self.settings.memory_bytes
    }

    /// A device published.
    pub fn handle_publish(&mut self, now: Now, publish: Publish) {
        let Publish { topic, payload, retained, source, receipt } = publish;
        let receipt = match self.commands.handle_reply(now, &topic, &payload, receipt) {
            Err(receipt) => receipt,
            Ok(Reply::Taken) => return self.settle(now),
            Ok(Reply::Unexpected(receipt)) => {
                self.counters.unexpected_replies += 1;
                tracing::info!(topic, "a reply came for which no command waits");
                self.outputs.extend(receipt.map(Output::Safe));
                return;
            }
        };
        let matched = self.settings.telemetry.iter().find_map(|rule| {
            rule.topic.matches(&topic).map(|captures| {
                let device = captures.get("device").or(rule.device.as_deref());
                (rule.lane, device.unwrap_or(&self.settings.id))
            })
        });
        let Some((lane, device)) = matched else {
            // A source may hear more than it was asked to; nobody wants this one.
            self.outputs.extend(receipt.map(Output::Safe));
            return;
        };
        self.counters.received += 1;
        if payload.len() > self.settings.max_record_bytes {
            let (bytes, limit) = (payload.len(), self.settings.max_record_bytes);
            tracing::info!(
                device,
                topic,
                bytes,
                limit,
                "a publish is larger than spool.max_record_bytes"
            );
            self.reports.refuse(now.instant, Some(device), "too_large", receipt);
        } else if !record::is_device_name(device) {
            self.reports.refuse(now.instant, None, "bad_device", receipt);
        } else {
            let json = record::is_plain_json(&payload);
            let reading = Reading { device, topic: &topic, retained, payload: &payload, json };
            let bytes = record::store_reading(now.wall, &reading);
            if let Some(last) = self.heard.get_mut(device) {
                *last = source;
            } else if self.heard.len() < MAX_HEARD {
                self.heard.insert(device.into(), source);
            }
            self.lanes[lane].push(now.instant, bytes, receipt.into());
        }
        self.settle(now);
    }

    /// A source could not take a publish.
    pub fn handle_refused(
        &mut self,
        now: Now,
        device: Option<&str>,
        reason: &str,
        receipt: Option<Receipt>,
    ) {
        self.reports.refuse(now.instant, device, reason, receipt);
        self.settle(now);
    }

    /// A source's in-flight window is used up: what is unsafe is written now.
    pub fn handle_exhausted(&mut self, now: Now) {
        self.disk.flush = true;
        self.settle(now);
    }

    /// A device came.
    pub fn handle_birth(&mut self, now: Now, device: &str, source: SourceId) {
        if self.heard.len() < MAX_HEARD || self.heard.contains_key(device) {
            self.heard.insert(device.into(), source);
        }
        self.reports.came(now.instant, device);
        self.commands.handle_device_seen(now, device);
        self.settle(now);
    }

    /// A device went.
    pub fn handle_death(&mut self, now: Now, device: &str, reason: &'static str) {
        self.reports.went(now.instant, device, reason);
        self.settle(now);
    }

    /// The device's transport took the command.
    pub fn handle_delivered(&mut self, now: Now, token: u64) {
        self.commands.handle_delivered(now, token);
        self.settle(now);
    }

    /// Nothing of the command was sent.
    pub fn handle_undelivered(&mut self, now: Now, token: u64) {
        self.commands.handle_undelivered(now, token);
        self.settle(now);
    }

    /// The command was sent, whether it arrived can't be known.
    pub fn handle_interrupted(&mut self, now: Now, token: u64) {
        self.commands.handle_interrupted(now, token);
        self.settle(now);
    }
}
