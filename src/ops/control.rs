//! The control socket: how `fieldgate status`, `send` and `reload` reach a running
//! gateway.
//!
//! A Unix socket in the state directory, so that its permissions (0700) are the only ones needed.
//! One JSON object in a line asks, one answers:
//!
//! ```text
//! {"status":{}}                                                        -> {"ok":{…}}
//! {"send":{"device":"plc-01","topic":null,"payload":"{\"t\":1}"}}      -> {"ok":"safe"}
//!                                                                      or {"error":"…"}
//! {"reload":{"wait":true}}                           -> {"ok":{"changed":[…],"restart":[…]}}
//! ```
//!
//! Whoever ends their half of the connection before a `send` is answered has given up on it. Must
//! never let those who wait for a record to be safe keep away those who ask why it is not.

use std::{
    io::{self, BufRead as _, Write as _},
    os::unix::net::UnixStream as BlockingStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::timeout,
};

/// The socket's name in the state directory.
const NAME: &str = "control.sock";

/// What a byte of a payload may take in a request (`\u0000`), and what the rest of it may.
const ESCAPED_BYTES: usize = 6;
const FRAME_BYTES: usize = 64 * 1024;

/// How long a request may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How many connections are served at once, beside the `send`s that wait; at the bound the next one
/// waits.
const MAX_CONNECTIONS: usize = 8;

/// How many `send`s may wait for their record to be safe; one more is refused at once.
const MAX_SENDS: usize = 64;

/// How long a `send` waits for its record to be safe: on disk, or at the hub.
pub const SAFE_WITHIN: Duration = Duration::from_secs(30);

/// How long a `send` waits for a gateway that is just starting.
const STARTS_WITHIN: Duration = Duration::from_secs(5);

/// How often it looks meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What can be asked of a running gateway.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// Its state.
    Status {},
    /// Take in a record, as if a device had published it, and answer when it is safe.
    Send {
        /// The device.
        device: String,
        /// The topic name; `None`: the first `[[telemetry]]` topic, filled in.
        topic: Option<String>,
        /// The payload.
        payload: String,
    },
    /// Read the configuration anew.
    Reload {
        /// Answer with what came of it, rather than at once.
        wait: bool,
    },
}

/// A question, and where its answer goes: JSON, or what is wrong.
pub type Question = (Ask, oneshot::Sender<Result<Value, String>>);

/// Where the socket of a gateway is.
pub fn socket_path(state_dir: &Path) -> PathBuf {
    state_dir.join(NAME)
}

/// Binds the socket and serves it in a task. A socket that a crash left behind is replaced: the
/// spool's lock, which the caller holds, says that no other gateway is alive. `max_payload_bytes`
/// bounds a request.
///
/// # Errors
/// The socket can't be made.
pub fn serve(state_dir: &Path, max_payload_bytes: usize) -> io::Result<mpsc::Receiver<Question>> {
    let max_request_bytes = max_payload_bytes.saturating_mul(ESCAPED_BYTES) + FRAME_BYTES;
    serve_within(state_dir, max_request_bytes, SAFE_WITHIN)
}

fn serve_within(
    state_dir: &Path,
    max_request_bytes: usize,
    safe_within: Duration,
) -> io::Result<mpsc::Receiver<Question>> {
    let path = socket_path(state_dir);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    let (questions, receiver) = mpsc::channel(MAX_CONNECTIONS);
    let sends = Arc::new(Semaphore::new(MAX_SENDS));
    tokio::spawn(accept(listener, Door { questions, sends, max_request_bytes, safe_within }));
    Ok(receiver)
}

/// What every connection has to do with.
#[derive(Debug, Clone)]
struct Door {
    questions: mpsc::Sender<Question>,
    /// Places for those who wait until a record is safe.
    sends: Arc<Semaphore>,
    max_request_bytes: usize,
    safe_within: Duration,
}

async fn accept(listener: UnixListener, door: Door) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let door = door.clone();
                tokio::spawn(async move {
                    if let Err(error) = door.answer(stream, place).await {
                        tracing::debug!(%error, "a control connection failed");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the control socket can't accept");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

impl Door {
    async fn answer(self, stream: UnixStream, place: OwnedSemaphorePermit) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        let max_bytes = self.max_request_bytes;
        let request = timeout(REQUEST_TIMEOUT, read_request(&mut stream, max_bytes)).await??;
        let answer = match request.as_deref().map(serde_json::from_slice::<Ask>) {
            None => Err(format!("the request has more than {max_bytes} bytes; send a smaller one")),
            Some(Err(error)) => Err(format!("not a request: {error}")),
            Some(Ok(ask @ Ask::Send { .. })) => match self.sends.clone().try_acquire_owned() {
                Ok(_place_of_sends) => {
                    drop(place);
                    tokio::select! {
                        answer = self.ask(ask, Some(self.safe_within)) => answer,
                        () = has_gone(&mut stream) => return Ok(()),
                    }
                }
                Err(_) => Err(format!(
                    "{MAX_SENDS} records sent by hand are not safe yet; see: fieldgate status"
                )),
            },
            Some(Ok(ask)) => self.ask(ask, None).await,
        };
        let mut text = match answer {
            Ok(value) => serde_json::json!({ "ok": value }),
            Err(error) => serde_json::json!({ "error": error }),
        }
        .to_string();
        text.push('\n');
        stream.write_all(text.as_bytes()).await
    }

    async fn ask(&self, ask: Ask, patience: Option<Duration>) -> Result<Value, String> {
        let stopping = || "the gateway is stopping".to_owned();
        let (sender, receiver) = oneshot::channel();
        self.questions.send((ask, sender)).await.map_err(|_| stopping())?;
        let answer = match patience {
            None => receiver.await,
            Some(patience) => timeout(patience, receiver).await.map_err(|_| {
                format!(
                    "the record is kept in memory and not safe yet: neither the disk nor the hub \
                     took it within {} s; don't send it again, and see: fieldgate status",
                    patience.as_secs()
                )
            })?,
        };
        answer.map_err(|_| stopping())?
    }
}

/// Reads a line; `None` if it is longer than it may be: then the rest is read and let go, for who
/// still writes can't hear an answer.
async fn read_request(
    stream: &mut BufReader<UnixStream>,
    max_bytes: usize,
) -> io::Result<Option<Vec<u8>>> {
    let (mut line, mut fits) = (Vec::new(), true);
    loop {
        let part = stream.fill_buf().await?;
        let end = part.iter().position(|byte| *byte == b'\n');
        let is_last = end.is_some() || part.is_empty();
        let len = end.unwrap_or(part.len());
        fits &= line.len() + len <= max_bytes;
        if fits {
            line.extend_from_slice(&part[..len]);
        }
        stream.consume(len + usize::from(end.is_some()));
        if is_last {
            return Ok(fits.then_some(line));
        }
    }
}

async fn has_gone(stream: &mut BufReader<UnixStream>) {
    while let Ok(more @ [_, ..]) = stream.fill_buf().await {
        let len = more.len();
        stream.consume(len);
    }
}

/// Asks a running gateway; a `send` also one that is only just starting.
///
/// # Errors
/// In words: it does not run, or it says no.
pub fn ask(state_dir: &Path, ask: &Ask, patience: Duration) -> Result<Value, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Reply {
        Ok(Value),
        Error(String),
    }
    let path = socket_path(state_dir);
    let exchange = || -> io::Result<String> {
        let is_sent = matches!(ask, Ask::Send { .. });
        let mut stream = connect(&path, if is_sent { STARTS_WITHIN } else { Duration::ZERO })?;
        stream.set_read_timeout(Some(patience))?;
        let mut line = serde_json::to_string(ask).expect("a request has string keys only");
        line.push('\n');
        stream.write_all(line.as_bytes())?;
        let mut reply = String::new();
        io::BufReader::new(stream).read_line(&mut reply)?;
        Ok(reply)
    };
    let reply = exchange().map_err(|error| match error.kind() {
        _ if is_absent(&error) => format!(
            "no gateway runs with the state directory {}; start it with: fieldgate run",
            state_dir.display()
        ),
        io::ErrorKind::PermissionDenied => format!(
            "{}: permission denied; run this as the gateway's user or as root",
            path.display()
        ),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("the gateway gave no answer within {} s", patience.as_secs())
        }
        _ => format!("{}: {error}", path.display()),
    })?;
    match serde_json::from_str(&reply) {
        Ok(Reply::Ok(value)) => Ok(value),
        Ok(Reply::Error(error)) => Err(error),
        Err(_) => Err("the gateway's answer is no answer; is it of another version?".into()),
    }
}

/// Whether the error says that no gateway is there.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Connects, and waits so long for a gateway to be there.
fn connect(path: &Path, patience: Duration) -> io::Result<BlockingStream> {
    let end = Instant::now() + patience;
    loop {
        match BlockingStream::connect(path) {
            Err(error) if is_absent(&error) && Instant::now() < end => {
                std::thread::sleep(LOOK_EVERY);
            }
            connected => return connected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);
    const SEND: &str = r#"{"send":{"device":"d","topic":null,"payload":"1"}}"#;
    const STATUS: &str = r#"{"status":{}}"#;

    struct Bench {
        directory: tempfile::TempDir,
        questions: mpsc::Receiver<Question>,
    }

    impl Bench {
        fn new(safe_within: Duration) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let questions = serve_within(directory.path(), 1000, safe_within).unwrap();
            Self { directory, questions }
        }

        /// Asks, on a connection of its own.
        async fn ask(&self, request: &str) -> BufReader<UnixStream> {
            let path = socket_path(self.directory.path());
            let mut stream = UnixStream::connect(path).await.unwrap();
            stream.write_all(format!("{request}\n").as_bytes()).await.unwrap();
            BufReader::new(stream)
        }

        /// What the driver is asked next.
        async fn asked(&mut self) -> Question {
            timeout(SOON, self.questions.recv()).await.expect("it is asked in time").unwrap()
        }

        /// So many `send`s that wait for an answer that does not come.
        async fn with_sends(&mut self, count: usize) -> Vec<(BufReader<UnixStream>, Question)> {
            let mut waiting = Vec::new();
            for _ in 0..count {
                let stream = self.ask(SEND).await;
                waiting.push((stream, self.asked().await));
            }
            waiting
        }
    }

    async fn heard(mut stream: BufReader<UnixStream>) -> String {
        let mut line = String::new();
        timeout(SOON, stream.read_line(&mut line)).await.expect("it answers in time").unwrap();
        line
    }

    fn run(scenario: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(scenario);
    }

    /// The disk failed, there was no hub, and a timer sent a record every minute: each waited for
    /// ever, and the eighth shut the door on whoever asked for the status.
    #[test]
    fn records_that_do_not_get_safe_keep_nobody_from_asking_why() {
        run(async {
            let mut bench = Bench::new(SAFE_WITHIN);
            let waiting = bench.with_sends(MAX_SENDS).await;
            let answer = heard(bench.ask(SEND).await).await;
            assert!(answer.contains("fieldgate status"), "{answer}");
            let stream = bench.ask(STATUS).await;
            let (ask, reply) = bench.asked().await;
            assert!(matches!(ask, Ask::Status {}), "{ask:?}");
            reply.send(Ok("fails".into())).unwrap();
            assert_eq!(heard(stream).await, "{\"ok\":\"fails\"}\n");
            for (stream, (_, reply)) in waiting {
                reply.send(Ok("safe".into())).unwrap();
                assert_eq!(heard(stream).await, "{\"ok\":\"safe\"}\n");
            }
        });
    }

    #[test]
    fn whoever_gives_up_on_a_record_gives_their_place_back() {
        run(async {
            let mut bench = Bench::new(SAFE_WITHIN);
            let mut waiting = bench.with_sends(MAX_SENDS).await;
            let (stream, (_, mut reply)) = waiting.pop().unwrap();
            drop(stream);
            timeout(SOON, reply.closed()).await.expect("nobody waits for the answer any more");
            bench.with_sends(1).await;
        });
    }

    #[test]
    fn a_record_that_does_not_get_safe_in_time_is_not_called_safe() {
        run(async {
            let mut bench = Bench::new(Duration::from_millis(50));
            let waiting = bench.with_sends(1).await;
            for (stream, _question) in waiting {
                let answer = heard(stream).await;
                assert!(answer.contains("error") && answer.contains("not safe yet"), "{answer}");
            }
        });
    }

    #[test]
    fn a_request_beyond_any_payload_is_answered_in_words() {
        run(async {
            let bench = Bench::new(SAFE_WITHIN);
            let answer = heard(bench.ask(&SEND.replace('1', &"1".repeat(1 << 20))).await).await;
            assert!(answer.contains("more than 1000 bytes"), "{answer}");
        });
    }
}
