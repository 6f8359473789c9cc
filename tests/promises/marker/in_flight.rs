//! The marker itself: one a transaction, gone with what it stands for, and nobody's to switch off.

use annals::{Annals, Append, ExpectedVersion, Metadata, StoreError, testing::database};
use futures::future::join_all;
use sqlx::{Connection, PgConnection};

use super::{connect, insert, markers, open, placed, positions, run, seen::Seen, stream, until};

fn one(name: &str) -> Vec<Append> {
    vec![Append { stream: stream(name), expected: ExpectedVersion::Any, events: vec![placed()] }]
}

/// The transaction-local settings that remember the marker.
async fn setting(conn: &mut PgConnection) -> Option<String> {
    sqlx::query_scalar("select nullif(current_setting('annals.marker', true), '')").fetch_one(conn).await.unwrap()
}

#[tokio::test]
async fn a_transaction_has_one_marker_however_often_it_appends() {
    let database = database().await;
    let store = open(&database).await;
    let mut conn = connect(database.url()).await;
    insert(&mut conn, "order-0", 0, 7).await;

    let mut transaction = conn.begin().await.unwrap();
    for nth in 0..200 {
        insert(&mut transaction, "order-1", nth, 1).await;
    }
    store.append_in(&mut transaction, one("order-2"), Metadata::default()).await.unwrap();
    let held = markers(&mut transaction).await;
    transaction.commit().await.unwrap();

    assert_eq!(held, [7]);
    assert_eq!((markers(&mut conn).await, setting(&mut conn).await), (vec![], None));
}

#[tokio::test]
async fn a_savepoint_that_is_rolled_back_takes_its_marker_with_it_and_the_next_append_takes_a_new_one() {
    let database = database().await;
    open(&database).await;
    let mut conn = connect(database.url()).await;

    run(&mut conn, "begin; savepoint mine").await;
    let (first, _) = insert(&mut conn, "order-1", 0, 3).await;
    let before = (markers(&mut conn).await, setting(&mut conn).await.is_some());
    run(&mut conn, "rollback to mine").await;
    let between = (markers(&mut conn).await, setting(&mut conn).await.is_some());
    let (second, _) = insert(&mut conn, "order-1", 0, 3).await;
    let after = (markers(&mut conn).await, setting(&mut conn).await.is_some());
    run(&mut conn, "commit").await;

    assert_eq!((first, before), (1, (vec![0], true)));
    assert_eq!(between, (vec![], false));
    assert_eq!((second, after), (4, (vec![3], true)));
    assert_eq!((markers(&mut conn).await, setting(&mut conn).await), (vec![], None));
}

#[tokio::test]
async fn a_marker_from_before_a_savepoint_outlives_its_rollback() {
    let database = database().await;
    open(&database).await;
    let mut conn = connect(database.url()).await;

    run(&mut conn, "begin").await;
    insert(&mut conn, "order-1", 0, 1).await;
    run(&mut conn, "savepoint mine").await;
    insert(&mut conn, "order-2", 0, 1).await;
    run(&mut conn, "rollback to mine").await;
    insert(&mut conn, "order-3", 0, 1).await;
    let held = markers(&mut conn).await;
    run(&mut conn, "commit").await;

    assert_eq!(held, [0]);
}

#[tokio::test]
async fn a_marker_from_inside_a_released_savepoint_stays_until_the_transaction_ends() {
    let database = database().await;
    let store = open(&database).await;
    let mut conn = connect(database.url()).await;

    run(&mut conn, "begin; savepoint mine").await;
    insert(&mut conn, "order-1", 0, 1).await;
    run(&mut conn, "release mine").await;
    let held = (markers(&mut conn).await, store.horizon().await.unwrap());
    run(&mut conn, "commit").await;

    assert_eq!((held.0, held.1.safe.get(), held.1.drawn.get()), (vec![0], 0, 1));
}

#[tokio::test]
async fn a_setting_of_the_session_does_not_switch_the_marker_off() {
    let database = database().await;
    let store = open(&database).await;
    let mut conn = connect(database.url()).await;

    // What the transaction before this one left behind would be the best of guesses.
    run(&mut conn, "begin").await;
    insert(&mut conn, "order-0", 0, 1).await;
    let used = setting(&mut conn).await.unwrap();
    run(&mut conn, "commit").await;
    for value in ["x", "0", &used] {
        run(&mut conn, format!("set annals.marker = '{value}'; begin")).await;
        insert(&mut conn, &format!("order-{value}.x"), 0, 2).await;
        assert_eq!(markers(&mut conn).await.len(), 1, "{value}");
        assert!(store.horizon().await.unwrap().safe < store.horizon().await.unwrap().drawn, "{value}");
        run(&mut conn, "commit").await;
        assert_eq!(setting(&mut conn).await.as_deref(), Some(value));
    }
}

#[tokio::test]
async fn the_marker_works_for_replicas_and_restores_whose_sessions_skip_ordinary_triggers() {
    let database = database().await;
    let store = open(&database).await;
    let mut conn = connect(database.url()).await;

    run(&mut conn, "set session_replication_role = replica; begin").await;
    insert(&mut conn, "order-1", 0, 2).await;
    let horizon = store.horizon().await.unwrap();
    run(&mut conn, "commit").await;

    assert_eq!((horizon.safe.get(), horizon.drawn.get()), (0, 2));
}

#[tokio::test]
async fn an_append_that_loses_several_races_in_a_row_still_gets_through_in_its_callers_transaction() {
    let database = database().await;
    let store = open(&database).await;
    let mut first = connect(database.url()).await;
    let mut first = first.begin().await.unwrap();
    store.append_in(&mut first, one("order-hot"), Metadata::default()).await.unwrap();

    let others = (0..6).map(|_| {
        let (store, url) = (store.clone(), database.url().to_owned());
        tokio::spawn(async move {
            let mut conn = connect(&url).await;
            let mut transaction = conn.begin().await.unwrap();
            let appended = store.append_in(&mut transaction, one("order-hot"), Metadata::default()).await;
            transaction.commit().await.unwrap();
            appended.map(|receipts| receipts[0].version.get())
        })
    });
    let others: Vec<_> = others.collect();
    let waiting =
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    until("all others wait for the first", async || {
        sqlx::query_scalar::<_, i64>(waiting).fetch_one(store.pool()).await.unwrap() == 6
    })
    .await;
    first.commit().await.unwrap();
    let versions = join_all(others).await.into_iter().map(|version| version.unwrap());
    let versions: Result<Vec<i64>, StoreError> = versions.collect();

    let mut versions = versions.unwrap();
    versions.sort_unstable();
    assert_eq!(versions, [2, 3, 4, 5, 6, 7]);
}

#[tokio::test]
async fn two_stores_in_one_database_do_not_hold_each_other_up() {
    let database = database().await;
    let store = open(&database).await;
    let mut config = crate::kit::config(database.url());
    config.store = "shop".into();
    let shop = Annals::connect(config).await.unwrap();
    let mut conn = connect(database.url()).await;
    shop.append(&stream("order-1"), ExpectedVersion::NoStream, vec![placed(), placed()]).await.unwrap();

    run(&mut conn, "begin").await;
    insert(&mut conn, "order-1", 0, 1).await;
    let receipt = shop.append(&stream("order-2"), ExpectedVersion::Any, vec![placed()]).await.unwrap();
    let horizons = [store.horizon().await.unwrap(), shop.horizon().await.unwrap()];
    let holders = [store.holders().await.unwrap().len(), shop.holders().await.unwrap().len()];
    // Both stores in one transaction: a marker in each.
    super::insert_into(&mut conn, "shop", "order-1", 2, 1).await;
    let both = markers(&mut conn).await;
    run(&mut conn, "commit").await;

    assert_eq!(receipt.position.get(), 3);
    assert_eq!(positions(&[horizons[0].safe, horizons[0].drawn]), [0, 1]);
    assert_eq!(positions(&[horizons[1].safe, horizons[1].drawn]), [3, 3]);
    assert_eq!(holders, [1, 0]);
    assert_eq!(both, [0, 3]);
    let mut seen = Seen::default();
    assert_eq!(seen.read_page(&store).await, 1);
}
