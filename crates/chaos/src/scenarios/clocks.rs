//! Hosts whose clocks are wrong.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Outcome, conclude, secs};
use crate::Scale;
use crate::load::{Pace, ask};
use crate::process::Process;
use crate::report::Row;
use crate::site::{Ground, Plan, Site};

/// The wait after every attempt; it does not stray here.
const WAIT: Duration = Duration::from_secs(2);

/// Runs one dispatcher a day ahead, one a day behind and one in time, over deliveries that are tried three times.
pub(crate) async fn clocks(ground: &mut Ground, scale: &Scale) -> Result<Outcome> {
    let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH);
    ensure!(Path::new(&library).exists(), "needs Debian's package faketime");
    let settings = &[("REDIAL_DELIVERY__SCHEDULE", "2s"), ("REDIAL_DELIVERY__JITTER", "0")];
    let plan = Plan { name: "clocks", apis: 1, dispatchers: 3, settings };
    let mut site = Site::open(ground, plan).await?;
    let recipes = site.dismiss_dispatchers().await?;
    for (recipe, offset) in recipes.into_iter().zip(["+1d", "-1d", "+0d"]) {
        let faked =
            [("LD_PRELOAD", library.as_str()), ("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
        site.dispatchers.push(Process::start_with(recipe, &faked)?);
    }
    super::processes::all_answer(&mut site.dispatchers, &site.http).await?;
    let count = scale.of(3000);
    let runs = site.runs(count, "/fail-first/2").await?;
    scale.say(format!("{count} deliveries"));
    let answers = ask(&site, runs, Pace { clients: 16, rate: Some(300.0) }).await?;
    site.all_ended(count).await?;
    let (mut early, mut worst, mut callbacks) = (0, 0, 0);
    for mut receipts in site.ledger.receipts().into_values() {
        receipts.sort_by_key(|receipt| receipt.attempt);
        early += receipts.windows(2).filter(|pair| pair[1].at.since(pair[0].at) < WAIT).count();
        callbacks += receipts.len();
        let off = receipts.iter().map(|receipt| (receipt.signed_at - receipt.at.unix_seconds()).abs()).max();
        worst = worst.max(off.unwrap_or(0));
    }
    let rows = vec![
        Row::new(
            "callbacks by three dispatchers",
            (count * 3).to_string(),
            callbacks.to_string(),
            callbacks == count * 3,
        ),
        Row::new("callbacks sent before they were due", "0", early.to_string(), early == 0),
        Row::new(
            "signature's time off the database's by at most",
            "2 s",
            secs(Duration::from_secs(worst.unsigned_abs())),
            worst <= 2,
        ),
    ];
    conclude(site, rows, &answers, &[], Duration::from_secs(60)).await
}
