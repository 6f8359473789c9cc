//! How fulfilments and transfers end, on a real Postgres, with a gateway over real HTTP.

mod crash;

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, Instant},
};

use annals::{
    App, ReadStream, SagaEvent, SagaFilter, SagaInstance, SagaState, StepError, StreamId,
    testing::{TestDatabase, database, given_saga, recorded},
};
use tokio::task::yield_now;
use uuid::Uuid;

use super::*;
use crate::{
    account::{Account, AccountCommand, AccountEvent},
    gateway::{Charge, Ledger, Switches, tests::Running},
    order::{CustomerId, Line, Order, OrderCommand, OrderEvent, OrderId, Purchase, Sku, StoreId},
    shop::{self, Role},
    stock::{Stock, StockCommand, StockEvent},
};

const LONG: Duration = Duration::from_secs(60);

struct Shop {
    app: App,
    gateway: Running,
    database: TestDatabase,
}

impl Shop {
    /// A shop with ten of product 1, and one of product 2.
    async fn open() -> Self {
        let (database, gateway) = (database().await, Running::start());
        let app = start(&database, &gateway, false).await;
        app.execute::<Stock>(Sku(1), StockCommand::Receive { quantity: 10 }).await.unwrap();
        app.execute::<Stock>(Sku(2), StockCommand::Receive { quantity: 1 }).await.unwrap();
        Self { app, gateway, database }
    }

    async fn place(&self, lines: &[(i64, i64)]) -> OrderId {
        static NEXT: AtomicI64 = AtomicI64::new(1);
        let id = OrderId(NEXT.fetch_add(1, Ordering::Relaxed));
        let lines = lines.iter().map(|(sku, quantity)| line(*sku, *quantity)).collect();
        let place = OrderCommand::Place { customer: CustomerId(7), store: StoreId::ONLINE, lines };
        self.app.execute::<Order>(id, place).await.unwrap();
        id
    }

    async fn ends(&self, order: OrderId, state: SagaState) -> SagaInstance {
        instance(&self.app, Fulfilment::NAME, &order.to_string(), state).await
    }

    async fn ledger(&self) -> Ledger {
        self.gateway.client.ledger().await.unwrap()
    }

    async fn switch(&self, switches: Switches) {
        self.gateway.client.switch(&switches).await.unwrap();
    }

    /// What is free of products 1 and 2.
    async fn free(&self) -> (i64, i64) {
        let mut free = vec![];
        for sku in [1, 2] {
            let events = events::<StockEvent>(&self.app, StreamId::of("stock", sku).unwrap()).await;
            let change = |event: &StockEvent| match event {
                StockEvent::Received { quantity } | StockEvent::Released { quantity, .. } => *quantity,
                StockEvent::Reserved { quantity, .. } => -quantity,
            };
            free.push(events.iter().map(change).sum());
        }
        (free[0], free[1])
    }

    async fn last(&self, order: OrderId) -> OrderEvent {
        events(&self.app, StreamId::of("order", order).unwrap()).await.pop().unwrap()
    }
}

async fn start(database: &TestDatabase, gateway: &Running, crash: bool) -> App {
    let sagas = Sagas { gateway: gateway.client.clone(), runs: &ALL, crash };
    shop::start(database.url(), Role::Onlooker, Some(&sagas)).await.unwrap().0
}

async fn events<E: annals::Event>(app: &App, stream: StreamId) -> Vec<E> {
    let page = app.store().read_stream_page(&stream, ReadStream::default(), 100).await.unwrap();
    page.events.iter().map(|stored| app.decode::<E>(stored).unwrap().event).collect()
}

/// Waits until an instance is in `state`.
async fn instance(app: &App, saga: &str, id: &str, state: SagaState) -> SagaInstance {
    let filter = SagaFilter { saga: Some(saga.into()), id: Some(id.into()), ..SagaFilter::default() };
    let deadline = Instant::now() + LONG;
    loop {
        let instances = app.sagas().list(&filter, 100).await.unwrap();
        let found = instances.into_iter().find(|instance| &*instance.id == id);
        if let Some(found) = found.as_ref().filter(|found| found.state == state) {
            return found.clone();
        }
        assert!(Instant::now() < deadline, "not {state:?} in a minute: {found:?}");
        yield_now().await;
    }
}

fn line(sku: i64, quantity: i64) -> Line {
    let (product, department) = (format!("product {sku}"), "GROCERY".into());
    Line { sku: Sku(sku), product, department, quantity, amount_cents: 100 * quantity, discount_cents: 0 }
}

fn placed(store: StoreId) -> OrderEvent {
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    OrderEvent::OrderPlaced(Purchase::new(CustomerId(7), store, now, vec![line(1, 2)]).unwrap())
}

#[test]
fn what_was_done_is_undone_the_latest_first() {
    let charge = Charge { id: "charge-1".into(), order: "1".into(), cents: 200 };
    given_saga::<Fulfilment>([recorded("order-1", placed(StoreId::ONLINE))])
        .then_runs(["accept"])
        .succeeds("accept", ())
        .succeeds("reserve", ())
        .then_runs(["pay"])
        .succeeds("pay", charge)
        .then_runs(["ship"])
        .fails("ship", StepError::business("no lorry"))
        .then_undoes("pay")
        .undone("pay")
        .then_undoes("accept")
        .undone("accept")
        .then_compensated();
}

#[test]
fn only_orders_of_the_online_shop_are_fulfilled() {
    assert!(Fulfilment::start(&recorded("order-1", placed(StoreId::ONLINE))).is_some());
    assert!(Fulfilment::start(&recorded("order-1", placed(StoreId(1)))).is_none());
    let OrderEvent::OrderPlaced(purchase) = placed(StoreId::ONLINE) else { unreachable!() };
    assert!(Fulfilment::start(&recorded("order-1", OrderEvent::PastOrderRecorded(purchase))).is_none());
    assert_eq!(products(&[line(1, 2), line(2, 1), line(1, 3)]), [(Sku(1), 5), (Sku(2), 1)].into());
}

#[tokio::test]
async fn an_order_is_paid_shipped_and_confirmed_once() {
    let shop = Shop::open().await;

    let order = shop.place(&[(1, 2), (2, 1), (1, 1)]).await;
    shop.ends(order, SagaState::Completed).await;

    let ledger = shop.ledger().await;
    assert_eq!((ledger.charged_cents, ledger.refunded_cents, ledger.charges.len()), (400, 0, 1));
    assert_eq!((ledger.shipments.len(), ledger.shipments[0].cancelled), (1, false));
    assert_eq!(shop.free().await, (7, 0));
    assert!(matches!(shop.last(order).await, OrderEvent::OrderShipped { .. }));
    shop.app.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_done_is_undone_and_the_order_is_cancelled_with_the_reason() {
    let shop = Shop::open().await;
    for (switches, lines, reason, charged) in [
        (Switches { declined: 1.0, ..Switches::default() }, vec![(1, 1)], "declined", 0),
        (Switches { shipments_refused: 1.0, ..Switches::default() }, vec![(1, 1)], "the ship is refused", 100),
        (Switches::default(), vec![(1, 1), (2, 2)], "product 2: 2 are wanted, and 1 are there", 0),
    ] {
        let before = shop.ledger().await;
        shop.switch(switches).await;
        let order = shop.place(&lines).await;
        let ended = shop.ends(order, SagaState::Compensated).await.reason.unwrap();

        let last = shop.last(order).await;
        assert!(matches!(&last, OrderEvent::OrderCancelled { reason: said, .. } if *said == ended), "{last:?}");
        assert!(ended.contains(reason), "{ended}");
        let after = shop.ledger().await;
        assert_eq!(after.charged_cents - before.charged_cents, charged);
        assert_eq!(after.charged_cents, after.refunded_cents);
        assert_eq!(shop.free().await, (10, 1));
    }
    shop.app.shutdown().await;
}

#[tokio::test]
async fn whatever_becomes_of_answers_an_order_is_charged_once() {
    let shop = Shop::open().await;
    let troubles = [
        Switches { lost: 1.0, ..Switches::default() },
        Switches { garbage: 1.0, ..Switches::default() },
        Switches { huge: 1.0, ..Switches::default() },
        Switches { silent: 1.0, ..Switches::default() },
        Switches { outage: true, ..Switches::default() },
        Switches { throttled: 1.0, retry_after: 0, ..Switches::default() },
    ];
    for switches in troubles {
        let calls = shop.ledger().await.calls;
        shop.switch(switches).await;
        let order = shop.place(&[(1, 1)]).await;
        let deadline = Instant::now() + LONG;
        while shop.ledger().await.calls == calls {
            assert!(Instant::now() < deadline, "nothing is called");
            yield_now().await;
        }
        shop.switch(Switches::default()).await;
        shop.ends(order, SagaState::Completed).await;
    }

    let ledger = shop.ledger().await;
    assert_eq!((ledger.charges.len(), ledger.charged_cents, ledger.refunded_cents), (6, 600, 0));
    assert_eq!(ledger.shipments.iter().filter(|shipment| !shipment.cancelled).count(), 6);
    assert_eq!(shop.free().await, (4, 1));
    shop.app.shutdown().await;
}

#[tokio::test]
async fn who_is_asked_too_often_is_asked_again_when_it_said_so() {
    let shop = Shop::open().await;
    shop.switch(Switches { throttled: 1.0, retry_after: 3, ..Switches::default() }).await;
    let order = shop.place(&[(1, 1)]).await;
    let refusals = async || {
        let history = shop.app.sagas().history(Fulfilment::NAME, order).await.unwrap_or_default();
        let refusals = history.iter().filter_map(|told| match &told.event {
            SagaEvent::StepFailed { error, next_attempt_at: Some(next), .. } => {
                Some((error.clone(), (*next - told.recorded_at).as_seconds_f64()))
            }
            _ => None,
        });
        refusals.collect::<Vec<_>>()
    };
    let deadline = Instant::now() + LONG;
    while refusals().await.is_empty() {
        assert!(Instant::now() < deadline, "it is not refused");
        yield_now().await;
    }
    shop.switch(Switches::default()).await;
    shop.ends(order, SagaState::Completed).await;

    for (error, wait) in refusals().await {
        // Without that it would be a fifth of a second.
        assert!(error == "the gateway is asked too often" && wait > 2.9, "{error}: {wait}");
    }
    assert_eq!(shop.ledger().await.charges.len(), 1);
    shop.app.shutdown().await;
}

#[tokio::test]
async fn an_order_that_is_cancelled_while_its_payment_is_in_flight_is_paid_back() {
    let shop = Shop::open().await;
    shop.switch(Switches { slow: 1.0, slow_ms: 60_000, ..Switches::default() }).await;
    let order = shop.place(&[(1, 1)]).await;
    let deadline = Instant::now() + LONG;
    while shop.ledger().await.charges.is_empty() {
        assert!(Instant::now() < deadline, "nothing is charged");
        yield_now().await;
    }

    let cancel = OrderCommand::Cancel { reason: "changed my mind".into() };
    shop.app.execute::<Order>(order, cancel).await.unwrap();
    shop.switch(Switches::default()).await;
    let ended = shop.ends(order, SagaState::Compensated).await;

    assert_eq!(ended.reason.as_deref(), Some("changed my mind"));
    let ledger = shop.ledger().await;
    assert_eq!((ledger.charges.len(), ledger.charged_cents, ledger.refunded_cents), (1, 100, 100));
    assert_eq!(shop.free().await, (10, 1));
    shop.app.shutdown().await;
}

#[tokio::test]
async fn a_refund_that_is_refused_is_stuck_and_an_operator_retries_it() {
    let shop = Shop::open().await;
    shop.switch(Switches { shipments_refused: 1.0, refunds_refused: 1.0, ..Switches::default() }).await;
    let order = shop.place(&[(1, 1)]).await;
    let stuck = shop.ends(order, SagaState::Stuck).await;
    assert_eq!(stuck.step.as_deref(), Some("pay"));

    shop.switch(Switches::default()).await;
    let by = annals::By::new("ada", "the bank is back");
    shop.app.sagas().retry(Fulfilment::NAME, order, &by).await.unwrap();
    shop.ends(order, SagaState::Compensated).await;

    let ledger = shop.ledger().await;
    assert_eq!((ledger.charged_cents, ledger.refunded_cents), (100, 100));
    shop.app.shutdown().await;
}

#[tokio::test]
async fn an_order_that_is_changed_while_it_is_paid_is_given_up() {
    let shop = Shop::open().await;
    shop.switch(Switches { outage: true, ..Switches::default() }).await;
    let order = shop.place(&[(1, 1)]).await;
    let change = OrderCommand::ChangeLines { lines: vec![line(1, 5)] };
    shop.app.execute::<Order>(order, change).await.unwrap();
    shop.switch(Switches::default()).await;

    let ended = shop.ends(order, SagaState::Compensated).await;

    assert!(ended.reason.unwrap().contains("the order was changed"));
    let ledger = shop.ledger().await;
    assert_eq!((ledger.charged_cents, ledger.refunded_cents), (100, 100));
    assert!(ledger.shipments.iter().all(|shipment| shipment.cancelled));
    assert_eq!(shop.free().await, (10, 1));
    shop.app.shutdown().await;
}

#[tokio::test]
async fn money_that_one_account_refuses_goes_back_to_the_other() {
    let shop = Shop::open().await;
    let app = &shop.app;
    app.execute::<Account>("ada", AccountCommand::Open { cents: 1_000 }).await.unwrap();
    app.execute::<Account>("bob", AccountCommand::Open { cents: 0 }).await.unwrap();
    let cases = [
        ("bob", 300, SagaState::Completed),
        ("eve", 300, SagaState::Compensated),
        ("bob", 701, SagaState::Compensated),
    ];
    for (to, cents, state) in cases {
        let transfer = Uuid::now_v7();
        let request = AccountCommand::RequestTransfer { transfer, to: to.into(), cents };
        app.execute::<Account>("ada", request).await.unwrap();
        instance(app, Transfer::NAME, &transfer.to_string(), state).await;
    }

    let mut balances = vec![];
    for name in ["ada", "bob"] {
        let mut account = Account::default();
        let events = events::<AccountEvent>(app, StreamId::of("account", name).unwrap()).await;
        events.iter().for_each(|event| annals::Aggregate::apply(&mut account, event));
        balances.push(account.cents.unwrap());
    }
    assert_eq!(balances, [700, 300]);
    let history = app.sagas().list(&SagaFilter::default(), 10).await.unwrap();
    assert_eq!(history.len(), 3);
    let last = app.sagas().history(Transfer::NAME, history[1].id.clone()).await.unwrap();
    assert!(last.iter().any(|event| matches!(&event.event, SagaEvent::StepUndone { step } if step == "debit")));
    let _ = &shop.database;
    app.shutdown().await;
}
