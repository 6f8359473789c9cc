//! What an operator sees of sagas, and can do about them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use futures::{TryStreamExt, pin_mut};
use serde::Serialize;
use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Outcome, SagaEvent,
    engine::Input,
    instance::{Cause, Instance, Writer},
    runtime::Runtime,
    state::StepState,
};
use crate::{By, Id, ReadStream, Recorded, StoreError, StreamId};

/// Where an instance of a saga stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SagaState {
    /// It was given an event, and has not begun.
    Early,
    /// Its steps run.
    Running,
    /// What it did is undone.
    Undoing,
    /// It needs an operator.
    Stuck,
    /// It has ended, with all done.
    Completed,
    /// It has ended, with all undone.
    Compensated,
}

impl SagaState {
    const ALL: [(&'static str, Self); 6] = [
        ("early", Self::Early),
        ("running", Self::Running),
        ("undoing", Self::Undoing),
        ("stuck", Self::Stuck),
        ("completed", Self::Completed),
        ("compensated", Self::Compensated),
    ];

    /// As it is stored and shown.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(_, state)| *state == self).map_or("", |(name, _)| name)
    }

    /// The state that is called so.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(own, _)| *own == name).map(|(_, state)| *state)
    }
}

/// Which instances are listed. The default is all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SagaFilter {
    /// Those of this saga.
    pub saga: Option<String>,
    /// Those in one of these states; in any if there are none.
    pub states: Vec<SagaState>,
    /// Those at this step.
    pub step: Option<String>,
    /// Those of this correlation.
    pub correlation_id: Option<Uuid>,
    /// Those that began at least so long ago.
    pub older_than: Option<Duration>,
    /// Those with this in their id.
    pub id: Option<String>,
    /// Those that this version of the saga runs.
    pub version: Option<u32>,
    /// Those with this in the reason why they are stuck, undo, or were undone.
    pub reason: Option<String>,
    /// Those behind this one of the list before.
    pub after: Option<(DateTime<Utc>, StreamId)>,
}

/// An instance of a saga, as the index has it.
#[derive(Debug, Clone, PartialEq)]
pub struct SagaInstance {
    /// The saga.
    pub saga: String,
    /// The instance.
    pub id: Id,
    /// Its stream.
    pub stream: StreamId,
    /// The version of the saga that runs it.
    pub definition: u32,
    /// Whether a process that is alive has that version.
    pub is_served: bool,
    /// Where it stands.
    pub state: SagaState,
    /// The steps it is at.
    pub step: Option<String>,
    /// Why it is stuck, undoes, or was undone.
    pub reason: Option<String>,
    /// What joins it with whatever else one request led to.
    pub correlation_id: Option<Uuid>,
    /// The process that runs it now: its name, and its number on its machine.
    pub owner: Option<String>,
    /// When it goes on by itself.
    pub due_at: Option<DateTime<Utc>>,
    /// Whom it would call, and who is not called at present.
    pub waits_for: Option<String>,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it was changed last.
    pub changed_at: DateTime<Utc>,
}

/// What a step of an instance is known by outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepKeys {
    /// The step.
    pub step: String,
    /// What it is tried under now, or was last.
    pub key: Uuid,
    /// What it was tried under before, and is known not to have happened under.
    pub dead: Vec<Uuid>,
    /// What it is undone under.
    pub undo: Uuid,
}

/// How many instances of a saga there are in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SagaCounts {
    /// Running, or undoing.
    pub running: u64,
    /// Ended with all done.
    pub completed: u64,
    /// Ended with all undone.
    pub compensated: u64,
    /// In need of an operator.
    pub stuck: u64,
    /// Given an event, and not begun. What is not a saga's yet is not counted with the rest.
    #[serde(skip)]
    pub early: u64,
}

/// The sagas of an app's store. [`App::sagas`](crate::App::sagas) makes it.
///
/// Each action is an event in the instance's stream, with its actor and reason.
#[derive(Clone)]
pub struct Sagas {
    pub(crate) runtime: Arc<Runtime>,
}

impl Sagas {
    /// Up to `limit` instances, those that began first first.
    ///
    /// # Errors
    /// As any read: [`StoreError::Unavailable`], [`StoreError::Timeout`].
    pub async fn list(&self, filter: &SagaFilter, limit: usize) -> Result<Vec<SagaInstance>, StoreError> {
        let open = |state: &SagaState| !matches!(state, SagaState::Completed | SagaState::Compensated);
        // Few are open, and few belong together: those are looked up by indexes of their own.
        let chosen = match filter {
            SagaFilter { correlation_id: Some(_), .. } => "s.correlation_id = $4",
            SagaFilter { states, .. } if !states.is_empty() && states.iter().all(open) => {
                "s.state not in ('completed', 'compensated')"
            }
            _ => "true",
        };
        let text = include_str!("../sql/list_sagas.sql").replace("where $chosen", &format!("where {chosen}"));
        let sql = self.runtime.store.inner.name.instantiate(&text);
        let states: Vec<String> = filter.states.iter().map(|state| state.as_str().to_owned()).collect();
        let rows = self.runtime.store.inner.read("list sagas", |mut conn| {
            let (sql, filter) = (sql.clone(), filter.clone());
            let states = (!states.is_empty()).then(|| states.clone());
            let (after, after_stream) = filter.after.map(|(at, stream)| (at, stream.to_string())).unzip();
            async move {
                sql.query()
                    .bind(filter.saga)
                    .bind(states)
                    .bind(filter.step)
                    .bind(filter.correlation_id)
                    .bind(filter.older_than.map(|age| age.as_secs_f64()))
                    .bind(filter.id)
                    .bind(after)
                    .bind(after_stream)
                    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                    .bind(filter.version.map(|version| i32::try_from(version).unwrap_or(i32::MAX)))
                    .bind(filter.reason)
                    .fetch_all(&mut *conn)
                    .await
            }
        });
        rows.await?.iter().map(instance).collect()
    }

    /// How many instances of each saga there are, by what became of them.
    ///
    /// # Errors
    /// As [`Sagas::list`].
    pub async fn summary(&self) -> Result<BTreeMap<String, SagaCounts>, StoreError> {
        let sql = self.runtime.store.inner.sql.count_sagas.clone();
        let rows: Vec<(String, String, i64)> = self
            .runtime
            .store
            .inner
            .read("count sagas", |mut conn| {
                let sql = sql.clone();
                async move { sql.typed().fetch_all(&mut *conn).await }
            })
            .await?;
        // Those that never began count, too: as none.
        let names = self.runtime.names().into_iter().map(|name| (name.to_owned(), SagaCounts::default()));
        let mut counts: BTreeMap<String, SagaCounts> = names.collect();
        for (saga, state, count) in rows {
            let counts = counts.entry(saga).or_default();
            let at = match SagaState::named(&state) {
                Some(SagaState::Completed) => &mut counts.completed,
                Some(SagaState::Compensated) => &mut counts.compensated,
                Some(SagaState::Stuck) => &mut counts.stuck,
                Some(SagaState::Early) => &mut counts.early,
                _ => &mut counts.running,
            };
            *at += count.unsigned_abs();
        }
        Ok(counts)
    }

    /// One instance: all that has happened to it, oldest first. None at all if there is no such instance.
    ///
    /// # Errors
    /// As [`Sagas::list`]; [`StoreError::Unfit`] if this build cannot read it.
    pub async fn history(&self, saga: &str, id: impl Into<Id>) -> Result<Vec<Recorded<SagaEvent>>, StoreError> {
        let stream = StreamId::of_saga(saga, &id.into())?;
        let events = self.runtime.store.read_stream(&stream, ReadStream::default());
        pin_mut!(events);
        let mut history = vec![];
        while let Some(stored) = events.try_next().await? {
            let decoded = self.runtime.contracts().decode::<SagaEvent>(&stored);
            history.push(decoded.map_err(|error| StoreError::Unfit(error.to_string()))?);
        }
        Ok(history)
    }

    /// Lets an instance go on at once that is stuck, or waits for its next attempt.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] if there is no such instance, its saga is not registered in this app, it does not wait, or it is in doubt
    /// whether a step happened that cannot be repeated any more: its key does not live, or it has one attempt. As any append
    /// otherwise.
    pub async fn retry(&self, saga: &str, id: impl Into<Id>, by: &By) -> Result<(), StoreError> {
        self.tell(saga, id, Input::Retry { reason: by.reason.clone() }, by).await
    }

    /// Lets an instance leave out `step`, or its undo, at which it is: somebody has seen to it.
    ///
    /// # Errors
    /// As [`Sagas::retry`]; if the instance is not at `step`, or the step's first attempt may be under way.
    pub async fn skip(&self, saga: &str, id: impl Into<Id>, step: &str, by: &By) -> Result<(), StoreError> {
        let (id, reason) = (id.into(), by.reason.clone());
        let is_run = self.is_run(saga, &id).await?;
        self.tell(saga, id, Input::Skip { step: step.into(), reason, is_run }, by).await
    }

    /// Says that `step` happened, and what it came to: for one of which nobody else knows, once somebody has looked. It goes on from
    /// there; or undoes it, if it is undoing.
    ///
    /// # Errors
    /// As [`Sagas::retry`]; if the step is not open, does not come to such a thing, or its first attempt may be under way.
    pub async fn complete(
        &self,
        saga: &str,
        id: impl Into<Id>,
        step: &str,
        output: serde_json::Value,
        by: &By,
    ) -> Result<(), StoreError> {
        let (id, reason) = (id.into(), by.reason.clone());
        let is_run = self.is_run(saga, &id).await?;
        self.tell(saga, id, Input::Completed { step: step.into(), output, reason, is_run }, by).await
    }

    /// Says that `step`, which may have happened, did not and will not: then it is tried again, under a new key; or counts as not
    /// done, if the instance undoes.
    ///
    /// # Errors
    /// As [`Sagas::retry`]; if it is not in doubt whether the step happened, or it is not stuck yet: then somebody may be about to try
    /// it again, under the key of which this is said.
    pub async fn not_done(&self, saga: &str, id: impl Into<Id>, step: &str, by: &By) -> Result<(), StoreError> {
        let (id, reason) = (id.into(), by.reason.clone());
        let is_run = self.is_run(saga, &id).await?;
        self.tell(saga, id, Input::Denied { step: step.into(), reason, is_run }, by).await
    }

    /// The keys of an instance's steps, in the order in which they began: what they are known by outside ([`Cx::key`](crate::Cx)).
    ///
    /// # Errors
    /// As [`Sagas::list`]; [`StoreError::Unfit`] if this app does not have the saga.
    pub async fn keys(&self, saga: &str, id: impl Into<Id>) -> Result<Vec<StepKeys>, StoreError> {
        let instance = self.read(saga, id).await?;
        if let Some(error) = instance.unreadable() {
            return Err(StoreError::Unfit(error));
        }
        let state = instance.state;
        let mut steps: Vec<_> = state.steps.iter().filter(|step| step.begun > 0 || step.completed > 0).collect();
        steps.sort_by_key(|step| step.begun);
        let keys = |step: &&StepState| StepKeys {
            step: step.name.clone(),
            key: state.key(&step.name),
            dead: (0..step.dead_keys).map(|nth| state.nth_key(&step.name, nth)).collect(),
            undo: state.undo_key(&step.name),
        };
        Ok(steps.iter().map(keys).collect())
    }

    /// Pauses a saga: no instance begins, and none goes on, until it is resumed. Time does not stop: a step whose time is over by then,
    /// an hour if nothing else was said, has failed, and what was done is undone.
    ///
    /// # Errors
    /// As [`Followers::pause`](crate::Followers::pause).
    pub async fn pause(&self, saga: &str, by: &By) -> Result<(), StoreError> {
        self.runtime.store.followers().pause(saga, by).await
    }

    /// Lets a saga go on that was paused, or halted.
    ///
    /// # Errors
    /// As [`Followers::resume`](crate::Followers::resume).
    pub async fn resume(&self, saga: &str, by: &By) -> Result<(), StoreError> {
        self.runtime.store.followers().resume(saga, by).await
    }

    /// Calls an instance off: what it did is undone.
    ///
    /// # Errors
    /// As [`Sagas::retry`]; if the instance has ended, undoes already, or has done everything.
    pub async fn cancel(&self, saga: &str, id: impl Into<Id>, by: &By) -> Result<(), StoreError> {
        self.tell(saga, id, Input::Cancel { reason: by.reason.clone() }, by).await
    }

    /// Declares an instance ended: nothing more is done for it.
    ///
    /// # Errors
    /// As [`Sagas::retry`]; if the instance has ended.
    pub async fn resolve(&self, saga: &str, id: impl Into<Id>, outcome: Outcome, by: &By) -> Result<(), StoreError> {
        self.tell(saga, id, Input::Resolve { outcome, reason: by.reason.clone() }, by).await
    }

    /// An instance as its stream has it.
    async fn read(&self, saga: &str, id: impl Into<Id>) -> Result<Instance, StoreError> {
        let Some(newest) = self.runtime.versions(saga).into_iter().next() else {
            return Err(StoreError::Unfit(format!("no saga {saga:?} is registered in this app")));
        };
        let stream = StreamId::of_saga(saga, &id.into())?;
        let mut instance = Instance::new(self.runtime.clone(), newest, stream.clone());
        instance.catch_up().await?;
        if instance.version == crate::Version::NONE {
            return Err(StoreError::Unfit(format!("there is no instance {} of saga {saga}", stream.id())));
        }
        Ok(instance)
    }

    /// Whether a process runs an instance, or ran it when it was lost, which nobody has told it yet.
    async fn is_run(&self, saga: &str, id: &Id) -> Result<bool, StoreError> {
        let store = &self.runtime.store;
        let stream = StreamId::of_saga(saga, id)?;
        let asking = store.inner.sql.read_saga.query().bind(stream.as_str());
        let row = store.inner.reads.optional("read who runs a saga", asking).await?;
        Ok(row.is_some_and(|row| row.get::<Option<Uuid>, _>(0).is_some() || row.get::<bool, _>(3)))
    }

    async fn tell(&self, saga: &str, id: impl Into<Id>, input: Input, by: &By) -> Result<(), StoreError> {
        let mut instance = self.read(saga, id).await?;
        let stream = instance.stream.clone();
        if !instance.is_known() {
            return Err(StoreError::Unfit(format!(
                "{} runs under version {} of its saga, which this build does not have",
                stream.id(),
                instance.state.definition
            )));
        }
        let cause = Cause { actor: Some(by.actor.clone()), event: None };
        if let Input::Completed { step, output, .. } = &input {
            let checked = instance.definition.check_output(step, output);
            checked.map_err(|why| StoreError::Unfit(format!("{saga} {}: {why}", stream.id())))?;
        }
        match instance.tell(input, Writer::Other, &cause).await? {
            Ok(_) => {
                self.runtime.due.notify_one();
                Ok(())
            }
            Err(refused) => Err(StoreError::Unfit(format!("{saga} {}: {refused}", stream.id()))),
        }
    }
}

fn instance(row: &PgRow) -> Result<SagaInstance, StoreError> {
    let stream = StreamId::stored(row.get("stream"));
    let state: &str = row.get("state");
    let unknown = || StoreError::Unfit(format!("{stream} is {state}, a state that this build does not know"));
    Ok(SagaInstance {
        saga: row.get("saga"),
        id: Id::from(stream.id()),
        definition: row.get::<i32, _>("definition").unsigned_abs(),
        is_served: row.get("runs"),
        state: SagaState::named(state).ok_or_else(unknown)?,
        step: row.get("step"),
        reason: row.get("reason"),
        correlation_id: row.get("correlation_id"),
        owner: row.get("owner"),
        due_at: row.get("due_at"),
        waits_for: row.get("waits_for"),
        started_at: row.get("started_at"),
        changed_at: row.get("changed_at"),
        stream,
    })
}
