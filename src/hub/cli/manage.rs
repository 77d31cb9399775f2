//! The subcommands that work on the database beside a running hub.

use std::{
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::value::RawValue;

use super::{
    CommandCommand, DemoCaArguments, GatewayCommand, RecordsCommand, SendArguments, TokenCommand,
};
use crate::files;
use crate::hub::{
    access::Scope,
    authority::Authority,
    commands::NewCommand,
    config::Config,
    credential::{is_gateway_id, new_command_id, new_token, token_digest},
    demo_ca::{self, DemoCa},
    engine::{
        Admission, Answer, CommandRow, Engine as _, GatewayRow, NewToken, Query, Reader, Registry,
        Request, Sqlite,
    },
    jwt::PublicKey,
    server::now,
    view::RecordView,
};

/// How often `records tail` looks for new records.
const TAIL_INTERVAL: Duration = Duration::from_millis(500);

/// How many records `records tail` begins with, and how many it reads at once.
const TAIL_BEGIN: u64 = 10;
const TAIL_PAGE: usize = 1000;

pub(super) fn gateway(config: &Config, command: &GatewayCommand) -> anyhow::Result<()> {
    match command {
        GatewayCommand::Add { id, token_file, certificate, public_key } => {
            check_gateway_id(id)?;
            let mut registry = Registry::open(&config.store.path)?;
            if *certificate {
                registry.add_gateway(id, Admission::Named, now_ms())?;
                say(&format!("{id} may come with a client certificate that names it"))?;
            } else if let Some(file) = public_key {
                let pem = std::fs::read(file).with_context(|| file.display().to_string())?;
                let key = PublicKey::from_pem(&pem).with_context(|| file.display().to_string())?;
                registry.add_gateway(id, Admission::Key(&key), now_ms())?;
                say(&format!("{id} may come with tokens that it signs with this key"))?;
            } else {
                let token = new_token("fgg_")?;
                let sha256 = token_digest(&token).context("a fresh token has a digest")?;
                registry.add_gateway(id, Admission::Token(&sha256), now_ms())?;
                hand_out(&token, token_file.as_deref())?;
            }
            renew_revoked(config, &registry)
        }
        GatewayCommand::List => {
            let gateways = open_reader(config)?.gateways(None)?;
            say("gateway\tstate\treceived\tduplicate\tlost\trefused\trejected\tagent")?;
            gateways.iter().try_for_each(|gateway| say(&line_of(gateway)))
        }
        GatewayCommand::Revoke { id } => {
            let mut registry = Registry::open(&config.store.path)?;
            let known = registry.revoke_gateway(id, now_ms())?;
            ensure!(known, "{id}: no such gateway; see gateway list");
            renew_revoked(config, &registry)?;
            say(&format!("{id} is shut out"))
        }
    }
}

/// What the registry just revoked goes into the authority's list, if there is one.
fn renew_revoked(config: &Config, registry: &Registry) -> anyhow::Result<()> {
    if Authority::certificate_file(&config.ca.dir).exists() {
        Authority::open(&config.ca.dir)?.renew_revoked(registry, now().unix_ms / 1000)?;
    }
    Ok(())
}

pub(super) fn api_token(config: &Config, command: &TokenCommand) -> anyhow::Result<()> {
    let registry = Registry::open(&config.store.path)?;
    match command {
        TokenCommand::Add { name, scopes, token_file } => {
            let all = Scope::ALL.map(Scope::as_str);
            for scope in scopes {
                let known = Scope::parse(scope).is_some();
                ensure!(known, "{scope:?} is no scope; there are {}", all.join(", "));
            }
            let token = new_token("fga_")?;
            let sha256 = token_digest(&token).context("a fresh token has a digest")?;
            let new = NewToken { name: name.clone(), sha256, scopes: scopes.join(" ") };
            ensure!(
                registry.add_token(&new, now_ms())?,
                "{name}: there is a token of this name; revoke it first, or choose another name"
            );
            hand_out(&token, token_file.as_deref())
        }
        TokenCommand::List => {
            say("name\tstate\tscopes")?;
            registry.tokens()?.iter().try_for_each(|token| {
                let state = if token.revoked { "revoked" } else { "valid" };
                say(&format!("{}\t{state}\t{}", token.name, token.scopes))
            })
        }
        TokenCommand::Revoke { name } => {
            ensure!(registry.revoke_token(name, now_ms())?, "{name}: no such token");
            say(&format!("{name} is worth nothing any more"))
        }
    }
}

pub(super) fn command(config: &Config, command: &CommandCommand) -> anyhow::Result<()> {
    match command {
        CommandCommand::Send(wanted) => send(config, wanted),
        CommandCommand::List { gateway, limit } => {
            let commands = open_reader(config)?.commands(gateway.as_deref(), *limit)?;
            say("id\tgateway\tdevice\tname\tstate")?;
            commands.iter().try_for_each(|command: &CommandRow| {
                let state = command.state.as_deref().unwrap_or("queued");
                let CommandRow { id, gateway, device, name, .. } = command;
                say(&format!("{id}\t{gateway}\t{device}\t{name}\t{state}"))
            })
        }
    }
}

pub(super) fn records(config: &Config, command: &RecordsCommand) -> anyhow::Result<()> {
    let RecordsCommand::Tail { gateway, after, device, stream, no_follow } = command;
    let reader = open_reader(config)?;
    let newest = |row: &GatewayRow| u64::try_from(row.records.1 - 1).unwrap_or(0);
    let begin = match (after, reader.gateways(Some(gateway))?.first()) {
        (_, None) => bail!("{gateway}: no such gateway; see gateway list"),
        (Some(after), _) => *after,
        (None, Some(row)) => newest(row).saturating_sub(TAIL_BEGIN),
    };
    let mut query =
        Query { after: begin, limit: TAIL_PAGE, device: device.clone(), stream: stream.clone() };
    loop {
        let page = reader.records(gateway, &query)?.context("the gateway is gone")?;
        for row in &page.records {
            say(&serde_json::to_string(&RecordView::of_row(row))?)?;
        }
        query.after = page.next_after;
        match (page.more, no_follow) {
            (true, _) => {}
            (false, true) => return Ok(()),
            (false, false) => std::thread::sleep(TAIL_INTERVAL),
        }
    }
}

pub(super) fn demo_ca(wanted: &DemoCaArguments) -> anyhow::Result<()> {
    for name in &wanted.client {
        check_gateway_id(name)?;
    }
    demo_ca::make(&DemoCa { dir: &wanted.dir, hosts: &wanted.host, clients: &wanted.client })?;
    say(&format!("{}: ca.pem, hub.pem, hub.key", wanted.dir.display()))
}

pub(super) fn check_gateway_id(id: &str) -> anyhow::Result<()> {
    ensure!(is_gateway_id(id), "{id:?} is no gateway id: 1 to 64 of A-Z a-z 0-9 - _ . :");
    Ok(())
}

fn send(config: &Config, wanted: &SendArguments) -> anyhow::Result<()> {
    let params = RawValue::from_string(wanted.params.clone())
        .with_context(|| format!("{:?} is not JSON", wanted.params))?;
    let now = now();
    let id = new_command_id(now.unix_ms)?;
    let new = NewCommand {
        device: wanted.device.clone(),
        name: wanted.name.clone(),
        params,
        ttl_ms: wanted.ttl_ms,
        timeout_ms: wanted.timeout_ms,
        idempotent: wanted.idempotent,
    };
    let command = match new.into_message(id.clone()) {
        Ok(message) => Box::new(message),
        Err(refusal) => bail!("{}", refusal.parts().1),
    };
    let gateway = wanted.gateway.clone();
    // A second engine on the same database: it keeps no session, and leaves the hub's alone.
    let mut engine = Sqlite::beside(config.store.clone())?;
    let request = Request::CreateCommand { gateway: gateway.clone(), command };
    match engine.commit(now.unix_ms, &[request])?.first() {
        Some(Answer::Created) => say(id.as_str()),
        Some(Answer::TooManyCommands) => bail!("{gateway}: too many commands have no final state"),
        _ => bail!("{gateway}: no such gateway; see gateway list"),
    }
}

fn open_reader(config: &Config) -> anyhow::Result<Reader> {
    // Opened for writing first, so that a database that is not there yet is made, and says that it
    // is empty.
    Registry::open(&config.store.path)?;
    Ok(Reader::new(config.store.path.clone()))
}

fn line_of(gateway: &GatewayRow) -> String {
    let state = match gateway {
        GatewayRow { revoked: true, .. } => "revoked",
        GatewayRow { connected: true, .. } => "connected",
        GatewayRow { times_ms: (_, None, _), .. } => "never seen",
        _ => "away",
    };
    let counters = gateway.counters.map(|count| count.to_string()).join("\t");
    format!("{}\t{state}\t{counters}\t{}", gateway.id, gateway.agent.escape_debug())
}

fn hand_out(token: &str, file: Option<&Path>) -> anyhow::Result<()> {
    match file {
        None => say(token),
        Some(file) => files::replace(file, 0o600, format!("{token}\n").as_bytes())
            .with_context(|| format!("{}: can't be written", file.display())),
    }
}

pub(super) fn say(line: &str) -> anyhow::Result<()> {
    writeln!(io::stdout().lock(), "{line}").context("standard output is gone")
}

pub(super) fn now_ms() -> i64 {
    now().unix_ms.cast_signed()
}
