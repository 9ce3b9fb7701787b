//! Deliberately broken protections. Each must be caught, or the simulation would not notice the protection missing.

use strum::{IntoStaticStr, VariantArray};

/// A protection taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
pub(crate) enum Mutant {
    /// A result is written as that of whatever attempt holds the delivery.
    NoFencing,
    /// A message is acknowledged before its claim commits.
    AckBeforeClaim,
    /// Nobody looks in the database for what is due.
    NoRelay,
    /// The relay takes every attempt that is under way for lost.
    NoLease,
    /// The lease is shorter than an attempt's budget.
    LeaseShorterThanBudget,
    /// Nobody asks before sending whether the lease still allows it.
    LeaseNotJudged,
    /// Only before connecting is it asked, not when the request is written.
    WriteNotJudged,
    /// The lease is judged by the host's clock, which can be set.
    LeaseByWallClock,
    /// Each process goes by its own host's clock rather than the database's.
    HostClock,
    /// The doorbell is rung before the delivery is committed.
    PublishBeforeCommit,
    /// After a commit of unknown outcome, a claim is begun anew.
    ClaimedAnew,
    /// Attempts are sent although their claim was rolled back.
    SentUnclaimed,
    /// Results that can't be written are forgotten.
    ResultsForgotten,
    /// A 2xx that comes late does not close the delivery.
    LateSuccessKeepsItOpen,
    /// What came of an attempt is not asked: it always counts as a 2xx.
    AnySuccess,
    /// The index that allows one open delivery per run is not there.
    NoOneOpenIndex,
    /// The settlement knows no budget of attempts.
    NoBudget,
    /// The payload is written anew for every attempt.
    PayloadRebuilt,
    /// The address is not judged.
    AnyAddress,
}
