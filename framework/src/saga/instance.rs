//! An instance of a saga: read from its stream, told what happens, and run by one process at a time.

mod run;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt, future::BoxFuture, pin_mut, stream::FuturesUnordered};
use serde_json::Value;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::{
    FailureKind, Found, SagaEvent, StepError,
    definition::{Call, Definition, NotCommitted},
    engine::{Effect, Failure, Input, What, decide, effects, is_in_doubt, wakes_at},
    plan::{Kind, Plan},
    runtime::Runtime,
    state::{Phase, State, later},
};
use crate::{
    Append, ExpectedVersion, Id, Metadata, NewEvent, Options, ReadStream, StoreError, StreamId, Version,
    execute::Along,
    store::{Appended, SagaRow, Work},
    subscription::{guarded, message},
};

/// Who changes an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    /// The process that runs it, with this many attempts under way.
    Owner { under_way: usize },
    /// Anybody: whoever runs it finds out.
    Other,
}

/// What goes with a change, beside what the instance inherits.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cause {
    pub(crate) actor: Option<String>,
    /// The event that led to it, with its correlation, for an instance that has none.
    pub(crate) event: Option<(Uuid, Option<Uuid>, Option<String>)>,
}

/// An instance as its stream has it.
pub(crate) struct Instance {
    runtime: Arc<Runtime>,
    pub(crate) definition: Arc<dyn Definition>,
    pub(crate) stream: StreamId,
    pub(crate) state: State,
    pub(crate) version: Version,
    correlation_id: Option<Uuid>,
    traceparent: Option<String>,
    /// What of its stream this build cannot read.
    broken: Option<String>,
    /// Whether its row says that this process runs it.
    held: bool,
    /// Whether somebody else may have taken it.
    doubted: bool,
    /// Until when its time is not over, although it seems so: what ends its wait may be in the log, and not read yet.
    unread_until: Option<DateTime<Utc>>,
    /// What is not done at present, because nobody calls there; and until when.
    postponed: HashMap<(&'static str, What), (&'static str, DateTime<Utc>)>,
}

/// How long it waits before it tries a store again that does not answer.
const PAUSE: Duration = Duration::from_millis(200);

impl Instance {
    /// One that is new, as far as is known.
    pub(crate) fn new(runtime: Arc<Runtime>, definition: Arc<dyn Definition>, stream: StreamId) -> Self {
        Self {
            runtime,
            definition,
            stream,
            state: State::default(),
            version: Version::NONE,
            correlation_id: None,
            traceparent: None,
            broken: None,
            held: false,
            doubted: false,
            unread_until: None,
            postponed: HashMap::new(),
        }
    }

    /// Reads what is new in its stream.
    pub(crate) async fn catch_up(&mut self) -> Result<(), StoreError> {
        let read = ReadStream { after: self.version, ..ReadStream::default() };
        let events = self.runtime.store.read_stream(&self.stream, read);
        pin_mut!(events);
        while let Some(stored) = events.try_next().await? {
            self.version = stored.version;
            self.correlation_id = self.correlation_id.or(stored.metadata.correlation_id);
            match self.runtime.contracts().decode::<SagaEvent>(&stored) {
                Ok(recorded) => {
                    if matches!(recorded.event, SagaEvent::SagaStarted { .. }) {
                        (self.state.started, self.traceparent) = (stored.event_id, stored.metadata.traceparent.clone());
                    }
                    self.state.apply(&recorded.event, recorded.recorded_at);
                }
                Err(error) => self.broken = Some(error.to_string()),
            }
        }
        if self.state.phase != Phase::Early
            && let Some(pinned) = self.runtime.definition(self.definition.name(), self.state.definition)
        {
            self.definition = pinned;
        }
        Ok(())
    }

    /// Whether this build can run it: it has the version that the instance began with.
    pub(crate) fn is_known(&self) -> bool {
        self.state.phase == Phase::Early || self.state.definition == self.definition.version()
    }

    /// Why its history cannot be relied on, if it cannot.
    pub(crate) fn unreadable(&self) -> Option<String> {
        self.broken.as_deref().map(unreadable)
    }

    fn plan(&self) -> &Plan {
        self.definition.plan()
    }

    /// Decides on `input` and appends what that leads to; on what is new if somebody else was faster. Returns whether anything was
    /// appended, or why an operator's input does not fit.
    pub(crate) async fn tell(
        &mut self,
        input: Input,
        writer: Writer,
        cause: &Cause,
    ) -> Result<Result<bool, String>, StoreError> {
        loop {
            // What it cannot read, it does not decide on.
            let settles = matches!(input, Input::Broken { .. } | Input::Resolve { .. });
            if let Some(error) = self.broken.as_ref().filter(|_| !settles) {
                return Err(StoreError::Unfit(unreadable(error)));
            }
            let now = self.runtime.now();
            let (events, state) = match decide(self.plan(), &self.state, input.clone(), now) {
                Ok(decided) => decided,
                Err(refused) => return Ok(Err(refused)),
            };
            if events.is_empty() {
                return Ok(Ok(false));
            }
            let append = self.append(&events)?;
            let ids: Vec<Uuid> = append.events.iter().map(|event| event.event_id).collect();
            let row = self.row(&state, writer, now);
            let metadata = self.metadata(cause);
            let store = &self.runtime.store;
            let held = row.owner.is_some();
            let work = Work::new(vec![append], metadata.clone(), None, &store.config().limits)?.of_saga(Some(row));
            let correlation_id = work.metadata.correlation_id;
            self.runtime.write_point()?;
            match store.inner.appender.append(work, store.config().append_deadline).await {
                Ok(Appended::Written(receipts)) => {
                    self.runtime.write_point()?;
                    self.version = receipts.first().map_or(self.version, |receipt| receipt.version);
                    self.correlation_id = self.correlation_id.or(correlation_id);
                    self.traceparent = self.traceparent.take().or(metadata.traceparent);
                    self.accept(&events, &ids, state, held);
                    return Ok(Ok(true));
                }
                Ok(Appended::Repeated) => {
                    return Err(StoreError::Unfit("an append without a command id met one".into()));
                }
                Err(StoreError::Conflict { .. }) => {
                    self.doubted = true;
                    self.catch_up().await?;
                    // It may be somebody else's by now, who tries it.
                    if matches!(input, Input::NeverTried { .. }) {
                        return Ok(Ok(false));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The same, until the store takes it; none once the app ends.
    async fn tell_surely(&mut self, input: Input, writer: Writer) -> Option<()> {
        loop {
            match self.tell(input.clone(), writer, &Cause::default()).await {
                Ok(_) => return Some(()),
                Err(StoreError::Closed) => return None,
                // What it came to cannot be stored, and never will be: that it may have happened can.
                Err(StoreError::Invalid(error)) => {
                    let message = StepError::unknown(format!("what it came to cannot be recorded: {error}"));
                    let failure: Failure = message.into();
                    let Some(plain) = plain(&input, failure) else {
                        tracing::error!(stream = %self.stream, %error, "an instance of a saga cannot be written");
                        return None;
                    };
                    return Box::pin(self.tell_surely(plain, writer)).await;
                }
                Err(StoreError::Unfit(reason)) if self.broken.is_some() => {
                    // Whoever runs it by now has been told that it was interrupted.
                    if writer == Writer::Other {
                        return Some(());
                    }
                    // What it was to be told is lost with that; not that there was something.
                    let broken = Input::Broken { step: None, reason, interrupted: true };
                    return Box::pin(self.tell_surely(broken, writer)).await;
                }
                Err(error) => {
                    tracing::warn!(stream = %self.stream, %error, "an instance of a saga cannot be written; tried again");
                    sleep(PAUSE).await;
                    // It may have been written after all; and it may be somebody else's by now, who has gone on.
                    self.doubted = true;
                    let _ = self.catch_up().await;
                    let is_past = match input {
                        Input::NeverTried { .. } | Input::Tick => true,
                        Input::Interrupted => !self.is_marked().await,
                        _ => false,
                    };
                    if is_past {
                        return Some(());
                    }
                }
            }
        }
    }

    /// Whether its row says that it was interrupted; in doubt it does. Whoever runs it and writes takes the mark away.
    async fn is_marked(&self) -> bool {
        let store = &self.runtime.store;
        let asking = store.inner.sql.read_saga.query().bind(self.stream.as_str());
        let row = store.inner.reads.optional("read whether a saga was interrupted", asking).await;
        row.map_or(true, |row| row.is_some_and(|row| sqlx::Row::get(&row, 3)))
    }

    /// What was appended has happened.
    fn accept(&mut self, events: &[SagaEvent], ids: &[Uuid], state: State, held: bool) {
        (self.state, self.held) = (state, held);
        if let Some(nth) = events.iter().position(|event| matches!(event, SagaEvent::SagaStarted { .. })) {
            self.state.started = ids[nth];
        }
        for event in events {
            let stream = &self.stream;
            match event {
                SagaEvent::SagaStuck { step, reason, .. } => {
                    tracing::error!(%stream, ?step, reason, "a saga is stuck");
                }
                SagaEvent::SagaCompensated { reason } => tracing::info!(%stream, reason, "a saga was undone"),
                SagaEvent::StepFailed { step, attempt, error, .. }
                | SagaEvent::UndoFailed { step, attempt, error, .. } => {
                    tracing::warn!(%stream, step, attempt, %error, "a step of a saga failed");
                }
                _ => {}
            }
        }
    }

    fn append(&self, events: &[SagaEvent]) -> Result<Append, StoreError> {
        let events = events.iter().map(NewEvent::of).collect::<Result<_, _>>()?;
        Ok(Append { stream: self.stream.clone(), expected: ExpectedVersion::Exact(self.version), events })
    }

    /// What leads to whatever it does: that it began. So a long saga is no long chain of causes.
    fn cause(&self) -> Option<Uuid> {
        (!self.state.started.is_nil()).then_some(self.state.started)
    }

    fn metadata(&self, cause: &Cause) -> Metadata {
        let event = cause.event.clone();
        let (causation_id, correlation_id, traceparent) =
            event.map_or((self.cause(), None, None), |(id, correlation, trace)| (Some(id), correlation, trace));
        Metadata {
            correlation_id: self.correlation_id.or(correlation_id),
            causation_id,
            command_id: None,
            actor: cause.actor.clone(),
            traceparent: self.traceparent.clone().or(traceparent),
        }
    }

    /// Its row in the index, once it is in `state`.
    fn row(&self, state: &State, writer: Writer, now: DateTime<Utc>) -> SagaRow {
        let to_do = !effects(self.plan(), state, now).is_empty();
        let (process, under_way) = match writer {
            Writer::Owner { under_way } => (Some(self.runtime.process), under_way),
            Writer::Other => (None, 0),
        };
        let owner = process.filter(|_| to_do || under_way > 0);
        let due_at = if to_do { Some(now) } else { wakes_at(self.plan(), state, now) };
        let current: Vec<&str> = state.current().map(|step| step.name.as_str()).collect();
        let mut step = (!current.is_empty()).then(|| current.join(", "));
        let (name, reason) = match &state.phase {
            Phase::Early => ("early", None),
            Phase::Forward => ("running", None),
            Phase::Undoing => ("undoing", Some(state.reason.clone())),
            Phase::Stuck { step: at, reason, .. } => {
                step = at.clone().or(step);
                ("stuck", Some(reason.clone()))
            }
            Phase::Completed => ("completed", None),
            Phase::Resolved(super::Outcome::Completed) => ("completed", Some(state.reason.clone())),
            Phase::Compensated | Phase::Resolved(super::Outcome::Compensated) => {
                ("compensated", Some(state.reason.clone()))
            }
        };
        if state.has_ended() {
            step = None;
        }
        let due_at = due_at.filter(|_| owner.is_none());
        SagaRow {
            saga: self.definition.name(),
            definition: if state.phase == Phase::Early { self.definition.version() } else { state.definition },
            state: name,
            step,
            reason,
            due_at,
            owner,
            writer: process,
        }
    }

    /// Has it ask whose it is before it does anything.
    pub(crate) fn doubt(&mut self) {
        self.doubted = true;
    }

    /// What this process holds, it has taken or begun itself.
    pub(crate) fn hold(&mut self) {
        self.held = true;
    }

    pub(crate) fn is_held(&self) -> bool {
        self.held
    }
}

/// Why an instance is stuck of whose history this build cannot read something.
fn unreadable(error: &str) -> String {
    format!("its history cannot be read by this build: {error}. Retry with a build that can")
}

/// The same as `input`, with nothing of what it came to.
fn plain(input: &Input, failure: Failure) -> Option<Input> {
    let cause = failure.error.clone();
    match input {
        Input::Succeeded { step, key, .. } => Some(Input::Failed { step: step.clone(), key: *key, failure }),
        Input::Failed { step, key, failure: old } if old.error != cause => {
            Some(Input::Failed { step: step.clone(), key: *key, failure })
        }
        Input::UndoFailed { step, failure: old } if old.error != cause => {
            Some(Input::UndoFailed { step: step.clone(), failure })
        }
        _ => None,
    }
}
