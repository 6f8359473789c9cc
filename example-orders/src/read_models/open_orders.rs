//! The orders that the shop still has to do something about.

use annals::{Change, Id, Recorded, View};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::order::{CustomerId, OrderEvent, StoreId};

/// An order that is neither shipped nor cancelled. The key is the order's id.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct OpenOrder {
    pub(crate) status: OpenOrderStatus,
    pub(crate) customer: Option<CustomerId>,
    pub(crate) store: Option<StoreId>,
    pub(crate) placed_at: Option<DateTime<Utc>>,
    pub(crate) lines: i64,
    pub(crate) amount_cents: i64,
}

/// What the shop has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OpenOrderStatus {
    /// To be confirmed.
    #[default]
    Open,
    /// To be shipped.
    Confirmed,
}

impl View for OpenOrder {
    const NAME: &'static str = "open_orders";
    const INDEXES: &'static str = "create index on documents ((document->>'customer'));";
    type Event = OrderEvent;

    fn keys(recorded: &Recorded<OrderEvent>) -> Vec<Id> {
        match &recorded.event {
            // It is not open any more, or never was.
            OrderEvent::PastOrderRecorded(_) | OrderEvent::OrderReturned { .. } | OrderEvent::OrderRefunded { .. } => {
                vec![]
            }
            OrderEvent::OrderPlaced(_)
            | OrderEvent::LinesChanged { .. }
            | OrderEvent::OrderConfirmed { .. }
            | OrderEvent::OrderShipped { .. }
            | OrderEvent::OrderCancelled { .. } => vec![recorded.stream.id().into()],
        }
    }

    fn apply(&mut self, _: &Id, recorded: &Recorded<OrderEvent>) -> Change {
        match &recorded.event {
            OrderEvent::OrderPlaced(purchase) | OrderEvent::LinesChanged { after: purchase, .. } => {
                *self = Self {
                    status: OpenOrderStatus::Open,
                    customer: Some(purchase.customer),
                    store: Some(purchase.store),
                    placed_at: Some(purchase.placed_at),
                    lines: purchase.line_count(),
                    amount_cents: purchase.amount_cents,
                };
            }
            OrderEvent::OrderConfirmed { .. } => self.status = OpenOrderStatus::Confirmed,
            OrderEvent::OrderShipped { .. }
            | OrderEvent::OrderCancelled { .. }
            | OrderEvent::OrderReturned { .. }
            | OrderEvent::OrderRefunded { .. }
            | OrderEvent::PastOrderRecorded(_) => return Change::Remove,
        }
        Change::Keep
    }
}
