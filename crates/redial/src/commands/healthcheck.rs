//! `redial healthcheck`, for containers without curl.

use std::time::Duration;

use anyhow::{Context, bail};

/// Request a health endpoint; the exit status is 0 if it answers 2xx, else 1.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The URL, such as http://127.0.0.1:8080/v1/health.
    url: String,
}

/// Shorter than the interval of container health checks.
const TIMEOUT: Duration = Duration::from_secs(3);

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(TIMEOUT)
        .build()?;
    let response =
        client.get(&args.url).send().await.with_context(|| format!("{} does not answer", args.url))?;
    let status = response.status();
    if !status.is_success() {
        // The body has the reason, but may be missing.
        let why = response.text().await.unwrap_or_default();
        bail!("{} answers {status}: {why}", args.url);
    }
    Ok(())
}
