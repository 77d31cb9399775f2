//! `fieldgate run`: puts the parts together and hands them to the driver.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use tokio::sync::mpsc;

use super::{
    dialer::{dialer, via},
    disk::{self, DiskThread, Found, Opening},
    driver::{self, Driver, Source, State},
    expiry,
    reload::Reload,
};
use crate::{
    config::{Config, ConfigError, Durability, Listener, ListenerTls},
    gateway::{CommandRules, Gateway, Settings, TelemetryRule, UplinkSettings},
    identity::{self, Clock, FollowedServer, FollowedTls, ServerFiles, TokenSource},
    link,
    ops::control,
    protocol::{Epoch, StreamName},
    record::SourceId,
    source::{NOTICE_QUEUE, PUBLISH_QUEUE, Sink, listener, mqtt},
    spool::Limits,
};

/// How much memory records may take.
const MEMORY_BYTES: usize = 8 << 20;

/// With `order = "live-first"`: a backlog of fewer records is not passed.
const WORTH_PASSING: u64 = 1000;

/// How many commands may be under way.
const INFLIGHT_COMMANDS: usize = 32;

/// A dial takes five steps, each of `connect_timeout` at most, and a little.
const DIAL_STEPS: u32 = 5;
const DIAL_SPARE: Duration = Duration::from_secs(10);

/// A segment is a sixty-fourth of the spool, but of a size that suits a card.
const SEGMENTS: u64 = 64;
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = (256 << 10)..=(4 << 20);

/// Runs the gateway until it is told to stop.
pub(super) fn run(file: &Path) -> ExitCode {
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(ConfigError::EXIT_CODE);
        }
    };
    let clock = Clock::open(&spool_dir(&config));
    let parts = match prepare(&config, &clock) {
        Ok(parts) => parts,
        Err(error) => {
            tracing::error!("{error:#}");
            return ExitCode::from(ConfigError::EXIT_CODE);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the event loop can't be made");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(start(config, parts, clock)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What has to be right before anything starts: a fault here is one of the configuration.
pub(super) struct Parts {
    id: String,
    pub(super) uplink_tls: Option<FollowedTls>,
    pub(super) tokens: Option<TokenSource>,
    mqtt_tls: Option<FollowedTls>,
    listener_tls: Option<FollowedServer>,
}

pub(super) fn prepare(config: &Config, clock: &Arc<Clock>) -> anyhow::Result<Parts> {
    let uplink = config.uplink.as_ref();
    let client_cert = uplink.and_then(|uplink| uplink.client_cert.as_ref());
    let uplink_tls = uplink
        .filter(|uplink| uplink.hubs.iter().any(|hub| hub.url.tls))
        .map(|uplink| {
            let (ca_file, pair) = (uplink.ca_file.clone(), uplink.client_cert.clone());
            FollowedTls::load("the uplink's", ca_file, pair, clock.clone())
        })
        .transpose()
        .context("uplink")?;
    for proxy in uplink.iter().flat_map(|uplink| &uplink.hubs).filter_map(|hub| hub.proxy.as_ref())
    {
        via(proxy).context("uplink.proxy_password_file")?;
    }
    let mqtt_tls = (config.mqtt.as_ref().filter(|mqtt| mqtt.tls))
        .map(|mqtt| {
            let (ca_file, pair) = (mqtt.ca_file.clone(), mqtt.client_cert.clone());
            FollowedTls::load("the broker's", ca_file, pair, clock.clone())
        })
        .transpose()
        .context("mqtt")?;
    let listener_tls = (config.listener.as_ref())
        .and_then(|listener| Some(server_files(listener, listener.tls.as_ref()?)))
        .map(|files| FollowedServer::load(files, clock.clone()))
        .transpose()
        .context("listener")?;
    let users_file = config.listener.as_ref().and_then(|listener| listener.users_file.as_ref());
    let users = users_file.map(|file| identity::Users::from_file(file)).transpose();
    users.context("listener.users_file")?;
    let id = match &config.gateway.id {
        Some(id) => id.clone(),
        None => identity::gateway_id(client_cert.map(|(cert, _)| &**cert)).context("gateway.id")?,
    };
    let tokens = uplink.and_then(|uplink| TokenSource::of(uplink, &id));
    if let Some(tokens) = &tokens {
        // Asked again at each attempt, so that a new one needs no restart; asked now, so that a
        // fault shows now.
        tokens.token(clock.now().0.unix_ms).context("uplink: the token")?;
    }
    Ok(Parts { id, uplink_tls, tokens, mqtt_tls, listener_tls })
}

fn server_files(listener: &Listener, tls: &ListenerTls) -> ServerFiles {
    ServerFiles {
        cert: tls.cert_file.clone(),
        key: tls.key_file.clone(),
        client_ca: tls.client_ca_file.clone(),
        client_cert_required: listener.needs_certificate(),
    }
}

async fn start(config: Config, mut parts: Parts, clock: Arc<Clock>) -> anyhow::Result<()> {
    let (disk, gateway) = open(&config, &parts, &clock)?;
    let questions = control::serve(&config.gateway.state_dir, config.spool.max_record_bytes)
        .context("the control socket")?;
    let (publish_sender, publishes) = mpsc::channel(PUBLISH_QUEUE);
    let (notice_sender, notices) = mpsc::channel(NOTICE_QUEUE);
    let sink = |source: usize| Sink {
        source: SourceId(source as u8),
        publishes: publish_sender.clone(),
        notices: notice_sender.clone(),
    };
    let sources = start_sources(&config, &mut parts, gateway.interests(), sink).await?;
    let urls: Vec<String> = (config.uplink.iter())
        .flat_map(|uplink| uplink.hubs.iter().map(|hub| hub.url.to_string()))
        .collect();
    announce(&config, &parts.id, &urls);
    tokio::spawn(expiry::watch(config.clone(), clock.clone()));
    let driver = Driver {
        gateway,
        disk,
        publishes,
        notices,
        questions,
        network: link::watch_network(),
        sources,
        dialer: dialer(config.uplink.clone(), parts.tokens, parts.uplink_tls, clock.clone()),
        urls,
        send_topic: config.telemetry.first().map(|rule| rule.topic.clone()),
        reload: Reload::new(config, clock.clone()),
        clock,
        state: State::default(),
    };
    // As a task: a future that the runtime itself blocks on costs a system call more at each
    // wake-up.
    tokio::spawn(driver.run()).await.context("the event loop")?.context("signals")
}

/// Opens the spool, and makes the core with what is in it.
fn open(config: &Config, parts: &Parts, clock: &Clock) -> anyhow::Result<(DiskThread, Gateway)> {
    let [epoch, seed] = random()?;
    let epoch = Epoch(epoch);
    let directory = spool_dir(config);
    let mut streams = vec!["events".to_owned()];
    streams.extend(config.spool.lanes.iter().map(|lane| lane.as_str().to_owned()));
    let segment_bytes =
        (config.spool.max_bytes / SEGMENTS).clamp(*SEGMENT_BYTES.start(), *SEGMENT_BYTES.end());
    let limits = Limits {
        max_bytes: config.spool.max_bytes,
        segment_bytes,
        min_free_bytes: config.spool.min_free_bytes,
        tail: if config.spool.durability == Durability::Disk { window(config) } else { 0 },
    };
    let opening = Opening { directory: directory.clone(), streams: streams.clone(), limits, epoch };
    let (disk, found) = disk::start(opening)
        .with_context(|| format!("the spool in {} can't be used", directory.display()))?;
    match &found {
        Ok(found) => found.report(),
        Err(error) => {
            tracing::error!(error, "the spool can't be opened; going on without, and trying again");
        }
    }
    let streams = found.as_ref().map_or(&streams, |found| &found.streams);
    let managed_urls = found.as_ref().map_or(&[][..], |found| &found.managed_urls);
    let settings = settings(config, parts, stream_names(streams)?, managed_urls, epoch, seed);
    let held = found.as_ref().map(Found::held).map_err(Clone::clone);
    Ok((disk, Gateway::new(driver::now(clock), settings, held)))
}

/// Starts what hears devices, in the order of their numbers.
async fn start_sources(
    config: &Config,
    parts: &mut Parts,
    interests: Vec<String>,
    sink: impl Fn(usize) -> Sink,
) -> anyhow::Result<Vec<Source>> {
    let mut sources = Vec::new();
    if let Some(listener) = &config.listener {
        let sink = sink(sources.len());
        let topics = listener::Topics::new(interests.clone(), config, &parts.id);
        let running = listener::start(listener, topics, parts.listener_tls.take(), sink).await?;
        sources.push(Source { name: "listener", requests: running.requests, task: running.task });
    }
    if let Some(mqtt) = &config.mqtt {
        let state_file = config.gateway.state_dir.join("mqtt-filters");
        let sink = sink(sources.len());
        let tls = parts.mqtt_tls.take();
        let running = mqtt::start(mqtt, &parts.id, interests, tls, state_file, sink);
        sources.push(Source { name: "mqtt", requests: running.requests, task: running.task });
    }
    Ok(sources)
}

fn announce(config: &Config, id: &str, urls: &[String]) {
    tracing::info!(
        gateway = id,
        url = match urls {
            [] => "none: records are kept until [uplink] url is set".to_owned(),
            urls => urls.join(", "),
        },
        "fieldgate {} runs",
        env!("CARGO_PKG_VERSION")
    );
    for note in &config.notes {
        tracing::info!("{note}");
    }
}

pub(super) fn spool_dir(config: &Config) -> PathBuf {
    config.gateway.state_dir.join("spool")
}

/// How many publishes of one session may be in flight.
fn window(config: &Config) -> usize {
    let mqtt = config.mqtt.as_ref().map_or(0, |mqtt| usize::from(mqtt.max_inflight));
    let listener = config.listener.as_ref().map_or(0, |listener| listener.max_inflight);
    mqtt.max(listener)
}

/// The streams as the spool knows them.
///
/// # Errors
/// One was not made by this program.
pub(super) fn stream_names(names: &[String]) -> anyhow::Result<Vec<StreamName>> {
    (names.iter())
        .map(|name| StreamName::try_from(name.clone()).map_err(anyhow::Error::msg))
        .collect::<anyhow::Result<_>>()
        .context("a stream in the spool")
}

fn settings(
    config: &Config,
    parts: &Parts,
    streams: Vec<StreamName>,
    managed_urls: &[String],
    epoch: Epoch,
    seed: u64,
) -> Settings {
    let lane_of = |lane: &StreamName| {
        streams.iter().position(|stream| stream == lane).expect("the spool opened every lane")
    };
    let telemetry = config.telemetry.iter().map(|rule| TelemetryRule {
        topic: rule.topic.clone(),
        lane: lane_of(&rule.lane),
        device: rule.device.clone(),
    });
    let commands = CommandRules {
        topic: config.commands.topic.clone(),
        reply: config.commands.reply.clone(),
        allow: config.commands.allow.clone(),
        inflight: INFLIGHT_COMMANDS,
    };
    let uplink = config.uplink.as_ref().map(|uplink| UplinkSettings {
        mode: uplink.protocol,
        proven_managed: (uplink.hubs.iter())
            .map(|hub| managed_urls.contains(&hub.url.to_string()))
            .collect(),
        ping_interval: uplink.ping_interval,
        ping_timeout: uplink.ping_timeout,
        ack_timeout: uplink.ack_timeout,
        dial_timeout: uplink.connect_timeout * DIAL_STEPS + DIAL_SPARE,
        backoff: uplink.backoff,
        return_after: uplink.return_after,
        plain_commands: uplink.plain_commands,
    });
    Settings {
        id: parts.id.clone(),
        agent: format!("fieldgate/{}", env!("CARGO_PKG_VERSION")),
        boot_id: identity::boot_id().unwrap_or_default(),
        telemetry: telemetry.collect(),
        streams,
        commands,
        uplink,
        disk_first: config.spool.durability == Durability::Disk,
        write_after: config.spool.write_after,
        max_record_bytes: config.spool.max_record_bytes,
        memory_bytes: MEMORY_BYTES,
        live_first: config.spool.live_first.then_some(WORTH_PASSING),
        max_age: config.spool.max_age,
        window: window(config),
        epoch,
        seed,
    }
}

/// Two numbers that no other start has.
pub(super) fn random() -> anyhow::Result<[u64; 2]> {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0; 16];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("the kernel gives no random numbers"))?;
    let half = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    Ok([half(0), half(8)])
}
