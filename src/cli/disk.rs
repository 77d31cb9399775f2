//! The disk thread: the only one that waits for the medium. It takes requests in their order and
//! answers each that wants an answer; the event loop goes on meanwhile.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
};

use bytes::Bytes;
use tokio::sync::mpsc as async_mpsc;

use crate::{
    gateway::DiskRequest,
    protocol::Epoch,
    spool::{
        DirectoryDisk, Disk as _, Evicted, HeldRange, Item, Limits, OpenError, Report, Spool,
        journal::Journal,
    },
};

/// The file that names the URLs which answered with a valid `welcome`, one in a line.
const MANAGED: &str = "managed-hub";

/// How many of them are kept; at the bound the oldest goes.
const MAX_MANAGED: usize = 32;

/// What the thread is asked to do.
#[derive(Debug)]
pub(super) enum Job {
    /// As the core asks.
    Request(DiskRequest),
    /// Keep it that this URL is managed.
    RememberManaged(String),
    /// Write the positions and end.
    Stop,
}

/// What the thread answers.
#[derive(Debug)]
pub(super) enum Answer {
    Appended(Result<Vec<Evicted>, String>),
    Read { lane: usize, epoch: Epoch, result: Result<Vec<Item>, String> },
    Retired { lane: usize, epoch: Epoch, result: Result<(), String> },
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

/// What the spool holds and what the medium had to bear.
#[derive(Debug, Default)]
pub(super) struct Wear {
    pub(super) spool_bytes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) syncs: AtomicU64,
}

/// What was found on disk.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) streams: Vec<String>,
    pub(super) held: Vec<HeldRange>,
    pub(super) journal: Vec<(String, Bytes)>,
    pub(super) managed_urls: Vec<String>,
    pub(super) report: Report,
}

/// Opens the spool and the journal, and starts the thread.
///
/// # Errors
/// As [`Spool::open`].
pub(super) fn start(
    directory: &Path,
    streams: &[&str],
    limits: Limits,
    epoch: Epoch,
) -> Result<(DiskThread, Found), OpenError> {
    let disk = DirectoryDisk::open(directory)?;
    let (spool, report) = Spool::open(disk, streams, limits, epoch.0)?;
    let journal = Journal::open(spool.disk())?;
    let managed_urls = std::fs::read_to_string(directory.join(MANAGED)).unwrap_or_default();
    let managed_urls: Vec<String> = managed_urls.lines().map(str::to_owned).collect();
    let found = Found {
        streams: spool.streams().map(str::to_owned).collect(),
        held: spool.held(),
        journal: journal.entries().map(|(key, value)| (key.to_owned(), value.clone())).collect(),
        managed_urls: managed_urls.clone(),
        report,
    };
    let (jobs, incoming) = mpsc::channel();
    // Not bounded by itself: the core has one append, one journal change and one read per lane
    // under way.
    let (outgoing, answers) = async_mpsc::unbounded_channel();
    let wear = Arc::new(Wear::default());
    let directory = directory.into();
    let worker = Worker { spool, journal, directory, managed_urls, wear: wear.clone() };
    worker.note_wear();
    let thread = thread::Builder::new()
        .name("disk".into())
        .stack_size(256 * 1024)
        .spawn(move || worker.run(&incoming, &outgoing))?;
    Ok((DiskThread { jobs, answers, wear, thread }, found))
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
    spool: Spool<DirectoryDisk>,
    journal: Journal<std::fs::File>,
    directory: PathBuf,
    managed_urls: Vec<String>,
    wear: Arc<Wear>,
}

impl Worker {
    fn run(mut self, jobs: &mpsc::Receiver<Job>, answers: &async_mpsc::UnboundedSender<Answer>) {
        while let Ok(job) = jobs.recv() {
            let answer = match job {
                Job::Request(request) => self.handle(request),
                Job::RememberManaged(url) => {
                    self.remember_managed(url);
                    None
                }
                Job::Stop => break,
            };
            self.note_wear();
            if answer.is_some_and(|answer| answers.send(answer).is_err()) {
                break;
            }
        }
        if let Err(error) = self.spool.save_positions() {
            let directory = self.directory.display();
            tracing::warn!(%error, %directory, "the positions could not be kept; more is sent again");
        }
    }

    fn remember_managed(&mut self, url: String) {
        self.managed_urls.push(url);
        let surplus = self.managed_urls.len().saturating_sub(MAX_MANAGED);
        self.managed_urls.drain(..surplus);
        let lines = self.managed_urls.join("\n");
        if let Err(error) = self.spool.disk().replace(MANAGED, lines.as_bytes()) {
            tracing::warn!(%error, "that the hub is managed could not be kept");
        }
    }

    fn handle(&mut self, request: DiskRequest) -> Option<Answer> {
        match request {
            DiskRequest::Append(entries) => {
                Some(Answer::Appended(self.spool.append(&entries).map_err(|e| self.explain(&e))))
            }
            DiskRequest::Read { lane, epoch, from, max_bytes } => {
                let result = self.spool.read(lane, epoch.0, from, max_bytes);
                Some(Answer::Read { lane, epoch, result: result.map_err(|e| self.explain(&e)) })
            }
            DiskRequest::Trim { lane, epoch, acked } => {
                if let Err(error) = self.spool.trim(lane, epoch.0, acked) {
                    tracing::debug!(%error, "the position could not be kept; a later trim will");
                }
                None
            }
            DiskRequest::Retire { lane, epoch } => {
                let result = self.spool.retire(lane, epoch.0).map_err(|e| self.explain(&e));
                Some(Answer::Retired { lane, epoch, result })
            }
            DiskRequest::Journal(changes) => {
                let result = self.journal.put(self.spool.disk(), &changes);
                Some(Answer::Journalled(result.map_err(|e| self.explain(&e))))
            }
        }
    }

    fn explain(&self, error: &io::Error) -> String {
        format!("{}: {error}", self.directory.display())
    }

    fn note_wear(&self) {
        let (written, syncs) = self.spool.wear();
        self.wear.spool_bytes.store(self.spool.bytes(), Relaxed);
        self.wear.written_bytes.store(written, Relaxed);
        self.wear.syncs.store(syncs, Relaxed);
    }
}
