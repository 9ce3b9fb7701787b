//! What can go wrong between a use case and its database. A refusal is never an error: it is part of the answer.

use contracts::{DeliveryId, JsonError};
use diesel::result::{DatabaseErrorKind, Error};

/// Why a use case did not come to its end. Nothing of it was committed, unless the connection was lost during COMMIT.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No connection to be had: the database is away.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// All connections of this process stayed busy; the database may be well.
    #[error("all connections to the database are busy")]
    Busy,
    /// The database refused a statement.
    #[error("the database refused a statement: {0}")]
    Query(#[from] Error),
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
    /// Whether the database is away or has ended this connection, or there is none to be had.
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

    /// Whether waiting may help: an outage, or a refusal that tells nothing of its kind, such as a full disk, a deadlock,
    /// a statement that took too long, somebody else's lock, or a broken page. (diesel shows the kind of a few SQLSTATEs
    /// only, and words are in the language of the server.)
    pub fn may_pass(&self) -> bool {
        self.is_outage() || matches!(self.kind(), Some(DatabaseErrorKind::Unknown))
    }

    /// Whether the database refuses the data itself, which no waiting changes.
    pub fn is_violation(&self) -> bool {
        use DatabaseErrorKind::{CheckViolation, ForeignKeyViolation, NotNullViolation, UniqueViolation};
        matches!(self.kind(), Some(UniqueViolation | ForeignKeyViolation | NotNullViolation | CheckViolation))
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

/// Refuses what has more bytes than there is room for.
pub fn within(max_bytes: usize, bytes: usize) -> Result<(), StoreError> {
    if bytes > max_bytes { Err(StoreError::TooLarge(bytes)) } else { Ok(()) }
}

/// Why a batch was not claimed or recorded. Nothing of it was.
#[derive(Debug, thiserror::Error)]
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
