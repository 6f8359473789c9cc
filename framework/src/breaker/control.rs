//! Circuit breakers of all processes: what an operator sees, and can do.

use chrono::{DateTime, Utc};
use sqlx::Row;

use crate::{Annals, By, StoreError};

/// The circuit breaker of one process before one target.
#[derive(Debug, Clone, PartialEq)]
pub struct CircuitBreaker {
    /// Whom it calls.
    pub target: String,
    /// The process.
    pub process: String,
    /// Its number on its machine.
    pub pid: i32,
    /// `closed`: it calls. `open`: it does not, for a while. `probing`: one call decides. `held open`: somebody opened it.
    pub state: String,
    /// Failures in a row.
    pub failures: u32,
    /// The latest failure.
    pub last_error: Option<String>,
    /// Until when it is open.
    pub open_until: Option<DateTime<Utc>>,
    /// Since when it is so.
    pub changed_at: DateTime<Utc>,
    /// Who holds it open, and why.
    pub held_by: Option<(String, String)>,
}

/// The circuit breakers of a store's processes. [`Annals::breakers`] makes it.
///
/// Every process obeys within a second; one that starts later, too.
#[derive(Debug, Clone)]
pub struct CircuitBreakers {
    store: Annals,
}

impl Annals {
    /// The circuit breakers of every process that is alive, whatever its app.
    pub fn breakers(&self) -> CircuitBreakers {
        CircuitBreakers { store: self.clone() }
    }
}

impl CircuitBreakers {
    /// All of them.
    ///
    /// # Errors
    /// As any read: [`StoreError::Unavailable`], [`StoreError::Timeout`].
    pub async fn list(&self) -> Result<Vec<CircuitBreaker>, StoreError> {
        let sql = self.store.inner.sql.list_breakers.clone();
        let reading = self.store.inner.read("list circuit breakers", |mut conn| {
            let sql = sql.clone();
            async move { sql.query().fetch_all(&mut *conn).await }
        });
        let rows = reading.await?;
        let breaker = |row: &sqlx::postgres::PgRow| {
            let state: String = row.get(3);
            let (actor, reason): (Option<String>, Option<String>) = (row.get(8), row.get(9));
            CircuitBreaker {
                target: row.get(0),
                process: row.get(1),
                pid: row.get(2),
                failures: row.get::<i32, _>(4).unsigned_abs(),
                last_error: row.get(5),
                open_until: row.get(6),
                changed_at: row.get(7),
                held_by: actor.zip(reason).filter(|_| state == "held open"),
                state,
            }
        };
        Ok(rows.iter().map(breaker).collect())
    }

    /// Has nobody call `target` until [`CircuitBreakers::close`].
    ///
    /// # Errors
    /// [`StoreError::Unfit`] if no process that is alive calls it; as any append otherwise.
    pub async fn open(&self, target: &str, by: &By) -> Result<(), StoreError> {
        self.order(target, true, by).await
    }

    /// Has every process call `target` again, at once.
    ///
    /// # Errors
    /// As [`CircuitBreakers::open`].
    pub async fn close(&self, target: &str, by: &By) -> Result<(), StoreError> {
        self.order(target, false, by).await
    }

    async fn order(&self, target: &str, opens: bool, by: &By) -> Result<(), StoreError> {
        let ordering = self.store.inner.sql.order_breaker.query();
        let ordering = ordering.bind(target.to_owned()).bind(opens).bind(by.actor.clone()).bind(by.reason.clone());
        match self.store.inner.reads.optional("order a circuit breaker", ordering).await? {
            Some(_) => Ok(()),
            None => Err(StoreError::Unfit(format!("no process that is alive calls {target:?}"))),
        }
    }
}
