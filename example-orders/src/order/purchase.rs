//! What is bought: lines, and the purchase that they make up.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CustomerId, OrderError, Sku, StoreId};

/// The most that one order may come to, in cents: a billion dollars. Sums over 90 million such orders fit an `i64`.
pub(crate) const MAX_ORDER_CENTS: i64 = 100_000_000_000;

/// One line of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Line {
    pub(crate) sku: Sku,
    /// Its name; empty for some products.
    pub(crate) product: String,
    /// Where the shop sells it; empty for some products too.
    pub(crate) department: String,
    /// How many, in the product's own unit. At least 1.
    pub(crate) quantity: i64,
    /// What is paid for the whole line, discount taken off.
    pub(crate) amount_cents: i64,
    /// What was taken off.
    pub(crate) discount_cents: i64,
}

/// Everything that makes a sale: who buys, where, when and what. Events carry it whole, so that every read model can be
/// projected from one event alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Purchase {
    pub(crate) customer: CustomerId,
    pub(crate) store: StoreId,
    pub(crate) placed_at: DateTime<Utc>,
    pub(crate) lines: Vec<Line>,
    /// The sum over the lines.
    pub(crate) amount_cents: i64,
    /// The sum over the lines.
    pub(crate) discount_cents: i64,
}

impl Purchase {
    /// Adds up `lines`.
    ///
    /// # Errors
    /// The rule of a purchase that `lines` breaks: there is at least one, each of a positive quantity and no negative
    /// money, and together they come to at most [`MAX_ORDER_CENTS`].
    pub(crate) fn new(
        customer: CustomerId,
        store: StoreId,
        placed_at: DateTime<Utc>,
        lines: Vec<Line>,
    ) -> Result<Self, OrderError> {
        let (amount_cents, discount_cents) = totals(&lines)?;
        Ok(Self { customer, store, placed_at, lines, amount_cents, discount_cents })
    }

    /// The same purchase of other `lines`.
    ///
    /// # Errors
    /// As [`Purchase::new`].
    pub(crate) fn with_lines(&self, lines: Vec<Line>) -> Result<Self, OrderError> {
        Self::new(self.customer, self.store, self.placed_at, lines)
    }

    /// Checks a purchase that was put together elsewhere.
    ///
    /// # Errors
    /// As [`Purchase::new`], and [`OrderError::WrongTotal`].
    pub(crate) fn check(&self) -> Result<(), OrderError> {
        if totals(&self.lines)? != (self.amount_cents, self.discount_cents) {
            return Err(OrderError::WrongTotal);
        }
        Ok(())
    }

    /// How many lines, as the read models count them.
    pub(crate) fn line_count(&self) -> i64 {
        self.lines.len() as i64
    }
}

/// The amount and the discount of `lines`, in cents, once they keep the rules of [`Purchase::new`].
fn totals(lines: &[Line]) -> Result<(i64, i64), OrderError> {
    if lines.is_empty() {
        return Err(OrderError::NoLines);
    }
    let (mut amount_cents, mut discount_cents) = (0_i64, 0_i64);
    for line in lines {
        if line.quantity < 1 || line.amount_cents < 0 || line.discount_cents < 0 {
            return Err(OrderError::BadLine { sku: line.sku });
        }
        amount_cents = amount_cents.saturating_add(line.amount_cents);
        discount_cents = discount_cents.saturating_add(line.discount_cents);
    }
    if amount_cents.max(discount_cents) > MAX_ORDER_CENTS {
        return Err(OrderError::TooLarge);
    }
    Ok((amount_cents, discount_cents))
}
