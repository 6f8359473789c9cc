//! Is there a pooler in transaction mode that nobody declared? It would answer statements with other clients' rows.

use std::time::Duration;

use futures::future::join_all;
use sqlx::{Connection, PgConnection, Row, postgres::PgConnectOptions};

use super::{connect, within};
use crate::{Config, Pooler, error::StoreError, sql::Sql};

/// How many connections are asked which backend they are on. Poolers side by side, each with a backend of its own, are fewer.
const CONNECTIONS: usize = 5;
/// How often each is asked, twice in a row: a pooler that takes its backends in turn gives another one at once.
const ROUNDS: usize = 2;
/// How long one of them may keep quiet: a pooler in session mode may have no backend left.
const SHORTLY: Duration = Duration::from_millis(500);

/// Refuses a database whose connections change their backend from one statement to the next, or share one.
///
/// Only simple statements are sent until that is known, each of them whole in itself.
pub(super) async fn refuse_undeclared(
    conn: &mut PgConnection,
    options: &PgConnectOptions,
    config: &Config,
    sql: &Sql,
) -> Result<(), StoreError> {
    let what = "look for a pooler";
    let connecting = (1..CONNECTIONS).map(|_| within(SHORTLY, what, PgConnection::connect_with(options)));
    let mut others: Vec<PgConnection> = join_all(connecting).await.into_iter().flatten().flatten().collect();
    let is_pooled = within(config.connect_deadline, what, is_pooled(conn, &mut others, sql)).await?;
    join_all(others.into_iter().map(|other| within(SHORTLY, what, other.close()))).await;
    if !is_pooled.map_err(StoreError::on(what))? {
        return Ok(());
    }
    let (url, cure) = match config.pooler {
        Pooler::Transaction => ("direct_url", "set it to the database itself, or to a pooler in session mode"),
        _ => (
            "the URL",
            "declare it with pooler: Pooler::Transaction and a direct_url, or take a direct or session-pooled URL",
        ),
    };
    Err(StoreError::Unfit(format!(
        "{url} leads through a pooler that changes the server connection with every transaction, which would answer \
         statements with other clients' rows: {cure}"
    )))
}

async fn is_pooled(conn: &mut PgConnection, others: &mut [PgConnection], sql: &Sql) -> Result<bool, sqlx::Error> {
    let mut backends: Vec<Option<String>> = vec![None; 1 + others.len()];
    for _ in 0..ROUNDS {
        for nth in 0..backends.len() {
            let asked = if nth == 0 { &mut *conn } else { &mut others[nth - 1] };
            let asking = async { Ok::<_, sqlx::Error>((backend(asked, sql).await?, backend(asked, sql).await?)) };
            let (once, again) = match tokio::time::timeout(SHORTLY, asking).await {
                // The first one is what the store goes on with.
                Err(_) if nth > 0 => continue,
                Err(_) => return Err(sqlx::Error::PoolTimedOut),
                Ok(answers) => answers?,
            };
            let is_own = backends[nth].as_ref().is_none_or(|known| *known == once);
            let is_others =
                backends.iter().enumerate().any(|(other, known)| other != nth && *known == Some(once.clone()));
            if once != again || !is_own || is_others {
                return Ok(true);
            }
            backends[nth] = Some(once);
        }
    }
    Ok(false)
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
