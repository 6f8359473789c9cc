//! P4: a view or projector applies each event exactly once.

use std::time::Duration;

use annals::{Annals, App, ExecuteError, Options, testing::database};
use futures::future::join_all;

use crate::shop::{Journal, Order, OrderCommand, OrderError, Spend};

pub(crate) async fn start(url: &str) -> App {
    let store = Annals::connect(crate::kit::config(url)).await.unwrap();
    store.app().aggregate::<Order>().view::<Spend>().projector(Journal).start().await.unwrap()
}

pub(crate) fn place(customer: &str, cents: i64) -> OrderCommand {
    OrderCommand::Place { customer: customer.into(), cents }
}

pub(crate) const LONG: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_command_becomes_events_and_read_models_that_its_caller_can_wait_for() {
    let database = database().await;
    let app = start(database.url()).await;

    let placed = app.execute::<Order>(1, place("ada", 500)).await.unwrap();
    app.execute::<Order>(2, place("ada", 700)).await.unwrap();
    let reason = "changed my mind".to_owned();
    let cancelled = app.execute::<Order>(1, OrderCommand::Cancel { reason }).await.unwrap();
    let refused = app.execute::<Order>(1, OrderCommand::Confirm).await;
    app.wait_for_all(cancelled.position, LONG).await.unwrap();

    assert_eq!((placed.version.get(), cancelled.version.get()), (1, 2));
    assert!(matches!(refused, Err(ExecuteError::Rejected(OrderError::NotOpen))), "{refused:?}");
    assert_eq!(app.get::<Spend>("ada").await.unwrap(), Some(Spend { cents: 700, orders: 1 }));
    let entries: i64 =
        sqlx::query_scalar("select count(*) from annals_journal.entries").fetch_one(app.store().pool()).await.unwrap();
    assert_eq!(entries, 3);
    app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_commands_at_once_are_each_applied_once() {
    let database = database().await;
    let app = start(database.url()).await;

    let receipts = join_all((0..1_000).map(|nth| {
        let app = app.clone();
        async move {
            app.execute_with::<Order>(nth % 500, place(&format!("c{}", nth % 7), 10), Options::default()).await.unwrap()
        }
    }))
    .await;
    let last = receipts.iter().map(|receipt| receipt.position).max().unwrap();
    app.wait_for_all(last, LONG).await.unwrap();

    assert_eq!(receipts.iter().map(|receipt| receipt.appended).sum::<usize>(), 500);
    let spent: i64 = app.list::<Spend>(None, 100).await.unwrap().iter().map(|(_, spend)| spend.cents).sum();
    assert_eq!(spent, 5_000);
    app.shutdown().await;
}
