//! Parsing is the inverse of writing.

use contracts::{Json, PayloadFormat, VALUE_DEPTH};
use proptest::prelude::*;

fn documents() -> impl Strategy<Value = Json> {
    let scalar = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::Bool),
        "0|-?[1-9][0-9]{0,60}".prop_map(Json::Int),
        any::<u64>()
            .prop_map(f64::from_bits)
            .prop_filter("finite", |number| number.is_finite())
            .prop_map(Json::Float),
        any::<String>().prop_map(Json::String),
    ];
    scalar.prop_recursive(8, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Json::Array),
            prop::collection::vec((any::<String>(), inner), 0..8)
                .prop_map(|members| Json::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn a_written_document_parses_to_the_same_document(json in documents()) {
        for format in [PayloadFormat::Python, PayloadFormat::Compact] {
            let text = json.to_text(format);
            let parsed = Json::parse(text.as_bytes(), VALUE_DEPTH);
            prop_assert_eq!(parsed.as_ref(), Ok(&json));
            // -0.0 equals 0.0, but their texts differ
            prop_assert_eq!(parsed.map(|parsed| parsed.to_text(format)), Ok(text));
        }
    }

    #[test]
    fn python_text_is_ascii_without_control_characters(json in documents()) {
        let text = json.to_text(PayloadFormat::Python);
        prop_assert!(text.bytes().all(|byte| matches!(byte, b' '..=b'~')));
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), text in "[\\[\\]{}:,\"\\\\u0-9eE.+\\- dDaAé]{0,40}") {
        let _ = Json::parse(&bytes, VALUE_DEPTH);
        let _ = Json::parse(text.as_bytes(), 3);
    }
}
