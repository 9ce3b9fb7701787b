//! Records late results: those that arrive after their lease has ended and been recorded.

use contracts::{FailureReason, Timestamp};
use diesel::prelude::*;
use engine::protection::{Protection, is_off};
use engine::{AttemptResult, Effect, Settlement, Transition};

use crate::columns::{Key, Time};
use crate::connect::AnyConnection;
use crate::erase::{forget_response, is_erased};
use crate::error::StoreError;
use crate::schema::attempts;
use crate::steps::finish::{detail, reason, response_headers};
use crate::steps::transitions::write_transitions;

/// Records a result whose claim is no longer held: its lease ended and the relay recorded `outcome_unknown`,
/// or this same result was recorded before. The existing record must also have the same claim time, because
/// after an attempt was handed back another claim can have the same number.
pub(super) fn finish_late(
    tx: &mut AnyConnection,
    now: Timestamp,
    result: &AttemptResult,
) -> Result<Effect, StoreError> {
    let place = attempts::table.find((Key::from(result.delivery_id), result.record.number));
    let written: Option<(Key, Time)> =
        place.select((attempts::id, attempts::created_at)).first(tx).optional()?;
    if written.is_some_and(|(id, _)| id == result.record.id.into()) {
        return Ok(Effect::Recorded); // by an earlier try, whose commit succeeded unnoticed
    }
    let is_of_its_claim =
        written.is_some_and(|(_, claimed_at)| claimed_at == result.record.claimed_at.into());
    if !is_of_its_claim && !is_off(Protection::LateRecord) {
        return Ok(Effect::Dropped);
    }
    if result.record.failure.as_ref().is_some_and(|failure| failure.reason == FailureReason::OutcomeUnknown) {
        return Ok(Effect::Dropped);
    }
    let is_erased = is_erased(tx, result.delivery_id)? && !is_off(Protection::ErasedStays);
    let mut record = result.record.clone();
    if is_erased {
        forget_response(&mut record);
    }
    let timing = &record.timing;
    let replaced = diesel::update(place)
        .filter(attempts::failure_reason_code.eq(<&str>::from(FailureReason::OutcomeUnknown)))
        .set((
            attempts::status_code.eq(record.status_code),
            attempts::response_body.eq(&record.response_body),
            attempts::response_time_ms.eq(record.response_time_ms),
            attempts::failure_reason_code.eq(reason(&record)),
            attempts::failure_detail.eq(detail(&record)),
            attempts::resolve_ms.eq(timing.resolve),
            attempts::connect_ms.eq(timing.connect),
            attempts::tls_ms.eq(timing.tls),
            attempts::send_ms.eq(timing.send),
            attempts::wait_ms.eq(timing.wait),
            attempts::body_ms.eq(timing.body),
            attempts::remote_address.eq(&timing.remote_address),
            attempts::content_type.eq(&timing.content_type),
            attempts::response_headers.eq(response_headers(timing)),
        ))
        .execute(tx)?;
    if replaced == 0 {
        return Ok(Effect::Dropped);
    }
    if result.settlement != Settlement::Succeeded || is_off(Protection::LateSuccess) {
        return Ok(Effect::Late { closed: false });
    }
    let closed = write_transitions(tx, &[Transition::late_success(result.delivery_id, now)])?;
    Ok(Effect::Late { closed: !closed.is_empty() })
}
