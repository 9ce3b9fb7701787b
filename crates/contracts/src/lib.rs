//! Types and encodings that cross a boundary: the callback payload and its exact bytes, both signatures, the
//! API's models, the error table and the job message. No IO, no clock, no runtime.
//!
//! "Contract section" in this workspace's comments refers to `docs/contract.md`.

mod body;
mod delivery;
mod destination;
mod error;
mod ids;
mod job;
mod json;
mod page;
mod payload;
mod request_context;
mod run;
mod run_update;
mod scope;
mod secret;
mod signature;
mod timestamp;
mod timing;
mod traceparent;

pub use body::BodyReader;
pub use delivery::{Attempt, AttemptNumber, Delivery, DeliveryStatus, FailureReason};
pub use destination::Destination;
pub use error::{ErrorBody, ErrorCode, ErrorType, FieldError, InFlight, Loc};
pub use ids::{AttemptId, ClaimId, DeliveryId, OrgId, RunId, SecretId, TokenId};
pub use job::{Job, JobError};
pub use json::{BODY_DEPTH, Json, JsonError, JsonFault, JsonText, Object, VALUE_DEPTH};
pub use page::Page;
pub use payload::{CallbackPayload, Event, PayloadError, PayloadFormat};
pub use request_context::RequestContext;
pub use run::{Run, RunStatus};
pub use run_update::{MAX_URL_CHARS, RunUpdate};
pub use scope::{Scope, Scopes};
pub use secret::{CallbackSecret, NewSecret, SecretKeyError, SigningSecret};
pub use signature::{SignedHeaders, Signing, sign};
pub use timestamp::{Timestamp, TimestampError};
pub use timing::Timing;
pub use traceparent::{Traceparent, TraceparentError};
