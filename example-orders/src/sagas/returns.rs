//! Returns, by choreography: each reactor does one thing about an order that came back, none knows of the others, and an expectation
//! misses the refund if it does not come.
//!
//! ```text
//! OrderReturned ─► pay_back: the gateway refunds the charge ─► OrderRefunded ─► notify: the customer is told
//!              └─► restock: what the order held is free again
//! refund: from OrderReturned to OrderRefunded in time, or somebody looks at it
//! ```
//!
//! A saga would be too much here: nothing is undone when a part fails, each part waits for nobody, and another one (a survey, a new
//! label) is added without touching these. An order's fulfilment is the other kind: its steps are undone together.

use std::time::Duration;

use annals::{App, Expectation, FailurePolicy, Id, Reaction, Reactor, Recorded, Saga, SagaEvent, StepError, Target};
use serde::Deserialize;

use super::{Fulfilment, PATIENT, fulfilment::GATEWAY, products};
use crate::{
    gateway::{Charge, Client},
    order::{Order, OrderCommand, OrderEvent, OrderId},
    stock::{Stock, StockCommand},
};

/// Everything but a return is none of the reactors' business.
const SKIPS: &[&str] = &[
    "OrderPlaced",
    "LinesChanged",
    "OrderConfirmed",
    "OrderShipped",
    "OrderCancelled",
    "OrderRefunded",
    "PastOrderRecorded",
];

/// Pays back what a returned order cost, and has the order record it.
///
/// Money is owed however old the return is: there is no `MAX_AGE`. The refund goes out under the reaction's key, and the order records it
/// under an id that comes from that key: whatever fails in between, both happen once.
pub(crate) struct PayBack {
    pub(crate) gateway: Client,
}

impl Reactor for PayBack {
    const NAME: &'static str = "pay_back";
    const FAILURES: FailurePolicy = PATIENT;
    const SKIPS: &'static [&'static str] = SKIPS;
    const TARGET: Option<Target> = Some(GATEWAY);
    type Event = OrderEvent;

    async fn react(&self, reaction: Reaction<OrderEvent>) -> Result<(), StepError> {
        if !matches!(reaction.event.event, OrderEvent::OrderReturned { .. }) {
            return Ok(());
        }
        let order = reaction.event.stream.id();
        let Some(charge) = charge(reaction.app(), order).await? else {
            let why = format!("order {order} was not paid by card: pay it back by hand, then discard this event");
            return Err(StepError::business(why));
        };
        let refund = self.gateway.refund(reaction.key, &charge.id).await?;
        let record = OrderCommand::RecordRefund { refund: refund.id, cents: refund.cents };
        reaction.execute::<Order>(order, record).await.map(drop)
    }
}

/// What an order was charged, as its fulfilment has it.
async fn charge(app: &App, order: &str) -> Result<Option<Charge>, StepError> {
    let history = app.sagas().history(Fulfilment::NAME, order).await?;
    let paid = history.iter().find_map(|recorded| match &recorded.event {
        SagaEvent::StepCompleted { step, output, .. } if step == "pay" => Some(output),
        _ => None,
    });
    paid.map(Charge::deserialize).transpose().map_err(StepError::business)
}

/// Frees what a returned order held of the stock.
pub(crate) struct Restock;

impl Reactor for Restock {
    const NAME: &'static str = "restock";
    const FAILURES: FailurePolicy = PATIENT;
    const SKIPS: &'static [&'static str] = SKIPS;
    type Event = OrderEvent;

    async fn react(&self, reaction: Reaction<OrderEvent>) -> Result<(), StepError> {
        let OrderEvent::OrderReturned { purchase, .. } = &reaction.event.event else { return Ok(()) };
        let order = OrderId(reaction.event.stream.id().parse().map_err(StepError::business)?);
        for sku in products(&purchase.lines).into_keys() {
            reaction.execute::<Stock>(sku, StockCommand::Release { order }).await?;
        }
        Ok(())
    }
}

/// A returned order is paid back within ten seconds, so that its absence is seen while one watches. A real shop gives it days.
pub(crate) struct Refund;

impl Expectation for Refund {
    const NAME: &'static str = "refund";
    type Event = OrderEvent;

    fn begin(event: &Recorded<OrderEvent>) -> Option<(Id, Duration)> {
        match &event.event {
            OrderEvent::OrderReturned { .. } => Some((event.stream.id().into(), Duration::from_secs(10))),
            _ => None,
        }
    }

    fn end(event: &Recorded<OrderEvent>) -> Option<Id> {
        match &event.event {
            OrderEvent::OrderRefunded { .. } => Some(event.stream.id().into()),
            _ => None,
        }
    }
}
