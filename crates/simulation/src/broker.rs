//! Simulated queue that loses, duplicates, reorders and redelivers messages.

use contracts::Job;
use engine::dispatch::{Doorbell, Event};
use rand::prelude::*;

use crate::actors::Message;
use crate::promise::Step;
use crate::world::World;

impl World<'_> {
    /// Adds a doorbell to the queue.
    pub(crate) fn publish(&mut self, job: Job) {
        self.broker.queue.push(Message { token: 0, job });
    }

    /// Delivers a random message to a dispatcher.
    pub(crate) fn give_out(&mut self, d: usize) {
        let index = self.rng.random_range(0..self.broker.queue.len());
        let message = self.broker.queue.swap_remove(index);
        self.broker.given_out += 1;
        let token = self.broker.given_out;
        if let Some(process) = &mut self.dispatchers[d].process {
            process.prefetched.push(Message { token, ..message });
        }
    }

    /// Passes prefetched messages to a dispatcher's machine, as many as it has room for.
    pub(crate) fn hear(&mut self, d: usize) -> Step {
        let Some(process) = &mut self.dispatchers[d].process else { return Ok(()) };
        let room = process.machine.doorbell_room().min(process.prefetched.len());
        let heard: Vec<Message> = process.prefetched.drain(..room).collect();
        let doorbell = |message: &Message| Doorbell { token: message.token, job: message.job.clone() };
        let doorbells = heard.iter().map(doorbell).collect();
        process.heard.extend(heard.iter().map(|message| (message.token, message.clone())));
        self.log(|facts| {
            let names: Vec<String> =
                heard.iter().map(|message| facts.name(message.job.delivery_id)).collect();
            format!("dispatcher {d} hears {}", names.join(" "))
        });
        self.report(d, Event::Doorbells(doorbells))
    }

    /// Delivers an acknowledgement to the broker.
    pub(crate) fn acknowledge(&mut self, d: usize) {
        let Some(process) = &mut self.dispatchers[d].process else { return };
        let message = process.acknowledged.remove(0);
        self.log(|facts| format!("dispatcher {d} acknowledges {}", facts.name(message.job.delivery_id)));
    }

    /// Closes a dispatcher's connection. Its unacknowledged messages return to the queue.
    pub(crate) fn take_back(&mut self, d: usize) {
        let Some(process) = &mut self.dispatchers[d].process else { return };
        self.broker.queue.append(&mut process.prefetched);
        process.taken_back.extend(process.heard.values().map(|message| message.job.clone()));
        self.broker.queue.extend(std::mem::take(&mut process.heard).into_values());
        self.broker.queue.append(&mut process.acknowledged);
    }

    /// Empties the queue, as purging or deleting it does.
    pub(crate) fn purge(&mut self) {
        self.log(|_| "the queue is purged".into());
        self.count("a queue purged");
        self.broker.queue.clear();
    }

    /// Restarts the broker: all connections close, and sometimes the messages are lost.
    pub(crate) fn restart_broker(&mut self) {
        self.log(|_| "the broker restarts".into());
        for d in 0..self.dispatchers.len() {
            self.take_back(d);
        }
        if self.rng.random_bool(0.2) {
            self.broker.queue.clear();
        }
    }
}
