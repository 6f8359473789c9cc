//! From a placed order to goods that have left: stock, money, a shipment; or all of it undone.

use std::{collections::BTreeMap, time::Duration};

use annals::{Cx, FailureKind, Id, Recorded, Saga, StepError, Steps, Target};
use serde::{Deserialize, Serialize};

use crate::{
    gateway::{Charge, Client, Shipment},
    order::{Line, Order, OrderCommand, OrderEvent, OrderId, Sku, StoreId},
    stock::{Stock, StockCommand},
};

/// How long one call of the gateway may take: longer than its client waits.
const CALL: Duration = Duration::from_secs(10);
/// The gateway. It never forgets a key; one that is down is asked every 20 s whether it is back.
pub(super) const GATEWAY: Target = Target { open_for: Duration::from_secs(20), ..Target::new("gateway") };

/// Fulfils the orders of the online shop; what is bought in a store is paid and taken away there.
///
/// | step | does | undone by |
/// | --- | --- | --- |
/// | `accept` | nothing | releasing the stock, and cancelling the order with the reason |
/// | `reserve` | keeps goods of each product | `accept`'s undo, for it may end half-way |
/// | `pay` | takes the money | a refund |
/// | `ship` | books the shipment | cancelling it |
/// | `confirm` | the order is confirmed and on its way | |
///
/// An order that is cancelled or changed before `confirm` cannot be confirmed any more: all is undone.
pub(crate) struct Fulfilment {
    pub(crate) gateway: Client,
}

/// What is fulfilled: the order as it was placed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ToFulfil {
    pub(crate) order: OrderId,
    pub(crate) lines: Vec<Line>,
    pub(crate) cents: i64,
}

impl Saga for Fulfilment {
    const NAME: &'static str = "fulfilment";
    type Event = OrderEvent;
    type Input = ToFulfil;

    fn start(event: &Recorded<OrderEvent>) -> Option<(Id, ToFulfil)> {
        match &event.event {
            OrderEvent::OrderPlaced(placed) if placed.store == StoreId::ONLINE => {
                let order = OrderId(event.stream.id().parse().ok()?);
                Some((order.into(), ToFulfil { order, lines: placed.lines.clone(), cents: placed.amount_cents }))
            }
            _ => None,
        }
    }

    fn cancel(event: &Recorded<OrderEvent>) -> Option<(Id, String)> {
        match &event.event {
            OrderEvent::OrderCancelled { purchase, reason } if purchase.store == StoreId::ONLINE => {
                Some((event.stream.id().into(), reason.clone()))
            }
            _ => None,
        }
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        steps
            .step("accept", |_| async { Ok(()) })
            .undo(|cx, ()| give_up(cx))
            .step("reserve", reserve)
            .step("pay", |cx| async move { cx.saga.gateway.charge(cx.key, &cx.id, cx.input.cents).await })
            .ask(|cx| async move { cx.saga.gateway.charged(cx.key).await })
            .calls(GATEWAY)
            .attempt_timeout(CALL)
            .undo(|cx, charge: Charge| async move { cx.saga.gateway.refund(cx.key, &charge.id).await.map(drop) })
            .step("ship", |cx| async move { cx.saga.gateway.ship(cx.key, &cx.id).await })
            .calls(GATEWAY)
            .attempt_timeout(CALL)
            .undo(|cx, shipment: Shipment| async move {
                cx.saga.gateway.cancel_shipment(cx.key, &shipment.id).await.map(drop)
            })
            .command::<Order>("confirm", |cx| {
                Ok((cx.id.clone(), OrderCommand::Deliver { lines: cx.input.lines.clone() }))
            })
    }
}

/// How many of each product: an order may have several lines of one.
pub(crate) fn products(lines: &[Line]) -> BTreeMap<Sku, i64> {
    let mut products = BTreeMap::new();
    for line in lines {
        let quantity: &mut i64 = products.entry(line.sku).or_default();
        *quantity = quantity.saturating_add(line.quantity);
    }
    products
}

/// Keeps goods of each product. When one is short, those before it are kept until the order is given up.
async fn reserve(cx: Cx<Fulfilment>) -> Result<(), StepError> {
    let order = cx.input.order;
    for (sku, quantity) in products(&cx.input.lines) {
        let reserved = cx.execute::<Stock>(sku, StockCommand::Reserve { order, quantity }).await;
        reserved.map_err(|error| match error.kind() {
            FailureKind::Business => StepError::business(format!("product {sku}: {error}")),
            _ => error,
        })?;
    }
    Ok(())
}

/// Releases the stock, then cancels the order with the reason.
async fn give_up(cx: Cx<Fulfilment>) -> Result<(), StepError> {
    let order = cx.input.order;
    for sku in products(&cx.input.lines).into_keys() {
        cx.execute::<Stock>(sku, StockCommand::Release { order }).await?;
    }
    let reason = cx.reason.clone().unwrap_or_else(|| "it could not be fulfilled".into());
    cx.execute::<Order>(cx.id.clone(), OrderCommand::Cancel { reason }).await.map(drop)
}
