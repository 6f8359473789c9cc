//! P4: SQL of the user's own, in the projector's schema and the framework's transaction.

use std::time::Duration;

use annals::{
    App, BoxError, Config, ExpectedVersion, FailurePolicy, NewEvent, Projector, Recorded, StreamId, testing::database,
};
use sqlx::{Executor, PgConnection};

use super::{checkpoint, status};
use crate::{
    app::place,
    kit::{HOLDS, LONG, eventually, open},
    shop::{Order, OrderEvent},
};

/// What the handler does with its connection, by the amount of the order.
struct Search;

const FINE: i64 = 1;
const SWALLOWED: i64 = 2;
const ROLLED_BACK: i64 = 3;
const COMMITTED: i64 = 4;
const SAVEPOINT: i64 = 5;
const ABANDONED: i64 = 6;

impl Projector for Search {
    const NAME: &'static str = "search";
    const FAILURES: FailurePolicy = HOLDS;
    const TABLES: &'static str = "
        create type kind as enum ('small', 'large');
        create table orders (id text primary key, kind kind not null);
        create function shout(text) returns text language sql immutable as 'select upper($1)';
        insert into orders values ('made at the start', 'large');
    ";
    const INDEXES: &'static str = "create index by_kind on orders (kind); create index by_name on orders (shout(id));";
    type Event = OrderEvent;

    async fn apply(&self, events: &[Recorded<OrderEvent>], conn: &mut PgConnection) -> Result<(), BoxError> {
        use sqlx::Connection;
        for recorded in events {
            let OrderEvent::Placed { cents, .. } = recorded.event else { continue };
            let insert = || sqlx::query("insert into orders values ($1, 'small')").bind(recorded.stream.id());
            match cents {
                SWALLOWED => {
                    insert().execute(&mut *conn).await?;
                    let _ = conn.execute("select 1 / 0").await;
                }
                ROLLED_BACK => {
                    insert().execute(&mut *conn).await?;
                    conn.execute(sqlx::raw_sql("rollback; begin")).await?;
                }
                COMMITTED => {
                    conn.execute(sqlx::raw_sql("commit")).await?;
                }
                SAVEPOINT => {
                    let mut inner = conn.begin().await?;
                    let _ = inner.execute("select 1 / 0").await;
                    inner.rollback().await?;
                    insert().execute(&mut *conn).await?;
                }
                ABANDONED => {
                    let mut inner = conn.begin().await?;
                    insert().execute(&mut *inner).await?;
                }
                _ => {
                    insert().execute(&mut *conn).await?;
                }
            }
        }
        Ok(())
    }
}

async fn search(url: &str) -> App {
    open(url).await.app().aggregate::<Order>().projector(Search).start().await.unwrap()
}

async fn orders(app: &App) -> Vec<String> {
    let query = sqlx::query_scalar("select id from annals_search.orders where kind = 'small' order by id");
    query.fetch_all(app.store().pool()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_without_a_schema_run_in_the_projectors_own() {
    let database = database().await;
    database.pool().await.execute("create table orders (id text, kind text)").await.unwrap();
    let app = search(database.url()).await;

    let receipt = app.execute::<Order>(1, place("ada", FINE)).await.unwrap();
    app.wait_for("search", receipt.position, LONG).await.unwrap();

    assert_eq!(orders(&app).await, ["1"]);
    let pool = app.store().pool();
    let public: i64 = sqlx::query_scalar("select count(*) from public.orders").fetch_one(pool).await.unwrap();
    let indexes: Vec<String> =
        sqlx::query_scalar("select indexname::text from pg_indexes where schemaname = 'annals_search' and tablename <> '_position' order by 1")
            .fetch_all(pool)
            .await
            .unwrap();
    assert_eq!(public, 0);
    assert_eq!(indexes, ["by_kind", "by_name", "orders_pkey"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn savepoints_of_the_handler_are_its_own_affair() {
    let database = database().await;
    let app = search(database.url()).await;

    app.execute::<Order>("tried", place("ada", SAVEPOINT)).await.unwrap();
    app.execute::<Order>("abandoned", place("ada", ABANDONED)).await.unwrap();
    let last = app.execute::<Order>("fine", place("ada", FINE)).await.unwrap();
    app.wait_for("search", last.position, LONG).await.unwrap();

    assert_eq!(orders(&app).await, ["fine", "tried"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_breaks_its_transaction_is_told_so_and_the_checkpoint_stays() {
    for (amount, words) in [
        (SWALLOWED, "a statement of it failed, and it did not return the error"),
        (ROLLED_BACK, "it ended the transaction that it was given"),
        (COMMITTED, "it ended the transaction that it was given"),
    ] {
        let database = database().await;
        let app = search(database.url()).await;
        let first = app.execute::<Order>(1, place("ada", FINE)).await.unwrap();
        app.wait_for("search", first.position, LONG).await.unwrap();

        let broken = app.execute::<Order>(2, place("ada", amount)).await.unwrap();
        eventually("it is shown", || async { status(&app, "search").last_error.is_some() }).await;

        let shown = status(&app, "search");
        assert_eq!(shown.failed_position, Some(broken.position));
        assert!(shown.last_error.as_ref().unwrap().contains(words), "{shown:?}");
        if amount != COMMITTED {
            assert_eq!(checkpoint(&app, "search").await, first.position);
            assert_eq!(orders(&app).await, ["1"]);
        }
    }
}

/// Its tables cannot be made.
struct Wrong;

impl Projector for Wrong {
    const NAME: &'static str = "wrong";
    const TABLES: &'static str = "create table first (id text); create tabel second (id text);";
    type Event = OrderEvent;

    async fn apply(&self, _: &[Recorded<OrderEvent>], _: &mut PgConnection) -> Result<(), BoxError> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_cannot_be_made_stop_the_start_and_leave_nothing() {
    let database = database().await;
    let store = open(database.url()).await;

    let (_, text) = crate::kit::start_error(store.app().aggregate::<Order>().projector(Wrong)).await;

    assert!(text.contains("of wrong cannot be created in schema annals_wrong") && text.contains("tabel"), "{text}");
    let left: i64 = sqlx::query_scalar("select count(*) from pg_namespace where nspname = 'annals_wrong'")
        .fetch_one(store.pool())
        .await
        .unwrap();
    assert_eq!(left, 0);
}

/// Takes a millisecond an event, and is given 200.
struct Tired;

impl Projector for Tired {
    const NAME: &'static str = "tired";
    const TABLES: &'static str = "create table seen (position bigint primary key)";
    type Event = OrderEvent;

    async fn apply(&self, events: &[Recorded<OrderEvent>], conn: &mut PgConnection) -> Result<(), BoxError> {
        conn.execute("set local statement_timeout = 200").await?;
        let positions: Vec<i64> = events.iter().map(|event| event.position.get()).collect();
        sqlx::query("select pg_sleep($1)").bind(positions.len() as f64 / 1_000.0).execute(&mut *conn).await?;
        sqlx::query("insert into seen select * from unnest($1::bigint[])").bind(positions).execute(conn).await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_takes_too_long_is_made_smaller() {
    let database = database().await;
    let store = open(database.url()).await;
    let events = (0..1_000).map(|_| NewEvent::new("Confirmed", "null")).collect();
    let last = store.append(&StreamId::new("order-1").unwrap(), ExpectedVersion::Any, events).await.unwrap();

    let app = store.app().aggregate::<Order>().projector(Tired).start().await.unwrap();
    app.wait_for("tired", last.position, LONG).await.unwrap();

    assert_eq!(status(&app, "tired").attempts, 0);
    let seen: i64 = sqlx::query_scalar("select count(*) from annals_tired.seen").fetch_one(store.pool()).await.unwrap();
    assert_eq!(seen, 1_000);
}

/// One of several that share a connection, each for longer than connecting may take.
struct Crowd<const NTH: usize>;

impl<const NTH: usize> Projector for Crowd<NTH> {
    const NAME: &'static str = ["first", "second", "third"][NTH];
    const TABLES: &'static str = "";
    type Event = OrderEvent;

    async fn apply(&self, _: &[Recorded<OrderEvent>], conn: &mut PgConnection) -> Result<(), BoxError> {
        conn.execute("select pg_sleep(1.5)").await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_wait_for_their_turn_and_do_not_call_it_a_failure() {
    let database = database().await;
    let config = Config {
        follower_connections: 1,
        connect_deadline: Duration::from_secs(2),
        ..crate::kit::config(database.url())
    };
    let builder = crate::kit::open_with(config).await.app().aggregate::<Order>();
    let app = builder.projector(Crowd::<0>).projector(Crowd::<1>).projector(Crowd::<2>).start().await.unwrap();

    let placed = app.execute::<Order>(1, place("ada", 1)).await.unwrap();
    let (waited, failed) = tokio::join!(app.wait_for_all(placed.position, LONG), async {
        let mut failed = false;
        eventually("all are there", || {
            let followers = app.followers();
            failed |= followers.iter().any(|status| status.last_error.is_some());
            let there = followers.iter().all(|status| status.position >= placed.position);
            async move { there }
        })
        .await;
        failed
    });

    waited.unwrap();
    assert!(!failed);
}
