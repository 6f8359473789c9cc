use std::panic::{AssertUnwindSafe, catch_unwind};

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::*;
use crate::{Event, testing::recorded};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
enum OrderEvent {
    Placed { customer: String },
    Cancelled,
}
impl Event for OrderEvent {}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
enum CardEvent {
    Cancelled { weight: f64 },
}
impl Event for CardEvent {}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Happening {
    Order(OrderEvent),
    Card(CardEvent),
}
impl Event for Happening {
    const UNION: bool = true;
}

/// Notes what it was given, a document a stream, and one for all.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Notes {
    seen: Vec<(String, i64, i64)>,
    last: Option<DateTime<Utc>>,
    weight: f64,
}

impl View for Notes {
    const NAME: &'static str = "notes";
    type Event = Happening;

    fn keys(event: &Recorded<Happening>) -> Vec<Id> {
        vec![event.stream.as_str().into(), "all".into()]
    }

    fn apply(&mut self, key: &Id, event: &Recorded<Happening>) -> Change {
        self.seen.push((event.event_type.to_string(), event.position.get(), event.version.get()));
        self.last = Some(event.recorded_at);
        match &event.event {
            Happening::Order(OrderEvent::Cancelled) if &**key != "all" => return Change::Remove,
            Happening::Card(CardEvent::Cancelled { weight }) => self.weight += weight,
            Happening::Order(_) => {}
        }
        Change::Keep
    }
}

fn placed(stream: &str) -> Recorded<Happening> {
    recorded(stream, Happening::Order(OrderEvent::Placed { customer: "ada".into() }))
}

fn cancelled(stream: &str) -> Recorded<Happening> {
    recorded(stream, Happening::Order(OrderEvent::Cancelled))
}

fn weighed(weight: f64) -> Recorded<Happening> {
    recorded("card-1", Happening::Card(CardEvent::Cancelled { weight }))
}

fn failure<T>(test: impl FnOnce() -> T) -> String {
    match catch_unwind(AssertUnwindSafe(test)) {
        Ok(_) => panic!("the test should have failed"),
        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_default(),
    }
}

/// Positions and versions count up by themselves, from wherever the test sets them.
#[test]
fn events_are_numbered_unless_the_test_numbers_them() {
    let set = Recorded { position: Position::new(40), version: Version::new(9), ..placed("order-2") };

    given_view::<Notes>([placed("order-1"), placed("order-2"), set, weighed(0.25), placed("order-2")]).then_with(
        "all",
        |notes| {
            let numbers: Vec<_> = notes.seen.iter().map(|(_, position, version)| (*position, *version)).collect();
            assert_eq!(numbers, [(1, 1), (2, 1), (40, 9), (41, 1), (42, 10)]);
            notes.weight == 0.25
        },
    );
}

/// The time of an event is the test's to set; the type is the one that is stored.
#[test]
fn the_envelope_is_under_the_tests_control() {
    let time = "2026-07-01T08:00:00Z".parse().unwrap();
    let event = Recorded { recorded_at: time, ..placed("order-1") };

    given_view::<Notes>([event])
        .then("order-1", Notes { seen: vec![("Placed".into(), 1, 1)], last: Some(time), weight: 0.0 });
}

/// A removed document is gone, and a later event starts from nothing again.
#[test]
fn a_removed_document_is_gone() {
    given_view::<Notes>([placed("order-1"), cancelled("order-1")])
        .then_none("order-1")
        .then_none("order-2")
        .when([placed("order-1")])
        .then_with("order-1", |notes| notes.seen == [("Placed".to_owned(), 3, 3)]);
}

/// A test that fails shows what was expected, what is there, and which documents there are.
#[test]
fn a_failure_shows_expected_and_got() {
    let view = || given_view::<Notes>([placed("order-1")]);

    let message = failure(|| view().then("order-1", Notes::default()));
    assert!(message.starts_with("document \"order-1\", expected: Notes {") && message.contains("Placed"), "{message}");
    let message = failure(|| view().then("order-2", Notes::default()));
    assert!(message.ends_with("got none; there are [\"all\", \"order-1\"]"), "{message}");
    let message = failure(|| view().then_none("all"));
    assert!(message.starts_with("expected no document \"all\""), "{message}");
}

/// A document that cannot be stored fails the test, and so does an event under the name of another aggregate.
#[test]
fn what_does_not_survive_storage_fails_the_test() {
    let message = failure(|| given_view::<Notes>([weighed(f64::MAX), weighed(f64::MAX)]));
    assert!(message.contains("cannot be stored") && message.contains("$.weight"), "{message}");

    let message = failure(|| recorded("card-1", Happening::Order(OrderEvent::Cancelled)));
    assert!(message.contains("stands in the stream card-1 of another"), "{message}");
}
