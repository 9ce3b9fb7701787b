//! `redial dispatcher`: deliveries as a service.

use std::net::TcpListener;

use anyhow::Context;
use dispatcher::Dispatcher;
use tokio_util::sync::CancellationToken;

use crate::commands::api::open_patiently;
use crate::settings::Settings;
use crate::signals;

/// One claims, one finishes, the others read secrets.
const CONNECTIONS: u32 = 4;

pub(crate) async fn run(settings: &Settings) -> anyhow::Result<()> {
    let stopped = signals::stop();
    let (url, broker, keyring) = (settings.postgres_url()?, settings.broker()?, settings.keyring()?);
    let health = settings.dispatcher.listen.map(|addr| {
        TcpListener::bind(addr).with_context(|| format!("dispatcher.listen: cannot listen on {addr}"))
    });
    let health = health.transpose()?;
    let store = open_patiently(&url, CONNECTIONS).await?;
    let shutdown = CancellationToken::new();
    tokio::spawn({
        let (store, shutdown) = (store.clone(), shutdown.clone());
        async move { store.keep_clock_aligned(shutdown).await }
    });
    if let Some(listener) = health {
        tokio::spawn(api::run_health(listener, shutdown.clone()));
    }
    // Unacknowledged messages are those of one batch being claimed and the next one gathering.
    let consumer = broker.consumer(settings.dispatcher.max_in_flight, shutdown.clone());
    let dispatcher = Dispatcher {
        store,
        keyring,
        egress: settings.egress_policy(),
        settings: settings.dispatcher_settings(),
    };
    tokio::spawn({
        let shutdown = shutdown.clone();
        async move {
            let signal = stopped.await;
            tracing::info!(signal, "stopping");
            shutdown.cancel();
        }
    });
    Ok(dispatcher.run(consumer, shutdown).await?)
}
