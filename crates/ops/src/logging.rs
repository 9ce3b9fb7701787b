//! Structured logs on standard error that never block the process.
//!
//! Lines go into a queue bounded in bytes, and a dedicated thread writes them. When standard error is not
//! read, lines are dropped, and a line in their place reports how many. (`tracing-appender` bounds lines, not
//! bytes, and blocks on a stalled reader at exit.)

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::LazyLock;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// The format of log lines.
#[derive(Clone, Copy, serde::Serialize, strum::EnumString)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Directives that turn off or reduce library logs of events that Redial logs itself.
const QUIET: &str = "lapin=off,actix_server=warn,actix_http=off,r2d2=off,rustls_platform_verifier=off";
/// Maximum bytes in the queue: minutes of ordinary load, and little memory.
const CAPACITY: usize = 4 << 20;
/// Timeout for writing the queued lines at exit or after a panic.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Installs the logger, which writes to standard error, and a panic hook that logs panics. `filter` is
/// `info`, `debug` or per-target directives.
pub fn start(filter: &str, format: LogFormat) -> Result<(), ParseError> {
    let filter = EnvFilter::builder().parse(format!("{QUIET},{filter}"))?;
    QUEUE.waiting.lock().format = format;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Line);
    match format {
        LogFormat::Text => logs.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(target: "redial", thread = std::thread::current().name(), %backtrace, "{panic}");
        QUEUE.flush(LAST_WAIT); // a panic of the main thread ends the process
    }));
    Ok(())
}

/// Queues `last_words`, then waits up to a second until all lines are written.
pub fn finish(last_words: Option<&str>) {
    if let Some(words) = last_words {
        QUEUE.push(words.as_bytes());
    }
    QUEUE.flush(LAST_WAIT);
}

static QUEUE: LazyLock<&'static Queue> = LazyLock::new(|| {
    let queue: &'static Queue = Box::leak(Box::default());
    std::thread::spawn(|| queue.write_all_to(&mut io::stderr()));
    queue
});

/// A writer that queues each log line as one entry.
struct Line;

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        QUEUE.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The queue of lines to write.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// Notified when a line is queued.
    filled: Condvar,
    /// Notified when all lines are written.
    emptied: Condvar,
}

struct Waiting {
    lines: VecDeque<Entry>,
    bytes: usize,
    is_writing: bool,
    /// Lines dropped so far.
    dropped: u64,
    format: LogFormat,
}

enum Entry {
    Line(Vec<u8>),
    /// Replaces this many dropped lines.
    Dropped(u64),
}

impl Default for Waiting {
    fn default() -> Waiting {
        Waiting { lines: VecDeque::new(), bytes: 0, is_writing: false, dropped: 0, format: LogFormat::Text }
    }
}

impl Queue {
    fn push(&self, line: &[u8]) {
        let mut waiting = self.waiting.lock();
        if waiting.bytes + line.len() <= CAPACITY {
            waiting.bytes += line.len();
            waiting.lines.push_back(Entry::Line(line.to_vec()));
        } else {
            waiting.dropped += 1;
            match waiting.lines.back_mut() {
                Some(Entry::Dropped(count)) => *count += 1,
                _ => waiting.lines.push_back(Entry::Dropped(1)),
            }
        }
        self.filled.notify_one();
    }

    /// Waits until all lines are written, at most for `patience`.
    fn flush(&self, patience: Duration) {
        let is_busy = |waiting: &mut Waiting| waiting.is_writing || !waiting.lines.is_empty();
        self.emptied.wait_while_for(&mut self.waiting.lock(), is_busy, patience);
    }

    /// Writes lines forever. A line that can't be written (full disk, closed pipe) is lost.
    fn write_all_to(&self, out: &mut impl Write) {
        loop {
            let _ = out.write_all(&self.next());
        }
    }

    /// Removes and returns the next line; blocks while the queue is empty.
    fn next(&self) -> Vec<u8> {
        let mut waiting = self.waiting.lock();
        waiting.is_writing = false;
        while waiting.lines.is_empty() {
            self.emptied.notify_all();
            self.filled.wait(&mut waiting);
        }
        waiting.is_writing = true;
        match waiting.lines.pop_front() {
            Some(Entry::Line(line)) => {
                waiting.bytes -= line.len();
                line
            }
            Some(Entry::Dropped(count)) => told(count, waiting.dropped, waiting.format),
            None => Vec::new(),
        }
    }
}

/// Formats a log line that reports how many lines were dropped here, and in total.
fn told(count: u64, in_all: u64, format: LogFormat) -> Vec<u8> {
    let mut at = String::new();
    // If the time can't be formatted, the line has no timestamp.
    let _ = SystemTime.format_time(&mut Writer::new(&mut at));
    let line = match format {
        LogFormat::Text => {
            format!("{at}  WARN redial: log lines were dropped count={count} in_all={in_all}\n")
        }
        LogFormat::Json => format!(
            "{{\"timestamp\":\"{at}\",\"level\":\"WARN\",\"message\":\"log lines were dropped\",\"count\":{count},\"in_all\":{in_all},\"target\":\"redial\"}}\n"
        ),
    };
    line.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(queue: &Queue) -> String {
        String::from_utf8(queue.next()).unwrap()
    }

    #[test]
    fn lines_beyond_the_capacity_are_dropped_and_counted_in_their_place() {
        let queue = Queue::default();
        let long = vec![b'x'; CAPACITY - 10];
        queue.push(&long);
        queue.push(b"0123456789");
        for _ in 0..3 {
            queue.push(b"no room for this\n");
        }
        assert_eq!(queue.next().len(), long.len());
        queue.push(b"room again\n");
        queue.push(&long);
        assert_eq!(text(&queue), "0123456789");
        assert!(text(&queue).ends_with("WARN redial: log lines were dropped count=3 in_all=4\n"));
        assert_eq!(text(&queue), "room again\n");
        queue.waiting.lock().format = LogFormat::Json;
        let told: serde_json::Value = serde_json::from_slice(&queue.next()).unwrap();
        assert_eq!((&told["count"], &told["in_all"]), (&1.into(), &4.into()));
        assert!(told["timestamp"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn flush_returns_when_the_queue_is_empty_or_after_its_timeout() {
        let queue = Queue::default();
        queue.flush(Duration::from_secs(3600));
        queue.push(b"nobody writes this");
        queue.flush(Duration::ZERO);
    }
}
