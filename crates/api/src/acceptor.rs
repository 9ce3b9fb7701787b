//! Accepts redeliveries in batches: a commit waits for the disk, so whatever gathered while the last batch was being
//! committed is the next one. A lone request never waits for company.

use store::{AcceptPolicy, Redelivery, RedeliveryRequest, Store, StoreError, redeliver_batch};
use tokio::sync::{mpsc, oneshot};

use crate::error::ApiError;

/// The most requests of one transaction: from here on the cost of a commit no longer shows.
const BATCH: usize = 64;
/// How many requests may wait for their batch. Beyond that, requests wait for room.
const WAITING: usize = 1024;

/// Takes requests for redeliveries. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Acceptor(mpsc::Sender<Waiting>);

struct Waiting {
    request: RedeliveryRequest,
    answer: oneshot::Sender<Result<Redelivery, StoreError>>,
}

impl Acceptor {
    /// Starts the task that accepts, which ends when the last clone is dropped.
    pub(crate) fn start(store: Store, policy: AcceptPolicy) -> Acceptor {
        let (requests, waiting) = mpsc::channel(WAITING);
        tokio::spawn(run(store, policy, waiting));
        Acceptor(requests)
    }

    /// Answers once the request's transaction has been committed or has failed.
    pub(crate) async fn redeliver(&self, request: RedeliveryRequest) -> Result<Redelivery, ApiError> {
        let (answer, answered) = oneshot::channel();
        // The task ends only with the process, or by a panic.
        self.0.send(Waiting { request, answer }).await.map_err(|_| StoreError::Panicked)?;
        Ok(answered.await.map_err(|_| StoreError::Panicked)??)
    }
}

async fn run(store: Store, policy: AcceptPolicy, mut waiting: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::with_capacity(BATCH);
    while waiting.recv_many(&mut batch, BATCH).await > 0 {
        let (requests, answers): (Vec<_>, Vec<_>) =
            batch.drain(..).map(|Waiting { request, answer }| (request, answer)).unzip();
        for (answer, result) in answers.into_iter().zip(accept(&store, policy, requests).await) {
            // A client that hung up wants no answer; its delivery is accepted all the same.
            let _ = answer.send(result);
        }
    }
}

/// A batch that is refused for what is in it is accepted one by one: a run that can't be read must not fail the
/// requests beside it. So is a batch with a request that supersedes, which must come alone.
async fn accept(
    store: &Store,
    policy: AcceptPolicy,
    requests: Vec<RedeliveryRequest>,
) -> Vec<Result<Redelivery, StoreError>> {
    let alone = requests.len() > 1 && requests.iter().any(|request| request.supersede);
    if alone {
        return accept_one_by_one(store, policy, requests).await;
    }
    match accept_together(store, policy, requests.clone()).await {
        Ok(answers) => answers.into_iter().map(Ok).collect(),
        Err(error) if error.is_outage() => {
            requests.iter().map(|_| Err(StoreError::Unavailable(error.to_string()))).collect()
        }
        Err(error) if requests.len() == 1 => vec![Err(error)],
        Err(_) => accept_one_by_one(store, policy, requests).await,
    }
}

async fn accept_one_by_one(
    store: &Store,
    policy: AcceptPolicy,
    requests: Vec<RedeliveryRequest>,
) -> Vec<Result<Redelivery, StoreError>> {
    let mut answers = Vec::with_capacity(requests.len());
    for request in requests {
        let alone = accept_together(store, policy, vec![request]).await;
        answers.push(alone.map(|mut answers| answers.remove(0)));
    }
    answers
}

async fn accept_together(
    store: &Store,
    policy: AcceptPolicy,
    requests: Vec<RedeliveryRequest>,
) -> Result<Vec<Redelivery>, StoreError> {
    store.write(move |tx, now| redeliver_batch(tx, now, &policy, &requests)).await
}
