//! Memory budgets for large requests: the body, all data made from it, and the rows of a response.
//!
//! Small requests never wait. Large ones share a budget of bytes. Each organization may use half of it, so
//! its traffic delays neither the large requests of other organizations nor any small ones.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use contracts::OrgId;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::error::ApiError;

/// Maximum wait for memory, while earlier requests are read, processed and answered.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A memory budget, counted in KiB.
pub(crate) struct MemoryBudget {
    all: Arc<Semaphore>,
    of_org: Mutex<HashMap<OrgId, Weak<Semaphore>>>,
    kib_of_org: u32,
    patience: Duration,
}

/// A reservation from the organization's share and from the total. Released on drop.
pub(crate) struct Reservation(Mutex<[OwnedSemaphorePermit; 2]>);

impl Reservation {
    /// Reduces the reservation to `bytes`.
    pub(crate) fn keep_only(&self, bytes: usize) {
        let kib = bytes.div_ceil(1024).max(1);
        for permit in &mut *self.0.lock() {
            drop(permit.split(permit.num_permits().saturating_sub(kib)));
        }
    }
}

impl MemoryBudget {
    /// Creates a budget of `bytes`.
    pub(crate) fn new(bytes: usize) -> MemoryBudget {
        let kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).clamp(2, 1 << 28);
        let all = Arc::new(Semaphore::new(kib as usize));
        MemoryBudget { all, of_org: Mutex::default(), kib_of_org: kib / 2, patience: TIMEOUT }
    }

    /// Waits until `bytes` are free, and reserves them. A request for more than an organization's share waits
    /// for the whole share.
    pub(crate) async fn take(&self, org: OrgId, bytes: usize) -> Result<Reservation, ApiError> {
        let kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).clamp(1, self.kib_of_org);
        let of_org = self.of_org(org);
        // Semaphores are fair, and these are never closed.
        let taken = timeout(self.patience, async {
            let of_org = of_org.acquire_many_owned(kib).await.ok()?;
            let of_all = self.all.clone().acquire_many_owned(kib).await.ok()?;
            Some(Reservation(Mutex::new([of_org, of_all])))
        });
        let full = || ApiError::NotReady("too many large requests are under way".into());
        taken.await.ok().flatten().ok_or_else(full)
    }

    /// Returns the organization's share, which exists while any of it is reserved or awaited.
    fn of_org(&self, org: OrgId) -> Arc<Semaphore> {
        let mut parts = self.of_org.lock();
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

    fn taken(room: &MemoryBudget, org: OrgId, kib: usize) -> Option<Reservation> {
        room.take(org, kib * 1024).now_or_never()?.ok()
    }

    #[tokio::test]
    async fn an_organization_may_use_half_of_the_budget_and_others_the_rest() {
        let room = MemoryBudget::new(100 * 1024);
        let kept = taken(&room, ONE, 30).unwrap();
        assert!(taken(&room, ONE, 30).is_none(), "60 of 50");
        let other = taken(&room, OTHER, 50).unwrap();
        assert!(taken(&room, OrgId(Uuid::from_u128(3)), 21).is_none(), "101 of 100");
        assert!(taken(&room, OrgId(Uuid::from_u128(3)), 20).is_some());
        drop((kept, other));
        assert!(taken(&room, ONE, 500).is_some(), "a larger request takes the whole share");
        assert_eq!(room.of_org.lock().len(), 1, "unused shares are dropped");
    }

    #[tokio::test]
    async fn a_reduced_reservation_frees_memory_of_the_share_and_the_total() {
        let room = MemoryBudget::new(100 * 1024);
        let kept = taken(&room, ONE, 50).unwrap();
        kept.keep_only(10 * 1024);
        let more = taken(&room, ONE, 40).unwrap();
        assert!(taken(&room, ONE, 1).is_none() && taken(&room, OTHER, 50).is_some());
        drop((kept, more));
        assert!(taken(&room, ONE, 50).is_some());
    }

    #[tokio::test]
    async fn waiting_for_memory_times_out() {
        let room = MemoryBudget { patience: Duration::ZERO, ..MemoryBudget::new(100 * 1024) };
        let _kept = taken(&room, ONE, 50).unwrap();
        assert!(matches!(room.take(ONE, 1024).await, Err(ApiError::NotReady(_))));
    }
}
