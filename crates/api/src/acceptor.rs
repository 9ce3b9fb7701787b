//! Accepts redeliveries in batches: a commit waits for the disk, so whatever gathered while the last batch was being
//! committed is the next one, and is rung for at once. A lone request never waits for company.

use std::time::Duration;

use queue::Publisher;
use store::{AcceptPolicy, Redelivery, RedeliveryRequest, Store, StoreError, redeliver_batch};
use tokio::sync::{mpsc, oneshot};

use crate::doorbell::ring;
use crate::error::ApiError;
use crate::room::LIGHT_RUN;

/// The most requests of one transaction: from here on the cost of a commit no longer shows.
const BATCH: usize = 64;
/// How many requests may wait for their batch. Beyond that, requests wait for room.
const WAITING: usize = 1024;

/// Takes requests for redeliveries. Cheap to clone.
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
    /// Starts the task that accepts, which ends when the last clone is dropped. A transaction that takes longer than
    /// `patience` is left to itself, so that one connection gone silent does not hold up all batches to come.
    pub(crate) fn start(
        store: Store,
        publisher: Publisher,
        policy: AcceptPolicy,
        patience: Duration,
    ) -> Acceptor {
        let (requests, waiting) = mpsc::channel(WAITING);
        let acceptance = Acceptance { store, publisher, policy, patience };
        tokio::spawn(run(acceptance.clone(), waiting));
        Acceptor { requests, acceptance }
    }

    /// Answers once the request's transaction has been committed, and rung for, or has failed. A large run is not read in
    /// a batch with others; one that has room for it comes alone.
    pub(crate) async fn redeliver(
        &self,
        request: RedeliveryRequest,
        has_room: bool,
    ) -> Result<Redelivery, ApiError> {
        if has_room {
            return Ok(self.acceptance.accept_alone(request, usize::MAX).await?);
        }
        if request.supersede {
            return Ok(self.acceptance.accept_alone(request, LIGHT_RUN).await?); // it must not come in a batch
        }
        let (answer, answered) = oneshot::channel();
        // The task ends only with the process, or by a panic.
        self.requests.send(Waiting { request, answer }).await.map_err(|_| StoreError::Panicked)?;
        Ok(answered.await.map_err(|_| StoreError::Panicked)??)
    }
}

#[derive(Clone)]
struct Acceptance {
    store: Store,
    publisher: Publisher,
    policy: AcceptPolicy,
    patience: Duration,
}

async fn run(acceptance: Acceptance, mut waiting: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::with_capacity(BATCH);
    while waiting.recv_many(&mut batch, BATCH).await > 0 {
        // Nobody waits any more for those that waited too long: they have been told so, and may have asked again.
        let (requests, answers): (Vec<_>, Vec<_>) = batch
            .drain(..)
            .filter(|waiting| !waiting.answer.is_closed())
            .map(|Waiting { request, answer }| (request, answer))
            .unzip();
        for (answer, result) in answers.into_iter().zip(acceptance.accept(requests).await) {
            // A client that hung up wants no answer; its delivery is accepted all the same.
            let _ = answer.send(result);
        }
    }
}

impl Acceptance {
    /// A batch that is refused for what is in it is accepted one by one: a run that can't be read must not fail the
    /// requests beside it.
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
        let asked_by: Vec<String> = requests.iter().map(|request| request.request_id.clone()).collect();
        let accept = move |tx: &mut _, now| redeliver_batch(tx, now, &policy, &requests, max_bytes);
        let answers: Vec<Redelivery> = self.store.write_within(self.patience, accept).await?;
        let accepted = answers.iter().zip(asked_by).filter_map(|(answer, asked_by)| match answer {
            Redelivery::Accepted(accepted) => Some((accepted, asked_by)),
            _ => None,
        });
        ring(&self.publisher, accepted);
        Ok(answers)
    }
}
