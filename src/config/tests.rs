//! The contract: what is written is what is meant, and the files that are shipped keep to it.

mod faults;

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
         [uplink]\nurl = ['wss://hub:8443/v1/gateway', 'wss://b']\n\
         client_cert_file = 'gw.pem'\nclient_key_file = '/k'\n\
         [spool]\ndurability = 'disk'\nlanes = ['alarms']\nmax_bytes = 10000000\n\
         [mqtt]\nurl = 'mqtt://broker.lan'\nusername = 'u'\npassword_file = 'p'\n\
         [[telemetry]]\ntopic = 'x/#'\nlane = 'alarms'\ndevice = 'boiler'\n\
         [commands]\nallow = ['plc-*/set_valve', 'hall/*/on']",
    );
    let uplink = config.uplink.unwrap();
    let urls: Vec<String> = uplink.hubs.iter().map(|hub| hub.url.to_string()).collect();
    assert_eq!(urls, ["wss://hub:8443/v1/gateway", "wss://b:443/"]);
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
fn a_hub_is_reached_through_the_files_proxy_else_the_environments() {
    let env = [("HTTPS_PROXY", "http://u:p@env:1"), ("NO_PROXY", "near.lan")];
    let proxies = |text: &str| -> Vec<String> {
        let uplink = load_with(&format!("[listener]\n[uplink]\n{text}"), &env).unwrap().uplink;
        let hubs = uplink.unwrap().hubs.into_iter();
        hubs.map(|hub| hub.proxy.map_or("none".into(), |proxy| format!("{proxy:?}"))).collect()
    };
    let both = "url = ['wss://far.lan', 'wss://near.lan']\n";
    let [far, near] = &proxies(both)[..] else { panic!("two hubs") };
    assert!(far.contains("env") && far.contains("hidden") && near == "none", "{far} {near}");
    assert_eq!(proxies(&format!("{both}proxy = 'none'")), ["none", "none"]);
    let file = "proxy = 'socks5://p.lan'\nproxy_user = 'u'\nproxy_password_file = 'w'";
    for shown in proxies(&format!("{both}{file}")) {
        assert!(shown.contains("p.lan") && shown.contains("/etc/fieldgate/w"), "{shown}");
    }
    let bad = [("https_proxy", "ftp://u:s3cret@env")];
    assert_eq!(
        faults("[listener]\n[uplink]\nurl = 'wss://far.lan'", &bad),
        "https_proxy: this is no URL of an http:// or socks5:// proxy; write one such as \
         http://proxy.lan:3128, with / and @ in a password as %2F and %40"
    );
}

#[test]
fn who_can_be_reached_must_be_told_apart() {
    let tls = "tls_bind = '0.0.0.0:8883'\ncert_file = 'c'\nkey_file = 'k'\n";
    let listener = |keys: &str| load(&format!("[listener]\n{keys}"));
    // The keys; whether anonymous clients get in, whether a certificate is a must, how many notes.
    for (keys, anonymous, certificate, notes) in [
        (String::new(), true, true, 0),
        ("users_file = 'u'".into(), false, false, 0),
        ("users_file = 'u'\nallow_anonymous = true".into(), true, false, 0),
        (format!("{tls}users_file = 'u'"), false, false, 0),
        (format!("{tls}client_ca_file = 'a'"), true, true, 0),
        (format!("{tls}client_ca_file = 'a'\nusers_file = 'u'"), false, false, 0),
        (format!("{tls}allow_anonymous = true"), true, false, 1),
        ("bind = '[::]:1883'\nallow_anonymous = true".into(), true, false, 1),
        (
            "bind = '[::]:1883'\nusers_file = 'u'\nallow_cleartext_passwords = true".into(),
            false,
            false,
            1,
        ),
    ] {
        let config = listener(&keys);
        assert_eq!(config.notes.len(), notes, "{keys}: {:?}", config.notes);
        let listener = config.listener.expect("it has one");
        let found = (listener.takes_anonymous(), listener.needs_certificate());
        assert_eq!(found, (anonymous, certificate), "{keys}");
    }
}

#[test]
fn tokens_are_signed_with_the_identitys_key_where_no_other_is_named() {
    let start = "[gateway]\nstate_dir = '/state'\n[listener]\n[uplink]\nurl = 'wss://hub'\n";
    let jwt = |text: &str, env: &[(&str, &str)]| {
        let config = load_with(&format!("{start}{text}"), env).unwrap();
        config.uplink.unwrap().jwt
    };
    assert_eq!(jwt("", &[]), None);
    let default = jwt("[uplink.jwt]", &[]).unwrap();
    assert_eq!(default.key_file, Path::new("/state/identity/gateway.key"));
    assert_eq!((default.audience, default.lifetime.as_secs()), (None, 600));
    let env =
        [("FIELDGATE_UPLINK__JWT__AUDIENCE", "hub"), ("FIELDGATE_UPLINK__JWT__LIFETIME", "1h")];
    let set = jwt("jwt = { kid = '7' }", &env).unwrap();
    assert_eq!((set.audience.as_deref(), set.lifetime.as_secs()), (Some("hub"), 3600));
    assert_eq!((set.kid.as_deref(), set.issuer), (Some("7"), None));
    let config = load_with(&format!("{start}token_file = 't'\n[uplink.jwt]"), &[]).unwrap();
    assert!(config.notes[0].starts_with("uplink.token_file: "), "{:?}", config.notes);
    assert_eq!(config.uplink.unwrap().token_file, None);
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
    assert_eq!(uplink.hubs[0].url.host, "from-the-environment");
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
    for deep in ["[", "{a=", "a.", "[[a."] {
        let _ = load_with(&format!("a = {}", deep.repeat(100_000)), &[]);
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
