//! The callback's body (contract section 2).

use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, IntoStaticStr};
use thiserror::Error;

use crate::json::write_object;
use crate::{Json, JsonError, JsonText, Run, RunId, RunStatus, Timestamp};

/// The encoding of a payload: the setting `delivery.payload_format`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Display, EnumString, IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum PayloadFormat {
    /// `json.dumps(payload)`: spaces after `,` and `:`, ASCII only.
    #[default]
    Python,
    /// `json.dumps(payload, separators=(",", ":"), ensure_ascii=False)`.
    Compact,
}

/// The event that a callback reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, IntoStaticStr)]
#[allow(missing_docs)]
pub enum Event {
    #[strum(serialize = "run.completed")]
    Completed,
    #[strum(serialize = "run.failed")]
    Failed,
    #[strum(serialize = "run.cancelled")]
    Cancelled,
    #[strum(serialize = "run.partial_succeeded")]
    PartialSucceeded,
}

impl Event {
    /// Returns the event of a terminal status, `None` for any other.
    pub fn for_status(status: RunStatus) -> Option<Event> {
        match status {
            RunStatus::Succeeded => Some(Event::Completed),
            RunStatus::Failed => Some(Event::Failed),
            RunStatus::Canceled => Some(Event::Cancelled),
            RunStatus::PartialSucceeded => Some(Event::PartialSucceeded),
            RunStatus::Queued | RunStatus::Dispatching | RunStatus::Running => None,
        }
    }

    /// Returns the event's name in the payload.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The payload of a callback for a run that has ended.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct CallbackPayload {
    pub event: Event,
    pub run_id: RunId,
    pub status: RunStatus,
    pub output: Json,
    pub duration_ms: Option<i64>,
    pub created_at: Timestamp,
    /// When the run ended, not when the callback is sent.
    pub completed_at: Timestamp,
    pub metadata: Json,
}

/// Why a run has no payload.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PayloadError {
    /// The run has not ended.
    #[error("the run has not ended")]
    NotTerminal,
    /// The stored output can't be parsed.
    #[error("the run's stored output is not readable")]
    Output(#[source] JsonError),
    /// The stored metadata can't be parsed.
    #[error("the run's stored metadata is not readable")]
    Metadata(#[source] JsonError),
}

impl CallbackPayload {
    /// Returns the payload of a run that has ended.
    pub fn of(run: &Run) -> Result<CallbackPayload, PayloadError> {
        let event = Event::for_status(run.status_code).ok_or(PayloadError::NotTerminal)?;
        let output = match event {
            Event::Completed | Event::PartialSucceeded => read(&run.output).map_err(PayloadError::Output)?,
            Event::Cancelled => Json::Null,
            Event::Failed => Json::Object(
                [
                    ("code", &run.failure_code),
                    ("message", &run.failure_message),
                    ("stage", &run.failure_stage_code),
                ]
                .into_iter()
                .map(|(key, text)| (key.to_owned(), Json::from(text.as_deref())))
                .collect(),
            ),
        };
        Ok(CallbackPayload {
            event,
            run_id: run.id,
            status: run.status_code,
            output,
            duration_ms: run.duration_ms,
            created_at: run.created_at,
            completed_at: run.completed_at.ok_or(PayloadError::NotTerminal)?,
            metadata: read(&run.metadata).map_err(PayloadError::Metadata)?,
        })
    }

    /// Returns the exact text of the request body.
    pub fn to_text(&self, format: PayloadFormat) -> String {
        let members = [
            ("event", &Json::from(self.event.as_str())),
            ("run_id", &Json::String(self.run_id.to_string())),
            ("status", &Json::String(self.status.to_string())),
            ("output", &self.output),
            ("duration_ms", &Json::from(self.duration_ms)),
            ("created_at", &Json::String(self.created_at.isoformat())),
            ("completed_at", &Json::String(self.completed_at.isoformat())),
            ("metadata", &self.metadata),
        ];
        let mut text = String::new();
        write_object(members, format, &mut text);
        text
    }
}

fn read(stored: &Option<JsonText>) -> Result<Json, JsonError> {
    stored.as_ref().map_or(Ok(Json::Null), JsonText::to_json)
}
