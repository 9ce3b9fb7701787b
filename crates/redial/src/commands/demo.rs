//! `redial demo`: a self-checking demonstration, from a run's end to a redelivery.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use contracts::RunId;
use ops::Tracer;
use receiver::{Received, Receiver, Verdict, pretty};
use serde_json::Value;
use store::Keyring;
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, timeout_at};

use crate::client::Client;
use crate::examples;
use crate::settings::Settings;
use crate::signals;
use crate::stack::{Options, Stack, make_tenant, open_store};

/// Prefix of the demo's directories in the temporary directory.
const PREFIX: &str = "redial-demo-";
/// Delays between the demo's attempts: short enough to watch.
const SCHEDULE: [Duration; 2] = [Duration::from_millis(400), Duration::from_millis(800)];
/// Timeout for callbacks to arrive; they normally need far less.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Runs the demo in a temporary directory, which is removed at the end, also after SIGTERM or SIGINT.
pub(crate) async fn run() -> Result<()> {
    // Its result must not depend on the configuration of services on this machine.
    let settings = Settings::defaults()?;
    let stopped = signals::stop();
    clear_leftovers(&std::env::temp_dir())?;
    let (home, _lock) = make_home()?;
    let result = tokio::select! {
        result = show(&settings, home.path()) => result,
        signal = stopped => Err(anyhow::anyhow!("ended by {signal}")),
    };
    remove(home)?;
    result
}

/// Creates the demo's directory and locks it. The lock is released when this process ends, in whatever way.
fn make_home() -> Result<(TempDir, File)> {
    loop {
        let home = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
        let lock = File::open(home.path())?;
        // Another demo's cleanup may have removed the directory before the lock was taken.
        if lock.try_lock().is_ok() && home.path().exists() {
            return Ok((home, lock));
        }
    }
}

/// Removes the directories of demos that were killed.
fn clear_leftovers(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)?.flatten() {
        let path = entry.path();
        let is_ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if is_ours && is_abandoned(&path) {
            // Ignore errors: the directory may be another user's, or its owner may be removing it.
            let _ = std::fs::remove_dir_all(&path);
        }
    }
    Ok(())
}

fn is_abandoned(path: &Path) -> bool {
    File::open(path).is_ok_and(|directory| directory.try_lock().is_ok())
}

/// Removes the directory. Retries, because an interrupted transaction may still be creating a file in it.
fn remove(home: TempDir) -> io::Result<()> {
    let path = home.keep();
    (0..10)
        .map(|_| std::fs::remove_dir_all(&path))
        .find(|removed| removed.is_ok() || !path.exists())
        .unwrap_or_else(|| std::fs::remove_dir_all(&path))
}

async fn show(settings: &Settings, home: &Path) -> Result<()> {
    let mut out = io::stdout().lock();
    let (sink, mut arrivals) = unbounded_channel();
    let keyring = Keyring::parse(&[Keyring::generate("demo").as_str()])?;
    let store = open_store(home).await?;
    let tenant = make_tenant(&store, &keyring, "demo").await?;
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let receiver = Receiver::bind(
        anywhere,
        receiver::Options { secrets: vec![tenant.secret.clone()], sink: Some(sink), ..Default::default() },
    )?;
    let mut dispatcher = settings.dispatcher_settings();
    dispatcher.limits.retry.schedule = SCHEDULE.to_vec();
    let stack = Stack::start(
        TcpListener::bind(anywhere)?,
        Options {
            store,
            keyring,
            accept: settings.accept_policy(),
            egress: egress::Policy::new(vec!["127.0.0.0/8".parse()?]),
            dispatcher,
            max_body: settings.api.max_body,
            limits: settings.limits(),
            metrics: None,
            tracer: Tracer::default(),
        },
    )?;
    let client = Client::new(&format!("http://{}", stack.addr), &tenant.token);
    writeln!(out, "Redial demo. The API is {}, the receiver {}.\n", client.base_url(), receiver.url(""))?;

    writeln!(out, "1. Runs end, and their callbacks are delivered\n")?;
    let runs = examples::runs(|n| receiver.url(if n == 0 { "/fail-first/2" } else { "/ok" }))?;
    for run in &runs {
        let (status, body) = client.put(&format!("/v1/runs/{}", run.id), &run.body).await?;
        ensure!(status == 201, "PUT /v1/runs/{}: {status} {body}", run.id);
    }
    let ended: Vec<RunId> = runs.iter().filter(|run| run.is_redeliverable).map(|run| run.id).collect();
    let [stubborn, again, ..] = ended[..] else {
        bail!("fewer than two example runs have ended with a callback_url")
    };
    writeln!(
        out,
        "   {} runs recorded; {} of them have ended and name a callback_url.",
        runs.len(),
        ended.len()
    )?;
    // The first callback needs three attempts.
    let arrived = gather(&mut arrivals, ended.len() + 2).await?;
    let valid = arrived.iter().filter(|received| received.verdict == Verdict::Valid).count();
    ensure!(valid == arrived.len(), "{valid} of {} callbacks had a valid signature", arrived.len());
    writeln!(out, "   {} callbacks arrived, each with a valid signature.", arrived.len())?;
    let mut by_delivery: HashMap<&str, Vec<&Received>> = HashMap::new();
    for received in &arrived {
        let id = received.header("webhook-id").context("a callback without webhook-id")?;
        by_delivery.entry(id).or_default().push(received);
    }
    for run in &ended {
        let deliveries = client.settled_history(*run).await?;
        ensure!(deliveries.len() == 1, "run {run} has {} deliveries instead of one", deliveries.len());
        check(&deliveries[0], &by_delivery)?;
    }
    writeln!(
        out,
        "   All {} deliveries are recorded as succeeded, and what arrived equals payload_bytes.\n",
        ended.len()
    )?;

    writeln!(out, "2. One receiver failed twice; its three attempts carry the same webhook-id and bytes\n")?;
    let history = client.settled_history(stubborn).await?;
    let attempts = &by_delivery[text(&history[0], "id")?];
    ensure!(attempts.len() == 3, "{} attempts arrived instead of three", attempts.len());
    write_indented(&mut out, &pretty(attempts[0]))?;
    for attempt in &attempts[1..] {
        let number = attempt.header("redial-attempt").unwrap_or("?");
        let answered = attempt.answered.map_or("nothing".to_owned(), |status| status.to_string());
        writeln!(out, "   Attempt {number} followed: {}; answered: {answered}", attempt.verdict)?;
    }

    writeln!(out, "\n3. A client asks for another run's callback to be sent again\n")?;
    let path = format!("/v1/runs/{again}/callback-redeliveries");
    let (status, answer) = client.post(&path).await?;
    writeln!(out, "   POST {path} -> {status}\n")?;
    ensure!(status == 201, "the redelivery was refused: {answer}");
    let resent = gather(&mut arrivals, 1).await?;
    write_indented(&mut out, &pretty(&resent[0]))?;
    ensure!(resent[0].verdict == Verdict::Valid, "the redelivery: {}", resent[0].verdict);
    let redelivered = resent[0].header("webhook-id").context("a callback without webhook-id")?;
    ensure!(!by_delivery.contains_key(redelivered), "the redelivery reused a webhook-id");

    writeln!(out, "4. Every attempt is on record\n")?;
    let redeliveries = client.settled_history(again).await?;
    ensure!(redeliveries.len() == 2, "{} deliveries in the history instead of two", redeliveries.len());
    check(&redeliveries[0], &HashMap::from([(redelivered, resent.iter().collect())]))?;
    for (run, history) in [(stubborn, history), (again, redeliveries)] {
        writeln!(out, "   GET /v1/runs/{run}/callback")?;
        history.iter().try_for_each(|delivery| write_history(&mut out, delivery))?;
        writeln!(out)?;
    }

    stack.stop().await?;
    receiver.stop().await;
    ensure!(arrivals.try_recv().is_err(), "a callback arrived that nobody asked for");
    writeln!(out, "Everything was as promised.")?;
    Ok(())
}

/// Waits for `count` callbacks.
async fn gather(arrivals: &mut UnboundedReceiver<Received>, count: usize) -> Result<Vec<Received>> {
    let deadline = Instant::now() + TIMEOUT;
    let mut arrived = Vec::with_capacity(count);
    while arrived.len() < count {
        match timeout_at(deadline, arrivals.recv()).await {
            Ok(Some(received)) => arrived.push(received),
            _ => bail!("only {} of {count} callbacks arrived within {TIMEOUT:?}", arrived.len()),
        }
    }
    Ok(arrived)
}

/// Checks that a settled delivery succeeded, that every attempt is on record, and that its bytes arrived.
fn check(delivery: &Value, arrived: &HashMap<&str, Vec<&Received>>) -> Result<()> {
    let id = text(delivery, "id")?;
    let arrived = arrived.get(id).with_context(|| format!("nothing of delivery {id} arrived"))?;
    ensure!(text(delivery, "status_code")? == "succeeded", "delivery {id} is {}", delivery["status_code"]);
    let attempts = delivery["attempts"].as_array().context("a delivery without attempts")?;
    ensure!(
        attempts.len() == arrived.len(),
        "{} attempts recorded, {} arrived",
        attempts.len(),
        arrived.len()
    );
    let bytes = text(delivery, "payload_bytes")?.as_bytes();
    ensure!(arrived.iter().all(|received| received.body == bytes), "delivery {id}: other bytes arrived");
    Ok(())
}

fn text<'v>(object: &'v Value, key: &str) -> Result<&'v str> {
    object[key].as_str().with_context(|| format!("{key} is missing"))
}

fn write_history(out: &mut impl Write, delivery: &Value) -> Result<()> {
    let kind = if delivery["is_automatic"] == true { "automatic delivery" } else { "redelivery" };
    writeln!(out, "     {kind} {}: {}", text(delivery, "id")?, text(delivery, "status_code")?)?;
    for attempt in delivery["attempts"].as_array().into_iter().flatten() {
        writeln!(
            out,
            "       {}. {}  {}  {} ms  {}",
            attempt["attempt_number"],
            text(attempt, "created_at")?,
            attempt["status_code"],
            attempt["response_time_ms"],
            attempt["error_message"].as_str().unwrap_or("delivered"),
        )?;
    }
    Ok(())
}

fn write_indented(out: &mut impl Write, text: &str) -> io::Result<()> {
    text.lines().try_for_each(|line| writeln!(out, "{}", format!("   {line}").trim_end()))?;
    writeln!(out)
}
