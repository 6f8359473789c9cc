//! An instance of a saga: read from its stream, told what happens, and run by one process at a time.

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
    FailureKind, SagaEvent, StepError,
    definition::{Call, Definition, NotCommitted, key},
    engine::{Effect, Failure, Input, What, decide, effects, wakes_at},
    plan::{Kind, Plan},
    runtime::Runtime,
    state::{Phase, Progress, State, later},
};
use crate::{
    Append, ExpectedVersion, Id, Metadata, NewEvent, Options, ReadStream, StoreError, StreamId, Version,
    execute::Along,
    store::{Appended, SagaRow, Work},
    subscription::message,
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
    /// The event that it began with.
    started: Uuid,
    correlation_id: Option<Uuid>,
    traceparent: Option<String>,
    /// What of its stream this build cannot read.
    broken: Option<String>,
    /// Whether its row says that this process runs it.
    held: bool,
    /// Whether somebody else may have taken it.
    doubted: bool,
    /// What is not done at present, because nobody calls there; and until when.
    postponed: HashMap<(&'static str, What), (&'static str, DateTime<Utc>)>,
}

/// How something ended that was under way.
enum Landed {
    Told(Input),
    /// It was not begun: the target is not called, for so long.
    Postponed(&'static str, Duration),
}

type Flights = FuturesUnordered<BoxFuture<'static, (&'static str, What, Landed)>>;

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
            started: Uuid::nil(),
            correlation_id: None,
            traceparent: None,
            broken: None,
            held: false,
            doubted: false,
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
                        (self.started, self.traceparent) = (stored.event_id, stored.metadata.traceparent.clone());
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
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The same, until the store takes it; none once the app ends.
    async fn tell_surely(&mut self, input: Input, under_way: usize) -> Option<()> {
        loop {
            match self.tell(input.clone(), Writer::Owner { under_way }, &Cause::default()).await {
                Ok(_) => return Some(()),
                Err(StoreError::Closed) => return None,
                Err(StoreError::Invalid(error)) => {
                    // What it came to cannot be stored, and never will be.
                    let reason = format!("what happened cannot be recorded: {error}");
                    if matches!(input, Input::Broken { .. }) {
                        tracing::error!(stream = %self.stream, %error, "an instance of a saga cannot even be stuck");
                        return None;
                    }
                    let broken = Input::Broken { step: None, reason };
                    return Box::pin(self.tell_surely(broken, under_way)).await;
                }
                Err(error) => {
                    tracing::warn!(stream = %self.stream, %error, "an instance of a saga cannot be written; tried again");
                    sleep(PAUSE).await;
                    // It may have been written after all.
                    let _ = self.catch_up().await;
                }
            }
        }
    }

    /// What was appended has happened.
    fn accept(&mut self, events: &[SagaEvent], ids: &[Uuid], state: State, held: bool) {
        if let Some(nth) = events.iter().position(|event| matches!(event, SagaEvent::SagaStarted { .. })) {
            self.started = ids[nth];
        }
        (self.state, self.held) = (state, held);
        for event in events {
            let stream = &self.stream;
            match event {
                SagaEvent::SagaStuck { step, reason } => {
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
        (!self.started.is_nil()).then_some(self.started)
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
            Phase::Completed | Phase::Resolved(super::Outcome::Completed) => ("completed", None),
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

    /// What this process holds, it has taken or begun itself.
    pub(crate) fn hold(&mut self) {
        self.held = true;
    }

    pub(crate) fn is_held(&self) -> bool {
        self.held
    }

    /// Runs it as far as there is something to do.
    pub(crate) async fn run(mut self, interrupted: bool) {
        if self.version == Version::NONE {
            while let Err(error) = self.catch_up().await {
                if matches!(error, StoreError::Closed) || self.runtime.stop.is_cancelled() {
                    return;
                }
                tracing::warn!(stream = %self.stream, %error, "an instance of a saga cannot be read; tried again");
                sleep(PAUSE).await;
            }
        }
        if let Some(error) = self.broken.take() {
            let reason = format!("its history cannot be read by this build: {error}. Retry with a build that can");
            self.tell_surely(Input::Broken { step: None, reason }, 0).await;
            return;
        }
        if interrupted && self.tell_surely(Input::Interrupted, 0).await.is_none() {
            return;
        }
        let mut flights = Flights::new();
        let mut flying: HashSet<(&'static str, What)> = HashSet::new();
        loop {
            if self.doubted && !self.is_still_held().await {
                // Somebody else goes on with it. What is under way here is told of when it comes: with the same key.
                while let Some((_, _, landed)) = flights.next().await {
                    if let Landed::Told(input) = landed {
                        let _ = self.tell(input, Writer::Other, &Cause::default()).await;
                    }
                }
                return;
            }
            let (stopping, paused) = (self.runtime.stop.is_cancelled(), self.runtime.is_paused(self.definition.name()));
            if !stopping && !paused && self.begin(&mut flights, &mut flying).await.is_none() {
                return;
            }
            if flying.is_empty() {
                if !self.held || self.release().await {
                    return;
                }
                self.postponed.clear();
                continue;
            }
            let now = self.runtime.now();
            let wakes = wakes_at(self.plan(), &self.state, now);
            let pause = wakes.map_or(Duration::from_secs(3600), |at| (at - now).to_std().unwrap_or_default());
            let input = tokio::select! {
                Some((step, what, landed)) = flights.next() => {
                    flying.remove(&(step, what));
                    match landed {
                        Landed::Told(input) => input,
                        Landed::Postponed(target, wait) => {
                            let until = later(self.runtime.now(), wait);
                            self.postponed.insert((step, what), (target, until));
                            continue;
                        }
                    }
                }
                () = sleep(pause), if wakes.is_some() => Input::Tick,
            };
            if self.tell_surely(input, flying.len()).await.is_none() {
                return;
            }
        }
    }

    /// Begins what there is to do and is not under way. None once the app ends.
    async fn begin(&mut self, flights: &mut Flights, flying: &mut HashSet<(&'static str, What)>) -> Option<()> {
        loop {
            let now = self.runtime.now();
            let plan = self.definition.clone();
            // What was never tried, and is not to be any more: its time is over, or the saga undoes.
            let is_late = |step: &&super::state::StepState| {
                let is_call = plan.plan().step(&step.name).is_some_and(|it| !matches!(it.kind, Kind::Wait { .. }));
                let is_over = self.state.phase == Phase::Undoing || step.deadline_at <= now;
                let here = flying.iter().any(|(name, _)| *name == step.name);
                is_call && is_over && step.progress == Progress::Running && step.unknown == 0 && !here
            };
            let late = self.state.current().find(is_late).map(|step| step.name.clone());
            if let Some(step) = late {
                let error = "it was given up before it was tried".into();
                let failure = Failure { kind: FailureKind::Transient, error, retry_after: None };
                self.tell_surely(Input::Failed { step, failure }, flying.len()).await?;
                continue;
            }
            if wakes_at(self.plan(), &self.state, now).is_some_and(|at| at <= now) {
                let before = self.version;
                self.tell_surely(Input::Tick, flying.len()).await?;
                if self.version != before {
                    continue;
                }
            }
            let mut next = effects(plan.plan(), &self.state, now).into_iter();
            let Some(effect) = next.find(|effect| {
                let key = (effect.step, effect.what);
                !flying.contains(&key) && !self.postponed.contains_key(&key)
            }) else {
                return Some(());
            };
            if self.doubted {
                return Some(());
            }
            if plan.commits(effect.step, effect.what) {
                self.commit(&effect, flying.len()).await?;
                continue;
            }
            let call = self.call(&effect)?;
            flying.insert((effect.step, effect.what));
            let planned = plan.plan().step(effect.step);
            let (limit, target) = planned.map_or((PAUSE, None), |planned| (planned.attempt_timeout, planned.target));
            let (definition, breakers) = (plan.clone(), self.runtime.breakers.clone());
            flights.push(Box::pin(async move {
                let (step, what) = (effect.step, effect.what);
                let admitted = match &target {
                    None => None,
                    Some(target) => match breakers.admit(target).await {
                        Ok(admitted) => Some(admitted),
                        Err(wait) => return (step, what, Landed::Postponed(target.name, wait)),
                    },
                };
                let attempt = definition.attempt(step, what, call);
                let input = try_once(effect, attempt, limit).await;
                if let Some(admitted) = admitted {
                    admitted.end(failure_of(&input));
                }
                (step, what, Landed::Told(input))
            }));
        }
    }

    fn call(&self, effect: &Effect) -> Option<Call> {
        let options = Options {
            correlation_id: self.correlation_id,
            causation_id: self.cause(),
            traceparent: self.traceparent.clone(),
            ..Options::default()
        };
        Some(Call {
            id: Id::from(self.stream.id()),
            key: key(self.started, effect),
            attempt: effect.attempt,
            now: self.runtime.now(),
            state: Arc::new(self.state.clone()),
            app: self.runtime.app()?,
            options,
        })
    }

    /// Executes a command that commits together with its step. None once the app ends.
    async fn commit(&mut self, effect: &Effect, under_way: usize) -> Option<()> {
        let now = self.runtime.now();
        let step = effect.step.to_owned();
        let input = match effect.what {
            What::Undo => Input::Undone { step: step.clone() },
            _ => Input::Succeeded { step: step.clone(), output: Value::Null },
        };
        let decided = decide(self.plan(), &self.state, input, now);
        let (events, state) = decided.ok()?;
        let append = match self.append(&events) {
            Ok(append) => append,
            Err(error) => {
                let reason = format!("what happens cannot be recorded: {error}");
                return self.tell_surely(Input::Broken { step: Some(step), reason }, under_way).await;
            }
        };
        let ids: Vec<Uuid> = append.events.iter().map(|event| event.event_id).collect();
        let row = self.row(&state, Writer::Owner { under_way }, now);
        let held = row.owner.is_some();
        let (written, call) = (Along { append, row }, self.call(effect)?);
        self.runtime.write_point().ok()?;
        let running = tokio::spawn(self.definition.command(effect.step, effect.what, call, written));
        let failure = match AbortOnDropHandle::new(running).await {
            Ok(Ok(())) => {
                self.runtime.write_point().ok()?;
                self.version = Version::new(self.version.get() + events.len() as i64);
                self.accept(&events, &ids, state, held);
                return Some(());
            }
            Ok(Err(NotCommitted::Overtaken)) => {
                self.doubted = true;
                let _ = self.catch_up().await;
                return Some(());
            }
            Ok(Err(NotCommitted::Failed(error))) => error,
            Err(error) if error.is_panic() => {
                StepError::transient(format!("the step panicked: {}", message(error.into_panic())))
            }
            Err(_) => return None,
        };
        let failure = failure.into();
        let input = match effect.what {
            What::Undo => Input::UndoFailed { step, failure },
            _ => Input::Failed { step, failure },
        };
        self.tell_surely(input, under_way).await
    }

    /// Gives it up until it is due; or not, if something has happened to it meanwhile.
    async fn release(&mut self) -> bool {
        let now = self.runtime.now();
        let to_do = !effects(self.plan(), &self.state, now).is_empty();
        let mut due_at = if to_do { Some(now) } else { wakes_at(self.plan(), &self.state, now) };
        let mut waits_for = None;
        if let Some((target, until)) = self.postponed.values().min_by_key(|(_, until)| *until) {
            // Not all at once: the first one that calls there decides for all.
            let spread = self.started.as_u128() as u64 % 1_000;
            let until = later(*until, (*until - now).to_std().unwrap_or_default().mul_f64(spread as f64 / 4_000.0));
            let wakes = wakes_at(self.plan(), &self.state, now);
            (due_at, waits_for) = (Some(wakes.map_or(until, |at| at.min(until))), Some(*target));
        }
        loop {
            let store = &self.runtime.store;
            let releasing = store.inner.sql.release_saga.query();
            let releasing = releasing
                .bind(self.stream.as_str())
                .bind(self.runtime.process)
                .bind(self.version.get())
                .bind(due_at)
                .bind(waits_for);
            match store.inner.reads.execute("release an instance of a saga", releasing).await {
                Ok(1..) => return true,
                Ok(0) => {
                    self.doubted = true;
                    return self.catch_up().await.is_err();
                }
                Err(StoreError::Closed) => return true,
                Err(error) => {
                    tracing::warn!(stream = %self.stream, %error, "an instance of a saga cannot be released; tried again");
                    if self.runtime.stop.is_cancelled() {
                        return true;
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Whether it is still this process's to run.
    async fn is_still_held(&mut self) -> bool {
        loop {
            let store = &self.runtime.store;
            let asking = store.inner.sql.read_saga.query().bind(self.stream.as_str());
            match store.inner.reads.optional("read who runs a saga", asking).await {
                Ok(row) => {
                    let owner: Option<Uuid> = row.and_then(|row| sqlx::Row::get(&row, 0));
                    let mine = owner == Some(self.runtime.process);
                    (self.doubted, self.held) = (false, mine);
                    return mine;
                }
                Err(StoreError::Closed) => return false,
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}

/// What of an attempt is a failure of whoever was called: an answer is none, whatever it says.
fn failure_of(input: &Input) -> Option<&str> {
    match input {
        Input::Failed { failure, .. } | Input::NotAnswered { failure, .. } | Input::UndoFailed { failure, .. } => {
            (failure.kind != FailureKind::Business).then_some(&*failure.error)
        }
        _ => None,
    }
}

/// Runs an attempt to its end, however it ends.
async fn try_once(
    effect: Effect,
    attempt: BoxFuture<'static, Result<Option<Value>, StepError>>,
    limit: Duration,
) -> Input {
    let mut task = AbortOnDropHandle::new(tokio::spawn(attempt));
    let result = match timeout(limit, &mut task).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) if error.is_panic() => {
            Err(StepError::unknown(format!("the step panicked: {}", message(error.into_panic()))))
        }
        Ok(Err(_)) => Err(StepError::unknown("the step was cut off")),
        Err(_) => Err(StepError::unknown(format!("no answer within {limit:?}"))),
    };
    let step = effect.step.to_owned();
    match (effect.what, result) {
        (What::Run, Ok(output)) => Input::Succeeded { step, output: output.unwrap_or_default() },
        (What::Run, Err(error)) => Input::Failed { step, failure: error.into() },
        (What::Ask, Ok(Some(output))) => Input::Succeeded { step, output },
        (What::Ask, Ok(None)) => Input::NotDone { step },
        (What::Ask, Err(error)) => Input::NotAnswered { step, failure: error.into() },
        (What::Undo, Ok(_)) => Input::Undone { step },
        (What::Undo, Err(error)) => Input::UndoFailed { step, failure: error.into() },
    }
}
