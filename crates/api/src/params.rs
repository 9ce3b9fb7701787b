//! Ids and query parameters.

use std::str::FromStr;

use actix_web::{HttpRequest, web};
use contracts::{FieldError, Timestamp};
use uuid::Uuid;

use crate::error::ApiError;

/// Reads a UUID in its hyphenated form, the only one we write; `loc` says where it stands.
pub(crate) fn parse_uuid(loc: &[&str], text: &str) -> Result<Uuid, FieldError> {
    let uuid = if text.len() == 36 { Uuid::try_parse(text).ok() } else { None }; // other forms differ in length
    uuid.ok_or_else(|| FieldError::new(loc, "uuid_parsing", "expected a UUID in its hyphenated form"))
}

/// Refuses every query parameter.
pub(crate) fn no_query(request: &HttpRequest) -> Result<(), ApiError> {
    Query::of(request)?.finish()
}

/// What is wrong with a value: a stable word and a sentence.
pub(crate) type Fault = (&'static str, String);

/// The parameters of a query. Each is taken out by its name; [`Query::finish`] tells what was wrong with any, and
/// refuses what was not taken.
pub(crate) struct Query {
    given: Vec<(String, String)>,
    errors: Vec<FieldError>,
}

impl Query {
    pub(crate) fn of(request: &HttpRequest) -> Result<Query, ApiError> {
        let unreadable =
            |_| FieldError::new(&["query"], "query_malformed", "expected name=value pairs in UTF-8");
        let given = web::Query::<Vec<(String, String)>>::from_query(request.query_string())
            .map_err(unreadable)?
            .into_inner();
        Ok(Query { given, errors: Vec::new() })
    }

    /// What `parse` makes of the parameter, or none when it is not there or not good.
    pub(crate) fn take<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, Fault>) -> Option<T> {
        let mut mine = self.given.extract_if(.., |(given, _)| given == name);
        let (_, value) = mine.next()?;
        let repeated = mine.next().is_some();
        mine.for_each(drop);
        let parsed = if repeated { Err(("duplicate", "given more than once".into())) } else { parse(&value) };
        parsed.map_err(|(kind, msg)| self.errors.push(FieldError::new(&["query", name], kind, msg))).ok()
    }

    /// A boolean.
    pub(crate) fn bool(&mut self, name: &str) -> Option<bool> {
        self.take(name, |value| match value {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(("bool_parsing", "expected true or false".into())),
        })
    }

    /// A boolean, false when it is not there.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        self.bool(name).unwrap_or_default()
    }

    /// One of the words of `T`.
    pub(crate) fn word<T: FromStr>(&mut self, name: &str) -> Option<T> {
        self.take(name, |value| value.parse().map_err(|_| ("enum", "not one of the words it may be".into())))
    }

    /// A moment. A `+` that was not encoded has become a space, which no moment has: it is taken for what was meant.
    pub(crate) fn moment(&mut self, name: &str) -> Option<Timestamp> {
        self.take(name, |value| {
            Timestamp::parse(&value.replace(' ', "+"))
                .map_err(|error| ("datetime_invalid", error.to_string()))
        })
    }

    /// A UUID.
    pub(crate) fn uuid(&mut self, name: &str) -> Option<Uuid> {
        self.take(name, |value| parse_uuid(&[], value).map_err(|error| (error.kind, error.msg)))
    }

    /// Refuses the query if anything was wrong with it, or if something in it was not asked for.
    pub(crate) fn finish(mut self) -> Result<(), ApiError> {
        self.errors.extend(self.given.iter().map(|(name, _)| {
            FieldError::new(&["query", name], "extra_forbidden", "unknown query parameter")
        }));
        if self.errors.is_empty() { Ok(()) } else { Err(self.errors.into()) }
    }
}
