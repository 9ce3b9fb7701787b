//! Memory budgets for large requests: the body, all data made from it, and the rows of a response.
//!
//! Small requests never wait. Large ones share a budget of bytes. Each organization may use half of it, so
//! its traffic delays neither the large requests of other organizations nor any small ones.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use contracts::OrgId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::error::ApiError;

/// Maximum bytes of a body or a response that does not count as large.
pub(crate) const LIGHT: usize = 256 * 1024;
/// Maximum bytes of a run whose redelivery is accepted in a batch with others.
pub(crate) const LIGHT_RUN: usize = 64 * 1024;
/// Total bytes of memory per byte of JSON: received, parsed, serialized again, and as a response.
pub(crate) const COPIES: usize = 12;

/// Maximum wait for memory, while earlier requests are read, processed and answered.
const PATIENCE: Duration = Duration::from_secs(30);

/// A memory budget, counted in KiB.
pub(crate) struct Room {
    all: Arc<Semaphore>,
    of_org: Mutex<HashMap<OrgId, Weak<Semaphore>>>,
    kib_of_org: u32,
    patience: Duration,
}

/// A reservation from the organization's share and from the total. Released on drop.
pub(crate) struct Taken(Mutex<[OwnedSemaphorePermit; 2]>);

impl Taken {
    /// Reduces the reservation to `bytes`.
    pub(crate) fn keep_only(&self, bytes: usize) {
        let kib = bytes.div_ceil(1024).max(1);
        for permit in &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            drop(permit.split(permit.num_permits().saturating_sub(kib)));
        }
    }
}

impl Room {
    /// Creates a budget of `bytes`.
    pub(crate) fn new(bytes: usize) -> Room {
        let kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).clamp(2, 1 << 28);
        let all = Arc::new(Semaphore::new(kib as usize));
        Room { all, of_org: Mutex::default(), kib_of_org: kib / 2, patience: PATIENCE }
    }

    /// Waits until `bytes` are free, and reserves them. A request for more than an organization's share waits
    /// for the whole share.
    pub(crate) async fn take(&self, org: OrgId, bytes: usize) -> Result<Taken, ApiError> {
        let kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).clamp(1, self.kib_of_org);
        let of_org = self.of_org(org);
        // Semaphores are fair, and these are never closed.
        let taken = timeout(self.patience, async {
            let of_org = of_org.acquire_many_owned(kib).await.ok()?;
            let of_all = self.all.clone().acquire_many_owned(kib).await.ok()?;
            Some(Taken(Mutex::new([of_org, of_all])))
        });
        let full = || ApiError::NotReady("too many large requests are under way".into());
        taken.await.ok().flatten().ok_or_else(full)
    }

    /// Returns the organization's share, which exists while any of it is reserved or awaited.
    fn of_org(&self, org: OrgId) -> Arc<Semaphore> {
        let mut parts = self.of_org.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(part) = parts.get(&org).and_then(Weak::upgrade) {
            return part;
        }
        parts.retain(|_, part| part.strong_count() > 0);
        let part = Arc::new(Semaphore::new(self.kib_of_org as usize));
        parts.insert(org, Arc::downgrade(&part));
        part
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use uuid::Uuid;

    use super::*;

    const ONE: OrgId = OrgId(Uuid::from_u128(1));
    const OTHER: OrgId = OrgId(Uuid::from_u128(2));

    fn taken(room: &Room, org: OrgId, kib: usize) -> Option<Taken> {
        room.take(org, kib * 1024).now_or_never()?.ok()
    }

    #[tokio::test]
    async fn an_organization_may_use_half_of_the_budget_and_others_the_rest() {
        let room = Room::new(100 * 1024);
        let kept = taken(&room, ONE, 30).unwrap();
        assert!(taken(&room, ONE, 30).is_none(), "60 of 50");
        let other = taken(&room, OTHER, 50).unwrap();
        assert!(taken(&room, OrgId(Uuid::from_u128(3)), 21).is_none(), "101 of 100");
        assert!(taken(&room, OrgId(Uuid::from_u128(3)), 20).is_some());
        drop((kept, other));
        assert!(taken(&room, ONE, 500).is_some(), "a larger request takes the whole share");
        assert_eq!(room.of_org.lock().unwrap().len(), 1, "unused shares are dropped");
    }

    #[tokio::test]
    async fn a_reduced_reservation_frees_memory_of_the_share_and_the_total() {
        let room = Room::new(100 * 1024);
        let kept = taken(&room, ONE, 50).unwrap();
        kept.keep_only(10 * 1024);
        let more = taken(&room, ONE, 40).unwrap();
        assert!(taken(&room, ONE, 1).is_none() && taken(&room, OTHER, 50).is_some());
        drop((kept, more));
        assert!(taken(&room, ONE, 50).is_some());
    }

    #[tokio::test]
    async fn waiting_for_memory_times_out() {
        let room = Room { patience: Duration::ZERO, ..Room::new(100 * 1024) };
        let _kept = taken(&room, ONE, 50).unwrap();
        assert!(matches!(room.take(ONE, 1024).await, Err(ApiError::NotReady(_))));
    }
}
