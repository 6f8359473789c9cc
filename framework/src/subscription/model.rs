//! What a build knows of a follower's model, and how the model is set up in the database: live, or as a shadow beside it.

use std::sync::Arc;

use sqlx::{Connection, PgConnection, Row};

use super::{
    batch::{Follower, Unit},
    control::By,
    policy::FailurePolicy,
    recent::Filter,
};
use crate::{
    error::StoreError,
    sql::StoreName,
    store::{Annals, connect, within},
};

/// Makes what does the work for a partition.
pub(crate) type Make = Box<dyn Fn(&Unit) -> Arc<dyn Follower> + Send + Sync>;

/// Where a follower begins that is new in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// At the start of the log.
    Start,
    /// At what comes from now on.
    Now,
}

/// A follower as this build has it: a read model, or one whose work is done elsewhere.
pub(crate) struct Model {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) version: u32,
    /// Other versions of it that this build can run: a saga's, until none of their instances is left.
    pub(crate) older: Vec<u32>,
    /// How many partitions it begins with.
    pub(crate) partitions: u32,
    pub(crate) policy: FailurePolicy,
    /// The stream categories that it reads, sorted.
    pub(crate) categories: Vec<String>,
    pub(crate) skips: &'static [&'static str],
    /// What recognises it under another name.
    pub(crate) definition: String,
    /// The schema of what is live.
    pub(crate) live: StoreName,
    pub(crate) begin: Begin,
    /// Creates the tables, and with them the keys that the work needs, with `search_path` set to a schema.
    pub(crate) tables: &'static str,
    /// Creates the other indexes, likewise.
    pub(crate) indexes: &'static str,
    pub(crate) follower: Make,
}

/// A generation that is entered into the store.
pub(crate) struct Generation {
    /// The name it is entered under: the model's, but for what no other process may meet.
    pub(crate) follower: &'static str,
    pub(crate) number: i64,
    pub(crate) schema: StoreName,
    pub(crate) purpose: &'static str,
    pub(crate) partitions: i32,
    pub(crate) pace: Option<f64>,
    pub(crate) requested_by: Option<String>,
}

impl Model {
    /// The events that a partition wants. Which keys a view's event has, only the view knows: all its partitions look at it.
    pub(crate) fn filter(&self, unit: &Unit) -> Filter {
        let streams = (self.kind != "view" && unit.partitions > 1).then_some((unit.partition, unit.partitions));
        Filter { categories: self.categories.clone(), skips: self.skips, streams }
    }

    /// Whether it is built from the log, in a schema of its own, and can be built anew.
    pub(crate) fn is_read_model(&self) -> bool {
        matches!(self.kind, "view" | "projector")
    }

    /// `name:version`, as processes say what they can run.
    pub(crate) fn runs(&self) -> impl Iterator<Item = String> {
        let versions = self.older.iter().chain([&self.version]);
        versions.map(|version| format!("{}:{version}", self.name))
    }

    /// Creates the model with its checkpoint at the log's start; or checks that it is this build's, and begins to build this
    /// version beside it if that is newer. `others` are the names of all that the app registers.
    pub(crate) async fn set_up(&self, store: &Annals, others: &[&'static str]) -> Result<(), StoreError> {
        let deadline = store.config().connect_deadline;
        let mut conn = connect(&store.inner.options, deadline).await?;
        let setting_up = self.set_up_on(store, others, &mut conn);
        let result = within(deadline * 6, "set up a read model", setting_up).await?;
        let _ = conn.close().await;
        result
    }

    async fn set_up_on(
        &self,
        store: &Annals,
        others: &[&'static str],
        conn: &mut PgConnection,
    ) -> Result<(), StoreError> {
        let what = StoreError::on("set up a read model");
        let sql = &store.inner.sql;
        let (name, schema) = (self.name, self.live.as_str());
        // A level that sees, behind the lock, what its holder before has made.
        let mut tx = conn.begin_with(sql.begin_read_committed.text()).await.map_err(&what)?;
        let row = sql.lock_follower.query().bind(schema).fetch_one(&mut *tx).await.map_err(&what)?;
        let (there, may_create, number): (bool, bool, i64) = (row.get(0), row.get(1), row.get(2));
        let known = sql.read_follower.query().bind(name).fetch_optional(&mut *tx).await.map_err(&what)?;
        let Some(known) = known else {
            if there && self.is_read_model() {
                return Err(StoreError::Unfit(format!(
                    "schema {schema} exists, but {name} has no checkpoint in the store: drop the schema, or give the read \
                     model another name"
                )));
            }
            self.refuse_renamed(store, others, &mut tx).await?;
            if !may_create && self.is_read_model() {
                return Err(StoreError::Unfit(format!(
                    "{name} is new and this role may not create its schema {schema}: start once as a role with CREATE on \
                     the database"
                )));
            }
            let generation = Generation {
                follower: name,
                number,
                schema: self.live.clone(),
                purpose: "live",
                partitions: self.partitions.clamp(1, 1_024) as i32,
                pace: None,
                requested_by: None,
            };
            self.create(store, &generation, true, &mut tx).await?;
            return tx.commit().await.map_err(&what);
        };
        let (kind, version, categories): (&str, i32, Vec<String>) = (known.get(0), known.get(2), known.get(3));
        let skips: Vec<String> = known.get(4);
        let (partitions, rebuild_version): (i32, Option<i32>) = (known.get(5), known.get(7));
        let own = self.version as i32;
        sql.set_definition.query().bind(name).bind(&self.definition).execute(&mut *tx).await.map_err(&what)?;
        if kind != self.kind {
            return Err(StoreError::Unfit(format!(
                "{name} is a {kind} in this store, and a {} in this build: give one of them another name",
                self.kind
            )));
        }
        if !self.is_read_model() {
            // What it did, it did: a newer version, or one that reads more, goes on from here.
            let raising = sql.raise_version.query().bind(name).bind(own).bind(&self.categories);
            raising.execute(&mut *tx).await.map_err(&what)?;
            return tx.commit().await.map_err(&what);
        }
        if !there {
            return Err(StoreError::Unfit(format!(
                "schema {schema} of {name} is gone while its checkpoint stands: restore it, or let the store forget {name} \
                 (Annals::followers, forget), and it is built again from the log"
            )));
        }
        if version == own && (categories != self.categories || skips != self.skips) {
            let list = |categories: &[String], skips: &[String]| match skips {
                [] => categories.join(", "),
                skips => format!("{} without {}", categories.join(", "), skips.join(", ")),
            };
            let skipped: Vec<String> = self.skips.iter().map(ToString::to_string).collect();
            return Err(StoreError::Unfit(format!(
                "{name} was built from the streams of {} and reads those of {} in this build, whose past it lacks: raise its \
                 VERSION, and it is built again from the log while what is there still serves",
                list(&categories, &skips),
                list(&self.categories, &skipped)
            )));
        }
        if version < own && rebuild_version.is_none_or(|version| version < own) {
            if !may_create {
                tracing::warn!(
                    follower = name,
                    "version {own} is to be built, and this role may not create its schema; a process whose role may does it"
                );
                return Ok(());
            }
            let by = By::new("annals", "its version was raised");
            self.begin_rebuild(store, (number, partitions, None), &by, &mut tx).await?;
            return tx.commit().await.map_err(&what);
        }
        tx.commit().await.map_err(&what)
    }

    /// Begins to build this version beside what is live, in place of whatever else was being built.
    pub(crate) async fn begin_rebuild(
        &self,
        store: &Annals,
        (number, partitions, pace): (i64, i32, Option<f64>),
        by: &By,
        conn: &mut PgConnection,
    ) -> Result<(), StoreError> {
        let what = StoreError::on("begin a rebuild");
        let sql = &store.inner.sql;
        let known = sql.read_follower.query().bind(self.name).fetch_one(&mut *conn).await.map_err(&what)?;
        if let Some(other) = known.get::<Option<i64>, _>(6) {
            let retiring = sql.retire_generation.query().bind(self.name).bind(other);
            retiring.execute(&mut *conn).await.map_err(&what)?;
        }
        let generation = Generation {
            follower: self.name,
            number,
            schema: self.live.shadow(number),
            purpose: "rebuild",
            partitions,
            pace,
            requested_by: Some(by.actor.clone()),
        };
        self.create(store, &generation, false, conn).await?;
        // What somebody decided to leave out stays left out.
        sql.copy_discards
            .query()
            .bind(self.name)
            .bind(known.get::<i64, _>(1))
            .bind(number)
            .bind(["discarded"].as_slice())
            .execute(&mut *conn)
            .await
            .map_err(&what)?;
        sql.record_action
            .query()
            .bind(self.name)
            .bind(number)
            .bind("rebuild")
            .bind(&by.actor)
            .bind(&by.reason)
            .bind(format!(r#"{{"version":{}}}"#, self.version))
            .execute(conn)
            .await
            .map(drop)
            .map_err(&what)
    }

    /// Creates the schema of a generation, with its tables, and enters it. `indexes`: with the other indexes, too.
    pub(crate) async fn create(
        &self,
        store: &Annals,
        generation: &Generation,
        indexes: bool,
        conn: &mut PgConnection,
    ) -> Result<(), StoreError> {
        let what = StoreError::on("create the tables of a read model");
        let (name, schema) = (&store.inner.name, &generation.schema);
        let text = |text| schema.instantiate_model(name, text);
        if self.is_read_model() {
            let mut statements = vec![text(include_str!("../sql/create_read_model.sql")), schema.verbatim(self.tables)];
            if indexes {
                statements.push(schema.verbatim(self.indexes));
            }
            for statement in statements {
                sqlx::raw_sql(statement.text())
                    .execute(&mut *conn)
                    .await
                    .map_err(|error| self.refused(schema, error))?;
            }
            text(include_str!("../sql/place_read_model.sql"))
                .query()
                .bind(generation.partitions)
                .execute(&mut *conn)
                .await
                .map_err(&what)?;
        }
        store
            .inner
            .sql
            .create_generation
            .query()
            .bind(generation.follower)
            .bind(self.kind)
            .bind(&self.definition)
            .bind(generation.number)
            .bind(self.version as i32)
            .bind(generation.purpose)
            .bind(schema.as_str())
            .bind(&self.categories)
            .bind(self.skips)
            .bind(generation.partitions)
            .bind(generation.pace)
            .bind(&generation.requested_by)
            .bind(indexes)
            .bind(match self.begin {
                Begin::Start => 0,
                Begin::Now => store.safe_end().await?.get(),
            })
            .execute(conn)
            .await
            .map(drop)
            .map_err(&what)
    }

    /// What a refusal of the user's own statements means.
    pub(crate) fn refused(&self, schema: &StoreName, error: sqlx::Error) -> StoreError {
        match StoreError::on("create the tables of a read model")(error) {
            StoreError::Refused { source, .. } => StoreError::Unfit(format!(
                "the {} of {} cannot be created in schema {}: {source}. Correct its SQL and start again; nothing was created",
                if self.kind == "view" { "indexes" } else { "tables or indexes" },
                self.name,
                schema.as_str(),
            )),
            passing => passing,
        }
    }

    /// Refuses to begin at the log's start with what looks like another follower under a new name.
    async fn refuse_renamed(
        &self,
        store: &Annals,
        others: &[&'static str],
        conn: &mut PgConnection,
    ) -> Result<(), StoreError> {
        let names: Vec<String> = store
            .inner
            .sql
            .list_unregistered
            .scalar()
            .bind(&self.definition)
            .bind(others)
            .fetch_all(conn)
            .await
            .map_err(StoreError::on("look for a renamed read model"))?;
        match names.first() {
            None => Ok(()),
            Some(old) => Err(StoreError::Unfit(format!(
                "{} is new in this store, and {old}, which this app does not register, is defined alike: if it was renamed, \
                 keep its rows with Annals::followers().rename({old:?}, {:?}, ..); if {old} is to go, let the store forget it with \
                 .forget({old:?}, ..); nothing was created",
                self.name, self.name
            ))),
        }
    }
}
