//! Why a batch failed, and how that is told.

use std::{any::Any, time::Duration};

use sqlx::postgres::PgDatabaseError;

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
}

impl FollowError {
    /// Whether it is the database that failed, and not an event.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Store(error) => matches!(error, StoreError::Unavailable { .. } | StoreError::Timeout { .. }),
            Self::Handler(error) => is_connection_lost(&**error),
            _ => false,
        }
    }
}

/// Whether the driver's error that a handler passed on is about the connection.
fn is_connection_lost(error: &(dyn std::error::Error + 'static)) -> bool {
    match error.downcast_ref::<sqlx::Error>() {
        Some(sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed) => true,
        Some(sqlx::Error::Database(error)) => {
            let code = error.code();
            let code = code.as_deref().unwrap_or_default();
            code.starts_with("08") || matches!(code, "57P01" | "57P02" | "57P03" | "40001" | "40P01")
        }
        Some(_) => false,
        None => error.source().is_some_and(is_connection_lost),
    }
}

/// A failed step: of how many events, and at which, if that is known.
pub(super) struct Failure {
    /// None if the failure is no event's.
    pub(super) events: usize,
    pub(super) position: Option<Position>,
    pub(super) error: BoxError,
}

impl Failure {
    /// Of a batch of `events` events that begins at `first`.
    pub(super) fn of(error: FollowError, events: usize, first: Option<Position>) -> Self {
        if error.is_passing() {
            return Self { events: 0, position: None, error: error.into() };
        }
        Self { events, position: first.filter(|_| events == 1), error: error.into() }
    }

    /// The error with all its causes, in one line.
    pub(super) fn text(&self) -> String {
        let error: &(dyn std::error::Error + 'static) = &*self.error;
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

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self { events: 0, position: None, error: error.into() }
    }
}

/// What a panic said.
pub(super) fn message(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast::<&str>().map_or_else(|_| "no message".into(), |text| (*text).into()),
    }
}
