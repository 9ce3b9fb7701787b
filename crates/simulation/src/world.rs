//! State of one history: the production store on an in-memory database, dispatchers that run the production
//! state machine, and simulations of everything else.

use std::time::Duration;

use contracts::{Destination, PayloadFormat, RunId, RunUpdate, Timestamp};
use engine::dispatch::Now;
use rand::prelude::*;
use rand::rngs::StdRng;
use store::{AcceptPolicy, Deliver, record_run};
use testkit::MemoryDatabase;

use crate::actors::{Api, Broker, MissedPolls};
use crate::facts::Facts;
use crate::process::Dispatcher;
use crate::promise::{Broken, CLOCK_ERROR, Counts, ORG, Step};
use crate::receivers::Receiver;
use crate::shape::Shape;
use crate::work::LateTransaction;

/// Number of runs, not counting the crowd's.
const RUNS: usize = 8;

pub(crate) struct Run {
    pub(crate) id: RunId,
    /// Index of its receiver.
    pub(crate) receiver: usize,
    /// Whether its end was reported in this history, so that exactly one automatic delivery must exist.
    pub(crate) is_announced: bool,
    pub(crate) is_running: bool,
    pub(crate) is_erased: bool,
    /// Indexes of its deliveries in [`Facts::deliveries`].
    pub(crate) deliveries: Vec<usize>,
}

/// State of one history.
pub(crate) struct World<'a> {
    pub(crate) database: &'a mut MemoryDatabase,
    pub(crate) rng: StdRng,
    pub(crate) shape: Shape,
    pub(crate) receivers: Vec<Receiver>,
    pub(crate) runs: Vec<Run>,
    /// True time.
    pub(crate) now: Timestamp,
    /// How far the database's clock is ahead of true time, in microseconds.
    pub(crate) database_ahead: i64,
    /// End of the current or last database outage.
    pub(crate) outage_until: Timestamp,
    pub(crate) apis: [Api; 2],
    pub(crate) dispatchers: [Dispatcher; 3],
    pub(crate) broker: Broker,
    /// Transactions that their dispatcher has abandoned and that may still run.
    pub(crate) late: Vec<LateTransaction>,
    pub(crate) facts: Facts,
    pub(crate) missed: MissedPolls,
    /// Whether failures have stopped.
    pub(crate) is_calm: bool,
    /// Number of occurrences of each notable event.
    pub(crate) counts: &'a mut Counts,
    pub(crate) trace: Option<Vec<String>>,
}

impl<'a> World<'a> {
    /// Returns the initial state of the history of `seed`.
    pub(crate) fn of_seed(
        database: &'a mut MemoryDatabase,
        counts: &'a mut Counts,
        seed: u64,
    ) -> Result<World<'a>, Broken> {
        let mut rng = StdRng::seed_from_u64(seed);
        let shape = Shape::draw(&mut rng);
        let receivers = Receiver::draw_all(&mut rng, &shape);
        let mut world = World::new(database, counts, rng, shape, receivers);
        for index in 0..RUNS + world.shape.crowd {
            let receiver = match index {
                // The crowd's deliveries go to the first two receivers.
                RUNS.. => index % 2,
                _ => world.rng.random_range(0..world.receivers.len()),
            };
            // All other runs have ended before the history starts.
            let is_running = index % 3 == 1 && index < RUNS;
            world.add_run(receiver, is_running)?;
        }
        for d in 0..world.dispatchers.len() {
            world.align(d);
            world.start(d);
        }
        Ok(world)
    }

    /// Returns a state without runs and without running dispatchers.
    pub(crate) fn new(
        database: &'a mut MemoryDatabase,
        counts: &'a mut Counts,
        rng: StdRng,
        shape: Shape,
        receivers: Vec<Receiver>,
    ) -> World<'a> {
        database.clear(ORG);
        let now = Timestamp::parse("2026-03-01T12:00:00.123457Z").expect("a valid timestamp");
        World {
            database,
            rng,
            shape,
            receivers,
            runs: Vec::new(),
            now,
            database_ahead: 0,
            outage_until: now,
            apis: Default::default(),
            dispatchers: Default::default(),
            broker: Broker::default(),
            late: Vec::new(),
            facts: Facts::default(),
            missed: MissedPolls::default(),
            is_calm: false,
            counts,
            trace: None,
        }
    }

    /// Adds a run without a delivery.
    pub(crate) fn add_run(&mut self, receiver: usize, is_running: bool) -> Step {
        let id = RunId(uuid::Builder::from_random_bytes(self.rng.random()).into_uuid());
        let status = if is_running { "running" } else { "succeeded" };
        let update = self.report_of(receiver, status);
        let (now, policy) = (self.now, self.accept_policy());
        self.database.transaction(true, |tx| {
            record_run(tx, now, &policy, Deliver::Never, (ORG, id), &update, &"r".into()).map(drop)
        })?;
        let run =
            Run { id, receiver, is_announced: false, is_running, is_erased: false, deliveries: Vec::new() };
        self.runs.push(run);
        Ok(())
    }

    /// Returns an update of a run, of random size.
    pub(crate) fn report_of(&mut self, receiver: usize, status: &str) -> RunUpdate {
        let size: usize = match self.rng.random_range(0..100) {
            _ if !self.shape.has_large_payloads => 0,
            0..70 => 0,
            70..90 => 1_500,
            _ => 8_000,
        };
        let (number, filling) = (self.rng.random_range(1..1000), "x".repeat(size));
        let url = &self.receivers[receiver].url;
        let body = format!(
            r#"{{"status_code":"{status}","output":{{"n":{number},"x":"{filling}"}},"duration_ms":1,"callback_url":"{url}","metadata":{{}}}}"#
        );
        RunUpdate::parse(body.as_bytes()).expect("a valid run")
    }

    pub(crate) fn accept_policy(&self) -> AcceptPolicy {
        AcceptPolicy { max_attempts: self.shape.max_attempts, payload_format: PayloadFormat::Python }
    }

    pub(crate) fn destination(&self, run: usize) -> Destination {
        self.receivers[self.runs[run].receiver].destination
    }

    /// Returns the monotonic time, which is the same on all hosts.
    pub(crate) fn monotonic(&self) -> Duration {
        Duration::from_micros(self.now.as_micros().unsigned_abs())
    }

    /// Returns the time of the database's clock.
    pub(crate) fn database_time(&self) -> Timestamp {
        self.as_database_time(self.now)
    }

    /// Returns the time of the database's clock at `true_time`.
    pub(crate) fn as_database_time(&self, true_time: Timestamp) -> Timestamp {
        Timestamp::from_micros(true_time.as_micros() + self.database_ahead)
    }

    /// Returns the true time at which the database's clock shows `database_time`.
    pub(crate) fn as_true_time(&self, database_time: Timestamp) -> Timestamp {
        Timestamp::from_micros(database_time.as_micros() - self.database_ahead)
    }

    /// Returns the time of a dispatcher's clock.
    pub(crate) fn time_of(&self, d: usize) -> Timestamp {
        let error = self.dispatchers[d].clock_error;
        Timestamp::from_micros(self.database_time().as_micros() + error)
    }

    pub(crate) fn now_of(&self, d: usize) -> Now {
        Now { monotonic: self.monotonic(), clock: self.time_of(d) }
    }

    /// Aligns a dispatcher's clock with the database's, up to a small random error.
    pub(crate) fn align(&mut self, d: usize) {
        let error = i64::try_from(CLOCK_ERROR.as_micros()).unwrap_or(0);
        self.dispatchers[d].clock_error = self.rng.random_range(-error..=error);
    }

    pub(crate) fn is_database_away(&self) -> bool {
        self.now < self.outage_until
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Appends a line to the trace, if tracing is on.
    pub(crate) fn log(&mut self, what: impl FnOnce(&Facts) -> String) {
        if let Some(trace) = &mut self.trace {
            let seconds = self.now.as_micros() as f64 / 1e6 % 100_000.0;
            trace.push(format!("{seconds:12.3} {}", what(&self.facts)));
        }
    }
}
