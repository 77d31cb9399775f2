//! What the sources hear: publishes become records or replies, or are refused; devices come and go.

use std::time::Instant;

use super::{
    Gateway, MAX_HEARD, Now, Output, Settings,
    commands::Reply,
    lane::Place,
    redelivery::{self, Verdict},
    shares::Shares,
};
use crate::{
    planted::{Bug, planted},
    record::{self, Publish, Reading, Receipt, SourceId},
    topic::is_valid_name,
};

/// How much of a topic that nobody can be told by is logged, in characters.
const LOGGED_TOPIC: usize = 128;

impl Gateway {
    /// Whether publishes may be handed in: false while memory is full of what is not safe.
    pub fn has_room(&self) -> bool {
        !self.stopping && self.memory_bytes() < self.settings.memory_bytes
    }

    /// A device published.
    pub fn handle_publish(&mut self, now: Now, publish: Publish) {
        let verdict = match publish.packet {
            Some(packet) => self.redelivery.handle_publish(now.instant, packet, publish),
            None => Verdict::Keep(vec![publish]),
        };
        match verdict {
            Verdict::Wait => return,
            Verdict::Keep(publishes) => {
                publishes.into_iter().for_each(|publish| self.take(now, publish));
            }
            Verdict::Known(known) => {
                for (publish, place) in known {
                    self.recognise(publish, place);
                }
            }
        }
        self.settle(now);
    }

    /// Someone at the board publishes by hand. What can't be kept is told to them, and neither
    /// counted nor reported; else the receipt is given back when the record is safe.
    ///
    /// # Errors
    /// What is wrong with it, and what to do.
    pub fn handle_send(&mut self, now: Now, publish: Publish) -> Result<(), String> {
        let (topic, bytes) = (publish.topic.as_str(), publish.payload.len());
        let is_pressed = self.is_pressed();
        if self.commands.is_reply(topic) {
            return Err(format!(
                "{topic:?} is a topic of replies to commands; give one of telemetry"
            ));
        }
        let destination = destination(&self.settings, topic).filter(|_| is_valid_name(topic));
        let Some((_, device)) = destination else {
            return Err(format!(
                "no [[telemetry]] topic matches {topic:?}; give a --topic that one does"
            ));
        };
        if !self.has_room() {
            let why = "memory is full of records that are not safe yet; see: fieldgate status";
            return Err(why.into());
        }
        let limit = self.settings.max_record_bytes;
        let shares = is_pressed.then_some(&mut self.shares);
        match Fault::find(now.instant, device, bytes, limit, shares) {
            Some(Fault::TooLarge) => Err(format!(
                "the payload has {bytes} bytes and spool.max_record_bytes is {limit}; send less, or \
                 raise it"
            )),
            Some(Fault::BadDevice) => Err(format!(
                "{device:?} can't be the name of a device; give 1 to 256 bytes without + # and \
                 control characters"
            )),
            Some(Fault::OverShare) => Err(format!(
                "the spool is nearly full and {device:?} has had more than its share of it; see: \
                 fieldgate status"
            )),
            None => {
                self.handle_publish(now, publish);
                Ok(())
            }
        }
    }

    /// A publish is kept already: its receipt waits for the record, if it is not safe yet.
    fn recognise(&mut self, publish: Publish, place: Option<Place>) {
        tracing::debug!(topic = publish.topic, "a publish that is kept already was sent again");
        let Some(receipt) = publish.receipt else { return };
        let receipt = match place {
            Some(place) => self.lanes[place.lane].attach(place, receipt),
            None => Some(receipt),
        };
        self.outputs.extend(receipt.map(Output::Safe));
    }

    /// Publishes that were to be looked at together with others that never came.
    pub(super) fn take_overdue(&mut self, now: Now) {
        for publish in self.redelivery.take_overdue(now.instant) {
            self.take(now, publish);
        }
    }

    fn take(&mut self, now: Now, publish: Publish) {
        let digest = publish.packet.map(|packet| (packet, redelivery::digest(&publish)));
        let Publish { topic, payload, retained, source, receipt, .. } = publish;
        let receipt = match self.commands.handle_reply(now, &topic, &payload, receipt) {
            Err(receipt) => receipt,
            Ok(Reply::Taken) => return,
            Ok(Reply::Unexpected(receipt)) => {
                self.counters.unexpected_replies += 1;
                tracing::info!(topic, "a reply came for which no command waits");
                self.outputs.extend(receipt.map(Output::Safe));
                return;
            }
        };
        let is_pressed = self.is_pressed();
        let Some((lane, device)) = destination(&self.settings, &topic) else {
            // A source may hear more than it was asked to; nobody wants this one.
            self.outputs.extend(receipt.map(Output::Safe));
            return;
        };
        self.counters.received += 1;
        let (bytes, limit) = (payload.len(), self.settings.max_record_bytes);
        let shares = is_pressed.then_some(&mut self.shares);
        match Fault::find(now.instant, device, bytes, limit, shares) {
            Some(Fault::TooLarge) => {
                if planted(Bug::RefusalReceiptEarly) {
                    self.outputs.extend(receipt.map(Output::Safe));
                }
                if self.reports.refuse(now.instant, Some(device), "too_large", receipt) {
                    let what = "a publish is larger than spool.max_record_bytes";
                    tracing::info!(device, topic, bytes, limit, what);
                }
            }
            Some(Fault::BadDevice) => {
                if self.reports.refuse(now.instant, None, "bad_device", receipt) {
                    let topic: String = topic.chars().take(LOGGED_TOPIC).collect();
                    tracing::info!(?topic, "a publish is refused: its topic names no valid device");
                }
            }
            Some(Fault::OverShare) => {
                self.reports.refuse(now.instant, Some(device), "over_share", receipt);
            }
            None => {
                let json = record::is_plain_json(&payload);
                let reading = Reading { device, topic: &topic, retained, payload: &payload, json };
                let bytes = record::store_reading(now.wall, &reading);
                self.shares.note(now.instant, device, bytes.len());
                if let Some(last) = self.heard.get_mut(device) {
                    *last = source;
                } else if self.heard.len() < MAX_HEARD {
                    self.heard.insert(device.into(), source);
                }
                let origin =
                    digest.and_then(|(packet, digest)| self.redelivery.note_kept(packet, digest));
                let place = self.lanes[lane].push(now.instant, bytes, origin, receipt.into());
                if let Some(origin) = origin {
                    self.redelivery.note_place(origin.session, place);
                }
            }
        }
    }

    /// Whether room is so short that each device keeps to its share.
    fn is_pressed(&self) -> bool {
        self.disk.pressed
            || (self.disk.error.is_some() && self.memory_bytes() >= self.settings.memory_bytes / 2)
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

/// The stream and the device of a publish; `None` if it is no telemetry.
fn destination<'a>(settings: &'a Settings, topic: &'a str) -> Option<(usize, &'a str)> {
    settings.telemetry.iter().find_map(|rule| {
        rule.topic.matches(topic).map(|captures| {
            let device = captures.get("device").or(rule.device.as_deref());
            (rule.lane, device.unwrap_or(&settings.id))
        })
    })
}

/// Why telemetry is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    TooLarge,
    BadDevice,
    OverShare,
}

impl Fault {
    /// `limit` is that of a payload; `shares` are to be kept to, if they are given.
    fn find(
        now: Instant,
        device: &str,
        bytes: usize,
        limit: usize,
        shares: Option<&mut Shares>,
    ) -> Option<Self> {
        if bytes > limit {
            Some(Self::TooLarge)
        } else if !record::is_device_name(device) {
            Some(Self::BadDevice)
        } else if shares.is_some_and(|shares| shares.is_over(now, device)) {
            Some(Self::OverShare)
        } else {
            None
        }
    }
}
