//! Injected failures and their recovery.

use std::time::Duration;

use engine::LocalFailure;
use engine::dispatch::Event;
use rand::prelude::*;
use testkit::Refused;

use crate::promise::Step;
use crate::receivers::Manner;
use crate::world::World;

impl World<'_> {
    pub(crate) fn lose_database(&mut self) {
        let longest = if self.rng.random_bool(0.5) { 5_000 } else { 90_000 };
        let length = Duration::from_millis(self.rng.random_range(100..longest));
        self.log(|_| format!("the database is unavailable for {length:?}"));
        self.count("a database outage");
        self.outage_until = self.now + length;
        self.facts.disturb(None);
    }

    pub(crate) fn kill_dispatcher(&mut self, d: usize) {
        self.log(|_| format!("dispatcher {d} is killed"));
        let process = self.dispatchers[d].process.as_ref();
        if process.is_some_and(|process| !process.acknowledged.is_empty()) {
            self.count("a dispatcher killed between claim and acknowledgement");
        }
        self.facts.disturb(Some(d));
        self.exit(d);
    }

    pub(crate) fn freeze(&mut self, d: usize) {
        self.log(|_| format!("dispatcher {d} is frozen"));
        self.facts.disturb(Some(d));
        if let Some(process) = &mut self.dispatchers[d].process {
            process.is_frozen = true;
        }
    }

    pub(crate) fn thaw(&mut self, d: usize) {
        self.log(|_| format!("dispatcher {d} resumes"));
        if let Some(process) = &mut self.dispatchers[d].process {
            process.is_frozen = false;
        }
    }

    /// Asks a dispatcher to stop.
    pub(crate) fn stop(&mut self, d: usize) -> Step {
        self.log(|_| format!("dispatcher {d} begins to stop"));
        let Some(process) = &mut self.dispatchers[d].process else { return Ok(()) };
        process.is_stopping = true;
        if let Some(claim) = process.doubtful_claim {
            // It is not retried. If it has committed, its attempts are lost.
            self.facts.abandon_claim(claim);
        }
        self.report(d, Event::Stop)
    }

    pub(crate) fn set_database_clock(&mut self) {
        let jump = self.rng.random_range(-600_000_000..=600_000_000);
        self.log(|_| format!("the database's clock jumps by {} s", jump / 1_000_000));
        self.count("a database's clock changed");
        self.database_ahead += jump;
        self.dispatchers.iter_mut().for_each(|dispatcher| dispatcher.clock_error -= jump);
        self.facts.disturb(None);
    }

    /// Starts or ends a local failure of a dispatcher's host.
    pub(crate) fn trouble(&mut self, d: usize) {
        let causes = [
            LocalFailure::NoSocket,
            LocalFailure::NoLocalPort,
            LocalFailure::NoNameServer,
            LocalFailure::KeyMissing,
            LocalFailure::SecretUnread,
        ];
        let cause = match self.dispatchers[d].trouble {
            Some(_) => None,
            None => causes.choose(&mut self.rng).copied(),
        };
        self.log(|_| format!("local failure of host {d}: {cause:?}"));
        self.dispatchers[d].trouble = cause;
    }

    pub(crate) fn change_manner(&mut self) {
        let manner = Manner::draw(&mut self.rng);
        let receiver = self.rng.random_range(0..self.receivers.len());
        self.log(|_| format!("receiver {receiver} becomes {manner:?}"));
        self.receivers[receiver].manner = manner;
    }

    /// Makes the database refuse claims or records of a delivery, as a corrupt row or page does.
    pub(crate) fn break_row(&mut self) {
        let open: Vec<usize> = (0..self.facts.deliveries.len())
            .filter(|place| self.facts.deliveries[*place].is_open())
            .collect();
        let Some(place) = open.choose(&mut self.rng).copied() else { return };
        let what = if self.rng.random_bool(0.6) { Refused::Claims } else { Refused::Records };
        self.log(|_| format!("the database refuses {what:?} of d{place} from now on"));
        let known = &mut self.facts.deliveries[place];
        known.is_refused = true;
        self.database.refuse(what, known.delivery.id);
        for claim in self.facts.claims.iter_mut().filter(|((of, _), _)| *of == place).map(|(_, claim)| claim)
        {
            claim.is_disturbed |= claim.is_open;
        }
    }

    /// Repairs all broken rows, as an operator does.
    pub(crate) fn repair_rows(&mut self) {
        self.log(|_| "broken rows are repaired".into());
        self.facts.deliveries.iter_mut().for_each(|known| known.is_refused = false);
        self.database.refuse_nothing();
    }
}
