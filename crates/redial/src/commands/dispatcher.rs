//! `redial dispatcher`: deliveries as a service.

use std::net::TcpListener;

use anyhow::Context;
use dispatcher::Dispatcher;

use crate::commands::service;
use crate::keys;
use crate::settings::Settings;

/// One claims, one finishes, the others read secrets.
const CONNECTIONS: u32 = 4;

pub(crate) async fn run(settings: &Settings) -> anyhow::Result<()> {
    let (url, broker, keyring) = (settings.postgres_url()?, settings.broker()?, settings.keyring()?);
    let health = settings.dispatcher.listen.map(|addr| {
        TcpListener::bind(addr).with_context(|| format!("dispatcher.listen: cannot listen on {addr}"))
    });
    let health = health.transpose()?;
    let (store, shutdown) = service::start(&url, CONNECTIONS).await?;
    keys::check(&store, &keyring).await?;
    if let Some(listener) = health {
        tracing::info!(listen = %listener.local_addr()?, "answering health checks");
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
    Ok(dispatcher.run(consumer, shutdown).await?)
}
