//! Takes work, never more than there are free slots: doorbells from the queue, and from the database what is due.
//! The two take turns, so that neither starves the other.

use std::sync::Arc;
use std::time::Duration;

use contracts::ClaimId;
use queue::{Consumer, Message};
use store::{Claimed, Store};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attempt::Attempts;
use crate::steps::{self, Found, Lease, Work};
use crate::{BATCH, DATABASE_PATIENCE, OUTAGE_PAUSE, Pulse};

/// How often the relay looks for what is due. A retry is late by at most this, plus its claim.
const RELAY_PERIOD: Duration = Duration::from_millis(250);
/// A look that takes long, as when a dump keeps PostgreSQL from forgetting old rows, comes less often, so that looking
/// leaves most of the time to doorbells. Not less often than this.
const LONGEST_RELAY_PERIOD: Duration = Duration::from_secs(3);

/// How long to wait after a look that took so long and found less than there was room for.
fn pause_after(look: Duration) -> Duration {
    (10 * look).clamp(RELAY_PERIOD, LONGEST_RELAY_PERIOD)
}

pub(crate) struct Intake {
    pub(crate) store: Store,
    pub(crate) consumer: Consumer,
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) lease: Duration,
    pub(crate) attempts: Arc<Attempts>,
    pub(crate) in_flight: TaskTracker,
    pub(crate) pulse: Pulse,
}

/// What a claim found, and until when it is ours.
struct Batch {
    found: Found,
    lease: Lease,
}

impl Intake {
    /// Takes work until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut look_at = Instant::now();
        let mut relay_was_last = false;
        // A slot before anything is pulled.
        while let Some(mut slots) = shutdown.run_until_cancelled(free_slots(&self.slots)).await {
            let room = slots.num_permits();
            let doorbells = if !relay_was_last && look_at <= Instant::now() {
                None
            } else {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => break,
                    Some(message) = self.consumer.next() => Some(self.gathered(message, room)),
                    () = sleep_until(look_at) => None,
                }
            };
            relay_was_last = doorbells.is_none();
            let began = Instant::now();
            let work = match &doorbells {
                Some(messages) => {
                    Work::Doorbells(messages.iter().map(|message| message.job.clone()).collect())
                }
                None => Work::Relay { room },
            };
            // At a shutdown the messages go back unacknowledged.
            let Some(Batch { found, lease }) = self.claim(&shutdown, work).await else { break };
            match doorbells {
                // The leases have taken over.
                Some(messages) => messages.into_iter().for_each(Message::ack),
                None => {
                    let more = found.claimed.len() == room || found.expired.len() == BATCH;
                    let pause = if more { Duration::ZERO } else { pause_after(began.elapsed()) };
                    look_at = Instant::now() + pause;
                }
            }
            for claimed in found.claimed {
                // Only a claim whose earlier tries came through as well can exceed its slots; what is over is not
                // sent, and its lease ends.
                let Some(slot) = slots.split(1) else { break };
                tracing::debug!(delivery_id = %claimed.held.delivery_id, attempt = claimed.held.attempt, "claimed");
                let attempts = self.attempts.clone();
                self.in_flight.spawn(async move { attempts.make(claimed, lease, slot).await });
            }
            for held in found.expired {
                self.attempts.give_up(held).await;
            }
        }
    }

    /// The doorbells that are here already, as many as there is room for.
    fn gathered(&mut self, first: Message, room: usize) -> Vec<Message> {
        let mut messages = vec![first];
        while messages.len() < room
            && let Some(message) = self.consumer.try_next()
        {
            messages.push(message);
        }
        messages
    }

    /// Claims in one transaction, again and again while the database is away; meanwhile nothing is heard from the
    /// queue, so that others get to hear it. None when a shutdown ends the waiting; nothing when the database refuses
    /// the claim itself.
    async fn claim(&mut self, shutdown: &CancellationToken, work: Work) -> Option<Batch> {
        let clock = self.attempts.clock.clone();
        let claim_id = ClaimId::new(clock.now());
        let (work, lease) = (Arc::new(work), self.lease);
        // When the last try was over.
        let mut tried_by = None;
        loop {
            let this_try = clock.monotonic();
            let (work, is_another_try) = (work.clone(), tried_by.is_some());
            let claimed = self
                .store
                .write_within(DATABASE_PATIENCE, move |tx, now| {
                    steps::claim(tx, now, lease, claim_id, &work, is_another_try)
                })
                .await;
            match claimed {
                Ok(found) => {
                    self.pulse.claimed();
                    self.consumer.resume();
                    let by_earlier_try = tried_by.filter(|_| found.by_earlier_try);
                    let lease = match found.claimed.first().zip(by_earlier_try) {
                        Some((Claimed { held, .. }, tried_by)) => {
                            Lease::given_at(held.claimed_at, lease, clock.now(), clock.monotonic(), tried_by)
                        }
                        None => Lease::since(this_try, lease),
                    };
                    return Some(Batch { found, lease });
                }
                Err(error) if error.is_outage() => {
                    tracing::warn!(%error, "nothing claimed, the database is away");
                    self.consumer.pause();
                    tried_by = Some(clock.monotonic());
                }
                Err(error) => {
                    // The relay tries again what is due; the doorbells have served.
                    tracing::error!(%error, "claim refused");
                    shutdown.run_until_cancelled(sleep(OUTAGE_PAUSE)).await?;
                    return Some(Batch { found: Found::default(), lease: Lease::since(this_try, lease) });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_takes_long_comes_less_often() {
        let pauses = [1, 30, 200, 60_000].map(|look| pause_after(Duration::from_millis(look)).as_millis());
        assert_eq!(pauses, [250, 300, 2000, 3000]);
    }
}
