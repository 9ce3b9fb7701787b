//! Dispatchers with too little memory or too few open files for their backlog.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::time::sleep;

use super::{FLAT_OUT, Outcome, accept, conclude, secs};
use crate::Scale;
use crate::installation::{Installation, OUTPUT, Plan, Servers};
use crate::ledger::host_now;
use crate::limits::MemoryLimit;
use crate::load::{Pace, request_redeliveries};
use crate::logs::Logs;
use crate::process::Process;
use crate::report::Row;
use crate::verdict::{Disturbance, Target};

/// Delivers a backlog larger than the memory limit. Restarts a killed dispatcher, as an orchestrator would.
pub(crate) async fn memory(servers: &mut Servers, scale: &Scale) -> Result<Outcome> {
    const LIMIT: u64 = 256 << 20;
    /// The whole body is just below `api.max_body`, 2 MiB.
    const LARGE: usize = 1_900_000;
    const TIMEOUT: Duration = Duration::from_secs(120);
    let mut installation = Installation::open(servers, Plan::of("memory", 1, 1)).await?;
    let count = scale.of(300).max(150);
    let mut spec = installation.stop_dispatchers().await?.pop().context("no dispatcher")?;
    scale.say(format!("accepting {count}"));
    let runs = installation.runs_with(count, &installation.ledger.url("/ok"), LARGE).await?;
    let mut all = request_redeliveries(&installation, runs, Pace { clients: 4, rate: None }).await?;
    let small = accept(&installation, 1, "/ok", &mut all).await?;

    scale.say("delivering");
    let limit = MemoryLimit::new(LIMIT);
    spec.wrapper = limit.wrapper();
    let (began, from) = (Instant::now(), host_now());
    let (mut restarts, mut peak) = (0, 0.0_f64);
    let mut process = Process::start(spec.clone())?;
    while installation.counts().await.is_none_or(|(_, open)| open > 0) && began.elapsed() < TIMEOUT {
        if process.has_ended()? {
            restarts += 1;
            process = Process::start(spec.clone())?;
        }
        peak = process.memory().map_or(peak, |(_, most)| peak.max(most));
        sleep(Duration::from_millis(100)).await;
    }
    let (took, left) = (began.elapsed(), installation.counts().await.map_or(count, |(_, open)| open));
    let what = Target::Dispatcher(spec.name.clone());
    let killed = (restarts > 0).then(|| Disturbance { what, from, to: host_now() });
    process.terminate().await?;
    let receipts = installation.ledger.receipts();
    let small = small.iter().filter_map(|id| receipts.get(id)?.first()).map(|receipt| receipt.at.since(from));
    let charged = limit.peak().map_or_else(String::new, |mib| format!(", {mib:.1} MiB charged to it"));
    let rows = vec![
        Row::new(
            format!("of {count} deliveries of 1.9 MB and a small one, still due"),
            "0",
            format!("{left} after {}", secs(took)),
            left == 0,
        ),
        Row::new("the small one arrived after", "", small.min().map_or("never".to_owned(), secs), true),
        Row::new(
            format!("restarts in 256 MiB, by {}", limit.kind()),
            "0",
            restarts.to_string(),
            restarts == 0,
        ),
        Row::new("dispatcher's memory at most", "", format!("{peak:.1} MiB resident{charged}"), true),
    ];
    conclude(installation, rows, &all, killed.as_slice()).await
}

/// Delivers to more destinations, all healthy, than the dispatcher may have connections.
pub(crate) async fn files(servers: &mut Servers, scale: &Scale) -> Result<Outcome> {
    const FILES: usize = 512;
    const DESTINATIONS: u32 = 700;
    // Attempts that fail for lack of file descriptors would be used up before idle connections are closed.
    let mut installation =
        Installation::open(servers, Plan { schedule: "1s", ..Plan::of("files", 1, 1) }).await?;
    let each = scale.of(4);
    let mut specs = installation.stop_dispatchers().await?;
    let mut runs = Vec::new();
    for destination in 0..DESTINATIONS {
        runs.extend(
            installation.runs_with(each, &installation.ledger.url_of(destination, "/ok"), OUTPUT).await?,
        );
    }
    let count = runs.len();
    scale.say(format!("accepting {count}"));
    let all = request_redeliveries(&installation, runs, FLAT_OUT).await?;
    for spec in &mut specs {
        spec.wrapper = vec!["prlimit".to_owned(), format!("--nofile={FILES}:{FILES}")];
    }
    scale.say("delivering");
    installation.start_dispatchers(specs)?;
    let took = installation.all_ended(count).await?;
    let history = installation.history().await?;
    let mut failures: BTreeMap<&str, usize> = BTreeMap::new();
    for error in
        history.iter().flat_map(|d| &d.attempts).filter_map(|attempt| attempt.error_message.as_deref())
    {
        // The last part is the cause. The part before it is the address.
        *failures.entry(error.rsplit(": ").next().unwrap_or(error)).or_default() += 1;
    }
    let spent: usize = failures.values().sum();
    let causes: Vec<String> = failures.iter().map(|(cause, times)| format!("{times} × {cause}")).collect();
    let failed = history.iter().filter(|delivery| delivery.failure_reason_code.is_some()).count();
    let handed_back: usize = Logs::read(&installation.logs)?.handed_back.values().sum();
    let rows = vec![
        Row::new(
            format!("{DESTINATIONS} destinations with {FILES} open files: attempts spent"),
            "0",
            std::iter::once(spent.to_string()).chain(causes).collect::<Vec<_>>().join("; "),
            spent == 0,
        ),
        Row::new("… deliveries that failed for good", "0", failed.to_string(), failed == 0),
        Row::new("… attempts handed back", "", handed_back.to_string(), true),
        Row::new("… all ended after", "", secs(took), true),
    ];
    conclude(installation, rows, &all, &[]).await
}
