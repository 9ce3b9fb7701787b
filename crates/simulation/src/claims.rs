//! Invariants of claims and sends, checked as they happen.

use engine::Claimed;
use engine::dispatch::{Claim, ClaimSource};

use crate::checks::is_failure;
use crate::facts::{ClaimFact, Receipt};
use crate::process::{Attempt, Dispatcher};
use crate::promise::{CLOCK_ERROR, Step, promise};
use crate::world::World;

impl World<'_> {
    /// Records committed claims and checks that they were allowed. `is_late`: no dispatcher gets the result.
    pub(crate) fn note_claims(
        &mut self,
        d: usize,
        claim: &Claim,
        claimed: &[Claimed],
        is_late: bool,
    ) -> Step {
        let lease = self.shape.limits.lease;
        let is_blurred = self.dispatchers.iter().any(Dispatcher::is_misaligned);
        for Claimed { held, payload, .. } in claimed {
            let (place, number) = (self.facts.place(held.delivery_id), held.attempt);
            let known = &self.facts.deliveries[place];
            let before = &known.delivery;
            let name = format!("attempt {number} of d{place}");
            promise(before.completed_at.is_none(), || format!("I2: {name} is claimed after its end"))?;
            promise(number == before.attempt_count + 1, || {
                format!("I3: {name} follows {}", before.attempt_count)
            })?;
            if let ClaimSource::Doorbells(jobs) = &claim.source {
                let is_named = jobs.iter().any(|job| job.delivery_id == before.id && job.attempt == number);
                promise(is_named, || format!("{name} is claimed by a doorbell for another attempt"))?;
            }
            promise(number <= before.max_attempts, || format!("I3: {name} is beyond the budget"))?;
            promise(before.attempts.iter().all(is_failure), || {
                format!("I7: {name} is claimed after a success")
            })?;
            promise(*payload == known.frozen.as_bytes(), || format!("I8: {name} has other bytes"))?;
            if !self.dispatchers[d].is_misaligned() {
                let latest = self.database_time() + CLOCK_ERROR;
                let is_new = before.next_attempt_at == Some(before.created_at);
                let is_due = is_new || before.next_attempt_at.is_some_and(|at| at <= latest);
                promise(is_due, || format!("{name} is claimed before it is due"))?;
                let is_on_record =
                    before.attempts.last().is_some_and(|attempt| attempt.status_code.is_some());
                let last = self.facts.receipts.get(&(place, number - 1)).filter(|_| is_on_record);
                let asks = last.and_then(|receipt| receipt.asks);
                let is_patient =
                    asks.is_none_or(|asks| asks.retry_at <= latest) || self.shape.sets_database_clock;
                promise(is_patient, || format!("{name} is claimed before its receiver allows it"))?;
            }
            self.check_hold(d, held, &name)?;
            let known = &self.facts.deliveries[place];
            let fact = ClaimFact {
                dispatcher: d,
                claim_id: claim.id,
                lease_end: self.now + lease,
                wake_at: held.claimed_at + lease,
                is_open: true,
                // A dispatcher that has not noticed a change of the database's clock may end the lease early.
                is_disturbed: is_late || is_blurred || known.is_refused || self.facts.is_abandoned(claim.id),
            };
            let earlier = self.facts.claims.insert((place, number), fact);
            promise(earlier.is_none(), || format!("I5: {name} is claimed twice"))?;
        }
        Ok(())
    }

    /// Records a callback and checks that it was allowed.
    pub(crate) fn note_receipt(&mut self, attempt: &Attempt, receipt: Receipt) -> Step {
        let held = &attempt.claimed.held;
        let (place, number) = (self.facts.place(held.delivery_id), held.attempt);
        let name = format!("attempt {number} of d{place}");
        let claim = self.facts.claims.get(&(place, number)).filter(|claim| claim.claim_id == held.claim_id);
        promise(claim.is_some(), || {
            format!("I4: {name} is sent without a committed claim, or was handed back")
        })?;
        // If the database's clock was set forward, an attempt may be sent for the true length of its lease.
        let in_time = claim.is_some_and(|claim| {
            let is_in_true_time = self.shape.sets_database_clock && self.now <= claim.lease_end + CLOCK_ERROR;
            is_in_true_time || self.database_time() <= claim.wake_at + CLOCK_ERROR
        });
        promise(in_time, || format!("{name} is sent after its lease"))?;
        let is_frozen = attempt.claimed.payload == self.facts.deliveries[place].frozen.as_bytes();
        promise(is_frozen, || format!("I8: {name} is sent with other bytes"))?;
        promise(!attempt.claimed.callback_url.contains("//10."), || {
            format!("I9: {name} is sent to {}", attempt.claimed.callback_url)
        })?;
        let earlier = self.facts.receipts.insert((place, number), receipt);
        promise(earlier.is_none(), || format!("I5: {name} is sent twice"))
    }
}
