//! The in-flight marker: why a reader that remembers a position never misses an event.
//!
//! # The trouble
//!
//! A number drawn from a sequence becomes visible only when its transaction commits. A writer draws 7 and pauses, another
//! draws 8 and commits: a reader that has seen 8 and asks for what comes after never sees 7.
//!
//! # The rule
//!
//! *Writer.* A `BEFORE INSERT … FOR EACH STATEMENT` trigger on `events`, `ENABLE ALWAYS`, reads the sequence (the
//! *bound*), then takes a shared advisory lock keyed by that bound, which lasts until the transaction ends: the *marker*.
//! Only then do the rows draw their positions, one by one, from the column's default. No way of inserting, `psql` and
//! `COPY` included, comes around it.
//!
//! *Reader.* One statement reads the sequence, and then the lowest marker in `pg_locks`. The lesser of the two is the
//! *safe position*. The rows up to it are read in a later statement, at READ COMMITTED.
//!
//! # Why nothing is missed
//!
//! Let the reader's sequence value be S and its lowest marker M, and take any position p ≤ min(S, M) that a writer W drew.
//! Since p ≤ S, p was drawn before the reader read the sequence; W's marker was taken before p was drawn. So when the
//! reader scanned the locks, W's marker was there, or W had ended. If it was there, its bound b < p, for p was drawn after
//! b was read; then M ≤ b < p, against p ≤ M. So W had ended: its row was visible, or would never be, before the scan,
//! and a later snapshot sees it.
//!
//! The safe position never moves back: a writer whose marker was not there at the scan draws after it, above S.
//!
//! # What this needs, each point seen to lose events or to stop readers when broken
//!
//! - `pg_sequence_last_value`, never `select last_value`: the plain read takes the value outside the page lock and can be
//!   32 too high, on either side.
//! - Never 0 for a sequence without a last value, which `setval(.., false)` leaves behind: widened around a position beyond
//!   the 31st bit, 0 lies above it and protects nothing. The writer draws a number as its bound then, and leaves it out.
//! - The sequence before the locks. The statement makes the scan depend on the sequence's value.
//! - The rows in a later statement, never in the statement of the safe position, never at REPEATABLE READ.
//! - One marker a transaction, remembered in a transaction-local setting that carries the store's name and holds the
//!   transaction's id: a savepoint that is rolled back takes marker and setting together, and a transaction of 4,000
//!   appends takes one lock of the server's table, not 4,000.
//! - Markers in the two-number form, (oid of `events`, low 32 bits of the bound): apart from other stores and from the
//!   application's own locks. The reader widens the low bits around its own sequence value.
//! - Markers filtered by database, never joined to `pg_stat_activity`: a prepared transaction has a marker and no pid.
//! - CACHE 1, no cycle; the sequence at or above every stored position and checkpoint when the store opens.
//! - After a lost connection readers start again from committed checkpoints: a crash can take the sequence back to numbers
//!   that only gaps had used.
//! - Not on a standby, which has none of the primary's locks.
//!
//! A gap makes nobody wait. A transaction that appends nothing makes nobody wait. One that has appended and stays open
//! holds every reader back at its bound: [`holders`] names it.
//!
//! # Source
//!
//! PostgreSQL documentation, "Advisory Locks" and "pg_locks"; the idea of an appender's watermark is also in Marten's and
//! `sourced_postgres`' later designs. The proof and its experiments are ours.

use std::time::Duration;

use sqlx::{PgConnection, Row, postgres::PgRow};

use crate::{Position, error::StoreError, sql::Sql, store::Annals};

/// How far the log is final, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Horizon {
    /// No event will ever appear at or below this position.
    pub safe: Position,
    /// The last position that any writer has drawn.
    pub drawn: Position,
}

/// A transaction that has appended and is still open: readers wait for it at `position`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The safe position is not above this one while the transaction is open.
    pub position: Position,
    /// The backend's process id; none for a prepared transaction.
    pub pid: Option<i32>,
    /// The backend's `application_name`, or the prepared transaction's name.
    pub application: String,
    /// How long the transaction has been open, by the database's clock; none when this role may not see it.
    pub age: Option<Duration>,
    /// What it is doing: `active`, `idle in transaction`, `prepared`; `hidden` when this role may not see it, which takes
    /// `pg_read_all_stats` where the transaction is another login's.
    pub state: String,
    /// Its last statement; empty when this role may not see it.
    pub query: String,
}

const READ_SAFE_POSITION: &str = "read the safe position";

/// Reads the horizon. The caller reads rows in a later statement only.
pub(crate) async fn horizon(conn: &mut PgConnection, sql: &Sql) -> Result<Horizon, StoreError> {
    let reading = sql.read_safe_position.query().fetch_one(conn);
    Horizon::of(&reading.await.map_err(StoreError::on(READ_SAFE_POSITION))?)
}

impl Horizon {
    fn of(row: &PgRow) -> Result<Self, StoreError> {
        if row.get("in_recovery") {
            return Err(StoreError::Unfit(
                "this server is a standby, where the writers' markers cannot be seen: let readers connect to the primary"
                    .into(),
            ));
        }
        let drawn: i64 = row.get("bound");
        let marker: Option<i64> = row.get("marker");
        Ok(Self { safe: Position::new(marker.map_or(drawn, |marker| marker.min(drawn))), drawn: Position::new(drawn) })
    }
}

/// Checks what the rule needs of the database.
pub(crate) async fn check(conn: &mut PgConnection, sql: &Sql) -> Result<(), StoreError> {
    let what = "check the sequence of positions";
    let faults: Vec<String> = sql.check_positions.scalar().fetch_all(conn).await.map_err(StoreError::on(what))?;
    if faults.is_empty() { Ok(()) } else { Err(StoreError::Unfit(faults.join("; "))) }
}

impl Annals {
    /// How far the log is final now.
    ///
    /// # Errors
    /// As any read: [`StoreError::Unavailable`], [`StoreError::Timeout`].
    pub async fn horizon(&self) -> Result<Horizon, StoreError> {
        let sql = self.inner.sql.read_safe_position.clone();
        let row = self
            .inner
            .read(READ_SAFE_POSITION, |mut conn| {
                let sql = sql.clone();
                async move { sql.query().fetch_one(&mut *conn).await }
            })
            .await?;
        Horizon::of(&row)
    }

    /// The last event of which it is certain that none comes before it any more.
    pub(crate) async fn safe_end(&self) -> Result<Position, StoreError> {
        let (safe, sql) = (self.horizon().await?.safe, self.inner.sql.read_last_position.clone());
        let reading = self.inner.read("read the last position", |mut conn| {
            let sql = sql.clone();
            async move { sql.scalar().bind(safe.get()).fetch_one(&mut *conn).await }
        });
        Ok(Position::new(reading.await?))
    }

    /// The transactions that hold the safe position back, lowest first. Empty when every append has ended.
    ///
    /// # Errors
    /// As any read: [`StoreError::Unavailable`], [`StoreError::Timeout`].
    pub async fn holders(&self) -> Result<Vec<Holder>, StoreError> {
        let sql = self.inner.sql.list_holders.clone();
        let rows = self
            .inner
            .read("list who holds the safe position", |mut conn| {
                let sql = sql.clone();
                async move { sql.query().fetch_all(&mut *conn).await }
            })
            .await?;
        Ok(rows
            .iter()
            .map(|row| Holder {
                position: Position::new(row.get("position")),
                pid: row.get("pid"),
                application: row.get("application"),
                age: row.get::<Option<f64>, _>("age_s").map(|age| Duration::from_secs_f64(age.max(0.0))),
                state: row.get("state"),
                query: row.get("query"),
            })
            .collect())
    }
}
