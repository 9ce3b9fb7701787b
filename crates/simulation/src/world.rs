//! The world of one history: the real store on a database in memory, and stand-ins for everything else.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use contracts::{
    AttemptNumber, Delivery, DeliveryId, Destination, Job, OrgId, PayloadFormat, RunId, RunUpdate, Timestamp,
};
use dispatcher::RetryPolicy;
use rand::prelude::*;
use rand::rngs::StdRng;
use store::{AcceptPolicy, Deliver, StoreError, create_organization, deliveries_of_run, record_run};
use testkit::{Fate, MemoryDatabase};
use thiserror::Error;
use uuid::Uuid;

use crate::actors::{Api, Dispatcher, Message};
use crate::facts::Facts;
use crate::mutant::Mutant;

pub(crate) const POLICY: AcceptPolicy =
    AcceptPolicy { max_attempts: 3, payload_format: PayloadFormat::Python };
/// The budget of one attempt.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
const LEASE: Duration = Duration::from_secs(60);
/// What aligned clocks may be off, and so what two moments of different hosts may be.
pub(crate) const CLOCK_ERROR: Duration = Duration::from_millis(50);

/// How a history went wrong.
#[derive(Debug, PartialEq, Error)]
pub(crate) enum Broken {
    /// A promise does not hold.
    #[error("{0}")]
    Promise(String),
    /// A step could not be made. That a mutant trips over itself shows nothing of what it would have broken.
    #[error("a step failed: {0}")]
    Step(String),
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Broken {
        Broken::Step(error.to_string())
    }
}

pub(crate) type Step = Result<(), Broken>;

/// Answers that a promise is broken unless it holds.
pub(crate) fn promise(holds: bool, what: impl FnOnce() -> String) -> Step {
    if holds { Ok(()) } else { Err(Broken::Promise(what())) }
}

/// A run.
pub(crate) struct Run {
    pub(crate) id: RunId,
    pub(crate) url: &'static str,
    /// Its end has been reported, and so is announced by one automatic delivery.
    pub(crate) is_announced: bool,
    pub(crate) is_erased: bool,
}

/// Everything there is in one history.
pub(crate) struct World<'a> {
    pub(crate) database: &'a mut MemoryDatabase,
    pub(crate) rng: StdRng,
    pub(crate) mutant: Option<Mutant>,
    pub(crate) org: OrgId,
    pub(crate) runs: Vec<Run>,
    /// True time.
    pub(crate) now: Timestamp,
    /// How far the database's clock is ahead of it, in microseconds.
    pub(crate) database_ahead: i64,
    /// What happens in some histories only, since it ends or blurs much else.
    pub(crate) may_set_database_clock: bool,
    pub(crate) may_erase: bool,
    /// Until when the database is away.
    pub(crate) outage_until: Timestamp,
    pub(crate) apis: [Api; 2],
    pub(crate) dispatchers: [Dispatcher; 3],
    /// Messages in the queue.
    pub(crate) queue: Vec<Message>,
    pub(crate) messages: u64,
    pub(crate) facts: Facts,
    /// Failures have stopped: the rest must come to an end.
    pub(crate) is_calm: bool,
    /// How often the interesting things came about.
    pub(crate) seen: &'a mut BTreeMap<&'static str, usize>,
    pub(crate) trace: Option<Vec<String>>,
}

impl<'a> World<'a> {
    pub(crate) fn new(
        database: &'a mut MemoryDatabase,
        seen: &'a mut BTreeMap<&'static str, usize>,
        seed: u64,
        mutant: Option<Mutant>,
        is_traced: bool,
    ) -> Result<World<'a>, Broken> {
        database.execute(
            "DELETE FROM erased_parts; DELETE FROM attempts; DELETE FROM deliveries; DELETE FROM runs",
        );
        let now = Timestamp::parse("2026-03-01T12:00:00.123457Z").expect("a moment");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut dispatchers: [Dispatcher; 3] = Default::default();
        for dispatcher in &mut dispatchers {
            let error = i64::try_from(CLOCK_ERROR.as_micros()).unwrap_or(0);
            dispatcher.clock_error = rng.random_range(-error..=error);
            dispatcher.host_error = rng.random_range(-3_600_000_000..=3_600_000_000);
        }
        // One has ended long ago, the other one runs.
        let statuses = ["succeeded", "running"];
        let runs: Vec<Run> = statuses
            .iter()
            .map(|_| {
                let is_public = rng.random_bool(0.9);
                let url = if is_public { "https://hooks.example.com/" } else { "https://10.0.0.1/" };
                Run { id: RunId(Uuid::new_v4()), url, is_announced: false, is_erased: false }
            })
            .collect();
        let recorded = database.transaction(Fate::Committed, |tx| {
            let org = create_organization(tx, now, "simulated")?.id;
            for (run, status) in runs.iter().zip(statuses) {
                let update = report(run.url, status, 0);
                record_run(tx, now, &POLICY, Deliver::Never, (org, run.id), &update, "r")?;
            }
            Ok(org)
        })?;
        let (may_set_database_clock, may_erase) = (rng.random_bool(0.25), rng.random_bool(0.25));
        let org = recorded.expect("a transaction that commits answers");
        Ok(World {
            database,
            rng,
            mutant,
            org,
            runs,
            now,
            database_ahead: 0,
            may_set_database_clock,
            may_erase,
            outage_until: now,
            apis: Default::default(),
            dispatchers,
            queue: Vec::new(),
            messages: 0,
            facts: Facts::default(),
            is_calm: false,
            seen,
            trace: is_traced.then(Vec::new),
        })
    }

    pub(crate) fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub(crate) fn lease(&self) -> Duration {
        if self.is(Mutant::LeaseShorterThanBudget) { TIMEOUT / 2 } else { LEASE }
    }

    pub(crate) fn retry(&self) -> RetryPolicy {
        RetryPolicy {
            schedule: vec![Duration::from_secs(10), Duration::from_secs(60)],
            jitter: 0.1,
            stop_on_gone: true,
        }
    }

    /// Monotonic time, the same on all hosts.
    pub(crate) fn monotonic(&self) -> Duration {
        Duration::from_micros(self.now.as_micros().unsigned_abs())
    }

    /// What the database's clock says.
    pub(crate) fn database_time(&self) -> Timestamp {
        Timestamp::from_micros(self.now.as_micros() + self.database_ahead)
    }

    /// What a dispatcher takes for the database's time.
    pub(crate) fn time_of(&self, dispatcher: usize) -> Timestamp {
        let Dispatcher { clock_error, host_error, .. } = self.dispatchers[dispatcher];
        let (from, error) = match self.is(Mutant::HostClock) {
            true => (self.now, host_error),
            false => (self.database_time(), clock_error),
        };
        Timestamp::from_micros(from.as_micros() + error)
    }

    /// What becomes of the next transaction.
    pub(crate) fn fate(&mut self) -> Fate {
        if self.now < self.outage_until {
            return Fate::RolledBack;
        }
        match self.rng.random_range(0..100) {
            _ if self.is_calm => Fate::Committed,
            0..8 => Fate::RolledBack,
            8..16 => Fate::AnswerLost,
            _ => Fate::Committed,
        }
    }

    /// All deliveries as they stand, by run.
    pub(crate) fn deliveries(&mut self) -> Result<Vec<Vec<Delivery>>, Broken> {
        let (org, runs) = (self.org, &self.runs);
        let read = self.database.transaction(Fate::Committed, |tx| {
            runs.iter().map(|run| Ok(deliveries_of_run(tx, org, run.id)?.unwrap_or_default())).collect()
        })?;
        Ok(read.expect("a transaction that commits answers"))
    }

    pub(crate) fn job(&self, delivery_id: DeliveryId, attempt: AttemptNumber) -> Job {
        Job {
            version: Job::VERSION,
            delivery_id,
            attempt,
            destination: Destination::of_origin("https://hooks.example.com:443"),
            org_id: self.org,
            request_id: "r".into(),
        }
    }

    pub(crate) fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// Notes what happens, for a person who replays the history.
    pub(crate) fn tell(&mut self, what: impl FnOnce(&Facts) -> String) {
        if let Some(trace) = &mut self.trace {
            let seconds = self.now.as_micros() as f64 / 1e6 % 100_000.0;
            trace.push(format!("{seconds:12.3} {}", what(&self.facts)));
        }
    }
}

/// What the run engine tells of a run.
pub(crate) fn report(url: &str, status: &str, n: u32) -> RunUpdate {
    let body = format!(
        r#"{{"status_code":"{status}","output":{{"n":{n}}},"duration_ms":1,"callback_url":"{url}","metadata":{{}}}}"#
    );
    RunUpdate::parse(body.as_bytes()).expect("a valid run")
}

/// Deliveries by id.
pub(crate) type Known = HashMap<DeliveryId, Delivery>;
