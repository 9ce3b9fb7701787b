//! One row that can't be claimed or recorded, among healthy rows.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use contracts::{Delivery, DeliveryId};
use testkit::{SessionLock, Signal, percentile};
use tokio::time::sleep;

use super::{Outcome, accept, conclude, ms, secs, wait_until};
use crate::Scale;
use crate::installation::{Installation, Plan, Servers};
use crate::ledger::host_now;
use crate::load::{Answers, Pace, request_redeliveries};
use crate::report::Row;
use crate::verdict::{Disturbance, Target};

const LEASE: Duration = Duration::from_secs(7);
/// Time until a delivery without a doorbell is due: two seconds and a margin.
const GRACE: Duration = Duration::from_millis(2500);
/// Timeout for callbacks to arrive.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Answered after a second, which leaves time to act on the attempt in flight.
const SLOW: &str = "/hang/1";

/// A lease, a claim and a result that can't be written, in turn.
pub(crate) async fn poisoned(servers: &mut Servers, scale: &Scale) -> Result<Outcome> {
    let plan =
        Plan { lease: LEASE, timeout: Duration::from_secs(3), schedule: "1s", ..Plan::of("poisoned", 1, 1) };
    let installation = Installation::open(servers, plan).await?;
    let mut trial = Trial { installation, servers, all: Answers::default(), rows: Vec::new() };
    scale.say("an expired lease whose row is locked");
    let killed = trial.locked_lease(scale.of(60).max(6)).await?;
    scale.say("a claim that is refused");
    trial.refused_claim(Duration::from_secs(scale.of(60).max(10) as u64)).await?;
    scale.say("a result whose row is locked");
    trial.locked_result().await?;
    let Trial { installation, all, rows, .. } = trial;
    conclude(installation, rows, &all, &[killed]).await
}

struct Trial<'a> {
    installation: Installation,
    servers: &'a Servers,
    all: Answers,
    rows: Vec<Row>,
}

impl Trial<'_> {
    /// Kills the dispatcher during an attempt, and locks the attempt's row once its lease has ended.
    async fn locked_lease(&mut self, seconds: usize) -> Result<Disturbance> {
        let from = host_now();
        let id = self.under_way().await?;
        let mut dispatcher = self.installation.dispatchers.remove(0);
        dispatcher.signal(Signal::KILL)?;
        dispatcher.ended().await?;
        sleep(LEASE).await;
        let killed = Target::Dispatcher(dispatcher.spec.name.clone());
        let killed = Disturbance { what: killed, from, to: host_now() };
        let lock = self.lock(id)?;
        self.installation.start_dispatchers(vec![dispatcher.spec.clone()])?;
        self.beside("an expired lease", lock, seconds).await?;
        Ok(killed)
    }

    /// Locks a row while its attempt is in flight, but not beyond its lease:
    /// after that another attempt would be due.
    async fn locked_result(&mut self) -> Result<()> {
        let id = self.under_way().await?;
        let lock = self.lock(id)?;
        self.beside("a result", lock, 5).await
    }

    /// Returns a delivery whose callback has arrived and is not answered yet.
    async fn under_way(&mut self) -> Result<DeliveryId> {
        let ids = accept(&self.installation, 1, SLOW, &mut self.all).await?;
        ensure!(
            wait_until(TIMEOUT, || self.installation.ledger.missing(&ids) == 0).await,
            "the callback does not arrive"
        );
        ids.into_iter().next().context("nothing accepted")
    }

    fn lock(&self, id: DeliveryId) -> Result<SessionLock> {
        let statement = format!("SELECT id FROM open_deliveries WHERE id = '{id}' FOR UPDATE");
        Ok(self.servers.cluster.lock(&self.installation.database, &statement)?)
    }

    /// Requests 20 redeliveries per second for `seconds`, and releases the lock a second later.
    async fn beside(&mut self, what: &str, lock: SessionLock, seconds: usize) -> Result<()> {
        const LIMIT: Duration = Duration::from_secs(1);
        let runs = self.installation.runs(20 * seconds, "/ok").await?;
        let answers =
            request_redeliveries(&self.installation, runs, Pace { clients: 4, rate: Some(20.0) }).await?;
        let ids: HashSet<DeliveryId> = answers.accepted.values().copied().collect();
        self.all.accepted.extend(answers.accepted);
        sleep(LIMIT).await;
        let ended = |delivery: &Delivery| {
            let end = delivery.completed_at.filter(|_| ids.contains(&delivery.id))?;
            Some(end.since(delivery.created_at))
        };
        let meanwhile = self.installation.history().await?.iter().filter_map(ended).count();
        drop(lock);
        self.installation.all_ended(self.all.accepted.len()).await?;
        let mut times: Vec<Duration> = self.installation.history().await?.iter().filter_map(ended).collect();
        let p99 = percentile(&mut times, 0.99);
        let count = ids.len();
        self.rows.push(Row::new(
            format!("{what} locked for {} s: others recorded meanwhile", seconds + 1),
            format!("{count} of {count}"),
            meanwhile.to_string(),
            meanwhile == count,
        ));
        self.rows.push(Row::new("… accepted to recorded, p99", ms(LIMIT), ms(p99), p99 < LIMIT));
        Ok(())
    }

    /// Refuses every claim of one row among others that are due, then allows it.
    async fn refused_claim(&mut self, window: Duration) -> Result<()> {
        const HEALTHY: usize = 200;
        const LIMIT: Duration = Duration::from_secs(2);
        const A_FEW: usize = 10;
        let Trial { installation, servers, all, rows } = self;
        let specs = installation.stop_dispatchers().await?;
        let refused =
            accept(installation, 1, "/ok", all).await?.into_iter().next().context("nothing accepted")?;
        let healthy = accept(installation, HEALTHY, "/ok", all).await?;
        servers.node.command(&["purge_queue", &installation.queue]);
        sleep(GRACE).await;
        let database = installation.database.clone();
        let sql = |statement: &str| servers.cluster.sql(&database, statement);
        sql(&format!("{REFUSE} FOR EACH ROW WHEN (OLD.id = '{refused}') EXECUTE FUNCTION refuse()"))?;
        // A sequence counts rolled back transactions, too.
        let refusals = || {
            let last = sql("SELECT coalesce(pg_sequence_last_value('refusals'), 0)")?;
            anyhow::Ok(last.parse::<usize>()?)
        };

        let began = Instant::now();
        installation.start_dispatchers(specs)?;
        wait_until(TIMEOUT, || installation.ledger.missing(&healthy) == 0).await;
        let (took, missing) = (began.elapsed(), installation.ledger.missing(&healthy));
        let at_first = refusals()?;
        sleep(window).await;
        let later = refusals()? - at_first;
        sql("DROP TRIGGER refuse ON open_deliveries")?;
        let recovered = installation.all_ended(all.accepted.len()).await?;
        rows.extend([
            Row::new(
                format!("a claim refused: of {HEALTHY} others that were due, arrived"),
                format!("{HEALTHY} within {}", secs(LIMIT)),
                format!("{} within {}", HEALTHY - missing, secs(took)),
                missing == 0 && took <= LIMIT,
            ),
            Row::new("… refusals until then", "", at_first.to_string(), at_first > 0),
            Row::new(
                format!("… refusals in the {} after, with backoff", secs(window)),
                format!("1 to {A_FEW}"),
                later.to_string(),
                (1..=A_FEW).contains(&later),
            ),
            Row::new("… delivered once it was not refused any more, after", "", secs(recovered), true),
        ]);
        Ok(())
    }
}

const REFUSE: &str = "
    CREATE SEQUENCE refusals;
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM nextval(''refusals''); RAISE EXCEPTION ''refused on purpose''; END';
    CREATE TRIGGER refuse BEFORE UPDATE ON open_deliveries";
