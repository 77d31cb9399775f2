//! The contract, as a table of texts and what is said about each.

use super::*;

const FILE: &str = "/etc/fieldgate/fieldgate.toml";

fn load_with(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::from_text(text, Path::new(FILE), env)
}

fn load(text: &str) -> Config {
    load_with(text, &[]).unwrap_or_else(|error| panic!("{text}\n{error}"))
}

/// The faults of a text that is otherwise right, without the file's name.
fn faults(text: &str, env: &[(&str, &str)]) -> String {
    match load_with(text, env) {
        Ok(_) => String::new(),
        Err(error) => error.to_string().replace(&format!("{FILE}:"), ""),
    }
}

fn shipped(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name);
    std::fs::read_to_string(path).expect("the file stands in configs/")
}

/// A shipped file as it is when every key in it is used: `#key = …` is a key, `# Words` are words.
fn uncommented(text: &str) -> String {
    let lines = text.lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => rest,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_fault_in_a_name_says_which_was_meant() {
    for (text, says) in [
        (
            "[uplink]\nping_intervall = 1",
            "2: uplink.ping_intervall: there is no such key; did you mean `ping_interval`?",
        ),
        (
            "[uplink]\ntoken = 'secret'",
            "2: uplink.token: there is no such key; did you mean `token_file`?",
        ),
        ("[listner]", "1: listner: there is no such table; did you mean `listener`?"),
        (
            "[spool]\nurl = 1",
            "2: spool.url: there is no such key in [spool]; it belongs in [uplink] or [mqtt]",
        ),
        ("bind = 1", "1: bind: this key stands in no table; put it under [listener]"),
        (
            "[gateway]\ncompression = 1",
            "2: gateway.compression: there is no such key; [gateway] has id, state_dir",
        ),
        (
            "[[telemetry]]\ntopic = 'a'\n[[telemetry]]\ntopics = 'a'",
            "3: telemetry.topic: it is missing; write topic = \"devices/{device}/telemetry\"\n4: telemetry.topics: there is no such key; did you mean `topic`?",
        ),
        (
            "[telemetry]\ntopic = 'a'",
            "1: telemetry: a table stands where a table must; write [[telemetry]] on a line of its own",
        ),
        (
            "uplink = 1",
            "1: uplink: an integer stands where a table must; write [uplink] on a line of its own",
        ),
        (
            "metrics = 1",
            "1: metrics: there is no such table; there are gateway, uplink, spool, mqtt, listener, telemetry, commands",
        ),
    ] {
        assert_eq!(faults(text, &[]), says, "{text}");
    }
}

#[test]
fn a_fault_in_a_value_says_what_to_write() {
    for (table, line, says) in [
        (
            "uplink",
            "url = 'http://hub'",
            "uplink.url: scheme \"http\" is not a WebSocket scheme; use wss://",
        ),
        (
            "uplink",
            "url = 7",
            "uplink.url: an integer is not text; write url = \"wss://hub.example.com/v1/gateway\"",
        ),
        ("uplink", "url = []", "uplink.url: the list is empty; write one URL"),
        (
            "uplink",
            "url = ['wss://a', 'wss://b']",
            "uplink.url: more than one URL is not available in this version; keep one",
        ),
        (
            "uplink",
            "protocol = 'Auto'",
            "uplink.protocol: \"Auto\" is not known; write \"managed\" or \"plain\" or \"auto\"",
        ),
        (
            "uplink",
            "ping_interval = 25",
            "uplink.ping_interval: an integer is not a duration; write ping_interval = \"25s\"",
        ),
        (
            "uplink",
            "ping_interval = '25'",
            "uplink.ping_interval: \"25\" is not a duration; write a whole number and ms, s, m or h, such as \"25s\"",
        ),
        (
            "uplink",
            "ping_interval = '0s'",
            "uplink.ping_interval: \"0s\" is out of bounds; write 100ms to 1h",
        ),
        (
            "uplink",
            "backoff_max = '100ms'",
            "uplink.backoff_max: it is shorter than backoff_min; write a longer one",
        ),
        (
            "uplink",
            "plain_commands = 'yes'",
            "uplink.plain_commands: a string is not true or false; write plain_commands = false",
        ),
        (
            "uplink",
            "client_cert_file = 'a'",
            "uplink.client_cert_file: it is of no use without client_key_file; write both or neither",
        ),
        (
            "uplink",
            "client_key_file = 'a'",
            "uplink.client_key_file: it is of no use without client_cert_file; write both or neither",
        ),
        (
            "uplink",
            "ca_file = ''",
            "uplink.ca_file: the path is empty; write one or remove the key",
        ),
        ("uplink", "ca_file = '~/ca'", "uplink.ca_file: ~ is not expanded; write the whole path"),
        (
            "uplink",
            "ca_file = '$HOME/ca'",
            "uplink.ca_file: only $CREDENTIALS_DIRECTORY/ is expanded; write the whole path",
        ),
        (
            "uplink",
            "token_file = '$CREDENTIALS_DIRECTORY/t'",
            "uplink.token_file: systemd sets $CREDENTIALS_DIRECTORY only where the unit has LoadCredential=; add it, or write a path",
        ),
        (
            "uplink",
            "proxy = 'http://p'",
            "uplink.proxy: a proxy is not available in this version; remove it; the gateway connects to the hub directly",
        ),
        (
            "uplink.jwt",
            "key = 'k'",
            "uplink.jwt: signing tokens is not available in this version; remove it; use token_file or a client certificate",
        ),
        (
            "spool",
            "order = 'live-first'",
            "spool.order: \"live-first\" is not available in this version; remove it; the order is \"oldest-first\"",
        ),
        ("spool", "order = 'x'", "spool.order: \"x\" is not known; write \"oldest-first\""),
        (
            "spool",
            "max_bytes = '1MiB'",
            "spool.max_bytes: 1MiB is out of bounds; write 8MiB to 1024TiB",
        ),
        (
            "spool",
            "max_bytes = 'lots'",
            "spool.max_bytes: \"lots\" is not a size; write a whole number and B, KiB, MiB, GiB, TiB, KB, MB, GB or TB, such as \"64KiB\"",
        ),
        (
            "spool",
            "max_record_bytes = 0",
            "spool.max_record_bytes: 0B is out of bounds; write 1B to 16MiB",
        ),
        (
            "spool",
            "max_record_bytes = '17MiB'",
            "spool.max_record_bytes: 17MiB is out of bounds; write 1B to 16MiB",
        ),
        (
            "spool",
            "lanes = ['events']",
            "spool.lanes: \"events\" is the gateway's own and always goes first; remove it",
        ),
        ("spool", "lanes = ['a', 'a']", "spool.lanes: \"a\" comes twice; remove one"),
        (
            "spool",
            "lanes = ['A b']",
            "spool.lanes: \"A b\" is not a stream name: 1 to 32 of a-z 0-9 - _",
        ),
        (
            "spool",
            "lanes = [1]",
            "spool.lanes: an integer is not text; write lanes = [\"alarms\", \"telemetry\"]",
        ),
        (
            "gateway",
            "id = 'a b'",
            "gateway.id: \"a b\" is not a gateway id; write 1 to 128 of A-Z a-z 0-9 - _ . :",
        ),
        (
            "mqtt",
            "max_inflight = 20",
            "mqtt.url: it is missing; write url = \"mqtt://127.0.0.1:1883\"",
        ),
        (
            "mqtt",
            "url = 'mqtt://u:secret@b'",
            "mqtt.url: a URL must not hold credentials; use username and password_file",
        ),
        (
            "mqtt",
            "url = 'mqtt://b'\nca_file = 'x'",
            "mqtt.ca_file: an mqtt:// URL has no TLS; use mqtts:// or remove this key",
        ),
        (
            "mqtt",
            "url = 'mqtt://b'\nusername = 'x'",
            "mqtt.username: it is of no use without password_file; write both or neither",
        ),
        (
            "mqtt",
            "url = 'mqtt://b'\nkeep_alive = '1500ms'",
            "mqtt.keep_alive: MQTT counts it in whole seconds; write it so",
        ),
        (
            "mqtt",
            "url = 'mqtt://b'\nmax_inflight = 70000",
            "mqtt.max_inflight: 70000 is out of bounds; write 1 to 65535",
        ),
        (
            "listener",
            "bind = '0.0.0.0:1883'",
            "listener.bind: devices could connect to 0.0.0.0:1883 without authentication; use tls_bind with client_ca_file",
        ),
        (
            "listener",
            "bind = 'localhost:1883'",
            "listener.bind: \"localhost:1883\" is not an address with a port; write one such as 127.0.0.1:1883 or [::]:8883",
        ),
        (
            "listener",
            "tls_bind = '0.0.0.0:8883'\ncert_file = 'c'\nkey_file = 'k'",
            "listener.tls_bind: it needs client_ca_file; write cert_file, key_file and client_ca_file",
        ),
        (
            "listener",
            "cert_file = 'c'",
            "listener.cert_file: it is of no use without tls_bind; write both or neither",
        ),
        (
            "listener",
            "users_file = 'u'",
            "listener.users_file: a file of users is not available in this version; remove it; use tls_bind with client_ca_file",
        ),
        (
            "[telemetry]",
            "topic = 'a/b{c}'",
            "telemetry.topic: level \"b{c}\" mixes text with a wildcard or a name; a level is either text, +, #, {name} or {name...}",
        ),
        (
            "[telemetry]",
            "topic = 'a'\nlane = 'alarms'",
            "telemetry.lane: there is no lane \"alarms\"; add it to spool.lanes or use telemetry",
        ),
        (
            "[telemetry]",
            "topic = 'a/{device}'\ndevice = 'x'",
            "telemetry.device: the topic names the device already; remove one of them",
        ),
        (
            "[telemetry]",
            "topic = 'a'\ndevice = '+'",
            "telemetry.device: \"+\" can't name a device; write 1 to 256 bytes, without + and #",
        ),
        (
            "[telemetry]",
            "topic = 'a/{x}'\n[[telemetry]]\ntopic = 'a/+'",
            "telemetry.topic: an earlier [[telemetry]] takes the same topics first; remove one of them",
        ),
        (
            "commands",
            "topic = 'a/{command}'",
            "commands.topic: a command must reach one device; write {device} into the topic",
        ),
        (
            "commands",
            "topic = 'a/{device}/+'",
            "commands.topic: \"+\" has no value here; this topic can use {device}, {command} and {id}",
        ),
        (
            "commands",
            "reply = 'a/{device}'",
            "commands.reply: a reply is found by the command's id; write {id} into the topic",
        ),
        (
            "commands",
            "allow = 'x/y'",
            "commands.allow: a string is not a list of texts; write allow = [\"*/identify\"]",
        ),
        (
            "commands",
            "allow = ['x']",
            "commands.allow: \"x\" is not device/command; write one such as \"*/identify\"",
        ),
        (
            "[socket]",
            "path = '/x'",
            "socket: a socket for programs is not available in this version; remove it; they can publish to the [listener]",
        ),
    ] {
        let text = format!("[{table}]\n{line}");
        let found = faults(&text, &[]);
        let (_, found) = found.split_once(": ").unwrap_or_else(|| panic!("no fault in {text}"));
        assert_eq!(found, says, "{text}");
    }
}

#[test]
fn every_fault_is_told_with_its_line() {
    let text = "[spool]\nlanes = [\n  'a',\n  'B',\n]\n[uplink]\nurl = 'ws://hub.lan'\n\nack_timeout = 3\n[x]";
    assert_eq!(
        faults(text, &[("FIELDGATE_SPOOL__ORDER", "x")]),
        "4: spool.lanes: \"B\" is not a stream name: 1 to 32 of a-z 0-9 - _\n\
         7: uplink.url: ws:// would send credentials and readings to \"hub.lan\" in the clear; use wss://\n\
         9: uplink.ack_timeout: an integer is not a duration; write ack_timeout = \"10s\"\n\
         10: x: there is no such table; there are gateway, uplink, spool, mqtt, listener, telemetry, commands\n\
         FIELDGATE_SPOOL__ORDER: spool.order: \"x\" is not known; write \"oldest-first\""
    );
    assert_eq!(
        faults("[gateway]\nid = 'a'", &[]),
        " no device can reach this gateway; add [listener] so that devices connect to it, or [mqtt] \
         with the url of a broker"
    );
}

#[test]
fn what_is_not_toml_is_told_without_repeating_it() {
    let found = faults("[uplink]\ntoken_file = s3cr3t value", &[]);
    assert!(found.starts_with("2: this is not TOML: "), "{found}");
    assert!(!found.contains("s3cr3t") && !found.contains('\n'), "{found}");
    assert!(
        faults("[listener]\n[listener]", &[]).starts_with("2: this is not TOML: duplicate key")
    );
}

#[test]
fn the_least_that_works_is_one_source() {
    for text in ["[listener]", "[mqtt]\nurl = 'mqtt://localhost'", &shipped("minimal.toml")] {
        load(text);
    }
    let config = load("[listener]");
    assert_eq!(config.file, Path::new(FILE));
    assert!(config.uplink.is_none() && config.mqtt.is_none() && config.notes.is_empty());
    assert_eq!(config.gateway.state_dir, Path::new("/var/lib/fieldgate"));
    assert_eq!(config.listener.unwrap().bind, Some(([127, 0, 0, 1], 1883).into()));
    assert_eq!(config.spool.max_bytes, 512 << 20);
    assert_eq!(config.spool.lanes.len(), 1);
    assert_eq!(config.telemetry[0].topic.filter(), "devices/+/telemetry");
    assert!(config.commands.allow.is_empty());
    // Without its url an uplink is none, and its other keys may stay.
    assert!(load("[listener]\n[uplink]\nack_timeout = '1s'").uplink.is_none());
}

#[test]
fn what_is_written_is_what_is_meant() {
    let config = load(
        "[gateway]\nid = 'gw-1'\nstate_dir = 'state'\n\
         [uplink]\nurl = ['wss://hub:8443/v1/gateway']\nclient_cert_file = 'gw.pem'\nclient_key_file = '/k'\n\
         [spool]\ndurability = 'disk'\nlanes = ['alarms']\nmax_bytes = 10000000\n\
         [mqtt]\nurl = 'mqtt://broker.lan'\nusername = 'u'\npassword_file = 'p'\n\
         [[telemetry]]\ntopic = 'x/#'\nlane = 'alarms'\ndevice = 'boiler'\n\
         [commands]\nallow = ['plc-*/set_valve', 'hall/*/on']",
    );
    let uplink = config.uplink.unwrap();
    assert_eq!(uplink.url.to_string(), "wss://hub:8443/v1/gateway");
    assert_eq!(uplink.client_cert, Some(("/etc/fieldgate/gw.pem".into(), "/k".into())));
    assert_eq!(config.gateway.state_dir, Path::new("/etc/fieldgate/state"));
    let lanes: Vec<&str> = config.spool.lanes.iter().map(StreamName::as_str).collect();
    assert_eq!(lanes, ["alarms", "telemetry"]);
    assert_eq!(config.notes.len(), 2, "{:?}", config.notes);
    assert_eq!(config.telemetry[0].device.as_deref(), Some("boiler"));
    let permits =
        |device, command| config.commands.allow.iter().any(|a| a.permits(device, command));
    assert!(permits("plc-01", "set_valve") && permits("plc-", "set_valve"));
    assert!(!permits("plc-01", "set_valve2") && !permits("x-plc-01", "set_valve"));
    assert!(permits("hall/lamp", "on") && !permits("hall", "on"));
}

#[test]
fn an_allow_pattern_matches_as_a_shell_would() {
    for (pattern, text, matches) in [
        ("*", "", true),
        ("a*b*c", "a-b-b-c", true),
        ("a*b*c", "acb", false),
        ("a*a", "a", false),
        ("*ab", "aab", true),
        ("a**b", "ab", true),
        ("a", "ab", false),
    ] {
        assert_eq!(matches_pattern(pattern, text), matches, "{pattern} {text}");
    }
}

#[test]
fn the_environment_sets_any_key() {
    let config = load_with(
        "[uplink]\nurl = 'wss://from-the-file'\n[[telemetry]]\ntopic = 'a'",
        &[
            ("FIELDGATE_UPLINK__URL", "wss://from-the-environment"),
            ("FIELDGATE_UPLINK__TOKEN_FILE", "$CREDENTIALS_DIRECTORY/cred_token"),
            ("FIELDGATE_GATEWAY__ID", "007"),
            ("FIELDGATE_LISTENER__BIND", "\"127.0.0.1:0\""),
            ("FIELDGATE_LISTENER__MAX_CLIENTS", "7"),
            ("FIELDGATE_SPOOL__LANES", "['telemetry', 'alarms']"),
            ("FIELDGATE_SPOOL__MAX_BYTES", "16777216"),
            ("FIELDGATE_TELEMETRY", "[{topic = 'b/{device}', lane = 'alarms'}]"),
            ("FIELDGATE_CONFIG", "/x"),
            ("FIELDGATE_LOG", "debug"),
            ("STATE_DIRECTORY", "/var/lib/one:/var/lib/two"),
            ("CREDENTIALS_DIRECTORY", "/run/credentials/fieldgate.service"),
        ],
    )
    .unwrap();
    let uplink = config.uplink.unwrap();
    assert_eq!(uplink.url.host, "from-the-environment");
    let token = Path::new("/run/credentials/fieldgate.service/cred_token");
    assert_eq!(uplink.token_file.as_deref(), Some(token));
    assert_eq!(config.gateway.id.as_deref(), Some("007"));
    assert_eq!(config.gateway.state_dir, Path::new("/var/lib/one"));
    assert_eq!(config.listener.unwrap().max_clients, 7);
    assert_eq!(config.spool.max_bytes, 16 << 20);
    assert_eq!(config.telemetry.len(), 1);
    assert_eq!(config.telemetry[0].topic.filter(), "b/+");
}

#[test]
fn a_fault_in_the_environment_names_the_variable() {
    for (name, value, says) in [
        (
            "FIELDGATE_UPLINK__URI",
            "x",
            "FIELDGATE_UPLINK__URI: uplink.uri: there is no such key; did you mean `url`?",
        ),
        (
            "FIELDGATE_UPLINK",
            "x",
            "FIELDGATE_UPLINK: uplink: a table is set key by key; write FIELDGATE_UPLINK__URL and so on",
        ),
        (
            "FIELDGATE_UPLINK__URL",
            "s3cr3t@x",
            "FIELDGATE_UPLINK__URL: uplink.url: this is not a URL; write one such as wss://hub.example.com/v1/gateway",
        ),
        (
            "FIELDGATE_LISTENER__MAX_CLIENTS",
            "many",
            "FIELDGATE_LISTENER__MAX_CLIENTS: listener.max_clients: a string is not a number; write max_clients = 100",
        ),
        (
            "FIELDGATE_TELEMETRY",
            "a/b",
            "FIELDGATE_TELEMETRY: telemetry: this is not a list of tables; write [{topic=\"a/{device}\"}]",
        ),
        (
            "FIELDGATE_TELEMETRY",
            "[{topc='a'}]",
            "FIELDGATE_TELEMETRY: telemetry.topc: there is no such key; did you mean `topic`?\nFIELDGATE_TELEMETRY: telemetry.topic: it is missing; write topic = \"devices/{device}/telemetry\"",
        ),
        (
            "FIELDGATE_TELEMETRY__TOPIC",
            "a",
            "FIELDGATE_TELEMETRY__TOPIC: telemetry.topic: [[telemetry]] is set as a whole; write FIELDGATE_TELEMETRY",
        ),
        (
            "FIELDGATE_UPLINK__JWT__KEY",
            "a",
            "FIELDGATE_UPLINK__JWT__KEY: uplink.jwt.key: signing tokens is not available in this version; remove it; use token_file or a client certificate",
        ),
    ] {
        assert_eq!(faults("[listener]", &[(name, value)]), says, "{name}={value}");
    }
}

#[test]
fn every_key_is_read() {
    // A date is right for no key: one that does not complain is never asked for.
    for table in &raw::TABLES {
        for key in table.keys {
            let header = if table.many {
                format!("[[{}]]", table.name)
            } else {
                format!("[{}]", table.name)
            };
            let found = faults(&format!("{header}\n{} = 1979-05-27", key.name), &[]);
            let says = format!("2: {}.{}: a date is not ", table.name, key.name);
            let example = format!("; write {} = {}", key.name, key.example);
            assert!(
                found.lines().any(|l| l.starts_with(&says) && l.ends_with(&example)),
                "{says}\n{found}"
            );
        }
    }
}

#[test]
fn the_shipped_file_loads_as_it_is_and_with_every_key_used() {
    let shipped = shipped("fieldgate.toml");
    load(&shipped);
    let credentials = ("CREDENTIALS_DIRECTORY", "/run/credentials/fieldgate.service");
    if let Err(error) = load_with(&uncommented(&shipped), &[credentials]) {
        panic!("{error}");
    }
}

#[test]
fn the_shipped_file_has_every_key() {
    let text = uncommented(&shipped("fieldgate.toml"));
    let mut faults = Vec::new();
    let raw = Raw::read(&text, &mut faults).expect("it is TOML");
    assert_eq!(faults, []);
    for table in &raw::TABLES {
        for key in table.keys {
            let has = |section: &raw::Section| section.entries.contains_key(key.name);
            assert!(raw.all(table.name).iter().any(has), "{}.{}", table.name, key.name);
        }
    }
}

#[test]
fn what_the_shipped_file_shows_as_defaults_is_the_default() {
    let env = [("FIELDGATE_UPLINK__URL", "wss://hub"), ("FIELDGATE_MQTT__URL", "mqtts://broker")];
    let shipped = shipped("fieldgate.toml");
    let shown: Vec<&str> = shipped.lines().filter(|line| !line.ends_with("# example")).collect();
    let shown = load_with(&uncommented(&shown.join("\n")), &env);
    let default = load_with("[listener]", &env);
    let mut shown = shown.unwrap_or_else(|error| panic!("{error}"));
    // `lanes` is written out in the one, which makes no difference.
    shown.notes.clear();
    assert_eq!(format!("{shown:#?}"), format!("{:#?}", default.unwrap()));
}

#[test]
fn no_text_makes_it_panic() {
    let text = uncommented(&shipped("fieldgate.toml"));
    let cut = |end: usize| text.get(..end).unwrap_or_default();
    for end in (0..text.len()).step_by(7) {
        let _ = load_with(
            cut(end),
            &[("FIELDGATE_TELEMETRY", cut(end % 97)), ("FIELDGATE_", ""), ("FIELDGATE___", "")],
        );
    }
    for text in [
        "uplink.url.x = 1",
        "[[uplink]]",
        "telemetry = [1, {}]",
        "[spool]\nmax_bytes = 99999999999999999999",
        "[spool]\nmax_bytes = -0x1",
        "[\"\"]\n\"\" = 1",
    ] {
        assert!(load_with(text, &[]).is_err(), "{text}");
    }
}
