//! What `redial doctor` reports.

use std::io::{self, Write};

use serde::Serialize;

/// The result of one check.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Check {
    /// Its name, which stays the same in later versions.
    pub(super) check: &'static str,
    pub(super) status: Status,
    /// What was found, in one line.
    pub(super) found: String,
    /// What to do about a warning or a problem.
    pub(super) advice: Option<String>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    Ok,
    /// It works, but not as well as it should, or not for long.
    Warning,
    /// A service does not start, or can't do its work.
    Problem,
    /// Another check failed that it depends on.
    NotChecked,
}

impl Check {
    pub(super) fn ok(check: &'static str, found: impl AsRef<str>) -> Check {
        Check::new(check, Status::Ok, found.as_ref(), None)
    }

    pub(super) fn warning(check: &'static str, found: impl AsRef<str>, advice: impl Into<String>) -> Check {
        Check::new(check, Status::Warning, found.as_ref(), Some(advice.into()))
    }

    pub(super) fn problem(check: &'static str, found: impl AsRef<str>, advice: impl Into<String>) -> Check {
        Check::new(check, Status::Problem, found.as_ref(), Some(advice.into()))
    }

    /// `because` is why, such as "the database is not reachable".
    pub(super) fn not_checked(check: &'static str, because: impl AsRef<str>) -> Check {
        Check::new(check, Status::NotChecked, because.as_ref(), None)
    }

    fn new(check: &'static str, status: Status, found: &str, advice: Option<String>) -> Check {
        Check { check, status, found: one_line(found), advice }
    }
}

/// Replaces line breaks and other control characters, which messages of servers may contain.
fn one_line(text: &str) -> String {
    let printable: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    printable.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The results of all checks; serializes as the document of `--json`.
#[derive(Serialize)]
pub(super) struct Report {
    /// This program's version.
    version: &'static str,
    problems: usize,
    warnings: usize,
    checks: Vec<Check>,
}

impl Report {
    pub(super) fn new(checks: Vec<Check>) -> Report {
        let count = |status| checks.iter().filter(|check| check.status == status).count();
        let (problems, warnings) = (count(Status::Problem), count(Status::Warning));
        Report { version: env!("CARGO_PKG_VERSION"), problems, warnings, checks }
    }

    pub(super) fn problems(&self) -> usize {
        self.problems
    }

    /// Writes one line per check.
    pub(super) fn write_lines(&self, out: &mut impl Write) -> io::Result<()> {
        for Check { check, status, found, advice } in &self.checks {
            let begin = match status {
                Status::Ok => format!("ok       {check}: "),
                Status::Warning => format!("warning  {check}: "),
                Status::Problem => format!("problem  {check}: "),
                Status::NotChecked => format!("         {check}: not checked: "),
            };
            let end = advice.as_ref().map(|advice| format!("; {advice}")).unwrap_or_default();
            writeln!(out, "{begin}{found}{end}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_is_one_line_whatever_the_message_contains() {
        let report = Report::new(vec![
            Check::ok("database", "PostgreSQL 15.8"),
            Check::problem("broker", "refused\n\tby \u{1b}[31mit", "correct broker.url"),
            Check::not_checked("broker.queue", "the broker is not reachable"),
        ]);
        let mut lines = Vec::new();
        report.write_lines(&mut lines).unwrap();
        let lines = String::from_utf8(lines).unwrap();
        let expected = "ok       database: PostgreSQL 15.8\n\
                        problem  broker: refused by [31mit; correct broker.url\n         \
                        broker.queue: not checked: the broker is not reachable\n";
        assert_eq!(lines, expected);
    }

    #[test]
    fn the_json_document_counts_problems_and_warnings() {
        let report = Report::new(vec![
            Check::problem("schema", "older", "migrate"),
            Check::warning("clock", "off", "set it"),
        ]);
        let json = serde_json::to_value(report).unwrap();
        assert_eq!((&json["problems"], &json["warnings"]), (&1.into(), &1.into()));
        let first = serde_json::json!({"check": "schema", "status": "problem", "found": "older", "advice": "migrate"});
        assert_eq!(json["checks"][0], first);
    }
}
