use std::{cell::Cell, collections::BTreeMap, fmt};

use proptest::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, ser::SerializeSeq};
use serde_json::value::RawValue;

use super::*;
use crate::event::decode::decode;

/// Data of every kind that serde knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Data {
    Nothing,
    Flag(bool),
    Small(i8),
    Number(i64),
    Large(u64),
    Huge(i128),
    Float(f64),
    Single(f32),
    Letter(char),
    Text(String),
    List(Vec<Data>),
    Map(BTreeMap<String, Data>),
    Numbered(BTreeMap<i16, Data>),
    Flagged(BTreeMap<bool, u8>),
    Pair(Box<Data>, u16),
    Named { first: Option<Box<Data>>, second: () },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Sample {
    Unit,
    Newtype(Data),
    Tuple(Data, i32),
    Struct { data: Data, more: Vec<Data> },
}

macro_rules! events {
    ($($name:ident),*) => {
        $(impl Event for $name {}
        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::Schema::default()
            }
        })*
    };
}
events!(Sample, Struct, Internal, Adjacent, Untagged);

fn text() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), "[ -~\"\\\\\u{1}-\u{1f}é€😀]{0,20}"].prop_map(|text| text.replace('\0', ""))
}

fn finite() -> impl Strategy<Value = f64> {
    any::<f64>().prop_filter("finite", |number| number.is_finite())
}

fn data() -> impl Strategy<Value = Data> {
    let leaf = prop_oneof![
        Just(Data::Nothing),
        any::<bool>().prop_map(Data::Flag),
        any::<i8>().prop_map(Data::Small),
        any::<i64>().prop_map(Data::Number),
        any::<u64>().prop_map(Data::Large),
        any::<i128>().prop_map(Data::Huge),
        finite().prop_map(Data::Float),
        any::<f32>().prop_filter("finite", |number| number.is_finite()).prop_map(Data::Single),
        any::<char>().prop_filter("not NUL", |letter| *letter != '\0').prop_map(Data::Letter),
        text().prop_map(Data::Text),
        prop::collection::btree_map(any::<bool>(), any::<u8>(), 0..3).prop_map(Data::Flagged),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Data::List),
            prop::collection::btree_map(text(), inner.clone(), 0..5).prop_map(Data::Map),
            prop::collection::btree_map(any::<i16>(), inner.clone(), 0..5).prop_map(Data::Numbered),
            (inner.clone(), any::<u16>()).prop_map(|(data, number)| Data::Pair(Box::new(data), number)),
            prop::option::of(inner).prop_map(|first| Data::Named { first: first.map(Box::new), second: () }),
        ]
    })
}

fn sample() -> impl Strategy<Value = Sample> {
    prop_oneof![
        Just(Sample::Unit),
        data().prop_map(Sample::Newtype),
        (data(), any::<i32>()).prop_map(|(data, number)| Sample::Tuple(data, number)),
        (data(), prop::collection::vec(data(), 0..4)).prop_map(|(data, more)| Sample::Struct { data, more }),
    ]
}

proptest! {
    /// The payload is, byte for byte, what serde_json writes for the variant's content; and it decodes to the event.
    #[test]
    fn ordinary_events_are_written_as_serde_json_writes_them_and_read_back(event in sample()) {
        let encoded = encode(&event, &PayloadLimits::default()).unwrap();

        let whole = serde_json::to_string(&event).unwrap();
        let expected = match event {
            Sample::Unit => format!("{:?}", encoded.event_type),
            _ => format!("{{{:?}:{}}}", encoded.event_type, encoded.payload),
        };
        prop_assert_eq!(&whole, &expected);

        let decoded: Sample = decode("sample", encoded.event_type, &encoded.payload).unwrap();
        prop_assert_eq!(decoded, event);
    }
}

/// Encodes what is no event type of its own as the content of one.
fn encode_content<T: Serialize>(content: T) -> Result<String, InvalidInput> {
    #[derive(Serialize)]
    enum Any<T> {
        Happened { content: T },
    }
    encode_variant(&Any::Happened { content }, &PayloadLimits::default()).map(|encoded| encoded.payload)
}

fn refused<T: Serialize>(content: T) -> (String, String) {
    match encode_content(content) {
        Err(InvalidInput::Field { event_type, field, reason }) => {
            assert_eq!(event_type, "Happened");
            (field, reason)
        }
        other => panic!("expected a refused field, got {other:?}"),
    }
}

/// A unit variant is stored with the payload `null`.
#[test]
fn a_variant_without_content_has_the_payload_null() {
    let encoded = encode(&Sample::Unit, &PayloadLimits::default()).unwrap();

    assert_eq!(encoded, Encoded { event_type: "Unit", payload: "null".into() });
}

/// serde_json writes NaN and the infinities as `null` without a word; here they are refused with their path.
#[test]
fn numbers_that_json_does_not_have_are_refused_with_their_path() {
    #[derive(Serialize)]
    struct Line {
        price: f64,
    }
    #[derive(Serialize)]
    struct Order {
        lines: Vec<Line>,
    }

    let order = |price| Order { lines: vec![Line { price: 1.0 }, Line { price }] };
    assert_eq!(refused(order(f64::NAN)), ("$.content.lines[1].price".into(), "JSON has no number for NaN".into()));
    assert_eq!(refused(order(f64::INFINITY)).1, "JSON has no number for inf");
    assert_eq!(refused(f32::NEG_INFINITY), ("$.content".into(), "JSON has no number for -inf".into()));
}

/// The path names map keys and the variants of enums inside the event.
#[test]
fn a_path_leads_through_maps_tuples_and_variants() {
    let nan = || Data::Float(f64::NAN);

    let map = Data::Map(BTreeMap::from([("plain".into(), nan())]));
    assert_eq!(refused(map).0, "$.content.Map.plain.Float");
    let map = Data::Map(BTreeMap::from([("two words".into(), nan())]));
    assert_eq!(refused(map).0, "$.content.Map[\"two words\"].Float");
    assert_eq!(refused(Data::Pair(Box::new(nan()), 1)).0, "$.content.Pair[0].Float");
    assert_eq!(refused(Data::Named { first: Some(Box::new(nan())), second: () }).0, "$.content.Named.first.Float");
}

/// Postgres cannot store the character U+0000, in a value, a key, a char or what a value prints.
#[test]
fn the_character_nul_is_refused_wherever_it_hides() {
    struct Prints;
    impl fmt::Display for Prints {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("ab\0")
        }
    }
    impl Serialize for Prints {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(self)
        }
    }

    let (field, reason) = refused(vec!["fine", "not\0fine"]);
    assert_eq!(field, "$.content[1]");
    assert_eq!(reason, "the text holds the character \\u0000, which Postgres cannot store");
    assert_eq!(refused('\0').0, "$.content");
    assert_eq!(refused(Prints).0, "$.content");
    assert!(refused(BTreeMap::from([("a\0", 1)])).1.starts_with("a key is refused: "));
}

/// Only text can be a key; numbers and flags are written as text, as serde_json does.
#[test]
fn keys_follow_serde_jsons_rules() {
    assert_eq!(encode_content(BTreeMap::from([(Some('x'), 1)])).unwrap(), r#"{"content":{"x":1}}"#);
    assert!(refused(BTreeMap::from([((1, 2), 1)])).1.contains("only text"));
    assert!(refused(BTreeMap::from([((), 1)])).1.contains("only text"));
}

/// 100 levels are stored, the 101st is refused, and a path of that length is cut.
#[test]
fn nesting_is_limited() {
    fn nested(levels: usize) -> Data {
        // Each `List` is two levels: the variant's object and the array. `Happened` is one, `Number` one.
        (0..levels).fold(Data::Number(1), |data, _| Data::List(vec![data]))
    }

    assert!(encode_content(nested(49)).is_ok());
    let (field, reason) = refused(nested(50));

    assert_eq!(reason, "it is nested deeper than 100 levels");
    assert!(field.starts_with("$.content.List[0].List[0]") && field.ends_with('…'), "{field}");
}

/// A list that goes on and on; it counts the elements it was asked for.
struct Endless<'a, T>(T, &'a Cell<usize>);

impl<T: Serialize> Serialize for Endless<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        for _ in 0..300_000_000 {
            self.1.set(self.1.get() + 1);
            list.serialize_element(&self.0)?;
        }
        list.end()
    }
}

/// 300 MB are never built: writing stops as soon as the limit is passed, while the event still streams.
#[test]
fn a_payload_of_300_megabytes_is_refused_after_the_first() {
    fn asked<T: Serialize>(element: T) -> usize {
        let asked = Cell::new(0);
        match encode_content(Endless(element, &asked)) {
            Err(InvalidInput::PayloadTooLarge { event_type, bytes, limit }) => {
                assert_eq!((event_type.as_str(), limit), ("Happened", 1_048_576));
                assert!(bytes > limit && bytes < limit + 2_000, "{bytes}");
            }
            other => panic!("{other:?}"),
        }
        asked.get()
    }

    assert!(asked("x".repeat(1_000)).abs_diff(1_046) < 3);
    assert!(asked(7).abs_diff(524_288) < 10);
}

/// A text that is too long is not copied first.
#[test]
fn a_text_beyond_the_limit_is_refused_unwritten() {
    let limits = PayloadLimits::default();
    let mut writer = Writer::new(&limits);

    assert!(writer.text(&"x".repeat(2_000_000)).is_err());
    assert!(writer.out.len() < 2);
}

/// The limit is the last length that is accepted, and counts what is written, escapes included.
#[test]
fn the_size_limit_is_exact() {
    let limits = |bytes| PayloadLimits { bytes, ..PayloadLimits::default() };
    let event = Sample::Newtype(Data::Text("\n\n".into()));
    let length = r#"{"Text":"\n\n"}"#.len();

    assert_eq!(encode(&event, &limits(length)).unwrap().payload.len(), length);
    assert!(matches!(encode(&event, &limits(length - 1)), Err(InvalidInput::PayloadTooLarge { .. })));
}

/// JSON text inside an event is passed through byte for byte, once it is checked.
#[test]
fn raw_json_inside_an_event_is_checked_and_kept_as_it_is() {
    let raw = |json: &str| RawValue::from_string(json.into()).unwrap();

    assert_eq!(encode_content(raw("{ \"b\": 1.50,\"a\":[] }")).unwrap(), "{\"content\":{ \"b\": 1.50,\"a\":[] }}");
    assert_eq!(refused(vec![raw(r#"{"name":["\u0000"]}"#)]).0, "$.content[0].name[0]");
    assert!(refused(raw("1e400")).1.contains("too large"));
    assert!(refused(raw(&format!("{}{}", "[".repeat(100), "]".repeat(100)))).1.contains("deeper than 100"));
}

#[derive(Debug, Serialize, Deserialize)]
struct Struct {
    id: u8,
}
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type")]
enum Internal {
    Happened { id: u8 },
}
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", content = "content")]
enum Adjacent {
    Happened { id: u8 },
}
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Happened { id: u8 },
}

/// An event without a name of its own cannot be stored.
#[test]
fn what_is_no_externally_tagged_enum_is_refused() {
    fn refused<E: Event>(event: &E) -> &'static str {
        match encode(event, &PayloadLimits::default()) {
            Err(InvalidInput::NotTagged { rust_type }) => rust_type,
            other => panic!("{other:?}"),
        }
    }

    assert!(refused(&Struct { id: 1 }).ends_with("Struct"));
    assert!(refused(&Internal::Happened { id: 1 }).ends_with("Internal"));
    assert!(refused(&Adjacent::Happened { id: 1 }).ends_with("Adjacent"));
    assert!(refused(&Untagged::Happened { id: 1 }).ends_with("Untagged"));
}
