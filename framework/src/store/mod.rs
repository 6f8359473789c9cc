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
mod pooler;
mod read;
mod session;

use std::{
    future::Future,
    str::FromStr,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use sqlx::{
    ConnectOptions, Connection, PgConnection, PgPool, Postgres, SqlStr, Transaction, postgres::PgConnectOptions,
};

use self::session::Connections;
pub use self::{
    append::{Append, NewEvent},
    doctor::{Finding, Roles, Severity},
    marker::{Holder, Horizon},
    read::{Page, ReadLog, ReadStream},
};
pub(crate) use self::{
    append::{CommandRecord, SagaRow, Work},
    appender::Appender,
    batch::Appended,
    marker::horizon,
    read::{Names, content, recorded},
    session::{Bounds, Session, pool},
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
    /// For what must not go through a pooler in transaction mode: migrations, wake-ups, operators' work.
    pub(crate) options: PgConnectOptions,
    /// For everything else: the same, unless there is such a pooler.
    pooled: PgConnectOptions,
    /// What begins each use of a connection behind such a pooler.
    begin: Option<SqlStr>,
    pub(crate) reads: Connections,
    pub(crate) followers: Connections,
    users: PgPool,
    pub(crate) appender: Appender,
    /// How long the events of the last full pages were, on average: a guess for the next page.
    event_bytes: AtomicUsize,
}

impl Annals {
    /// Connects to the store that `config` names, and creates or migrates its schema if the role may and
    /// [`Config::migrate`] says so.
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
        let mut name = StoreName::new(&config.store)?;
        let mut pooled = quiet(&config, options);
        let mut options = pooled.clone();
        if config.pooler == Pooler::Transaction {
            name = name.unnamed();
            options = quiet(&config, direct(&config)?);
            pooled = pooled.statement_cache_capacity(0);
        }
        let sql = Sql::new(&name);
        let mut conn = connect(&options, config.connect_deadline).await?;
        pooler::refuse_undeclared(&mut conn, &options, &config, &sql).await?;
        if config.pooler == Pooler::Transaction {
            pooler::check_same(&mut conn, &pooled, &config, &sql).await?;
        }
        let migrating = migrate::migrate(&mut conn, &name, &sql, config.migrate);
        within(config.migration_deadline, "migrate the store", migrating).await??;
        within(config.read_deadline, "check the store", marker::check(&mut conn, &sql)).await??;
        let _ = conn.close().await;
        let reads = Bounds { index_plans: true, ..Bounds::new(config.read_deadline) };
        let own =
            |size, bounds, options: &PgConnectOptions| Connections::new(&config, &sql, size, bounds, options.clone());
        let reading = own(config.read_connections, reads, &pooled);
        // One more than there are turns, for what is built beside what serves. A projector's own statements are kept by name until
        // its work is done.
        let following = own(
            config.follower_connections + 1,
            Bounds::new(BATCH_DEADLINE),
            &pooled.clone().statement_cache_capacity(100),
        );
        let inner = Arc::new_cyclic(|inner| Inner {
            reads: reading,
            followers: following,
            users: users
                .unwrap_or_else(|| pool(&config, &sql, config.user_connections).connect_lazy_with(options.clone())),
            appender: Appender::start(&config, inner.clone()),
            event_bytes: AtomicUsize::new(0),
            begin: (config.pooler == Pooler::Transaction).then(|| reads.begin(&sql)),
            pooled,
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
        let all = self.inner.sql.all().into_iter();
        all.map(|(name, statement)| (name, statement.text().as_str().to_owned())).collect()
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
    /// Whether there is a pooler in transaction mode.
    pub(crate) fn is_pooled(&self) -> bool {
        self.begin.is_some()
    }

    /// Runs a read that may be repeated: again if the connection it got turned out to be dead, for a server that went away
    /// leaves the pool full of those.
    pub(crate) async fn read<T, F, R>(&self, what: &'static str, read: F) -> Result<T, StoreError>
    where
        F: Fn(Session<'static>) -> R,
        R: Future<Output = Result<T, sqlx::Error>>,
    {
        let reading = async {
            let mut dead = 0;
            loop {
                match async { read(self.reads.acquire().await?).await }.await {
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

/// A connection of the store's own.
pub(crate) async fn connect(options: &PgConnectOptions, deadline: Duration) -> Result<PgConnection, StoreError> {
    let connecting = PgConnection::connect_with(options);
    within(deadline, "connect", connecting).await?.map_err(StoreError::on("connect"))
}

/// How long one statement of an operator's may take, and how long its transaction may sit idle, twice over: what it locks keeps
/// followers waiting.
const SHORTLY: Duration = Duration::from_secs(10);

/// A connection for something short that locks what followers need: the server ends it, should this process be stopped in it.
pub(crate) async fn connect_shortly(store: &Annals) -> Result<PgConnection, StoreError> {
    let mut conn = connect(&store.inner.options, store.config().connect_deadline).await?;
    let setting = Bounds::new(SHORTLY).set(&mut conn);
    within(store.config().connect_deadline, "connect", setting).await?.map_err(StoreError::on("connect"))?;
    Ok(conn)
}

/// A transaction on a connection of its own, apart from the store's pools and from any pooler. Dropped, it is rolled back.
pub(crate) async fn begin_apart(store: &Annals, bounds: Bounds) -> Result<Transaction<'static, Postgres>, StoreError> {
    let inner = &store.inner;
    let options = inner.options.clone();
    // There, followers take away the names of statements that they did not give.
    let options = if inner.is_pooled() { options.statement_cache_capacity(0) } else { options };
    // What a handler writes after it has ended the transaction is refused.
    let one = pool(&inner.config, &inner.sql, 1).after_connect(|conn, _| {
        Box::pin(async move { sqlx::raw_sql("set default_transaction_read_only = on").execute(conn).await.map(drop) })
    });
    let one = one.connect_lazy_with(options);
    let beginning = one.begin_with(bounds.begin(&inner.sql));
    within(inner.config.connect_deadline, "connect", beginning).await?.map_err(StoreError::on("connect"))
}

/// A connection that may go through a pooler in transaction mode: used by [`on`] alone.
pub(crate) async fn connect_pooled(inner: &Inner) -> Result<PgConnection, StoreError> {
    connect(&inner.pooled, inner.config.connect_deadline).await
}

/// A login that may not see its own session cannot tell what became of it.
pub(crate) fn own_session() -> StoreError {
    StoreError::Unfit(
        "this login runs as another role (set role) and may not see its own session, so a lost answer could not be looked up, \
         nor a crash of the server noticed: log in as a member that inherits the role"
            .into(),
    )
}

/// A use of such a connection.
pub(crate) async fn on<'c>(inner: &Inner, conn: &'c mut PgConnection) -> Result<Session<'c>, sqlx::Error> {
    Session::on(conn, inner.begin.as_ref()).await
}

/// Where a store behind a pooler in transaction mode reaches the database itself.
fn direct(config: &Config) -> Result<PgConnectOptions, StoreError> {
    let Some(url) = &config.direct_url else {
        return Err(StoreError::Unfit(
            "behind a pooler in transaction mode the store takes a second URL, for migrations, wake-ups and operators: set \
             direct_url to the database itself, or to a pooler in session mode"
                .into(),
        ));
    };
    PgConnectOptions::from_str(url).map_err(|source| StoreError::Refused { what: "read direct_url", source })
}

/// Gives `work` until `deadline`, and drops it then.
pub(crate) async fn within<T>(
    deadline: Duration,
    what: &'static str,
    work: impl Future<Output = T>,
) -> Result<T, StoreError> {
    tokio::time::timeout(deadline, work).await.map_err(|_| StoreError::Timeout { what, after: deadline })
}

fn quiet(config: &Config, options: PgConnectOptions) -> PgConnectOptions {
    let named = options.get_application_name().is_some();
    let options = if named { options } else { options.application_name(&config.application_name) };
    // A pooler refuses settings at the start of a session that it does not know.
    options.extra_float_digits(None).disable_statement_logging()
}
