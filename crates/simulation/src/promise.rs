//! What every part of the simulation shares: constants, and how a history fails.

use std::collections::BTreeMap;
use std::time::Duration;

use contracts::OrgId;
use store::StoreError;
use thiserror::Error;
use uuid::Uuid;

/// Maximum error of an aligned clock.
pub(crate) const CLOCK_ERROR: Duration = Duration::from_millis(50);

/// The only organization.
pub(crate) const ORG: OrgId = OrgId(Uuid::from_u128(1));

/// Number of occurrences of each notable event.
pub(crate) type Counts = BTreeMap<&'static str, usize>;

/// Why a history failed.
#[derive(Debug, PartialEq, Error)]
pub(crate) enum Broken {
    /// An invariant is violated.
    #[error("{0}")]
    Promise(String),
    /// A step could not be executed. A mutant is not noticed by this: no invariant was violated.
    #[error("a step failed: {0}")]
    Step(String),
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Broken {
        Broken::Step(error.to_string())
    }
}

pub(crate) type Step = Result<(), Broken>;

/// Returns [`Broken::Promise`] unless `holds`. `what` describes the violation.
pub(crate) fn promise(holds: bool, what: impl FnOnce() -> String) -> Step {
    if holds { Ok(()) } else { Err(Broken::Promise(what())) }
}
