//! Clients that request redeliveries, each with an idempotency key, and retry until they get a 201.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use contracts::{DeliveryId, RunId};
use testkit::percentile;
use tokio::time::{sleep, sleep_until};

use crate::installation::Installation;

/// Responses to the clients.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// The delivery of each run.
    pub(crate) accepted: HashMap<RunId, DeliveryId>,
    /// Number of responses by status.
    pub(crate) statuses: BTreeMap<u16, usize>,
    /// Requests that could not connect.
    pub(crate) unheard: usize,
    /// Requests whose connection broke or that timed out.
    pub(crate) unanswered: usize,
    /// Time until each response.
    pub(crate) times: Vec<Duration>,
}

/// Number of clients and their request rate.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) clients: usize,
    /// Requests per second of all clients together. `None`: as fast as responses arrive.
    pub(crate) rate: Option<f64>,
}

/// Wait of a client before a retry.
const PAUSE: Duration = Duration::from_millis(100);

impl Answers {
    /// Adds the responses to other clients.
    pub(crate) fn add(&mut self, other: Answers) {
        self.accepted.extend(other.accepted);
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.unheard += other.unheard;
        self.unanswered += other.unanswered;
        self.times.extend(other.times);
    }

    /// Returns a percentile of the times; `share` is between 0 and 1.
    pub(crate) fn percentile(&mut self, share: f64) -> Duration {
        percentile(&mut self.times, share)
    }

    /// Describes the responses other than 201.
    pub(crate) fn others(&self) -> String {
        let others = self.statuses.iter().filter(|(status, _)| **status != 201);
        let mut words: Vec<String> = others.map(|(status, count)| format!("{count} × {status}")).collect();
        words.push(format!("{} without a connection", self.unheard));
        words.push(format!("{} without an answer", self.unanswered));
        words.join(", ")
    }
}

/// Requests a redelivery of each run, with a task for each client. Clients use the apis in turn, and switch
/// to the next one after a failure.
pub(crate) fn request_redeliveries(
    installation: &Installation,
    runs: Vec<RunId>,
    pace: Pace,
) -> impl Future<Output = Result<Answers>> + use<> {
    let urls: Arc<Vec<String>> = Arc::new(installation.apis.iter().map(|api| api.url("")).collect());
    let (http, token) = (installation.http.clone(), installation.token.clone());
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
                delivery["id"].as_str().and_then(|id| id.parse().ok()).context("a response without an id")?;
            answers.accepted.insert(run, id);
            return Ok(());
        }
        turn += 1;
        sleep(PAUSE).await;
    }
}
