//! Protections that the simulation switches off, one at a time, to see that it would notice. In every other build all
//! of them are on, at no cost.

/// A protection of the engine or the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "mutants", derive(strum::IntoStaticStr, strum::VariantArray))]
pub enum Protection {
    /// A result moves a delivery only under the claim id it was made under.
    Fencing,
    /// A message is acknowledged only after its claim has committed.
    AcknowledgeAfterClaim,
    /// The relay finds what no doorbell announced.
    Relay,
    /// Attempts are recorded as lost only after their lease has ended.
    Lease,
    /// A request whose budget could outlive its lease is not begun.
    LeaseBeforeSend,
    /// A request that stalled while it connected is not written.
    LateWrite,
    /// A claim whose commit had an unknown outcome is tried again under the same claim id.
    ClaimRecovered,
    /// Attempts of a claim found later have what is left of their lease, not a whole one.
    LeasePerRow,
    /// Results that could not be written are kept.
    ResultsKept,
    /// Only a 2xx is a success.
    OnlySuccess,
    /// A late result replaces the record of its own claim only.
    LateRecord,
    /// A late 2xx closes a waiting delivery.
    LateSuccess,
    /// A late answer to an erased run is not kept.
    ErasedStays,
    /// A newer attempt that ends after a late 2xx closes the delivery.
    SuccessIsFinal,
    /// Attempts end with the budget.
    AttemptBudget,
    /// One open delivery per run.
    OneOpenDelivery,
    /// A doorbell claims only the attempt it names.
    AttemptNumber,
    /// A retry is claimed only when it is due.
    DueTime,
    /// A retry waits for as long as the receiver asks.
    RetryAfter,
    /// Held destinations are left alone.
    Hold,
    /// When a hold ends one attempt goes first.
    Probe,
    /// A probe that is lost lets the next one go.
    ProbeLease,
    /// A `Retry-After` is written down as a hold.
    HoldRecorded,
    /// A `Retry-After` holds the whole destination for a bounded time only.
    HoldCap,
    /// An attempt that was not sent gives its number back.
    HandBack,
    /// A destination has no more attempts in flight than its limit.
    DestinationLimit,
    /// The relay walks all destinations in a circle.
    Circle,
    /// What is in flight is bounded in bytes.
    ByteBudget,
    /// A row that can't be claimed is stepped over.
    StepOver,
    /// A dispatcher that stops finishes what is in flight.
    Drain,
}

/// Whether the simulation has switched it off.
#[cfg(not(feature = "mutants"))]
#[inline]
pub const fn is_off(_: Protection) -> bool {
    false
}

#[cfg(feature = "mutants")]
pub use switched::{is_off, switch_off};

#[cfg(feature = "mutants")]
mod switched {
    use std::cell::Cell;

    use super::Protection;

    thread_local! {
        static OFF: Cell<Option<Protection>> = const { Cell::new(None) };
    }

    /// Whether the simulation has switched it off on this thread.
    pub fn is_off(protection: Protection) -> bool {
        OFF.get() == Some(protection)
    }

    /// Switches one protection off on this thread, or all of them on again.
    pub fn switch_off(protection: Option<Protection>) {
        OFF.set(protection);
    }
}
