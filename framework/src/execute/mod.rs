//! From a command to its events: load, decide, append, and decide again when another writer was faster.
//!
//! Recent aggregates stay in memory. What is cached may be old, and an aggregate that is not cached counts as new; both
//! cost nothing but a refused append and a reload, for the append proves its version in the database. A rejection and an
//! empty decision have no append to prove them, so they are only returned from state that was read in this command.

mod both;
mod repository;
mod state;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use chrono::Utc;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

pub use self::both::Either;
pub(crate) use self::{
    both::execute_both,
    repository::{Along, Repository},
};
use crate::{
    Context, InvalidInput, Metadata, PayloadLimits, Recorded, StreamId,
    event::encode::to_json,
    store::{Annals, CommandRecord},
};

/// What may come with a command. The default is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The caller's id for the command. The same id with the same command takes effect once, whenever it is repeated.
    pub command_id: Option<Uuid>,
    /// Who sends it.
    pub actor: Option<String>,
    /// Joins everything that one request leads to. A new one begins if it is not given.
    pub correlation_id: Option<Uuid>,
    /// The event that led to the command.
    pub causation_id: Option<Uuid>,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// How long the command may take; [`Config::command_deadline`](crate::Config::command_deadline) if not given.
    pub deadline: Option<Duration>,
}

impl Options {
    /// A command that `event` leads to: it inherits correlation and trace, and the event is its cause.
    pub fn caused_by<E>(event: &Recorded<E>) -> Self {
        Self {
            correlation_id: event.metadata.correlation_id,
            causation_id: Some(event.event_id),
            traceparent: event.metadata.traceparent.clone(),
            actor: event.metadata.actor.clone(),
            ..Self::default()
        }
    }

    /// The same, with a command id.
    #[must_use]
    pub fn command_id(self, command_id: Uuid) -> Self {
        Self { command_id: Some(command_id), ..self }
    }

    /// The same, with an actor.
    #[must_use]
    pub fn actor(self, actor: impl Into<String>) -> Self {
        Self { actor: Some(actor.into()), ..self }
    }

    /// What the aggregate sees, and what is stored beside its events. One correlation for both.
    fn settle(self) -> (Context, Metadata) {
        let correlation_id = self.correlation_id.unwrap_or_else(Uuid::now_v7);
        let context = Context {
            now: Utc::now(),
            command_id: self.command_id,
            correlation_id,
            causation_id: self.causation_id,
            actor: self.actor.clone(),
        };
        let metadata = Metadata {
            correlation_id: Some(correlation_id),
            causation_id: self.causation_id,
            command_id: self.command_id,
            actor: self.actor,
            traceparent: self.traceparent,
        };
        (context, metadata)
    }
}

/// What became of the commands of one aggregate type, in this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandCounts {
    /// [`Aggregate::TYPE`](crate::Aggregate::TYPE).
    pub aggregate: &'static str,
    /// Commands that added events.
    pub accepted: u64,
    /// Commands that were accepted and added none.
    pub empty: u64,
    /// Commands that the aggregate refused.
    pub rejected: u64,
    /// Commands whose id had taken effect before.
    pub repeated: u64,
    /// Decisions that another writer overtook; each was decided again.
    pub conflicts: u64,
    /// Commands that the store refused.
    pub failed: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    accepted: AtomicU64,
    empty: AtomicU64,
    rejected: AtomicU64,
    repeated: AtomicU64,
    conflicts: AtomicU64,
    failed: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self, aggregate: &'static str) -> CommandCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CommandCounts {
            aggregate,
            accepted: get(&self.accepted),
            empty: get(&self.empty),
            rejected: get(&self.rejected),
            repeated: get(&self.repeated),
            conflicts: get(&self.conflicts),
            failed: get(&self.failed),
        }
    }
}

/// What a command that was accepted came to.
enum Answer<T> {
    /// It added events.
    Events(T),
    /// It added none.
    Empty(T),
    /// Its id had taken effect before, and this is the answer of then.
    Repeated(T),
}

impl<T> Answer<T> {
    fn into_inner(self) -> T {
        match self {
            Self::Events(receipt) | Self::Empty(receipt) | Self::Repeated(receipt) => receipt,
        }
    }
}

/// A command of any type, as it is told from another.
trait Body: Sync {
    fn json(&self, limits: &PayloadLimits) -> Result<String, InvalidInput>;
}

impl<C: Serialize + Sync> Body for C {
    fn json(&self, limits: &PayloadLimits) -> Result<String, InvalidInput> {
        let text = to_json("the command", self, limits)?;
        let value =
            serde_json::from_str(&text).map_err(|error| InvalidInput::Other(format!("the command: {error}")))?;
        let mut sorted = String::with_capacity(text.len());
        write_sorted(&value, &mut sorted);
        Ok(sorted)
    }
}

/// JSON with the keys of every object in order: a map that is built anew keeps its digest.
fn write_sorted(value: &Value, out: &mut String) {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(key, _)| *key);
            out.push('{');
            for (nth, (key, value)) in fields.into_iter().enumerate() {
                *out += if nth > 0 { "," } else { "" };
                *out += &Value::from(key.as_str()).to_string();
                out.push(':');
                write_sorted(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (nth, item) in items.iter().enumerate() {
                *out += if nth > 0 { "," } else { "" };
                write_sorted(item, out);
            }
            out.push(']');
        }
        leaf => *out += &leaf.to_string(),
    }
}

/// The form of the digests that are stored.
const DIGEST: u8 = 1;

/// What a command id stands for: the stream and the whole command, so that a repeat is told from a reuse.
///
/// Stored with the id for ever: one byte for the form, then SHA-256 over the length and bytes of each stream's name and
/// of each command as JSON with sorted keys. A `HashSet` in a command has no order that could be sorted: use a `BTreeSet`.
fn record(
    metadata: &Metadata,
    store: &Annals,
    commands: &[(&StreamId, &dyn Body)],
) -> Result<Option<CommandRecord>, InvalidInput> {
    let Some(command_id) = metadata.command_id else { return Ok(None) };
    let mut digest = Sha256::new();
    for (stream, command) in commands {
        for part in [stream.as_str(), &command.json(&store.config().limits.payload)?] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
    }
    let mut body = vec![DIGEST];
    body.extend_from_slice(&digest.finalize());
    Ok(Some(CommandRecord { command_id, body: Some(body) }))
}
