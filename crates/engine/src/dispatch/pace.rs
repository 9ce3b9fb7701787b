//! Sizes and pauses of the transactions.

use std::time::Duration;

/// The most attempts claimed or recorded in one transaction. Beyond it the cost of a commit is negligible.
pub const BATCH: usize = 256;

/// At full load, claims and results are gathered into one transaction until there are this many …
pub(super) const GATHERED: usize = 32;
/// … or the last commit was this long ago.
pub(super) const GATHERING: Duration = Duration::from_millis(4);

/// The wait before the next transaction while the database is unavailable.
pub(super) const OUTAGE_PAUSE: Duration = Duration::from_millis(250);
