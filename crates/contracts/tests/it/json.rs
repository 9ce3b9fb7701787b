//! Rejected documents with the position of the error, and the form of stored documents.

use contracts::{BODY_DEPTH, Json, JsonFault, JsonText, VALUE_DEPTH};

fn refusal(text: impl AsRef<[u8]>) -> (JsonFault, usize) {
    let error = Json::parse(text.as_ref(), VALUE_DEPTH).expect_err("should be refused");
    (error.fault, error.offset)
}

fn parse(text: &str) -> Json {
    Json::parse(text.as_bytes(), VALUE_DEPTH).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn a_json_error_states_its_kind_and_position() {
    let error = Json::parse(br#"{"a": [1, ]}"#, VALUE_DEPTH).unwrap_err();
    assert_eq!(error.to_string(), "expected a value at byte 10");
}

#[test]
fn bytes_that_are_not_utf_8_are_refused() {
    assert_eq!(refusal(b"\"ab\xff\""), (JsonFault::Utf8, 3));
    assert_eq!(refusal(b"\"\xed\xa0\x80\""), (JsonFault::Utf8, 1), "a surrogate in UTF-8");
    assert_eq!(refusal(b"\"\xc0\x80\""), (JsonFault::Utf8, 1), "an overlong NUL");
}

#[test]
fn a_byte_order_mark_is_refused() {
    assert_eq!(refusal("\u{feff}{}"), (JsonFault::Value, 0));
}

#[test]
fn lone_surrogates_are_refused() {
    for text in [
        r#""\ud800""#,
        r#""\udfff""#,
        r#""\ud83dx""#,
        r#""\ud83d\n""#,
        r#""\ud83d\u0041""#,
        r#""\ude00\ud83d""#,
    ] {
        assert_eq!(refusal(text), (JsonFault::Surrogate, 1), "{text}");
    }
    assert_eq!(refusal(r#"{"\ud800": 1}"#), (JsonFault::Surrogate, 2), "in a key");
}

#[test]
fn numbers_that_are_not_finite_are_refused() {
    for text in ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1.8e308", "1E+400"] {
        assert_eq!(refusal(text), (JsonFault::NotFinite, 0), "{text}");
    }
    assert_eq!(parse("1e-999"), Json::Float(0.0), "too small is not too large");
}

#[test]
fn integers_may_have_4300_digits_and_a_sign() {
    for (sign, digits) in [("", 4_300), ("-", 4_300)] {
        let text = format!("{sign}{}", "9".repeat(digits));
        assert_eq!(parse(&text), Json::Int(text));
    }
    assert_eq!(refusal("1".repeat(4_301)), (JsonFault::Digits, 0));
    assert_eq!(refusal(format!("-{}", "1".repeat(4_301))), (JsonFault::Digits, 0));
    let third = parse(&format!("0.{}", "3".repeat(5_000)));
    assert_eq!(third, Json::Float(1.0 / 3.0), "only integers are counted");
}

#[test]
fn malformed_numbers_are_refused() {
    for (text, offset) in [
        ("-", 1),
        ("01", 0),
        ("-01", 0),
        ("00", 0),
        ("1.", 2),
        ("1.e5", 2),
        ("1e", 2),
        ("1e+", 3),
        ("-a", 1),
        ("0.", 2),
    ] {
        assert_eq!(refusal(text), (JsonFault::Number, offset), "{text}");
    }
    for text in ["+1", ".5", "e5"] {
        assert_eq!(refusal(text), (JsonFault::Value, 0), "{text}");
    }
    for text in ["0x10", "1_000", "1f", "٣"] {
        assert!(matches!(refusal(text).0, JsonFault::Trailing | JsonFault::Value), "{text}");
    }
}

#[test]
fn nesting_beyond_the_limit_is_refused_at_the_first_bracket_beyond_it() {
    let nested = |open: &str, depth: usize, close: &str| open.repeat(depth) + "0" + &close.repeat(depth);
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}"), (r#"[{"a":"#, "}]")] {
        let levels = open.matches(['[', '{']).count();
        parse(&nested(open, VALUE_DEPTH / levels, close));
        let deeper = nested(open, VALUE_DEPTH / levels + 1, close);
        assert_eq!(refusal(&deeper), (JsonFault::Depth, open.len() * VALUE_DEPTH / levels), "{open}");
    }
    assert!(Json::parse(nested("[", 101, "]").as_bytes(), BODY_DEPTH).is_ok());
    assert!(Json::parse(nested("[", 102, "]").as_bytes(), BODY_DEPTH).is_err());
    assert_eq!(refusal("[".repeat(1_000_000)), (JsonFault::Depth, 100));
    parse(&format!("[{}[]]", "[],".repeat(1_000))); // siblings do not add depth
}

#[test]
fn anything_after_the_document_is_refused() {
    assert_eq!(refusal("{} {}"), (JsonFault::Trailing, 3));
    assert_eq!(refusal("1 2"), (JsonFault::Trailing, 2));
    assert_eq!(refusal("null\0"), (JsonFault::Trailing, 4));
}

#[test]
fn raw_control_characters_except_delete_are_refused_in_strings() {
    for control in 0..0x20_u8 {
        assert_eq!(refusal([b'"', control, b'"']), (JsonFault::Control, 1), "{control:#x}");
    }
    assert_eq!(parse("\"\u{7f}\""), Json::from("\u{7f}"));
}

#[test]
fn unterminated_strings_and_unknown_escapes_are_refused() {
    assert_eq!(refusal("\"abc"), (JsonFault::Unterminated, 4));
    for text in [r#""\x""#, r#""\'""#, r#""\u12""#, r#""\u+123""#, r#""\u12é""#, r#""\U0041""#, "\"\\"] {
        assert_eq!(refusal(text), (JsonFault::Escape, 1), "{text}");
    }
}

#[test]
fn misplaced_brackets_commas_and_colons_are_refused() {
    for (text, fault, offset) in [
        ("", JsonFault::Value, 0),
        (" \n", JsonFault::Value, 2),
        ("nul", JsonFault::Value, 0),
        ("True", JsonFault::Value, 0),
        ("'a'", JsonFault::Value, 0),
        ("\u{a0}1", JsonFault::Value, 0),
        ("[", JsonFault::Value, 1),
        ("[,1]", JsonFault::Value, 1),
        ("[1,]", JsonFault::Value, 3),
        ("[1 2]", JsonFault::Comma, 3),
        ("[1}", JsonFault::Comma, 2),
        ("{", JsonFault::Key, 1),
        ("{1:2}", JsonFault::Key, 1),
        (r#"{"a":1,}"#, JsonFault::Key, 7),
        (r#"{"a"}"#, JsonFault::Colon, 4),
        (r#"{"a" 1}"#, JsonFault::Colon, 5),
        (r#"{"a":}"#, JsonFault::Value, 5),
        (r#"{"a":1]"#, JsonFault::Comma, 6),
        ("[1] // c", JsonFault::Trailing, 4),
    ] {
        assert_eq!(refusal(text), (fault, offset), "{text}");
    }
}

#[test]
fn a_duplicate_key_replaces_the_value_in_place() {
    let json = parse(r#"{"a": 1, "b": 2, "\u0061": 3}"#);
    assert_eq!(JsonText::from(&json).as_str(), r#"{"a":3,"b":2}"#);
}

#[test]
fn a_stored_document_fits_a_text_column_and_serializes_as_json() {
    let text = JsonText::from(&parse(r#"{"nul": "\u0000", "é": [1.50, 1e0]}"#));
    assert_eq!(text.as_str(), r#"{"nul":"\u0000","é":[1.5,1.0]}"#);
    assert_eq!(serde_json::to_string(&Some(&text)).unwrap(), text.as_str());
    assert_eq!(JsonText::from(&text.to_json().unwrap()), text);
    assert!(serde_json::to_string(&JsonText::from_trusted("{")).is_err());
}
