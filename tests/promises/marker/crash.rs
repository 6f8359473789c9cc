//! Transactions and servers that end before their time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use annals::{
    Annals, App, Append, Config, ExecuteError, ExpectedVersion, Metadata, ReadLog, StoreError, testing::database,
    testing::server,
};
use futures::{TryStreamExt, future::join_all};
use sqlx::Row;

use super::{
    LONG, connect, insert, placed, positions, run,
    seen::{stored, streams_with_holes},
    stream, until,
};
use crate::{
    app::{place, start},
    shop::{Order, Spend},
};

#[tokio::test(flavor = "multi_thread")]
async fn an_append_in_a_transaction_that_is_left_idle_is_ended_and_readers_go_on() {
    let database = database().await;
    let mut config = Config::new(database.url());
    config.transaction_deadline = Duration::from_secs(5);
    let store = Annals::connect(config).await.unwrap();
    let app = store.app().aggregate::<Order>().view::<Spend>().start().await.unwrap();
    let mut conn = connect(database.url()).await;

    run(&mut conn, "begin").await;
    let append = Append { stream: stream("order-idle"), expected: ExpectedVersion::Any, events: vec![placed()] };
    let idle = store.append_in(&mut conn, vec![append], Metadata::default()).await.unwrap();
    let later = app.execute::<Order>("later", place("ada", 7)).await.unwrap();
    let held = store.horizon().await.unwrap();
    let holders = store.holders().await.unwrap();
    app.wait_for_all(later.position, LONG).await.unwrap();
    let commit = sqlx::query("commit").execute(&mut conn).await;

    assert_eq!(positions(&[idle[0].position, held.safe, held.drawn]), [1, 0, 2]);
    assert_eq!(holders.len(), 1);
    assert!(commit.is_err(), "the transaction was still there");
    assert_eq!(app.get::<Spend>("ada").await.unwrap(), Some(Spend { cents: 7, orders: 1 }));
    assert_eq!(stored(&store).await, [2]);
    app.shutdown().await;
}

/// Places orders until told to stop, whatever happens to the server. Notes which were acknowledged.
async fn place_orders(app: App, nth: usize, stop: Arc<AtomicBool>, acknowledged: Arc<Mutex<BTreeSet<String>>>) {
    for order in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let id = format!("{nth}.{order}");
        match app.execute::<Order>(&id, place(&format!("c{}", order % 5), 3)).await {
            Ok(_) => drop(acknowledged.lock().unwrap().insert(id)),
            Err(ExecuteError::Store(error)) if error.is_retryable() => {}
            Err(ExecuteError::Store(StoreError::UnknownOutcome { .. } | StoreError::Timeout { .. })) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// What every customer has spent, from the log alone.
async fn fold(store: &Annals) -> BTreeMap<String, Spend> {
    let mut spend = BTreeMap::<String, Spend>::new();
    let events: Vec<_> = store.read_log(ReadLog::default()).try_collect().await.unwrap();
    for event in events {
        let payload: serde_json::Value = serde_json::from_str(event.event.as_str()).unwrap();
        let of = spend.entry(payload["customer"].as_str().unwrap().to_owned()).or_default();
        (of.cents, of.orders) = (of.cents + payload["cents"].as_i64().unwrap(), of.orders + 1);
    }
    spend
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashes_under_writers_and_followers_loses_nothing_that_was_acknowledged() {
    let mut server = server().await;
    let app = start(server.url()).await;
    let store = app.store().clone();
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(BTreeSet::new())));

    let writers: Vec<_> =
        (0..8).map(|nth| tokio::spawn(place_orders(app.clone(), nth, stop.clone(), acknowledged.clone()))).collect();
    let mut before = 0;
    for crash in 0..3 {
        until("orders are placed", async || acknowledged.lock().unwrap().len() > before + 50).await;
        if crash < 2 {
            server.kill();
            before = acknowledged.lock().unwrap().len();
            server.start().await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    join_all(writers).await.into_iter().for_each(|writer| writer.unwrap());

    let last = store.horizon().await.unwrap().safe;
    app.wait_for_all(last, LONG).await.unwrap();
    let events: Vec<(i64, String, i64)> =
        sqlx::query_as("select position, stream, version from annals.events order by position")
            .fetch_all(store.pool())
            .await
            .unwrap();
    let journal: Vec<(i64, String, i64)> =
        sqlx::query_as("select position, stream, version from annals_journal.entries order by position")
            .fetch_all(store.pool())
            .await
            .unwrap();
    let there: BTreeSet<String> =
        events.iter().map(|(_, stream, _)| stream.strip_prefix("order-").unwrap().to_owned()).collect();
    let acknowledged = acknowledged.lock().unwrap().clone();
    println!("{} orders acknowledged over two crashes, {} stored", acknowledged.len(), there.len());
    let lost: Vec<_> = acknowledged.difference(&there).collect();
    assert_eq!(lost, [""; 0], "acknowledged and lost");
    assert_eq!(journal, events);
    let views = app.list::<Spend>(None, 100).await.unwrap();
    let views: BTreeMap<String, Spend> = views.into_iter().map(|(key, spend)| (key.to_string(), spend)).collect();
    assert_eq!(views, fold(&store).await);
    assert_eq!(streams_with_holes(&store).await, [""; 0]);
    app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_holds_readers_and_is_named_over_a_crash() {
    let mut server = server().await;
    let store = Annals::connect(Config::new(server.url())).await.unwrap();
    let mut conn = connect(server.url()).await;
    run(&mut conn, "begin").await;
    insert(&mut conn, "order-1", 0, 1).await;
    run(&mut conn, "prepare transaction 'forgotten'").await;
    insert(&mut conn, "order-2", 0, 2).await;

    server.kill();
    server.start().await;
    let mut conn = connect(server.url()).await;
    let (held, holders) = (store.horizon().await.unwrap().safe, store.holders().await.unwrap());
    run(&mut conn, "commit prepared 'forgotten'").await;

    assert_eq!(positions(&[held]), [0]);
    let [holder] = &holders[..] else { panic!("{holders:?}") };
    assert_eq!((holder.pid, &*holder.application), (None, "prepared transaction forgotten"));
    assert_eq!(stored(&store).await, [1, 2, 3]);
}

/// Draws positions that come to nothing, and crashes the server before it has written that down. Returns the follower's
/// position before, and the sequence's after.
async fn crash_over_a_gap(server: &mut annals::testing::TestServer, app: &App) -> (i64, i64) {
    let mut conn = connect(server.url()).await;
    let receipt = app.execute::<Order>(uuid::Uuid::now_v7(), place("ada", 1)).await.unwrap();
    app.wait_for_all(receipt.position, LONG).await.unwrap();

    run(&mut conn, "begin; select nextval('annals.positions') from generate_series(1, 100); rollback").await;
    let drawn = receipt.position.get() + 100;
    until("the followers are over the gap", async || app.followers().iter().all(|it| it.position.get() == drawn)).await;
    server.kill();
    server.start().await;

    let mut conn = connect(server.url()).await;
    let sequence = "select coalesce(pg_sequence_last_value('annals.positions'), 0)";
    (drawn, sqlx::query(sequence).fetch_one(&mut conn).await.unwrap().get(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_only_gaps_had_used_are_read_when_a_crash_gives_them_out_again() {
    let mut server = server().await;
    let app = start(server.url()).await;
    // The server writes down on its own what a rolled back transaction drew; not before we crash it.
    run(&mut connect(server.url()).await, "alter system set wal_writer_delay = '10s'").await;
    run(&mut connect(server.url()).await, "select pg_reload_conf()").await;

    let (mut drawn, mut sequence) = crash_over_a_gap(&mut server, &app).await;
    for _ in 0..5 {
        if sequence < drawn {
            break;
        }
        (drawn, sequence) = crash_over_a_gap(&mut server, &app).await;
    }
    println!("followers stood at {drawn}, the sequence came back as {sequence}");
    assert!(sequence < drawn, "the crash took nothing back: {sequence} of {drawn}");
    // A while in which followers do whatever they do with an old position, and the server is there again.
    let mut conn = connect(server.url()).await;
    let before: i64 = sqlx::query_scalar("select count(*) from annals.events").fetch_one(&mut conn).await.unwrap();
    let (first, _) = insert(&mut conn, "order-again.1", 0, 2).await;
    until("the tail and the followers have met the new server", async || {
        let idle =
            "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'annals'";
        let sessions: i64 = sqlx::query_scalar(idle).fetch_one(app.store().pool()).await.unwrap();
        sessions >= 3
    })
    .await;
    let (_, last) = insert(&mut conn, "order-again.2", 0, 2).await;
    let receipt = app.execute::<Order>("end", place("ada", 1)).await.unwrap();
    app.wait_for_all(receipt.position, LONG).await.unwrap();

    assert!(first <= drawn && last <= drawn, "{first} and {last} are not below {drawn}");
    let seen: i64 =
        sqlx::query_scalar("select count(*) from annals_journal.entries").fetch_one(&mut conn).await.unwrap();
    assert_eq!(seen, before + 5, "events at {first} to {last} are lost");
    app.shutdown().await;
}
