//! What the dispatchers say themselves: who claimed which attempt, and when its result was on record.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result};
use contracts::{AttemptNumber, DeliveryId, Timestamp};
use serde::Deserialize;

type Key = (DeliveryId, AttemptNumber);

/// All dispatchers' logs of one scenario.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    /// The name of the dispatcher that claimed an attempt.
    pub(crate) claimed_by: HashMap<Key, String>,
    /// Attempts whose result came after their lease.
    pub(crate) late: HashSet<Key>,
    /// Attempts whose 2xx is on record, and by when it was.
    pub(crate) successes: HashMap<Key, Timestamp>,
    /// What each dispatcher's clock showed last.
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
                // What a kill has cut off is no line, nor is what the system writes there.
                if let Ok(line) = serde_json::from_str(line) {
                    logs.add(name, line)?;
                }
            }
        }
        Ok(logs)
    }

    fn add(&mut self, name: &str, line: Line) -> Result<()> {
        let at = Timestamp::parse(&line.timestamp).ok().context("a log line without a moment")?;
        self.clocks.insert(name.to_owned(), at);
        let (Some(id), Some(attempt)) = (line.delivery_id, line.attempt) else { return Ok(()) };
        let key = (id, attempt);
        match line.message.as_str() {
            "claimed" => _ = self.claimed_by.insert(key, name.to_owned()),
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
