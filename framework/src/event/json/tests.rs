use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn check(text: &str) -> Result<(), InvalidInput> {
    check_json("OrderPlaced", text, &PayloadLimits::default())
}

fn refused(text: &str) -> (String, String) {
    match check(text) {
        Err(InvalidInput::Field { event_type, field, reason }) => {
            assert_eq!(event_type, "OrderPlaced");
            (field, reason)
        }
        other => panic!("expected {text} to be refused, got {other:?}"),
    }
}

/// Text made of the pieces of JSON, mostly not quite JSON.
fn almost_json() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\"a\"",
        "\"a\":",
        "\"\\u00e9\"",
        "\\",
        "\\n",
        "\\u",
        "\\uD83D",
        "\\uDE00",
        "\\ud800",
        "0",
        "1",
        "-",
        ".",
        "e",
        "E+",
        "12",
        "1.5",
        "1e9",
        "1e400",
        "true",
        "false",
        "null",
        "nul",
        " ",
        "\t",
        "\n",
        "\u{b}",
        "\u{1}",
        "é",
        "😀",
        "\u{feff}",
        "\"\\/\"",
        "\"\\x\"",
    ]);
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(|text| Value::from(text.replace('\0', ""))),
    ];
    leaf.prop_recursive(6, 60, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map("[a-c\"\\\\é\n]{0,3}", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// What the scanner has to agree with: serde_json, and the rule about NUL.
fn expected(text: &str) -> bool {
    fn has_nul(value: &Value) -> bool {
        match value {
            Value::String(text) => text.contains('\0'),
            Value::Array(values) => values.iter().any(has_nul),
            Value::Object(entries) => entries.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
            _ => false,
        }
    }
    serde_json::from_str(text).is_ok_and(|value| !has_nul(&value))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// What serde_json writes is accepted, compact or pretty.
    #[test]
    fn json_is_accepted(value in json()) {
        prop_assert_eq!(check(&value.to_string()), Ok(()));
        prop_assert_eq!(check(&serde_json::to_string_pretty(&value).unwrap()), Ok(()));
    }

    /// Scanner and serde_json agree on what is JSON and what is not.
    #[test]
    fn scanner_and_serde_json_agree_on_pieces_of_json(text in almost_json()) {
        prop_assert_eq!(check(&text).is_ok(), expected(&text), "{}", text);
    }

    /// They also agree on JSON in which one character was replaced or left out.
    #[test]
    fn scanner_and_serde_json_agree_on_damaged_json(value in json(), at in any::<prop::sample::Index>(), put in "[\\PC\n]?") {
        let mut chars: Vec<char> = value.to_string().chars().collect();
        let at = at.index(chars.len());
        chars.splice(at..=at, put.chars());
        let text: String = chars.into_iter().collect();

        prop_assert_eq!(check(&text).is_ok(), expected(&text), "{}", text);
    }

    /// Nothing a caller passes in makes it panic.
    #[test]
    fn any_text_is_answered(text in any::<String>()) {
        prop_assert_eq!(check(&text).is_ok(), expected(&text));
    }
}

/// Postgres cannot store U+0000, and an escape does not hide it.
#[test]
fn an_escaped_nul_is_refused_in_values_and_keys() {
    let (field, reason) = refused(r#"{"lines":[{"note":"ok"},{"note":"a\u0000b"}]}"#);
    assert_eq!(field, "$.lines[1].note");
    assert_eq!(reason, "the text holds the character \\u0000, which Postgres cannot store");

    let (field, reason) = refused(r#"{"order":{"fine":1,"\u0000":2}}"#);
    assert_eq!(field, "$.order");
    assert!(reason.starts_with("a key is refused: "));

    check(r#"{"a":"\\u0000"}"#).unwrap();
}

/// Half of a surrogate pair is no character: Postgres takes it as `json` and fails when it is read.
#[test]
fn lone_surrogates_are_refused() {
    for text in [r#"["\ud800"]"#, r#"["\udc00"]"#, r#"["\ud800\ud800"]"#, r#"["\ud800x"]"#, r#"["\ud800\n"]"#] {
        assert_eq!(
            refused(text),
            ("$[0]".into(), "the text holds half of a surrogate pair, which is no character".into())
        );
    }
    check(r#"["\ud83d\ude00"]"#).unwrap();
}

/// A number that becomes infinite would be read as something else than was written.
#[test]
fn numbers_beyond_a_float_are_refused() {
    assert_eq!(refused(r#"{"price":1e400}"#), ("$.price".into(), "the number is too large for a 64-bit float".into()));
    assert_eq!(refused(&format!("-1{}", "0".repeat(400))).0, "$");
    for text in ["1e308", "1e-400", "-0", "0.1", "123456789012345678901234567890"] {
        check(text).unwrap();
    }
}

/// 7,000 levels (and a million) are refused without recursion; 100 are accepted.
#[test]
fn deep_nesting_is_refused_without_a_stack_overflow() {
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));

    check(&nested(100)).unwrap();
    assert_eq!(refused(&nested(101)).1, "it is nested deeper than 100 levels");
    assert_eq!(refused(&nested(7_000)).1, "it is nested deeper than 100 levels");
    let generous = PayloadLimits { bytes: 10_000_000, depth: 2_000_000 };
    check_json("OrderPlaced", &nested(1_000_000), &generous).unwrap();
    check_json("OrderPlaced", &"{\"a\":".repeat(7_000), &generous).unwrap_err();
}

/// The length is looked at before the text.
#[test]
fn a_text_beyond_the_limit_is_refused_unread() {
    let limits = PayloadLimits { bytes: 5, ..PayloadLimits::default() };

    check_json("OrderPlaced", "12345", &limits).unwrap();
    let refused = check_json("OrderPlaced", "no JSON", &limits);
    assert_eq!(refused, Err(InvalidInput::PayloadTooLarge { event_type: "OrderPlaced".into(), bytes: 7, limit: 5 }));
}

/// The error says where the grammar breaks.
#[test]
fn broken_json_is_refused_with_place_and_reason() {
    for (text, field, reason) in [
        ("", "$", "not valid JSON at byte 0: a value is expected"),
        ("{} {}", "$", "not valid JSON at byte 3: something follows the value"),
        (r#"{"a":[1,2"#, "$.a[1]", "not valid JSON at byte 9: `,` or `]` is expected"),
        (r#"{"a":1,}"#, "$", "not valid JSON at byte 7: a key in quotes is expected"),
        ("[01]", "$[0]", "not valid JSON at byte 2: `,` or `]` is expected"),
        ("[1.]", "$[0]", "not valid JSON at byte 3: a digit is expected"),
        ("[\"a\nb\"]", "$[0]", "not valid JSON at byte 3: a control character stands in a text unescaped"),
        ("[NaN]", "$[0]", "not valid JSON at byte 1: a value is expected"),
    ] {
        assert_eq!(refused(text), (field.into(), reason.into()), "{text}");
    }
}
