//! A follower's place in the database: set up once, then compared and set with every piece of work.

use sqlx::{Connection, PgConnection, Row, SqlStr};

use crate::{
    Position,
    error::StoreError,
    sql::StoreName,
    store::{Annals, connect, within},
};

/// How far a follower has come, as committed. A piece of work commits only if it begins where the checkpoint stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) generation: i64,
    pub(crate) position: Position,
}

impl Checkpoint {
    pub(crate) async fn read(store: &Annals, name: &str) -> Result<Self, StoreError> {
        let (sql, follower) = (store.inner.sql.read_checkpoint.clone(), name.to_owned());
        let row = store
            .inner
            .read("read a checkpoint", |mut conn| {
                let (sql, follower) = (sql.clone(), follower.clone());
                async move { sqlx::query(sql).bind(follower).fetch_optional(&mut *conn).await }
            })
            .await?;
        let row = row.ok_or_else(|| {
            StoreError::Unfit(format!(
                "the checkpoint of {name} is gone from the store: start the app again to set it up"
            ))
        })?;
        Ok(Self { generation: row.get(0), position: Position::new(row.get(1)) })
    }
}

/// A read model as it is to be set up: its schema, and what creates the tables in it.
pub(crate) struct ReadModel {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) version: u32,
    /// The stream categories that it reads, sorted.
    pub(crate) categories: Vec<String>,
    pub(crate) schema: StoreName,
    /// Statements that run with `search_path` set to the schema.
    pub(crate) tables: Vec<SqlStr>,
}

impl ReadModel {
    /// Creates the schema and the checkpoint at the log's start, or checks that they are this build's.
    pub(crate) async fn set_up(self, store: &Annals) -> Result<(), StoreError> {
        let config = store.config();
        let mut conn = connect(&store.inner.options, config.connect_deadline).await?;
        let result =
            within(config.connect_deadline * 6, "set up a read model", self.set_up_on(store, &mut conn)).await?;
        let _ = conn.close().await;
        result
    }

    async fn set_up_on(self, store: &Annals, conn: &mut PgConnection) -> Result<(), StoreError> {
        let what = StoreError::on("set up a read model");
        let sql = &store.inner.sql;
        let schema = self.schema.as_str();
        // A level that sees, behind the lock, what its holder before has made.
        let mut tx = conn.begin_with(sql.begin_read_committed.clone()).await.map_err(&what)?;
        let row = sqlx::query(sql.lock_follower.clone()).bind(schema).fetch_one(&mut *tx).await.map_err(&what)?;
        let (there, may_create): (bool, bool) = (row.get(0), row.get(1));
        let known =
            sqlx::query(sql.read_follower.clone()).bind(self.name).fetch_optional(&mut *tx).await.map_err(&what)?;
        match known {
            Some(row) => return self.check(row.get(0), row.get(1), row.get(2), there),
            None if there => {
                return Err(StoreError::Unfit(format!(
                    "schema {schema} exists, but {} has no checkpoint in the store: drop the schema, or give the read \
                     model another name",
                    self.name
                )));
            }
            None if !may_create => {
                return Err(StoreError::Unfit(format!(
                    "{} is new and this role may not create its schema {schema}: start once as a role with CREATE on the \
                     database",
                    self.name
                )));
            }
            None => {}
        }
        for statement in self.tables {
            sqlx::raw_sql(statement).execute(&mut *tx).await.map_err(|error| {
                match StoreError::on("create the tables of a read model")(error) {
                    StoreError::Refused { source, .. } => StoreError::Unfit(format!(
                        "the {} of {} cannot be created in schema {schema}: {source}. Correct its SQL and start again; \
                         nothing was created",
                        if self.kind == "view" { "indexes" } else { "tables or indexes" },
                        self.name,
                    )),
                    passing => passing,
                }
            })?;
        }
        sqlx::query(sql.create_follower.clone())
            .bind(self.name)
            .bind(self.kind)
            .bind(self.version as i32)
            .bind(&self.categories)
            .execute(&mut *tx)
            .await
            .map_err(&what)?;
        tx.commit().await.map_err(&what)
    }

    fn check(&self, kind: &str, version: i32, categories: Vec<String>, there: bool) -> Result<(), StoreError> {
        let (name, schema) = (self.name, self.schema.as_str());
        let trouble = if kind != self.kind {
            format!(
                "{name} is a {kind} in this store, and a {} in this build: give one of them another name",
                self.kind
            )
        } else if version != self.version as i32 {
            format!(
                "{name} is stored at version {version} and this build has version {}: drop schema {schema} cascade, then \
                 delete its rows from the store's tables checkpoints and followers, and it is built again from the log",
                self.version
            )
        } else if categories != self.categories {
            format!(
                "{name} was built from the streams of {} and reads those of {} in this build, whose past it lacks: drop \
                 schema {schema} cascade, then delete its rows from the store's tables checkpoints and followers, and it \
                 is built again from the log",
                categories.join(", "),
                self.categories.join(", ")
            )
        } else if !there {
            format!(
                "schema {schema} of {name} is gone while its checkpoint stands: delete its rows from the store's tables \
                 checkpoints and followers, and it is built again from the log"
            )
        } else {
            return Ok(());
        };
        Err(StoreError::Unfit(trouble))
    }
}
