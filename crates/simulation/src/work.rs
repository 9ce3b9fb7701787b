//! Transactions of dispatchers, and what becomes of them.

use contracts::Timestamp;
use engine::dispatch::{Batch, Claim, Recovery};

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Commits, and the dispatcher gets the result.
    Committed,
    /// The connection is lost before the commit.
    RolledBack,
    /// Commits, but the connection is lost before the dispatcher gets the result.
    AnswerLost,
    /// The dispatcher abandons it, and it runs some steps later.
    Late,
}

/// The work of one transaction.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Claim(Claim),
    Record(Batch),
    RecoverLeases(Recovery),
    ForgetHolds,
}

/// A transaction that has not run yet.
pub(crate) struct Transaction {
    pub(crate) work: Work,
    /// When its action was returned.
    pub(crate) since: Timestamp,
}

/// A transaction that its dispatcher has abandoned but that the server may still run.
pub(crate) struct LateTransaction {
    pub(crate) work: Work,
    pub(crate) dispatcher: usize,
    /// The `now` that it passes to the store.
    pub(crate) now: Timestamp,
    /// When it began, in true time.
    pub(crate) began: Timestamp,
}
