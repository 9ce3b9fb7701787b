//! The limit of attempts in flight to one destination.

use std::time::Duration;

use contracts::FailureReason;

use crate::outcome::{Outcome, Response};

/// An adaptive limit of attempts in flight, modelled on TCP's congestion window (RFC 5681). It starts small
/// and grows while it is in use and answers arrive in time. When they don't it halves, once for all attempts
/// in flight at that time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Window {
    max: usize,
    limit: usize,
    /// Slow-start threshold. Each answer raises the limit by one below it, each full window of answers above.
    threshold: usize,
    /// Answers since the limit last grew.
    answers: usize,
    in_flight: usize,
    /// Attempts claimed but not started.
    claimed_ahead: usize,
    /// Whether answers arrive so fast that slots would be idle while the next attempts are claimed.
    is_quick: bool,
    /// When the limit was last halved, in monotonic time.
    halved_at: Option<Duration>,
}

/// What an attempt's outcome indicates about the capacity of its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// The receiver answered in time.
    Answered,
    /// The receiver reported an overload.
    Overloaded,
    /// The receiver did not answer. The destination's other endpoints may.
    Silent,
    /// The outcome indicates nothing.
    None,
}

/// The initial limit.
const START: usize = 4;
/// Upper bound of a quick answer: a few times the duration of a claim.
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

    /// Returns how many more attempts may be claimed: those that can start, and for a quick destination one
    /// full limit ahead.
    pub(crate) fn room(&self) -> usize {
        let ahead = if self.is_quick { self.limit } else { 0 };
        (self.limit + ahead).saturating_sub(self.in_flight + self.claimed_ahead)
    }

    /// Returns whether failures have lowered the limit below the initial one.
    pub(crate) fn is_lowered(&self) -> bool {
        self.limit < START.min(self.max)
    }

    /// Returns how many more attempts may start.
    pub(crate) fn slots(&self) -> usize {
        self.limit.saturating_sub(self.in_flight)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Returns whether nothing is in flight or claimed.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight + self.claimed_ahead == 0
    }

    pub(crate) fn claim(&mut self) {
        self.claimed_ahead += 1;
    }

    /// Releases a claimed attempt that won't start.
    pub(crate) fn give_back(&mut self) {
        self.claimed_ahead = self.claimed_ahead.saturating_sub(1);
    }

    /// Starts a claimed attempt.
    pub(crate) fn begin(&mut self) {
        self.give_back();
        self.in_flight += 1;
    }

    /// Ends an attempt that ran from `began` to `now` in monotonic time. Returns whether it halved the limit.
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

    /// Starts as many attempts as the window allows and ends them a second later.
    fn round(window: &mut Window, signal: Signal, now: &mut Duration) {
        let (began, count) = (*now, window.room());
        (0..count).for_each(|_| window.begin());
        *now += SECOND;
        for _ in 0..count {
            window.end(signal, began, *now);
        }
    }

    #[test]
    fn a_window_starts_small_and_grows_to_its_maximum_while_in_use() {
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
    fn a_window_does_not_grow_with_one_attempt_at_a_time() {
        let mut window = Window::new(32);
        for second in 0..100 {
            window.begin();
            window.end(Signal::Answered, SECOND * second, SECOND * (second + 1));
        }
        assert_eq!(window.room(), 4);
    }

    #[test]
    fn a_window_halves_once_for_all_attempts_in_flight_down_to_one() {
        let (mut window, mut now) = (Window::starting_at(16, 32), SECOND);
        let mut limits = Vec::new();
        for _ in 0..6 {
            round(&mut window, Signal::Overloaded, &mut now);
            limits.push(window.room());
        }
        assert_eq!(limits, [8, 4, 2, 1, 1, 1]);
    }

    #[test]
    fn a_window_grows_by_one_for_each_answer_after_timeouts() {
        let (mut window, mut now) = (Window::starting_at(16, 32), SECOND);
        round(&mut window, Signal::Silent, &mut now);
        assert_eq!(window.room(), 8);
        round(&mut window, Signal::Answered, &mut now);
        assert!(window.room() >= 11, "{}", window.room());
    }

    #[test]
    fn a_window_grows_by_one_for_each_full_window_of_answers_after_an_overload() {
        let (mut window, mut now) = (Window::starting_at(16, 32), SECOND);
        round(&mut window, Signal::Overloaded, &mut now);
        for _ in 0..2 {
            round(&mut window, Signal::Answered, &mut now);
        }
        assert!(matches!(window.room(), 9 | 10), "{}", window.room());
    }

    #[test]
    fn a_quick_destination_has_room_to_claim_a_full_window_ahead() {
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
    fn a_neutral_outcome_does_not_change_the_window() {
        let (mut window, mut now) = (Window::new(32), SECOND);
        round(&mut window, Signal::None, &mut now);
        assert_eq!(window.room(), 4);
    }
}
