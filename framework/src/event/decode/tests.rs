use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::*;

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
enum OrderEvent {
    #[serde(alias = "Ordered")]
    Placed {
        customer: String,
        cents: i64,
        #[serde(flatten)]
        more: BTreeMap<String, i64>,
    },
    Shipped {
        #[serde(default)]
        carrier: Option<String>,
    },
    Noted(String),
    Moved(i32, i32),
    Confirmed,
    #[serde(rename = "order cancelled")]
    Cancelled,
}
impl Event for OrderEvent {}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
enum CardEvent {
    Cancelled { reason: String },
    Confirmed,
}
impl Event for CardEvent {}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Both {
    Order(OrderEvent),
    Card(CardEvent),
}
impl Event for Both {
    const UNION: bool = true;
}

fn order(event_type: &str, payload: &str) -> Result<OrderEvent, String> {
    decode("order", event_type, payload).map_err(|error| error.to_string())
}

/// Every form of variant is read from its stored type and payload.
#[test]
fn each_form_of_variant_decodes() {
    let more = BTreeMap::from([("weight".into(), 3)]);
    let placed = OrderEvent::Placed { customer: "ada".into(), cents: 5, more };
    assert_eq!(order("Placed", r#"{"customer":"ada","weight":3,"cents":5}"#), Ok(placed));
    assert_eq!(order("Shipped", "{}"), Ok(OrderEvent::Shipped { carrier: None }));
    assert_eq!(order("Noted", r#""by hand""#), Ok(OrderEvent::Noted("by hand".into())));
    assert_eq!(order("Moved", " [1, 2] "), Ok(OrderEvent::Moved(1, 2)));
    assert_eq!(order("Confirmed", "null"), Ok(OrderEvent::Confirmed));
    assert_eq!(order("order cancelled", "null"), Ok(OrderEvent::Cancelled));
}

/// A renamed variant still reads what was stored under its old name.
#[test]
fn an_alias_decodes() {
    let placed = OrderEvent::Placed { customer: "ada".into(), cents: 5, more: BTreeMap::new() };

    assert_eq!(order("Ordered", r#"{"customer":"ada","cents":5}"#), Ok(placed));
}

/// An error keeps serde_json's words, line and column; nothing is guessed.
#[test]
fn errors_keep_serde_jsons_words_and_place() {
    let refused = |event_type, payload| order(event_type, payload).unwrap_err();

    assert_eq!(
        refused("Shipped", "{\n \"carrier\": 7}"),
        "invalid type: integer `7`, expected a string at line 2 column 13"
    );
    assert_eq!(
        refused("Shipped", "[]"),
        "invalid type: sequence, expected struct variant OrderEvent::Shipped at line 1 column 0"
    );
    assert_eq!(
        refused("Moved", "[1]"),
        "invalid length 1, expected tuple variant OrderEvent::Moved with 2 elements at line 1 column 3"
    );
    assert_eq!(refused("Confirmed", "{}"), "invalid type: map, expected unit at line 1 column 0");
    assert_eq!(refused("Confirmed", ""), "EOF while parsing a value at line 1 column 0");
    assert!(refused("Lost", "null").starts_with("unknown variant `Lost`, expected one of `"));
}

/// What follows the payload is an error in every form of variant.
#[test]
fn trailing_characters_are_refused() {
    for (event_type, payload) in [("Shipped", "{} x"), ("Noted", "\"\"1"), ("Moved", "[1,2],"), ("Confirmed", "null 1")]
    {
        assert!(order(event_type, payload).unwrap_err().starts_with("trailing characters"), "{event_type}");
    }
}

/// Two aggregates may both have `Cancelled`: the category tells which one it was.
#[test]
fn a_union_decodes_by_category_and_type() {
    let both = |category, event_type, payload| decode::<Both>(category, event_type, payload).map_err(|e| e.to_string());

    let cancelled = Both::Card(CardEvent::Cancelled { reason: "lost".into() });
    assert_eq!(both("card", "Cancelled", r#"{"reason":"lost"}"#), Ok(cancelled));
    assert_eq!(both("order", "order cancelled", "null"), Ok(Both::Order(OrderEvent::Cancelled)));
    assert_eq!(both("order", "Confirmed", "null"), Ok(Both::Order(OrderEvent::Confirmed)));
    assert!(both("shop", "Confirmed", "null").unwrap_err().starts_with("unknown variant `shop`"));
    assert_eq!(
        both("card", "Cancelled", r#"{"reason":1}"#),
        Err("invalid type: integer `1`, expected a string at line 1 column 11".into())
    );
}

/// The deepest payload that the limits may allow can be read.
#[test]
fn a_payload_of_127_levels_decodes() {
    #[derive(Serialize, Deserialize, JsonSchema)]
    enum DeepEvent {
        Grown(serde_json::Value),
    }
    impl Event for DeepEvent {}
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));

    let DeepEvent::Grown(value) = decode("tree", "Grown", &nested(127)).unwrap();
    assert_eq!(value.to_string(), nested(127));
    assert!(decode::<DeepEvent>("tree", "Grown", &nested(128)).is_err());
}
