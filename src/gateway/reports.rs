//! What the gateway has to say of its devices beside their records: who came and went, and what was
//! refused.
//!
//! Both are gathered for a moment, so that a flapping or flooding device costs an event now and
//! then, not one each time. What is gathered must never be lost, and a refusal's receipts never
//! given back before its event is safe.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::Receipts;
use crate::record::{Event, Receipt};

/// How long refusals of one kind are counted before they are reported.
const REFUSALS: Duration = Duration::from_secs(1);

/// How long a device that came or went must wait before its next coming or going is reported.
const PRESENCE: Duration = Duration::from_secs(10);

/// Kinds of refusal told apart; beyond, the device's name is left out.
const MAX_KINDS: usize = 256;

/// Receipts that one report answers for; at the bound it is reported at once.
const MAX_RECEIPTS: usize = 1024;

/// Devices whose presence is followed; beyond, newcomers are not reported.
const MAX_DEVICES: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Reports {
    refusals: BTreeMap<(Option<String>, String), Refusal>,
    presence: BTreeMap<String, Presence>,
    /// When the next event is due at the earliest, so that not every record looks through all.
    next: Option<Instant>,
    /// Since start.
    pub(super) refused: u64,
}

#[derive(Debug)]
struct Refusal {
    count: u64,
    receipts: Vec<Receipt>,
    due: Instant,
}

#[derive(Debug)]
struct Presence {
    /// What the hub was told last; `None` for nothing yet.
    told: Option<bool>,
    here: bool,
    reason: &'static str,
    due: Instant,
}

impl Reports {
    /// Counts a refusal. Whether it is the first of those that are told together.
    pub(super) fn refuse(
        &mut self,
        now: Instant,
        device: Option<&str>,
        reason: &str,
        receipt: Option<Receipt>,
    ) -> bool {
        self.refused += 1;
        let device = device.filter(|_| self.refusals.len() < MAX_KINDS).map(str::to_owned);
        let refusal = self.refusals.entry((device, reason.into())).or_insert_with(|| Refusal {
            count: 0,
            receipts: Vec::new(),
            due: now + REFUSALS,
        });
        refusal.count += 1;
        let is_first = refusal.count == 1;
        refusal.receipts.extend(receipt);
        if refusal.receipts.len() >= MAX_RECEIPTS {
            refusal.due = now;
        }
        let due = refusal.due;
        self.next = Some(self.next.map_or(due, |next| next.min(due)));
        is_first
    }

    pub(super) fn came(&mut self, now: Instant, device: &str) {
        self.set_presence(now, device, true, "");
    }

    pub(super) fn went(&mut self, now: Instant, device: &str, reason: &'static str) {
        self.set_presence(now, device, false, reason);
    }

    fn set_presence(&mut self, now: Instant, device: &str, here: bool, reason: &'static str) {
        let full = self.presence.len() >= MAX_DEVICES;
        match self.presence.get_mut(device) {
            Some(presence) => (presence.here, presence.reason) = (here, reason),
            None if full => {}
            None => {
                let presence = Presence { told: None, here, reason, due: now };
                self.presence.insert(device.into(), presence);
            }
        }
        self.next = self.earliest();
    }

    /// When the next event is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.next
    }

    fn earliest(&self) -> Option<Instant> {
        let refusals = self.refusals.values().map(|refusal| refusal.due);
        let news = self.presence.values().filter(|p| p.told != Some(p.here)).map(|p| p.due);
        refusals.chain(news).min()
    }

    /// Takes the events that are due; all of them with `everything`.
    pub(super) fn take_due(&mut self, now: Instant, everything: bool) -> Vec<(Event, Receipts)> {
        let mut events = Vec::new();
        if !everything && self.next.is_none_or(|next| next > now) {
            return events;
        }
        self.refusals.retain(|(device, reason), refusal| {
            let due = everything || refusal.due <= now;
            if due {
                let event = Event::Refused {
                    device: device.clone(),
                    reason: reason.clone(),
                    count: refusal.count,
                };
                events.push((event, Receipts::Many(std::mem::take(&mut refusal.receipts))));
            }
            !due
        });
        self.presence.retain(|device, presence| {
            if presence.told != Some(presence.here) && (everything || presence.due <= now) {
                presence.told = Some(presence.here);
                presence.due = now + PRESENCE;
                let device = device.clone();
                let event = match presence.here {
                    true => Event::Birth { device },
                    false => Event::Death { device, reason: presence.reason.into() },
                };
                events.push((event, Receipts::None));
            }
            // A device that went, and whose going was told, need not be followed any more.
            presence.told != Some(false) || presence.here || presence.due > now
        });
        self.next = self.earliest();
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flapping_device_is_told_at_most_once_in_ten_seconds() {
        let start = Instant::now();
        let mut reports = Reports::default();
        let mut told = 0;
        for step in 0..100 {
            let now = start + Duration::from_millis(100 * step);
            match step % 2 {
                0 => reports.came(now, "d"),
                _ => reports.went(now, "d", "keep alive"),
            }
            told += reports.take_due(now, false).len();
        }
        assert_eq!(told, 1);
        let later = start + Duration::from_secs(11);
        assert_eq!(reports.next_due(), Some(start + PRESENCE));
        let events = reports.take_due(later, false);
        assert!(matches!(&events[0].0, Event::Death { reason, .. } if reason == "keep alive"));
        assert_eq!(reports.next_due(), None);
    }

    #[test]
    fn refusals_are_counted_together_and_keep_their_receipts() {
        let now = Instant::now();
        let mut reports = Reports::default();
        for number in 0..5 {
            let source = crate::record::SourceId(0);
            let receipt = Receipt { source, connection: 1, number };
            reports.refuse(now, Some("d"), "too_large", Some(receipt));
        }
        assert!(reports.take_due(now, false).is_empty());
        let events = reports.take_due(now + REFUSALS, false);
        let [(Event::Refused { count: 5, .. }, Receipts::Many(receipts))] = &events[..] else {
            panic!("{events:?}")
        };
        assert_eq!(receipts.len(), 5);
    }
}
