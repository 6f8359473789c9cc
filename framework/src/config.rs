//! What a user can set.

use std::{fmt, time::Duration};

use crate::{InvalidInput, PayloadLimits};

/// Where the store is and how much it may use. Every field has a default but the URL.
///
/// Connections to Postgres, at most: `append_lanes + held_lanes + read_connections + follower_connections +
/// user_connections + 4` (the tail, the wake-up, one more for rebuilds, and a short-lived one that looks up a lost answer or
/// sets up a read model), 25 by default, and each of them only when it is needed. A rebuild that ends, a comparison (`App::verify`) an
/// operator's action (`Annals::followers`) and a replay check take one to three more for as long as they last.
///
/// ```
/// use annals::Config;
///
/// let config = Config { append_lanes: 4, ..Config::new("postgres://localhost/shop") };
/// assert_eq!(config.store, "annals");
/// ```
#[derive(Clone)]
pub struct Config {
    /// `postgres://user:password@host/database`. Never printed.
    pub url: String,
    /// The store's name, which is its schema: 1 to 30 lower case letters, digits and `_`. Two stores share nothing.
    /// Default: `annals`.
    pub store: String,
    /// How connections show themselves in `pg_stat_activity`.
    /// Default: `annals`.
    pub application_name: String,
    /// Appends that are written at the same time, each on a connection of its own.
    /// Default: 2.
    pub append_lanes: usize,
    /// Appends to streams that another transaction holds, which wait beside the lanes instead of in them. If there are more,
    /// they take turns of half a second.
    /// Default: 2.
    pub held_lanes: usize,
    /// Connections for loading aggregates and reading streams.
    /// Default: 8.
    pub read_connections: u32,
    /// Connections for views and projectors.
    /// Default: 4.
    pub follower_connections: u32,
    /// Connections of the pool that [`Annals::pool`](crate::Annals::pool) hands out for SQL of your own.
    /// Default: 5.
    pub user_connections: u32,
    /// Appends that may wait. One more is refused as [`Overloaded`](crate::StoreError::Overloaded).
    /// Default: 10,000.
    pub append_queue: usize,
    /// Bytes of payload that may wait in them. More is refused as [`Overloaded`](crate::StoreError::Overloaded); an append
    /// that is longer than that by itself waits alone.
    /// Default: 256 MiB.
    pub append_queue_bytes: usize,
    /// What stands between this process and Postgres at `url`.
    /// Default: nothing.
    pub pooler: Pooler,
    /// With [`Pooler::Transaction`], the same database without it, or through one in session mode: for migrations, wake-ups,
    /// SQL of your own, and the few connections of operators and rebuilds. Never printed.
    /// Default: none.
    pub direct_url: Option<String>,
    /// Whether `connect` creates the store, and migrates it to what this build knows, if the role may. Without, a store that is
    /// not there yet or lacks a migration is refused, and nothing is changed.
    /// Default: true.
    pub migrate: bool,
    /// What may be appended.
    pub limits: Limits,
    /// How long an append may take, queue and conflicts of lanes included; what has been sent by then is given another second
    /// to answer.
    /// Default: 20 s.
    pub append_deadline: Duration,
    /// How long a command may take: loading, deciding, appending, and deciding again after conflicts.
    /// Default: 30 s.
    pub command_deadline: Duration,
    /// How long one read may take to answer.
    /// Default: 20 s.
    pub read_deadline: Duration,
    /// How long a lane waits for one answer before it takes the connection for dead and asks on another what happened.
    /// Default: 5 s.
    pub statement_deadline: Duration,
    /// How long migrations may take, waiting for another process that migrates included.
    /// Default: 10 min.
    pub migration_deadline: Duration,
    /// How long connecting may take.
    /// Default: 5 s.
    pub connect_deadline: Duration,
    /// How long a lane waits for a stream that another transaction holds before the append leaves the lane; once one of a
    /// batch has left it, the others do so sooner.
    /// Default: 50 ms.
    pub lock_deadline: Duration,
    /// How long a transaction that used `append_in` may sit idle before Postgres ends it: while it is open, no reader
    /// sees what was appended after it.
    /// Default: 10 s.
    pub transaction_deadline: Duration,
    /// How long a shutdown waits for commands and followers.
    /// Default: 30 s.
    pub drain_deadline: Duration,
    /// How long the tail sleeps when nothing tells it of new events: the longest delay of an event of another process
    /// whose wake-up was lost.
    /// Default: 100 ms.
    pub poll_interval: Duration,
    /// Aggregates of one type whose state is kept in memory.
    /// Default: 10,000.
    pub cached_aggregates: usize,
    /// Instances of sagas that a process runs at once; those that only wait do not count. A quarter is kept for those that are due, so
    /// that new ones do not keep them waiting.
    /// Default: 256.
    pub running_sagas: usize,
}

/// What stands between a process and Postgres.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pooler {
    /// Nothing.
    #[default]
    None,
    /// A pooler that keeps one server connection for each of the client's, as PgBouncer does with `pool_mode = session`.
    Session,
    /// A pooler that may change the server connection with every transaction, as PgBouncer does with
    /// `pool_mode = transaction`. Then everything runs inside transactions, with statements that have no names, which takes
    /// a few more round trips each; [`Config::direct_url`] is needed beside it. An undeclared one is refused by `connect`:
    /// it would answer one client with another's rows.
    ///
    /// [`Annals::pool`](crate::Annals::pool) goes to `direct_url`, unless you bring a pool of your own through the pooler: there,
    /// put a transaction around your SQL, and `.persistent(false)` on each statement. What a projector does runs in a transaction
    /// already, and the statements that it prepares are closed after it.
    ///
    /// ```no_run
    /// # async fn connect() -> Result<(), annals::StoreError> {
    /// use annals::{Annals, Config, Pooler};
    ///
    /// let config = Config {
    ///     pooler: Pooler::Transaction,
    ///     direct_url: Some("postgres://shop:secret@db:5432/shop".into()),
    ///     ..Config::new("postgres://shop:secret@pgbouncer:6432/shop")
    /// };
    /// let store = Annals::connect(config).await?;
    /// # Ok(())
    /// # }
    /// ```
    Transaction,
}

/// What may be appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// What one payload may hold.
    pub payload: PayloadLimits,
    /// Events in one append, over all its streams.
    pub events: usize,
    /// Payload bytes in one append, over all its streams.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { payload: PayloadLimits::default(), events: 10_000, bytes: 64 << 20 }
    }
}

impl Config {
    /// Defaults, for the database at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            store: "annals".into(),
            application_name: "annals".into(),
            append_lanes: 2,
            held_lanes: 2,
            read_connections: 8,
            follower_connections: 4,
            user_connections: 5,
            append_queue: 10_000,
            append_queue_bytes: 256 << 20,
            pooler: Pooler::None,
            direct_url: None,
            migrate: true,
            limits: Limits::default(),
            append_deadline: Duration::from_secs(20),
            command_deadline: Duration::from_secs(30),
            read_deadline: Duration::from_secs(20),
            statement_deadline: Duration::from_secs(5),
            migration_deadline: Duration::from_secs(600),
            connect_deadline: Duration::from_secs(5),
            lock_deadline: Duration::from_millis(50),
            transaction_deadline: Duration::from_secs(10),
            drain_deadline: Duration::from_secs(30),
            poll_interval: Duration::from_millis(100),
            cached_aggregates: 10_000,
            running_sagas: 256,
        }
    }

    /// The same with every duration between a millisecond and a day, which Postgres and the clock can count, and with at
    /// least one of everything.
    pub(crate) fn checked(mut self) -> Self {
        for duration in [
            &mut self.append_deadline,
            &mut self.command_deadline,
            &mut self.read_deadline,
            &mut self.statement_deadline,
            &mut self.migration_deadline,
            &mut self.connect_deadline,
            &mut self.lock_deadline,
            &mut self.transaction_deadline,
            &mut self.drain_deadline,
            &mut self.poll_interval,
        ] {
            *duration = (*duration).clamp(Duration::from_millis(1), Duration::from_secs(24 * 60 * 60));
        }
        for count in [
            &mut self.append_lanes,
            &mut self.held_lanes,
            &mut self.append_queue,
            &mut self.append_queue_bytes,
            &mut self.cached_aggregates,
            &mut self.running_sagas,
        ] {
            *count = (*count).max(1);
        }
        for connections in [&mut self.read_connections, &mut self.follower_connections, &mut self.user_connections] {
            *connections = (*connections).max(1);
        }
        self
    }

    /// Defaults, for the database that `DATABASE_URL` names.
    ///
    /// # Errors
    /// If the variable is not set.
    pub fn from_env() -> Result<Self, InvalidInput> {
        match std::env::var("DATABASE_URL") {
            Ok(url) if !url.is_empty() => Ok(Self::new(url)),
            _ => Err(InvalidInput::Other("DATABASE_URL is not set: export DATABASE_URL=postgres://…".into())),
        }
    }
}

/// Defaults without a URL, for [`Annals::with_pool`](crate::Annals::with_pool).
impl Default for Config {
    fn default() -> Self {
        Self::new("")
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("store", &self.store).field("limits", &self.limits).finish_non_exhaustive()
    }
}
