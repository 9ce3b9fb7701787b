//! The delivery engine's decisions as a pure state machine: no IO, no clock, no randomness, no threads.
//! `dispatcher` drives it with tokio, `simulation` in virtual time. `store` writes its transitions.

mod destination;
pub mod dispatch;
mod fairness;
mod lease;
mod outcome;
pub mod protection;
mod result;
mod retry;
mod settle;
pub mod transition;

pub use fairness::{
    ByteRoom, Candidate, DueDestination, HoldState, PollResult, RelayPlan, Seen, Selection, Share, Shares,
};
pub use lease::{Claimed, HeldAttempt, Lease, SendWindow};
pub use outcome::{BODY_KEPT, Failure, LocalFailure, Measured, Outcome, Response, kept_body};
pub use result::{AttemptRecord, AttemptResult, Effect, HoldChange, Settlement};
pub use retry::RetryPolicy;
pub use settle::http_error;
pub use transition::Transition;
