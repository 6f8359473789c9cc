//! What happens to an order.

use annals::Event;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CustomerId, Purchase};

/// What happens to an order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum OrderEvent {
    /// A customer ordered.
    OrderPlaced(Purchase),
    /// The customer thought again.
    LinesChanged { before: Purchase, after: Purchase },
    /// The shop promised to deliver.
    OrderConfirmed { customer: CustomerId },
    /// The goods left.
    OrderShipped { customer: CustomerId },
    /// Nobody wants it any more.
    OrderCancelled { purchase: Purchase, reason: String },
    /// The goods are back.
    OrderReturned { purchase: Purchase, reason: String },
    /// What a returned order cost was paid back.
    OrderRefunded { customer: CustomerId, refund: String, cents: i64 },
    /// A finished order was brought over from an old system.
    PastOrderRecorded(Purchase),
}

impl Event for OrderEvent {}

impl OrderEvent {
    /// The purchase that counts as sold from this event on.
    pub(crate) fn sold(&self) -> Option<&Purchase> {
        match self {
            Self::OrderPlaced(purchase) | Self::PastOrderRecorded(purchase) => Some(purchase),
            Self::LinesChanged { after, .. } => Some(after),
            Self::OrderConfirmed { .. }
            | Self::OrderShipped { .. }
            | Self::OrderCancelled { .. }
            | Self::OrderReturned { .. }
            | Self::OrderRefunded { .. } => None,
        }
    }

    /// The purchase that counted as sold and does so no longer.
    pub(crate) fn unsold(&self) -> Option<&Purchase> {
        match self {
            Self::OrderCancelled { purchase, .. } | Self::OrderReturned { purchase, .. } => Some(purchase),
            Self::LinesChanged { before, .. } => Some(before),
            Self::OrderPlaced(_)
            | Self::PastOrderRecorded(_)
            | Self::OrderConfirmed { .. }
            | Self::OrderShipped { .. }
            | Self::OrderRefunded { .. } => None,
        }
    }
}
