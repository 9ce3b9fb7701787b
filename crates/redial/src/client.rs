//! HTTP client of the API, for `demo` and the commands that call the API.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use contracts::RunId;
use reqwest::redirect::Policy;
use serde_json::Value;
use tokio::time::{Instant, sleep};

/// Client of one API with one token.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base_url: String,
    authorization: String,
}

/// Timeout for recording a delivery after its callback has arrived.
const TIMEOUT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);

impl Client {
    pub(crate) fn new(base_url: &str, token: &str) -> Client {
        // Fails only if a provider is already installed, which works as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .build()
            .expect("the client's configuration is constant");
        Client { http, base_url: base_url.to_owned(), authorization: format!("Bearer {token}") }
    }

    pub(crate) fn base_url(&self) -> &str {
        &self.base_url
    }

    pub(crate) async fn put(&self, path: &str, body: &str) -> Result<(u16, String)> {
        let request = self.http.put(format!("{}{path}", self.base_url));
        self.send(request.header("content-type", "application/json").body(body.to_owned())).await
    }

    pub(crate) async fn post(&self, path: &str) -> Result<(u16, String)> {
        self.post_once(path, None).await
    }

    /// Sends a POST, with an idempotency key if given.
    pub(crate) async fn post_once(&self, path: &str, key: Option<&str>) -> Result<(u16, String)> {
        let request = self.http.post(format!("{}{path}", self.base_url));
        self.send(key.into_iter().fold(request, |request, key| request.header("idempotency-key", key))).await
    }

    pub(crate) async fn get(&self, path: &str) -> Result<(u16, String)> {
        self.send(self.http.get(format!("{}{path}", self.base_url))).await
    }

    /// Returns a run's deliveries, newest first, once all of them have ended.
    pub(crate) async fn settled_history(&self, run: RunId) -> Result<Vec<Value>> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let (status, body) = self.get(&format!("/v1/runs/{run}/callback")).await?;
            if status != 200 {
                bail!("GET /v1/runs/{run}/callback: {status} {body}");
            }
            let deliveries: Vec<Value> = serde_json::from_str(&body)?;
            if deliveries.iter().all(|delivery| !delivery["completed_at"].is_null()) {
                return Ok(deliveries);
            }
            if Instant::now() > deadline {
                bail!("a delivery of run {run} is still open after {TIMEOUT:?}");
            }
            sleep(PAUSE).await;
        }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<(u16, String)> {
        let response = request
            .header("authorization", &self.authorization)
            .send()
            .await
            .with_context(|| format!("the API at {} does not answer", self.base_url))?;
        Ok((response.status().as_u16(), response.text().await?))
    }
}
