//! `Idempotency-Key` (contract section 3): the key and the request it identifies.

use std::time::Duration;

use actix_web::HttpRequest;
use contracts::{ErrorType, FieldError};
use sha2::{Digest, Sha256};
use store::{IdempotencyKey, Store, forget_idempotency_keys};
use tokio_util::sync::CancellationToken;

use crate::error::ApiError;

const HEADER: &str = "idempotency-key";
const MAX_LEN: usize = 255;
/// Interval between deletions of old keys. Short compared with the day that they are valid.
const FORGETTING: Duration = Duration::from_secs(600);

/// Returns the key of a request, if it has one.
pub(crate) fn key_of(request: &HttpRequest, body: &[u8]) -> Result<Option<IdempotencyKey>, FieldError> {
    let mut given = request.headers().get_all(HEADER);
    let (Some(key), another) = (given.next(), given.next()) else { return Ok(None) };
    let key = key.to_str().ok().filter(|key| {
        another.is_none()
            && (1..=MAX_LEN).contains(&key.len())
            && key.bytes().all(|byte| byte.is_ascii_graphic())
    });
    let Some(key) = key else {
        let expected = "expected one key of 1 to 255 visible ASCII characters";
        return Err(FieldError::new(&["header", HEADER], ErrorType::IdempotencyKeyInvalid, expected));
    };
    Ok(Some(IdempotencyKey { key: key.to_owned(), request_sha256: digest(request, body) }))
}

/// Hashes the parts that identify a request: method, path, query and body.
fn digest(request: &HttpRequest, body: &[u8]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for part in [request.method().as_str(), request.path(), request.query_string()] {
        digest.update(part);
        digest.update([0]); // a separator, which no part contains
    }
    digest.update(body);
    digest.finalize().into()
}

/// Deletes keys older than a day until `shutdown`. They are already ignored, but take up space.
pub(crate) async fn forget_old_keys(store: Store, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(FORGETTING);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        // Deletes a batch per transaction until no old key is left.
        while match store.write(forget_idempotency_keys).await {
            Ok(more) => more && !shutdown.is_cancelled(),
            Err(error) => {
                tracing::warn!(%error, "old idempotency keys could not be deleted; retrying");
                false
            }
        } {}
    }
}

/// The error for a key that was used for another request.
pub(crate) fn key_reused() -> ApiError {
    ApiError::Conflict("the idempotency key was used for another request".to_owned())
}
