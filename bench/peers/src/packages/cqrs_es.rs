//! cqrs-es on postgres-es: `postgres_cqrs` with its `GenericQuery`, and `QueryReplay` for a rebuild.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use annals::BoxError;
use cqrs_es::{
    Aggregate, DomainEvent, EventEnvelope, EventStore, View,
    event_sink::EventSink,
    persist::{EventStoreAggregateContext, GenericQuery, PersistedEventStore, QueryReplay},
};
use postgres_es::{PostgresCqrs, PostgresEventRepository, PostgresViewRepository, postgres_cqrs};
use serde::{Deserialize, Serialize};
use sqlx_08::{PgPool, postgres::PgPoolOptions};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::work::{Model, POOL, Store, note};

/// The tables of its `db/init.sql`.
const TABLES: &str = "
create table events (
  aggregate_type text not null,
  aggregate_id   text not null,
  sequence       bigint check (sequence >= 0) not null,
  event_type     text not null,
  event_version  text not null,
  payload        json not null,
  metadata       json not null,
  primary key (aggregate_type, aggregate_id, sequence)
);
create table counted_view (
  view_id text not null,
  version bigint check (version >= 0) not null,
  payload json not null,
  primary key (view_id)
)";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum CounterEvent {
    Counted { note: String },
}

impl DomainEvent for CounterEvent {
    fn event_type(&self) -> String {
        "Counted".into()
    }

    fn event_version(&self) -> String {
        "1.0".into()
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Counter {
    counted: usize,
}

impl Aggregate for Counter {
    const TYPE: &'static str = "counter";
    type Command = String;
    type Event = CounterEvent;
    type Error = std::fmt::Error;
    type Services = ();

    async fn handle(&mut self, note: String, _: &(), sink: &EventSink<Self>) -> Result<(), std::fmt::Error> {
        sink.write(CounterEvent::Counted { note }, self).await;
        Ok(())
    }

    fn apply(&mut self, _: CounterEvent) {
        self.counted += 1;
    }
}

/// How many events each stream has.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Counted {
    counted: i64,
}

impl View<Counter> for Counted {
    fn update(&mut self, _: &EventEnvelope<Counter>) {
        self.counted += 1;
    }
}

pub(super) struct CqrsEs {
    pool: PgPool,
    store: PersistedEventStore<PostgresEventRepository, Counter>,
    cqrs: PostgresCqrs<Counter>,
}

impl Store for CqrsEs {
    /// The id and the last sequence.
    type Stream = (String, usize);

    const MODEL: Model = Model { table: "counted_view", stream: "view_id", counted: "(payload->>'counted')::bigint" };
    const INLINE: Option<&'static str> = Some("no asynchronous subscription: inline, after the commit");

    async fn open(url: &str) -> Result<Self, BoxError> {
        crate::database::run(url, TABLES).await?;
        let pool = PgPoolOptions::new().max_connections(POOL).connect(url).await?;
        let store = PersistedEventStore::new_event_store(PostgresEventRepository::new(pool.clone()));
        let cqrs = postgres_cqrs(pool.clone(), vec![], ());
        Ok(Self { pool, store, cqrs })
    }

    fn fill() -> String {
        "insert into events
         select 'counter', stream::text, version, 'Counted', '1.0', ('{\"note\":\"' || repeat('x', 239) || '\"}')::json, '{}'
         from seed order by n"
            .into()
    }

    fn stream(&self) -> Result<(String, Self::Stream), BoxError> {
        let id = Uuid::now_v7().to_string();
        Ok((id.clone(), (id, 0)))
    }

    async fn append(&self, (id, sequence): &mut Self::Stream, events: usize) -> Result<(), BoxError> {
        let new = vec![CounterEvent::Counted { note: note() }; events];
        let context = EventStoreAggregateContext {
            aggregate_id: id.clone(),
            aggregate: Counter::default(),
            current_sequence: *sequence,
            current_snapshot: None,
        };
        self.store.commit(new, context, HashMap::new()).await?;
        *sequence += events;
        Ok(())
    }

    async fn command(&self, id: Uuid) -> Result<(), BoxError> {
        Ok(self.cqrs.execute(&id.to_string(), note()).await?)
    }

    async fn load(&self, id: Uuid) -> Result<usize, BoxError> {
        Ok(self.store.load_aggregate(&id.to_string()).await?.aggregate.counted)
    }

    async fn follow(&self) -> Result<JoinHandle<Result<(), BoxError>>, BoxError> {
        let views = PostgresViewRepository::<Counted, Counter>::new("counted_view", self.pool.clone());
        let mut query = GenericQuery::new(Arc::new(views));
        let failed = Arc::new(Mutex::new(None));
        let heard = Arc::clone(&failed);
        query.use_error_handler(Box::new(move |error| {
            if let Ok(mut failed) = heard.lock() {
                failed.get_or_insert(error.to_string());
            }
        }));
        let replay = QueryReplay::new(PostgresEventRepository::new(self.pool.clone()), query);
        Ok(tokio::spawn(async move {
            replay.replay_all().await?;
            let failed = failed.lock().map_err(|_| "the error handler panicked")?.take();
            failed.map_or(Ok(()), |error| Err(error.into()))
        }))
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}
