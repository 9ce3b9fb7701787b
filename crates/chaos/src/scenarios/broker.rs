//! A broker that is unavailable, blocked, restarted or emptied.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use contracts::{DeliveryId, Job, Timestamp};
use tokio::time::sleep;

use super::{FLAT_OUT, Outcome, accept, conclude, judge, ms, p99, secs, span, waits};
use crate::Scale;
use crate::installation::{Installation, Plan, Servers};
use crate::ledger::host_now;
use crate::load::{Answers, Pace, request_redeliveries};
use crate::report::Row;

/// Time until the relay claims a delivery without a doorbell: two seconds and a poll.
pub(super) const GRACE: Duration = Duration::from_millis(2500);
/// Maximum length of the queue, as declared.
const MAX_LENGTH: u32 = 10_000;

pub(super) fn all_accepted(answers: &Answers, count: usize) -> Row {
    let accepted = answers.statuses.get(&201).copied().unwrap_or(0);
    let others = answers.others();
    let is_good =
        accepted == count && answers.statuses.len() == 1 && answers.unheard + answers.unanswered == 0;
    Row::new("answers of 201", format!("{count} of {count}"), format!("{accepted}; {others}"), is_good)
}

/// Purges the queue, and in a second round deletes it.
pub(crate) async fn queue_lost(servers: &mut Servers, scale: &Scale) -> Result<Outcome> {
    let mut installation = Installation::open(servers, Plan::of("queue-lost", 1, 2)).await?;
    let count = scale.of(10_000);
    let (mut all, mut rows) = (Answers::default(), Vec::new());
    for (number, command) in ["purge_queue", "delete_queue"].into_iter().enumerate() {
        scale.say(command);
        let specs = installation.stop_dispatchers().await?;
        accept(&installation, count, "/ok", &mut all).await?;
        let waiting = installation.depth().await?.waiting;
        ensure!(waiting as usize >= fewest_messages(count), "only {waiting} messages are in the queue");
        servers.node.command(&[command, &installation.queue]);
        installation.start_dispatchers(specs)?;
        let took = installation.all_ended((number + 1) * count).await?;
        let what = format!("{command} with {count} waiting: all delivered after");
        rows.push(Row::new(what, "60 s", secs(took), took < Duration::from_secs(60)));
    }
    conclude(installation, rows, &all, &[]).await
}

/// Triggers the broker's disk alarm, which blocks publishers.
pub(crate) async fn disk_alarm(servers: &mut Servers, scale: &Scale) -> Result<Outcome> {
    let installation = Installation::open(servers, Plan::of("disk-alarm", 1, 2)).await?;
    let seconds = scale.of(60);
    let count = seconds * 100;
    // Warms up the api, so that its memory growth is not that of its first requests.
    let mut all = request_redeliveries(&installation, installation.runs(500, "/ok").await?, FLAT_OUT).await?;
    let runs = installation.runs(count, "/ok").await?;
    scale.say("alarm");
    servers.node.command(&["set_disk_free_limit", "100000GB"]);
    let (before, _) = installation.apis[0].memory()?;
    let mut answers =
        request_redeliveries(&installation, runs, Pace { clients: 16, rate: Some(100.0) }).await?;
    let (after, _) = installation.apis[0].memory()?;
    // Publishers are still blocked, so these deliveries must end without doorbells.
    let still_due = installation.counts().await.map_or(usize::MAX, |(_, open)| open);
    installation.all_ended(count + 500).await?;
    servers.node.command(&["set_disk_free_limit", "50MB"]);
    let waits = waits(&installation.history().await?, &installation.ledger.receipts());
    let longest = waits.iter().map(|(_, wait)| *wait).max().unwrap_or_default();
    let rows = vec![
        all_accepted(&answers, count),
        p99(&mut answers),
        Row::new(
            "api's memory grew by",
            "20 MiB",
            format!("{:.1} MiB", after - before),
            after - before < 20.0,
        ),
        Row::new("still due after the last answer", "", still_due.to_string(), true),
        Row::new(
            "all delivered while the alarm lasted, after at most",
            "5 s",
            secs(longest),
            longest.as_secs() < 5,
        ),
    ];
    all.accepted.extend(answers.accepted);
    conclude(installation, rows, &all, &[]).await
}

/// Delivers one backlog with the broker, and one without it while more deliveries are accepted.
pub(crate) async fn away(servers: &mut Servers, scale: &Scale) -> Result<Outcome> {
    let mut installation = Installation::open(servers, Plan::of("broker-away", 1, 2)).await?;
    let (backlog, fresh) = (scale.of(20_000), scale.of(1000));
    let mut all = Answers::default();
    let specs = installation.stop_dispatchers().await?;
    let first = accept(&installation, backlog, "/ok", &mut all).await?;
    scale.say("a backlog with the broker");
    installation.start_dispatchers(specs)?;
    installation.all_ended(backlog).await?;

    let specs = installation.stop_dispatchers().await?;
    let second = accept(&installation, backlog, "/ok", &mut all).await?;
    let runs = installation.runs(fresh, "/ok").await?;
    scale.say("a backlog without the broker");
    servers.node.kill();
    let seconds = 120.0 * fresh as f64 / 1000.0;
    let load = tokio::spawn(request_redeliveries(
        &installation,
        runs,
        Pace { clients: 8, rate: Some(fresh as f64 / seconds) },
    ));
    let away_from = host_now();
    installation.start_dispatchers(specs)?;
    let mut answers = load.await??;
    let back = host_now();
    tokio::task::block_in_place(|| servers.node.restart());
    installation.all_ended(2 * backlog + fresh).await?;
    let history = installation.history().await?;
    let delivered = |ids| span(&history, ids).context("a backlog without a delivery");
    let (with, without) = (delivered(&first)?, delivered(&second)?);
    let was_in_time = without.1 < back;
    let rate = |(from, to): (Timestamp, Timestamp)| backlog as f64 / to.since(from).as_secs_f64();
    let (with, without) = (rate(with), rate(without));
    let share = without / with;
    let seen = format!("{:.0} %: {without:.0} a second, {with:.0} with the broker", share * 100.0);
    let away = back.since(away_from);
    let rows = vec![
        Row::new(
            "RabbitMQ was away for",
            secs(Duration::from_secs_f64(seconds)),
            secs(away),
            away.as_secs_f64() > 0.95 * seconds,
        ),
        Row::new(
            "the backlog was delivered before it was back",
            "yes",
            if was_in_time { "yes" } else { "no" },
            was_in_time,
        ),
        all_accepted(&answers, fresh),
        p99(&mut answers),
        Row::new(
            format!("a backlog of {backlog} is delivered at"),
            "50 % of the normal rate",
            seen,
            share >= 0.5,
        ),
    ];
    all.accepted.extend(answers.accepted);
    conclude(installation, rows, &all, &[]).await
}

/// Returns the smallest number of queued messages to expect for so many doorbells.
fn fewest_messages(doorbells: usize) -> usize {
    doorbells.div_ceil(Job::MOST).min(9_000)
}

/// Restarts the broker with a long queue, which slow receivers prevent from draining.
pub(crate) async fn restarts(servers: &mut Servers, scale: &Scale) -> Result<Outcome> {
    let mut installation = Installation::open(servers, Plan::of("broker-restarts", 1, 1)).await?;
    let (restarts, waiting) = (scale.of(50), scale.of(100_000));
    let specs = installation.stop_dispatchers().await?;
    let mut all = Answers::default();
    scale.say(format!("accepting {waiting}"));
    accept(&installation, waiting, "/hang/30", &mut all).await?;
    let full = installation.depth().await?.waiting;
    installation.start_dispatchers(specs)?;
    super::processes::all_answer(&mut installation.dispatchers, &installation.http).await?;
    let mut right = 0;
    for number in 1..=restarts {
        scale.say(format!("{number} of {restarts} restarts"));
        // Most restarts are of the application inside the node, which is faster.
        if number % 10 == 0 {
            tokio::task::block_in_place(|| {
                servers.node.kill();
                servers.node.restart();
            });
        } else {
            tokio::task::block_in_place(|| {
                servers.node.command(&["stop_app"]);
                servers.node.command(&["start_app"]);
            });
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let consumers = servers.node.command(&["list_consumers", "queue_name", "prefetch_count"]);
            let ours: Vec<&str> =
                consumers.lines().filter(|line| line.starts_with(&installation.queue)).collect();
            if let [consumer] = ours.as_slice() {
                right += usize::from(consumer.ends_with("\t16"));
                break;
            }
            ensure!(Instant::now() < deadline, "the dispatcher does not resume consuming: {consumers}");
        }
    }
    let (_, peak) = installation.dispatchers[0].memory()?;
    let left = installation.counts().await.map_or(0, |(_, open)| open);
    let rows = vec![
        Row::new(
            "messages in the queue, each of up to 64 doorbells",
            format!("{} to {MAX_LENGTH}", fewest_messages(waiting)),
            full.to_string(),
            full as usize >= fewest_messages(waiting),
        ),
        Row::new(
            "prefetch right after a restart",
            restarts.to_string(),
            right.to_string(),
            right == restarts,
        ),
        Row::new("dispatcher's memory at most", "150 MiB", format!("{peak:.1} MiB"), peak < 150.0),
        Row::new("deliveries still waiting in the end", "", format!("{left} of {waiting}"), true),
    ];
    // Attempts in flight end. The rest of the backlog is left.
    installation.stop_dispatchers().await?;
    judge(installation, rows, &all, &[], false).await
}

/// Accepts deliveries for ten minutes without a dispatcher, then delivers the backlog while accepting more.
pub(crate) async fn backlog(servers: &mut Servers, scale: &Scale) -> Result<Outcome> {
    let mut installation = Installation::open(servers, Plan::of("backlog", 2, 2)).await?;
    let (count, fresh) = (scale.of(50_000), scale.of(500));
    let specs = installation.stop_dispatchers().await?;
    let seconds = scale.of(600);
    let runs = installation.runs(count, "/ok").await?;
    let pace = Pace { clients: 16, rate: Some(count as f64 / seconds as f64) };
    let load = tokio::spawn(request_redeliveries(&installation, runs, pace));
    let mut deepest = 0;
    while !load.is_finished() {
        let waiting = installation.depth().await?.waiting;
        deepest = deepest.max(waiting);
        scale.say(format!("{waiting} messages in the queue"));
        sleep(Duration::from_secs(2)).await;
    }
    let mut all = load.await??;
    let backlog: HashSet<DeliveryId> = all.accepted.values().copied().collect();
    let runs = installation.runs(fresh, "/ok").await?;
    scale.say("delivering");
    installation.start_dispatchers(specs)?;
    let fresh_answers =
        request_redeliveries(&installation, runs, Pace { clients: 4, rate: Some(100.0) }).await?;
    installation.all_ended(count + fresh).await?;
    deepest = deepest.max(installation.depth().await?.waiting);
    let history = installation.history().await?;
    let (from, to) = span(&history, &backlog).context("a backlog without a delivery")?;
    // Excludes deliveries accepted after the backlog had been delivered.
    let waits = waits(&history, &installation.ledger.receipts());
    let beside =
        waits.iter().filter(|(delivery, _)| !backlog.contains(&delivery.id) && delivery.created_at < to);
    let mut beside: Vec<Duration> = beside.map(|(_, wait)| *wait).collect();
    beside.sort_unstable();
    let longest = beside.last().copied().unwrap_or_default();
    let median = beside.get(beside.len() / 2).copied().unwrap_or_default();
    // Doorbells and the backlog take turns. A delivery whose doorbell a full queue refuses waits for the
    // relay, behind the backlog.
    let drained = to.since(from);
    let share = (drained / 2).max(GRACE);
    let limit = MAX_LENGTH + MAX_LENGTH / 10;
    let mut rows = vec![
        all_accepted(&all, count),
        Row::new("messages in the queue at most", limit.to_string(), deepest.to_string(), deepest <= limit),
        Row::new("backlog delivered in", "", secs(drained), true),
        Row::new(
            format!("{} accepted meanwhile: half of them waited at most", beside.len()),
            secs(share),
            ms(median),
            median <= share && !beside.is_empty(),
        ),
        Row::new("the longest wait", secs(drained + GRACE), secs(longest), longest <= drained + GRACE),
    ];
    let posts = installation.ledger.posts();
    rows.push(Row::new(
        "callbacks",
        (count + fresh).to_string(),
        posts.to_string(),
        posts == (count + fresh) as u64,
    ));
    all.accepted.extend(fresh_answers.accepted);
    conclude(installation, rows, &all, &[]).await
}
