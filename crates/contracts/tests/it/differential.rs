//! Compares our writer with CPython, run by tests/differential.py. Needs python3.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use contracts::{Json, PayloadFormat, Timestamp, VALUE_DEPTH};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/differential.py");

/// The running script. Its output is read while it runs.
struct Python {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Python {
    fn start(what: &str) -> Python {
        let mut child = Command::new("python3")
            .args([SCRIPT, what])
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test compares with CPython: install python3, version 3.11 or later");
        let out = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Python { child, out }
    }

    /// Returns the next bytes, or `None` at the end.
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        match self.out.read_exact(&mut bytes) {
            Ok(()) => Some(bytes),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => None,
            Err(error) => panic!("python3: {error}"),
        }
    }

    fn chunk(&mut self, length: [u8; 4]) -> Vec<u8> {
        let mut chunk = vec![0; u32::from_le_bytes(length) as usize];
        self.out.read_exact(&mut chunk).expect("python3 ended within a record");
        chunk
    }

    fn finish(mut self) {
        let status = self.child.wait().expect("python3 was started");
        assert!(status.success(), "differential.py failed, it needs python3 3.11 or later: {status}");
    }
}

#[test]
fn documents_are_written_like_cpython_or_refused_as_in_the_contract() {
    let mut python = Python::start("documents");
    let (mut written, mut refused, mut bytes, mut differing) = (0, 0, 0, Vec::new());
    while let Some(lengths) = python.bytes::<12>() {
        let (lengths, _) = lengths.as_chunks::<4>();
        let [text, defaults, compact] =
            [lengths[0], lengths[1], lengths[2]].map(|length| python.chunk(length));
        let expected = if defaults.is_empty() { None } else { Some((defaults, compact)) };
        let ours = Json::parse(&text, VALUE_DEPTH).ok().map(|json| {
            (
                json.to_text(PayloadFormat::Python).into_bytes(),
                json.to_text(PayloadFormat::Compact).into_bytes(),
            )
        });
        match &ours {
            Some((defaults, compact)) => {
                written += 1;
                bytes += defaults.len() + compact.len();
            }
            None => refused += 1,
        }
        if ours != expected {
            differing.push(String::from_utf8_lossy(&text).chars().take(200).collect::<String>());
        }
    }
    python.finish();
    let sample = &differing[..differing.len().min(10)];
    assert!(sample.is_empty(), "{} of {} documents differ: {sample:#?}", differing.len(), written + refused);
    assert!(
        written >= 100_000 && refused >= 5_000,
        "{written} documents written, {refused} refused, {bytes} bytes"
    );
}

#[test]
fn datetimes_are_formatted_like_cpython() {
    let mut python = Python::start("datetimes");
    let mut compared = 0;
    let mut line = String::new();
    while python.out.read_line(&mut line).expect("python3 writes text") > 0 {
        let (micros, isoformat) = line.trim_end().split_once(' ').expect("a number and a text");
        let moment = Timestamp::from_micros(micros.parse().expect("a number"));
        assert_eq!(moment.isoformat(), isoformat);
        assert_eq!(Timestamp::parse(isoformat), Ok(moment));
        compared += 1;
        line.clear();
    }
    python.finish();
    assert!(compared >= 100_000, "{compared} datetimes compared");
}
