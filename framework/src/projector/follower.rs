//! A projector at work: checkpoint and the user's own SQL, in one transaction.

use std::sync::Arc;

use sqlx::{Connection, PgConnection, Row, SqlStr};

use crate::{
    InvalidInput, Projector, Recorded,
    error::StoreError,
    event::contract::Contracts,
    sql::StoreName,
    store::Annals,
    subscription::{Applied, Batch, FollowError, Follower, ReadModel},
};

/// What creates the schema of `P`.
pub(crate) fn read_model<P: Projector>(store: &StoreName, contracts: &Contracts) -> Result<ReadModel, InvalidInput> {
    let schema = store.read_model(P::NAME)?;
    let own = |text| schema.instantiate_model(store, text);
    let tables = vec![
        own(include_str!("../sql/create_read_model.sql")),
        schema.verbatim(P::TABLES),
        schema.verbatim(P::INDEXES),
    ];
    Ok(ReadModel {
        name: P::NAME,
        kind: "projector",
        version: P::VERSION,
        categories: contracts.categories_of::<P::Event>(),
        schema,
        tables,
    })
}

/// The follower of a projector.
pub(crate) struct ProjectorFollower<P> {
    projector: P,
    begin: SqlStr,
    end: SqlStr,
    level: SqlStr,
    search_path: String,
    contracts: Arc<Contracts>,
    categories: Vec<String>,
}

impl<P: Projector> ProjectorFollower<P> {
    pub(crate) fn new(projector: P, store: &Annals, contracts: Arc<Contracts>) -> Result<Self, InvalidInput> {
        let name = &store.inner.name;
        let schema = name.read_model(P::NAME)?;
        let begin = schema.instantiate_model(name, include_str!("../sql/begin_projection.sql"));
        let categories = contracts.categories_of::<P::Event>();
        // `pg_temp` is searched first unless it is named: a temporary table would take the writes.
        let search_path = format!("\"{}\", pg_temp", schema.as_str());
        let level = store.inner.sql.begin_read_committed.clone();
        let end = store.inner.sql.check_projection.clone();
        Ok(Self { projector, begin, end, level, search_path, contracts, categories })
    }
}

impl<P: Projector> Follower for ProjectorFollower<P> {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn categories(&self) -> &[String] {
        &self.categories
    }

    async fn apply(&self, batch: Batch<'_>, conn: &mut PgConnection) -> Result<Applied, FollowError> {
        let what = |error| FollowError::Store(StoreError::on("move a projector's checkpoint")(error));
        let decoded = batch.events.iter().map(|raw| self.contracts.decode::<P::Event>(raw));
        let events: Vec<Recorded<P::Event>> = decoded.collect::<Result<_, _>>().map_err(Box::new)?;
        let mut tx = conn.begin_with(self.level.clone()).await.map_err(what)?;
        let row = sqlx::query(self.begin.clone())
            .bind(P::NAME)
            .bind(batch.from.generation)
            .bind(batch.from.position.get())
            .bind(batch.to.get())
            .bind(&self.search_path)
            .fetch_one(&mut *tx)
            .await
            .map_err(what)?;
        let (moved, transaction): (bool, Option<String>) = (row.get(0), row.get(1));
        if !moved {
            tx.rollback().await.map_err(what)?;
            return Ok(Applied::Fenced);
        }
        self.projector.apply(&events, &mut tx).await.map_err(FollowError::Handler)?;
        // Postgres answers COMMIT of a broken transaction with a rollback, and calls that a success.
        let same = sqlx::query_scalar(self.end.clone()).bind(transaction).fetch_one(&mut *tx).await;
        match same {
            Ok(true) => {}
            Ok(false) => return Err(broken("it ended the transaction that it was given")),
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("25P02") => {
                return Err(broken("a statement of it failed, and it did not return the error"));
            }
            Err(error) => return Err(what(error)),
        }
        tx.commit().await.map_err(what)?;
        Ok(Applied::Committed)
    }
}

fn broken(how: &str) -> FollowError {
    FollowError::Handler(format!("the projector broke its transaction: {how}").into())
}
