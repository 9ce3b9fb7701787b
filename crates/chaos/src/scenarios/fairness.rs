//! Destinations that hang or refuse requests, next to healthy ones.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::{Context, Result};
use contracts::{Delivery, DeliveryId, RunId};
use testkit::percentile;

use super::{FLAT_OUT, Outcome, accept, conclude, judge, ms, secs, wait_until, waits};
use crate::Scale;
use crate::installation::{Installation, OUTPUT, Plan, Servers};
use crate::ledger::Receipt;
use crate::load::{Answers, Pace, request_redeliveries};
use crate::report::Row;

/// Number of destinations that get redeliveries in turn. The last one hangs.
const DESTINATIONS: u32 = 10;
const HANGING: u32 = DESTINATIONS - 1;
/// Hangs longer than any attempt.
const HANG: &str = "/hang/60";
/// Default of `dispatcher.max_in_flight`.
const SLOTS: usize = 256;
/// Timeout for the last callbacks.
const TIMEOUT: Duration = Duration::from_secs(120);

/// One of ten destinations hangs for the whole timeout of an attempt. Then a large backlog is added for it.
pub(crate) async fn unfair(servers: &mut Servers, scale: &Scale) -> Result<Outcome> {
    let mut installation = Installation::open(servers, Plan::of("unfair", 1, 1)).await?;
    let (seconds, backlog) = (scale.of(60).max(5), scale.of(100_000));
    let mut all = Answers::default();
    // The copied delivery must never have been attempted.
    let specs = installation.stop_dispatchers().await?;
    prepare_copies(&installation, servers, backlog).await?;
    installation.start_dispatchers(specs)?;
    super::processes::all_answer(&mut installation.dispatchers, &installation.http).await?;

    scale.say("all healthy");
    let healthy = load(&installation, seconds, "/ok", &mut all).await?;
    scale.say("one hangs");
    // As many as would accumulate while its first attempts time out.
    let runs = installation.runs_with(SLOTS, &installation.ledger.url_of(HANGING, HANG), OUTPUT).await?;
    all.accepted.extend(request_redeliveries(&installation, runs, FLAT_OUT).await?.accepted);
    let beside = load(&installation, seconds, HANG, &mut all).await?;

    scale.say(format!("{backlog} wait for it"));
    servers.cluster.sql(&installation.database, INSERT_COPIES)?;
    let runs = installation.runs(seconds * 100, "/ok").await?;
    let answers = request_redeliveries(&installation, runs, Pace { clients: 16, rate: Some(100.0) }).await?;
    let beside_backlog: HashSet<DeliveryId> = answers.accepted.values().copied().collect();
    all.accepted.extend(answers.accepted);
    wait_until(TIMEOUT, || installation.ledger.missing(&beside_backlog) == 0).await;
    installation.stop_dispatchers().await?;
    let count = |query| anyhow::Ok(servers.cluster.sql(&installation.database, query)?.parse::<usize>()?);
    let (attempted, rewritten) = (count(ATTEMPTED)?, count(REWRITTEN)?);

    let (history, receipts) = (installation.history().await?, installation.ledger.receipts());
    let p99 = |ids| p99_wait(&history, &receipts, ids);
    let (alone, beside, beside_backlog) = (p99(&healthy), p99(&beside), p99(&beside_backlog));
    let limit = alone.mul_f64(1.5).max(Duration::from_millis(60));
    let few = Duration::from_millis(300);
    let rows = vec![
        Row::new("nine destinations beside a healthy one: accepted to arrival, p99", "", ms(alone), true),
        Row::new("… beside one that hangs", ms(limit), ms(beside), beside <= limit),
        Row::new(
            format!("another one beside {backlog} waiting for the one that hangs"),
            ms(few),
            ms(beside_backlog),
            beside_backlog < few,
        ),
        Row::new("of those waiting, attempted meanwhile", "", attempted.to_string(), true),
        Row::new("… never attempted, and rewritten", "0", rewritten.to_string(), rewritten == 0),
    ];
    judge(installation, rows, &all, &[], false).await
}

/// Requests 200 redeliveries per second over all destinations, the hanging one at `path`. Waits until the
/// deliveries to the others have arrived, and returns these.
async fn load(
    installation: &Installation,
    seconds: usize,
    path: &str,
    all: &mut Answers,
) -> Result<HashSet<DeliveryId>> {
    let pace = Pace { clients: 16, rate: Some(200.0) };
    let each = seconds * 200 / DESTINATIONS as usize;
    let mut runs: Vec<Vec<RunId>> = Vec::new();
    for destination in 0..DESTINATIONS {
        let path = if destination == HANGING { path } else { "/ok" };
        runs.push(
            installation.runs_with(each, &installation.ledger.url_of(destination, path), OUTPUT).await?,
        );
    }
    let in_turn = (0..each).flat_map(|n| runs.iter().map(move |runs| runs[n])).collect();
    let answers = request_redeliveries(installation, in_turn, pace).await?;
    let others = runs[..HANGING as usize].iter().flatten();
    let others = others.filter_map(|run| answers.accepted.get(run).copied()).collect();
    all.accepted.extend(answers.accepted);
    wait_until(TIMEOUT, || installation.ledger.missing(&others) == 0).await;
    Ok(others)
}

/// Returns the 99th percentile from acceptance to arrival. A missing arrival counts as [`TIMEOUT`].
fn p99_wait(
    history: &[Delivery],
    receipts: &HashMap<DeliveryId, Vec<Receipt>>,
    ids: &HashSet<DeliveryId>,
) -> Duration {
    let waits = waits(history, receipts);
    let mut waits: Vec<Duration> =
        waits.into_iter().filter(|(delivery, _)| ids.contains(&delivery.id)).map(|(_, wait)| wait).collect();
    waits.resize(ids.len(), TIMEOUT);
    percentile(&mut waits, 0.99)
}

/// Prepares `count` deliveries to the hanging destination in separate tables, each of its own run. They are
/// copies of one accepted delivery, which is removed again. Copying takes a fraction of the time and works
/// with any columns.
async fn prepare_copies(installation: &Installation, servers: &Servers, count: usize) -> Result<()> {
    let template = installation.runs_with(1, &installation.ledger.url_of(HANGING, HANG), OUTPUT).await?;
    request_redeliveries(installation, template, FLAT_OUT).await?;
    let statements = format!(
        "CREATE TABLE ids AS
             SELECT gen_random_uuid() AS id, gen_random_uuid() AS run_id FROM generate_series(1, {count});
         CREATE TABLE copies AS SELECT copy.*
             FROM deliveries template, ids, jsonb_populate_record(template, to_jsonb(ids)) copy;
         CREATE TABLE open_copies AS SELECT copy.*
             FROM open_deliveries template, ids, jsonb_populate_record(template, to_jsonb(ids)) copy;
         INSERT INTO runs SELECT copy.* FROM runs template, ids,
             jsonb_populate_record(template, jsonb_build_object('id', ids.run_id)) copy;
         DELETE FROM deliveries; DELETE FROM open_deliveries"
    );
    servers.cluster.sql(&installation.database, &statements).map(drop).context("can't prepare the copies")
}

/// Inserts the copies and records the version of each row.
const INSERT_COPIES: &str = "
    INSERT INTO deliveries SELECT * FROM copies;
    INSERT INTO open_deliveries SELECT * FROM open_copies;
    CREATE TABLE versions AS
        SELECT id, o.xmin::text AS made_by, o.ctid AS place FROM open_deliveries o JOIN ids USING (id)";
const ATTEMPTED: &str =
    "SELECT count(*) FROM delivery_states JOIN versions USING (id) WHERE attempt_count > 0";
/// A rewritten row has another transaction in `xmin` and another location in `ctid`.
const REWRITTEN: &str = "
    SELECT count(*) FROM open_deliveries o JOIN versions USING (id)
    WHERE attempt_count = 0 AND (o.xmin::text <> made_by OR o.ctid <> place)";

/// Delivers a backlog to a receiver that answers 429 with `Retry-After: 1` beyond 20 requests at once.
pub(crate) async fn holds(servers: &mut Servers, scale: &Scale) -> Result<Outcome> {
    // No delivery waits for minutes, however often it is refused.
    let mut installation =
        Installation::open(servers, Plan { schedule: "10s", ..Plan::of("holds", 1, 1) }).await?;
    let count = scale.of(600).max(300);
    let mut all = Answers::default();
    let specs = installation.stop_dispatchers().await?;
    accept(&installation, count, "/at-once/20", &mut all).await?;
    scale.say(format!("delivering {count}"));
    installation.start_dispatchers(specs)?;
    let took = installation.all_ended(count).await?;
    let requests = installation.ledger.posts();
    let most = count as u64 * 7 / 6;
    let rows = vec![
        Row::new(
            format!("requests for {count} deliveries"),
            most.to_string(),
            requests.to_string(),
            requests <= most,
        ),
        Row::new("all delivered after", "", secs(took), true),
    ];
    conclude(installation, rows, &all, &[]).await
}
