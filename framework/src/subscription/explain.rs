//! Explain: what every follower knows of one event. The answer to "it never arrived".

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{Row, postgres::PgRow};

use super::{control::Followers, partition::partition_of};
use crate::{
    Payload, Position, Recorded,
    error::StoreError,
    store::{Annals, ReadLog},
};

/// What became of an event in one follower.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum Fate {
    /// It has taken effect, as far as it has keys there.
    Applied,
    /// It is parked for these keys.
    Parked,
    /// Somebody discarded it.
    Discarded,
    /// The follower does not read its category, or skips its type: the text says which.
    OutOfScope(String),
    /// The follower has not come that far.
    NotYet,
}

/// What one follower knows of an event.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Explained {
    /// The follower's name.
    pub follower: String,
    /// What became of the event.
    pub fate: Fate,
    /// The partition of its stream, of how many. A view has keys of its own, which may be in others.
    pub partition: (i32, i32),
    /// Where that partition stands, or the least of all for a view of several.
    pub position: Position,
    /// The process that runs it.
    pub owner: Option<String>,
    /// When the follower moved last.
    pub moved_at: DateTime<Utc>,
    /// The dead letters about the event.
    pub letters: Vec<ExplainedLetter>,
}

/// A dead letter about an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExplainedLetter {
    /// Its partition.
    pub partition: i32,
    /// The key that it is parked for.
    pub key: String,
    /// `failed`, `queued` or `discarded`.
    pub state: String,
    /// The last failure.
    pub error: Option<String>,
    /// How often it was tried.
    pub attempts: i32,
    /// Since when.
    pub parked_at: DateTime<Utc>,
    /// Why it was discarded.
    pub reason: Option<String>,
}

impl Followers {
    /// What every follower of the store knows of the event at `position`. For an event id, find its position with
    /// [`Annals::find_events`](crate::Annals::find_events) first.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] if there is no event at `position`; as every method here otherwise.
    pub async fn explain(&self, position: Position) -> Result<Vec<Explained>, StoreError> {
        let event = event_at(&self.store, position).await?;
        let sql = &self.store.inner.sql.explain;
        let rows = self.read("explain an event", || sql.query().bind(position.get())).await?;
        rows.iter().map(|row| explained(row, &event)).collect()
    }
}

async fn event_at(store: &Annals, position: Position) -> Result<Recorded<Payload>, StoreError> {
    let read = ReadLog {
        after: Position::new(position.get().saturating_sub(1).max(0)),
        up_to: Some(position),
        ..ReadLog::default()
    };
    let found = store.read_log_page(read, 1).await?.events;
    let found = found.into_iter().find(|event| event.position == position);
    found.ok_or_else(|| {
        StoreError::Unfit(format!(
            "there is no event at position {position}: it may be a gap, which an append that was refused or rolled back leaves, \
             or belong to a transaction that is still open"
        ))
    })
}

fn explained(row: &PgRow, event: &Recorded<Payload>) -> Result<Explained, StoreError> {
    let (categories, skips): (Vec<String>, Vec<String>) = (row.get(4), row.get(5));
    let (partitions, positions): (i32, Vec<i64>) = (row.get(3), row.get(6));
    let owners: Vec<Option<String>> = row.get(7);
    let text: Option<&str> = row.get_unchecked(9);
    let letters: Vec<ExplainedLetter> = text
        .map(serde_json::from_str)
        .transpose()
        .map_err(|error| StoreError::Unfit(format!("the dead letters of the event cannot be read: {error}")))?
        .unwrap_or_default();
    let partition = partition_of(event.stream.as_str(), partitions);
    let own = usize::try_from(partition - 1).unwrap_or_default();
    // A view's keys may be in any partition.
    let least = positions.iter().copied().min().unwrap_or_default();
    let category = event.stream.category();
    let fate = if !categories.iter().any(|wanted| wanted == category) {
        Fate::OutOfScope(format!("it reads the categories {}, not {category}", categories.join(", ")))
    } else if skips.iter().any(|skipped| **skipped == *event.event_type) {
        Fate::OutOfScope(format!("it skips the type {}", event.event_type))
    } else if letters.iter().any(|letter| letter.state != "discarded") {
        Fate::Parked
    } else if !letters.is_empty() {
        Fate::Discarded
    } else if least < event.position.get() {
        Fate::NotYet
    } else {
        Fate::Applied
    };
    Ok(Explained {
        follower: row.get(0),
        fate,
        partition: (partition, partitions),
        position: Position::new(least),
        owner: owners.into_iter().nth(own).flatten(),
        moved_at: row.get(8),
        letters,
    })
}
