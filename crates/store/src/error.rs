//! What can go wrong between a use case and its database. A refusal is never an error: it is part of the answer.

use contracts::{DeliveryId, JsonError};
use thiserror::Error;

/// Why a use case did not come to its end. Nothing of it was committed, unless the connection was lost during COMMIT.
#[derive(Debug, Error)]
pub enum StoreError {
    /// No connection to be had: the database is away.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// All connections of this process stayed busy; the database may be well.
    #[error("all connections to the database are busy")]
    Busy,
    /// The database refused a statement.
    #[error("the database refused a statement: {0}")]
    Query(#[from] diesel::result::Error),
    /// A stored value is not what this program writes.
    #[error("the database holds {what} that cannot be read: {value}")]
    Corrupt {
        /// Which column.
        what: &'static str,
        /// What stands there, or why it cannot be read.
        value: String,
    },
    /// The schema is not the one this program knows.
    #[error("{0}")]
    Schema(String),
    /// There is more to read than there is room for now. With room for so many bytes it would be read.
    #[error("{0} bytes have to be read")]
    TooLarge(usize),
    /// The transaction's thread panicked; it was rolled back.
    #[error("a transaction panicked")]
    Panicked,
}

impl StoreError {
    /// Whether waiting may help: the database is away or has ended this connection, or there is none to be had.
    pub fn is_outage(&self) -> bool {
        use diesel::result::{DatabaseErrorKind, Error};
        match self {
            StoreError::Unavailable(_) | StoreError::Busy => true,
            StoreError::Query(Error::DatabaseError(kind, info)) => match kind {
                DatabaseErrorKind::ClosedConnection
                | DatabaseErrorKind::SerializationFailure
                | DatabaseErrorKind::ReadOnlyTransaction
                | DatabaseErrorKind::UnableToSendCommand => true,
                // What the server says of its own state carries no kind. None of it is about our data.
                DatabaseErrorKind::Unknown => [
                    "terminating connection",
                    "canceling statement due to",
                    "No space left on device",
                    "database or disk is full",
                    "the database system is",
                    "deadlock detected",
                    "database is locked",
                ]
                .iter()
                .any(|notice| info.message().contains(notice)),
                _ => false,
            },
            StoreError::Query(Error::BrokenTransactionManager) => true,
            _ => false,
        }
    }

    /// Whether somebody else's lock was in the way for too long, as far as the server says so in English.
    pub fn is_lock_timeout(&self) -> bool {
        let StoreError::Query(diesel::result::Error::DatabaseError(_, info)) = self else { return false };
        info.message() == "canceling statement due to lock timeout"
    }

    /// Whether the database refuses the data itself, which no waiting changes. Other refusals, such as a full disk, a
    /// broken page or a lock in the way, may pass, and not all of them can be told from [`StoreError::is_outage`].
    pub fn is_violation(&self) -> bool {
        use diesel::result::{DatabaseErrorKind as Kind, Error};
        let StoreError::Query(Error::DatabaseError(kind, _)) = self else { return false };
        use Kind::{CheckViolation, ForeignKeyViolation, NotNullViolation, UniqueViolation};
        matches!(kind, UniqueViolation | ForeignKeyViolation | NotNullViolation | CheckViolation)
    }

    pub(crate) fn corrupt(what: &'static str, value: &impl ToString) -> StoreError {
        StoreError::Corrupt { what, value: value.to_string() }
    }
}

/// Refuses what has more bytes than there is room for.
pub fn within(max_bytes: usize, bytes: usize) -> Result<(), StoreError> {
    if bytes > max_bytes { Err(StoreError::TooLarge(bytes)) } else { Ok(()) }
}

/// Why a batch was not claimed or recorded. Nothing of it was.
#[derive(Debug, Error)]
#[error("{error}")]
pub struct RowsRefused {
    /// The deliveries whose rows were being written or read, any of which may be the cause. Empty when the batch did not
    /// come to that.
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

impl From<diesel::result::Error> for RowsRefused {
    fn from(error: diesel::result::Error) -> RowsRefused {
        StoreError::from(error).into()
    }
}

impl From<JsonError> for StoreError {
    fn from(error: JsonError) -> StoreError {
        StoreError::corrupt("JSON", &error)
    }
}
