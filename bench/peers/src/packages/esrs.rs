//! esrs: `PgStore` and `AggregateManager`, with a transactional event handler and `PgRebuilder`.

use annals::BoxError;
use async_trait::async_trait;
use esrs::{
    Aggregate, AggregateState,
    handler::TransactionalEventHandler,
    manager::AggregateManager,
    rebuilder::{PgRebuilder, Rebuilder},
    store::{
        EventStore, StoreEvent,
        postgres::{PgStore, PgStoreBuilder, PgStoreError},
    },
};
use serde::{Deserialize, Serialize};
use sqlx_08::{PgConnection, PgPool, postgres::PgPoolOptions};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::work::{POOL, Store, UPSERT, note};

#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum CounterEvent {
    Counted { note: String },
}

struct Counter;

impl Aggregate for Counter {
    const NAME: &'static str = "counter";
    type State = usize;
    type Command = String;
    type Event = CounterEvent;
    type Error = std::fmt::Error;

    fn handle_command(_: &usize, note: String) -> Result<Vec<CounterEvent>, std::fmt::Error> {
        Ok(vec![CounterEvent::Counted { note }])
    }

    fn apply_event(counted: usize, _: CounterEvent) -> usize {
        counted + 1
    }
}

/// How many events each stream has.
struct Counted;

#[async_trait]
impl TransactionalEventHandler<Counter, PgStoreError, PgConnection> for Counted {
    async fn handle(
        &self,
        event: &StoreEvent<CounterEvent>,
        transaction: &mut PgConnection,
    ) -> Result<(), PgStoreError> {
        sqlx_08::query(UPSERT).bind(event.aggregate_id.to_string()).execute(transaction).await?;
        Ok(())
    }
}

pub(super) struct Esrs {
    pool: PgPool,
    store: PgStore<Counter>,
    manager: AggregateManager<PgStore<Counter>>,
}

impl Store for Esrs {
    type Stream = AggregateState<usize>;

    const INLINE: Option<&'static str> = Some("no asynchronous subscription: inline, in the transaction");

    async fn open(url: &str) -> Result<Self, BoxError> {
        let pool = PgPoolOptions::new().max_connections(POOL).connect(url).await?;
        let store = PgStoreBuilder::new(pool.clone()).try_build().await?;
        Ok(Self { pool, manager: AggregateManager::new(store.clone()), store })
    }

    fn fill() -> String {
        "insert into counter_events (id, aggregate_id, payload, occurred_on, sequence_number)
         select gen_random_uuid(), stream, ('{\"note\":\"' || repeat('x', 239) || '\"}')::jsonb,
           now() - interval '1 hour' + n * interval '1 millisecond', version
         from seed order by n"
            .into()
    }

    fn stream(&self) -> Result<(String, Self::Stream), BoxError> {
        let id = Uuid::now_v7();
        Ok((id.to_string(), AggregateState::with_id(id)))
    }

    async fn append(&self, state: &mut Self::Stream, events: usize) -> Result<(), BoxError> {
        self.store.persist(state, vec![CounterEvent::Counted { note: note() }; events]).await?;
        Ok(())
    }

    async fn command(&self, id: Uuid) -> Result<(), BoxError> {
        let state = self.manager.load(id).await?.unwrap_or_else(|| AggregateState::with_id(id));
        self.manager.handle_command(state, note()).await??;
        Ok(())
    }

    async fn load(&self, id: Uuid) -> Result<usize, BoxError> {
        Ok(self.manager.load(id).await?.map(AggregateState::into_inner).unwrap_or_default())
    }

    async fn follow(&self) -> Result<JoinHandle<Result<(), BoxError>>, BoxError> {
        let rebuilder = PgRebuilder::<Counter>::new().with_transactional_event_handlers(vec![Box::new(Counted)]);
        let pool = self.pool.clone();
        Ok(tokio::spawn(async move { Ok(rebuilder.by_aggregate_id(pool).await?) }))
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}
