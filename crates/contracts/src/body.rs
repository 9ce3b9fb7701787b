//! Request bodies, member by member, with all their errors (contract section 3, "Errors").

use crate::{BODY_DEPTH, ErrorType, FieldError, Json, Loc, Object};

/// Takes the members of a body one by one and collects what is wrong with them.
#[derive(Debug, Default)]
pub struct BodyReader {
    members: Object,
    errors: Vec<FieldError>,
}

impl BodyReader {
    /// Parses a body, which must be an object.
    pub fn parse(body: &[u8]) -> Result<BodyReader, FieldError> {
        match Json::parse(body, BODY_DEPTH) {
            Ok(Json::Object(members)) => Ok(BodyReader { members, errors: Vec::new() }),
            Ok(_) => Err(FieldError::new(&["body"], ErrorType::ObjectType, "expected an object")),
            Err(error) => {
                let mut invalid = FieldError::new(&["body"], ErrorType::JsonInvalid, error.to_string());
                invalid.loc.push(Loc::Index(error.offset));
                Err(invalid)
            }
        }
    }

    /// Takes a member. `None` if it is absent; null is a value.
    pub fn take(&mut self, name: &str) -> Option<Json> {
        self.members.shift_remove(name)
    }

    /// Records that a member is invalid. Always `None`, the value of an invalid member.
    pub fn refuse<T>(&mut self, name: &str, kind: ErrorType, msg: impl Into<String>) -> Option<T> {
        self.errors.push(FieldError::new(&["body", name], kind, msg));
        None
    }

    /// Refuses text that a text column of PostgreSQL can't hold, or longer than `max_chars`.
    pub fn checked(&mut self, name: &str, text: String, max_chars: usize) -> Option<String> {
        if text.contains('\0') {
            return self.refuse(name, ErrorType::NullCharacter, "NUL characters can't be stored");
        }
        // A text has no more characters than bytes, so most need no counting.
        if text.len() > max_chars && text.chars().count() > max_chars {
            let msg = format!("expected at most {max_chars} characters");
            return self.refuse(name, ErrorType::StringTooLong, msg);
        }
        Some(text)
    }

    /// Returns all errors, members that were not taken included.
    pub fn finish(mut self) -> Result<(), Vec<FieldError>> {
        let unknown = self.members.keys();
        self.errors.extend(
            unknown.map(|key| FieldError::new(&["body", key], ErrorType::ExtraForbidden, "unknown field")),
        );
        if self.errors.is_empty() { Ok(()) } else { Err(self.errors) }
    }
}
