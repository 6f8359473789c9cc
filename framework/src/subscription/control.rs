//! Control over followers from any process, through the database: whoever runs them obeys within a second.

mod words;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, SqlSafeStr, postgres::PgRow};

pub use self::words::{By, DeadLetter, DeadLetterGroup, DeadLetters, FollowerAction, PartitionLag};
use super::wake_up;
use crate::{
    Position, StreamId, Version,
    error::StoreError,
    sql::StoreName,
    store::{Annals, connect_shortly, within},
};

/// Control over the followers of a store, whichever process runs them.
#[derive(Debug, Clone)]
pub struct Followers {
    pub(super) store: Annals,
}

impl Annals {
    /// Control over the followers of this store, whichever process runs them.
    pub fn followers(&self) -> Followers {
        Followers { store: self.clone() }
    }
}

impl Followers {
    /// How far every partition of every follower has come, and who has it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Timeout`], as every method here.
    pub async fn lag(&self) -> Result<Vec<PartitionLag>, StoreError> {
        let sql = &self.store.inner.sql.list_lag;
        let rows = self.read("list followers", || sql.query()).await?;
        let lag = |row: &PgRow| PartitionLag {
            follower: row.get("follower"),
            kind: row.get("kind"),
            version: row.get("version"),
            purpose: row.get("purpose"),
            generation: row.get("generation"),
            partition: row.get("partition"),
            partitions: row.get("partitions"),
            state: row.get("state"),
            reason: row.get("reason"),
            position: Position::new(row.get("position")),
            behind: row.get("behind"),
            seconds_behind: row.get("seconds_behind"),
            rate: row.get("rate"),
            seconds_to_catch_up: row.get("seconds_to_catch_up"),
            pairs: row.get("pairs"),
            applied: row.get("applied"),
            parked: row.get("parked"),
            discarded: row.get("discarded"),
            owner: row.get::<Option<String>, _>("owner").zip(row.get("pid")),
        };
        Ok(rows.iter().map(lag).collect())
    }

    /// Lets `name` stop where it is, and what is being built for it, until it is resumed.
    ///
    /// # Errors
    /// [`StoreError::Unfit`] if there is no such follower; one that is paused already is left as it is.
    pub async fn pause(&self, name: &str, by: &By) -> Result<(), StoreError> {
        self.set_state(name, "paused", "pause", by).await
    }

    /// Lets `name` go on that was paused, or that halted.
    ///
    /// # Errors
    /// As [`Followers::pause`].
    pub async fn resume(&self, name: &str, by: &By) -> Result<(), StoreError> {
        self.set_state(name, "running", "resume", by).await
    }

    async fn set_state(&self, name: &str, state: &str, action: &str, by: &By) -> Result<(), StoreError> {
        let what = StoreError::on("change a follower's state");
        self.check(name).await?;
        let mut conn = self.connect().await?;
        let mut tx = self.hold(name, &mut conn).await?;
        self.store
            .inner
            .sql
            .set_state
            .query()
            .bind(name)
            .bind(state)
            .bind(&by.actor)
            .bind(&by.reason)
            .bind(action)
            .execute(&mut *tx)
            .await
            .map_err(&what)?;
        tx.commit().await.map_err(&what)?;
        self.done(conn).await
    }

    /// Lets `name` be built anew from the log, beside what serves. A process that has its code begins within a second; what
    /// serves goes on until the new model takes its place. `pace` bounds the events a second; none lets the rebuild step back
    /// for a share of the time while the log is being written.
    ///
    /// # Errors
    /// As [`Followers::pause`].
    pub async fn rebuild(&self, name: &str, pace: Option<f64>, by: &By) -> Result<(), StoreError> {
        let what = StoreError::on("ask for a rebuild");
        self.check_builds(name, "it cannot be rebuilt").await?;
        let mut conn = self.connect().await?;
        self.store
            .inner
            .sql
            .request_rebuild
            .query()
            .bind(name)
            .bind(&by.actor)
            .bind(&by.reason)
            .bind(pace)
            .execute(&mut conn)
            .await
            .map_err(what)?;
        self.done(conn).await
    }

    /// Gives up what is being built for `name`. What serves is not touched. Returns whether there was anything.
    ///
    /// # Errors
    /// As [`Followers::pause`].
    pub async fn cancel_rebuild(&self, name: &str, by: &By) -> Result<bool, StoreError> {
        let what = StoreError::on("cancel a rebuild");
        self.check(name).await?;
        let mut conn = self.connect().await?;
        let mut tx = self.hold(name, &mut conn).await?;
        let cancelled: i64 = self
            .store
            .inner
            .sql
            .cancel_rebuild
            .scalar()
            .bind(name)
            .bind(&by.actor)
            .bind(&by.reason)
            .fetch_one(&mut *tx)
            .await
            .map_err(&what)?;
        tx.commit().await.map_err(&what)?;
        self.done(conn).await?;
        Ok(cancelled > 0)
    }

    /// Parked events, with the events they are about, in the order in which they would take effect: up to `limit`.
    ///
    /// # Errors
    /// As [`Followers::lag`].
    pub async fn dead_letters(
        &self,
        name: Option<&str>,
        letters: &DeadLetters,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        self.list(name, letters, false, limit).await
    }

    /// Events that somebody discarded, likewise.
    ///
    /// # Errors
    /// As [`Followers::lag`].
    pub async fn discarded(
        &self,
        name: Option<&str>,
        letters: &DeadLetters,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        self.list(name, letters, true, limit).await
    }

    async fn list(
        &self,
        name: Option<&str>,
        letters: &DeadLetters,
        discarded: bool,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let (key, fingerprint, position) = letters.parts();
        let owned = |text: Option<&str>| text.map(ToOwned::to_owned);
        let (name, key, fingerprint) = (owned(name), owned(key), owned(fingerprint));
        let sql = &self.store.inner.sql.list_dead_letters;
        let rows = self
            .read("list dead letters", || {
                sql.query()
                    .bind(name.clone())
                    .bind(key.clone())
                    .bind(fingerprint.clone())
                    .bind(position)
                    .bind(discarded)
                    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            })
            .await?;
        let letter = |row: &PgRow| DeadLetter {
            follower: row.get("follower"),
            position: Position::new(row.get("position")),
            key: row.get("key"),
            by_stream: row.get("by_stream"),
            state: row.get("state"),
            attempts: row.get("attempts"),
            fingerprint: row.get("fingerprint"),
            error: row.get("error"),
            parked_at: row.get("parked_at"),
            failed_at: row.get("failed_at"),
            next_attempt_at: row.get("next_attempt_at"),
            discarded: row
                .get::<Option<String>, _>("discarded_by")
                .zip(row.get::<Option<DateTime<Utc>>, _>("discarded_at"))
                .map(|(who, when)| (who, when, row.get::<Option<String>, _>("reason").unwrap_or_default())),
            stream: StreamId::stored(row.get("stream")),
            version: Version::new(row.get("version")),
            event_type: row.get("event_type"),
            event_id: row.get("event_id"),
            payload: row.get_unchecked::<String, _>("payload"),
        };
        Ok(rows.iter().map(letter).collect())
    }

    /// The failures of `name`, or of all followers, that look alike: the largest group first.
    ///
    /// # Errors
    /// As [`Followers::lag`].
    pub async fn dead_letter_groups(&self, name: Option<&str>) -> Result<Vec<DeadLetterGroup>, StoreError> {
        let (sql, name) = (&self.store.inner.sql.group_dead_letters, name.map(ToOwned::to_owned));
        let rows = self.read("group dead letters", || sql.query().bind(name.clone())).await?;
        let group = |row: &PgRow| DeadLetterGroup {
            follower: row.get(0),
            fingerprint: row.get(1),
            error: row.get(2),
            failed: row.get(3),
            waiting: row.get(4),
            oldest: row.get(5),
            next_attempt_at: row.get(6),
        };
        Ok(rows.iter().map(group).collect())
    }

    /// Lets parked keys be tried again now, each in order from its first event on. Returns how many keys.
    ///
    /// # Errors
    /// As [`Followers::pause`].
    pub async fn retry(&self, name: &str, letters: &DeadLetters, by: &By) -> Result<u64, StoreError> {
        self.change(name, letters, by, &self.store.inner.sql.retry_dead_letters, "retry dead letters").await
    }

    /// Discards parked events: `name` goes on without them, and what waits behind them is tried at once. The events stay in
    /// the log, and the dead letters with the reason. A rebuild leaves them out, too. Returns how many events.
    ///
    /// # Errors
    /// As [`Followers::pause`]; [`StoreError::Unfit`] without a reason.
    pub async fn discard(&self, name: &str, letters: &DeadLetters, by: &By) -> Result<u64, StoreError> {
        if by.reason.trim().is_empty() {
            return Err(StoreError::Unfit("to discard events takes a reason, which stays with them".into()));
        }
        self.change(name, letters, by, &self.store.inner.sql.discard_dead_letters, "discard dead letters").await
    }

    async fn change(
        &self,
        name: &str,
        letters: &DeadLetters,
        by: &By,
        sql: &crate::sql::Statement,
        what: &'static str,
    ) -> Result<u64, StoreError> {
        self.check(name).await?;
        let what = StoreError::on(what);
        let (key, fingerprint, position) = letters.parts();
        let mut conn = self.connect().await?;
        let mut tx = self.hold(name, &mut conn).await?;
        let changed: i64 = sql
            .scalar()
            .bind(name)
            .bind(key)
            .bind(fingerprint)
            .bind(position)
            .bind(&by.actor)
            .bind(&by.reason)
            .fetch_one(&mut *tx)
            .await
            .map_err(&what)?;
        tx.commit().await.map_err(&what)?;
        self.done(conn).await?;
        Ok(changed.unsigned_abs())
    }

    /// Lets `name` run in `partitions` partitions from now on, 1 to 1,024. All of them go on to one position and are replaced
    /// there, in one transaction: nothing is lost or applied twice, and nothing waits long.
    ///
    /// # Errors
    /// As [`Followers::pause`]; [`StoreError::Unfit`] for a number that is out of range, or while `name` is being rebuilt.
    pub async fn set_partitions(&self, name: &str, partitions: u32, by: &By) -> Result<(), StoreError> {
        let what = StoreError::on("change the number of partitions");
        self.check(name).await?;
        if !(1..=1_024).contains(&partitions) {
            return Err(StoreError::Unfit(format!(
                "{partitions} partitions are refused for {name}: 1 to 1,024 are possible"
            )));
        }
        let mut conn = self.connect().await?;
        let sql = &self.store.inner.sql;
        let mut tx = self.hold(name, &mut conn).await?;
        let begun = sql
            .set_partitions
            .query()
            .bind(name)
            .bind(partitions as i32)
            .bind(&by.actor)
            .bind(&by.reason)
            .fetch_optional(&mut *tx)
            .await
            .map_err(&what)?;
        if begun.is_none() {
            return Err(StoreError::Unfit(format!(
                "{name} is being rebuilt, or has an event parked whose keys are not known: wait, cancel the rebuild, retry or \
                 discard the event, first"
            )));
        }
        tx.commit().await.map_err(&what)?;
        self.done(conn).await
    }

    /// Keeps the model of a follower that its code calls otherwise from now on.
    ///
    /// # Errors
    /// As [`Followers::pause`]; [`StoreError::Unfit`] if `new` is taken, or is no name, or if it is a saga or a reactor.
    pub async fn rename(&self, old: &str, new: &str, by: &By) -> Result<(), StoreError> {
        let what = StoreError::on("rename a follower");
        self.check_builds(old, "what it has begun is known by its name").await?;
        let schema = self.store.inner.name.read_model(new)?;
        let mut conn = self.connect().await?;
        let sql = &self.store.inner.sql;
        let asking = self.read("look for a follower", || sql.read_follower.query().bind(new.to_owned()));
        if !asking.await?.is_empty() {
            return Err(StoreError::Unfit(format!("{new} is a follower of this store already: forget it first")));
        }
        let mut tx = self.hold(old, &mut conn).await?;
        let renaming =
            sql.rename_follower.scalar().bind(old).bind(new).bind(schema.as_str()).bind(&by.actor).bind(&by.reason);
        let was: Option<String> = renaming.fetch_optional(&mut *tx).await.map_err(&what)?;
        let Some(was) = was else { return Err(unknown(old)) };
        self.rename_schema(&was, schema.as_str(), &mut tx).await?;
        tx.commit().await.map_err(&what)?;
        self.done(conn).await
    }

    /// Lets the store forget a follower: its checkpoints, its dead letters, and, a little later, its tables. The log stays, so
    /// a follower of that name that starts afterwards is built anew.
    ///
    /// # Errors
    /// As [`Followers::pause`].
    pub async fn forget(&self, name: &str, by: &By) -> Result<(), StoreError> {
        let what = StoreError::on("forget a follower");
        let mut conn = self.connect().await?;
        let sql = &self.store.inner.sql;
        let mut tx = conn.begin_with(sql.begin_read_committed.text()).await.map_err(&what)?;
        let schema = self.store.inner.name.read_model(name)?;
        let locking = sql.lock_follower.query().bind(schema.as_str());
        let number: i64 = locking.fetch_one(&mut *tx).await.map_err(&what)?.get(2);
        sql.lock_checkpoints.query().bind(name).execute(&mut *tx).await.map_err(&what)?;
        let suffix = StoreName::stored(String::new()).shadow(number);
        let suffix = suffix.as_str().trim_start_matches('_');
        let forgetting = sql.forget_follower.query().bind(name).bind(&by.actor).bind(&by.reason).bind(suffix);
        let Some(row) = forgetting.fetch_optional(&mut *tx).await.map_err(&what)? else { return Err(unknown(name)) };
        let schema: String = row.get(1);
        self.rename_schema(&schema, &format!("{schema}_{suffix}"), &mut tx).await?;
        tx.commit().await.map_err(&what)?;
        self.done(conn).await
    }

    async fn rename_schema(&self, old: &str, new: &str, conn: &mut PgConnection) -> Result<(), StoreError> {
        let what = StoreError::on("rename a read model's schema");
        let asking = self.store.inner.sql.rename_schema.scalar().bind(old).bind(new);
        let statement: Option<String> = asking.fetch_optional(&mut *conn).await.map_err(&what)?;
        let Some(statement) = statement else { return Ok(()) };
        sqlx::raw_sql(AssertSqlSafe(statement).into_sql_str()).execute(conn).await.map(drop).map_err(what)
    }

    /// What was done to `name`, or to all followers, the latest first: up to `limit`.
    ///
    /// # Errors
    /// As [`Followers::lag`].
    pub async fn actions(&self, name: Option<&str>, limit: usize) -> Result<Vec<FollowerAction>, StoreError> {
        let (sql, name) = (&self.store.inner.sql.list_actions, name.map(ToOwned::to_owned));
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = self.read("list actions", || sql.query().bind(name.clone()).bind(limit)).await?;
        let action = |row: &PgRow| FollowerAction {
            follower: row.get(0),
            action: row.get(1),
            actor: row.get(2),
            reason: row.get(3),
            details: row.get_unchecked(4),
            acted_at: row.get(5),
        };
        Ok(rows.iter().map(action).collect())
    }

    /// Refuses a follower that builds nothing from the log, besides one that is not there.
    async fn check_builds(&self, name: &str, why: &str) -> Result<(), StoreError> {
        let (sql, owned) = (&self.store.inner.sql.read_follower, name.to_owned());
        let rows = self.read("look for a follower", || sql.query().bind(owned.clone())).await?;
        match rows.first().map(|row| row.get::<String, _>(0)).as_deref() {
            None => Err(unknown(name)),
            Some("view" | "projector") => Ok(()),
            Some(kind) => Err(StoreError::Unfit(format!("{name} is a {kind}, and builds nothing from the log: {why}"))),
        }
    }

    /// Refuses a name that no follower has.
    async fn check(&self, name: &str) -> Result<(), StoreError> {
        let (sql, owned) = (&self.store.inner.sql.read_follower, name.to_owned());
        let rows = self.read("look for a follower", || sql.query().bind(owned.clone())).await?;
        if rows.is_empty() { Err(unknown(name)) } else { Ok(()) }
    }

    pub(super) async fn read(
        &self,
        what: &'static str,
        query: impl Fn() -> sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments>,
    ) -> Result<Vec<PgRow>, StoreError> {
        self.store
            .inner
            .read(what, |mut conn| {
                let query = query();
                async move { query.fetch_all(&mut *conn).await }
            })
            .await
    }

    /// Begins a transaction in which no batch of `name` commits: its checkpoints come first in everyone's order of locks.
    async fn hold<'c>(
        &self,
        name: &str,
        conn: &'c mut PgConnection,
    ) -> Result<sqlx::Transaction<'c, sqlx::Postgres>, StoreError> {
        let what = StoreError::on("hold a follower's checkpoints");
        let sql = &self.store.inner.sql;
        let mut tx = conn.begin_with(sql.begin_read_committed.text()).await.map_err(&what)?;
        sql.lock_checkpoints.query().bind(name).execute(&mut *tx).await.map_err(&what)?;
        Ok(tx)
    }

    async fn connect(&self) -> Result<PgConnection, StoreError> {
        connect_shortly(&self.store).await
    }

    /// Tells every process that something is to be looked at.
    async fn done(&self, conn: PgConnection) -> Result<(), StoreError> {
        let _ = within(self.store.config().connect_deadline, "end a connection", conn.close()).await;
        wake_up::tell(&self.store, &wake_up::control(&self.store)).await;
        Ok(())
    }
}

fn unknown(name: &str) -> StoreError {
    StoreError::Unfit(format!("there is no follower {name:?} in this store"))
}
