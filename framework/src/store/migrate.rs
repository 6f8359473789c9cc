//! Brings a store's schema up to date, or checks that it is.
//!
//! Migrations expand first and contract one release later, so builds of two releases work side by side. A build that
//! finds migrations it does not know asks `minimum_reader`, not its own list, whether it may go on.

use sha2::{Digest, Sha256};
use sqlx::{Connection, PgConnection, Row};

use crate::{
    error::StoreError,
    sql::{Sql, StoreName},
};

/// `(name, text)` of every migration, in order; the name begins with its number.
const MIGRATIONS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/migrations.rs"));

/// Creates or migrates the store's schema as the role of `conn`; a role that may not, only checks. Unless `may_migrate`, nothing
/// is changed.
///
/// # Errors
/// [`StoreError::Unfit`] if the store was made by a build this one cannot work with, if a migration's text has changed
/// since it was applied, or if there is a migration to apply and the role or `may_migrate` does not let it.
pub(crate) async fn migrate(
    conn: &mut PgConnection,
    name: &StoreName,
    sql: &Sql,
    may_migrate: bool,
) -> Result<(), StoreError> {
    let missing = pending(conn, name, sql).await?;
    if missing.is_empty() {
        return Ok(());
    }
    if !may_migrate {
        let titles: Vec<&str> = missing.iter().map(|(_, title, _)| *title).collect();
        return Err(StoreError::Unfit(format!(
            "store {} lacks {}, and this process is told to migrate nothing (Config::migrate): nothing was changed. Connect once \
             with migrate: true, or look whether this is the store that was meant",
            name.as_str(),
            titles.join(", ")
        )));
    }
    // A level that sees, behind the lock, what its holder before has done.
    let level = sql.begin_read_committed.text();
    let mut tx = conn.begin_with(level).await.map_err(StoreError::on("begin a migration"))?;
    prepare(&mut tx, name, sql).await?;
    // Another process may have been faster.
    for (number, title, text) in pending(&mut tx, name, sql).await? {
        tracing::info!(store = name.as_str(), migration = title, "migrating");
        let what = StoreError::on("apply a migration");
        sqlx::raw_sql(name.instantiate(text).text()).execute(&mut *tx).await.map_err(what)?;
        sql.insert_migration
            .query()
            .bind(number)
            .bind(title)
            .bind(checksum(text))
            .execute(&mut *tx)
            .await
            .map_err(StoreError::on("record a migration"))?;
    }
    tx.commit().await.map_err(StoreError::on("commit a migration"))
}

/// Takes the migrator's lock, which ends with the transaction, and creates the schema and the list of migrations.
async fn prepare(conn: &mut PgConnection, name: &StoreName, sql: &Sql) -> Result<(), StoreError> {
    let may_create: bool = sql
        .lock_migrations
        .scalar()
        .bind(name.as_str())
        .fetch_one(&mut *conn)
        .await
        .map_err(StoreError::on("wait for another process that migrates"))?;
    if !may_create {
        return Err(StoreError::Unfit(format!(
            "store {name} has migrations to apply, and this role may not: start once as the store's owner, or as a role \
             with CREATE on the database",
            name = name.as_str()
        )));
    }
    sqlx::raw_sql(sql.create_migrations.text())
        .execute(conn)
        .await
        .map(drop)
        .map_err(StoreError::on("create the store's schema"))
}

/// The migrations that are not applied yet, after checking those that are.
async fn pending(
    conn: &mut PgConnection,
    name: &StoreName,
    sql: &Sql,
) -> Result<Vec<(i32, &'static str, &'static str)>, StoreError> {
    let known = || MIGRATIONS.iter().map(|&(title, text)| (number(title), title, text));
    let exists: bool = sql
        .exists_migrations
        .scalar()
        .fetch_one(&mut *conn)
        .await
        .map_err(StoreError::on("look for the store's schema"))?;
    if !exists {
        return Ok(known().collect());
    }
    let applied =
        sql.read_migrations.query().fetch_all(conn).await.map_err(StoreError::on("read the store's migrations"))?;
    let mut done = vec![];
    for row in &applied {
        let (found, title): (i32, String) = (row.get(0), row.get(1));
        done.push(found);
        let minimum_reader: i32 = row.get(3);
        if minimum_reader > latest() {
            return Err(StoreError::Unfit(format!(
                "store {} needs a build that knows migration {minimum_reader}, this one ends at {}: deploy the newer \
                 build here too",
                name.as_str(),
                latest()
            )));
        }
        if let Some((_, _, text)) = known().find(|(number, ..)| *number == found)
            && row.get::<Vec<u8>, _>(2) != checksum(text)
        {
            return Err(StoreError::Unfit(format!(
                "migration {title} of store {} differs from this build's: it was made by another line of \
                 development. Open it with the build that made it, or begin anew on another store or data folder",
                name.as_str()
            )));
        }
    }
    Ok(known().filter(|(number, ..)| !done.contains(number)).collect())
}

/// The newest migration that this build knows.
fn latest() -> i32 {
    MIGRATIONS.last().map_or(0, |(title, _)| number(title))
}

fn number(title: &str) -> i32 {
    title.split('_').next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

fn checksum(text: &str) -> Vec<u8> {
    Sha256::digest(text).to_vec()
}
