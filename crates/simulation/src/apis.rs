//! Simulated apis: accept redeliveries, withdraw deliveries, record and erase runs, and publish doorbells.

use std::time::Duration;

use contracts::{Delivery, DeliveryStatus, FailureReason, Job, Timestamp};
use rand::prelude::*;
use store::{
    AnyConnection, Deliver, Erasure, RecordedRun, Redelivery, RedeliveryRequest, StoreError, Withdrawal,
    erase_run, record_run, redeliver_batch, withdraw,
};

use crate::checks::Cause;
use crate::promise::{ORG, Step, promise};
use crate::work::Fate;
use crate::world::World;

impl World<'_> {
    /// Requests a redelivery of a random run from an api, as a client does.
    pub(crate) fn ask(&mut self, api: usize) -> Step {
        let run = self.any_run();
        let supersede = self.rng.random_bool(0.3);
        self.redeliver(api, &[run], supersede)
    }

    /// Accepts redeliveries of `runs` in one transaction of an api.
    pub(crate) fn redeliver(&mut self, api: usize, runs: &[usize], supersede: bool) -> Step {
        let request = |run: &usize| RedeliveryRequest {
            org_id: ORG,
            run_id: self.runs[*run].id,
            request: "r".into(),
            supersede,
            idempotency_key: None,
        };
        let requests: Vec<RedeliveryRequest> = runs.iter().map(request).collect();
        let (policy, fate) = (self.accept_policy(), self.fate());
        self.accept(api, fate, move |tx, now| {
            let accepted = |redelivery| match redelivery {
                Redelivery::Accepted(accepted) => Some(accepted.delivery),
                _ => None,
            };
            Ok(redeliver_batch(tx, now, &policy, &requests, usize::MAX)?
                .into_iter()
                .filter_map(accepted)
                .collect())
        })
    }

    /// Reports a run's end, or a new output, to an api, as the run engine does.
    pub(crate) fn report_run(&mut self, api: usize) -> Step {
        let run = self.any_run();
        let id = self.runs[run].id;
        let update = self.report_of(self.runs[run].receiver, "succeeded");
        let (policy, fate) = (self.accept_policy(), self.fate());
        if self.runs[run].is_running && fate != Fate::RolledBack {
            self.runs[run].is_running = false;
            self.runs[run].is_announced = true;
            self.count("a run's end announced");
        }
        self.accept(api, fate, move |tx, now| {
            match record_run(tx, now, &policy, Deliver::Automatically, (ORG, id), &update, &"r".into())? {
                RecordedRun::Created(_, accepted) | RecordedRun::Updated(_, accepted) => {
                    Ok(accepted.map(|accepted| accepted.delivery).into_iter().collect())
                }
                RecordedRun::StatusConflict(_) | RecordedRun::Erased => Ok(Vec::new()),
            }
        })
    }

    /// Withdraws a run's latest delivery, as a client does. It must end if it is pending, and only then.
    pub(crate) fn withdraw(&mut self) -> Step {
        let run = self.any_run();
        let (now, fate) = (self.database_time(), self.fate());
        let Some(place) = self.runs[run].deliveries.last().copied() else { return Ok(()) };
        if fate == Fate::RolledBack {
            return Ok(());
        }
        let Delivery { id, status_code, failure_reason_code, .. } = self.facts.deliveries[place].delivery;
        let withdrawal = self.database.transaction(true, |tx| withdraw(tx, now, ORG, id, None))?;
        let waits = status_code == DeliveryStatus::Pending;
        let is_withdrawn = matches!(withdrawal, Withdrawal::Withdrawn(_));
        let may_be = waits || failure_reason_code == Some(FailureReason::Withdrawn);
        promise(is_withdrawn == may_be, || {
            format!("I2: d{place} is {status_code}, but withdrawing it returns {withdrawal:?}")
        })?;
        self.log(|_| format!("d{place} is {}withdrawn", if is_withdrawn { "" } else { "not " }));
        if waits {
            self.count("a delivery withdrawn");
        }
        self.check(&Cause::Api)
    }

    /// Erases the contents of a run's callbacks, as an operator does.
    pub(crate) fn erase(&mut self) -> Step {
        let run = self.any_run();
        let (id, now, fate) = (self.runs[run].id, self.database_time(), self.fate());
        if fate == Fate::RolledBack {
            return Ok(());
        }
        let erasure = self.database.transaction(true, |tx| erase_run(tx, now, ORG, id))?;
        let is_erased = matches!(erasure, Erasure::Erased { .. });
        self.log(|_| format!("run {run} is {}erased", if is_erased { "" } else { "not " }));
        if is_erased {
            self.count("a run erased");
            self.runs[run].is_erased = true;
        }
        self.check(&Cause::Api)
    }

    fn any_run(&mut self) -> usize {
        self.rng.random_range(0..self.runs.len())
    }

    /// Runs an api's transaction and buffers a doorbell for each delivery that it accepts.
    fn accept(
        &mut self,
        api: usize,
        fate: Fate,
        accepting: impl FnOnce(&mut AnyConnection, Timestamp) -> Result<Vec<Delivery>, StoreError>,
    ) -> Step {
        // No two transactions share a millisecond: ids made in the same millisecond are in random order.
        self.now = self.now + Duration::from_millis(1);
        if fate == Fate::RolledBack {
            return Ok(());
        }
        let now = self.database_time();
        let made = self.database.transaction(true, |tx| accepting(tx, now))?;
        self.log(|_| format!("api {api} accepts {} deliveries: {fate:?}", made.len()));
        self.check(&Cause::Api)?;
        if made.is_empty() {
            return Ok(());
        }
        if fate != Fate::Committed {
            self.count("accepted, but the response was lost");
            return Ok(());
        }
        self.count("accepted");
        for delivery in made {
            let job = self.job(&delivery);
            self.apis[api].buffer.push(job);
        }
        Ok(())
    }

    fn job(&mut self, delivery: &Delivery) -> Job {
        let known = &self.facts.deliveries[self.facts.place(delivery.id)];
        Job {
            delivery_id: delivery.id,
            attempt: 1,
            destination: known.destination,
            // Older apis do not send it.
            payload_size: (self.is_calm || self.rng.random_bool(0.95))
                .then_some(delivery.payload_bytes.len() as u64),
            org_id: ORG,
            request_id: "r".into(),
            traceparent: None,
        }
    }

    /// Publishes one of an api's doorbells. It may be lost on the way, or published twice.
    pub(crate) fn ring(&mut self, api: usize) {
        let buffer = &mut self.apis[api].buffer;
        let job = buffer.swap_remove(self.rng.random_range(0..buffer.len()));
        let copies = match self.rng.random_range(0..100) {
            0..15 => 0,
            15..25 => 2,
            _ => 1,
        };
        self.log(|facts| format!("api {api} rings for {}: {copies} messages", facts.name(job.delivery_id)));
        for _ in 0..copies {
            self.publish(job.clone());
        }
    }

    /// Kills an api. Its unpublished doorbells are lost.
    pub(crate) fn kill_api(&mut self, api: usize) {
        self.log(|_| format!("api {api} is killed"));
        if !self.apis[api].buffer.is_empty() {
            self.count("an api killed between commit and publish");
        }
        self.apis[api].buffer.clear();
    }
}
