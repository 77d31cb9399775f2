//! The Autobahn test suite's fuzzing server against the gateway's WebSocket: framing, fragments,
//! UTF-8, closing and limits, case by case. `tests/run autobahn` installs the suite.

use std::{
    collections::{BTreeMap, VecDeque},
    net::TcpStream,
    process::Command,
};

use fieldgate::{
    config::HubUrl,
    link::{self, Event, Request, Target},
};
use serde_json::{Value, json};

use crate::field::{Field, SOON, eventually, free_port, process::Process};

/// What the suite calls us.
const AGENT: &str = "fieldgate";

/// The cases that can't apply, and why.
const NOT_RUN: [(&str, &str); 7] = [
    ("1.2.*", "binary messages are counted and dropped, so that none can be sent back"),
    ("9.2.*", "as 1.2"),
    ("9.4.*", "as 1.2"),
    ("9.6.*", "as 1.2"),
    ("9.8.*", "as 1.2"),
    ("12.*", "permessage-deflate is never offered (PROTOCOL.md, section 7 compresses batches)"),
    ("13.*", "as 12"),
];

/// The largest message of the suite is 16 MiB.
const MAX_MESSAGE_BYTES: usize = 17 << 20;

#[test]
fn the_gateways_websocket_passes_the_autobahn_test_suite() {
    let field = Field::new();
    let port = free_port();
    let _server = fuzzing_server(&field, port);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let count = converse(port, "/getCaseCount").await.pop_front();
        let count: u32 = count.expect("a count").parse().expect("a number");
        assert!(count > 100, "only {count} cases");
        for case in 1..=count {
            converse(port, &format!("/runCase?case={case}&agent={AGENT}")).await;
        }
        converse(port, &format!("/updateReports?agent={AGENT}")).await;
    });
    judge(&field);
}

fn fuzzing_server(field: &Field, port: u16) -> Process {
    let exclude: Vec<&str> = NOT_RUN.iter().map(|(cases, _)| *cases).collect();
    let spec = json!({
        "url": format!("ws://127.0.0.1:{port}"),
        "outdir": field.path("reports"),
        "cases": ["*"],
        "exclude-cases": exclude,
        "exclude-agent-cases": {},
    });
    let spec = field.write("autobahn.json", spec.to_string());
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = root.join("target/interop/autobahn/bin/wstest");
    assert!(program.exists(), "{}: run `tests/run autobahn`", program.display());
    let mut command = Command::new(program);
    command.args(["-m", "fuzzingserver", "-u", "0", "-s"]).arg(spec);
    let process = Process::start("wstest", command, &field.path("autobahn.log"));
    eventually("the fuzzing server listens", SOON, || TcpStream::connect(("127.0.0.1", port)).ok());
    process
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

/// Reads the suite's own report.
fn judge(field: &Field) {
    let report = std::fs::read_to_string(field.path("reports/index.json")).expect("a report");
    let report: Value = serde_json::from_str(&report).expect("a report is JSON");
    let cases = report[AGENT].as_object().expect("a report on us");
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
    println!("{} cases of the Autobahn test suite: {counts:?}", cases.len());
    for (cases, why) in NOT_RUN {
        println!("not run: {cases}: {why}");
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
