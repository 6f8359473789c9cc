//! The rows of one order, and what they make together.

use std::fmt::Display;

use chrono::{DateTime, Utc};

use super::{
    columns::Row,
    record::Record,
    rejection::{Fault, Rejection},
};
use crate::order::{CustomerId, Line, OrderId, Purchase, StoreId};

/// The most that one order may hold, in bytes of its rows' text. As an event, it would be too large for the store.
const MAX_ORDER_BYTES: usize = 1024 * 1024;

/// An order that can be imported.
#[derive(Debug, PartialEq)]
pub(crate) struct FileOrder {
    pub(crate) id: OrderId,
    /// The line of its first row.
    pub(crate) line: u64,
    pub(crate) purchase: Purchase,
    /// Rows of quantity 0 that were left out.
    pub(crate) lines_dropped: u64,
    /// What it holds, in bytes of text.
    pub(crate) bytes: usize,
}

/// The rows of one order, as far as they have been read.
pub(super) struct Group {
    pub(super) id: OrderId,
    line: u64,
    /// What the first good row says of the order.
    head: Option<(CustomerId, StoreId, DateTime<Utc>)>,
    lines: Vec<Line>,
    lines_dropped: u64,
    bytes: usize,
    /// The first thing that is wrong, and its line.
    pub(super) fault: Option<(u64, Fault)>,
    /// A row behind the last one that names no order: it is one of this order's, if another of them follows.
    pub(super) stray: Option<Rejection>,
}

impl Group {
    pub(super) fn new(id: OrderId, line: u64) -> Self {
        Self { id, line, head: None, lines: vec![], lines_dropped: 0, bytes: 0, fault: None, stray: None }
    }

    pub(super) fn add(&mut self, record: &Record, row: Result<Row, Fault>) {
        if let Some(stray) = self.stray.take() {
            self.fault.get_or_insert((stray.line, stray.fault));
        }
        if self.fault.is_some() {
            return;
        }
        self.bytes += record.bytes();
        if let Err(fault) = row.and_then(|row| self.take(row)) {
            self.fault = Some((record.line, fault));
            self.lines = vec![];
        }
    }

    fn take(&mut self, row: Row) -> Result<(), Fault> {
        let (customer, store, placed_at) = *self.head.get_or_insert((row.customer, row.store, row.placed_at));
        let differs = |field, first: &dyn Display| {
            Err(Fault::new(field, format!("differs from the order's first row, which has {first}")))
        };
        if row.customer != customer {
            return differs("customer_id", &customer);
        }
        if row.store != store {
            return differs("store_id", &store.0);
        }
        if row.placed_at != placed_at {
            return differs("placed_at", &placed_at.to_rfc3339());
        }
        if self.bytes > MAX_ORDER_BYTES {
            return Err(Fault::new("row", "the order has too many rows: more than 1 MiB"));
        }
        match row.line.quantity {
            0 => self.lines_dropped += 1,
            _ => self.lines.push(row.line),
        }
        Ok(())
    }

    /// The order or its rejection, and the stray behind it.
    pub(super) fn finish(self, rejected_before: bool) -> (Result<FileOrder, Rejection>, Option<Rejection>) {
        let Self { id, line, head, lines, lines_dropped, bytes, fault, stray } = self;
        let reject = |line, fault, lines_dropped| Rejection { line, order: Some(id), fault, lines_dropped };
        let outcome = match (fault, head) {
            (Some((line, fault)), _) => Err(reject(line, fault, 0)),
            (None, _) if rejected_before => {
                let fault = Fault::new("order_id", "other rows of this order were rejected before");
                Err(reject(line, fault, 0))
            }
            (None, Some(_)) if lines.is_empty() => {
                let fault = Fault::new("quantity", "the order has no line left: every quantity is 0");
                Err(reject(line, fault, lines_dropped))
            }
            (None, Some((customer, store, placed_at))) => Purchase::new(customer, store, placed_at, lines)
                .map(|purchase| FileOrder { id, line, purchase, lines_dropped, bytes })
                .map_err(|error| reject(line, Fault::new("amount_cents", error.to_string()), 0)),
            (None, None) => Err(reject(line, Fault::new("row", "the order has no row"), 0)),
        };
        (outcome, stray)
    }
}
