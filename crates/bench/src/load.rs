//! API clients.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::time::sleep;

use crate::installation::Installation;
use crate::{POLL_INTERVAL, TIMEOUT};

/// Rate of redelivery requests.
#[derive(Clone, Copy, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Rate {
    /// As fast as the clients can.
    Any,
    /// Requests per second, each at its scheduled time, however long others take.
    Steady(u32),
}

/// A requested redelivery.
pub(crate) struct Asked {
    pub(crate) asked: Instant,
    /// Time until the response.
    pub(crate) took: Duration,
}

/// Clients that share a token.
#[derive(Clone)]
pub(crate) struct Load {
    http: reqwest::Client,
    base_url: String,
    authorization: String,
    clients: usize,
}

impl Load {
    pub(crate) fn new(installation: &Installation, clients: usize) -> Load {
        let http = reqwest::Client::builder().no_proxy().build().expect("the client's setup is constant");
        let authorization = format!("Bearer {}", installation.token());
        Load { http, base_url: installation.base_url().to_owned(), authorization, clients }
    }

    /// Requests a redelivery and returns the delivery's id.
    pub(crate) async fn redeliver(&self, run: &str) -> Result<String> {
        let url = format!("{}/v1/runs/{run}/callback-redeliveries", self.base_url);
        let request = self.http.post(url).header("authorization", &self.authorization);
        let response = request.send().await?;
        let status = response.status();
        let body = response.bytes().await?;
        ensure!(status == 201, "a redelivery was answered {status} {}", String::from_utf8_lossy(&body));
        // The body begins with the id. All of it may be a megabyte.
        let id = body.strip_prefix(br#"{"id":""#).and_then(|rest| rest.get(..36));
        Ok(String::from_utf8(id.context("a delivery does not begin with its id")?.to_vec())?)
    }

    /// Requests redeliveries of all runs. Returns when each was requested, by delivery.
    pub(crate) async fn redeliver_all(
        &self,
        runs: Vec<String>,
        rate: Rate,
    ) -> Result<HashMap<String, Asked>> {
        let (runs, next, began) = (Arc::new(runs), Arc::new(AtomicUsize::new(0)), Instant::now());
        let client = |_| {
            let (load, runs, next) = (self.clone(), runs.clone(), next.clone());
            tokio::spawn(async move {
                let mut all = Vec::new();
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(run) = runs.get(place) else { return Ok::<_, anyhow::Error>(all) };
                    let mut asked = Instant::now();
                    if let Rate::Steady(rate) = rate {
                        // Counts from the scheduled time: a slow response must not hide the next delay.
                        asked = began + Duration::from_secs_f64(place as f64 / f64::from(rate));
                        sleep(asked.saturating_duration_since(Instant::now())).await;
                    }
                    let id = load.redeliver(run).await?;
                    all.push((id, Asked { asked, took: asked.elapsed() }));
                }
            })
        };
        let clients: Vec<_> = (0..self.clients).map(client).collect();
        let mut all = HashMap::with_capacity(runs.len());
        for client in clients {
            all.extend(client.await??);
        }
        Ok(all)
    }

    /// Waits until no delivery is open.
    pub(crate) async fn settled(&self) -> Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        for status in ["pending", "delivering", "pending"] {
            while self.has(status).await? {
                ensure!(Instant::now() < deadline, "deliveries stay {status}");
                sleep(POLL_INTERVAL).await;
            }
        }
        Ok(())
    }

    async fn has(&self, status: &str) -> Result<bool> {
        let url = format!("{}/v1/callback-deliveries?status_code={status}&limit=1&fields=id", self.base_url);
        let response = self.http.get(url).header("authorization", &self.authorization).send().await?;
        let page: Value = serde_json::from_slice(&response.bytes().await?)?;
        Ok(!page["items"].as_array().context("a page has no items")?.is_empty())
    }
}
