//! Events: what a user names, what the store keeps beside it, how the one becomes the other.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{Position, StreamId, Version};

/// The domain events of one aggregate: an externally tagged enum, serde's default form.
///
/// The stored event type is the serde name of the variant, found without a macro. Every variant is at version 1 until
/// [`schema_version`](Event::schema_version) says otherwise; then [`upcasts`](Event::upcasts) must lead from each older
/// version to it, or the app refuses to start and says which is missing.
///
/// # Example
/// ```
/// use annals::Event;
/// use schemars::JsonSchema;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, JsonSchema)]
/// enum OrderEvent {
///     OrderPlaced { customer: String, cents: i64 },
///     OrderCancelled { reason: String },
/// }
/// impl Event for OrderEvent {}
/// ```
pub trait Event: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// Set for an enum that joins the events of several aggregates: each variant is named for a stream category and
    /// holds that aggregate's events. Such a type is only read, never appended.
    const UNION: bool = false;

    /// The schema version in which this build writes `event_type`.
    fn schema_version(_event_type: &str) -> u16 {
        1
    }
}

/// What the store keeps beside an event, by whom and why it came to be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Metadata {
    /// Joins everything that one request led to. The id of the append's first event, unless it was given.
    pub correlation_id: Option<Uuid>,
    /// The event that led to this one.
    pub causation_id: Option<Uuid>,
    /// The caller's id of the command.
    pub command_id: Option<Uuid>,
    /// Who sent the command.
    pub actor: Option<String>,
    /// W3C trace context, `traceparent`.
    pub traceparent: Option<String>,
}

/// A stored event in its envelope.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded<E> {
    /// Where it stands in the log of all streams.
    pub position: Position,
    /// Its stream.
    pub stream: StreamId,
    /// Its number in the stream, from 1.
    pub version: Version,
    /// Its id, a UUID v7 unless the writer gave another.
    pub event_id: Uuid,
    /// Its stored type.
    pub event_type: Arc<str>,
    /// The schema version in which it was written.
    pub schema_version: u16,
    /// The database's clock when it was written.
    pub recorded_at: DateTime<Utc>,
    /// By whom and why.
    pub metadata: Metadata,
    /// The event.
    pub event: E,
}
