//! Records late results: those that arrive after their lease has ended and been recorded.

use contracts::{FailureReason, Timestamp};
use diesel::prelude::*;
use engine::protection::{Protection, is_off};
use engine::{AttemptResult, Effect, Settlement, Transition};

use crate::columns::{DbId, DbTime};
use crate::connect::AnyConnection;
use crate::deliveries::attempts::replace_lost;
use crate::deliveries::transitions::write_transitions;
use crate::error::StoreError;
use crate::runs::erase::{forget_response, is_erased};
use crate::schema::attempts;

/// Records a result whose claim is no longer held: its lease ended and the relay recorded `outcome_unknown`,
/// or this same result was recorded before. The existing record must also have the same claim time, because
/// after an attempt was handed back another claim can have the same number.
pub(super) fn finish_late(
    tx: &mut AnyConnection,
    now: Timestamp,
    result: &AttemptResult,
) -> Result<Effect, StoreError> {
    let place = attempts::table.find((DbId::from(result.delivery_id), result.record.number));
    let written: Option<(DbId, DbTime)> =
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
    if !replace_lost(tx, result.delivery_id, &record)? {
        return Ok(Effect::Dropped);
    }
    if result.settlement != Settlement::Succeeded || is_off(Protection::LateSuccess) {
        return Ok(Effect::Late { closed: false });
    }
    let closed = write_transitions(tx, &[Transition::late_success(result.delivery_id, now)])?;
    Ok(Effect::Late { closed: !closed.is_empty() })
}
