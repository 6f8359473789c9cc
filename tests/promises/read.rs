//! Streams and the log are read a page at a time, whole and in order, in bounded memory.

use annals::{Annals, NewEvent, Payload, Position, ReadLog, ReadStream, Recorded, Version, testing::database};
use futures::{Stream, TryStreamExt};
use sqlx::{AssertSqlSafe, Connection, Row};

use crate::append::{ANY, append, at, events, open, stream};

fn versions(events: &[Recorded<Payload>]) -> Vec<i64> {
    events.iter().map(|event| event.version.get()).collect()
}

/// What `read` finds in stream `note-1`, page by page of `limit`, which must be the same as the stream of it.
async fn read(store: &Annals, read: ReadStream, limit: usize) -> Vec<i64> {
    let (mut all, mut next) = (vec![], Some(read));
    while let Some(from) = next {
        let page = store.read_stream_page(&stream("note-1"), from, limit).await.unwrap();
        assert!(page.events.len() <= limit && (page.next.is_none() || !page.events.is_empty()));
        all.extend(versions(&page.events));
        next = page.next;
    }
    let streamed: Vec<_> = store.read_stream(&stream("note-1"), read).try_collect().await.unwrap();
    assert_eq!(all, versions(&streamed));
    all
}

async fn collect<E: std::fmt::Debug>(
    stream: impl Stream<Item = Result<Recorded<Payload>, E>>,
) -> Vec<Recorded<Payload>> {
    stream.try_collect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_read_forwards_and_backwards_between_any_bounds() {
    let database = database().await;
    let store = open(database.url()).await;
    for batch in 0..10 {
        store.append(&stream("note-1"), at(batch * 10), events(10)).await.unwrap();
        store.append(&stream("note-2"), at(batch), events(1)).await.unwrap();
    }
    let all = ReadStream::default();
    let backwards = ReadStream { backwards: true, ..all };
    let from = |after, up_to| ReadStream { after: Version::new(after), up_to: Some(Version::new(up_to)), ..all };
    let numbers = |range: std::ops::RangeInclusive<i64>| range.collect::<Vec<_>>();
    let reversed = |range: std::ops::RangeInclusive<i64>| range.rev().collect::<Vec<_>>();

    for limit in [1, 7, 10, 63, 64, 65, 99, 100, 101] {
        assert_eq!(read(&store, all, limit).await, numbers(1..=100));
        assert_eq!(read(&store, backwards, limit).await, reversed(1..=100));
        assert_eq!(read(&store, from(20, 80), limit).await, numbers(21..=80));
        assert_eq!(read(&store, ReadStream { backwards: true, ..from(20, 80) }, limit).await, reversed(21..=80));
    }
    assert!(read(&store, from(100, 200), 10).await.is_empty());
    assert!(read(&store, from(50, 50), 10).await.is_empty());
    assert!(read(&store, from(0, 0), 10).await.is_empty());
    assert_eq!(read(&store, ReadStream { backwards: true, ..from(99, 100) }, 1).await, [100]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_read_as_it_was_at_a_time() {
    let database = database().await;
    let store = open(database.url()).await;
    store.append(&stream("note-1"), at(0), events(3)).await.unwrap();
    let clock = "select clock_timestamp()";
    let until = sqlx::query_scalar(clock).fetch_one(store.pool()).await.unwrap();
    store.append(&stream("note-1"), at(3), events(2)).await.unwrap();

    let then = ReadStream { until: Some(until), ..ReadStream::default() };
    assert_eq!(read(&store, then, 2).await, [1, 2, 3]);
    assert_eq!(read(&store, ReadStream { backwards: true, ..then }, 2).await, [3, 2, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_does_not_exist_has_no_events() {
    let database = database().await;
    let store = open(database.url()).await;

    let page = store.read_stream_page(&stream("nobody-1"), ReadStream::default(), 10).await.unwrap();
    let backwards = ReadStream { backwards: true, ..ReadStream::default() };

    assert_eq!((page.events.len(), page.next), (0, None));
    assert_eq!(read(&store, backwards, 10).await, Vec::<i64>::new());
    assert_eq!(collect(store.read_log(ReadLog::default())).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_long_events_is_bounded_and_nothing_is_left_out() {
    let database = database().await;
    let store = open(database.url()).await;
    // Small ones first, then 1 MiB each, then small ones again.
    let long = |length: usize| NewEvent::new("Noted", format!("\"{}\"", "x".repeat(length)));
    for length in [10, 1_000_000, 10] {
        let many = (0..60).map(|_| long(length)).collect();
        store.append(&stream("note-1"), ANY, many).await.unwrap();
    }
    let page_bytes = 4 << 20;
    let bytes = |events: &[Recorded<Payload>]| events.iter().map(|event| event.event.as_str().len()).sum::<usize>();

    for backwards in [false, true] {
        let (mut all, mut pages, mut next) = (vec![], 0, Some(ReadStream { backwards, ..ReadStream::default() }));
        while let Some(from) = next {
            let page = store.read_stream_page(&stream("note-1"), from, 1_000).await.unwrap();
            assert!(bytes(&page.events) < page_bytes, "{} bytes", bytes(&page.events));
            all.extend(versions(&page.events));
            (pages, next) = (pages + 1, page.next);
        }
        if backwards {
            all.reverse();
        }
        assert_eq!(all, (1..=180).collect::<Vec<_>>());
        assert!((20..=23).contains(&pages), "{pages} pages");
    }
    let (mut log, mut next) = (0, Some(ReadLog::default()));
    while let Some(from) = next {
        let page = store.read_log_page(from, 1_000).await.unwrap();
        assert!(bytes(&page.events) < page_bytes, "{} bytes", bytes(&page.events));
        log += page.events.len();
        next = page.next;
    }
    assert_eq!(log, 180);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_read_in_position_order_by_type_and_category() {
    let database = database().await;
    let store = open(database.url()).await;
    for nth in 0..300 {
        let (category, event_type) = (["order", "bill", "order2"][nth % 3], ["Placed", "Paid"][nth % 2]);
        let event = NewEvent::new(event_type, nth.to_string());
        store.append(&stream(format!("{category}-{}", nth % 10)), ANY, vec![event]).await.unwrap();
    }
    let read = |types: &[&str], categories: &[&str]| ReadLog {
        event_types: types.iter().map(|name| (*name).to_owned()).collect(),
        categories: categories.iter().map(|name| (*name).to_owned()).collect(),
        ..ReadLog::default()
    };

    let all = collect(store.read_log(ReadLog::default())).await;
    assert_eq!(all.len(), 300);
    assert!(all.windows(2).all(|pair| pair[0].position < pair[1].position));
    for (types, categories) in [
        (&["Paid"][..], &[][..]),
        (&[], &["order"]),
        (&["Placed"], &["bill", "order2"]),
        (&["Other"], &[]),
        (&[], &["ord"]),
    ] {
        let expected: Vec<_> = all
            .iter()
            .filter(|event| types.is_empty() || types.contains(&&*event.event_type))
            .filter(|event| categories.is_empty() || categories.contains(&event.stream.category()))
            .cloned()
            .collect();
        assert_eq!(collect(store.read_log(read(types, categories))).await, expected);

        let (mut paged, mut next) = (vec![], Some(read(types, categories)));
        while let Some(from) = next {
            let page = store.read_log_page(from, 7).await.unwrap();
            paged.extend(page.events);
            next = page.next;
        }
        assert_eq!(paged, expected);
    }
    let (after, up_to) = (all[99].position, all[199].position);
    let part = collect(store.read_log(ReadLog { after, up_to: Some(up_to), ..ReadLog::default() })).await;
    assert_eq!(part, all[100..200]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_ends_at_the_safe_position_however_far_it_was_written() {
    let database = database().await;
    let store = open(database.url()).await;
    store.append(&stream("note-1"), at(0), events(2)).await.unwrap();
    let mut conn = sqlx::PgConnection::connect(database.url()).await.unwrap();
    let mut open = conn.begin().await.unwrap();
    store.append_in(&mut open, vec![append("slow-1", at(0), 1)], annals::Metadata::default()).await.unwrap();
    let fast = store.append(&stream("note-2"), at(0), events(1)).await.unwrap();

    let asked = ReadLog { up_to: Some(Position::new(i64::MAX)), ..ReadLog::default() };
    let before = collect(store.read_log(asked.clone())).await;
    let holders = store.holders().await.unwrap();
    open.commit().await.unwrap();
    let after = collect(store.read_log(asked)).await;

    assert_eq!((before.len(), after.len(), after[3].position), (2, 4, fast.position));
    assert_eq!((holders.len(), holders[0].position.get()), (1, 2));
    let horizon = store.horizon().await.unwrap();
    assert_eq!(horizon.safe, horizon.drawn);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_found_by_their_ids_without_reading_the_log() {
    let database = database().await;
    let store = open(database.url()).await;
    // As long as a log is that Postgres would rather not read whole.
    for _ in 0..10 {
        store.append(&stream("note-1"), ANY, events(5_000)).await.unwrap();
    }
    sqlx::raw_sql("vacuum analyze annals.events").execute(store.pool()).await.unwrap();
    let wanted = vec![append("note-2", at(0), 2), append("note-3", at(0), 1)];
    let ids: Vec<_> = wanted.iter().flat_map(|append| &append.events).map(|event| event.event_id).collect();

    let before = store.find_events(&ids).await.unwrap();
    let receipts = store.append_all(wanted, annals::Metadata::default()).await.unwrap();
    let found = store.find_events(&[&ids[..], &[uuid::Uuid::now_v7()]].concat()).await.unwrap();

    assert_eq!((before.len(), found.iter().map(|event| event.event_id).collect::<Vec<_>>()), (0, ids.clone()));
    assert_eq!(found[2].position, receipts[1].position);
    assert_eq!((found[0].stream.as_str(), found[0].event.as_str()), ("note-2", r#"{"nth": 0}"#));
    let (_, statement) = store.statements().into_iter().find(|(name, _)| *name == "find_events").unwrap();
    let mut conn = store.pool().acquire().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("prepare found (uuid[]) as {statement}"))).execute(&mut *conn).await.unwrap();
    for plan in ["force_custom_plan", "force_generic_plan"] {
        let asking = format!("set plan_cache_mode = {plan}; explain execute found (array['{}']::uuid[])", ids[0]);
        let rows = sqlx::raw_sql(AssertSqlSafe(asking)).fetch_all(&mut *conn).await.unwrap();
        let plan: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert!(plan.iter().any(|line| line.contains("Bitmap Index Scan on events_event_id")), "{plan:#?}");
    }

    let refused = store.find_events(&vec![ids[0]; 101]).await.unwrap_err();
    assert!(refused.to_string().contains("at most 100 ids, not 101"), "{refused}");
    assert_eq!(store.find_events(&[]).await.unwrap(), []);
}
