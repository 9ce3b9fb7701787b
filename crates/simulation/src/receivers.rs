//! Simulated receivers: their responses and response times.

use std::time::Duration;

use contracts::{Destination, FailureReason};
use engine::{Outcome, Response};
use rand::prelude::*;
use rand::rngs::StdRng;

use crate::promise::ORG;
use crate::shape::Shape;

/// A receiver with its own origin.
#[derive(Clone, Debug)]
pub(crate) struct Receiver {
    pub(crate) url: String,
    pub(crate) destination: Destination,
    pub(crate) manner: Manner,
}

/// How a receiver answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// All kinds of responses.
    Ordinary,
    /// Always 200, quickly.
    Healthy,
    /// Mostly no response within the timeout.
    Hanging,
    /// Mostly 429 or 503 with `Retry-After`.
    Overloaded,
    /// Always 429, with this `Retry-After` in seconds.
    Refusing(u64),
}

/// A receiver's reaction to a request.
pub(crate) struct Reply {
    /// Outcome for the dispatcher.
    pub(crate) outcome: Outcome,
    /// Time until the dispatcher has the outcome.
    pub(crate) after: Duration,
    /// Whether the receiver answered 2xx, even if the response was lost.
    pub(crate) is_accepted: bool,
}

impl Receiver {
    pub(crate) fn new(host: &str, manner: Manner) -> Receiver {
        let url = format!("https://{host}/hook");
        Receiver { destination: Destination::of(ORG, &url), url, manner }
    }

    /// Draws the receivers of a history. Hosts, and so the order of destinations, differ between histories.
    pub(crate) fn draw_all(rng: &mut StdRng, shape: &Shape) -> Vec<Receiver> {
        let count = rng.random_range(3..=5);
        let mut receivers: Vec<Receiver> = (0..count)
            .map(|_| {
                let host = format!("r{}.example.com", rng.random::<u32>());
                Receiver::new(&host, Manner::draw(rng))
            })
            .collect();
        if rng.random_bool(0.15) {
            receivers[count - 1] = Receiver::new("10.0.0.1", Manner::Ordinary);
        }
        if shape.is_wide {
            receivers[..2].iter_mut().for_each(|receiver| receiver.manner = Manner::Healthy);
        }
        receivers
    }
}

impl Manner {
    pub(crate) fn draw(rng: &mut StdRng) -> Manner {
        match rng.random_range(0..10) {
            0..5 => Manner::Ordinary,
            5..6 => Manner::Healthy,
            6..8 => Manner::Hanging,
            _ => Manner::Overloaded,
        }
    }

    /// Returns the reply to a request that is written with `left` of its timeout remaining.
    pub(crate) fn reply(self, rng: &mut StdRng, left: Duration) -> Reply {
        match (self, rng.random_range(0..100)) {
            (Manner::Healthy, _) => {
                answered(200, None, Duration::from_millis(rng.random_range(5..60)).min(left))
            }
            (Manner::Ordinary, 0..40) => answered(200, None, left.mul_f64(rng.random_range(0.0..1.0))),
            (Manner::Ordinary, 40..45) => answered(410, None, left.mul_f64(rng.random_range(0.0..1.0))),
            (Manner::Ordinary, 45..70) => {
                let status = *[404, 429, 500, 503].choose(rng).unwrap_or(&500);
                answered(status, None, left.mul_f64(rng.random_range(0.0..1.0)))
            }
            (Manner::Hanging, 0..10) => answered(200, None, left.mul_f64(rng.random_range(0.5..1.0))),
            (Manner::Refusing(wait), _) => answered(429, Some(wait), left / 20),
            (Manner::Overloaded, 0..15) => answered(200, None, left / 10),
            (Manner::Ordinary, 70..75) | (Manner::Overloaded, 15..90) => {
                let wait = *[5, 30, 60, 600, 7_200].choose(rng).unwrap_or(&60);
                let status = if rng.random_bool(0.5) { 429 } else { 503 };
                answered(status, Some(wait), left / 10)
            }
            (Manner::Hanging, 10..) => no_answer(FailureReason::Timeout, left, rng),
            (Manner::Ordinary | Manner::Overloaded, _) if rng.random_bool(0.5) => {
                no_answer(FailureReason::Timeout, left, rng)
            }
            _ => no_answer(FailureReason::ConnectionError, Duration::from_millis(5), rng),
        }
    }
}

fn answered(status: u16, retry_after: Option<u64>, after: Duration) -> Reply {
    let retry_after = retry_after.map(|seconds| seconds.to_string()).into_iter().collect();
    let response = Response { status, body: "an answer".into(), retry_after };
    Reply { outcome: Outcome::Answered(response), after, is_accepted: (200..300).contains(&status) }
}

/// Returns a reply without a response. The receiver may have accepted the request.
fn no_answer(reason: FailureReason, after: Duration, rng: &mut StdRng) -> Reply {
    Reply { outcome: Outcome::failed(reason, "no answer"), after, is_accepted: rng.random_bool(0.4) }
}
