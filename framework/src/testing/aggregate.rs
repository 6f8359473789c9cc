//! `given / when / then` for aggregates.

use std::fmt::Debug;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::storage::{default_time, envelope, store};
use crate::{
    Aggregate, Context, Payload, PayloadLimits, Recorded, StreamId,
    event::{contract::Contracts, encode::to_json, json::check_json},
};

/// Starts a test of the aggregate `A` whose stream holds `events`.
///
/// Every event, given or decided, is encoded and decoded as the store would do it, and so is the state if the aggregate
/// saves snapshots.
///
/// # Panics
/// If an event does not survive storage, or the event enum breaks its contract; the whole kit reports by panics.
///
/// # Example
/// ```
/// use annals::{Aggregate, Context, Event, testing::given};
/// use chrono::{DateTime, TimeDelta, Utc};
/// use schemars::JsonSchema;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
/// enum CardEvent { Issued { until: DateTime<Utc> }, Used { by: Option<String> } }
/// impl Event for CardEvent {}
///
/// #[derive(Serialize)]
/// enum CardCommand { Issue, Use }
///
/// #[derive(Debug, PartialEq, thiserror::Error)]
/// #[error("the card has expired")]
/// struct Expired;
///
/// #[derive(Default, Serialize, Deserialize)]
/// struct Card { until: DateTime<Utc> }
///
/// impl Aggregate for Card {
///     const TYPE: &'static str = "card";
///     type Command = CardCommand;
///     type Event = CardEvent;
///     type Error = Expired;
///
///     fn handle(&self, command: &CardCommand, context: &Context) -> Result<Vec<CardEvent>, Expired> {
///         match command {
///             CardCommand::Issue => Ok(vec![CardEvent::Issued { until: context.now + TimeDelta::days(30) }]),
///             CardCommand::Use if context.now < self.until => Ok(vec![CardEvent::Used { by: context.actor.clone() }]),
///             CardCommand::Use => Err(Expired),
///         }
///     }
///
///     fn apply(&mut self, event: &CardEvent) {
///         if let CardEvent::Issued { until } = event {
///             self.until = *until;
///         }
///     }
/// }
///
/// let monday = DateTime::UNIX_EPOCH + TimeDelta::days(4);
/// given::<Card>([])
///     .at(monday)
///     .when(CardCommand::Issue)
///     .then([CardEvent::Issued { until: monday + TimeDelta::days(30) }])
///     .by("ada")
///     .and_when(CardCommand::Use)
///     .then([CardEvent::Used { by: Some("ada".into()) }])
///     .at(monday + TimeDelta::days(30))
///     .and_when(CardCommand::Use)
///     .then_rejected(Expired);
/// ```
#[track_caller]
pub fn given<A: Aggregate>(events: impl IntoIterator<Item = A::Event>) -> Given<A> {
    let mut contracts = Contracts::default();
    if let Err(error) = contracts.register::<A::Event>(A::TYPE) {
        panic!("{error}");
    }
    let stream = match StreamId::of(A::TYPE, "given") {
        Ok(stream) => stream,
        Err(error) => panic!("{error}"),
    };
    let context = Context {
        now: default_time(),
        command_id: None,
        correlation_id: Uuid::from_u128(1),
        causation_id: None,
        actor: None,
    };
    let mut given = Given { state: A::default(), context, contracts, stream };
    for event in events {
        given.happen(&event);
    }
    given
}

/// A stream with its events, before a command.
#[derive(Debug)]
pub struct Given<A> {
    state: A,
    context: Context,
    contracts: Contracts,
    stream: StreamId,
}

impl<A: Aggregate> Given<A> {
    /// Adds an event as it is stored: its type, the schema version in which it was written, its JSON. So a test can
    /// start from events of older versions, and prove their upcasts.
    #[track_caller]
    pub fn stored(mut self, event_type: &str, schema_version: u16, json: &str) -> Self {
        if let Err(error) = check_json(event_type, json, &PayloadLimits::default()) {
            panic!("the event cannot be stored: {error}");
        }
        let event = self.read(&envelope(&self.stream, event_type, schema_version, json.to_owned()));
        self.state.apply(&event);
        self
    }

    /// Sets [`Context::now`]; the first second of 2026 unless it is set.
    pub fn at(mut self, now: DateTime<Utc>) -> Self {
        self.context.now = now;
        self
    }

    /// Sets [`Context::actor`].
    pub fn by(mut self, actor: impl Into<String>) -> Self {
        self.context.actor = Some(actor.into());
        self
    }

    /// Lets the aggregate decide.
    #[track_caller]
    pub fn when(self, command: A::Command) -> When<A> {
        let state = if A::SNAPSHOT_EVERY > 0 { self.through_snapshot() } else { self };
        let decision = state.state.handle(&command, &state.context);
        When { given: state, decision }
    }

    #[track_caller]
    fn happen(&mut self, event: &A::Event) -> A::Event {
        let event = self.read(&store(&self.stream, event));
        self.state.apply(&event);
        event
    }

    #[track_caller]
    fn read(&self, stored: &Recorded<Payload>) -> A::Event {
        match self.contracts.decode::<A::Event>(stored) {
            Ok(recorded) => recorded.event,
            Err(error) => panic!("{error}: {}; it is stored as {:?}", error.source, stored.event),
        }
    }

    #[track_caller]
    fn through_snapshot(mut self) -> Self {
        let limits = PayloadLimits { bytes: usize::MAX, ..PayloadLimits::default() };
        let json = to_json(A::TYPE, &self.state, &limits)
            .unwrap_or_else(|error| panic!("the state cannot be saved as a snapshot: {error}"));
        self.state = serde_json::from_str(&json)
            .unwrap_or_else(|error| panic!("the state cannot be read back from its snapshot {json}: {error}"));
        self
    }
}

/// A decision to look at. It has not been looked at until one of its methods is called.
#[derive(Debug)]
#[must_use = "call `then`, `then_nothing` or `then_rejected` to check the decision"]
pub struct When<A: Aggregate> {
    given: Given<A>,
    decision: Result<Vec<A::Event>, A::Error>,
}

impl<A: Aggregate> When<A> {
    /// The command was accepted, with these events in this order.
    #[track_caller]
    pub fn then(self, expected: impl IntoIterator<Item = A::Event>) -> Then<A>
    where
        A::Event: Debug + PartialEq,
    {
        let expected: Vec<_> = expected.into_iter().collect();
        let mut given = self.given;
        let decided = match self.decision {
            Ok(decided) => decided,
            Err(error) => panic!("expected events: {expected:#?}\n     got a rejection: {error:?} ({error})"),
        };
        assert!(decided == expected, "expected events: {expected:#?}\n            got: {decided:#?}");
        let read: Vec<_> = decided.iter().map(|event| given.happen(event)).collect();
        assert!(read == decided, "events do not survive storage: {decided:#?}\n  are read back as: {read:#?}");
        Then(given)
    }

    /// The command was accepted and changes nothing: it already took effect, say.
    #[track_caller]
    pub fn then_nothing(self) -> Then<A>
    where
        A::Event: Debug,
    {
        match self.decision {
            Ok(events) if events.is_empty() => Then(self.given),
            Ok(events) => panic!("expected no events\n     got: {events:#?}"),
            Err(error) => panic!("expected no events\n     got a rejection: {error:?} ({error})"),
        }
    }

    /// The command was rejected with this error.
    #[track_caller]
    pub fn then_rejected(self, expected: A::Error) -> Then<A>
    where
        A::Event: Debug,
        A::Error: PartialEq,
    {
        let (given, error) = self.rejection();
        assert!(error == expected, "expected the rejection: {expected:?}\n                   got: {error:?}");
        Then(given)
    }

    /// The command was rejected with an error for which `is_expected` is true: for errors that cannot be compared.
    #[track_caller]
    pub fn then_rejected_with(self, is_expected: impl FnOnce(&A::Error) -> bool) -> Then<A>
    where
        A::Event: Debug,
    {
        let (given, error) = self.rejection();
        assert!(is_expected(&error), "expected another rejection than {error:?} ({error})");
        Then(given)
    }

    #[track_caller]
    fn rejection(self) -> (Given<A>, A::Error)
    where
        A::Event: Debug,
    {
        match self.decision {
            Err(error) => (self.given, error),
            Ok(events) => panic!("expected a rejection\n     got events: {events:#?}"),
        }
    }
}

/// A decision that was as expected; its events have happened.
#[derive(Debug)]
pub struct Then<A>(Given<A>);

impl<A: Aggregate> Then<A> {
    /// Sets [`Context::now`] for the next command.
    pub fn at(self, now: DateTime<Utc>) -> Self {
        Self(self.0.at(now))
    }

    /// Sets [`Context::actor`] for the next command.
    pub fn by(self, actor: impl Into<String>) -> Self {
        Self(self.0.by(actor))
    }

    /// Lets the aggregate decide on the next command.
    #[track_caller]
    pub fn and_when(self, command: A::Command) -> When<A> {
        self.0.when(command)
    }
}

#[cfg(test)]
mod tests;
