//! Accepts requested redeliveries (contract section 3, "Redelivery guards").

use std::collections::{HashMap, HashSet};

use contracts::{
    Delivery, DeliveryId, DeliveryStatus, InFlight, OrgId, RequestContext, RunId, RunStatus, Timestamp,
};
use engine::Transition;

use crate::columns::DbId;
use crate::connect::AnyConnection;
use crate::deliveries::accept::{
    AcceptPolicy, Accepted, IsAutomatic, NewDelivery, in_flight, insert_unless_in_flight, new_delivery,
};
use crate::deliveries::read::{DeliveryParts, delivery_bytes, find_delivery};
use crate::deliveries::transitions::write_transitions;
use crate::error::StoreError;
use crate::idempotency::{IdempotencyKey, KeyRecord, find_keys, give_back, take_keys};
use crate::runs::to_deliver::{RunToDeliver, find_runs_to_deliver};

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
    pub request: RequestContext,
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
    request: RequestContext,
) -> Result<Redelivery, StoreError> {
    let request = RedeliveryRequest { org_id, run_id, request, supersede: false, idempotency_key: None };
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
    let mut cases: Vec<Case> = requests.iter().map(Case::of).collect();
    loop {
        // One request per key first: the others with this key repeat it, or differ from it and are refused.
        let mut keys = HashSet::new();
        let mut round: Vec<&mut Case> = cases
            .iter_mut()
            .filter(|case| case.answer.is_none())
            .filter(|case| case.request.key().is_none_or(|(org, key)| keys.insert((org, &key.key))))
            .collect();
        if round.is_empty() {
            return Ok(cases.into_iter().filter_map(|case| case.answer).collect());
        }
        decide(tx, now, policy, &mut round, max_bytes)?;
    }
}

/// A request of a batch, with its answer once it has one.
struct Case<'a> {
    request: &'a RedeliveryRequest,
    /// The delivery to insert.
    new: Option<Delivery>,
    /// Whether a waiting delivery was ended for it.
    superseded: bool,
    answer: Option<Redelivery>,
}

impl<'a> Case<'a> {
    fn of(request: &'a RedeliveryRequest) -> Case<'a> {
        Case { request, new: None, superseded: false, answer: None }
    }

    /// Returns the idempotency key to take for the new delivery.
    fn key_to_take(&self) -> Option<(OrgId, &'a IdempotencyKey, DbId)> {
        let (request, new) = (self.request, self.new.as_ref()?);
        request.key().map(|(org, key)| (org, key, DbId::from(new.id)))
    }

    /// Returns the new delivery as it is inserted.
    fn row(&self) -> Option<NewDelivery<'_>> {
        let RedeliveryRequest { org_id, request, .. } = self.request;
        Some(NewDelivery { org_id: *org_id, request, delivery: self.new.as_ref()? })
    }
}

/// Decides requests with distinct keys. One whose key was taken and released again in between stays
/// unanswered.
fn decide(
    tx: &mut AnyConnection,
    now: Timestamp,
    policy: &AcceptPolicy,
    cases: &mut [&mut Case<'_>],
    max_bytes: usize,
) -> Result<(), StoreError> {
    repeat_known(tx, now, cases, max_bytes)?;
    build_unanswered(tx, now, policy, cases, max_bytes)?;
    // In the same order everywhere, so that two batches can't deadlock.
    cases.sort_unstable_by(|a, b| a.request.key().cmp(&b.request.key()));
    let keyed: Vec<_> = cases.iter().filter_map(|case| case.key_to_take()).collect();
    if !keyed.is_empty() {
        let (wanted, taken) = (keyed.len(), take_keys(tx, now, &keyed)?);
        for case in cases.iter_mut().filter(|case| case.request.idempotency_key.is_some()) {
            case.new.take_if(|delivery| !taken.contains(&DbId::from(delivery.id)));
        }
        if taken.len() < wanted {
            // Taken by other transactions since the first lookup.
            repeat_known(tx, now, cases, max_bytes)?;
        }
    }
    insert_or_refuse(tx, cases)?;
    let refused = cases.iter().filter(|case| matches!(case.answer, Some(Redelivery::InFlight(_))));
    Ok(give_back(tx, &refused.filter_map(|case| case.request.key()).collect::<Vec<_>>())?)
}

/// Answers the unanswered requests whose idempotency key is known.
fn repeat_known(
    tx: &mut AnyConnection,
    now: Timestamp,
    cases: &mut [&mut Case<'_>],
    max_bytes: usize,
) -> Result<(), StoreError> {
    let keys: Vec<_> = cases.iter().filter_map(|case| case.request.key()).collect();
    let known: HashMap<(OrgId, String), KeyRecord> = find_keys(tx, now, &keys)?;
    for case in cases.iter_mut().filter(|case| case.answer.is_none()) {
        let Some((org, key)) = case.request.key() else { continue };
        let Some(record) = known.get(&(org, key.key.clone())) else { continue };
        case.answer = Some(if record.is_answer_to(key) {
            repeated(tx, org, record.id.into(), max_bytes)?
        } else {
            Redelivery::KeyReused
        });
    }
    Ok(())
}

/// Returns the answer to a repeated request.
fn repeated(
    tx: &mut AnyConnection,
    org: OrgId,
    id: DeliveryId,
    max_bytes: usize,
) -> Result<Redelivery, StoreError> {
    let bytes = delivery_bytes(tx, org, id, AS_ACCEPTED)?;
    if bytes > max_bytes {
        return Ok(Redelivery::TooLarge(bytes));
    }
    Ok(match find_delivery(tx, org, id, AS_ACCEPTED)? {
        Some(delivery) => Redelivery::Repeated(as_accepted(delivery)),
        None => Redelivery::RepeatedButPruned,
    })
}

/// Builds the deliveries of the unanswered requests, and answers those whose run can't be delivered.
fn build_unanswered(
    tx: &mut AnyConnection,
    now: Timestamp,
    policy: &AcceptPolicy,
    cases: &mut [&mut Case<'_>],
    max_bytes: usize,
) -> Result<(), StoreError> {
    let keys: Vec<(OrgId, RunId)> =
        cases.iter().map(|case| (case.request.org_id, case.request.run_id)).collect();
    let runs = find_runs_to_deliver(tx, &keys, max_bytes)?;
    for case in cases.iter_mut().filter(|case| case.answer.is_none()) {
        case.answer = match runs.get(&(case.request.org_id, case.request.run_id)) {
            None => Some(Redelivery::RunNotFound),
            Some(RunToDeliver { run, .. }) if !run.status_code.is_terminal() => {
                Some(Redelivery::RunNotTerminal(run.status_code))
            }
            Some(RunToDeliver { bytes, .. }) if *bytes > max_bytes => Some(Redelivery::TooLarge(*bytes)),
            Some(RunToDeliver { run, secret, .. }) => {
                case.new = new_delivery(now, policy, run, *secret, IsAutomatic(false))?;
                case.new.is_none().then_some(Redelivery::CallbackUrlMissing)
            }
        };
    }
    Ok(())
}

/// Inserts each new delivery unless another one of its run is in flight.
fn insert_or_refuse(tx: &mut AnyConnection, cases: &mut [&mut Case<'_>]) -> Result<(), StoreError> {
    // In the same order everywhere, so that two batches can't deadlock.
    cases.sort_unstable_by_key(|case| (case.request.org_id, case.request.run_id));
    loop {
        let rows: Vec<NewDelivery<'_>> = cases.iter().filter_map(|case| case.row()).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let inserted = insert_unless_in_flight(tx, &rows)?;
        for case in cases.iter_mut() {
            let Some(delivery) = case.new.take() else { continue };
            let (org_id, supersede) = (case.request.org_id, case.request.supersede);
            if inserted.contains(&delivery.id) {
                case.answer =
                    Some(Redelivery::Accepted(Accepted { org_id, delivery, superseded: case.superseded }));
                continue;
            }
            let Some(other) = in_flight(tx, org_id, delivery.run_id)? else {
                case.new = Some(delivery); // the other one ended in between; insert again
                continue;
            };
            let superseded = Transition::superseded(other.delivery_id, delivery.created_at);
            if supersede && !write_transitions(tx, &[superseded])?.is_empty() {
                case.superseded = true;
                case.new = Some(delivery); // the other one ended just now; insert again
            } else {
                case.answer = Some(Redelivery::InFlight(other));
            }
        }
    }
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
