//! P1: an acknowledged append survives every crash that Postgres survives, exactly once, and no answer lies.

use std::{collections::HashMap, time::Duration};

use annals::{Annals, Config, Metadata, NewEvent, ReadStream, StoreError, testing};
use futures::future::join_all;
use sqlx::{Connection, PgConnection};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use uuid::Uuid;

use crate::{
    app::LONG,
    append::{ANY, DISORDER, append, ask, at, count, events, open, stream, until},
    proxy::{Fault, Proxy},
};

/// What the callers of many appends were told: the id of each one's event, and the answer.
type Told = Vec<(Uuid, Result<(), StoreError>)>;

/// One caller that appends to its own stream as long as `goes_on` says so, whatever it is told.
async fn caller(store: &Annals, name: String, mut goes_on: impl FnMut(usize) -> bool) -> Told {
    let mut told = vec![];
    while goes_on(told.len()) {
        let event = events(1).remove(0);
        let id = event.event_id;
        let answer = store.append(&stream(&*name), ANY, vec![event]).await;
        told.push((id, answer.map(drop)));
    }
    told
}

/// Checks every answer against what is stored. Returns how many were a success, and how many left it open.
async fn check_truth(url: &str, told: Told) -> (usize, usize) {
    let mut conn = PgConnection::connect(url).await.unwrap();
    let ids: Vec<Uuid> = sqlx::query_scalar("select event_id from annals.events").fetch_all(&mut conn).await.unwrap();
    let mut times: HashMap<Uuid, usize> = HashMap::new();
    ids.into_iter().for_each(|id| *times.entry(id).or_default() += 1);
    let (mut written, mut open) = (0, 0);
    for (id, answer) in told {
        let stored = times.get(&id).copied().unwrap_or(0);
        match answer {
            Ok(()) => {
                assert_eq!(stored, 1, "acknowledged");
                written += 1;
            }
            Err(StoreError::UnknownOutcome { event_ids, .. }) => {
                assert!(stored <= 1 && event_ids == [id]);
                open += 1;
            }
            Err(error) => assert_eq!(stored, 0, "{error:?}"),
        }
    }
    assert_eq!(ask(url, DISORDER).await, 0);
    (written, open)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_on_its_way_is_found() {
    let database = testing::database().await;
    let proxy = Proxy::to(database.options()).await;
    let store = proxy.store(Config::new("")).await.unwrap();
    for round in 1..=12 {
        let fault = if round % 2 == 0 { Fault::Cut } else { Fault::CutAtAnswer };
        let text = format!("round-{round}.");
        proxy.arm(fault, &text);

        let event = NewEvent::new("Noted", format!("{text:?}"));
        let receipt = store.append(&stream("note-1"), at(round - 1), vec![event]).await.unwrap();

        assert_eq!((receipt.version.get(), receipt.appended), (round, 1));
        let highest = ask(database.url(), "select max(position) from annals.events").await;
        assert_eq!((receipt.position.get(), proxy.faults()), (highest, round as usize));
    }
    let refused = store.append(&stream("note-1"), at(0), events(1)).await;
    assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");
    assert_eq!(ask(database.url(), "select count(*) from annals.events").await, 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_that_is_found_says_where_the_streams_stood_that_were_only_checked() {
    let database = testing::database().await;
    let proxy = Proxy::to(database.options()).await;
    let store = proxy.store(Config::new("")).await.unwrap();
    let checked = store.append(&stream("checked-1"), at(0), events(3)).await.unwrap();
    let parts = |version| {
        let checks = [("checked-1", at(3)), ("checked-1b", at(0)), ("checked-1c", ANY)];
        let mut parts: Vec<_> = checks.map(|(name, expected)| append(name, expected, 0)).into();
        parts.push(append("note-1", at(version), 2));
        parts
    };
    store.append(&stream("checked-1c"), at(0), events(1)).await.unwrap();

    let told = store.append_all(parts(0), Metadata::default()).await.unwrap();
    proxy.arm(Fault::CutAtAnswer, "Noted");
    let found = store.append_all(parts(2), Metadata::default()).await.unwrap();

    assert_eq!((proxy.faults(), told[3].version.get(), found[3].version.get()), (1, 2, 4));
    assert_eq!(found[..3], told[..3], "the same as when the answer is not lost");
    assert_eq!((found[0].version, found[0].position, found[0].appended), (checked.version, checked.position, 0));
    assert_eq!((found[1].version.get(), found[2].version.get()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_network_that_cuts_all_the_time_nothing_is_lost_or_doubled() {
    let database = testing::database().await;
    let proxy = Proxy::to(database.options()).await;
    let store = proxy.store(Config::new("")).await.unwrap();
    proxy.cut_every(21);

    let callers = (0..16).map(|nth| caller(&store, format!("note-{nth}"), |told| told < 50));
    let told: Told = join_all(callers).await.into_iter().flatten().collect::<Told>();

    let (faults, all) = (proxy.faults(), told.len());
    let (written, unknown) = check_truth(database.url(), told).await;
    println!("{all} appends over {faults} cuts: {written} written, {unknown} unknown");
    // The network carries twenty messages at a time: however many appends an answer was about, a look for them takes fewer.
    assert!(faults > 10 && (written, unknown) == (all, 0), "{faults} {written} {unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_backend_that_may_still_commit_is_ended_before_the_append_is_sent_again() {
    let database = testing::database().await;
    let direct = open(database.url()).await;
    let proxy = Proxy::to(database.options()).await;
    let config = Config { lock_deadline: LONG, append_lanes: 1, ..Config::new("") };
    let store = proxy.store(config).await.unwrap();
    for (round, version, commits) in [(1, 0, false), (2, 1, true)] {
        store.append(&stream(format!("warm-{round}")), at(0), events(1)).await.unwrap();
        let warm = ask(database.url(), "select (extract(epoch from clock_timestamp()) * 1000000)::bigint").await;
        let mut holder = PgConnection::connect(database.url()).await.unwrap();
        let mut transaction = holder.begin().await.unwrap();
        let held = vec![append("held-1", ANY, 1)];
        direct.append_in(&mut transaction, held, annals::Metadata::default()).await.unwrap();
        proxy.arm(Fault::Abandon, "sent twice");

        let event = NewEvent::new("Noted", format!(r#"{{"sent twice": {commits}}}"#));
        let stream = stream("held-1");
        let sent = store.append(&stream, at(version), vec![event]);
        let release = async {
            let waiting = format!(
                "select coalesce(sum(case when extract(epoch from backend_start) * 1000000 > {warm} then 1 else 100 end), 0)::bigint
                 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
            );
            let only_a_new_one = async || ask(database.url(), &waiting).await == 1;
            until("the append waits in a new backend, and the old one is gone", only_a_new_one).await;
            assert_eq!(proxy.faults(), round);
            if commits { transaction.commit().await } else { transaction.rollback().await }.unwrap();
        };
        let (sent, ()) = tokio::join!(sent, release);

        match sent {
            Ok(receipt) => assert!(!commits && receipt.version.get() == 1),
            Err(StoreError::Conflict { actual, .. }) => assert!(commits && actual.get() == 2),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(count(&direct).await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_black_hole_the_answer_is_found_on_another_connection() {
    let database = testing::database().await;
    let proxy = Proxy::to(database.options()).await;
    let config = Config { statement_deadline: Duration::from_millis(200), ..Config::new("") };
    let store = proxy.store(config).await.unwrap();
    proxy.arm(Fault::Dark, "Noted");

    let callers = (0..30).map(|nth| caller(&store, format!("note-{nth}"), |told| told < 2));
    let told: Told = join_all(callers).await.into_iter().flatten().collect::<Told>();

    assert_eq!((proxy.faults(), check_truth(database.url(), told).await), (1, (60, 0)));
    let held = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'";
    assert_eq!(ask(database.url(), held).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_over_a_broken_network_end_in_time_and_give_their_connections_back() {
    let database = testing::database().await;
    let proxy = Proxy::to(database.options()).await;
    let config = Config { read_deadline: Duration::from_millis(500), read_connections: 2, ..Config::new("") };
    let store = proxy.store(config).await.unwrap();
    store.append(&stream("note-1"), at(0), events(3)).await.unwrap();

    for _ in 0..4 {
        let text = Uuid::now_v7().to_string();
        proxy.arm(Fault::Dark, &text);
        let silent = timeout(LONG, store.read_stream_page(&stream(text), ReadStream::default(), 10)).await.unwrap();
        assert!(matches!(&silent, Err(error @ StoreError::Timeout { .. }) if error.is_retryable()), "{silent:?}");
    }
    until("the pool has room again", async || {
        store.read_stream_page(&stream("note-1"), ReadStream::default(), 10).await.is_ok()
    })
    .await;
    proxy.cut_all();
    let read = store.read_stream_page(&stream("note-1"), ReadStream::default(), 10).await;
    assert_eq!(read.unwrap().events.len(), 3, "a dead connection in the pool costs a second try");
    proxy.cut_all();
    assert_eq!(store.horizon().await.unwrap().safe.get(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_a_power_failure_of_the_server() {
    let mut server = testing::server().await;
    let store = open(server.url()).await;
    let done = watch::Sender::new(0);
    let enough = watch::Sender::new(false);

    let callers = join_all((0..16).map(|nth| {
        let (done, enough, store) = (done.clone(), enough.subscribe(), store.clone());
        async move {
            caller(&store, format!("note-{nth}"), |_| {
                done.send_modify(|done| *done += 1);
                !*enough.borrow()
            })
            .await
        }
    }));
    let callers = tokio::spawn(callers);
    let mut seen = done.subscribe();
    timeout(LONG, seen.wait_for(|done| *done > 300)).await.unwrap().unwrap();
    server.kill();
    server.start().await;
    let before = *seen.borrow();
    timeout(LONG, seen.wait_for(|done| *done > before + 300)).await.unwrap().unwrap();
    enough.send_replace(true);
    let told = callers.await.unwrap().into_iter().flatten().collect::<Told>();

    let all = told.len();
    let (written, unknown) = check_truth(server.url(), told).await;
    println!("{all} appends over a crash: {written} written, {unknown} unknown");
    assert!(written >= 600, "{written} of {all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_ends_in_typed_errors_not_in_a_hang() {
    let server = testing::server().await;
    let short = Duration::from_millis(500);
    let config = Config {
        append_deadline: short * 2,
        read_deadline: short * 2,
        connect_deadline: short,
        statement_deadline: short,
        ..Config::new(server.url())
    };
    let store = Annals::connect(config).await.unwrap();
    store.append(&stream("note-0"), at(0), events(1)).await.unwrap();
    server.pause();

    let begun = Instant::now();
    let callers = join_all((0..16).map(|nth| caller(&store, format!("note-{nth}"), |told| told < 2)));
    let reads = read_at_once(&store, 16);
    let (told, reads) = timeout(LONG, async { tokio::join!(callers, reads) }).await.expect("no hang");
    let took = begun.elapsed();
    let connecting = Annals::connect(Config { connect_deadline: short, ..Config::new(server.url()) }).await;
    server.resume();

    let told = told.into_iter().flatten().collect::<Told>();
    for answer in told
        .iter()
        .map(|(_, answer)| answer.as_ref().unwrap_err())
        .chain(reads.iter().map(|read| read.as_ref().unwrap_err()))
    {
        let typed = matches!(
            answer,
            StoreError::Timeout { .. } | StoreError::Unavailable { .. } | StoreError::UnknownOutcome { .. }
        );
        assert!(typed, "{answer:?}");
    }
    assert!(matches!(connecting, Err(StoreError::Timeout { .. })), "{connecting:?}");
    assert!(took < short * 8, "{took:?}");
    until("appends get through again", async || store.append(&stream("note-1"), ANY, events(1)).await.is_ok()).await;
    until("reads get through again", async || read_at_once(&store, 1).await[0].is_ok()).await;
    let busy = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
        and state <> 'idle'";
    until("what was on its way is through", async || ask(server.url(), busy).await == 0).await;
    check_truth(server.url(), told).await;
}

/// Reads a stream as many times at once, and says for each what came.
async fn read_at_once(store: &Annals, times: usize) -> Vec<Result<(), StoreError>> {
    let stream = stream("note-0");
    join_all((0..times).map(|_| store.read_stream_page(&stream, ReadStream::default(), 10)))
        .await
        .into_iter()
        .map(|read| read.map(drop))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_give_up_at_any_moment_leave_nothing_half_done() {
    let database = testing::database().await;
    let store = open(database.url()).await;

    let hasty = (0..24).map(|caller: u64| {
        let store = &store;
        async move {
            for nth in 0..20_u64 {
                let patience = Duration::from_micros(caller * 911 % 7_000 * nth % 5_003);
                let name = format!("note-{}", (caller + nth) % 12);
                let _ = timeout(patience, store.append(&stream(&*name), ANY, events(3))).await;
                let _ = timeout(patience, store.read_stream_page(&stream(name), ReadStream::default(), 100)).await;
                let _ = timeout(patience, store.horizon()).await;
            }
        }
    });
    join_all(hasty).await;

    store.append(&stream("note-0"), ANY, events(1)).await.unwrap();
    let reads = read_at_once(&store, 32).await;
    assert!(reads.iter().all(Result::is_ok), "{reads:?}");
    let open = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'";
    until("no transaction is left open", async || ask(database.url(), open).await == 0).await;
    assert_eq!(store.holders().await.unwrap(), []);
    assert_eq!(ask(database.url(), DISORDER).await, 0);
    let thirds = "select (count(*) - 1) % 3 from annals.events";
    until("what was under way is through, whole", async || ask(database.url(), thirds).await == 0).await;
}
