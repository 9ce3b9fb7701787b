//! A JSON tree, parser and writer of our own, so that the signed bytes don't depend on a library's number
//! formatting.

mod parse;
mod write;

use indexmap::IndexMap;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::PayloadFormat;
pub(crate) use write::write_object;

/// The maximum nesting depth of a value, which is a run's output or metadata (contract section 2).
pub const VALUE_DEPTH: usize = 100;
/// The maximum nesting depth of a request body that contains values.
pub const BODY_DEPTH: usize = VALUE_DEPTH + 1;

/// An object's members in order. Inserting an existing key replaces its value in place, as Python does with
/// duplicate keys.
pub type Object = IndexMap<String, Json>;

/// A JSON document.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Json {
    Null,
    Bool(bool),
    /// The digits of a number without fraction and exponent. `-0` is stored as `0`.
    Int(String),
    /// Any other number, always finite.
    Float(f64),
    String(String),
    Array(Vec<Json>),
    Object(Object),
}

/// Why and where a text is rejected as JSON.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{fault} at byte {offset}")]
pub struct JsonError {
    /// The kind of error.
    pub fault: JsonFault,
    /// The position in bytes from the start.
    pub offset: usize,
}

/// The kinds of errors in a JSON text, according to RFC 8259 and contract section 2.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum JsonFault {
    #[error("invalid UTF-8")]
    Utf8,
    #[error("expected a value")]
    Value,
    #[error("expected a key in double quotes")]
    Key,
    #[error("expected ':'")]
    Colon,
    #[error("expected ',' or the end of the array or object")]
    Comma,
    #[error("expected nothing after the document")]
    Trailing,
    #[error("string without an end")]
    Unterminated,
    #[error("control character in a string")]
    Control,
    #[error("unknown escape")]
    Escape,
    #[error("lone surrogate")]
    Surrogate,
    #[error("invalid number")]
    Number,
    #[error("number that is not finite")]
    NotFinite,
    #[error("integer of more than 4300 digits")]
    Digits,
    #[error("nested too deep")]
    Depth,
}

impl Json {
    /// Returns the string if the value is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Json::String(text) => Some(text),
            _ => None,
        }
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Json {
        Json::String(text.to_owned())
    }
}

impl From<i64> for Json {
    fn from(number: i64) -> Json {
        Json::Int(number.to_string())
    }
}

impl<T: Into<Json>> From<Option<T>> for Json {
    fn from(value: Option<T>) -> Json {
        value.map_or(Json::Null, Into::into)
    }
}

/// A document as stored in the database: in the compact writer's normal form. Control characters including
/// NUL are escaped, so it fits into a text column. Serializes as the document itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonText(String);

impl JsonText {
    /// Wraps a text from our own database without validation.
    pub fn from_trusted(text: impl Into<String>) -> JsonText {
        JsonText(text.into())
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Parses the document.
    pub fn to_json(&self) -> Result<Json, JsonError> {
        Json::parse(self.0.as_bytes(), VALUE_DEPTH)
    }
}

impl From<&Json> for JsonText {
    fn from(json: &Json) -> JsonText {
        JsonText(json.to_text(PayloadFormat::Compact))
    }
}

impl Serialize for JsonText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

/// Returns the number of bytes before the first one that `stops`. Whole chunks are tested without a branch,
/// so that the compiler vectorizes the loop: long strings are most of a payload.
fn plain_run(bytes: &[u8], stops: impl Fn(u8) -> bool) -> usize {
    const CHUNK: usize = 16;
    let chunks = bytes.chunks_exact(CHUNK);
    let skipped =
        CHUNK * chunks.take_while(|chunk| !chunk.iter().fold(false, |any, b| any | stops(*b))).count();
    let rest = &bytes[skipped..];
    skipped + rest.iter().position(|b| stops(*b)).unwrap_or(rest.len())
}
