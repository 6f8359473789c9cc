//! Orders to search through, in a table of SQL.

mod slice;
#[cfg(test)]
mod tests;

use annals::{BoxError, Projector, Recorded};
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, Row, postgres::PgRow, query};

use crate::order::OrderEvent;
use slice::Slice;

/// The table `orders`, one row an order, searchable by what was bought.
///
/// Version 2 has the discount of an order, version 3 knows orders that were returned. A store of a version before is rebuilt by the
/// next start, while what it has serves.
pub(crate) struct OrderSearch;

impl Projector for OrderSearch {
    const NAME: &'static str = "order_search";
    const VERSION: u32 = 3;
    const TABLES: &'static str = include_str!("tables.sql");
    const INDEXES: &'static str = include_str!("indexes.sql");
    type Event = OrderEvent;

    /// Three statements, however many events. An order is inserted before anything else happens to it, and its lines
    /// and its status are columns of their own: so each kind can be written as one set, in this order.
    async fn apply(&self, events: &[Recorded<OrderEvent>], conn: &mut PgConnection) -> Result<(), BoxError> {
        let Slice { new, lines, statuses } = Slice::of(events);
        if !new.ids.is_empty() {
            query(include_str!("insert_orders.sql"))
                .bind(new.ids)
                .bind(new.customers)
                .bind(new.stores)
                .bind(new.placed_at)
                .bind(new.statuses)
                .bind(new.lines)
                .bind(new.amounts)
                .bind(new.discounts)
                .bind(new.products)
                .execute(&mut *conn)
                .await?;
        }
        if !lines.ids.is_empty() {
            query(include_str!("update_lines.sql"))
                .bind(lines.ids)
                .bind(lines.lines)
                .bind(lines.amounts)
                .bind(lines.discounts)
                .bind(lines.products)
                .execute(&mut *conn)
                .await?;
        }
        if !statuses.ids.is_empty() {
            query(include_str!("update_status.sql")).bind(statuses.ids).bind(statuses.statuses).execute(conn).await?;
        }
        Ok(())
    }
}

/// An order that was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) id: String,
    pub(crate) customer: i64,
    pub(crate) placed_at: DateTime<Utc>,
    pub(crate) status: String,
    pub(crate) lines: i64,
    pub(crate) amount_cents: i64,
    pub(crate) products: String,
}

impl OrderSearch {
    /// The newest `limit` orders whose products hold every word of `words`.
    ///
    /// # Errors
    /// Postgres could not be asked.
    pub(crate) async fn find(pool: &PgPool, words: &str, limit: i64) -> Result<Vec<Found>, sqlx::Error> {
        let rows = query(include_str!("search.sql")).bind(words).bind(limit).fetch_all(pool).await?;
        rows.iter().map(Found::read).collect()
    }
}

impl Found {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            customer: row.try_get("customer")?,
            placed_at: row.try_get("placed_at")?,
            status: row.try_get("status")?,
            lines: row.try_get("lines")?,
            amount_cents: row.try_get("amount_cents")?,
            products: row.try_get("products")?,
        })
    }
}
