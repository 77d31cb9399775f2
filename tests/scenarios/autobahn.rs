//! The Autobahn test suite against both ends of the WebSocket, case by case: its fuzzing server
//! against the gateway's, its fuzzing client against the hub's. Framing, fragments, UTF-8, closing
//! and limits. `tests/run autobahn` installs the suite.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    net::TcpStream,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use axum::{
    body::Body,
    http::{Request as HttpRequest, Response},
};
use fieldgate::{
    config::HubUrl,
    hub::upgrade,
    link::{self, Event, Request, Target},
    protocol::{SUBPROTOCOL_JSON, close},
};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::{
    Error, Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use crate::field::{Field, SOON, eventually, free_port, process::Process};

/// What the suite calls the two.
const GATEWAY: &str = "fieldgate";
const HUB: &str = "fieldgate-hub";

/// The cases that can't apply to one of them, and why.
type NotRun = &'static [(&'static str, &'static str)];

const NOT_RUN_AT_THE_GATEWAY: NotRun = &[
    ("1.2.*", "binary messages are counted and dropped, so that none can be sent back"),
    ("9.2.*", "as 1.2"),
    ("9.4.*", "as 1.2"),
    ("9.6.*", "as 1.2"),
    ("9.8.*", "as 1.2"),
    ("12.*", "permessage-deflate is never offered (PROTOCOL.md, section 7 compresses batches)"),
    ("13.*", "as 12"),
];

const NOT_RUN_AT_THE_HUB: NotRun = &[
    ("12.*", "permessage-deflate is never accepted (PROTOCOL.md, section 7 compresses batches)"),
    ("13.*", "as 12"),
];

/// The largest message of the suite is 16 MiB.
const MAX_MESSAGE_BYTES: usize = 17 << 20;

/// The fuzzing client waits in some cases for what must not come.
const WHOLE_RUN: Duration = Duration::from_secs(160);

#[test]
fn the_gateways_websocket_passes_the_autobahn_test_suite() {
    let field = Field::new();
    let port = free_port();
    let server = json!({ "url": format!("ws://127.0.0.1:{port}") });
    let _suite = wstest(&field, "fuzzingserver", server, NOT_RUN_AT_THE_GATEWAY);
    eventually("the fuzzing server listens", SOON, || TcpStream::connect(("127.0.0.1", port)).ok());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let count = converse(port, "/getCaseCount").await.pop_front();
        let count: u32 = count.expect("a count").parse().expect("a number");
        assert!(count > 100, "only {count} cases");
        for case in 1..=count {
            converse(port, &format!("/runCase?case={case}&agent={GATEWAY}")).await;
        }
        converse(port, &format!("/updateReports?agent={GATEWAY}")).await;
    });
    judge(&field, GATEWAY, NOT_RUN_AT_THE_GATEWAY);
}

#[test]
fn the_hubs_websocket_passes_the_autobahn_test_suite() {
    let field = Field::new();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    runtime.spawn(serve(listener));
    let url = format!("ws://127.0.0.1:{port}/");
    let server = json!({ "agent": HUB, "url": url, "protocols": [SUBPROTOCOL_JSON] });
    let client = json!({ "servers": [server] });
    let mut suite = wstest(&field, "fuzzingclient", client, NOT_RUN_AT_THE_HUB);
    let ended = eventually("the fuzzing client has ended", WHOLE_RUN, || suite.ended());
    assert!(ended.success(), "{ended}: {}", suite.log());
    judge(&field, HUB, NOT_RUN_AT_THE_HUB);
}

/// Starts the suite, with these members in its specification.
fn wstest(field: &Field, mode: &str, mut spec: Value, not_run: NotRun) -> Process {
    let exclude: Vec<&str> = not_run.iter().map(|(cases, _)| *cases).collect();
    spec["outdir"] = json!(field.path("reports"));
    spec["cases"] = json!(["*"]);
    spec["exclude-cases"] = json!(exclude);
    spec["exclude-agent-cases"] = json!({});
    let spec = field.write("autobahn.json", spec.to_string());
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let program = root.join("target/interop/autobahn/bin/wstest");
    assert!(program.exists(), "{}: run `tests/run autobahn`", program.display());
    let mut command = Command::new(program);
    command.args(["-m", mode, "-u", "0", "-s"]).arg(spec);
    Process::start("wstest", command, &field.path("autobahn.log"))
}

/// Sends back what comes until the end; what came.
async fn converse(port: u16, path: &str) -> VecDeque<String> {
    let url = HubUrl { tls: false, host: "127.0.0.1".into(), port, path: path.into() };
    let mut link = link::open(Target {
        url,
        subprotocols: Vec::new(),
        bearer: None,
        tls: None,
        ca_file: None,
        proxy: None,
        bind_interface: None,
        connect_timeout: SOON,
        max_message_bytes: MAX_MESSAGE_BYTES,
    });
    let echoes = path.starts_with("/runCase");
    let (mut heard, mut waiting) = (VecDeque::new(), VecDeque::new());
    loop {
        let requests = link.requests.clone();
        let event = tokio::select! {
            room = requests.reserve(), if !waiting.is_empty() => {
                // Its last event says why there is no queue any more.
                match (room, waiting.pop_front()) {
                    (Ok(room), Some(text)) => room.send(Request::Text(text)),
                    _ => waiting.clear(),
                }
                continue;
            }
            event = link.events.recv() => event,
        };
        match event {
            Some(Event::Text(text)) if echoes => waiting.push_back(text),
            Some(Event::Text(text)) => heard.push_back(text),
            Some(Event::Down(_)) | None => return heard,
            Some(_) => {}
        }
    }
}

/// A server whose upgrade and WebSocket are the hub's, and that sends back what comes.
async fn serve(listener: TcpListener) {
    loop {
        let (tcp, _) = listener.accept().await.expect("a connection");
        let service = service_fn(|request: HttpRequest<Incoming>| {
            std::future::ready(Ok::<_, Infallible>(answer(request.map(Body::new))))
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(tcp), service);
        // An error is a client that went during its handshake, which its report shows.
        tokio::spawn(connection.with_upgrades());
    }
}

fn answer(request: HttpRequest<Body>) -> Response<Body> {
    let offered = upgrade::offered(&request).expect("a WebSocket handshake");
    assert!(offered.iter().any(|name| name == SUBPROTOCOL_JSON), "{offered:?}");
    upgrade::accept(request, SUBPROTOCOL_JSON, MAX_MESSAGE_BYTES, echo)
}

async fn echo(mut socket: upgrade::Socket) {
    while let Some(message) = socket.next().await {
        let sent = match message {
            Ok(message @ (Message::Text(_) | Message::Binary(_))) => socket.send(message).await,
            Ok(_) => socket.flush().await,
            Err(error) => {
                let code = match error {
                    Error::Capacity(_) => Some(close::TOO_BIG),
                    error => upgrade::fault_code(&error),
                };
                let Some(code) = code else { return };
                let frame = CloseFrame { code: CloseCode::from(code), reason: "".into() };
                socket.send(Message::Close(Some(frame))).await
            }
        };
        // Whoever is gone needs no answer; the suite says whether it should have got one.
        if sent.is_err() {
            return;
        }
    }
}

/// Reads the suite's own report.
fn judge(field: &Field, agent: &str, not_run: NotRun) {
    let report = std::fs::read_to_string(field.path("reports/index.json")).expect("a report");
    let report: Value = serde_json::from_str(&report).expect("a report is JSON");
    let cases = report[agent].as_object().expect("a report on us");
    assert!(cases.len() > 100, "only {} cases", cases.len());
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut failed = Vec::new();
    for (case, result) in cases {
        let word = |name: &str| result[name].as_str().unwrap_or("missing").to_owned();
        let (behavior, close) = (word("behavior"), word("behaviorClose"));
        let fine = |word: &str| matches!(word, "OK" | "NON-STRICT" | "INFORMATIONAL");
        if !fine(&behavior) || !fine(&close) {
            failed.push(format!("{case}: {behavior}, close {close}"));
        }
        if behavior != "OK" {
            println!("{case}: {behavior}");
        }
        *counts.entry(behavior).or_default() += 1;
    }
    println!("{agent}: {} cases of the Autobahn test suite: {counts:?}", cases.len());
    for (cases, why) in not_run {
        println!("{agent}: not run: {cases}: {why}");
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
