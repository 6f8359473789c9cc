//! The stock of one product: what came in, and which orders hold how much of it.

use std::collections::BTreeMap;

use annals::{Aggregate, Context, Event};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::order::OrderId;

/// What of a product can be promised. The id of its stream is the product's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Stock {
    /// What nobody holds.
    pub(crate) free: i64,
    /// What each order holds, also once it is delivered.
    pub(crate) held: BTreeMap<OrderId, i64>,
    /// All that ever came in: what is free and what is held are never more.
    received: i64,
}

/// What can be asked of a stock.
#[derive(Debug, Clone, Serialize)]
pub(crate) enum StockCommand {
    /// Goods came in.
    Receive { quantity: i64 },
    /// Keeps goods for an order, all of them or none.
    Reserve { order: OrderId, quantity: i64 },
    /// Gives back whatever an order holds, if it does.
    Release { order: OrderId },
}

/// What happens to a stock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum StockEvent {
    /// Goods came in.
    Received { quantity: i64 },
    /// Goods are kept for an order.
    Reserved { order: OrderId, quantity: i64 },
    /// Goods are free again.
    Released { order: OrderId, quantity: i64 },
}

impl Event for StockEvent {}

/// Why a stock refuses a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StockError {
    /// Nothing is kept then.
    #[error("{quantity} are wanted, and {free} are there")]
    NotEnough { quantity: i64, free: i64 },
    /// An order holds goods once.
    #[error("the order holds another quantity, {held}")]
    HeldBefore { held: i64 },
    /// More than can be counted, or nothing.
    #[error("a quantity is at least 1, and at most what can be counted")]
    BadQuantity,
}

impl Aggregate for Stock {
    const TYPE: &'static str = "stock";
    type Command = StockCommand;
    type Event = StockEvent;
    type Error = StockError;

    fn handle(&self, command: &StockCommand, _: &Context) -> Result<Vec<StockEvent>, StockError> {
        match *command {
            StockCommand::Receive { quantity } if quantity < 1 || self.received.checked_add(quantity).is_none() => {
                Err(StockError::BadQuantity)
            }
            StockCommand::Receive { quantity } => Ok(vec![StockEvent::Received { quantity }]),
            StockCommand::Reserve { order, quantity } => match self.held.get(&order) {
                Some(held) if *held == quantity => Ok(vec![]),
                Some(held) => Err(StockError::HeldBefore { held: *held }),
                None if quantity < 1 => Err(StockError::BadQuantity),
                None if quantity > self.free => Err(StockError::NotEnough { quantity, free: self.free }),
                None => Ok(vec![StockEvent::Reserved { order, quantity }]),
            },
            StockCommand::Release { order } => {
                let held = self.held.get(&order);
                Ok(held.map(|quantity| StockEvent::Released { order, quantity: *quantity }).into_iter().collect())
            }
        }
    }

    fn apply(&mut self, event: &StockEvent) {
        match *event {
            StockEvent::Received { quantity } => {
                self.free += quantity;
                self.received += quantity;
            }
            StockEvent::Reserved { order, quantity } => {
                self.free -= quantity;
                self.held.insert(order, quantity);
            }
            StockEvent::Released { order, quantity } => {
                self.free += quantity;
                self.held.remove(&order);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use annals::testing::given;

    use super::{StockCommand::*, StockEvent::*, *};

    const A: OrderId = OrderId(1);
    const B: OrderId = OrderId(2);

    fn reserved(order: OrderId, quantity: i64) -> StockEvent {
        Reserved { order, quantity }
    }

    #[test]
    fn what_is_there_is_kept_for_an_order_once() {
        let ten = Received { quantity: 10 };
        given::<Stock>([ten.clone()]).when(Reserve { order: A, quantity: 4 }).then([reserved(A, 4)]);
        given::<Stock>([ten.clone(), reserved(A, 4)]).when(Reserve { order: A, quantity: 4 }).then_nothing();
        given::<Stock>([ten.clone(), reserved(A, 4)])
            .when(Reserve { order: A, quantity: 5 })
            .then_rejected(StockError::HeldBefore { held: 4 });
        given::<Stock>([ten, reserved(A, 4)])
            .when(Reserve { order: B, quantity: 7 })
            .then_rejected(StockError::NotEnough { quantity: 7, free: 6 });
    }

    #[test]
    fn what_an_order_holds_is_given_back_whole_and_once() {
        let events = || vec![Received { quantity: 10 }, reserved(A, 4)];
        let released = Released { order: A, quantity: 4 };
        given::<Stock>(events()).when(Release { order: A }).then([released.clone()]);
        given::<Stock>(events()).when(Release { order: B }).then_nothing();
        let after = || [events(), vec![released.clone()]].concat();
        given::<Stock>(after()).when(Release { order: A }).then_nothing();
        given::<Stock>(after()).when(Reserve { order: B, quantity: 10 }).then([reserved(B, 10)]);
    }

    #[test]
    fn nothing_is_no_quantity() {
        given::<Stock>([]).when(Receive { quantity: 0 }).then_rejected(StockError::BadQuantity);
        given::<Stock>([]).when(Reserve { order: A, quantity: 0 }).then_rejected(StockError::BadQuantity);
        given::<Stock>([Received { quantity: i64::MAX }, reserved(A, i64::MAX)])
            .when(Receive { quantity: 1 })
            .then_rejected(StockError::BadQuantity);
    }
}
