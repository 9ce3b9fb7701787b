//! Records runs as the run engine reports them.

use contracts::{JsonText, OrgId, RequestContext, Run, RunId, RunStatus, RunUpdate, Timestamp};
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error};

use crate::columns::{DbId, DbTime};
use crate::connect::AnyConnection;
use crate::deliveries::accept::{AcceptPolicy, Accepted, accept_automatic};
use crate::error::StoreError;
use crate::runs::read::{RunRow, find_run, run_exists};
use crate::schema::runs;

/// The result of a `PUT` of a run.
#[derive(Debug)]
pub enum RecordedRun {
    /// The run is new.
    Created(Run, Option<Accepted>),
    /// The run existed; contains its new state.
    Updated(Run, Option<Accepted>),
    /// The run has already ended with this other status, and a terminal status never changes.
    StatusConflict(RunStatus),
    /// The run's data was erased and can't be restored.
    Erased,
}

/// Whether a run that ends gets an automatic delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deliver {
    /// One automatic delivery, if the run has a `callback_url`.
    Automatically,
    /// No delivery, for importing history.
    Never,
}

/// Records a run (contract section 3, "Run object"): creates it, or replaces it while it is not terminal. On
/// a terminal run it updates only `output`. The first record that makes the run terminal creates its one
/// automatic delivery, in the same transaction.
pub fn record_run(
    tx: &mut AnyConnection,
    now: Timestamp,
    policy: &AcceptPolicy,
    deliver: Deliver,
    run: (OrgId, RunId),
    update: &RunUpdate,
    request: &RequestContext,
) -> Result<RecordedRun, StoreError> {
    let (org, id) = run;
    // Repeats only if another transaction has just inserted or ended the run.
    loop {
        let Some(known) = find_run(tx, org, id)? else {
            let run = update.clone().into_run(org, id, now);
            let inserted =
                tx.transaction(|tx| diesel::insert_into(runs::table).values(RunRow::from(&run)).execute(tx));
            match inserted {
                Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => continue,
                other => other?,
            };
            let accepted = announce(tx, now, policy, deliver, &run, request)?;
            return Ok(RecordedRun::Created(run, accepted));
        };
        if known.status_code.is_terminal() {
            if known.status_code != update.status_code {
                return Ok(RecordedRun::StatusConflict(known.status_code));
            }
            let run = Run { output: update.output.clone(), updated_at: now, ..known };
            let updated = diesel::update(runs::table.find((DbId::from(org), DbId::from(id))))
                .filter(runs::erased_at.is_null())
                .set((
                    runs::output.eq(run.output.as_ref().map(JsonText::as_str)),
                    runs::updated_at.eq(DbTime::from(now)),
                ))
                .execute(tx)?;
            if updated == 1 {
                return Ok(RecordedRun::Updated(run, None));
            }
            // Erased, or pruned concurrently.
            if run_exists(tx, org, id)? {
                return Ok(RecordedRun::Erased);
            }
            continue;
        }
        // The first recorded `created_at` remains unless the update has one.
        let created_at = update.created_at.unwrap_or(known.created_at);
        let run = Run { created_at, ..update.clone().into_run(org, id, now) };
        let still_open = diesel::update(runs::table.find((DbId::from(org), DbId::from(id))))
            .filter(runs::status_code.eq_any(["queued", "dispatching", "running"]))
            .set(RunRow::from(&run))
            .execute(tx)?;
        if still_open == 1 {
            let accepted = announce(tx, now, policy, deliver, &run, request)?;
            return Ok(RecordedRun::Updated(run, accepted));
        }
    }
}

fn announce(
    tx: &mut AnyConnection,
    now: Timestamp,
    policy: &AcceptPolicy,
    deliver: Deliver,
    run: &Run,
    request: &RequestContext,
) -> Result<Option<Accepted>, StoreError> {
    if deliver == Deliver::Never || !run.status_code.is_terminal() {
        return Ok(None);
    }
    accept_automatic(tx, now, policy, run, request)
}
