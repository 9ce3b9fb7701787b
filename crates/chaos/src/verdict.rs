//! Verdict on the promises, based on the database's history, the receiver's ledger, the dispatchers' logs and
//! the injected faults.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use contracts::{Attempt, Delivery, DeliveryId, DeliveryStatus, RunId, Timestamp};
use sha2::{Digest, Sha256};

use crate::ledger::Receipt;
use crate::logs::Logs;
use crate::report::Row;

/// An injected fault that may cost an attempt its record, with its start and end.
#[derive(Clone, Debug)]
pub(crate) struct Disturbance {
    pub(crate) what: Target,
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
}

/// The target of a fault, which may have been unable to record the result of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The dispatcher with this name.
    Dispatcher(String),
    /// The database, which affects all dispatchers.
    Database,
}

/// Data that the verdict is based on.
pub(crate) struct Evidence<'a> {
    pub(crate) accepted: &'a HashMap<RunId, DeliveryId>,
    pub(crate) history: &'a [Delivery],
    pub(crate) receipts: &'a HashMap<DeliveryId, Vec<Receipt>>,
    /// Number of requests that arrived, including those without valid ids.
    pub(crate) posts: u64,
    pub(crate) logs: &'a Logs,
    pub(crate) disturbances: &'a [Disturbance],
    pub(crate) lease: Duration,
    /// Timeout of an attempt.
    pub(crate) timeout: Duration,
    /// Whether all deliveries must have ended.
    pub(crate) is_over: bool,
}

/// Result of the checks.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) accepted: usize,
    pub(crate) delivered: usize,
    pub(crate) exhausted: usize,
    pub(crate) still_due: usize,
    /// Attempts on record as `outcome_unknown`.
    pub(crate) outcome_unknown: usize,
    /// Callbacks that arrived after one of the same delivery was answered 2xx, by explanation.
    pub(crate) duplicates: BTreeMap<&'static str, usize>,
    /// Descriptions of violations, by promise.
    broken: BTreeMap<&'static str, Vec<String>>,
}

// The promises, by their names in the report.
const LOST: &str = "lost";
const GIVEN_UP: &str = "given up before the attempts were used up";
const REPEATED: &str = "repeated attempt numbers";
const AFTER_SUCCESS: &str = "attempts claimed after a recorded success";
const UNCLAIMED: &str = "callbacks without an earlier claim";
const LATE: &str = "callbacks sent after their lease";
const CHANGED: &str = "callbacks with other bytes or a bad signature";
const FALSE: &str = "records that the receiver contradicts";
const UNEXPLAINED: &str = "duplicates without an explanation";
const PROMISES: [&str; 9] =
    [LOST, GIVEN_UP, REPEATED, AFTER_SUCCESS, UNCLAIMED, LATE, CHANGED, FALSE, UNEXPLAINED];

/// Tolerance between clocks on one host: the dispatchers' clocks follow the database's by samples.
const CLOCK_ERROR: Duration = Duration::from_millis(150);

impl Verdict {
    pub(crate) fn of(evidence: &Evidence<'_>) -> Verdict {
        let mut verdict = Verdict { accepted: evidence.accepted.len(), ..Verdict::default() };
        let told: usize = evidence.receipts.values().map(Vec::len).sum();
        if told as u64 != evidence.posts {
            verdict.breaks(
                UNCLAIMED,
                format!("{} callbacks arrived, but only {told} have valid ids", evidence.posts),
            );
        }
        let known: HashSet<DeliveryId> = evidence.history.iter().map(|delivery| delivery.id).collect();
        for (run, id) in evidence.accepted {
            if !known.contains(id) {
                verdict.breaks(LOST, format!("delivery {id} of run {run} was accepted but does not exist"));
            }
        }
        for id in evidence.receipts.keys().filter(|id| !known.contains(id)) {
            verdict.breaks(UNCLAIMED, format!("a callback of {id}, which does not exist"));
        }
        for delivery in evidence.history {
            let receipts = evidence.receipts.get(&delivery.id).map(Vec::as_slice).unwrap_or_default();
            verdict.judge(delivery, receipts, evidence);
        }
        verdict
    }

    /// Adds the verdict on other deliveries.
    pub(crate) fn add(&mut self, other: Verdict) {
        self.accepted += other.accepted;
        self.delivered += other.delivered;
        self.exhausted += other.exhausted;
        self.still_due += other.still_due;
        self.outcome_unknown += other.outcome_unknown;
        for (reason, count) in other.duplicates {
            *self.duplicates.entry(reason).or_default() += count;
        }
        for (promise, how) in other.broken {
            self.broken.entry(promise).or_default().extend(how);
        }
    }

    /// Adds a lost delivery.
    pub(crate) fn lose(&mut self, how: String) {
        self.breaks(LOST, how);
    }

    /// Returns the number of lost deliveries.
    pub(crate) fn lost(&self) -> usize {
        self.broken.get(LOST).map_or(0, Vec::len)
    }

    /// Describes the broken promises, one by one.
    pub(crate) fn descriptions(&self) -> Vec<String> {
        let of = |(promise, lines): (&&str, &Vec<String>)| {
            lines.iter().map(|line| format!("{promise}: {line}")).collect::<Vec<_>>()
        };
        self.broken.iter().flat_map(of).collect()
    }

    fn breaks(&mut self, promise: &'static str, how: String) {
        self.broken.entry(promise).or_default().push(how);
    }

    fn judge(&mut self, delivery: &Delivery, receipts: &[Receipt], evidence: &Evidence<'_>) {
        let id = delivery.id;
        match delivery.status_code {
            DeliveryStatus::Succeeded => self.delivered += 1,
            DeliveryStatus::Failed => {
                self.exhausted += 1;
                if delivery.attempt_count < delivery.max_attempts {
                    let reason = delivery.failure_reason_code;
                    self.breaks(GIVEN_UP, format!("{id} after {}: {reason:?}", delivery.attempt_count));
                }
            }
            _ => {
                self.still_due += 1;
                if evidence.is_over {
                    self.breaks(LOST, format!("{id} is still {:?}", delivery.status_code));
                }
            }
        }
        let numbers: Vec<_> = delivery.attempts.iter().map(|attempt| attempt.attempt_number).collect();
        if numbers != (1..=delivery.attempt_count).collect::<Vec<_>>() {
            self.breaks(REPEATED, format!("{id} has attempts {numbers:?} of {}", delivery.attempt_count));
        }
        for number in 1..=delivery.attempt_count {
            if evidence.logs.is_claimed_again(&(id, number)) {
                self.breaks(
                    REPEATED,
                    format!("{id} attempt {number} was claimed again without being handed back"),
                );
            }
        }
        self.outcome_unknown +=
            delivery.attempts.iter().filter(|attempt| says(attempt, "outcome_unknown: ")).count();
        for attempt in &delivery.attempts {
            let is_after_the_end = delivery.completed_at.is_some_and(|end| attempt.created_at > end);
            let is_after_a_success = (1..attempt.attempt_number).any(|earlier| {
                let recorded_by = evidence.logs.successes.get(&(id, earlier));
                recorded_by.is_some_and(|at| attempt.created_at > *at + CLOCK_ERROR)
            });
            if is_after_the_end || is_after_a_success {
                self.breaks(AFTER_SUCCESS, format!("{id} attempt {}", attempt.attempt_number));
            }
        }
        let frozen: [u8; 32] = Sha256::digest(delivery.payload_bytes.as_bytes()).into();
        let mut sent = HashSet::new();
        for receipt in receipts {
            if !sent.insert(receipt.attempt) {
                self.breaks(REPEATED, format!("{id} attempt {} arrived twice", receipt.attempt));
            }
            if receipt.body != frozen || !receipt.is_valid {
                self.breaks(CHANGED, format!("{id} attempt {}", receipt.attempt));
            }
            match delivery.attempts.iter().find(|attempt| attempt.attempt_number == receipt.attempt) {
                Some(attempt) if attempt.created_at <= receipt.at + CLOCK_ERROR => {
                    if receipt.at > attempt.created_at + evidence.lease + CLOCK_ERROR {
                        self.breaks(
                            LATE,
                            format!("{id} attempt {} arrived at {}", receipt.attempt, receipt.at),
                        );
                    }
                }
                _ => self.breaks(UNCLAIMED, format!("{id} attempt {}", receipt.attempt)),
            }
        }
        for attempt in &delivery.attempts {
            let receipt = receipts.iter().find(|receipt| receipt.attempt == attempt.attempt_number);
            let answered = receipt.and_then(|receipt| receipt.answered);
            let was_given = attempt.status_code.is_none_or(|status| answered.map(i32::from) == Some(status));
            if !was_given || (receipt.is_some() && says(attempt, "timeout: not sent: ")) {
                let record = (attempt.status_code, &attempt.error_message);
                self.breaks(FALSE, format!("{id} attempt {}: {record:?}", attempt.attempt_number));
            }
        }
        self.explain_duplicates(delivery, receipts, evidence);
    }

    /// Requires an explanation for each callback that follows a 2xx: why the last 2xx was not on record when
    /// the attempt was claimed.
    fn explain_duplicates(&mut self, delivery: &Delivery, receipts: &[Receipt], evidence: &Evidence<'_>) {
        let mut receipts: Vec<&Receipt> = receipts.iter().collect();
        receipts.sort_by_key(|receipt| receipt.attempt);
        let mut accepted: Option<&Receipt> = None;
        for receipt in receipts {
            if let Some(accepted) = accepted {
                match evidence.reason(delivery, accepted, receipt) {
                    Ok(reason) => *self.duplicates.entry(reason).or_default() += 1,
                    Err(how) => self.breaks(UNEXPLAINED, how),
                }
            }
            if receipt.is_2xx() {
                accepted = Some(receipt);
            }
        }
    }

    /// Returns the rows that the report of every scenario has.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let what = format!(
            "{} accepted, {} delivered, {} exhausted, {} still due",
            self.accepted, self.delivered, self.exhausted, self.still_due
        );
        let mut rows = vec![Row::new("deliveries", "", what, true)];
        let broken = |promise| self.broken.get(promise).map_or(0, Vec::len);
        rows.extend(
            PROMISES
                .iter()
                .map(|promise| Row::new(*promise, "0", broken(*promise).to_string(), broken(*promise) == 0)),
        );
        let duplicates: Vec<String> =
            self.duplicates.iter().map(|(reason, count)| format!("{count}: {reason}")).collect();
        let all: usize = self.duplicates.values().sum();
        let seen = if all == 0 { "none".to_owned() } else { duplicates.join("; ") };
        rows.push(Row::new("duplicates and why", "each explained", seen, true));
        rows.push(Row::new(
            "attempts recorded as outcome_unknown",
            "",
            self.outcome_unknown.to_string(),
            true,
        ));
        rows
    }
}

impl Evidence<'_> {
    /// Returns why `again` was sent although the receiver had answered `accepted` with 2xx. The error
    /// describes an unexplained duplicate.
    fn reason(
        &self,
        delivery: &Delivery,
        accepted: &Receipt,
        again: &Receipt,
    ) -> Result<&'static str, String> {
        let key = (delivery.id, accepted.attempt);
        let of = |number| delivery.attempts.iter().find(|attempt| attempt.attempt_number == number);
        let (Some(record), Some(next)) = (of(accepted.attempt), of(again.attempt)) else {
            return Err(format!("{key:?}: without a record"));
        };
        let claimed_by = self.logs.claimed_by(&key);
        let lease_end = record.created_at + self.lease;
        let was_struck = self.disturbances.iter().any(|disturbance| {
            let is_theirs = match &disturbance.what {
                Target::Database => true,
                // A killed dispatcher may not have written its last log lines.
                Target::Dispatcher(name) => claimed_by.is_none_or(|by| by == name),
            };
            let from = record.created_at - CLOCK_ERROR;
            is_theirs && disturbance.from <= lease_end + CLOCK_ERROR && disturbance.to >= from
        });
        if says(record, "outcome_unknown: ") && was_struck {
            return Ok(
                "its dispatcher was killed or stopped, or the database away, before the answer was recorded",
            );
        }
        let is_slow = accepted.delay + CLOCK_ERROR >= self.timeout;
        if says(record, "timeout: ") && is_slow {
            return Ok("the receiver answered too late");
        }
        if (says(record, "timeout: ") || says(record, "connection_error: ")) && was_struck {
            return Ok("its dispatcher was stopped while the answer was on its way");
        }
        let was_under_way =
            self.logs.successes.get(&key).is_some_and(|at| next.created_at <= *at + CLOCK_ERROR);
        if record.error_message.is_none() && self.logs.late.contains(&key) && was_under_way && was_struck {
            return Ok("the answer was recorded after the lease, when the next attempt was under way");
        }
        Err(format!("{key:?} by {claimed_by:?}, then {}: {:?}", again.attempt, record.error_message))
    }
}

fn says(attempt: &Attempt, start: &str) -> bool {
    attempt.error_message.as_ref().is_some_and(|message| message.starts_with(start))
}
