//! What is said about each thing that is wrong.

use super::faults;

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
            "3: telemetry.topic: it is missing; write topic = \"devices/{device}/telemetry\"\n4: \
             telemetry.topics: there is no such key; did you mean `topic`?",
        ),
        (
            "[telemetry]\ntopic = 'a'",
            "1: telemetry: a table stands where a table must; write [[telemetry]] on a line of its \
             own",
        ),
        (
            "uplink = 1",
            "1: uplink: an integer stands where a table must; write [uplink] on a line of its own",
        ),
        (
            "metrics = 1",
            "1: metrics: there is no such table; there are gateway, uplink, spool, mqtt, listener, \
             telemetry, commands",
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
            "url = ['wss://a', 'wss://b', 'wss://A:443/']",
            "uplink.url: wss://a:443/ comes twice; remove one",
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
            "uplink.ping_interval: \"25\" is not a duration; write a whole number and ms, s, m, h \
             or d, such as \"25s\"",
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
            "uplink.client_cert_file: it is of no use without client_key_file; write both or \
             neither",
        ),
        (
            "uplink",
            "client_key_file = 'a'",
            "uplink.client_key_file: it is of no use without client_cert_file; write both or \
             neither",
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
            "uplink.token_file: systemd sets $CREDENTIALS_DIRECTORY only where the unit has \
             LoadCredential=; add it, or write a path",
        ),
        (
            "uplink",
            "proxy = 'http://u:s3cret@p'",
            "uplink.proxy: a URL must not hold credentials; use proxy_user and \
             proxy_password_file",
        ),
        (
            "uplink",
            "proxy = 'http://p'\nproxy_user = 'u'",
            "uplink.proxy_user: it is of no use without proxy_password_file; write both or \
             neither",
        ),
        (
            "uplink",
            "bind_interface = 'a/b'",
            "uplink.bind_interface: \"a/b\" is not a network interface; write one that `ip link` \
             shows",
        ),
        (
            "uplink.jwt",
            "key = 'k'",
            "uplink.jwt.key: there is no such key; did you mean `key_file`?",
        ),
        (
            "uplink.jwt",
            "lifetime = '25h'\naudience = ''",
            "uplink.jwt.lifetime: \"25h\" is out of bounds; write 1m to 1d\n3: \
             uplink.jwt.audience: write 1 to 256 bytes of text",
        ),
        (
            "spool",
            "order = 'x'",
            "spool.order: \"x\" is not known; write \"oldest-first\" or \"live-first\"",
        ),
        ("spool", "max_age = '1s'", "spool.max_age: \"1s\" is out of bounds; write 1m to 3650d"),
        (
            "spool",
            "max_bytes = '1MiB'",
            "spool.max_bytes: 1MiB is out of bounds; write 8MiB to 1024TiB",
        ),
        (
            "spool",
            "max_bytes = 'lots'",
            "spool.max_bytes: \"lots\" is not a size; write a whole number and B, KiB, MiB, GiB, \
             TiB, KB, MB, GB or TB, such as \"64KiB\"",
        ),
        (
            "spool",
            "max_record_bytes = 0",
            "spool.max_record_bytes: 0B is out of bounds; write 1B to 1MiB",
        ),
        (
            "spool",
            "max_record_bytes = '17MiB'",
            "spool.max_record_bytes: 17MiB is out of bounds; write 1B to 1MiB",
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
            "gateway.id: \"a b\" is not a gateway id; write 1 to 64 of A-Z a-z 0-9 - _ . :",
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
            "listener.bind: devices could connect to 0.0.0.0:1883 without authentication; use \
             tls_bind with users_file, client_ca_file or both",
        ),
        (
            "listener",
            "bind = '0.0.0.0:1883'\nusers_file = 'u'",
            "listener.bind: passwords would cross the network to 0.0.0.0:1883 in the clear; use \
             tls_bind, or write allow_cleartext_passwords = true",
        ),
        (
            "listener",
            "bind = 'localhost:1883'",
            "listener.bind: \"localhost:1883\" is not an address with a port; write one such as \
             127.0.0.1:1883 or [::]:8883",
        ),
        (
            "listener",
            "tls_bind = '0.0.0.0:8883'\ncert_file = 'c'\nkey_file = 'k'",
            "listener.tls_bind: devices could connect to it without authentication; write \
             users_file, client_ca_file or both",
        ),
        (
            "listener",
            "cert_file = 'c'",
            "listener.cert_file: it is of no use without tls_bind; write both or neither",
        ),
        (
            "listener",
            "tls_bind = '0.0.0.0:8883'\nkey_file = 'k'\nusers_file = 'u'",
            "listener.tls_bind: it needs cert_file; write cert_file and key_file",
        ),
        (
            "[telemetry]",
            "topic = 'a/b{c}'",
            "telemetry.topic: level \"b{c}\" mixes text with a wildcard or a name; a level is \
             either text, +, #, {name} or {name...}",
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
            "telemetry.topic: an earlier [[telemetry]] takes the same topics first; remove one of \
             them",
        ),
        (
            "commands",
            "topic = 'a/{command}'",
            "commands.topic: a command must reach one device; write {device} into the topic",
        ),
        (
            "commands",
            "topic = 'a/{device}/+'",
            "commands.topic: \"+\" has no value here; this topic can use {device}, {command} and \
             {id}",
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
            "socket: a socket for programs is not available in this version; remove it; they can \
             publish to the [listener]",
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
    let text = "[spool]\nlanes = [\n  'a',\n  'B',\n]\n[uplink]\nurl = \
     'ws://hub.lan'\n\nack_timeout = 3\n[x]";
    assert_eq!(
        faults(text, &[("FIELDGATE_SPOOL__ORDER", "x")]),
        "4: spool.lanes: \"B\" is not a stream name: 1 to 32 of a-z 0-9 - _\n\
         7: uplink.url: ws:// would send credentials and readings to \"hub.lan\" in the clear; \
         use wss://\n\
         9: uplink.ack_timeout: an integer is not a duration; write ack_timeout = \"10s\"\n\
         10: x: there is no such table; there are gateway, uplink, spool, mqtt, listener, \
         telemetry, commands\n\
         FIELDGATE_SPOOL__ORDER: spool.order: \"x\" is not known; write \"oldest-first\" or \
         \"live-first\""
    );
    assert_eq!(
        faults("[mqtt]\nurl = 'mqtt://localhost'\n[listener]", &[]),
        "3: listener.bind: mqtt.url names a broker at the same address; write another port, or \
         keep one of [mqtt] and [listener]"
    );
    assert_eq!(
        faults("[gateway]\nid = 'a'", &[]),
        " no device can reach this gateway; add [listener] so that devices connect to it, or \
         [mqtt] with the url of a broker"
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
            "FIELDGATE_UPLINK: uplink: a table is set key by key; write FIELDGATE_UPLINK__URL and \
             so on",
        ),
        (
            "FIELDGATE_UPLINK__URL",
            "s3cr3t@x",
            "FIELDGATE_UPLINK__URL: uplink.url: this is not a URL; write one such as \
             wss://hub.example.com/v1/gateway",
        ),
        (
            "FIELDGATE_LISTENER__MAX_CLIENTS",
            "many",
            "FIELDGATE_LISTENER__MAX_CLIENTS: listener.max_clients: a string is not a number; \
             write max_clients = 100",
        ),
        (
            "FIELDGATE_TELEMETRY",
            "a/b",
            "FIELDGATE_TELEMETRY: telemetry: this is not a list of tables; write \
             [{topic=\"a/{device}\"}]",
        ),
        (
            "FIELDGATE_TELEMETRY",
            "[{topc='a'}]",
            "FIELDGATE_TELEMETRY: telemetry.topc: there is no such key; did you mean \
             `topic`?\nFIELDGATE_TELEMETRY: telemetry.topic: it is missing; write topic = \
             \"devices/{device}/telemetry\"",
        ),
        (
            "FIELDGATE_TELEMETRY__TOPIC",
            "a",
            "FIELDGATE_TELEMETRY__TOPIC: telemetry.topic: [[telemetry]] is set as a whole; write \
             FIELDGATE_TELEMETRY",
        ),
        (
            "FIELDGATE_UPLINK__JWT__KEY",
            "a",
            "FIELDGATE_UPLINK__JWT__KEY: uplink.jwt.key: there is no such key; did you mean \
             `key_file`?",
        ),
    ] {
        assert_eq!(faults("[listener]", &[(name, value)]), says, "{name}={value}");
    }
}
