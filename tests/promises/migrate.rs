//! A store is a schema: stores share nothing, and builds of two releases work on one side by side.

use std::error::Error;

use annals::{Annals, App, Config, InvalidInput, ReadLog, ReadStream, StoreError, testing::database};
use futures::{TryStreamExt, future::join_all};
use sqlx::{AssertSqlSafe, postgres::PgPoolOptions};

use crate::{
    app::{LONG, place},
    append::{ANY, at, events, open, stream},
    shop::{Journal, Order, Spend},
};

fn named(url: &str, store: &str) -> Config {
    Config { store: store.into(), ..Config::new(url) }
}

async fn app(url: &str, store: &str) -> App {
    let store = Annals::connect(named(url, store)).await.unwrap();
    store.app().aggregate::<Order>().view::<Spend>().projector(Journal).start().await.unwrap()
}

async fn run(store: &Annals, statements: impl Into<String>) {
    sqlx::raw_sql(AssertSqlSafe(statements.into())).execute(store.pool()).await.unwrap();
}

/// The error with all its causes, as a log would show it.
fn shown(error: &StoreError) -> String {
    let (mut text, mut cause) = (format!("{error} {error:?}"), error.source());
    while let Some(error) = cause {
        text += &format!(" {error} {error:?}");
        cause = error.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn two_stores_in_one_database_share_nothing() {
    let database = database().await;
    let (left, right) = (app(database.url(), "left").await, app(database.url(), "right").await);

    let mut last = left.execute::<Order>(1, place("ada", 500)).await.unwrap();
    for nth in 2..=5 {
        last = left.execute::<Order>(nth, place("ada", 500)).await.unwrap();
    }
    let only = right.execute::<Order>(1, place("ada", 70)).await.unwrap();
    left.wait_for_all(last.position, LONG).await.unwrap();
    right.wait_for_all(only.position, LONG).await.unwrap();

    assert_eq!((last.position.get(), only.position.get(), only.version.get()), (5, 1, 1));
    assert_eq!(left.get::<Spend>("ada").await.unwrap(), Some(Spend { cents: 2_500, orders: 5 }));
    assert_eq!(right.get::<Spend>("ada").await.unwrap(), Some(Spend { cents: 70, orders: 1 }));

    left.shutdown().await;
    run(
        right.store(),
        "drop schema \"left\" cascade; drop schema left_spend cascade; drop schema left_journal cascade",
    )
    .await;
    let after = right.execute::<Order>(2, place("bob", 30)).await.unwrap();
    right.wait_for_all(after.position, LONG).await.unwrap();
    assert_eq!(right.count::<Spend>().await.unwrap(), 2);
    right.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reserved_word_is_a_store_name_like_any_other() {
    let database = database().await;
    for name in ["user", "select", "table", "a", "a23456789012345678901234567890"] {
        let app = app(database.url(), name).await;

        let placed = app.execute::<Order>(1, place("ada", 500)).await.unwrap();
        app.wait_for_all(placed.position, LONG).await.unwrap();

        assert_eq!(app.get::<Spend>("ada").await.unwrap(), Some(Spend { cents: 500, orders: 1 }));
        let log: Vec<_> = app.store().read_log(ReadLog::default()).try_collect().await.unwrap();
        assert_eq!((log.len(), app.store().holders().await.unwrap().len()), (1, 0));
        let mut transaction = app.store().pool().begin().await.unwrap();
        let more = vec![crate::append::append("note-1", at(0), 1)];
        app.store().append_in(&mut transaction, more, annals::Metadata::default()).await.unwrap();
        assert_eq!(app.store().holders().await.unwrap().len(), 1, "{name}");
        transaction.commit().await.unwrap();
        app.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_name_that_is_no_plain_word_is_refused() {
    let database = database().await;
    let long = "a".repeat(31);
    for name in ["", "A", "pg_x", "1a", "_a", "a-b", "a.b", "a\"b", "é", "a b", &long] {
        let refused = Annals::connect(named(database.url(), name)).await;
        let Err(StoreError::Invalid(InvalidInput::Other(text))) = &refused else { panic!("{name:?}: {refused:?}") };
        assert!(text.contains("store name"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_start_at_once_make_one_store() {
    let database = database().await;

    let stores = join_all((0..8).map(|_| Annals::connect(Config::new(database.url())))).await;
    let apps = join_all((0..4).map(|_| app(database.url(), "shared"))).await;

    for (nth, store) in stores.iter().enumerate() {
        store.as_ref().unwrap().append(&stream("note-1"), at(nth as i64), events(1)).await.unwrap();
    }
    let migrations: i64 =
        sqlx::query_scalar("select count(*) from annals.migrations").fetch_one(apps[0].store().pool()).await.unwrap();
    assert_eq!(migrations, 3);
    let placed = apps[0].execute::<Order>(1, place("ada", 500)).await.unwrap();
    for app in apps {
        app.wait_for_all(placed.position, LONG).await.unwrap();
        app.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_migrate_only_checks() {
    let database = database().await;
    let store = open(database.url()).await;
    let role = format!("{}_plain", database.name());
    run(
        &store,
        format!(
            "create role {role} login password 'plain'; grant usage on schema annals to {role};
             grant select on all tables in schema annals to {role}; grant usage, select on sequence annals.positions to {role};
             grant insert on annals.events, annals.commands to {role}"
        ),
    )
    .await;
    let options = database.options().username(&role).password("plain");
    let plain = async || {
        let pool = PgPoolOptions::new().connect_lazy_with(options.clone());
        Annals::with_pool(pool, Config::new("")).await
    };

    let checked = plain().await.unwrap();
    checked.append(&stream("note-1"), at(0), events(1)).await.unwrap();
    let pool = PgPoolOptions::new().connect_lazy_with(options.clone());
    let nothing_there = Annals::with_pool(pool, named("", "other")).await;
    run(
        &store,
        "alter table annals.migrations rename to hidden; create table annals.migrations (like annals.hidden);
        grant select on annals.migrations to public",
    )
    .await;
    let behind = plain().await;
    run(&store, format!("drop owned by {role}; drop role {role}")).await;

    for refused in [nothing_there, behind] {
        let Err(StoreError::Unfit(text)) = &refused else { panic!("{refused:?}") };
        assert!(text.contains("this role may not"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn this_build_works_on_a_newer_builds_store_until_that_says_no() {
    let database = database().await;
    let old = open(database.url()).await;
    old.append(&stream("note-1"), at(0), events(1)).await.unwrap();
    old.read_stream_page(&stream("note-1"), ReadStream::default(), 1).await.unwrap();

    // What a newer build's first migration does, while this build runs.
    run(
        &old,
        "alter table annals.events add column weight integer; alter table annals.commands add column weight integer;
         alter table annals.checkpoints add column weight integer; alter table annals.snapshots add column weight integer;
         insert into annals.migrations (number, name, checksum) values (9, '0009_weight', 'x')",
    )
    .await;
    old.append(&stream("note-1"), at(1), events(1)).await.unwrap();
    let started_later = app(database.url(), "annals").await;
    let placed = started_later.execute::<Order>(1, place("ada", 500)).await.unwrap();
    started_later.wait_for_all(placed.position, LONG).await.unwrap();
    let read = old.read_stream_page(&stream("note-1"), ReadStream::default(), 10).await.unwrap();
    assert_eq!((read.events.len(), placed.position.get()), (2, 3));
    started_later.shutdown().await;

    run(&old, "update annals.store set minimum_reader = 9").await;
    let refused = Annals::connect(Config::new(database.url())).await;
    let Err(StoreError::Unfit(text)) = &refused else { panic!("{refused:?}") };
    assert!(text.contains("migration 9") && text.contains("deploy the newer build"), "{text}");
}

/// The store as the first migration made it, with a view that has applied one of two events.
const FIRST: &str = "
    insert into annals.events (version, event_id, correlation_id, stream, event_type, payload)
    select nth, gen_random_uuid(), gen_random_uuid(), 'order-' || nth, 'Placed', '{\"customer\":\"ada\",\"cents\":10}'
    from generate_series(1, 1) nth;
    insert into annals.events (version, event_id, correlation_id, stream, event_type, payload)
    values (1, gen_random_uuid(), gen_random_uuid(), 'order-2', 'Placed', '{\"customer\":\"ada\",\"cents\":5}');
    create schema annals_spend;
    create table annals_spend._position (partition integer primary key, position bigint not null);
    create table annals_spend.documents (key text primary key collate \"C\", document jsonb not null);
    insert into annals_spend._position values (0, 1);
    insert into annals_spend.documents values ('ada', '{\"cents\":10,\"orders\":1}');
    insert into annals.followers (name, kind, version, generation, categories) values ('spend', 'view', 1, 7, '{order}');
    insert into annals.checkpoints (follower, generation, version, position) values ('spend', 7, 1, 1);";

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_the_first_migration_is_led_on_with_its_followers_where_they_stood() {
    let database = database().await;
    let pool = database.pool().await;
    let first = include_str!("../../migrations/0001_store.sql");
    for text in [include_str!("../../framework/src/sql/create_migrations.sql"), first, FIRST] {
        sqlx::raw_sql(text).execute(&pool).await.unwrap();
    }
    sqlx::query("insert into annals.migrations (number, name, checksum) values (1, '0001_store', sha256(convert_to($1, 'UTF8')))")
        .bind(first)
        .execute(&pool)
        .await
        .unwrap();

    let app = app(database.url(), "annals").await;
    let placed = app.execute::<Order>(3, place("ada", 1)).await.unwrap();
    app.wait_for_all(placed.position, LONG).await.unwrap();

    assert_eq!(app.get::<Spend>("ada").await.unwrap(), Some(Spend { cents: 16, orders: 3 }));
    let standing: (i32, i64, i64, i64) = sqlx::query_as(
        "select partition, position, counted_after, applied from annals.checkpoints where follower = 'spend'",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(standing, (1, 3, 1, 2));
    let shown: (i32, i64) = sqlx::query_as("select * from annals_spend._position").fetch_one(&pool).await.unwrap();
    assert_eq!(shown, (1, 3));
    // What an older build would do to a checkpoint: it finds none.
    let old = "update annals.checkpoints set position = 99 where follower = 'spend' and partition = 0";
    assert_eq!(sqlx::query(old).execute(&pool).await.unwrap().rows_affected(), 0);
    app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_was_edited_is_refused() {
    let database = database().await;
    let store = open(database.url()).await;
    run(&store, "update annals.migrations set checksum = 'edited'").await;

    let refused = Annals::connect(Config::new(database.url())).await;

    let Err(StoreError::Unfit(text)) = &refused else { panic!("{refused:?}") };
    assert!(text.contains("another line of development"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_takes_the_applications_pool_and_leaves_it_alone() {
    let database = database().await;
    let pool = PgPoolOptions::new().max_connections(1).connect_with(database.options()).await.unwrap();
    let store = Annals::with_pool(pool.clone(), Config::new("not read")).await.unwrap();

    // The application's only connection is taken, and the store works all the same.
    let mut taken = store.pool().begin().await.unwrap();
    store.append(&stream("note-1"), ANY, events(1)).await.unwrap();
    sqlx::raw_sql("select 1").execute(&mut *taken).await.unwrap();
    taken.rollback().await.unwrap();
    store.close().await;

    let one: i32 = sqlx::query_scalar("select 1").fetch_one(&pool).await.unwrap();
    assert_eq!(one, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_connecting_says_what_is_wrong_and_keeps_the_password() {
    let database = database().await;
    let (host, port) = (database.options().get_host().to_owned(), database.options().get_port());
    let user = database.options().get_username().to_owned();
    let url =
        |user: &str, host: &str, port: &str, name: &str| format!("postgres://{user}:s3cret-pass@{host}:{port}/{name}");
    let name = database.name();
    let port = port.to_string();

    let connect = async |url: String| Annals::connect(Config::new(url)).await.unwrap_err();
    let refused = connect(url(&user, &host, &port, name)).await;
    let nobody = connect(url(&user, "127.0.0.1", "1", name)).await;
    let nowhere = connect(url(&user, "no-such-host.invalid", &port, name)).await;
    let malformed = connect(url(&user, &host, "not-a-port", name)).await;
    let other = connect(url(&user, &host, &port, name).replace("postgres:", "mysql:")).await;
    let right = database.url().replace(name, "no_such_database");
    let missing = connect(right).await;

    assert!(matches!(nobody, StoreError::Unavailable { .. }) && nobody.is_retryable(), "{nobody:?}");
    for error in [&refused, &malformed, &other, &missing] {
        assert!(matches!(error, StoreError::Refused { .. }) && !error.is_retryable(), "{error:?}");
    }
    for error in [&refused, &nobody, &nowhere, &malformed, &other, &missing] {
        assert!(!shown(error).contains("s3cret"), "{}", shown(error));
    }
    let config = Config::new(url(&user, &host, &port, name));
    assert!(!format!("{config:?}").contains("s3cret"));
    assert!(!format!("{:?}", open(database.url()).await).contains("s3cret"));
}
