//! What an event means to sagas: instances begin, get what they wait for, or are called off.

use std::sync::Arc;

use futures::future::BoxFuture;
use serde_json::Value;

use super::{
    Saga,
    definition::{Definition, Look},
    engine::Input,
    instance::{Cause, Instance, Writer},
    runtime::Runtime,
};
use crate::{
    Id, InvalidInput, Payload, Recorded, StoreError, StreamId, Version,
    event::contract::Contracts,
    store::Annals,
    subscription::{Done, EffectFollower, FollowError, Handle, Model, Time},
};

/// The follower of a saga, in all its versions.
pub(crate) struct Router {
    runtime: Arc<Runtime>,
    /// The newest first: that is the one that begins.
    versions: Vec<Arc<dyn Definition>>,
    contracts: Arc<Contracts>,
}

/// What there is to know of the saga `S` to follow the log for it.
pub(crate) fn model<S: Saga>(
    store: &Annals,
    contracts: &Arc<Contracts>,
    runtime: &Arc<Runtime>,
) -> Result<Model, InvalidInput> {
    let (store, runtime, contracts) = (store.clone(), runtime.clone(), contracts.clone());
    Ok(Model {
        name: S::NAME,
        kind: "saga",
        version: S::VERSION,
        older: runtime.versions(S::NAME).iter().map(|it| it.version()).filter(|it| *it != S::VERSION).collect(),
        partitions: 1,
        policy: S::FAILURES,
        categories: contracts.categories_of::<S::Event>(),
        skips: &[],
        definition: format!("saga {}", S::NAME),
        live: store.inner.name.read_model(S::NAME)?,
        begin: S::BEGIN,
        tables: "",
        indexes: "",
        follower: Box::new(move |_| {
            let router =
                Router { runtime: runtime.clone(), versions: runtime.versions(S::NAME), contracts: contracts.clone() };
            Arc::new(EffectFollower::new(store.clone(), Arc::new(router)))
        }),
    })
}

impl Router {
    fn instance(&self, id: &Id) -> Result<Instance, FollowError> {
        let Some(newest) = self.versions.first() else { return Err(FollowError::Store(StoreError::Closed)) };
        let stream = StreamId::of_saga(newest.name(), id).map_err(|error| FollowError::Handler(error.into()))?;
        Ok(Instance::new(self.runtime.clone(), newest.clone(), stream))
    }

    async fn start(&self, id: &Id, input: Value, cause: &Cause) -> Result<(), FollowError> {
        let mut instance = self.instance(id)?;
        let is_paused = self.runtime.is_paused(instance.definition.name());
        let slot = if is_paused { None } else { self.runtime.slot().await };
        let writer = if slot.is_some() { Writer::Owner { under_way: 0 } } else { Writer::Other };
        let input = Input::Start { definition: instance.definition.version(), input };
        let written = instance.tell(input, writer, cause).await.map_err(passing)?;
        match (written, slot) {
            (Ok(true), Some(slot)) if instance.is_held() => self.runtime.run(instance, false, slot),
            (Ok(true), None) => self.runtime.due.notify_one(),
            _ => {}
        }
        Ok(())
    }

    /// Tells an instance that is there, or one that begins later, of an event.
    async fn deliver(&self, id: &Id, input: impl Fn(u32) -> Option<Input>, cause: &Cause) -> Result<(), FollowError> {
        let mut instance = self.instance(id)?;
        instance.catch_up().await.map_err(passing)?;
        if !instance.is_known() {
            let error = format!(
                "{} runs under version {} of its saga, which this build does not have: register it beside the new one",
                instance.stream, instance.state.definition
            );
            return Err(FollowError::Handler(error.into()));
        }
        let Some(input) = input(instance.definition.version()) else { return Ok(()) };
        // One that cannot be called off any more has ended, or undoes already.
        if let Ok(true) = instance.tell(input, Writer::Other, cause).await.map_err(passing)? {
            self.runtime.due.notify_one();
        }
        Ok(())
    }
}

impl Handle for Router {
    fn handle(
        self: Arc<Self>,
        event: Arc<Recorded<Payload>>,
        _: Option<Version>,
        _: Time,
    ) -> BoxFuture<'static, Result<Done, FollowError>> {
        Box::pin(async move {
            let metadata = &event.metadata;
            let correlation = metadata.correlation_id;
            let cause = Cause {
                actor: metadata.actor.clone(),
                event: Some((event.event_id, correlation, metadata.traceparent.clone())),
            };
            let mut looks: Vec<(u32, Look)> = vec![];
            for definition in &self.versions {
                looks.push((definition.version(), definition.look(&self.contracts, &event)?));
            }
            if let Some((id, input)) = looks.first_mut().and_then(|(_, look)| look.start.take()) {
                check_depth(&self.runtime.store, &event).await?;
                self.start(&id, input, &cause).await?;
            }
            let mut told: Vec<&Id> = vec![];
            for (_, look) in &looks {
                if let Some(id) = &look.route
                    && !look.taken.is_empty()
                    && !told.contains(&id)
                {
                    told.push(id);
                    let taken = |version| {
                        let look = looks.iter().find(|(own, _)| *own == version).map(|(_, look)| look)?;
                        let outputs = look.taken.clone();
                        (!outputs.is_empty()).then_some(Input::Event { position: event.position, outputs })
                    };
                    self.deliver(id, taken, &cause).await?;
                }
            }
            let mut told: Vec<&Id> = vec![];
            for (_, look) in &looks {
                if let Some((id, reason)) = &look.cancel
                    && !told.contains(&id)
                {
                    told.push(id);
                    self.deliver(id, |_| Some(Input::Cancel { reason: reason.clone() }), &cause).await?;
                }
            }
            Ok(Done::Handled)
        })
    }
}

/// How many causes an event may have behind it for something more to begin by itself.
const DEPTH: usize = 32;

/// Refuses to let a circle go on: an event that leads, through sagas, reactors and commands, to another of its kind.
pub(crate) async fn check_depth(store: &Annals, event: &Recorded<Payload>) -> Result<(), FollowError> {
    if event.metadata.causation_id.is_none() {
        return Ok(());
    }
    let (sql, metadata) = (store.inner.sql.read_causes.clone(), &event.metadata);
    let (causation_id, correlation_id) = (metadata.causation_id, metadata.correlation_id);
    let reading = store.inner.read("read what led to an event", |mut conn| {
        let (sql, stream, event_type) = (sql.clone(), event.stream.to_string(), event.event_type.to_string());
        async move {
            let reading = sql.typed().bind(causation_id).bind(DEPTH as i32 + 2).bind(correlation_id);
            reading.bind(stream).bind(event_type).fetch_all(&mut *conn).await
        }
    });
    let causes: Vec<(String, String)> = reading.await.map_err(passing)?;
    // The event itself is among them.
    if causes.len() <= DEPTH + 1 {
        return Ok(());
    }
    let mut path: Vec<String> = vec![];
    for (stream, event_type) in &causes {
        let category = StreamId::stored(stream).category().to_owned();
        path.push(format!("{category} {event_type}"));
    }
    // Of a circle, the last turns say all.
    let path = path[path.len().saturating_sub(12)..].join(" > ");
    Err(FollowError::Handler(
        format!(
            "more than {DEPTH} events led to this one, each by itself: sagas, reactors and commands call each other in a circle. The \
             end of the path: {path}. Nothing more begins from it; break the circle in the code, then discard the event"
        )
        .into(),
    ))
}

/// What the store says for a while only keeps the follower waiting.
pub(crate) fn passing(error: StoreError) -> FollowError {
    match error {
        error @ (StoreError::Invalid(_) | StoreError::Unfit(_)) => FollowError::Handler(error.into()),
        error => FollowError::Waiting(format!("what follows from an event cannot begin: {error}")),
    }
}
