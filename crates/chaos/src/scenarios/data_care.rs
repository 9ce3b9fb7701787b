//! Removal of old deliveries under load.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;
use tokio::time::Instant;

use super::{Outcome, P99, accept, conclude, ms, p99, secs, waits};
use crate::Scale;
use crate::installation::{Installation, Plan, Servers};
use crate::load::{Answers, Pace, request_redeliveries};
use crate::report::Row;

const PACE: Pace = Pace { clients: 16, rate: Some(300.0) };

/// Turns every delivery into one that succeeded a hundred days ago.
const AGE: &str = "
    UPDATE deliveries SET created_at = created_at - interval '100 days';
    INSERT INTO ended_deliveries (id, org_id, callback_host, is_automatic, status_code, attempt_count, created_at, completed_at)
        SELECT id, d.org_id, callback_host, d.is_automatic, 'succeeded', 1, d.created_at, d.created_at
        FROM open_deliveries JOIN deliveries d USING (id);
    DELETE FROM open_deliveries;
    INSERT INTO attempts (id, delivery_id, attempt_number, status_code, response_time_ms, created_at)
        SELECT gen_random_uuid(), id, 1, 200, 5, created_at FROM deliveries;
    VACUUM ANALYZE";

/// Runs `redial prune` under load, after the same load without it.
pub(crate) async fn pruning(servers: &mut Servers, scale: &Scale) -> Result<Outcome> {
    let mut installation = Installation::open(servers, Plan::of("pruning", 1, 2)).await?;
    let (old, new) = (scale.of(50_000), scale.of(3000));
    let specs = installation.stop_dispatchers().await?;
    scale.say(format!("{old} old deliveries"));
    accept(&installation, old, "/ok", &mut Answers::default()).await?;
    for statement in AGE.split(';') {
        servers.cluster.sql(&installation.database, statement)?;
    }
    // Their doorbells are stale.
    servers.node.command(&["purge_queue", &installation.queue]);
    installation.start_dispatchers(specs)?;
    super::processes::all_answer(&mut installation.dispatchers, &installation.http).await?;

    scale.say("without pruning");
    let mut alone = request_redeliveries(&installation, installation.runs(new, "/ok").await?, PACE).await?;
    scale.say("with pruning");
    let runs = installation.runs(new, "/ok").await?;
    let pruning = prune(&installation);
    let (mut beside, (removed, took)) =
        tokio::try_join!(request_redeliveries(&installation, runs, PACE), pruning)?;
    installation.all_ended(2 * new).await?;

    let waits = waits(&installation.history().await?, &installation.ledger.receipts());
    let longest = waits.iter().map(|(_, wait)| *wait).max().unwrap_or_default();
    let rows = vec![
        Row::new("removed", old.to_string(), removed.to_string(), removed == old),
        Row::new("in", "", secs(took), true),
        Row::new("api's answers before, p99", ms(P99), ms(alone.percentile(0.99)), true),
        p99(&mut beside),
        Row::new("longest wait of a new delivery", "2 s", secs(longest), longest < Duration::from_secs(2)),
    ];
    beside.accepted.extend(alone.accepted);
    conclude(installation, rows, &beside, &[]).await
}

/// Runs `redial prune`. Returns how many deliveries it reports as removed, and how long it took.
async fn prune(installation: &Installation) -> Result<(usize, Duration)> {
    let spec = &installation.apis[0].spec;
    let began = Instant::now();
    let output = Command::new(&spec.binary)
        .args(["prune", "--older-than", "90d"])
        .envs(spec.environment.iter().cloned())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .await?;
    ensure!(output.status.success(), "redial prune ended with {}", output.status);
    let figures: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let removed =
        figures["deliveries"].as_u64().context("redial prune does not report the removed deliveries")?;
    Ok((usize::try_from(removed)?, began.elapsed()))
}
