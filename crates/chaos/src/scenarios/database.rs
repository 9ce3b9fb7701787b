//! Database crashes.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use super::{Outcome, conclude, secs};
use crate::Scale;
use crate::installation::{Installation, Plan, Servers};
use crate::ledger::host_now;
use crate::load::{Pace, request_redeliveries};
use crate::report::Row;
use crate::verdict::{Disturbance, Target};

/// Repeatedly stops PostgreSQL with `immediate` and starts it again, under load.
pub(crate) async fn crashes(servers: &mut Servers, scale: &Scale) -> Result<Outcome> {
    let plan = Plan { lease: Duration::from_secs(12), schedule: "1s", ..Plan::of("database-crashes", 2, 2) };
    let installation = Installation::open(servers, plan).await?;
    let crashes = scale.of(20);
    // About four seconds of load for each crash.
    let count = crashes * 400;
    let runs = installation.runs(count, "/ok").await?;
    let load =
        tokio::spawn(request_redeliveries(&installation, runs, Pace { clients: 32, rate: Some(100.0) }));
    let mut disturbances = Vec::new();
    for number in 1..=crashes {
        scale.say(format!("{number} of {crashes} crashes"));
        sleep(Duration::from_secs(2)).await;
        let from = host_now();
        servers.cluster.crash()?;
        sleep(Duration::from_millis(if number % 5 == 0 { 6000 } else { 700 })).await;
        servers.cluster.resume()?;
        disturbances.push(Disturbance { what: Target::Database, from, to: host_now() });
    }
    scale.say("recovering");
    let answers = load.await??;
    let recovery = installation.all_ended(count).await?;
    let slowest = answers.times.iter().max().copied().unwrap_or_default();
    let rows = vec![
        Row::new("crashes", crashes.to_string(), disturbances.len().to_string(), true),
        Row::new(
            "accepted in the end",
            count.to_string(),
            answers.accepted.len().to_string(),
            answers.accepted.len() == count,
        ),
        Row::new("slowest answer, 201 or 503", "5 s", secs(slowest), slowest < Duration::from_secs(5)),
        Row::new(
            "other answers, all in time",
            "",
            answers.others(),
            answers.unheard + answers.unanswered == 0,
        ),
        Row::new("all delivered after the last answer", "", secs(recovery), true),
    ];
    conclude(installation, rows, &answers, &disturbances).await
}
