//! Why a batch failed, and how that is told.

use std::{any::Any, time::Duration};

use sha2::{Digest, Sha256};
use sqlx::postgres::PgDatabaseError;

use super::batch::Poison;
use crate::{
    BoxError, Position,
    error::{StoreError, Undecodable},
};

/// Characters of an error that are kept for whoever looks.
const SHOWN: usize = 2_000;

/// Why a batch failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FollowError {
    #[error(transparent)]
    Undecodable(#[from] Box<Undecodable>),
    #[error("{0}")]
    Handler(#[source] BoxError),
    #[error("the handler panicked: {0}")]
    Panicked(String),
    #[error("the handler did not end within {0:?}")]
    Hung(Duration),
    #[error(transparent)]
    Store(StoreError),
    /// The event at which it failed is known, and this follower halts there.
    #[error("{source}")]
    At { position: Position, source: Box<FollowError> },
    #[error("{0}")]
    Known(String),
    /// It cannot be done at present, which is not the event's fault.
    #[error("{0}")]
    Waiting(String),
    /// There was no time left to begin it.
    #[error("its turn to begin did not come in half of the deadline")]
    Unfinished,
    #[error("{0}")]
    Halt(String),
}

/// What is told of a failure.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) text: String,
    /// The same for failures of one cause: the text without numbers and quoted values, hashed.
    pub(crate) fingerprint: String,
}

impl FollowError {
    /// Whether it is the database that failed, or whoever is called, and not an event.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Store(error) => matches!(error, StoreError::Unavailable { .. } | StoreError::Timeout { .. }),
            Self::Waiting(_) => true,
            Self::Handler(error) => is_connection_lost(&**error),
            Self::At { source, .. } => source.is_passing(),
            _ => false,
        }
    }

    /// Whether it is the model that is broken, for every event alike: its tables are gone, or out of reach.
    fn is_models(&self) -> bool {
        let error: &(dyn std::error::Error + 'static) = match self {
            Self::Handler(error) => &**error,
            Self::Store(error) => error,
            _ => return false,
        };
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(sqlx::Error::Database(refusal)) = error.downcast_ref() {
                return matches!(refusal.code().as_deref(), Some("42P01" | "3F000" | "42501"));
            }
            next = error.source();
        }
        false
    }

    /// The error with all its causes, in one line.
    pub(crate) fn text(&self) -> String {
        let error: &(dyn std::error::Error + 'static) = match self {
            Self::Store(error) => error,
            error => error,
        };
        let mut text = words(error);
        let mut source = cause(error);
        while let Some(error) = source {
            let cause_text = words(error);
            if !text.contains(&cause_text) {
                text = format!("{text}: {cause_text}");
            }
            source = cause(error);
        }
        if let Some((end, _)) = text.char_indices().nth(SHOWN) {
            text.truncate(end);
            text.push('…');
        }
        text.replace('\0', "\\0")
    }

    pub(super) fn told(&self) -> Told {
        let text = self.text();
        Told { fingerprint: fingerprint(&text), text }
    }
}

/// Whether the driver's error that a handler passed on is about the connection.
fn is_connection_lost(error: &(dyn std::error::Error + 'static)) -> bool {
    match error.downcast_ref::<sqlx::Error>() {
        Some(sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed) => true,
        Some(sqlx::Error::Database(error)) => {
            let code = error.code();
            let code = code.as_deref().unwrap_or_default();
            code.starts_with("08")
                || code.starts_with("53")
                || matches!(code, "57P01" | "57P02" | "57P03" | "57014" | "40001" | "40P01" | "55P03" | "25006")
        }
        Some(_) => false,
        None => error.source().is_some_and(is_connection_lost),
    }
}

/// A failed step.
pub(super) enum Failure {
    /// The database failed, or who is called is away, and no event failed: it passes.
    Passing(String),
    /// The model is broken: to go on with the next event would break on that, too.
    Model(String),
    /// A batch of events failed; at which of them, if that is known.
    Events { count: usize, first: Option<Position>, at: Option<Position>, told: Told },
    /// A handler did not end: it is known where it is.
    Hung(Poison),
    /// Not all of so many events could be begun in time: they are given again, fewer at once.
    Unfinished(usize),
    /// It must not go on.
    Halt(String),
}

impl Failure {
    /// Of a batch of `count` events that begins at `first`.
    pub(super) fn of(error: FollowError, count: usize, first: Option<Position>) -> Self {
        match error {
            error if error.is_passing() => Self::Passing(error.text()),
            error if error.is_models() => Self::Model(error.text()),
            FollowError::Halt(text) => Self::Halt(text),
            FollowError::Unfinished if count > 1 => Self::Unfinished(count),
            error @ FollowError::Unfinished => Self::Passing(error.text()),
            FollowError::At { position, source } => {
                Self::Events { count, first, at: Some(position), told: source.told() }
            }
            error => Self::Events { count, first, at: None, told: error.told() },
        }
    }

    pub(super) fn text(&self) -> &str {
        match self {
            Self::Passing(text) | Self::Model(text) | Self::Halt(text) => text,
            Self::Events { told, .. } | Self::Hung(Poison { told, .. }) => &told.text,
            Self::Unfinished(_) => "there was not time for all of a batch",
        }
    }

    /// The event that fails, if it is known.
    pub(super) fn position(&self) -> Option<Position> {
        match self {
            Self::Events { at: Some(at), .. } => Some(*at),
            Self::Events { count: 1, first, .. } => *first,
            Self::Hung(poison) => Some(poison.position),
            _ => None,
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Passing(FollowError::Store(error).text())
    }
}

/// What failures of one cause share: numbers and what stands in quotes differ from event to event.
fn fingerprint(text: &str) -> String {
    let mut bare = String::with_capacity(text.len());
    let mut quote = None;
    for character in text.chars() {
        match quote {
            Some(end) if character == end => quote = None,
            Some(_) => {}
            None if character == '"' => quote = Some('"'),
            None if character == '(' => quote = Some(')'),
            None => bare.push(character),
        }
    }
    let is_word = |character: char| character.is_alphanumeric() || matches!(character, '-' | '_');
    let words = bare.split_inclusive(|character| !is_word(character));
    // A word with a digit is a number, a position or an id.
    let same: String = words.filter(|word| !word.contains(|character: char| character.is_ascii_digit())).collect();
    Sha256::digest(same).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Behind what Postgres said, the driver says it again: that is no cause.
fn cause<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e (dyn std::error::Error + 'static)> {
    error.source().filter(|_| !matches!(error.downcast_ref(), Some(sqlx::Error::Database(_))))
}

/// What an error says. Postgres' own words come with what they are about, and without the line of its source code.
fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let Some(sqlx::Error::Database(refusal)) = error.downcast_ref() else { return error.to_string() };
    let detail = refusal.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::detail);
    format!("{}{}", refusal.message(), detail.map(|detail| format!(" ({detail})")).unwrap_or_default())
}

/// What a panic said.
pub(crate) fn message(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast::<&str>().map_or_else(|_| "no message".into(), |text| (*text).into()),
    }
}
