//! Encryption keys of signing secrets, read again when one is missing.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use store::Keyring;

/// Reads `secrets.keys` again from its configured source. May block.
pub type KeySource = Arc<dyn Fn() -> Result<Keyring, KeySourceError> + Send + Sync>;
/// Why keys could not be read.
pub type KeySourceError = Box<dyn Error + Send + Sync>;

/// The keys in use and the source to read them from again.
pub(crate) struct Keys {
    source: KeySource,
    state: tokio::sync::Mutex<KeysRead>,
}

struct KeysRead {
    keyring: Keyring,
    /// Number of successful reads.
    reading: u64,
    /// Time of the last read, successful or not, on the clock's monotonic time.
    tried_at: Option<Duration>,
}

/// Minimum interval between two reads of the keys: a missing key must not cost a file read per attempt.
pub(crate) const KEYS_READ_EVERY: Duration = Duration::from_secs(10);

impl Keys {
    pub(crate) fn new(keyring: Keyring, source: KeySource) -> Keys {
        Keys { source, state: KeysRead { keyring, reading: 0, tried_at: None }.into() }
    }

    /// Returns the keys, and the number of the read that returned them.
    pub(crate) async fn current(&self) -> (Keyring, u64) {
        let state = self.state.lock().await;
        (state.keyring.clone(), state.reading)
    }

    /// Reads the keys again unless the last read is recent, and returns whether they are newer than
    /// `reading`. Concurrent callers share one read.
    pub(crate) async fn read_again(&self, reading: u64, now: Duration) -> bool {
        let mut state = self.state.lock().await;
        if state.reading != reading {
            return true;
        }
        if state.tried_at.is_some_and(|at| now.saturating_sub(at) < KEYS_READ_EVERY) {
            return false;
        }
        state.tried_at = Some(now);
        let source = self.source.clone();
        let read = tokio::task::spawn_blocking(move || source()).await;
        match read.unwrap_or_else(|panicked| Err(panicked.into())) {
            Ok(keyring) => {
                tracing::info!(keys = ?keyring, "secrets.keys read again");
                (state.keyring, state.reading) = (keyring, reading + 1);
                true
            }
            Err(error) => {
                tracing::error!(%error, "secrets.keys not read again");
                false
            }
        }
    }
}
