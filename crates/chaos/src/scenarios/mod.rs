//! One file per kind of failure, one function per scenario.

mod broker;
mod broker_cluster;
mod clocks;
mod data_care;
mod database;
mod failover;
mod fairness;
mod poison;
mod processes;
mod shortage;
mod soak;
mod storm;

use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::Result;
use contracts::{Delivery, DeliveryId, Timestamp};
use std::collections::{HashMap, HashSet};
use tokio::time::sleep;

use crate::Scale;
use crate::installation::{Installation, Servers};
use crate::ledger::Receipt;
use crate::load::{Answers, Pace, request_redeliveries};
use crate::logs::Logs;
use crate::report::Row;
use crate::verdict::{Disturbance, Evidence, Verdict};

/// Result of a scenario.
pub(crate) struct Outcome {
    pub(crate) rows: Vec<Row>,
    pub(crate) broken: Vec<String>,
}

type Run = for<'a> fn(&'a mut Servers, &'a Scale) -> Pin<Box<dyn Future<Output = Result<Outcome>> + 'a>>;

/// A named scenario.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) run: Run,
}

macro_rules! scenario {
    ($name:literal, $title:literal, $run:path) => {
        Scenario { name: $name, title: $title, run: |servers, scale| Box::pin($run(servers, scale)) }
    };
}

/// The scenarios that run unless others are named, in the order of execution.
pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario!("api-killed", "the api is killed between commit and publish", processes::api_killed),
    scenario!("queue-lost", "the queue is purged, and deleted, with deliveries waiting", broker::queue_lost),
    scenario!("stalls", "dispatchers stopped beyond their lease, between claim and send", processes::stalls),
    scenario!("clocks", "dispatchers whose clocks are a day off", clocks::clocks),
    scenario!("rolling-restart", "every process restarted in turn under load", processes::rolling_restart),
    scenario!("pruning", "old deliveries are removed under load", data_care::pruning),
    scenario!("disk-alarm", "the broker blocks publishers", broker::disk_alarm),
    scenario!("database-crashes", "PostgreSQL crashes again and again under load", database::crashes),
    scenario!("failover", "a standby takes over from a failed PostgreSQL primary", failover::failover),
    scenario!("broker-away", "RabbitMQ is unavailable while a backlog is delivered", broker::away),
    scenario!("broker-restarts", "RabbitMQ restarts with a full queue", broker::restarts),
    scenario!(
        "broker-cluster",
        "the RabbitMQ node that leads the queue is killed again and again",
        broker_cluster::leaders_killed
    ),
    scenario!("unfair", "one destination hangs without delaying the others", fairness::unfair),
    scenario!("holds", "a receiver limits concurrent requests with 429", fairness::holds),
    scenario!("poisoned", "one row that can't be claimed or recorded", poison::poisoned),
    scenario!("memory", "a backlog larger than the dispatcher's memory", shortage::memory),
    scenario!("files", "more destinations than the dispatcher may have open files", shortage::files),
    scenario!("storm", "all kinds of faults at once", storm::storm),
    scenario!("backlog", "deliveries are accepted for ten minutes without a dispatcher", broker::backlog),
];

/// Scenarios that run only when named: they take hours.
pub(crate) const LONG: &[Scenario] = &[scenario!("soak", "a steady, mixed load for hours", soak::soak)];

/// Checks a installation whose deliveries have all ended, and closes it.
async fn conclude(
    installation: Installation,
    rows: Vec<Row>,
    answers: &Answers,
    disturbances: &[Disturbance],
) -> Result<Outcome> {
    judge(installation, rows, answers, disturbances, true).await
}

/// Checks a installation and closes it. All deliveries must have ended if `is_over`.
async fn judge(
    installation: Installation,
    mut rows: Vec<Row>,
    answers: &Answers,
    disturbances: &[Disturbance],
    is_over: bool,
) -> Result<Outcome> {
    let (history, posts, receipts) =
        (installation.history().await?, installation.ledger.posts(), installation.ledger.receipts());
    let evidence = Evidence {
        accepted: &answers.accepted,
        history: &history,
        receipts: &receipts,
        posts,
        logs: &Logs::read(&installation.logs)?,
        disturbances,
        lease: installation.plan.lease,
        timeout: installation.plan.timeout,
        is_over,
    };
    let verdict = Verdict::of(&evidence);
    rows.extend(verdict.rows());
    installation.close().await?;
    Ok(Outcome { rows, broken: verdict.descriptions() })
}

/// Limit of the api's response time while another component fails.
const P99: Duration = Duration::from_millis(250);
/// As fast as responses arrive.
const FLAT_OUT: Pace = Pace { clients: 32, rate: None };

/// Requests `count` redeliveries and returns the accepted deliveries.
async fn accept(
    installation: &Installation,
    count: usize,
    path: &str,
    all: &mut Answers,
) -> Result<HashSet<DeliveryId>> {
    let answers = request_redeliveries(installation, installation.runs(count, path).await?, FLAT_OUT).await?;
    let ids = answers.accepted.values().copied().collect();
    all.accepted.extend(answers.accepted);
    Ok(ids)
}

fn p99(answers: &mut Answers) -> Row {
    let p99 = answers.percentile(0.99);
    Row::new("api's answers, p99", ms(P99), ms(p99), p99 < P99)
}

/// Returns the time span in which deliveries were delivered: from the first claim to the last end.
fn span(history: &[Delivery], ids: &HashSet<DeliveryId>) -> Option<(Timestamp, Timestamp)> {
    let of = |delivery: &&Delivery| ids.contains(&delivery.id);
    let begin = history.iter().filter(of).filter_map(|delivery| Some(delivery.attempts.first()?.created_at));
    let end = history.iter().filter(of).map(|delivery| delivery.completed_at);
    Some((begin.min()?, end.max()??))
}

/// Returns how long each delivery took from its acceptance to its first arrival.
fn waits(history: &[Delivery], receipts: &HashMap<DeliveryId, Vec<Receipt>>) -> Vec<(Delivery, Duration)> {
    history
        .iter()
        .filter_map(|delivery| {
            let first = receipts.get(&delivery.id)?.iter().map(|receipt| receipt.at).min()?;
            Some((delivery.clone(), first.since(delivery.created_at)))
        })
        .collect()
}

/// Waits until `condition` holds, for at most `patience`. Returns whether it does.
async fn wait_until(patience: Duration, condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(Duration::from_millis(20)).await;
    }
    true
}

fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

fn secs(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
