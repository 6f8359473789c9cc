//! The event store: append to streams, read them, read the log. One schema in one Postgres database.

mod append;
mod appender;
mod batch;
mod dispatcher;
mod doctor;
mod lane;
mod marker;
mod migrate;
mod outcome;
mod read;

use std::{
    future::Future,
    str::FromStr,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use sqlx::{
    ConnectOptions, Connection, PgConnection, PgPool, Row,
    pool::PoolOptions,
    postgres::{PgConnectOptions, PgPoolOptions, PgRow},
};

pub use self::{
    append::{Append, NewEvent},
    doctor::{Finding, Roles, Severity},
    marker::{Holder, Horizon},
    read::{Page, ReadLog, ReadStream},
};
pub(crate) use self::{
    append::{CommandRecord, Work},
    appender::Appender,
    batch::Appended,
    marker::horizon,
    read::{Names, content, recorded},
};
use crate::{
    Config, Pooler,
    error::StoreError,
    sql::{Sql, StoreName},
};

/// How long one batch of a follower may take before its connection is given up.
pub(crate) const BATCH_DEADLINE: Duration = Duration::from_secs(120);

/// An event store: a schema in a Postgres database, and this process's connections to it.
///
/// Cheap to clone; all clones share one appender and its connections, which end with the last clone.
#[derive(Clone)]
pub struct Annals {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) name: StoreName,
    pub(crate) sql: Sql,
    pub(crate) options: PgConnectOptions,
    pub(crate) reads: PgPool,
    pub(crate) followers: PgPool,
    users: PgPool,
    pub(crate) appender: Appender,
    /// How long the events of the last full pages were, on average: a guess for the next page.
    event_bytes: AtomicUsize,
}

impl Annals {
    /// Connects to the store that `config` names, and creates or migrates its schema if the role may.
    ///
    /// # Errors
    /// - [`StoreError::Unavailable`] or [`StoreError::Timeout`] if the server does not answer.
    /// - [`StoreError::Unfit`] if the store cannot be used as it is: the text says what is wrong and what cures it.
    pub async fn connect(config: Config) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(&config.url)
            .map_err(|source| StoreError::Refused { what: "read the database's URL", source })?;
        Self::open(config, options, None).await
    }

    /// Like [`Annals::connect`], for an application that has a pool already.
    ///
    /// The store opens connections of its own beside `pool`, with the same options: a transaction that the application
    /// leaves open in its pool can then never reach the store. [`Annals::pool`] hands `pool` out. `config.url` is not read.
    ///
    /// # Errors
    /// As [`Annals::connect`].
    pub async fn with_pool(pool: PgPool, config: Config) -> Result<Self, StoreError> {
        let options = (*pool.connect_options()).clone();
        Self::open(config, options, Some(pool)).await
    }

    async fn open(config: Config, options: PgConnectOptions, users: Option<PgPool>) -> Result<Self, StoreError> {
        let config = config.checked();
        if config.pooler == Pooler::Transaction {
            let refusal =
                "a pooler in transaction mode is not supported yet: give the store a direct or session-pooled URL";
            return Err(StoreError::Unfit(refusal.into()));
        }
        let name = StoreName::new(&config.store)?;
        let sql = Sql::new(&name);
        let options = quiet(&config, options);
        let mut conn = connect(&options, config.connect_deadline).await?;
        within(config.migration_deadline, "migrate the store", migrate::migrate(&mut conn, &name, &sql)).await??;
        within(config.read_deadline, "check the store", marker::check(&mut conn, &sql)).await??;
        let _ = conn.close().await;
        let inner = Arc::new_cyclic(|inner| Inner {
            reads: pool(&config, &sql, config.read_connections)
                .connect_lazy_with(bounded(&options, config.read_deadline).options(INDEX_PLANS)),
            followers: pool(&config, &sql, config.follower_connections)
                .connect_lazy_with(bounded(&options, BATCH_DEADLINE)),
            users: users
                .unwrap_or_else(|| pool(&config, &sql, config.user_connections).connect_lazy_with(options.clone())),
            appender: Appender::start(&config, inner.clone()),
            event_bytes: AtomicUsize::new(0),
            options,
            sql,
            name,
            config,
        });
        Ok(Self { inner })
    }

    /// The store's name, which is its schema.
    pub fn name(&self) -> &str {
        self.inner.name.as_str()
    }

    /// A pool for SQL of your own, read models above all. The store itself never uses it.
    pub fn pool(&self) -> &PgPool {
        &self.inner.users
    }

    /// What this store was opened with.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Every statement of the framework, by name, as this store sends it.
    #[doc(hidden)]
    pub fn statements(&self) -> Vec<(&'static str, String)> {
        self.inner.sql.all().into_iter().map(|(name, text)| (name, text.as_str().to_owned())).collect()
    }

    /// Ends the appender, after what waits in it is written, and closes the store's own connections, but not those of
    /// [`Annals::pool`].
    ///
    /// Later calls on any clone are refused as [`StoreError::Closed`].
    pub async fn close(&self) {
        self.inner.appender.close().await;
        self.inner.reads.close().await;
        self.inner.followers.close().await;
    }
}

impl std::fmt::Debug for Annals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Annals").field(&self.name()).finish()
    }
}

impl Inner {
    /// Runs a read that may be repeated: again if the connection it got turned out to be dead, for a server that went away
    /// leaves the pool full of those.
    pub(crate) async fn read<T, F, R>(&self, what: &'static str, read: F) -> Result<T, StoreError>
    where
        F: Fn(sqlx::pool::PoolConnection<sqlx::Postgres>) -> R,
        R: Future<Output = Result<T, sqlx::Error>>,
    {
        let reading = async {
            let mut dead = 0;
            loop {
                match read(self.reads.acquire().await?).await {
                    Err(sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) if dead < self.config.read_connections => {
                        dead += 1
                    }
                    result => return result,
                }
            }
        };
        within(self.config.read_deadline, what, reading).await?.map_err(StoreError::on(what))
    }
}

/// A connection of the store's own, with every setting that its promises need.
pub(crate) async fn connect(options: &PgConnectOptions, deadline: Duration) -> Result<PgConnection, StoreError> {
    let connecting = PgConnection::connect_with(options);
    within(deadline, "connect", connecting).await?.map_err(StoreError::on("connect"))
}

/// How long one statement of an operator's may take, and how long its transaction may sit idle, twice over: what it locks keeps
/// followers waiting.
const SHORTLY: Duration = Duration::from_secs(10);

/// A connection for something short that locks what followers need: the server ends it, should this process be stopped in it.
pub(crate) async fn connect_shortly(store: &Annals) -> Result<PgConnection, StoreError> {
    connect(&bounded(&store.inner.options, SHORTLY), store.config().connect_deadline).await
}

/// Gives `work` until `deadline`, and drops it then.
pub(crate) async fn within<T>(
    deadline: Duration,
    what: &'static str,
    work: impl Future<Output = T>,
) -> Result<T, StoreError> {
    tokio::time::timeout(deadline, work).await.map_err(|_| StoreError::Timeout { what, after: deadline })
}

/// Plans of the store's reads know no values, and so follow the index. For a long stream a plan that knew its length would
/// fetch the rows as they lie and sort them, on disk if they are many, before the first one is sent.
const INDEX_PLANS: [(&str, &str); 2] = [("plan_cache_mode", "force_generic_plan"), ("jit", "off")];

/// Lets the server itself end what this process no longer waits for: an abandoned statement would go on, with its locks.
fn bounded(options: &PgConnectOptions, statement: Duration) -> PgConnectOptions {
    let milliseconds = |time: Duration| time.as_millis().to_string();
    options.clone().options([
        ("statement_timeout", milliseconds(statement)),
        ("lock_timeout", milliseconds(statement / 4)),
        ("idle_in_transaction_session_timeout", milliseconds(statement * 2)),
    ])
}

fn quiet(config: &Config, options: PgConnectOptions) -> PgConnectOptions {
    let named = options.get_application_name().is_some();
    let options = if named { options } else { options.application_name(&config.application_name) };
    options.disable_statement_logging()
}

/// A connection that slept is tested before it is used: still there, and not inside a transaction that a cancelled
/// future left open (launchbadge/sqlx #4393). One that comes back in the middle of an answer is given a moment to end it.
pub(crate) fn pool(config: &Config, sql: &Sql, size: u32) -> PgPoolOptions {
    let check = sql.check_connection.clone();
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
