//! The listener tells devices apart: who they are, what is theirs, and that nobody keeps them out.

use std::{
    io::Write as _,
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use rumqttc::mqttbytes::v4::{ConnectReturnCode, Packet};

use crate::field::{
    Field, SOON,
    certificate::{Authority, issue, trusting},
    eventually, free_port,
    gateway::{Gateway, Setup, binary, run_command},
    hub::{Hub, Row},
    mqtt::{Mqtt, Papers},
    process::{Process, run},
};

const GATEWAY: &str = "gw-1";

/// A change of the listener's certificates counts when two looks, five seconds apart, found it.
const LOOKED_AT: Duration = Duration::from_secs(30);

/// What the canaries below are found by in whatever a program said.
const CANARY: &str = "canary-5f1c";

#[test]
fn a_device_proves_its_name_and_has_only_what_is_its_own() {
    let field = Field::new();
    let hub = Hub::started(&field);
    let (generated, _) = add(&field, "plc-01", &[]);
    field.write("chosen", "correct horse battery");
    set_mode(&field.path("chosen"), 0o600);
    let from_file = field.path("chosen").display().to_string();
    add(&field, "plc-02", &["--password-file", &from_file]);
    add(&field, "log", &["--role", "service", "--password-file", &from_file]);
    let gateway = Gateway::started(&field, &with_users(Setup::new(&field, &hub)));
    let wrong = [
        (Some(("plc-01", "guess")), ConnectReturnCode::BadUserNamePassword),
        (Some(("plc-99", "guess")), ConnectReturnCode::BadUserNamePassword),
        (Some(("plc-02", generated.as_str())), ConnectReturnCode::BadUserNamePassword),
        (None, ConnectReturnCode::NotAuthorized),
    ];
    for (login, code) in wrong {
        assert_eq!(refused(gateway.port, login), code, "{login:?}");
    }
    let mut one = enter(gateway.port, "plc-01", &generated);
    let mut two = enter(gateway.port, "plc-02", "correct horse battery");
    let mut service = enter(gateway.port, "log", "correct horse battery");

    let all = ["#", "+/+/+/+", "devices/#", "devices/+/commands/#", "devices/plc-02/commands/#"];
    for filter in all {
        assert!(!one.may_subscribe(filter).expect("it stays"), "{filter}");
        assert!(service.may_subscribe(filter).expect("it stays"), "{filter}");
    }
    assert!(one.may_subscribe("devices/plc-01/commands/#").expect("it stays"));
    assert!(two.may_subscribe("devices/plc-02/commands/+").expect("it stays"));

    let others = ["devices/plc-02/telemetry", "devices/plc-02/commands/open", "$SYS/x", "a/../b"];
    for (packet_id, topic) in (1..).zip(others) {
        one.publish(topic, packet_id, false, b"{\"n\":666}").expect("it stays");
        assert_eq!(acknowledged(&mut one), packet_id, "{topic}: it would come again for ever");
    }
    one.publish("devices/plc-01/telemetry", 9, false, b"{\"n\":1}").expect("it stays");
    assert_eq!(acknowledged(&mut one), 9);
    let is_own = |row: &Row| row.n == Some(1) && row.device.as_deref() == Some("plc-01");
    hub.wait_for(GATEWAY, "its own reading", is_own);
    let refused = eventually("all refusals are accounted for", SOON, || {
        let rows = hub.all_records(GATEWAY);
        let refusals = rows.iter().filter(|row| row.is_event("refused"));
        let ours = refusals.filter(|row| row.event("reason") == "forbidden");
        let ours = ours.filter(|row| row.event("device") == "plc-01");
        let count = ours.filter_map(|row| row.event("count").as_u64()).sum::<u64>();
        (count == others.len() as u64).then_some(rows)
    });
    assert!(!refused.iter().any(|row| row.n == Some(666)), "nothing in another's name");
    let heard = two.receive(Duration::from_millis(200)).expect("it stays");
    assert!(heard.is_none(), "nobody but the gateway commands plc-02: {heard:?}");
}

#[test]
fn a_device_that_is_removed_is_cut_off_and_a_new_password_needs_no_restart() {
    let field = Field::new();
    let (first, users) = add(&field, "plc-01", &[]);
    let gateway = Gateway::started(&field, &with_users(Setup::towards(String::new())));
    let mut device = enter(gateway.port, "plc-01", &first);
    let (second, _) = add(&field, "plc-01", &[]);
    wait_for_end(&mut device);
    assert_eq!(
        refused(gateway.port, Some(("plc-01", &first))),
        ConnectReturnCode::BadUserNamePassword
    );
    let mut device = enter(gateway.port, "plc-01", &second);
    let mode = std::fs::metadata(&users).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (code, stdout, stderr) = device_command(&field, &["remove", "plc-01"], "");
    assert_eq!((code, stdout.as_str()), (Some(0), ""), "{stderr}");
    wait_for_end(&mut device);
    assert_eq!(
        refused(gateway.port, Some(("plc-01", &second))),
        ConnectReturnCode::BadUserNamePassword
    );
    assert!(stderr.contains("cuts it off") && stderr.contains("client_ca_file"), "{stderr}");
    let (_, list, _) = device_command(&field, &["list"], "");
    assert_eq!(list, "");
    let (code, _, stderr) = device_command(&field, &["remove", "plc-01"], "");
    assert!(code == Some(1) && stderr.contains("no device \"plc-01\""), "{stderr}");
}

/// A device that was removed and had a certificate, too, was called shut out, and came back.
#[test]
fn a_device_is_called_shut_out_only_where_no_certificate_lets_it_in() {
    let field = Field::new();
    let mut setup = with_users(Setup::towards(String::new()));
    let removed = |setup: &Setup| {
        add(&field, "plc-01", &[]);
        let config = field.write("gw-1.toml", setup.to_toml());
        let mut command = binary();
        command.args(["device", "remove", "plc-01", "--config"]).arg(config);
        let (code, _, stderr) = run(command, SOON);
        assert_eq!(code, Some(0), "{stderr}");
        stderr
    };
    let said = removed(&setup);
    assert!(said.contains("is shut out"), "{said}");
    setup.listener_keys += "tls_bind = \"127.0.0.1:1\"\ncert_file = \"a\"\nkey_file = \"b\"\n\
                            client_ca_file = \"c\"\n";
    let said = removed(&setup);
    assert!(!said.contains("is shut out") && said.contains("lets it in again"), "{said}");
    assert!(said.contains("a new authority"), "the remedy: {said}");
}

#[test]
fn users_that_others_can_read_or_that_are_not_there_keep_the_gateway_from_starting() {
    let field = Field::new();
    let setup = with_users(Setup::towards(String::new()));
    let config = field.write("gw-1.toml", setup.to_toml());
    let starts = || run(run_command(&config), SOON);
    let (code, _, stderr) = starts();
    assert!(code == Some(78) && stderr.contains("fieldgate device add"), "{stderr}");
    let (_, users) = add(&field, "plc-01", &[]);
    set_mode(&users, 0o644);
    let (code, _, stderr) = starts();
    assert!(code == Some(78) && stderr.contains("chmod 600"), "{stderr}");
    let (code, _, stderr) = device_command(&field, &["add", "plc-02"], "");
    assert!(code == Some(1) && stderr.contains("chmod 600"), "{stderr}");
}

#[test]
fn names_and_passwords_that_will_not_do_are_refused_with_the_reason() {
    let field = Field::new();
    for name in ["a/b", "#", "+", "", " a", "$SYS", "a\nb"] {
        let (code, stdout, stderr) = device_command(&field, &["add", name], "");
        assert!(code == Some(1) && stderr.contains("can't name a device"), "{name:?}: {stderr}");
        assert_eq!(stdout, "");
    }
    for password in ["short", "", "two\nlines, each long enough"] {
        let (code, _, stderr) =
            device_command(&field, &["add", "a", "--password-file", "-"], password);
        assert!(code == Some(1) && stderr.contains("8 to 255 bytes"), "{stderr}");
        assert!(password.is_empty() || !stderr.contains(password), "{stderr}");
    }
    assert!(!field.path("devices").exists(), "nothing was made for that");
    let (code, _, stderr) = device_command(&field, &["add", "a", "--password", "x"], "");
    assert!(code == Some(2), "a password is not for the command line: {stderr}");
}

#[test]
fn no_password_is_in_what_a_gateway_says_or_keeps() {
    let field = Field::new();
    let secret = format!("{CANARY}-right");
    let from_input = ["add", "plc-01", "--password-file", "-"];
    let (code, _, added) = device_command(&field, &from_input, &secret);
    assert_eq!(code, Some(0), "{added}");
    let (generated, users) = add(&field, "plc-02", &[]);
    let setup = with_users(Setup::towards(String::new()));
    let config = field.write("gw-1.toml", setup.to_toml());
    let log = field.path("gw-1.log");
    let mut command = run_command(&config);
    command.env("FIELDGATE_LOG", "trace");
    let process = Process::start("fieldgate", command, &log);
    let port = setup.listener.expect("it has a listener");
    eventually("the listener listens", SOON, || TcpStream::connect(("127.0.0.1", port)).ok());
    let mut device = enter(port, "plc-01", &secret);
    device.publish("devices/plc-01/telemetry", 1, false, b"{}").expect("it stays");
    assert_eq!(acknowledged(&mut device), 1);
    enter(port, "plc-02", &generated);
    let guess = format!("{CANARY}-wrong");
    for user in ["plc-01", "plc-99"] {
        let code = refused(port, Some((user, &guess)));
        assert_eq!(code, ConnectReturnCode::BadUserNamePassword);
    }
    // Cut within its password, and followed by what is no MQTT.
    let mut raw = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    let connect =
        [b"\x10\x40\x00\x04MQTT\x04\xc2\x00\x3c\x00\x01z\x00\x01u\x00\x30", CANARY.as_bytes()];
    raw.write_all(&connect.concat()).expect("it is read");
    drop(raw);
    let log = process.log();
    assert!(log.contains("wrong user name or password") && log.contains("DEBUG"), "{log}");
    let proc = |name: &str| {
        std::fs::read(format!("/proc/{}/{name}", process.id())).expect("the gateway runs")
    };
    let lines = process.lines().join("\n");
    let mut said = vec![added, log, lines, text(&proc("cmdline")), text(&proc("environ"))];
    said.push(text(&std::fs::read(&users).expect("it is there")));
    for file in files(&field.path("state")) {
        said.extend(std::fs::read(&file).map(|bytes| text(&bytes)));
    }
    for said in said {
        assert!(!said.contains(CANARY) && !said.contains(&generated), "{said}");
    }
}

#[test]
fn over_tls_a_certificate_or_a_password_will_do_and_nothing_else() {
    let field = Field::new();
    let server = issue(&field, "listener", "localhost", 2100);
    let (devices, strangers) =
        (Authority::new(&field, "devices-ca"), Authority::new(&field, "strangers-ca"));
    let (password, _) = add(&field, "plc-01", &[]);
    let mut setup = with_users(Setup::towards(String::new()));
    let port = free_port();
    setup.listener_keys += &format!(
        "tls_bind = \"127.0.0.1:{port}\"\ncert_file = {:?}\nkey_file = {:?}\nclient_ca_file = {:?}\n",
        server.cert, server.key, devices.ca
    );
    let _gateway = Gateway::started(&field, &setup);
    let bare = trusting(&server.ca);
    let shown = |authority: &Authority, name: &str| authority.client(&server.ca, name);
    let knock = |tls: &Arc<rustls::ClientConfig>, login| {
        Mqtt::knock(port, "esp", &Papers { login, tls: Some(tls.clone()) })
    };
    let code = |answer: std::io::Result<Result<Mqtt, ConnectReturnCode>>| {
        answer.expect("it is answered").err()
    };
    let right = Some(("plc-01", password.as_str()));
    assert_eq!(code(knock(&bare, right)), None);
    assert_eq!(code(knock(&bare, None)), Some(ConnectReturnCode::NotAuthorized));
    let wrong = Some(ConnectReturnCode::BadUserNamePassword);
    assert_eq!(code(knock(&bare, Some(("plc-01", "guess")))), wrong);
    let of_two = shown(&devices, "plc-02");
    assert_eq!(code(knock(&of_two, None)), None);
    assert_eq!(code(knock(&of_two, right)), wrong, "two names");
    let nobody = shown(&devices, "a/b");
    assert_eq!(code(knock(&nobody, right)), Some(ConnectReturnCode::NotAuthorized));
    assert!(knock(&shown(&strangers, "plc-02"), right).is_err(), "another authority's");
    let mut two = knock(&of_two, None).expect("it is answered").expect("it is let in");
    assert!(two.may_subscribe("devices/plc-02/commands/#").expect("it stays"));
    assert!(!two.may_subscribe("devices/plc-01/commands/#").expect("it stays"));
}

/// The listener's certificate was read at the start alone: whoever renewed it had to restart the
/// gateway, and a device's authority that was withdrawn stayed until then.
#[test]
fn the_listeners_certificates_are_replaced_under_its_devices_without_a_restart() {
    let field = Field::new();
    let first = issue(&field, "listener", "localhost", 2100);
    let (devices, others) =
        (Authority::new(&field, "devices-ca"), Authority::new(&field, "others"));
    let mut setup = Setup::towards(String::new());
    let port = free_port();
    setup.listener_keys = format!(
        "tls_bind = \"127.0.0.1:{port}\"\ncert_file = {:?}\nkey_file = {:?}\nclient_ca_file = {:?}\n",
        first.cert, first.key, devices.ca
    );
    let mut gateway = Gateway::started(&field, &setup);
    let enter = |tls: &Arc<rustls::ClientConfig>, client_id: &str| {
        let papers = Papers { login: None, tls: Some(tls.clone()) };
        Mqtt::knock(port, client_id, &papers).ok()?.ok()
    };
    let old = devices.client(&first.ca, "plc-01");
    let stranger = others.client(&first.ca, "plc-02");
    let mut device = enter(&old, "esp-1").expect("it is let in");
    assert!(enter(&stranger, "esp-2").is_none());
    let mut publish = |packet_id| {
        device.publish("devices/plc-01/telemetry", packet_id, false, b"{}").expect("it stays");
        assert_eq!(acknowledged(&mut device), packet_id);
    };
    publish(1);

    // A key that is another certificate's: the pair of before goes on.
    let kept = std::fs::read(&first.key).expect("it is there");
    let broken = issue(&field, "broken", "localhost", 2100);
    std::fs::copy(&broken.key, &first.key).expect("a file of the scenario's own");
    let said = |gateway: &Gateway, what: &str| {
        let log = gateway.log();
        log.lines().any(|line| line.contains(what)).then_some(log)
    };
    let log = eventually("the pair is refused", LOOKED_AT, || said(&gateway, "can't be used"));
    assert!(log.contains("listener.key: it is not the key of the certificate"), "{log}");
    publish(2);
    assert!(enter(&old, "esp-2").is_some(), "the old one is still shown");
    std::fs::write(&first.key, kept).expect("a file of the scenario's own");

    let next = issue(&field, "listener", "localhost", 2100);
    let new = devices.client(&next.ca, "plc-02");
    eventually("the new certificate is shown", LOOKED_AT, || enter(&new, "esp-2"));
    assert!(enter(&old, "esp-3").is_none(), "whoever trusts the old one alone");
    publish(3);

    // The authority of the devices: who came by the old one goes.
    std::fs::copy(&others.ca, &devices.ca).expect("a file of the scenario's own");
    eventually("the connection is ended", LOOKED_AT, || {
        device.receive(Duration::from_millis(50)).is_err().then_some(())
    });
    assert!(enter(&new, "esp-2").is_none());
    let other = others.client(&next.ca, "plc-03");
    assert!(enter(&other, "esp-3").is_some());
    assert!(gateway.process.as_mut().expect("it was started").ended().is_none());
}

#[test]
fn a_thousand_half_open_connections_keep_no_device_out_and_take_no_memory() {
    let field = Field::new();
    let (password, _) = add(&field, "plc-01", &[]);
    let gateway = Gateway::started(&field, &with_users(Setup::towards(String::new())));
    let before = gateway.peak_resident_kib();
    // Each declares 128 KiB, and sends a few bytes of them.
    let start = b"\x10\x80\x80\x08\x00\x04MQTT\x04";
    let mut half_open = Vec::new();
    for _ in 0..1000 {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", gateway.port)) else { continue };
        let _ = stream.write_all(start);
        half_open.push(stream);
    }
    assert!(half_open.len() >= 500, "{} connections only", half_open.len());
    let mut device = eventually("the device gets in", 2 * SOON, || {
        let papers = Papers { login: Some(("plc-01", &password)), tls: None };
        Mqtt::knock(gateway.port, "esp", &papers).ok()?.ok()
    });
    device.publish("devices/plc-01/telemetry", 1, false, b"{}").expect("it stays");
    assert_eq!(acknowledged(&mut device), 1);
    let grown = gateway.peak_resident_kib() - before;
    assert!(grown < 4096, "{grown} KiB for connections that said nothing");
}

fn with_users(setup: Setup) -> Setup {
    Setup { listener_keys: "users_file = \"devices\"\n".into(), ..setup }
}

/// `fieldgate device add`: the password that it shows, and the file it is known by.
fn add(field: &Field, name: &str, more: &[&str]) -> (String, PathBuf) {
    let (code, stdout, stderr) = device_command(field, &[&["add", name], more].concat(), "");
    assert_eq!(code, Some(0), "{stderr}");
    (stdout.trim_end().to_owned(), field.path("devices"))
}

fn device_command(field: &Field, arguments: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut command: Command = binary();
    command.arg("device").args(arguments).arg("--users").arg(field.path("devices"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("fieldgate was built");
    // A command that has no use for it does not read it.
    let _ = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn enter(port: u16, user: &str, password: &str) -> Mqtt {
    let papers = Papers { login: Some((user, password)), tls: None };
    let answer = Mqtt::knock(port, &format!("{user}-client"), &papers).expect("it is answered");
    answer.unwrap_or_else(|code| panic!("{user} is not let in: {code:?}"))
}

fn refused(port: u16, login: Option<(&str, &str)>) -> ConnectReturnCode {
    let answer = Mqtt::knock(port, "esp", &Papers { login, tls: None }).expect("it is answered");
    answer.err().unwrap_or_else(|| panic!("{login:?} was let in"))
}

fn acknowledged(mqtt: &mut Mqtt) -> u16 {
    match mqtt.receive(SOON).expect("it stays") {
        Some(Packet::PubAck(ack)) => ack.pkid,
        other => panic!("no PUBACK but {other:?}"),
    }
}

fn wait_for_end(mqtt: &mut Mqtt) {
    eventually("the connection is ended", SOON, || {
        mqtt.receive(Duration::from_millis(50)).is_err().then_some(())
    });
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path()),
            Ok(kind) if kind.is_file() => vec![entry.path()],
            _ => Vec::new(),
        })
        .collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn set_mode(path: &Path, mode: u32) {
    let mode = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(path, mode).expect("a file just written");
}
