//! A received callback, and its form for a terminal.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::Verdict;

/// Maximum bytes of a body that [`pretty`] shows: enough for an ordinary payload.
const SHOWN_BODY_BYTES: usize = 1000;

/// A received POST request.
#[derive(Clone, Debug)]
pub struct Received {
    /// When its body was complete.
    pub received_at: Instant,
    /// Path and query.
    pub path: String,
    /// Names in lower case, sorted; invalid UTF-8 in values is replaced.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// Result of the signature check.
    pub verdict: Verdict,
    /// Status of the response; `None` if the connection is closed without a response.
    pub answered: Option<u16>,
    /// Delay between receipt and response.
    pub delay: Duration,
}

impl Received {
    /// Returns the value of a header, by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Formats a callback in several lines for a terminal. All characters that are not printable are escaped, so
/// a callback can't control the terminal.
pub fn pretty(received: &Received) -> String {
    let mut text = format!("POST {}\n", printable(&received.path));
    for (name, value) in &received.headers {
        let _ = writeln!(text, "  {}: {}", printable(name), printable(value));
    }
    let body = String::from_utf8_lossy(&received.body);
    let shown = &body[..body.floor_char_boundary(SHOWN_BODY_BYTES)];
    let _ = write!(text, "\n  {}", printable(shown));
    if shown.len() < body.len() {
        let _ = write!(text, "… {} bytes", received.body.len());
    }
    let answered = received.answered.map_or("connection closed".to_owned(), |status| status.to_string());
    let _ = writeln!(text, "\n\n  {}; answered: {answered}", printable(&received.verdict.to_string()));
    text
}

fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut shown, char| {
        match char {
            '"' | '\'' | '\\' => shown.push(char), // common in JSON, where escape_debug would double them
            _ => shown.extend(char.escape_debug()),
        }
        shown
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(body: &[u8]) -> Received {
        Received {
            received_at: Instant::now(),
            path: "/ok?run=1".into(),
            headers: vec![("content-type".into(), "application/json".into())],
            body: body.to_vec(),
            verdict: Verdict::Valid,
            answered: Some(200),
            delay: Duration::ZERO,
        }
    }

    #[test]
    fn a_callback_is_shown_line_by_line() {
        assert_eq!(
            pretty(&received(br#"{"event": "run.completed"}"#)),
            "POST /ok?run=1\n  content-type: application/json\n\n  {\"event\": \"run.completed\"}\n\n  \
             signatures valid; answered: 200\n"
        );
    }

    #[test]
    fn a_long_body_is_cut_between_characters() {
        let body = format!("{}€{}", "x".repeat(SHOWN_BODY_BYTES - 1), "y".repeat(1000));
        let text = pretty(&received(body.as_bytes()));
        assert!(text.contains("x… 2002 bytes\n"), "{text}");
    }

    #[test]
    fn received_control_characters_are_escaped() {
        let mut hostile = received(b"\x1b[2J\x9b\r\n\xff \xe2\x80\xae");
        hostile.path = "/\x1b]0;x\x07".into();
        hostile.headers.push(("x".into(), "\u{9b}31m\u{202e}".into()));
        hostile.verdict = Verdict::Invalid("\x1b[0m".into());
        let text = pretty(&hostile);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{text:?}");
        assert!(text.contains(r"\u{1b}[2J"), "{text}");
    }
}
