//! Lets a model of KEDA and of a HorizontalPodAutoscaler choose the number of dispatchers of a real installation by
//! its `GET /scaling`, through a burst, a trickle and an outage of the receivers. Takes twenty minutes.

mod hpa;

use std::cell::Cell;
use std::io::{self, Write};
use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use tokio::time::{interval, sleep};

use crate::arrivals::Arrivals;
use crate::autoscale::hpa::{Autoscaler, PERIOD, Policy};
use crate::installation::Installation;
use crate::load::{Load, Rate};

/// Attempts in flight of one dispatcher: few, so that a small machine can be scaled out on.
const SLOTS: u32 = 32;
const POLICY: Policy = Policy {
    min_replicas: 2,
    max_replicas: 8,
    target: 0.7 * SLOTS as f64,
    fallback_replicas: 4,
    stabilization: Duration::from_secs(300),
};
/// How long a receiver takes.
const RECEIVER: &str = "/hang/1";
const DESTINATIONS: u32 = 16;
const CLIENTS: usize = 64;
const PAYLOAD: usize = 1024;
const BURST: usize = 6_000;
/// Requests per second of the trickle.
const TRICKLE: u32 = 60;
/// Four minutes of it.
const TRICKLED: usize = 240 * TRICKLE as usize;
const OUTAGE: Duration = Duration::from_secs(60);
/// Longer than it takes to scale in: the stabilization, one period, and one sample.
const REST: Duration = Duration::from_secs(345);

/// Scales dispatchers by `GET /scaling` through a burst, a trickle and an outage, and prints what
/// happens as JSON.
#[derive(Args)]
pub(crate) struct Autoscale {
    /// Path of the `redial` binary, a release build.
    #[arg(long)]
    binary: PathBuf,
}

/// Timeout of `GET /scaling`, KEDA's default.
const TIMEOUT: Duration = Duration::from_secs(3);

/// What the autoscaler saw and did at one moment.
#[derive(Clone, Copy, Debug, Serialize)]
struct Moment {
    /// Since the start.
    seconds: f64,
    phase: &'static str,
    /// `None` if no dispatcher answered.
    work: Option<f64>,
    replicas: usize,
}

pub(crate) async fn run(arguments: &Autoscale) -> Result<()> {
    let settings = [
        ("REDIAL_DISPATCHER__MAX_IN_FLIGHT", SLOTS.to_string()),
        ("REDIAL_DELIVERY__SCHEDULE", "20s".to_owned()),
    ];
    let mut installation = Installation::services(&arguments.binary, POLICY.min_replicas, &settings)?;
    let scaled = scale(&mut installation).await;
    let ended = installation.stop().await;
    let moments = scaled?;
    ended?;
    serde_json::to_writer(io::stdout().lock(), &moments)?;
    writeln!(io::stdout())?;
    judge(&moments)
}

/// Returns how many dispatchers this much work wants.
pub(crate) fn wanted(work: f64) -> f64 {
    work / POLICY.target
}

/// Runs the phases, with the autoscaler beside them.
async fn scale(installation: &mut Installation) -> Result<Vec<Moment>> {
    let mut arrivals = Arrivals::listen(installation.secret())?;
    let urls = arrivals.urls(RECEIVER, DESTINATIONS);
    let load = Load::new(installation, CLIENTS);
    let burst = installation.import(BURST, PAYLOAD, &urls)?;
    let trickle = installation.import(TRICKLED, PAYLOAD, &urls)?;
    let outage = installation.import(TRICKLED, PAYLOAD, &urls)?;
    let phase = Cell::new("rest");
    let mut phases = pin!(async {
        sleep(2 * PERIOD).await;
        phase.set("burst");
        let mut asked = load.redeliver_all(burst, Rate::Any).await?;
        load.settled().await?;
        sleep(REST).await;
        phase.set("trickle");
        asked.extend(load.redeliver_all(trickle, Rate::Steady(TRICKLE)).await?);
        load.settled().await?;
        sleep(REST).await;
        phase.set("outage");
        let away = async {
            sleep(OUTAGE).await;
            arrivals.pause(OUTAGE).await
        };
        let (more, returned) = tokio::join!(load.redeliver_all(outage, Rate::Steady(TRICKLE)), away);
        returned?;
        asked.extend(more?);
        load.settled().await?;
        sleep(REST).await;
        let lost = asked.keys().filter(|id| arrivals.first(id).is_none()).count();
        ensure!(lost == 0, "{lost} deliveries never arrived");
        anyhow::Ok(())
    });
    let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
    let (mut autoscaler, began, mut moments) = (Autoscaler::new(POLICY), Instant::now(), Vec::new());
    let mut periods = interval(PERIOD);
    loop {
        tokio::select! {
            ended = &mut phases => return ended.map(|()| moments),
            _ = periods.tick() => {}
        }
        let work = work(&http, installation.scaling_url(moments.len())).await;
        let replicas = autoscaler.decide(began.elapsed(), installation.dispatchers(), work);
        installation.scale(replicas)?;
        let moment = Moment { seconds: began.elapsed().as_secs_f64(), phase: phase.get(), work, replicas };
        writeln!(io::stderr(), "{moment:?}")?;
        moments.push(moment);
    }
}

/// Asks one of the dispatchers.
async fn work(http: &reqwest::Client, url: String) -> Option<f64> {
    let response = http.get(url).send().await.ok()?.error_for_status().ok()?;
    let answer: Value = serde_json::from_slice(&response.bytes().await.ok()?).ok()?;
    answer["work"].as_f64()
}

/// Fails unless each phase has at most one rise and one fall, stays in bounds, and ends with no work and with the
/// fewest replicas.
fn judge(moments: &[Moment]) -> Result<()> {
    for phase in moments.chunk_by(|a, b| a.phase == b.phase) {
        let (name, last) = (phase[0].phase, phase[phase.len() - 1]);
        let in_bounds = |at: &Moment| (POLICY.min_replicas..=POLICY.max_replicas).contains(&at.replicas);
        ensure!(phase.iter().all(in_bounds), "{name}: replicas out of bounds");
        let fell = phase.windows(2).position(|at| at[1].replicas < at[0].replicas).unwrap_or(phase.len());
        let rose_again = phase.windows(2).skip(fell).any(|at| at[1].replicas > at[0].replicas);
        ensure!(!rose_again, "{name}: the number of replicas flaps");
        ensure!(last.work == Some(0.0), "{name}: work remains");
        ensure!(last.replicas == POLICY.min_replicas, "{name}: {} replicas remain", last.replicas);
    }
    Ok(())
}
