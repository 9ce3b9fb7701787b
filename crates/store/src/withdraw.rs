//! Withdrawing a delivery that waits (contract section 3).

use contracts::{Delivery, DeliveryId, DeliveryStatus, FailureReason, OrgId, Timestamp};
use engine::Transition;

use crate::connect::AnyConnection;
use crate::deliveries::{DeliveryParts, find_delivery};
use crate::error::StoreError;
use crate::idempotency::{IdempotencyKey, find_made, give_back, take_keys};
use crate::steps::transitions::write_transitions;

/// The answer to a request to withdraw a delivery. Only the first `Withdrawn` changes anything.
#[derive(Clone, Debug, PartialEq)]
pub enum Withdrawal {
    /// It has ended as `withdrawn`, now or before.
    Withdrawn(Box<Delivery>),
    /// It is being sent, or has ended otherwise.
    NotWaiting(DeliveryStatus),
    /// The idempotency key was used for another request.
    KeyReused,
    /// No such delivery in this organization.
    DeliveryNotFound,
}

/// Ends a delivery that waits, tried or not. To a repeated request a withdrawn delivery is shown as it stands: nothing
/// about it changes any more but a record of `outcome_unknown` whose result comes late.
pub fn withdraw(
    tx: &mut AnyConnection,
    now: Timestamp,
    org: OrgId,
    id: DeliveryId,
    key: Option<&IdempotencyKey>,
) -> Result<Withdrawal, StoreError> {
    if let Some(key) = key
        && take_keys(tx, now, &[(org, key, id.into())])?.is_empty()
        && !find_made(tx, now, &[(org, key)])?.values().any(|made| made.is_answer_to(key))
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
    // The row decides. Each turn ends, or finds that the delivery has been claimed, or its attempt ended, in between.
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
