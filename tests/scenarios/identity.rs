//! A board gets its credential in one command, keeps it to itself, and renews it without a gap;
//! whatever is wrong with one is named.

use std::{os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use serde_json::Value;

use crate::field::{
    Field, SOON,
    certificate::{private, trusting},
    eventually, free_port,
    gateway::{Gateway, Setup, binary, run_command},
    hub::Hub,
    issuer::{AUDIENCE, CODE, GATEWAY, Issuer},
    process::{Process, run},
};

/// `fieldgate` with these words, a configuration of the scenario's, and its state beside it.
fn fieldgate(field: &Field, words: &[&str]) -> Command {
    let mut command = binary();
    command.args(words).arg("--config").arg(field.path("gw.toml"));
    command.env("STATE_DIRECTORY", field.path("state"));
    for name in ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command
}

/// What it said on both streams, and its exit code.
fn said(field: &Field, words: &[&str]) -> (Option<i32>, String) {
    let (code, stdout, stderr) = run(fieldgate(field, words), SOON);
    (code, stdout + &stderr)
}

fn mode(path: &Path) -> u32 {
    let metadata = std::fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    metadata.permissions().mode() & 0o777
}

fn shown(field: &Field) -> Value {
    let (code, text) = said(field, &["identity", "show", "--json"]);
    assert_eq!(code, Some(0), "{text}");
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// A hub with an authority of its own, that serves; with these sections in its configuration.
pub(super) fn hub_with_authority(field: &Field, sections: &str) -> Hub {
    let mut hub = Hub::with(field, "", sections);
    hub.manage(&["ca", "init"]);
    let dir = field.path("");
    let dir = dir.to_str().expect("a path in UTF-8");
    hub.manage(&["ca", "issue-server", "--host", "localhost", "--dir", dir]);
    hub.api.tls = Some(trusting(&field.path("hub/ca/ca.pem")));
    hub.start();
    hub
}

/// What an operator would carry to the board.
pub(super) fn invited(hub: &Hub) -> String {
    let host = format!("localhost:{}", hub.port);
    let said = hub.manage(&["enroll-code", "--gateway", GATEWAY, "--host", &host]);
    said.lines().last().expect("the short form").to_owned()
}

/// `fieldgate run` on the configuration of [`fieldgate`].
struct Runner(Process);

impl Runner {
    fn start(field: &Field) -> Self {
        let mut command = fieldgate(field, &["run"]);
        command.env("FIELDGATE_LISTENER__BIND", format!("127.0.0.1:{}", free_port()));
        Self(Process::start("fieldgate", command, &field.path("gw.log")))
    }

    /// Hands it a record.
    fn send(&mut self, field: &Field) {
        eventually("a record is taken", SOON, || {
            assert!(self.0.ended().is_none(), "{}", self.0.log());
            let (code, _) = said(field, &["send", "--device", "plc-01", "{\"n\":1}"]);
            (code == Some(0)).then_some(())
        });
    }
}

#[test]
fn a_code_ends_in_an_identity_that_the_hub_takes() {
    let field = Field::new();
    let issuer = Issuer::start(false);
    let invitation =
        issuer.invitation(&CODE.to_lowercase().replace('-', ""), &issuer.fingerprint());
    let (_, text) = said(&field, &["enroll", &invitation]);
    for wanted in ["enrolled as gw-7f3a", "ok    TLS", "ok    upgrade", "next: fieldgate run"] {
        assert!(text.contains(wanted), "{wanted}\n{text}");
    }
    assert!(!text.contains(CODE), "{text}");

    let identity = field.path("state/identity");
    assert_eq!((mode(&identity), mode(&identity.join("gateway.key"))), (0o700, 0o600));
    let key = std::fs::read_to_string(identity.join("gateway.key")).expect("it was just made");
    let secret = key.lines().nth(1).expect("a line of it");
    let shown = shown(&field);
    assert_eq!(shown["subject"], "CN=gw-7f3a");
    assert!(!shown.to_string().contains(secret) && !text.contains(secret));
    let (code, text) = said(&field, &["check"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(GATEWAY) && text.contains("a client certificate"), "{text}");

    let before = issuer.heard().len();
    let (code, text) = said(&field, &["enroll", &invitation]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("--replace"), "{text}");
    assert_eq!(issuer.heard().len(), before, "nobody was asked");
    let (code, text) = said(&field, &["enroll", &invitation, "--replace"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("the hub refuses the code"), "a code is good once: {text}");
    assert_eq!(std::fs::read_to_string(identity.join("gateway.key")).ok(), Some(key));
}

#[test]
fn a_board_enrols_at_the_hub_delivers_and_is_replaced_when_it_is_dead() {
    let field = Field::new();
    let hub = hub_with_authority(&field, "");
    let (_, text) = said(&field, &["enroll", &invited(&hub)]);
    assert!(text.contains("ok    upgrade"), "{text}");
    let mut gateway = Runner::start(&field);
    gateway.send(&field);
    hub.wait_for(GATEWAY, "the board's record", |row| row.n == Some(1));
    let (code, text) = said(&field, &["identity", "renew"]);
    assert_eq!(code, Some(0), "{text}");

    let board = Field::new();
    let (_, text) = said(&board, &["enroll", &invited(&hub)]);
    assert!(text.contains("ok    upgrade"), "{text}");
    let (code, text) = said(&field, &["doctor"]);
    assert!(code == Some(1) && text.contains("fail  "), "what was before is revoked: {text}");
}

/// A board has the package's configuration, in which the tables of an enrolment stand already, with
/// every key commented out. The enrolment left that as it was and told which keys to paste; pasted,
/// the tables came twice, and the gateway did not start.
#[test]
fn a_packaged_board_delivers_after_one_command_and_no_edit() {
    let field = Field::new();
    let hub = hub_with_authority(&field, "");
    let packaged = include_str!("../../configs/fieldgate.toml");
    field.write("gw.toml", packaged);
    let (_, text) = said(&field, &["enroll", &invited(&hub)]);
    assert!(text.contains("ok    upgrade"), "{text}");
    let mut gateway = Runner::start(&field);
    gateway.send(&field);
    hub.wait_for(GATEWAY, "the board's record", |row| row.n == Some(1));
    let written = std::fs::read_to_string(field.path("gw.toml"));
    assert_eq!(written.expect("it was written above"), packaged);
    let (code, text) = said(&field, &["check"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("/identity/uplink.toml): gateway.id, uplink.ca_file, "), "{text}");
    let (code, text) = said(&field, &["identity", "renew"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(field.path("state/identity/uplink.toml").exists(), "a renewal takes it along");
}

/// The answer got lost on the way: the code was spent, the key thrown away, and the board had
/// neither.
#[test]
fn an_enrolment_whose_answer_is_lost_goes_on_when_the_command_is_run_again() {
    let field = Field::new();
    let issuer = Issuer::start(false);
    issuer.lose_answer();
    let invitation = issuer.invitation(CODE, &issuer.fingerprint());
    let (code, text) = said(&field, &["enroll", &invitation]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("run the same command again"), "{text}");
    assert!(!field.path("state/identity").exists() && !field.path("gw.toml").exists());
    let key = || std::fs::read_to_string(field.path("state/identity.new/gateway.key"));
    let kept = key().expect("the key is kept");
    // What can't even be asked keeps it as well.
    let elsewhere = issuer.invitation(CODE, &Issuer::start(false).fingerprint());
    assert_eq!(said(&field, &["enroll", &elsewhere]).0, Some(1));
    assert_eq!(key().ok().as_ref(), Some(&kept));
    let (_, text) = said(&field, &["enroll", &invitation]);
    assert!(text.contains("ok    upgrade"), "{text}");
    let key = std::fs::read_to_string(field.path("state/identity/gateway.key"));
    assert_eq!(key.expect("it is in force"), kept);
    assert!(!field.path("state/identity.new").exists());
}

#[test]
fn a_faulty_configuration_is_told_of_before_the_code_is_spent() {
    let field = Field::new();
    let issuer = Issuer::start(false);
    field.write("gw.toml", "[listener]\n[uplink]\nproxi = 'none'\n");
    let invitation = issuer.invitation(CODE, &issuer.fingerprint());
    let (code, text) = said(&field, &["enroll", &invitation]);
    assert!(code == Some(78) && text.contains("gw.toml:3: uplink.proxi"), "{text}");
    assert_eq!(issuer.heard(), [""; 0]);
    // A hub of one's own goes before what was enrolled, and that is said.
    field.write("gw.toml", "[listener]\n[uplink]\nurl = 'wss://localhost:1'\n");
    let (_, text) = said(&field, &["enroll", &invitation]);
    assert!(text.contains("it goes before that of the enrolment"), "{text}");
}

#[test]
fn no_code_is_sent_to_a_hub_whose_ca_is_another() {
    let field = Field::new();
    let (issuer, other) = (Issuer::start(false), Issuer::start(false));
    let (code, text) = said(&field, &["enroll", &issuer.invitation(CODE, &other.fingerprint())]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("is not the one with the fingerprint"), "{text}");
    assert_eq!(issuer.heard(), ["GET /v1/enroll/ca HTTP/1.1"]);
    // The system does not trust it either.
    let url = format!("https://localhost:{}", issuer.port);
    let (code, text) = said(&field, &["enroll", &url, "--code", CODE]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("TLS: ") && text.contains("does not trust"), "{text}");
    assert_eq!(issuer.heard().len(), 1);
    assert!(!field.path("state/identity").exists() && !field.path("state/identity.new").exists());
    assert!(!field.path("gw.toml").exists());

    let ca = field.write("ca.pem", &issuer.ca);
    let ca = ca.to_str().expect("a path in UTF-8");
    let code_file = field.write("code", format!("{CODE}\n"));
    let code_file = format!("file:{}", code_file.display());
    let (_, text) = said(&field, &["enroll", &url, "--code", &code_file, "--ca-file", ca]);
    assert!(text.contains("ok    upgrade"), "{text}");
}

#[test]
fn where_the_hub_takes_tokens_the_board_signs_them() {
    let field = Field::new();
    let issuer = Issuer::start(true);
    field.write("gw.toml", "[listener]\n");
    let (_, text) = said(&field, &["enroll", &issuer.invitation(CODE, &issuer.fingerprint())]);
    assert!(text.contains("ok    upgrade"), "{text}");
    let enrolment = std::fs::read_to_string(field.path("state/identity/uplink.toml"));
    let enrolment = enrolment.expect("it was just written");
    let signs = format!("[uplink.jwt]\naudience = \"{AUDIENCE}\"");
    assert!(enrolment.contains(&signs) && !enrolment.contains("client_cert"), "{enrolment}");
    let (code, text) = said(&field, &["check"]);
    assert!(code == Some(0) && text.contains("There it shows a token that it signs"), "{text}");
    assert_eq!(
        std::fs::read_to_string(field.path("gw.toml")).ok().as_deref(),
        Some("[listener]\n")
    );
}

#[test]
fn a_renewed_certificate_is_in_force_only_after_a_connection_with_it() {
    let field = Field::new();
    let issuer = Issuer::start(false);
    said(&field, &["enroll", &issuer.invitation(CODE, &issuer.fingerprint())]);
    let serial = || shown(&field)["serial"].as_str().expect("it has one").to_owned();
    let fingerprint = || shown(&field)["fingerprint"].as_str().expect("it has one").to_owned();
    let (first, key) = (serial(), fingerprint());
    let needs = |within| said(&field, &["identity", "needs-renewal", "--within", within]).0;
    assert_eq!((needs("30d"), needs("99999d"), needs("soon")), (Some(1), Some(0), Some(2)));

    let (code, text) = said(&field, &["identity", "renew"]);
    assert_eq!(code, Some(0), "{text}");
    let second = serial();
    assert!(second != first && fingerprint() == key, "{first} {second}");
    let (code, text) = said(&field, &["identity", "renew", "--new-key"]);
    assert_eq!(code, Some(0), "{text}");
    let third = serial();
    assert!(third != second && fingerprint() != key, "{second} {third}");

    issuer.close();
    let (code, text) = said(&field, &["identity", "renew"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("the old one stays in force"), "{text}");
    assert_eq!(serial(), third);
    assert!(field.path("state/identity.old/gateway.key").exists());
    let (code, text) = said(&field, &["doctor"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("fail  upgrade") && text.contains("refuses the credential"), "{text}");
}

/// The trial of a new key was made with a token of the old one, and proved nothing; and whichever
/// kind the old key was, the new one was P-256.
#[test]
fn a_new_key_of_a_board_that_signs_tokens_is_tried_and_is_of_the_same_kind() {
    let field = Field::new();
    let hub = hub_with_authority(&field, "");
    let (code, text) = said(&field, &["identity", "new", "--key-type", "ed25519"]);
    assert_eq!(code, Some(0), "{text}");
    let public = || {
        let pem = std::fs::read_to_string(field.path("state/identity/gateway.pub"));
        pem.expect("a public key stands beside its key")
    };
    let first = public();
    let file = field.path("state/identity/gateway.pub").display().to_string();
    hub.manage(&["gateway", "add", GATEWAY, "--public-key", &file]);
    field.write(
        "gw.toml",
        format!(
            "[gateway]\nid = \"{GATEWAY}\"\n[listener]\n[uplink]\nca_file = \"hub/ca/ca.pem\"\n\
             url = \"wss://localhost:{}/v1/gateway\"\n[uplink.jwt]\naudience = \"hub-1\"",
            hub.port
        ),
    );
    let (code, text) = said(&field, &["identity", "renew", "--new-key"]);
    assert_eq!(code, Some(0), "{text}");
    let second = public();
    assert!(second != first && second.len() == first.len(), "{first}{second}");
    let (_, text) = said(&field, &["doctor"]);
    assert!(text.contains("ok    upgrade"), "{text}");
    // Tokens of the first key are good until the next renewal, and of no use after it.
    let (code, text) = said(&field, &["identity", "renew"]);
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn a_running_gateway_takes_up_what_was_renewed_and_nothing_that_does_not_fit() {
    let field = Field::new();
    let issuer = Issuer::start(false);
    said(&field, &["enroll", &issuer.invitation(CODE, &issuer.fingerprint())]);
    let identity = field.path("state/identity");
    let file = |name: &str| identity.join(name).display().to_string();
    let uplink = format!(
        "url = \"wss://localhost:{}/v1/gateway\"\nca_file = \"{}\"\nclient_cert_file = \"{}\"\n\
         client_key_file = \"{}\"\nprotocol = \"managed\"",
        issuer.port,
        file("hub-ca.pem"),
        file("gateway.pem"),
        file("gateway.key")
    );
    let setup = Setup { id: GATEWAY, ..Setup::towards(uplink) };
    let gateway = Gateway::started(&field, &setup);
    let status = gateway.status().expect("it runs");
    assert_eq!(status["certificates"][0]["subject"], "CN=gw-7f3a", "{status}");
    assert!(status["certificates"][0]["days_left"].as_i64() > Some(1000), "{status}");
    // The issuer hangs up after each upgrade, so the gateway comes again and again.
    let comes = |serial: &str| {
        let before = issuer.heard().len();
        let line = format!("GET /v1/gateway HTTP/1.1 {serial}");
        eventually(&format!("a connection with certificate {serial}"), SOON, || {
            issuer.heard()[before..].contains(&line).then_some(())
        });
    };
    comes("01");
    let (code, text) = said(&field, &["identity", "renew", "--new-key"]);
    assert_eq!(code, Some(0), "{text}");
    comes("02");
    std::fs::write(identity.join("gateway.key"), stranger_key(&field, &issuer))
        .expect("it is ours");
    eventually("the misfit is told of", SOON, || {
        gateway.log().contains("is not the key of the certificate").then_some(())
    });
    comes("02");
    let log = gateway.log();
    assert_eq!(log.matches("those of before go on").count(), 1, "{log}");
}

fn stranger_key(field: &Field, issuer: &Issuer) -> String {
    issuer.issue(field, "stranger", 2100).serialize_pem()
}

#[test]
fn a_certificate_that_can_not_serve_is_not_taken_in() {
    let field = Field::new();
    let issuer = Issuer::start(false);
    for (name, end) in [("gw-1", 2100), ("gw-2", 2100), ("old", 2021)] {
        issuer.issue(&field, name, end);
    }
    field.write("gw.toml", "[gateway]\nid = \"gw-1\"\n[listener]\n");
    let loose = field.write("loose.key", std::fs::read(field.path("gw-1.key")).expect("just made"));
    std::fs::set_permissions(loose, std::fs::Permissions::from_mode(0o644)).expect("it is ours");
    let label = "ENCRYPTED PRIVATE KEY-----";
    let locked = format!("-----BEGIN {label}\nMAAA\n-----END {label}\n");
    private(&field.write("locked.key", locked));
    private(&field.write("bundle.p12", [0x30, 0x82, 1, 2]));
    let pem = |name: &str| std::fs::read_to_string(field.path(name)).expect("just made");
    field.write("wrong-order.pem", pem("gw-1.pem") + &pem("gw-2.pem"));
    let faults: [(&str, &str, &[&str]); 8] = [
        ("gw-1.pem", "gw-2.key", &["not that of the key"]),
        ("gw-2.pem", "gw-2.key", &["gw-2", "gateway.id"]),
        ("gw-1.pem", "loose.key", &["chmod 600"]),
        ("gw-1.pem", "locked.key", &["encrypted", "openssl pkey"]),
        ("old.pem", "old.key", &["expired at 2021-01-01"]),
        ("bundle.p12", "bundle.p12", &["PKCS#12", "openssl pkcs12"]),
        ("wrong-order.pem", "gw-1.key", &["certificate 2 is not the issuer"]),
        ("gw-1.key", "gw-1.pem", &["no certificate"]),
    ];
    let import = |cert: &str, key: &str| {
        let (cert, key) = (field.path(cert), field.path(key));
        let path = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
        said(&field, &["identity", "import", "--cert", &path(&cert), "--key", &path(&key)])
    };
    for (cert, key, wanted) in faults {
        let (code, text) = import(cert, key);
        assert_eq!(code, Some(1), "{cert} {key}: {text}");
        for word in wanted {
            assert!(text.contains(word), "{cert} {key}: no {word:?} in: {text}");
        }
        assert!(!field.path("state/identity").exists());
    }
    let (code, text) = import("gw-1.pem", "gw-1.key");
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(mode(&field.path("state/identity/gateway.key")), 0o600);
    let (code, text) = import("gw-1.pem", "gw-1.key");
    assert!(code == Some(1) && text.contains("--replace"), "{text}");
}

#[test]
fn a_key_is_made_once_and_requests_are_made_with_it() {
    let field = Field::new();
    for kind in ["p256", "ed25519"] {
        let (code, text) = said(&field, &["identity", "new", "--key-type", kind, "--replace"]);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.starts_with("sha256:") && text.contains("gateway.pub"), "{text}");
        let (code, text) = said(&field, &["identity", "csr", "--subject", "gw-9"]);
        assert_eq!(code, Some(0), "{text}");
        let request = rcgen::CertificateSigningRequestParams::from_pem(&text);
        request.unwrap_or_else(|e| panic!("another library reads the request: {e}\n{text}"));
    }
    let (code, text) = said(&field, &["identity", "new"]);
    assert!(code == Some(1) && text.contains("--replace"), "{text}");
    let (code, text) = said(&field, &["identity", "csr", "--subject", "gw/#"]);
    assert!(code == Some(1) && text.contains("--subject"), "{text}");
    let (code, _) = said(&field, &["identity", "needs-renewal"]);
    assert_eq!(code, Some(2), "there is no certificate");
}

/// Whatever a gateway says at the level of debug, and whatever others can see of its process, has
/// none of its secrets: what it was given as files is in no log, no argument and no environment.
#[test]
fn no_secret_is_seen_in_a_whole_run() {
    let field = Field::new();
    let hub = Hub::started(&field);
    let issuer = Issuer::start(true);
    let mut secrets = Vec::new();
    let mut secret = |name: &str, text: &str| {
        private(&field.write(name, text));
        secrets.push(text.trim().to_owned());
    };
    secret("mqtt-password", "canary-of-mqtt\n");
    secret("proxy-password", "canary-of-proxy\n");
    secret("bad-token", "canary.of.token\n");
    let (code, text) = said(&field, &["identity", "new"]);
    assert_eq!(code, Some(0), "{text}");
    let key = std::fs::read_to_string(field.path("state/identity/gateway.key")).expect("just made");
    secrets.extend(key.lines().filter(|line| !line.starts_with('-')).map(str::to_owned));
    let token = hub.add_gateway(&field, "gw-1");
    secrets.push(std::fs::read_to_string(token).expect("just made").trim().to_owned());

    field.write("issuer-ca.pem", &issuer.ca);
    let (hub, issuer) = (hub.port, issuer.port);
    let token = |port: u16, ca: &str, more: &str| {
        format!("url = \"wss://localhost:{port}/v1/gateway\"\nca_file = \"{ca}\"\n{more}")
    };
    let broker = format!(
        "[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\nusername = \"u\"\npassword_file = \"mqtt-password\"\n",
        free_port()
    );
    let proxy = format!(
        "proxy = \"http://127.0.0.1:{hub}\"\nproxy_user = \"u\"\n\
         proxy_password_file = \"proxy-password\""
    );
    // What is configured; what the log says when the secret was used.
    let runs = [
        (token(hub, "ca.pem", "token_file = \"gw-1.token\""), "the session with the hub is on"),
        (token(hub, "ca.pem", "token_file = \"bad-token\""), "401"),
        (token(hub, "ca.pem", &format!("token_file = \"gw-1.token\"\n{proxy}")), "proxy"),
        (
            token(
                issuer,
                "issuer-ca.pem",
                &format!(
                    "[uplink.jwt]\nkey_file = \"{}\"",
                    field.path("state/identity/gateway.key").display()
                ),
            ),
            "fieldgate.v1.json",
        ),
    ];
    for (uplink, used) in runs {
        let jwt = uplink.contains("jwt");
        let mut setup = Setup::towards(uplink);
        setup.listener = None;
        // The table of tokens ends [uplink].
        let text = setup.to_toml();
        let text = if jwt { text.replace("backoff_", "#backoff_") } else { text };
        let config = field.write("gw.toml", text + &broker);
        let log = field.path("debug.log");
        let _ = std::fs::remove_file(&log);
        let mut command = run_command(&config);
        command.args(["--log", "trace"]);
        let mut process = Process::start("fieldgate", command, &log);
        let heard = eventually(used, SOON, || {
            assert!(process.ended().is_none(), "{}", process.log());
            let all = process.log();
            (all.contains(used) && all.contains("mqtt")).then_some(all)
        });
        let of_process = ["cmdline", "environ"].map(|what| {
            let bytes = std::fs::read(format!("/proc/{}/{what}", process.id()));
            String::from_utf8_lossy(&bytes.expect("it runs")).into_owned()
        });
        process.terminate(SOON);
        let whole = [heard, process.log(), of_process.concat()].concat();
        for secret in &secrets {
            assert!(!whole.contains(secret.as_str()), "{used}: {secret} is seen in\n{whole}");
        }
        // The signed form of a token begins so; its header alone is no secret.
        assert!(!whole.contains("Bearer ey"), "{used}: a signed token is seen");
    }
}
