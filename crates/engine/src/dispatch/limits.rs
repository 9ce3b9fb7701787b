//! The limits on sending: each destination's window and hold, and local troubles.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use contracts::{Destination, Timestamp};

use super::events::{Action, Now};
use super::in_flight::InFlight;
use crate::destination::{Signal, Window};
use crate::outcome::{LocalFailure, Outcome};
use crate::protection::{Protection, is_off};

/// The most destinations remembered while nothing is in flight to them.
const MOST: usize = 10_000;
/// With fewer unaccepted results than this, a destination still starts attempts.
const FEW: usize = 4;
/// How long a learned limit is remembered.
const REMEMBERED: Duration = Duration::from_secs(600);

/// The destinations that are not ordinary: with attempts in flight, a learned limit, or a hold.
#[derive(Debug)]
pub(super) struct Destinations {
    known: BTreeMap<Destination, State>,
    max: usize,
}

#[derive(Debug)]
struct State {
    window: Window,
    /// The end of the hold that this dispatcher has received itself. The database has all holds.
    held_until: Option<Timestamp>,
    /// Whether a poll found that the next attempt does not fit with those in flight. It waits until one of
    /// them ends.
    is_full: bool,
    /// The number of results that the database does not accept. Once it reaches the configured maximum in
    /// flight, or [`FEW`] if that is larger, no more attempts start. So one broken row stops nothing, and
    /// many can't take the slots of other destinations.
    unrecorded: usize,
    used_at: Duration,
}

impl Destinations {
    pub(super) fn new(max: usize) -> Destinations {
        Destinations { known: BTreeMap::new(), max }
    }

    /// Returns how many attempts an ordinary destination may have.
    pub(super) fn ordinary_room(&self) -> usize {
        match is_off(Protection::DestinationLimit) {
            true => usize::MAX,
            false => Window::new(self.max).room(),
        }
    }

    /// Returns how many more attempts may be claimed for a destination.
    pub(super) fn room(&self, destination: Destination, now: Now) -> usize {
        match self.known.get(&destination) {
            Some(state) if state.is_held(now) || state.is_full => 0,
            _ => self.slots(destination),
        }
    }

    /// Returns how many more attempts a destination may have, ignoring its hold and [`State::is_full`].
    pub(super) fn slots(&self, destination: Destination) -> usize {
        match self.known.get(&destination) {
            _ if is_off(Protection::DestinationLimit) => usize::MAX,
            Some(state) if state.unrecorded >= self.max.max(FEW) => 0,
            Some(state) => state.window.room(),
            None => self.ordinary_room(),
        }
    }

    /// Returns the rooms that differ from the ordinary one.
    pub(super) fn rooms(&self, now: Now) -> HashMap<Destination, usize> {
        let ordinary = self.ordinary_room();
        let rooms = self.known.keys().map(|destination| (*destination, self.room(*destination, now)));
        rooms.filter(|(_, room)| *room != ordinary).collect()
    }

    /// Returns how many known destinations are ordinary, and how many have a lowered limit.
    pub(super) fn counts(&self) -> (usize, usize) {
        let slowed = self.known.values().filter(|state| state.window.is_lowered()).count();
        (self.known.len() - slowed, slowed)
    }

    pub(super) fn is_held(&self, destination: Destination, now: Now) -> bool {
        self.known.get(&destination).is_some_and(|state| state.is_held(now))
    }

    pub(super) fn claim(&mut self, destination: Destination, now: Now) {
        self.state(destination, now).window.claim();
    }

    /// Returns whether a claimed attempt may start.
    pub(super) fn can_begin(&self, destination: Destination) -> bool {
        let state = self.known.get(&destination);
        state.is_none_or(|state| state.window.slots() > 0) || is_off(Protection::DestinationLimit)
    }

    pub(super) fn begin(&mut self, destination: Destination, now: Now) {
        self.state(destination, now).window.begin();
    }

    /// Releases a claimed attempt that won't start.
    pub(super) fn give_back(&mut self, destination: Destination, now: Now) {
        self.state(destination, now).window.give_back();
    }

    /// Ends an attempt. Returns whether this lowered its destination's limit.
    pub(super) fn end(&mut self, attempt: &InFlight, signal: Signal, now: Now) -> bool {
        let destination = attempt.held.destination;
        let max = self.max;
        let state = self.state(destination, now);
        let is_less = state.window.end(signal, attempt.began, now.monotonic);
        state.is_full = false;
        if state.is_ordinary(max) {
            self.known.remove(&destination);
        }
        is_less
    }

    /// Sets the number of unaccepted results of each destination.
    pub(super) fn note_unrecorded(&mut self, unrecorded: &BTreeMap<Destination, usize>, now: Now) {
        self.known.values_mut().for_each(|state| state.unrecorded = 0);
        for (destination, count) in unrecorded {
            self.state(*destination, now).unrecorded = *count;
        }
    }

    /// Marks a destination as full until an attempt in flight to it ends, if there is one.
    pub(super) fn fill(&mut self, destination: Destination) {
        if let Some(state) = self.known.get_mut(&destination) {
            state.is_full = state.window.in_flight() > 0;
        }
    }

    pub(super) fn hold(&mut self, destination: Destination, until: Timestamp, now: Now) {
        let state = self.state(destination, now);
        state.held_until = state.held_until.max(Some(until));
    }

    /// Forgets idle destinations not used for [`REMEMBERED`], and those least recently used beyond [`MOST`].
    pub(super) fn forget_idle(&mut self, now: Now) {
        let is_idle = |state: &State| state.window.is_idle() && !state.is_held(now);
        self.known.retain(|_, state| !is_idle(state) || state.used_at + REMEMBERED > now.monotonic);
        let over = self.known.len().saturating_sub(MOST);
        if over > 0 {
            // Including held ones: the database has their holds.
            let idle = self.known.iter().filter(|(_, state)| state.window.is_idle());
            let mut idle: Vec<_> = idle.map(|(destination, state)| (state.used_at, *destination)).collect();
            idle.sort_unstable();
            for (_, destination) in idle.into_iter().take(over) {
                self.known.remove(&destination);
            }
        }
    }

    fn state(&mut self, destination: Destination, now: Now) -> &mut State {
        if self.known.len() >= 2 * MOST && !self.known.contains_key(&destination) {
            self.forget_idle(now);
        }
        let max = self.max;
        let state = self.known.entry(destination).or_insert_with(|| State {
            window: Window::new(max),
            held_until: None,
            is_full: false,
            unrecorded: 0,
            used_at: now.monotonic,
        });
        state.used_at = now.monotonic;
        state
    }
}

impl State {
    fn is_held(&self, now: Now) -> bool {
        self.held_until.is_some_and(|until| until > now.clock) && !is_off(Protection::Hold)
    }

    fn is_ordinary(&self, max: usize) -> bool {
        self.held_until.is_none() && self.unrecorded == 0 && self.window == Window::new(max)
    }
}

/// Local reasons why attempts can't be sent. While one of them concerns all attempts, less is claimed.
#[derive(Debug)]
pub(super) struct Troubles {
    /// The limit of attempts in flight.
    window: Window,
    causes: BTreeMap<LocalFailure, Trouble>,
}

#[derive(Debug)]
struct Trouble {
    seen_at: Duration,
    pause: Duration,
    paused_until: Duration,
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A trouble that concerns all attempts is over once an attempt gets through that started this long after the
/// last failure. Earlier ones may get through over connections that are already open.
const OVER_AFTER: Duration = Duration::from_secs(5);
/// How long a trouble is remembered without evidence that it is over.
const FADES_AFTER: Duration = Duration::from_secs(90);

impl Troubles {
    pub(super) fn new(max_in_flight: usize) -> Troubles {
        let window = Window::starting_at(max_in_flight, max_in_flight);
        Troubles { window, causes: BTreeMap::new() }
    }

    pub(super) fn begin(&mut self) {
        self.window.begin();
    }

    /// Ends an attempt.
    pub(super) fn end(&mut self, outcome: &Outcome, began: Duration, now: Now, actions: &mut Vec<Action>) {
        let now = now.monotonic;
        let Outcome::NotSent(cause) = *outcome else {
            self.window.end(Signal::Answered, began, now);
            self.forget(actions, |cause, trouble| {
                cause.concerns_all() && began >= trouble.seen_at + OVER_AFTER
            });
            return;
        };
        self.window.end(if cause.concerns_all() { Signal::Overloaded } else { Signal::None }, began, now);
        if !self.causes.contains_key(&cause) {
            actions.push(Action::Trouble(cause));
        }
        let trouble = self.causes.entry(cause).or_insert(Trouble {
            seen_at: now,
            pause: FIRST_PAUSE / 2,
            paused_until: Duration::ZERO,
        });
        trouble.seen_at = now;
        if cause.concerns_all() && began >= trouble.paused_until {
            trouble.pause = (trouble.pause * 2).min(LONGEST_PAUSE);
            trouble.paused_until = now + trouble.pause;
        }
    }

    /// Returns how many more attempts may start.
    pub(super) fn room(&self) -> usize {
        self.window.slots()
    }

    /// Returns the time until which nothing may be claimed.
    pub(super) fn paused_until(&self) -> Duration {
        self.causes.values().map(|trouble| trouble.paused_until).max().unwrap_or_default()
    }

    pub(super) fn causes(&self) -> Vec<LocalFailure> {
        self.causes.keys().copied().collect()
    }

    /// Forgets the troubles not seen for [`FADES_AFTER`].
    pub(super) fn fade(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.forget(actions, |_, trouble| trouble.seen_at + FADES_AFTER <= now.monotonic);
    }

    fn forget(&mut self, actions: &mut Vec<Action>, is_over: impl Fn(LocalFailure, &Trouble) -> bool) {
        self.causes.retain(|cause, trouble| {
            let is_over = is_over(*cause, trouble);
            if is_over {
                actions.push(Action::TroubleOver(*cause));
            }
            !is_over
        });
    }
}
