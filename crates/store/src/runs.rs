//! Reads runs, and protects them while deliveries of them are created.

use std::collections::HashMap;

use contracts::{JsonText, OrgId, Run, RunId, RunStatus, SecretId, Timestamp};
use diesel::dsl::case_when;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text};
use strum::VariantArray;

use crate::columns::{Id, Key, Moment, Time};
use crate::connect::{AnyConnection, MultiBackend};
use crate::error::StoreError;
use crate::page::{PageRequest, Rows, paged, position, text_bytes};
use crate::prepared::{column, prepared};
use crate::schema::runs;

#[derive(Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = runs, check_for_backend(MultiBackend), treat_none_as_default_value = false)]
#[diesel(treat_none_as_null = true, primary_key(org_id, id))]
pub(crate) struct RunRow {
    org_id: Key,
    id: Key,
    status_code: String,
    output: Option<String>,
    duration_ms: Option<i64>,
    created_at: Time,
    started_at: Option<Time>,
    completed_at: Option<Time>,
    callback_url: Option<String>,
    metadata: Option<String>,
    failure_code: Option<String>,
    failure_message: Option<String>,
    failure_stage_code: Option<String>,
    updated_at: Time,
}

impl From<&Run> for RunRow {
    fn from(run: &Run) -> RunRow {
        RunRow {
            org_id: run.org_id.into(),
            id: run.id.into(),
            status_code: run.status_code.to_string(),
            output: run.output.as_ref().map(|text| text.as_str().to_owned()),
            duration_ms: run.duration_ms,
            created_at: run.created_at.into(),
            started_at: run.started_at.map(Time::from),
            completed_at: run.completed_at.map(Time::from),
            callback_url: run.callback_url.clone(),
            metadata: run.metadata.as_ref().map(|text| text.as_str().to_owned()),
            failure_code: run.failure_code.clone(),
            failure_message: run.failure_message.clone(),
            failure_stage_code: run.failure_stage_code.clone(),
            updated_at: run.updated_at.into(),
        }
    }
}

impl TryFrom<RunRow> for Run {
    type Error = StoreError;

    fn try_from(row: RunRow) -> Result<Run, StoreError> {
        let unknown = |_| StoreError::corrupt("a run's status_code", &row.status_code);
        Ok(Run {
            id: row.id.into(),
            org_id: row.org_id.into(),
            status_code: row.status_code.parse().map_err(unknown)?,
            output: row.output.map(JsonText::from_trusted),
            duration_ms: row.duration_ms,
            created_at: row.created_at.into(),
            started_at: row.started_at.map(Timestamp::from),
            completed_at: row.completed_at.map(Timestamp::from),
            callback_url: row.callback_url,
            metadata: row.metadata.map(JsonText::from_trusted),
            failure_code: row.failure_code,
            failure_message: row.failure_message,
            failure_stage_code: row.failure_stage_code,
            updated_at: row.updated_at.into(),
        })
    }
}

/// Returns the organization's run with this id.
pub fn find_run(tx: &mut AnyConnection, org: OrgId, id: RunId) -> Result<Option<Run>, StoreError> {
    find_row(tx, org, id)?.map(Run::try_from).transpose()
}

/// Which potentially long parts of runs to read. Parts that are not read are `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct RunParts {
    pub output: bool,
    pub metadata: bool,
}

impl RunParts {
    /// Both parts.
    pub const ALL: RunParts = RunParts { output: true, metadata: true };
}

/// Returns a page of the organization's runs, of one status or of any.
pub fn runs_page(
    tx: &mut AnyConnection,
    org: OrgId,
    status: Option<RunStatus>,
    request: &PageRequest,
    parts: RunParts,
) -> Result<Rows<Run>, StoreError> {
    let mut found = Vec::new();
    let all = RunStatus::VARIANTS.iter();
    for wanted in all.filter(|wanted| status.is_none_or(|status| status == **wanted)) {
        let query = runs::table
            .filter(runs::org_id.eq(Key::from(org)))
            .filter(runs::status_code.eq(<&str>::from(wanted)))
            .select((runs::created_at, runs::id))
            .into_boxed();
        let positions: Vec<(Time, Key)> = paged!(query, runs, request).load(tx)?;
        found.extend(positions.into_iter().map(position));
    }
    let mut found = request.gather(found);
    found.cut(request, &bytes_of(tx, org, found.ids(), parts)?);
    // The columns of a `RunRow`.
    let columns = (
        runs::org_id,
        runs::id,
        runs::status_code,
        case_when(parts.output.into_sql::<Bool>(), runs::output),
        runs::duration_ms,
        runs::created_at,
        runs::started_at,
        runs::completed_at,
        runs::callback_url,
        case_when(parts.metadata.into_sql::<Bool>(), runs::metadata),
        runs::failure_code,
        runs::failure_message,
        runs::failure_stage_code,
        runs::updated_at,
    );
    let rows: Vec<RunRow> = runs::table
        .filter(runs::org_id.eq(Key::from(org)))
        .filter(runs::id.eq_any(found.ids()))
        .select(columns)
        .load(tx)?;
    let runs = rows.into_iter().map(Run::try_from).collect::<Result<Vec<_>, _>>()?;
    Ok(found.page(request, runs, |run| run.id.0))
}

pub(crate) fn run_exists(tx: &mut AnyConnection, org: OrgId, id: RunId) -> QueryResult<bool> {
    diesel::select(diesel::dsl::exists(runs::table.find((Key::from(org), Key::from(id))))).get_result(tx)
}

/// Returns the size in bytes of the run's output, metadata and failure texts; 0 if there is no such run.
pub fn run_bytes(tx: &mut AnyConnection, org: OrgId, id: RunId) -> Result<usize, StoreError> {
    // By the whole key: for a list of ids, a planner without statistics walks through the organization's
    // runs.
    let texts =
        runs::table.find((Key::from(org), Key::from(id))).select(texts()).first::<Texts>(tx).optional()?;
    Ok(texts.map_or(0, |texts| usize::try_from(sum(texts)).unwrap_or(0)))
}

type Texts = (Option<i32>, Option<i32>, Option<i32>, Option<i32>, Option<i32>);

/// The size of each text of a run in bytes.
#[diesel::dsl::auto_type(no_type_alias)]
fn texts() -> _ {
    (
        text_bytes(runs::output),
        text_bytes(runs::metadata),
        text_bytes(runs::failure_code),
        text_bytes(runs::failure_message),
        text_bytes(runs::failure_stage_code),
    )
}

fn sum((output, metadata, code, message, stage): Texts) -> i64 {
    [output, metadata, code, message, stage].into_iter().flatten().map(i64::from).sum()
}

fn bytes_of(
    tx: &mut AnyConnection,
    org: OrgId,
    ids: Vec<Key>,
    parts: RunParts,
) -> QueryResult<HashMap<Key, i64>> {
    let rows: Vec<(Key, Texts)> = runs::table
        .filter(runs::org_id.eq(Key::from(org)))
        .filter(runs::id.eq_any(ids))
        .select((runs::id, texts()))
        .load(tx)?;
    let read = |(output, metadata, code, message, stage): Texts| {
        (output.filter(|_| parts.output), metadata.filter(|_| parts.metadata), code, message, stage)
    };
    Ok(rows.into_iter().map(|(id, texts)| (id, sum(read(texts)))).collect())
}

fn find_row(tx: &mut AnyConnection, org: OrgId, id: RunId) -> QueryResult<Option<RunRow>> {
    runs::table.find((Key::from(org), Key::from(id))).select(RunRow::as_select()).first(tx).optional()
}

/// The columns of a [`RunRow`].
type RunSql = (
    Id,
    Id,
    Text,
    Nullable<Text>,
    Nullable<BigInt>,
    Moment,
    Nullable<Moment>,
    Nullable<Moment>,
    Nullable<Text>,
    Nullable<Text>,
    Nullable<Text>,
    Nullable<Text>,
    Nullable<Text>,
    Moment,
);

/// A run, and the secret to fix on a new delivery of it.
pub(crate) struct RunToDeliver {
    /// Without its output, metadata and failure texts if they exceed the requested maximum.
    pub(crate) run: Run,
    pub(crate) secret: Option<SecretId>,
    /// The size of these texts in bytes.
    pub(crate) bytes: usize,
}

/// The size in bytes of the texts of a run `r`.
macro_rules! texts_bytes {
    () => {
        "coalesce(octet_length(r.output), 0) + coalesce(octet_length(r.metadata), 0)
         + coalesce(octet_length(r.failure_code), 0) + coalesce(octet_length(r.failure_message), 0)
         + coalesce(octet_length(r.failure_stage_code), 0)"
    };
}

/// The columns of a [`RunRow`], the current secret and the size, from a run `r` with a secret `s`. `b` tells
/// whether to read its texts.
macro_rules! run_to_deliver {
    () => {
        "r.org_id, r.id, r.status_code, CASE WHEN b.is_read THEN r.output END, r.duration_ms, r.created_at, r.started_at,
         r.completed_at, r.callback_url, CASE WHEN b.is_read THEN r.metadata END,
         CASE WHEN b.is_read THEN r.failure_code END, CASE WHEN b.is_read THEN r.failure_message END,
         CASE WHEN b.is_read THEN r.failure_stage_code END, r.updated_at, s.id, b.bytes"
    };
}

/// The key of an advisory lock: exclusive for removing runs or erasing their data, shared for creating
/// deliveries of them.
const RUNS_STAY: i64 = 7351246807415;

/// Takes the shared lock, which protects all runs from removal and erasure until this transaction ends,
/// without writing anything. Returns `false` if another session holds the lock exclusively.
fn keep_runs(pg: &mut PgConnection) -> QueryResult<bool> {
    prepared::<Bool, _>("SELECT pg_try_advisory_xact_lock_shared(?)")
        .bind::<BigInt, _>(RUNS_STAY)
        .get_result(pg)
}

/// Takes the exclusive lock, for removing or erasing runs whose rows this transaction has locked. Waits for
/// the holders of the shared lock, and sees all their writes. Later transactions lock the rows of their runs
/// instead.
pub(crate) fn wait_for_keepers(tx: &mut AnyConnection) -> QueryResult<()> {
    let AnyConnection::Postgres(pg) = tx else { return Ok(()) };
    let lock = prepared::<(), _>("SELECT pg_advisory_xact_lock(?)").bind::<BigInt, _>(RUNS_STAY);
    lock.execute(pg).map(drop)
}

/// Selects runs by their keys, with only one possible plan, regardless of the planner's statistics.
macro_rules! find_runs_on_postgres {
    ($lock:literal) => {
        concat!(
            "SELECT ",
            run_to_deliver!(),
            " FROM unnest(?, ?) AS k (org_id, id)
             CROSS JOIN LATERAL (SELECT * FROM runs WHERE org_id = k.org_id AND id = k.id",
            $lock,
            ") AS r
             CROSS JOIN LATERAL (SELECT ",
            texts_bytes!(),
            " AS bytes) AS n
             CROSS JOIN LATERAL (SELECT n.bytes::bigint, n.bytes <= ? AS is_read) AS b
             LEFT JOIN LATERAL (SELECT id FROM signing_secrets WHERE org_id = r.org_id AND is_current) AS s ON TRUE"
        )
    };
}

/// Returns the runs among `keys` that exist. Texts of runs larger than `max_bytes` are not read. The runs
/// can't be erased until this transaction, which inserts their deliveries, ends.
pub(crate) fn find_runs_to_deliver(
    tx: &mut AnyConnection,
    keys: &[(OrgId, RunId)],
    max_bytes: usize,
) -> Result<HashMap<(OrgId, RunId), RunToDeliver>, StoreError> {
    type RunToDeliverSql = (RunSql, Nullable<Id>, BigInt);
    let max_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
    let rows: Vec<(RunRow, Option<Key>, i64)> = match tx {
        AnyConnection::Postgres(pg) => {
            let text = match keep_runs(pg)? {
                true => find_runs_on_postgres!(""),
                false => find_runs_on_postgres!(" FOR KEY SHARE"),
            };
            let mut keys = keys.to_vec();
            keys.sort_unstable(); // in the same order everywhere, without duplicates
            keys.dedup();
            prepared::<RunToDeliverSql, _>(text)
                .bind::<Array<Id>, _>(column(&keys, |(org, _)| Key::from(*org)))
                .bind::<Array<Id>, _>(column(&keys, |(_, run)| Key::from(*run)))
                .bind::<BigInt, _>(max_bytes)
                .load(pg)?
        }
        AnyConnection::Sqlite(_) => {
            let mut rows = Vec::with_capacity(keys.len());
            for (org, run) in keys {
                let found = prepared::<RunToDeliverSql, _>(concat!(
                    "SELECT ",
                    run_to_deliver!(),
                    " FROM runs r JOIN (SELECT org_id, id, bytes, bytes <= ? AS is_read FROM (SELECT r.org_id, r.id, ",
                    texts_bytes!(),
                    " AS bytes FROM runs r WHERE r.org_id = ? AND r.id = ?)) AS b ON b.org_id = r.org_id AND b.id = r.id
                     LEFT JOIN signing_secrets s ON s.org_id = r.org_id AND s.is_current",
                ))
                .bind::<BigInt, _>(max_bytes)
                .bind::<Id, _>(Key::from(*org))
                .bind::<Id, _>(Key::from(*run));
                rows.extend(found.get_result::<(RunRow, Option<Key>, i64)>(tx).optional()?);
            }
            rows
        }
    };
    let keyed = |(row, secret, bytes): (RunRow, Option<Key>, i64)| {
        let run = Run::try_from(row)?;
        let bytes = usize::try_from(bytes).unwrap_or(0);
        Ok(((run.org_id, run.id), RunToDeliver { run, secret: secret.map(SecretId::from), bytes }))
    };
    rows.into_iter().map(keyed).collect()
}
