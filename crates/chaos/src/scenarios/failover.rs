//! A PostgreSQL primary that fails, and a synchronous standby that takes over.

use std::time::Duration;

use anyhow::{Context, Result};
use contracts::{Delivery, Timestamp};
use testkit::{Cluster, free_port};
use tokio::task::block_in_place;
use tokio::time::sleep;

use super::{Outcome, conclude, secs};
use crate::Scale;
use crate::installation::{Installation, Place, Plan, Servers};
use crate::ledger::host_now;
use crate::load::{Answers, Pace, request_redeliveries};
use crate::report::Row;
use crate::verdict::{Disturbance, Target};

/// How the primary fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// All its processes are killed: its connections are closed.
    Killed,
    /// All its processes are stopped: its connections stay open, new ones are accepted, and none gets a
    /// response. It is killed only when everything has been delivered without it.
    Frozen,
}

/// One failover.
struct Failover {
    fault: Fault,
    from: Timestamp,
    /// When the standby accepted writes.
    promoted: Timestamp,
}

/// The two servers take turns, so either is killed and frozen.
const FAULTS: [Fault; 4] = [Fault::Killed, Fault::Frozen, Fault::Frozen, Fault::Killed];
/// How long the fault takes to be noticed.
const DETECTION: [Duration; 3] = [Duration::ZERO, Duration::from_secs(3), Duration::from_secs(6)];
/// Redeliveries of a round, over ten seconds.
const COUNT: usize = 1000;
const RATE: f64 = 100.0;
/// Load before the failover.
const BEFORE: Duration = Duration::from_secs(2);
/// Maximum time from the standby's promotion until deliveries flow again.
const LIMIT: Duration = Duration::from_secs(5);
const DATABASE: &str = "redial";

/// Kills the primary, or freezes it, under load, promotes its standby, and makes a new standby; again and
/// again.
pub(crate) async fn failover(servers: &mut Servers, scale: &Scale) -> Result<Outcome> {
    let (mut primary, mut standby) = block_in_place(|| {
        let primary = Cluster::start()?;
        primary.sql("postgres", &format!("CREATE DATABASE {DATABASE}"))?;
        let standby = primary.standby(free_port())?;
        anyhow::Ok((primary, standby))
    })?;
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", primary.port(), standby.port());
    let place = Place {
        database: DATABASE.to_owned(),
        database_url: format!("postgres://postgres@{hosts}/{DATABASE}?target_session_attrs=read-write"),
        broker_url: servers.node.url(),
    };
    let plan = Plan { lease: Duration::from_secs(12), schedule: "1s", ..Plan::of("failover", 2, 2) };
    let installation = Installation::open_at(servers, plan, place).await?;
    let rounds = scale.of(20);
    let (mut failovers, mut answers) = (Vec::new(), Answers::default());
    for round in 1..=rounds {
        let (fault, detection) =
            (FAULTS[(round - 1) % FAULTS.len()], DETECTION[(round - 1) % DETECTION.len()]);
        scale.say(format!("{round} of {rounds} failovers, {fault:?}"));
        let runs = installation.runs(COUNT, "/ok").await?;
        let pace = Pace { clients: 32, rate: Some(RATE) };
        let load = tokio::spawn(request_redeliveries(&installation, runs, pace));
        sleep(BEFORE).await;
        let from = host_now();
        block_in_place(|| {
            match fault {
                Fault::Killed => primary.kill()?,
                Fault::Frozen => primary.freeze()?,
            }
            anyhow::Ok(())
        })?;
        sleep(detection).await;
        block_in_place(|| standby.promote())?;
        failovers.push(Failover { fault, from, promoted: host_now() });
        answers.add(load.await??);
        installation.all_ended(round * COUNT).await?;
        (primary, standby) = block_in_place(|| {
            let port = primary.port();
            // Kills it if it is frozen.
            drop(primary);
            let next = standby.standby(port)?;
            anyhow::Ok((standby, next))
        })?;
    }
    let (accepted, wanted) = (answers.accepted.len(), rounds * COUNT);
    let slowest = answers.times.iter().max().copied().unwrap_or_default();
    let mut rows = vec![
        Row::new("accepted in the end", wanted.to_string(), accepted.to_string(), accepted == wanted),
        Row::new("slowest answer, 201 or 503", "5 s", secs(slowest), slowest < Duration::from_secs(5)),
        Row::new("other answers", "", answers.others(), answers.unheard + answers.unanswered == 0),
    ];
    rows.extend(times(&failovers, &installation).await?);
    let disturbances: Vec<Disturbance> = failovers
        .iter()
        .map(|failover| Disturbance { what: Target::Database, from: failover.from, to: failover.promoted })
        .collect();
    conclude(installation, rows, &answers, &disturbances).await
}

/// Returns rows about how long failovers took, and how long after them deliveries were accepted and arrived
/// again.
async fn times(failovers: &[Failover], installation: &Installation) -> Result<Vec<Row>> {
    let (history, receipts) = (installation.history().await?, installation.ledger.receipts());
    // Arrivals of attempts, with the time of the claim.
    let claimed_and_arrived = |delivery: &Delivery| {
        let receipts = receipts.get(&delivery.id).cloned().unwrap_or_default();
        let claims = delivery.attempts.clone();
        receipts.into_iter().filter_map(move |receipt| {
            let claim = claims.iter().find(|attempt| attempt.attempt_number == receipt.attempt)?;
            Some((claim.created_at, receipt.at))
        })
    };
    let arrivals: Vec<(Timestamp, Timestamp)> = history.iter().flat_map(claimed_and_arrived).collect();
    let mut rows = Vec::new();
    for fault in [Fault::Killed, Fault::Frozen] {
        let of_fault: Vec<&Failover> = failovers.iter().filter(|failover| failover.fault == fault).collect();
        if of_fault.is_empty() {
            continue;
        }
        let (mut took, mut accepting, mut flowing) = (Vec::new(), Vec::new(), Vec::new());
        for Failover { from, promoted, .. } in &of_fault {
            took.push(promoted.since(*from));
            // Nothing is committed between the fault and the promotion.
            let accepted = history.iter().map(|delivery| delivery.created_at).filter(|at| at > from).min();
            accepting.push(accepted.context("nothing was accepted after a failover")?.since(*promoted));
            let arrived =
                arrivals.iter().filter(|(claimed, _)| claimed > from).map(|(_, arrived)| *arrived).min();
            flowing.push(arrived.context("nothing arrived after a failover")?.since(*promoted));
        }
        let mut row = |what: String, limit: Option<Duration>, times: &[Duration]| {
            let seen: Vec<String> = times.iter().map(|time| format!("{:.1}", time.as_secs_f64())).collect();
            let is_good = times.iter().all(|time| limit.is_none_or(|limit| *time <= limit));
            rows.push(Row::new(what, limit.map_or(String::new(), secs), seen.join(", ") + " s", is_good));
        };
        let count = of_fault.len();
        row(format!("{count} × {fault:?}: from the fault to the promotion"), None, &took);
        row("… from there until a delivery was accepted".to_owned(), Some(LIMIT), &accepting);
        row("… until one arrived".to_owned(), Some(LIMIT), &flowing);
    }
    Ok(rows)
}
