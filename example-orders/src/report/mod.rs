//! What the read models say.

use std::time::Duration;

use annals::{App, BoxError, Position, StoreError, WaitError};
use futures::future::try_join_all;
use serde::Serialize;
use sqlx::{PgPool, Row, query};

use crate::{
    figures::{count, dollars},
    operate::models,
    read_models,
    say::say,
    tables::table,
};

/// How long the read models may stand still before nobody waits for them any more.
const PATIENCE: Duration = Duration::from_secs(15);

/// Everything that was bought, cancelled and returned orders left out.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Totals {
    pub(crate) orders: i64,
    pub(crate) lines: i64,
    pub(crate) amount_cents: i64,
    pub(crate) customers: i64,
    /// Every event up to here is counted.
    pub(crate) position: Position,
}

impl Totals {
    /// Waits until the read models have caught up, and asks them.
    ///
    /// # Errors
    /// A read model makes no progress, or Postgres cannot be asked.
    pub(crate) async fn read(app: &App) -> Result<Self, BoxError> {
        let position = app.store().horizon().await?.safe;
        catch_up(app, position).await?;
        let row = query(include_str!("totals.sql")).fetch_one(app.store().pool()).await?;
        Ok(Self {
            orders: row.try_get("orders")?,
            lines: row.try_get("lines")?,
            amount_cents: row.try_get("amount_cents")?,
            customers: row.try_get("customers")?,
            position,
        })
    }
}

/// Prints the totals and what is behind them.
///
/// # Errors
/// As [`Totals::read`].
pub(crate) async fn print(app: &App) -> Result<(), BoxError> {
    let totals = Totals::read(app).await?;
    let mut all = table(["orders", "lines", "amount", "customers", "position"]);
    let counts = [totals.orders, totals.lines, totals.customers, totals.position.get()].map(count);
    let [orders, lines, customers, position] = counts;
    all.add_row([orders, lines, dollars(totals.amount_cents), customers, position]);
    say(format_args!("All orders\n{all}\n"))?;

    let pool = app.store().pool();
    print_best(pool, "Orders by status", ["status", "orders", "amount"], include_str!("statuses.sql")).await?;
    print_best(pool, "Best customers", ["customer", "orders", "amount"], include_str!("best_customers.sql")).await?;
    print_best(pool, "Best departments", ["department", "lines", "amount"], include_str!("best_departments.sql")).await
}

/// Prints the first rows of a statement that returns (name, count, amount_cents).
async fn print_best(pool: &PgPool, title: &str, header: [&str; 3], sql: &'static str) -> Result<(), BoxError> {
    let mut best = table(header);
    for row in query(sql).bind(5_i64).fetch_all(pool).await? {
        let name: String = row.try_get("name")?;
        best.add_row([name, count(row.try_get("count")?), dollars(row.try_get("amount_cents")?)]);
    }
    Ok(say(format_args!("{title}\n{best}\n"))?)
}

/// Waits until every read model shows `position`, as long as they, or what is being built in their place, move.
///
/// # Errors
/// They stand still, or Postgres cannot be asked.
pub(crate) async fn catch_up(app: &App, position: Position) -> Result<(), BoxError> {
    let mut seen = positions(app).await?;
    loop {
        let waits = read_models::ALL.iter().map(|(name, _)| app.wait_for(name, position, PATIENCE));
        match try_join_all(waits).await.map(drop) {
            Err(error @ WaitError::Behind { .. }) => {
                let now = positions(app).await?;
                if now == seen {
                    return Err(error.into());
                }
                seen = now;
            }
            done => return Ok(done?),
        }
    }
}

/// Where every build of every read model stands.
async fn positions(app: &App) -> Result<Vec<(i64, Position)>, StoreError> {
    let models = models(&app.store().followers()).await?;
    let builds = models.iter().flat_map(|model| [Some(&model.live), model.rebuild.as_ref()]).flatten();
    Ok(builds.map(|build| (build.generation, build.position)).collect())
}
