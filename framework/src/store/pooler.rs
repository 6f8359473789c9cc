//! Is there a pooler in transaction mode that nobody declared? It would answer statements with other clients' rows.

use sqlx::{Connection, PgConnection, Row, postgres::PgConnectOptions};

use super::{connect, within};
use crate::{Config, error::StoreError, sql::Sql};

/// How often two connections are asked which backend they are on.
const LOOKS: usize = 4;

/// Refuses a database whose connections change their backend from one statement to the next, or share one.
///
/// Only simple statements are sent until that is known, each of them whole in itself.
pub(super) async fn refuse_undeclared(
    conn: &mut PgConnection,
    options: &PgConnectOptions,
    config: &Config,
    sql: &Sql,
) -> Result<(), StoreError> {
    let mut other = connect(options, config.connect_deadline).await?;
    let what = "look for a pooler";
    let looking = async {
        let first = (backend(conn, sql).await?, backend(&mut other, sql).await?);
        let mut same = first.0 != first.1;
        for _ in 1..LOOKS {
            same &= first == (backend(conn, sql).await?, backend(&mut other, sql).await?);
        }
        Ok(same)
    };
    let looked = within(config.connect_deadline, what, looking).await?;
    let _ = other.close().await;
    if looked.map_err(StoreError::on(what))? {
        return Ok(());
    }
    let which = if config.direct_url.is_some() { "direct_url" } else { "the URL" };
    Err(StoreError::Unfit(format!(
        "{which} leads through a pooler that changes the server connection with every transaction, which would answer \
         statements with other clients' rows: declare it with pooler: Pooler::Transaction and a direct_url, or take a direct \
         or session-pooled URL"
    )))
}

/// Refuses a `direct_url` that leads to another database than the one behind the pooler.
pub(super) async fn check_same(
    direct: &mut PgConnection,
    pooled: &PgConnectOptions,
    config: &Config,
    sql: &Sql,
) -> Result<(), StoreError> {
    let mut conn = connect(pooled, config.connect_deadline).await?;
    let what = "compare the database with the one behind the pooler";
    let comparing = async { Ok(database(direct, sql).await? == database(&mut conn, sql).await?) };
    let same = within(config.connect_deadline, what, comparing).await?;
    let _ = conn.close().await;
    if same.map_err(StoreError::on(what))? {
        return Ok(());
    }
    Err(StoreError::Unfit("url and direct_url lead to different databases: both must be the store's".into()))
}

async fn backend(conn: &mut PgConnection, sql: &Sql) -> Result<String, sqlx::Error> {
    sqlx::raw_sql(sql.identify.text()).fetch_one(conn).await?.try_get(0)
}

async fn database(conn: &mut PgConnection, sql: &Sql) -> Result<String, sqlx::Error> {
    sqlx::raw_sql(sql.identify.text()).fetch_one(conn).await?.try_get(1)
}
