//! Drives the production state machine: reports events and performs actions. Makes no decisions of its own.

use std::time::Duration;

use engine::dispatch::{Action, ClaimSource, Dispatch, Event};
use rand::prelude::*;

use crate::process::{Attempt, Process, State};
use crate::promise::{Step, promise};
use crate::work::Work;
use crate::world::World;

impl World<'_> {
    /// Starts a dispatcher's process.
    pub(crate) fn start(&mut self, d: usize) {
        self.log(|_| format!("dispatcher {d} starts"));
        let machine = Dispatch::new(self.shape.limits.clone(), self.rng.random(), self.now_of(d));
        self.dispatchers[d].process = Some(Process::new(machine));
        self.missed.forget(d);
    }

    /// Reports that time has passed. Checks that the machine does not repeatedly request another tick at
    /// once: its driver would spin.
    pub(crate) fn tick(&mut self, d: usize) -> Step {
        for _ in 0..5 {
            self.report(d, Event::Tick)?;
            let Some(process) = &self.dispatchers[d].process else { return Ok(()) };
            let is_due = process.machine.wake_at().is_some_and(|at| at <= self.monotonic());
            if !is_due || !process.transactions.is_empty() {
                return Ok(());
            }
        }
        promise(false, || format!("dispatcher {d} wakes up repeatedly without any work"))
    }

    /// Reports an event to the machine and performs the resulting actions.
    pub(crate) fn report(&mut self, d: usize, event: Event) -> Step {
        let now = self.now_of(d);
        let Some(process) = &mut self.dispatchers[d].process else { return Ok(()) };
        let actions = process.machine.handle(event, now);
        for action in actions {
            self.act(d, action)?;
        }
        self.check_in_flight(d)
    }

    fn act(&mut self, d: usize, action: Action) -> Step {
        let now = self.now;
        let Some(process) = &mut self.dispatchers[d].process else { return Ok(()) };
        match action {
            Action::Claim(claim) => {
                if let (ClaimSource::Doorbells(jobs), false) = (&claim.source, claim.is_retry) {
                    let is_early = jobs.iter().any(|job| !process.has_message_of(job, jobs));
                    promise(!is_early, || format!("dispatcher {d} acknowledges a message before its claim"))?;
                }
                self.begin(d, Work::Claim(claim));
            }
            Action::Record(batch) => self.begin(d, Work::Record(batch)),
            Action::RecoverLeases(recovery) => self.begin(d, Work::RecoverLeases(recovery)),
            Action::ForgetHolds => self.begin(d, Work::ForgetHolds),
            Action::Send { claimed, send_before } => {
                let attempt = Attempt {
                    claimed: *claimed,
                    send_before,
                    began: Duration::ZERO,
                    state: State::Claimed,
                    ready_at: now,
                };
                process.attempts.push(attempt);
            }
            Action::Acknowledge(tokens) => {
                let messages = tokens.iter().filter_map(|token| process.heard.remove(token));
                process.acknowledged.extend(messages.collect::<Vec<_>>());
            }
            Action::GiveBack(tokens) => {
                let messages = tokens.iter().filter_map(|token| process.heard.remove(token));
                self.broker.queue.extend(messages);
            }
            Action::Pause => {
                process.is_consuming = false;
                if !process.prefetched.is_empty() || !process.heard.is_empty() {
                    self.count("messages returned to the queue during a database outage");
                }
                self.take_back(d);
            }
            Action::Resume => process.is_consuming = true,
            Action::Report(recorded) => {
                if recorded.effect.is_none() {
                    self.count("a result given up");
                    self.facts.abandon_claim(recorded.result.claim_id);
                }
            }
            Action::StepOver { delivery_id, wait } => {
                self.count("a row stepped over");
                self.log(|facts| {
                    format!("dispatcher {d} steps over {} for {wait:?}", facts.name(delivery_id))
                });
            }
            Action::Trouble(cause) => self.log(|_| format!("dispatcher {d} can't send: {cause:?}")),
            Action::TroubleOver(cause) => self.log(|_| format!("dispatcher {d} can send again: {cause:?}")),
            Action::Stopped => {
                self.count("a dispatcher stopped with nothing in flight");
                self.exit(d);
            }
        }
        Ok(())
    }

    /// Ends a dispatcher's process.
    pub(crate) fn exit(&mut self, d: usize) {
        self.take_back(d);
        if let Some(process) = self.dispatchers[d].process.take() {
            self.abandon(d, process.transactions);
        }
    }
}
