//! Room in memory for what is large: a request's body and all that is made of it, an answer's rows.
//!
//! Small requests never wait. Large ones share a budget of bytes, of which each organization may use half, so that one
//! organization's traffic delays neither the large requests of others nor anybody's small ones.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use contracts::OrgId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::error::ApiError;

/// How much of a body or an answer, in bytes, is not large.
pub(crate) const LIGHT: usize = 256 * 1024;
/// The most bytes of a run whose redelivery is accepted in a batch with others.
pub(crate) const LIGHT_RUN: usize = 64 * 1024;
/// How many bytes a byte of JSON takes in all: as it came, understood, written anew, and as an answer.
pub(crate) const COPIES: usize = 12;

/// The longest wait for room: the requests before have to be read, worked on and answered.
const PATIENCE: Duration = Duration::from_secs(30);

/// A budget, counted in KiB.
pub(crate) struct Room {
    all: Arc<Semaphore>,
    of_org: Mutex<HashMap<OrgId, Weak<Semaphore>>>,
    kib_of_org: u32,
    patience: Duration,
}

/// Room that is taken until this is dropped: of the organization's part and of all.
pub(crate) struct Taken(Mutex<[OwnedSemaphorePermit; 2]>);

impl Taken {
    /// Gives back what is more than that many bytes.
    pub(crate) fn keep_only(&self, bytes: usize) {
        let kib = bytes.div_ceil(1024).max(1);
        for permit in &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            drop(permit.split(permit.num_permits().saturating_sub(kib)));
        }
    }
}

impl Room {
    /// One of so many bytes.
    pub(crate) fn new(bytes: usize) -> Room {
        let kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).clamp(2, 1 << 28);
        let all = Arc::new(Semaphore::new(kib as usize));
        Room { all, of_org: Mutex::default(), kib_of_org: kib / 2, patience: PATIENCE }
    }

    /// Waits until that many bytes are free. A request for more than an organization's share waits for the whole share.
    pub(crate) async fn take(&self, org: OrgId, bytes: usize) -> Result<Taken, ApiError> {
        let kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).clamp(1, self.kib_of_org);
        let of_org = self.of_org(org);
        // A semaphore is fair, and is never closed.
        let taken = timeout(self.patience, async {
            let of_org = of_org.acquire_many_owned(kib).await.ok()?;
            let of_all = self.all.clone().acquire_many_owned(kib).await.ok()?;
            Some(Taken(Mutex::new([of_org, of_all])))
        });
        let full = || ApiError::NotReady("too many large requests are under way".into());
        taken.await.ok().flatten().ok_or_else(full)
    }

    /// The organization's part: there as long as somebody has room of it or waits for some.
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
    async fn an_organization_has_half_of_the_room_and_the_others_the_rest() {
        let room = Room::new(100 * 1024);
        let kept = taken(&room, ONE, 30).unwrap();
        assert!(taken(&room, ONE, 30).is_none(), "60 of 50");
        let other = taken(&room, OTHER, 50).unwrap();
        assert!(taken(&room, OrgId(Uuid::from_u128(3)), 21).is_none(), "101 of 100");
        assert!(taken(&room, OrgId(Uuid::from_u128(3)), 20).is_some());
        drop((kept, other));
        assert!(taken(&room, ONE, 500).is_some(), "what is larger than all goes alone");
        assert_eq!(room.of_org.lock().unwrap().len(), 1, "who has nothing is forgotten");
    }

    #[tokio::test]
    async fn what_is_no_longer_needed_is_given_back_to_both() {
        let room = Room::new(100 * 1024);
        let kept = taken(&room, ONE, 50).unwrap();
        kept.keep_only(10 * 1024);
        let more = taken(&room, ONE, 40).unwrap();
        assert!(taken(&room, ONE, 1).is_none() && taken(&room, OTHER, 50).is_some());
        drop((kept, more));
        assert!(taken(&room, ONE, 50).is_some());
    }

    #[tokio::test]
    async fn waiting_for_room_has_an_end() {
        let room = Room { patience: Duration::ZERO, ..Room::new(100 * 1024) };
        let _kept = taken(&room, ONE, 50).unwrap();
        assert!(matches!(room.take(ONE, 1024).await, Err(ApiError::NotReady(_))));
    }
}
