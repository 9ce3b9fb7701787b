//! Clients that ask for redeliveries, each under an idempotency key, again and again until they have their 201.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use contracts::{DeliveryId, RunId};
use tokio::time::{sleep, sleep_until};

use crate::site::Site;

/// What the clients saw.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// The delivery of each run.
    pub(crate) accepted: HashMap<RunId, DeliveryId>,
    /// How many answers of each status.
    pub(crate) statuses: BTreeMap<u16, usize>,
    /// Requests that found nobody to connect to.
    pub(crate) unheard: usize,
    /// Requests whose connection broke, or that were not answered in time.
    pub(crate) unanswered: usize,
    /// How long each answer took.
    pub(crate) times: Vec<Duration>,
}

/// How redeliveries are asked for.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) clients: usize,
    /// Requests a second, by all clients together; none: as fast as they are answered.
    pub(crate) rate: Option<f64>,
}

/// How long a client waits before it asks again.
const PAUSE: Duration = Duration::from_millis(100);

impl Answers {
    fn add(&mut self, other: Answers) {
        self.accepted.extend(other.accepted);
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.unheard += other.unheard;
        self.unanswered += other.unanswered;
        self.times.extend(other.times);
    }

    /// A percentile of the times, `share` of 1.
    pub(crate) fn percentile(&mut self, share: f64) -> Duration {
        percentile(&mut self.times, share)
    }

    /// Answers other than 201, in words.
    pub(crate) fn others(&self) -> String {
        let others = self.statuses.iter().filter(|(status, _)| **status != 201);
        let mut words: Vec<String> = others.map(|(status, count)| format!("{count} × {status}")).collect();
        words.push(format!("{} without a connection", self.unheard));
        words.push(format!("{} without an answer", self.unanswered));
        words.join(", ")
    }
}

/// A percentile, `share` of 1; zero of none.
pub(crate) fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    let index = (times.len().saturating_sub(1)) as f64 * share;
    times.get(index as usize).copied().unwrap_or_default()
}

/// Asks for a redelivery of each run, from a task of its own. The clients take the apis in turn, and another one when
/// one does not answer.
pub(crate) fn ask(
    site: &Site,
    runs: Vec<RunId>,
    pace: Pace,
) -> impl Future<Output = Result<Answers>> + use<> {
    let urls: Arc<Vec<String>> = Arc::new(site.apis.iter().map(|api| api.url("")).collect());
    let (http, token) = (site.http.clone(), site.token.clone());
    let (runs, next) = (Arc::new(runs), Arc::new(AtomicUsize::new(0)));
    let began = tokio::time::Instant::now();
    let clients: Vec<_> = (0..pace.clients)
        .map(|client| {
            let (urls, http, token) = (urls.clone(), http.clone(), token.clone());
            let (runs, next) = (runs.clone(), next.clone());
            tokio::spawn(async move {
                let mut answers = Answers::default();
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(run) = runs.get(place) else { return Ok::<_, anyhow::Error>(answers) };
                    if let Some(rate) = pace.rate {
                        sleep_until(began + Duration::from_secs_f64(place as f64 / rate)).await;
                    }
                    one(&http, &token, &urls, client + place, *run, &mut answers).await?;
                }
            })
        })
        .collect();
    async move {
        let mut all = Answers::default();
        for client in clients {
            all.add(client.await??);
        }
        Ok(all)
    }
}

async fn one(
    http: &reqwest::Client,
    token: &str,
    urls: &[String],
    mut turn: usize,
    run: RunId,
    answers: &mut Answers,
) -> Result<()> {
    loop {
        let url = format!("{}/v1/runs/{run}/callback-redeliveries", urls[turn % urls.len()]);
        let asked = Instant::now();
        let key = format!("chaos-{run}");
        let answer = http.post(url).bearer_auth(token).header("Idempotency-Key", key).send().await;
        let response = match answer {
            Ok(response) => response,
            Err(error) => {
                *(if error.is_connect() { &mut answers.unheard } else { &mut answers.unanswered }) += 1;
                turn += 1;
                sleep(PAUSE).await;
                continue;
            }
        };
        let (status, body) = (response.status().as_u16(), response.bytes().await);
        let took = asked.elapsed();
        answers.times.push(took);
        *answers.statuses.entry(status).or_default() += 1;
        if status == 201
            && let Ok(body) = body
        {
            let delivery: serde_json::Value = serde_json::from_slice(&body)?;
            let id =
                delivery["id"].as_str().and_then(|id| id.parse().ok()).context("an answer without an id")?;
            answers.accepted.insert(run, id);
            return Ok(());
        }
        turn += 1;
        sleep(PAUSE).await;
    }
}
