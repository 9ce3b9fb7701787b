//! Runs: executions of a model, recorded by the run engine with `PUT /v1/runs/{run_id}` (contract section 3).

use serde::Serialize;
use strum::{Display, EnumString, IntoStaticStr, VariantArray};
use utoipa::ToSchema;

use crate::{JsonText, OrgId, RunId, Timestamp};

/// A run's `status_code`, in the order `GET /v1/runs/statuses` lists them (contract section 1).
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Display,
    EnumString,
    IntoStaticStr,
    VariantArray,
    ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
#[allow(missing_docs)]
pub enum RunStatus {
    Queued,
    Dispatching,
    Running,
    Succeeded,
    Failed,
    Canceled,
    PartialSucceeded,
}

impl RunStatus {
    /// Returns whether the run has ended. Its status never changes after that.
    pub fn is_terminal(self) -> bool {
        !matches!(self, RunStatus::Queued | RunStatus::Dispatching | RunStatus::Running)
    }
}

/// The run object, with keys in the contract's order.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs)]
pub struct Run {
    pub id: RunId,
    pub org_id: OrgId,
    pub status_code: RunStatus,
    /// Any JSON value given by the producer.
    #[schema(required, value_type = Value)]
    pub output: Option<JsonText>,
    #[schema(required)]
    pub duration_ms: Option<i64>,
    pub created_at: Timestamp,
    #[schema(required)]
    pub started_at: Option<Timestamp>,
    #[schema(required)]
    pub completed_at: Option<Timestamp>,
    #[schema(required)]
    pub callback_url: Option<String>,
    #[schema(required, value_type = Option<Object>)]
    pub metadata: Option<JsonText>,
    #[schema(required)]
    pub failure_code: Option<String>,
    #[schema(required)]
    pub failure_message: Option<String>,
    #[schema(required)]
    pub failure_stage_code: Option<String>,
    pub updated_at: Timestamp,
}
