//! The body of `PUT /v1/runs/{run_id}` (contract section 3).

use serde_json::{Value, json};
use strum::VariantArray;

use crate::{BodyReader, ErrorType, FieldError, Json, JsonText, OrgId, Run, RunId, RunStatus, Timestamp};

/// Maximum length of a `callback_url` in characters, as given and in its normalized form.
pub const MAX_URL_CHARS: usize = 2048;
/// 2^53 - 1: every integer up to this is exact as a float.
const MAX_SAFE: f64 = 9_007_199_254_740_991.0;

/// An update of a run by the run engine.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct RunUpdate {
    pub status_code: RunStatus,
    pub output: Option<JsonText>,
    pub duration_ms: Option<i64>,
    pub created_at: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    pub completed_at: Option<Timestamp>,
    /// At most [`MAX_URL_CHARS`]. The egress policy decides whether it may be called.
    pub callback_url: Option<String>,
    pub metadata: Option<JsonText>,
    pub failure_code: Option<String>,
    pub failure_message: Option<String>,
    pub failure_stage_code: Option<String>,
}

impl RunUpdate {
    /// Parses a request body.
    pub fn parse(body: &[u8]) -> Result<RunUpdate, Vec<FieldError>> {
        let mut fields = Fields(BodyReader::parse(body).map_err(|error| vec![error])?);
        let status_code = fields.status("status_code");
        let update = RunUpdate {
            status_code: status_code.unwrap_or(RunStatus::Queued), // `None`: an error is recorded
            output: fields.take("output").as_ref().map(JsonText::from),
            duration_ms: fields.duration("duration_ms"),
            created_at: fields.timestamp("created_at"),
            started_at: fields.timestamp("started_at"),
            completed_at: fields.timestamp("completed_at"),
            callback_url: fields.url("callback_url"),
            metadata: fields.object("metadata"),
            failure_code: fields.text("failure_code"),
            failure_message: fields.text("failure_message"),
            failure_stage_code: fields.text("failure_stage_code"),
        };
        fields.0.finish()?;
        Ok(update)
    }

    /// Returns the schema of the body that [`RunUpdate::parse`] accepts (JSON Schema 2020-12).
    pub fn schema() -> Value {
        let text = json!({"type": ["string", "null"], "pattern": "^[^\\u0000]*$"});
        let moment = json!({"type": ["string", "null"], "format": "date-time"});
        let url = json!({
            "type": ["string", "null"],
            "format": "uri",
            "pattern": "^https?://",
            "maxLength": MAX_URL_CHARS,
        });
        json!({
            "type": "object",
            "required": ["status_code"],
            "additionalProperties": false,
            "properties": {
                "status_code": {"type": "string", "enum": RunStatus::VARIANTS},
                "output": {"description": "Any JSON value."},
                "duration_ms": {"type": ["integer", "null"], "minimum": 0, "maximum": i64::MAX},
                "created_at": moment,
                "started_at": moment,
                "completed_at": moment,
                "callback_url": url,
                "metadata": {"type": ["object", "null"]},
                "failure_code": text,
                "failure_message": text,
                "failure_stage_code": text,
            },
        })
    }

    /// Returns the updated run. Required timestamps that are missing become `now`.
    pub fn into_run(self, org_id: OrgId, id: RunId, now: Timestamp) -> Run {
        Run {
            id,
            org_id,
            status_code: self.status_code,
            output: self.output,
            duration_ms: self.duration_ms,
            created_at: self.created_at.unwrap_or(now),
            started_at: self.started_at,
            completed_at: self.completed_at.or(self.status_code.is_terminal().then_some(now)),
            callback_url: self.callback_url,
            metadata: self.metadata,
            failure_code: self.failure_code,
            failure_message: self.failure_message,
            failure_stage_code: self.failure_stage_code,
            updated_at: now,
        }
    }
}

/// Reads the members of a run. Each reader returns `None` for a member that is absent, null or invalid.
struct Fields(BodyReader);

impl Fields {
    fn take(&mut self, name: &str) -> Option<Json> {
        self.0.take(name).filter(|json| *json != Json::Null)
    }

    fn string(&mut self, name: &str) -> Option<String> {
        match self.take(name)? {
            Json::String(text) => Some(text),
            _ => self.0.refuse(name, ErrorType::StringType, "expected a string"),
        }
    }

    fn text(&mut self, name: &str) -> Option<String> {
        let text = self.string(name)?;
        self.0.checked(name, text, usize::MAX)
    }

    fn url(&mut self, name: &str) -> Option<String> {
        let text = self.string(name)?;
        self.0.checked(name, text, MAX_URL_CHARS)
    }

    fn timestamp(&mut self, name: &str) -> Option<Timestamp> {
        let text = self.string(name)?;
        match Timestamp::parse(&text) {
            Ok(moment) => Some(moment),
            Err(error) => self.0.refuse(name, ErrorType::DatetimeInvalid, error.to_string()),
        }
    }

    fn duration(&mut self, name: &str) -> Option<i64> {
        match self.take(name)? {
            Json::Int(digits) if digits.starts_with('-') => {
                self.0.refuse(name, ErrorType::GreaterThanEqual, "expected 0 or more")
            }
            Json::Int(digits) => match digits.parse() {
                Ok(millis) => Some(millis),
                Err(_) => self.0.refuse(name, ErrorType::IntType, "expected an integer below 2^63"),
            },
            // In JSON Schema 123.0 is an integer. Below 2^53 every integer has its own float.
            Json::Float(float) if float.fract() == 0.0 && (0.0..=MAX_SAFE).contains(&float) => {
                Some(float as i64)
            }
            _ => self.0.refuse(name, ErrorType::IntType, "expected an integer"),
        }
    }

    fn object(&mut self, name: &str) -> Option<JsonText> {
        match self.take(name)? {
            json @ Json::Object(_) => Some(JsonText::from(&json)),
            _ => self.0.refuse(name, ErrorType::ObjectType, "expected an object or null"),
        }
    }

    fn status(&mut self, name: &str) -> Option<RunStatus> {
        match self.0.take(name) {
            None => self.0.refuse(name, ErrorType::Missing, "field required"),
            Some(Json::String(text)) => match text.parse() {
                Ok(status) => Some(status),
                Err(_) => self.0.refuse(name, ErrorType::Enum, "expected a run status"),
            },
            _ => self.0.refuse(name, ErrorType::StringType, "expected a string"),
        }
    }
}
