//! Withdraws waiting deliveries (contract section 3).

use contracts::{Delivery, DeliveryId, DeliveryStatus, FailureReason, OrgId, Timestamp};
use engine::Transition;

use crate::connect::AnyConnection;
use crate::deliveries::read::{DeliveryParts, find_delivery};
use crate::deliveries::transitions::write_transitions;
use crate::error::StoreError;
use crate::idempotency::{IdempotencyKey, find_keys, give_back, take_keys};

/// The result of a request to withdraw a delivery. Only the first `Withdrawn` changes anything.
#[derive(Clone, Debug, PartialEq)]
pub enum Withdrawal {
    /// The delivery has ended as `withdrawn`, now or earlier.
    Withdrawn(Box<Delivery>),
    /// The delivery is in flight, or has ended in another way.
    NotWaiting(DeliveryStatus),
    /// The idempotency key was used for another request.
    KeyReused,
    /// The organization has no such delivery.
    DeliveryNotFound,
}

/// Ends a waiting delivery, whether or not it was attempted. A repeated request returns the withdrawn
/// delivery in its current state. The only later change is a late result that replaces a record of
/// `outcome_unknown`.
pub fn withdraw(
    tx: &mut AnyConnection,
    now: Timestamp,
    org: OrgId,
    id: DeliveryId,
    key: Option<&IdempotencyKey>,
) -> Result<Withdrawal, StoreError> {
    if let Some(key) = key
        && take_keys(tx, now, &[(org, key, id.into())])?.is_empty()
        && !find_keys(tx, now, &[(org, key)])?.values().any(|made| made.is_answer_to(key))
    {
        return Ok(Withdrawal::KeyReused);
    }
    let withdrawal = end(tx, now, org, id)?;
    if let Some(key) = key
        && !matches!(withdrawal, Withdrawal::Withdrawn(_))
    {
        give_back(tx, &[(org, key)])?;
    }
    Ok(withdrawal)
}

fn end(tx: &mut AnyConnection, now: Timestamp, org: OrgId, id: DeliveryId) -> Result<Withdrawal, StoreError> {
    // The row decides. Repeats only if the delivery was claimed, or its attempt ended, in between.
    loop {
        let Some(delivery) = find_delivery(tx, org, id, DeliveryParts::SHOWN)? else {
            return Ok(Withdrawal::DeliveryNotFound);
        };
        match (delivery.status_code, delivery.failure_reason_code) {
            (DeliveryStatus::Failed, Some(FailureReason::Withdrawn)) => {
                return Ok(Withdrawal::Withdrawn(delivery.into()));
            }
            (DeliveryStatus::Pending, _) => {
                write_transitions(tx, &[Transition::withdrawn(id, now)])?;
            }
            (status, _) => return Ok(Withdrawal::NotWaiting(status)),
        }
    }
}
