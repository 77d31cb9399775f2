//! Frames, both ways at once, until the connection ends.
//!
//! Two futures of one task share the socket: one reads whatever comes and hands it on, the other
//! writes what is asked for. Neither waits for the other. tungstenite answers Pings by itself, when
//! it is read next.

use std::{pin::pin, time::Duration};

use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message, Utf8Bytes,
        error::ProtocolError,
        protocol::{CloseFrame, Role, WebSocketConfig},
    },
};

use super::{
    Down, Event, Request, Target,
    dial::{Dialed, io_words},
    stream::Stream,
    upgrade::Answer,
};
use crate::protocol::close;

/// From the first sign of the end to the closed socket.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// tungstenite's default is 128 KiB, allocated at once.
const READ_BUFFER_BYTES: usize = 8 * 1024;

/// Frames are gathered up to this, then written: a TLS record's worth.
const WRITE_BUFFER_BYTES: usize = 16 * 1024;

/// What is written and not taken by the socket, at most, beside a message as large as the peer's
/// may be. Pongs for a peer that sends Pings faster than it reads would fill any memory; at the
/// bound one is left out, and a message that finds no room ends the link.
const MAX_UNWRITTEN_BYTES: usize = 4 << 20;

/// RFC 6455, section 5.5: what a control frame carries at most, and a close frame beside its code.
const MAX_CONTROL_BYTES: usize = 125;
const MAX_REASON_BYTES: usize = 123;

type Socket = WebSocketStream<Stream>;

/// Says [`Event::Up`], then carries frames until the end, which it returns. The socket is closed
/// then.
pub(super) async fn carry(
    dialed: Dialed,
    target: &Target,
    mut requests: mpsc::Receiver<Request>,
    events: &mpsc::Sender<Event>,
) -> Down {
    let Dialed { stream, answer, rest } = dialed;
    let valid_until_ms = stream.valid_until_ms();
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(MAX_UNWRITTEN_BYTES + target.max_message_bytes)
        .max_message_size(Some(target.max_message_bytes))
        .max_frame_size(Some(target.max_message_bytes));
    let socket =
        WebSocketStream::from_partially_read(stream, rest, Role::Client, Some(config)).await;
    let Answer { subprotocol, date_ms } = answer;
    let up = Event::Up { subprotocol, date_ms, valid_until_ms };
    if events.send(up).await.is_err() {
        return dropped();
    }
    let (mut sink, mut stream) = socket.split();
    let (down, deadline) = {
        let mut reading = pin!(read(&mut stream, events));
        let end = tokio::select! {
            heard = &mut reading => End::Heard(heard),
            stop = write(&mut sink, &mut requests) => End::Stop(stop),
        };
        let deadline = Instant::now() + CLOSE_WAIT;
        let down = match end {
            End::Heard(heard) => answer_end(heard, &mut sink, target, deadline).await,
            End::Stop(Stop::Dropped) => dropped(),
            End::Stop(Stop::Failed(error)) => {
                // The peer may have said why before it went.
                let heard = timeout_at(deadline, reading).await.ok();
                last_words(heard, target, || words(&error, target))
            }
            End::Stop(Stop::Close(frame)) => {
                let answered = close_and_listen(frame, &mut sink, reading);
                let heard = timeout_at(deadline, answered).await.ok();
                let host = &target.url.host;
                last_words(heard, target, || {
                    format!("{host} did not answer our close frame within {CLOSE_WAIT:?}")
                })
            }
        };
        (down, deadline)
    };
    if let Ok(socket) = stream.reunite(sink) {
        part(socket.into_inner(), deadline).await;
    }
    down
}

/// Which of the two futures ended.
enum End {
    Heard(Heard),
    Stop(Stop),
}

/// Why reading ended.
enum Heard {
    Close { code: u16, reason: String },
    Fault(tungstenite::Error),
    Dropped,
}

/// Why writing ended.
enum Stop {
    Close(CloseFrame),
    Failed(tungstenite::Error),
    Dropped,
}

fn dropped() -> Down {
    Down::Cut("the link was dropped".to_owned())
}

/// Reads until the peer closes. While the event queue is full nothing is read: the gateway is busy.
async fn read(stream: &mut SplitStream<Socket>, events: &mpsc::Sender<Event>) -> Heard {
    loop {
        let Ok(room) = events.reserve().await else { return Heard::Dropped };
        let event = match stream.next().await {
            Some(Ok(Message::Text(text))) => Event::Text(text.as_str().to_owned()),
            Some(Ok(Message::Binary(bytes))) => Event::Binary { bytes: bytes.len() },
            Some(Ok(Message::Pong(payload))) => Event::Pong(payload.to_vec()),
            Some(Ok(Message::Ping(_) | Message::Frame(_))) => Event::Heard,
            Some(Ok(Message::Close(frame))) => {
                let (code, reason) = match frame {
                    Some(frame) => (frame.code.into(), frame.reason.as_str().to_owned()),
                    None => (close::NO_CODE, String::new()),
                };
                return Heard::Close { code, reason };
            }
            Some(Err(error)) => return Heard::Fault(error),
            None => return Heard::Fault(ProtocolError::ResetWithoutClosingHandshake.into()),
        };
        room.send(event);
    }
}

/// Writes what is asked for, and flushes when nothing more is asked. At most one message beyond the
/// write buffer is held: `feed` waits while the socket takes nothing, and the request queue fills.
async fn write(
    sink: &mut SplitSink<Socket, Message>,
    requests: &mut mpsc::Receiver<Request>,
) -> Stop {
    while let Some(first) = requests.recv().await {
        let mut next = Some(first);
        while let Some(request) = next {
            let message = match request {
                Request::Text(text) => Message::Text(text.into()),
                Request::Ping(mut payload) => {
                    debug_assert!(payload.len() <= MAX_CONTROL_BYTES, "a Ping is short");
                    payload.truncate(MAX_CONTROL_BYTES);
                    Message::Ping(payload.into())
                }
                Request::Close { code, reason } => return Stop::Close(close_frame(code, &reason)),
            };
            if let Err(error) = sink.feed(message).await {
                return Stop::Failed(error);
            }
            next = requests.try_recv().ok();
        }
        if let Err(error) = sink.flush().await {
            return Stop::Failed(error);
        }
    }
    Stop::Dropped
}

/// Sends our close frame and goes on reading, for the peer's answer.
async fn close_and_listen(
    frame: CloseFrame,
    sink: &mut SplitSink<Socket, Message>,
    reading: impl Future<Output = Heard>,
) -> Heard {
    let send = async {
        // Should this fail, so does the reading, which says it better.
        let _ = sink.send(Message::Close(Some(frame))).await;
        std::future::pending().await
    };
    tokio::select! {
        heard = reading => heard,
        heard = send => heard,
    }
}

/// The peer closed, or broke off, or broke the protocol: it is told what we made of it.
async fn answer_end(
    heard: Heard,
    sink: &mut SplitSink<Socket, Message>,
    target: &Target,
    deadline: Instant,
) -> Down {
    let frame = match &heard {
        Heard::Fault(error) => fault_code(error).map(|code| close_frame(code, "")),
        Heard::Close { .. } | Heard::Dropped => None,
    };
    // That the telling succeeds changes nothing any more.
    let _ = match frame {
        Some(frame) => timeout_at(deadline, sink.send(Message::Close(Some(frame)))).await,
        // tungstenite has the answer to a close frame ready.
        None => timeout_at(deadline, sink.flush()).await,
    };
    last_words(Some(heard), target, String::new)
}

fn last_words(heard: Option<Heard>, target: &Target, silence: impl FnOnce() -> String) -> Down {
    match heard {
        Some(Heard::Close { code, reason }) => Down::Closed { code, reason },
        Some(Heard::Fault(error)) => Down::Cut(words(&error, target)),
        Some(Heard::Dropped) => dropped(),
        None => Down::Cut(silence()),
    }
}

/// Ends TLS and TCP in order, so that our last frames arrive: closing a socket with unread bytes
/// resets the connection, and the peer may lose what it has not read yet.
async fn part(mut stream: Stream, deadline: Instant) {
    let orderly = async {
        stream.shutdown().await?;
        let mut waste = [0; 1024];
        while stream.read(&mut waste).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Broken or late, there is nothing left to save.
    let _ = timeout_at(deadline, orderly).await;
}

fn close_frame(code: u16, reason: &str) -> CloseFrame {
    let mut end = reason.len().min(MAX_REASON_BYTES);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    CloseFrame { code: code.into(), reason: Utf8Bytes::from(&reason[..end]) }
}

/// The close code for what the peer did; `None` when there is nobody left to tell.
fn fault_code(error: &tungstenite::Error) -> Option<u16> {
    match error {
        tungstenite::Error::Utf8(_) => Some(close::INVALID_DATA),
        tungstenite::Error::Capacity(_) => Some(close::TOO_BIG),
        tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
        tungstenite::Error::Protocol(_) => Some(close::PROTOCOL_ERROR),
        _ => None,
    }
}

fn words(error: &tungstenite::Error, target: &Target) -> String {
    let host = &target.url.host;
    match error {
        tungstenite::Error::Io(error) => io_words(error, host, target.ca_file.as_deref()),
        tungstenite::Error::Utf8(_) => {
            format!("{host} sent a text that is not UTF-8; mend the hub")
        }
        tungstenite::Error::Capacity(error) => {
            format!("{host} sent too large a message ({error}); have the hub keep to the limit")
        }
        tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)
        | tungstenite::Error::ConnectionClosed
        | tungstenite::Error::AlreadyClosed => {
            format!("{host} ended the connection without a close frame")
        }
        tungstenite::Error::WriteBufferFull(_) => {
            format!("{host} sends Pings faster than it reads the Pongs; mend the hub")
        }
        tungstenite::Error::Protocol(error) => {
            format!("{host} broke the WebSocket protocol ({error}); mend the hub")
        }
        _ => format!("the WebSocket of {host} failed: {error}"),
    }
}

#[cfg(test)]
mod tests;
