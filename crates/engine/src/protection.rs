//! Protections that the simulation switches off one at a time, to check that it detects each loss. In every
//! other build all protections are on, at no cost.

/// A protection of the engine or the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "mutants", derive(strum::IntoStaticStr, strum::VariantArray))]
pub enum Protection {
    /// A result changes a delivery only if the delivery is still under the attempt's claim id.
    Fencing,
    /// A message is acknowledged only after its claim has committed.
    AcknowledgeAfterClaim,
    /// The relay finds due deliveries that no doorbell announced.
    Relay,
    /// Attempts are recorded as lost only after their lease has ended.
    Lease,
    /// A request whose timeout could outlast its lease is not started.
    LeaseBeforeSend,
    /// A request that stalled while connecting is not written.
    LateWrite,
    /// A claim whose commit had an unknown outcome is retried under the same claim id.
    ClaimRecovered,
    /// Attempts of a recovered claim get the rest of their lease, not a new one.
    LeasePerRow,
    /// Results that could not be written are retried.
    ResultsKept,
    /// Only a 2xx is a success.
    OnlySuccess,
    /// A late result replaces only the record of its own claim.
    LateRecord,
    /// A late 2xx closes a pending delivery.
    LateSuccess,
    /// A late response for an erased run is not stored.
    ErasedStays,
    /// After a late 2xx, the end of a newer attempt closes the delivery.
    SuccessIsFinal,
    /// A delivery has at most `max_attempts` attempts.
    AttemptBudget,
    /// One open delivery per run.
    OneOpenDelivery,
    /// A doorbell claims only the attempt it names.
    AttemptNumber,
    /// A retry is claimed only when it is due.
    DueTime,
    /// A retry waits for at least the receiver's `Retry-After`.
    RetryAfter,
    /// Nothing is claimed for a held destination.
    Hold,
    /// When a hold ends, a single attempt is sent as a probe.
    Probe,
    /// After a lost probe's lease ends, the next probe may be sent.
    ProbeLease,
    /// A `Retry-After` is recorded as a hold.
    HoldRecorded,
    /// A `Retry-After` holds the whole destination for at most `hold_cap`.
    HoldCap,
    /// An attempt that was not sent returns its number.
    HandBack,
    /// A destination's attempts in flight stay within its limit.
    DestinationLimit,
    /// The relay walks all destinations round-robin.
    Circle,
    /// Payload bytes in flight are bounded.
    ByteBudget,
    /// A row that the database refuses to claim is skipped for a while.
    StepOver,
    /// A stopping dispatcher finishes its attempts in flight.
    Drain,
}

/// Returns whether the simulation has switched this protection off.
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

    /// Returns whether the simulation has switched this protection off on this thread.
    pub fn is_off(protection: Protection) -> bool {
        OFF.get() == Some(protection)
    }

    /// Switches this protection off on this thread and all others on. `None` switches all on.
    pub fn switch_off(protection: Option<Protection>) {
        OFF.set(protection);
    }
}
