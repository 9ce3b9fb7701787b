//! Reads runs, and protects them while deliveries of them are created.

use std::collections::HashMap;

use contracts::{JsonText, OrgId, Run, RunId, RunStatus, Timestamp};
use diesel::dsl::case_when;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use strum::VariantArray;

use crate::columns::{DbId, DbTime, Id, Moment};
use crate::connect::{AnyConnection, MultiBackend};
use crate::error::StoreError;
use crate::page::{PageRequest, Rows, paged, position, text_bytes};
use crate::schema::runs;

#[derive(Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = runs, check_for_backend(MultiBackend), treat_none_as_default_value = false)]
#[diesel(treat_none_as_null = true, primary_key(org_id, id))]
pub(crate) struct RunRow {
    org_id: DbId,
    id: DbId,
    status_code: String,
    output: Option<String>,
    duration_ms: Option<i64>,
    created_at: DbTime,
    started_at: Option<DbTime>,
    completed_at: Option<DbTime>,
    callback_url: Option<String>,
    metadata: Option<String>,
    failure_code: Option<String>,
    failure_message: Option<String>,
    failure_stage_code: Option<String>,
    updated_at: DbTime,
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
            started_at: run.started_at.map(DbTime::from),
            completed_at: run.completed_at.map(DbTime::from),
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
            .filter(runs::org_id.eq(DbId::from(org)))
            .filter(runs::status_code.eq(<&str>::from(wanted)))
            .select((runs::created_at, runs::id))
            .into_boxed();
        let positions: Vec<(DbTime, DbId)> = paged!(query, runs, request).load(tx)?;
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
        .filter(runs::org_id.eq(DbId::from(org)))
        .filter(runs::id.eq_any(found.ids()))
        .select(columns)
        .load(tx)?;
    let runs = rows.into_iter().map(Run::try_from).collect::<Result<Vec<_>, _>>()?;
    Ok(found.page(request, runs, |run| run.id.0))
}

pub(crate) fn run_exists(tx: &mut AnyConnection, org: OrgId, id: RunId) -> QueryResult<bool> {
    diesel::select(diesel::dsl::exists(runs::table.find((DbId::from(org), DbId::from(id))))).get_result(tx)
}

/// Returns the size in bytes of the run's output, metadata and failure texts; 0 if there is no such run.
pub fn run_bytes(tx: &mut AnyConnection, org: OrgId, id: RunId) -> Result<usize, StoreError> {
    // By the whole key: for a list of ids, a planner without statistics walks through the organization's
    // runs.
    let texts =
        runs::table.find((DbId::from(org), DbId::from(id))).select(texts()).first::<Texts>(tx).optional()?;
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
    ids: Vec<DbId>,
    parts: RunParts,
) -> QueryResult<HashMap<DbId, i64>> {
    let rows: Vec<(DbId, Texts)> = runs::table
        .filter(runs::org_id.eq(DbId::from(org)))
        .filter(runs::id.eq_any(ids))
        .select((runs::id, texts()))
        .load(tx)?;
    let read = |(output, metadata, code, message, stage): Texts| {
        (output.filter(|_| parts.output), metadata.filter(|_| parts.metadata), code, message, stage)
    };
    Ok(rows.into_iter().map(|(id, texts)| (id, sum(read(texts)))).collect())
}

fn find_row(tx: &mut AnyConnection, org: OrgId, id: RunId) -> QueryResult<Option<RunRow>> {
    runs::table.find((DbId::from(org), DbId::from(id))).select(RunRow::as_select()).first(tx).optional()
}

/// The columns of a [`RunRow`].
pub(super) type RunSql = (
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
