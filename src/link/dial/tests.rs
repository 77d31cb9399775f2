//! Each step of a dial, as it fails.

#[cfg(feature = "hub")]
mod tls;

use tokio::io::AsyncWriteExt;

use super::*;
use crate::{
    config::ProxyKind,
    link::{
        Event, open,
        tests::{WAIT, answer_to, bound, next, read_head, target_at},
    },
};

async fn fails(target: Target) -> (&'static str, String) {
    match next(&mut open(target)).await {
        Event::Down(Down::Dial { step, error }) => (step, error),
        other => panic!("a failed dial was due, not {other:?}"),
    }
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_named() {
    let mut target = target_at(1);
    target.url.host = "no-such-host.invalid".to_owned();
    let (step, error) = fails(target).await;
    assert_eq!(step, "DNS");
    assert!(error.contains("no-such-host.invalid") && error.contains("resolv.conf"), "{error}");
}

#[tokio::test]
async fn a_closed_port_is_named() {
    let (listener, port) = bound().await;
    drop(listener);
    let (step, error) = fails(target_at(port)).await;
    assert_eq!(step, "TCP");
    assert!(error.contains(&format!("127.0.0.1:{port}: ")), "{error}");
    assert!(error.contains("refused"), "{error}");
}

#[tokio::test]
async fn a_server_that_takes_the_connection_and_says_nothing_meets_the_deadline() {
    let (listener, port) = bound().await;
    let short = Duration::from_millis(100);
    let silent = Target { connect_timeout: short, ..target_at(port) };
    let (step, error) = fails(silent).await;
    assert_eq!(step, "upgrade");
    assert!(error.contains("within 100ms"), "{error}");
    drop(listener);
}

#[tokio::test]
async fn a_server_that_drips_its_answer_meets_the_deadline() {
    let (listener, port) = bound().await;
    let server = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        read_head(&mut tcp).await;
        let mut pace = tokio::time::interval(Duration::from_millis(5));
        loop {
            pace.tick().await;
            if tcp.write_all(b"H").await.is_err() {
                return;
            }
        }
    });
    let limit = Duration::from_millis(200);
    let (step, _) = fails(Target { connect_timeout: limit, ..target_at(port) }).await;
    assert_eq!(step, "upgrade");
    tokio::time::timeout(WAIT, server).await.unwrap().unwrap();
}

/// A proxy for one client: it hears `length` bytes, or a head where that is 0, before each of
/// `answers`, and then is the server itself.
async fn behind_a_proxy(
    kind: ProxyKind,
    answers: Vec<(usize, &'static [u8])>,
) -> (Target, tokio::task::JoinHandle<Vec<u8>>) {
    let (listener, port) = bound().await;
    let server = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        for (length, answer) in answers {
            if length == 0 {
                heard.extend(read_head(&mut tcp).await.into_bytes());
            } else {
                let mut bytes = vec![0; length];
                tcp.read_exact(&mut bytes).await.unwrap();
                heard.extend(bytes);
            }
            tcp.write_all(answer).await.unwrap();
        }
        if let Ok(Ok(_)) = tokio::time::timeout(WAIT, tcp.readable()).await {
            let request = read_head(&mut tcp).await;
            tcp.write_all(answer_to(&request, "").as_bytes()).await.unwrap();
        }
        heard
    });
    let via = Via { kind, host: "127.0.0.1".into(), port, credentials: None };
    let mut target = Target { proxy: Some(via), ..target_at(4711) };
    // Nobody but a proxy could find it.
    target.url.host = "hub.invalid".into();
    (target, server)
}

#[tokio::test]
async fn a_hub_is_reached_through_either_kind_of_proxy() {
    let connect: Vec<(usize, &[u8])> = vec![(0, b"HTTP/1.1 200 OK\r\n\r\n")];
    let granted: &[u8] = &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let socks: Vec<(usize, &[u8])> = vec![(3, &[5, 0]), (18, granted)];
    for (kind, answers) in [(ProxyKind::Http, connect), (ProxyKind::Socks5, socks)] {
        let (target, server) = behind_a_proxy(kind, answers).await;
        let mut link = open(target);
        assert!(matches!(next(&mut link).await, Event::Up { .. }), "{kind:?}");
        let heard = server.await.unwrap();
        assert!(heard.windows(11).any(|name| name == b"hub.invalid"), "{kind:?}: {heard:?}");
    }
}

#[tokio::test]
async fn a_proxy_that_refuses_or_is_silent_is_named_as_the_step() {
    let answers: Vec<(usize, &[u8])> = vec![(0, b"HTTP/1.1 403 Forbidden\r\n\r\n")];
    let (target, _server) = behind_a_proxy(ProxyKind::Http, answers).await;
    let (step, error) = fails(target).await;
    assert_eq!(step, "proxy");
    assert!(error.contains("the proxy 127.0.0.1") && error.contains("hub.invalid"), "{error}");

    let (mut target, _server) = behind_a_proxy(ProxyKind::Socks5, vec![(4, &[])]).await;
    target.connect_timeout = Duration::from_millis(200);
    let (step, error) = fails(target).await;
    assert_eq!(step, "proxy");
    assert!(error.contains("within 200ms"), "{error}");
}
