//! The embedded mode: api, dispatcher and queue in one process, on one SQLite file.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use contracts::{OrgId, Scopes, SigningSecret};
use dispatcher::{Dispatcher, Progress};
use ops::{Readiness, Tracer};
use store::{AcceptPolicy, DatabaseUrl, Keyring, Store};
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::metrics;

/// Capacity of the in-process queue of doorbells. The relay finds deliveries whose doorbell didn't fit.
const QUEUE_CAPACITY: usize = 1024;
/// Reader connections, in addition to SQLite's single writer.
const CONNECTIONS: u32 = 4;

/// The API's worker threads: enough for one person's requests.
const WORKERS: usize = 2;

/// Opens the data directory's database, creating and migrating it if needed.
pub(crate) async fn open_store(data_dir: &Path) -> Result<Store> {
    let path = data_dir.join("redial.db");
    let path = path.to_str().context("the data directory's path is not UTF-8")?;
    let url = DatabaseUrl::Sqlite(path.to_owned());
    let to_migrate = url.clone();
    tokio::task::spawn_blocking(move || -> Result<usize> { Ok(store::migrate(&mut to_migrate.connect()?)?) })
        .await?
        .with_context(|| format!("cannot set up {url}"))?;
    Ok(Store::open(&url, CONNECTIONS).await?)
}

/// Configuration of an embedded stack.
pub(crate) struct Options {
    pub(crate) store: Store,
    pub(crate) keyring: Keyring,
    pub(crate) accept: AcceptPolicy,
    pub(crate) egress: egress::Policy,
    pub(crate) dispatcher: dispatcher::Settings,
    pub(crate) max_body: usize,
    pub(crate) limits: api::Limits,
    /// Where to serve metrics, if anywhere.
    pub(crate) metrics: Option<TcpListener>,
    pub(crate) tracer: Tracer,
}

/// A running stack.
pub(crate) struct Stack {
    /// The API's listen address.
    pub(crate) addr: SocketAddr,
    shutdown: CancellationToken,
    api: JoinHandle<std::io::Result<()>>,
    dispatcher: JoinHandle<Result<(), dispatcher::DispatcherError>>,
}

impl Stack {
    /// Starts api and dispatcher on `listener`.
    pub(crate) fn start(listener: TcpListener, options: Options) -> Result<Stack> {
        let addr = listener.local_addr()?;
        let shutdown = CancellationToken::new();
        let (publisher, consumer) = queue::in_process(QUEUE_CAPACITY);
        let (metrics, progress) = (metrics::of_process(&options.store), Progress::default());
        metrics::watch(&metrics, Some(&publisher), Some((&consumer, &progress)));
        let readiness = Readiness::of_database(&options.store, shutdown.clone());
        metrics.readiness(readiness.clone());
        metrics::serve(options.metrics, metrics.clone(), shutdown.clone())?;
        let api = api::Api {
            readiness,
            metrics: metrics.clone(),
            tracer: options.tracer.clone(),
            store: options.store.clone(),
            publisher,
            egress: options.egress.clone(),
            keyring: options.keyring.clone(),
            accept: options.accept,
            max_body: options.max_body,
            trusted_proxies: Vec::new(),
            limits: options.limits,
        };
        let keyring = options.keyring.clone();
        let dispatcher = Dispatcher {
            store: options.store,
            keyring: options.keyring,
            // `redial dev` seals all secrets with this one key.
            key_source: Arc::new(move || Ok(keyring.clone())),
            egress: options.egress,
            settings: options.dispatcher,
            progress,
            metrics,
            tracer: options.tracer,
        };
        tokio::spawn({
            let (store, shutdown) = (dispatcher.store.clone(), shutdown.clone());
            async move {
                if let Err(error) = store.keep_aligned(shutdown).await {
                    tracing::error!(%error, "another program has migrated the database");
                }
            }
        });
        Ok(Stack {
            addr,
            api: tokio::spawn(api::run(listener, api, WORKERS, shutdown.clone())),
            dispatcher: tokio::spawn(dispatcher.run(consumer, shutdown.clone())),
            shutdown,
        })
    }

    /// Waits until the api or the dispatcher ends on its own, which only an error causes, and returns the
    /// error. [`Stack::stop`] is not needed afterwards.
    pub(crate) async fn broken(&mut self) -> anyhow::Error {
        let ended: Result<()> = tokio::select! {
            api = &mut self.api => flat(api),
            dispatcher = &mut self.dispatcher => flat(dispatcher),
        };
        ended.err().unwrap_or_else(|| anyhow::anyhow!("a part of the stack has ended by itself"))
    }

    /// Stops api and dispatcher: they accept no new work and finish what is in flight.
    pub(crate) async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        flat(self.api.await)?;
        flat(self.dispatcher.await)
    }
}

/// Flattens a task's result; a panic becomes an error.
fn flat<E: Into<anyhow::Error>>(ended: Result<Result<(), E>, JoinError>) -> Result<()> {
    ended?.map_err(Into::into)
}

/// An organization with a token and a signing secret.
pub(crate) struct Tenant {
    pub(crate) org: OrgId,
    pub(crate) token: String,
    pub(crate) secret: SigningSecret,
}

/// Creates an organization with a token for all scopes and a signing secret.
pub(crate) async fn make_tenant(store: &Store, keyring: &Keyring, name: &'static str) -> Result<Tenant> {
    let keyring = keyring.clone();
    let made = store.write(move |tx, now| {
        let org = store::create_organization(tx, now, name)?.id;
        let token = store::create_token(tx, now, org, Scopes::All, Some(name.to_owned()), None)?;
        let secret = store::create_secret(tx, now, &keyring, org, Some(name.to_owned()))?;
        let token = token.token.to_string();
        Ok::<_, store::StoreError>(Tenant { org, token, secret: secret.plain_secret })
    });
    Ok(made.await?)
}
