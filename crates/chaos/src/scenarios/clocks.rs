//! Hosts with wrong clocks.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Outcome, conclude, secs};
use crate::Scale;
use crate::installation::{Installation, Plan, Servers};
use crate::ledger::host_now;
use crate::load::{Pace, request_redeliveries};
use crate::logs::Logs;
use crate::process::Process;
use crate::report::Row;

/// Wait after every attempt, without jitter.
const WAIT: Duration = Duration::from_secs(2);
const DAY: i64 = 24 * 3600;
/// How far each dispatcher's clock is ahead, for libfaketime and in seconds.
const OFFSETS: [(&str, i64); 3] = [("+1d", DAY), ("-1d", -DAY), ("+0d", 0)];

/// Runs one dispatcher a day ahead, one a day behind and one on time, with deliveries of three attempts.
pub(crate) async fn clocks(servers: &mut Servers, scale: &Scale) -> Result<Outcome> {
    let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH);
    ensure!(Path::new(&library).exists(), "needs Debian's package faketime");
    let plan = Plan { schedule: "2s", jitter: "0", ..Plan::of("clocks", 1, 3) };
    let mut installation = Installation::open(servers, plan).await?;
    let specs = installation.stop_dispatchers().await?;
    let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
    for (spec, (offset, _)) in specs.into_iter().zip(OFFSETS) {
        let faked =
            [("LD_PRELOAD", library.as_str()), ("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
        installation.dispatchers.push(Process::start_with(spec, &faked)?);
    }
    super::processes::all_answer(&mut installation.dispatchers, &installation.http).await?;
    let count = scale.of(3000);
    let runs = installation.runs(count, "/fail-first/2").await?;
    scale.say(format!("{count} deliveries"));
    let answers = request_redeliveries(&installation, runs, Pace { clients: 16, rate: Some(300.0) }).await?;
    installation.all_ended(count).await?;
    let (mut early, mut worst, mut callbacks) = (0, 0, 0);
    for mut receipts in installation.ledger.receipts().into_values() {
        receipts.sort_by_key(|receipt| receipt.attempt);
        early += receipts.windows(2).filter(|pair| pair[1].at.since(pair[0].at) < WAIT).count();
        callbacks += receipts.len();
        let off = receipts.iter().map(|receipt| (receipt.signed_at - receipt.at.unix_seconds()).abs()).max();
        worst = worst.max(off.unwrap_or(0));
    }
    let logs = Logs::read(&installation.logs)?;
    let now = host_now().unix_seconds();
    let set = names.iter().zip(OFFSETS).filter(|(name, (_, ahead))| {
        let clock = logs.clocks.get(*name).map(|clock| clock.unix_seconds());
        clock.is_some_and(|clock| (clock - now - ahead).abs() < 600)
    });
    let at_work = names.iter().filter(|name| logs.claims.values().flatten().any(|(_, by)| by == *name));
    let (set, at_work) = (set.count(), at_work.count());
    let rows = vec![
        Row::new("dispatchers whose log shows the clock they were given", "3", set.to_string(), set == 3),
        Row::new("dispatchers that claimed", "3", at_work.to_string(), at_work == 3),
        Row::new("callbacks", (count * 3).to_string(), callbacks.to_string(), callbacks == count * 3),
        Row::new("callbacks sent before they were due", "0", early.to_string(), early == 0),
        Row::new(
            "signature's time off the database's by at most",
            "2 s",
            secs(Duration::from_secs(worst.unsigned_abs())),
            worst <= 2,
        ),
    ];
    conclude(installation, rows, &answers, &[]).await
}
