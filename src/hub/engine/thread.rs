//! The engine's thread: group commit, and what happens while the engine is down.

use std::{
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{Answer, Engine, EngineError, Request};

/// How many requests may wait for the engine. At the bound a session waits, and stops reading its
/// socket.
const QUEUE: usize = 128;

/// The most requests in one commit.
const GROUP_REQUESTS: usize = 256;

/// The most records in one commit: a bound on how long the first of them waits.
const GROUP_RECORDS: usize = 20_000;

/// How long a failed engine is left alone before it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Called once with the outcome, on the engine's thread: it must not block.
pub type Reply = Box<dyn FnOnce(Result<Answer, EngineError>) + Send>;

struct Job {
    request: Request,
    reply: Reply,
}

/// The door to an engine that runs on its own thread. Clones share it.
#[derive(Clone)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
    up: watch::Receiver<bool>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("up", &*self.up.borrow()).finish()
    }
}

impl Store {
    /// Starts the thread. It ends, with everything committed, when the last clone is dropped.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start(engine: impl Engine) -> std::io::Result<(Self, JoinHandle<()>)> {
        Self::start_retrying(engine, RETRY_AFTER)
    }

    fn start_retrying(
        engine: impl Engine,
        retry_after: Duration,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (set_up, up) = watch::channel(true);
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || Worker { engine, queue, set_up, retry_after, tried: None }.run())?;
        Ok((Self { jobs, up }, thread))
    }

    /// Hands a request over; waits while the queue is full. Requests of one caller are applied in
    /// their order.
    pub async fn submit(&self, request: Request, reply: Reply) {
        if let Err(mpsc::error::SendError(job)) = self.jobs.send(Job { request, reply }).await {
            (job.reply)(Err(gone()));
        }
    }

    /// Hands a request over and waits for its answer.
    ///
    /// # Errors
    /// The engine is down.
    pub async fn ask(&self, request: Request) -> Result<Answer, EngineError> {
        let (reply, answer) = oneshot::channel();
        let reply = Box::new(move |result| {
            // Whoever asked may have gone in the meantime; the request stands all the same.
            let _ = reply.send(result);
        });
        self.submit(request, reply).await;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Whether the engine works; follows its failures and recoveries.
    pub fn up(&self) -> watch::Receiver<bool> {
        self.up.clone()
    }
}

fn gone() -> EngineError {
    EngineError("the engine's thread has ended".into())
}

struct Worker<E> {
    engine: E,
    queue: mpsc::Receiver<Job>,
    set_up: watch::Sender<bool>,
    retry_after: Duration,
    /// When a failed engine was tried last; `None` while it works.
    tried: Option<Instant>,
}

impl<E: Engine> Worker<E> {
    fn run(mut self) {
        while let Some(first) = self.queue.blocking_recv() {
            let group = self.gather(first);
            if self.is_usable() {
                self.commit(group);
            } else {
                for job in group {
                    (job.reply)(Err(EngineError("the store is down".into())));
                }
            }
        }
    }

    fn gather(&mut self, first: Job) -> Vec<Job> {
        let mut records = weight(&first.request);
        let mut group = vec![first];
        while group.len() < GROUP_REQUESTS && records < GROUP_RECORDS {
            let Ok(job) = self.queue.try_recv() else { break };
            records += weight(&job.request);
            group.push(job);
        }
        group
    }

    /// The hub's own [`Request::Look`] comes twice a second, so that a failed engine is tried again
    /// without traffic.
    fn is_usable(&mut self) -> bool {
        let Some(tried) = self.tried else { return true };
        if tried.elapsed() < self.retry_after {
            return false;
        }
        match self.engine.reopen() {
            Ok(()) => {
                tracing::info!("the store works again");
                self.tried = None;
                self.set_up.send_replace(true);
                true
            }
            Err(error) => {
                tracing::debug!(%error, "the store is still down");
                self.tried = Some(Instant::now());
                false
            }
        }
    }

    fn commit(&mut self, group: Vec<Job>) {
        let (requests, replies): (Vec<_>, Vec<_>) =
            group.into_iter().map(|job| (job.request, job.reply)).unzip();
        let now_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        match self.engine.commit(now_ms, &requests) {
            Ok(answers) => {
                for (reply, answer) in replies.into_iter().zip(answers) {
                    reply(Ok(answer));
                }
            }
            Err(error) => {
                tracing::error!(%error, "the store failed: nothing is acknowledged until it works");
                self.tried = Some(Instant::now());
                // Before the replies: whoever gets one must see that the engine is down.
                self.set_up.send_replace(false);
                for reply in replies {
                    reply(Err(error.clone()));
                }
            }
        }
    }
}

fn weight(request: &Request) -> usize {
    match request {
        Request::Apply { data, .. } => data.records.len(),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails as often as it is told to.
    struct Fragile {
        failures: usize,
    }

    impl Engine for Fragile {
        fn commit(&mut self, _: u64, group: &[Request]) -> Result<Vec<Answer>, EngineError> {
            if self.failures > 0 {
                self.failures -= 1;
                return Err(EngineError("disk full".into()));
            }
            Ok(vec![Answer::Done; group.len()])
        }

        fn reopen(&mut self) -> Result<(), EngineError> {
            if self.failures > 0 {
                self.failures -= 1;
                return Err(EngineError("still full".into()));
            }
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_failed_engine_refuses_and_comes_back() {
        let engine = Fragile { failures: 2 };
        let (store, thread) = Store::start_retrying(engine, Duration::ZERO).unwrap();
        let up = store.up();
        assert!(*up.borrow());
        assert!(store.ask(Request::Look).await.is_err(), "the commit fails");
        assert!(!*up.borrow(), "seen down by whoever got the refusal");
        assert!(store.ask(Request::Look).await.is_err(), "the reopening fails");
        assert!(store.ask(Request::Look).await.is_ok());
        assert!(*up.borrow());
        drop(store);
        thread.join().unwrap();
    }

    #[tokio::test]
    async fn a_failed_engine_is_left_alone_for_a_while() {
        let engine = Fragile { failures: 1 };
        let (store, _thread) = Store::start_retrying(engine, Duration::from_secs(3600)).unwrap();
        assert!(store.ask(Request::Look).await.is_err());
        assert!(store.ask(Request::Look).await.is_err(), "it would work, and is not asked yet");
    }

    #[tokio::test]
    async fn every_request_is_answered_in_its_order() {
        let engine = Fragile { failures: 0 };
        let (store, _thread) = Store::start(engine).unwrap();
        let (sender, mut answers) = mpsc::unbounded_channel();
        for number in 0..1000 {
            let sender = sender.clone();
            let reply = Box::new(move |answer: Result<Answer, EngineError>| {
                sender.send((number, answer.is_ok())).unwrap();
            });
            store.submit(Request::Look, reply).await;
        }
        for number in 0..1000 {
            assert_eq!(answers.recv().await, Some((number, true)));
        }
    }
}
