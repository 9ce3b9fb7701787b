//! `redial dev`: the whole stack in one long-running process, for developing a receiver or trying the API.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use contracts::{OrgId, RunId, SigningSecret};
use ipnet::IpNet;
use receiver::Receiver;
use serde::{Deserialize, Serialize};
use store::{AcceptPolicy, Deliver, Keyring, Store, StoreError, TokenText, authenticate, record_run};
use tokio::sync::mpsc::unbounded_channel;
use uuid::Uuid;

use crate::commands::listen::print_arrivals;
use crate::examples;
use crate::keys;
use crate::metrics;
use crate::settings::Settings;
use crate::signals;
use crate::stack::{Options, Stack, Tenant, make_tenant, open_store};
use crate::traces::Traces;

/// Run the whole stack in one process, with a sample receiver, until stopped.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Listen address of the API.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Listen address of the sample receiver.
    #[arg(long, default_value = "127.0.0.1:9090")]
    receiver: SocketAddr,
    /// Directory for state kept across restarts.
    #[arg(long, default_value = DATA_DIR)]
    data_dir: PathBuf,
}

/// Default data directory.
pub(crate) const DATA_DIR: &str = ".redial";

/// Returns the URL and token of the last `dev` started on this data directory; `None` if there was none.
pub(crate) fn running(data_dir: &Path) -> Result<Option<(String, String)>> {
    let path = data_dir.join("dev.json");
    let json = match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let dev: Dev = serde_json::from_slice(&json)
        .with_context(|| format!("{} is not what `redial dev` writes: start it anew", path.display()))?;
    Ok(Some((dev.base_url, dev.token)))
}

/// Connection data for programs that use a running `dev`: the contents of `<data-dir>/dev.json`.
#[derive(Serialize, Deserialize)]
struct Dev {
    base_url: String,
    token: String,
    organization_id: OrgId,
    /// Runs that can be redelivered.
    run_ids: Vec<RunId>,
    receiver_url: String,
    signing_secret: String,
}

pub(crate) async fn run(settings: &Settings, args: Args) -> Result<()> {
    let stopped = signals::stop();
    std::fs::create_dir_all(&args.data_dir)
        .with_context(|| format!("cannot make the data directory {}", args.data_dir.display()))?;
    let lock = File::create(args.data_dir.join("lock"))?;
    if lock.try_lock().is_err() {
        bail!("another `redial dev` is using {}: stop it, or give --data-dir", args.data_dir.display());
    }
    let listener = TcpListener::bind(args.listen)
        .with_context(|| format!("cannot listen on {}: stop what does, or give --listen", args.listen))?;
    let metrics = match &settings.metrics.listen {
        Some(address) => metrics::listen(address)?,
        None => TcpListener::bind("127.0.0.1:0")?,
    };
    let metrics_url = format!("http://{}/metrics", metrics.local_addr()?);
    let traces = Traces::start("redial", settings)?;
    let (sink, arrivals) = unbounded_channel();
    let receiver =
        Receiver::bind(args.receiver, receiver::Options { sink: Some(sink), ..Default::default() })
            .with_context(|| {
                format!("cannot listen on {}: stop what does, or give --receiver", args.receiver)
            })?;

    let keyring = own_keyring(&args.data_dir.join(keys::FILE))?;
    let store = open_store(&args.data_dir).await?;
    keys::check(&store, &keyring).await?;
    let dev_json = args.data_dir.join("dev.json");
    let known: Option<Dev> =
        std::fs::read(&dev_json).ok().and_then(|json| serde_json::from_slice(&json).ok());
    let tenant = match &known {
        Some(dev) => known_tenant(&store, dev).await?,
        None => None,
    };
    let tenant = match tenant {
        Some(tenant) => tenant,
        None => make_tenant(&store, &keyring, "dev").await?,
    };
    receiver.add_secret(tenant.secret.clone());
    // A run's callback URL is final once the run has ended, so another receiver needs new runs.
    let run_ids = match known {
        Some(dev) if dev.receiver_url == receiver.url("") && dev.organization_id == tenant.org => dev.run_ids,
        _ => record_examples(&store, settings.accept_policy(), tenant.org, &receiver).await?,
    };

    // The sample receiver is on loopback, on any port, and speaks plain http.
    let mut egress = settings.egress_rules();
    egress.allow.extend(["127.0.0.0/8".parse::<IpNet>()?, "::1/128".parse()?]);
    egress.ports.push(receiver.addr().port().into());
    egress.https_only = false;
    let mut stack = Stack::start(
        listener,
        Options {
            store,
            keyring,
            accept: settings.accept_policy(),
            egress: egress.into(),
            dispatcher: settings.dispatcher_settings(),
            max_body: settings.api.max_body,
            limits: settings.limits(),
            metrics: Some(metrics),
            tracer: traces.tracer.clone(),
        },
    )?;
    let dev = Dev {
        base_url: format!("http://{}", stack.addr),
        token: tenant.token,
        organization_id: tenant.org,
        run_ids,
        receiver_url: receiver.url(""),
        signing_secret: tenant.secret.plain().to_owned(),
    };
    write_private(&dev_json, &serde_json::to_vec_pretty(&dev)?)?;
    greet(&dev, &metrics_url, &args.data_dir)?;

    tokio::select! {
        printed = print_arrivals(arrivals, stopped) => printed?,
        error = stack.broken() => return Err(error),
    }
    stack.stop().await?;
    traces.stop().await;
    receiver.stop().await;
    Ok(())
}

fn greet(dev: &Dev, metrics_url: &str, data_dir: &Path) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "API       {}", dev.base_url)?;
    writeln!(out, "token     {}", dev.token)?;
    writeln!(out, "receiver  {} (prints what arrives)", dev.receiver_url)?;
    writeln!(out, "metrics   {metrics_url}")?;
    writeln!(out, "state     {} (all of this is in dev.json)", data_dir.display())?;
    if let Some(run) = dev.run_ids.first() {
        writeln!(out, "\nAsk for a redelivery:\n")?;
        writeln!(out, "  curl -X POST -H 'Authorization: Bearer {}' \\", dev.token)?;
        writeln!(out, "    {}/v1/runs/{run}/callback-redeliveries\n", dev.base_url)?;
        writeln!(out, "or, in another terminal:\n")?;
        writeln!(out, "  redial deliveries redeliver {run} --follow")?;
        writeln!(out, "  redial deliveries list\n")?;
    }
    out.flush()
}

/// Returns the key in the file at `path`. Creates the file on first use, readable only by its owner.
fn own_keyring(path: &Path) -> Result<Keyring> {
    if !path.exists() {
        write_private(path, Keyring::generate("dev").as_bytes())?;
    }
    keys::read(path)
}

/// Replaces a file atomically. Only its owner can read it.
fn write_private(path: &Path, contents: &[u8]) -> Result<()> {
    let draft = path.with_extension("draft");
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(contents)?;
        file.sync_all()?;
        std::fs::rename(&draft, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Returns the tenant of an earlier start, if its token is still valid in this database.
async fn known_tenant(store: &Store, dev: &Dev) -> Result<Option<Tenant>> {
    let Some(token) = TokenText::parse(&dev.token) else { return Ok(None) };
    let secret = SigningSecret::parse(&dev.signing_secret)
        .context("dev.json has an unusable signing_secret: correct it, or delete the file for a new one")?;
    let now = store.clock().now();
    let principal = store.read(move |tx| authenticate(tx, now, token)).await?;
    let is_ours = principal.is_some_and(|principal| principal.org_id == dev.organization_id);
    Ok(is_ours.then(|| Tenant { org: dev.organization_id, token: dev.token.clone(), secret }))
}

/// Records the example runs under new ids, without automatic deliveries, and returns the redeliverable ones.
async fn record_examples(
    store: &Store,
    policy: AcceptPolicy,
    org: OrgId,
    receiver: &Receiver,
) -> Result<Vec<RunId>> {
    let mut updates = Vec::new();
    for run in examples::runs(|_| receiver.url("/ok"))? {
        let update = contracts::RunUpdate::parse(run.body.as_bytes());
        let update = update.map_err(|errors| anyhow::anyhow!("example run {}: {errors:?}", run.id))?;
        updates.push((RunId(Uuid::new_v4()), update, run.is_redeliverable));
    }
    let recorded = store.write(move |tx, now| {
        let mut redeliverable = Vec::new();
        for (id, update, is_redeliverable) in updates {
            record_run(tx, now, &policy, Deliver::Never, (org, id), &update, &"dev".into())?;
            redeliverable.extend(is_redeliverable.then_some(id));
        }
        Ok::<_, StoreError>(redeliverable)
    });
    Ok(recorded.await?)
}
