//! Takes work, never more than there are free slots: doorbells from the queue, and from the database what is due.
//! The two take turns, so that neither starves the other.

use std::sync::Arc;
use std::time::Duration;

use contracts::{ClaimId, Job, Timestamp};
use queue::{Consumer, Message};
use store::{
    AnyConnection, Claimed, HeldAttempt, Store, StoreError, claim_due, claim_jobs, claimed_under,
    expired_leases,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attempt::Attempts;
use crate::{BATCH, OUTAGE_PAUSE};

/// How often the relay looks for what is due. A retry is late by at most this, plus its claim.
const RELAY_PERIOD: Duration = Duration::from_millis(250);

pub(crate) struct Intake {
    pub(crate) store: Store,
    pub(crate) consumer: Consumer,
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) lease: Duration,
    pub(crate) attempts: Arc<Attempts>,
    pub(crate) in_flight: TaskTracker,
}

/// Where the next batch comes from.
enum Turn {
    Doorbells(Vec<Message>),
    Relay,
}

/// What a claim's transaction found: attempts that are ours now, and attempts that nobody finished in time.
type Found = (Vec<Claimed>, Vec<HeldAttempt>);

/// The same, with the time.
struct Batch {
    claimed: Vec<Claimed>,
    expired: Vec<HeldAttempt>,
    /// When the claim was begun, on the clock's monotonic time: the leases count from here at the latest.
    since: Duration,
}

impl Intake {
    /// Takes work until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut look_at = Instant::now();
        let mut relay_was_last = false;
        // A slot before anything is pulled.
        while let Some(mut slots) = shutdown.run_until_cancelled(free_slots(&self.slots)).await {
            let turn = if !relay_was_last && look_at <= Instant::now() {
                Turn::Relay
            } else {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => break,
                    Some(message) = self.consumer.next() => self.gathered(message, slots.num_permits()),
                    () = sleep_until(look_at) => Turn::Relay,
                }
            };
            let claim_id = ClaimId::new(self.attempts.clock.now());
            let batch = match turn {
                Turn::Doorbells(messages) => {
                    relay_was_last = false;
                    let jobs: Arc<[Job]> = messages.iter().map(|message| message.job.clone()).collect();
                    let lease = self.lease;
                    let batch = self
                        .claim(&shutdown, claim_id, move |tx, now| {
                            let claimed = claim_jobs(tx, now, lease, claim_id, &jobs)?;
                            Ok((claimed, Vec::new()))
                        })
                        .await;
                    // The leases have taken over. At a shutdown the messages go back unacknowledged.
                    if batch.is_some() {
                        messages.into_iter().for_each(Message::ack);
                    }
                    batch
                }
                Turn::Relay => {
                    relay_was_last = true;
                    let (lease, room) = (self.lease, slots.num_permits());
                    let batch = self
                        .claim(&shutdown, claim_id, move |tx, now| {
                            let expired = expired_leases(tx, now, BATCH)?;
                            Ok((claim_due(tx, now, lease, claim_id, room)?, expired))
                        })
                        .await;
                    let more =
                        batch.as_ref().is_some_and(|b| b.claimed.len() == room || b.expired.len() == BATCH);
                    look_at = Instant::now() + if more { Duration::ZERO } else { RELAY_PERIOD };
                    batch
                }
            };
            let Some(batch) = batch else { break };
            for claimed in batch.claimed {
                // Only a claim whose earlier tries came through as well can exceed its slots; what is over is not
                // sent, and its lease ends.
                let Some(slot) = slots.split(1) else { break };
                let (attempts, lease_end) = (self.attempts.clone(), batch.since + self.lease);
                self.in_flight.spawn(async move { attempts.make(claimed, lease_end, slot).await });
            }
            for lease in batch.expired {
                self.attempts.give_up(lease).await;
            }
        }
    }

    /// The doorbells that are here already, as many as there is room for.
    fn gathered(&mut self, first: Message, room: usize) -> Turn {
        let mut messages = vec![first];
        while messages.len() < room
            && let Some(message) = self.consumer.try_next()
        {
            messages.push(message);
        }
        Turn::Doorbells(messages)
    }

    /// Claims in one transaction, again and again while the database is away; meanwhile nothing is pulled from
    /// the queue. None when a shutdown ends the waiting; nothing claimed when the database refuses the claim itself.
    async fn claim<F>(&self, shutdown: &CancellationToken, claim_id: ClaimId, claim: F) -> Option<Batch>
    where
        F: Fn(&mut AnyConnection, Timestamp) -> Result<Found, StoreError> + Clone + Send + 'static,
    {
        let clock = &self.attempts.clock;
        let first_since = clock.monotonic();
        let mut outcome_unknown = false;
        loop {
            let since = clock.monotonic();
            let claim = claim.clone();
            let step = move |tx: &mut AnyConnection, now| -> Result<Batch, StoreError> {
                if outcome_unknown {
                    // An earlier commit may have come through: what carries our claim id is ours, since then.
                    let claimed = claimed_under(tx, claim_id)?;
                    if !claimed.is_empty() {
                        return Ok(Batch { claimed, expired: Vec::new(), since: first_since });
                    }
                }
                let (claimed, expired) = claim(tx, now)?;
                Ok(Batch { claimed, expired, since })
            };
            match self.store.write(step).await {
                Ok(batch) => return Some(batch),
                Err(error) if error.is_outage() => {
                    tracing::warn!(%error, "nothing claimed, the database is away");
                    outcome_unknown = true;
                }
                Err(error) => {
                    // The relay tries again what is due; the doorbells have served.
                    tracing::error!(%error, "claim refused");
                    shutdown.run_until_cancelled(sleep(OUTAGE_PAUSE)).await?;
                    return Some(Batch { claimed: Vec::new(), expired: Vec::new(), since });
                }
            }
            shutdown.run_until_cancelled(sleep(OUTAGE_PAUSE)).await?;
        }
    }
}

/// Waits for a free slot and takes those beside it, up to a batch.
async fn free_slots(slots: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    let mut taken = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
    let beside = slots.available_permits().min(BATCH - 1);
    if let Ok(more) = slots.clone().try_acquire_many_owned(u32::try_from(beside).unwrap_or(0)) {
        taken.merge(more);
    }
    taken
}
