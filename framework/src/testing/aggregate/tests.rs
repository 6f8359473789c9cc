use std::panic::{AssertUnwindSafe, catch_unwind};

use chrono::TimeDelta;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::*;
use crate::{Event, Upcast};

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
enum CounterEvent {
    Added {
        amount: f64,
        by: Option<String>,
        at: DateTime<Utc>,
    },
    Marked {
        #[serde(skip)]
        forgotten: u8,
    },
}
impl Event for CounterEvent {
    fn schema_version(event_type: &str) -> u16 {
        if event_type == "Added" { 2 } else { 1 }
    }

    fn upcasts() -> Vec<Upcast> {
        vec![Upcast {
            event_type: "Added",
            from: 1,
            upcast: |json, stored| Ok(serde_json::json!({ "amount": json, "at": stored.recorded_at })),
        }]
    }
}

#[derive(Serialize)]
enum Command {
    Add(f64),
    Mark(u8),
    Nothing,
}

#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{0} is more than there may be")]
struct TooMuch(f64);

#[derive(Debug, Default, Serialize, Deserialize)]
struct Counter {
    sum: f64,
}

impl Aggregate for Counter {
    const TYPE: &'static str = "counter";
    type Command = Command;
    type Event = CounterEvent;
    type Error = TooMuch;

    fn handle(&self, command: &Command, context: &Context) -> Result<Vec<CounterEvent>, TooMuch> {
        match command {
            Command::Add(amount) if self.sum + amount > 10.0 => Err(TooMuch(self.sum + amount)),
            Command::Add(amount) => Ok(vec![added(*amount, context.actor.as_deref(), context.now)]),
            Command::Mark(forgotten) => Ok(vec![CounterEvent::Marked { forgotten: *forgotten }]),
            Command::Nothing => Ok(vec![]),
        }
    }

    fn apply(&mut self, event: &CounterEvent) {
        if let CounterEvent::Added { amount, .. } = event {
            self.sum += amount;
        }
    }
}

fn added(amount: f64, by: Option<&str>, at: DateTime<Utc>) -> CounterEvent {
    CounterEvent::Added { amount, by: by.map(Into::into), at }
}

/// What a test that fails says.
fn failure<T>(test: impl FnOnce() -> T) -> String {
    match catch_unwind(AssertUnwindSafe(test)) {
        Ok(_) => panic!("the test should have failed"),
        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_default(),
    }
}

/// A chain of commands, with time and actor under the test's control.
#[test]
fn decisions_follow_one_another() {
    let later = default_time() + TimeDelta::hours(1);

    given::<Counter>([added(1.5, None, default_time())])
        .when(Command::Add(2.5))
        .then([added(2.5, None, default_time())])
        .at(later)
        .by("ada")
        .and_when(Command::Add(6.0))
        .then([added(6.0, Some("ada"), later)])
        .and_when(Command::Add(1.0))
        .then_rejected(TooMuch(11.0))
        .and_when(Command::Add(0.5))
        .then_rejected_with(|TooMuch(sum)| *sum == 10.5)
        .and_when(Command::Nothing)
        .then_nothing();
}

/// A test can start from an event as an older build stored it.
#[test]
fn a_stored_event_of_an_older_version_is_upcast() {
    given::<Counter>([]).stored("Added", 1, "7.5").when(Command::Add(3.0)).then_rejected(TooMuch(10.5));

    let message = failure(|| given::<Counter>([]).stored("Lost", 1, "1"));
    assert!(message.contains("known are Added, Marked"), "{message}");
    let message = failure(|| given::<Counter>([]).stored("Added", 2, r#"{"by":"\u0000"}"#));
    assert!(message.starts_with("the event cannot be stored: event type Added, field $.by: "), "{message}");
}

/// A test that fails shows what was expected and what came.
#[test]
fn a_failure_shows_expected_and_got() {
    let when = |command| given::<Counter>([]).when(command);

    let message = failure(|| when(Command::Mark(0)).then([]));
    assert!(message.starts_with("expected events: []") && message.contains("Marked"), "{message}");
    let message = failure(|| when(Command::Add(11.0)).then([]));
    assert!(message.contains("a rejection: TooMuch(11.0) (11 is more than there may be)"), "{message}");
    let message = failure(|| when(Command::Mark(0)).then_rejected(TooMuch(1.0)));
    assert!(message.starts_with("expected a rejection\n     got events: [") && message.contains("Marked"), "{message}");
    let message = failure(|| when(Command::Add(11.0)).then_rejected(TooMuch(1.0)));
    assert!(message.contains("TooMuch(1.0)") && message.contains("TooMuch(11.0)"), "{message}");
    let message = failure(|| when(Command::Mark(0)).then_nothing());
    assert!(message.starts_with("expected no events"), "{message}");
}

/// Events that storage changes or refuses fail the test, although the rules are kept.
#[test]
fn an_event_that_does_not_survive_storage_fails_the_test() {
    let message = failure(|| given::<Counter>([]).when(Command::Mark(7)).then([CounterEvent::Marked { forgotten: 7 }]));
    assert!(message.starts_with("events do not survive storage"), "{message}");

    let message = failure(|| given::<Counter>([added(f64::NAN, None, default_time())]));
    assert_eq!(message, "the event cannot be stored: event type Added, field $.amount: JSON has no number for NaN");
}

/// A state that cannot be saved as a snapshot fails the test.
#[test]
fn a_state_that_does_not_survive_a_snapshot_fails_the_test() {
    let infinite =
        || given::<Counter>([added(-f64::MAX, None, default_time()), added(-f64::MAX, None, default_time())]);

    let message = failure(|| infinite().when(Command::Nothing));

    assert!(message.starts_with("the state cannot be saved as a snapshot: "), "{message}");
}
