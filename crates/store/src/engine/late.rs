//! Results that come late: after their lease has ended and been recorded.

use contracts::{FailureReason, Timestamp};
use diesel::prelude::*;

use crate::columns::{Key, Time};
use crate::connect::AnyConnection;
use crate::engine::finish::{Effect, Finished, Settlement, detail, reason};
use crate::erase::is_erased;
use crate::error::StoreError;
use crate::schema::{attempts, deliveries};

/// A result whose claim is no longer held: its lease ended and the relay recorded `outcome_unknown`, or its
/// delivery has been finished by this very result before.
pub(super) fn finish_late(
    tx: &mut AnyConnection,
    now: Timestamp,
    result: &Finished,
) -> Result<Effect, StoreError> {
    let record = &result.record;
    let place = attempts::table.find((Key::from(result.delivery_id), record.number));
    let written: Option<Key> = place.select(attempts::id).first(tx).optional()?;
    if written == Some(record.id.into()) {
        return Ok(Effect::Finished); // by an earlier try, whose commit came through unnoticed
    }
    if record.failure.as_ref().is_some_and(|failure| failure.reason == FailureReason::OutcomeUnknown) {
        return Ok(Effect::Dropped);
    }
    let is_erased = is_erased(tx, result.delivery_id)?;
    let response_body = record.response_body.as_ref().filter(|_| !is_erased);
    let replaced = diesel::update(place)
        .filter(attempts::failure_reason_code.eq(<&str>::from(FailureReason::OutcomeUnknown)))
        .set((
            attempts::status_code.eq(record.status_code),
            attempts::response_body.eq(response_body),
            attempts::response_time_ms.eq(record.response_time_ms),
            attempts::failure_reason_code.eq(reason(result)),
            attempts::failure_detail.eq(detail(result)),
        ))
        .execute(tx)?;
    if replaced == 0 {
        return Ok(Effect::Dropped);
    }
    if result.settlement != Settlement::Succeeded {
        return Ok(Effect::Late { closed: false });
    }
    let now = Time::from(now);
    let none = None::<Time>;
    let closed = diesel::update(deliveries::table.find(Key::from(result.delivery_id)))
        .filter(deliveries::status_code.eq("pending"))
        .set((
            deliveries::status_code.eq("succeeded"),
            deliveries::next_attempt_at.eq(none),
            deliveries::wake_at.eq(none),
            deliveries::failure_reason_code.eq(None::<String>),
            deliveries::failure_detail.eq(None::<String>),
            deliveries::completed_at.eq(Some(now)),
            deliveries::updated_at.eq(now),
        ))
        .execute(tx)?;
    Ok(Effect::Late { closed: closed == 1 })
}
