//! Servers that keep to RFC 6455 and servers that do not.

use std::sync::atomic::Ordering;

use tokio::net::TcpListener;
use tokio_tungstenite::accept_async;

use super::*;
use crate::link::{
    EVENT_QUEUE, Link, open,
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
        (b"\x81\x02\xc3\x28".to_vec(), close::INVALID_DATA, "not UTF-8"),
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
    assert_eq!(link.counters.made_room.load(Ordering::Relaxed), 0, "the socket was never full");
}

#[tokio::test]
async fn a_ping_between_the_parts_of_a_message_is_answered_before_the_message() {
    let (listener, port) = bound().await;
    let mut link = open(target_at(port));
    let mut tcp = accept_by_hand(&listener, "").await;
    assert!(matches!(next(&mut link).await, Event::Up { .. }));
    tcp.write_all(b"\x01\x01h\x89\x01p").await.unwrap();
    assert!(matches!(next(&mut link).await, Event::Heard));
    // The client must not wait for the rest with its answer.
    let mut pong = [0; 7];
    tokio::time::timeout(WAIT, tcp.read_exact(&mut pong)).await.unwrap().unwrap();
    assert_eq!((pong[..2].to_vec(), pong[6] ^ pong[2]), (vec![0x8a, 0x81], b'p'));
    tcp.write_all(b"\x00\x00\x89\x00\x80\x01i").await.unwrap();
    assert!(matches!(next(&mut link).await, Event::Heard));
    assert!(matches!(next(&mut link).await, Event::Text(text) if text == "hi"));
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
    let made_room = || link.counters.made_room.load(Ordering::Relaxed);
    let before = made_room();
    let mut read = vec![0; 4 << 20];
    let room = async {
        while made_room() == before {
            assert_ne!(tcp.read(&mut read).await.unwrap(), 0);
        }
    };
    tokio::time::timeout(WAIT, room).await.expect("a peer that reads makes room");
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

#[tokio::test]
async fn a_server_that_floods_is_read_no_faster_than_it_is_heard() {
    let (listener, port) = bound().await;
    let mut link = open(target_at(port));
    let mut tcp = accept_by_hand(&listener, "").await;
    assert!(matches!(next(&mut link).await, Event::Up { .. }));
    let frame = [&b"\x81\x7e\x40\x00"[..], &[b'x'; 0x4000]].concat();
    let flood = async {
        // Ends when nothing more is taken: the kernel's buffers are finite, and nobody hears.
        let short = Duration::from_millis(300);
        let mut sent = 0;
        while let Ok(written) = tokio::time::timeout(short, tcp.write(&frame)).await {
            sent += written.unwrap();
        }
        sent
    };
    let sent = tokio::time::timeout(WAIT, flood).await.expect("the link stops reading");
    let taken = link.counters.received.load(Ordering::Relaxed) as usize;
    let most = (EVENT_QUEUE + 1) * frame.len() + 2 * READ_BUFFER_BYTES;
    assert!(taken <= most && taken < sent, "{taken} of {sent} bytes were taken, at most {most}");
    assert!(matches!(next(&mut link).await, Event::Text(_)));
}

#[tokio::test]
async fn pings_that_nobody_lets_answer_are_not_kept() {
    let (listener, port) = bound().await;
    let mut link = open(target_at(port));
    let mut tcp = accept_by_hand(&listener, "").await;
    assert!(matches!(next(&mut link).await, Event::Up { .. }));
    let pings = [&b"\x89\x7d"[..], &[b'p'; 125]].concat().repeat(100);
    // None of the Pongs is read meanwhile.
    let flood = tokio::spawn(async move {
        for _ in 0..1_000 {
            tcp.write_all(&pings).await.unwrap();
        }
        tcp
    });
    for _ in 0..100_000 {
        assert!(matches!(next(&mut link).await, Event::Heard));
    }
    let ended = tokio::time::timeout(WAIT, flood).await;
    let mut tcp = ended.expect("reading never stops").unwrap();
    drop(link);
    let (mut answered, mut waste) = (0, vec![0; 64 * 1024]);
    while let Ok(Ok(length @ 1..)) = tokio::time::timeout(WAIT, tcp.read(&mut waste)).await {
        answered += length / 131;
    }
    assert!(answered < 50_000, "{answered} Pongs of 100,000 were kept for who reads none");
}

#[tokio::test]
async fn half_a_frame_is_a_cut_when_the_server_goes() {
    let (listener, port) = bound().await;
    let mut link = open(target_at(port));
    let mut tcp = accept_by_hand(&listener, "").await;
    assert!(matches!(next(&mut link).await, Event::Up { .. }));
    tcp.write_all(b"\x81\x7e\x10\x00half").await.unwrap();
    drop(tcp);
    let why = cut(&mut link).await;
    assert!(why.contains("127.0.0.1"), "{why}");
}
