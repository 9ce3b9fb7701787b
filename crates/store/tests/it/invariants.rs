//! Random histories: the design's invariants hold under all sequences of doorbells, relays, crashes and late
//! results.
//!
//! I1 an accepted delivery becomes terminal; I2 a terminal delivery never changes, and a record changes at
//! most once, from `outcome_unknown`; I3 attempts are numbered 1..n without gaps, n ≤ max; I5 each attempt is
//! claimed at most once, unless it was handed back; I6 a success was answered 2xx; I7 no attempt is claimed
//! after a success; I8 the payload's bytes never change; I10 at most one delivery of a run is open; I11 no
//! attempt begins while its destination is held, except for the one probe.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use ::store::{RowsRefused, Store, StoreError, claim_due, claim_jobs, finish, forget_holds, recover_leases};
use contracts::{
    Attempt, AttemptId, AttemptNumber, ClaimId, Delivery, DeliveryId, DeliveryStatus, Destination,
    FailureReason, RunId, Timestamp,
};
use diesel::Connection;
use diesel::connection::SimpleConnection;
use engine::{
    AttemptResult, Claimed, Effect, HeldAttempt, HoldChange, LocalFailure, Measured, Outcome, Response,
    RetryPolicy, Settlement,
};
use rand::prelude::*;
use rand::rngs::StdRng;
use testkit::Backend;

use crate::stage::{GRACE, LEASE, POLICY, Stage, URL, job_to, number, plan};

/// The callback URL of the second run.
const OTHER_URL: &str = "https://other.example.com/";

#[test]
fn random_histories_keep_the_invariants_on_sqlite() {
    // The data need not survive a crash.
    explore(Backend::Sqlite, "PRAGMA synchronous = OFF", 0..250);
}

#[test]
fn random_histories_keep_the_invariants_on_postgresql() {
    explore(Backend::Postgres, "SET synchronous_commit = off", 1_000..1_060);
}

fn explore(backend: Backend, careless: &str, seeds: std::ops::Range<u64>) {
    let mut stage = Stage::new(backend);
    stage.conn.batch_execute(careless).unwrap();
    let mut seen = HashMap::new();
    for seed in seeds {
        // A failure names its seed, which alone determines the history.
        naming(seed, || {
            let mut history = History::new(&mut stage, &mut seen, seed);
            for _ in 0..80 {
                history.step();
                history.check();
            }
            history.play_out();
        });
    }
    // The histories covered all intended cases.
    for what in [
        "lost",
        "late",
        "late and closed",
        "dropped",
        "budget used up",
        "redelivered",
        "handed back",
        "held",
        "probe",
        "opened",
        "held again",
        "another probe",
        "hold forgotten",
        "late and not sent",
    ] {
        assert!(seen.contains_key(what), "never {what}: {seen:?}");
    }
}

static RETRY: std::sync::LazyLock<RetryPolicy> = std::sync::LazyLock::new(|| RetryPolicy {
    schedule: vec![Duration::from_secs(45)],
    jitter: 1.0,
    stop_on_gone: true,
    hold_cap: Duration::from_secs(60),
});

fn naming(seed: u64, work: impl FnOnce()) {
    if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        let message = panic.downcast_ref::<String>().cloned().unwrap_or_default();
        panic!("history of seed {seed}: {message}");
    }
}

fn is_unknown(attempt: &Attempt) -> bool {
    attempt.error_message.as_ref().is_some_and(|text| text.starts_with("outcome_unknown: "))
}

/// The hold of a destination.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Hold {
    until: Timestamp,
    /// The probe's claim id and the end of its lease.
    probe: Option<(ClaimId, Timestamp)>,
}

struct History<'a> {
    stage: &'a mut Stage,
    rng: StdRng,
    runs: Vec<RunId>,
    /// All claims so far: any dispatcher may still return a result.
    claims: Vec<Claimed>,
    claimed: HashSet<(DeliveryId, AttemptNumber)>,
    /// The expected holds.
    holds: BTreeMap<Destination, Hold>,
    /// The deliveries after the last step.
    known: HashMap<DeliveryId, Delivery>,
    /// How often each interesting case occurred.
    seen: &'a mut HashMap<&'static str, usize>,
}

impl<'a> History<'a> {
    fn new(stage: &'a mut Stage, seen: &'a mut HashMap<&'static str, usize>, seed: u64) -> History<'a> {
        stage.clear();
        let runs = vec![stage.run(), stage.run_to(OTHER_URL), stage.run()];
        History {
            stage,
            rng: StdRng::seed_from_u64(seed),
            runs,
            claims: Vec::new(),
            claimed: HashSet::new(),
            holds: BTreeMap::new(),
            known: HashMap::new(),
            seen,
        }
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..10 => {
                // No two deliveries have the same time: their order would depend on random ids.
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
                // Including duplicated, stale and early ones.
                let jobs: Vec<_> = (0..self.rng.random_range(1..6))
                    .map(|_| {
                        let id = ids[self.rng.random_range(0..ids.len())];
                        let next = self.known[&id].attempt_count + 1;
                        let attempt =
                            if self.rng.random_bool(0.7) { next } else { self.rng.random_range(0..6) };
                        job_to(self.stage.destination(&self.known[&id].callback_url), id, attempt)
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
                let mut batch: Vec<AttemptResult> = Vec::new();
                for _ in 0..self.rng.random_range(1..4) {
                    if let Some(claimed) = self.some_claim() {
                        let result = self.result(&claimed);
                        if batch.iter().all(|other| other.delivery_id != result.delivery_id) {
                            batch.push(result);
                        }
                    }
                }
                self.finish(&batch);
            }
            65..80 => self.recover(),
            80..84 => {
                if self.rng.random_bool(0.3) {
                    self.stage.advance(Duration::from_secs(4000));
                }
                let now = self.stage.now;
                let forgotten = self.stage.write(|tx| forget_holds(tx, now));
                self.saw("hold forgotten", forgotten);
                let waiting = self.waiting();
                self.holds.retain(|destination, hold| {
                    let is_probing = hold.probe.is_some_and(|(_, until)| until > now);
                    hold.until + Duration::from_secs(3600) > now
                        || is_probing
                        || waiting.contains(destination)
                });
            }
            _ => {
                let seconds = self.rng.random_range(0..90);
                self.stage.advance(Duration::from_secs(seconds));
            }
        }
    }

    /// Returns the destinations of waiting deliveries.
    fn waiting(&mut self) -> HashSet<Destination> {
        let waits = |delivery: &&Delivery| delivery.status_code == DeliveryStatus::Pending;
        self.known
            .values()
            .filter(waits)
            .map(|delivery| self.stage.destination(&delivery.callback_url))
            .collect()
    }

    fn finish(&mut self, batch: &[AttemptResult]) {
        for (result, effect) in batch.iter().zip(self.stage.finish(batch)) {
            let was_sent = !matches!(result.settlement, Settlement::HandedBack(_));
            match effect {
                Effect::Recorded if self.is_new(result) => {
                    if !was_sent {
                        self.saw("handed back", 1);
                        self.claimed.remove(&(result.delivery_id, result.record.number));
                    }
                    self.note_hold(result);
                }
                Effect::Recorded => {}
                Effect::Late { closed: true } => self.saw("late and closed", 1),
                Effect::Late { closed: false } if !was_sent => self.saw("late and not sent", 1),
                Effect::Late { closed: false } => self.saw("late", 1),
                Effect::Dropped => self.saw("dropped", 1),
                Effect::Locked => panic!("there is no other session"),
            }
        }
    }

    /// Whether a result is the first one of its attempt, given the delivery's previous state.
    fn is_new(&self, result: &AttemptResult) -> bool {
        let before = &self.known[&result.delivery_id];
        let is_under_way = before.status_code == DeliveryStatus::Delivering;
        is_under_way && before.attempt_count == result.record.number
    }

    /// Applies the result of a held attempt to its destination's expected hold.
    fn note_hold(&mut self, result: &AttemptResult) {
        let Some(hold) = self.holds.get_mut(&result.destination) else {
            if let HoldChange::HoldUntil(until) = result.hold {
                self.holds.insert(result.destination, Hold { until, probe: None });
                self.saw("held", 1);
            }
            return;
        };
        let is_probe = hold.probe.is_some_and(|(claim, _)| result.is_probe && claim == result.claim_id);
        match result.hold {
            HoldChange::None => return,
            HoldChange::HoldUntil(until) => hold.until = hold.until.max(until),
            HoldChange::ProbeAgain => {}
            HoldChange::Open if is_probe && hold.until <= self.stage.now => {
                self.holds.remove(&result.destination);
                self.saw("opened", 1);
                return;
            }
            HoldChange::Open => {}
        }
        if is_probe {
            hold.probe = None;
            let again = result.hold == HoldChange::ProbeAgain;
            self.saw(if again { "another probe" } else { "held again" }, 1);
        }
    }

    /// Picks a claim whose dispatcher returns a result: mostly a recent one, often one recorded as lost,
    /// sometimes any.
    fn some_claim(&mut self) -> Option<Claimed> {
        let lost = |claimed: &&Claimed| {
            let number = usize::try_from(claimed.held.attempt).unwrap();
            self.known[&claimed.held.delivery_id].attempts.get(number - 1).is_some_and(is_unknown)
        };
        let kind = self.rng.random_range(0..12);
        let candidates: Vec<&Claimed> = match kind {
            10.. => self.claims.iter().rev().filter(|claimed| claimed.held.is_probe).take(1).collect(),
            0..5 => self.claims.iter().rev().take(3).collect(),
            5..8 => self.claims.iter().filter(lost).collect(),
            _ => self.claims.iter().collect(),
        };
        candidates.choose(&mut self.rng).map(|claimed| (*claimed).clone())
    }

    /// Returns a random outcome, settled.
    fn result(&mut self, claimed: &Claimed) -> AttemptResult {
        let answer = |status, retry_after: Option<u32>| {
            let retry_after = retry_after.map(|seconds| seconds.to_string()).into_iter().collect();
            Outcome::Answered(Response { status, body: String::new(), retry_after })
        };
        let first = if claimed.held.is_probe { 4 } else { 0 };
        let outcome = match self.rng.random_range(first..20) {
            0..5 => answer(200, None),
            5 => answer(410, None),
            6..12 => answer(429, Some(self.rng.random_range(0..90))),
            12..16 => Outcome::NotSent(LocalFailure::NoSocket),
            _ => answer(500, None),
        };
        let id = AttemptId(uuid::Uuid::from_u128(self.rng.random()));
        RETRY.settle(
            &claimed.held,
            id,
            outcome,
            Measured::default(),
            self.stage.now,
            self.rng.random_range(-1.0..1.0),
        )
    }

    /// Recovers leases that have ended, as the relay does.
    fn recover(&mut self) {
        let (now, rng) = (self.stage.now, &mut self.rng);
        let settle = |held: &HeldAttempt| {
            RETRY.settle_lost(held, AttemptId(uuid::Uuid::from_u128(rng.random())), now, 0.0)
        };
        let recovered =
            self.stage.conn.transaction(|tx| recover_leases(tx, now, 100, &[], false, settle)).unwrap();
        for (held, ..) in &recovered {
            let is_it = |claimed: &&Claimed| {
                (claimed.held.claim_id, claimed.held.delivery_id) == (held.claim_id, held.delivery_id)
            };
            let claimed = &self.claims.iter().find(is_it).expect("it was claimed").held;
            // Another probe may have begun in the meantime.
            assert_eq!(*held, HeldAttempt { is_probe: held.is_probe, ..claimed.clone() });
            assert!(claimed.is_probe || !held.is_probe);
            assert!(held.claimed_at + LEASE <= now, "expired too early");
        }
        self.saw("lost", recovered.len());
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
            self.note_begun(&claimed.held);
            self.claims.push(claimed);
        }
    }

    /// Checks I11.
    fn note_begun(&mut self, held: &HeldAttempt) {
        let Some(hold) = self.holds.get_mut(&held.destination) else {
            assert!(!held.is_probe, "a probe of an ordinary destination");
            return;
        };
        let now = self.stage.now;
        assert!(held.is_probe && hold.until <= now, "I11: begun although {hold:?}");
        assert!(hold.probe.is_none_or(|(_, until)| until <= now), "I11: a probe beside {hold:?}");
        hold.probe = Some((held.claim_id, now + LEASE));
        self.saw("probe", 1);
    }

    /// Compares the stored holds with the expected ones.
    fn check_holds(&mut self) {
        let rows: Vec<(i64, i64, i64)> = self
            .holds
            .iter()
            .map(|(destination, hold)| {
                let probing = hold.probe.map_or(0, |(_, until)| until.as_micros());
                (destination.as_i64(), hold.until.as_micros(), probing)
            })
            .collect();
        assert_eq!(self.stage.hold_rows(), rows);
    }

    fn check(&mut self) {
        self.check_holds();
        let mut now = HashMap::new();
        for run in self.runs.clone() {
            let deliveries =
                testkit::deliveries_of_run(&mut self.stage.conn, self.stage.org, run).unwrap().unwrap();
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
            let destination = self.stage.destination(&delivery.callback_url);
            if let (Some(at), Some(hold)) = (delivery.next_attempt_at, self.holds.get(&destination)) {
                assert!(at >= hold.until, "{delivery:?} is held: {hold:?}");
            }
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

    /// I1: without doorbells, crashes and late results, the relay alone ends every delivery.
    fn play_out(&mut self) {
        for _ in 0..=POLICY.max_attempts * 3 {
            self.stage.advance(LEASE * 2);
            self.recover();
            self.check();
            self.stage.advance(LEASE);
            let claimed = self.stage.claim_due(100);
            let failed = Outcome::failed(FailureReason::Timeout, "no answer");
            let settled = |claimed: &Claimed| {
                let id = AttemptId(uuid::Uuid::new_v4());
                RETRY.settle(&claimed.held, id, failed.clone(), Measured::default(), self.stage.now, 0.0)
            };
            let results: Vec<_> = claimed.iter().map(settled).collect();
            self.note(claimed);
            self.check();
            self.finish(&results);
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

testkit::on_both_backends!(concurrent_dispatchers_keep_the_invariants);

/// The histories above are single-threaded. Here several dispatchers process the same deliveries
/// concurrently, and no step may fail, for example because of a deadlock.
async fn concurrent_dispatchers_keep_the_invariants(backend: Backend) {
    let mut stage = Stage::new(backend);
    let mut deliveries = stage.accept_many(30);
    deliveries.extend((0..10).map(|_| stage.accept_to(OTHER_URL).id));
    stage.advance(GRACE);
    let store = stage.store().await;
    let destination = stage.destination(URL);
    let dispatchers = (0..6).map(|seed| dispatcher(store.clone(), deliveries.clone(), destination, seed));
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

/// Processes deliveries until none is open. Returns the attempts that it claimed and did not hand back.
async fn dispatcher(
    store: Store,
    deliveries: Vec<DeliveryId>,
    destination: Destination,
    seed: u64,
) -> Vec<(DeliveryId, AttemptNumber)> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut claimed_by_me = Vec::new();
    let mut stalled: Vec<Claimed> = Vec::new();
    loop {
        let jobs: Vec<_> = (0..8)
            .map(|_| job_to(destination, *deliveries.choose(&mut rng).unwrap(), rng.random_range(1..4)))
            .collect();
        let claim = move |tx: &mut _, now| {
            let mut claimed = claim_jobs(tx, now, LEASE, ClaimId::new(now), &jobs)?;
            claimed.extend(claim_due(tx, now, LEASE, ClaimId::new(now), &plan(5))?.claimed);
            let settle = |held: &HeldAttempt| RETRY.settle_lost(held, AttemptId::new(now), now, 0.0);
            recover_leases(tx, now, 10, &[], false, settle)?;
            Ok::<_, RowsRefused>((now, claimed))
        };
        let (now, mut claimed) = store.write(claim).await.unwrap();
        claimed_by_me.extend(claimed.iter().map(|claimed| (claimed.held.delivery_id, claimed.held.attempt)));

        // Some attempts stall and return their result later.
        if rng.random_bool(0.3) {
            std::mem::swap(&mut stalled, &mut claimed);
        }
        let settle = |claimed: &Claimed| {
            let answer = |status, retry_after: Option<&str>| {
                let retry_after = retry_after.map(str::to_owned).into_iter().collect();
                Outcome::Answered(Response { status, body: String::new(), retry_after })
            };
            let outcome = match rng.random_range(0..10) {
                0..3 => answer(200, None),
                3 => answer(429, Some("3")),
                4 => Outcome::NotSent(LocalFailure::NoSocket),
                _ => answer(500, None),
            };
            RETRY.settle(&claimed.held, AttemptId::new(now), outcome, Measured::default(), now, -1.0)
        };
        let mut batch: Vec<_> = claimed.iter().map(settle).collect();
        while !batch.is_empty() {
            // In random order, with each delivery once.
            batch.shuffle(&mut rng);
            let mut seen = HashSet::new();
            batch.retain(|result| seen.insert(result.delivery_id));
            let results = batch.clone();
            let effects = store.write(move |tx, now| finish(tx, now, &results)).await.unwrap();
            for (result, effect) in batch.iter().zip(&effects) {
                if *effect == Effect::Recorded && matches!(result.settlement, Settlement::HandedBack(_)) {
                    let handed_back = (result.delivery_id, result.record.number);
                    let index = claimed_by_me.iter().position(|attempt| *attempt == handed_back);
                    claimed_by_me.swap_remove(index.unwrap());
                }
            }
            let mut effects = effects.iter();
            batch.retain(|_| effects.next() == Some(&Effect::Locked));
        }
        store.clock().advance(LEASE / 8);
        let open = |tx: &mut _| Ok::<_, StoreError>(number(tx, "SELECT count(*) FROM open_deliveries"));
        if store.read(open).await.unwrap() == 0 {
            return claimed_by_me;
        }
    }
}
