//! Accepts requested redeliveries (contract section 3, "Redelivery guards").

use std::collections::{HashMap, HashSet};

use contracts::{Delivery, DeliveryStatus, InFlight, OrgId, RunId, RunStatus, Timestamp};
use engine::Transition;

use crate::accept::{
    AcceptPolicy, Accepted, IsAutomatic, NewDelivery, build, in_flight, insert_unless_in_flight,
};
use crate::columns::Key;
use crate::connect::AnyConnection;
use crate::deliveries::{DeliveryParts, delivery_bytes, find_delivery};
use crate::error::StoreError;
use crate::idempotency::{IdempotencyKey, Made, find_made, give_back, take_keys};
use crate::runs::{RunToDeliver, find_runs_to_deliver};
use crate::steps::transitions::write_transitions;

/// The result of a redelivery request. Only `Accepted` changes anything.
#[derive(Debug, PartialEq)]
pub enum Redelivery {
    /// A new delivery was accepted.
    Accepted(Accepted),
    /// The same request was accepted before with the same idempotency key. Contains its delivery as it was
    /// then.
    Repeated(Delivery),
    /// Like `Repeated`, but the delivery has been pruned since.
    RepeatedButPruned,
    /// The idempotency key was used for another request.
    KeyReused,
    /// The organization has no such run.
    RunNotFound,
    /// The run has not ended.
    RunNotTerminal(RunStatus),
    /// The run has no callback URL.
    CallbackUrlMissing,
    /// Another delivery of the run is open.
    InFlight(InFlight),
    /// The run, or the repeated delivery, is larger than the limit. Contains its size in bytes.
    TooLarge(usize),
}

/// A request for a redelivery.
#[derive(Clone, Debug)]
pub struct RedeliveryRequest {
    /// The caller's organization.
    pub org_id: OrgId,
    /// The run whose callback to send again.
    pub run_id: RunId,
    /// The API request that creates the redelivery.
    pub request_id: String,
    /// Whether to end a delivery that waits for its retry.
    pub supersede: bool,
    /// Identifies a repeated request.
    pub idempotency_key: Option<IdempotencyKey>,
}

impl RedeliveryRequest {
    fn key(&self) -> Option<(OrgId, &IdempotencyKey)> {
        Some((self.org_id, self.idempotency_key.as_ref()?))
    }
}

/// Accepts one redelivery without an idempotency key that supersedes nothing; see [`redeliver_batch`].
pub fn redeliver(
    tx: &mut AnyConnection,
    now: Timestamp,
    policy: &AcceptPolicy,
    org_id: OrgId,
    run_id: RunId,
    request_id: &str,
) -> Result<Redelivery, StoreError> {
    let request_id = request_id.to_owned();
    let request = RedeliveryRequest { org_id, run_id, request_id, supersede: false, idempotency_key: None };
    let mut answers = redeliver_batch(tx, now, policy, &[request], usize::MAX)?;
    Ok(answers.pop().expect("an answer for each request"))
}

/// Accepts a batch of redeliveries. Returns for each request, in order, a new delivery with a payload from
/// its run's current state, or the reason for the refusal. The unique index on open deliveries decides
/// whether one is in flight, also between the requests of a batch. A request that supersedes must be alone in
/// its batch: it locks a row that the engine may be locking. Runs and deliveries of more than `max_bytes` are
/// not read, so that a batch is bounded.
pub fn redeliver_batch(
    tx: &mut AnyConnection,
    now: Timestamp,
    policy: &AcceptPolicy,
    requests: &[RedeliveryRequest],
    max_bytes: usize,
) -> Result<Vec<Redelivery>, StoreError> {
    let mut answers: Vec<Option<Redelivery>> = requests.iter().map(|_| None).collect();
    let mut left: Vec<usize> = (0..requests.len()).collect();
    while !left.is_empty() {
        // One request per key first: the others with this key repeat it, or differ from it and are refused.
        let mut keys = HashSet::new();
        let (round, later): (Vec<usize>, Vec<usize>) = left.into_iter().partition(|place| {
            requests[*place].key().is_none_or(|(org, IdempotencyKey { key, .. })| keys.insert((org, key)))
        });
        let batch: Vec<&RedeliveryRequest> = round.iter().map(|place| &requests[*place]).collect();
        left = later;
        for (place, answer) in round.into_iter().zip(decide(tx, now, policy, &batch, max_bytes)?) {
            if answer.is_none() {
                left.push(place); // its key was taken by another request and released again
            }
            answers[place] = answer;
        }
    }
    Ok(answers.into_iter().map(|answer| answer.expect("every request is answered by now")).collect())
}

/// Decides requests with distinct keys. `None`: its key was taken and released again; retry.
fn decide(
    tx: &mut AnyConnection,
    now: Timestamp,
    policy: &AcceptPolicy,
    requests: &[&RedeliveryRequest],
    max_bytes: usize,
) -> Result<Vec<Option<Redelivery>>, StoreError> {
    let mut answers: Vec<Option<Redelivery>> = requests.iter().map(|_| None).collect();
    repeat_known(tx, now, requests, max_bytes, &mut answers)?;
    let mut new = build_unanswered(tx, now, policy, requests, max_bytes, &mut answers)?;
    // In the same order everywhere, so that two batches can't deadlock.
    new.sort_unstable_by(|(a, _), (b, _)| requests[*a].key().cmp(&requests[*b].key()));
    let keyed: Vec<_> = new
        .iter()
        .filter_map(|(place, delivery)| {
            let (org, key) = requests[*place].key()?;
            Some((org, key, Key::from(delivery.id)))
        })
        .collect();
    if !keyed.is_empty() {
        let taken = take_keys(tx, now, &keyed)?;
        new.retain(|(place, delivery)| {
            requests[*place].idempotency_key.is_none() || taken.contains(&Key::from(delivery.id))
        });
        if taken.len() < keyed.len() {
            // Taken by other transactions since the first lookup.
            repeat_known(tx, now, requests, max_bytes, &mut answers)?;
        }
    }
    insert_or_refuse(tx, requests, new, &mut answers)?;
    let refused: Vec<_> = requests
        .iter()
        .zip(&answers)
        .filter(|(_, answer)| matches!(answer, Some(Redelivery::InFlight(_))))
        .filter_map(|(request, _)| request.key())
        .collect();
    give_back(tx, &refused)?;
    Ok(answers)
}

/// Answers the unanswered requests whose idempotency key is known.
fn repeat_known(
    tx: &mut AnyConnection,
    now: Timestamp,
    requests: &[&RedeliveryRequest],
    max_bytes: usize,
    answers: &mut [Option<Redelivery>],
) -> Result<(), StoreError> {
    let keys: Vec<_> = requests.iter().filter_map(|request| request.key()).collect();
    let known: HashMap<(OrgId, String), Made> = find_made(tx, now, &keys)?;
    for (request, answer) in requests.iter().zip(answers) {
        let Some((org, key)) = request.key() else { continue };
        let Some(made) = known.get(&(org, key.key.clone())).filter(|_| answer.is_none()) else { continue };
        *answer = Some(if made.is_answer_to(key) {
            let bytes = delivery_bytes(tx, org, made.id.into(), AS_ACCEPTED)?;
            if bytes > max_bytes {
                *answer = Some(Redelivery::TooLarge(bytes));
                continue;
            }
            let delivery = find_delivery(tx, org, made.id.into(), AS_ACCEPTED)?;
            delivery
                .map_or(Redelivery::RepeatedButPruned, |delivery| Redelivery::Repeated(as_accepted(delivery)))
        } else {
            Redelivery::KeyReused
        });
    }
    Ok(())
}

/// Builds the deliveries of the unanswered requests, and answers those whose run can't be delivered.
fn build_unanswered(
    tx: &mut AnyConnection,
    now: Timestamp,
    policy: &AcceptPolicy,
    requests: &[&RedeliveryRequest],
    max_bytes: usize,
    answers: &mut [Option<Redelivery>],
) -> Result<Vec<(usize, Delivery)>, StoreError> {
    let keys: Vec<(OrgId, RunId)> = requests.iter().map(|request| (request.org_id, request.run_id)).collect();
    let runs = find_runs_to_deliver(tx, &keys, max_bytes)?;
    let mut new = Vec::new();
    for (place, (key, answer)) in keys.iter().zip(answers).enumerate() {
        if answer.is_some() {
            continue;
        }
        let refused = match runs.get(key) {
            None => Redelivery::RunNotFound,
            Some(RunToDeliver { run, .. }) if !run.status_code.is_terminal() => {
                Redelivery::RunNotTerminal(run.status_code)
            }
            Some(RunToDeliver { bytes, .. }) if *bytes > max_bytes => Redelivery::TooLarge(*bytes),
            Some(RunToDeliver { run, secret, .. }) => {
                if let Some(delivery) = build(now, policy, run, *secret, IsAutomatic(false))? {
                    new.push((place, delivery));
                    continue;
                }
                Redelivery::CallbackUrlMissing
            }
        };
        *answer = Some(refused);
    }
    Ok(new)
}

/// Inserts each new delivery unless another one of its run is in flight.
fn insert_or_refuse(
    tx: &mut AnyConnection,
    requests: &[&RedeliveryRequest],
    mut new: Vec<(usize, Delivery)>,
    answers: &mut [Option<Redelivery>],
) -> Result<(), StoreError> {
    // In the same order everywhere, so that two batches can't deadlock.
    new.sort_unstable_by_key(|(place, _)| (requests[*place].org_id, requests[*place].run_id));
    while !new.is_empty() {
        let rows = new.iter().map(|(place, delivery)| {
            let RedeliveryRequest { org_id, request_id, .. } = requests[*place];
            NewDelivery { org_id: *org_id, request_id, delivery }
        });
        let inserted = insert_unless_in_flight(tx, &rows.collect::<Vec<_>>())?;
        let mut left = Vec::new();
        for (place, delivery) in new {
            let RedeliveryRequest { org_id, supersede, .. } = *requests[place];
            if inserted.contains(&delivery.id) {
                answers[place] = Some(Redelivery::Accepted(Accepted { org_id, delivery }));
                continue;
            }
            match in_flight(tx, org_id, delivery.run_id)? {
                Some(other) if supersede => {
                    let superseded = Transition::superseded(other.delivery_id, delivery.created_at);
                    match write_transitions(tx, &[superseded])?.is_empty() {
                        false => left.push((place, delivery)),
                        true => answers[place] = Some(Redelivery::InFlight(other)),
                    }
                }
                Some(other) => answers[place] = Some(Redelivery::InFlight(other)),
                // It ended in between; retry the insert.
                None => left.push((place, delivery)),
            }
        }
        new = left;
    }
    Ok(())
}

/// The parts of a delivery that the response to its acceptance shows.
const AS_ACCEPTED: DeliveryParts = DeliveryParts { attempts: false, ..DeliveryParts::SHOWN };

/// Returns a delivery in its state at acceptance. Its other fields never change.
fn as_accepted(delivery: Delivery) -> Delivery {
    Delivery {
        status_code: DeliveryStatus::Pending,
        failure_reason_code: None,
        failure_detail: None,
        attempt_count: 0,
        next_attempt_at: Some(delivery.created_at),
        updated_at: delivery.created_at,
        completed_at: None,
        ..delivery
    }
}
