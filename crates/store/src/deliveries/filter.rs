//! Filters of lists of deliveries, as ranges of indexes.

use contracts::{DeliveryStatus, FailureReason, OrgId, RunId};
use diesel::prelude::*;
use strum::VariantArray;

use crate::columns::{DbId, DbTime};
use crate::connect::AnyConnection;
use crate::page::{PageRequest, paged};
use crate::schema::{delivery_states, ended_deliveries, open_deliveries};

/// Selects the deliveries of a list: those that match every field that is `Some`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct DeliveryFilter {
    pub status_code: Option<DeliveryStatus>,
    pub run_id: Option<RunId>,
    /// Lower-case, without a port.
    pub callback_host: Option<String>,
    pub is_automatic: Option<bool>,
    pub failure_reason_code: Option<FailureReason>,
}

/// Applies the host and the failure reason of a [`DeliveryFilter`] to a boxed query of a table.
macro_rules! narrowed {
    ($query:expr, $table:ident, $filter:expr) => {{
        let mut query = $query;
        if let Some(host) = &$filter.callback_host {
            query = query.filter($table::callback_host.eq(host));
        }
        if let Some(reason) = $filter.failure_reason_code {
            query = query.filter($table::failure_reason_code.eq(<&str>::from(reason)));
        }
        query
    }};
}

impl DeliveryFilter {
    /// Returns the positions of the first matching deliveries: at most one page per index range. A run's
    /// deliveries are few and adjacent; otherwise each status and kind is a range of its own.
    pub(super) fn positions(
        &self,
        tx: &mut AnyConnection,
        org: OrgId,
        request: &PageRequest,
    ) -> QueryResult<Vec<(DbTime, DbId)>> {
        if let Some(run) = self.run_id {
            return self.of_run(tx, org, run, request);
        }
        // A CHECK constraint excludes a failure reason on success.
        let statuses = DeliveryStatus::VARIANTS.iter().copied().filter(|status| {
            self.status_code.is_none_or(|wanted| wanted == *status)
                && (self.failure_reason_code.is_none() || *status != DeliveryStatus::Succeeded)
        });
        let kinds = [false, true].into_iter().filter(|kind| self.is_automatic.is_none_or(|is| is == *kind));
        let mut found = Vec::new();
        for (status, is_automatic) in
            statuses.flat_map(|status| kinds.clone().map(move |kind| (status, kind)))
        {
            found.extend(match status {
                DeliveryStatus::Pending | DeliveryStatus::Delivering => {
                    self.open(tx, org, status, is_automatic, request)?
                }
                DeliveryStatus::Succeeded | DeliveryStatus::Failed => {
                    self.ended(tx, org, status, is_automatic, request)?
                }
            });
        }
        Ok(found)
    }

    fn of_run(
        &self,
        tx: &mut AnyConnection,
        org: OrgId,
        run: RunId,
        request: &PageRequest,
    ) -> QueryResult<Vec<(DbTime, DbId)>> {
        let mut query = delivery_states::table
            .filter(delivery_states::org_id.eq(DbId::from(org)))
            .filter(delivery_states::run_id.eq(DbId::from(run)))
            .select((delivery_states::created_at, delivery_states::id))
            .into_boxed();
        if let Some(status) = self.status_code {
            query = query.filter(delivery_states::status_code.eq(<&str>::from(status)));
        }
        if let Some(is_automatic) = self.is_automatic {
            query = query.filter(delivery_states::is_automatic.eq(is_automatic));
        }
        paged!(narrowed!(query, delivery_states, self), delivery_states, request).load(tx)
    }

    fn open(
        &self,
        tx: &mut AnyConnection,
        org: OrgId,
        status: DeliveryStatus,
        is_automatic: bool,
        request: &PageRequest,
    ) -> QueryResult<Vec<(DbTime, DbId)>> {
        let mut query = open_deliveries::table
            .filter(open_deliveries::org_id.eq(DbId::from(org)))
            .filter(open_deliveries::is_automatic.eq(is_automatic))
            .select((open_deliveries::created_at, open_deliveries::id))
            .into_boxed();
        query = match status {
            DeliveryStatus::Pending => query.filter(open_deliveries::claim_id.is_null()),
            _ => query.filter(open_deliveries::claim_id.is_not_null()),
        };
        paged!(narrowed!(query, open_deliveries, self), open_deliveries, request).load(tx)
    }

    fn ended(
        &self,
        tx: &mut AnyConnection,
        org: OrgId,
        status: DeliveryStatus,
        is_automatic: bool,
        request: &PageRequest,
    ) -> QueryResult<Vec<(DbTime, DbId)>> {
        let query = ended_deliveries::table
            .filter(ended_deliveries::org_id.eq(DbId::from(org)))
            .filter(ended_deliveries::status_code.eq(<&str>::from(status)))
            .filter(ended_deliveries::is_automatic.eq(is_automatic))
            .select((ended_deliveries::created_at, ended_deliveries::id))
            .into_boxed();
        paged!(narrowed!(query, ended_deliveries, self), ended_deliveries, request).load(tx)
    }
}
