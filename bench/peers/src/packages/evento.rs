//! evento on Postgres: its builder, a projection as write model, a subscription.

use ::evento::{
    Executor, Postgres, Projection, ProjectionAggregate,
    metadata::{Event, Metadata},
    migrator::{Migrate, Plan},
    subscription::{Context, SubscriptionBuilder},
};
use annals::BoxError;
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::work::{POOL, Store, UPSERT, note};

#[::evento::aggregate(name = "counter")]
pub enum Counter {
    Counted { note: String },
}

/// The write model of commands, kept in memory as its README's section on commands has it.
#[::evento::projection(id = id)]
#[::evento::snapshot(memory)]
pub struct Kept {
    pub id: String,
}

#[::evento::handler]
async fn keep(event: Event<Counted>, row: &mut Kept) -> anyhow::Result<()> {
    row.id = event.aggregate_id.to_owned();
    Ok(())
}

/// The same, loaded from its events each time.
#[::evento::projection]
#[::evento::snapshot(none)]
pub struct Loaded {
    pub counted: usize,
}

#[::evento::handler]
async fn load(_event: Event<Counted>, row: &mut Loaded) -> anyhow::Result<()> {
    row.counted += 1;
    Ok(())
}

/// How many events each stream has.
#[::evento::subscription]
async fn count<E: Executor>(context: &Context<'_, E>, event: Event<Counted>) -> anyhow::Result<()> {
    let pool: PgPool = context.extract();
    sqlx::query(UPSERT).bind(&event.aggregate_id).execute(&pool).await?;
    Ok(())
}

pub(super) struct Evento {
    pool: PgPool,
    executor: Postgres,
}

impl Store for Evento {
    /// The id and the version.
    type Stream = (String, u16);

    async fn open(url: &str) -> Result<Self, BoxError> {
        let pool = PgPoolOptions::new().max_connections(POOL).connect(url).await?;
        let mut connection = pool.acquire().await?;
        ::evento::sql_migrator::new::<sqlx::Postgres>()?.run(&mut *connection, &Plan::apply_all()).await?;
        Ok(Self { executor: pool.clone().into(), pool })
    }

    fn fill() -> String {
        let hexadecimal = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let data = hexadecimal(bitcode::encode(&Counted { note: note() }));
        let metadata = hexadecimal(bitcode::encode(&Metadata::default()));
        format!(
            "insert into event (id, name, data, metadata, aggregator_type, aggregator_id, version, tenant, timestamp,
               timestamp_subsec)
             select lpad(n::text, 26, '0'), 'Counted', '\\x{data}', '\\x{metadata}', 'counter', stream, version, '',
               extract(epoch from now())::bigint - 3600 + n / 1000, n % 1000
             from seed order by n"
        )
    }

    fn stream(&self) -> Result<(String, Self::Stream), BoxError> {
        let id = Uuid::now_v7().to_string();
        Ok((id.clone(), (id, 0)))
    }

    async fn append(&self, (id, version): &mut Self::Stream, events: usize) -> Result<(), BoxError> {
        let mut append = ::evento::append(id.as_str());
        append.original_version(*version);
        for _ in 0..events {
            append.event(&Counted { note: note() });
        }
        append.commit(&self.executor).await?;
        *version += events as u16;
        Ok(())
    }

    async fn command(&self, id: Uuid) -> Result<(), BoxError> {
        let id = id.to_string();
        let kept = Projection::<Postgres, Kept>::new::<Counter>().handler(keep()).load(&id);
        let mut write = match kept.execute(&self.executor).await? {
            Some(kept) => kept.write()?,
            None => ::evento::append(&id),
        };
        write.event(&Counted { note: note() }).commit(&self.executor).await?;
        Ok(())
    }

    async fn load(&self, id: Uuid) -> Result<usize, BoxError> {
        let loaded = Projection::<Postgres, Loaded>::new::<Counter>().handler(load()).load(id.to_string());
        Ok(loaded.execute(&self.executor).await?.map(|loaded| loaded.counted).unwrap_or_default())
    }

    async fn follow(&self) -> Result<JoinHandle<Result<(), BoxError>>, BoxError> {
        let builder = SubscriptionBuilder::new("counted").handler(count()).data(self.pool.clone());
        let subscription = builder.start(&self.executor).await?;
        Ok(tokio::spawn(async move {
            let reason = subscription.stopped().await;
            Err(format!("the subscription stopped: {reason}").into())
        }))
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}
