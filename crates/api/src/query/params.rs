//! Parsing of IDs and query parameters.

use std::str::FromStr;

use actix_web::{HttpRequest, web};
use contracts::{ErrorType, FieldError, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::error::ApiError;

/// Parses a UUID in hyphenated form, the only one that the API writes. `loc` is its location in errors.
pub(crate) fn parse_uuid(loc: &[&str], text: &str) -> Result<Uuid, FieldError> {
    let uuid = if text.len() == 36 { Uuid::try_parse(text).ok() } else { None }; // other forms differ in length
    uuid.ok_or_else(|| FieldError::new(loc, ErrorType::UuidParsing, "expected a UUID in its hyphenated form"))
}

/// Describes an optional query parameter (OpenAPI 3.1, "Parameter Object").
pub(crate) fn describe(name: &str, schema: &Value, description: &str) -> Value {
    json!({"name": name, "in": "query", "schema": schema, "description": description})
}

/// Refuses every query parameter.
pub(crate) fn no_query(request: &HttpRequest) -> Result<(), ApiError> {
    Query::of(request)?.finish()
}

/// A validation error: a stable code and a message.
pub(crate) type Fault = (ErrorType, String);

/// The parameters of a query. Each is taken out by name. [`Query::finish`] returns all errors, and refuses
/// parameters that were not taken.
pub(crate) struct Query {
    given: Vec<(String, String)>,
    errors: Vec<FieldError>,
}

impl Query {
    pub(crate) fn of(request: &HttpRequest) -> Result<Query, ApiError> {
        let unreadable =
            |_| FieldError::new(&["query"], ErrorType::QueryMalformed, "expected name=value pairs in UTF-8");
        let given = web::Query::<Vec<(String, String)>>::from_query(request.query_string())
            .map_err(unreadable)?
            .into_inner();
        Ok(Query { given, errors: Vec::new() })
    }

    /// Takes a parameter and parses it. `None` if it is absent or invalid.
    pub(crate) fn take<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, Fault>) -> Option<T> {
        let mut mine = self.given.extract_if(.., |(given, _)| given == name);
        let (_, value) = mine.next()?;
        let repeated = mine.next().is_some();
        mine.for_each(drop);
        let parsed =
            if repeated { Err((ErrorType::Duplicate, "given more than once".into())) } else { parse(&value) };
        parsed.map_err(|(kind, msg)| self.errors.push(FieldError::new(&["query", name], kind, msg))).ok()
    }

    /// Takes a boolean.
    pub(crate) fn bool(&mut self, name: &str) -> Option<bool> {
        self.take(name, |value| match value {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err((ErrorType::BoolParsing, "expected true or false".into())),
        })
    }

    /// Takes a boolean that defaults to `false`.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        self.bool(name).unwrap_or_default()
    }

    /// Takes one of the words of `T`.
    pub(crate) fn word<T: FromStr>(&mut self, name: &str) -> Option<T> {
        self.take(name, |value| {
            value.parse().map_err(|_| (ErrorType::Enum, "not one of the words it may be".into()))
        })
    }

    /// Takes a timestamp. Restores an unencoded `+`, which arrives as a space: no timestamp contains one.
    pub(crate) fn moment(&mut self, name: &str) -> Option<Timestamp> {
        self.take(name, |value| {
            Timestamp::parse(&value.replace(' ', "+"))
                .map_err(|error| (ErrorType::DatetimeInvalid, error.to_string()))
        })
    }

    /// Takes a UUID.
    pub(crate) fn uuid(&mut self, name: &str) -> Option<Uuid> {
        self.take(name, |value| parse_uuid(&[], value).map_err(|error| (error.kind, error.msg)))
    }

    /// Refuses the query if a parameter was invalid or was not taken.
    pub(crate) fn finish(mut self) -> Result<(), ApiError> {
        self.errors.extend(self.given.iter().map(|(name, _)| {
            FieldError::new(&["query", name], ErrorType::ExtraForbidden, "unknown query parameter")
        }));
        if self.errors.is_empty() { Ok(()) } else { Err(self.errors.into()) }
    }
}
