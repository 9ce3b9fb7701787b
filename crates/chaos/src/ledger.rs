//! The receiver's record of callbacks, independent of the database.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use contracts::{AttemptNumber, DeliveryId, SigningSecret, Timestamp};
use parking_lot::Mutex;
use receiver::{Received, Receiver, Verdict};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::unbounded_channel;

/// A received callback.
#[derive(Clone, Debug)]
pub(crate) struct Receipt {
    pub(crate) attempt: AttemptNumber,
    pub(crate) at: Timestamp,
    pub(crate) body: [u8; 32],
    pub(crate) is_valid: bool,
    /// Value of `webhook-timestamp`.
    pub(crate) signed_at: i64,
    /// Status that it was, or would have been, answered with. `None`: the connection was closed.
    pub(crate) answered: Option<u16>,
    /// Delay of the response.
    pub(crate) delay: Duration,
}

impl Receipt {
    pub(crate) fn is_2xx(&self) -> bool {
        self.answered.is_some_and(|status| (200..300).contains(&status))
    }
}

/// A receiver and its record of callbacks.
pub(crate) struct Ledger {
    receiver: Receiver,
    receipts: Arc<Mutex<HashMap<DeliveryId, Vec<Receipt>>>>,
}

impl Ledger {
    /// Opens a receiver that verifies signatures with `secret`. It listens on every address, so each address
    /// of 127.0.0.0/8 is a destination.
    pub(crate) fn open(secret: SigningSecret) -> Result<Ledger> {
        let (sink, mut arrivals) = unbounded_channel();
        let options = receiver::Options { secrets: vec![secret], sink: Some(sink), ..Default::default() };
        let receiver = Receiver::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), options)?;
        let receipts: Arc<Mutex<HashMap<DeliveryId, Vec<Receipt>>>> = Arc::default();
        let kept = receipts.clone();
        let clock = HostClock::read();
        tokio::spawn(async move {
            while let Some(received) = arrivals.recv().await {
                if let Some((id, receipt)) = receipt(&received, &clock) {
                    kept.lock().entry(id).or_default().push(receipt);
                }
            }
        });
        Ok(Ledger { receiver, receipts })
    }

    pub(crate) fn url(&self, path: &str) -> String {
        self.url_of(0, path)
    }

    /// Returns the URL of `path` at a destination, which is the same receiver under another address.
    pub(crate) fn url_of(&self, destination: u32, path: &str) -> String {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + destination);
        format!("http://{address}:{}{path}", self.receiver.addr().port())
    }

    /// Returns how many of these deliveries have not arrived.
    pub(crate) fn missing(&self, ids: &HashSet<DeliveryId>) -> usize {
        let receipts = self.receipts.lock();
        ids.iter().filter(|id| !receipts.contains_key(id)).count()
    }

    /// Accepts signatures by another secret as well.
    pub(crate) fn add_secret(&self, secret: SigningSecret) {
        self.receiver.add_secret(secret);
    }

    /// Removes and returns the receipts of deliveries.
    pub(crate) fn take(&self, ids: impl Iterator<Item = DeliveryId>) -> HashMap<DeliveryId, Vec<Receipt>> {
        let mut receipts = self.receipts.lock();
        ids.filter_map(|id| receipts.remove_entry(&id)).collect()
    }

    /// Returns the number of requests that arrived.
    pub(crate) fn posts(&self) -> u64 {
        self.receiver.posts()
    }

    /// Returns all receipts so far, by delivery.
    pub(crate) fn receipts(&self) -> HashMap<DeliveryId, Vec<Receipt>> {
        self.receipts.lock().clone()
    }
}

/// Returns `None` for a request without valid Redial headers. [`Ledger::posts`] counts it nevertheless.
fn receipt(received: &Received, clock: &HostClock) -> Option<(DeliveryId, Receipt)> {
    let header = |name| received.header(name);
    let receipt = Receipt {
        attempt: header("redial-attempt")?.parse().ok()?,
        at: clock.at(received.received_at),
        body: Sha256::digest(&received.body).into(),
        is_valid: received.verdict == Verdict::Valid,
        signed_at: header("webhook-timestamp")?.parse().ok()?,
        answered: received.answered,
        delay: received.delay,
    };
    Some((header("webhook-id")?.parse().ok()?, receipt))
}

/// Converts instants of this process to the time of the host's clock, which is also the database's.
struct HostClock {
    then: Instant,
    was: Timestamp,
}

impl HostClock {
    #[expect(clippy::disallowed_methods, reason = "a receiver is another party, with a clock of its own")]
    fn read() -> HostClock {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        HostClock { then: Instant::now(), was: Timestamp::from_micros(0) + since_1970 }
    }

    fn at(&self, moment: Instant) -> Timestamp {
        self.was + moment.saturating_duration_since(self.then)
    }
}

/// Returns the time of the host's clock.
pub(crate) fn host_now() -> Timestamp {
    HostClock::read().was + Duration::ZERO
}
