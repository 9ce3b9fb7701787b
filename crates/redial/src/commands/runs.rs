//! `redial runs …`: imports runs and erases a run in the database; lists and shows runs through the API.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use contracts::{OrgId, RunId, RunStatus};
use serde_json::json;
use serde_json::value::RawValue;
use store::{Erasure, erase_run};
use tokio::time::sleep;

use crate::commands::deliveries::Range;
use crate::commands::remote::{Answer, POLL_INTERVAL, Remote, Target, print_table};
use crate::commands::{import, open_store, require_organization};
use crate::settings::Settings;

/// Import, list, show and erase runs.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Record the runs of a file with one JSON object per line: the body of a run's PUT, plus its id. Safe to
    /// repeat.
    Import {
        /// The file; - for standard input.
        file: PathBuf,
        /// The organization they belong to.
        #[arg(long, value_name = "ID")]
        org: OrgId,
        /// Create the automatic deliveries of runs that have ended, as the API would.
        #[arg(long)]
        deliver: bool,
    },
    /// List an organization's runs, newest first, through the API.
    List {
        #[command(flatten)]
        target: Target,
        /// Only runs with this status, such as succeeded.
        #[arg(long)]
        status: Option<String>,
        #[command(flatten)]
        range: Range,
    },
    /// Show a run and its deliveries, through the API.
    Show {
        #[command(flatten)]
        target: Target,
        run: RunId,
        /// Show them again when they change, until the run and its deliveries have ended; exit with an error
        /// if the newest delivery fails.
        #[arg(long)]
        follow: bool,
    },
    /// Erase the data of a run and its callbacks: output, metadata, failure message and callback URL of the
    /// run, payloads and response bodies of its deliveries. Hashes, sizes, times, codes and the deliveries'
    /// URLs are kept. A waiting delivery is ended first; while a delivery is being sent, nothing is erased.
    Erase {
        /// The run's id.
        run: RunId,
        /// The organization it belongs to.
        #[arg(long, value_name = "ID")]
        org: OrgId,
    },
}

pub(crate) async fn run(settings: &Settings, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Import { file, org, deliver } => import::import(settings, file, org, deliver).await,
        Command::Erase { run, org } => erase(settings, org, run).await,
        Command::List { target, status, range } => {
            let filters: Vec<_> = [("status_code", status)].into_iter().chain(range.filters()).collect();
            target.open()?.list("/v1/runs", &filters, range.limit.get(), LISTED).await
        }
        Command::Show { target, run, follow: false } => show(&target.open()?, run).await,
        Command::Show { target, run, follow: true } => follow(&target.open()?, run).await,
    }
}

const LISTED: &[&str] = &["id", "status_code", "created_at", "completed_at", "callback_url"];
const SHOWN: &[&str] = &[
    "id",
    "status_code",
    "created_at",
    "started_at",
    "completed_at",
    "duration_ms",
    "callback_url",
    "failure_code",
    "failure_message",
    "failure_stage_code",
    "metadata",
    "output",
];
const DELIVERY: &[&str] = &[
    "id",
    "status_code",
    "attempt_count",
    "failure_reason_code",
    "is_automatic",
    "created_at",
    "completed_at",
];

async fn show(remote: &Remote, run: RunId) -> anyhow::Result<()> {
    let found = remote.get(&run_path(run)).await?;
    let deliveries = remote.get(&deliveries_path(run)).await?;
    print(remote, &found, &deliveries)
}

/// Shows the run and its deliveries when they change, until all have ended.
async fn follow(remote: &Remote, run: RunId) -> anyhow::Result<()> {
    let mut shown = None;
    loop {
        // In this order, because a run's end and its automatic delivery are recorded together.
        let found = remote.get_patiently(&run_path(run)).await?;
        let deliveries = remote.get_patiently(&deliveries_path(run)).await?;
        let state = (found.value["status_code"].clone(), deliveries.text.clone());
        if shown.as_ref() != Some(&state) {
            print(remote, &found, &deliveries)?;
            shown = Some(state);
        }
        let status = found.value["status_code"].as_str().unwrap_or_default();
        let has_ended = status.parse::<RunStatus>().is_ok_and(RunStatus::is_terminal);
        let deliveries = deliveries.value.as_array().map_or(&[][..], Vec::as_slice);
        if has_ended && deliveries.iter().all(|delivery| !delivery["completed_at"].is_null()) {
            match deliveries.first() {
                Some(newest) if newest["status_code"] != "succeeded" => bail!(
                    "the newest delivery has ended as failed: {}",
                    newest["failure_reason_code"].as_str().unwrap_or("-")
                ),
                _ => return Ok(()),
            }
        }
        sleep(POLL_INTERVAL).await;
    }
}

fn run_path(run: RunId) -> String {
    format!("/v1/runs/{run}")
}

fn deliveries_path(run: RunId) -> String {
    format!("/v1/runs/{run}/callback?fields={}", DELIVERY.join(","))
}

/// Prints the run, then its deliveries.
fn print(remote: &Remote, run: &Answer, deliveries: &Answer) -> anyhow::Result<()> {
    remote.show(run, SHOWN)?;
    if remote.json {
        let deliveries: Vec<&RawValue> = serde_json::from_str(&deliveries.text)?;
        return Ok(deliveries.iter().try_for_each(|delivery| writeln!(io::stdout(), "{delivery}"))?);
    }
    match deliveries.value.as_array() {
        Some(deliveries) if !deliveries.is_empty() => {
            writeln!(io::stdout())?;
            Ok(print_table(deliveries, DELIVERY)?)
        }
        _ => Ok(()),
    }
}

async fn erase(settings: &Settings, org: OrgId, run: RunId) -> anyhow::Result<()> {
    let store = open_store(settings).await?;
    let erasure = store.write(move |tx, now| {
        require_organization(tx, org)?;
        anyhow::Ok(erase_run(tx, now, org, run)?)
    });
    let mut out = io::stdout();
    match erasure.await? {
        Erasure::Erased { deliveries, response_bodies } => {
            writeln!(out, "{}", json!({"payloads": deliveries, "response_bodies": response_bodies}))?;
        }
        Erasure::ErasedBefore(at) => writeln!(out, "{}", json!({"erased_at": at}))?,
        Erasure::RunNotFound => bail!("there is no run {run} in this organization"),
        Erasure::RunNotTerminal(status) => {
            bail!(
                "the run is {status}, and what is reported of it next would bring its data back: erase it when its end \
                 is reported. A PUT of its end without a callback_url sends nothing"
            )
        }
        Erasure::BeingSent(delivery) => bail!(
            "nothing erased: delivery {delivery} is being sent right now. Try again in a minute, with a dispatcher \
             running, which ends what another one has left"
        ),
    }
    let left = "the run is erased, but the database's log still has what was there: erase it again later";
    store.checkpoint().await.context(left)
}
