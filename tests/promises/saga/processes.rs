//! Instances whose processes are killed or stopped, and whose server goes away.

use std::{io::Write, time::Instant};

use annals::{Config, Position, testing};
use sqlx::{PgPool, Row};

use super::*;
use crate::{
    embedded::{Folder, app::App as Process, signal},
    kit::open_with,
};

/// The world outside as tables, for several processes: a thing is done once for a key.
const OUTSIDE: &str = "
    create schema if not exists outside;
    create table if not exists outside.done (key uuid primary key, what text not null, parcel text not null);
    create table if not exists outside.calls (key uuid not null, what text not null, parcel text not null);
    create table if not exists outside.slow (what text primary key, ms integer not null)";

/// Packs, sends and confirms; what is packed and not sent is unpacked.
struct Parcel {
    outside: PgPool,
}

impl Parcel {
    async fn call(&self, what: &str, parcel: &str, key: Uuid) -> Result<String, StepError> {
        let down = |error: sqlx::Error| StepError::unknown(error);
        let call =
            "insert into outside.calls select $1, $2, $3 returning (select ms from outside.slow where what = $2)";
        let row = sqlx::query(call).bind(key).bind(what).bind(parcel).fetch_one(&self.outside).await.map_err(down)?;
        let slow: Option<i32> = row.get(0);
        tokio::time::sleep(Duration::from_millis(slow.unwrap_or(3).unsigned_abs().into())).await;
        let done = "insert into outside.done values ($1, $2, $3) on conflict do nothing";
        sqlx::query(done).bind(key).bind(what).bind(parcel).execute(&self.outside).await.map_err(down)?;
        Ok(what.to_owned())
    }
}

impl Saga for Parcel {
    const NAME: &'static str = "parcel";
    type Event = OrderEvent;
    type Input = ();

    fn start(event: &Recorded<OrderEvent>) -> Option<(Id, ())> {
        matches!(event.event, OrderEvent::Placed { .. }).then(|| (event.stream.id().into(), ()))
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        let patient = RetryPolicy { attempts: 100, ..QUICK };
        steps
            .command::<Account>("reserve", |_| Ok(("stock".into(), AccountCommand::Withdraw(1))))
            .undo_command::<Account>(|_, ()| Ok(("stock".into(), AccountCommand::Deposit(1))))
            .step("pack", |cx| async move { cx.saga.call("pack", &cx.id, cx.key).await })
            .undo(|cx, _| async move { cx.saga.call("unpack", &cx.id, cx.key).await.map(drop) })
            .retry(patient)
            .step("send", |cx| async move {
                if cx.id.ends_with('7') {
                    return Err(StepError::business("nobody lives there"));
                }
                cx.saga.call("send", &cx.id, cx.key).await
            })
            .retry(patient)
            .command::<Order>("confirm", |cx| Ok((cx.id.clone(), OrderCommand::Confirm)))
            .end()
    }
}

async fn start(url: &str, name: &str) -> App {
    let config = Config { application_name: name.into(), connect_deadline: LONG, ..crate::kit::config(url) };
    let store = open_with(config).await;
    let outside =
        sqlx::postgres::PgPoolOptions::new().max_connections(5).acquire_timeout(LONG).connect(url).await.unwrap();
    store.app().aggregate::<Order>().aggregate::<Account>().saga(Parcel { outside }).start().await.unwrap()
}

/// The app as each process runs it.
pub(crate) async fn process(url: &str, name: &str) -> App {
    start(url, name).await
}

fn start_process(url: &str, name: &str, folder: &Folder) -> Process {
    start_process_with(url, name, folder, &[])
}

fn start_process_with(url: &str, name: &str, folder: &Folder, variables: &[(&str, &str)]) -> Process {
    let mut process = Process::start("sagas", folder, |command| {
        command.env("APP_URL", url).env("APP_NAME", name).envs(variables.iter().copied());
    });
    assert_eq!(process.line(), "follows");
    process
}

/// An app that only writes and looks, with the saga known to the store.
async fn writer(url: &str) -> (App, PgPool) {
    let pool = PgPool::connect(url).await.unwrap();
    sqlx::raw_sql(OUTSIDE).execute(&pool).await.unwrap();
    let store = open_with(Config { connect_deadline: LONG, ..crate::kit::config(url) }).await;
    let builder = store.app().aggregate::<Order>().aggregate::<Account>().saga(Parcel { outside: pool.clone() });
    let app = builder.follow(annals::Follow::Nothing).start().await.unwrap();
    app.execute::<Account>("stock", AccountCommand::Deposit(100_000)).await.unwrap();
    (app, pool)
}

async fn place(app: &App, parcel: usize) -> Position {
    let place = OrderCommand::Place { customer: "ada".into(), cents: 1 };
    app.execute::<Order>(parcel, place).await.unwrap().position
}

/// Waits until all have ended, and checks that each thing was done once, and undone where the rest did not follow.
async fn all_end(app: &App, pool: &PgPool, parcels: usize) {
    eventually("all end", || async {
        let counts = app.sagas().summary().await.unwrap()["parcel"];
        (counts.completed + counts.compensated) as usize == parcels
    })
    .await;
    let lost = (0..parcels).filter(|parcel| parcel.to_string().ends_with('7')).count();
    let counts = app.sagas().summary().await.unwrap()["parcel"];
    assert_eq!((counts.compensated as usize, counts.stuck), (lost, 0));
    let done: Vec<(String, i64, i64)> =
        sqlx::query_as("select what, count(*), count(distinct parcel) from outside.done group by what order by what")
            .fetch_all(pool)
            .await
            .unwrap();
    let (all, lost) = (parcels as i64, lost as i64);
    let mut expected = vec![("pack".into(), all, all), ("send".into(), all - lost, all - lost)];
    if lost > 0 {
        expected.push(("unpack".to_owned(), lost, lost));
    }
    assert_eq!(done, expected);
    let keys: i64 = sqlx::query_scalar(
        "select count(*) from (select what, parcel from outside.calls group by what, parcel having count(distinct key) > 1) x",
    )
    .fetch_one(pool)
    .await
    .unwrap();
    assert_eq!(keys, 0, "a thing was asked for under two keys");
    assert_eq!(crate::kit::balance(app, "stock").await, 100_000 - (all - lost));
    let owned: i64 =
        sqlx::query_scalar("select count(*) from annals.sagas where owner is not null or due_at is not null")
            .fetch_one(pool)
            .await
            .unwrap();
    assert_eq!(owned, 0, "what has ended is nobody's, and never due");
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_are_killed_leave_their_instances_to_others_and_nothing_happens_twice() {
    let (database, folder) = (database().await, Folder::new());
    let (app, pool) = writer(database.url()).await;
    let mut one = start_process(database.url(), "one", &folder);
    for round in 0..6 {
        let two = start_process(database.url(), ["two", "one"][round % 2], &folder);
        for parcel in 0..50 {
            place(&app, round * 50 + parcel).await;
        }
        // In the middle of something.
        one.kill();
        one = two;
    }
    all_end(&app, &pool, 300).await;
    let interrupted: i64 = sqlx::query_scalar(
        "select count(*) from annals.events where stream like '$parcel-%' and payload::text like '%the process that ran it has ended%'",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    println!("{interrupted} attempts were interrupted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_stopped_in_a_step_and_goes_on_later_uses_the_same_key() {
    let (database, folder) = (database().await, Folder::new());
    let (app, pool) = writer(database.url()).await;
    sqlx::query("insert into outside.slow values ('pack', 1500)").execute(&pool).await.unwrap();
    let one = start_process(database.url(), "one", &folder);
    place(&app, 1).await;
    let calls = || async {
        let calls: i64 = sqlx::query_scalar("select count(*) from outside.calls where what = 'pack'")
            .fetch_one(&pool)
            .await
            .unwrap();
        calls
    };
    eventually("it packs", || async { calls().await == 1 }).await;
    let pid = one.process.id().to_string();
    signal("STOP", &pid);
    let _two = start_process(database.url(), "two", &folder);
    eventually("the other one packs", || async { calls().await == 2 }).await;
    signal("CONT", &pid);
    all_end(&app, &pool, 2 - 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashes_in_the_middle_of_steps_loses_none_of_them() {
    let mut server = testing::server().await;
    let url = server.url().to_owned();
    let (writer, pool) = writer(&url).await;
    let app = start(&url, "app").await;
    for round in 0..3 {
        for parcel in 0..40 {
            place(&writer, round * 40 + parcel).await;
        }
        let begun = Instant::now();
        server.kill();
        server.start().await;
        println!("back after {:?}", begun.elapsed());
    }
    let settled = || async {
        let summary = writer.sagas().summary().await;
        summary.is_ok_and(|summary| summary["parcel"].completed + summary["parcel"].compensated == 120)
    };
    eventually("all end", settled).await;
    all_end(&writer, &pool, 120).await;
    app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_event_that_comes_twice_and_to_two_processes_begins_once() {
    let (database, folder) = (database().await, Folder::new());
    let (writer, pool) = writer(database.url()).await;
    let _processes = ["one", "two"].map(|name| start_process(database.url(), name, &folder));
    let rewound =
        "update annals.checkpoints set position = 0, fence = fence + 1, owner = null where follower = 'parcel'";
    for parcel in 0..40 {
        place(&writer, parcel).await;
        if parcel % 5 == 4 {
            sqlx::query(rewound).execute(&pool).await.unwrap();
        }
    }
    let last = place(&writer, 40).await;
    writer.wait_for("parcel", last, LONG).await.unwrap();
    all_end(&writer, &pool, 41).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_clock_is_wrong_by_an_hour_goes_by_that_of_the_database() {
    let library = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let library = library.map(|entry| entry.path().join("faketime/libfaketime.so.1")).find(|path| path.exists());
    let Some(library) = library else {
        let skipped = "SKIPPED: there is no libfaketime on this machine; type: apt-get install libfaketime";
        assert!(std::env::var_os("CI").is_none(), "{skipped}");
        // Around the capture of a test's output.
        let _ = writeln!(std::io::stderr(), "{skipped}");
        return;
    };
    for (round, offset) in ["-1h", "+1h"].into_iter().enumerate() {
        let (database, folder) = (database().await, Folder::new());
        let (app, pool) = writer(database.url()).await;
        let variables =
            [("LD_PRELOAD", library.to_str().unwrap()), ("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
        let _process = start_process_with(database.url(), "wrong", &folder, &variables);
        // One that is tried again after a while, and one that is undone.
        for parcel in [round, 7] {
            place(&app, parcel).await;
        }
        eventually("both end", || async {
            let counts = app.sagas().summary().await.unwrap()["parcel"];
            counts.completed + counts.compensated == 2
        })
        .await;
        let limits: Vec<f64> = sqlx::query_scalar(
            "select extract(epoch from ((payload->>'deadline_at')::timestamptz - recorded_at))::double precision
             from annals.events where event_type = 'StepStarted'",
        )
        .fetch_all(&pool)
        .await
        .unwrap();
        assert!(limits.len() >= 6 && limits.iter().all(|limit| (3_540.0..3_660.0).contains(limit)), "{limits:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_process_may_have_done_is_found_out_although_the_saga_was_called_off_meanwhile() {
    let (database, folder) = (database().await, Folder::new());
    let (app, pool) = writer(database.url()).await;
    sqlx::query("insert into outside.slow values ('pack', 600000)").execute(&pool).await.unwrap();
    let mut one = start_process(database.url(), "one", &folder);
    place(&app, 1).await;
    let calls = |what: &'static str| {
        let pool = pool.clone();
        async move {
            let query = "select count(*) from outside.calls where what = $1";
            sqlx::query_scalar::<_, i64>(query).bind(what).fetch_one(&pool).await.unwrap()
        }
    };
    eventually("it packs", || async { calls("pack").await == 1 }).await;
    // Nobody takes it while it is paused; and it is called off before anybody does.
    app.store().followers().pause("parcel", &by()).await.unwrap();
    one.kill();
    sqlx::query("delete from outside.slow").execute(&pool).await.unwrap();
    let _two = start_process(database.url(), "two", &folder);
    let freed = "select count(*) from annals.sagas where owner is null and interrupted";
    let is_freed = || async { sqlx::query_scalar::<_, i64>(freed).fetch_one(&pool).await.unwrap() == 1 };
    eventually("it is freed", is_freed).await;
    app.sagas().cancel("parcel", "1", &by()).await.unwrap();
    assert!(is_freed().await, "the mark is gone");
    app.store().followers().resume("parcel", &by()).await.unwrap();

    eventually("it is undone", || async { app.sagas().summary().await.unwrap()["parcel"].compensated == 1 }).await;
    assert_eq!((calls("pack").await, calls("unpack").await), (2, 1));
    assert_eq!(crate::kit::balance(&app, "stock").await, 100_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_process_owns_and_does_not_run_is_freed_after_a_while() {
    let database = database().await;
    let (writer, pool) = writer(database.url()).await;
    let app = start(database.url(), "app").await;
    writer.store().followers().pause("parcel", &by()).await.unwrap();
    eventually("it stands", || async { app.followers()[0].state == annals::FollowerState::Paused }).await;
    // As if its process had taken it long ago, and never learned of it.
    let lost = "insert into annals.sagas (stream, saga, definition, version, state, owner, owned_at)
                select '$parcel-1', 'parcel', 1, 0, 'running', process_id, now() - interval '1 hour'
                from annals.processes where name = 'app'";
    sqlx::query(lost).execute(&pool).await.unwrap();
    let freed = "select count(*) from annals.sagas where owner is null and interrupted and due_at <= now()";
    eventually("it is freed", || async { sqlx::query_scalar::<_, i64>(freed).fetch_one(&pool).await.unwrap() == 1 })
        .await;
    app.shutdown().await;
}
