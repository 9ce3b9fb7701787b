//! Performs attempts step by step, as the product's sender does.

use std::time::Duration;

use contracts::{FailureReason, Timing};
use egress::{Policy, TargetUrl};
use engine::dispatch::Event;
use engine::{LocalFailure, Measured, Outcome, Response, SendWindow};
use rand::prelude::*;

use crate::facts::{Asks, Receipt};
use crate::process::{Attempt, State};
use crate::promise::{Broken, Step};
use crate::shape::TIMEOUT;
use crate::world::World;

impl World<'_> {
    /// Performs an attempt's next step.
    pub(crate) fn advance(&mut self, d: usize, index: usize) -> Step {
        let Some(process) = &mut self.dispatchers[d].process else { return Ok(()) };
        let mut attempt = process.attempts.swap_remove(index);
        attempt.ready_at = self.now;
        let next = match attempt.state.clone() {
            State::Claimed => {
                attempt.began = self.monotonic();
                self.begin_sending(d, &attempt)
            }
            State::Begun(window) => self.write(d, &mut attempt, window)?,
            State::Sent(outcome) => Err(outcome),
        };
        match next {
            Ok(state) => {
                attempt.state = state;
                if let Some(process) = &mut self.dispatchers[d].process {
                    process.attempts.push(attempt);
                }
                Ok(())
            }
            Err(outcome) => self.end(d, &attempt, outcome),
        }
    }

    fn end(&mut self, d: usize, attempt: &Attempt, outcome: Outcome) -> Step {
        let held = &attempt.claimed.held;
        self.log(|facts| {
            format!("dispatcher {d} ends {}/{}: {outcome:?}", facts.name(held.delivery_id), held.attempt)
        });
        if let Outcome::NotSent(_) = outcome {
            self.count("an attempt handed back");
        }
        let response_time = Some(self.monotonic().saturating_sub(attempt.began));
        self.note_answer(d, attempt, &outcome);
        let measured = Measured { response_time, timing: Timing::default() };
        self.report(d, Event::Ended { key: held.key(), outcome, measured })
    }

    /// Checks whether an attempt may be sent. The error is the attempt's outcome.
    fn begin_sending(&mut self, d: usize, attempt: &Attempt) -> Result<State, Outcome> {
        if let Some(cause @ (LocalFailure::KeyMissing | LocalFailure::SecretUnread)) =
            self.dispatchers[d].trouble
        {
            return Err(Outcome::NotSent(cause));
        }
        if let Err(outcome) = check_target(&attempt.claimed.callback_url) {
            self.count("an address refused");
            return Err(outcome);
        }
        match SendWindow::begin(self.monotonic(), attempt.send_before, TIMEOUT) {
            Some(window) => Ok(State::Begun(window)),
            None => {
                self.count("an attempt too late to begin");
                Err(Outcome::NotSent(LocalFailure::LeaseTooShort))
            }
        }
    }

    fn write(
        &mut self,
        d: usize,
        attempt: &mut Attempt,
        window: SendWindow,
    ) -> Result<Result<State, Outcome>, Broken> {
        if let Some(cause) = self.dispatchers[d].trouble
            && self.rng.random_bool(0.8)
        {
            return Ok(Err(Outcome::NotSent(cause)));
        }
        if !window.may_write(self.monotonic()) {
            self.count("an attempt too late to write");
            return Ok(Err(Outcome::NotSent(LocalFailure::LeaseTooShort)));
        }
        let destination = attempt.claimed.held.destination;
        let receiver = self.receivers.iter().find(|receiver| receiver.destination == destination);
        let Some(manner) = receiver.map(|receiver| receiver.manner) else {
            return Err(Broken::Step("a delivery without a receiver".into()));
        };
        let left = (attempt.began + TIMEOUT).saturating_sub(self.monotonic());
        let reply = manner.reply(&mut self.rng, left);
        let held = &attempt.claimed.held;
        self.log(|facts| format!("dispatcher {d} sends {}/{}", facts.name(held.delivery_id), held.attempt));
        self.note_receipt(attempt, Receipt { is_accepted: reply.is_accepted, asks: None })?;
        attempt.ready_at = self.now + reply.after;
        Ok(Ok(State::Sent(reply.outcome)))
    }

    /// Records the `Retry-After` of a 429 or 503, by the dispatcher's clock.
    fn note_answer(&mut self, d: usize, attempt: &Attempt, outcome: &Outcome) {
        let Outcome::Answered(Response { status: 429 | 503, retry_after, .. }) = outcome else { return };
        let Some(seconds) = retry_after.first().and_then(|wait| wait.parse().ok()) else { return };
        let (wait, now) = (Duration::from_secs(seconds).min(LONGEST_WAIT), self.time_of(d));
        let held_until = now + wait.min(self.shape.limits.retry.hold_cap);
        let asks = Asks { retry_at: now + wait, held_until };
        let key = (self.facts.place(attempt.claimed.held.delivery_id), attempt.claimed.held.attempt);
        if let Some(receipt) = self.facts.receipts.get_mut(&key) {
            receipt.asks = Some(asks);
        }
    }
}

/// Maximum `Retry-After` that is respected (contract section 2).
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Checks the URL's form and the egress policy; the error is the outcome to record.
fn check_target(callback_url: &str) -> Result<(), Outcome> {
    let target = TargetUrl::parse(callback_url)
        .map_err(|error| Outcome::failed(FailureReason::InvalidUrl, error.to_string()))?;
    let judged = Policy::default().judge_url(&target);
    judged.map_err(|refused| Outcome::failed(FailureReason::BlockedAddress, refused.to_string()))
}
