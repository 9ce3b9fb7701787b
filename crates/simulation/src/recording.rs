//! What becomes of outcomes: settled, and written down in batches.

use contracts::DeliveryId;
use dispatcher::{Answer, Outcome, steps};
use rand::prelude::*;
use store::{Effect, HeldAttempt, Settlement};
use testkit::Fate;

use crate::actors::{InFlight, Result};
use crate::mutant::Mutant;
use crate::world::{POLICY, Step, World};

impl World<'_> {
    /// Settles an attempt that is over.
    pub(crate) fn settle(&mut self, d: usize, attempt: InFlight, outcome: Outcome) -> Step {
        let outcome = match self.is(Mutant::AnySuccess) {
            true => Outcome::Answered(Answer { status: 200, body: String::new(), retry_after: None }),
            false => outcome,
        };
        let mut held = attempt.claimed.held;
        if self.is(Mutant::NoBudget) {
            held.max_attempts = POLICY.max_attempts + 1;
        }
        let (now, chance) = (self.time_of(d), self.rng.random_range(-1.0..=1.0));
        let finished = steps::finished(&held, outcome, None, &self.retry(), now, chance);
        self.dispatchers[d].results.push(Result { finished, has_slot: true, ready_since: self.now });
        Ok(())
    }

    /// Writes what results there are, at most one of each delivery.
    pub(crate) fn finish(&mut self, d: usize) -> Step {
        let mut batch: Vec<Result> = Vec::new();
        let mut later = Vec::new();
        for result in std::mem::take(&mut self.dispatchers[d].results) {
            let is_first =
                batch.iter().all(|other| other.finished.delivery_id != result.finished.delivery_id);
            if is_first { batch.push(result) } else { later.push(result) }
        }
        let (fate, now) = (self.fate(), self.time_of(d));
        let mut results: Vec<_> = batch.iter().map(|result| result.finished.clone()).collect();
        for result in &mut results {
            let known = &self.facts.known[&result.delivery_id];
            let is_late = known.attempts.iter().any(|attempt| attempt.attempt_number == result.record.number);
            if self.is(Mutant::NoFencing)
                && let Some(held) = self.held(result.delivery_id)
            {
                (result.claim_id, result.record.number) = (held.claim_id, held.attempt);
            }
            if self.is(Mutant::LateSuccessKeepsItOpen)
                && is_late
                && result.settlement == Settlement::Succeeded
            {
                result.settlement = Settlement::RetryAt(now);
            }
        }
        let mut effects = Vec::new();
        let written = self.database.transaction(fate, |tx| {
            effects = store::finish(tx, now, &results)?;
            Ok(())
        })?;
        self.tell(|facts| {
            let names: Vec<String> = results
                .iter()
                .map(|result| {
                    format!(
                        "{}/{} {:?}",
                        facts.name(result.delivery_id),
                        result.record.number,
                        result.settlement
                    )
                })
                .collect();
            format!("dispatcher {d} records {}: {fate:?} {effects:?}", names.join(" "))
        });
        if effects.contains(&Effect::Late { closed: true }) && fate != Fate::RolledBack {
            self.saw("a late success that closes its delivery");
        }
        self.check()?;
        let mut left = later;
        if written.is_none() && !self.is(Mutant::ResultsForgotten) {
            left.extend(batch.into_iter().map(|result| Result { ready_since: self.now, ..result }));
        }
        self.dispatchers[d].results = left;
        Ok(())
    }

    /// The attempt of a delivery that anybody makes.
    fn held(&self, id: DeliveryId) -> Option<&HeldAttempt> {
        let attempts = self.dispatchers.iter().flat_map(|dispatcher| &dispatcher.attempts);
        attempts.map(|attempt| &attempt.claimed.held).rfind(|held| held.delivery_id == id)
    }
}
