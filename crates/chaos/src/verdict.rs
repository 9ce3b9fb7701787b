//! What came of it: the promises held against the database's history, the receiver's ledger, and what was done to
//! the processes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use contracts::{Attempt, Delivery, DeliveryId, DeliveryStatus, RunId, Timestamp};
use sha2::{Digest, Sha256};

use crate::ledger::Receipt;
use crate::report::Row;

/// From when to when something was done to the installation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disturbance {
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
}

/// Everything there is to judge by.
pub(crate) struct Evidence<'a> {
    pub(crate) accepted: &'a HashMap<RunId, DeliveryId>,
    pub(crate) history: &'a [Delivery],
    pub(crate) receipts: &'a HashMap<DeliveryId, Vec<Receipt>>,
    pub(crate) disturbances: &'a [Disturbance],
    pub(crate) lease: Duration,
}

/// The judgement.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) accepted: usize,
    pub(crate) delivered: usize,
    pub(crate) exhausted: usize,
    pub(crate) still_due: usize,
    /// Attempts on record as `outcome_unknown`.
    pub(crate) outcome_unknown: usize,
    /// Callbacks that came after one of the same delivery was answered 2xx, by what explains them.
    pub(crate) duplicates: BTreeMap<&'static str, usize>,
    /// Broken promises, by which one; each in words.
    pub(crate) broken: BTreeMap<&'static str, Vec<String>>,
}

/// Each promise, as rows of the report name it.
const LOST: &str = "lost";
const REPEATED: &str = "repeated attempt numbers";
const GIVEN_UP: &str = "given up before the attempts were used up";
const AFTER_SUCCESS: &str = "attempts claimed after a recorded success";
const UNCLAIMED: &str = "callbacks without an earlier claim";
const LATE: &str = "callbacks sent after their lease";
const CHANGED: &str = "callbacks with other bytes or a bad signature";
const FALSE_SUCCESS: &str = "recorded successes that nobody answered";
const UNEXPLAINED: &str = "duplicates without an explanation";
const PROMISES: [&str; 9] =
    [LOST, GIVEN_UP, REPEATED, AFTER_SUCCESS, UNCLAIMED, LATE, CHANGED, FALSE_SUCCESS, UNEXPLAINED];

/// What clocks on one host may differ by: the dispatchers' follow the database's from samples.
const CLOCK_ERROR: Duration = Duration::from_millis(150);

impl Verdict {
    pub(crate) fn of(evidence: &Evidence<'_>) -> Verdict {
        let mut verdict = Verdict { accepted: evidence.accepted.len(), ..Verdict::default() };
        let known: HashSet<DeliveryId> = evidence.history.iter().map(|delivery| delivery.id).collect();
        for (run, id) in evidence.accepted {
            if !known.contains(id) {
                verdict.breaks(LOST, format!("delivery {id} of run {run} was accepted and is not there"));
            }
        }
        for id in evidence.receipts.keys().filter(|id| !known.contains(id)) {
            verdict.breaks(UNCLAIMED, format!("a callback of {id}, which is not there"));
        }
        for delivery in evidence.history {
            let receipts = evidence.receipts.get(&delivery.id).map(Vec::as_slice).unwrap_or_default();
            verdict.judge(delivery, receipts, evidence);
        }
        verdict
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
                self.breaks(LOST, format!("{id} is still {:?}", delivery.status_code));
            }
        }
        let numbers: Vec<_> = delivery.attempts.iter().map(|attempt| attempt.attempt_number).collect();
        if numbers != (1..=delivery.attempt_count).collect::<Vec<_>>() {
            self.breaks(REPEATED, format!("{id} has attempts {numbers:?} of {}", delivery.attempt_count));
        }
        self.outcome_unknown += delivery.attempts.iter().filter(|attempt| is_unknown(attempt)).count();
        for attempt in &delivery.attempts {
            let is_after_the_end = delivery.completed_at.is_some_and(|end| attempt.created_at > end);
            // A success recorded while its lease lasted ends the delivery; only a late one finds another attempt.
            let is_after_a_success = delivery.attempts.iter().any(|earlier| {
                earlier.error_message.is_none()
                    && earlier.attempt_number < attempt.attempt_number
                    && attempt.created_at + CLOCK_ERROR < earlier.created_at + evidence.lease
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
        for attempt in delivery.attempts.iter().filter(|attempt| attempt.error_message.is_none()) {
            let answered = |receipt: &&Receipt| receipt.attempt == attempt.attempt_number;
            if receipts.iter().find(answered).is_none_or(|receipt| !is_2xx(receipt)) {
                self.breaks(FALSE_SUCCESS, format!("{id} attempt {}", attempt.attempt_number));
            }
        }
        self.explain_duplicates(delivery, receipts, evidence);
    }

    /// A receiver that answered 2xx and hears of the delivery again deserves a reason.
    fn explain_duplicates(&mut self, delivery: &Delivery, receipts: &[Receipt], evidence: &Evidence<'_>) {
        let mut receipts: Vec<&Receipt> = receipts.iter().collect();
        receipts.sort_by_key(|receipt| receipt.attempt);
        for (first, again) in receipts.iter().zip(receipts.iter().skip(1)).filter(|(first, _)| is_2xx(first))
        {
            let of = |number| delivery.attempts.iter().find(|attempt| attempt.attempt_number == number);
            let (Some(earlier), Some(later)) = (of(first.attempt), of(again.attempt)) else { continue };
            let disturbed = |from: Timestamp, to: Timestamp| {
                evidence
                    .disturbances
                    .iter()
                    .any(|disturbance| disturbance.from <= to && disturbance.to >= from)
            };
            let lease_end = earlier.created_at + evidence.lease;
            let was_disturbed = disturbed(earlier.created_at - CLOCK_ERROR, lease_end + CLOCK_ERROR);
            let reason = match earlier.error_message.as_deref() {
                Some(error) if error.starts_with("outcome_unknown: ") && was_disturbed => {
                    "the process was killed, stopped or cut off before it could record the answer"
                }
                Some(error) if error.starts_with("timeout: ") => "the answer came too late",
                Some(error) if error.starts_with("connection_error: ") => "the answer did not come through",
                None if later.created_at + CLOCK_ERROR >= lease_end && was_disturbed => {
                    "the answer was recorded after the lease, when the next attempt was under way"
                }
                other => {
                    let how = format!("{} attempt {}: {other:?}", delivery.id, again.attempt);
                    self.breaks(UNEXPLAINED, how);
                    continue;
                }
            };
            *self.duplicates.entry(reason).or_default() += 1;
        }
    }

    /// The rows every scenario's report has.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let what = format!(
            "{} accepted, {} delivered, {} exhausted, {} still due",
            self.accepted, self.delivered, self.exhausted, self.still_due
        );
        let mut rows = vec![Row::new("deliveries", "none still due", what, self.still_due == 0)];
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
        rows
    }
}

fn is_2xx(receipt: &Receipt) -> bool {
    receipt.answered.is_some_and(|status| (200..300).contains(&status))
}

fn is_unknown(attempt: &Attempt) -> bool {
    attempt.error_message.as_ref().is_some_and(|message| message.starts_with("outcome_unknown: "))
}
