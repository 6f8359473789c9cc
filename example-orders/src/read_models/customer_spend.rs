//! What each customer has bought.

use annals::{Change, Id, Recorded, View};
use serde::{Deserialize, Serialize};

use crate::order::OrderEvent;

/// What one customer has bought, cancelled and returned orders left out. The key is the customer's id.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct CustomerSpend {
    pub(crate) orders: i64,
    pub(crate) lines: i64,
    pub(crate) amount_cents: i64,
}

impl View for CustomerSpend {
    const NAME: &'static str = "customer_spend";
    const INDEXES: &'static str = "create index on documents (((document->>'amount_cents')::bigint));";
    type Event = OrderEvent;

    fn keys(recorded: &Recorded<OrderEvent>) -> Vec<Id> {
        let purchase = recorded.event.sold().or(recorded.event.unsold());
        purchase.map(|purchase| purchase.customer.into()).into_iter().collect()
    }

    fn apply(&mut self, _: &Id, recorded: &Recorded<OrderEvent>) -> Change {
        if let Some(purchase) = recorded.event.sold() {
            self.orders += 1;
            self.lines += purchase.line_count();
            self.amount_cents += purchase.amount_cents;
        }
        if let Some(purchase) = recorded.event.unsold() {
            self.orders -= 1;
            self.lines -= purchase.line_count();
            self.amount_cents -= purchase.amount_cents;
        }
        if self.orders == 0 { Change::Remove } else { Change::Keep }
    }
}
