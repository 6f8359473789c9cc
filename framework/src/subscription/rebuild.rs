//! Rebuilds: a new generation of a model is made beside the one that serves, and takes its place in one transaction.
//!
//! The shadow is a generation like the live one: its partitions have owners, checkpoints and dead letters of their own. Once
//! it has caught up it gets its indexes, catches up again, and the schemas change names in the transaction that changes
//! what is live. Until then nobody reads the shadow; from then on nobody works for the old model, whose checkpoints are gone.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, SqlSafeStr, postgres::PgRow};
use tokio::time::{Instant, sleep};

use super::{control::By, coordinator::Registered, failure::FollowError, model::Model, wake_up};
use crate::{
    error::StoreError,
    sql::StoreName,
    store::{Annals, connect, connect_shortly, within},
};

/// How near a shadow has to be to the log's end to get its indexes and try to take the live model's place, in positions.
const NEAR: i64 = 10_000;
/// How long the live model is held while the shadow passes it.
const HELD: Duration = Duration::from_millis(500);
/// A reader is old that reads for longer; how often a moment without any reader is looked for.
const OLD: Duration = Duration::from_secs(1);
const MOMENTS: usize = 20;
/// How often it is said for whom a swap waits.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How soon it is looked again while there is something to do, and else.
const SOON: Duration = Duration::from_millis(100);
const LATER: Duration = Duration::from_secs(1);
/// How long indexes may take to be made: as long as it takes.
const INDEXES: Duration = Duration::from_secs(24 * 3_600);

/// A shadow that is being built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shadow {
    pub(super) generation: i64,
    pub(super) schema: String,
}

/// Does what there is to do beside following: begins rebuilds, drops what nothing serves any more; or, for `shadows`, finishes
/// rebuilds, which may take as long as an index takes.
/// Returns whether there was anything.
async fn do_chores(store: &Annals, followers: &[Registered], shadows: bool) -> Result<bool, StoreError> {
    let names: Vec<&str> = followers.iter().map(|follower| follower.model.name).collect();
    let listing = store.inner.sql.list_chores.query().bind(names).bind(NEAR);
    let rows = store.inner.reads.all("look for what is to be rebuilt", listing).await?;
    for row in &rows {
        let (name, chore): (&str, &str) = (row.get(0), row.get(1));
        let model = followers.iter().find(|follower| follower.model.name == name && follower.runs);
        let model = model.map(|follower| &follower.model);
        let (generation, schema, version) = (row.get::<Option<i64>, _>(2), row.get::<Option<String>, _>(3), row.get(4));
        let done = match (chore, model, generation, schema) {
            _ if (chore == "shadow") != shadows || !row.get::<bool, _>(6) => Ok(()),
            ("rebuild", Some(model), ..) => begin(store, model).await,
            ("shadow", Some(model), Some(generation), Some(schema)) if Some(model.version as i32) == version => {
                finish(store, model, &Shadow { generation, schema }).await
            }
            ("partitions", Some(model), Some(generation), Some(_)) => {
                repartition(store, model, generation, row.get(5)).await
            }
            ("drop", _, Some(generation), Some(schema)) => drop_schema(store, name, generation, &schema).await,
            _ => Ok(()),
        };
        if let Err(error) = done {
            let error = FollowError::Store(error).text();
            tracing::warn!(follower = name, chore, %error, "what is to be done for a follower failed; it is tried again");
        }
    }
    Ok(!rows.is_empty())
}

/// Begins a rebuild that somebody asked for.
async fn begin(store: &Annals, model: &Model) -> Result<(), StoreError> {
    let what = StoreError::on("begin a rebuild");
    let sql = &store.inner.sql;
    let mut conn = connect_shortly(store).await?;
    let mut tx = conn.begin_with(sql.begin_read_committed.text()).await.map_err(&what)?;
    let locking = sql.lock_follower.query().bind(model.live.as_str());
    let number: i64 = locking.fetch_one(&mut *tx).await.map_err(&what)?.get(2);
    let taking = sql.take_rebuild.query().bind(model.name);
    let Some(asked) = taking.fetch_optional(&mut *tx).await.map_err(&what)? else { return Ok(()) };
    let known = sql.read_follower.query().bind(model.name).fetch_one(&mut *tx).await.map_err(&what)?;
    // A build of an older version leaves it to one that has the newer.
    if (model.version as i32) < known.get::<i32, _>(2).max(known.get::<Option<i32>, _>(7).unwrap_or_default()) {
        return Ok(());
    }
    let by = By { actor: asked.get(0), reason: asked.get(1) };
    model.begin_rebuild(store, (number, known.get(5), asked.get(2)), &by, &mut tx).await?;
    tx.commit().await.map_err(&what)?;
    let _ = conn.close().await;
    wake_up::tell(store, &wake_up::control(store)).await;
    Ok(())
}

/// How far a shadow has come, and whether it has its indexes; none if it is no longer built.
async fn progress(
    conn: &mut PgConnection,
    store: &Annals,
    model: &Model,
    shadow: &Shadow,
) -> Result<Option<(i64, bool)>, StoreError> {
    let reading = store.inner.sql.read_shadow.query().bind(model.name).bind(shadow.generation);
    let row = reading.fetch_optional(conn).await.map_err(StoreError::on("read how far a shadow has come"))?;
    Ok(row.map(|row| (row.get(0), row.get(1))))
}

/// Takes a shadow further that has caught up: its indexes, and then the live model's place.
async fn finish(store: &Annals, model: &Model, shadow: &Shadow) -> Result<(), StoreError> {
    let mut conn = connect(&store.inner.options, store.config().connect_deadline).await?;
    if let Some((_, false)) = progress(&mut conn, store, model, shadow).await? {
        let indexing = add_indexes(store, model, shadow, &mut conn);
        within(INDEXES, "make the indexes of a read model", indexing).await??;
    }
    if let Some((_, true)) = progress(&mut conn, store, model, shadow).await? {
        swap(store, model, shadow, &mut connect_shortly(store).await?).await?;
    }
    let _ = conn.close().await;
    Ok(())
}

async fn add_indexes(
    store: &Annals,
    model: &Model,
    shadow: &Shadow,
    conn: &mut PgConnection,
) -> Result<(), StoreError> {
    let what = StoreError::on("make the indexes of a read model");
    let schema = StoreName::stored(shadow.schema.clone());
    let mut tx = conn.begin_with(store.inner.sql.begin_read_committed.text()).await.map_err(&what)?;
    store.inner.sql.lock_follower.query().bind(schema.as_str()).execute(&mut *tx).await.map_err(&what)?;
    // Another process may have been faster.
    if !matches!(progress(&mut tx, store, model, shadow).await?, Some((_, false))) {
        return Ok(());
    }
    let path = format!("\"{}\", pg_temp", schema.as_str());
    store.inner.sql.set_search_path.query().bind(path).execute(&mut *tx).await.map_err(&what)?;
    if let Err(error) = sqlx::raw_sql(schema.verbatim(model.indexes).text()).execute(&mut *tx).await {
        drop(tx);
        return match model.refused(&schema, error) {
            StoreError::Unfit(text) => halt(store, model, shadow, &text).await,
            passing => Err(passing),
        };
    }
    store
        .inner
        .sql
        .set_indexed
        .query()
        .bind(model.name)
        .bind(shadow.generation)
        .execute(&mut *tx)
        .await
        .map_err(&what)?;
    tx.commit().await.map_err(&what)?;
    // Plans of the first readers rest on it.
    let tables = store.inner.sql.list_analyses.scalar();
    let analyses: Vec<String> = tables.bind(schema.as_str()).fetch_all(&mut *conn).await.map_err(&what)?;
    for analyse in analyses {
        sqlx::raw_sql(AssertSqlSafe(analyse).into_sql_str()).execute(&mut *conn).await.map_err(&what)?;
    }
    Ok(())
}

/// Halts a shadow, for a reason that somebody has to see to.
async fn halt(store: &Annals, model: &Model, shadow: &Shadow, reason: &str) -> Result<(), StoreError> {
    tracing::error!(follower = model.name, reason, "a rebuild halts");
    let halting = store
        .inner
        .sql
        .halt_generation
        .query()
        .bind(model.name)
        .bind(shadow.generation)
        .bind(reason)
        .bind(0_i32)
        .bind(None::<uuid::Uuid>);
    store.inner.followers.execute("halt a rebuild", halting).await.map(drop)
}

/// Whoever has been reading a model for longer than [`OLD`], in one transaction. Rows that are newer than its snapshot it would not
/// find: the new tables would be empty to a dump that began with the old ones.
async fn old_reader(conn: &mut PgConnection, store: &Annals, live: &str) -> Result<Option<PgRow>, StoreError> {
    let what = StoreError::on("look for readers of a model");
    let list = &store.inner.sql.list_readers;
    let before = list.query().bind(live).fetch_all(&mut *conn).await.map_err(&what)?;
    if before.is_empty() {
        return Ok(None);
    }
    sleep(OLD).await;
    let now = list.query().bind(live).fetch_all(&mut *conn).await.map_err(&what)?;
    let was_there = |row: &PgRow| before.iter().any(|other| other.get::<&str, _>(0) == row.get::<&str, _>(0));
    Ok(now.into_iter().find(was_there))
}

/// Says now and then for whom a swap waits.
fn tell_reader(model: &Model, reader: &PgRow) {
    static TOLD: Mutex<Option<Instant>> = Mutex::new(None);
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if told.is_none_or(|told| told.elapsed() > TELL_EVERY) {
        *told = Some(Instant::now());
        let (pid, application, seconds): (i32, &str, Option<f64>) = (reader.get(1), reader.get(2), reader.get(3));
        let follower = model.name;
        tracing::warn!(follower, pid, application, seconds, "a rebuilt model waits for a reader of the old one to end");
    }
}

/// Puts the shadow in the live model's place, if it shows all that the live one shows.
async fn swap(store: &Annals, model: &Model, shadow: &Shadow, conn: &mut PgConnection) -> Result<(), StoreError> {
    let what = StoreError::on("swap a read model");
    let sql = &store.inner.sql;
    let live = model.live.as_str();
    // The live model is held for a moment only: as long as the shadow is not there, it is let go on.
    let reading = sql.read_positions.query().bind(vec![model.name]).fetch_all(&mut *conn);
    let most = reading.await.map_err(&what)?.iter().map(|row| row.get::<i64, _>(3)).max();
    match (progress(conn, store, model, shadow).await?, most) {
        (Some((position, true)), Some(most)) if position >= most => {}
        _ => return Ok(()),
    }
    if let Some(reader) = old_reader(conn, store, live).await? {
        tell_reader(model, &reader);
        return Ok(());
    }
    let mut tx = conn.begin_with(sql.begin_read_committed.text()).await.map_err(&what)?;
    sql.lock_follower.query().bind(live).execute(&mut *tx).await.map_err(&what)?;
    let held = sql.lock_live.query().bind(model.name).fetch_all(&mut *tx).await.map_err(&what)?;
    let positions = held.iter().map(|row| row.get::<i64, _>(1));
    let (Some(row), Some(most)) = (held.first(), positions.max()) else { return Ok(()) };
    let old: i64 = row.get(0);
    // Nobody may read less from the new model than from the old one. The live one waits meanwhile.
    let begun = Instant::now();
    loop {
        match progress(&mut tx, store, model, shadow).await? {
            Some((position, true)) if position >= most => break,
            Some((_, true)) if begun.elapsed() < HELD => sleep(Duration::from_millis(5)).await,
            _ => return Ok(()),
        }
    }
    let dependents: Vec<String> = sql.list_dependents.scalar().bind(live).fetch_all(&mut *tx).await.map_err(&what)?;
    if !dependents.is_empty() {
        tx.rollback().await.map_err(&what)?;
        let reason = format!(
            "{} would stay with the old tables of {live}: drop what depends on them, resume the rebuild, and make it again \
             after the swap",
            dependents.join(", ")
        );
        return halt(store, model, shadow, &reason).await;
    }
    let old_schema = model.live.shadow(old);
    sql.prepare_swap
        .query()
        .bind(live)
        .bind(&shadow.schema)
        .bind(old_schema.as_str())
        .execute(&mut *tx)
        .await
        .map_err(&what)?;
    // What reads for longer has been waited for: a moment is enough for the others, if there is one without any.
    for _ in 0..MOMENTS {
        if sql.list_readers.query().bind(live).fetch_all(&mut *tx).await.map_err(&what)?.is_empty() {
            break;
        }
        sleep(Duration::from_millis(5)).await;
    }
    sqlx::raw_sql(sql.swap_schemas.text()).execute(&mut *tx).await.map_err(&what)?;
    sql.enter_swap
        .query()
        .bind(model.name)
        .bind(old)
        .bind(old_schema.as_str())
        .bind(shadow.generation)
        .bind(most)
        .execute(&mut *tx)
        .await
        .map_err(&what)?;
    let setting = sql.set_live.query().bind(model.name).bind(shadow.generation).bind(live).bind(old);
    if setting.execute(&mut *tx).await.map_err(&what)?.rows_affected() != 1 {
        // It was cancelled meanwhile.
        return tx.rollback().await.map_err(&what);
    }
    tx.commit().await.map_err(&what)?;
    tracing::info!(follower = model.name, position = most, "a rebuilt model took the live one's place");
    wake_up::tell(store, &wake_up::control(store)).await;
    Ok(())
}

/// Replaces the partitions of a follower that all stand where they were to meet.
async fn repartition(store: &Annals, model: &Model, generation: i64, partitions: i32) -> Result<(), StoreError> {
    let what = StoreError::on("change the number of partitions");
    let sql = &store.inner.sql;
    let mut conn = connect_shortly(store).await?;
    let mut tx = conn.begin_with(sql.begin_read_committed.text()).await.map_err(&what)?;
    sql.lock_checkpoints.query().bind(model.name).execute(&mut *tx).await.map_err(&what)?;
    let replacing = sql.repartition.scalar().bind(model.name).bind(generation).bind(partitions);
    let position: Option<i64> = replacing.fetch_optional(&mut *tx).await.map_err(&what)?;
    let Some(position) = position else {
        tracing::warn!(
            follower = model.name,
            "its partitions were not changed: another process did it, or an event without known keys is parked, to be retried or \
             discarded first"
        );
        return Ok(());
    };
    let counting = sql.count_parked.query().bind(model.name).bind(generation);
    counting.execute(&mut *tx).await.map_err(&what)?;
    if model.is_read_model() {
        let text = include_str!("../sql/replace_positions.sql");
        let placing = model.live.instantiate_model(&store.inner.name, text).query().bind(partitions).bind(position);
        placing.execute(&mut *tx).await.map_err(&what)?;
    }
    tx.commit().await.map_err(&what)?;
    let _ = conn.close().await;
    wake_up::tell(store, &wake_up::control(store)).await;
    Ok(())
}

/// Drops a schema that nothing serves any more. Whoever still reads it, or depends on it, keeps it until the next time.
async fn drop_schema(store: &Annals, follower: &str, generation: i64, schema: &str) -> Result<(), StoreError> {
    let what = StoreError::on("drop an old schema");
    let sql = &store.inner.sql;
    let mut conn = connect_shortly(store).await?;
    let mut tx = conn.begin_with(sql.begin_read_committed.text()).await.map_err(&what)?;
    let locking = sql.lock_follower.query().bind(schema);
    let may_create: bool = locking.fetch_one(&mut *tx).await.map_err(&what)?.get(1);
    if !may_create {
        return Ok(());
    }
    let shortly = sql.set_lock_deadline.query().bind("1s");
    shortly.execute(&mut *tx).await.map_err(&what)?;
    let statements: Vec<String> = sql.drop_schema.scalar().bind(schema).fetch_all(&mut *tx).await.map_err(&what)?;
    for statement in statements {
        if let Err(error) = sqlx::raw_sql(AssertSqlSafe(statement).into_sql_str()).execute(&mut *tx).await {
            tracing::warn!(follower, schema, %error, "an old schema could not be dropped yet");
            return Ok(());
        }
    }
    sql.forget_generation.query().bind(follower).bind(generation).execute(&mut *tx).await.map_err(&what)?;
    tx.commit().await.map_err(&what)?;
    let _ = conn.close().await;
    Ok(())
}

/// Does the chores, again and again: one process at a time begins or ends a rebuild, under the lock of the model.
pub(super) async fn keep_doing(
    store: Annals,
    followers: Arc<Vec<Registered>>,
    asked: Arc<tokio::sync::Notify>,
    shadows: bool,
) {
    for turn in 0_u64.. {
        if !shadows
            && turn.is_multiple_of(20)
            && let Err(error) =
                store.inner.reads.execute("end lost comparisons", store.inner.sql.end_verify.query()).await
        {
            tracing::debug!(%error, "lost comparisons could not be looked for");
        }
        let is_busy = do_chores(&store, &followers, shadows).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "a rebuild could not be taken further; it is tried again");
            false
        });
        tokio::select! {
            () = sleep(if is_busy { SOON } else { LATER }) => {}
            () = asked.notified() => {}
        }
    }
}
