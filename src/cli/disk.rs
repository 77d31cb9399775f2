//! The disk thread: the only one that waits for the medium. It takes requests in their order and
//! answers each that wants an answer; the event loop goes on meanwhile.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::mpsc as async_mpsc;

use super::wear::{Load, Wear};
use crate::{
    gateway::{DiskRequest, Held, without_result},
    identity::CONFIRMED_TIME,
    protocol::Epoch,
    spool::{
        Appended, DirectoryDisk, Disk as _, HeldRange, Item, Limits, OpenError, Report, Spool,
        Tail, journal::Journal,
    },
};

/// The file that names the URLs which answered with a valid `welcome`, one in a line.
pub(super) const MANAGED: &str = "managed-hub";

/// How many of them are kept; at the bound the oldest goes.
const MAX_MANAGED: usize = 32;

/// How often a spool that can't be opened is tried again.
const REOPEN: Duration = Duration::from_secs(5);

/// What the thread is asked to do.
#[derive(Debug)]
pub(super) enum Job {
    /// As the core asks.
    Request(DiskRequest),
    /// Keep it that this URL is managed.
    RememberManaged(String),
    /// Keep what a hub said the time is: the file's whole content.
    KeepTime(String),
    /// Write the positions and end.
    Stop,
}

/// What the thread answers.
#[derive(Debug)]
pub(super) enum Answer {
    /// The spool is open, which it was not at the start.
    Opened(Found),
    Appended(Result<Appended, String>),
    Read {
        lane: usize,
        epoch: Epoch,
        result: Result<Vec<Item>, String>,
    },
    Retired {
        lane: usize,
        epoch: Epoch,
        result: Result<(), String>,
    },
    Journalled(Result<(), String>),
}

/// The disk thread, running.
#[derive(Debug)]
pub(super) struct DiskThread {
    pub(super) jobs: mpsc::Sender<Job>,
    pub(super) answers: async_mpsc::UnboundedReceiver<Answer>,
    pub(super) wear: Arc<Wear>,
    thread: thread::JoinHandle<()>,
}

/// What was found on disk.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) streams: Vec<String>,
    pub(super) ranges: Vec<HeldRange>,
    pub(super) tails: Vec<(u64, Tail)>,
    pub(super) journal: Vec<(String, Bytes)>,
    pub(super) managed_urls: Vec<String>,
    pub(super) report: Report,
}

impl Found {
    /// As the core takes it.
    pub(super) fn held(&self) -> Held<'_> {
        Held {
            ranges: self.ranges.clone(),
            journal: self.journal.clone(),
            tails: self.tails.iter().map(|(session, tail)| (*session, tail)).collect(),
        }
    }

    /// Says in the log what was found.
    pub(super) fn report(&self) {
        for damage in &self.report.damage {
            tracing::error!(damage, "the spool is damaged; what is lost goes to the hub as a skip");
        }
        if self.report.torn_bytes > 0 {
            let bytes = self.report.torn_bytes;
            tracing::info!(
                bytes,
                "an unfinished write was cut off the spool; it was never acknowledged"
            );
        }
        let records: u64 = self.ranges.iter().map(|held| held.next - held.acked - 1).sum();
        if records > 0 {
            tracing::info!(records, "the spool holds records of an earlier run");
        }
    }
}

/// How the spool is opened.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) directory: PathBuf,
    /// The streams in the order of their priority.
    pub(super) streams: Vec<String>,
    pub(super) limits: Limits,
    pub(super) epoch: Epoch,
}

/// Opens the spool and the journal, and starts the thread. A medium that fails is tried again and
/// again; until it works nothing is kept on it, and the second of what is returned says why.
///
/// # Errors
/// Another gateway holds the spool, or a newer version wrote it: waiting would not help.
pub(super) fn start(opening: Opening) -> Result<(DiskThread, Result<Found, String>), OpenError> {
    let (store, found) = match opening.open() {
        Ok((store, found)) => (Some(store), Ok(found)),
        Err(OpenError::Io(error)) if error.kind() != io::ErrorKind::WouldBlock => {
            (None, Err(opening.explain(&error)))
        }
        Err(error) => return Err(error),
    };
    let (jobs, incoming) = mpsc::channel();
    // Not bounded by itself: the core has one append, one journal change and one read per lane
    // under way.
    let (outgoing, answers) = async_mpsc::unbounded_channel();
    let wear = Arc::new(Wear::new(Instant::now()));
    let worker = Worker { store, opening, wear: wear.clone() };
    worker.note_wear();
    let thread = thread::Builder::new()
        .name("disk".into())
        .stack_size(256 * 1024)
        .spawn(move || worker.run(&incoming, &outgoing))?;
    Ok((DiskThread { jobs, answers, wear, thread }, found))
}

impl Opening {
    fn open(&self) -> Result<(Store, Found), OpenError> {
        let disk = DirectoryDisk::open(&self.directory)?;
        let names: Vec<&str> = self.streams.iter().map(String::as_str).collect();
        let (spool, report) = Spool::open(disk, &names, self.limits, self.epoch.0)?;
        let journal = Journal::open(spool.disk(), without_result)?;
        let entries = journal.entries().map(|(key, value)| (key.to_owned(), value.clone()));
        let managed_urls = std::fs::read_to_string(self.directory.join(MANAGED));
        let managed_urls = managed_urls.unwrap_or_default();
        let managed_urls: Vec<String> = managed_urls.lines().map(str::to_owned).collect();
        let found = Found {
            streams: spool.streams().map(str::to_owned).collect(),
            ranges: spool.held(),
            tails: spool.tails().map(|(session, tail)| (session, tail.clone())).collect(),
            journal: entries.collect(),
            managed_urls: managed_urls.clone(),
            report,
        };
        Ok((Store { spool, journal, managed_urls, appended_bytes: 0 }, found))
    }

    fn explain(&self, error: &io::Error) -> String {
        format!("{}: {error}", self.directory.display())
    }
}

impl DiskThread {
    /// Waits until everything that was asked for is done.
    pub(super) fn stop(self) {
        // A thread that is gone has nothing left to do.
        self.jobs.send(Job::Stop).ok();
        if self.thread.join().is_err() {
            tracing::error!("the disk thread panicked");
        }
    }
}

struct Worker {
    /// `None` while it can't be opened.
    store: Option<Store>,
    opening: Opening,
    wear: Arc<Wear>,
}

struct Store {
    spool: Spool<DirectoryDisk>,
    journal: Journal<std::fs::File>,
    managed_urls: Vec<String>,
    appended_bytes: u64,
}

impl Worker {
    fn run(mut self, jobs: &mpsc::Receiver<Job>, answers: &async_mpsc::UnboundedSender<Answer>) {
        let mut fault = "the spool is not open".to_owned();
        loop {
            let job = match &self.store {
                Some(_) => jobs.recv().ok(),
                None => match jobs.recv_timeout(REOPEN) {
                    Ok(job) => Some(job),
                    Err(RecvTimeoutError::Disconnected) => None,
                    Err(RecvTimeoutError::Timeout) => {
                        match self.opening.open() {
                            Ok((store, found)) => {
                                self.store = Some(store);
                                answers.send(Answer::Opened(found)).ok();
                            }
                            Err(error) => fault = error.to_string(),
                        }
                        continue;
                    }
                },
            };
            let answer = match (job, &mut self.store) {
                (None | Some(Job::Stop), _) => break,
                (Some(Job::Request(request)), Some(store)) => store.handle(request, &self.opening),
                (Some(Job::Request(request)), None) => {
                    let fault = format!("{}: {fault}", self.opening.directory.display());
                    refuse(request, fault)
                }
                (Some(Job::RememberManaged(url)), Some(store)) => {
                    store.remember_managed(url);
                    None
                }
                (Some(Job::KeepTime(line)), Some(store)) => {
                    store.keep_time(&line);
                    None
                }
                (Some(Job::RememberManaged(_) | Job::KeepTime(_)), None) => None,
            };
            self.note_wear();
            if answer.is_some_and(|answer| answers.send(answer).is_err()) {
                break;
            }
        }
        if let Some(Err(error)) = self.store.as_mut().map(|store| store.spool.save_positions()) {
            let directory = self.opening.directory.display();
            tracing::warn!(%error, %directory, "the positions could not be kept; more is sent again");
        }
    }

    fn note_wear(&self) {
        let Some(store) = &self.store else { return };
        let (spool, journal) = (store.spool.wear(), store.journal.wear());
        let load = Load {
            spool_bytes: store.spool.bytes(),
            written_bytes: spool.0 + journal.0,
            appended_bytes: store.appended_bytes,
            syncs: spool.1 + journal.1,
        };
        self.wear.note(Instant::now(), load);
    }
}

impl Store {
    fn remember_managed(&mut self, url: String) {
        self.managed_urls.push(url);
        let surplus = self.managed_urls.len().saturating_sub(MAX_MANAGED);
        self.managed_urls.drain(..surplus);
        let lines = self.managed_urls.join("\n");
        if let Err(error) = self.spool.disk().replace(MANAGED, lines.as_bytes()) {
            tracing::warn!(%error, "that the hub is managed could not be kept");
        }
    }

    fn keep_time(&self, line: &str) {
        if let Err(error) = self.spool.disk().replace(CONFIRMED_TIME, line.as_bytes()) {
            tracing::info!(%error, "the hub's time could not be kept for the next start");
        }
    }

    fn handle(&mut self, request: DiskRequest, opening: &Opening) -> Option<Answer> {
        let explain = |error: io::Error| opening.explain(&error);
        match request {
            DiskRequest::Append(entries) => {
                let appended = self.spool.append(&entries);
                if appended.is_ok() {
                    self.appended_bytes +=
                        entries.iter().map(|e| e.bytes.len() as u64).sum::<u64>();
                }
                Some(Answer::Appended(appended.map_err(explain)))
            }
            DiskRequest::Read { lane, epoch, from, max_bytes } => {
                let result = self.spool.read(lane, epoch.0, from, max_bytes).map_err(explain);
                Some(Answer::Read { lane, epoch, result })
            }
            DiskRequest::Trim { lane, epoch, acked } => {
                if let Err(error) = self.spool.trim(lane, epoch.0, acked) {
                    tracing::debug!(%error, "the position could not be kept; a later trim will");
                }
                None
            }
            DiskRequest::Retire { lane, epoch } => {
                let result = self.spool.retire(lane, epoch.0).map_err(explain);
                Some(Answer::Retired { lane, epoch, result })
            }
            DiskRequest::Begin { lane, epoch } => {
                self.spool.begin_epoch(lane, epoch.0);
                None
            }
            DiskRequest::Journal(changes) => {
                let result = self.journal.put(self.spool.disk(), &changes).map_err(explain);
                Some(Answer::Journalled(result))
            }
        }
    }
}

/// While there is no spool nothing is kept, and nothing was that could be read or let go of.
fn refuse(request: DiskRequest, fault: String) -> Option<Answer> {
    match request {
        DiskRequest::Append(_) => Some(Answer::Appended(Err(fault))),
        DiskRequest::Read { lane, epoch, .. } => {
            Some(Answer::Read { lane, epoch, result: Err(fault) })
        }
        DiskRequest::Retire { lane, epoch } => {
            Some(Answer::Retired { lane, epoch, result: Err(fault) })
        }
        DiskRequest::Journal(_) => Some(Answer::Journalled(Err(fault))),
        DiskRequest::Trim { .. } | DiskRequest::Begin { .. } => None,
    }
}
