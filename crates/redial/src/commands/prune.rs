//! `redial prune`: removes deliveries and runs that ended long ago.

use std::io::{self, Write};
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use contracts::Timestamp;
use indicatif::ProgressBar;
use serde_json::json;
use store::{PruneRange, Pruned, Store, organization_ids, prune};

use crate::commands::open_store;
use crate::settings::Settings;
use crate::signals;

/// Remove deliveries that ended long ago, with their attempts, and optionally runs. Can be stopped at any
/// time and run again to continue.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Minimum time since their end, such as 90d; at least 1d, because deliveries answer repeated requests
    /// for a day.
    #[arg(long, value_name = "AGE", value_parser = age)]
    older_than: Duration,
    /// Also remove runs that ended that long ago and have no deliveries left.
    #[arg(long)]
    runs: bool,
    /// Deliveries or runs per transaction.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    batch: u16,
}

const DAY: Duration = Duration::from_secs(24 * 3600);

fn age(text: &str) -> Result<Duration, String> {
    let age = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if age < DAY { Err("expected at least 1d".to_owned()) } else { Ok(age) }
}

pub(crate) async fn run(settings: &Settings, args: Args) -> anyhow::Result<()> {
    let stopped = signals::stop();
    let store = open_store(settings).await?;
    let before = store.clock().now() - args.older_than;
    let runs_before = args.runs.then_some(before);
    let progress = ProgressBar::new_spinner();
    let mut removed = Pruned::default();
    let pruned =
        prune_all(&store, before, runs_before, usize::from(args.batch), stopped, &mut removed, &progress)
            .await;
    progress.finish_and_clear();
    let Pruned { deliveries, attempts, runs, .. } = removed;
    let figures = json!({"deliveries": deliveries, "attempts": attempts, "runs": runs});
    writeln!(io::stdout(), "{figures}")?;
    pruned.context("not everything was removed; run it again to go on")
}

/// Removes batch by batch until nothing is left, or `stopped` resolves between two batches.
async fn prune_all(
    store: &Store,
    before: Timestamp,
    runs_before: Option<Timestamp>,
    limit: usize,
    stopped: impl Future<Output = &'static str>,
    removed: &mut Pruned,
    progress: &ProgressBar,
) -> anyhow::Result<()> {
    let mut stopped = pin!(stopped);
    for org in store.read(organization_ids).await? {
        for range in PruneRange::all_of(org, Some(before), runs_before) {
            let mut behind = None;
            loop {
                let began = Instant::now();
                let batch = store.write(move |tx, _| prune(tx, range, behind, limit)).await?;
                removed.add(&batch);
                progress.set_message(format!(
                    "{} deliveries and {} runs removed",
                    removed.deliveries, removed.runs
                ));
                progress.tick();
                behind = batch.behind;
                if behind.is_none() {
                    break;
                }
                // Sleep as long as the batch took, to leave half of the time to dispatchers.
                tokio::select! {
                    biased;
                    signal = &mut stopped => bail!("ended by {signal}"),
                    () = tokio::time::sleep(began.elapsed()) => {}
                }
            }
        }
    }
    Ok(())
}
