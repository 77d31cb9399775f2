//! What waits to be written to a peer, and its writing.
//!
//! [`Writer::write`] runs beside the future that reads and decides, in one task: neither waits for
//! the other. How long a write may take is not decided here: beneath it a connection on which
//! nothing moves fails (`patience`).
//!
//! It must never drop or reorder a message. What is put in is bounded by whoever asks
//! [`Outbox::has_room`] and [`Outbox::is_full`] first.

use std::{future::pending, sync::Arc, time::Duration};

use futures_util::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::upgrade::Socket;

/// Up to so much may wait before what is large: so acks pass a backlog of commands.
const ROOM_BYTES: usize = 16 << 10;

/// What may wait in all. At the bound the peer is not read any more, so that nothing else needs an
/// answer.
const FULL_BYTES: usize = 1 << 20;

/// How long a peer may take to take a close, with what is before it, and to answer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The least that a frame has beside its payload (RFC 6455, section 5.2).
const HEADER_BYTES: usize = 2;

/// What has not left yet, the message that is being written included.
#[derive(Debug, Default)]
struct Unsent {
    bytes: usize,
    fault: Option<Arc<Error>>,
}

impl Unsent {
    fn has_room(&self) -> bool {
        self.bytes < ROOM_BYTES
    }

    fn is_full(&self) -> bool {
        self.bytes >= FULL_BYTES
    }
}

/// Where messages are put in.
pub(super) struct Outbox {
    messages: mpsc::UnboundedSender<Message>,
    unsent: Arc<watch::Sender<Unsent>>,
    changes: watch::Receiver<Unsent>,
}

/// Where they come out.
pub(super) struct Writer {
    messages: mpsc::UnboundedReceiver<Message>,
    unsent: Arc<watch::Sender<Unsent>>,
}

/// An empty one.
pub(super) fn open() -> (Outbox, Writer) {
    let (sender, messages) = mpsc::unbounded_channel();
    let (unsent, changes) = watch::channel(Unsent::default());
    let unsent = Arc::new(unsent);
    let outbox = Outbox { messages: sender, unsent: unsent.clone(), changes };
    (outbox, Writer { messages, unsent })
}

impl Outbox {
    /// To be written after all that was put in before.
    pub(super) fn put(&self, message: Message) {
        self.unsent.send_if_modified(|unsent| {
            unsent.bytes += message.len() + HEADER_BYTES;
            false
        });
        // Refused only after the writer's end, which is told by itself.
        let _ = self.messages.send(message);
    }

    /// Whether something large may be put in.
    pub(super) fn has_room(&self) -> bool {
        self.unsent.borrow().has_room()
    }

    /// Whether no more should be put in.
    pub(super) fn is_full(&self) -> bool {
        self.unsent.borrow().is_full()
    }

    /// Resolves when writing has failed, and before that when there is room: for something large,
    /// or for anything, as asked.
    pub(super) async fn room(&mut self, large: bool, any: bool) -> Option<Arc<Error>> {
        let is_news = |unsent: &Unsent| {
            let has_room = (large && unsent.has_room()) || (any && !unsent.is_full());
            has_room || unsent.fault.is_some()
        };
        // An error is a sender that is gone, and that one lives here.
        self.changes.wait_for(is_news).await.ok().and_then(|unsent| unsent.fault.clone())
    }

    /// Reads to the end while what was put in leaves: so both sides' close frames are exchanged
    /// (RFC 6455, section 5.5.1). A peer that is too slow for it is cut off, and has had its close
    /// all the same.
    pub(super) async fn part(&mut self, stream: &mut SplitStream<Socket>) {
        let is_over = |unsent: &Unsent| unsent.bytes == 0 || unsent.fault.is_some();
        let end = async {
            while let Some(Ok(_)) = stream.next().await {}
            // As in `room`.
            let _ = self.changes.wait_for(is_over).await.map(drop);
        };
        // It is over, whichever.
        let _ = timeout(CLOSE_TIMEOUT, end).await;
    }
}

impl Writer {
    /// Writes what is put in. It never ends, so that it can stand beside what does.
    pub(super) async fn write(mut self, mut socket: SplitSink<Socket, Message>) {
        if let Err(error) = self.run(&mut socket).await {
            self.unsent.send_modify(|unsent| unsent.fault = Some(Arc::new(error)));
        }
        pending().await
    }

    async fn run(&mut self, socket: &mut SplitSink<Socket, Message>) -> Result<(), Error> {
        while let Some(message) = self.messages.recv().await {
            let bytes = message.len() + HEADER_BYTES;
            socket.send(message).await?;
            self.unsent.send_if_modified(|unsent| {
                let (had_room, was_full) = (unsent.has_room(), unsent.is_full());
                unsent.bytes -= bytes;
                (had_room, was_full) != (unsent.has_room(), unsent.is_full()) || unsent.bytes == 0
            });
        }
        Ok(())
    }
}
