//! Drives the engine's state machine: executes its actions and passes it the events. Makes no decisions of
//! its own.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::HeldAttempt;
use engine::dispatch::{Action, AttemptKey, Dispatch, Doorbell, Event, Now, Recorded};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use ops::Metrics;
use queue::{Consumer, Message};
use store::{Clock, Store};
use tokio::task::{self, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::attempt::{Attempts, Ended, Logged};
use crate::progress::Progress;
use crate::report;
use crate::transactions::{self, Recovered};

pub(crate) struct Driver {
    pub(crate) store: Store,
    pub(crate) consumer: Consumer,
    pub(crate) lease: Duration,
    pub(crate) attempts: Arc<Attempts>,
    pub(crate) dispatch: Dispatch,
    pub(crate) progress: Progress,
    pub(crate) metrics: Metrics,
    pub(crate) state: State,
}

/// The driver's bookkeeping for the machine.
#[derive(Default)]
pub(crate) struct State {
    /// Messages of unacknowledged doorbells, by token.
    messages: HashMap<u64, Message>,
    last_token: u64,
    /// Attempts not reported yet, with the fields to log.
    attempts: BTreeMap<AttemptKey, (HeldAttempt, Logged)>,
    tasks: JoinSet<Ended>,
    keys: HashMap<task::Id, AttemptKey>,
    transactions: FuturesUnordered<BoxFuture<'static, TransactionResult>>,
    /// When the destinations were last counted, in monotonic time.
    counted_at: Duration,
    is_stopped: bool,
}

/// The result of a transaction.
struct TransactionResult {
    event: Option<Event>,
    /// Recorded results of expired leases, which belong to no attempt of this dispatcher.
    recovered: Recovered,
}

impl From<Event> for TransactionResult {
    fn from(event: Event) -> TransactionResult {
        TransactionResult { event: Some(event), recovered: Vec::new() }
    }
}

/// Reads the current time from both clocks.
pub(crate) fn now(clock: &Clock) -> Now {
    Now { monotonic: clock.monotonic(), clock: clock.now() }
}

impl Driver {
    /// Works until `shutdown`, then until nothing is in flight.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let clock = self.store.clock().clone();
        let mut is_stopping = false;
        let mut events = vec![Event::Tick];
        loop {
            let actions = self.dispatch.handle_all(events.drain(..), now(&clock));
            for action in actions {
                self.act(action);
            }
            self.note_progress(&clock);
            self.count_destinations(clock.monotonic());
            if self.state.is_stopped {
                return;
            }
            let wake_at = self.dispatch.wake_at().unwrap_or(Duration::MAX);
            let wait = wake_at.saturating_sub(clock.monotonic()).min(LONGEST_SLEEP);
            tokio::select! {
                biased;
                () = shutdown.cancelled(), if !is_stopping => {
                    is_stopping = true;
                    events.push(Event::Stop);
                }
                Some(ended) = self.state.transactions.next() => events.extend(self.transaction_ended(ended)),
                Some(ended) = self.state.tasks.join_next_with_id() => {
                    let mut next = Some(ended);
                    while let Some(ended) = next {
                        events.extend(self.attempt_ended(ended));
                        next = self.state.tasks.try_join_next_with_id();
                    }
                }
                Some(message) = self.consumer.next(), if self.dispatch.doorbell_room() > 0 => {
                    events.push(self.take_doorbells(message));
                }
                () = tokio::time::sleep(wait) => events.push(Event::Tick),
            }
        }
    }

    /// Takes `first` and the messages already received, as far as the machine has room.
    fn take_doorbells(&mut self, first: Message) -> Event {
        let room = self.dispatch.doorbell_room();
        let mut doorbells = Vec::new();
        let mut next = Some(first);
        while let Some(message) = next {
            self.state.last_token += 1;
            let token = self.state.last_token;
            doorbells.push(Doorbell { token, job: message.job.clone() });
            self.state.messages.insert(token, message);
            next = if doorbells.len() < room { self.consumer.try_next() } else { None };
        }
        Event::Doorbells(doorbells)
    }

    fn attempt_ended(&mut self, ended: Result<(task::Id, Ended), JoinError>) -> Option<Event> {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let key = self.state.keys.remove(&id)?;
        let Ended { outcome, measured, logged } = match ended {
            Ok((_, ended)) => ended,
            Err(error) => {
                tracing::error!(%error, delivery_id = %key.delivery_id, "attempt task panicked");
                Ended::panicked()
            }
        };
        if let Some((_, kept)) = self.state.attempts.get_mut(&key) {
            *kept = logged;
        }
        Some(Event::Ended { key, outcome, measured })
    }

    fn transaction_ended(
        &mut self,
        TransactionResult { event, recovered }: TransactionResult,
    ) -> Option<Event> {
        if let Some(Event::Claimed { claimed, poll, .. }) = &event {
            self.progress.claimed();
            report::claims(&self.metrics, claimed, poll.is_some());
            for held in claimed.iter().map(|claimed| &claimed.held) {
                tracing::debug!(delivery_id = %held.delivery_id, attempt = held.attempt, "claimed");
                self.state.attempts.insert(held.key(), (held.clone(), Logged::default()));
            }
        }
        self.metrics.leases_expired.add([], recovered.len() as u64);
        for (held, result, effect) in recovered {
            self.report(&held, Logged::default(), &Recorded { result, effect: Some(effect) });
        }
        event
    }

    fn act(&mut self, action: Action) {
        let (store, metrics) = (|| self.store.clone(), || self.metrics.clone());
        match action {
            Action::Claim(claim) => {
                let claiming = transactions::claim(store(), metrics(), claim, self.lease);
                self.begin(async { claiming.await.into() });
            }
            Action::Record(batch) => {
                let recording = transactions::record(store(), metrics(), batch);
                self.begin(async { recording.await.into() });
            }
            Action::RecoverLeases(recovery) => {
                let recovering = transactions::recover_leases(store(), metrics(), recovery);
                self.begin(async {
                    let (event, recovered) = recovering.await;
                    TransactionResult { event: Some(event), recovered }
                });
            }
            Action::ForgetHolds => {
                let tidying = transactions::tidy(store());
                self.begin(async {
                    tidying.await;
                    TransactionResult { event: None, recovered: Vec::new() }
                });
            }
            Action::Send { claimed, send_before } => {
                let key = claimed.held.key();
                let attempts = self.attempts.clone();
                let task = self.state.tasks.spawn(async move { attempts.make(*claimed, send_before).await });
                self.state.keys.insert(task.id(), key);
            }
            Action::Report(recorded) => {
                if let Some((held, logged)) = self.state.attempts.remove(&recorded.result.key()) {
                    self.report(&held, logged, &recorded);
                }
            }
            Action::Acknowledge(tokens) => {
                for message in tokens.iter().filter_map(|token| self.state.messages.remove(token)) {
                    message.ack();
                }
            }
            // Unacknowledged messages return to the queue when the connection is closed.
            Action::GiveBack(tokens) => tokens.iter().for_each(|token| {
                self.state.messages.remove(token);
            }),
            Action::Pause => self.consumer.pause(),
            Action::Resume => self.consumer.resume(),
            Action::StepOver { delivery_id, wait } => report::stepped_over(delivery_id, wait),
            Action::Trouble(cause) => report::trouble(cause),
            Action::TroubleOver(cause) => report::trouble_over(cause),
            Action::Stopped => self.state.is_stopped = true,
        }
    }

    /// Counts the known destinations now and then: there may be thousands.
    fn count_destinations(&mut self, now: Duration) {
        if now >= self.state.counted_at + COUNTING_PERIOD {
            self.state.counted_at = now;
            let (ordinary, slowed) = self.dispatch.known_destinations();
            self.metrics.destinations.set(["ordinary".into()], ordinary as f64);
            self.metrics.destinations.set(["slowed".into()], slowed as f64);
        }
    }

    fn begin(&mut self, transaction: impl Future<Output = TransactionResult> + Send + 'static) {
        self.state.transactions.push(Box::pin(transaction));
    }

    fn report(&self, held: &HeldAttempt, logged: Logged, recorded: &Recorded) {
        report::attempt(&self.metrics, self.store.clock().now(), held, logged, recorded);
    }

    fn note_progress(&self, clock: &Clock) {
        let ago = |since: Duration| Instant::now().checked_sub(clock.monotonic().saturating_sub(since));
        let unrecorded_since = self.dispatch.unrecorded_since().and_then(ago);
        self.progress.update(unrecorded_since, self.dispatch.troubles());
        self.metrics.in_flight.set([], self.dispatch.in_flight() as f64);
    }
}

/// How often destinations are counted.
const COUNTING_PERIOD: Duration = Duration::from_secs(5);
/// Upper bound of a sleep. The clock may advance while the timer does not, such as on a suspended host.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
