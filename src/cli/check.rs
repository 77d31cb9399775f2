//! `fieldgate check`: says in plain sentences what the configuration means. It reads the file, the
//! environment, what an enrolment left and the credential files; it writes nothing and opens no
//! connection.

use std::{
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{
    config::{
        Commands, Config, ConfigError, Durability, Listener, Mqtt, ProxyLogin, Spool, Uplink,
        show_duration, show_size,
    },
    identity,
    protocol::Mode,
};

/// Explains the file on standard output, or its faults on standard error.
///
/// Exit code 0, or 78 when the gateway could not start with it: a fault in the file, or a
/// credential that is missing or open to others. A credential that only this user may not read is
/// no fault: the gateway may be another user.
pub(super) fn check(file: &Path) -> ExitCode {
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(ConfigError::EXIT_CODE);
        }
    };
    let files = credential_files(&config);
    let findings: Vec<(&CredentialFile, Finding)> =
        files.iter().map(|file| (file, look_at(file))).collect();
    let text = explain(&config) + &explain_files(&findings);
    // Whoever closed the pipe has read enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    let mut code = ExitCode::SUCCESS;
    for (file, finding) in findings {
        if let Finding::Unusable(fault) = finding {
            eprintln!("{}: {}: {}: {fault}", config.file.display(), file.key, file.path.display());
            code = ExitCode::from(ConfigError::EXIT_CODE);
        }
    }
    code
}

/// What the configuration means, without a look at any other file.
fn explain(config: &Config) -> String {
    let mut text = String::new();
    let mut say = |line: String| text.extend([line.as_str(), "\n"]);
    say(format!("What {} means:", config.file.display()));
    say(match &config.gateway.id {
        Some(id) => format!("The gateway is called {id}."),
        None => "The gateway is called as its credential says, else by host and machine id.".into(),
    });
    if let Some(mqtt) = &config.mqtt {
        say(explain_mqtt(mqtt));
    }
    if let Some(listener) = &config.listener {
        explain_listener(listener).into_iter().for_each(&mut say);
    }
    for telemetry in &config.telemetry {
        let device = match (&telemetry.device, telemetry.topic.names("device")) {
            (Some(device), _) => format!("the device {device}"),
            (None, true) => "the device that the topic names".into(),
            (None, false) => "the gateway itself".into(),
        };
        let (topic, filter) = (&telemetry.topic, telemetry.topic.filter());
        say(format!(
            "What is published to {topic} (subscribed as {filter}) is telemetry of {device}, in \
             lane {}.",
            telemetry.lane
        ));
    }
    explain_spool(&config.spool, &config.gateway.state_dir).into_iter().for_each(&mut say);
    match &config.uplink {
        Some(uplink) => explain_uplink(uplink).into_iter().for_each(&mut say),
        None => say("There is no [uplink] url: records are kept until there is one.".into()),
    }
    if let Some(enrolled) = &config.enrolled {
        let keys: Vec<&str> = enrolled.keys.iter().map(|(key, _)| key.as_str()).collect();
        say(format!("By enrolment ({}): {}.", enrolled.file.display(), keys.join(", ")));
    }
    explain_commands(&config.commands).into_iter().for_each(&mut say);
    for note in &config.notes {
        say(format!("Note: {note}."));
    }
    text
}

fn explain_mqtt(mqtt: &Mqtt) -> String {
    let mut text = format!("It connects to the MQTT broker {} on port {}", mqtt.host, mqtt.port);
    text += if mqtt.tls { " over TLS" } else { " without TLS" };
    if let Some((username, _)) = &mqtt.credentials {
        let _ = write!(text, ", as {username}");
    }
    let _ = write!(text, ", with up to {} messages in flight.", mqtt.max_inflight);
    text
}

fn explain_listener(listener: &Listener) -> Vec<String> {
    let mut lines = Vec::new();
    let proofs = |ca: Option<&PathBuf>| {
        let by_certificate = ca.map(|file| format!("a certificate of {}", file.display()));
        let by_password = (listener.users_file.as_ref())
            .map(|file| format!("a name and password of {}", file.display()));
        let proofs: Vec<String> = by_certificate.into_iter().chain(by_password).collect();
        match (proofs.is_empty(), listener.anonymous) {
            (true, true) => " and need not say who they are".into(),
            (true, false) => String::new(),
            (false, true) => format!(" and may show {}", proofs.join(" or ")),
            (false, false) => format!(" and must show {}", proofs.join(" or ")),
        }
    };
    if let Some(bind) = listener.bind {
        let from = if bind.ip().is_loopback() { " on this machine" } else { "" };
        let proofs = proofs(None);
        lines.push(format!("Devices{from} connect to it by MQTT on {bind}{proofs}."));
    }
    if let Some(tls) = &listener.tls {
        let (bind, proofs) = (tls.bind, proofs(tls.client_ca_file.as_ref()));
        lines.push(format!("Devices connect to it by MQTT over TLS on {bind}{proofs}."));
    }
    let rate = listener.max_publish_rate;
    let rate = rate.map(|rate| format!(" and {rate} publishes a second")).unwrap_or_default();
    lines.push(format!(
        "At most {} devices at once, each with up to {} publishes unacknowledged{rate}.",
        listener.max_clients, listener.max_inflight
    ));
    lines
}

fn explain_spool(spool: &Spool, state_dir: &Path) -> Vec<String> {
    let lanes: Vec<&str> = spool.lanes.iter().map(|lane| lane.as_str()).collect();
    let after = show_duration(spool.write_after);
    vec![
        match spool.durability {
            Durability::HubOrDisk => format!(
                "A publish is acknowledged when the hub has it or it is on disk; it is written \
                 when the hub takes longer than {after}."
            ),
            Durability::Disk => {
                "A publish is acknowledged, and sent, only when it is on disk.".into()
            }
        },
        format!(
            "Records are kept in {}, up to {}; then the oldest go, accounted for. A payload of \
             more than {} is refused.",
            state_dir.display(),
            show_size(spool.max_bytes),
            show_size(spool.max_record_bytes as u64)
        ),
        format!("Lanes, first goes first: {}.", lanes.join(", ")),
    ]
}

fn explain_uplink(uplink: &Uplink) -> Vec<String> {
    let mode = match uplink.protocol {
        Mode::Managed => "a hub (exactly once)",
        Mode::Plain => "any WebSocket server (at least once)",
        Mode::Auto => "a hub if it answers as one, else as a plain WebSocket server",
    };
    let certificate = uplink.client_cert.as_ref().map(|_| "a client certificate".to_owned());
    let token = match (&uplink.token_file, &uplink.jwt) {
        (_, Some(jwt)) => Some(format!(
            "a token that it signs for each connection, good for {}",
            show_duration(jwt.lifetime)
        )),
        (Some(_), None) => Some("a token".into()),
        (None, None) => None,
    };
    let by = match (certificate, token) {
        (Some(certificate), Some(token)) => format!("{certificate} and {token}"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => "nothing: the server must not ask who it is".into(),
    };
    let mut lines = vec![
        format!("Records go to {}, taken for {mode}.", explain_hubs(uplink)),
        format!("There it shows {by}."),
    ];
    lines.push(match &uplink.ca_file {
        _ if uplink.hubs.iter().all(|hub| !hub.url.tls) => {
            "The connection stays on this machine and has no TLS.".into()
        }
        Some(ca) => format!("The server's certificate must come from {}.", ca.display()),
        None => "The server's certificate must come from an authority the system trusts.".into(),
    });
    lines.push(format!(
        "A silent link is found after {}, and tried again after {} at first, {} at most.",
        show_duration(uplink.ping_interval + uplink.ping_timeout),
        show_duration(uplink.backoff.0),
        show_duration(uplink.backoff.1)
    ));
    if let Some(name) = &uplink.bind_interface {
        lines.push(format!("Every connection there leaves by the interface {name}."));
    }
    if uplink.hubs.len() > 1 {
        lines.push(format!(
            "After a failed attempt the next hub follows; {} after that the first is tried again.",
            show_duration(uplink.return_after)
        ));
    }
    if uplink.plain_commands {
        lines.push("A plain server may send commands, too.".into());
    }
    lines
}

fn explain_hubs(uplink: &Uplink) -> String {
    let hubs = uplink.hubs.iter().map(|hub| match &hub.proxy {
        None => hub.url.to_string(),
        Some(proxy) => {
            let known = if proxy.login.is_some() { ", known there by a password" } else { "" };
            format!("{} (through {proxy}{known})", hub.url)
        }
    });
    hubs.collect::<Vec<_>>().join(", else to ")
}

fn explain_commands(commands: &Commands) -> Vec<String> {
    if commands.allow.is_empty() {
        return vec!["No command is allowed.".into()];
    }
    let mut lines = vec![format!(
        "Commands are published to {}, replies are awaited on {}.",
        commands.topic, commands.reply
    )];
    for pattern in &commands.allow {
        let any = |pattern: &str, what: &str| match pattern {
            "*" => format!("any {what}"),
            exact => format!("{what} {exact}"),
        };
        let (device, command) = (any(&pattern.device, "device"), any(&pattern.command, "command"));
        lines.push(format!("Allowed: {command} to {device}."));
    }
    lines
}

/// A file that a connection depends on.
#[derive(Debug)]
pub(super) struct CredentialFile {
    pub(super) key: &'static str,
    pub(super) path: PathBuf,
    /// A key, a token or a password: nobody else may read it.
    secret: bool,
}

/// What a look at it showed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Finding {
    Readable,
    /// This user may not read it; the gateway's may.
    NotForThisUser,
    /// The fault and the remedy.
    Unusable(String),
}

pub(super) fn credential_files(config: &Config) -> Vec<CredentialFile> {
    let mut files = Vec::new();
    let mut add = |key, path: Option<&PathBuf>, secret| {
        files.extend(path.map(|path| CredentialFile { key, path: path.clone(), secret }));
    };
    if let Some(uplink) = &config.uplink {
        let pair = uplink.client_cert.as_ref();
        add("uplink.ca_file", uplink.ca_file.as_ref(), false);
        add("uplink.client_cert_file", pair.map(|pair| &pair.0), false);
        add("uplink.client_key_file", pair.map(|pair| &pair.1), true);
        add("uplink.token_file", uplink.token_file.as_ref(), true);
        add("uplink.jwt.key_file", uplink.jwt.as_ref().map(|jwt| &jwt.key_file), true);
        let proxy = uplink.hubs.iter().find_map(|hub| hub.proxy.as_ref());
        if let Some(ProxyLogin::File { password_file, .. }) =
            proxy.and_then(|proxy| proxy.login.as_ref())
        {
            add("uplink.proxy_password_file", Some(password_file), true);
        }
    }
    if let Some(mqtt) = &config.mqtt {
        let pair = mqtt.client_cert.as_ref();
        add("mqtt.password_file", mqtt.credentials.as_ref().map(|(_, path)| path), true);
        add("mqtt.ca_file", mqtt.ca_file.as_ref(), false);
        add("mqtt.client_cert_file", pair.map(|pair| &pair.0), false);
        add("mqtt.client_key_file", pair.map(|pair| &pair.1), true);
    }
    if let Some(tls) = config.listener.as_ref().and_then(|listener| listener.tls.as_ref()) {
        add("listener.cert_file", Some(&tls.cert_file), false);
        add("listener.key_file", Some(&tls.key_file), true);
        add("listener.client_ca_file", tls.client_ca_file.as_ref(), false);
    }
    let users_file = config.listener.as_ref().and_then(|listener| listener.users_file.as_ref());
    add("listener.users_file", users_file, true);
    files
}

/// By the rules by which the gateway will read it.
pub(super) fn look_at(file: &CredentialFile) -> Finding {
    match identity::usable(&file.path, file.secret) {
        Ok(()) => Finding::Readable,
        Err(error) if error.fault == identity::NOT_FOR_THIS_USER => Finding::NotForThisUser,
        Err(error) => Finding::Unusable(format!("{}; {}", error.fault, error.remedy)),
    }
}

fn explain_files(findings: &[(&CredentialFile, Finding)]) -> String {
    let mut text = String::new();
    for (file, finding) in findings {
        let found = match finding {
            Finding::Readable => "readable",
            Finding::NotForThisUser => "not readable for this user; the gateway's must be able to",
            Finding::Unusable(fault) => fault,
        };
        let _ = writeln!(text, "{} is {}: {found}.", file.key, file.path.display());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{fs, iter, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn config(text: &str, folder: &Path) -> Config {
        Config::from_text(text, &folder.join("fieldgate.toml"), iter::empty()).expect("it is right")
    }

    #[test]
    fn the_explanation_says_what_will_happen() {
        let config = config(
            "[gateway]\nid = 'gw-1'\n\
             [uplink]\nurl = 'wss://hub/v1/gateway?key=s3cr3t'\ntoken_file = 'token'\n\
             [mqtt]\nurl = 'mqtt://broker.lan'\nusername = 'u'\npassword_file = 'p'\n\
             [listener]\nbind = '127.0.0.1:1884'\n\
             [[telemetry]]\ntopic = 'tele/{device}/SENSOR'\n\
             [commands]\nallow = ['plc-*/set_valve', '*/identify']",
            Path::new("/etc/fieldgate"),
        );
        assert_eq!(
            explain(&config),
            "What /etc/fieldgate/fieldgate.toml means:\n\
             The gateway is called gw-1.\n\
             It connects to the MQTT broker broker.lan on port 1883 without TLS, as u, with up to \
             20 messages in flight.\n\
             Devices on this machine connect to it by MQTT on 127.0.0.1:1884.\n\
             At most 100 devices at once, each with up to 100 publishes unacknowledged.\n\
             What is published to tele/{device}/SENSOR (subscribed as tele/+/SENSOR) is telemetry \
             of the device that the topic names, in lane telemetry.\n\
             A publish is acknowledged when the hub has it or it is on disk; it is written when \
             the hub takes longer than 1s.\n\
             Records are kept in /var/lib/fieldgate, up to 512MiB; then the oldest go, accounted \
             for. A payload of more than 128KiB is refused.\n\
             Lanes, first goes first: telemetry.\n\
             Records go to wss://hub:443/v1/gateway, taken for a hub if it answers as one, else as \
             a plain WebSocket server.\n\
             There it shows a token.\n\
             The server's certificate must come from an authority the system trusts.\n\
             A silent link is found after 35s, and tried again after 500ms at first, 1m at most.\n\
             Commands are published to devices/{device}/commands/{command}, replies are awaited on \
             devices/{device}/replies/{id}.\n\
             Allowed: command set_valve to device plc-*.\n\
             Allowed: command identify to any device.\n\
             Note: mqtt.url: the password crosses the network to broker.lan in the clear; use \
             mqtts://.\n"
        );
    }

    #[test]
    fn a_credential_that_can_not_be_used_says_why() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = config(
            "[listener]\n[uplink]\nurl = 'wss://hub'\nca_file = 'ca.pem'\ntoken_file = 'token'",
            folder.path(),
        );
        let findings = || credential_files(&config).iter().map(look_at).collect::<Vec<_>>();
        let unusable = |text: &str| Finding::Unusable(text.into());
        let missing = || unusable("there is no such file; create it, or correct the path");
        assert_eq!(findings(), [missing(), missing()]);

        let (ca, token) = (folder.path().join("ca.pem"), folder.path().join("token"));
        fs::write(&ca, "x").expect("a file in the temporary folder");
        fs::write(&token, "").expect("a file in the temporary folder");
        let set_mode = |mode| fs::set_permissions(&token, fs::Permissions::from_mode(mode));
        set_mode(0o644).expect("it is ours");
        let loose = "others than its owner can use this secret (mode 644)";
        let loose = format!("{loose}; chmod 600 {}", token.display());
        assert_eq!(findings(), [Finding::Readable, unusable(&loose)]);

        set_mode(0o600).expect("it is ours");
        let empty = || unusable("it is empty; write the credential into it");
        assert_eq!(findings(), [Finding::Readable, empty()]);
        // What `run` would refuse, too.
        fs::write(&token, " \n").expect("a file in the temporary folder");
        assert_eq!(findings(), [Finding::Readable, empty()]);
        fs::write(&token, "t").expect("a file in the temporary folder");
        assert_eq!(findings(), [Finding::Readable, Finding::Readable]);
    }
}
