//! What apis do, and what becomes of their doorbells.

use contracts::{Delivery, DeliveryId, Job};
use rand::prelude::*;
use store::{Redelivery, RedeliveryRequest, redeliver_batch};
use testkit::Fate;

use crate::actors::Message;
use crate::mutant::Mutant;
use crate::world::{POLICY, Step, World, promise};

impl World<'_> {
    /// A client asks an api for a redelivery.
    pub(crate) fn ask(&mut self, api: usize) -> Step {
        let run = self.runs[self.rng.random_range(0..self.runs.len())];
        let request = RedeliveryRequest {
            org_id: self.org,
            run_id: run,
            request_id: "r".into(),
            supersede: self.rng.random_bool(0.3),
            idempotency_key: None,
        };
        // No two deliveries of one moment: their order would be that of random ids.
        self.now = self.now + std::time::Duration::from_micros(1);
        let (now, fate) = (self.now, self.fate());
        let mut made: Option<Delivery> = None;
        let answer = self.database.transaction(fate, |tx| {
            let answers = redeliver_batch(tx, now, &POLICY, &[request])?;
            if let [Redelivery::Accepted(accepted)] = answers.as_slice() {
                made = Some(accepted.delivery.clone());
            }
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
