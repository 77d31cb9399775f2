//! `fieldgate doctor`: each thing that a gateway needs, tried one after the other, with the remedy
//! for what is wrong.
//!
//! It changes nothing. It dials the hub as the gateway does, up to and with the upgrade, and says
//! no `hello`: that would end the session of a gateway that runs.

use std::{
    net::{SocketAddr, TcpListener},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    check::{Finding, credential_files, look_at},
    dialer, expiry,
    run::spool_dir,
    with_runtime,
};
use crate::{
    config::{Config, HubUrl, Listener, Mqtt, Uplink, show_size},
    identity::{self, Certificate, Clock, TokenSource},
    link::{self, Passed},
    ops::control::{Ask, ask},
    protocol::Mode,
};

/// How long a running gateway may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A certificate of the hub's that has fewer days left is told of.
const FEW_DAYS_OF_HUB: i64 = 7;

/// Below so much free space the spool has little room to grow.
const LITTLE_SPACE: u64 = 64 << 20;

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Ok,
    Warn,
    Fail,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What was found, told as it is found.
#[derive(Default)]
struct Findings {
    as_json: bool,
    steps: Vec<Value>,
    failed: bool,
}

impl Findings {
    #[inline(never)]
    fn note(&mut self, outcome: Outcome, step: &str, text: String) {
        self.failed |= outcome == Outcome::Fail;
        if self.as_json {
            self.steps.push(json!({ "step": step, "outcome": outcome.word(), "text": text }));
        } else {
            println!("{:<4}  {step:<13} {text}", outcome.word());
        }
    }

    fn ok(&mut self, step: &str, text: impl Into<String>) {
        self.note(Outcome::Ok, step, text.into());
    }

    fn warn(&mut self, step: &str, text: impl Into<String>) {
        self.note(Outcome::Warn, step, text.into());
    }

    fn fail(&mut self, step: &str, text: impl Into<String>) {
        self.note(Outcome::Fail, step, text.into());
    }

    /// Exit code 1 when a step failed.
    fn end(self) -> ExitCode {
        if self.as_json {
            println!("{}", json!({ "ok": !self.failed, "steps": self.steps }));
        }
        if self.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

/// Examines the gateway of this configuration file.
pub(super) fn doctor(file: &std::path::Path, as_json: bool) -> ExitCode {
    let mut findings = Findings { as_json, ..Findings::default() };
    match Config::load(file) {
        Ok(config) => examine(&config, &mut findings),
        Err(error) => {
            for fault in error.to_string().lines() {
                findings.fail("configuration", fault);
            }
        }
    }
    findings.end()
}

/// Examines a gateway whose configuration was just made.
pub(super) fn examine_new(config: &Config) -> ExitCode {
    let mut findings = Findings::default();
    examine(config, &mut findings);
    findings.end()
}

fn examine(config: &Config, findings: &mut Findings) {
    findings.ok("configuration", config.file.display().to_string());
    let clock = Clock::open(&spool_dir(config));
    files(config, &clock, findings);
    let now = expiry::moment(&clock);
    if clock.now().0.synced {
        findings.ok("clock", now.to_string());
    } else {
        let remedy = "a hub will set it right; to have it right before, run a time service";
        findings.warn("clock", format!("nobody vouches for {now}; {remedy}"));
    }
    state_directory(config, findings);
    let status = ask(&config.gateway.state_dir, &Ask::Status {}, PATIENCE);
    let runs = status.is_ok();
    match status {
        Ok(status) => running(&status, findings),
        Err(error) => findings.ok("gateway", error),
    }
    if let Some(listener) = config.listener.as_ref().filter(|_| !runs) {
        ports(listener, findings);
    }
    if let Some(mqtt) = &config.mqtt {
        broker(mqtt, &clock, findings);
    }
    match &config.uplink {
        None => findings.warn("uplink", "there is no [uplink] url: records are only kept"),
        Some(uplink) => hubs(config, uplink, &clock, findings),
    }
}

fn files(config: &Config, clock: &Clock, findings: &mut Findings) {
    for file in credential_files(config) {
        let named = format!("{}: {}", file.key, file.path.display());
        match look_at(&file) {
            Finding::Readable => {}
            Finding::NotForThisUser => {
                let text =
                    format!("{named}: not readable for this user; run this as the gateway's");
                findings.warn("credentials", text);
            }
            Finding::Unusable(fault) => findings.fail("credentials", format!("{named}: {fault}")),
        }
    }
    for (key, cert) in expiry::certificates(config) {
        // A file that can't be read was told of above.
        let Ok(certificate) = Certificate::from_file(&cert) else { continue };
        let now = clock.moment_for(certificate.not_before);
        let left = certificate.days_left(now);
        let named = format!("{key}: {}", certificate.subject);
        match certificate.remark(now) {
            Some(remark) => {
                let text = format!("{named} is {remark}; renew it, or set the clock");
                findings.fail("credentials", text);
            }
            None if expiry::threshold(&certificate, now).is_some() => {
                let text = format!("{named}: {left} days left; fieldgate identity renew");
                findings.warn("credentials", text);
            }
            None => findings.ok("credentials", format!("{named}, {left} days left")),
        }
    }
}

fn state_directory(config: &Config, findings: &mut Findings) {
    let directory = &config.gateway.state_dir;
    let shown = directory.display();
    let access = rustix::fs::access(directory, rustix::fs::Access::WRITE_OK);
    if let Err(error) = access {
        let remedy = "make it, owned by the gateway's user, or run this as that user";
        return findings.fail("state", format!("{shown}: {error}; {remedy}"));
    }
    match rustix::fs::statvfs(directory) {
        Err(error) => findings.fail("state", format!("{shown}: {error}; see to the disk")),
        Ok(space) => {
            let free = space.f_bavail.saturating_mul(space.f_frsize);
            let text = format!("{shown}, {} MiB free", free >> 20);
            if free < config.spool.min_free_bytes.saturating_add(LITTLE_SPACE) {
                let least = show_size(config.spool.min_free_bytes);
                let remedy = "make room, or write a smaller spool.min_free_bytes";
                findings.warn("state", format!("{text}, of which {least} stay free; {remedy}"));
            } else {
                findings.ok("state", text);
            }
        }
    }
}

fn running(status: &Value, findings: &mut Findings) {
    let uplink = &status["uplink"];
    let state = uplink["state"].as_str().unwrap_or("unknown");
    let mut text = format!("it runs, uplink {state}");
    if let Some(mode) = uplink["mode"].as_str() {
        text += &format!(" ({mode})");
    }
    match uplink["last_error"].as_str().filter(|_| state != "connected") {
        Some(error) => findings.warn("gateway", format!("{text}; last error: {error}")),
        None => findings.ok("gateway", text),
    }
}

fn ports(listener: &Listener, findings: &mut Findings) {
    for address in listener.bind.into_iter().chain(listener.tls.as_ref().map(|tls| tls.bind)) {
        match TcpListener::bind(address) {
            Ok(_) => findings.ok("listener", format!("{address} is free")),
            Err(error) => {
                let remedy = "end what listens there (ss -ltnp), or write another port";
                findings.fail("listener", format!("{address}: {error}; {remedy}"));
            }
        }
    }
}

fn broker(mqtt: &Mqtt, clock: &Arc<Clock>, findings: &mut Findings) {
    let Mqtt { tls, host, port, .. } = mqtt;
    let pair = mqtt.client_cert.as_ref().map(|(cert, key)| (&**cert, &**key));
    let config =
        tls.then(|| identity::client_tls(mqtt.ca_file.as_deref(), pair, clock)).transpose();
    let config = match config {
        Ok(config) => config,
        Err(error) => return findings.fail("broker", error.to_string()),
    };
    let target = link::Target {
        url: HubUrl { tls: *tls, host: host.clone(), port: *port, path: "/".into() },
        subprotocols: Vec::new(),
        bearer: None,
        tls: config,
        ca_file: mqtt.ca_file.clone(),
        proxy: None,
        bind_interface: None,
        connect_timeout: PATIENCE,
        max_message_bytes: 0,
    };
    match with_runtime(link::reach(&target)) {
        Ok(()) => findings.ok("broker", format!("{host} answers on port {port}")),
        Err(down) => findings.fail("broker", down.to_string()),
    }
}

fn hubs(config: &Config, uplink: &Uplink, clock: &Arc<Clock>, findings: &mut Findings) {
    let wants_tls = uplink.hubs.iter().any(|hub| hub.url.tls);
    let pair = uplink.client_cert.as_ref().map(|(cert, key)| (&**cert, &**key));
    let tls =
        wants_tls.then(|| identity::client_tls(uplink.ca_file.as_deref(), pair, clock)).transpose();
    let tls = match tls {
        Ok(tls) => tls,
        Err(error) => return findings.fail("TLS", error.to_string()),
    };
    let id = match &config.gateway.id {
        Some(id) => Ok(id.clone()),
        None => identity::gateway_id(pair.map(|(cert, _)| cert)),
    };
    let id = match id {
        Ok(id) => id,
        Err(error) => return findings.fail("identity", error.to_string()),
    };
    findings.ok("identity", format!("this gateway is called {id}"));
    let now_ms = clock.now().0.unix_ms;
    let token = TokenSource::of(uplink, &id).map(|tokens| tokens.token(now_ms)).transpose();
    let token = match token {
        Ok(token) => token.map(|(token, _)| token),
        Err(error) => return findings.fail("identity", error.to_string()),
    };
    for at in 0..uplink.hubs.len() {
        match dialer::target(uplink, at, token.clone(), tls.clone()) {
            Ok(target) => hub(uplink, &target, clock, findings),
            Err(error) => findings.fail("proxy", error),
        }
    }
}

fn hub(uplink: &Uplink, target: &link::Target, clock: &Clock, findings: &mut Findings) {
    let host = &target.url.host;
    let mut passed = Vec::new();
    let ended = with_runtime(link::examine(target, &mut |step| passed.push(step)));
    for step in passed {
        let to = target.proxy.as_ref().map_or(host, |via| &via.host);
        match step {
            Passed::Resolved(found) => findings.ok("DNS", format!("{to} is {}", listed(&found))),
            Passed::Connected(address) => findings.ok("TCP", format!("{address} answers")),
            Passed::Proxied => findings.ok("proxy", format!("{to} makes the way to {host}")),
            Passed::Secured(chain) => secured(host, &chain, clock, findings),
        }
    }
    match ended {
        Err(link::Down::Dial { step, error }) => findings.fail(step, error),
        Err(down) => findings.fail("upgrade", format!("{}: {down}", target.url)),
        Ok(Some(name)) => findings.ok("upgrade", format!("{} takes us, as {name}", target.url)),
        Ok(None) if uplink.protocol == Mode::Managed => findings.fail(
            "upgrade",
            format!("{} is no hub; correct the URL, or set protocol = \"plain\"", target.url),
        ),
        Ok(None) => findings.ok("upgrade", format!("{} is a plain server", target.url)),
    }
}

fn secured(
    host: &str,
    chain: &[rustls::pki_types::CertificateDer<'_>],
    clock: &Clock,
    findings: &mut Findings,
) {
    // It was verified before it came here.
    let Some(own) = chain.first().and_then(Certificate::from_der) else { return };
    let now = expiry::moment(clock);
    let left = own.days_left(now);
    let text = format!("{host} shows a certificate of {}, {left} days left", own.issuer);
    if expiry::threshold(&own, now).is_some_and(|days| days <= FEW_DAYS_OF_HUB) {
        findings.warn("TLS", format!("{text}; have the hub's renewed"));
    } else {
        findings.ok("TLS", text);
    }
}

fn listed(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ")
}
