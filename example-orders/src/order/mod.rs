//! The order: its rules, as a table of state and command.

mod command;
mod event;
mod ids;
mod purchase;
#[cfg(test)]
mod tests;

use annals::{Aggregate, Context};
use serde::{Deserialize, Serialize};

pub(crate) use command::{OrderCommand, OrderError};
pub(crate) use event::OrderEvent;
pub(crate) use ids::{CustomerId, OrderId, Sku, StoreId};
pub(crate) use purchase::{Line, MAX_ORDER_CENTS, Purchase};

/// An order, from the first click to the lorry.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Nobody has placed it yet.
    #[default]
    New,
    /// Placed; its lines can still change.
    Open(Purchase),
    /// The shop has promised to deliver.
    Confirmed(Purchase),
    /// On its way, or there.
    Shipped(Purchase),
    /// Sent back, and not paid back yet.
    Returned(Purchase),
    /// Sent back, and paid back by this refund.
    Refunded(String),
    /// Called off.
    Cancelled,
    /// Brought over from an old system, finished there.
    Past(Purchase),
}

impl Aggregate for Order {
    const TYPE: &'static str = "order";
    /// Since version 2, what was shipped is known.
    const SNAPSHOT_VERSION: u32 = 2;
    type Command = OrderCommand;
    type Event = OrderEvent;
    type Error = OrderError;

    /// One row a rule. A command that already took effect is an empty decision, so any command may be repeated.
    fn handle(&self, command: &OrderCommand, context: &Context) -> Result<Vec<OrderEvent>, OrderError> {
        use OrderCommand::*;
        use OrderEvent::*;
        let event = match (self, command) {
            (Self::New, Place { customer, store, lines }) => {
                OrderPlaced(Purchase::new(*customer, *store, context.now, lines.clone())?)
            }
            (Self::Open(there) | Self::Confirmed(there), Place { customer, store, lines })
                if (there.customer, there.store, &there.lines) == (*customer, *store, lines) =>
            {
                return Ok(vec![]);
            }
            (
                Self::Open(_)
                | Self::Confirmed(_)
                | Self::Shipped(_)
                | Self::Returned(_)
                | Self::Refunded(_)
                | Self::Cancelled
                | Self::Past(_),
                Place { .. },
            ) => return Err(OrderError::PlacedBefore),

            (Self::Open(there), ChangeLines { lines }) if there.lines == *lines => return Ok(vec![]),
            (Self::Open(there), ChangeLines { lines }) => {
                LinesChanged { before: there.clone(), after: there.with_lines(lines.clone())? }
            }
            (Self::Confirmed(_), ChangeLines { .. }) => return Err(OrderError::Confirmed),

            (Self::Open(there), Confirm) => OrderConfirmed { customer: there.customer },
            (Self::Confirmed(_) | Self::Shipped(_) | Self::Returned(_) | Self::Refunded(_), Confirm) => {
                return Ok(vec![]);
            }

            (Self::Open(_), Ship) => return Err(OrderError::NotConfirmed),
            (Self::Confirmed(there), Ship) => OrderShipped { customer: there.customer },
            (Self::Shipped(_) | Self::Returned(_) | Self::Refunded(_), Ship) => return Ok(vec![]),

            (Self::Open(there), Deliver { lines }) if there.lines == *lines => {
                let customer = there.customer;
                return Ok(vec![OrderConfirmed { customer }, OrderShipped { customer }]);
            }
            (Self::Confirmed(there), Deliver { lines }) if there.lines == *lines => {
                OrderShipped { customer: there.customer }
            }
            (Self::Open(_) | Self::Confirmed(_), Deliver { .. }) => return Err(OrderError::Changed),
            (Self::Shipped(_) | Self::Returned(_) | Self::Refunded(_), Deliver { .. }) => return Ok(vec![]),

            (Self::Open(there) | Self::Confirmed(there), Cancel { reason }) => {
                OrderCancelled { purchase: there.clone(), reason: reason.clone() }
            }
            (Self::Cancelled, Cancel { .. }) => return Ok(vec![]),

            (Self::Open(_) | Self::Confirmed(_), Return { .. }) => return Err(OrderError::NotShipped),
            (Self::Shipped(there), Return { .. }) if there.store != StoreId::ONLINE => {
                return Err(OrderError::InStore);
            }
            (Self::Shipped(there), Return { reason }) => {
                OrderReturned { purchase: there.clone(), reason: reason.clone() }
            }
            (Self::Returned(_) | Self::Refunded(_), Return { .. }) => return Ok(vec![]),

            (Self::Open(_) | Self::Confirmed(_) | Self::Shipped(_), RecordRefund { .. }) => {
                return Err(OrderError::NotReturned);
            }
            (Self::Returned(there), RecordRefund { refund, cents }) => {
                OrderRefunded { customer: there.customer, refund: refund.clone(), cents: *cents }
            }
            (Self::Refunded(there), RecordRefund { refund, .. }) if there == refund => return Ok(vec![]),
            (Self::Refunded(there), RecordRefund { .. }) => {
                return Err(OrderError::RefundedBefore { refund: there.clone() });
            }

            (Self::New, RecordPast(past)) => {
                past.check()?;
                PastOrderRecorded(past.clone())
            }
            (Self::Past(there), RecordPast(past)) if there == past => return Ok(vec![]),
            (
                Self::Open(_)
                | Self::Confirmed(_)
                | Self::Shipped(_)
                | Self::Returned(_)
                | Self::Refunded(_)
                | Self::Cancelled
                | Self::Past(_),
                RecordPast(_),
            ) => return Err(OrderError::OtherContents),

            (Self::Shipped(_), ChangeLines { .. } | Cancel { .. }) => return Err(OrderError::Shipped),
            (Self::Returned(_) | Self::Refunded(_), ChangeLines { .. } | Cancel { .. }) => {
                return Err(OrderError::Returned);
            }
            (
                Self::New,
                ChangeLines { .. }
                | Confirm
                | Ship
                | Deliver { .. }
                | Cancel { .. }
                | Return { .. }
                | RecordRefund { .. },
            ) => return Err(OrderError::NotPlaced),
            (
                Self::Cancelled,
                ChangeLines { .. } | Confirm | Ship | Deliver { .. } | Return { .. } | RecordRefund { .. },
            ) => return Err(OrderError::Cancelled),
            (
                Self::Past(_),
                ChangeLines { .. }
                | Confirm
                | Ship
                | Deliver { .. }
                | Cancel { .. }
                | Return { .. }
                | RecordRefund { .. },
            ) => return Err(OrderError::Past),
        };
        Ok(vec![event])
    }

    fn apply(&mut self, event: &OrderEvent) {
        *self = match (std::mem::take(self), event) {
            (_, OrderEvent::OrderPlaced(purchase)) => Self::Open(purchase.clone()),
            (_, OrderEvent::LinesChanged { after, .. }) => Self::Open(after.clone()),
            (Self::Open(purchase), OrderEvent::OrderConfirmed { .. }) => Self::Confirmed(purchase),
            (other, OrderEvent::OrderConfirmed { .. }) => other,
            (Self::Confirmed(purchase), OrderEvent::OrderShipped { .. }) => Self::Shipped(purchase),
            (other, OrderEvent::OrderShipped { .. }) => other,
            (_, OrderEvent::OrderCancelled { .. }) => Self::Cancelled,
            (_, OrderEvent::OrderReturned { purchase, .. }) => Self::Returned(purchase.clone()),
            (_, OrderEvent::OrderRefunded { refund, .. }) => Self::Refunded(refund.clone()),
            (_, OrderEvent::PastOrderRecorded(purchase)) => Self::Past(purchase.clone()),
        }
    }
}
