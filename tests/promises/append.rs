//! P2: a stream's versions are 1..n, no hole, whoever writes to it.

use std::time::Duration;

use annals::testing::database;
use annals::{
    Annals, Append, Config, ExpectedVersion, Metadata, NewEvent, ReadStream, Receipt, StoreError, StreamId, Version,
};
use futures::future::join_all;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::{interval, timeout};
use uuid::Uuid;

use crate::{app::LONG, queue::lock_events};

pub(crate) const ANY: ExpectedVersion = ExpectedVersion::Any;

pub(crate) async fn open(url: &str) -> Annals {
    Annals::connect(crate::kit::config(url)).await.unwrap()
}

pub(crate) fn stream(name: impl Into<String>) -> StreamId {
    StreamId::new(name).unwrap()
}

pub(crate) fn at(version: i64) -> ExpectedVersion {
    ExpectedVersion::Exact(Version::new(version))
}

pub(crate) fn events(count: usize) -> Vec<NewEvent> {
    (0..count).map(|nth| NewEvent::new("Noted", format!(r#"{{"nth": {nth}}}"#))).collect()
}

pub(crate) fn append(name: &str, expected: ExpectedVersion, count: usize) -> Append {
    Append { stream: stream(name), expected, events: events(count) }
}

/// One value of a statement, on a connection of its own.
pub(crate) async fn ask(url: &str, statement: &str) -> i64 {
    let mut conn = PgConnection::connect(url).await.unwrap();
    let value = sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    value
}

pub(crate) async fn count(store: &Annals) -> i64 {
    sqlx::query_scalar("select count(*) from annals.events").fetch_one(store.pool()).await.unwrap()
}

/// Asks again and again until the answer is yes.
pub(crate) async fn until(what: &str, mut answer: impl AsyncFnMut() -> bool) {
    let mut pause = interval(Duration::from_millis(10));
    let asking = async {
        while !answer().await {
            pause.tick().await;
        }
    };
    timeout(LONG, asking).await.unwrap_or_else(|_| panic!("it never comes: {what}"));
}

/// Streams whose versions are not 1..n, or whose positions contradict their versions.
pub(crate) const DISORDER: &str = "select count(*) from (
    select version, row_number() over (partition by stream order by position) as nth from annals.events
  ) e where version <> nth";

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_names_the_stream_what_was_expected_and_what_is_there() {
    let database = database().await;
    let store = open(database.url()).await;
    let there = stream("note-1");
    store.append(&there, ExpectedVersion::NoStream, events(3)).await.unwrap();

    for expected in [at(2), at(4), at(0), ExpectedVersion::NoStream] {
        let refused = store.append(&there, expected, events(1)).await;

        let Err(StoreError::Conflict { stream, expected: named, actual }) = &refused else { panic!("{refused:?}") };
        assert_eq!((stream, named, actual.get()), (&there, &expected, 3));
        assert!(refused.as_ref().unwrap_err().is_retryable());
    }
    let refused = store.append(&stream("note-2"), at(1), events(1)).await;
    assert!(matches!(&refused, Err(StoreError::Conflict { actual: Version::NONE, .. })), "{refused:?}");
    let any = store.append(&there, ANY, events(1)).await.unwrap();
    assert_eq!((any.version.get(), any.appended, count(&store).await), (4, 1, 4));
    let nothing = store.append(&there, at(4), vec![]).await.unwrap();
    assert_eq!(nothing, Receipt { appended: 0, ..any });
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_writers_at_one_version_one_wins() {
    let database = database().await;
    let stores = [open(database.url()).await, open(database.url()).await];

    for version in 0..10 {
        let racers = (0..16).map(|nth| {
            let store = &stores[nth % 2];
            async move { store.append(&stream("race-1"), at(version), events(1)).await }
        });
        let results = join_all(racers).await;

        let lost = |result: &Result<_, _>| matches!(result, Err(StoreError::Conflict { .. }));
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
        assert_eq!(results.iter().filter(|result| lost(result)).count(), 15, "{results:?}");
    }
    assert_eq!(count(&stores[0]).await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_an_append_is_never_written() {
    let database = database().await;
    let store = open(database.url()).await;
    store.append(&stream("note-1"), ANY, events(1)).await.unwrap();

    let refused = store.append(&stream("note-1"), at(0), events(2)).await;

    assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");
    assert_eq!(count(&store).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_streams_are_written_together_or_not_at_all() {
    let database = database().await;
    let store = open(database.url()).await;
    let both = || vec![append("b-1", at(0), 2), append("a-1", at(0), 1)];

    let written = store.append_all(both(), Metadata::default()).await.unwrap();
    let mut again = both();
    again.push(append("c-1", at(0), 1));
    let refused = store.append_all(again, Metadata::default()).await;

    assert_eq!(written.iter().map(|receipt| receipt.version.get()).collect::<Vec<_>>(), [2, 1]);
    let Err(StoreError::Conflict { stream: named, .. }) = &refused else { panic!("{refused:?}") };
    assert_eq!((named.as_str(), count(&store).await), ("b-1", 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_appends_share_few_commits() {
    let database = database().await;
    Annals::connect(Config::new(database.url())).await.unwrap();
    let admin = database.url().replace(database.name(), "postgres");
    let activity = format!("from pg_stat_activity where datname = '{}'", database.name());
    // The commits of a store that warms its two lanes up with an append each, and then appends `more` at once.
    let commits = async |name: &str, more: usize| {
        let commits = format!("select xact_commit from pg_stat_database where datname = '{}'", database.name());
        let connected = format!("select count(*) {activity}");
        until("every connection is closed, its counts with it", async || ask(&admin, &connected).await == 0).await;
        let before = ask(&admin, &commits).await;

        // Not through a pooler: that keeps its connections.
        let config = Config { lock_deadline: LONG, ..Config::new(database.url()) };
        let store = Annals::connect(config).await.unwrap();
        let append = async |nth| store.append(&stream(format!("{name}-{nth}")), at(0), events(1)).await.unwrap();
        let mut holder = PgConnection::connect(database.url()).await.unwrap();
        lock_events(&mut holder).await;
        let waiting = format!("select count(*) {activity} and wait_event_type = 'Lock'");
        let one_waits = async || until("an append waits", async || ask(&admin, &waiting).await == 1).await;
        let both_wait = async || until("two appends wait", async || ask(&admin, &waiting).await == 2).await;
        let second = async {
            one_waits().await;
            let release = async {
                both_wait().await;
                holder.close().await.unwrap();
            };
            tokio::join!(append(1), release)
        };
        tokio::join!(append(0), second);
        join_all((0..more).map(|nth| append(nth + 2))).await;
        store.close().await;

        until("every connection is closed, its counts with it", async || ask(&admin, &connected).await == 0).await;
        ask(&admin, &commits).await - before
    };

    let idle = commits("idle", 0).await;
    let busy = commits("busy", 32).await;

    println!("32 appends in {} commits", busy - idle);
    assert_eq!(ask(database.url(), "select count(*) from annals.events").await, 36);
    assert!((1..8).contains(&(busy - idle)), "{idle} commits without them, {busy} with them");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_that_is_refused_fails_alone_in_its_batch() {
    let database = database().await;
    let config = Config { append_lanes: 1, ..crate::kit::config(database.url()) };
    let store = Annals::connect(config).await.unwrap();

    let results = join_all((0..60).map(|nth| {
        let (store, expected) = (&store, if nth % 3 == 0 { at(7) } else { at(0) });
        async move { store.append(&stream(format!("note-{nth}")), expected, events(2)).await }
    }))
    .await;

    for (nth, result) in results.iter().enumerate() {
        assert_eq!(nth % 3 != 0, result.is_ok(), "{nth}: {result:?}");
        assert!(result.is_ok() || matches!(result, Err(StoreError::Conflict { .. })), "{result:?}");
    }
    let commits = ask(database.url(), "select count(distinct xmin::text) from annals.events").await;
    assert_eq!(count(&store).await, 80);
    assert!(commits < 8, "{commits}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_on_the_same_hot_streams_leave_no_hole() {
    let database = database().await;
    let stores = [open(database.url()).await, open(database.url()).await];

    let writers = (0..40).map(|writer| {
        let store = &stores[writer % 2];
        async move {
            for nth in 0..10 {
                let hot = stream(format!("hot-{}", (writer + nth) % 5));
                store.append(&hot, ANY, events(1 + nth % 3)).await.unwrap();
            }
        }
    });
    join_all(writers).await;

    assert_eq!(count(&stores[0]).await, 40 * 19);
    assert_eq!(ask(database.url(), DISORDER).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_to_the_same_streams_in_any_order_never_deadlock() {
    let database = database().await;
    let stores = [open(database.url()).await, open(database.url()).await];

    let writers = (0..24).map(|writer: usize| {
        let store = &stores[writer % 2];
        async move {
            for nth in 0..8 {
                let mut names = ["pair-a", "pair-b", "pair-c"];
                names.rotate_left((writer + nth) % 3);
                let appends = names[..2].iter().map(|name| append(name, ANY, 1)).collect();
                store.append_all(appends, Metadata::default()).await.unwrap();
            }
        }
    });
    join_all(writers).await;

    assert_eq!(count(&stores[0]).await, 24 * 8 * 2);
    assert_eq!(ask(database.url(), DISORDER).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_to_several_busy_streams_has_its_turn() {
    let database = database().await;
    let store = open(database.url()).await;

    let pair = async {
        for _ in 0..20 {
            let pair = vec![append("busy-a", ANY, 1), append("busy-b", ANY, 1)];
            store.append_all(pair, Metadata::default()).await.unwrap();
        }
    };
    let singles = join_all((0..40).map(|nth| {
        let busy = stream(if nth % 2 == 0 { "busy-a" } else { "busy-b" });
        let store = &store;
        async move {
            for _ in 0..10_000 {
                store.append(&busy, ANY, events(1)).await.unwrap();
            }
        }
    }));
    tokio::select! {
        () = pair => {}
        _ = singles => panic!("the others went first 10,000 times each"),
    }

    // In order of arrival, each of the 40 goes about once before a pair.
    let written = ask(database.url(), "select count(*) from annals.events").await;
    println!("{written} events beside 20 pairs");
    assert!(written < 20 * 40 * 3, "{written}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_event_was_appended_with_comes_back() {
    let database = database().await;
    let store = open(database.url()).await;
    let metadata = Metadata {
        correlation_id: Some(Uuid::now_v7()),
        causation_id: Some(Uuid::now_v7()),
        command_id: Some(Uuid::now_v7()),
        actor: Some("ada".into()),
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
    };

    let event = NewEvent { schema_version: 3, ..NewEvent::new("Noted", "{}") };
    let appends = vec![Append { stream: stream("note-1"), expected: ANY, events: vec![event.clone()] }];
    let receipt = store.append_all(appends, metadata.clone()).await.unwrap()[0];
    store.append(&stream("note-2"), ANY, events(2)).await.unwrap();

    let read = store.read_stream_page(&stream("note-1"), annals::ReadStream::default(), 10).await.unwrap();
    let recorded = &read.events[0];
    assert_eq!((recorded.event_id, recorded.schema_version, recorded.position), (event.event_id, 3, receipt.position));
    assert_eq!(recorded.metadata, metadata);
    let other = store.read_stream_page(&stream("note-2"), annals::ReadStream::default(), 10).await.unwrap().events;
    assert_eq!(other[1].metadata.correlation_id, Some(other[0].event_id), "one append belongs together");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_is_the_same_alone_and_in_a_batch() {
    let database = database().await;
    let store = open(database.url()).await;
    let id = Uuid::from_u128(7);
    let metadata = Metadata {
        correlation_id: Some(id),
        causation_id: Some(id),
        command_id: Some(id),
        actor: Some("ada".into()),
        traceparent: Some("00-1-2-01".into()),
    };
    for (nth, (expected, count)) in
        [(ExpectedVersion::NoStream, 3), (at(3), 1), (ANY, 2), (at(3), 2), (ExpectedVersion::NoStream, 1), (at(9), 1)]
            .into_iter()
            .enumerate()
    {
        let alone = store.append_all(vec![append("one", expected, count)], metadata.clone()).await;
        let other = append(&format!("other-{nth}"), ANY, 1);
        let batched = store.append_all(vec![append("two", expected, count), other], metadata.clone()).await;

        match (alone, batched) {
            (Ok(alone), Ok(batched)) => {
                assert_eq!((alone[0].version, alone[0].appended), (batched[0].version, batched[0].appended));
                let last = store.read_stream_page(&stream("one"), backwards(), 1).await.unwrap().events;
                assert_eq!((last[0].version, last[0].position), (alone[0].version, alone[0].position));
            }
            (
                Err(StoreError::Conflict { expected: wanted, actual, .. }),
                Err(StoreError::Conflict { expected: also_wanted, actual: also_actual, .. }),
            ) => assert_eq!((wanted, actual), (also_wanted, also_actual)),
            different => panic!("{expected:?}: {different:?}"),
        }
    }
    let different = "select count(*) from annals.events one left join annals.events two
       on two.stream = 'two' and two.version = one.version
       where one.stream = 'one' and (one.event_type, one.payload::text, one.schema_version, one.correlation_id,
         one.causation_id, one.command_id, one.actor, one.traceparent)
       is distinct from (two.event_type, two.payload::text, two.schema_version, two.correlation_id, two.causation_id,
         two.command_id, two.actor, two.traceparent)";
    assert_eq!(ask(database.url(), different).await, 0);
    assert_eq!(ask(database.url(), "select count(*) from annals.events where stream = 'one'").await, 6);
    assert_eq!(ask(database.url(), "select count(*) from annals.events where stream = 'two'").await, 6);
}

fn backwards() -> ReadStream {
    ReadStream { backwards: true, ..ReadStream::default() }
}
