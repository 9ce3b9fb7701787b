//! Errors between a use case and its database. A refusal is not an error: it is part of the use case's
//! result.

use contracts::{DeliveryId, JsonError};
use diesel::result::{DatabaseErrorKind, Error};

/// Why a use case failed. Nothing of it was committed, unless the connection was lost during COMMIT.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No connection: the database is unavailable.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// All connections of this process stayed busy; the database itself may be available.
    #[error("all connections to the database are busy")]
    Busy,
    /// The database refused a statement.
    #[error("the database refused a statement: {0}")]
    Query(#[from] Error),
    /// A stored value is not one that this program writes.
    #[error("the database holds {what} that cannot be read: {value}")]
    Corrupt {
        /// The column or value.
        what: &'static str,
        /// The stored value, or why it can't be read.
        value: String,
    },
    /// The schema does not fit this program.
    #[error("{0}")]
    Schema(String),
    /// The data to read exceeds the current limit. Contains the limit in bytes that would suffice.
    #[error("{0} bytes have to be read")]
    TooLarge(usize),
    /// The transaction's thread panicked; it was rolled back.
    #[error("a transaction panicked")]
    Panicked,
}

impl StoreError {
    /// Whether the database is unavailable, has ended this connection, or no connection is free.
    pub fn is_outage(&self) -> bool {
        use DatabaseErrorKind::{
            ClosedConnection, ReadOnlyTransaction, SerializationFailure, UnableToSendCommand,
        };
        match self {
            StoreError::Unavailable(_) | StoreError::Busy => true,
            StoreError::Query(Error::BrokenTransactionManager) => true,
            _ => matches!(
                self.kind(),
                Some(ClosedConnection | SerializationFailure | ReadOnlyTransaction | UnableToSendCommand)
            ),
        }
    }

    /// Whether a retry may succeed: after an outage, or after an error of unknown kind, such as a full disk,
    /// a deadlock, a statement timeout, a lock of another session, or a broken page. (diesel exposes the kind
    /// of a few SQLSTATEs only, and messages are in the server's language.)
    pub fn may_pass(&self) -> bool {
        self.is_outage() || matches!(self.kind(), Some(DatabaseErrorKind::Unknown))
    }

    /// Whether the database refuses the data itself, so that a retry can't succeed.
    pub fn is_violation(&self) -> bool {
        use DatabaseErrorKind::{CheckViolation, ForeignKeyViolation, NotNullViolation, UniqueViolation};
        matches!(self.kind(), Some(UniqueViolation | ForeignKeyViolation | NotNullViolation | CheckViolation))
    }

    /// Names the kind of failure for metrics: `busy`, `unavailable` or `refused`.
    pub fn label(&self) -> &'static str {
        match self {
            StoreError::Busy => "busy",
            error if error.is_outage() => "unavailable",
            _ => "refused",
        }
    }

    fn kind(&self) -> Option<&DatabaseErrorKind> {
        match self {
            StoreError::Query(Error::DatabaseError(kind, _)) => Some(kind),
            _ => None,
        }
    }

    pub(crate) fn corrupt(what: &'static str, value: &impl ToString) -> StoreError {
        StoreError::Corrupt { what, value: value.to_string() }
    }
}

/// Returns [`StoreError::TooLarge`] if `bytes` exceeds `max_bytes`.
pub fn within(max_bytes: usize, bytes: usize) -> Result<(), StoreError> {
    if bytes > max_bytes { Err(StoreError::TooLarge(bytes)) } else { Ok(()) }
}

/// Why a batch was not claimed or recorded. Nothing of the batch was written.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct RowsRefused {
    /// The deliveries whose rows were being read or written; any of them may be the cause. Empty if the batch
    /// failed before that.
    pub rows: Vec<DeliveryId>,
    /// The cause.
    #[source]
    pub error: StoreError,
}

impl From<StoreError> for RowsRefused {
    fn from(error: StoreError) -> RowsRefused {
        RowsRefused { rows: Vec::new(), error }
    }
}

impl From<Error> for RowsRefused {
    fn from(error: Error) -> RowsRefused {
        StoreError::from(error).into()
    }
}

impl From<JsonError> for StoreError {
    fn from(error: JsonError) -> StoreError {
        StoreError::corrupt("JSON", &error)
    }
}
