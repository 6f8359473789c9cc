//! What control over followers speaks of: who does something, how far a partition is, what is parked, what was done.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{Position, StreamId, Version};

/// Who does something to a follower, and why. Both are recorded with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct By {
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
}

impl By {
    /// `actor`, for `reason`.
    pub fn new(actor: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { actor: actor.into(), reason: reason.into() }
    }
}

/// One partition of one generation of a follower: a row of the view `lag`, which is open to any SQL.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PartitionLag {
    /// The follower's name.
    pub follower: String,
    /// What it is: `view`, `projector`, `saga` or `reactor`.
    pub kind: String,
    /// The version of its code.
    pub version: i32,
    /// `live`; `rebuild` while it is built beside the live one; `verify` while it is built to compare.
    pub purpose: String,
    /// Which model of the follower this is.
    pub generation: i64,
    /// 1 to `partitions`.
    pub partition: i32,
    /// How many there are.
    pub partitions: i32,
    /// `running`, `retrying`, `paused`, `halted`, or `unowned` if no process has it.
    pub state: String,
    /// Why it is paused or halted, or the last failure.
    pub reason: Option<String>,
    /// Every event up to here has taken effect, is parked, or is none of its business.
    pub position: Position,
    /// Positions that the end of the log is ahead.
    pub behind: i64,
    /// The age of the next event of the log, in seconds; 0 if there is none.
    pub seconds_behind: f64,
    /// Positions a second, of late.
    pub rate: Option<f64>,
    /// `behind` at that rate.
    pub seconds_to_catch_up: Option<f64>,
    /// (event, key) pairs in its scope so far; each is applied, parked or discarded.
    pub pairs: i64,
    /// See `pairs`.
    pub applied: i64,
    /// See `pairs`.
    pub parked: i64,
    /// See `pairs`.
    pub discarded: i64,
    /// The name of the process that runs it, and its machine's process id.
    pub owner: Option<(String, i32)>,
}

/// An event that a follower could not apply, or one that waits behind such an event of its key.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The follower's name.
    pub follower: String,
    /// The event's position.
    pub position: Position,
    /// The key that it is parked for.
    pub key: String,
    /// Whether the key is the stream because the model's own keys could not be learned.
    pub by_stream: bool,
    /// `failed`, `queued` behind one that failed, or `discarded`.
    pub state: String,
    /// How often it was tried.
    pub attempts: i32,
    /// The same for failures of one cause.
    pub fingerprint: Option<String>,
    /// The last failure.
    pub error: Option<String>,
    /// Since when it is parked.
    pub parked_at: DateTime<Utc>,
    /// When it failed last.
    pub failed_at: Option<DateTime<Utc>>,
    /// When it is tried again; none if only somebody's asking does that.
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// Who discarded it, when, and why.
    pub discarded: Option<(String, DateTime<Utc>, String)>,
    /// The event's stream and version.
    pub stream: StreamId,
    /// See `stream`.
    pub version: Version,
    /// The event's type.
    pub event_type: String,
    /// The event's id.
    pub event_id: Uuid,
    /// The event's payload, byte for byte.
    pub payload: String,
}

/// Failures that look alike.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DeadLetterGroup {
    /// The follower's name.
    pub follower: String,
    /// What they share.
    pub fingerprint: String,
    /// One of their errors.
    pub error: String,
    /// How many events failed.
    pub failed: i64,
    /// How many events wait behind them.
    pub waiting: i64,
    /// Since when the oldest is parked.
    pub oldest: DateTime<Utc>,
    /// When the next of them is tried again.
    pub next_attempt_at: Option<DateTime<Utc>>,
}

/// Which dead letters of a follower.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DeadLetters {
    /// All of them.
    #[default]
    All,
    /// Those of a key.
    Key(String),
    /// Those whose failures look alike.
    Fingerprint(String),
    /// One event, for every key that it is parked for.
    Event(Position),
}

impl DeadLetters {
    pub(super) fn parts(&self) -> (Option<&str>, Option<&str>, Option<i64>) {
        match self {
            Self::All => (None, None, None),
            Self::Key(key) => (Some(key), None, None),
            Self::Fingerprint(fingerprint) => (None, Some(fingerprint), None),
            Self::Event(position) => (None, None, Some(position.get())),
        }
    }
}

/// Something that was done to a follower.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct FollowerAction {
    /// The follower's name.
    pub follower: String,
    /// What: `pause`, `resume`, `rebuild`, `cancel rebuild`, `swap`, `retry`, `discard`, `halt`, `rename`, `forget`.
    pub action: String,
    /// Who did it; `annals` for the framework itself.
    pub actor: String,
    /// Why.
    pub reason: Option<String>,
    /// More of it, as JSON.
    pub details: Option<String>,
    /// When.
    pub acted_at: DateTime<Utc>,
}
