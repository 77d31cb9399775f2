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
};
use crate::protocol::close;

/// From the first sign of the end to the closed socket.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// tungstenite's default is 128 KiB, allocated at once.
const READ_BUFFER_BYTES: usize = 8 * 1024;

/// Frames are gathered up to this, then written: a TLS record's worth.
const WRITE_BUFFER_BYTES: usize = 16 * 1024;

/// RFC 6455, section 5.5: what a control frame carries at most, and a close frame beside its code.
const MAX_CONTROL_BYTES: usize = 125;
const MAX_REASON_BYTES: usize = 123;

/// RFC 6455, section 7.4.1: the peer gave no code; what it sent is not UTF-8.
const NO_CODE: u16 = 1005;
const NOT_UTF8: u16 = 1007;

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
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_message_size(Some(target.max_message_bytes))
        .max_frame_size(Some(target.max_message_bytes));
    let socket =
        WebSocketStream::from_partially_read(stream, rest, Role::Client, Some(config)).await;
    let up = Event::Up { subprotocol: answer.subprotocol, date_ms: answer.date_ms };
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
                    None => (NO_CODE, String::new()),
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
        tungstenite::Error::Utf8(_) => Some(NOT_UTF8),
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
        tungstenite::Error::Protocol(error) => {
            format!("{host} broke the WebSocket protocol ({error}); mend the hub")
        }
        _ => format!("the WebSocket of {host} failed: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use tokio::net::TcpListener;
    use tokio_tungstenite::accept_async;

    use super::*;
    use crate::link::{
        Link, open,
        tests::{WAIT, accept_by_hand, bound, next, target_at},
    };

    /// A server that answers the upgrade, sends these bytes and gives back what it is sent until
    /// the end.
    async fn sends(bytes: Vec<u8>) -> (Link, tokio::task::JoinHandle<Vec<u8>>) {
        let (listener, port) = bound().await;
        let server = tokio::spawn(async move {
            let mut tcp = accept_by_hand(&listener, "").await;
            tcp.write_all(&bytes).await.unwrap();
            let mut heard = Vec::new();
            tcp.read_to_end(&mut heard).await.unwrap();
            heard
        });
        let mut link = open(target_at(port));
        assert!(matches!(next(&mut link).await, Event::Up { subprotocol: None, .. }));
        (link, server)
    }

    /// The close code in the last frame that a client sent, unmasked.
    fn close_code(heard: &[u8]) -> Option<u16> {
        let frame = heard.get(heard.len().checked_sub(8)?..)?;
        let [0x88, 0x82, first, second, _, _, high, low] = *frame else { return None };
        Some(u16::from_be_bytes([high ^ first, low ^ second]))
    }

    async fn cut(link: &mut Link) -> String {
        match next(link).await {
            Event::Down(Down::Cut(why)) => why,
            other => panic!("a cut was due, not {other:?}"),
        }
    }

    #[tokio::test]
    async fn a_server_that_breaks_the_protocol_is_told_how_and_cut() {
        let large = [&[0x82, 0x7f], &(1u64 << 40).to_be_bytes()[..]].concat();
        for (bytes, code, word) in [
            (b"\x81\x02\xc3\x28".to_vec(), NOT_UTF8, "not UTF-8"),
            (b"\x81\x82\x01\x02\x03\x04ab".to_vec(), close::PROTOCOL_ERROR, "masked"),
            (b"\xc1\x00".to_vec(), close::PROTOCOL_ERROR, "Reserved"),
            (b"\x80\x00".to_vec(), close::PROTOCOL_ERROR, "continue"),
            (b"\x09\x00".to_vec(), close::PROTOCOL_ERROR, "ragmented"),
            (b"\x88\x01\x03".to_vec(), close::PROTOCOL_ERROR, "close"),
            (large, close::TOO_BIG, "too large"),
        ] {
            let (mut link, server) = sends(bytes).await;
            let why = cut(&mut link).await;
            assert!(why.contains(word) && why.contains("127.0.0.1"), "{why}");
            let heard = tokio::time::timeout(WAIT, server).await.unwrap().unwrap();
            assert_eq!(close_code(&heard), Some(code), "{why}: {heard:?}");
            assert!(link.events.recv().await.is_none(), "nothing follows the end");
        }
    }

    #[tokio::test]
    async fn fragments_together_too_large_end_the_link() {
        let limit = target_at(0).max_message_bytes;
        let half = limit / 2 + 1;
        let mut bytes = Vec::new();
        for first in [0x02, 0x80] {
            bytes.extend([first, 0x7f]);
            bytes.extend((half as u64).to_be_bytes());
            bytes.resize(bytes.len() + half, b'x');
        }
        let (mut link, server) = sends(bytes).await;
        assert!(cut(&mut link).await.contains("too large"));
        let heard = tokio::time::timeout(WAIT, server).await.unwrap().unwrap();
        assert_eq!(close_code(&heard), Some(close::TOO_BIG));
    }

    #[tokio::test]
    async fn every_kind_of_frame_is_told_and_a_ping_is_answered_without_any_writing() {
        let frames = b"\x81\x02hi\x82\x03abc\x8a\x0212\x89\x01p\x88\x05\x10\x01bye";
        let (mut link, server) = sends(frames.to_vec()).await;
        assert!(matches!(next(&mut link).await, Event::Text(text) if text == "hi"));
        assert!(matches!(next(&mut link).await, Event::Binary { bytes: 3 }));
        assert!(matches!(next(&mut link).await, Event::Pong(payload) if payload == b"12"));
        assert!(matches!(next(&mut link).await, Event::Heard));
        let Event::Down(Down::Closed { code, reason }) = next(&mut link).await else {
            panic!("a close was due")
        };
        assert_eq!((code, reason.as_str()), (4097, "bye"));
        let heard = tokio::time::timeout(WAIT, server).await.unwrap().unwrap();
        assert_eq!(heard[..2], [0x8a, 0x81], "the pong");
        assert_eq!(heard[7], 0x88, "the close frame's answer");
        assert!(link.counters.received.load(Ordering::Relaxed) > frames.len() as u64);
        assert!(link.counters.sent.load(Ordering::Relaxed) > heard.len() as u64);
    }

    #[tokio::test]
    async fn a_server_that_vanishes_is_a_cut() {
        let (listener, port) = bound().await;
        let mut link = open(target_at(port));
        drop(accept_by_hand(&listener, "").await);
        assert!(matches!(next(&mut link).await, Event::Up { .. }));
        assert!(cut(&mut link).await.contains("without a close frame"));
    }

    #[tokio::test]
    async fn our_close_is_answered_and_the_peers_last_words_are_heard() {
        let (listener, port) = bound().await;
        let server = tokio::spawn(async move {
            let mut socket = accept_async(listener.accept().await.unwrap().0).await.unwrap();
            let Some(Ok(Message::Close(Some(frame)))) = socket.next().await else {
                panic!("a close was due")
            };
            assert!(socket.next().await.is_none());
            (u16::from(frame.code), frame.reason.len())
        });
        let mut link = open(target_at(port));
        assert!(matches!(next(&mut link).await, Event::Up { .. }));
        let reason = "é".repeat(100);
        link.requests.send(Request::Close { code: 1001, reason }).await.unwrap();
        assert!(matches!(next(&mut link).await, Event::Down(Down::Closed { code: 1001, .. })));
        let told = tokio::time::timeout(WAIT, server).await.unwrap().unwrap();
        assert_eq!(told, (1001, 122));
    }

    #[tokio::test]
    async fn a_close_that_nobody_answers_ends_after_a_second() {
        let (listener, port) = bound().await;
        let mut link = open(target_at(port));
        let _tcp = accept_by_hand(&listener, "").await;
        let begun = Instant::now();
        link.requests.send(Request::Close { code: 1000, reason: String::new() }).await.unwrap();
        assert!(matches!(next(&mut link).await, Event::Up { .. }));
        assert!(cut(&mut link).await.contains("did not answer"));
        assert!(begun.elapsed() >= CLOSE_WAIT && begun.elapsed() < CLOSE_WAIT * 10);
    }

    #[tokio::test]
    async fn a_server_that_never_reads_fills_the_request_queue_and_nothing_more() {
        let (listener, port) = bound().await;
        let mut link = open(target_at(port));
        let mut tcp = accept_by_hand(&listener, "").await;
        assert!(matches!(next(&mut link).await, Event::Up { .. }));
        let text = "x".repeat(64 * 1024);
        let full = async {
            // Ends when no room comes: each sent message is 64 KiB, and the kernel's buffers are
            // finite.
            let short = Duration::from_millis(300);
            let mut sent = 0u32;
            while let Ok(room) = tokio::time::timeout(short, link.requests.reserve()).await {
                room.unwrap().send(Request::Text(text.clone()));
                sent += 1;
            }
            sent
        };
        let sent = tokio::time::timeout(WAIT, full).await.expect("the queue fills");
        let taken = link.counters.sent.load(Ordering::Relaxed);
        assert!(taken < u64::from(sent) * 64 * 1024, "{sent} requests, {taken} bytes");
        // Reading goes on all the while.
        tcp.write_all(b"\x81\x02hi").await.unwrap();
        assert!(matches!(next(&mut link).await, Event::Text(text) if text == "hi"));
        drop(link);
        // The peer sees the end: what was sent, then end of file or a reset.
        let mut waste = vec![0; 64 * 1024];
        let ended = async { while tcp.read(&mut waste).await.unwrap_or(0) > 0 {} };
        tokio::time::timeout(WAIT, ended).await.expect("the socket is closed");
    }

    #[tokio::test]
    async fn an_echo_server_flooded_both_ways_never_deadlocks() {
        const MESSAGES: u32 = 3_000;
        let (listener, port) = bound().await;
        let server = tokio::spawn(echo(listener));
        let mut link = open(target_at(port));
        assert!(matches!(next(&mut link).await, Event::Up { .. }));
        let requests = link.requests.clone();
        let flood = tokio::spawn(async move {
            for number in 0..MESSAGES {
                let text = format!("{number} {}", "x".repeat(16 * 1024));
                requests.send(Request::Text(text)).await.unwrap();
            }
            requests
        });
        for number in 0..MESSAGES {
            match next(&mut link).await {
                Event::Text(text) => assert!(text.starts_with(&format!("{number} "))),
                other => panic!("message {number} was due, not {other:?}"),
            }
        }
        let requests = flood.await.unwrap();
        requests.send(Request::Close { code: 1000, reason: String::new() }).await.unwrap();
        assert!(matches!(next(&mut link).await, Event::Down(Down::Closed { code: 1000, .. })));
        tokio::time::timeout(WAIT, server).await.unwrap().unwrap();
    }

    /// Reads nothing more while its answer is not taken, as naive servers do.
    async fn echo(listener: TcpListener) {
        let mut socket = accept_async(listener.accept().await.unwrap().0).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() {
                socket.send(message).await.unwrap();
            }
        }
    }
}
