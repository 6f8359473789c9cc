//! Both sagas, killed once at every point where something is written.

use annals::testing::crash_everywhere;

use super::*;
use crate::fulfil::reconcile;

fn build(store: &annals::Annals, gateway: &Running) -> Builder {
    let sagas = Sagas { gateway: gateway.client.clone(), runs: &ALL, crash: false };
    sagas.register(store.app().aggregate::<Order>().aggregate::<Stock>().aggregate::<Account>())
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_the_process_is_killed_an_order_is_charged_once_or_given_all_back() {
    let switches = Switches { shipments_refused: 0.5, seed: 1, ..Switches::default() };
    let refused = |order: &i64| switches.meets("shipments_refused", 0.5, &order.to_string(), 0);
    let ships = (1..).find(|order| !refused(order)).unwrap();
    let stays = (1..).find(refused).unwrap();

    let points = crash_everywhere(
        Running::start,
        |store, gateway| build(&store, gateway),
        async |app, gateway| {
            gateway.client.switch(&switches).await.unwrap();
            app.execute::<Stock>(Sku(1), StockCommand::Receive { quantity: 10 }).await.unwrap();
            for order in [ships, stays] {
                let place = OrderCommand::Place {
                    customer: CustomerId(7),
                    store: StoreId::ONLINE,
                    lines: vec![line(1, order)],
                };
                app.execute::<Order>(order, place).await.unwrap();
            }
        },
        async |app, gateway| {
            let found = reconcile(app, &gateway.client, None).await.unwrap();
            assert!(found.agrees(), "{found:?}");
            let charges = gateway.client.ledger().await.unwrap().charges.len();
            let ends = (found.completed, found.compensated, found.stuck, found.running);
            (ends, charges, found.charged_cents - found.refunded_cents)
        },
    )
    .await;

    assert!(points >= 20, "{points}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_the_process_is_killed_a_transfer_arrives_or_goes_back() {
    let points = crash_everywhere(
        Running::start,
        |store, gateway| build(&store, gateway),
        async |app, _| {
            app.execute::<Account>("ada", AccountCommand::Open { cents: 1_000 }).await.unwrap();
            app.execute::<Account>("bob", AccountCommand::Open { cents: 0 }).await.unwrap();
            for to in ["bob", "nobody"] {
                let request = AccountCommand::RequestTransfer { transfer: Uuid::now_v7(), to: to.into(), cents: 300 };
                app.execute::<Account>("ada", request).await.unwrap();
            }
        },
        async |app, _| {
            let counts = app.sagas().summary().await.unwrap().remove(Transfer::NAME).unwrap();
            let balance = async |name: &str| shop::fold::<Account>(app, name).await.unwrap().cents;
            (counts, balance("ada").await, balance("bob").await)
        },
    )
    .await;

    assert!(points >= 10, "{points}");
}
