//! Random histories: whatever doorbells, relays, crashes and late results do, the design's invariants hold.
//!
//! I1 an accepted delivery becomes terminal; I2 a terminal delivery never changes, and a record changes at most
//! once, from `outcome_unknown`; I3 attempts are numbered 1..n without gap, n ≤ max; I5 each attempt is claimed at
//! most once; I6 a success was answered 2xx; I7 no attempt is claimed after a success; I8 the bytes stay the same; I10 at most one delivery of a
//! run is open.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use ::store::{
    Claimed, Effect, Finished, Settlement, Store, StoreError, claim_due, claim_jobs, deliveries_of_run,
    expired_leases, finish,
};
use contracts::{
    Attempt, AttemptNumber, ClaimId, Delivery, DeliveryId, DeliveryStatus, FailureReason, RunId,
};
use diesel::connection::SimpleConnection;
use rand::prelude::*;
use rand::rngs::StdRng;
use testkit::Engine;

use crate::stage::{GRACE, LEASE, POLICY, Stage, finished, job, lost, number, on_both_engines};

#[test]
fn random_histories_keep_the_invariants_on_sqlite() {
    // Nothing here survives a crash, so nothing needs to.
    explore(Engine::Sqlite, "PRAGMA synchronous = OFF", 0..250);
}

#[test]
fn random_histories_keep_the_invariants_on_postgresql() {
    explore(Engine::Postgres, "SET synchronous_commit = off", 1_000..1_030);
}

fn explore(engine: Engine, careless: &str, seeds: std::ops::Range<u64>) {
    let mut stage = Stage::new(engine);
    stage.conn.batch_execute(careless).unwrap();
    let mut seen = HashMap::new();
    for seed in seeds {
        // A failure names its seed, on which alone a history depends.
        naming(seed, || {
            let mut history = History::new(&mut stage, &mut seen, seed);
            for _ in 0..40 {
                history.step();
                history.check();
            }
            history.play_out();
        });
    }
    // The histories went where they were meant to go.
    for what in ["lost", "late", "late and closed", "dropped", "budget used up", "redelivered"] {
        assert!(seen.contains_key(what), "never {what}");
    }
}

fn naming(seed: u64, work: impl FnOnce()) {
    if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        let message = panic.downcast_ref::<String>().cloned().unwrap_or_default();
        panic!("history of seed {seed}: {message}");
    }
}

fn is_unknown(attempt: &Attempt) -> bool {
    attempt.error_message.as_ref().is_some_and(|text| text.starts_with("outcome_unknown: "))
}

struct History<'a> {
    stage: &'a mut Stage,
    rng: StdRng,
    runs: Vec<RunId>,
    /// Every claim so far: dispatchers that may still come back with a result.
    claims: Vec<Claimed>,
    claimed: HashSet<(DeliveryId, AttemptNumber)>,
    /// As they stood after the last step.
    known: HashMap<DeliveryId, Delivery>,
    /// How often the interesting things came about.
    seen: &'a mut HashMap<&'static str, usize>,
}

impl<'a> History<'a> {
    fn new(stage: &'a mut Stage, seen: &'a mut HashMap<&'static str, usize>, seed: u64) -> History<'a> {
        stage.sql("DELETE FROM attempts").unwrap();
        stage.sql("DELETE FROM deliveries").unwrap();
        let runs = (0..2).map(|_| stage.run()).collect();
        History {
            stage,
            rng: StdRng::seed_from_u64(seed),
            runs,
            claims: Vec::new(),
            claimed: HashSet::new(),
            known: HashMap::new(),
            seen,
        }
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..10 => {
                // No two deliveries of one moment: their order would be that of random ids.
                self.stage.advance(Duration::from_micros(1));
                let run = self.runs[self.rng.random_range(0..self.runs.len())];
                if let ::store::Redelivery::Accepted(_) = self.stage.redeliver(run) {
                    self.saw("redelivered", 1);
                }
            }
            10..30 => {
                let mut ids: Vec<DeliveryId> = self.known.keys().copied().collect();
                ids.sort_unstable_by_key(|id| self.known[id].created_at);
                if ids.is_empty() {
                    return;
                }
                // Duplicated, stale and early ones among them.
                let jobs: Vec<_> = (0..self.rng.random_range(1..6))
                    .map(|_| {
                        let id = ids[self.rng.random_range(0..ids.len())];
                        let next = self.known[&id].attempt_count + 1;
                        let attempt =
                            if self.rng.random_bool(0.7) { next } else { self.rng.random_range(0..6) };
                        job(id, attempt)
                    })
                    .collect();
                let claimed = self.stage.claim(&jobs);
                self.note(claimed);
            }
            30..45 => {
                let limit = self.rng.random_range(0..4);
                let claimed = self.stage.claim_due(limit);
                self.note(claimed);
            }
            45..65 => {
                let mut batch: Vec<Finished> = Vec::new();
                for _ in 0..self.rng.random_range(1..4) {
                    if let Some(claimed) = self.some_claim() {
                        let result = self.result(&claimed);
                        if batch.iter().all(|other| other.delivery_id != result.delivery_id) {
                            batch.push(result);
                        }
                    }
                }
                for effect in self.stage.finish(&batch) {
                    match effect {
                        Effect::Finished => {}
                        Effect::Late { closed: true } => self.saw("late and closed", 1),
                        Effect::Late { closed: false } => self.saw("late", 1),
                        Effect::Dropped => self.saw("dropped", 1),
                    }
                }
            }
            65..82 => self.relay_expired(),
            _ => {
                let seconds = self.rng.random_range(0..90);
                self.stage.advance(Duration::from_secs(seconds));
            }
        }
    }

    /// Somebody who comes back with a result: mostly a recent claim, often one given up as lost, sometimes any.
    fn some_claim(&mut self) -> Option<Claimed> {
        let lost = |claimed: &&Claimed| {
            let number = usize::try_from(claimed.held.attempt).unwrap();
            self.known[&claimed.held.delivery_id].attempts.get(number - 1).is_some_and(is_unknown)
        };
        let kind = self.rng.random_range(0..10);
        let candidates: Vec<&Claimed> = match kind {
            0..5 => self.claims.iter().rev().take(3).collect(),
            5..8 => self.claims.iter().filter(lost).collect(),
            _ => self.claims.iter().collect(),
        };
        candidates.choose(&mut self.rng).map(|claimed| (*claimed).clone())
    }

    /// As the dispatcher would settle a random outcome.
    fn result(&mut self, claimed: &Claimed) -> Finished {
        if self.rng.random_bool(0.35) {
            return finished(claimed, None, Settlement::Succeeded);
        }
        let gone = self.rng.random_bool(0.05);
        let reason = if gone { FailureReason::Gone } else { FailureReason::HttpError };
        let settlement = if gone {
            Settlement::Failed
        } else {
            self.next(claimed.held.attempt, claimed.held.max_attempts)
        };
        finished(claimed, Some(reason), settlement)
    }

    fn next(&mut self, attempt: AttemptNumber, max_attempts: AttemptNumber) -> Settlement {
        if attempt >= max_attempts {
            return Settlement::Failed;
        }
        Settlement::RetryAt(self.stage.now + Duration::from_micros(self.rng.random_range(0..90_000_000)))
    }

    /// What the relay does with leases that have ended.
    fn relay_expired(&mut self) {
        let mut batch = Vec::new();
        let mut expired = self.stage.expired();
        expired.sort_by_key(|lease| self.known[&lease.delivery_id].created_at);
        for lease in expired {
            assert!(self.claims.iter().any(|claimed| {
                (claimed.held.claim_id, claimed.held.delivery_id) == (lease.claim_id, lease.delivery_id)
                    && (claimed.held.attempt, claimed.held.claimed_at) == (lease.attempt, lease.claimed_at)
            }));
            assert!(lease.claimed_at + LEASE <= self.stage.now, "expired too early");
            let settlement = self.next(lease.attempt, lease.max_attempts);
            batch.push(lost(&lease, settlement));
        }
        self.saw("lost", batch.len());
        assert!(self.stage.finish(&batch).iter().all(|effect| *effect == Effect::Finished));
    }

    fn note(&mut self, mut claimed: Vec<Claimed>) {
        claimed.sort_by_key(|claimed| self.known[&claimed.held.delivery_id].created_at);
        for claimed in claimed {
            let (id, number) = (claimed.held.delivery_id, claimed.held.attempt);
            assert!(self.claimed.insert((id, number)), "I5: attempt {number} of {id} claimed twice");
            let before = &self.known[&id];
            assert_eq!(before.status_code, DeliveryStatus::Pending, "I7: claimed while not waiting");
            assert_eq!(number, before.attempt_count + 1, "I3: {before:?}");
            assert!(number <= POLICY.max_attempts, "I3: beyond the budget");
            assert!(
                before.attempts.iter().all(|attempt| attempt.error_message.is_some()),
                "I7: claimed after a success: {before:?}"
            );
            assert!(
                number == 1 || before.next_attempt_at <= Some(self.stage.now),
                "claimed before it was due"
            );
            assert_eq!(claimed.payload, before.payload_bytes.as_bytes(), "I8");
            self.claims.push(claimed);
        }
    }

    fn check(&mut self) {
        let mut now = HashMap::new();
        for run in self.runs.clone() {
            let deliveries = deliveries_of_run(&mut self.stage.conn, self.stage.org, run).unwrap().unwrap();
            let open = deliveries.iter().filter(|delivery| delivery.completed_at.is_none()).count();
            assert!(open <= 1, "I10: {open} open deliveries");
            now.extend(deliveries.into_iter().map(|delivery| (delivery.id, delivery)));
        }
        for delivery in now.values() {
            let under_way = i32::from(delivery.status_code == DeliveryStatus::Delivering);
            let numbers: Vec<_> = delivery.attempts.iter().map(|attempt| attempt.attempt_number).collect();
            let expected: Vec<_> = (1..=delivery.attempt_count - under_way).collect();
            assert_eq!(numbers, expected, "I3: {delivery:?}");
            assert!(delivery.attempt_count <= delivery.max_attempts, "I3: {delivery:?}");
            if delivery.status_code == DeliveryStatus::Succeeded {
                let accepted =
                    |attempt: &Attempt| attempt.status_code == Some(200) && attempt.error_message.is_none();
                assert!(delivery.attempts.iter().any(accepted), "I6: {delivery:?}");
            }
        }
        for (id, before) in &self.known {
            let after = now.get(id).expect("nothing accepted is lost");
            let bare = |delivery: &Delivery| Delivery { attempts: Vec::new(), ..delivery.clone() };
            if before.completed_at.is_some() {
                assert_eq!(bare(after), bare(before), "I2: a terminal delivery changed");
            }
            assert_eq!(after.payload_bytes, before.payload_bytes, "I8");
            for (before, after) in before.attempts.iter().zip(&after.attempts) {
                assert!(
                    before == after || is_unknown(before),
                    "I2: a known record changed: {before:?} to {after:?}"
                );
                assert_eq!((before.id, before.created_at), (after.id, after.created_at), "I2");
            }
        }
        self.known = now;
    }

    /// I1: with nobody ringing, crashing or late, the relay alone brings every delivery to its end.
    fn play_out(&mut self) {
        for _ in 0..=POLICY.max_attempts * 2 {
            self.stage.advance(LEASE * 2);
            self.relay_expired();
            self.check();
            self.stage.advance(LEASE);
            let claimed = self.stage.claim_due(100);
            let results: Vec<_> = claimed
                .iter()
                .map(|claimed| {
                    let settlement = self.next(claimed.held.attempt, claimed.held.max_attempts);
                    finished(claimed, Some(FailureReason::HttpError), settlement)
                })
                .collect();
            self.note(claimed);
            self.stage.finish(&results);
            self.check();
        }
        assert!(self.known.values().all(|delivery| delivery.completed_at.is_some()), "I1: {:?}", self.known);
        let used_up =
            self.known.values().filter(|delivery| delivery.attempt_count == delivery.max_attempts).count();
        self.saw("budget used up", used_up);
    }

    fn saw(&mut self, what: &'static str, times: usize) {
        if times > 0 {
            *self.seen.entry(what).or_default() += times;
        }
    }
}

on_both_engines!(dispatchers_at_once_keep_the_invariants);

/// Each history above is one thread; here several dispatchers and their relays work on the same deliveries, and no
/// step may fail, as it would on a deadlock.
async fn dispatchers_at_once_keep_the_invariants(engine: Engine) {
    let mut stage = Stage::new(engine);
    let deliveries = stage.accept_many(40);
    stage.advance(GRACE);
    let store = stage.store().await;
    let dispatchers = (0..6).map(|seed| dispatcher(store.clone(), deliveries.clone(), seed));
    let claimed = dispatchers.collect::<tokio::task::JoinSet<_>>().join_all().await.concat();

    let mut attempts = 0;
    for id in deliveries {
        let delivery = stage.delivery(id);
        assert!(delivery.completed_at.is_some(), "I1: {delivery:?}");
        let numbers: Vec<_> = delivery.attempts.iter().map(|attempt| attempt.attempt_number).collect();
        assert_eq!(numbers, (1..=delivery.attempt_count).collect::<Vec<_>>(), "I3");
        attempts += numbers.len();
    }
    let distinct: HashSet<_> = claimed.iter().collect();
    assert_eq!((claimed.len(), distinct.len()), (attempts, attempts), "I5: each attempt is claimed once");
}

/// Works until nothing is open, and answers which attempts it claimed.
async fn dispatcher(
    store: Store,
    deliveries: Vec<DeliveryId>,
    seed: u64,
) -> Vec<(DeliveryId, AttemptNumber)> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut claimed_by_me = Vec::new();
    let mut stalled: Vec<Claimed> = Vec::new();
    loop {
        let jobs: Vec<_> =
            (0..8).map(|_| job(*deliveries.choose(&mut rng).unwrap(), rng.random_range(1..4))).collect();
        let claim = move |tx: &mut _, now| {
            let mut claimed = claim_jobs(tx, now, LEASE, ClaimId::new(now), &jobs)?;
            claimed.extend(claim_due(tx, now, LEASE, ClaimId::new(now), 5)?);
            Ok::<_, StoreError>((now, claimed, expired_leases(tx, now, 10)?))
        };
        let (now, mut claimed, expired) = store.write(claim).await.unwrap();
        claimed_by_me.extend(claimed.iter().map(|claimed| (claimed.held.delivery_id, claimed.held.attempt)));

        let next = |attempt, max| if attempt < max { Settlement::RetryAt(now) } else { Settlement::Failed };
        let mut batches =
            vec![expired.iter().map(|lease| lost(lease, next(lease.attempt, lease.max_attempts))).collect()];
        // Some stall, and come back later with their result.
        if rng.random_bool(0.3) {
            std::mem::swap(&mut stalled, &mut claimed);
        }
        batches.push(
            claimed
                .iter()
                .map(|claimed| match rng.random_bool(0.3) {
                    true => finished(claimed, None, Settlement::Succeeded),
                    false => {
                        let settlement = next(claimed.held.attempt, claimed.held.max_attempts);
                        finished(claimed, Some(FailureReason::HttpError), settlement)
                    }
                })
                .collect::<Vec<_>>(),
        );
        for mut batch in batches {
            // Not in the order of the rows, and each delivery once.
            batch.shuffle(&mut rng);
            let mut seen = HashSet::new();
            batch.retain(|result| seen.insert(result.delivery_id));
            store.write(move |tx, now| finish(tx, now, &batch)).await.unwrap();
        }
        store.clock().advance(LEASE / 8);
        let open = |tx: &mut _| {
            Ok::<_, StoreError>(number(tx, "SELECT count(*) FROM deliveries WHERE completed_at IS NULL"))
        };
        if store.read(open).await.unwrap() == 0 {
            return claimed_by_me;
        }
    }
}
