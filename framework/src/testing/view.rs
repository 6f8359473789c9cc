//! `given / then` for views.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
};

use super::storage::through_storage;
use crate::{Change, Id, PayloadLimits, Position, Recorded, StreamId, Version, View, event::encode::to_json};

/// Starts a test of the view `V` that has seen `events`, which [`recorded`](super::recorded) makes.
///
/// Positions and versions that the test leaves alone are numbered in order. Every event, and every document after every
/// event, is encoded and decoded as the store would do it.
///
/// # Panics
/// If an event or document does not survive storage; the whole kit reports by panics.
///
/// # Example
/// ```
/// use annals::{Change, Event, Id, Recorded, View, testing::{given_view, recorded}};
/// use schemars::JsonSchema;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, JsonSchema)]
/// enum OrderEvent { OrderPlaced { customer: String, cents: i64 }, CustomerForgotten { customer: String } }
/// impl Event for OrderEvent {}
///
/// #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
/// struct Spend { cents: i64 }
///
/// impl View for Spend {
///     const NAME: &'static str = "spend";
///     type Event = OrderEvent;
///
///     fn keys(event: &Recorded<OrderEvent>) -> Vec<Id> {
///         match &event.event {
///             OrderEvent::OrderPlaced { customer, .. } | OrderEvent::CustomerForgotten { customer } => vec![customer.into()],
///         }
///     }
///
///     fn apply(&mut self, _: &Id, event: &Recorded<OrderEvent>) -> Change {
///         match &event.event {
///             OrderEvent::OrderPlaced { cents, .. } => self.cents += cents,
///             OrderEvent::CustomerForgotten { .. } => return Change::Remove,
///         }
///         Change::Keep
///     }
/// }
///
/// let placed = |order: &str, cents| recorded(order, OrderEvent::OrderPlaced { customer: "ada".into(), cents });
/// given_view::<Spend>([placed("order-1", 500), placed("order-2", 250)])
///     .then("ada", Spend { cents: 750 })
///     .then_none("bob")
///     .when([recorded("order-1", OrderEvent::CustomerForgotten { customer: "ada".into() })])
///     .then_none("ada");
/// ```
#[track_caller]
pub fn given_view<V: View>(events: impl IntoIterator<Item = Recorded<V::Event>>) -> GivenView<V> {
    let empty = GivenView { documents: BTreeMap::new(), position: Position::START, versions: BTreeMap::new() };
    empty.when(events)
}

/// A view's documents after the events so far.
#[derive(Debug)]
pub struct GivenView<V> {
    documents: BTreeMap<Id, V>,
    position: Position,
    versions: BTreeMap<StreamId, Version>,
}

impl<V: View> GivenView<V> {
    /// Applies further events.
    #[track_caller]
    pub fn when(mut self, events: impl IntoIterator<Item = Recorded<V::Event>>) -> Self {
        for event in events {
            let read = through_storage(&event);
            let event = self.numbered(event.with_event(read));
            for key in V::keys(&event).into_iter().collect::<BTreeSet<_>>() {
                self.apply(&key, &event);
            }
        }
        self
    }

    /// The document `key` is there, and it is this one.
    #[track_caller]
    pub fn then(self, key: impl Into<Id>, expected: V) -> Self
    where
        V: Debug + PartialEq,
    {
        let key = key.into();
        match self.documents.get(&key) {
            Some(document) => {
                assert!(*document == expected, "document {key:?}, expected: {expected:#?}\n     got: {document:#?}");
            }
            None => panic!("document {key:?}, expected: {expected:#?}\n     got none; there are {:?}", self.keys()),
        }
        self
    }

    /// The document `key` is there, and `is_expected` is true for it: for documents that cannot be compared.
    #[track_caller]
    pub fn then_with(self, key: impl Into<Id>, is_expected: impl FnOnce(&V) -> bool) -> Self {
        let key = key.into();
        match self.documents.get(&key) {
            Some(document) => assert!(is_expected(document), "document {key:?} is not as expected"),
            None => panic!("document {key:?} is not there; there are {:?}", self.keys()),
        }
        self
    }

    /// There is no document `key`.
    #[track_caller]
    pub fn then_none(self, key: impl Into<Id>) -> Self {
        let key = key.into();
        assert!(!self.documents.contains_key(&key), "expected no document {key:?}; there are {:?}", self.keys());
        self
    }

    fn keys(&self) -> Vec<&Id> {
        self.documents.keys().collect()
    }

    fn numbered(&mut self, mut event: Recorded<V::Event>) -> Recorded<V::Event> {
        if event.position == Position::START {
            event.position = Position::new(self.position.get() + 1);
        }
        let version = self.versions.entry(event.stream.clone()).or_default();
        if event.version == Version::NONE {
            event.version = version.plus(1);
        }
        *version = event.version;
        self.position = event.position;
        event
    }

    #[track_caller]
    fn apply(&mut self, key: &Id, event: &Recorded<V::Event>) {
        let mut document = self.documents.remove(key).unwrap_or_default();
        if document.apply(key, event) == Change::Remove {
            return;
        }
        let limits = PayloadLimits { bytes: usize::MAX, ..PayloadLimits::default() };
        let json = to_json(V::NAME, &document, &limits)
            .unwrap_or_else(|error| panic!("the document {key:?} cannot be stored: {error}"));
        let document = serde_json::from_str(&json)
            .unwrap_or_else(|error| panic!("the document {key:?} cannot be read back from {json}: {error}"));
        self.documents.insert(key.clone(), document);
    }
}

#[cfg(test)]
mod tests;
