//! What follows a claim: its attempts are admitted, the poll's result is noted for the next one, a refused claim
//! is halved, one of unknown outcome is retried.

use std::collections::HashMap;
use std::time::Duration;

use contracts::{DeliveryId, Destination};

use super::Dispatch;
use super::claiming::InProgress;
use super::events::{Action, ClaimSource, Now};
use super::pace::{BATCH, GATHERING, OUTAGE_PAUSE};
use crate::fairness::{Fit, PollResult};
use crate::lease::{Claimed, Lease};
use crate::outcome::{LocalFailure, Measured, Outcome};
use crate::protection::{Protection, is_off};

/// The relay's poll interval for due deliveries. A retry is late by at most this, plus its claim.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Upper bound of the poll interval while polls are slow, such as when a dump keeps PostgreSQL from removing
/// dead rows.
const LONGEST_POLL_INTERVAL: Duration = Duration::from_secs(3);
/// The most deliveries refused in a row that are blamed on their own rows. Beyond that the database may be at
/// fault, and claims pause as if it were unavailable.
const MOST_REFUSED: u32 = 4;

impl Dispatch {
    pub(super) fn claimed(
        &mut self,
        claimed: Vec<Claimed>,
        is_recovered: bool,
        poll: Option<PollResult>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let Some(claim) = self.claiming.in_progress.take() else { return };
        if claim.tried_by.is_some() {
            actions.push(Action::Resume);
        }
        if !claim.tokens.is_empty() {
            actions.push(Action::Acknowledge(claim.tokens.clone()));
        }
        self.claiming.limit = (self.claiming.limit * 2).min(BATCH);
        self.claiming.ended_at = now.monotonic;
        self.claiming.refused = 0;
        self.note_poll(&claim, claimed.len(), poll, now);
        let (mut bytes, mut bytes_in_flight) = (self.byte_room(), self.bytes_by_destination());
        for claimed in claimed {
            self.stepped_over.remove(claimed.held.delivery_id);
            // Hands back attempts that a new hold forbids, and attempts over the limits, which are possible
            // if several tries of one claim committed.
            let destination = claimed.held.destination;
            let is_held = self.destinations.is_held(destination, now) && !claimed.held.is_probe;
            let is_within = !is_recovered
                || self.attempts.len() + self.recording.len() < self.limits.max_in_flight
                    && self.destinations.slots(destination) > 0
                    && bytes
                        .judge(claimed.payload.len() as u64, bytes_in_flight.entry(destination).or_default())
                        == Fit::Fits;
            if is_held || !is_within {
                let not_sent = Outcome::NotSent(LocalFailure::OverLimit);
                let result = self.settle(claimed.held, not_sent, Measured::default(), now);
                self.recording.push(result, now.monotonic);
                continue;
            }
            let lease = match (is_recovered && !is_off(Protection::LeasePerRow), claim.tried_by) {
                (true, Some(tried_by)) => {
                    let claimed_at = claimed.held.claimed_at;
                    Lease::given_at(claimed_at, self.limits.lease, now.clock, now.monotonic, tried_by)
                }
                _ => Lease::since(claim.began, self.limits.lease),
            };
            self.admit(claimed, lease, now, actions);
        }
    }

    /// Updates the state of the relay after a claim by poll.
    fn note_poll(&mut self, claim: &InProgress, count: usize, poll: Option<PollResult>, now: Now) {
        let ClaimSource::Relay(plan) = &claim.claim.source else { return };
        let Some(poll) = poll else {
            // An earlier try had committed. It doesn't show what else is due.
            self.note_targets(&plan.targets, now);
            self.claiming.poll_at = now.monotonic;
            return;
        };
        self.claiming.reserved = poll.too_large;
        let bytes = if poll.limited.is_empty() { HashMap::new() } else { self.bytes_by_destination() };
        for destination in poll.limited {
            self.claiming.note_limited(destination);
            let was_freed = self.destinations.room(destination, now) > plan.room_of(destination)
                || bytes.get(&destination) < plan.bytes_in_flight.get(&destination);
            if was_freed {
                // During the poll.
                self.claiming.freed_at.get_or_insert(now.monotonic);
            } else {
                self.destinations.fill(destination);
            }
        }
        if !plan.targets.is_empty() {
            self.note_targets(&poll.left, now);
            return;
        }
        let claiming = &mut self.claiming;
        (claiming.cursor, claiming.has_backlog) = (poll.cursor, poll.has_backlog);
        claiming.circle.claimed += count;
        claiming.circle.took += now.monotonic.saturating_sub(claim.began);
        let goes_on =
            poll.has_more || poll.cursor.is_some() || (poll.has_backlog && claiming.circle.claimed > 0);
        let circle = match poll.cursor {
            Some(_) => None,
            None => Some(std::mem::take(&mut claiming.circle)),
        };
        claiming.empty_polls = if count > 0 { 0 } else { claiming.empty_polls.saturating_add(1) };
        claiming.poll_at = now.monotonic
            + match circle {
                _ if goes_on && count > 0 => GATHERING,
                // There was room for some destinations only, and their due deliveries could not be claimed.
                _ if poll.has_more => pause_after(claiming.empty_polls),
                _ if goes_on => Duration::ZERO,
                circle => poll_interval(circle.unwrap_or_default().took),
            };
        if is_off(Protection::Circle) {
            (claiming.cursor, claiming.has_backlog) = (None, false);
        }
    }

    /// Schedules another poll of these destinations as soon as there is room.
    fn note_targets(&mut self, targets: &[Destination], now: Now) {
        if !targets.is_empty() {
            targets.iter().for_each(|destination| self.claiming.note_limited(*destination));
            self.claiming.freed_at.get_or_insert(now.monotonic);
        }
    }

    pub(super) fn claim_refused(&mut self, rows: &[DeliveryId], now: Now, actions: &mut Vec<Action>) {
        let Some(claim) = self.claiming.in_progress.take() else { return };
        let claiming = &mut self.claiming;
        if claim.tried_by.is_some() {
            actions.push(Action::Resume);
        }
        if !claim.tokens.is_empty() {
            actions.push(Action::Acknowledge(claim.tokens));
        }
        claiming.limit = (claiming.limit / 2).max(1);
        let count = match &claim.claim.source {
            ClaimSource::Doorbells(jobs) => {
                // The relay claims them, fewer at a time.
                jobs.iter().for_each(|job| claiming.note_limited(job.destination));
                jobs.len()
            }
            ClaimSource::Relay(plan) => {
                // If not even the rows could be read, the targets are left to the walk over all destinations.
                let targets = plan.targets.iter().filter(|_| !rows.is_empty());
                targets.for_each(|destination| claiming.note_limited(*destination));
                rows.len()
            }
        };
        claiming.limit = claiming.limit.min(count.max(2) / 2).max(1);
        claiming.freed_at = Some(now.monotonic);
        claiming.poll_at = now.monotonic;
        match (rows, &claim.claim.source) {
            ([delivery_id], ClaimSource::Relay(_)) if !is_off(Protection::StepOver) => {
                let wait = self.stepped_over.add(*delivery_id, now.monotonic);
                claiming.refused += 1;
                if claiming.refused > MOST_REFUSED {
                    claiming.paused_until = now.monotonic + OUTAGE_PAUSE;
                }
                // Its destination may have more such rows: continue elsewhere.
                claiming.cursor = Some(Destination::from(self.rng.i64(..)));
                actions.push(Action::StepOver { delivery_id: *delivery_id, wait });
            }
            ([], ClaimSource::Relay(_)) => {
                // The rows here can't be read: continue elsewhere.
                claiming.cursor = Some(Destination::from(self.rng.i64(..)));
                claiming.has_backlog = true;
                claiming.paused_until = now.monotonic + OUTAGE_PAUSE;
            }
            _ => {}
        }
    }

    pub(super) fn claim_unknown(&mut self, now: Now, actions: &mut Vec<Action>) {
        let waiting = self.doorbells.forget_all();
        let mut tokens: Vec<u64> = waiting.iter().map(|doorbell| doorbell.token).collect();
        let Some(claim) = &mut self.claiming.in_progress else { return };
        claim.tried_by = Some(now.monotonic);
        claim.retry_at = Some(now.monotonic + OUTAGE_PAUSE);
        actions.push(Action::Pause);
        if self.is_stopping {
            tokens.extend(self.claiming.abandon_retry());
        }
        if !tokens.is_empty() {
            actions.push(Action::GiveBack(tokens));
        }
    }
}

/// Returns the poll interval after a walk whose polls took this long, so that most of the time is left for
/// doorbells.
fn poll_interval(took: Duration) -> Duration {
    (10 * took).clamp(POLL_INTERVAL, LONGEST_POLL_INTERVAL)
}

/// Returns the pause after this many consecutive polls that found due deliveries but claimed nothing.
fn pause_after(empty_polls: u32) -> Duration {
    GATHERING.saturating_mul(1 << empty_polls.saturating_sub(1).min(6)).min(POLL_INTERVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_polls_lengthen_the_poll_interval() {
        let intervals =
            [1, 30, 200, 60_000].map(|took| poll_interval(Duration::from_millis(took)).as_millis());
        assert_eq!(intervals, [250, 300, 2000, 3000]);
    }

    #[test]
    fn fruitless_polls_back_off() {
        assert_eq!([1, 2, 5, 7, 1_000].map(|looks| pause_after(looks).as_millis()), [4, 8, 64, 250, 250]);
    }
}
