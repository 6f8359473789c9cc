//! What is refused, where, and what the caller does next.

use std::time::Duration;

use uuid::Uuid;

use crate::{ExpectedVersion, Position, StreamId, Version};

/// Any error, as user code returns it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Input that can never be stored. Nothing was sent to Postgres.
///
/// Caller: correct the input; repeating the call repeats the error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidInput {
    /// A stream name breaks a rule of [`StreamId`].
    #[error("stream name {name:?} is refused: {rule}")]
    StreamName {
        /// The first 80 characters of the name.
        name: String,
        /// Which rule it breaks.
        rule: &'static str,
    },
    /// A value in a payload cannot be stored as JSON, or could not be read back as it was.
    #[error("event type {event_type}, field {field}: {reason}")]
    Field {
        /// The event's type.
        event_type: String,
        /// The path of the field, `$` for the whole payload: `$.lines[3].price`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A payload is longer than the store's limit.
    #[error("event type {event_type}: the payload has {bytes} bytes or more, the limit is {limit}")]
    PayloadTooLarge {
        /// The event's type.
        event_type: String,
        /// Its payload, in bytes, as far as it was looked at.
        bytes: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// An event is no variant of an externally tagged enum, so it has no type to be stored under.
    #[error("{rust_type} is not an externally tagged enum, and only a variant of one can be stored as an event")]
    NotTagged {
        /// Its type in Rust.
        rust_type: &'static str,
    },
    /// An append has more events than the store's limit.
    #[error("the append to {stream} has {events} events, the limit is {limit}")]
    TooManyEvents {
        /// The stream.
        stream: StreamId,
        /// Events in the append, over all its streams.
        events: usize,
        /// The limit.
        limit: usize,
    },
    /// The payloads of an append are together longer than the store's limit.
    #[error("the append to {stream} has {bytes} bytes of payload, the limit is {limit}")]
    AppendTooLarge {
        /// The (first) stream.
        stream: StreamId,
        /// Bytes of payload, over all its streams.
        bytes: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// Something else about the call is wrong.
    #[error("{0}")]
    Other(String),
}

impl InvalidInput {
    pub(crate) fn stream_name(name: &str, rule: &'static str) -> Self {
        Self::StreamName { name: name.chars().take(80).collect(), rule }
    }
}

/// A stored event that this build cannot read.
///
/// Caller: register the missing type or upcast, or correct the code that reads it; the event itself stays.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot read event {event_type} (schema version {schema_version}) of {stream}, version {version}, position {position}"
)]
pub struct Undecodable {
    /// The stream.
    pub stream: StreamId,
    /// The event's version in it.
    pub version: Version,
    /// The event's position.
    pub position: Position,
    /// The stored type.
    pub event_type: String,
    /// The stored schema version.
    pub schema_version: u16,
    /// Why: serde's words, an upcast's error, or that the type is not known.
    #[source]
    pub source: BoxError,
}

/// Why the event store refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another writer got there first. Nothing was written.
    ///
    /// Caller: reload and decide again; `execute` already does so.
    #[error("stream {stream} is at version {actual}, not {expected}")]
    Conflict {
        /// The stream.
        stream: StreamId,
        /// What the caller believed.
        expected: ExpectedVersion,
        /// Where the stream is.
        actual: Version,
    },
    /// This command id has already been used for a command with another body. Nothing was written.
    ///
    /// Caller: use a new id for a new command; only a repeat of the same command may carry the same id.
    #[error("command id {command_id} was used before, for another command on {stream}")]
    CommandReused {
        /// The id.
        command_id: Uuid,
        /// The stream of the command that used it first.
        stream: StreamId,
    },
    /// The input can never be stored. Nothing was written.
    #[error(transparent)]
    Invalid(#[from] InvalidInput),
    /// Too many appends wait already. Nothing was written.
    ///
    /// Caller: slow down and try again later.
    #[error("too many appends are waiting already: {bound} is {limit}")]
    Overloaded {
        /// The bound that is reached: `append_queue` or `append_queue_bytes` of [`Config`](crate::Config).
        bound: &'static str,
        /// How much that is, in appends or in bytes of payload.
        limit: usize,
    },
    /// The deadline passed before anything was sent. Nothing was written.
    ///
    /// Caller: try again if there is still a reason to.
    #[error("no answer from Postgres within {after:?}: {what}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The deadline passed, or the server was lost, after the append was sent: it may be written or not.
    ///
    /// Caller: look for `event_ids` with [`Annals::find_events`](crate::Annals::find_events). If they are not there, they may
    /// still come: append again at an exact version, or repeat the command with the same command id, which takes effect at
    /// most once.
    #[error(
        "the append to {stream} was sent and its outcome could not be learned: look for its event ids with \
         Annals::find_events"
    )]
    UnknownOutcome {
        /// The (first) stream.
        stream: StreamId,
        /// The ids of the events that may be there: all of them or none.
        event_ids: Vec<Uuid>,
    },
    /// Postgres cannot be reached, or it is shutting down, starting up or out of a resource. Nothing was written.
    ///
    /// Caller: try again later.
    #[error("Postgres is not available: {what}")]
    Unavailable {
        /// What was tried.
        what: &'static str,
        /// The driver's error.
        #[source]
        source: sqlx::Error,
    },
    /// A stored event cannot be read by this build.
    #[error(transparent)]
    Undecodable(#[from] Box<Undecodable>),
    /// The store is not in a state this build can work with: what, and what to do, are in the text.
    #[error("{0}")]
    Unfit(String),
    /// Postgres refused a statement for a reason that repeating it does not cure.
    #[error("Postgres refused: {what}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// The driver's error.
        #[source]
        source: sqlx::Error,
    },
    /// The store has been shut down in this process.
    #[error("the store has been shut down")]
    Closed,
}

impl StoreError {
    /// Sorts a driver's error, met while doing `what`, by what the caller can do about it.
    pub(crate) fn on(what: &'static str) -> impl Fn(sqlx::Error) -> Self {
        move |source| match &source {
            sqlx::Error::PoolClosed => Self::Closed,
            sqlx::Error::Database(error) if !is_passing(error.code().as_deref()) => Self::Refused { what, source },
            sqlx::Error::Database(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::WorkerCrashed => Self::Unavailable { what, source },
            _ => Self::Refused { what, source },
        }
    }

    /// Whether the same call may succeed later; after a conflict, with a version that was read again.
    ///
    /// [`StoreError::UnknownOutcome`] is not retryable as such: the events may be there. A command with a command id is.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Conflict { .. } | Self::Overloaded { .. } | Self::Timeout { .. } | Self::Unavailable { .. }
        )
    }
}

/// Whether a SQLSTATE names a state of the server that passes: connection, resources, operator, read-only, locks.
fn is_passing(code: Option<&str>) -> bool {
    let code = code.unwrap_or_default();
    matches!(code, "25006" | "40001" | "40P01" | "55P03")
        || ["08", "53", "57"].iter().any(|class| code.starts_with(class))
}

/// Why a command had no effect.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError<R: std::error::Error + 'static> {
    /// The aggregate refused, on state that was proved current. Nothing was written.
    ///
    /// Caller: tell whoever sent the command.
    #[error(transparent)]
    Rejected(R),
    /// The store refused.
    #[error(transparent)]
    Store(StoreError),
}

impl<R: std::error::Error + 'static> ExecuteError<R> {
    /// Whether the same command may succeed later. A rejection is final until the aggregate changes.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_retryable())
    }
}

impl<R: std::error::Error + 'static, E: Into<StoreError>> From<E> for ExecuteError<R> {
    fn from(error: E) -> Self {
        Self::Store(error.into())
    }
}
