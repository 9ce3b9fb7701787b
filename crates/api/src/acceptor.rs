//! Accepts redeliveries in batches. A commit waits for the disk, so the requests that arrive during one
//! commit form the next batch. Doorbells ring as soon as a batch is committed. A lone request never waits for
//! others.

use std::time::{Duration, Instant};

use contracts::RequestContext;
use ops::{Metrics, Tracer};
use queue::Publisher;
use store::{AcceptPolicy, Redelivery, RedeliveryRequest, Store, StoreError, redeliver_batch};
use tokio::sync::{mpsc, oneshot};

use crate::context::Api;
use crate::doorbell::ring;
use crate::error::ApiError;
use crate::limits::LIGHT_RUN;

/// Maximum requests per transaction. At this size, the cost of the commit is negligible.
const BATCH: usize = 64;
/// Capacity of the channel of requests that wait for a batch. When it is full, senders wait.
const WAITING: usize = 1024;

/// Submits redelivery requests to the accepting task. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Acceptor {
    requests: mpsc::Sender<Waiting>,
    acceptance: Acceptance,
}

struct Waiting {
    request: RedeliveryRequest,
    answer: oneshot::Sender<Result<Redelivery, StoreError>>,
}

impl Acceptor {
    /// Starts the accepting task, which ends when the last clone is dropped. A transaction that takes longer
    /// than the API's `database_time` is no longer awaited, so that one unresponsive connection does not block
    /// all later batches.
    pub(crate) fn start(api: &Api) -> Acceptor {
        let (requests, waiting) = mpsc::channel(WAITING);
        let acceptance = Acceptance {
            store: api.store.clone(),
            publisher: api.publisher.clone(),
            metrics: api.metrics.clone(),
            tracer: api.tracer.clone(),
            policy: api.accept,
            patience: api.limits.database_time,
        };
        tokio::spawn(run(acceptance.clone(), waiting));
        Acceptor { requests, acceptance }
    }

    /// Returns once the transaction has failed, or has been committed and its doorbell rung. A large run is
    /// not read in a batch with others: if `has_room`, the request gets a transaction of its own without a
    /// byte limit.
    pub(crate) async fn redeliver(
        &self,
        request: RedeliveryRequest,
        has_room: bool,
    ) -> Result<Redelivery, ApiError> {
        if has_room {
            return Ok(self.acceptance.accept_alone(request, usize::MAX).await?);
        }
        if request.supersede {
            return Ok(self.acceptance.accept_alone(request, LIGHT_RUN).await?); // must not share a batch
        }
        let (answer, answered) = oneshot::channel();
        // The channel closes only if the process ends or the task panics.
        self.requests.send(Waiting { request, answer }).await.map_err(|_| StoreError::Panicked)?;
        Ok(answered.await.map_err(|_| StoreError::Panicked)??)
    }
}

#[derive(Clone)]
struct Acceptance {
    store: Store,
    publisher: Publisher,
    metrics: Metrics,
    tracer: Tracer,
    policy: AcceptPolicy,
    patience: Duration,
}

async fn run(acceptance: Acceptance, mut waiting: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::with_capacity(BATCH);
    while waiting.recv_many(&mut batch, BATCH).await > 0 {
        // Skips requests that are no longer awaited: their clients got a timeout and may have retried.
        let (requests, answers): (Vec<_>, Vec<_>) = batch
            .drain(..)
            .filter(|waiting| !waiting.answer.is_closed())
            .map(|Waiting { request, answer }| (request, answer))
            .unzip();
        for (answer, result) in answers.into_iter().zip(acceptance.accept(requests).await) {
            // Fails if the client hung up. The delivery is accepted anyway.
            let _ = answer.send(result);
        }
    }
}

impl Acceptance {
    /// Accepts a batch. If the batch fails because of its content, accepts its requests one by one, so that
    /// an unreadable run fails only its own request.
    async fn accept(&self, requests: Vec<RedeliveryRequest>) -> Vec<Result<Redelivery, StoreError>> {
        if requests.is_empty() {
            return Vec::new();
        }
        match self.accept_together(requests.clone(), LIGHT_RUN).await {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            Err(error) if error.is_outage() => {
                requests.iter().map(|_| Err(StoreError::Unavailable(error.to_string()))).collect()
            }
            Err(error) if requests.len() == 1 => vec![Err(error)],
            Err(_) => {
                let mut answers = Vec::with_capacity(requests.len());
                for request in requests {
                    answers.push(self.accept_alone(request, LIGHT_RUN).await);
                }
                answers
            }
        }
    }

    async fn accept_alone(
        &self,
        request: RedeliveryRequest,
        max_bytes: usize,
    ) -> Result<Redelivery, StoreError> {
        Ok(self.accept_together(vec![request], max_bytes).await?.remove(0))
    }

    async fn accept_together(
        &self,
        requests: Vec<RedeliveryRequest>,
        max_bytes: usize,
    ) -> Result<Vec<Redelivery>, StoreError> {
        let policy = self.policy;
        let asked_by: Vec<RequestContext> = requests.iter().map(|request| request.request.clone()).collect();
        let accept = move |tx: &mut _, now| redeliver_batch(tx, now, &policy, &requests, max_bytes);
        let (began, size) = (Instant::now(), asked_by.len());
        let accepted: Result<Vec<Redelivery>, StoreError> =
            self.store.write_within(self.patience, accept).await;
        self.metrics.transaction("accept", began, accepted.as_ref().err().map(StoreError::label));
        self.metrics.accept_batches.observe([], size as f64);
        let answers = accepted?;
        let accepted = answers.iter().zip(asked_by).filter_map(|(answer, asked_by)| match answer {
            Redelivery::Accepted(accepted) => Some((accepted, asked_by)),
            _ => None,
        });
        ring(&self.publisher, &self.metrics, &self.tracer, accepted);
        Ok(answers)
    }
}
