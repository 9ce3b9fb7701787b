//! How many attempts may be in flight to one destination.

use std::time::Duration;

use contracts::FailureReason;

use crate::outcome::{Outcome, Response};

/// A limit on what is in flight that adapts as TCP's congestion window does (RFC 5681): it starts small, grows while it
/// is made use of and answers come in time, and halves when they don't, once for all that was in flight then.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Window {
    max: usize,
    limit: usize,
    /// Below it each answer adds one; above, each full window of answers does.
    threshold: usize,
    /// Answers since the limit last grew.
    answers: usize,
    in_flight: usize,
    /// Claimed, and not begun yet.
    claimed_ahead: usize,
    /// Whether it answers so quickly that slots would stand empty while their next attempts are claimed.
    is_quick: bool,
    /// When it was halved last, on monotonic time.
    halved_at: Option<Duration>,
}

/// What an attempt says of its destination's capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// It answered in time.
    Answered,
    /// It says that it is overloaded.
    Overloaded,
    /// It does not answer. Others of its endpoints may.
    Silent,
    /// Nothing.
    None,
}

/// Where a limit starts.
const START: usize = 4;
/// Within which a quick answer comes: some times what a claim takes.
const QUICK: Duration = Duration::from_millis(50);

impl Window {
    pub(crate) fn new(max: usize) -> Window {
        Window::starting_at(START, max)
    }

    pub(crate) fn starting_at(start: usize, max: usize) -> Window {
        let limit = start.clamp(1, max.max(1));
        Window {
            max: max.max(1),
            limit,
            threshold: max,
            answers: 0,
            in_flight: 0,
            claimed_ahead: 0,
            is_quick: false,
            halved_at: None,
        }
    }

    /// How many more attempts may be claimed: those that can begin, and for a quick destination as many ahead.
    pub(crate) fn room(&self) -> usize {
        let ahead = if self.is_quick { self.limit } else { 0 };
        (self.limit + ahead).saturating_sub(self.in_flight + self.claimed_ahead)
    }

    /// How many more attempts may begin.
    pub(crate) fn slots(&self) -> usize {
        self.limit.saturating_sub(self.in_flight)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether nothing is in flight or claimed.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight + self.claimed_ahead == 0
    }

    pub(crate) fn claim(&mut self) {
        self.claimed_ahead += 1;
    }

    /// A claimed attempt does not begin.
    pub(crate) fn give_back(&mut self) {
        self.claimed_ahead = self.claimed_ahead.saturating_sub(1);
    }

    /// A claimed attempt begins.
    pub(crate) fn begin(&mut self) {
        self.give_back();
        self.in_flight += 1;
    }

    /// An attempt that began at `began` of the monotonic time is over at `now`. Returns whether the limit was halved.
    pub(crate) fn end(&mut self, signal: Signal, began: Duration, now: Duration) -> bool {
        let was_made_use_of = self.in_flight * 2 >= self.limit;
        self.in_flight = self.in_flight.saturating_sub(1);
        if signal != Signal::None {
            let is_quick = signal == Signal::Answered && now.saturating_sub(began) < QUICK;
            self.is_quick = is_quick && self.limit > START;
        }
        match signal {
            Signal::Answered if was_made_use_of && self.limit < self.max => {
                self.answers += 1;
                if self.limit < self.threshold || self.answers >= self.limit {
                    (self.limit, self.answers) = (self.limit + 1, 0);
                }
            }
            Signal::Overloaded | Signal::Silent if self.halved_at.is_none_or(|at| began >= at) => {
                self.limit = (self.limit / 2).max(1);
                (self.answers, self.halved_at) = (0, Some(now));
                if signal == Signal::Overloaded {
                    self.threshold = self.limit;
                }
                return true;
            }
            _ => {}
        }
        false
    }
}

impl Outcome {
    pub(crate) fn signal(&self) -> Signal {
        match self {
            Outcome::Answered(Response { status: 429 | 503, .. }) => Signal::Overloaded,
            Outcome::Answered(_) => Signal::Answered,
            Outcome::Failed(failure) => match failure.reason {
                FailureReason::Timeout | FailureReason::ConnectionError => Signal::Silent,
                _ => Signal::None,
            },
            Outcome::NotSent(_) => Signal::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Begins as many as may be, and ends them a second later.
    fn round(window: &mut Window, signal: Signal, now: &mut Duration) {
        let (began, count) = (*now, window.room());
        (0..count).for_each(|_| window.begin());
        *now += SECOND;
        for _ in 0..count {
            window.end(signal, began, *now);
        }
    }

    #[test]
    fn it_starts_small_and_grows_to_its_maximum_while_it_is_made_use_of() {
        let (mut window, mut now) = (Window::new(32), SECOND);
        let mut limits = Vec::new();
        for _ in 0..5 {
            limits.push(window.room());
            round(&mut window, Signal::Answered, &mut now);
        }
        assert_eq!(limits[0], 4);
        assert!(limits.is_sorted() && limits[1] > 4, "{limits:?}");
        for _ in 0..50 {
            round(&mut window, Signal::Answered, &mut now);
        }
        assert_eq!(window.room(), 32);
    }

    #[test]
    fn one_attempt_at_a_time_does_not_open_it() {
        let mut window = Window::new(32);
        for second in 0..100 {
            window.begin();
            window.end(Signal::Answered, SECOND * second, SECOND * (second + 1));
        }
        assert_eq!(window.room(), 4);
    }

    #[test]
    fn it_halves_once_for_all_that_was_in_flight_and_down_to_one() {
        let (mut window, mut now) = (Window::starting_at(16, 32), SECOND);
        let mut limits = Vec::new();
        for _ in 0..6 {
            round(&mut window, Signal::Overloaded, &mut now);
            limits.push(window.room());
        }
        assert_eq!(limits, [8, 4, 2, 1, 1, 1]);
    }

    #[test]
    fn after_silence_it_grows_by_one_for_each_answer() {
        let (mut window, mut now) = (Window::starting_at(16, 32), SECOND);
        round(&mut window, Signal::Silent, &mut now);
        assert_eq!(window.room(), 8);
        round(&mut window, Signal::Answered, &mut now);
        assert!(window.room() >= 11, "{}", window.room());
    }

    #[test]
    fn after_an_overload_it_grows_by_one_for_each_window_of_answers() {
        let (mut window, mut now) = (Window::starting_at(16, 32), SECOND);
        round(&mut window, Signal::Overloaded, &mut now);
        for _ in 0..2 {
            round(&mut window, Signal::Answered, &mut now);
        }
        assert!(matches!(window.room(), 9 | 10), "{}", window.room());
    }

    #[test]
    fn for_a_quick_destination_as_many_are_claimed_ahead_as_are_in_flight() {
        let mut window = Window::starting_at(16, 32);
        (0..16).for_each(|_| (window.claim(), window.begin()).1);
        assert_eq!(window.room(), 0);
        window.end(Signal::Answered, SECOND, SECOND + QUICK / 2);
        let limit = window.limit;
        assert_eq!((window.room(), window.slots() > 0), (2 * limit - 15, true));
        window.end(Signal::Answered, SECOND, SECOND + QUICK);
        assert_eq!(window.room(), window.limit - 14);
        window.end(Signal::Answered, SECOND, SECOND + QUICK / 2);
        window.end(Signal::Overloaded, SECOND, SECOND + QUICK / 2);
        assert_eq!(window.room(), 0);
    }

    #[test]
    fn what_says_nothing_changes_nothing() {
        let (mut window, mut now) = (Window::new(32), SECOND);
        round(&mut window, Signal::None, &mut now);
        assert_eq!(window.room(), 4);
    }
}
