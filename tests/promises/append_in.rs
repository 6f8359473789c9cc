//! An append inside the caller's own transaction commits with its other work, or not at all.

use std::time::Duration;

use annals::{Annals, Config, InvalidInput, Metadata, StoreError, Version, testing::database};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::timeout;

use crate::{
    app::LONG,
    append::{ANY, append, ask, at, count, events, open, stream, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn events_commit_with_the_callers_rows_or_not_at_all() {
    let database = database().await;
    let store = open(database.url()).await;
    sqlx::raw_sql("create table bills (cents bigint)").execute(store.pool()).await.unwrap();

    for commits in [false, true] {
        let mut transaction = store.pool().begin().await.unwrap();
        sqlx::raw_sql("insert into bills values (500)").execute(&mut *transaction).await.unwrap();
        let appends = vec![append("bill-1", at(0), 2), append("bill-2", ANY, 1)];
        let receipts = store.append_in(&mut transaction, appends, Metadata::default()).await.unwrap();
        let more =
            store.append_in(&mut transaction, vec![append("bill-1", at(2), 1)], Metadata::default()).await.unwrap();
        assert_eq!((receipts[0].version.get(), more[0].version.get()), (2, 3));
        if commits { transaction.commit().await } else { transaction.rollback().await }.unwrap();

        let bills = ask(database.url(), "select count(*) from bills").await;
        assert_eq!((bills, count(&store).await), if commits { (1, 4) } else { (0, 0) });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_does_not_fit_is_refused_and_stays_usable() {
    let database = database().await;
    let store = open(database.url()).await;
    let mut conn = PgConnection::connect(database.url()).await.unwrap();
    let one = || vec![append("note-1", at(0), 1)];

    let without = store.append_in(&mut conn, one(), Metadata::default()).await;
    let Err(StoreError::Invalid(InvalidInput::Other(text))) = &without else { panic!("{without:?}") };
    assert!(text.contains("needs a transaction"), "{text}");

    for level in ["repeatable read", "serializable"] {
        sqlx::raw_sql(AssertSqlSafe(format!("begin isolation level {level}"))).execute(&mut conn).await.unwrap();
        let refused = store.append_in(&mut conn, one(), Metadata::default()).await;
        let Err(StoreError::Invalid(InvalidInput::Other(text))) = &refused else { panic!("{refused:?}") };
        assert!(text.contains("READ COMMITTED") && text.contains(level), "{text}");
        let alive: i32 = sqlx::query_scalar("select 1").fetch_one(&mut conn).await.unwrap();
        assert_eq!(alive, 1);
        sqlx::raw_sql("rollback").execute(&mut conn).await.unwrap();
    }
    assert_eq!(count(&store).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_leaves_the_transaction_as_it_was() {
    let database = database().await;
    let store = open(database.url()).await;
    store.append(&stream("note-1"), at(0), events(2)).await.unwrap();

    let mut transaction = store.pool().begin().await.unwrap();
    sqlx::raw_sql("set local lock_timeout = '7s'").execute(&mut *transaction).await.unwrap();
    let appends = vec![append("note-2", at(0), 1), append("note-1", at(1), 1)];
    let refused = store.append_in(&mut transaction, appends, Metadata::default()).await;

    let Err(StoreError::Conflict { actual: Version { .. }, stream: named, .. }) = &refused else {
        panic!("{refused:?}")
    };
    assert_eq!(named.as_str(), "note-1");
    assert_eq!(store.holders().await.unwrap(), [], "it has appended nothing, so no reader waits for it");
    let setting: String = sqlx::query_scalar("show lock_timeout").fetch_one(&mut *transaction).await.unwrap();
    assert_eq!(setting, "7s");
    store.append_in(&mut transaction, vec![append("note-1", at(2), 1)], Metadata::default()).await.unwrap();
    assert_eq!(store.holders().await.unwrap().len(), 1);
    transaction.commit().await.unwrap();
    assert_eq!(count(&store).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_transaction_keeps_its_own_wait_for_locks_and_may_idle_no_longer_than_before() {
    let database = database().await;
    let store = open(database.url()).await;
    for (version, (lock, idle, idle_after)) in
        [("7s", "0", "10s"), ("0", "1h", "10s"), ("150ms", "90s", "10s"), ("1h", "1500ms", "1500ms")].iter().enumerate()
    {
        let mut transaction = store.pool().begin().await.unwrap();
        let own =
            format!("set local lock_timeout = '{lock}'; set local idle_in_transaction_session_timeout = '{idle}'");
        sqlx::raw_sql(AssertSqlSafe(own)).execute(&mut *transaction).await.unwrap();

        for nth in 0..2 {
            let appends = vec![append("note-1", at(version as i64 * 2 + nth), 1)];
            store.append_in(&mut transaction, appends, Metadata::default()).await.unwrap();
        }

        let show = "select current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout')";
        let after: (String, String) = sqlx::query_as(show).fetch_one(&mut *transaction).await.unwrap();
        assert_eq!((&*after.0, &*after.1), (*lock, *idle_after));
        transaction.commit().await.unwrap();
    }
    let mut conn = store.pool().acquire().await.unwrap();
    let lock: String = sqlx::query_scalar("show lock_timeout").fetch_one(&mut *conn).await.unwrap();
    assert_eq!(lock, "0", "the session is as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_waits_for_a_stream_that_another_transaction_holds() {
    let database = database().await;
    let store = open(database.url()).await;
    let mut first = store.pool().begin().await.unwrap();
    let mut second = store.pool().begin().await.unwrap();
    store.append_in(&mut first, vec![append("held-1", at(0), 1)], Metadata::default()).await.unwrap();

    let waits = store.append_in(&mut second, vec![append("held-1", ANY, 1)], Metadata::default());
    let commits = async {
        let waiting =
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        until("the second waits", async || ask(database.url(), waiting).await == 1).await;
        first.commit().await.unwrap();
    };
    let (waited, ()) = tokio::join!(waits, commits);

    assert_eq!(waited.unwrap()[0].version.get(), 2);
    second.commit().await.unwrap();
    assert_eq!(count(&store).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_transactions_that_wait_for_each_other_end_in_an_error_for_one() {
    let database = database().await;
    let store = open(database.url()).await;
    let mut first = store.pool().begin().await.unwrap();
    let mut second = store.pool().begin().await.unwrap();
    store.append_in(&mut first, vec![append("circle-1", at(0), 1)], Metadata::default()).await.unwrap();
    store.append_in(&mut second, vec![append("circle-2", at(0), 1)], Metadata::default()).await.unwrap();

    let one = async {
        let result = store.append_in(&mut first, vec![append("circle-2", ANY, 1)], Metadata::default()).await;
        if result.is_ok() { first.commit().await } else { first.rollback().await }.unwrap();
        result
    };
    let other = async {
        let result = store.append_in(&mut second, vec![append("circle-1", ANY, 1)], Metadata::default()).await;
        if result.is_ok() { second.commit().await } else { second.rollback().await }.unwrap();
        result
    };
    let (one, other) = timeout(LONG, async { tokio::join!(one, other) }).await.unwrap();

    let error = match (one, other) {
        (Ok(_), Err(error)) | (Err(error), Ok(_)) => error,
        both => panic!("{both:?}"),
    };
    assert!(matches!(error, StoreError::Unavailable { .. }) && error.is_retryable(), "{error:?}");
    assert_eq!(count(&store).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_idles_after_an_append_is_ended() {
    let database = database().await;
    let config = Config { transaction_deadline: Duration::from_millis(200), ..crate::kit::config(database.url()) };
    let store = Annals::connect(config).await.unwrap();
    let mut conn = PgConnection::connect(database.url()).await.unwrap();
    let mut transaction = conn.begin().await.unwrap();

    store.append_in(&mut transaction, vec![append("idle-1", at(0), 1)], Metadata::default()).await.unwrap();
    until("readers wait no longer", async || store.holders().await.unwrap().is_empty()).await;

    assert!(transaction.commit().await.is_err());
    assert_eq!(count(&store).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_database_says_appends_are_flushed_and_read_committed() {
    let database = database().await;
    let store = open(database.url()).await;
    let hostile = "
        create table public.seen (setting text, isolation text);
        create function public.note_settings() returns trigger language plpgsql as $$ begin
          insert into public.seen
            select current_setting('synchronous_commit'), current_setting('transaction_isolation');
          return null;
        end $$;
        create trigger note_settings after insert on annals.events for each statement execute function public.note_settings();
        do $$ begin
          execute format('alter database %I set synchronous_commit = off', current_database());
          execute format('alter database %I set default_transaction_read_only = on', current_database());
          execute format('alter database %I set default_transaction_isolation = ''serializable''', current_database());
        end $$;";
    sqlx::raw_sql(hostile).execute(store.pool()).await.unwrap();
    let store = open(database.url()).await;

    store.append(&stream("note-1"), at(0), events(1)).await.unwrap();
    let mut conn = PgConnection::connect(database.url()).await.unwrap();
    let begin = "begin isolation level read committed read write";
    sqlx::raw_sql(begin).execute(&mut conn).await.unwrap();
    store.append_in(&mut conn, vec![append("note-2", at(0), 1)], Metadata::default()).await.unwrap();
    let until_commit: String = sqlx::query_scalar("show synchronous_commit").fetch_one(&mut conn).await.unwrap();
    sqlx::raw_sql("commit").execute(&mut conn).await.unwrap();

    let seen: Vec<(String, String)> = sqlx::query_as("select * from seen").fetch_all(store.pool()).await.unwrap();
    assert_eq!(seen, vec![("on".to_owned(), "read committed".to_owned()); 2]);
    assert_eq!(until_commit, "on");
}
