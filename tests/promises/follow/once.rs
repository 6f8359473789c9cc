//! P4: exactly once, whoever does it, whatever dies.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use annals::{
    App, BoxError, ExpectedVersion, FailurePolicy, FollowerState, FollowerStatus, NewEvent, Projector, ReadLog,
    Recorded, StoreError, StreamId,
    testing::{database, server},
};
use futures::{TryStreamExt, future::join_all};
use serde_json::Value;

use super::{checkpoint, shop, status};
use crate::{
    app::place,
    kit::{Account, AccountCommand, HOLDS, LONG, eventually, open, refusal},
    shop::{Order, OrderCommand, OrderEvent, Spend},
};

/// Orders `first..last`, every third of them cancelled, from both apps at once.
async fn trade(apps: [&App; 2], orders: std::ops::Range<usize>) {
    let commands = orders.map(|nth| {
        let app = apps[nth % 2].clone();
        tokio::spawn(async move {
            app.execute::<Order>(nth, place(&format!("c{}", nth % 11), nth as i64)).await.unwrap();
            if nth % 3 == 0 {
                app.execute::<Order>(nth, OrderCommand::Cancel { reason: "n".into() }).await.unwrap();
            }
        })
    });
    for done in join_all(commands).await {
        done.unwrap();
    }
}

/// The read models equal a fold of the whole log, in position order, by nothing of the framework.
async fn assert_read_models_are_a_clean_fold(app: &App) {
    let events: Vec<_> = app.store().read_log(ReadLog::default()).try_collect().await.unwrap();
    app.wait_for_all(events.last().unwrap().position, LONG).await.unwrap();

    let mut spend: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for event in &events {
        let payload: Value = serde_json::from_str(event.event.as_str()).unwrap();
        let sign = if &*event.event_type == "Placed" { 1 } else { -1 };
        let entry = spend.entry(payload["customer"].as_str().unwrap().into()).or_default();
        *entry = (entry.0 + sign * payload["cents"].as_i64().unwrap(), entry.1 + sign);
    }
    spend.retain(|_, (_, orders)| *orders != 0);
    let views = app.list::<Spend>(None, 1_000).await.unwrap();
    let views: BTreeMap<String, (i64, i64)> =
        views.into_iter().map(|(key, spend)| (key.to_string(), (spend.cents, spend.orders))).collect();
    assert_eq!(views, spend);
    let rows: Vec<(i64, String, i64)> = sqlx::query_as("select * from annals_journal.entries order by position")
        .fetch_all(app.store().pool())
        .await
        .unwrap();
    let expected: Vec<_> =
        events.iter().map(|event| (event.position.get(), event.stream.to_string(), event.version.get())).collect();
    assert_eq!(rows, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_with_the_same_followers_apply_each_event_once() {
    let database = database().await;
    let (a, b) = tokio::join!(shop(database.url(), |_| ()), shop(database.url(), |_| ()));

    trade([&a, &b], 0..600).await;

    assert_read_models_are_a_clean_fold(&a).await;
    assert_read_models_are_a_clean_fold(&b).await;
    for app in [&a, &b] {
        assert!(app.followers().iter().all(|status| status.attempts == 0), "{:?}", app.followers());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_is_followed_by_one_that_loses_and_repeats_nothing() {
    let database = database().await;

    for round in 0..4 {
        let app = shop(database.url(), |_| ()).await;
        trade([&app, &app], round * 100..(round + 1) * 100).await;
        // In the middle of whatever its followers do.
        drop(app);
    }

    let app = shop(database.url(), |_| ()).await;
    assert_read_models_are_a_clean_fold(&app).await;
    let position = checkpoint(&app, "journal").await;
    app.shutdown().await;
    let app = shop(database.url(), |_| ()).await;
    app.wait_for_all(position, LONG).await.unwrap();
    assert_read_models_are_a_clean_fold(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_go_on_after_crashes_of_the_server() {
    let mut server = server().await;
    let app = shop(server.url(), |_| ()).await;

    for round in 0..2 {
        trade([&app, &app], round * 100..round * 100 + 50).await;
        server.kill();
        // Also those that have nothing to do.
        eventually("the followers say so", || async { status(&app, "spend").state == FollowerState::Retrying }).await;
        assert!(status(&app, "spend").last_error.is_some());
        server.start().await;
        trade([&app, &app], round * 100 + 50..(round + 1) * 100).await;
    }

    assert_read_models_are_a_clean_fold(&app).await;
    let is_well = |status: FollowerStatus| status.state == FollowerState::Running && status.last_error.is_none();
    eventually("all is well again", || async { app.followers().into_iter().all(is_well) }).await;
}

/// A journal that holds every event up until it is let go.
struct Slow(Arc<AtomicBool>);

impl Projector for Slow {
    const NAME: &'static str = "slow";
    const FAILURES: FailurePolicy = HOLDS;
    const TABLES: &'static str = "create table seen (position bigint primary key)";
    type Event = OrderEvent;

    async fn apply(&self, events: &[Recorded<OrderEvent>], conn: &mut sqlx::PgConnection) -> Result<(), BoxError> {
        if !self.0.load(Ordering::Relaxed) {
            return Err("not yet".into());
        }
        let positions: Vec<i64> = events.iter().map(|event| event.position.get()).collect();
        // Long enough for others to append meanwhile.
        let insert = "insert into seen select position from unnest($1::bigint[]) position, pg_sleep(0.03)";
        sqlx::query(insert).bind(positions).execute(conn).await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_far_behind_the_events_in_memory_catches_up_from_the_database() {
    let database = database().await;
    let store = open(database.url()).await;
    let open = Arc::new(AtomicBool::new(false));
    let app =
        store.app().aggregate::<Order>().aggregate::<Account>().projector(Slow(open.clone())).start().await.unwrap();

    // 25,000 events in a process that keeps 20,000, among them one in six of another category.
    let mut last = None;
    for nth in 0..6 {
        let (stream, event) = match nth {
            3 => ("account-1", NewEvent::new("Deposited", r#"{"cents":1}"#)),
            _ => ("order-1", NewEvent::new("Confirmed", "null")),
        };
        let events = (0..4_200).map(|_| NewEvent { event_id: uuid::Uuid::now_v7(), ..event.clone() }).collect();
        last =
            Some(store.append(&StreamId::new(stream).unwrap(), ExpectedVersion::Any, events).await.unwrap().position);
    }
    eventually("it has failed", || async { status(&app, "slow").failed_position.is_some() }).await;
    open.store(true, Ordering::Relaxed);
    app.wait_for("slow", last.unwrap(), LONG).await.unwrap();

    let seen: (i64, i64) =
        sqlx::query_as("select count(*), max(position) from annals_slow.seen").fetch_one(store.pool()).await.unwrap();
    assert_eq!(seen, (21_000, last.unwrap().get()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_catches_up_while_others_append_misses_nothing() {
    let database = database().await;
    let store = open(database.url()).await;
    let append = async |stream: usize, count: usize| {
        let event = NewEvent::new("Confirmed", "null");
        let events = (0..count).map(|_| NewEvent { event_id: uuid::Uuid::now_v7(), ..event.clone() }).collect();
        store.append(&StreamId::of("order", stream).unwrap(), ExpectedVersion::Any, events).await.unwrap().position
    };
    // More than a page, all of it older than what the app will have in memory.
    let mut last = append(0, 9_500).await;
    let app = store.app().aggregate::<Order>().projector(Slow(Arc::new(AtomicBool::new(true)))).start().await.unwrap();
    // Its last page is read ahead, up to where the log ended then, while the one before is applied.
    eventually("it has come that far", || async { status(&app, "slow").position.get() >= 6_000 }).await;
    while status(&app, "slow").position < last {
        last = join_all((0..8).map(|stream| append(stream, 3))).await.into_iter().max().unwrap();
        if last.get() > 30_000 {
            break;
        }
    }
    app.wait_for("slow", last, LONG).await.unwrap();

    let missed: i64 = sqlx::query_scalar(
        "select count(*) from annals.events e where not exists (select from annals_slow.seen s where s.position = e.position)",
    )
    .fetch_one(store.pool())
    .await
    .unwrap();
    assert_eq!(missed, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_checkpoint_of_a_follower_that_wants_nothing_moves_with_the_log() {
    let database = database().await;
    let store = open(database.url()).await;
    let before = store.app().aggregate::<Account>().start().await.unwrap();
    let first = before.execute::<Account>("ada", AccountCommand::Deposit(1)).await.unwrap();

    let slow = || Slow(Arc::new(AtomicBool::new(false)));
    let app = store.app().aggregate::<Account>().aggregate::<Order>().projector(slow()).start().await.unwrap();
    app.wait_for("slow", first.position, LONG).await.unwrap();
    let found = || async { checkpoint(&app, "slow").await >= first.position };
    eventually("the checkpoint passes over what was there before", found).await;
    let second = app.execute::<Account>("ada", AccountCommand::Deposit(1)).await.unwrap();
    app.wait_for("slow", second.position, LONG).await.unwrap();
    let heard = || async { checkpoint(&app, "slow").await >= second.position };
    eventually("the checkpoint passes over what came since", heard).await;

    // A number that was drawn and not used is no place for a checkpoint: a crash may give it out again.
    let drawn: i64 = sqlx::query_scalar("select nextval('annals.positions')").fetch_one(store.pool()).await.unwrap();
    app.wait_for("slow", annals::Position::new(drawn), LONG).await.unwrap();
    app.shutdown().await;
    let closed = refusal(app.execute::<Account>("ada", AccountCommand::Deposit(1)).await);
    assert!(matches!(closed, StoreError::Closed));
    assert_eq!(checkpoint(&before, "slow").await, second.position);
}
