//! Everything at once.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use rand::prelude::*;
use rand::rngs::StdRng;
use tokio::time::sleep;

use super::{Outcome, conclude};
use crate::Scale;
use crate::ledger::host_now;
use crate::load::{Pace, ask};
use crate::process::Process;
use crate::report::Row;
use crate::site::{Ground, Plan, Site};
use crate::verdict::Disturbance;

const LEASE: Duration = Duration::from_secs(12);
/// New deliveries a second.
const RATE: f64 = 60.0;

/// A way to break something.
#[derive(Clone, Copy, Debug)]
enum Blow {
    KillDispatcher,
    KillApi,
    StopDispatcher,
    StopApi,
    RestartDispatcher,
    RestartApi,
    KillBroker,
    PurgeQueue,
    DeleteQueue,
    DiskAlarm,
    CloseConnections,
    CrashDatabase,
    TerminateBackends,
}

/// How often each comes, of all.
const BLOWS: [(Blow, u32); 13] = [
    (Blow::KillDispatcher, 30),
    (Blow::KillApi, 20),
    (Blow::StopDispatcher, 8),
    (Blow::StopApi, 6),
    (Blow::RestartDispatcher, 6),
    (Blow::RestartApi, 6),
    (Blow::KillBroker, 3),
    (Blow::PurgeQueue, 3),
    (Blow::DeleteQueue, 3),
    (Blow::DiskAlarm, 2),
    (Blow::CloseConnections, 3),
    (Blow::CrashDatabase, 5),
    (Blow::TerminateBackends, 5),
];

/// Strikes at random while redeliveries come in and receivers answer as they like.
pub(crate) async fn storm(ground: &mut Ground, scale: &Scale) -> Result<Outcome> {
    let settings = &[
        ("REDIAL_DELIVERY__LEASE", "12s"),
        ("REDIAL_DELIVERY__TIMEOUT", "3s"),
        ("REDIAL_DELIVERY__CONNECT_TIMEOUT", "2s"),
        ("REDIAL_DELIVERY__SCHEDULE", "500ms,1s,2s,4s"),
    ];
    let plan = Plan { name: "storm", apis: 2, dispatchers: 4, settings };
    let mut site = Site::open(ground, plan).await?;
    let count = (scale.storm().as_secs_f64() * RATE).round() as usize;
    // A short one may be spent waiting for a process that is stopped.
    let least = if scale.storm() < Duration::from_secs(300) { 1 } else { 200 };
    let runs = site.runs(count, "/mixed").await?;
    let load = tokio::spawn(ask(&site, runs, Pace { clients: 64, rate: Some(RATE) }));
    let mut rng = StdRng::seed_from_u64(scale.seed);
    let mut struck: BTreeMap<String, usize> = BTreeMap::new();
    let mut disturbances = Vec::new();
    while !load.is_finished() {
        let blow = BLOWS.choose_weighted(&mut rng, |(_, weight)| *weight)?.0;
        *struck.entry(format!("{blow:?}")).or_default() += 1;
        let counts = site
            .counts()
            .await
            .map_or_else(String::new, |(ended, open)| format!("{ended} ended, {open} open; "));
        scale.say(format!("{counts}blow {}: {blow:?}", struck.values().sum::<usize>()));
        let from = host_now();
        strike(blow, ground, &mut site, &mut rng).await?;
        disturbances.push(Disturbance { from, to: host_now() });
        sleep(Duration::from_millis(rng.random_range(50..500))).await;
    }
    scale.say("recovering");
    let answers = load.await??;
    site.all_ended(count).await?;
    let blows: usize = struck.values().sum();
    let list: Vec<String> = struck.iter().map(|(blow, times)| format!("{times} × {blow}")).collect();
    let rows = vec![
        Row::new(
            "deliveries",
            count.to_string(),
            answers.accepted.len().to_string(),
            answers.accepted.len() == count,
        ),
        Row::new(
            "blows",
            format!("at least {least}"),
            format!("{blows}: {}", list.join(", ")),
            blows >= least,
        ),
        Row::new("other answers", "", answers.others(), true),
    ];
    conclude(site, rows, &answers, &disturbances, LEASE).await
}

async fn strike(blow: Blow, ground: &mut Ground, site: &mut Site, rng: &mut StdRng) -> Result<()> {
    let (api, dispatcher) =
        (rng.random_range(0..site.apis.len()), rng.random_range(0..site.dispatchers.len()));
    match blow {
        Blow::KillDispatcher => site.dispatchers[dispatcher].kill_and_restart()?,
        Blow::KillApi => site.apis[api].kill_and_restart()?,
        Blow::StopDispatcher => {
            let beyond_its_lease = rng.random_bool(0.4);
            let seconds = if beyond_its_lease { rng.random_range(13..16) } else { rng.random_range(1..5) };
            stop(&site.dispatchers[dispatcher], seconds).await?;
        }
        Blow::StopApi => stop(&site.apis[api], rng.random_range(1..4)).await?,
        Blow::RestartDispatcher => restart(&mut site.dispatchers[dispatcher]).await?,
        Blow::RestartApi => restart(&mut site.apis[api]).await?,
        Blow::KillBroker => tokio::task::block_in_place(|| {
            ground.node.kill();
            ground.node.restart();
        }),
        // The queue may not be there at this moment, or just have been deleted.
        Blow::PurgeQueue => _ = ground.node.try_command(&["purge_queue", &site.queue]),
        Blow::DeleteQueue => _ = ground.node.try_command(&["delete_queue", &site.queue]),
        Blow::DiskAlarm => {
            ground.node.command(&["set_disk_free_limit", "100000GB"]);
            sleep(Duration::from_secs(4)).await;
            ground.node.command(&["set_disk_free_limit", "50MB"]);
        }
        Blow::CloseConnections => _ = ground.node.try_command(&["close_all_connections", "chaos"]),
        Blow::CrashDatabase => {
            ground.cluster.crash()?;
            sleep(Duration::from_millis(rng.random_range(0..3000))).await;
            ground.cluster.go_on()?;
        }
        Blow::TerminateBackends => {
            let statement = format!(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                 WHERE datname = '{}' AND pid <> pg_backend_pid() AND random() < 0.5",
                site.database
            );
            ground.cluster.sql("postgres", &statement)?;
        }
    }
    Ok(())
}

async fn stop(process: &Process, seconds: u64) -> Result<()> {
    process.signal("STOP")?;
    sleep(Duration::from_secs(seconds)).await;
    process.signal("CONT")
}

/// As an operator does it.
async fn restart(process: &mut Process) -> Result<()> {
    process.terminate().await?;
    *process = Process::start(process.recipe.clone())?;
    Ok(())
}
