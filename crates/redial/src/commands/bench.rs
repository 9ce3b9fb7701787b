//! `redial bench`: how many redeliveries a second go from request to record, on real parts on one machine.
//!
//! One `redial api` and one or more `redial dispatcher` processes on the configured PostgreSQL and RabbitMQ, a
//! receiver that verifies every signature in this process, and clients that ask for redeliveries over HTTP. An
//! organization of its own; a queue of its own that is deleted afterwards. The database keeps what was measured:
//! use one made for it, as `scripts/bench` does.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use contracts::{DeliveryStatus, OrgId, RunId, RunUpdate};
use receiver::Receiver;
use store::{Deliver, Keyring, Store, StoreError, count_deliveries, record_run};
use tokio::process::{Child, Command};
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::client::Client;
use crate::settings::Settings;
use crate::signals;
use crate::stack::make_tenant;

/// Measures redeliveries from request to record.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many redeliveries.
    #[arg(long, default_value_t = 20_000)]
    deliveries: usize,
    /// The size of each payload in bytes.
    #[arg(long, default_value_t = 1024)]
    payload: usize,
    /// How many clients ask at once, each on a connection of its own.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// How many dispatchers.
    #[arg(long, default_value_t = 1)]
    dispatchers: usize,
    /// How many single redeliveries measure the latency of an idle system.
    #[arg(long, default_value_t = 200)]
    samples: usize,
}

/// Runs for warming up, before anything is measured.
const WARM_UP: usize = 500;
/// Rows recorded in one transaction while preparing.
const CHUNK: usize = 500;
/// Nothing here takes longer unless something is broken.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often progress is looked at; part of what the end-to-end time can't resolve.
const LOOK: Duration = Duration::from_millis(10);

pub(crate) async fn run(settings: &Settings, args: Args) -> Result<()> {
    let stopped = signals::stop();
    let store = Store::open(&settings.database_url()?, 4).await?;
    let queue_name = format!("redial.bench.{}", Uuid::new_v4().simple());
    let mut of_its_own = settings.clone();
    of_its_own.broker.queue = queue_name.clone();
    let broker = of_its_own.broker()?;
    let key = Keyring::generate("bench");
    let tenant = make_tenant(&store, &Keyring::parse(&[key.as_str()])?, "bench").await?;
    let (sink, mut arrivals) = unbounded_channel();
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    // Two receivers: one tells when a callback arrives, the other only counts.
    let secrets = vec![tenant.secret.clone()];
    let watched = Receiver::bind(
        loopback,
        receiver::Options { secrets: secrets.clone(), sink: Some(sink), ..Default::default() },
    )?;
    let counting = Receiver::bind(loopback, receiver::Options { secrets, ..Default::default() })?;
    let singles =
        prepare(&store, settings, tenant.org, args.samples, args.payload, &watched.url("/ok")).await?;
    let warm_up = prepare(&store, settings, tenant.org, WARM_UP, args.payload, &counting.url("/ok")).await?;
    let load =
        prepare(&store, settings, tenant.org, args.deliveries, args.payload, &counting.url("/ok")).await?;

    let address = TcpListener::bind(loopback)?.local_addr()?; // free again when the api takes it
    let environment = [
        ("REDIAL_API__LISTEN", address.to_string()),
        ("REDIAL_BROKER__QUEUE", queue_name),
        ("REDIAL_SECRETS__KEYS", key.to_string()),
        ("REDIAL_EGRESS__ALLOW", "127.0.0.0/8".to_owned()),
        ("REDIAL_LOG__FILTER", "warn".to_owned()),
    ];
    let mut api = start("api", &environment)?;
    let mut dispatchers =
        (0..args.dispatchers).map(|_| start("dispatcher", &environment)).collect::<Result<Vec<_>>>()?;
    let client = Client::new(&format!("http://{address}"), &tenant.token);
    let measured = async {
        ready(&client, &mut api).await?;
        drive(&client, warm_up, args.clients).await?;
        settled(&store, tenant.org, WARM_UP).await?;

        let mut latencies = Vec::with_capacity(singles.len());
        for run in singles {
            let asked = Instant::now().into_std();
            redeliver(&client, run).await?;
            let received = timeout(PATIENCE, arrivals.recv()).await?.context("the receiver is gone")?;
            latencies.push(received.received_at.duration_since(asked));
            settled(&store, tenant.org, WARM_UP + latencies.len()).await?;
        }

        let began = Instant::now();
        let accepts = drive(&client, load, args.clients).await?;
        let accepted = began.elapsed();
        settled(&store, tenant.org, WARM_UP + args.samples + args.deliveries).await?;
        Ok((latencies, accepts, accepted, began.elapsed()))
    };
    let measured: Result<_> = tokio::select! {
        measured = measured => measured,
        signal = stopped => Err(anyhow::anyhow!("ended by {signal}")),
    };
    // Whatever came of it, the queue must not stay.
    let memory = dispatchers.iter().map(peak_memory).collect::<Result<Vec<_>>>();
    let mut ended_well = Ok(());
    for process in dispatchers.iter_mut().chain([&mut api]) {
        ended_well = ended_well.and(stop(process).await);
    }
    broker.delete_queues().await?;
    let (mut latencies, mut accepts, accepted, ended) = measured?;
    ended_well?;

    let posts = watched.posts() + counting.posts();
    let expected = (WARM_UP + args.samples + args.deliveries) as u64;
    ensure!(posts == expected, "{posts} callbacks arrived instead of {expected}");
    ensure!(watched.invalid() + counting.invalid() == 0, "callbacks with invalid signatures arrived");
    let mut out = io::stdout().lock();
    let rate = |time: Duration| args.deliveries as f64 / time.as_secs_f64();
    writeln!(
        out,
        "redeliveries            {} of {} bytes, {} clients, {} dispatcher(s)",
        args.deliveries, args.payload, args.clients, args.dispatchers
    )?;
    writeln!(out, "requested and accepted  {:.0} a second", rate(accepted))?;
    writeln!(
        out,
        "accepted to recorded    {:.0} a second ({:.2} s in all)",
        rate(ended),
        ended.as_secs_f64()
    )?;
    writeln!(out, "answer under load       {}", percentiles(&mut accepts))?;
    writeln!(out, "request to arrival idle {}", percentiles(&mut latencies))?;
    for memory in memory? {
        writeln!(out, "dispatcher's memory     {:.1} MiB at most", memory as f64 / 1024.0)?;
    }
    writeln!(out, "all arrived once, with valid signatures, and are recorded as succeeded")?;
    Ok(())
}

/// Records runs whose payloads have about the size wanted, without announcing them.
async fn prepare(
    store: &Store,
    settings: &Settings,
    org: OrgId,
    count: usize,
    payload: usize,
    url: &str,
) -> Result<Vec<RunId>> {
    // What a payload has beside its output's text.
    let filler = "x".repeat(payload.saturating_sub(270));
    let body = format!(
        r#"{{"status_code":"succeeded","output":{{"text":"{filler}"}},"duration_ms":1234,"callback_url":"{url}","metadata":{{}}}}"#
    );
    let update = RunUpdate::parse(body.as_bytes()).map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    let runs: Vec<RunId> = (0..count).map(|_| RunId(Uuid::new_v4())).collect();
    for chunk in runs.chunks(CHUNK) {
        let (chunk, update, policy) = (chunk.to_vec(), update.clone(), settings.accept_policy());
        let record = store.write(move |tx, now| {
            for run in chunk {
                record_run(tx, now, &policy, Deliver::Never, (org, run), &update, "bench")?;
            }
            Ok::<_, StoreError>(())
        });
        record.await?;
    }
    Ok(runs)
}

fn start(service: &str, environment: &[(&str, String)]) -> Result<Child> {
    Command::new(std::env::current_exe()?)
        .arg(service)
        .envs(environment.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start redial {service}"))
}

async fn ready(client: &Client, api: &mut Child) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !matches!(client.get("/v1/health").await, Ok((200, _))) {
        if let Some(status) = api.try_wait()? {
            bail!("the api ended with {status}");
        }
        ensure!(Instant::now() < deadline, "the api does not answer");
        sleep(LOOK).await;
    }
    Ok(())
}

async fn redeliver(client: &Client, run: RunId) -> Result<()> {
    let (status, body) = client.post(&format!("/v1/runs/{run}/callback-redeliveries")).await?;
    ensure!(status == 201, "a redelivery was answered {status} {body}");
    Ok(())
}

/// Asks for all redeliveries, `clients` at a time, and answers how long each request took.
async fn drive(client: &Client, runs: Vec<RunId>, clients: usize) -> Result<Vec<Duration>> {
    let (runs, next) = (Arc::new(runs), Arc::new(AtomicUsize::new(0)));
    let work = |_| {
        let (client, runs, next) = (client.clone(), runs.clone(), next.clone());
        tokio::spawn(async move {
            let mut took = Vec::new();
            while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let asked = Instant::now();
                redeliver(&client, *run).await?;
                took.push(asked.elapsed());
            }
            Ok::<_, anyhow::Error>(took)
        })
    };
    let clients: Vec<_> = (0..clients).map(work).collect();
    let mut took = Vec::with_capacity(runs.len());
    for client in clients {
        took.extend(client.await??);
    }
    Ok(took)
}

/// Waits until that many deliveries are recorded as succeeded.
async fn settled(store: &Store, org: OrgId, count: usize) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let counts = store.read(move |tx| count_deliveries(tx, org)).await?;
        let succeeded = counts.get(&DeliveryStatus::Succeeded).copied().unwrap_or(0);
        if succeeded >= count as i64 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{succeeded} of {count} deliveries succeeded: {counts:?}");
        // Counting costs the database something: look rarely while much is left.
        sleep(LOOK.max(Duration::from_micros(20 * (count as u64 - succeeded as u64)))).await;
    }
}

/// The most memory the process has had resident, in KiB.
fn peak_memory(process: &Child) -> Result<u64> {
    let id = process.id().context("a dispatcher has ended")?;
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(peak.trim().trim_end_matches(" kB").parse()?)
}

async fn stop(process: &mut Child) -> Result<()> {
    if let Some(id) = process.id() {
        let terminated = Command::new("kill").arg(id.to_string()).status().await?;
        ensure!(terminated.success(), "process {id} could not be stopped");
    }
    process.wait().await?;
    Ok(())
}

fn percentiles(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    if times.is_empty() {
        return "not measured".to_owned();
    }
    format!("p50 {:.1} ms, p99 {:.1} ms, at most {:.1} ms", at(0.5), at(0.99), at(1.0))
}
