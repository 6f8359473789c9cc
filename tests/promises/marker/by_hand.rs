//! Rows that did not come through the framework: whoever inserts them, they are marked, seen and named.

use std::time::Duration;

use annals::{Annals, Position, WaitError, testing::database};
use sqlx::PgConnection;

use super::{LONG, connect, insert, open, pid, run, until};
use crate::{
    app::{place, start},
    shop::{Order, Spend},
};

/// What a follower of this process gets to see: nothing until `end` is through, everything after it.
async fn waits_for(url: &str, begin: impl AsyncFnOnce(&mut PgConnection), end: &str) {
    let app = start(url).await;
    let mut conn = connect(url).await;
    run(&mut conn, "begin").await;
    begin(&mut conn).await;

    let later = app.execute::<Order>("later", place("ada", 7)).await.unwrap();
    let soon = app.wait_for_all(later.position, Duration::from_millis(300)).await;
    let waiting = app.get::<Spend>("ada").await.unwrap();
    run(&mut conn, end).await;
    app.wait_for_all(later.position, LONG).await.unwrap();

    assert!(matches!(soon, Err(WaitError::Behind { at, .. }) if at < later.position), "{soon:?}");
    assert_eq!(waiting, None);
    assert_eq!(app.get::<Spend>("ada").await.unwrap(), Some(Spend { cents: 10, orders: 4 }));
    app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_inserted_without_a_position_is_waited_for_and_seen() {
    let database = database().await;

    let by_hand = async |conn: &mut PgConnection| {
        insert(conn, "order-hand", 0, 3).await;
    };

    waits_for(database.url(), by_hand, "commit").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_copied_in_are_waited_for_and_seen() {
    let database = database().await;
    let copy = async |conn: &mut PgConnection| {
        let columns = "(version, event_id, correlation_id, stream, event_type, payload)";
        let mut copy = conn.copy_in_raw(&format!("copy annals.events {columns} from stdin")).await.unwrap();
        for version in 1..=3 {
            let id = uuid::Uuid::now_v7();
            let line = format!("{version}\t{id}\t{id}\torder-hand\tPlaced\t{{\"customer\":\"ada\",\"cents\":1}}\n");
            copy.send(line.as_bytes()).await.unwrap();
        }
        assert_eq!(copy.finish().await.unwrap(), 3);
    };

    waits_for(database.url(), copy, "commit").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_function_with_its_own_error_handling_are_waited_for_and_seen() {
    let database = database().await;
    let block = async |conn: &mut PgConnection| {
        let insert = "insert into annals.events (version, event_id, correlation_id, stream, event_type, payload)
             values (n, gen_random_uuid(), gen_random_uuid(), 'order-hand', 'Placed', '{\"customer\":\"ada\",\"cents\":1}')";
        // The first insert of each round is undone together with its marker.
        let block = format!(
            "do $$ begin for n in 1..3 loop
               begin {insert}; raise division_by_zero; exception when division_by_zero then null; end;
               {insert};
             end loop; end $$"
        );
        run(conn, block).await;
    };

    waits_for(database.url(), block, "commit").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_is_waited_for_and_its_rows_are_seen_once_it_is_committed() {
    let database = database().await;
    let mut control = connect(database.url()).await;
    let prepare = async |conn: &mut PgConnection| {
        insert(conn, "order-hand", 0, 3).await;
        run(conn, "prepare transaction 'by_hand'").await;
    };

    waits_for(database.url(), prepare, "commit prepared 'by_hand'").await;

    let left: i64 = sqlx::query_scalar("select count(*) from pg_prepared_xacts where database = current_database()")
        .fetch_one(&mut control)
        .await
        .unwrap();
    assert_eq!(left, 0);
}

async fn horizon_is_final(store: &Annals) -> bool {
    let horizon = store.horizon().await.unwrap();
    horizon.safe == horizon.drawn
}

#[tokio::test]
async fn whoever_holds_readers_up_is_named_with_process_application_age_and_state() {
    let database = database().await;
    let store = open(&database).await;
    assert_eq!(store.holders().await.unwrap(), []);
    insert(&mut connect(database.url()).await, "order-1", 0, 4).await;
    let mut conn = connect(database.url()).await;
    run(&mut conn, "set application_name = 'night shift'; begin; select pg_sleep(0.05)").await;
    insert(&mut conn, "order-2", 0, 1).await;

    let horizon = store.horizon().await.unwrap();
    let holders = store.holders().await.unwrap();
    let process = pid(&mut conn).await;
    run(&mut conn, "commit").await;

    assert_eq!((horizon.safe.get(), horizon.drawn.get()), (4, 5));
    let [holder] = &holders[..] else { panic!("{holders:?}") };
    assert_eq!((holder.position, holder.pid), (horizon.safe, Some(process)));
    assert_eq!((&*holder.application, &*holder.state), ("night shift", "idle in transaction"));
    assert!(holder.query.contains("insert into annals.events"), "{}", holder.query);
    assert!(holder.age.is_some_and(|age| age >= Duration::from_millis(50) && age < LONG), "{:?}", holder.age);
    assert!(horizon_is_final(&store).await);
    assert_eq!(store.holders().await.unwrap(), []);
}

#[tokio::test]
async fn a_prepared_transaction_is_named_by_its_own_name_and_has_no_process() {
    let database = database().await;
    let store = open(&database).await;
    let mut conn = connect(database.url()).await;
    let name = format!("forgotten {}", database.name());
    run(&mut conn, "begin").await;
    insert(&mut conn, "order-1", 0, 1).await;
    run(&mut conn, format!("prepare transaction '{name}'; begin")).await;
    insert(&mut conn, "order-2", 0, 1).await;
    let both = store.holders().await.unwrap();
    drop(conn);
    until("the session is gone", async || store.holders().await.unwrap().len() == 1).await;
    let holders = store.holders().await.unwrap();
    let held = store.horizon().await.unwrap();
    run(&mut connect(database.url()).await, format!("rollback prepared '{name}'")).await;

    assert_eq!(both.len(), 2, "{both:?}");
    assert_eq!((&*both[0].state, &*both[1].state), ("prepared", "idle in transaction"));
    let [holder] = &holders[..] else { panic!("{holders:?}") };
    assert_eq!((holder.position, holder.pid, &*holder.state), (Position::START, None, "prepared"));
    assert_eq!(holder.application, format!("prepared transaction {name}"));
    assert_eq!((held.safe.get(), held.drawn.get()), (0, 2));
    assert!(horizon_is_final(&store).await);
}
