//! Ids and query parameters.

use actix_web::{HttpRequest, web};
use contracts::FieldError;
use uuid::Uuid;

use crate::error::ApiError;

/// Reads a UUID in its hyphenated form, the only one we write; `loc` says where it stands.
pub(crate) fn parse_uuid(loc: &[&str], text: &str) -> Result<Uuid, FieldError> {
    let uuid = if text.len() == 36 { Uuid::try_parse(text).ok() } else { None }; // other forms differ in length
    uuid.ok_or_else(|| FieldError::new(loc, "uuid_parsing", "expected a UUID in its hyphenated form"))
}

/// Refuses every query parameter.
pub(crate) fn no_query(request: &HttpRequest) -> Result<(), ApiError> {
    if request.query_string().is_empty() {
        return Ok(());
    }
    let given = web::Query::<Vec<(String, String)>>::from_query(request.query_string());
    let given = given.map(web::Query::into_inner).unwrap_or_default();
    let unknown = |(name, _): &(String, String)| {
        FieldError::new(&["query", name], "extra_forbidden", "unknown query parameter")
    };
    let errors: Vec<FieldError> = given.iter().map(unknown).collect();
    if errors.is_empty() { Ok(()) } else { Err(errors.into()) }
}
