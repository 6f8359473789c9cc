//! A dead letter as it is shown to programs and compared with what became of it.

use annals::{DeadLetter, DeadLetters, Followers, Position, StoreError};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;

/// How many dead letters are looked at, at once.
pub(crate) const MOST: usize = 10_000;

/// An event that is parked or was discarded.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Letter {
    pub(crate) name: String,
    pub(crate) position: Position,
    pub(crate) key: String,
    pub(crate) by_stream: bool,
    pub(crate) state: String,
    pub(crate) attempts: i32,
    pub(crate) fingerprint: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) parked_at: DateTime<Utc>,
    pub(crate) age_seconds: i64,
    pub(crate) failed_at: Option<DateTime<Utc>>,
    pub(crate) next_attempt_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) discarded: Option<Discarded>,
    pub(crate) stream: String,
    pub(crate) version: i64,
    pub(crate) event_type: String,
    pub(crate) event_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) payload: Option<Box<RawValue>>,
}

/// Who discarded an event, when, and why.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Discarded {
    pub(crate) by: String,
    pub(crate) at: DateTime<Utc>,
    pub(crate) reason: String,
}

impl Letter {
    /// Everything but the payload.
    pub(crate) fn of(letter: &DeadLetter) -> Self {
        Self {
            name: letter.follower.clone(),
            position: letter.position,
            key: letter.key.clone(),
            by_stream: letter.by_stream,
            state: letter.state.clone(),
            attempts: letter.attempts,
            fingerprint: letter.fingerprint.clone(),
            error: letter.error.clone(),
            parked_at: letter.parked_at,
            age_seconds: (Utc::now() - letter.parked_at).num_seconds().max(0),
            failed_at: letter.failed_at,
            next_attempt_at: letter.next_attempt_at,
            discarded: letter.discarded.clone().map(|(by, at, reason)| Discarded { by, at, reason }),
            stream: letter.stream.to_string(),
            version: letter.version.get(),
            event_type: letter.event_type.clone(),
            event_id: letter.event_id.to_string(),
            payload: None,
        }
    }

    /// With the payload. A line end in JSON only ever stands between its words.
    pub(crate) fn whole(letter: &DeadLetter) -> Self {
        let payload = RawValue::from_string(letter.payload.replace(['\n', '\r'], " ")).ok();
        Self { payload, ..Self::of(letter) }
    }

    /// Whether `other` waits in the same queue.
    pub(crate) fn has_key_of(&self, other: &Self) -> bool {
        (&self.key, self.by_stream) == (&other.key, other.by_stream)
    }
}

/// What is parked for `name`, the events of a key in their order.
///
/// # Errors
/// Postgres cannot be asked.
pub(crate) async fn parked(
    followers: &Followers,
    name: &str,
    letters: &DeadLetters,
) -> Result<Vec<Letter>, StoreError> {
    let letters = followers.dead_letters(Some(name), letters, MOST).await?;
    Ok(letters.iter().map(Letter::of).collect())
}
