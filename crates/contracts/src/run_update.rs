//! The body of `PUT /v1/runs/{run_id}` (contract section 3).

use crate::{BODY_DEPTH, FieldError, Json, JsonText, Loc, Object, OrgId, Run, RunId, RunStatus, Timestamp};

/// The longest `callback_url`, in characters.
const MAX_URL: usize = 2_048;
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
    /// At most 2048 characters. The egress policy decides whether it may be called.
    pub callback_url: Option<String>,
    pub metadata: Option<JsonText>,
    pub failure_code: Option<String>,
    pub failure_message: Option<String>,
    pub failure_stage_code: Option<String>,
}

impl RunUpdate {
    /// Parses a request body.
    pub fn parse(body: &[u8]) -> Result<RunUpdate, Vec<FieldError>> {
        let json = Json::parse(body, BODY_DEPTH).map_err(|error| {
            let mut invalid = FieldError::new(&["body"], "json_invalid", error.to_string());
            invalid.loc.push(Loc::Index(error.offset));
            vec![invalid]
        })?;
        RunUpdate::from_json(json)
    }

    /// Reads a parsed body. Returns all errors, not only the first.
    pub fn from_json(body: Json) -> Result<RunUpdate, Vec<FieldError>> {
        let Json::Object(body) = body else {
            return Err(vec![FieldError::new(&["body"], "object_type", "expected an object")]);
        };
        let mut fields = Fields { body, errors: Vec::new() };
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
        let Fields { body: unknown, mut errors } = fields;
        errors.extend(
            unknown.keys().map(|key| FieldError::new(&["body", key], "extra_forbidden", "unknown field")),
        );
        if errors.is_empty() { Ok(update) } else { Err(errors) }
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

/// The members not yet read, and the errors in those that were. A reader returns `None` for a field that is
/// absent, null or invalid.
struct Fields {
    body: Object,
    errors: Vec<FieldError>,
}

impl Fields {
    fn take(&mut self, name: &str) -> Option<Json> {
        self.body.shift_remove(name).filter(|json| *json != Json::Null)
    }

    fn refuse<T>(&mut self, name: &str, kind: &'static str, msg: &str) -> Option<T> {
        self.errors.push(FieldError::new(&["body", name], kind, msg));
        None
    }

    fn string(&mut self, name: &str) -> Option<String> {
        match self.take(name)? {
            Json::String(text) => Some(text),
            _ => self.refuse(name, "string_type", "expected a string"),
        }
    }

    /// Reads a string for a text column, which can't hold NUL in PostgreSQL.
    fn text(&mut self, name: &str) -> Option<String> {
        let text = self.string(name)?;
        if text.contains('\0') {
            return self.refuse(name, "null_character", "NUL characters can't be stored");
        }
        Some(text)
    }

    fn url(&mut self, name: &str) -> Option<String> {
        let url = self.text(name)?;
        if url.chars().count() > MAX_URL {
            return self.refuse(name, "string_too_long", "expected at most 2048 characters");
        }
        Some(url)
    }

    fn timestamp(&mut self, name: &str) -> Option<Timestamp> {
        let text = self.string(name)?;
        match Timestamp::parse(&text) {
            Ok(moment) => Some(moment),
            Err(error) => self.refuse(name, "datetime_invalid", &error.to_string()),
        }
    }

    fn duration(&mut self, name: &str) -> Option<i64> {
        match self.take(name)? {
            Json::Int(digits) if digits.starts_with('-') => {
                self.refuse(name, "greater_than_equal", "expected 0 or more")
            }
            Json::Int(digits) => match digits.parse() {
                Ok(millis) => Some(millis),
                Err(_) => self.refuse(name, "int_type", "expected an integer below 2^63"),
            },
            // In JSON Schema 123.0 is an integer. Below 2^53 every integer has its own float.
            Json::Float(float) if float.fract() == 0.0 && (0.0..=MAX_SAFE).contains(&float) => {
                Some(float as i64)
            }
            _ => self.refuse(name, "int_type", "expected an integer"),
        }
    }

    fn object(&mut self, name: &str) -> Option<JsonText> {
        match self.take(name)? {
            json @ Json::Object(_) => Some(JsonText::from(&json)),
            _ => self.refuse(name, "object_type", "expected an object or null"),
        }
    }

    fn status(&mut self, name: &str) -> Option<RunStatus> {
        if !self.body.contains_key(name) {
            return self.refuse(name, "missing", "field required");
        }
        match self.body.shift_remove(name) {
            Some(Json::String(text)) => match text.parse() {
                Ok(status) => Some(status),
                Err(_) => self.refuse(name, "enum", "expected a run status"),
            },
            _ => self.refuse(name, "string_type", "expected a string"),
        }
    }
}
