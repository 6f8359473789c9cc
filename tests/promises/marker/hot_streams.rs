//! Hot streams: everything that a transaction may do around its appends, at once, on streams that all writers want.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use annals::{
    Annals, Append, BoxError, ExpectedVersion, Metadata, Position, Projector, Recorded, StoreError, Version,
    testing::database,
};
use futures::future::join_all;
use sqlx::{Connection, Executor, PgConnection};

use super::{
    Dice, LONG, connect, load_time, pause, placed,
    seen::{Seen, Verdict, stored, streams_out_of_order, streams_with_holes},
    stream, tell,
};
use crate::shop::{Order, OrderEvent, Spend};

const WRITERS: usize = 24;
const STREAMS: u64 = 40;

/// Keeps every event that it was given, in the order in which it was given them, and takes repeats.
struct Witness;

impl Projector for Witness {
    const NAME: &'static str = "witness";
    const TABLES: &'static str =
        "create table given (nth bigint generated always as identity, position bigint not null,
         stream text not null, version bigint not null)";
    type Event = OrderEvent;

    async fn apply(&self, events: &[Recorded<OrderEvent>], conn: &mut PgConnection) -> Result<(), BoxError> {
        for event in events {
            let insert = "insert into given (position, stream, version) values ($1, $2, $3)";
            sqlx::query(insert)
                .bind(event.position.get())
                .bind(event.stream.as_str())
                .bind(event.version.get())
                .execute(&mut *conn)
                .await?;
        }
        Ok(())
    }
}

/// What the writers did.
#[derive(Default)]
struct Account {
    committed: AtomicU64,
    events: AtomicU64,
    rolled_back: AtomicU64,
    savepoints: AtomicU64,
    retried: AtomicU64,
}

/// Appends in transactions of its own until `end`.
async fn write(store: Annals, account: Arc<Account>, nth: usize, end: Instant) {
    // Circles of waiting transactions are part of the load; they need not cost a second each.
    let options = (*store.pool().connect_options()).clone().options([("deadlock_timeout", "50ms")]);
    let mut conn = PgConnection::connect_with(&options).await.unwrap();
    let mut dice = Dice::new(nth);
    while Instant::now() < end {
        let mut transaction = conn.begin_with("begin isolation level read committed").await.unwrap();
        match transact(&store, &account, &mut transaction, &mut dice).await {
            Ok(_) if dice.percent(10) => {
                transaction.rollback().await.unwrap();
                account.rolled_back.fetch_add(1, Ordering::Relaxed);
            }
            Ok(events) => {
                transaction.commit().await.unwrap();
                account.committed.fetch_add(1, Ordering::Relaxed);
                account.events.fetch_add(events, Ordering::Relaxed);
            }
            Err(StoreError::Conflict { .. } | StoreError::Unavailable { .. }) => {
                transaction.rollback().await.unwrap();
                account.retried.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// One transaction: one append or two, perhaps one that is taken back before, and a while of doing nothing.
async fn transact(
    store: &Annals,
    account: &Account,
    conn: &mut PgConnection,
    dice: &mut Dice,
) -> Result<u64, StoreError> {
    if dice.percent(15) {
        conn.execute("savepoint mine").await.unwrap();
        append(store, conn, dice).await?;
        conn.execute("rollback to mine").await.unwrap();
        account.savepoints.fetch_add(1, Ordering::Relaxed);
    }
    let mut events = append(store, conn, dice).await?;
    pause(dice.between(0, 15)).await;
    if dice.percent(17) {
        events += append(store, conn, dice).await?;
    }
    pause(dice.between(0, 5)).await;
    Ok(events)
}

/// Appends 1 to 3 events to each of 1 to 3 streams, mostly at a version that it read before.
async fn append(store: &Annals, conn: &mut PgConnection, dice: &mut Dice) -> Result<u64, StoreError> {
    let names: BTreeSet<u64> = (0..dice.between(1, 3)).map(|_| dice.between(1, STREAMS)).collect();
    let mut appends = vec![];
    for name in names {
        let name = format!("order-{name}");
        let head = "select coalesce(max(version), 0) from annals.events where stream = $1";
        let head: i64 = sqlx::query_scalar(head).bind(&name).fetch_one(&mut *conn).await.unwrap();
        let exact = ExpectedVersion::Exact(Version::new(head));
        let expected = if dice.percent(30) { ExpectedVersion::Any } else { exact };
        let events = (0..dice.between(1, 3)).map(|_| placed()).collect();
        appends.push(Append { stream: stream(&name), expected, events });
    }
    let receipts = store.append_in(conn, appends, Metadata::default()).await?;
    Ok(receipts.iter().map(|receipt| receipt.appended as u64).sum())
}

/// A transaction that has written, somewhere else than to a store, and stays open.
async fn open_transaction(url: &str) -> PgConnection {
    let mut conn = connect(url).await;
    conn.execute("create table elsewhere (n int); begin; insert into elsewhere values (1)").await.unwrap();
    let written: bool =
        sqlx::query_scalar("select pg_current_xact_id_if_assigned() is not null").fetch_one(&mut conn).await.unwrap();
    assert!(written);
    conn
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_miss_nothing_on_hot_streams_while_unrelated_transactions_stay_open() {
    let (database, another) = (database().await, annals::testing::database().await);
    let time = load_time(Duration::from_secs(6));
    let unrelated = [open_transaction(database.url()).await, open_transaction(another.url()).await];
    let store = Annals::connect(crate::kit::config(database.url())).await.unwrap();
    let app = store.app().aggregate::<Order>().view::<Spend>().projector(Witness).start().await.unwrap();
    let (account, ended) = (Arc::new(Account::default()), Arc::new(AtomicBool::new(false)));

    let mut seen = Seen::default();
    // Connected before the writers are, or a slow machine gives it its first look when they are done.
    seen.read_up_to_horizon(&store).await;
    let reader = tokio::spawn({
        let (store, ended) = (store.clone(), ended.clone());
        async move { seen.follow(&store, false, &ended, |_| ()).await }
    });
    let end = Instant::now() + time;
    let writers = (0..WRITERS).map(|nth| tokio::spawn(write(store.clone(), account.clone(), nth, end)));
    join_all(writers).await.into_iter().for_each(|writer| writer.unwrap());
    ended.store(true, Ordering::SeqCst);
    let reader = reader.await.unwrap();

    let stored = stored(&store).await;
    app.wait_for_all(Position::new(*stored.last().unwrap()), LONG).await.unwrap();
    let sql = "select position, stream, version from annals_witness.given order by nth";
    let given: Vec<(i64, String, i64)> = sqlx::query_as(sql).fetch_all(store.pool()).await.unwrap();
    let mut projected = Seen::default();
    given.iter().for_each(|(position, stream, version)| projected.take(*position, stream, *version));
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    tell(&format!(
        "hot streams: {} events in {} transactions by {WRITERS} writers in {time:?}, {} rolled back, {} savepoints rolled \
         back, {} conflicts and deadlocks; the log's reader saw {}, the projector {}; the safe position was behind the \
         sequence in {} looks",
        count(&account.events),
        count(&account.committed),
        count(&account.rolled_back),
        count(&account.savepoints),
        count(&account.retried),
        reader.positions.len(),
        given.len(),
        reader.held,
    ));

    assert_eq!(stored.len() as u64, count(&account.events), "what was acknowledged, and nothing else, is stored");
    assert_eq!(reader.judge(&stored), Verdict::default());
    assert_eq!(projected.judge(&stored), Verdict::default());
    let spend = app.get::<Spend>("ada").await.unwrap().unwrap();
    assert_eq!(spend.orders as usize, stored.len());
    assert!(reader.held > 0, "the test never met a writer in flight");
    assert!([&account.rolled_back, &account.savepoints, &account.retried].iter().all(|counter| count(counter) > 0));
    assert_eq!((streams_with_holes(&store).await, streams_out_of_order(&store).await), (vec![], vec![]));
    for mut conn in unrelated {
        conn.execute("rollback").await.unwrap();
    }
    app.shutdown().await;
}
