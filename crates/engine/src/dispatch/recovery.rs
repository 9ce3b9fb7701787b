//! Recovery of expired leases: when to look for them, and how many at once.

use std::time::Duration;

use contracts::DeliveryId;

use super::Dispatch;
use super::events::{Action, Now, Recovery};
use super::pace::{BATCH, OUTAGE_PAUSE};

/// The poll interval for expired leases.
const RECOVERY_PERIOD: Duration = Duration::from_millis(500);

/// The schedule of lease recovery: the time and size of the next transaction.
#[derive(Debug)]
pub(super) struct Schedule {
    pub(super) next_at: Duration,
    limit: usize,
    is_reversed: bool,
    pub(super) is_running: bool,
}

impl Schedule {
    pub(super) fn new(now: Duration) -> Schedule {
        Schedule { next_at: now, limit: BATCH, is_reversed: false, is_running: false }
    }
}

impl Dispatch {
    pub(super) fn recover(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.is_stopping || self.recovery.is_running || self.recovery.next_at > now.monotonic {
            return;
        }
        self.recovery.is_running = true;
        actions.push(Action::RecoverLeases(Recovery {
            limit: self.recovery.limit,
            stepped_over: self.leases_stepped_over.ids(now.monotonic),
            is_reversed: self.recovery.is_reversed,
            retry: self.limits.retry.clone(),
            rng: self.rng.fork(),
        }));
    }

    pub(super) fn leases_recovered(&mut self, count: usize, now: Now) {
        let is_full = count >= self.recovery.limit;
        self.recovery.limit = (self.recovery.limit * 2).min(BATCH);
        self.recovery_ended(if is_full { now.monotonic } else { now.monotonic + RECOVERY_PERIOD });
    }

    pub(super) fn recovery_refused(&mut self, rows: &[DeliveryId], now: Now, actions: &mut Vec<Action>) {
        if let [delivery_id] = *rows {
            let wait = self.leases_stepped_over.add(delivery_id, now.monotonic);
            actions.push(Action::StepOver { delivery_id, wait });
            self.recovery_ended(now.monotonic);
        } else {
            self.recovery.limit = (self.recovery.limit.min(rows.len().max(2)) / 2).max(1);
            self.recovery.is_reversed ^= rows.is_empty();
            let pause = if rows.is_empty() { OUTAGE_PAUSE } else { Duration::ZERO };
            self.recovery_ended(now.monotonic + pause);
        }
    }

    pub(super) fn recovery_ended(&mut self, next_at: Duration) {
        self.recovery.is_running = false;
        self.recovery.next_at = next_at;
    }
}
