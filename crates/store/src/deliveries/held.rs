//! Rows of attempts in flight, shared by all statements that claim or recover.

use std::collections::HashMap;

use bytes::Bytes;
use contracts::{RequestContext, SecretId};
use diesel::backend::Backend;
use diesel::pg::PgRowByRowLoadingMode;
use diesel::prelude::*;
use diesel::serialize::ToSql;
use diesel::sql_types::{Array, BigInt, Binary, Bool, HasSqlType, Integer, Nullable, Text};
use engine::transition::Claiming;
use engine::{Claimed, HeldAttempt};

use crate::columns::{DbId, DbTime, Id, Moment};
use crate::connect::AnyConnection;
use crate::error::StoreError;
use crate::prepared::{Prepared, column, prepared};

/// The `SET` list of every claim; [`bind_claiming`] binds it. Claiming is the only state change that is not a
/// `Transition`, because the attempt number depends on the row.
macro_rules! claim_set {
    () => {
        "attempt_count = attempt_count + 1, next_attempt_at = NULL, claim_id = ?, claimed_at = ?, wake_at = ?, updated_at = ?"
    };
}
pub(super) use claim_set;

/// The columns of [`HeldSql`] from an open delivery, for an attempt that is not a probe.
macro_rules! claimed_columns {
    () => {
        "id, org_id, run_id, destination, attempt_count, max_attempts, is_automatic, created_at, claim_id, claimed_at, FALSE"
    };
}
pub(super) use claimed_columns;

/// The columns of [`HeldSql`] from `open_deliveries o`, joined with the `destinations` row `h` whose probe
/// has the same claim id.
macro_rules! held_columns {
    () => {
        "o.id, o.org_id, o.run_id, o.destination, o.attempt_count, o.max_attempts, o.is_automatic, o.created_at,
             o.claim_id, o.claimed_at, h.destination IS NOT NULL"
    };
}
pub(super) use held_columns;

/// A row of an attempt in flight.
pub(super) type HeldSql = (Id, Id, Id, BigInt, Integer, Integer, Bool, Moment, Id, Moment, Bool);
pub(super) type HeldRow = (DbId, DbId, DbId, i64, i32, i32, bool, DbTime, DbId, DbTime, bool);

/// The request that created a delivery: its ID and its `traceparent`.
pub(super) type RequestSql = (Text, Nullable<Text>);
pub(super) type RequestRow = (String, Option<String>);

/// The columns of `deliveries` that a send needs: id, request, URL, payload and secret.
type FactsSql = (Id, RequestSql, Text, Binary, Nullable<Id>);
type FactsRow = (DbId, RequestRow, String, Vec<u8>, Option<DbId>);

/// Adds the data to send to claimed attempts. Fails if an open delivery has no row in `deliveries`.
pub(super) fn with_facts(tx: &mut AnyConnection, rows: Vec<HeldRow>) -> Result<Vec<Claimed>, StoreError> {
    let ids = column(&rows, |(id, ..)| *id);
    let mut facts: HashMap<DbId, FactsRow> = HashMap::with_capacity(rows.len());
    match tx {
        AnyConnection::Postgres(_) if ids.is_empty() => {}
        AnyConnection::Postgres(pg) => {
            let statement = prepared::<FactsSql, _>(
                "SELECT id, request_id, traceparent, callback_url, payload, signing_secret_id FROM deliveries
                 WHERE id = ANY (?)",
            )
            .bind::<Array<Id>, _>(ids);
            // Row by row: otherwise libpq keeps all rows in memory until the last one is converted.
            for row in statement.load_iter::<FactsRow, PgRowByRowLoadingMode>(pg)? {
                let row = row?;
                facts.insert(row.0, row);
            }
        }
        AnyConnection::Sqlite(sqlite) => {
            for id in ids {
                let row: Option<FactsRow> = prepared::<FactsSql, _>(
                    "SELECT id, request_id, traceparent, callback_url, payload, signing_secret_id FROM deliveries
                     WHERE id = ?",
                )
                .bind::<Id, _>(id)
                .get_result(sqlite)
                .optional()?;
                facts.extend(row.map(|row| (id, row)));
            }
        }
    }
    let claimed = |row: HeldRow| {
        let (_, request, callback_url, payload, secret) = facts
            .remove(&row.0)
            .ok_or_else(|| StoreError::corrupt("an open delivery without a payload", &row.0.0))?;
        Ok(Claimed {
            held: held(row, request),
            due_at: None,
            callback_url,
            payload: Bytes::from(payload),
            signing_secret_id: secret.map(SecretId::from),
        })
    };
    rows.into_iter().map(claimed).collect()
}

/// Converts a row of an attempt in flight. `request` created the delivery.
pub(super) fn held(row: HeldRow, (request_id, traceparent): RequestRow) -> HeldAttempt {
    let (
        delivery,
        org,
        run,
        destination,
        number,
        max_attempts,
        is_automatic,
        created_at,
        claim,
        at,
        is_probe,
    ) = row;
    HeldAttempt {
        delivery_id: delivery.into(),
        org_id: org.into(),
        run_id: run.into(),
        destination: destination.into(),
        attempt: number,
        max_attempts,
        is_automatic,
        created_at: created_at.into(),
        // Only an operator can have changed it: a trace less, and nothing more.
        request: RequestContext { request_id, traceparent: traceparent.and_then(|text| text.parse().ok()) },
        claim_id: claim.into(),
        claimed_at: at.into(),
        is_probe,
    }
}

/// Binds the parameters of [`claim_set`].
pub(super) fn bind_claiming<'a, Row, DB>(
    statement: Prepared<'a, DB, Row>,
    claiming: &Claiming,
) -> Prepared<'a, DB, Row>
where
    DB: Backend + HasSqlType<Id> + HasSqlType<Moment>,
    DbId: ToSql<Id, DB>,
    DbTime: ToSql<Moment, DB>,
{
    statement
        .bind::<Id, _>(DbId::from(claiming.claim_id))
        .bind::<Moment, _>(DbTime::from(claiming.claimed_at))
        .bind::<Moment, _>(DbTime::from(claiming.wake_at))
        .bind::<Moment, _>(DbTime::from(claiming.claimed_at))
}
