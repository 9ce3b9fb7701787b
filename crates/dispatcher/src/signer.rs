//! The signing secrets deliveries were frozen with, opened once and kept.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use contracts::{OrgId, SecretId, SigningSecret};
use store::{Keyring, Store, StoreError, open_secret};

use crate::OUTAGE_PAUSE;

/// Opens secrets and remembers them: what an id stands for never changes.
pub(crate) struct Signer {
    store: Store,
    keyring: Keyring,
    opened: Mutex<HashMap<SecretId, SigningSecret>>,
}

/// Organizations rotate rarely; with more secrets than this in use at once, forgetting all of them costs little.
const REMEMBERED: usize = 10_000;

impl Signer {
    pub(crate) fn new(store: Store, keyring: Keyring) -> Signer {
        Signer { store, keyring, opened: Mutex::default() }
    }

    /// The secret, or one sentence on why it can't be had. While the database is away it is asked for again, until
    /// `deadline` on the clock's monotonic time.
    pub(crate) async fn secret(
        &self,
        org: OrgId,
        id: SecretId,
        deadline: Duration,
    ) -> Result<SigningSecret, String> {
        if let Some(secret) = self.opened.lock().unwrap_or_else(PoisonError::into_inner).get(&id) {
            return Ok(secret.clone());
        }
        let found = loop {
            let keyring = self.keyring.clone();
            match self.store.read(move |tx| open_secret(tx, &keyring, org, id)).await {
                Err(error) if error.is_outage() && self.store.clock().monotonic() < deadline => {
                    tokio::time::sleep(OUTAGE_PAUSE).await;
                }
                found => break found,
            }
        };
        let secret = found
            .map_err(|error: StoreError| {
                tracing::error!(%error, secret_id = %id, "signing secret not read");
                "the signing secret could not be read".to_owned()
            })?
            .map_err(|error| {
                tracing::error!(%error, secret_id = %id, "signing secret not opened");
                "the signing secret could not be opened with the keys at hand".to_owned()
            })?;
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if opened.len() >= REMEMBERED {
            opened.clear();
        }
        opened.insert(id, secret.clone());
        Ok(secret)
    }
}
