//! The dispatchers' logs: which dispatcher claimed an attempt, and when its result was on record.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result};
use contracts::{AttemptNumber, DeliveryId, Timestamp};
use serde::Deserialize;

type Key = (DeliveryId, AttemptNumber);

/// Logs of all dispatchers of one scenario.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    /// When and by which dispatcher each attempt was claimed: more than once only if it was handed back.
    pub(crate) claims: HashMap<Key, Vec<(Timestamp, String)>>,
    /// How often each attempt was handed back, which means not sent because of a local failure.
    pub(crate) handed_back: HashMap<Key, usize>,
    /// Attempts whose result was recorded after their lease.
    pub(crate) late: HashSet<Key>,
    /// Attempts whose 2xx is on record, with the time by which it was.
    pub(crate) successes: HashMap<Key, Timestamp>,
    /// Last timestamp in each dispatcher's log.
    pub(crate) clocks: HashMap<String, Timestamp>,
}

#[derive(Deserialize)]
struct Line {
    timestamp: String,
    message: String,
    delivery_id: Option<DeliveryId>,
    attempt: Option<AttemptNumber>,
    settlement: Option<String>,
    effect: Option<String>,
}

impl Logs {
    pub(crate) fn read(directory: &Path) -> Result<Logs> {
        let mut logs = Logs::default();
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path.file_stem().and_then(|name| name.to_str()).context("a log without a name")?;
            if !name.starts_with("dispatcher-") {
                continue;
            }
            for line in std::fs::read_to_string(&path)?.lines() {
                // Skips lines that a kill has cut off, and lines that the system has written.
                if let Ok(line) = serde_json::from_str(line) {
                    logs.add(name, line)?;
                }
            }
        }
        Ok(logs)
    }

    /// Whether an attempt was claimed again without having been handed back.
    pub(crate) fn is_claimed_again(&self, key: &Key) -> bool {
        let handed_back = self.handed_back.get(key).copied().unwrap_or(0);
        self.claims.get(key).is_some_and(|claims| claims.len() > handed_back + 1)
    }

    /// Returns the dispatcher that claimed an attempt: the last one, if it was handed back.
    pub(crate) fn claimed_by(&self, key: &Key) -> Option<&str> {
        let (_, name) = self.claims.get(key)?.iter().max()?;
        Some(name)
    }

    fn add(&mut self, name: &str, line: Line) -> Result<()> {
        let at = Timestamp::parse(&line.timestamp).ok().context("a log line without a valid timestamp")?;
        self.clocks.insert(name.to_owned(), at);
        let (Some(id), Some(attempt)) = (line.delivery_id, line.attempt) else { return Ok(()) };
        let key = (id, attempt);
        match line.message.as_str() {
            "claimed" => self.claims.entry(key).or_default().push((at, name.to_owned())),
            "attempt handed back" => *self.handed_back.entry(key).or_default() += 1,
            "attempt" if line.effect.as_deref() != Some("dropped") => {
                if line.effect.is_some_and(|effect| effect.starts_with("late")) {
                    self.late.insert(key);
                }
                if line.settlement.as_deref() == Some("succeeded") {
                    self.successes.entry(key).or_insert(at);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01a21b27-0a7c-7174-8581-6cdf53b003c7";

    fn logs(lines: &[(&str, u32, &str)]) -> Logs {
        let mut logs = Logs::default();
        for (dispatcher, second, message) in lines {
            let line = format!(
                r#"{{"timestamp": "2025-01-01T00:00:{second:02}.000000Z", "level": "INFO",
                    "message": "{message}", "delivery_id": "{ID}", "attempt": 1, "cause": "no file descriptor"}}"#
            );
            logs.add(dispatcher, serde_json::from_str(&line).unwrap()).unwrap();
        }
        logs
    }

    #[test]
    fn a_second_claim_is_allowed_only_after_the_attempt_was_handed_back() {
        let key = (ID.parse().unwrap(), 1);
        let mut lines = vec![("dispatcher-2", 3, "claimed"), ("dispatcher-1", 1, "claimed")];
        assert!(logs(&lines).is_claimed_again(&key));
        lines.push(("dispatcher-1", 2, "attempt handed back"));
        assert!(!logs(&lines).is_claimed_again(&key));
        assert_eq!(logs(&lines).claimed_by(&key), Some("dispatcher-2"), "the last one");
        lines.push(("dispatcher-1", 4, "claimed"));
        assert!(logs(&lines).is_claimed_again(&key));
    }
}
