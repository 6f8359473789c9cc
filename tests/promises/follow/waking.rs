//! P4: events of other processes are seen soon, and without any hint they are seen all the same.

use std::time::{Duration, Instant};

use annals::{App, Append, ExpectedVersion, Metadata, NewEvent, StreamId, testing::database};

use super::{shop, status};
use crate::{
    app::place,
    kit::{LONG, eventually, open},
    shop::{Order, Spend},
};

const SOON: Duration = Duration::from_secs(15);
/// Longer than anybody here waits.
const NEVER: Duration = Duration::from_secs(600);

async fn is_listening(app: &App) -> bool {
    let query =
        "select count(*) > 0 from pg_stat_activity where datname = current_database() and query ilike 'listen%'";
    sqlx::query_scalar(query).fetch_one(app.store().pool()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_another_process_is_heard_of_long_before_the_next_poll() {
    let database = database().await;
    let app = shop(database.url(), |config| config.poll_interval = NEVER).await;
    // A process that follows nothing: only its appends tell of it.
    let writer = open(database.url()).await.app().aggregate::<Order>().start().await.unwrap();
    eventually("it listens", || is_listening(&app)).await;

    for nth in 0..20 {
        let begun = Instant::now();
        let placed = writer.execute::<Order>(nth, place("ada", 10)).await.unwrap();
        app.wait_for_all(placed.position, SOON).await.unwrap();
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_is_cut_off_listens_again_and_looks_at_what_it_missed() {
    let database = database().await;
    let app = shop(database.url(), |config| config.poll_interval = NEVER).await;
    let writer = open(database.url()).await.app().aggregate::<Order>().start().await.unwrap();
    eventually("it listens", || is_listening(&app)).await;

    for nth in 0..5 {
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                   where datname = current_database() and query ilike 'listen%'";
        let _: i64 = sqlx::query_scalar(end).fetch_one(app.store().pool()).await.unwrap();
        let placed = writer.execute::<Order>(nth, place("ada", 10)).await.unwrap();
        app.wait_for_all(placed.position, LONG).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_hint_events_arrive_by_polling() {
    let database = database().await;
    let app = shop(database.url(), |_| ()).await;
    let raw = database.pool().await;

    // By hand, in a transaction that the framework knows nothing of.
    for version in 1..=5_i64 {
        let insert = "insert into annals.events (version, event_id, correlation_id, stream, event_type, payload) \
                      values ($1, gen_random_uuid(), gen_random_uuid(), 'order-7', 'Placed', $2::json) returning position";
        let position: i64 = sqlx::query_scalar(insert)
            .bind(version)
            .bind(r#"{"customer":"ada","cents":5}"#)
            .fetch_one(&raw)
            .await
            .unwrap();
        app.wait_for_all(annals::Position::new(position), LONG).await.unwrap();
    }

    assert_eq!(app.get::<Spend>("ada").await.unwrap(), Some(Spend { cents: 25, orders: 5 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_behind_an_open_transaction_arrive_when_it_ends_in_order() {
    let database = database().await;
    let app = shop(database.url(), |config| config.poll_interval = NEVER).await;
    let append = |id: &str| Append {
        stream: StreamId::of("order", id).unwrap(),
        expected: ExpectedVersion::NoStream,
        events: vec![NewEvent::new("Placed", r#"{"customer":"ada","cents":1}"#)],
    };

    let mut open = app.store().pool().begin().await.unwrap();
    let first = app.store().append_in(&mut open, vec![append("held")], Metadata::default()).await.unwrap();
    let second = app.execute::<Order>("free", place("ada", 2)).await.unwrap();
    let holders = app.store().holders().await.unwrap();
    let early = app.wait_for("journal", second.position, Duration::from_millis(300)).await;
    open.commit().await.unwrap();
    // Nobody tells of a commit that is not the appender's: whoever is waited for is looked for again and again.
    app.wait_for_all(second.position, LONG).await.unwrap();

    assert!(first[0].position < second.position && early.is_err(), "{early:?}");
    assert_eq!(holders.len(), 1, "{holders:?}");
    let entries: Vec<String> = sqlx::query_scalar("select stream from annals_journal.entries order by position")
        .fetch_all(app.store().pool())
        .await
        .unwrap();
    assert_eq!(entries, ["order-held", "order-free"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_is_enough_for_all_followers() {
    let database = database().await;
    let app = shop(database.url(), |config| config.follower_connections = 1).await;

    for nth in 0..50 {
        app.execute::<Order>(nth, place("ada", 10)).await.unwrap();
    }
    let last = app.execute::<Order>(50, place("ada", 10)).await.unwrap();
    app.wait_for_all(last.position, SOON).await.unwrap();

    for name in ["spend", "journal"] {
        assert_eq!((status(&app, name).attempts, status(&app, name).last_error), (0, None));
    }
}
