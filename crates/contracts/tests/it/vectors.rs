//! Compares our writer with CPython's output for some documents and datetimes, recorded by
//! tests/make_vectors.py. Needs no Python.

use contracts::{Json, PayloadFormat, Timestamp, VALUE_DEPTH};
use serde::Deserialize;

#[derive(Deserialize)]
struct Document {
    text: String,
    python: String,
    compact: String,
}

#[derive(Deserialize)]
struct Datetime {
    micros: i64,
    isoformat: String,
}

fn lines<'a, T: Deserialize<'a>>(file: &'a str) -> Vec<T> {
    file.lines().map(|line| serde_json::from_str(line).expect("a vector")).collect()
}

#[test]
fn documents_are_written_as_cpython_wrote_them() {
    let documents: Vec<Document> = lines(include_str!("../vectors.jsonl"));
    assert!(documents.len() >= 200);
    for Document { text, python, compact } in documents {
        let json =
            Json::parse(text.as_bytes(), VALUE_DEPTH).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(json.to_text(PayloadFormat::Python), python, "{text}");
        assert_eq!(json.to_text(PayloadFormat::Compact), compact, "{text}");
    }
}

#[test]
fn datetimes_are_written_as_cpython_wrote_them() {
    let datetimes: Vec<Datetime> = lines(include_str!("../datetimes.jsonl"));
    assert!(datetimes.len() >= 100);
    for Datetime { micros, isoformat } in datetimes {
        assert_eq!(Timestamp::from_micros(micros).isoformat(), isoformat);
    }
}
