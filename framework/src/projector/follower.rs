//! A projector at work: checkpoint and the user's own SQL, in one transaction.

use std::sync::Arc;

use futures::future::BoxFuture;
use sqlx::{Connection, PgConnection, Row};

use crate::{
    Begin, InvalidInput, Projector, Recorded,
    error::StoreError,
    event::contract::Contracts,
    sql::Statement,
    store::Annals,
    subscription::{Applied, Batch, FollowError, Follower, Letters, Model, Unit, Work, guarded},
};

/// What there is to know of `projector` to set it up and to run it.
pub(crate) fn model<P: Projector>(
    projector: P,
    store: &Annals,
    contracts: &Arc<Contracts>,
) -> Result<Model, InvalidInput> {
    let (projector, store, contracts) = (Arc::new(projector), store.clone(), contracts.clone());
    Ok(Model {
        name: P::NAME,
        kind: "projector",
        version: P::VERSION,
        older: vec![],
        partitions: P::PARTITIONS,
        policy: P::FAILURES,
        categories: contracts.categories_of::<P::Event>(),
        skips: P::SKIPS,
        definition: format!("projector {}", P::TABLES),
        live: store.inner.name.read_model(P::NAME)?,
        begin: Begin::Start,
        tables: P::TABLES,
        indexes: P::INDEXES,
        follower: Box::new(move |unit| {
            Arc::new(ProjectorFollower::new(projector.clone(), &store, contracts.clone(), unit))
        }),
    })
}

/// The follower of a projector.
struct ProjectorFollower<P> {
    projector: Arc<P>,
    begin: Statement,
    end: Statement,
    search_path: String,
    contracts: Arc<Contracts>,
    /// Whether there is a pooler in transaction mode.
    pooled: bool,
}

impl<P: Projector> ProjectorFollower<P> {
    fn new(projector: Arc<P>, store: &Annals, contracts: Arc<Contracts>, unit: &Unit) -> Self {
        let begin = unit.schema.instantiate_model(&store.inner.name, include_str!("../sql/begin_projection.sql"));
        // `pg_temp` is searched first unless it is named: a temporary table would take the writes.
        let search_path = format!("\"{}\", pg_temp", unit.schema.as_str());
        let pooled = store.inner.is_pooled();
        Self { projector, begin, end: store.inner.sql.check_projection.clone(), search_path, contracts, pooled }
    }

    /// Splits the batch into what is to be applied and what is parked. A projector's keys are the streams.
    async fn sort(
        &self,
        batch: &Batch,
        letters: &mut Letters<'_>,
        conn: &mut PgConnection,
    ) -> Result<Vec<Recorded<P::Event>>, FollowError> {
        letters.find(batch.events.iter().map(|raw| raw.stream.as_str()).collect(), conn).await?;
        let mut events = Vec::with_capacity(batch.events.len());
        for raw in &batch.events {
            let (position, stream) = (raw.position, raw.stream.as_str());
            if letters.has_ended() {
                break;
            }
            if letters.discard(position, stream, false) {
                continue;
            }
            if letters.is_blocked(stream, false) {
                letters.queue(position, stream, false);
                continue;
            }
            let poison = letters.poison(position, stream, false).or_else(|| letters.poison(position, stream, true));
            let decoded = match poison {
                Some(poison) => Err(FollowError::Known(poison.told.text.clone())),
                None => {
                    batch.progress.decoding(position);
                    match guarded(|| self.contracts.decode::<P::Event>(raw)) {
                        Ok(decoded) => decoded.map_err(|error| Box::new(error).into()),
                        Err(panic) => Err(panic),
                    }
                }
            };
            match decoded {
                Ok(event) => {
                    events.push(event);
                    letters.applied(1);
                    if batch.work != Work::Follow {
                        letters.retried(position);
                    }
                }
                Err(error) => letters.fail(position, stream, false, error)?,
            }
        }
        batch.progress.end();
        Ok(events)
    }

    async fn work(&self, batch: &Batch, conn: &mut PgConnection) -> Result<Applied, FollowError> {
        let what = |error| FollowError::Store(StoreError::on("move a projector's checkpoint")(error));
        let mut letters = Letters::new(batch);
        let events = self.sort(batch, &mut letters, conn).await?;
        letters.judge()?;
        let mut tx = batch.sql.transaction(conn).await.map_err(what)?;
        let row = self
            .begin
            .query()
            .bind(batch.unit.name)
            .bind(batch.unit.generation)
            .bind(batch.unit.partition)
            .bind(batch.from.fence)
            .bind(batch.from.position.get())
            .bind(batch.to.get())
            .bind(letters.counts())
            .bind(&self.search_path)
            .bind(batch.owner)
            .fetch_one(&mut *tx)
            .await
            .map_err(what)?;
        let (moved, transaction): (bool, Option<String>) = (row.get(0), row.get(1));
        if !moved {
            tx.rollback().await.map_err(what)?;
            return Ok(Applied::Fenced);
        }
        letters.store(&mut tx).await?;
        if !events.is_empty() {
            if self.pooled {
                // Of another server connection than this one; and what other clients left on this one.
                tx.clear_cached_statements().await.map_err(what)?;
                batch.sql.forget_statements(&mut tx).await.map_err(what)?;
            }
            self.projector.apply(&events, &mut tx).await.map_err(FollowError::Handler)?;
        }
        // Postgres answers COMMIT of a broken transaction with a rollback, and calls that a success.
        let left = sqlx::raw_sql(self.end.text()).fetch_one(&mut *tx).await;
        match left.and_then(|row| row.try_get::<Option<String>, _>(0)) {
            Ok(left) if left == transaction => {}
            Ok(_) => return Err(broken("it ended the transaction that it was given")),
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("25P02") => {
                return Err(broken("a statement of it failed, and it did not return the error"));
            }
            Err(error) => return Err(what(error)),
        }
        if self.pooled {
            tx.clear_cached_statements().await.map_err(what)?;
        }
        tx.commit().await.map_err(what)?;
        Ok(Applied::Committed(letters.take_rows()))
    }
}

impl<P: Projector> Follower for ProjectorFollower<P> {
    fn apply<'a>(
        &'a self,
        batch: &'a Batch,
        conn: &'a mut PgConnection,
    ) -> BoxFuture<'a, Result<Applied, FollowError>> {
        Box::pin(self.work(batch, conn))
    }
}

fn broken(how: &str) -> FollowError {
    FollowError::Handler(format!("the projector broke its transaction: {how}").into())
}
