//! What apis do, and what becomes of their doorbells.

use contracts::{Delivery, DeliveryId, DeliveryStatus, Job, RunId, Timestamp};
use rand::prelude::*;
use store::{
    AnyConnection, Deliver, Erasure, RecordedRun, Redelivery, RedeliveryRequest, StoreError, erase_run,
    insert_delivery, record_run, redeliver_batch,
};
use testkit::Fate;

use crate::actors::Message;
use crate::mutant::Mutant;
use crate::world::{POLICY, Step, World, promise, report};

/// The run whose end is still to come.
const RUNNING: usize = 1;

impl World<'_> {
    /// A client asks an api for a redelivery.
    pub(crate) fn ask(&mut self, api: usize) -> Step {
        let place = self.any_run();
        let run_id = self.runs[place].id;
        let request = RedeliveryRequest {
            org_id: self.org,
            run_id,
            request_id: "r".into(),
            supersede: self.rng.random_bool(0.3),
            idempotency_key: None,
        };
        let fate = self.fate();
        if self.is(Mutant::NoOneOpenIndex) {
            return self.insert_beside(api, fate, run_id);
        }
        self.accept(api, fate, |tx, now| {
            Ok(match redeliver_batch(tx, now, &POLICY, &[request])?.pop() {
                Some(Redelivery::Accepted(accepted)) => Some(accepted.delivery),
                _ => None,
            })
        })
    }

    /// Inserts a delivery like the run's last one, which nothing but the index would refuse: the one insertion that
    /// looks for others cannot do without it.
    fn insert_beside(&mut self, api: usize, fate: Fate, run_id: RunId) -> Step {
        let last = self.facts.order.iter().rev().find(|id| self.facts.known[id].run_id == run_id);
        let Some(last) = last.map(|id| self.facts.known[id].clone()) else { return Ok(()) };
        let (org, payload_bytes) = (self.org, self.facts.frozen[&last.id].clone());
        self.accept(api, fate, |tx, now| {
            let delivery = Delivery {
                id: DeliveryId::new(now),
                payload_bytes,
                is_automatic: false,
                status_code: DeliveryStatus::Pending,
                failure_reason_code: None,
                failure_detail: None,
                attempt_count: 0,
                next_attempt_at: Some(now),
                created_at: now,
                updated_at: now,
                completed_at: None,
                attempts: Vec::new(),
                ..last
            };
            insert_delivery(tx, org, &delivery, "r")?;
            Ok(Some(delivery))
        })
    }

    /// The run engine reports a run's end to an api, or its output anew.
    pub(crate) fn report(&mut self, api: usize) -> Step {
        let (place, org) = (self.any_run(), self.org);
        let (id, update) =
            (self.runs[place].id, report(self.runs[place].url, "succeeded", self.rng.random_range(1..1000)));
        let fate = self.fate();
        if place == RUNNING && fate != Fate::RolledBack && !self.runs[place].is_announced {
            self.runs[place].is_announced = true;
            self.saw("a run's end announced");
        }
        self.accept(api, fate, |tx, now| {
            match record_run(tx, now, &POLICY, Deliver::Automatically, (org, id), &update, "r")? {
                RecordedRun::Created(_, accepted) | RecordedRun::Updated(_, accepted) => {
                    Ok(accepted.map(|accepted| accepted.delivery))
                }
                RecordedRun::StatusConflict(_) | RecordedRun::Erased => Ok(None),
            }
        })
    }

    /// An operator erases what a run's callbacks said.
    pub(crate) fn erase(&mut self) -> Step {
        let (place, org) = (self.any_run(), self.org);
        let (id, now, fate) = (self.runs[place].id, self.database_time(), self.fate());
        let mut erasure = Erasure::RunNotFound;
        self.database.transaction(fate, |tx| {
            erasure = erase_run(tx, now, org, id)?;
            Ok(())
        })?;
        let is_erased = matches!(erasure, Erasure::Erased { .. });
        self.tell(|_| {
            format!("run {place} is to be erased: {fate:?}, {}", if is_erased { "is" } else { "isn't" })
        });
        if fate != Fate::RolledBack && is_erased {
            self.saw("a run erased");
            self.runs[place].is_erased = true;
        }
        self.check()
    }

    fn any_run(&mut self) -> usize {
        self.rng.random_range(0..self.runs.len())
    }

    /// An api's transaction that may make a delivery, for which it then has a doorbell to ring.
    fn accept(
        &mut self,
        api: usize,
        fate: Fate,
        accepting: impl FnOnce(&mut AnyConnection, Timestamp) -> Result<Option<Delivery>, StoreError>,
    ) -> Step {
        // No two deliveries of one moment: their order would be that of random ids.
        self.now = self.now + std::time::Duration::from_micros(1);
        let now = self.database_time();
        let mut made: Option<Delivery> = None;
        let answer = self.database.transaction(fate, |tx| {
            made = accepting(tx, now)?;
            Ok(())
        })?;
        let Some(delivery) = made else { return Ok(()) };
        self.tell(|_| format!("api {api} accepts a delivery: {fate:?}"));
        if self.is(Mutant::PublishBeforeCommit) {
            self.publish(delivery.id)?;
        }
        self.check()?;
        if answer.is_some() {
            self.saw("accepted");
            let job = self.job(delivery.id, 1);
            self.apis[api].buffer.push(job);
        } else if fate == Fate::AnswerLost {
            self.saw("accepted, and the client was not told");
        }
        Ok(())
    }

    /// An api publishes one of its doorbells. It may be lost on the way, or published twice.
    pub(crate) fn ring(&mut self, api: usize) -> Step {
        let buffer = &mut self.apis[api].buffer;
        let Job { delivery_id, .. } = buffer.swap_remove(self.rng.random_range(0..buffer.len()));
        let copies = match self.rng.random_range(0..100) {
            0..15 => 0,
            15..25 => 2,
            _ => 1,
        };
        self.tell(|facts| format!("api {api} rings for {}: {copies} messages", facts.name(delivery_id)));
        for _ in 0..copies {
            self.publish(delivery_id)?;
        }
        Ok(())
    }

    fn publish(&mut self, delivery: DeliveryId) -> Step {
        let is_known = self.facts.known.contains_key(&delivery);
        promise(is_known, || "a job of a delivery that is not committed is published".into())?;
        self.messages += 1;
        self.queue.push(Message { number: self.messages, job: self.job(delivery, 1) });
        Ok(())
    }

    /// The broker gives a message to a dispatcher, in any order.
    pub(crate) fn deliver(&mut self, dispatcher: usize) {
        let message = self.queue.swap_remove(self.rng.random_range(0..self.queue.len()));
        self.tell(|facts| format!("dispatcher {dispatcher} hears {}", facts.name(message.job.delivery_id)));
        self.dispatchers[dispatcher].held.push(message);
    }

    /// An api is killed: doorbells it has not published are lost.
    pub(crate) fn kill_api(&mut self, api: usize) {
        self.tell(|_| format!("api {api} is killed"));
        if !self.apis[api].buffer.is_empty() {
            self.saw("an api killed between commit and publish");
        }
        self.apis[api].buffer.clear();
    }

    /// Messages are lost: the queue is purged or deleted.
    pub(crate) fn purge(&mut self) {
        self.tell(|_| "the queue is purged".into());
        self.saw("a queue purged");
        self.queue.clear();
    }

    /// The broker restarts: what was not acknowledged is given out again.
    pub(crate) fn restart_broker(&mut self) {
        self.tell(|_| "the broker restarts".into());
        for dispatcher in 0..self.dispatchers.len() {
            self.give_back(dispatcher);
        }
        if self.rng.random_bool(0.2) {
            self.queue.clear();
        }
    }

    /// A dispatcher's messages go back to the queue.
    pub(crate) fn give_back(&mut self, dispatcher: usize) {
        self.queue.append(&mut self.dispatchers[dispatcher].held);
    }
}
