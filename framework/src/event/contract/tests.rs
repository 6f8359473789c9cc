use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::*;
use crate::{Metadata, Position, StreamId, Version};

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
enum OrderEvent {
    #[serde(alias = "Ordered")]
    Placed {
        cents: i64,
        stream: String,
    },
    Cancelled,
}
impl Event for OrderEvent {
    fn schema_version(event_type: &str) -> u16 {
        if event_type == "Placed" { 3 } else { 1 }
    }

    fn upcasts() -> Vec<Upcast> {
        let stream = |mut json: Value, stored: &Recorded<Payload>| {
            json["stream"] = stored.stream.as_str().into();
            Ok(json)
        };
        let cents = |json: Value, _: &Recorded<Payload>| {
            let euros = json["euros"].as_i64().ok_or("`euros` is no whole number")?;
            Ok(serde_json::json!({ "cents": euros * 100 }))
        };
        vec![
            Upcast { event_type: "Placed", from: 2, upcast: stream },
            Upcast { event_type: "Placed", from: 1, upcast: cents },
        ]
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
enum CardEvent {
    Cancelled { reason: String },
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

fn contracts() -> Contracts {
    let mut contracts = Contracts::default();
    contracts.register::<OrderEvent>("order").unwrap();
    contracts.register::<CardEvent>("card").unwrap();
    contracts
}

fn stored(stream: &str, event_type: &str, schema_version: u16, json: &str) -> Recorded<Payload> {
    Recorded {
        position: Position::new(7),
        stream: StreamId::new(stream).unwrap(),
        version: Version::new(3),
        event_id: Uuid::nil(),
        event_type: event_type.into(),
        schema_version,
        recorded_at: chrono::DateTime::UNIX_EPOCH,
        metadata: Metadata { actor: Some("ada".into()), ..Metadata::default() },
        event: Payload::stored(json),
    }
}

fn refused<E: Event + std::fmt::Debug>(recorded: &Recorded<Payload>) -> String {
    contracts().decode::<E>(recorded).unwrap_err().source.to_string()
}

/// Serde's own list names the events, with the aliases under which older ones are stored.
#[test]
fn event_types_are_serdes_variants_and_aliases() {
    assert_eq!(event_types::<OrderEvent>(), ["Ordered", "Placed", "Cancelled"]);
    assert_eq!(event_types::<Both>(), ["order", "card"]);
}

/// An event in the current version decodes as it is, in its envelope.
#[test]
fn a_current_event_decodes_in_its_envelope() {
    let raw = stored("order-1", "Placed", 3, r#"{"cents":5,"stream":"x"}"#);

    let recorded = contracts().decode::<OrderEvent>(&raw).unwrap();

    assert_eq!(recorded, raw.with_event(OrderEvent::Placed { cents: 5, stream: "x".into() }));
    assert_eq!(recorded.metadata.actor.as_deref(), Some("ada"));
}

/// An event of version 1 passes through every step, in order, whatever the order of the list; also inside a union.
#[test]
fn older_versions_are_led_to_the_current_one_step_by_step() {
    let first = stored("order-1", "Placed", 1, r#"{"euros":12}"#);
    let second = stored("order-2", "Placed", 2, r#"{"cents":34}"#);

    let first = contracts().decode::<OrderEvent>(&first).unwrap().event;
    let second = contracts().decode::<Both>(&second).unwrap().event;

    assert_eq!(first, OrderEvent::Placed { cents: 1200, stream: "order-1".into() });
    assert_eq!(second, Both::Order(OrderEvent::Placed { cents: 34, stream: "order-2".into() }));
}

/// An upcast that fails names its version and its reason.
#[test]
fn a_failing_upcast_is_reported() {
    let raw = stored("order-1", "Placed", 1, r#"{"euros":"many"}"#);

    assert_eq!(refused::<OrderEvent>(&raw), "the upcast from version 1 failed: `euros` is no whole number");
}

/// An event that cannot be read is reported with everything that is needed to find it.
#[test]
fn an_undecodable_event_is_reported_with_its_place() {
    let error = contracts().decode::<CardEvent>(&stored("card-1", "Cancelled", 1, "{}")).unwrap_err();

    assert_eq!(error.to_string(), "cannot read event Cancelled (schema version 1) of card-1, version 3, position 7");
    assert_eq!(error.source.to_string(), "missing field `reason` at line 1 column 2");
}

/// An unknown type, category or schema version is refused, and the answer names what is known.
#[test]
fn what_is_unknown_is_refused_with_what_is_known() {
    assert_eq!(
        refused::<OrderEvent>(&stored("order-1", "Lost", 1, "null")),
        "the event type is not known; known are Ordered, Placed, Cancelled"
    );
    assert_eq!(
        refused::<Both>(&stored("card-1", "Cancelled", 2, "{}")),
        "a newer build wrote it; this one knows the versions up to 1"
    );
    assert_eq!(refused::<Both>(&stored("order-1", "Placed", 0, "{}")), "schema versions start at 1");
    assert_eq!(
        refused::<Both>(&stored("shop-1", "Cancelled", 1, "{}")),
        "no aggregate is registered for \"shop\"; add .aggregate::<…>() to the app"
    );
}

/// The categories that an event type reads, and whether it can read all of their events, are known at start-up.
#[test]
fn a_reader_is_checked_against_the_registered_aggregates() {
    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "lowercase")]
    enum Lacking {
        #[allow(dead_code, reason = "only its name is looked at")]
        Order(CardEvent),
        #[allow(dead_code, reason = "only its name is looked at")]
        Shop(CardEvent),
    }
    impl Event for Lacking {
        const UNION: bool = true;
    }
    let contracts = contracts();

    assert_eq!(contracts.categories_of::<Both>(), ["card", "order"]);
    assert_eq!(contracts.categories_of::<CardEvent>(), ["card"]);
    contracts.check_reader::<Both>(&[]).unwrap();
    contracts.check_reader::<OrderEvent>(&[]).unwrap();
    let error = contracts.check_reader::<Lacking>(&[]).unwrap_err().to_string();
    assert!(
        error.ends_with(
            "Lacking cannot read what it asks for: Ordered of \"order\" is missing in it; Placed of \"order\" is missing \
             in it; no aggregate is registered for \"shop\"; add .aggregate::<…>() to the app"
        ),
        "{error}"
    );
    let error = Contracts::default().check_reader::<CardEvent>(&[]).unwrap_err().to_string();
    assert!(error.contains("no registered aggregate has these events; add .aggregate::<…>()"), "{error}");
}

/// Two aggregates cannot share a category, a category begins a stream's name, and a union cannot be appended.
#[test]
fn a_registration_is_checked() {
    let mut contracts = contracts();

    assert!(matches!(contracts.register::<CardEvent>("card"), Err(ContractError::Twice { .. })));
    assert!(matches!(contracts.register::<CardEvent>("gift-card"), Err(ContractError::Category { .. })));
    assert!(matches!(contracts.register::<CardEvent>("$card"), Err(ContractError::Category { .. })));
    assert!(matches!(contracts.register::<Both>("both"), Err(ContractError::UnionAppended { .. })));
}

macro_rules! event_type {
    ($(#[$attribute:meta])* $kind:ident $name:ident $body:tt) => {
        #[derive(Serialize, Deserialize, JsonSchema)]
        $(#[$attribute])*
        #[allow(dead_code, reason = "only its shape is looked at")]
        $kind $name $body
        impl Event for $name {}
    };
}

/// A type that gives its events no name is refused at start-up, with what serde found and what to do.
#[test]
fn other_shapes_than_an_externally_tagged_enum_are_refused() {
    event_type!(
        #[serde(tag = "type")]
        enum Internal {
            A { id: u8 },
        }
    );
    event_type!(
        #[serde(tag = "t", content = "c")]
        enum Adjacent {
            A { id: u8 },
        }
    );
    event_type!(
        #[serde(untagged)]
        enum Untagged {
            A { id: u8 },
        }
    );
    event_type!(
        struct Plain {
            id: u8,
        }
    );

    fn found<E: Event>() -> String {
        match check_contract::<E>() {
            Err(ContractError::NotTagged { found, .. }) => found,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(found::<Internal>(), "internally tagged enum Internal");
    assert_eq!(found::<Adjacent>(), "adjacently tagged enum Adjacent");
    assert_eq!(found::<Untagged>(), "any value");
    assert_eq!(found::<Plain>(), "struct Plain");
    let message = check_contract::<Internal>().unwrap_err().to_string();
    assert!(
        message.contains("::Internal is no externally tagged enum (serde finds: internally tagged enum"),
        "{message}"
    );
}

/// An enum without variants is refused.
#[test]
fn an_enum_without_variants_is_refused() {
    event_type!(
        enum Empty {}
    );

    assert!(matches!(check_contract::<Empty>(), Err(ContractError::NoVariants { .. })));
}

/// Each variant of a union holds the events of one aggregate, and nothing else.
#[test]
fn a_union_of_anything_but_event_enums_is_refused() {
    event_type!(
        enum NoEvent {}
    );
    fn refused<E: Event>() -> (&'static str, String) {
        match check_contract::<E>() {
            Err(ContractError::UnionVariant { category, found, .. }) => (category, found),
            other => panic!("{other:?}"),
        }
    }
    macro_rules! union {
        ($name:ident $body:tt) => {
            #[derive(Serialize, Deserialize, JsonSchema)]
            #[allow(dead_code, reason = "only its shape is looked at")]
            enum $name $body
            impl Event for $name {
                const UNION: bool = true;
            }
        };
    }
    union!(Unit { Order(OrderEvent), Card });
    union!(Fields { Card { event: CardEvent } });
    union!(Number { Card(u8) });
    union!(Nothing { Card(NoEvent) });

    assert_eq!(refused::<Unit>(), ("Card", "a variant without content".into()));
    assert_eq!(refused::<Fields>(), ("Card", "a variant with named fields".into()));
    assert_eq!(refused::<Number>(), ("Card", "u8".into()));
    assert_eq!(refused::<Nothing>(), ("Card", "an enum without variants".into()));
    check_contract::<Both>().unwrap();
}

/// Every missing, doubled or stray upcast comes in one error.
#[test]
fn every_problem_with_the_versions_comes_in_one_error() {
    #[derive(Serialize, Deserialize, JsonSchema)]
    #[allow(dead_code, reason = "only its names are looked at")]
    enum Versioned {
        A,
        B,
        C,
    }
    impl Event for Versioned {
        fn schema_version(event_type: &str) -> u16 {
            match event_type {
                "A" => 3,
                "B" => 2,
                _ => 0,
            }
        }

        fn upcasts() -> Vec<Upcast> {
            let upcast = |event_type, from| Upcast { event_type, from, upcast: |json, _| Ok(json) };
            vec![upcast("A", 1), upcast("A", 1), upcast("B", 2), upcast("D", 1)]
        }
    }

    let Err(ContractError::Versions { problems, .. }) = check_contract::<Versioned>() else { panic!() };

    assert_eq!(
        problems,
        [
            "A has several upcasts from version 1",
            "A has no upcast from version 2 to 3",
            "B has no upcast from version 1 to 2",
            "the version of C is 0, and versions start at 1",
            "the upcast of B from version 2 leads past its current version",
            "there is an upcast for D, which is no event type of it",
        ]
    );
}
