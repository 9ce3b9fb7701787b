//! `redial dispatcher`: deliveries as a service.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::Context;
use api::{Readiness, silent};
use dispatcher::{Dispatcher, Pulse};
use queue::Consumer;

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
    // Unacknowledged messages are those of one batch being claimed and the next one gathering.
    let consumer = broker.consumer(settings.dispatcher.max_in_flight, shutdown.clone());
    let dispatcher = Dispatcher {
        store,
        keyring,
        egress: settings.egress_policy(),
        settings: settings.dispatcher_settings(),
        pulse: Pulse::default(),
    };
    if let Some(listener) = health {
        tracing::info!(listen = %listener.local_addr()?, "answering health checks");
        let readiness = Readiness::of_database(&dispatcher.store, shutdown.clone())
            .and(consuming(&consumer))
            .and(working(&dispatcher));
        tokio::spawn(api::run_health(listener, readiness, shutdown.clone()));
    }
    Ok(dispatcher.run(consumer, shutdown).await?)
}

/// Two signs of life of the consuming channel missed.
const BROKER_PATIENCE: Duration = Duration::from_secs(12);
/// Beyond the longest attempt: with every slot taken by a slow receiver nothing is claimed for that long.
const WORK_PATIENCE: Duration = Duration::from_secs(10);

/// That doorbells are heard. Without them the relay still delivers everything, later.
fn consuming(consumer: &Consumer) -> impl Fn() -> Option<String> + Send + Sync + use<> {
    let (stats, began) = (consumer.watch(), Instant::now());
    move || {
        let alive_at = stats.borrow().alive_at.unwrap_or(began);
        silent("RabbitMQ has not been consumed from", alive_at, BROKER_PATIENCE)
    }
}

/// That attempts are claimed or recorded, or none is due.
fn working(dispatcher: &Dispatcher) -> impl Fn() -> Option<String> + Send + Sync + use<> {
    let (pulse, patience) = (dispatcher.pulse.clone(), dispatcher.settings.timeout + WORK_PATIENCE);
    move || silent("no attempt has been claimed or recorded", pulse.last_beat(), patience)
}
