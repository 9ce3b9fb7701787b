//! Clients that request redeliveries, each with an idempotency key, and retry until they get a 201.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use contracts::{DeliveryId, RunId};
use reqwest::{Method, RequestBuilder};
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

/// An HTTP client of the apis. Uses them in turn, and switches to the next one after a failure. Cheap to
/// clone.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    token: String,
    urls: Arc<Vec<String>>,
}

impl Client {
    pub(crate) fn of(installation: &Installation) -> Client {
        let urls = installation.apis.iter().map(|api| api.url("")).collect();
        let (http, token) = (installation.http.clone(), installation.token.clone());
        Client { http, token, urls: Arc::new(urls) }
    }

    /// Requests a redelivery under an idempotency key, until it is accepted. The first api to ask is number
    /// `turn`.
    pub(crate) async fn redeliver(&self, turn: usize, run: RunId, answers: &mut Answers) -> Result<()> {
        let path = format!("/v1/runs/{run}/callback-redeliveries");
        let request = |request: RequestBuilder| request.header("Idempotency-Key", format!("chaos-{run}"));
        let body = self.accepted(turn, (Method::POST, &path), &[201], request, answers).await?;
        let delivery: serde_json::Value = serde_json::from_slice(&body)?;
        let id =
            delivery["id"].as_str().and_then(|id| id.parse().ok()).context("a response without an id")?;
        answers.accepted.insert(run, id);
        Ok(())
    }

    /// Records a run, until it is accepted. `body` is its JSON.
    pub(crate) async fn record(
        &self,
        turn: usize,
        run: RunId,
        body: &str,
        answers: &mut Answers,
    ) -> Result<()> {
        let path = format!("/v1/runs/{run}");
        let request = |request: RequestBuilder| {
            request.header("Content-Type", "application/json").body(body.to_owned())
        };
        self.accepted(turn, (Method::PUT, &path), &[200, 201], request, answers).await.map(drop)
    }

    /// Repeats a request until the response has one of the statuses `wanted`, and returns its body.
    async fn accepted(
        &self,
        mut turn: usize,
        (method, path): (Method, &str),
        wanted: &[u16],
        complete: impl Fn(RequestBuilder) -> RequestBuilder,
        answers: &mut Answers,
    ) -> Result<Vec<u8>> {
        loop {
            let url = format!("{}{path}", self.urls[turn % self.urls.len()]);
            let request = self.http.request(method.clone(), url).bearer_auth(&self.token);
            let asked = Instant::now();
            match complete(request).send().await {
                Ok(response) => {
                    let (status, body) = (response.status().as_u16(), response.bytes().await);
                    answers.times.push(asked.elapsed());
                    *answers.statuses.entry(status).or_default() += 1;
                    if let (true, Ok(body)) = (wanted.contains(&status), body) {
                        return Ok(body.into());
                    }
                }
                Err(error) if error.is_connect() => answers.unheard += 1,
                Err(_) => answers.unanswered += 1,
            }
            turn += 1;
            sleep(PAUSE).await;
        }
    }
}

/// Requests a redelivery of each run, with a task for each client.
pub(crate) fn request_redeliveries(
    installation: &Installation,
    runs: Vec<RunId>,
    pace: Pace,
) -> impl Future<Output = Result<Answers>> + use<> {
    let http = Client::of(installation);
    let (runs, next) = (Arc::new(runs), Arc::new(AtomicUsize::new(0)));
    let began = tokio::time::Instant::now();
    let clients: Vec<_> = (0..pace.clients)
        .map(|client| {
            let (http, runs, next) = (http.clone(), runs.clone(), next.clone());
            tokio::spawn(async move {
                let mut answers = Answers::default();
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(run) = runs.get(place) else { return Ok::<_, anyhow::Error>(answers) };
                    if let Some(rate) = pace.rate {
                        sleep_until(began + Duration::from_secs_f64(place as f64 / rate)).await;
                    }
                    http.redeliver(client + place, *run, &mut answers).await?;
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
