//! Plays one history. The seed determines the order of the steps.

use std::time::Duration;

use contracts::Timestamp;
use rand::prelude::*;
use testkit::MemoryDatabase;

use crate::actors::PREFETCH;
use crate::facts::KnownDelivery;
use crate::process::{Dispatcher, Process};
use crate::promise::{Broken, CLOCK_ERROR, Counts, Step, promise};
use crate::world::World;

/// Maximum delay of a step in a running process: far less than a lease.
const PROMPT: Duration = Duration::from_secs(2);

/// How long broken rows stay broken after all other failures have stopped.
const UNREPAIRED: Duration = Duration::from_secs(120);

/// A step of a history.
#[derive(Clone, Copy, Debug)]
enum Event {
    Ask(usize),
    Report(usize),
    Erase,
    Withdraw,
    Ring(usize),
    KillApi(usize),
    GiveOut(usize),
    Hear(usize),
    Acknowledge(usize),
    Tick(usize),
    Transact(usize, usize),
    TransactLate(usize),
    Advance(usize, usize),
    Start(usize),
    Kill(usize),
    Freeze(usize),
    Thaw(usize),
    Stop(usize),
    Align(usize),
    SetDatabaseClock,
    LoseDatabase,
    Trouble(usize),
    ChangeManner,
    BreakRow,
    RepairRows,
    Purge,
    RestartBroker,
    Wait(Duration),
}

/// Result of playing a history.
pub(crate) struct Played {
    pub(crate) steps: usize,
    pub(crate) trace: Vec<String>,
    pub(crate) broken: Option<Broken>,
}

/// Plays the history of `seed` on a database that it clears first.
pub(crate) fn play(database: &mut MemoryDatabase, counts: &mut Counts, seed: u64, is_traced: bool) -> Played {
    let mut steps = 0;
    let mut world = match World::of_seed(database, counts, seed) {
        Ok(world) => world,
        Err(broken) => return Played { steps, trace: Vec::new(), broken: Some(broken) },
    };
    world.trace = is_traced.then(Vec::new);
    let played = world.play(&mut steps);
    Played { steps, trace: world.trace.take().unwrap_or_default(), broken: played.err() }
}

impl World<'_> {
    fn play(&mut self, steps: &mut usize) -> Step {
        self.gather_crowd()?;
        while *steps < self.shape.steps {
            let events = self.possible();
            let drawn = events.choose_weighted(&mut self.rng, |(_, weight)| *weight);
            let event = drawn.map_err(|error| Broken::Step(format!("nothing can happen: {error}")))?.0;
            self.apply(event)?;
            *steps += 1;
        }
        self.calm();
        // Broken rows must not delay other deliveries.
        let patience = self.now + UNREPAIRED;
        self.play_until(steps, |world| {
            world.now > patience
                || world.facts.deliveries.iter().all(|known| !known.is_open() || known.is_refused)
        })?;
        self.check_nothing_is_held_up()?;
        // After the repair all deliveries must end.
        self.repair_rows();
        self.play_until(steps, |world| world.facts.deliveries.iter().all(|known| !known.is_open()))?;
        self.make_the_rest()?;
        let mut deliveries = self.facts.deliveries.iter().map(|known| &known.delivery);
        if deliveries.any(|delivery| delivery.attempt_count == delivery.max_attempts) {
            self.count("a delivery with all attempts used up");
        }
        self.check_all()
    }

    /// Runs the transactions that are still pending. They must not change anything.
    fn make_the_rest(&mut self) -> Step {
        while !self.late.is_empty() {
            self.transact_late(0)?;
        }
        for d in 0..self.dispatchers.len() {
            let transactions =
                self.dispatchers[d].process.as_ref().map_or(0, |process| process.transactions.len());
            for _ in 0..transactions {
                self.transact(d, 0)?;
            }
        }
        Ok(())
    }

    /// Continues without failures until `is_over`.
    pub(crate) fn play_until(&mut self, steps: &mut usize, is_over: impl Fn(&World<'_>) -> bool) -> Step {
        while !is_over(self) {
            promise(*steps < self.shape.last_step, || "I1: a delivery does not end".into())?;
            let event = self.next_in_calm();
            self.apply(event)?;
            *steps += 1;
        }
        Ok(())
    }

    /// Continues without failures until `moment`.
    pub(crate) fn play_up_to(&mut self, moment: Timestamp, steps: &mut usize) -> Step {
        while self.now < moment {
            let event = match self.next_in_calm() {
                Event::Wait(wait) => Event::Wait(wait.min(moment.since(self.now))),
                event => event,
            };
            self.apply(event)?;
            *steps += 1;
        }
        Ok(())
    }

    /// Checks that no delivery that could be claimed has been due for long. In a crowd this is allowed.
    fn check_nothing_is_held_up(&self) -> Step {
        let is_crowded = self.shape.crowd > 0;
        let is_free =
            |known: &KnownDelivery| !known.is_refused && !self.facts.holds.contains_key(&known.destination);
        let waiting =
            self.facts.deliveries.iter().filter(|known| is_free(known)).filter_map(KnownDelivery::wakes_at);
        let longest = waiting.min().filter(|at| *at + UNREPAIRED / 2 < self.database_time());
        promise(longest.is_none() || is_crowded, || format!("I12: a delivery has been due since {longest:?}"))
    }

    /// Accepts the crowd's redeliveries.
    fn gather_crowd(&mut self) -> Step {
        let crowd: Vec<usize> = (0..self.runs.len()).skip(self.runs.len() - self.shape.crowd).collect();
        if crowd.is_empty() {
            return Ok(());
        }
        self.redeliver(0, &crowd, false)?;
        // Most doorbells are lost.
        self.apis[0].buffer.truncate(5);
        Ok(())
    }

    /// Ends all failures except broken rows: the database recovers, and frozen processes resume.
    fn calm(&mut self) {
        self.log(|_| "failures stop".into());
        self.is_calm = true;
        self.outage_until = self.now;
        for d in 0..self.dispatchers.len() {
            self.thaw(d);
            self.align(d);
            self.dispatchers[d].trouble = None;
        }
    }

    /// Returns the possible next steps with their weights.
    fn possible(&self) -> Vec<(Event, u32)> {
        let mut events = vec![(Event::Purge, 1), (Event::RestartBroker, 1), (Event::ChangeManner, 1)];
        if !self.is_database_away() {
            events.push((Event::LoseDatabase, 2));
        }
        if self.shape.withdraws_and_erases {
            events.extend([(Event::Withdraw, 2), (Event::Erase, 2)]);
        }
        if self.shape.sets_database_clock {
            events.push((Event::SetDatabaseClock, 2));
        }
        if self.shape.refuses_rows {
            events.extend([(Event::BreakRow, 3), (Event::RepairRows, 2)]);
        }
        for (index, api) in self.apis.iter().enumerate() {
            events.extend([(Event::Ask(index), 8), (Event::Report(index), 2), (Event::KillApi(index), 1)]);
            if !api.buffer.is_empty() {
                events.push((Event::Ring(index), 20));
            }
        }
        events.extend((0..self.late.len()).map(|index| (Event::TransactLate(index), 8)));
        for (d, dispatcher) in self.dispatchers.iter().enumerate() {
            let Some(process) = &dispatcher.process else {
                events.push((Event::Start(d), 10));
                continue;
            };
            events.push((Event::Kill(d), 1));
            if process.is_frozen {
                events.push((Event::Thaw(d), 2));
                continue;
            }
            events.push((Event::Freeze(d), 1));
            if !process.is_stopping {
                events.push((Event::Stop(d), 1));
            }
            if dispatcher.is_misaligned() {
                events.push((Event::Align(d), 12));
            }
            if self.shape.has_troubles {
                events.push((Event::Trouble(d), if dispatcher.trouble.is_some() { 3 } else { 2 }));
            }
            events.extend(self.steps_of(d, process).into_iter().map(|event| (event, 14)));
            if self.is_tick_due(process) {
                events.push((Event::Tick(d), if process.urgent_at().is_some() { 12 } else { 4 }));
            }
        }
        events.extend(self.waits());
        events
    }

    /// Returns the possible waits with their weights. They are short enough for running processes to take
    /// their steps promptly, except polls of the database.
    fn waits(&self) -> Vec<(Event, u32)> {
        let running = self.dispatchers.iter().filter_map(Dispatcher::running);
        let oldest = running.filter_map(Process::ready_at).min();
        let patience = match oldest {
            Some(since) if since <= self.now => PROMPT.saturating_sub(self.now.since(since)),
            Some(at) => at.since(self.now) + PROMPT,
            None => Duration::from_secs(90),
        };
        let waits = [(1.0, 6), (0.3, 6), (0.02, 6)].map(|(share, weight)| (patience.mul_f64(share), weight));
        let waits = waits.into_iter().filter(|(wait, _)| *wait > CLOCK_ERROR / 10);
        waits.map(|(wait, weight)| (Event::Wait(wait), weight)).collect()
    }

    fn is_tick_due(&self, process: &Process) -> bool {
        process.machine.wake_at().is_some_and(|at| at <= self.monotonic())
    }

    /// Returns the steps that a dispatcher can take now, except ticks.
    fn steps_of(&self, d: usize, process: &Process) -> Vec<Event> {
        let mut events = Vec::new();
        if !process.acknowledged.is_empty() {
            events.push(Event::Acknowledge(d));
        }
        let takes = process.is_consuming && !process.is_stopping;
        let held = process.prefetched.len() + process.heard.len() + process.acknowledged.len();
        if takes && held < PREFETCH && !self.broker.queue.is_empty() {
            events.push(Event::GiveOut(d));
        }
        if takes && !process.prefetched.is_empty() && process.machine.doorbell_room() > 0 {
            events.push(Event::Hear(d));
        }
        events.extend((0..process.transactions.len()).map(|index| Event::Transact(d, index)));
        let attempts = process.attempts.iter().enumerate();
        let ready = attempts.filter(|(_, attempt)| attempt.ready_at <= self.now);
        events.extend(ready.map(|(index, _)| Event::Advance(d, index)));
        events
    }

    /// Returns the next step without failures: a random one that is possible now, otherwise a wait.
    fn next_in_calm(&mut self) -> Event {
        let mut events: Vec<Event> = (0..self.late.len()).map(Event::TransactLate).collect();
        for (d, dispatcher) in self.dispatchers.iter().enumerate() {
            match &dispatcher.process {
                Some(process) => events.extend(self.steps_of(d, process)),
                None => events.push(Event::Start(d)),
            }
        }
        if let Some(event) = events.choose(&mut self.rng) {
            return *event;
        }
        let next_due = self.next_due();
        let is_due = next_due.is_some_and(|at| at <= self.now);
        let processes = || {
            let running = self.dispatchers.iter().enumerate();
            running.filter_map(|(d, dispatcher)| Some((d, dispatcher.process.as_ref()?)))
        };
        // Skips polls that would find nothing.
        let has_reason =
            |process: &Process| is_due || process.urgent_at().is_some() || !process.heard.is_empty();
        let ticks = processes().filter(|(_, process)| has_reason(process) && self.is_tick_due(process));
        let ticks: Vec<Event> = ticks.map(|(d, _)| Event::Tick(d)).collect();
        if let Some(event) = ticks.choose(&mut self.rng) {
            return *event;
        }
        let woken = processes().filter(|(_, process)| has_reason(process));
        let next_tick = woken.filter_map(|(_, process)| process.machine.wake_at()).min();
        let next_tick = next_tick.map(|at| self.now + at.saturating_sub(self.monotonic()));
        let ready = processes().filter_map(|(_, process)| process.ready_at()).min();
        let next = [next_tick, ready, next_due.filter(|_| !is_due)].into_iter().flatten().min();
        let wait = next.map_or(Duration::from_secs(1), |at| at.since(self.now));
        Event::Wait(wait.max(Duration::from_millis(1)))
    }

    /// Returns the true time at which the next delivery is due or the next lease ends.
    fn next_due(&self) -> Option<Timestamp> {
        let waiting = self.facts.deliveries.iter().filter(|known| !known.is_refused).filter_map(|known| {
            let hold = self.facts.holds.get(&known.destination);
            let open_at =
                hold.map(|hold| hold.held_until.max(hold.probe.map_or(hold.held_until, |(until, _)| until)));
            known.wakes_at().max(open_at.filter(|_| known.wakes_at().is_some()))
        });
        let is_refused = |place: usize| self.facts.deliveries[place].is_refused;
        let open =
            self.facts.claims.iter().filter(|((place, _), claim)| claim.is_open && !is_refused(*place));
        let leases = open.map(|(_, claim)| claim.wake_at);
        waiting.chain(leases).min().map(|at| self.as_true_time(at))
    }

    fn apply(&mut self, event: Event) -> Step {
        match event {
            Event::Ask(api) => return self.ask(api),
            Event::Report(api) => return self.report_run(api),
            Event::Erase => return self.erase(),
            Event::Withdraw => return self.withdraw(),
            Event::Hear(d) => return self.hear(d),
            Event::Tick(d) => return self.tick(d),
            Event::Transact(d, index) => return self.transact(d, index),
            Event::TransactLate(index) => return self.transact_late(index),
            Event::Advance(d, index) => return self.advance(d, index),
            Event::Stop(d) => return self.stop(d),
            Event::Ring(api) => self.ring(api),
            Event::KillApi(api) => self.kill_api(api),
            Event::GiveOut(d) => self.give_out(d),
            Event::Acknowledge(d) => self.acknowledge(d),
            Event::Start(d) => self.start(d),
            Event::Kill(d) => self.kill_dispatcher(d),
            Event::Freeze(d) => self.freeze(d),
            Event::Thaw(d) => self.thaw(d),
            Event::Align(d) => self.align(d),
            Event::SetDatabaseClock => self.set_database_clock(),
            Event::LoseDatabase => self.lose_database(),
            Event::Trouble(d) => self.trouble(d),
            Event::ChangeManner => self.change_manner(),
            Event::BreakRow => self.break_row(),
            Event::RepairRows => self.repair_rows(),
            Event::Purge => self.purge(),
            Event::RestartBroker => self.restart_broker(),
            Event::Wait(wait) => self.now = self.now + wait,
        }
        Ok(())
    }
}
