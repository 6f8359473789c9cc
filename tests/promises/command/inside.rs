//! P6: a command inside the caller's own transaction.

use annals::{App, ExecuteError, InvalidInput, Options, Receipt, StoreError, testing::database};
use sqlx::{Executor, PgConnection};
use uuid::Uuid;

use crate::kit::{Account, AccountCommand, AccountCommand::*, Refused, balance, bank, refusal, with_id};

async fn inside(
    app: &App,
    conn: &mut PgConnection,
    command: AccountCommand,
    options: Options,
) -> Result<Receipt, ExecuteError<Refused>> {
    app.execute_in::<Account>(conn, "ada", command, options).await
}

async fn notes(app: &App) -> i64 {
    sqlx::query_scalar("select count(*) from notes").fetch_one(app.store().pool()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_commit_and_roll_back_with_the_callers_rows() {
    let database = database().await;
    let app = bank(database.url()).await;
    app.store().pool().execute("create table notes (text text)").await.unwrap();

    for (commit, expected) in [(false, (0, 0)), (true, (1, 10))] {
        let mut tx = app.store().pool().begin().await.unwrap();
        tx.execute("insert into notes values ('mine')").await.unwrap();
        inside(&app, &mut tx, Deposit(10), Options::default()).await.unwrap();
        let refused = inside(&app, &mut tx, Withdraw(11), Options::default()).await;
        assert!(matches!(refused, Err(ExecuteError::Rejected(Refused { balance: 10 }))), "{refused:?}");
        if commit {
            tx.commit().await.unwrap()
        } else {
            tx.rollback().await.unwrap()
        }

        assert_eq!((notes(&app).await, balance(&app, "ada").await), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_sees_its_own_commands() {
    let database = database().await;
    let app = bank(database.url()).await;
    app.execute::<Account>("ada", Deposit(1)).await.unwrap();
    let id = Uuid::now_v7();

    let mut tx = app.store().pool().begin().await.unwrap();
    inside(&app, &mut tx, Deposit(10), with_id(id)).await.unwrap();
    let second = inside(&app, &mut tx, Withdraw(11), Options::default()).await.unwrap();
    let repeated = inside(&app, &mut tx, Deposit(10), with_id(id)).await.unwrap();
    let empty = inside(&app, &mut tx, Ensure(0), Options::default()).await.unwrap();
    assert_eq!(balance(&app, "ada").await, 1, "seen before its commit");
    tx.commit().await.unwrap();
    let outside = app.execute_with::<Account>("ada", Deposit(10), with_id(id)).await.unwrap();

    assert_eq!((second.version.get(), repeated.version.get(), repeated.appended), (3, 2, 0));
    assert_eq!(empty, Receipt { appended: 0, ..second });
    assert_eq!(outside, repeated);
    assert_eq!(balance(&app, "ada").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_id_that_was_used_outside_is_known_inside() {
    let database = database().await;
    let app = bank(database.url()).await;
    let id = Uuid::now_v7();
    let first = app.execute_with::<Account>("ada", Deposit(10), with_id(id)).await.unwrap();

    let mut tx = app.store().pool().begin().await.unwrap();
    let repeated = inside(&app, &mut tx, Deposit(10), with_id(id)).await.unwrap();
    let reused = refusal(inside(&app, &mut tx, Deposit(11), with_id(id)).await);
    inside(&app, &mut tx, Deposit(1), Options::default()).await.unwrap();
    tx.commit().await.unwrap();

    assert_eq!(repeated, Receipt { appended: 0, ..first });
    assert!(matches!(reused, StoreError::CommandReused { .. }), "{reused:?}");
    assert_eq!(balance(&app, "ada").await, 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_is_decided_again_on_what_the_other_has_committed() {
    let database = database().await;
    let app = bank(database.url()).await;
    app.execute::<Account>("ada", Deposit(10)).await.unwrap();

    let mut first = app.store().pool().begin().await.unwrap();
    let mut second = app.store().pool().begin().await.unwrap();
    inside(&app, &mut first, Withdraw(10), Options::default()).await.unwrap();
    let (waiting, ()) = tokio::join!(inside(&app, &mut second, Withdraw(10), Options::default()), async {
        let holder =
            "select count(*) > 0 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
        crate::kit::eventually("the second waits for the first", || async {
            sqlx::query_scalar(holder).fetch_one(app.store().pool()).await.unwrap()
        })
        .await;
        first.commit().await.unwrap();
    });
    second.rollback().await.unwrap();

    assert!(matches!(waiting, Err(ExecuteError::Rejected(Refused { balance: 0 }))), "{waiting:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_may_see_the_past_is_refused_even_a_rejection() {
    let database = database().await;
    let app = bank(database.url()).await;
    let mut tx = app.store().pool().begin_with("begin isolation level repeatable read").await.unwrap();
    sqlx::query("select").execute(&mut *tx).await.unwrap();
    app.execute::<Account>("ada", Deposit(10)).await.unwrap();

    let old = refusal(inside(&app, &mut tx, Withdraw(10), Options::default()).await);
    drop(tx);
    let mut conn = app.store().pool().acquire().await.unwrap();
    let none = refusal(inside(&app, &mut conn, Withdraw(10), Options::default()).await);

    assert!(
        matches!(&old, StoreError::Invalid(InvalidInput::Other(text)) if text.contains("repeatable read")),
        "{old}"
    );
    assert!(matches!(&none, StoreError::Invalid(InvalidInput::Other(text)) if text.contains("BEGIN")), "{none}");
    assert_eq!(balance(&app, "ada").await, 10);
}
