//! disintegrate on disintegrate-postgres: its event store, decision maker and listener.

use std::time::Duration;

use ::disintegrate::{
    Decision, DecisionError, Event, EventListener, EventSourcedStateStore, EventStore, LoadState, NoSnapshot,
    PersistedEvent, StateMutate, StateQuery, StreamQuery, query, serde::json::Json,
};
use annals::BoxError;
use async_trait::async_trait;
use disintegrate_postgres::{
    Error, PgDecisionMaker, PgEventId, PgEventListener, PgEventListenerConfig, PgEventStore, decision_maker,
};
use serde::{Deserialize, Serialize};
use sqlx_08::{PgPool, postgres::PgPoolOptions};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::work::{POOL, Store, UPSERT, note};

#[derive(Debug, Clone, PartialEq, Eq, Event, Serialize, Deserialize)]
#[stream(CounterEvent, [Counted])]
enum DomainEvent {
    Counted {
        #[id]
        counter: String,
        note: String,
    },
}

#[derive(Default, Clone, StateQuery, Serialize, Deserialize)]
#[state_query(CounterEvent)]
struct Counter {
    #[id]
    counter: String,
    counted: usize,
}

impl StateMutate for Counter {
    fn mutate(&mut self, _: CounterEvent) {
        self.counted += 1;
    }
}

struct Count {
    counter: String,
}

impl Decision for Count {
    type Event = DomainEvent;
    type StateQuery = Counter;
    type Error = std::fmt::Error;

    fn state_query(&self) -> Counter {
        Counter { counter: self.counter.clone(), counted: 0 }
    }

    fn process(&self, _: &Counter) -> Result<Vec<DomainEvent>, std::fmt::Error> {
        Ok(vec![DomainEvent::Counted { counter: self.counter.clone(), note: note() }])
    }
}

/// How many events each stream has.
struct Counted {
    query: StreamQuery<PgEventId, DomainEvent>,
    pool: PgPool,
}

#[async_trait]
impl EventListener<PgEventId, DomainEvent> for Counted {
    type Error = sqlx_08::Error;

    fn id(&self) -> &'static str {
        "counted"
    }

    fn query(&self) -> &StreamQuery<PgEventId, DomainEvent> {
        &self.query
    }

    async fn handle(&self, event: PersistedEvent<PgEventId, DomainEvent>) -> Result<(), sqlx_08::Error> {
        let DomainEvent::Counted { counter, .. } = event.into_inner();
        sqlx_08::query(UPSERT).bind(counter).execute(&self.pool).await?;
        Ok(())
    }
}

type JsonStore = PgEventStore<DomainEvent, Json<DomainEvent>>;

pub(super) struct Disintegrate {
    pool: PgPool,
    store: JsonStore,
    decisions: PgDecisionMaker<DomainEvent, Json<DomainEvent>, NoSnapshot>,
}

impl Store for Disintegrate {
    /// The id, and the last event's id.
    type Stream = (String, PgEventId);

    async fn open(url: &str) -> Result<Self, BoxError> {
        let pool = PgPoolOptions::new().max_connections(POOL).connect(url).await?;
        let store = PgEventStore::try_new(pool.clone(), Json::default()).await?;
        Ok(Self { pool, decisions: decision_maker(store.clone(), NoSnapshot), store })
    }

    fn fill() -> String {
        "insert into event (event_type, payload, counter)
         select 'Counted', convert_to(
           json_build_object('Counted', json_build_object('counter', stream, 'note', repeat('x', 239)))::text, 'UTF8'), stream
         from seed order by n"
            .into()
    }

    fn stream(&self) -> Result<(String, Self::Stream), BoxError> {
        let id = Uuid::now_v7().to_string();
        Ok((id.clone(), (id, 0)))
    }

    async fn append(&self, (id, last): &mut Self::Stream, events: usize) -> Result<(), BoxError> {
        let new = vec![DomainEvent::Counted { counter: id.clone(), note: note() }; events];
        loop {
            let query = query!(DomainEvent; counter == id.clone());
            match self.store.append(new.clone(), query, *last).await {
                Ok(persisted) => {
                    *last = persisted.last().map_or(*last, PersistedEvent::id);
                    return Ok(());
                }
                Err(error) if is_conflict(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn command(&self, id: Uuid) -> Result<(), BoxError> {
        loop {
            match self.decisions.make(Count { counter: id.to_string() }).await {
                Ok(_) => return Ok(()),
                Err(DecisionError::StateStore(error)) if error.downcast_ref().is_some_and(is_conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn load(&self, id: Uuid) -> Result<usize, BoxError> {
        let states = EventSourcedStateStore::new(self.store.clone(), NoSnapshot);
        let counter = Counter { counter: id.to_string(), counted: 0 };
        Ok(states.load(counter).await?.state().counted)
    }

    async fn follow(&self) -> Result<JoinHandle<Result<(), BoxError>>, BoxError> {
        let counted = Counted { query: query!(DomainEvent), pool: self.pool.clone() };
        // As its documentation has it: polling as the fallback of notifications.
        let config = PgEventListenerConfig::poller(Duration::from_millis(50)).fetch_size(1_000).with_notifier();
        let listener = PgEventListener::builder(self.store.clone()).register_listener(counted, config);
        Ok(tokio::spawn(async move { Ok(listener.start().await?) }))
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

/// Its transactions are serializable: callers of different streams conflict too, and are told to try again.
fn is_conflict(error: &Error) -> bool {
    match error {
        Error::Concurrency => true,
        Error::Database(error) => {
            error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("40001"))
        }
        _ => false,
    }
}
