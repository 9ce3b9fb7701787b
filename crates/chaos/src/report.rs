//! The report: a Markdown table for each scenario.

use std::fmt::Write as _;

/// A measured figure with its limit.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    what: String,
    limit: String,
    seen: String,
    pub(crate) is_good: bool,
}

impl Row {
    pub(crate) fn new(
        what: impl Into<String>,
        limit: impl Into<String>,
        seen: impl Into<String>,
        is_good: bool,
    ) -> Row {
        Row { what: what.into(), limit: limit.into(), seen: seen.into(), is_good }
    }
}

/// Result of a scenario.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) title: String,
    pub(crate) rows: Vec<Row>,
    /// Descriptions of broken promises.
    pub(crate) broken: Vec<String>,
    pub(crate) seconds: u64,
}

impl Finding {
    pub(crate) fn is_good(&self) -> bool {
        self.broken.is_empty() && self.rows.iter().all(|row| row.is_good)
    }

    /// Returns the finding as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!(
            "## {}\n\n{} s.\n\n| what | may be | seen | |\n|---|---|---|---|\n",
            self.title, self.seconds
        );
        for Row { what, limit, seen, is_good } in &self.rows {
            let _ = writeln!(text, "| {what} | {limit} | {seen} | {} |", if *is_good { "✓" } else { "✗" });
        }
        if !self.broken.is_empty() {
            let _ = writeln!(text, "\n{} broken:\n", self.broken.len());
            for line in self.broken.iter().take(50) {
                let _ = writeln!(text, "* {line}");
            }
        }
        text.push('\n');
        text
    }
}
