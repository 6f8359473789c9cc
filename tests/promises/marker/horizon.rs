//! The safe position: what moves it, what must not, and numbers that are hard to carry in 32 bits.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use annals::{Annals, Config, ExpectedVersion, Position, ReadLog, StoreError, testing::database};
use futures::future::join_all;
use sqlx::Connection;

use super::{
    Dice, connect, insert, open, pause, placed, positions, run,
    seen::{Seen, Verdict, stored},
    stream,
};

/// Lets 12 writers append 360 events behind position `start` while a reader follows; returns what it got wrong, and the last position.
async fn cross(start: i64) -> (Verdict, i64) {
    let database = database().await;
    let store = open(&database).await;
    run(&mut connect(database.url()).await, format!("select setval('annals.positions', {start})")).await;
    let ended = Arc::new(AtomicBool::new(false));

    let reader = tokio::spawn({
        let (store, ended) = (store.clone(), ended.clone());
        async move { Seen::default().follow(&store, false, &ended, |_| ()).await }
    });
    let writers = (0..12).map(|nth| {
        let url = database.url().to_owned();
        tokio::spawn(async move {
            let (mut conn, mut dice) = (connect(&url).await, Dice::new(nth));
            for version in 0..30 {
                let mut transaction = conn.begin().await.unwrap();
                insert(&mut transaction, &format!("order-{nth}"), version, 1).await;
                pause(dice.between(0, 5)).await;
                transaction.commit().await.unwrap();
            }
        })
    });
    join_all(writers.collect::<Vec<_>>()).await.into_iter().for_each(|writer| writer.unwrap());
    ended.store(true, Ordering::SeqCst);
    let reader = reader.await.unwrap();

    assert!(reader.held > 0, "the test never met a writer in flight");
    let stored = stored(&store).await;
    store.close().await;
    (reader.judge(&stored), *stored.last().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_cross_the_32nd_bit_under_concurrent_writers() {
    for bits in [1_i64 << 31, 1 << 32] {
        let (verdict, last) = cross(bits - 180).await;

        assert_eq!(verdict, Verdict::default(), "around {bits}");
        assert_eq!(last, bits + 180);
    }
}

#[tokio::test]
async fn a_marker_from_before_the_32nd_bit_holds_readers_that_are_beyond_it() {
    let database = database().await;
    let store = open(&database).await;
    let (mut slow, mut quick) = (connect(database.url()).await, connect(database.url()).await);
    for bits in [1_i64 << 31, 1 << 32, 3 << 31, 1 << 33] {
        run(&mut quick, format!("select setval('annals.positions', {})", bits - 3)).await;

        run(&mut slow, "begin").await;
        insert(&mut slow, &format!("order-slow.{bits}"), 0, 1).await;
        insert(&mut quick, &format!("order-quick.{bits}"), 0, 10).await;
        let (horizon, holders) = (store.horizon().await.unwrap(), store.holders().await.unwrap());
        run(&mut slow, "commit").await;

        assert_eq!(positions(&[horizon.safe, holders[0].position, horizon.drawn]), [bits - 3, bits - 3, bits + 8]);
    }
}

#[tokio::test]
async fn the_first_writers_behind_a_sequence_that_was_set_are_marked_whatever_its_number() {
    // Set in this way the sequence has a next number and no last one, so that there is nothing to read as a bound.
    for next in [1_i64, 1_000, 1 << 31, 3_000_000_000, 1 << 32, (1 << 33) + 3_000_000_000] {
        let database = database().await;
        let store = open(&database).await;
        let (mut slow, mut quick) = (connect(database.url()).await, connect(database.url()).await);
        run(&mut quick, format!("select setval('annals.positions', {next}, false)")).await;
        let fresh = store.horizon().await.unwrap();

        run(&mut slow, "begin").await;
        let (first, _) = insert(&mut slow, "order-slow", 0, 1).await;
        insert(&mut quick, "order-quick", 0, 10).await;
        let held = store.horizon().await.unwrap();
        run(&mut slow, "commit").await;

        assert_eq!(positions(&[fresh.safe, fresh.drawn]), [0, 0]);
        assert!(held.safe.get() < first, "{held:?} is above the open transaction's {first}");
        let mut seen = Seen::default();
        assert_eq!(seen.read_page(&store).await, 11);
    }
}

#[tokio::test]
async fn the_first_position_of_a_fresh_store_is_1() {
    let database = database().await;
    let store = open(&database).await;

    let before = (store.horizon().await.unwrap(), store.read_log_page(ReadLog::default(), 10).await.unwrap().events);
    let receipt = store.append(&stream("order-1"), ExpectedVersion::NoStream, vec![placed()]).await.unwrap();
    let after = store.horizon().await.unwrap();

    assert_eq!((positions(&[before.0.safe, before.0.drawn]), before.1), (vec![0, 0], vec![]));
    assert_eq!(positions(&[receipt.position, after.safe, after.drawn]), [1, 1, 1]);
}

#[tokio::test]
async fn gaps_of_rolled_back_appends_make_nobody_wait() {
    let database = database().await;
    let app = crate::app::start(database.url()).await;
    let store = app.store();
    let mut conn = connect(database.url()).await;

    run(&mut conn, "begin").await;
    insert(&mut conn, "order-gone", 0, 300).await;
    run(&mut conn, "rollback").await;
    let over_the_gap = store.horizon().await.unwrap();
    let receipt = store.append(&stream("order-1"), ExpectedVersion::NoStream, vec![placed()]).await.unwrap();
    app.wait_for_all(receipt.position, super::LONG).await.unwrap();
    let mut seen = Seen::default();
    seen.read_page(store).await;

    assert_eq!(positions(&[over_the_gap.safe, over_the_gap.drawn, receipt.position]), [300, 300, 301]);
    assert_eq!(seen.positions, [301]);
    app.shutdown().await;
}

#[tokio::test]
async fn advisory_locks_of_the_application_hold_nobody_up() {
    let (database, another) = (database().await, annals::testing::database().await);
    let (store, neighbour) = (open(&database).await, open(&another).await);
    let (mut conn, mut next_door) = (connect(database.url()).await, connect(another.url()).await);
    store.append(&stream("order-1"), ExpectedVersion::NoStream, vec![placed(), placed()]).await.unwrap();

    // Session locks and transaction locks, exclusive and shared, in both forms, on the very numbers that markers use.
    let locks = "begin; select pg_advisory_lock(0), pg_advisory_lock(1, 1), pg_advisory_xact_lock_shared(2, 1),
        pg_advisory_xact_lock_shared(2), pg_advisory_lock('annals.commands'::regclass::oid::int, 0),
        pg_advisory_xact_lock_shared(('annals.events'::regclass::oid::bigint << 32) + 1)";
    run(&mut conn, locks).await;
    // A marker of the same number, in another database.
    run(&mut next_door, "begin").await;
    insert(&mut next_door, "order-1", 0, 1).await;
    let receipt = store.append(&stream("order-2"), ExpectedVersion::NoStream, vec![placed()]).await.unwrap();
    let (horizon, holders) = (store.horizon().await.unwrap(), store.holders().await.unwrap());

    assert_eq!(positions(&[receipt.position, horizon.safe, horizon.drawn]), [3, 3, 3]);
    assert_eq!(holders, []);
    assert_eq!(neighbour.horizon().await.unwrap().safe, Position::START);
}

#[tokio::test]
async fn a_sequence_below_positions_in_use_is_refused_at_connect_and_the_text_cures_it() {
    let database = database().await;
    let store = open(&database).await;
    store.append(&stream("order-1"), ExpectedVersion::Any, vec![placed(); 40]).await.unwrap();
    store.close().await;
    let mut conn = connect(database.url()).await;

    for set_back in ["select setval('annals.positions', 12)", "alter sequence annals.positions restart"] {
        run(&mut conn, set_back).await;
        let refused = Annals::connect(Config::new(database.url())).await;
        let Err(StoreError::Unfit(text)) = refused else { panic!("{refused:?}") };
        let cure = &text[text.find("select setval").unwrap_or_else(|| panic!("{text}"))..];
        assert_eq!(cure, "select setval('annals.positions', 40)");
        run(&mut conn, cure).await;
        open(&database).await.close().await;
    }
}

#[tokio::test]
async fn a_sequence_below_a_checkpoint_is_refused_although_no_event_stands_there() {
    let database = database().await;
    let app = crate::app::start(database.url()).await;
    let mut conn = connect(database.url()).await;
    run(&mut conn, "begin").await;
    insert(&mut conn, "order-gone", 0, 30).await;
    run(&mut conn, "rollback").await;
    // Readers are over the gap, yet nobody remembers it: a crash may give its numbers out again.
    app.wait_for_all(Position::new(30), super::LONG).await.unwrap();
    app.shutdown().await;
    let checkpoints: Vec<i64> =
        sqlx::query_scalar("select position from annals.checkpoints").fetch_all(&mut conn).await.unwrap();
    run(&mut conn, "update annals.checkpoints set position = 30 where follower = 'spend'").await;

    run(&mut conn, "select setval('annals.positions', 5)").await;
    let refused = Annals::connect(Config::new(database.url())).await;

    assert_eq!(checkpoints, [0, 0]);
    assert!(
        matches!(&refused, Err(StoreError::Unfit(text)) if text.contains("select setval('annals.positions', 30)")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_sequence_that_hands_out_numbers_in_advance_is_refused_at_connect() {
    let database = database().await;
    open(&database).await.close().await;
    let mut conn = connect(database.url()).await;
    for setting in ["cache 20", "cycle", "increment 2"] {
        run(&mut conn, "alter sequence annals.positions cache 1 no cycle increment 1").await;
        run(&mut conn, format!("alter sequence annals.positions {setting}")).await;
        let refused = Annals::connect(Config::new(database.url())).await;
        let Err(StoreError::Unfit(text)) = refused else { panic!("{setting}: {refused:?}") };
        assert!(text.contains("CACHE 1"), "{text}");
    }
}

#[tokio::test]
async fn append_in_is_refused_where_a_snapshot_may_be_older_than_the_stream() {
    let database = database().await;
    let store = open(&database).await;
    let mut conn = connect(database.url()).await;
    let append =
        || vec![annals::Append { stream: stream("order-1"), expected: ExpectedVersion::Any, events: vec![placed()] }];

    for level in ["repeatable read", "serializable"] {
        run(&mut conn, format!("begin isolation level {level}")).await;
        let refused = store.append_in(&mut conn, append(), annals::Metadata::default()).await;
        run(&mut conn, "rollback").await;
        assert!(
            matches!(&refused, Err(StoreError::Invalid(error)) if error.to_string().contains(level)),
            "{refused:?}"
        );
    }
    let outside = store.append_in(&mut conn, append(), annals::Metadata::default()).await;
    assert!(matches!(&outside, Err(StoreError::Invalid(error)) if error.to_string().contains("BEGIN")), "{outside:?}");
    assert_eq!(store.horizon().await.unwrap().drawn, Position::START);
}
