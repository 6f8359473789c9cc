//! Appends wait in one queue, in bounded number and time, and no transaction that holds a stream holds the others.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use annals::{Annals, Append, Config, Metadata, StoreError, testing::database};
use futures::{future::join_all, poll};
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

use crate::app::LONG;
use crate::append::{ANY, append, ask, at, count, events, open, stream, until};

/// How many backends wait for a lock.
const WAITING: &str =
    "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";

/// Keeps every append to the store waiting, until the transaction ends.
pub(crate) async fn lock_events(conn: &mut PgConnection) {
    sqlx::raw_sql("begin; lock table annals.events in share mode").execute(conn).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_that_holds_a_stream_holds_no_other() {
    let database = database().await;
    let store = open(database.url()).await;
    for commits in [true, false] {
        let name = format!("held-{commits}");
        let held = stream(&name);
        let mut holder = PgConnection::connect(database.url()).await.unwrap();
        let mut transaction = holder.begin().await.unwrap();
        store.append_in(&mut transaction, vec![append(&name, at(0), 1)], Metadata::default()).await.unwrap();

        let waits = store.append(&held, at(0), events(1));
        let others = join_all((0..50).map(|nth| {
            let (store, other) = (&store, stream(format!("other-{commits}-{nth}")));
            async move { store.append(&other, at(0), events(1)).await }
        }));
        let both = async {
            assert!(others.await.iter().all(Result::is_ok));
            // They are through, and the transaction is still open.
            until("the held append waits", async || ask(database.url(), WAITING).await == 1).await;
            if commits { transaction.commit().await } else { transaction.rollback().await }.unwrap();
        };
        let (waited, ()) = tokio::join!(waits, both);

        match waited {
            Ok(receipt) => assert!(!commits && receipt.version.get() == 1),
            Err(StoreError::Conflict { actual, .. }) => assert!(commits && actual.get() == 1),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(count(&store).await, 102);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_that_waits_for_a_held_stream_too_long_is_certainly_not_written() {
    let database = database().await;
    let config = Config { append_deadline: Duration::from_secs(3), ..crate::kit::config(database.url()) };
    let store = Annals::connect(config).await.unwrap();
    let mut holder = PgConnection::connect(database.url()).await.unwrap();
    let mut transaction = holder.begin().await.unwrap();
    store.append_in(&mut transaction, vec![append("held-1", at(0), 1)], Metadata::default()).await.unwrap();

    // More of them than there are lanes for held streams.
    let waiting = join_all((0..4).map(|_| store.append_all(vec![append("held-1", ANY, 1)], Metadata::default()))).await;

    for result in &waiting {
        assert!(matches!(result, Err(StoreError::Timeout { .. })), "{result:?}");
    }
    transaction.commit().await.unwrap();
    until("nobody waits any more", async || ask(database.url(), WAITING).await == 0).await;
    assert_eq!(count(&store).await, 1);
    store.append(&stream("held-1"), at(1), events(1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_held_for_long_do_not_keep_out_one_that_is_soon_free() {
    let database = database().await;
    let config = Config {
        append_lanes: 1,
        held_lanes: 1,
        append_deadline: LONG * 4,
        transaction_deadline: LONG * 4,
        ..crate::kit::config(database.url())
    };
    let store = Annals::connect(config).await.unwrap();
    let mut long = PgConnection::connect(database.url()).await.unwrap();
    let mut long = long.begin().await.unwrap();
    let names: Vec<String> = (0..3).map(|nth| format!("long-{nth}")).collect();
    let appends = names.iter().map(|name| append(name, ANY, 1)).collect();
    store.append_in(&mut long, appends, Metadata::default()).await.unwrap();
    let mut brief = PgConnection::connect(database.url()).await.unwrap();
    let mut brief = brief.begin().await.unwrap();
    store.append_in(&mut brief, vec![append("brief-1", ANY, 1)], Metadata::default()).await.unwrap();
    // There is one lane: once it has written two batches, what was there before waits beside it.
    let all_else_is_through = async || {
        for _ in 0..2 {
            store.append(&stream("free-1"), ANY, events(1)).await.unwrap();
        }
    };

    let held = join_all(names.iter().map(|name| store.append_all(vec![append(name, ANY, 1)], Metadata::default())));
    let rest = async {
        all_else_is_through().await;
        let waits = store.append_all(vec![append("brief-1", ANY, 1)], Metadata::default());
        let commits = async {
            all_else_is_through().await;
            brief.commit().await.unwrap();
        };
        let waited = timeout(LONG, async { tokio::join!(waits, commits).0 }).await;
        let waited = waited.expect("its turn comes while the others are held").unwrap();
        long.commit().await.unwrap();
        waited
    };
    let (held, waited) = tokio::join!(held, rest);

    assert_eq!(waited[0].version.get(), 2);
    assert!(held.iter().all(|result| result.as_ref().unwrap()[0].version.get() == 2), "{held:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_held_streams_keep_a_lane_no_longer_than_a_few() {
    let database = database().await;
    let config = Config {
        append_lanes: 1,
        lock_deadline: Duration::from_secs(2),
        append_deadline: LONG * 4,
        transaction_deadline: LONG * 4,
        ..crate::kit::config(database.url())
    };
    let store = Annals::connect(config).await.unwrap();
    let mut holder = PgConnection::connect(database.url()).await.unwrap();
    let mut transaction = holder.begin().await.unwrap();
    let names: Vec<String> = (0..100).map(|nth| format!("held-{nth}")).collect();
    let appends = names.iter().map(|name| append(name, ANY, 1)).collect();
    store.append_in(&mut transaction, appends, Metadata::default()).await.unwrap();

    let one = |name: &String| store.append_all(vec![append(name, ANY, 1)], Metadata::default());
    let first = one(&names[0]);
    let rest = async {
        until("the lane waits", async || ask(database.url(), WAITING).await == 1).await;
        let free = async {
            // A lock deadline for each of the others would be too long.
            let free = timeout(LONG, store.append(&stream("free-1"), at(0), events(1))).await;
            transaction.commit().await.unwrap();
            free
        };
        tokio::join!(free, join_all(names[1..].iter().map(one)))
    };
    let (first, (free, held)) = tokio::join!(first, rest);

    assert!(matches!(free, Ok(Ok(_))), "{free:?}");
    assert!(first.is_ok() && held.iter().all(Result::is_ok), "{held:?}");
    assert_eq!(count(&store).await, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_keep_their_order_except_behind_a_stream_that_another_transaction_holds() {
    let database = database().await;
    // Held from the beginning; and held when the others already wait behind it.
    let (soon, later) = (Duration::from_millis(50), Duration::from_secs(2));
    for (nth, lock_deadline, is_overtaken) in [(0, LONG, false), (1, soon, true), (2, later, true)] {
        let store = Annals::connect(Config { lock_deadline, ..crate::kit::config(database.url()) }).await.unwrap();
        let (a, b) = (format!("a{nth}-1"), format!("b{nth}-1"));
        let mut holder = PgConnection::connect(database.url()).await.unwrap();
        let mut transaction = holder.begin().await.unwrap();
        store.append_in(&mut transaction, vec![append(&a, ANY, 1)], Metadata::default()).await.unwrap();
        let is_held = "select count(*) from pg_stat_activity where datname = current_database()
            and wait_event_type = 'Lock' and clock_timestamp() - query_start > interval '60 milliseconds'";

        let first = store.append_all(vec![append(&a, ANY, 1)], Metadata::default());
        let rest = async {
            until("the first waits, in a lane or beside it", async || ask(database.url(), is_held).await == 1).await;
            let pair = store.append_all(vec![append(&a, ANY, 1), append(&b, ANY, 1)], Metadata::default());
            let last = async {
                let last = store.append_all(vec![append(&b, ANY, 1)], Metadata::default());
                if is_overtaken {
                    let last = last.await;
                    transaction.commit().await.unwrap();
                    last
                } else {
                    tokio::join!(last, transaction.commit()).0
                }
            };
            tokio::join!(pair, last)
        };
        let (first, (pair, last)) = tokio::join!(first, rest);

        assert_eq!(first.unwrap()[0].version.get(), 2);
        assert_eq!(pair.unwrap()[0].version.get(), 3);
        assert_eq!(last.unwrap()[0].version.get(), if is_overtaken { 1 } else { 2 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_to_a_stream_are_written_in_the_order_of_their_arrival_alone_or_with_others() {
    let database = database().await;
    let store = open(database.url()).await;
    let names = ["a-1", "b-1", "c-1", "d-1"];
    let noted = |name: &str, nth: usize| Append {
        stream: stream(name),
        expected: ANY,
        events: vec![annals::NewEvent::new("Noted", nth.to_string())],
    };

    let mut appends = vec![];
    for nth in 0..600 {
        // Every fifth goes to two streams, the others to one.
        let (one, other) = (nth * 7 % 4, (nth * 7 + 1 + nth / 5 % 3) % 4);
        let both = if nth % 5 == 0 { &[one, other][..] } else { &[one] };
        let parts = both.iter().map(|&name| noted(names[name], nth)).collect();
        let mut append = Box::pin(store.append_all(parts, Metadata::default()));
        assert!(poll!(&mut append).is_pending(), "it waits in the queue now");
        appends.push(append);
    }
    let results = join_all(appends).await;

    assert!(results.iter().all(Result::is_ok));
    let mut all = 0;
    for name in names {
        let page = store.read_stream_page(&stream(name), annals::ReadStream::default(), 1_000).await.unwrap();
        let order: Vec<usize> = page.events.iter().map(|event| event.event.as_str().parse().unwrap()).collect();
        assert!(order.is_sorted(), "{name}: {order:?}");
        all += order.len();
    }
    assert_eq!(all, 720);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_what_comes_next() {
    let database = database().await;
    let store = Annals::connect(Config { append_queue: 4, ..crate::kit::config(database.url()) }).await.unwrap();
    let mut holder = PgConnection::connect(database.url()).await.unwrap();
    lock_events(&mut holder).await;

    let one = |nth| {
        let store = &store;
        async move { store.append(&stream(format!("note-{nth}")), at(0), events(1)).await }
    };
    let refusal = async {
        let refused = one(4).await;
        holder.close().await.unwrap();
        refused
    };
    let (accepted, refused) = tokio::join!(join_all((0..4).map(one)), refusal);

    assert!(accepted.iter().all(Result::is_ok), "{accepted:?}");
    let refused = refused.unwrap_err();
    assert!(matches!(refused, StoreError::Overloaded { limit: 4, .. }) && refused.is_retryable(), "{refused:?}");
    assert_eq!(refused.to_string(), "too many appends are waiting already: append_queue is 4");
    assert_eq!(count(&store).await, 4);
    one(4).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_full_of_long_payloads_refuses_more_of_them_and_takes_short_ones() {
    let database = database().await;
    let config = Config { append_queue_bytes: 3_500_000, ..crate::kit::config(database.url()) };
    let store = Annals::connect(config).await.unwrap();
    let mut holder = PgConnection::connect(database.url()).await.unwrap();
    lock_events(&mut holder).await;

    let megabytes = |nth, count| {
        let (store, payload) = (&store, format!("\"{}\"", "x".repeat(1_000_000)));
        let events = (0..count).map(|_| annals::NewEvent::new("Big", payload.clone())).collect();
        async move { store.append(&stream(format!("note-{nth}")), at(0), events).await }
    };
    let short = stream("short-1");
    let refusal = async {
        let refused = megabytes(4, 1).await;
        let short = store.append(&short, at(0), events(1));
        let (short, closed) = tokio::join!(short, holder.close());
        closed.unwrap();
        short.unwrap();
        refused
    };
    let (accepted, refused) = tokio::join!(join_all((0..3).map(|nth| megabytes(nth, 1))), refusal);

    assert!(accepted.iter().all(Result::is_ok), "{accepted:?}");
    let refused = refused.unwrap_err();
    assert_eq!(refused.to_string(), "too many appends are waiting already: append_queue_bytes is 3500000");
    assert!(refused.is_retryable());
    megabytes(4, 10).await.expect("the room of all the others together is enough for one append of any length");
    assert_eq!(count(&store).await, 14);
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_a_store_writes_what_waits_and_takes_no_more() {
    let database = database().await;
    let store = open(database.url()).await;
    let mut holder = PgConnection::connect(database.url()).await.unwrap();
    lock_events(&mut holder).await;

    let appends = join_all((0..20).map(|nth| {
        let store = &store;
        async move { store.append(&stream(format!("note-{nth}")), at(0), events(1)).await }
    }));
    let closed = AtomicBool::new(false);
    let closing = async {
        store.close().await;
        closed.store(true, Ordering::SeqCst);
        ask(database.url(), "select count(*) from annals.events").await
    };
    let release = async {
        let late = store.append(&stream("late-1"), at(0), events(1)).await;
        assert!(matches!(late, Err(StoreError::Closed)), "{late:?}");
        until("an append waits for the lock", async || ask(database.url(), WAITING).await > 0).await;
        assert!(!closed.load(Ordering::SeqCst), "it waits for what was accepted");
        holder.close().await.unwrap();
    };
    let (appends, written, ()) = tokio::join!(appends, closing, release);

    assert!(appends.iter().all(Result::is_ok), "{appends:?}");
    assert_eq!(written, 20, "all of them before close returned");
    let late = store.read_stream_page(&stream("note-1"), annals::ReadStream::default(), 1).await;
    assert!(matches!(late, Err(StoreError::Closed)), "{late:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_dropped_leaves_no_connection_behind() {
    let database = database().await;
    // Not through a pooler: that keeps its connections.
    let store = Annals::connect(Config::new(database.url())).await.unwrap();
    let mut holder = PgConnection::connect(database.url()).await.unwrap();
    lock_events(&mut holder).await;

    for nth in 0..20 {
        let (store, append) = (store.clone(), append(&format!("note-{nth}"), at(0), 1));
        let task = tokio::spawn(async move { store.append_all(vec![append], Metadata::default()).await });
        if nth > 0 {
            // Its caller is gone, in the middle of the call.
            task.abort();
        }
    }
    until("an append waits for the lock", async || ask(database.url(), WAITING).await > 0).await;
    drop(store);
    holder.close().await.unwrap();

    let others = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
        and backend_type = 'client backend'";
    until("every connection is closed", async || ask(database.url(), others).await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_of_any_size_go_through_and_what_is_bigger_is_refused() {
    let database = database().await;
    let store = open(database.url()).await;
    let big = |count| -> Append {
        let mut append = append("big-1", ANY, count);
        for event in &mut append.events {
            *event = annals::NewEvent::new("Big", format!("\"{}\"", "x".repeat(1_000_000)));
        }
        append
    };

    let many = store.append(&stream("many-1"), at(0), events(10_000)).await.unwrap();
    let appends = (0..4).map(|_| store.append_all(vec![big(4)], Metadata::default()));
    let written = join_all(appends).await;
    let refused = store.append_all(vec![big(68)], Metadata::default()).await;

    assert_eq!(many.version.get(), 10_000);
    assert!(written.iter().all(Result::is_ok));
    assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    assert_eq!(count(&store).await, 10_016);
}
