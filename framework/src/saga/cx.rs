//! What a step is run with, and what may become of it.

use std::{collections::BTreeMap, error::Error, fmt, ops::Deref, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

use super::{Saga, event::FailureKind, state::State};
use crate::{Aggregate, App, ExecuteError, Id, Options, Receipt, StoreError, StreamId};

/// Why a step, or its undo, did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StepError {
    pub(crate) kind: FailureKind,
    pub(crate) message: String,
    pub(crate) retry_after: Option<Duration>,
    /// Whether this is the answer to a question.
    pub(crate) refused: bool,
    /// Whether no other attempt of this build gets any further.
    pub(crate) is_final: bool,
}

/// What became of a step, as far as whoever was asked knows ([`Steps::ask`](crate::Steps::ask)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<T> {
    /// It happened, and came to this.
    Happened(T),
    /// It is not there, and may still come: a call may be on its way. It is repeated under the same key; or asked again, while the saga
    /// undoes. This is what a plain search says that finds nothing.
    NotSeen,
    /// It did not happen and never will: from now on the key is refused. If the step is tried again, it is under another key.
    Never,
}

/// How much of a failure is recorded, in characters.
const LONGEST: usize = 2_000;

impl StepError {
    fn new(kind: FailureKind, message: impl fmt::Display) -> Self {
        // It is recorded: whatever a stranger sent, it fits, and can be stored.
        let message = message.to_string();
        let message =
            message.chars().take(LONGEST).map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect();
        Self { kind, message, retry_after: None, refused: false, is_final: false }
    }

    /// The answer is no, and stays no. Nothing has happened, and the saga undoes what it has done.
    pub fn business(message: impl fmt::Display) -> Self {
        Self::new(FailureKind::Business, message)
    }

    /// For [`Steps::ask`](crate::Steps::ask): whoever was asked knows that the step was refused, for good. Elsewhere the same as
    /// [`business`](StepError::business).
    pub fn refused(message: impl fmt::Display) -> Self {
        Self { refused: true, ..Self::new(FailureKind::Business, message) }
    }

    /// Nothing has happened this time. It is tried again.
    pub fn transient(message: impl fmt::Display) -> Self {
        Self::new(FailureKind::Transient, message)
    }

    /// It may have happened: no answer came, or none that can be read. It is found out before anything else.
    pub fn unknown(message: impl fmt::Display) -> Self {
        Self::new(FailureKind::Unknown, message)
    }

    /// The same, not to be tried again before `wait` has passed (HTTP's `Retry-After`).
    #[must_use]
    pub fn retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    pub(super) fn unreadable(what: &str, error: impl fmt::Display) -> Self {
        Self { is_final: true, ..Self::unknown(format!("{what} cannot be read by this build: {error}")) }
    }
}

impl<R: Error> From<ExecuteError<R>> for StepError {
    fn from(error: ExecuteError<R>) -> Self {
        match error {
            ExecuteError::Rejected(rejection) => Self::business(rejection),
            ExecuteError::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for StepError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::UnknownOutcome { .. } => Self::unknown(error),
            // Another command has taken effect under this id: an attempt before this one sent another.
            StoreError::CommandReused { .. } => Self { is_final: true, ..Self::unknown(error) },
            StoreError::Invalid(_) => Self::business(error),
            _ => Self::transient(error),
        }
    }
}

/// What an instance was started with, and what its steps came to.
pub struct Facts<S: Saga> {
    /// What it was started with.
    pub input: Arc<S::Input>,
    outputs: Arc<BTreeMap<String, Value>>,
}

impl<S: Saga> Facts<S> {
    pub(crate) fn of(state: &State) -> Result<Self, String> {
        let input = <S::Input as serde::Deserialize>::deserialize(&state.input)
            .map_err(|error| format!("what {} was started with cannot be read by this build: {error}", S::NAME))?;
        let outputs = state.steps.iter().filter_map(|step| Some((step.name.clone(), step.output.clone()?)));
        Ok(Self { input: Arc::new(input), outputs: Arc::new(outputs.collect()) })
    }

    /// What the step `step` came to.
    ///
    /// # Errors
    /// If it is not done, was skipped, has another name, or cannot be read as `T`. Where a step or an undo passes that error on, the
    /// instance is stuck at once, and nothing is undone for it: it goes on with a build that can read it.
    pub fn output<T: DeserializeOwned>(&self, step: &str) -> Result<T, StepError> {
        let what = format!("the output of step {step}");
        let Some(output) = self.outputs.get(step) else {
            return Err(StepError::unreadable(&what, "there is none: the step is not done, or has another name"));
        };
        T::deserialize(output).map_err(|error| StepError::unreadable(&what, error))
    }

    /// The same; none if it is not done, or was skipped.
    ///
    /// # Errors
    /// If it cannot be read as `T`.
    pub fn output_if_done<T: DeserializeOwned>(&self, step: &str) -> Result<Option<T>, StepError> {
        if self.outputs.contains_key(step) { self.output(step).map(Some) } else { Ok(None) }
    }
}

impl<S: Saga> Clone for Facts<S> {
    fn clone(&self) -> Self {
        Self { input: self.input.clone(), outputs: self.outputs.clone() }
    }
}

/// What a step, or its undo, is run with.
pub struct Cx<S: Saga> {
    /// The saga as it was registered: clients of the outside world, above all.
    pub saga: Arc<S>,
    /// The instance.
    pub id: Id,
    /// The key of this step of this instance, the same for all its attempts, until whoever was [asked](crate::Steps::ask), or an
    /// operator ([`Sagas::not_done`](crate::Sagas::not_done)), has said that nothing ever will happen under it; its undo has another. For the outside world's `Idempotency-Key`.
    pub key: Uuid,
    /// What the ids of commands come from: that never changes.
    pub(crate) command_key: Uuid,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// The time, by the database's clock.
    pub now: DateTime<Utc>,
    /// Why the instance undoes what it has done; none while it does not.
    pub reason: Option<String>,
    pub(crate) facts: Facts<S>,
    pub(crate) app: App,
    /// Correlation and cause, for what it leads to.
    pub(crate) options: Options,
}

impl<S: Saga> Deref for Cx<S> {
    type Target = Facts<S>;

    fn deref(&self) -> &Facts<S> {
        &self.facts
    }
}

impl<S: Saga> Cx<S> {
    /// The app that the saga runs in.
    pub fn app(&self) -> &App {
        &self.app
    }

    /// Lets the aggregate `id` handle `command`, once, however often the step is repeated: the command's id comes from the
    /// step and the stream. So a step has one command for each aggregate, and that is the same in each attempt: it depends on the input
    /// and on outputs, not on the time, and not on the build.
    ///
    /// # Errors
    /// A rejection is [`business`](StepError::business): nothing has happened. Where it is the second command of a step that
    /// is rejected, something has: give each a step of its own, so that the first is undone.
    pub async fn execute<A: Aggregate>(&self, id: impl Into<Id>, command: A::Command) -> Result<Receipt, StepError> {
        let stream = StreamId::of(A::TYPE, id).map_err(StepError::business)?;
        let command_id = Uuid::new_v5(&self.command_key, stream.as_str().as_bytes());
        let options = self.options.clone().command_id(command_id);
        Ok(self.app.execute_with::<A>(stream.id(), command, options).await?)
    }
}
