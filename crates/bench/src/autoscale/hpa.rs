//! The decisions of a Kubernetes HorizontalPodAutoscaler (`autoscaling/v2`) on one external metric of type
//! `AverageValue`, as a KEDA ScaledObject sets it up. Defaults of `behavior`: doubles or adds four pods per 15 s,
//! removes any number after the stabilization window.

use std::collections::VecDeque;
use std::time::Duration;

/// How often the metric is read and the number of replicas decided.
pub(crate) const PERIOD: Duration = Duration::from_secs(15);
/// No change while the metric differs by less than this share from its target.
const TOLERANCE: f64 = 0.1;
/// Replicas that may be added per period, if more than it would take to double them.
const ADDED: usize = 4;
/// Failures in a row after which KEDA uses the fallback.
const FAILURES: u32 = 3;

/// The settings of a ScaledObject.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(crate) min_replicas: usize,
    pub(crate) max_replicas: usize,
    /// Of the metric, per replica.
    pub(crate) target: f64,
    /// Replicas while the metric can't be read, unless there are more.
    pub(crate) fallback_replicas: usize,
    /// How long the highest recommendation counts.
    pub(crate) stabilization: Duration,
}

/// An autoscaler with its memory.
#[derive(Debug)]
pub(crate) struct Autoscaler {
    policy: Policy,
    recommended: VecDeque<(Duration, usize)>,
    failures: u32,
}

impl Autoscaler {
    pub(crate) fn new(policy: Policy) -> Autoscaler {
        Autoscaler { policy, recommended: VecDeque::new(), failures: 0 }
    }

    /// Decides the number of replicas at `now`, counted from any start, in steps of [`PERIOD`]. `metric` is `None`
    /// if it could not be read.
    pub(crate) fn decide(&mut self, now: Duration, replicas: usize, metric: Option<f64>) -> usize {
        let Policy { min_replicas, max_replicas, target, fallback_replicas, stabilization } = self.policy;
        self.failures = if metric.is_some() { 0 } else { self.failures + 1 };
        let wanted = match metric {
            Some(metric) if (metric / (target * replicas as f64) - 1.0).abs() <= TOLERANCE => replicas,
            Some(metric) => (metric / target).ceil() as usize,
            None if self.failures >= FAILURES => replicas.max(fallback_replicas),
            None => replicas,
        };
        self.recommended.retain(|(at, _)| now - *at < stabilization);
        self.recommended.push_back((now, wanted));
        let stable = if wanted < replicas {
            let highest = self.recommended.iter().map(|(_, wanted)| *wanted).max().unwrap_or(wanted);
            highest.min(replicas)
        } else {
            wanted.min((2 * replicas).max(replicas + ADDED))
        };
        stable.clamp(min_replicas, max_replicas)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        min_replicas: 2,
        max_replicas: 20,
        target: 100.0,
        fallback_replicas: 4,
        stabilization: Duration::from_secs(300),
    };

    /// Returns the numbers of replicas that follow from the metrics, one per period.
    fn replicas(metrics: &[Option<f64>]) -> Vec<usize> {
        let (mut autoscaler, mut replicas) = (Autoscaler::new(POLICY), 2);
        let decide = |(period, metric): (usize, &Option<f64>)| {
            replicas = autoscaler.decide(PERIOD * period as u32, replicas, *metric);
            replicas
        };
        metrics.iter().enumerate().map(decide).collect()
    }

    #[test]
    fn it_doubles_or_adds_four_until_the_target_or_the_maximum_is_reached() {
        assert_eq!(replicas(&[Some(1_100.0); 4]), [6, 11, 11, 11]);
        assert_eq!(replicas(&[Some(9_000.0); 4]), [6, 12, 20, 20]);
    }

    #[test]
    fn it_ignores_differences_below_a_tenth() {
        assert_eq!(replicas(&[Some(215.0), Some(185.0)]), [2, 2]);
        assert_eq!(replicas(&[Some(225.0)]), [3]);
    }

    #[test]
    fn it_removes_replicas_only_after_five_minutes_of_less_work() {
        let mut metrics = vec![Some(400.0)];
        metrics.extend([Some(0.0); 21]);
        let decided = replicas(&metrics);
        assert_eq!(decided[..20], [4; 20]);
        assert_eq!(decided[20..], [2, 2]);
    }

    #[test]
    fn it_falls_back_after_three_failures_and_never_below_what_there_is() {
        assert_eq!(replicas(&[None, None, None, None]), [2, 2, 4, 4]);
        assert_eq!(replicas(&[Some(600.0), None, None, None]), [6, 6, 6, 6]);
    }
}
