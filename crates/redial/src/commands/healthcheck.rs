//! `redial healthcheck`, for containers without curl.

use std::time::Duration;

use anyhow::{Context, bail};

/// Ask a health endpoint; exit status 0 when it answers 2xx, else 1.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Such as http://127.0.0.1:8080/v1/health.
    url: String,
}

/// Within the interval at which containers are checked.
const PATIENCE: Duration = Duration::from_secs(3);

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PATIENCE)
        .build()?;
    let response =
        client.get(&args.url).send().await.with_context(|| format!("{} does not answer", args.url))?;
    let status = response.status();
    if !status.is_success() {
        // The answer says why, but need not be there.
        let why = response.text().await.unwrap_or_default();
        bail!("{} answers {status}: {why}", args.url);
    }
    Ok(())
}
