//! Processes that are killed, stall or are restarted.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use testkit::Signal;
use tokio::time::{Instant, sleep};

use super::{Outcome, conclude, secs, waits};
use crate::Scale;
use crate::installation::{Installation, Plan, Servers};
use crate::ledger::host_now;
use crate::load::{Answers, Pace, request_redeliveries};
use crate::process::Process;
use crate::report::Row;
use crate::verdict::{Disturbance, Target};

/// Repeatedly kills an api at the failpoint between commit and publish.
pub(crate) async fn api_killed(servers: &mut Servers, scale: &Scale) -> Result<Outcome> {
    let mut installation = Installation::open(servers, Plan::of("api-killed", 1, 1)).await?;
    let kills = scale.of(100);
    let runs = installation.runs(kills, "/ok").await?;
    let mut spec = installation.apis.remove(0).spec.clone();
    spec.environment.push(("FAILPOINTS".into(), "committed=return".into()));
    let mut aborted = 0;
    for (number, run) in runs.iter().enumerate() {
        scale.say(format!("{number} of {kills} killed"));
        let mut api = Process::start(spec.clone())?;
        api.answers(&installation.http).await?;
        let url = api.url(&format!("/v1/runs/{run}/callback-redeliveries"));
        let answer = installation.http.post(url).bearer_auth(&installation.token).send().await;
        ensure!(answer.is_err(), "an api answered although it should have been killed");
        let status = api.ended().await?;
        aborted += usize::from(std::os::unix::process::ExitStatusExt::signal(&status) == Some(6));
    }
    installation.all_ended(kills).await?;
    let waits = waits(&installation.history().await?, &installation.ledger.receipts());
    let longest = waits.iter().map(|(_, wait)| *wait).max().unwrap_or_default();
    let rows = vec![
        Row::new(
            "apis that died between commit and publish",
            kills.to_string(),
            aborted.to_string(),
            aborted == kills,
        ),
        Row::new(
            "longest wait from commit to arrival",
            "10 s",
            secs(longest),
            waits.len() == kills && longest < Duration::from_secs(10),
        ),
    ];
    conclude(installation, rows, &Answers::default(), &[]).await
}

/// Number of dispatchers. All but one stall at once.
const STALLED: usize = 10;
const LEASE: Duration = Duration::from_secs(12);

/// Stops dispatchers at the failpoint between claim and send for longer than their lease, then resumes them.
pub(crate) async fn stalls(servers: &mut Servers, scale: &Scale) -> Result<Outcome> {
    let plan = Plan { lease: LEASE, schedule: "1s", ..Plan::of("stalls", 1, STALLED) };
    let mut installation = Installation::open(servers, plan).await?;
    let mut specs = installation.stop_dispatchers().await?;
    let healthy = specs.pop().into_iter().collect::<Vec<_>>();
    let (rounds, mut stops) = (scale.of(6), 0);
    let (mut answers, mut disturbances) = (Answers::default(), Vec::new());
    for round in 1..=rounds {
        scale.say(format!("round {round} of {rounds}"));
        let began = host_now();
        let mut stalled = Vec::new();
        for spec in &specs {
            let mut process = Process::start_with(spec.clone(), &[("FAILPOINTS", "claimed=1*return")])?;
            process.answers(&installation.http).await?;
            stalled.push(process);
        }
        // Adds deliveries until each dispatcher has claimed one and stopped.
        let deadline = Instant::now() + Duration::from_secs(60);
        while !stalled
            .iter()
            .map(Process::is_stopped)
            .collect::<Result<Vec<_>>>()?
            .iter()
            .all(|stopped| *stopped)
        {
            ensure!(Instant::now() < deadline, "not every dispatcher has claimed an attempt");
            let asked = request_redeliveries(
                &installation,
                installation.runs(2, "/ok").await?,
                Pace { clients: 1, rate: None },
            )
            .await?;
            answers.accepted.extend(asked.accepted);
            sleep(Duration::from_millis(50)).await;
        }
        stops += stalled.len();
        sleep(LEASE + Duration::from_secs(1)).await;
        installation.start_dispatchers(healthy.clone())?;
        installation.all_ended(answers.accepted.len()).await?;
        for process in &stalled {
            process.signal(Signal::CONT)?;
        }
        for process in &mut stalled {
            process.terminate().await?;
        }
        installation.stop_dispatchers().await?;
        let to = host_now();
        disturbances.extend(specs.iter().map(|spec| {
            let what = Target::Dispatcher(spec.name.clone());
            Disturbance { what, from: began, to }
        }));
    }
    let records = installation.history().await?;
    let too_late = records
        .iter()
        .flat_map(|delivery| &delivery.attempts)
        .filter(|attempt| attempt.error_message.as_ref().is_some_and(|error| is_too_late(error)))
        .count();
    let wanted = rounds * (STALLED - 1);
    let rows = vec![
        Row::new(
            "dispatchers stopped between claim and send",
            wanted.to_string(),
            stops.to_string(),
            stops == wanted,
        ),
        Row::new(
            "their attempts that they found too late when they went on",
            "at least one each",
            too_late.to_string(),
            too_late >= stops,
        ),
    ];
    conclude(installation, rows, &answers, &disturbances).await
}

/// Whether an attempt's record says that its time ran out: before it started, while it connected, or before
/// the signing secret was available.
fn is_too_late(error: &str) -> bool {
    error.starts_with("timeout: ") || error.starts_with("signing_unavailable: ")
}

/// Restarts all processes with SIGTERM, one after the other, under load.
pub(crate) async fn rolling_restart(servers: &mut Servers, scale: &Scale) -> Result<Outcome> {
    let mut installation = Installation::open(servers, Plan::of("rolling-restart", 2, 4)).await?;
    let rounds = scale.of(5);
    let count = rounds * 2000;
    let runs = installation.runs(count, "/hang/1").await?;
    let load =
        tokio::spawn(request_redeliveries(&installation, runs, Pace { clients: 16, rate: Some(200.0) }));
    let (mut slowest, mut ended_well, mut restarts) = (Duration::ZERO, 0, 0);
    while !load.is_finished() {
        let http = installation.http.clone();
        for process in installation.apis.iter_mut().chain(&mut installation.dispatchers) {
            scale.say(format!("{restarts} restarts"));
            let (status, took) = process.terminate().await?;
            *process = Process::start(process.spec.clone())?;
            process.answers(&http).await?;
            slowest = slowest.max(took);
            ended_well += usize::from(status.success());
            restarts += 1;
        }
    }
    let answers = load.await??;
    installation.all_ended(count).await?;
    let failures: usize =
        answers.statuses.iter().filter(|(status, _)| **status >= 500).map(|(_, count)| count).sum();
    let unknown = installation
        .history()
        .await?
        .iter()
        .flat_map(|delivery| &delivery.attempts)
        .filter(|attempt| {
            attempt.error_message.as_ref().is_some_and(|error| error.starts_with("outcome_unknown"))
        })
        .count();
    let rows = vec![
        Row::new(
            "restarts, and exits with status 0",
            "all",
            format!("{ended_well} of {restarts}"),
            ended_well == restarts,
        ),
        Row::new("longest from SIGTERM to exit", "20 s", secs(slowest), slowest < Duration::from_secs(20)),
        Row::new("answers of 5xx", "0", failures.to_string(), failures == 0),
        Row::new("outcome_unknown", "0", unknown.to_string(), unknown == 0),
        Row::new("other answers", "", answers.others(), true),
    ];
    conclude(installation, rows, &answers, &[]).await
}

/// Waits until all `processes` answer health checks.
pub(super) async fn all_answer(processes: &mut [Process], http: &reqwest::Client) -> Result<()> {
    try_join_all(processes.iter_mut().map(|process| process.answers(http))).await.map(drop)
}
