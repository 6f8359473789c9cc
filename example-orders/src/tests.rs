//! The whole shop on a real Postgres.

use std::time::Duration;

use annals::{
    App, ReadStream, StreamId,
    testing::{TestDatabase, database},
};
use tokio_util::sync::CancellationToken;

use crate::{
    import::{Ending, Import, Source, Summary},
    order::{CustomerId, Line, Order, OrderCommand, OrderId, Sku, StoreId},
    read_models::{CustomerSpend, OpenOrder, OrderSearch},
    report::Totals,
    shop::{self, Role},
};

const SOON: Duration = Duration::from_secs(20);

const SAMPLE: &str = include_str!("../data/orders-sample.csv");

async fn open() -> (App, TestDatabase) {
    let database = database().await;
    (shop::start(database.url(), Role::Shop, None).await.unwrap().0, database)
}

async fn import(app: &App, text: impl AsRef<[u8]> + Send + 'static) -> Summary {
    let import = Import::open(Source::of(text).unwrap(), None).unwrap();
    let (summary, ending) = import.run(app, &CancellationToken::new()).await.unwrap();
    assert!(matches!(ending, Ending::Complete), "{ending:?}");
    summary
}

fn line(product: &str, amount_cents: i64) -> Line {
    let (product, department) = (product.into(), "GROCERY".into());
    Line { sku: Sku(1), product, department, quantity: 1, amount_cents, discount_cents: 0 }
}

#[tokio::test]
async fn the_sample_arrives_in_the_read_models_and_arrives_once() {
    let (app, _database) = open().await;

    let first = import(&app, SAMPLE).await;
    let again = import(&app, SAMPLE).await;

    assert_eq!((first.orders_accepted, first.orders_rejected, first.lines_accepted), (1_000, 0, 10_388));
    assert_eq!((again.orders_accepted, again.orders_already_there, again.lines_accepted), (0, 1_000, 0));
    let totals = Totals::read(&app).await.unwrap();
    assert_eq!((totals.orders, totals.lines, totals.amount_cents), (1_000, 10_388, 3_078_529));
    assert_eq!(totals.customers as u64, app.count::<CustomerSpend>().await.unwrap());
    app.shutdown().await;
}

#[tokio::test]
async fn an_order_with_other_contents_is_rejected_alone() {
    let (app, _database) = open().await;
    let (header, rows) = SAMPLE.split_once('\n').unwrap();
    let mut lines: Vec<&str> = rows.lines().take(40).collect();
    let other = lines[0].replace(",50,0", ",51,0");
    lines.push(&other);

    let summary = import(&app, format!("{header}\n{}", lines.join("\n"))).await;

    assert_eq!(summary.orders_rejected, 1);
    assert!(summary.orders_accepted > 1);
    let id = other.split_once(',').unwrap().0;
    let stream = StreamId::of("order", id).unwrap();
    let stored = app.store().read_stream_page(&stream, ReadStream::default(), 9).await.unwrap();
    assert_eq!(stored.events.len(), 1);
    assert!(stored.events[0].event.as_str().contains("\"amount_cents\":50"));
    app.shutdown().await;
}

#[tokio::test]
async fn an_order_is_found_as_it_was_last() {
    let (app, _database) = open().await;
    let id = OrderId(1);
    let place = OrderCommand::Place { customer: CustomerId(7), store: StoreId(3), lines: vec![line("Peas", 100)] };
    let change = OrderCommand::ChangeLines { lines: vec![line("Peas", 100), line("Green tea", 30)] };
    for command in [place, change, OrderCommand::Confirm] {
        app.execute::<Order>(id, command).await.unwrap();
    }
    let receipt = app.execute::<Order>(
        2,
        OrderCommand::Place { customer: CustomerId(7), store: StoreId(3), lines: vec![line("Peas", 100)] },
    );
    app.wait_for_all(receipt.await.unwrap().position, SOON).await.unwrap();

    let found = OrderSearch::find(app.store().pool(), "tea peas", 9).await.unwrap();
    let [order] = &found[..] else { panic!("{found:?}") };
    assert_eq!((&*order.id, &*order.status, order.lines, order.amount_cents), ("1", "confirmed", 2, 130));
    assert_eq!(app.get::<OpenOrder>(id).await.unwrap().unwrap().amount_cents, 130);

    let cancel = OrderCommand::Cancel { reason: "too cold".into() };
    let receipt = app.execute::<Order>(id, cancel).await.unwrap();
    app.wait_for_all(receipt.position, SOON).await.unwrap();

    let found = OrderSearch::find(app.store().pool(), "green", 9).await.unwrap();
    assert_eq!(found[0].status, "cancelled");
    assert_eq!(app.get::<OpenOrder>(id).await.unwrap(), None);
    assert_eq!(app.get::<CustomerSpend>(7).await.unwrap().unwrap().amount_cents, 100);
    app.shutdown().await;
}
