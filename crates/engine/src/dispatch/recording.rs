//! Recording of results. The results that arrive while a batch is written are the next batch; a single result
//! is written at once. A refused batch is halved until the refused row is known.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use contracts::Destination;

use super::events::{Batch, Recorded};
use super::pace::{BATCH, GATHERED, GATHERING, OUTAGE_PAUSE};
use crate::protection::{Protection, is_off};
use crate::result::{AttemptResult, Effect};

/// How long a rejected result is retried: time for an operator to act.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// The wait between two tries of a rejected result.
const REJECTED_PAUSE: Duration = Duration::from_secs(1);
/// The wait before the first retry of a result whose row another session has locked. Each further one is
/// twice as long.
const LOCKED_PAUSE: Duration = Duration::from_millis(50);

/// The results that are not recorded yet.
#[derive(Debug, Default)]
pub(super) struct Recording {
    /// Results not tried yet, each with its arrival time.
    waiting: VecDeque<(AttemptResult, Duration)>,
    /// Halves of a refused batch, and batches whose commit had an unknown outcome.
    batches: Vec<Gathered>,
    in_progress: Option<InProgress>,
    /// Nothing is written before this time, because the database is unavailable or refuses everything.
    paused_until: Duration,
    /// When the last batch committed.
    ended_at: Duration,
    /// Results refused individually, or whose row is locked.
    kept: Vec<Kept>,
    /// The kept result that is being retried, in parallel with the batches.
    retrying: Option<(u64, Kept)>,
    last_id: u64,
}

#[derive(Debug)]
struct InProgress {
    id: u64,
    batch: Gathered,
}

/// Results of different deliveries.
#[derive(Debug)]
struct Gathered {
    results: Vec<AttemptResult>,
    /// The arrival time of the oldest.
    since: Duration,
}

/// A result that could not be recorded with the others.
#[derive(Debug)]
struct Kept {
    result: AttemptResult,
    since: Duration,
    tried_at: Duration,
    retry_at: Duration,
    pause: Duration,
}

impl Recording {
    pub(super) fn push(&mut self, result: AttemptResult, now: Duration) {
        self.waiting.push_back((result, now));
    }

    /// Returns the number of unrecorded results. Each occupies a slot, so a backlog of them stops claims.
    pub(super) fn len(&self) -> usize {
        let batches: usize = self.batches().map(|batch| batch.results.len()).sum();
        self.waiting.len() + batches + self.kept.len() + usize::from(self.retrying.is_some())
    }

    /// Returns the number of results by destination that the database does not accept.
    pub(super) fn kept(&self) -> BTreeMap<Destination, usize> {
        let retrying = self.retrying.as_ref().map(|(_, kept)| kept);
        self.kept.iter().chain(retrying).fold(BTreeMap::new(), |mut count, kept| {
            *count.entry(kept.result.destination).or_default() += 1;
            count
        })
    }

    /// Returns the arrival time of the oldest result, regardless of its tries.
    pub(super) fn oldest(&self) -> Option<Duration> {
        let waiting = self.waiting.front().map(|(_, since)| *since);
        let batches = self.batches().map(|batch| batch.since);
        let kept =
            self.kept.iter().chain(self.retrying.as_ref().map(|(_, kept)| kept)).map(|kept| kept.since);
        waiting.into_iter().chain(batches).chain(kept).min()
    }

    fn batches(&self) -> impl Iterator<Item = &Gathered> {
        self.in_progress.iter().map(|in_progress| &in_progress.batch).chain(&self.batches)
    }

    /// Returns the transactions to make now: one batch, and one kept result in parallel. At full load results
    /// are gathered.
    pub(super) fn next(&mut self, now: Duration, is_busy: bool) -> Vec<Batch> {
        let mut next = Vec::new();
        if self.in_progress.is_none() && self.batch_at(is_busy) <= now {
            let batch = self.batches.pop().unwrap_or_else(|| self.gather(now));
            if !batch.results.is_empty() {
                let id = self.next_id();
                next.push(Batch { id, results: batch.results.clone() });
                self.in_progress = Some(InProgress { id, batch });
            }
        }
        if self.retrying.is_none()
            && self.paused_until <= now
            && let Some(index) = self.kept.iter().position(|kept| kept.retry_at <= now)
        {
            let (id, kept) = (self.next_id(), self.kept.swap_remove(index));
            next.push(Batch { id, results: vec![kept.result.clone()] });
            self.retrying = Some((id, kept));
        }
        next
    }

    /// Returns when the next batch may be written, assuming that there are results.
    fn batch_at(&self, is_busy: bool) -> Duration {
        let gathers = is_busy && self.batches.is_empty() && self.waiting.len() < GATHERED;
        self.paused_until.max(if gathers { self.ended_at + GATHERING } else { Duration::ZERO })
    }

    /// Returns when [`Recording::next`] next has a transaction to make.
    pub(super) fn next_at(&self, is_busy: bool) -> Option<Duration> {
        let has_batch = self.in_progress.is_none() && !(self.waiting.is_empty() && self.batches.is_empty());
        let kept = self.kept.iter().filter(|_| self.retrying.is_none()).map(|kept| kept.retry_at);
        let times = has_batch.then(|| self.batch_at(is_busy)).into_iter().chain(kept);
        times.map(|at| at.max(self.paused_until)).min()
    }

    fn gather(&mut self, now: Duration) -> Gathered {
        let mut deliveries = BTreeSet::new();
        let since = self.waiting.front().map_or(now, |(_, since)| *since);
        let mut results = Vec::new();
        while results.len() < BATCH
            && let Some((result, _)) = self.waiting.front()
            && deliveries.insert(result.delivery_id)
        {
            results.extend(self.waiting.pop_front().map(|(result, _)| result));
        }
        Gathered { results, since }
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Handles a commit. Returns the recorded results.
    pub(super) fn recorded(&mut self, id: u64, effects: &[Effect], now: Duration) -> Vec<Recorded> {
        self.ended_at = now;
        let (results, since, pause) = match self.take(id) {
            Some(Taken::Batch(batch)) => (batch.results, batch.since, LOCKED_PAUSE),
            Some(Taken::Retried(kept)) => {
                (vec![kept.result.clone()], kept.since, (kept.pause * 2).min(REJECTED_PAUSE))
            }
            None => return Vec::new(),
        };
        let mut done = Vec::new();
        for (result, effect) in results.into_iter().zip(effects) {
            if *effect == Effect::Locked {
                self.kept.push(Kept { result, since, tried_at: now, retry_at: now + pause, pause });
            } else {
                done.push(Recorded { result, effect: Some(*effect) });
            }
        }
        done
    }

    /// Handles a refused transaction. Returns the result that is given up, if any: one that violates a
    /// constraint, or that was refused for [`KEPT_FOR`] while others were recorded. A database that refuses
    /// everything may be full; then no result is given up.
    pub(super) fn refused(&mut self, id: u64, is_violation: bool, now: Duration) -> Vec<Recorded> {
        let (result, since, others_recorded) = match self.take(id) {
            Some(Taken::Batch(Gathered { mut results, since })) => {
                if results.len() > 1 {
                    let half = results.split_off(results.len() / 2);
                    self.batches.extend([half, results].map(|results| Gathered { results, since }));
                    return Vec::new();
                }
                let Some(result) = results.pop() else { return Vec::new() };
                (result, since, true)
            }
            Some(Taken::Retried(kept)) => (kept.result, kept.since, self.ended_at > kept.tried_at),
            None => return Vec::new(),
        };
        if is_violation || (others_recorded && now >= since + KEPT_FOR) {
            return vec![Recorded { result, effect: None }];
        }
        if !others_recorded {
            self.paused_until = now + OUTAGE_PAUSE;
        }
        let (retry_at, pause) = (now + REJECTED_PAUSE, REJECTED_PAUSE);
        self.kept.push(Kept { result, since, tried_at: now, retry_at, pause });
        Vec::new()
    }

    /// Handles an unavailable database or a commit with an unknown outcome.
    pub(super) fn unknown(&mut self, id: u64, now: Duration) {
        match self.take(id) {
            _ if is_off(Protection::ResultsKept) => {}
            Some(Taken::Batch(batch)) => self.batches.push(batch),
            Some(Taken::Retried(kept)) => self.kept.push(*kept),
            None => {}
        }
        self.paused_until = now + OUTAGE_PAUSE;
    }

    fn take(&mut self, id: u64) -> Option<Taken> {
        if let Some(batch) = self.in_progress.take_if(|batch| batch.id == id) {
            return Some(Taken::Batch(batch.batch));
        }
        self.retrying.take_if(|(retrying, _)| *retrying == id).map(|(_, kept)| Taken::Retried(Box::new(kept)))
    }
}

enum Taken {
    Batch(Gathered),
    Retried(Box<Kept>),
}

#[cfg(test)]
mod tests {
    use contracts::{AttemptId, ClaimId, DeliveryId, Destination, OrgId, Timestamp, Timing};
    use uuid::Uuid;

    use super::*;
    use crate::result::{AttemptRecord, HoldChange, Settlement};

    fn result(number: u128) -> AttemptResult {
        let (id, now) = (Uuid::from_u128(number), Timestamp::from_micros(0));
        AttemptResult {
            delivery_id: DeliveryId(id),
            claim_id: ClaimId(id),
            org_id: OrgId(id),
            destination: Destination::from(0),
            is_probe: false,
            record: AttemptRecord {
                id: AttemptId(id),
                number: 1,
                failure: None,
                status_code: None,
                response_body: None,
                response_time_ms: None,
                timing: Timing::default(),
                claimed_at: now,
            },
            settlement: Settlement::Succeeded,
            hold: HoldChange::None,
        }
    }

    /// Refuses a result each second, with others recorded in between or not. Returns when it is given up.
    fn given_up_at(others_recorded: bool) -> Option<Duration> {
        let (mut recording, second) = (Recording::default(), Duration::from_secs);
        recording.push(result(1), second(1));
        for at in 1..2_000 {
            if others_recorded {
                recording.push(result(2), second(at));
            }
            for batch in recording.next(second(at), false) {
                if batch.results.len() > 1 {
                    assert!(recording.refused(batch.id, false, second(at)).is_empty());
                } else if batch.results[0].delivery_id == result(1).delivery_id {
                    let given_up = recording.refused(batch.id, false, second(at));
                    if !given_up.is_empty() {
                        return Some(second(at));
                    }
                } else {
                    recording.recorded(batch.id, &[Effect::Recorded], second(at));
                }
            }
        }
        None
    }

    #[test]
    fn a_refused_result_is_given_up_only_while_the_database_accepts_others() {
        let given_up = given_up_at(true).expect("the result is given up");
        assert!(given_up >= KEPT_FOR && given_up < KEPT_FOR + Duration::from_secs(5), "{given_up:?}");
        assert_eq!(given_up_at(false), None);
    }

    #[test]
    fn a_database_that_refuses_everything_is_retried_no_more_often_than_an_unavailable_one() {
        let mut recording = Recording::default();
        for number in 0..100 {
            recording.push(result(number), Duration::ZERO);
        }
        let mut tries = 0;
        // The batch is halved down to single results only once. After that there is a pause after each try.
        for millisecond in 0..10_000 {
            let now = Duration::from_millis(millisecond);
            for batch in recording.next(now, false) {
                tries += usize::from(batch.results.len() == 1 && millisecond > 1_000);
                recording.refused(batch.id, false, now);
            }
        }
        assert!(tries <= 40, "{tries} tries in nine seconds");
    }

    #[test]
    fn a_results_waiting_time_counts_from_its_arrival_regardless_of_tries() {
        let (mut recording, second) = (Recording::default(), Duration::from_secs);
        recording.push(result(1), second(1));
        recording.push(result(2), second(2));
        for at in 3..10 {
            assert_eq!(recording.oldest(), Some(second(1)));
            let batches = recording.next(second(at), false);
            recording.unknown(batches[0].id, second(at));
        }
        let batches = recording.next(second(10), false);
        recording.recorded(batches[0].id, &[Effect::Recorded; 2], second(10));
        assert_eq!(recording.oldest(), None);
    }
}
