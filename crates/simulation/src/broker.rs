//! The queue: messages are lost, repeated, given out in any order and given out again.

use contracts::Job;
use engine::dispatch::{Doorbell, Event};
use rand::prelude::*;

use crate::world::{Step, World};

/// Messages a dispatcher is given without having acknowledged others.
pub(crate) const PREFETCH: usize = 4;

#[derive(Default)]
pub(crate) struct Broker {
    pub(crate) queue: Vec<Message>,
    /// How often a message has been given out.
    given_out: u64,
}

/// A message.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// Which of all times this is that a message is given out.
    pub(crate) token: u64,
    pub(crate) job: Job,
}

impl World<'_> {
    /// An api's doorbell arrives.
    pub(crate) fn publish(&mut self, job: Job) {
        self.broker.queue.push(Message { token: 0, job });
    }

    /// The broker gives a message to a dispatcher, in any order.
    pub(crate) fn give_out(&mut self, d: usize) {
        let index = self.rng.random_range(0..self.broker.queue.len());
        let message = self.broker.queue.swap_remove(index);
        self.broker.given_out += 1;
        let token = self.broker.given_out;
        if let Some(process) = &mut self.dispatchers[d].process {
            process.prefetched.push(Message { token, ..message });
        }
    }

    /// A dispatcher takes the messages that it has room for.
    pub(crate) fn hear(&mut self, d: usize) -> Step {
        let Some(process) = &mut self.dispatchers[d].process else { return Ok(()) };
        let room = process.machine.doorbell_room().min(process.prefetched.len());
        let heard: Vec<Message> = process.prefetched.drain(..room).collect();
        let doorbell = |message: &Message| Doorbell { token: message.token, job: message.job.clone() };
        let doorbells = heard.iter().map(doorbell).collect();
        process.heard.extend(heard.iter().map(|message| (message.token, message.clone())));
        self.tell(|facts| {
            let names: Vec<String> =
                heard.iter().map(|message| facts.name(message.job.delivery_id)).collect();
            format!("dispatcher {d} hears {}", names.join(" "))
        });
        self.report(d, Event::Doorbells(doorbells))
    }

    /// An acknowledgement reaches the broker.
    pub(crate) fn acknowledge(&mut self, d: usize) {
        let Some(process) = &mut self.dispatchers[d].process else { return };
        let message = process.acknowledged.remove(0);
        self.tell(|facts| format!("dispatcher {d} acknowledges {}", facts.name(message.job.delivery_id)));
    }

    /// What a dispatcher has not acknowledged is given out again, as its connection is closed.
    pub(crate) fn take_back(&mut self, d: usize) {
        let Some(process) = &mut self.dispatchers[d].process else { return };
        self.broker.queue.append(&mut process.prefetched);
        process.taken_back.extend(process.heard.values().map(|message| message.job.clone()));
        self.broker.queue.extend(std::mem::take(&mut process.heard).into_values());
        self.broker.queue.append(&mut process.acknowledged);
    }

    /// Messages are lost: the queue is purged or deleted.
    pub(crate) fn purge(&mut self) {
        self.tell(|_| "the queue is purged".into());
        self.saw("a queue purged");
        self.broker.queue.clear();
    }

    /// The broker restarts.
    pub(crate) fn restart_broker(&mut self) {
        self.tell(|_| "the broker restarts".into());
        for d in 0..self.dispatchers.len() {
            self.take_back(d);
        }
        if self.rng.random_bool(0.2) {
            self.broker.queue.clear();
        }
    }
}
