//! What goes to the disk and when, and what comes back from it.

use std::time::{Duration, Instant};

use super::{
    DISK_RETRY, DiskRequest, GROUP_BYTES, Gateway, Held, KEEP_BYTES, Now, OFFLINE_GATHER, Output,
    lane::{Lane, READ_AHEAD_BYTES},
    uplink::Then,
};
use crate::{
    protocol::{Epoch, StreamName, close},
    spool::{Appended, Item},
};

impl Gateway {
    /// An append ended.
    pub fn handle_appended(&mut self, now: Now, result: Result<Appended, String>) {
        self.disk.appending = None;
        let mut safe = Vec::new();
        for lane in &mut self.lanes {
            lane.handle_appended(result.is_ok(), &mut safe);
            lane.shed(KEEP_BYTES);
        }
        self.outputs.extend(safe.into_iter().map(Output::Safe));
        self.note_disk(now, result.as_ref().err());
        if let Ok(appended) = &result {
            self.note_pressure(appended.pressed);
        }
        for evicted in result.unwrap_or_default().evicted {
            let stream = &self.lanes[evicted.stream].name;
            let records = evicted.records;
            self.disk.evicted += records;
            tracing::error!(%stream, records, "the spool is full: the oldest records were evicted");
        }
        self.settle(now);
    }

    /// A read ended.
    pub fn handle_read(
        &mut self,
        now: Now,
        lane: usize,
        epoch: Epoch,
        result: Result<Vec<Item>, String>,
    ) {
        match result {
            Ok(items) => self.lanes[lane].handle_read(epoch, items),
            Err(error) => {
                self.lanes[lane].handle_read_failed();
                self.note_disk(now, Some(&error));
            }
        }
        self.settle(now);
    }

    /// An epoch is gone for good, or could not be let go of.
    pub fn handle_retired(
        &mut self,
        now: Now,
        lane: usize,
        epoch: Epoch,
        result: Result<(), String>,
    ) {
        self.lanes[lane].handle_retired(epoch, result.is_ok());
        self.note_disk(now, result.err().as_ref());
        self.settle(now);
    }

    /// A change of the journal ended.
    pub fn handle_journalled(&mut self, now: Now, result: Result<(), String>) {
        self.disk.journalling = None;
        self.note_disk(now, result.as_ref().err());
        self.commands.handle_journalled(now, result.is_ok());
        self.settle(now);
    }

    /// The disk could not be opened at the start, and now it is: what it holds from before goes
    /// first. The hub has to hear of it, in a new `hello`. `streams`: as the spool knows them
    /// now.
    pub fn handle_opened(&mut self, now: Now, streams: Vec<StreamName>, held: Held<'_>) {
        self.disk.is_missing = false;
        self.note_disk(now, None);
        for name in streams.into_iter().skip(self.lanes.len()) {
            self.lanes.push(Lane::new(self.lanes.len(), name, &self.settings));
        }
        for range in &held.ranges {
            self.lanes[range.stream].inherit(range);
        }
        self.redelivery.inherit(held.tails.into_iter());
        self.commands.inherit(held.journal);
        if self.is_live() {
            let why = "what the disk holds is known now".into();
            self.close(now, close::NORMAL, Then::BackOff, why);
        }
        self.settle(now);
    }

    fn note_pressure(&mut self, pressed: bool) {
        if pressed && !self.disk.pressed {
            tracing::warn!(
                "the spool is nearly full; a device that sends much more than others is refused"
            );
        }
        self.disk.pressed = pressed;
    }

    fn note_disk(&mut self, now: Now, error: Option<&String>) {
        match error {
            None => {
                if self.disk.error.take().is_some() {
                    tracing::info!("the disk takes writes again");
                }
                self.disk.retry_at = None;
            }
            Some(error) => {
                if self.disk.error.as_ref() != Some(error) {
                    tracing::error!(error, "the disk fails; unsafe publishes stay unacknowledged");
                }
                self.disk.error = Some(error.clone());
                self.disk.retry_at = Some(now.instant + DISK_RETRY);
            }
        }
    }

    pub(super) fn settle_disk(&mut self, now: Now) {
        if self.disk.retry_at.is_some() {
            return;
        }
        if self.disk.journalling.is_none() {
            let changes = self.commands.take_journal();
            if !changes.is_empty() {
                self.disk.journalling = Some(now.instant);
                self.outputs.push_back(Output::Disk(DiskRequest::Journal(changes)));
            }
        }
        let unwritten = self.lanes.iter().any(|lane| lane.oldest_unwritten().is_some());
        // What was to be made safe is; the next record waits its time again.
        self.disk.flush &= unwritten || self.stopping;
        if self.disk.appending.is_none() {
            self.begin_epochs();
            if self.write_due().is_some_and(|due| due <= now.instant) {
                self.append(now);
            }
        }
        let live = self.is_live();
        for (lane, state) in self.lanes.iter_mut().enumerate() {
            while let Some(epoch) = state.wants_retired() {
                self.outputs.push_back(Output::Disk(DiskRequest::Retire { lane, epoch }));
            }
            if let Some((epoch, from)) = live.then(|| state.wants_read()).flatten() {
                let max_bytes = READ_AHEAD_BYTES;
                let request = DiskRequest::Read { lane, epoch, from, max_bytes };
                self.outputs.push_back(Output::Disk(request));
            }
        }
    }

    fn begin_epochs(&mut self) {
        for lane in 0..self.lanes.len() {
            if self.lanes[lane].is_ready_for_epoch() {
                let epoch = Epoch(self.random.next());
                let from = self.lanes[lane].begin_epoch(epoch);
                tracing::info!(lane, %epoch, "fresh records pass the backlog");
                self.redelivery.handle_renumbered(from, epoch);
                self.commands.handle_renumbered(from, epoch);
                self.outputs.push_back(Output::Disk(DiskRequest::Begin { lane, epoch }));
            }
        }
    }

    fn append(&mut self, now: Now) {
        let (mut entries, mut budget) = (Vec::new(), GROUP_BYTES);
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let before = entries.len();
            lane.take_unwritten(&mut entries, &mut budget);
            if entries.len() > before
                && let Some((epoch, acked)) = lane.trim_before_append()
            {
                let request = DiskRequest::Trim { lane: index, epoch, acked };
                self.outputs.push_back(Output::Disk(request));
            }
        }
        self.disk.flush &= budget == 0;
        self.disk.appending = Some(now.instant);
        self.outputs.push_back(Output::Disk(DiskRequest::Append(entries)));
    }

    /// When the oldest unsafe record must go to the disk: when the hub had its time, or at once
    /// where waiting can't save a write.
    pub(super) fn write_due(&self) -> Option<Instant> {
        let oldest = self.lanes.iter().filter_map(Lane::oldest_unwritten).min()?;
        let full = self.memory_bytes() >= self.settings.memory_bytes / 2;
        let wait = if self.settings.disk_first || self.disk.flush || full {
            Duration::ZERO
        } else if self.is_live() {
            self.settings.write_after
        } else {
            // Nothing but the disk can make it safe; a moment's company spares the card.
            self.settings.write_after.min(OFFLINE_GATHER)
        };
        Some(oldest + wait)
    }
}
