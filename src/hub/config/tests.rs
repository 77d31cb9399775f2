use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("/etc/fieldgate/hub.toml"), text)
}

#[test]
fn the_least_that_works_is_nothing() {
    let config = parse("").unwrap();
    assert!(config.bind.ip().is_loopback() && config.tls.is_none());
    assert_eq!(config.limits.frame_bytes, 262_144);
}

#[test]
fn the_shipped_file_names_every_key_with_its_default() {
    let text = include_str!("../../../configs/hub.toml");
    let shipped = parse(text).unwrap();
    let uncommented: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(key) if key.contains(" = ") || key.starts_with('[') => format!("{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let mut all = parse(&uncommented).unwrap();
    let tls = all.tls.take().unwrap();
    assert!(tls.client_ca_file.is_some() && tls.crl_file.is_some());
    assert!(all.public_host.take().is_some() && all.jwt.issuer.take().is_some());
    assert_eq!(format!("{all:?}"), format!("{shipped:?}"));
}

#[test]
fn relative_paths_are_relative_to_the_file() {
    let config =
        parse("state_dir = \"state\"\n[tls]\ncert_file = \"a\"\nkey_file = \"/b\"").unwrap();
    assert_eq!(config.store.path, Path::new("/etc/fieldgate/state/hub.db"));
    let tls = config.tls.unwrap();
    assert_eq!(tls.cert_file, Path::new("/etc/fieldgate/a"));
    assert_eq!(tls.key_file, Path::new("/b"));
}

#[test]
fn tokens_may_be_for_the_name_or_for_the_host_that_gateways_know() {
    let audiences = |text: &str| parse(text).unwrap().jwt.audiences;
    assert_eq!(audiences(""), ["hub-1"]);
    for (host, named) in [("HUB.example.com:8443", "hub.example.com"), ("[::1]:8443", "::1")] {
        assert_eq!(audiences(&format!("public_host = \"{host}\"")), ["hub-1", named]);
    }
    let own = "public_host = \"hub.example.com\"\n[jwt]\naudience = \"field\"";
    assert_eq!(audiences(own), ["field"]);
}

#[test]
fn errors_name_the_file_the_line_and_the_key() {
    for (text, expected) in [
        ("name = \"x\"\nbnd = 1", "hub.toml:2: unknown field `bnd`"),
        ("bind = \"0.0.0.0:8443\"", "hub.toml:1: bind: 0.0.0.0:8443 is not a loopback"),
        ("bind = \"nowhere\"", "hub.toml:1: bind: "),
        ("[retention]\nmax_age = \"90\"", "hub.toml:2: max_age: \"90\" is not a time"),
        ("[limits]\nframe_bytes = \"1GiB\"", "hub.toml:2: frame_bytes: \"1GiB\" is not a size"),
        ("[limits]\nframe_bytes = \"1KiB\"", "a message must hold a record"),
        ("[tls]\ncert_file = \"a\"", "hub.toml:1: missing field `key_file`"),
        ("[limits]\nbytes_per_second = \"1KiB\"", "a message must fit into a second"),
        ("public_host = \"wss://hub\"", "hub.toml:1: public_host: \"wss://hub\" is no name"),
        ("trusted_proxies = [\"10.0.0.0/40\"]", "hub.toml:1: trusted_proxies: \"10.0.0.0/40\""),
        ("[jwt]\nissuer = \"x\"", "hub.toml:2: jwt.issuer: its keys are missing"),
        ("[jwt]\njwks_file = \"x\"", "hub.toml:2: jwt: there are keys and no issuer"),
        ("[jwt]\njwks_url = \"http://a.example/k\"", "hub.toml:2: jwks_url: "),
        ("[jwt]\njwks_url = \"https://u:p@a.example/k\"", "has a password in it"),
        ("[jwt]\njwks_url = \"ftp://a.example/k\"", "is no https:// URL"),
        ("[ca]\ndays = 0", "hub.toml:2: days: "),
        ("[tls]\ncert_file = \"\"\nkey_file = \"k\"", "the path is empty"),
        ("[tls]\ncert_file = \"$HOME/c\"\nkey_file = \"k\"", "only $CREDENTIALS_DIRECTORY/ is"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text:?} gave {error:?}");
    }
}
