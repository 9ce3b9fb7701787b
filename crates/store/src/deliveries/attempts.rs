//! Rows of `attempts`.

use contracts::{DeliveryId, FailureReason, Timing};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text};
use engine::{AttemptRecord, AttemptResult};

use crate::columns::{DbId, DbTime, Id, Moment};
use crate::connect::AnyConnection;
use crate::prepared::{column, prepared};
use crate::schema::attempts;

/// Inserts the records of results.
pub(super) fn insert_attempts(tx: &mut AnyConnection, ours: &[&AttemptResult]) -> QueryResult<()> {
    match tx {
        AnyConnection::Postgres(_) if ours.is_empty() => {}
        AnyConnection::Postgres(pg) => {
            prepared::<(), _>(
                "INSERT INTO attempts (id, delivery_id, attempt_number, status_code, response_body,
                     response_time_ms, failure_reason_code, failure_detail, created_at, resolve_ms, connect_ms,
                     tls_ms, send_ms, wait_ms, body_ms, remote_address, content_type, response_headers)
                 SELECT * FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )
            .bind::<Array<Id>, _>(column(ours, |r| DbId::from(r.record.id)))
            .bind::<Array<Id>, _>(column(ours, |r| DbId::from(r.delivery_id)))
            .bind::<Array<Integer>, _>(column(ours, |r| r.record.number))
            .bind::<Array<Nullable<Integer>>, _>(column(ours, |r| r.record.status_code))
            .bind::<Array<Nullable<Text>>, _>(column(ours, |r| r.record.response_body.as_deref()))
            .bind::<Array<Nullable<BigInt>>, _>(column(ours, |r| r.record.response_time_ms))
            .bind::<Array<Nullable<Text>>, _>(column(ours, |r| reason(&r.record)))
            .bind::<Array<Nullable<Text>>, _>(column(ours, |r| detail(&r.record)))
            .bind::<Array<Moment>, _>(column(ours, |r| DbTime::from(r.record.claimed_at)))
            .bind::<Array<Nullable<Integer>>, _>(column(ours, |r| r.record.timing.resolve))
            .bind::<Array<Nullable<Integer>>, _>(column(ours, |r| r.record.timing.connect))
            .bind::<Array<Nullable<Integer>>, _>(column(ours, |r| r.record.timing.tls))
            .bind::<Array<Nullable<Integer>>, _>(column(ours, |r| r.record.timing.send))
            .bind::<Array<Nullable<Integer>>, _>(column(ours, |r| r.record.timing.wait))
            .bind::<Array<Nullable<Integer>>, _>(column(ours, |r| r.record.timing.body))
            .bind::<Array<Nullable<Text>>, _>(column(ours, |r| r.record.timing.remote_address.as_deref()))
            .bind::<Array<Nullable<Text>>, _>(column(ours, |r| r.record.timing.content_type.as_deref()))
            .bind::<Array<Nullable<Text>>, _>(column(ours, |r| response_headers(&r.record.timing)))
            .execute(pg)?;
        }
        AnyConnection::Sqlite(sqlite) => {
            for r in ours {
                prepared::<(), _>(
                    "INSERT INTO attempts (id, delivery_id, attempt_number, status_code, response_body,
                         response_time_ms, failure_reason_code, failure_detail, created_at, resolve_ms, connect_ms,
                         tls_ms, send_ms, wait_ms, body_ms, remote_address, content_type, response_headers)
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                )
                .bind::<Id, _>(DbId::from(r.record.id))
                .bind::<Id, _>(DbId::from(r.delivery_id))
                .bind::<Integer, _>(r.record.number)
                .bind::<Nullable<Integer>, _>(r.record.status_code)
                .bind::<Nullable<Text>, _>(r.record.response_body.as_deref())
                .bind::<Nullable<BigInt>, _>(r.record.response_time_ms)
                .bind::<Nullable<Text>, _>(reason(&r.record))
                .bind::<Nullable<Text>, _>(detail(&r.record))
                .bind::<Moment, _>(DbTime::from(r.record.claimed_at))
                .bind::<Nullable<Integer>, _>(r.record.timing.resolve)
                .bind::<Nullable<Integer>, _>(r.record.timing.connect)
                .bind::<Nullable<Integer>, _>(r.record.timing.tls)
                .bind::<Nullable<Integer>, _>(r.record.timing.send)
                .bind::<Nullable<Integer>, _>(r.record.timing.wait)
                .bind::<Nullable<Integer>, _>(r.record.timing.body)
                .bind::<Nullable<Text>, _>(r.record.timing.remote_address.as_deref())
                .bind::<Nullable<Text>, _>(r.record.timing.content_type.as_deref())
                .bind::<Nullable<Text>, _>(response_headers(&r.record.timing))
                .execute(sqlite)?;
            }
        }
    }
    Ok(())
}

/// Replaces a record of `outcome_unknown`. Returns whether there was one.
pub(super) fn replace_lost(
    tx: &mut AnyConnection,
    delivery: DeliveryId,
    record: &AttemptRecord,
) -> QueryResult<bool> {
    let timing = &record.timing;
    let replaced = diesel::update(attempts::table.find((DbId::from(delivery), record.number)))
        .filter(attempts::failure_reason_code.eq(<&str>::from(FailureReason::OutcomeUnknown)))
        .set((
            attempts::status_code.eq(record.status_code),
            attempts::response_body.eq(&record.response_body),
            attempts::response_time_ms.eq(record.response_time_ms),
            attempts::failure_reason_code.eq(reason(record)),
            attempts::failure_detail.eq(detail(record)),
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
    Ok(replaced > 0)
}

fn reason(record: &AttemptRecord) -> Option<&'static str> {
    record.failure.as_ref().map(|failure| failure.reason.into())
}

fn detail(record: &AttemptRecord) -> Option<&str> {
    record.failure.as_ref().map(|failure| failure.detail.as_str())
}

/// Returns the selected response headers in their stored form.
fn response_headers(timing: &Timing) -> Option<String> {
    let headers = timing.headers.as_ref()?;
    Some(serde_json::to_string(headers).expect("a map of texts is JSON"))
}
