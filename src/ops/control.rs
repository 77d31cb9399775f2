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

use std::{
    io::{self, BufRead as _, Write as _},
    os::unix::net::UnixStream as BlockingStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time::timeout,
};

/// The socket's name in the state directory.
const NAME: &str = "control.sock";

/// The longest request, in bytes.
const MAX_REQUEST_BYTES: u64 = 20 << 20;

/// How long a request may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How many connections are served at once; at the bound the next one waits.
const MAX_CONNECTIONS: usize = 8;

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
/// spool's lock, which the caller holds, says that no other gateway is alive.
///
/// # Errors
/// The socket can't be made.
pub fn serve(state_dir: &Path) -> io::Result<mpsc::Receiver<Question>> {
    let path = socket_path(state_dir);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    let (questions, receiver) = mpsc::channel(MAX_CONNECTIONS);
    tokio::spawn(accept(listener, questions));
    Ok(receiver)
}

async fn accept(listener: UnixListener, questions: mpsc::Sender<Question>) {
    let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    loop {
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let questions = questions.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, &questions).await {
                        tracing::debug!(%error, "a control connection failed");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the control socket can't accept");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, questions: &mpsc::Sender<Question>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    let mut limited = (&mut stream).take(MAX_REQUEST_BYTES);
    timeout(REQUEST_TIMEOUT, limited.read_line(&mut line)).await??;
    let answer = match serde_json::from_str::<Ask>(&line) {
        Err(error) => Err(format!("not a request: {error}")),
        Ok(ask) => {
            let (sender, receiver) = oneshot::channel();
            let asked = questions.send((ask, sender)).await.is_ok();
            match receiver.await {
                Ok(answer) if asked => answer,
                _ => Err("the gateway is stopping".into()),
            }
        }
    };
    let mut text = match answer {
        Ok(value) => serde_json::json!({ "ok": value }),
        Err(error) => serde_json::json!({ "error": error }),
    }
    .to_string();
    text.push('\n');
    stream.write_all(text.as_bytes()).await
}

/// Asks a running gateway.
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
        let mut stream = BlockingStream::connect(&path)?;
        stream.set_read_timeout(Some(patience))?;
        let mut line = serde_json::to_string(ask).expect("a request has string keys only");
        line.push('\n');
        stream.write_all(line.as_bytes())?;
        let mut reply = String::new();
        io::BufReader::new(stream).read_line(&mut reply)?;
        Ok(reply)
    };
    let reply = exchange().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => format!(
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
