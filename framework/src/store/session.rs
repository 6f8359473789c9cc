//! Connections of the store's own, and what each of them is told before it is used.
//!
//! Behind a pooler in transaction mode a connection is lent for one transaction. So every use of one is a transaction
//! there, whose settings end with it, and no statement is kept by a name.

use std::{
    ops::{Deref, DerefMut},
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, Connection, PgConnection, PgPool, Postgres, Row, SqlSafeStr, SqlStr, Transaction,
    pool::{PoolConnection, PoolOptions},
    postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow},
    query::Query,
};

use super::within;
use crate::{Config, Pooler, error::StoreError, sql::Sql};

/// What the server ends by itself: an abandoned statement would go on, with its locks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) statement: Duration,
    /// Whether plans know no values, and so follow the index. For a long stream a plan that knew its length would fetch the
    /// rows as they lie and sort them, on disk if they are many, before the first one is sent.
    pub(crate) index_plans: bool,
}

impl Bounds {
    pub(crate) const fn new(statement: Duration) -> Self {
        Self { statement, index_plans: false }
    }

    /// The settings, until the transaction ends if `local`, or else the session.
    fn settings(self, local: bool) -> String {
        let milliseconds = |time: Duration| time.as_millis().to_string();
        include_str!("../sql/set_bounds.sql")
            .replace("$statement", &milliseconds(self.statement))
            .replace("$lock", &milliseconds(self.statement / 4))
            .replace("$idle", &milliseconds(self.statement * 2))
            .replace("$index_plans", &self.index_plans.to_string())
            .replace("$local", &local.to_string())
    }

    /// Settles them for as long as `conn` lasts.
    pub(crate) async fn set(self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(self.settings(false))).execute(conn).await.map(drop)
    }

    /// What begins a transaction with these settings.
    pub(crate) fn begin(self, sql: &Sql) -> SqlStr {
        begin_with(sql, &self.settings(true))
    }
}

/// What begins a transaction and settles it in one round trip. For the simple protocol.
pub(crate) fn begin_with(sql: &Sql, settings: &str) -> SqlStr {
    AssertSqlSafe(format!("{};\n{settings}", sql.begin_read_committed.text().as_str())).into_sql_str()
}

/// A pool of the store's own.
pub(crate) struct Connections {
    pool: PgPool,
    /// How each use of a connection begins, if it is a transaction.
    begin: Option<SqlStr>,
    deadline: Duration,
}

impl Connections {
    pub(crate) fn new(config: &Config, sql: &Sql, size: u32, bounds: Bounds, options: PgConnectOptions) -> Self {
        let pooled = config.pooler == Pooler::Transaction;
        let pool = pool(config, sql, size).after_connect(move |conn, _| {
            Box::pin(async move { if pooled { Ok(()) } else { bounds.set(conn).await } })
        });
        Self {
            pool: pool.connect_lazy_with(options),
            begin: pooled.then(|| bounds.begin(sql)),
            deadline: config.read_deadline,
        }
    }

    /// A connection. What runs on it beyond one statement is to be ended ([`Session::end`]).
    pub(crate) async fn acquire(&self) -> Result<Session<'static>, sqlx::Error> {
        Ok(match &self.begin {
            None => Session::Taken(self.pool.acquire().await?),
            // In a task: whoever gives up while this waits for the pooler would leave a transaction open (launchbadge/sqlx #4393).
            Some(begin) => {
                let (pool, begin) = (self.pool.clone(), begin.clone());
                let beginning = tokio::spawn(async move { pool.begin_with(begin).await });
                Session::Lent(beginning.await.map_err(|_| sqlx::Error::PoolClosed)??)
            }
        })
    }

    /// Runs one statement, and returns its rows.
    pub(crate) async fn all(
        &self,
        what: &'static str,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, StoreError> {
        let running = async {
            let mut session = self.acquire().await?;
            let rows = query.fetch_all(&mut *session).await?;
            session.end().await?;
            Ok(rows)
        };
        within(self.deadline, what, running).await?.map_err(StoreError::on(what))
    }

    /// Runs one statement, and returns its first row.
    pub(crate) async fn optional(
        &self,
        what: &'static str,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Option<PgRow>, StoreError> {
        Ok(self.all(what, query).await?.into_iter().next())
    }

    /// Runs one statement. Returns how many rows it changed.
    pub(crate) async fn execute(
        &self,
        what: &'static str,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<u64, StoreError> {
        let running = async {
            let mut session = self.acquire().await?;
            let done = query.execute(&mut *session).await?;
            session.end().await?;
            Ok(done.rows_affected())
        };
        within(self.deadline, what, running).await?.map_err(StoreError::on(what))
    }

    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }
}

/// A connection while it is used.
pub(crate) enum Session<'c> {
    /// A pool's, until it is dropped.
    Taken(PoolConnection<Postgres>),
    /// A connection of its own.
    Own(&'c mut PgConnection),
    /// Behind a pooler, for one transaction.
    Lent(Transaction<'c, Postgres>),
}

impl<'c> Session<'c> {
    /// A use of `conn`: a transaction that begins with `begin`, if there is a need for one.
    pub(crate) async fn on(conn: &'c mut PgConnection, begin: Option<&SqlStr>) -> Result<Self, sqlx::Error> {
        Ok(match begin {
            None => Self::Own(conn),
            Some(begin) => Self::Lent(conn.begin_with(begin.clone()).await?),
        })
    }

    /// Whether a transaction is open, which [`Session::end`] commits.
    pub(crate) fn is_lent(&self) -> bool {
        matches!(self, Self::Lent(_))
    }

    /// Keeps what was done. If the session is dropped instead, a lent one takes it back.
    pub(crate) async fn end(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Lent(transaction) => transaction.commit().await,
            _ => Ok(()),
        }
    }
}

impl Deref for Session<'_> {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match self {
            Self::Taken(conn) => conn,
            Self::Own(conn) => conn,
            Self::Lent(transaction) => transaction,
        }
    }
}

impl DerefMut for Session<'_> {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match self {
            Self::Taken(conn) => conn,
            Self::Own(conn) => conn,
            Self::Lent(transaction) => transaction,
        }
    }
}

/// A connection that slept is tested before it is used: still there, and not inside a transaction that a cancelled
/// future left open (launchbadge/sqlx #4393). One that comes back in the middle of an answer is given a moment to end it.
pub(crate) fn pool(config: &Config, sql: &Sql, size: u32) -> PgPoolOptions {
    let check = sql.check_connection.text();
    /// How long a connection that comes back may still be busy with a read that nobody waits for.
    const LEFT_OVER: Duration = Duration::from_secs(1);
    PoolOptions::new()
        .max_connections(size)
        .min_connections(0)
        // Waiting for a connection is a part of the read, which has an end of its own.
        .acquire_timeout(config.connect_deadline.max(config.read_deadline))
        .test_before_acquire(false)
        // A read that was given up leaves its answer in the connection. The pool would wait for it without an end.
        .after_release(|conn: &mut PgConnection, _| {
            Box::pin(async move {
                match tokio::time::timeout(LEFT_OVER, conn.flush()).await {
                    Ok(flushed) => flushed.map(|()| true),
                    Err(_) => Err(sqlx::Error::Protocol("the answer to an abandoned read does not come".into())),
                }
            })
        })
        .before_acquire(move |conn, meta| {
            let check = check.clone();
            Box::pin(async move {
                if meta.idle_for < Duration::from_secs(1) {
                    return Ok(true);
                }
                sqlx::raw_sql(check).fetch_one(conn).await.and_then(|row: PgRow| row.try_get(0))
            })
        })
}
