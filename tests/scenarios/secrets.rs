//! No secret is seen: whatever gateway and hub say at the level of trace, and whatever others can
//! see of their processes, has none of what they were given, made, or were shown by strangers.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde_json::json;

use crate::field::{
    Field, SOON,
    certificate::{private, trusting},
    eventually, free_port,
    gateway::{Setup, binary, run_command},
    hub::Hub,
    process::{Process, run},
    signer::{Signer, claims},
    uplink::Way,
};

/// What must be seen nowhere, and what it is.
#[derive(Default)]
struct Secrets(Vec<(String, String)>);

impl Secrets {
    fn add(&mut self, what: &str, secret: &str) {
        assert!(secret.len() > 8, "{what}: too short to be looked for");
        self.0.push((what.to_owned(), secret.to_owned()));
    }

    /// A token, also as a browser sends it.
    fn add_token(&mut self, what: &str, token: &str) {
        self.add(what, token);
        self.add(what, &BASE64URL.encode(token));
    }

    /// A JWT: its signature is enough to use it, with a header and claims that can be guessed.
    fn add_jwt(&mut self, what: &str, token: &str) {
        self.add(what, token.rsplit('.').next().expect("a signature"));
    }

    /// Every line between the first and last of a key.
    fn add_key(&mut self, what: &str, file: &Path) {
        let pem = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{what}: {e}"));
        pem.lines().filter(|line| !line.starts_with('-')).for_each(|line| self.add(what, line));
    }

    fn add_code(&mut self, what: &str, code: &str) {
        let bare = code.replace('-', "");
        for form in [code, &code.to_lowercase(), &bare, &bare.to_lowercase()] {
            self.add(what, form);
        }
    }

    fn look_for_in(&self, place: &str, text: &str) {
        for (what, secret) in &self.0 {
            assert!(!text.contains(secret.as_str()), "{what} is seen in {place}:\n{text}");
        }
        // {"alg or {"typ, of a token that was signed in there.
        for begin in ["eyJhbGciOi", "eyJ0eXAiOi"] {
            assert!(!text.contains(begin), "a signed token is seen in {place}:\n{text}");
        }
    }
}

/// What everybody on the machine can see of a process.
fn seen_of(process: &Process) -> String {
    let read = |what: &str| {
        let bytes = std::fs::read(format!("/proc/{}/{what}", process.id())).expect("it runs");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    read("cmdline") + "\n" + &read("environ")
}

/// `fieldgate` in a directory of its own, at the level of trace; what it said.
fn said(field: &Field, name: &str, words: &[&str]) -> String {
    let mut command = binary();
    command.args(words).args(["--log", "trace", "--config"]).arg(field.path(name));
    command.env("STATE_DIRECTORY", field.path("board"));
    for name in ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(name);
    }
    let (code, stdout, stderr) = run(command, SOON);
    assert_eq!(code, Some(0), "{words:?}: {stdout}{stderr}");
    stdout + &stderr
}

/// A gateway at the level of trace, with a session; it goes on.
fn connected(field: &Field, name: &str) -> Process {
    let log = field.path(format!("{name}.log"));
    let mut command = run_command(&field.path(name));
    command.args(["--log", "trace"]).env("STATE_DIRECTORY", field.path("board"));
    command.env("FIELDGATE_LISTENER__BIND", format!("127.0.0.1:{}", free_port()));
    let mut process = Process::start("fieldgate", command, &log);
    eventually("a session with the hub", SOON, || {
        assert!(process.ended().is_none(), "{}", process.log());
        process.log().contains("the session with the hub is on").then_some(())
    });
    process
}

/// A hub at the level of trace, over a certificate of its own authority.
fn hub(field: &Field, secrets: &mut Secrets) -> Hub {
    let mut hub = Hub::new(field);
    hub.manage(&["ca", "init"]);
    let dir = field.path("");
    let dir = dir.to_str().expect("a path in UTF-8");
    hub.manage(&["ca", "issue-server", "--host", "localhost", "--dir", dir]);
    hub.api.tls = Some(trusting(&field.path("hub/ca/ca.pem")));
    hub.log_level = "trace";
    hub.start();
    secrets.add_key("the hub's key", &field.path("hub.key"));
    secrets.add_key("the authority's key", &field.path("hub/ca/ca.key"));
    secrets.add_token("the API token", &hub.api.token);
    hub
}

/// A board enrols, renews with a key of its own, and comes by its certificate.
fn enrolled(field: &Field, hub: &Hub, secrets: &mut Secrets, heard: &mut String) -> Process {
    let code = hub.manage(&["enroll-code", "--gateway", "gw-1"]);
    let code = code.lines().next().expect("a code");
    secrets.add_code("the code", code);
    let file = field.write("code", code);
    private(&file);
    let file = format!("file:{}", file.display());
    let ca = field.path("hub/ca/ca.pem");
    let ca = ca.to_str().expect("a path in UTF-8");
    let url = format!("https://localhost:{}", hub.port);
    let key = field.path("board/identity/gateway.key");
    *heard += &said(field, "enrolled.toml", &["enroll", &url, "--code", &file, "--ca-file", ca]);
    secrets.add_key("the enrolled key", &key);
    *heard += &said(field, "enrolled.toml", &["identity", "renew", "--new-key"]);
    secrets.add_key("the renewed key", &key);
    let text = std::fs::read_to_string(field.path("enrolled.toml")).expect("just written");
    field.write("enrolled.toml", text + &mqtt(field, secrets));
    connected(field, "enrolled.toml")
}

/// A broker that is away, and a password for it.
fn mqtt(field: &Field, secrets: &mut Secrets) -> String {
    private(&field.write("mqtt-password", "canary-of-mqtt\n"));
    secrets.add("the broker's password", "canary-of-mqtt");
    let file = field.path("mqtt-password");
    format!(
        "\n[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\nusername = \"u\"\npassword_file = \"{}\"\n",
        free_port(),
        file.display()
    )
}

/// A gateway that comes by a token of the hub's.
fn by_token(field: &Field, hub: &Hub, secrets: &mut Secrets) -> Process {
    let file = hub.add_gateway(field, "gw-2");
    let token = std::fs::read_to_string(file).expect("just written");
    secrets.add_token("a gateway's token", token.trim());
    let uplink = format!(
        "url = \"wss://localhost:{}/v1/gateway\"\nca_file = \"hub/ca/ca.pem\"\n\
         token_file = \"gw-2.token\"",
        hub.port
    );
    let setup = Setup { id: "gw-2", ..Setup::towards(uplink) };
    let setup = setup.to_toml().replace("\"state\"", "\"state-2\"");
    field.write("token.toml", setup);
    connected(field, "token.toml")
}

/// A gateway that signs its own tokens.
fn by_key(field: &Field, hub: &Hub, secrets: &mut Secrets) -> Process {
    let key = Signer::p256();
    let public = field.write("gw-3.pub", key.public_pem());
    let public = public.to_str().expect("a path in UTF-8");
    hub.manage(&["gateway", "add", "gw-3", "--public-key", public]);
    let file = field.write("gw-3.key", key.private_pem());
    private(&file);
    secrets.add_key("a gateway's key", &file);
    let uplink = format!(
        "url = \"wss://localhost:{}/v1/gateway\"\nca_file = \"hub/ca/ca.pem\"\n\
         [uplink.jwt]\nkey_file = \"gw-3.key\"\naudience = \"hub-1\"",
        hub.port
    );
    let setup = Setup { id: "gw-3", ..Setup::towards(uplink) };
    // The table of tokens ends [uplink].
    let setup =
        setup.to_toml().replace("\"state\"", "\"state-3\"").replace("backoff_", "#backoff_");
    field.write("key.toml", setup);
    connected(field, "key.toml")
}

/// What others send to the hub: on the live link, as a browser, and what is refused.
fn others(field: &Field, hub: &Hub, secrets: &mut Secrets) {
    let way = Way::new(hub.port, &field.path("hub/ca/ca.pem"), None);
    let token = std::fs::read_to_string(hub.add_gateway(field, "gw-4")).expect("just written");
    secrets.add_token("a token on the live link", token.trim());
    let (mut uplink, _) = way.session(Some(token.trim()), "gw-4");
    uplink.say(&json!({"type": "auth", "token": token.trim()}));
    assert_eq!(uplink.hear()["type"], "auth_ok");
    let wrong = Signer::p256().token(&claims("gw-4", 600));
    secrets.add_jwt("a wrong token on the live link", &wrong);
    uplink.say(&json!({"type": "auth", "token": wrong}));
    assert_eq!(uplink.hear()["code"], "unauthorized");
    secrets.add_jwt("a wrong token", &wrong);
    assert_eq!(way.upgrade(Some(&wrong)).err(), Some(401));

    assert_eq!(hub.api.get("/v1/gateways").expect("an answer").status, 200);
    let mut browser = way.browser(&hub.api.token).expect("a live feed");
    browser.say(&json!({"type": "ping"}));
    assert_eq!(browser.hear(), json!({"type": "pong"}));
    let wrong = "fga_canary-of-an-application-0123456789";
    secrets.add_token("a wrong API token", wrong);
    assert_eq!(way.browser(wrong).err(), Some(401));
    assert_eq!(way.ask("GET", "/v1/gateways", Some(wrong), "").expect("an answer").status, 401);

    let unused = hub.manage(&["enroll-code", "--gateway", "gw-5"]);
    let unused = unused.lines().next().expect("a code").to_owned();
    for (what, code) in [("an unused code", unused.as_str()), ("a wrong code", "CANA-RY0F-C0DE")] {
        secrets.add_code(what, code);
        let body = json!({"code": code, "csr": "none"}).to_string();
        assert_eq!(way.ask("POST", "/v1/enroll", None, &body).expect("an answer").status, 403);
    }
}

#[test]
fn no_secret_is_seen_in_a_whole_run_of_gateways_and_hub_at_the_level_of_trace() {
    let field = Field::new();
    let (mut secrets, mut heard) = (Secrets::default(), String::new());
    let mut hub = hub(&field, &mut secrets);
    let mut gateways = [
        enrolled(&field, &hub, &mut secrets, &mut heard),
        by_token(&field, &hub, &mut secrets),
        by_key(&field, &hub, &mut secrets),
    ];
    others(&field, &hub, &mut secrets);
    secrets.look_for_in("what a command said", &heard);
    for gateway in &mut gateways {
        secrets.look_for_in("a gateway's process", &seen_of(gateway));
        gateway.terminate(SOON);
        let log = gateway.log() + &gateway.lines().join("\n");
        assert!(log.contains("DEBUG"), "a gateway says more than on a normal day:\n{log}");
        secrets.look_for_in("a gateway's log", &log);
    }
    let process = hub.process.as_mut().expect("it runs");
    secrets.look_for_in("the hub's process", &seen_of(process));
    process.terminate(SOON);
    let log = process.log() + &process.lines().join("\n");
    assert!(log.contains("DEBUG"), "the hub says more than on a normal day:\n{log}");
    secrets.look_for_in("the hub's log", &log);
}
