//! The hub as gateways and applications meet it: over TLS, on a real socket and a real database.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest as _, protocol::CloseFrame},
};

use super::{
    config::Config,
    credential::{new_token, token_digest},
    demo_ca::{self, DemoCa},
    engine::{Admission, NewToken, Registry},
    server::Server,
};
use crate::protocol::{SUBPROTOCOL_BEARER_PREFIX, SUBPROTOCOL_JSON};

const WAIT: Duration = Duration::from_secs(10);
const E1: &str = "00000000000000e1";

type Socket = WebSocketStream<TlsStream<TcpStream>>;

struct Bench {
    dir: tempfile::TempDir,
    address: SocketAddr,
    gateway_token: String,
    api_token: String,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Bench {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hosts = ["localhost".to_owned()];
        let clients = ["gw-cert".to_owned(), "gw-unknown".to_owned()];
        demo_ca::make(&DemoCa { dir: dir.path(), hosts: &hosts, clients: &clients }).unwrap();
        let mut registry = Registry::open(&dir.path().join("hub.db")).unwrap();
        let (gateway_token, api_token) = (new_token("fgg_").unwrap(), new_token("fga_").unwrap());
        let sha256 = token_digest(&gateway_token).unwrap();
        registry.add_gateway("gw", Admission::Token(&sha256), 1).unwrap();
        registry.add_gateway("gw-cert", Admission::Named, 1).unwrap();
        let scopes = "gateways:read records:read commands:read commands:write live";
        let sha256 = token_digest(&api_token).unwrap();
        let new = NewToken { name: "test".into(), sha256, scopes: scopes.into() };
        assert!(registry.add_token(&new, 1).unwrap());
        let (address, stop, serving) = serve(dir.path()).await;
        Self { dir, address, gateway_token, api_token, stop, serving }
    }

    async fn restart(self) -> Self {
        let Self { dir, gateway_token, api_token, stop, serving, .. } = self;
        stop.send(()).unwrap();
        timeout(WAIT, serving).await.unwrap().unwrap();
        let (address, stop, serving) = serve(dir.path()).await;
        Self { dir, address, gateway_token, api_token, stop, serving }
    }

    async fn tls(&self, certificate: Option<&str>) -> TlsStream<TcpStream> {
        let file = |name: String| std::fs::read(self.dir.path().join(name)).unwrap();
        let mut anchors = RootCertStore::empty();
        anchors.add(CertificateDer::from_pem_slice(&file("ca.pem".into())).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(anchors);
        let config = match certificate {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let chain = CertificateDer::from_pem_slice(&file(format!("{name}.pem"))).unwrap();
                let key = PrivateKeyDer::from_pem_slice(&file(format!("{name}.key"))).unwrap();
                builder.with_client_auth_cert(vec![chain], key).unwrap()
            }
        };
        let socket = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap()
    }

    async fn upgrade(
        &self,
        path: &str,
        certificate: Option<&str>,
        headers: &[(&'static str, &str)],
    ) -> Result<Socket, u16> {
        let url = format!("wss://localhost:{}{path}", self.address.port());
        let mut request = url.into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        let upgraded = timeout(WAIT, client_async(request, self.tls(certificate).await)).await;
        match upgraded.unwrap() {
            Ok((socket, _)) => Ok(socket),
            Err(Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    /// A gateway's connection, greeted and welcomed; the position of its one epoch.
    async fn gateway(&self, next: u64) -> (Socket, Value) {
        let bearer = format!("Bearer {}", self.gateway_token);
        let headers = [("authorization", &*bearer), ("sec-websocket-protocol", SUBPROTOCOL_JSON)];
        let mut socket = self.upgrade("/v1/gateway", None, &headers).await.unwrap();
        say(&mut socket, &hello("gw", next)).await;
        let welcome = hear(&mut socket).await;
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        (socket, welcome["streams"][0]["acked"].clone())
    }

    async fn live(&self) -> Socket {
        use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
        let token = URL_SAFE_NO_PAD.encode(&self.api_token);
        let offer = format!("fieldgate.live.v1, {SUBPROTOCOL_BEARER_PREFIX}{token}");
        self.upgrade("/v1/live", None, &[("sec-websocket-protocol", &offer)]).await.unwrap()
    }

    async fn http(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.http_as(Some(&self.api_token.clone()), method, path, body).await
    }

    async fn http_as(
        &self,
        token: Option<&str>,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let token =
            token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{token}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut socket = self.tls(None).await;
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // hyper closes the TCP connection; a missing close_notify is of no matter here.
        let _ = timeout(WAIT, socket.read_to_string(&mut answer)).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }
}

async fn serve(dir: &Path) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
    let text = "bind = \"127.0.0.1:0\"\nstate_dir = \".\"\n[tls]\ncert_file = \"hub.pem\"\n\
                key_file = \"hub.key\"\nclient_ca_file = \"ca.pem\"\n";
    let config = Config::parse(&dir.join("hub.toml"), text).unwrap();
    let server = Server::start(config).await.unwrap();
    let address = server.address().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(server.serve(async move {
        let _ = stopped.await;
    }));
    (address, stop, serving)
}

fn hello(gateway: &str, next: u64) -> Value {
    let epoch = json!({"stream": "telemetry", "epoch": E1, "first": 1, "next": next});
    json!({"type": "hello", "gateway": gateway, "agent": "test/1", "streams": [epoch]})
}

fn data(seq: u64, payloads: &[Value]) -> Value {
    let records: Vec<Value> = payloads
        .iter()
        .map(|payload| json!({"ts": 5, "device": "plc-01", "topic": "t", "payload": payload}))
        .collect();
    json!({"type": "data", "stream": "telemetry", "epoch": E1, "seq": seq, "records": records})
}

fn status(seq: u64, id: &Value, n: u32, state: &str) -> Value {
    let mut record = json!({"kind": "command_status", "id": id, "n": n, "state": state, "ts": 6});
    if state == "succeeded" {
        record["result"] = json!({"valve": "open"});
    }
    json!({"type": "data", "stream": "events", "epoch": "00000000000000ee", "seq": seq,
           "records": [record]})
}

async fn say(socket: &mut Socket, message: &Value) {
    socket.send(Message::Text(message.to_string().into())).await.unwrap();
}

async fn next(socket: &mut Socket) -> Message {
    timeout(WAIT, socket.next()).await.expect("a message in time").expect("a message").unwrap()
}

async fn hear(socket: &mut Socket) -> Value {
    loop {
        match next(socket).await {
            Message::Text(text) => return serde_json::from_str(&text).unwrap(),
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn hear_kind(socket: &mut Socket, kind: &str) -> Value {
    loop {
        let message = hear(socket).await;
        if message["type"] == kind {
            return message;
        }
    }
}

async fn close_code(socket: &mut Socket) -> u16 {
    loop {
        if let Message::Close(Some(CloseFrame { code, .. })) = next(socket).await {
            return code.into();
        }
    }
}

#[tokio::test]
async fn records_are_acknowledged_when_stored_and_survive_a_restart() {
    let bench = Bench::start().await;
    let (mut gateway, acked) = bench.gateway(3).await;
    assert_eq!(acked, 0);
    say(&mut gateway, &data(1, &[json!({"t": 21.5}), json!(2)])).await;
    let ack = hear_kind(&mut gateway, "ack").await;
    assert_eq!((&ack["acked"], &ack["epoch"]), (&json!(2), &json!(E1)));

    let (status, page) = bench.http("GET", "/v1/gateways/gw/records?after=1&limit=5", None).await;
    assert_eq!((status, page["records"].as_array().unwrap().len()), (200, 1));
    let record = &page["records"][0];
    assert_eq!(
        (&record["id"], &record["seq"], &record["payload"]),
        (&json!(2), &json!(2), &json!(2))
    );

    let stopping = tokio::spawn(async move {
        let drain = hear_kind(&mut gateway, "drain").await;
        assert!(drain["retry_after_ms"].is_u64());
        assert_eq!(close_code(&mut gateway).await, 1012);
    });
    let bench = bench.restart().await;
    timeout(WAIT, stopping).await.unwrap().unwrap();
    let (mut gateway, acked) = bench.gateway(4).await;
    assert_eq!(acked, 2);
    say(&mut gateway, &data(1, &[json!(1), json!(2), json!(3)])).await;
    assert_eq!(hear_kind(&mut gateway, "ack").await["acked"], 3);
    let (_, view) = bench.http("GET", "/v1/gateways/gw", None).await;
    let expected = json!({"received": 3, "duplicate": 2, "lost": 0, "refused": 0, "rejected": 0});
    assert_eq!(view["counters"], expected);
    assert_eq!((&view["connected"], &view["agent"]), (&json!(true), &json!("test/1")));
}

#[tokio::test]
async fn nobody_comes_in_without_a_credential() {
    let bench = Bench::start().await;
    let right = format!("Bearer {}", bench.gateway_token);
    let wrong = format!("Bearer {}x", bench.gateway_token);
    let api = format!("Bearer {}", bench.api_token);
    let ours = ("sec-websocket-protocol", SUBPROTOCOL_JSON);
    let refused = async |headers: &[(&'static str, &str)], certificate| {
        bench.upgrade("/v1/gateway", certificate, headers).await.err()
    };
    assert_eq!(refused(&[ours], None).await, Some(401));
    assert_eq!(refused(&[ours, ("authorization", &wrong)], None).await, Some(401));
    assert_eq!(refused(&[ours, ("authorization", &api)], None).await, Some(401));
    assert_eq!(refused(&[ours], Some("gw-unknown")).await, Some(401));
    assert_eq!(refused(&[("authorization", &right)], None).await, Some(426));
    assert_eq!(refused(&[ours, ("authorization", &right)], None).await, None);

    let mut gateway = bench.upgrade("/v1/gateway", Some("gw-cert"), &[ours]).await.unwrap();
    say(&mut gateway, &hello("gw", 1)).await;
    assert_eq!(close_code(&mut gateway).await, 4501, "the certificate is another gateway's");
    let mut gateway = bench.upgrade("/v1/gateway", Some("gw-cert"), &[ours]).await.unwrap();
    say(&mut gateway, &hello("gw-cert", 1)).await;
    assert_eq!(hear(&mut gateway).await["type"], "welcome");

    for token in [None, Some("nonsense-nonsense"), Some(&*bench.gateway_token)] {
        let (status, answer) = bench.http_as(token, "GET", "/v1/gateways", None).await;
        assert_eq!((status, &answer["error"]["code"]), (401, &json!("unauthorized")));
    }
}

#[tokio::test]
async fn the_newest_session_of_a_gateway_wins_and_a_revoked_one_ends() {
    let bench = Bench::start().await;
    let (mut first, _) = bench.gateway(1).await;
    let (mut second, _) = bench.gateway(1).await;
    assert_eq!(close_code(&mut first).await, 4009);
    say(&mut second, &data(1, &[json!(1)])).await;
    assert_eq!(hear_kind(&mut second, "ack").await["acked"], 1);
    let mut registry = Registry::open(&bench.dir.path().join("hub.db")).unwrap();
    assert!(registry.revoke_gateway("gw", 1).unwrap());
    assert_eq!(close_code(&mut second).await, 1008);
}

#[tokio::test]
async fn a_command_goes_out_and_its_states_come_back() {
    let bench = Bench::start().await;
    let path = "/v1/gateways/gw/commands";
    let body = json!({"device": "plc-01", "name": "set_valve", "params": {"open": true}});
    let (status_code, answer) = bench.http("POST", path, Some(body)).await;
    assert_eq!(status_code, 202, "{answer}");
    let id = answer["id"].clone();
    let (mut gateway, _) = bench.gateway(1).await;
    let command = hear_kind(&mut gateway, "command").await;
    assert_eq!((&command["id"], &command["params"]), (&id, &json!({"open": true})));
    assert!(command["ttl_ms"].as_u64().unwrap() <= 30_000 && command["state"].is_null());
    say(&mut gateway, &status(1, &id, 1, "accepted")).await;
    hear_kind(&mut gateway, "ack").await;

    let (mut gateway, _) = bench.gateway(1).await;
    let again = hear_kind(&mut gateway, "command").await;
    assert_eq!((&again["id"], &again["state"]), (&id, &json!({"n": 1, "state": "accepted"})));
    let one = format!("{path}/{}", id.as_str().unwrap());
    assert_eq!(bench.http("POST", &format!("{one}/cancel"), None).await.0, 202);
    assert_eq!(hear_kind(&mut gateway, "cancel").await["id"], id);
    // The epoch of events was in no hello, and is begun anew.
    say(&mut gateway, &status(1, &id, 2, "succeeded")).await;
    hear_kind(&mut gateway, "ack").await;
    let (_, view) = bench.http("GET", &one, None).await;
    assert_eq!((&view["state"], &view["final"]), (&json!("succeeded"), &json!(true)));
    assert_eq!(view["states"][1]["result"], json!({"valve": "open"}));
    assert_eq!(bench.http("POST", &format!("{one}/cancel"), None).await.0, 409);
}

#[tokio::test]
async fn whoever_watches_sees_records_and_commands_live() {
    let bench = Bench::start().await;
    let mut watcher = bench.live().await;
    say(&mut watcher, &json!({"type": "subscribe", "id": "a", "gateway": "gw"})).await;
    assert_eq!(hear(&mut watcher).await, json!({"type": "subscribed", "id": "a"}));
    say(&mut watcher, &json!({"type": "ping"})).await;
    assert_eq!(hear(&mut watcher).await, json!({"type": "pong"}));

    let (mut gateway, _) = bench.gateway(1).await;
    let came = hear_kind(&mut watcher, "gateway").await;
    assert_eq!(came, json!({"type": "gateway", "id": "gw", "connected": true}));
    say(&mut gateway, &data(1, &[json!({"t": 1})])).await;
    let record = hear_kind(&mut watcher, "record").await;
    assert_eq!((&record["id"], &record["payload"]), (&json!(1), &json!({"t": 1})));
    assert_eq!((&record["gateway"], &record["device"]), (&json!("gw"), &json!("plc-01")));

    let command = json!({"type": "command", "ref": 7, "gateway": "gw", "device": "plc-01",
                         "name": "identify"});
    say(&mut watcher, &command).await;
    let accepted = hear_kind(&mut watcher, "accepted").await;
    assert_eq!(accepted["ref"], 7);
    assert_eq!(hear_kind(&mut gateway, "command").await["id"], accepted["id"]);
    say(&mut gateway, &status(1, &accepted["id"], 1, "succeeded")).await;
    let change = hear_kind(&mut watcher, "command_status").await;
    assert_eq!((&change["id"], &change["state"]), (&accepted["id"], &json!("succeeded")));

    for (bad, code) in [
        (json!({"type": "command", "gateway": "none", "device": "d", "name": "n"}), "not_found"),
        (json!({"type": "command", "gateway": "gw", "device": "d"}), "bad_request"),
        (json!({"type": "unsubscribe", "id": "b"}), "not_found"),
        (json!({"type": "news"}), "bad_message"),
    ] {
        say(&mut watcher, &bad).await;
        assert_eq!(hear_kind(&mut watcher, "error").await["code"], code, "{bad}");
    }
}

#[tokio::test]
async fn the_api_says_what_is_wrong() {
    let bench = Bench::start().await;
    let commands = "/v1/gateways/gw/commands";
    let valid = json!({"device": "d", "name": "n"});
    let with = |key: &str, value: Value| {
        let mut body = valid.clone();
        body[key] = value;
        Some(body)
    };
    for (method, path, body, status, word) in [
        ("GET", "/nowhere", None, 404, "path"),
        ("GET", "/v1/gateways/none", None, 404, "gateway"),
        ("GET", "/v1/gateways/none/records", None, 404, "gateway"),
        ("GET", "/v1/gateways/none/gaps", None, 404, "gateway"),
        ("GET", "/v1/gateways/gw/records?after=x", None, 400, "after"),
        ("GET", "/v1/gateways/gw/records?aftr=1", None, 400, "aftr"),
        ("DELETE", "/v1/gateways/gw", None, 405, "method"),
        ("POST", "/v1/gateways/none/commands", with("name", json!("n")), 404, "gateway"),
        ("POST", commands, Some(json!({"device": "d"})), 400, "name"),
        ("POST", commands, with("name", json!("a/b")), 400, "name"),
        ("POST", commands, with("device", json!("#")), 400, "device"),
        ("POST", commands, with("ttl_ms", json!(0)), 400, "ttl_ms"),
        ("POST", commands, with("ttl", json!(5)), 400, "ttl"),
        ("GET", "/v1/gateways/gw/commands/none", None, 404, "command"),
        ("POST", "/v1/gateways/gw/commands/none/cancel", None, 404, "command"),
        ("GET", "/v1/live", None, 426, "subprotocol"),
        ("GET", "/v1/gateway", None, 426, "fieldgate.v1.json"),
    ] {
        let (code, answer) = bench.http(method, path, body).await;
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(code == status && message.contains(word), "{method} {path}: {code} {answer}");
    }
    assert_eq!(bench.http("GET", "/healthz", None).await.0, 200);
}

/// A write that a gateway's line did not take held up all that the hub had to hear from it: its
/// records, its Pongs. After 20 s it was cut, however much had left by then.
#[tokio::test]
async fn a_gateway_is_heard_while_it_takes_nothing_and_its_acks_pass_its_commands() {
    const COMMANDS: usize = 32;
    let bench = Bench::start().await;
    let (mut gateway, _) = bench.gateway(1).await;
    let params = "x".repeat(250_000);
    for _ in 0..COMMANDS {
        let command = json!({"device": "d", "name": "n", "params": params});
        assert_eq!(bench.http("POST", "/v1/gateways/gw/commands", Some(command)).await.0, 202);
    }
    // 8 MB are more than the kernel takes for a peer that does not read.
    say(&mut gateway, &data(1, &[json!(1)])).await;
    let records = async {
        while bench.http("GET", "/v1/gateways/gw/records", None).await.1["records"][0].is_null() {
            tokio::task::yield_now().await;
        }
    };
    timeout(WAIT, records).await.expect("the record is stored meanwhile");
    let mut before_the_ack = 0;
    while hear(&mut gateway).await["type"] != "ack" {
        before_the_ack += 1;
    }
    assert!(before_the_ack < COMMANDS, "the ack came last");
    for _ in before_the_ack..COMMANDS {
        assert_eq!(hear_kind(&mut gateway, "command").await["params"], *params);
    }
}
