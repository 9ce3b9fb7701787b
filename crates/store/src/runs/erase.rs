//! Erases the content of a run's callbacks, and keeps the records of their deliveries.

use contracts::{DeliveryId, DeliveryStatus, FailureReason, OrgId, RunId, RunStatus, Timestamp};
use diesel::prelude::*;
use diesel::sql_types::{Array, Integer};
use engine::{AttemptRecord, Transition};
use sha2::{Digest, Sha256};

use crate::columns::{DbId, DbTime, Id};
use crate::connect::AnyConnection;
use crate::deliveries::open::{WhenLocked, lock_open};
use crate::deliveries::transitions::write_transitions;
use crate::error::StoreError;
use crate::prepared::{column, prepared};
use crate::runs::read::find_run;
use crate::runs::to_deliver::lock_runs_exclusively;
use crate::schema::{attempts, deliveries, ended_deliveries, erased_parts, runs};

/// The result of a request to erase a run. Only `Erased` changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Erasure {
    /// The run is erased.
    Erased {
        /// Number of deliveries whose payload was erased.
        deliveries: usize,
        /// Number of attempts whose response body was erased.
        response_bodies: usize,
    },
    /// The run was erased earlier, at this time.
    ErasedBefore(Timestamp),
    /// The organization has no such run.
    RunNotFound,
    /// The run has not ended, so a later report would restore its data.
    RunNotTerminal(RunStatus),
    /// A callback is in flight.
    BeingSent(DeliveryId),
}

/// Replaces an erased payload.
const NOTHING: &[u8] = b"{}";

/// Erases a run's output, metadata, failure message and URL, its deliveries' payloads, and their attempts'
/// response bodies, headers and quotes of these in failure details. Hashes, sizes and times remain. A waiting
/// delivery is first ended as `erased`; if a delivery is in flight, nothing is erased.
///
/// Does not reach row versions that PostgreSQL keeps until its next vacuum, write-ahead logs and backups.
/// SQLite overwrites freed content in its file; [`Store::checkpoint`](crate::Store::checkpoint) empties its
/// log.
pub fn erase_run(
    tx: &mut AnyConnection,
    now: Timestamp,
    org: OrgId,
    run: RunId,
) -> Result<Erasure, StoreError> {
    if let AnyConnection::Postgres(pg) = tx {
        // Excludes requests that record the run, and requests that lock its row while the advisory lock below
        // is taken.
        prepared::<Integer, _>("SELECT 1 FROM runs WHERE org_id = ? AND id = ? FOR UPDATE")
            .bind::<Id, _>(DbId::from(org))
            .bind::<Id, _>(DbId::from(run))
            .load::<i32>(pg)?;
    }
    lock_runs_exclusively(tx)?;
    let Some(known) = find_run(tx, org, run)? else { return Ok(Erasure::RunNotFound) };
    let row = runs::table.find((DbId::from(org), DbId::from(run)));
    let erased_at: Option<DbTime> = row.select(runs::erased_at).first(tx)?;
    if let Some(at) = erased_at {
        return Ok(Erasure::ErasedBefore(at.into()));
    }
    if !known.status_code.is_terminal() {
        return Ok(Erasure::RunNotTerminal(known.status_code));
    }
    let ids = match lock_deliveries(tx, org, run)? {
        Ok(ids) => ids,
        Err(sent) => return Ok(Erasure::BeingSent(sent)),
    };
    let ended: Vec<Transition> = ids.iter().map(|id| Transition::erased(*id, now)).collect();
    write_transitions(tx, &ended)?;
    let mut erased = Parts { tx, org, run };
    let mut response_bodies = 0;
    for id in &ids {
        response_bodies += erased.delivery(*id)?;
    }
    let text = |text: &Option<contracts::JsonText>| text.as_ref().map(|text| text.as_str().to_owned());
    erased.note(None, None, "output", text(&known.output))?;
    erased.note(None, None, "metadata", text(&known.metadata))?;
    erased.note(None, None, "failure_message", known.failure_message)?;
    erased.note(None, None, "callback_url", known.callback_url)?;
    diesel::update(row)
        .set((
            runs::output.eq(None::<String>),
            runs::metadata.eq(None::<String>),
            runs::failure_message.eq(None::<String>),
            runs::callback_url.eq(None::<String>),
            runs::erased_at.eq(Some(DbTime::from(now))),
            runs::updated_at.eq(DbTime::from(now)),
        ))
        .execute(tx)?;
    Ok(Erasure::Erased { deliveries: ids.len(), response_bodies })
}

/// Locks the run's deliveries, open ones first and in id order as every batch does. Returns all ids, or as
/// `Err` the id of a delivery in flight.
fn lock_deliveries(
    tx: &mut AnyConnection,
    org: OrgId,
    run: RunId,
) -> Result<Result<Vec<DeliveryId>, DeliveryId>, StoreError> {
    let ids: Vec<DbId> = deliveries::table
        .filter(deliveries::org_id.eq(DbId::from(org)))
        .filter(deliveries::run_id.eq(DbId::from(run)))
        .order_by(deliveries::id)
        .select(deliveries::id)
        .load(tx)?;
    let ids: Vec<DeliveryId> = ids.into_iter().map(DeliveryId::from).collect();
    let open = lock_open(tx, ids.iter().copied(), WhenLocked::Wait)?;
    if let Some((id, _)) = open.iter().find(|(_, row)| row.status() == DeliveryStatus::Delivering) {
        return Ok(Err(*id));
    }
    if let AnyConnection::Postgres(pg) = tx {
        prepared::<Integer, _>("SELECT 1 FROM ended_deliveries WHERE id = ANY (?) ORDER BY id FOR UPDATE")
            .bind::<Array<Id>, _>(column(&ids, |id| DbId::from(*id)))
            .load::<i32>(pg)?;
    }
    Ok(Ok(ids))
}

struct Parts<'a> {
    tx: &'a mut AnyConnection,
    org: OrgId,
    run: RunId,
}

impl Parts<'_> {
    /// Erases one delivery's payload and its attempts' responses, and returns the number of erased bodies.
    fn delivery(&mut self, id: DeliveryId) -> Result<usize, StoreError> {
        let key = DbId::from(id);
        let payload: Vec<u8> = deliveries::table.find(key).select(deliveries::payload).first(self.tx)?;
        self.note(Some(key), None, "payload", Some(payload))?;
        diesel::update(deliveries::table.find(key)).set(deliveries::payload.eq(NOTHING)).execute(self.tx)?;
        let of_delivery = attempts::delivery_id.eq(key);
        let bodies: Vec<(i32, String)> = attempts::table
            .filter(of_delivery.and(attempts::response_body.is_not_null()))
            .select((attempts::attempt_number, attempts::response_body.assume_not_null()))
            .load(self.tx)?;
        for (number, body) in &bodies {
            self.note(Some(key), Some(*number), "response_body", Some(body))?;
        }
        diesel::update(attempts::table.filter(of_delivery))
            .set((
                attempts::response_body.eq(None::<String>),
                attempts::content_type.eq(None::<String>),
                attempts::response_headers.eq(None::<String>),
            ))
            .execute(self.tx)?;
        self.sentences(key)?;
        Ok(bodies.len())
    }

    /// Replaces the failure details of HTTP errors, which may quote a header, with details from the status
    /// alone.
    fn sentences(&mut self, delivery: DbId) -> QueryResult<()> {
        let http_error = <&str>::from(FailureReason::HttpError);
        let refused: Vec<(i32, i32)> = attempts::table
            .filter(attempts::delivery_id.eq(delivery))
            .filter(attempts::failure_reason_code.eq(http_error))
            .order_by(attempts::attempt_number)
            .select((attempts::attempt_number, attempts::status_code.assume_not_null()))
            .load(self.tx)?;
        for (number, status) in &refused {
            diesel::update(attempts::table.find((delivery, number)))
                .set(attempts::failure_detail.eq(engine::http_error(*status, None).detail))
                .execute(self.tx)?;
        }
        let Some((_, status)) = refused.last() else { return Ok(()) };
        diesel::update(ended_deliveries::table.find(delivery))
            .filter(ended_deliveries::failure_reason_code.eq(http_error))
            .set(ended_deliveries::failure_detail.eq(engine::http_error(*status, None).detail))
            .execute(self.tx)
            .map(drop)
    }

    fn note(
        &mut self,
        delivery: Option<DbId>,
        attempt: Option<i32>,
        part: &str,
        content: Option<impl AsRef<[u8]>>,
    ) -> Result<(), StoreError> {
        let Some(content) = content else { return Ok(()) };
        let content = content.as_ref();
        diesel::insert_into(erased_parts::table)
            .values((
                erased_parts::org_id.eq(DbId::from(self.org)),
                erased_parts::run_id.eq(DbId::from(self.run)),
                erased_parts::delivery_id.eq(delivery),
                erased_parts::attempt_number.eq(attempt),
                erased_parts::part.eq(part),
                erased_parts::sha256.eq(Sha256::digest(content).as_slice()),
                erased_parts::size.eq(i64::try_from(content.len()).unwrap_or(i64::MAX)),
            ))
            .execute(self.tx)?;
        Ok(())
    }
}

/// Clears the parts of an attempt's record that are not kept for an erased run.
pub(crate) fn forget_response(record: &mut AttemptRecord) {
    record.response_body = None;
    record.timing.content_type = None;
    record.timing.headers = None;
    if let (Some(failure), Some(status)) = (&mut record.failure, record.status_code)
        && failure.reason == FailureReason::HttpError
    {
        *failure = engine::http_error(status, None);
    }
}

/// Returns whether the delivery's run has been erased, so that a late result must not restore anything.
pub(crate) fn is_erased(tx: &mut AnyConnection, delivery: DeliveryId) -> QueryResult<bool> {
    let erased = deliveries::table
        .inner_join(runs::table.on(runs::org_id.eq(deliveries::org_id).and(runs::id.eq(deliveries::run_id))))
        .filter(deliveries::id.eq(DbId::from(delivery)))
        .filter(runs::erased_at.is_not_null());
    diesel::select(diesel::dsl::exists(erased)).get_result(tx)
}
