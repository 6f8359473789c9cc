//! One step from an older schema version of an event type towards the current one.

use serde_json::Value;

use super::{Payload, Recorded};
use crate::BoxError;

/// Leads the payload of one event type from schema version `from` to the next one.
///
/// Versions are passed through one by one, so an upcast, once written, stays as it is: whoever introduces version 4 adds
/// the step from 3. It runs each time that such an event is read, and must be pure. Numbers beyond 64 bits lose their
/// last digits on the way, as everywhere in [`Value`].
#[derive(Debug, Clone, Copy)]
pub struct Upcast {
    /// The stored event type. For an event stored under an alias, that alias.
    pub event_type: &'static str,
    /// The version it starts from.
    pub from: u16,
    /// Makes the payload of version `from + 1`. The second argument is the event as it is stored, with its envelope.
    ///
    /// An error makes the event undecodable: it is reported with stream, version and position, and nothing is skipped.
    pub upcast: fn(Value, &Recorded<Payload>) -> Result<Value, BoxError>,
}
