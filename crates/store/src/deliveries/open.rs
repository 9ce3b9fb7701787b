//! Locks open deliveries for the current transaction.

use std::collections::HashMap;

use contracts::{ClaimId, DeliveryId, DeliveryStatus};
use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Integer, Nullable, Text};

use crate::columns::{DbId, DbTime, Id, Moment};
use crate::connect::AnyConnection;
use crate::prepared::prepared;

/// The columns of an open delivery that a transition needs.
#[derive(Clone, Debug)]
pub(crate) struct OpenDelivery {
    pub(super) id: DbId,
    pub(super) org: DbId,
    pub(super) callback_host: String,
    pub(super) is_automatic: bool,
    pub(super) attempt_count: i32,
    pub(super) failure_reason_code: Option<String>,
    pub(super) failure_detail: Option<String>,
    pub(super) claim_id: Option<ClaimId>,
    pub(super) created_at: DbTime,
}

impl OpenDelivery {
    /// Returns `Pending` or `Delivering`.
    pub(crate) fn status(&self) -> DeliveryStatus {
        match self.claim_id {
            None => DeliveryStatus::Pending,
            Some(_) => DeliveryStatus::Delivering,
        }
    }
}

/// How to treat a row that another session has locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhenLocked {
    Wait,
    /// Skip it, as if it did not exist.
    PassOver,
}

macro_rules! open_delivery {
    ($rest:literal) => {
        concat!(
            "SELECT id, org_id, callback_host, is_automatic, attempt_count, failure_reason_code, failure_detail, claim_id,
                 created_at
             FROM open_deliveries WHERE id ",
            $rest
        )
    };
}

type OpenSql = (Id, Id, Text, Bool, Integer, Nullable<Text>, Nullable<Text>, Nullable<Id>, Moment);
type OpenRow = (DbId, DbId, String, bool, i32, Option<String>, Option<String>, Option<DbId>, DbTime);

/// Locks the open deliveries among `ids`, in id order as every batch does.
pub(crate) fn lock_open(
    tx: &mut AnyConnection,
    ids: impl IntoIterator<Item = DeliveryId>,
    when_locked: WhenLocked,
) -> QueryResult<HashMap<DeliveryId, OpenDelivery>> {
    let ids: Vec<DbId> = ids.into_iter().map(DbId::from).collect();
    let rows: Vec<OpenRow> = match tx {
        AnyConnection::Postgres(pg) => prepared::<OpenSql, _>(match when_locked {
            WhenLocked::Wait => open_delivery!("= ANY (?) ORDER BY id FOR UPDATE"),
            WhenLocked::PassOver => open_delivery!("= ANY (?) ORDER BY id FOR UPDATE SKIP LOCKED"),
        })
        .bind::<Array<Id>, _>(ids)
        .load(pg)?,
        AnyConnection::Sqlite(sqlite) => {
            let mut rows = Vec::with_capacity(ids.len());
            for id in ids {
                let row = prepared::<OpenSql, _>(open_delivery!("= ?")).bind::<Id, _>(id);
                rows.extend(row.get_result::<OpenRow>(sqlite).optional()?);
            }
            rows
        }
    };
    Ok(rows.into_iter().map(open).map(|row| (row.id.into(), row)).collect())
}

fn open(row: OpenRow) -> OpenDelivery {
    let (id, org, callback_host, is_automatic, attempt_count, reason, detail, claim, created_at) = row;
    OpenDelivery {
        id,
        org,
        callback_host,
        is_automatic,
        attempt_count,
        failure_reason_code: reason,
        failure_detail: detail,
        claim_id: claim.map(ClaimId::from),
        created_at,
    }
}
