//! The signing secrets deliveries were frozen with, opened once and kept.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use contracts::{OrgId, SecretId, SigningSecret};
use store::{AnyConnection, Keyring, Store, StoreError, note_secret_used, open_secret};

use crate::OUTAGE_PAUSE;

/// Opens secrets and remembers them: what an id stands for never changes.
pub(crate) struct Signer {
    store: Store,
    keyring: Keyring,
    opened: Mutex<HashMap<SecretId, Opened>>,
}

#[derive(Clone)]
struct Opened {
    secret: SigningSecret,
    /// When its use was noted last, on the clock's monotonic time.
    noted: Duration,
}

/// How often the use of a secret is noted: in no transaction of a delivery's, and seldom enough not to be felt.
const NOTED_EVERY: Duration = Duration::from_secs(60);

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
        if let Some(secret) = self.remembered(id) {
            return Ok(secret);
        }
        let found = loop {
            let keyring = self.keyring.clone();
            let opening = move |tx: &mut AnyConnection, now| {
                let opened = open_secret(tx, &keyring, org, id)?;
                if opened.is_ok() {
                    note_secret_used(tx, now, id)?;
                }
                Ok::<_, StoreError>(opened)
            };
            match self.store.write(opening).await {
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
        opened.insert(id, Opened { secret: secret.clone(), noted: self.store.clock().monotonic() });
        Ok(secret)
    }

    fn remembered(&self, id: SecretId) -> Option<SigningSecret> {
        let now = self.store.clock().monotonic();
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let Opened { secret, noted } = opened.get_mut(&id)?;
        if now.saturating_sub(*noted) >= NOTED_EVERY {
            *noted = now;
            let store = self.store.clone();
            tokio::spawn(async move {
                if let Err(error) = store.write(move |tx, now| note_secret_used(tx, now, id)).await {
                    tracing::debug!(%error, secret_id = %id, "the use of a signing secret was not noted");
                }
            });
        }
        Some(secret.clone())
    }
}
