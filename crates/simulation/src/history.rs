//! One history: which step comes next is drawn from the seed.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::prelude::*;
use testkit::MemoryDatabase;

use crate::actors::{Dispatcher, PREFETCH, State};
use crate::mutant::Mutant;
use crate::world::{Broken, CLOCK_ERROR, Step, World, promise};

/// Steps before failures stop.
const STEPS: usize = 120;
/// More than any history takes to come to its end.
const LAST_STEPS: usize = 3000;
/// The longest a process that runs leaves a step unmade: far less than a lease.
const PROMPT: Duration = Duration::from_secs(2);

/// What can happen next.
#[derive(Clone, Copy, Debug)]
enum Event {
    Ask(usize),
    Report(usize),
    Erase,
    Ring(usize),
    KillApi(usize),
    Deliver(usize),
    Claim(usize),
    Relay(usize),
    TryAgain(usize),
    Ack(usize),
    Advance(usize, usize),
    Finish(usize),
    KillDispatcher(usize),
    Stop(usize),
    GoOn(usize),
    SetClock(usize),
    SetDatabaseClock,
    Align(usize),
    Purge,
    RestartBroker,
    LoseDatabase,
    Wait(Duration),
}

/// How a history went.
pub(crate) struct Told {
    pub(crate) steps: usize,
    pub(crate) trace: Vec<String>,
    pub(crate) broken: Option<Broken>,
}

/// Plays the history of a seed, on a database that holds nothing else.
pub(crate) fn play(
    database: &mut MemoryDatabase,
    seen: &mut BTreeMap<&'static str, usize>,
    seed: u64,
    mutant: Option<Mutant>,
    is_traced: bool,
) -> Told {
    let mut steps = 0;
    let mut world = match World::new(database, seen, seed, mutant, is_traced) {
        Ok(world) => world,
        Err(broken) => return Told { steps, trace: Vec::new(), broken: Some(broken) },
    };
    let played = world.play(&mut steps);
    let broken = played.err();
    Told { steps, trace: world.trace.take().unwrap_or_default(), broken }
}

impl World<'_> {
    fn play(&mut self, steps: &mut usize) -> Step {
        if self.is(Mutant::NoOneOpenIndex) {
            self.database.execute("DROP INDEX IF EXISTS one_open_delivery_per_run");
        }
        while *steps < STEPS {
            let events = self.possible();
            let drawn = events.choose_weighted(&mut self.rng, |(_, weight)| *weight);
            let event = drawn.map_err(|error| Broken::Step(format!("nothing can happen: {error}")))?.0;
            self.happen(event)?;
            *steps += 1;
        }
        self.calm();
        while self.facts.known.values().any(|delivery| delivery.completed_at.is_none()) {
            promise(*steps < LAST_STEPS, || "I1: a delivery does not come to its end".into())?;
            let event = self.next_in_calm();
            self.happen(event)?;
            *steps += 1;
        }
        let used_up = |delivery: &&contracts::Delivery| delivery.attempt_count == delivery.max_attempts;
        if self.facts.known.values().any(|delivery| used_up(&delivery)) {
            self.saw("a budget used up");
        }
        Ok(())
    }

    /// Failures stop: the database is back, and processes go on.
    fn calm(&mut self) {
        self.tell(|_| "failures stop".into());
        self.is_calm = true;
        self.outage_until = self.now;
        for dispatcher in 0..self.dispatchers.len() {
            self.dispatchers[dispatcher].is_paused = false;
            self.align(dispatcher);
        }
    }

    /// Takes over the database's time, as nearly as can be.
    fn align(&mut self, dispatcher: usize) {
        let error = i64::try_from(CLOCK_ERROR.as_micros()).unwrap_or(0);
        self.dispatchers[dispatcher].clock_error = self.rng.random_range(-error..=error);
    }

    /// What can happen, and how likely it is.
    fn possible(&self) -> Vec<(Event, u32)> {
        let mut events = vec![(Event::Purge, 1), (Event::RestartBroker, 1), (Event::LoseDatabase, 1)];
        if self.may_erase {
            events.push((Event::Erase, 1));
        }
        if self.may_set_database_clock {
            events.push((Event::SetDatabaseClock, 1));
        }
        for (api, state) in self.apis.iter().enumerate() {
            events.push((Event::Ask(api), 6));
            events.push((Event::Report(api), 2));
            events.push((Event::KillApi(api), 1));
            if !state.buffer.is_empty() {
                events.push((Event::Ring(api), 20));
            }
        }
        for (d, dispatcher) in self.dispatchers.iter().enumerate() {
            if !self.queue.is_empty() && dispatcher.held.len() < PREFETCH {
                events.push((Event::Deliver(d), 10));
            }
            events.push((Event::KillDispatcher(d), 1));
            events.push((Event::SetClock(d), 1));
            if dispatcher.is_paused {
                events.push((Event::GoOn(d), 3));
                continue;
            }
            events.push((Event::Stop(d), 1));
            if dispatcher.is_misaligned() {
                events.push((Event::Align(d), 12));
            }
            events.extend(self.steps_of(d, dispatcher).into_iter().map(|event| (event, 12)));
            if !self.is(Mutant::NoRelay) && dispatcher.claim.is_none() && dispatcher.room() > 0 {
                events.push((Event::Relay(d), 6));
            }
        }
        // Who runs makes their steps in time.
        let running = self.dispatchers.iter().filter(|dispatcher| !dispatcher.is_paused);
        let oldest = running.filter_map(Dispatcher::ready_since).min();
        let patience =
            oldest.map_or(Duration::from_secs(90), |since| PROMPT.saturating_sub(self.now.since(since)));
        for (share, weight) in [(1.0, 6), (0.3, 6), (0.02, 6)] {
            let wait = patience.mul_f64(share);
            if wait > CLOCK_ERROR {
                events.push((Event::Wait(wait), weight));
            }
        }
        events
    }

    /// The steps a dispatcher could make now.
    fn steps_of(&self, d: usize, dispatcher: &Dispatcher) -> Vec<Event> {
        let mut events = Vec::new();
        if !dispatcher.served.is_empty() {
            events.push(Event::Ack(d));
        }
        let unserved = dispatcher.held.iter().any(|message| !dispatcher.served.contains(&message.number));
        match dispatcher.claim {
            Some(_) => events.push(Event::TryAgain(d)),
            None if unserved && dispatcher.room() > 0 => events.push(Event::Claim(d)),
            None => {}
        }
        if !dispatcher.results.is_empty() {
            events.push(Event::Finish(d));
        }
        for (index, attempt) in dispatcher.attempts.iter().enumerate() {
            if !matches!(attempt.state, State::Sent { at, .. } if at > self.now) {
                events.push(Event::Advance(d, index));
            }
        }
        events
    }

    /// In calm everybody works on: what can be done is done, and then it is waited for what is next.
    fn next_in_calm(&mut self) -> Event {
        for (d, dispatcher) in self.dispatchers.iter().enumerate() {
            if let Some(event) = self.steps_of(d, dispatcher).first() {
                return *event;
            }
        }
        let d = self.rng.random_range(0..self.dispatchers.len());
        let could = !self.is(Mutant::NoRelay) && self.dispatchers[d].room() > 0;
        if could && self.rng.random_bool(0.5) {
            return Event::Relay(d);
        }
        let next = self.dispatchers.iter().filter_map(Dispatcher::ready_since).min();
        Event::Wait(next.map_or(Duration::from_secs(10), |at| at.since(self.now)))
    }

    fn happen(&mut self, event: Event) -> Step {
        match event {
            Event::Ask(api) => self.ask(api),
            Event::Report(api) => self.report(api),
            Event::Erase => self.erase(),
            Event::Ring(api) => self.ring(api),
            Event::Claim(d) => self.begin_claim(d, false),
            Event::Relay(d) => self.begin_claim(d, true),
            Event::TryAgain(d) => self.try_claim(d),
            Event::Ack(d) => self.ack_served(d),
            Event::Advance(d, index) => self.advance(d, index),
            Event::Finish(d) => self.finish(d),
            other => {
                self.strike(other);
                Ok(())
            }
        }
    }

    /// What only changes what is held in memory.
    fn strike(&mut self, event: Event) {
        match event {
            Event::KillApi(api) => self.kill_api(api),
            Event::Deliver(d) => self.deliver(d),
            Event::Purge => self.purge(),
            Event::RestartBroker => self.restart_broker(),
            Event::LoseDatabase => {
                let length = Duration::from_millis(self.rng.random_range(100..90_000));
                self.tell(|_| format!("the database is away for {length:?}"));
                self.saw("a database away");
                self.outage_until = self.now + length;
                self.facts.disturb(None);
            }
            Event::KillDispatcher(d) => {
                self.tell(|_| format!("dispatcher {d} is killed"));
                if !self.dispatchers[d].served.is_empty() {
                    self.saw("a dispatcher killed between claim and acknowledgement");
                }
                self.facts.disturb(Some(d));
                self.give_back(d);
                let Dispatcher { clock_error, host_error, .. } = self.dispatchers[d];
                self.dispatchers[d] = Dispatcher { clock_error, host_error, ..Dispatcher::default() };
            }
            Event::Stop(d) => {
                self.tell(|_| format!("dispatcher {d} is stopped"));
                self.dispatchers[d].is_paused = true;
                self.facts.disturb(Some(d));
            }
            Event::GoOn(d) => {
                self.tell(|_| format!("dispatcher {d} goes on"));
                self.dispatchers[d].is_paused = false;
            }
            Event::SetClock(d) => {
                let error = self.rng.random_range(-3_600_000_000..=3_600_000_000);
                self.dispatchers[d].host_error = error;
            }
            Event::SetDatabaseClock => {
                let jump = self.rng.random_range(-600_000_000..=600_000_000);
                self.tell(|_| format!("the database's clock is set by {} s", jump / 1_000_000));
                self.saw("a database's clock set");
                self.database_ahead += jump;
                self.dispatchers.iter_mut().for_each(|dispatcher| dispatcher.clock_error -= jump);
                self.facts.disturb(None);
            }
            Event::Align(d) => self.align(d),
            Event::Wait(wait) => self.now = self.now + wait,
            _ => {}
        }
    }
}
