//! The runs of `examples/runs.jsonl`, compiled in, with replaced callback URLs.

use anyhow::{Context, Result};
use contracts::{BODY_DEPTH, Json, PayloadFormat, RunId};

const RUNS: &str = include_str!("../../../examples/runs.jsonl");

/// An example run, ready to be recorded.
pub(crate) struct ExampleRun {
    pub(crate) id: RunId,
    /// Body of its `PUT` request.
    pub(crate) body: String,
    /// Whether it has ended and has a callback URL, as a redelivery requires.
    pub(crate) is_redeliverable: bool,
}

/// Returns all runs. `url(n)` replaces each `callback_url`; n counts the redeliverable runs before it.
pub(crate) fn runs(url: impl Fn(usize) -> String) -> Result<Vec<ExampleRun>> {
    let mut with_url = 0;
    let mut runs = Vec::new();
    for line in RUNS.lines() {
        let Json::Object(mut run) = Json::parse(line.as_bytes(), BODY_DEPTH)? else { continue };
        let id = run.shift_remove("id").context("an example run without id")?;
        let id = id.as_str().context("an example run's id is no text")?.parse()?;
        let status = run.get("status_code").and_then(Json::as_str).unwrap_or_default();
        let is_terminal = !matches!(status, "queued" | "dispatching" | "running");
        let has_url = run.get("callback_url").is_some_and(|url| url.as_str().is_some());
        if has_url {
            run.insert("callback_url".to_owned(), Json::from(url(with_url).as_str()));
            with_url += usize::from(is_terminal);
        }
        let body = Json::Object(run).to_text(PayloadFormat::Compact);
        runs.push(ExampleRun { id, body, is_redeliverable: is_terminal && has_url });
    }
    Ok(runs)
}
