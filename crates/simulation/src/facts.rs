//! What really happened, kept apart from the database.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use contracts::{AttemptNumber, ClaimId, Delivery, DeliveryId, DeliveryStatus, Destination, Timestamp};
use engine::transition::DOORBELL_GRACE;
use testkit::HoldRow;

use crate::sending::Asks;

/// What really happened. A delivery's place is its number in the order of acceptance, counted from 0.
#[derive(Default)]
pub(crate) struct Facts {
    places: HashMap<DeliveryId, usize>,
    pub(crate) deliveries: Vec<KnownDelivery>,
    /// Committed claims, but for those of attempts that were handed back.
    pub(crate) claims: BTreeMap<(usize, AttemptNumber), ClaimFact>,
    pub(crate) receipts: BTreeMap<(usize, AttemptNumber), Receipt>,
    /// Claims that possibly no dispatcher knows of: their attempts may end as `outcome_unknown`.
    abandoned: BTreeSet<ClaimId>,
    /// The rows of destinations after the last step.
    pub(crate) holds: BTreeMap<Destination, HoldRow>,
}

/// A delivery.
pub(crate) struct KnownDelivery {
    /// As it stood after the last step.
    pub(crate) delivery: Delivery,
    /// Its payload as it was accepted.
    pub(crate) frozen: String,
    pub(crate) run: usize,
    pub(crate) destination: Destination,
    /// The database refuses to write some of its rows.
    pub(crate) is_refused: bool,
}

/// A committed claim.
#[derive(Debug)]
pub(crate) struct ClaimFact {
    pub(crate) dispatcher: usize,
    pub(crate) claim_id: ClaimId,
    /// By true time.
    pub(crate) lease_end: Timestamp,
    /// By the database's clock.
    pub(crate) wake_at: Timestamp,
    /// It has no record yet.
    pub(crate) is_open: bool,
    /// Its dispatcher was killed or stopped, or the database went away: it may end as `outcome_unknown`.
    pub(crate) is_disturbed: bool,
}

/// A callback that arrived.
#[derive(Debug)]
pub(crate) struct Receipt {
    pub(crate) is_accepted: bool,
    /// What the answer asks for, once the dispatcher has it.
    pub(crate) asks: Option<Asks>,
}

impl KnownDelivery {
    pub(crate) fn is_open(&self) -> bool {
        self.delivery.completed_at.is_none()
    }

    /// When the relay may claim it, if it is waiting and its destination is open.
    pub(crate) fn wakes_at(&self) -> Option<Timestamp> {
        let Delivery { next_attempt_at, created_at, .. } = self.delivery;
        let at = next_attempt_at.filter(|_| self.delivery.status_code == DeliveryStatus::Pending)?;
        Some(if at == created_at { at + DOORBELL_GRACE } else { at })
    }
}

impl Facts {
    /// A delivery's name in a trace.
    pub(crate) fn name(&self, id: DeliveryId) -> String {
        self.places.get(&id).map_or("?".into(), |place| format!("d{place}"))
    }

    pub(crate) fn known_place(&self, id: DeliveryId) -> Option<usize> {
        self.places.get(&id).copied()
    }

    /// The place of a known delivery.
    pub(crate) fn place(&self, id: DeliveryId) -> usize {
        self.places[&id]
    }

    /// Adds a new delivery.
    pub(crate) fn add(&mut self, known: KnownDelivery) -> usize {
        let place = self.deliveries.len();
        self.places.insert(known.delivery.id, place);
        self.deliveries.push(known);
        place
    }

    /// Allows open claims, of one dispatcher or of all, to end as `outcome_unknown`.
    pub(crate) fn disturb(&mut self, dispatcher: Option<usize>) {
        for claim in self.claims.values_mut().filter(|claim| claim.is_open) {
            claim.is_disturbed |= dispatcher.is_none_or(|dispatcher| dispatcher == claim.dispatcher);
        }
    }

    /// Allows attempts under that claim id to end as `outcome_unknown`.
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
