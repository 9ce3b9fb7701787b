//! Tests that step the machine event by event, without a clock or real waits.

use std::time::Duration;

use bytes::Bytes;
use contracts::{ClaimId, DeliveryId, Destination, FailureReason, Job, OrgId, RunId, Timestamp};
use uuid::Uuid;

mod claims;
mod recording;

use super::*;
use crate::fairness::PollResult;
use crate::fairness::RelayPlan;
use crate::lease::{Claimed, HeldAttempt};
use crate::outcome::Response;
use crate::outcome::{Measured, Outcome};
use crate::result::{AttemptResult, Effect, HoldChange, Settlement};
use crate::retry::RetryPolicy;

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(60);

fn limits() -> Limits {
    Limits {
        max_in_flight: 8,
        max_in_flight_bytes: 1_000,
        max_in_flight_per_destination: 4,
        lease: LEASE,
        timeout: 10 * SECOND,
        retry: RetryPolicy {
            schedule: vec![10 * SECOND],
            jitter: 0.0,
            stop_on_gone: false,
            hold_cap: 900 * SECOND,
        },
    }
}

/// A machine, its time and its pending actions.
struct Bench {
    dispatch: Dispatch,
    now: Now,
    actions: Vec<Action>,
    tokens: u64,
}

impl Bench {
    fn new(limits: Limits) -> Bench {
        let now = Now { monotonic: 1_000 * SECOND, clock: Timestamp::from_micros(1_000_000_000) };
        let mut bench =
            Bench { dispatch: Dispatch::new(limits, 7, now), now, actions: Vec::new(), tokens: 0 };
        // The first poll finds nothing, and neither does lease recovery.
        bench.tell(Event::Tick);
        bench.poll(PollResult::default());
        bench.tell(Event::LeasesRecovered { count: 0 });
        bench.actions.clear();
        bench
    }

    fn tell(&mut self, event: Event) {
        self.actions.extend(self.dispatch.handle(event, self.now));
    }

    fn wait(&mut self, wait: Duration) {
        self.now.monotonic += wait;
        self.now.clock = self.now.clock + wait;
        self.tell(Event::Tick);
    }

    /// Reports doorbells for `count` new deliveries.
    fn ring(&mut self, destination: i64, count: u64, size: u64) {
        let doorbells = (0..count).map(|_| {
            self.tokens += 1;
            let job = Job {
                delivery_id: DeliveryId(Uuid::from_u128(self.tokens.into())),
                attempt: 1,
                destination: Destination::from(destination),
                payload_size: Some(size),
                org_id: OrgId(Uuid::nil()),
                request_id: "r".to_owned(),
                traceparent: None,
            };
            Doorbell { token: self.tokens, job }
        });
        let doorbells = doorbells.collect();
        self.tell(Event::Doorbells(doorbells));
    }

    fn take<T>(&mut self, wanted: impl Fn(&Action) -> Option<T>) -> Option<T> {
        let index = self.actions.iter().position(|action| wanted(action).is_some())?;
        wanted(&self.actions.remove(index))
    }

    fn claim(&mut self) -> Option<Claim> {
        self.take(|action| match action {
            Action::Claim(claim) => Some(claim.clone()),
            _ => None,
        })
    }

    fn jobs(&mut self) -> (ClaimId, Vec<Job>) {
        match self.claim() {
            Some(Claim { id, source: ClaimSource::Doorbells(jobs), .. }) => (id, jobs),
            other => panic!("expected a claim by doorbells, got {other:?}"),
        }
    }

    fn plan(&mut self) -> RelayPlan {
        match self.claim() {
            Some(Claim { source: ClaimSource::Relay(plan), .. }) => plan,
            other => panic!("expected a poll, got {other:?}"),
        }
    }

    fn claimed(&self, claim_id: ClaimId, job: &Job) -> Claimed {
        Claimed {
            held: HeldAttempt {
                delivery_id: job.delivery_id,
                org_id: job.org_id,
                run_id: RunId(Uuid::nil()),
                destination: job.destination,
                attempt: job.attempt,
                max_attempts: 8,
                is_automatic: false,
                created_at: self.now.clock,
                request: "r".into(),
                claim_id,
                claimed_at: self.now.clock,
                is_probe: false,
            },
            due_at: None,
            callback_url: "http://example.com/".to_owned(),
            payload: Bytes::from(vec![b' '; usize::try_from(job.payload_size.unwrap_or(0)).unwrap()]),
            signing_secret_id: None,
        }
    }

    /// Commits the claim by doorbells. Returns its attempts.
    fn commit(&mut self) -> Vec<HeldAttempt> {
        let (id, jobs) = self.jobs();
        let claimed: Vec<Claimed> = jobs.iter().map(|job| self.claimed(id, job)).collect();
        let held = claimed.iter().map(|claimed| claimed.held.clone()).collect();
        self.tell(Event::Claimed { claimed, is_recovered: false, poll: None });
        held
    }

    /// Reports a poll that claimed nothing.
    fn poll(&mut self, poll: PollResult) {
        self.tell(Event::Claimed { claimed: Vec::new(), is_recovered: false, poll: Some(poll) });
    }

    fn end(&mut self, held: &HeldAttempt, outcome: Outcome) {
        self.tell(Event::Ended { key: held.key(), outcome, measured: Measured::default() });
    }

    fn record(&mut self) -> Option<Batch> {
        self.take(|action| match action {
            Action::Record(batch) => Some(batch.clone()),
            _ => None,
        })
    }

    fn acknowledged(&mut self) -> Vec<u64> {
        let mut tokens = Vec::new();
        while let Some(more) = self.take(|action| match action {
            Action::Acknowledge(tokens) => Some(tokens.clone()),
            _ => None,
        }) {
            tokens.extend(more);
        }
        tokens
    }

    fn sent(&mut self) -> Vec<Duration> {
        let mut sent = Vec::new();
        while let Some(send_before) = self.take(|action| match action {
            Action::Send { send_before, .. } => Some(*send_before),
            _ => None,
        }) {
            sent.push(send_before);
        }
        sent
    }
}

fn answered(status: u16) -> Outcome {
    Outcome::Answered(Response { status, body: String::new(), retry_after: Vec::new() })
}

fn retry_after(seconds: u64) -> Outcome {
    let retry_after = vec![seconds.to_string()];
    Outcome::Answered(Response { status: 429, body: String::new(), retry_after })
}
