//! The board's disk thread, as `cli::disk` has it: one job after the other, each in its time, and a
//! spool that can't be opened is tried again.

use bytes::Bytes;
use fieldgate::{
    gateway::{DiskRequest, Held, without_result},
    protocol::StreamName,
    spool::{
        OpenError, Spool,
        journal::Journal,
        simulated::{SimulatedDisk, SimulatedFile},
    },
};

use crate::{
    coverage::Seen,
    plan::STREAMS,
    world::{Event, SECOND, Time, World},
};

/// As in `cli::disk`: how often a spool that can't be opened is tried again.
pub(crate) const REOPEN: Time = 5 * SECOND;

#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) spool: Spool<SimulatedDisk>,
    journal: Journal<SimulatedFile>,
    /// The epoch that each stream is appended to.
    epochs: Vec<u64>,
}

pub(crate) enum Answer {
    Appended(Result<fieldgate::spool::Appended, String>),
    Read(usize, fieldgate::protocol::Epoch, Result<Vec<fieldgate::spool::Item>, String>),
    Retired(usize, fieldgate::protocol::Epoch, Result<(), String>),
    Journalled(Result<(), String>),
}

impl World {
    pub(crate) fn open_store(&mut self, epoch: u64) -> Result<Store, String> {
        if self.now < self.board.unmounted_until {
            return Err("it is not mounted".into());
        }
        let opened = Spool::open(self.board.medium.clone(), &STREAMS, self.plan.limits, epoch);
        let spool = match opened {
            Ok((spool, _)) => spool,
            Err(OpenError::Io(error)) => return Err(error.to_string()),
            Err(error) => panic!("promise 5: the spool does not open: {error}"),
        };
        let journal = match Journal::open(spool.disk(), without_result) {
            Ok(journal) => journal,
            Err(error) => return Err(error.to_string()),
        };
        self.oracle.found(&spool.held());
        Ok(Store { spool, journal, epochs: vec![epoch; STREAMS.len()] })
    }

    /// The disk thread tries again to open the spool.
    pub(crate) fn reopen(&mut self, start: u64, epoch: u64) {
        if self.process(start).is_none_or(|process| process.store.is_some()) {
            return;
        }
        match self.open_store(epoch) {
            Ok(store) => {
                self.note("the spool is open");
                let now = self.board_now();
                let name = |name: &str| StreamName::try_from(name.to_owned()).expect("a name");
                let streams = store.spool.streams().map(name).collect();
                let process = self.board.process.as_mut().expect("looked at just now");
                process.gateway.handle_opened(now, streams, store.held());
                process.store = Some(store);
            }
            Err(_) => self.after(REOPEN, Event::Reopen { start, epoch }),
        }
    }

    pub(crate) fn begin_disk_work(&mut self) {
        let Some(process) = &mut self.board.process else { return };
        if process.is_working || process.jobs.is_empty() {
            return;
        }
        process.is_working = true;
        let start = process.start;
        let wait = self.board.stalled_until.saturating_sub(self.now);
        let latency = 1 + self.random.below(self.plan.disk_latency);
        self.after(wait + latency, Event::DiskDone { start });
    }

    /// The disk thread has done its oldest job.
    pub(crate) fn disk_done(&mut self, start: u64) {
        let Some(process) = self.process(start) else { return };
        process.is_working = false;
        let Some(job) = process.jobs.pop_front() else { return };
        let Some(answer) = self.work(job) else { return };
        self.with_gateway(|gateway, now| match answer {
            Answer::Appended(result) => gateway.handle_appended(now, result),
            Answer::Read(lane, epoch, result) => gateway.handle_read(now, lane, epoch, result),
            Answer::Retired(lane, epoch, result) => {
                gateway.handle_retired(now, lane, epoch, result);
            }
            Answer::Journalled(result) => gateway.handle_journalled(now, result),
        });
    }

    pub(crate) fn work(&mut self, job: DiskRequest) -> Option<Answer> {
        let process = self.board.process.as_mut().expect("its disk thread works");
        let Some(store) = &mut process.store else { return refuse(job) };
        let (oracle, coverage) = (&mut self.oracle, &mut self.coverage);
        let explain = |error: std::io::Error| error.to_string();
        match job {
            DiskRequest::Append(entries) => {
                let appended = store.spool.append(&entries).map_err(explain);
                match &appended {
                    Ok(appended) => {
                        coverage.note(Seen::Appended);
                        oracle.appended(&entries, &store.epochs);
                        let evicted = appended.evicted.iter().map(|evicted| evicted.records);
                        coverage.add(Seen::Eviction, evicted.sum());
                    }
                    Err(_) => {
                        coverage.note(Seen::FailedAppend);
                        oracle.attempted(&entries, &store.epochs);
                    }
                }
                Some(Answer::Appended(appended))
            }
            DiskRequest::Read { lane, epoch, from, max_bytes } => {
                coverage.note(Seen::ReadBack);
                let result = store.spool.read(lane, epoch.0, from, max_bytes.min(8192));
                Some(Answer::Read(lane, epoch, result.map_err(explain)))
            }
            DiskRequest::Trim { lane, epoch, acked } => {
                // A later one makes it good.
                store.spool.trim(lane, epoch.0, acked).ok();
                None
            }
            DiskRequest::Begin { lane, epoch } => {
                coverage.note(Seen::EpochPassed);
                oracle.begun(lane, epoch.0);
                store.spool.begin_epoch(lane, epoch.0);
                store.epochs[lane] = epoch.0;
                None
            }
            DiskRequest::Retire { lane, epoch } => {
                let result = store.spool.retire(lane, epoch.0).map_err(explain);
                Some(Answer::Retired(lane, epoch, result))
            }
            DiskRequest::Journal(changes) => {
                let disk = store.spool.disk().clone();
                let result = store.journal.put(&disk, &changes).map_err(explain);
                Some(Answer::Journalled(result))
            }
        }
    }
}

impl Store {
    pub(crate) fn held(&self) -> Held<'_> {
        let entries = self.journal.entries();
        let journal: Vec<(String, Bytes)> =
            entries.map(|(key, value)| (key.to_owned(), value.clone())).collect();
        Held { ranges: self.spool.held(), journal, tails: self.spool.tails().collect() }
    }
}

/// Without a spool nothing is kept, as in `cli::disk`.
fn refuse(job: DiskRequest) -> Option<Answer> {
    let fault = || "the spool is not open".to_owned();
    match job {
        DiskRequest::Append(_) => Some(Answer::Appended(Err(fault()))),
        DiskRequest::Read { lane, epoch, .. } => Some(Answer::Read(lane, epoch, Err(fault()))),
        DiskRequest::Retire { lane, epoch } => Some(Answer::Retired(lane, epoch, Err(fault()))),
        DiskRequest::Journal(_) => Some(Answer::Journalled(Err(fault()))),
        DiskRequest::Trim { .. } | DiskRequest::Begin { .. } => None,
    }
}
