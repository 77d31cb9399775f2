//! `fieldgate-hub run`.

use anyhow::Context as _;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    hub::{
        config::{Config, ConfigError},
        server::{Server, ServerError},
    },
    ops::log,
};

/// Threads of the runtime; the engine and questions to the database have their own.
const WORKERS: usize = 2;

/// The most questions to the database at once; more wait for their turn.
const READERS: usize = 8;

pub(super) fn run(config: Config, filter: Option<&str>) -> anyhow::Result<()> {
    log::start(filter)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(READERS)
        .enable_all()
        .build()
        .context("the runtime can't be started")?;
    let outcome = runtime.block_on(serve(config));
    // What is still blocked has no more say: everything that was acknowledged is committed.
    runtime.shutdown_background();
    outcome
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let scheme = if config.tls.is_some() { "wss" } else { "ws" };
    let database = config.store.path.display().to_string();
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be heard")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be heard")?;
    let server = Server::start(config).await.map_err(|error| match error {
        // A file of [tls] is the configuration's fault, and a restart does not mend it.
        ServerError::Tls(error) => anyhow::Error::new(ConfigError(error.to_string())),
        error => error.into(),
    })?;
    let address = server.address().context("the listener has no address")?;
    tracing::info!(url = %format_args!("{scheme}://{address}/v1/gateway"), database, "ready");
    notify(&[NotifyState::Ready, NotifyState::Status(&format!("listening on {address}"))]);
    server
        .serve(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            notify(&[NotifyState::Stopping, NotifyState::Status("sending gateways away")]);
        })
        .await;
    tracing::info!("stopped");
    Ok(())
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}
