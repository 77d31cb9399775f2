//! What is wrong is said, with the thing's name and the remedy; nothing panics.

use std::os::unix::fs::PermissionsExt as _;

use crate::field::{
    Field, SOON,
    certificate::{Certified, TlsServer, issue},
    eventually, free_port,
    gateway::{Setup, run_command},
    hub::{KEY, authority},
    process::{Process, run},
};

/// The exit code of a bad configuration: systemd's unit does not restart on it.
const BAD_CONFIGURATION: i32 = 78;

#[test]
fn a_bad_configuration_is_named_with_its_line_and_remedy() {
    let good =
        "[gateway]\nid = \"gw-1\"\nstate_dir = \"state\"\n[listener]\nbind = \"127.0.0.1:1\"\n";
    // What is appended; what the complaint must name.
    let faults: &[(&str, &[&str])] = &[
        ("[uplink]\nurll = \"wss://hub\"", &["bad.toml:7", "urll", "url"]),
        (
            "[uplink]\nurl = \"wss://hub\"\nping_intervall = \"1s\"",
            &["bad.toml:8", "ping_interval"],
        ),
        ("[spool]\nwrite_after = 7", &["bad.toml:7", "spool.write_after"]),
        ("[spool]\nwrite_after = \"soon\"", &["bad.toml:7", "spool.write_after"]),
        ("[spool]\nmax_bytes = \"much\"", &["bad.toml:7", "spool.max_bytes"]),
        ("[uplink]\nurl = \"http://hub\"", &["bad.toml:7", "uplink.url", "http", "wss://"]),
        ("[uplink]\nurl = \"ws://hub.example\"", &["bad.toml:7", "uplink.url", "wss://"]),
        ("[uplink]\nurl = \"wss://a:secret@hub\"", &["bad.toml:7", "uplink.url", "token_file"]),
        ("[uplink]\nurl = \"wss://\"", &["bad.toml:7", "uplink.url"]),
        ("[uplink]\nurl = ", &["bad.toml:7"]),
        ("[mqtt]\nurl = \"tcp://broker\"", &["bad.toml:7", "mqtt.url", "mqtt://"]),
    ];
    for (fault, wanted) in faults {
        let field = Field::new();
        let config = field.write("bad.toml", format!("{good}{fault}\n"));
        let (code, _, stderr) = run(run_command(&config), SOON);
        assert_eq!(code, Some(BAD_CONFIGURATION), "{fault}\n{stderr}");
        assert_says(fault, &stderr, wanted);
        assert!(!stderr.contains("secret"), "a secret in an error: {stderr}");
    }
}

#[test]
fn a_configuration_that_is_not_there_is_named() {
    let field = Field::new();
    let (code, _, stderr) = run(run_command(&field.path("nowhere.toml")), SOON);
    assert_eq!(code, Some(BAD_CONFIGURATION), "{stderr}");
    assert_says("no file", &stderr, &["nowhere.toml"]);
}

#[test]
fn a_key_or_token_that_cannot_be_used_is_named() {
    let field = Field::new();
    authority(&field);
    let Certified { cert, .. } = issue(&field, "gw-1", "gw-1", 2100);
    field.write("empty", "");
    field.write("not.pem", "this is no key\n");
    let world = field.write("world.key", std::fs::read(field.path("gw-1.key")).expect("just made"));
    set_mode(&world, 0o644);
    field.write("token", "abc");
    set_mode(&field.path("token"), 0o644);
    for name in ["empty", "not.pem"] {
        set_mode(&field.path(name), 0o600);
    }
    let with_key = |key: &str| {
        format!("client_cert_file = \"{}\"\nclient_key_file = \"{key}\"", cert.display())
    };
    let faults: Vec<(String, &[&str])> = vec![
        (with_key("nowhere.key"), &["nowhere.key"]),
        (with_key("."), &["irectory"]),
        (with_key("empty"), &["empty"]),
        (with_key("not.pem"), &["not.pem", "PEM"]),
        (with_key("world.key"), &["world.key", "chmod"]),
        (with_key(KEY), &[KEY, "not the key"]),
        ("token_file = \"token\"".into(), &["token", "chmod"]),
        ("token_file = \"empty\"".into(), &["empty"]),
        ("ca_file = \"nowhere.pem\"".into(), &["nowhere.pem"]),
        ("ca_file = \"not.pem\"".into(), &["not.pem"]),
    ];
    for (fault, wanted) in faults {
        let url = format!("url = \"wss://localhost:{}/v1/gateway\"\n", free_port());
        complains(&field, &format!("{url}{fault}"), wanted);
    }
}

#[test]
fn a_hub_that_cannot_be_trusted_is_named_with_the_remedy() {
    let field = Field::new();
    let good = issue(&field, "good", "localhost", 2100);
    let other = issue(&field, "other", "localhost", 2100);
    let named = issue(&field, "named", "hub.example.com", 2100);
    let expired = issue(&field, "expired", "localhost", 2021);
    // The server's certificate; the authority that the gateway trusts; what it must say.
    let faults: [(&Certified, &Certified, &[&str]); 3] = [
        (&good, &other, &["localhost", "other-ca.pem"]),
        (&named, &named, &["localhost", "hub.example.com"]),
        (&expired, &expired, &["expired", "clock"]),
    ];
    for (server, trusted, wanted) in faults {
        let server = TlsServer::start(server);
        let url = format!("url = \"wss://localhost:{}/v1/gateway\"", server.port);
        complains(&field, &format!("{url}\nca_file = \"{}\"", trusted.ca.display()), wanted);
    }
}

/// Runs a gateway with this `[uplink]` until it has said what is wrong: by ending with 78, or in
/// its log while it keeps trying.
fn complains(field: &Field, uplink: &str, wanted: &[&str]) {
    let setup = Setup::towards(uplink.into());
    let config = field.write("gw-1.toml", setup.to_toml());
    let log = field.path("gw-1.log");
    let _ = std::fs::remove_file(&log);
    let mut process = Process::start("fieldgate", run_command(&config), &log);
    let ended = eventually(&format!("{uplink}\nis said to be wrong: {wanted:?}"), SOON, || {
        let ended = process.ended();
        let said = wanted.iter().all(|word| process.log().contains(word));
        (said || ended.is_some()).then_some(ended)
    });
    assert_says(uplink, &process.log(), wanted);
    let code = ended.map(|status| status.code());
    assert!(matches!(code, None | Some(Some(BAD_CONFIGURATION))), "{uplink}: ended with {code:?}");
}

fn assert_says(fault: &str, said: &str, wanted: &[&str]) {
    for word in wanted {
        assert!(said.contains(word), "{fault}\nis said to be wrong without {word:?}:\n{said}");
    }
}

fn set_mode(path: &std::path::Path, mode: u32) {
    let mode = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(path, mode).expect("a file just written");
}
