//! A slice of events, turned into the columns of three statements.

use std::collections::HashMap;

use annals::Recorded;
use chrono::{DateTime, Utc};

use crate::order::{OrderEvent, Purchase};

/// What a slice of events does to the table. Of several changes to one order, the last one stands.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Slice<'a> {
    pub(super) new: NewOrders<'a>,
    pub(super) lines: NewLines<'a>,
    pub(super) statuses: NewStatuses<'a>,
}

/// The columns of `insert_orders.sql`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct NewOrders<'a> {
    pub(super) ids: Vec<&'a str>,
    pub(super) customers: Vec<i64>,
    pub(super) stores: Vec<i64>,
    pub(super) placed_at: Vec<DateTime<Utc>>,
    pub(super) statuses: Vec<&'static str>,
    pub(super) lines: Vec<i64>,
    pub(super) amounts: Vec<i64>,
    pub(super) discounts: Vec<i64>,
    pub(super) products: Vec<String>,
}

/// The columns of `update_lines.sql`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct NewLines<'a> {
    pub(super) ids: Vec<&'a str>,
    pub(super) lines: Vec<i64>,
    pub(super) amounts: Vec<i64>,
    pub(super) discounts: Vec<i64>,
    pub(super) products: Vec<String>,
}

/// The columns of `update_status.sql`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct NewStatuses<'a> {
    pub(super) ids: Vec<&'a str>,
    pub(super) statuses: Vec<&'static str>,
}

impl<'a> Slice<'a> {
    pub(super) fn of(events: &'a [Recorded<OrderEvent>]) -> Self {
        let mut slice = Self::default();
        let (mut changed, mut moved) = (HashMap::new(), HashMap::new());
        for recorded in events {
            let id = recorded.stream.id();
            match &recorded.event {
                OrderEvent::PastOrderRecorded(purchase) => slice.new.push(id, "past", purchase),
                OrderEvent::OrderPlaced(purchase) => slice.new.push(id, "open", purchase),
                OrderEvent::LinesChanged { after, .. } => {
                    changed.insert(id, after);
                }
                OrderEvent::OrderConfirmed { .. } => {
                    moved.insert(id, "confirmed");
                }
                OrderEvent::OrderShipped { .. } => {
                    moved.insert(id, "shipped");
                }
                OrderEvent::OrderCancelled { .. } => {
                    moved.insert(id, "cancelled");
                }
                OrderEvent::OrderReturned { .. } => {
                    moved.insert(id, "returned");
                }
                OrderEvent::OrderRefunded { .. } => {}
            }
        }
        for (id, purchase) in changed {
            slice.lines.push(id, purchase);
        }
        (slice.statuses.ids, slice.statuses.statuses) = moved.into_iter().unzip();
        slice
    }
}

impl<'a> NewOrders<'a> {
    fn push(&mut self, id: &'a str, status: &'static str, purchase: &Purchase) {
        self.ids.push(id);
        self.customers.push(purchase.customer.0);
        self.stores.push(purchase.store.0);
        self.placed_at.push(purchase.placed_at);
        self.statuses.push(status);
        self.lines.push(purchase.line_count());
        self.amounts.push(purchase.amount_cents);
        self.discounts.push(purchase.discount_cents);
        self.products.push(products(purchase));
    }
}

impl<'a> NewLines<'a> {
    fn push(&mut self, id: &'a str, purchase: &Purchase) {
        self.ids.push(id);
        self.lines.push(purchase.line_count());
        self.amounts.push(purchase.amount_cents);
        self.discounts.push(purchase.discount_cents);
        self.products.push(products(purchase));
    }
}

/// The names of the products, as a person would list them.
fn products(purchase: &Purchase) -> String {
    let names: Vec<&str> = purchase.lines.iter().map(|line| line.product.as_str()).filter(|n| !n.is_empty()).collect();
    names.join("; ")
}
