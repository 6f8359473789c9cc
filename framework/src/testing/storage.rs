//! Events as a test hands them in, sent through the form in which they are stored.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{
    Event, Metadata, Payload, PayloadLimits, Position, Recorded, StreamId, Version,
    event::{
        decode::decode,
        encode::{Encoded, encode, encode_variant},
    },
};

/// An event in an envelope, as a test of a view needs it.
///
/// `stream` is the whole name, `order-1`. Every other part of the envelope has a plain value, and can be set: the kit
/// numbers positions and versions that are left alone, and `recorded_at` is the first second of 2026.
///
/// # Panics
/// If `stream` is no stream name or has no id, if the event cannot be stored, or if it is the event of another aggregate than the
/// stream's in a union.
///
/// # Example
/// ```
/// use annals::{Recorded, testing::recorded};
/// # use annals::Event;
/// # use schemars::JsonSchema;
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize, JsonSchema)]
/// # enum DoorEvent { Opened }
/// # impl Event for DoorEvent {}
///
/// let opened = Recorded { recorded_at: "2026-07-01T08:00:00Z".parse()?, ..recorded("door-front", DoorEvent::Opened) };
/// assert_eq!((&*opened.event_type, opened.stream.id()), ("Opened", "front"));
/// # Ok::<(), chrono::ParseError>(())
/// ```
#[track_caller]
pub fn recorded<E: Event>(stream: &str, event: E) -> Recorded<E> {
    let stream = match StreamId::new(stream) {
        Ok(stream) if !stream.id().is_empty() => stream,
        Ok(stream) => panic!("{stream} has no id: name the whole stream of an aggregate, like order-1"),
        Err(error) => panic!("{error}"),
    };
    let stored = store(&stream, &event);
    stored.with_event(event)
}

/// When a test takes place unless it says otherwise: the first second of 2026.
pub(super) fn default_time() -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::days(20_454)
}

/// `event` as the stream would hold it.
#[track_caller]
pub(super) fn store<E: Event>(stream: &StreamId, event: &E) -> Recorded<Payload> {
    let limits = PayloadLimits::default();
    let encoded = if E::UNION { encode_variant(event, &limits) } else { encode(event, &limits) };
    let Encoded { event_type, payload } = encoded.unwrap_or_else(|error| panic!("the event cannot be stored: {error}"));
    if !E::UNION {
        return envelope(stream, event_type, E::schema_version(event_type), payload);
    }
    let category = event_type;
    assert_eq!(category, stream.category(), "an event of one aggregate stands in the stream {stream} of another");
    let (event_type, payload) = inner(&payload);
    envelope(stream, &event_type, 1, payload)
}

/// The type and payload of the event that a union's variant holds.
fn inner(json: &str) -> (String, String) {
    if let Ok(unit) = serde_json::from_str::<String>(json) {
        return (unit, "null".to_owned());
    }
    let entry = serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(json);
    match entry.map(|mut entry| entry.pop_first()) {
        Ok(Some((event_type, payload))) => (event_type, payload.get().to_owned()),
        _ => panic!("a union's variant holds one variant of an externally tagged enum, and not {json}"),
    }
}

pub(super) fn envelope(stream: &StreamId, event_type: &str, schema_version: u16, json: String) -> Recorded<Payload> {
    Recorded {
        position: Position::START,
        stream: stream.clone(),
        version: Version::NONE,
        event_id: Uuid::now_v7(),
        event_type: Arc::from(event_type),
        schema_version,
        recorded_at: default_time(),
        metadata: Metadata::default(),
        event: Payload::stored(json),
    }
}

/// The event as a reader would get it.
#[track_caller]
pub(super) fn through_storage<E: Event>(recorded: &Recorded<E>) -> E {
    let stored = store(&recorded.stream, &recorded.event);
    decode(recorded.stream.category(), &stored.event_type, stored.event.as_str())
        .unwrap_or_else(|error| panic!("{} {:?} cannot be read back: {error}", stored.event_type, stored.event))
}
