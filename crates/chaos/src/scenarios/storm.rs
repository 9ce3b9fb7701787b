//! All kinds of faults at once.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use contracts::Timestamp;
use rand::prelude::*;
use rand::rngs::StdRng;
use testkit::Signal;
use tokio::time::{Instant, sleep};

use super::{Outcome, conclude};
use crate::Scale;
use crate::installation::{Installation, OUTPUT, Plan, Servers};
use crate::ledger::host_now;
use crate::load::{Pace, request_redeliveries};
use crate::process::Process;
use crate::report::Row;
use crate::verdict::{Disturbance, Target};

/// New deliveries per second.
const RATE: f64 = 60.0;
/// One in this many deliveries has a receiver that accepts nothing.
const HOPELESS: usize = 50;
const NOTHING: &str = "/status/500";
/// Receivers of the other deliveries. Of ten requests to each, three get no response in time or no 2xx.
const DESTINATIONS: u32 = 40;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
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

/// Relative frequency of each fault.
const BLOWS: [(Fault, u32); 13] = [
    (Fault::KillDispatcher, 35),
    (Fault::KillApi, 25),
    (Fault::StopDispatcher, 8),
    (Fault::StopApi, 6),
    (Fault::RestartDispatcher, 6),
    (Fault::RestartApi, 6),
    (Fault::KillBroker, 3),
    (Fault::PurgeQueue, 3),
    (Fault::DeleteQueue, 3),
    (Fault::DiskAlarm, 2),
    (Fault::CloseConnections, 3),
    (Fault::CrashDatabase, 5),
    (Fault::TerminateBackends, 5),
];

/// Faults that kill processes.
const KILLS: [Fault; 4] = [Fault::KillDispatcher, Fault::KillApi, Fault::KillBroker, Fault::CrashDatabase];

/// Injects random faults while redeliveries are accepted and receivers are unreliable.
pub(crate) async fn storm(servers: &mut Servers, scale: &Scale) -> Result<Outcome> {
    let plan = Plan {
        lease: Duration::from_secs(12),
        timeout: Duration::from_secs(3),
        schedule: "500ms,1s,2s,4s",
        ..Plan::of("storm", 2, 4)
    };
    let installation = Installation::open(servers, plan).await?;
    let count = (scale.storm().as_secs_f64() * RATE).round() as usize;
    // A short storm may be spent waiting for a process.
    let least = if scale.storm() < Duration::from_secs(300) { 1 } else { 200 };
    let mut rng = StdRng::seed_from_u64(scale.seed);
    let hopeless = count.div_ceil(HOPELESS);
    let mut runs = installation.runs(hopeless, NOTHING).await?;
    for destination in 1..=DESTINATIONS {
        // Shares differ by at most one.
        let share = (count - hopeless + destination as usize - 1) / DESTINATIONS as usize;
        runs.extend(
            installation.runs_with(share, &installation.ledger.url_of(destination, "/mixed"), OUTPUT).await?,
        );
    }
    runs.shuffle(&mut rng);
    let load =
        tokio::spawn(request_redeliveries(&installation, runs, Pace { clients: 64, rate: Some(RATE) }));
    let mut storm = Storm { installation, rng, stopped: Vec::new(), disturbances: Vec::new() };
    let mut injected: BTreeMap<Fault, usize> = BTreeMap::new();
    while !load.is_finished() {
        storm.resume_due(Instant::now())?;
        let fault = BLOWS.choose_weighted(&mut storm.rng, |(_, weight)| *weight)?.0;
        *injected.entry(fault).or_default() += 1;
        let counts = storm.installation.counts().await;
        let counts = counts.map_or_else(String::new, |(ended, open)| format!("{ended} ended, {open} open; "));
        scale.say(format!("{counts}fault {}: {fault:?}", injected.values().sum::<usize>()));
        storm.strike(fault, servers).await?;
        sleep(Duration::from_millis(storm.rng.random_range(50..400))).await;
    }
    scale.say("recovering");
    storm.resume_due(Instant::now() + LONGEST_STOP)?;
    let answers = load.await??;
    let Storm { installation, disturbances, .. } = storm;
    installation.all_ended(count).await?;
    let history = installation.history().await?;
    let takes_nothing = history.iter().filter(|delivery| delivery.callback_url.ends_with(NOTHING));
    let exhausted =
        takes_nothing.filter(|delivery| delivery.attempts.len() == delivery.max_attempts as usize).count();
    let kills: usize = KILLS.iter().filter_map(|kill| injected.get(kill)).sum();
    let list: Vec<String> = injected.iter().map(|(fault, times)| format!("{times} × {fault:?}")).collect();
    let accepted = answers.accepted.len();
    let rows = vec![
        Row::new("asked for", count.to_string(), accepted.to_string(), accepted == count),
        Row::new(
            "of them to a receiver that takes nothing, and exhausted",
            hopeless.to_string(),
            exhausted.to_string(),
            exhausted == hopeless,
        ),
        Row::new("kills", format!("at least {least}"), kills.to_string(), kills >= least),
        Row::new("all faults", "", list.join(", "), true),
        Row::new("other answers", "", answers.others(), true),
    ];
    conclude(installation, rows, &answers, &disturbances).await
}

/// The installation and the faults so far.
struct Storm {
    installation: Installation,
    rng: StdRng,
    stopped: Vec<Stopped>,
    disturbances: Vec<Disturbance>,
}

/// A process stopped by SIGSTOP.
struct Stopped {
    is_api: bool,
    place: usize,
    from: Timestamp,
    until: Instant,
}

const LONGEST_STOP: Duration = Duration::from_secs(16);

impl Storm {
    async fn strike(&mut self, fault: Fault, servers: &mut Servers) -> Result<()> {
        let (installation, rng) = (&mut self.installation, &mut self.rng);
        let (api, dispatcher) = (
            rng.random_range(0..installation.apis.len()),
            rng.random_range(0..installation.dispatchers.len()),
        );
        let from = host_now();
        let mut may_cost = None;
        match fault {
            Fault::KillDispatcher => {
                let dispatcher = &mut installation.dispatchers[dispatcher];
                may_cost = Some(Target::Dispatcher(dispatcher.spec.name.clone()));
                dispatcher.kill_and_restart()?;
            }
            Fault::KillApi => installation.apis[api].kill_and_restart()?,
            Fault::StopDispatcher => {
                let beyond_its_lease = rng.random_bool(0.4);
                let seconds = if beyond_its_lease { 13.0..16.0 } else { 1.0..5.0 };
                self.stop(false, dispatcher, seconds)?;
            }
            Fault::StopApi => self.stop(true, api, 1.0..4.0)?,
            Fault::RestartDispatcher => restart(&mut installation.dispatchers[dispatcher]).await?,
            Fault::RestartApi => restart(&mut installation.apis[api]).await?,
            Fault::KillBroker => tokio::task::block_in_place(|| {
                servers.node.kill();
                servers.node.restart();
            }),
            // The queue may not exist at this moment.
            Fault::PurgeQueue => _ = servers.node.try_command(&["purge_queue", &installation.queue]),
            Fault::DeleteQueue => _ = servers.node.try_command(&["delete_queue", &installation.queue]),
            Fault::DiskAlarm => {
                servers.node.command(&["set_disk_free_limit", "100000GB"]);
                sleep(Duration::from_secs(4)).await;
                servers.node.command(&["set_disk_free_limit", "50MB"]);
            }
            Fault::CloseConnections => _ = servers.node.try_command(&["close_all_connections", "chaos"]),
            Fault::CrashDatabase => {
                may_cost = Some(Target::Database);
                servers.cluster.crash()?;
                sleep(Duration::from_millis(rng.random_range(0..3000))).await;
                servers.cluster.resume()?;
            }
            Fault::TerminateBackends => {
                may_cost = Some(Target::Database);
                let statement = format!(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                     WHERE datname = '{}' AND pid <> pg_backend_pid() AND random() < 0.5",
                    installation.database
                );
                servers.cluster.sql("postgres", &statement)?;
            }
        }
        self.disturbances.extend(may_cost.map(|what| Disturbance { what, from, to: host_now() }));
        Ok(())
    }

    /// Stops a process for a random number of seconds while other faults are injected.
    fn stop(&mut self, is_api: bool, place: usize, seconds: std::ops::Range<f64>) -> Result<()> {
        let until = Instant::now() + Duration::from_secs_f64(self.rng.random_range(seconds));
        self.stopped.push(Stopped { is_api, place, from: host_now(), until });
        self.process(is_api, place).signal(Signal::STOP)
    }

    /// Resumes processes whose time is over at `now`. A process that was killed meanwhile is already running.
    fn resume_due(&mut self, now: Instant) -> Result<()> {
        let (over, held): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.stopped).into_iter().partition(|stop| stop.until <= now);
        self.stopped = held;
        for Stopped { is_api, place, from, .. } in over {
            let process = self.process(is_api, place);
            process.signal(Signal::CONT)?;
            let what = Target::Dispatcher(process.spec.name.clone());
            // Stopping an api can't cost an attempt its record.
            self.disturbances.extend((!is_api).then(|| Disturbance { what, from, to: host_now() }));
        }
        Ok(())
    }

    fn process(&self, is_api: bool, place: usize) -> &Process {
        if is_api { &self.installation.apis[place] } else { &self.installation.dispatchers[place] }
    }
}

/// Restarts a process as an operator does.
async fn restart(process: &mut Process) -> Result<()> {
    // A stopped process does not handle SIGTERM.
    process.signal(Signal::CONT)?;
    process.terminate().await?;
    *process = Process::start(process.spec.clone())?;
    Ok(())
}
