//! Record of events, independent of the database.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use contracts::{AttemptNumber, ClaimId, Delivery, DeliveryId, DeliveryStatus, Destination, Timestamp};
use engine::transition::DOORBELL_GRACE;
use testkit::HoldRow;

/// Events, recorded independently of the database. A delivery's place is its index in order of acceptance.
#[derive(Default)]
pub(crate) struct Facts {
    places: HashMap<DeliveryId, usize>,
    pub(crate) deliveries: Vec<KnownDelivery>,
    /// Committed claims, except those of attempts that were handed back.
    pub(crate) claims: BTreeMap<(usize, AttemptNumber), ClaimFact>,
    pub(crate) receipts: BTreeMap<(usize, AttemptNumber), Receipt>,
    /// Claims that possibly no dispatcher tracks. Their attempts may end as `outcome_unknown`.
    abandoned: BTreeSet<ClaimId>,
    /// Rows of the table `destinations` after the last step.
    pub(crate) holds: BTreeMap<Destination, HoldRow>,
}

/// The last known state of a delivery.
pub(crate) struct KnownDelivery {
    /// Its state after the last step.
    pub(crate) delivery: Delivery,
    /// Its payload at acceptance.
    pub(crate) frozen: String,
    pub(crate) run: usize,
    pub(crate) destination: Destination,
    /// Whether the database refuses to write some of its rows.
    pub(crate) is_refused: bool,
}

/// A committed claim.
#[derive(Debug)]
pub(crate) struct ClaimFact {
    pub(crate) dispatcher: usize,
    pub(crate) claim_id: ClaimId,
    /// End of the lease in true time.
    pub(crate) lease_end: Timestamp,
    /// End of the lease by the database's clock.
    pub(crate) wake_at: Timestamp,
    /// Whether its attempt has no record yet.
    pub(crate) is_open: bool,
    /// Whether it may end as `outcome_unknown`, for example because its dispatcher was killed or stopped, or
    /// the database was unavailable.
    pub(crate) is_disturbed: bool,
}

/// A received callback.
#[derive(Debug)]
pub(crate) struct Receipt {
    pub(crate) is_accepted: bool,
    /// Times from the `Retry-After` of the response, once the dispatcher has it.
    pub(crate) asks: Option<Asks>,
}

impl KnownDelivery {
    pub(crate) fn is_open(&self) -> bool {
        self.delivery.completed_at.is_none()
    }

    /// Returns when the relay may claim it unless its destination is held. `None` if it is not pending.
    pub(crate) fn wakes_at(&self) -> Option<Timestamp> {
        let Delivery { next_attempt_at, created_at, .. } = self.delivery;
        let at = next_attempt_at.filter(|_| self.delivery.status_code == DeliveryStatus::Pending)?;
        Some(if at == created_at { at + DOORBELL_GRACE } else { at })
    }
}

impl Facts {
    /// Returns a delivery's name for traces.
    pub(crate) fn name(&self, id: DeliveryId) -> String {
        self.places.get(&id).map_or("?".into(), |place| format!("d{place}"))
    }

    pub(crate) fn known_place(&self, id: DeliveryId) -> Option<usize> {
        self.places.get(&id).copied()
    }

    /// Returns the place of a known delivery. Panics if the delivery is unknown.
    pub(crate) fn place(&self, id: DeliveryId) -> usize {
        self.places[&id]
    }

    /// Adds a new delivery and returns its place.
    pub(crate) fn add(&mut self, known: KnownDelivery) -> usize {
        let place = self.deliveries.len();
        self.places.insert(known.delivery.id, place);
        self.deliveries.push(known);
        place
    }

    /// Allows open claims of `dispatcher`, or of all if `None`, to end as `outcome_unknown`.
    pub(crate) fn disturb(&mut self, dispatcher: Option<usize>) {
        for claim in self.claims.values_mut().filter(|claim| claim.is_open) {
            claim.is_disturbed |= dispatcher.is_none_or(|dispatcher| dispatcher == claim.dispatcher);
        }
    }

    /// Allows attempts with this claim id to end as `outcome_unknown`.
    pub(crate) fn abandon_claim(&mut self, id: ClaimId) {
        self.abandoned.insert(id);
        for claim in self.claims.values_mut().filter(|claim| claim.is_open && claim.claim_id == id) {
            claim.is_disturbed = true;
        }
    }

    pub(crate) fn is_abandoned(&self, id: ClaimId) -> bool {
        self.abandoned.contains(&id)
    }
}

/// Times that a receiver requests with `Retry-After`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asks {
    /// Earliest retry of the delivery.
    pub(crate) retry_at: Timestamp,
    /// Earliest attempt to the destination.
    pub(crate) held_until: Timestamp,
}
