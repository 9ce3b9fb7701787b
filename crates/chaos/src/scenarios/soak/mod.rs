//! A steady, mixed load for hours.
//!
//! Deliveries are pruned soon after they have ended, so that what the database keeps can become level. They
//! are judged before that, window by window, and then forgotten here as well.

mod level;
mod load;
mod samples;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use contracts::{Delivery, DeliveryId, SigningSecret, Timestamp};
use parking_lot::Mutex;
use reqwest::Method;
use serde_json::{Value, json};
use testkit::percentile;
use tokio::time::{Instant, sleep_until};

use self::load::{Asked, GOOD};
use self::samples::{Lateness, Measured, Sample};
use super::Outcome;
use crate::Scale;
use crate::installation::{Installation, Plan, Servers};
use crate::ledger::{Receipt, host_now};
use crate::logs::Logs;
use crate::process::Process;
use crate::report::Row;
use crate::verdict::{Evidence, Verdict};

/// Interval of samples, and length of a window.
const TICK: Duration = Duration::from_secs(10);
/// Fewest samples that quarters can be compared of.
const FEWEST_TICKS: u32 = 24;
/// Minimum age of a delivery to be judged: what was accepted earlier is committed and can be read.
const JUDGED_AFTER: Duration = Duration::from_secs(10);
/// One in so many deliveries of an ended run to a good receiver is repeated once it was judged.
const REDELIVERED: usize = 5;
/// How long deliveries are kept after their end: a small part of the run, within these bounds.
const SHORTEST_RETENTION: Duration = Duration::from_secs(90);
const LONGEST_RETENTION: Duration = Duration::from_secs(300);
const RETENTION_SHARE: u32 = 24;
/// How often in a run one process is restarted, and the signing secret is rotated.
const RESTARTS: u32 = 12;
const ROTATIONS: u32 = 6;
/// `secrets.overlap`; an old secret is deleted two ticks after its successor's promotion.
const OVERLAP: Duration = Duration::from_secs(15);

/// Loads an installation for the time given by `--hours`, restarts processes and rotates the secret
/// meanwhile.
pub(crate) async fn soak(servers: &mut Servers, scale: &Scale) -> Result<Outcome> {
    let length = scale.soak();
    let ticks = u32::try_from(length.as_secs() / TICK.as_secs())?;
    ensure!(
        ticks >= FEWEST_TICKS,
        "a soak takes at least {} s: --hours 0.1",
        (TICK * FEWEST_TICKS).as_secs()
    );
    let retention = (length / RETENTION_SHARE).clamp(SHORTEST_RETENTION, LONGEST_RETENTION).as_secs();
    let settings = vec![
        ("REDIAL_RETENTION__DELIVERIES", format!("{retention}s")),
        ("REDIAL_RETENTION__RUNS", format!("{retention}s")),
        ("REDIAL_DELIVERY__MAX_ATTEMPTS", "4".to_owned()),
        ("REDIAL_SECRETS__OVERLAP", format!("{}s", OVERLAP.as_secs())),
        // Two lines for each attempt would be a gigabyte.
        ("REDIAL_LOG__FILTER", "warn".to_owned()),
    ];
    let plan = Plan {
        lease: Duration::from_secs(12),
        timeout: Duration::from_secs(5),
        schedule: "1s",
        jitter: "0",
        settings,
        ..Plan::of("soak", 2, 2)
    };
    let installation = Installation::open(servers, plan).await?;
    let asked: Arc<Mutex<Asked>> = Arc::default();
    let began = Instant::now();
    let load = tokio::spawn(load::run(&installation, began + length, scale.seed, asked.clone()));
    let mut soak = Soak {
        secrets: current_secret(&installation).await?,
        installation,
        asked,
        began: (began, host_now()),
        measured: Measured::default(),
        verdict: Verdict::default(),
        judged: (0, 0),
        read_until: None,
        open: Vec::new(),
        early: HashSet::new(),
        restarts: 0,
        rotations: 0,
        broken: Vec::new(),
    };
    for tick in 1..=ticks {
        sleep_until(began + TICK * tick).await;
        ensure!(!load.is_finished() || tick == ticks, "the load has ended early");
        // Hours of measurements are worth more than an early end.
        if let Err(error) = soak.tick(servers, tick, ticks).await {
            soak.broken.push(format!("at {} s: {error:#}", (TICK * tick).as_secs()));
        }
        let (deliveries, _) = soak.judged;
        let (now, end) = ((TICK * tick).as_secs(), length.as_secs());
        scale.say(format!("{now} of {end} s, {deliveries} deliveries judged, {} lost", soak.verdict.lost()));
    }
    load.await??;
    soak.installation.all_ended(0).await?;
    soak.judge(host_now()).await?;
    soak.measured.write(&servers.directory)?;
    soak.conclude().await
}

struct Soak {
    installation: Installation,
    asked: Arc<Mutex<Asked>>,
    /// On both clocks.
    began: (Instant, Timestamp),
    measured: Measured,
    verdict: Verdict,
    /// Number of judged deliveries, and of their callbacks.
    judged: (usize, usize),
    /// All deliveries that were accepted earlier have been read.
    read_until: Option<Timestamp>,
    /// Those of them that had not ended.
    open: Vec<DeliveryId>,
    /// Redeliveries that were judged before their client had the response.
    early: HashSet<DeliveryId>,
    /// Ids of the signing secrets: the current one, and before it one that is still to be deleted.
    secrets: Vec<String>,
    restarts: u32,
    rotations: u32,
    /// What went wrong besides the promises.
    broken: Vec<String>,
}

impl Soak {
    async fn tick(&mut self, servers: &Servers, tick: u32, ticks: u32) -> Result<()> {
        self.judge(host_now() - JUDGED_AFTER).await?;
        self.sample(servers).await?;
        // Written again and again, to be looked at meanwhile.
        self.measured.write(&servers.directory)?;
        if tick.is_multiple_of(ticks / RESTARTS) {
            self.restart_one().await?;
        }
        match tick % (ticks / ROTATIONS) {
            1 => self.promote_new_secret().await,
            3 => self.delete_old_secret().await,
            _ => Ok(()),
        }
    }

    /// Judges the deliveries that were accepted before `until`, have ended and were not judged yet, and
    /// forgets them.
    async fn judge(&mut self, until: Timestamp) -> Result<()> {
        let installation = &self.installation;
        let mut history = installation.deliveries(self.open.clone()).await?;
        history.extend(installation.history_of(self.read_until, Some(until)).await?);
        self.read_until = Some(until);
        let has_ended = |delivery: &Delivery| delivery.completed_at.is_some();
        let (history, open): (Vec<_>, Vec<_>) = history.into_iter().partition(has_ended);
        self.open = open.iter().map(|delivery| delivery.id).collect();
        let receipts = installation.ledger.take(history.iter().map(|delivery| delivery.id));
        let mut accepted = HashMap::new();
        {
            let mut asked = self.asked.lock();
            for (place, delivery) in history.iter().enumerate() {
                let run = delivery.run_id;
                if !delivery.is_automatic {
                    match asked.answers.accepted.remove_entry(&run) {
                        Some(known) => accepted.extend([known]),
                        None => _ = self.early.insert(delivery.id),
                    }
                    continue;
                }
                if !asked.runs.remove(&run) {
                    self.broken.push(format!("{} of run {run} was not asked for, or twice", delivery.id));
                }
                if delivery.callback_url.ends_with(GOOD) && place % REDELIVERED == 0 {
                    asked.again.push_back(run);
                }
            }
        }
        let posts: usize = receipts.values().map(Vec::len).sum();
        let evidence = Evidence {
            accepted: &accepted,
            history: &history,
            receipts: &receipts,
            posts: posts as u64,
            logs: &Logs::default(),
            disturbances: &[],
            lease: installation.plan.lease,
            timeout: installation.plan.timeout,
            is_over: true,
        };
        let mut verdict = Verdict::of(&evidence);
        // The automatic ones were accepted with their run.
        verdict.accepted = history.len();
        self.verdict.add(verdict);
        self.judged = (self.judged.0 + history.len(), self.judged.1 + posts);
        let lateness = lateness(&history, &receipts, until.since(self.began.1));
        self.measured.lateness.extend(lateness);
        Ok(())
    }

    async fn sample(&mut self, servers: &Servers) -> Result<()> {
        let at = self.began.0.elapsed().as_secs_f64();
        let sample = Sample::take(&servers.cluster, &self.installation, at).await?;
        let (judged, _) = self.judged;
        let asked = self.asked.lock();
        let waiting = asked.runs.len() + asked.answers.accepted.len();
        let lost = self.verdict.lost();
        self.measured.samples.push(Sample { accepted: judged + waiting, judged, lost, ..sample });
        Ok(())
    }

    /// Restarts the second api or the second dispatcher. The first ones run all the time, so that their
    /// memory tells something.
    async fn restart_one(&mut self) -> Result<()> {
        let is_api = self.restarts.is_multiple_of(2);
        let Installation { apis, dispatchers, http, .. } = &mut self.installation;
        let process = if is_api { &mut apis[1] } else { &mut dispatchers[1] };
        let (status, _) = process.terminate().await?;
        ensure!(status.success(), "{} ended with {status}", process.spec.name);
        *process = Process::start(process.spec.clone())?;
        process.answers(http).await?;
        self.restarts += 1;
        Ok(())
    }

    async fn promote_new_secret(&mut self) -> Result<()> {
        let new = call(&self.installation, Method::POST, "", Some(json!({}))).await?;
        let plain = new["plain_secret"].as_str().context("a secret without its text")?;
        self.installation.ledger.add_secret(SigningSecret::parse(plain).ok().context("no valid secret")?);
        let id = new["id"].as_str().context("a secret without an id")?;
        call(&self.installation, Method::PATCH, &format!("/{id}"), Some(json!({"is_current": true}))).await?;
        self.secrets.push(id.to_owned());
        Ok(())
    }

    async fn delete_old_secret(&mut self) -> Result<()> {
        ensure!(self.secrets.len() == 2, "no old secret");
        call(&self.installation, Method::DELETE, &format!("/{}", self.secrets.remove(0)), None).await?;
        self.rotations += 1;
        Ok(())
    }

    async fn conclude(self) -> Result<Outcome> {
        let Soak { installation, asked, measured, mut verdict, early, mut broken, .. } = self;
        let (restarts, rotations, judged) = (self.restarts, self.rotations, self.judged);
        let (deliveries, callbacks) = judged;
        let asked = std::mem::take(&mut *asked.lock());
        let missing = asked.answers.accepted.iter().filter(|(_, id)| !early.contains(id)).map(|(run, _)| run);
        for run in asked.runs.iter().chain(missing) {
            verdict.lose(format!("a delivery of run {run} was accepted but does not exist"));
        }
        let posts = installation.ledger.posts();
        let kept = installation.history().await?.len();
        let mut rows = vec![
            Row::new(
                "callbacks, all of known deliveries",
                posts.to_string(),
                callbacks.to_string(),
                posts == callbacks as u64,
            ),
            Row::new(
                "deliveries that were pruned meanwhile",
                "",
                deliveries.saturating_sub(kept).to_string(),
                kept < deliveries,
            ),
            Row::new("restarts, rotations of the secret", "", format!("{restarts}, {rotations}"), true),
            Row::new("answers other than 201", "", asked.answers.others(), true),
        ];
        let of_first = |processes: &[Process]| processes[0].spec.name.clone();
        let processes = [of_first(&installation.apis), of_first(&installation.dispatchers)];
        rows.extend(level::rows(&measured, &processes));
        rows.extend(verdict.rows());
        installation.close().await?;
        broken.extend(verdict.descriptions());
        Ok(Outcome { rows, broken })
    }
}

/// Returns the times from acceptance to arrival at good receivers, or `None` if nothing arrived there.
fn lateness(
    history: &[Delivery],
    receipts: &HashMap<DeliveryId, Vec<Receipt>>,
    until: Duration,
) -> Option<Lateness> {
    let arrival = |delivery: &Delivery| {
        let first = receipts.get(&delivery.id)?.iter().map(|receipt| receipt.at).min()?;
        Some(first.since(delivery.created_at))
    };
    let good = history.iter().filter(|delivery| delivery.callback_url.ends_with(GOOD));
    let mut times: Vec<Duration> = good.filter_map(arrival).collect();
    if times.is_empty() {
        return None;
    }
    let mut ms = |share| percentile(&mut times, share).as_secs_f64() * 1000.0;
    let (p50, p99) = (ms(0.5), ms(0.99));
    let all = times.iter().map(|time| u32::try_from(time.as_micros()).unwrap_or(u32::MAX)).collect();
    Some(Lateness { until: until.as_secs_f64(), p50, p99, all })
}

async fn current_secret(installation: &Installation) -> Result<Vec<String>> {
    let page = call(installation, Method::GET, "", None).await?;
    Ok(vec![page["items"][0]["id"].as_str().context("no secret")?.to_owned()])
}

/// Calls the first api about secrets.
async fn call(installation: &Installation, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
    let url = installation.apis[0].url(&format!("/v1/callback-secrets{path}"));
    let mut request = installation.http.request(method, url).bearer_auth(&installation.token);
    if let Some(body) = body {
        request = request.header("Content-Type", "application/json").body(body.to_string());
    }
    let response = request.send().await?.error_for_status()?;
    let body = response.bytes().await?;
    Ok(if body.is_empty() { Value::Null } else { serde_json::from_slice(&body)? })
}
