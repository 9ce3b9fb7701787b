//! `redial deliveries …`: an organization's deliveries, through the API.

use std::io::{self, Write};
use std::num::NonZeroUsize;

use anyhow::{Result, bail};
use contracts::{DeliveryId, RunId};
use serde_json::Value;
use tokio::time::sleep;

use crate::commands::remote::{POLL_INTERVAL, Remote, Target, print_table};

/// List, show, redeliver and withdraw deliveries through the API.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// List deliveries, newest first.
    List {
        /// Only deliveries with this status: pending, delivering, succeeded or failed.
        #[arg(long)]
        status: Option<String>,
        /// Only deliveries of this run.
        #[arg(long)]
        run: Option<RunId>,
        /// Only deliveries to this host, without a port.
        #[arg(long)]
        host: Option<String>,
        /// Only automatic deliveries (true), or only redeliveries (false).
        #[arg(long, value_name = "true|false")]
        automatic: Option<bool>,
        /// Only deliveries whose latest attempt failed for this reason, such as timeout.
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        range: Range,
    },
    /// Show a delivery and its attempts.
    Show {
        delivery: DeliveryId,
        /// Show new attempts until the delivery has ended; exit with an error if it fails.
        #[arg(long)]
        follow: bool,
    },
    /// Request a redelivery of a run's callback.
    Redeliver {
        run: RunId,
        /// First end a delivery of the run that is waiting for its retry.
        #[arg(long)]
        supersede: bool,
        /// Idempotency key: repeated requests with the same key create one delivery.
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
        /// Show its attempts until it has ended; exit with an error if it fails.
        #[arg(long)]
        follow: bool,
    },
    /// End a delivery that is waiting for an attempt.
    Withdraw { delivery: DeliveryId },
}

/// The part of a list to show.
#[derive(clap::Args)]
pub(crate) struct Range {
    /// Only those created at or after this time, such as 2026-01-02T03:04:05Z.
    #[arg(long, value_name = "MOMENT")]
    created_after: Option<String>,
    /// Only those created before this time.
    #[arg(long, value_name = "MOMENT")]
    created_before: Option<String>,
    /// Show the oldest first.
    #[arg(long)]
    oldest_first: bool,
    /// Maximum number to show.
    #[arg(long, default_value = "50")]
    pub(crate) limit: NonZeroUsize,
}

impl Range {
    /// Returns the API's query parameters.
    pub(crate) fn filters(&self) -> [(&'static str, Option<String>); 3] {
        [
            ("created_after", self.created_after.clone()),
            ("created_before", self.created_before.clone()),
            ("sort_by", self.oldest_first.then(|| "created_at:asc".to_owned())),
        ]
    }
}

const LISTED: &[&str] = &[
    "id",
    "status_code",
    "attempt_count",
    "failure_reason_code",
    "run_id",
    "created_at",
    "next_attempt_at",
    "callback_url",
];
const SHOWN: &[&str] = &[
    "id",
    "run_id",
    "status_code",
    "failure_reason_code",
    "failure_detail",
    "attempt_count",
    "max_attempts",
    "next_attempt_at",
    "callback_url",
    "is_automatic",
    "created_at",
    "completed_at",
];
const ATTEMPT: &[&str] = &[
    "attempt_number",
    "created_at",
    "status_code",
    "response_time_ms",
    "timing.resolve",
    "timing.connect",
    "timing.tls",
    "timing.send",
    "timing.wait",
    "timing.remote_address",
    "error_message",
];
/// The fields requested of a delivery. They exclude the payload, which may be long.
const FIELDS: &str = "id,run_id,callback_url,signing_secret_id,is_automatic,status_code,failure_reason_code,failure_detail,\
    attempt_count,max_attempts,next_attempt_at,created_at,updated_at,completed_at,attempts,attempts.timing";

pub(crate) async fn run(args: Args) -> Result<()> {
    let remote = args.target.open()?;
    match args.command {
        Command::List { status, run, host, automatic, reason, range } => {
            let mut filters = vec![
                ("status_code", status),
                ("run_id", run.map(|run| run.to_string())),
                ("callback_host", host),
                ("is_automatic", automatic.map(|is| is.to_string())),
                ("failure_reason_code", reason),
            ];
            filters.extend(range.filters());
            remote.list("/v1/callback-deliveries", &filters, range.limit.get(), LISTED).await
        }
        Command::Show { delivery, follow: false } => {
            let delivery = remote.get(&path(delivery)).await?;
            remote.show(&delivery, SHOWN)?;
            if remote.json { Ok(()) } else { print_attempts(&delivery.value, 0).map(drop) }
        }
        Command::Show { delivery, follow: true } => follow(&remote, delivery).await,
        Command::Redeliver { run, supersede, idempotency_key, follow: is_followed } => {
            let query = if supersede { "?supersede=true" } else { "" };
            let asked = format!("/v1/runs/{run}/callback-redeliveries{query}");
            let made = remote.post(&asked, idempotency_key.as_deref()).await?;
            if is_followed {
                let id = made.value["id"].as_str().unwrap_or_default().parse()?;
                return follow(&remote, id).await;
            }
            remote.show(&made, SHOWN)
        }
        Command::Withdraw { delivery } => {
            let ended = remote.post(&format!("/v1/callback-deliveries/{delivery}/withdraw"), None).await?;
            remote.show(&ended, SHOWN)
        }
    }
}

fn path(delivery: DeliveryId) -> String {
    format!("/v1/callback-deliveries/{delivery}?fields={FIELDS}")
}

/// Shows new attempts until the delivery has ended.
async fn follow(remote: &Remote, id: DeliveryId) -> Result<()> {
    let mut shown = 0;
    loop {
        let answer = remote.get_patiently(&path(id)).await?;
        let delivery = &answer.value;
        let has_ended = !delivery["completed_at"].is_null();
        if remote.json {
            let attempts = delivery["attempts"].as_array().map_or(0, Vec::len);
            if attempts > shown || has_ended {
                writeln!(io::stdout(), "{}", answer.text)?;
            }
            shown = attempts;
        } else {
            shown = print_attempts(delivery, shown)?;
        }
        if has_ended {
            if delivery["status_code"] == "succeeded" {
                return Ok(());
            }
            bail!(
                "delivery {id} has ended as failed: {}",
                delivery["failure_reason_code"].as_str().unwrap_or("-")
            );
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Shows the attempts after the first `shown`, and returns the number of attempts.
fn print_attempts(delivery: &Value, shown: usize) -> Result<usize> {
    let attempts = delivery["attempts"].as_array().map_or(&[][..], Vec::as_slice);
    if attempts.len() > shown {
        print_table(&attempts[shown..], ATTEMPT)?;
    }
    Ok(attempts.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timing_columns_are_fields_of_an_attempts_timing() {
        let timing = serde_json::to_value(contracts::Timing::default()).unwrap();
        for column in ATTEMPT.iter().filter_map(|column| column.strip_prefix("timing.")) {
            assert!(timing.get(column).is_some(), "{column}");
        }
    }
}
