//! Events: what a user names, what the store keeps beside it, how the one becomes the other.

pub(crate) mod contract;
pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod json;
mod probe;
mod refusal;
mod upcast;

use std::{fmt, sync::Arc};

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{Position, StreamId, Version};

pub use contract::ContractError;
pub use upcast::Upcast;

/// The domain events of one aggregate: an externally tagged enum, serde's default form.
///
/// The stored event type is the serde name of the variant, found without a macro; `#[serde(alias = "..")]` keeps the
/// name under which older events of a renamed variant are stored. Every variant is at version 1 until
/// [`schema_version`](Event::schema_version) says otherwise; then [`upcasts`](Event::upcasts) must lead from each older
/// version to it, or the app refuses to start and says which is missing. Stored events are never rewritten.
///
/// # Example
/// An order used to know its price in whole euros. Since version 2 it knows cents:
/// ```
/// use annals::{Aggregate, Context, Event, Upcast, testing::given};
/// use schemars::JsonSchema;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
/// enum OrderEvent {
///     OrderPlaced { customer: String, cents: i64 },
///     OrderCancelled { reason: String },
/// }
///
/// impl Event for OrderEvent {
///     fn schema_version(event_type: &str) -> u16 {
///         if event_type == "OrderPlaced" { 2 } else { 1 }
///     }
///
///     fn upcasts() -> Vec<Upcast> {
///         vec![Upcast {
///             event_type: "OrderPlaced",
///             from: 1,
///             upcast: |mut json, _| {
///                 let euros = json["euros"].as_i64().ok_or("`euros` is no whole number")?;
///                 json["cents"] = (euros * 100).into();
///                 Ok(json)
///             },
///         }]
///     }
/// }
/// # #[derive(Default, Serialize, Deserialize)]
/// # struct Order { cents: i64 }
/// # #[derive(Serialize)]
/// # struct Cancel;
/// # impl Aggregate for Order {
/// #     const TYPE: &'static str = "order";
/// #     type Command = Cancel;
/// #     type Event = OrderEvent;
/// #     type Error = std::fmt::Error;
/// #     fn handle(&self, _: &Cancel, _: &Context) -> Result<Vec<OrderEvent>, std::fmt::Error> {
/// #         Ok(vec![OrderEvent::OrderCancelled { reason: format!("{} cents are too much", self.cents) }])
/// #     }
/// #     fn apply(&mut self, event: &OrderEvent) {
/// #         if let OrderEvent::OrderPlaced { cents, .. } = event { self.cents = *cents }
/// #     }
/// # }
///
/// // A test can start from an event as it was stored years ago.
/// given::<Order>([])
///     .stored("OrderPlaced", 1, r#"{"customer":"ada","euros":12}"#)
///     .when(Cancel)
///     .then([OrderEvent::OrderCancelled { reason: "1200 cents are too much".into() }]);
/// ```
pub trait Event: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// Set for an enum that joins the events of several aggregates: each variant is named for a stream category and
    /// holds that aggregate's events. Such a type is only read, never appended.
    const UNION: bool = false;

    /// The schema version in which this build writes `event_type`, from 1. An alias is an event type of its own, with
    /// its own version and upcasts.
    fn schema_version(_event_type: &str) -> u16 {
        1
    }

    /// One step for every version of an event type that was ever stored and is not the current one.
    fn upcasts() -> Vec<Upcast> {
        vec![]
    }
}

/// How much a payload may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PayloadLimits {
    /// Bytes of JSON; 1 MiB by default.
    pub bytes: usize,
    /// Arrays and objects inside one another; 100 by default. serde_json reads no more than 127.
    pub depth: usize,
}

impl Default for PayloadLimits {
    fn default() -> Self {
        Self { bytes: 1024 * 1024, depth: 100 }
    }
}

/// An event's content as it is stored: the exact JSON text. `Recorded<Payload>` is an event that was not decoded.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload(Box<str>);

impl Payload {
    /// Text that the database already holds, or that was checked.
    pub(crate) fn stored(json: impl Into<Box<str>>) -> Self {
        Self(json.into())
    }

    /// The JSON text, byte for byte as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
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

impl<E> Recorded<E> {
    /// The same envelope around another event.
    pub(crate) fn with_event<T>(&self, event: T) -> Recorded<T> {
        Recorded {
            position: self.position,
            stream: self.stream.clone(),
            version: self.version,
            event_id: self.event_id,
            event_type: Arc::clone(&self.event_type),
            schema_version: self.schema_version,
            recorded_at: self.recorded_at,
            metadata: self.metadata.clone(),
            event,
        }
    }
}
