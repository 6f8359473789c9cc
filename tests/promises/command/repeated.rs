//! P6: a command with an id takes effect once, however often and wherever it is sent.

use annals::{ExecuteError, Receipt, StoreError, testing::database};
use futures::future::join_all;
use uuid::Uuid;

use crate::kit::{Account, AccountCommand::*, Refused, balance, bank, counts, refusal, with_id};

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_command_returns_its_first_receipt_also_after_more_events_and_a_restart() {
    let database = database().await;
    let app = bank(database.url()).await;
    let id = Uuid::now_v7();

    let first = app.execute_with::<Account>("ada", Deposit(100), with_id(id)).await.unwrap();
    let at_once = app.execute_with::<Account>("ada", Deposit(100), with_id(id)).await.unwrap();
    app.execute::<Account>("ada", Deposit(1)).await.unwrap();
    app.execute::<Account>("bob", Deposit(1)).await.unwrap();
    let later = app.execute_with::<Account>("ada", Deposit(100), with_id(id)).await.unwrap();
    let counted = counts::<Account>(&app);
    app.shutdown().await;
    let app = bank(database.url()).await;
    let restarted = app.execute_with::<Account>("ada", Deposit(100), with_id(id)).await.unwrap();

    assert_eq!((first.version.get(), first.appended), (1, 1));
    let again = Receipt { appended: 0, ..first };
    assert_eq!([at_once, later, restarted], [again; 3]);
    assert_eq!(balance(&app, "ada").await, 101);
    assert_eq!((counted.accepted, counted.repeated, counted.empty), (3, 2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_racers_in_two_apps_with_one_command_id_have_one_effect() {
    let database = database().await;
    let (a, b) = tokio::join!(bank(database.url()), bank(database.url()));

    for round in 0..20 {
        let id = Uuid::now_v7();
        let racers = (0..16).map(|nth| {
            let app = if nth % 2 == 0 { a.clone() } else { b.clone() };
            tokio::spawn(async move { app.execute_with::<Account>(round, Deposit(7), with_id(id)).await.unwrap() })
        });
        let receipts: Vec<Receipt> = join_all(racers).await.into_iter().map(Result::unwrap).collect();

        assert_eq!(receipts.iter().map(|receipt| receipt.appended).sum::<usize>(), 1, "{receipts:?}");
        assert!(receipts.iter().all(|receipt| receipt.version.get() == 1), "{receipts:?}");
        assert!(receipts.iter().all(|receipt| receipt.position == receipts[0].position), "{receipts:?}");
        assert_eq!(balance(&b, round).await, 7);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_id_with_another_body_or_on_another_stream_is_an_error_and_writes_nothing() {
    let database = database().await;
    let app = bank(database.url()).await;
    let id = Uuid::now_v7();
    app.execute_with::<Account>("ada", Deposit(100), with_id(id)).await.unwrap();

    let body = refusal(app.execute_with::<Account>("ada", Deposit(101), with_id(id)).await);
    let rejected = refusal(app.execute_with::<Account>("ada", Withdraw(101), with_id(id)).await);
    let stream = refusal(app.execute_with::<Account>("bob", Deposit(100), with_id(id)).await);

    for error in [body, rejected, stream] {
        let StoreError::CommandReused { command_id, stream } = error else { panic!("{error:?}") };
        assert_eq!((command_id, stream.as_str()), (id, "account-ada"));
    }
    assert_eq!((balance(&app, "ada").await, balance(&app, "bob").await), (100, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_empty_decision_is_recorded_and_answers_with_where_the_stream_stood() {
    let database = database().await;
    let app = bank(database.url()).await;
    let (id, on_nothing) = (Uuid::now_v7(), Uuid::now_v7());
    let deposited = app.execute::<Account>("ada", Deposit(100)).await.unwrap();

    let empty = app.execute_with::<Account>("ada", Ensure(100), with_id(id)).await.unwrap();
    let nothing = app.execute_with::<Account>("eve", Ensure(0), with_id(on_nothing)).await.unwrap();
    app.execute::<Account>("ada", Withdraw(60)).await.unwrap();
    let again = app.execute_with::<Account>("ada", Ensure(100), with_id(id)).await.unwrap();
    let nothing_again = app.execute_with::<Account>("eve", Ensure(0), with_id(on_nothing)).await.unwrap();

    assert_eq!(empty, Receipt { appended: 0, ..deposited });
    assert_eq!(again, empty, "decided again, it would deposit 60");
    assert_eq!((nothing, nothing_again), (Receipt::default(), Receipt::default()));
    assert_eq!(balance(&app, "ada").await, 40);
    let counted = counts::<Account>(&app);
    assert_eq!((counted.empty, counted.repeated), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_that_would_now_be_refused_returns_its_first_receipt() {
    let database = database().await;
    let (a, b) = tokio::join!(bank(database.url()), bank(database.url()));
    let id = Uuid::now_v7();
    a.execute::<Account>("ada", Deposit(100)).await.unwrap();

    let first = a.execute_with::<Account>("ada", Withdraw(100), with_id(id)).await.unwrap();
    let again = b.execute_with::<Account>("ada", Withdraw(100), with_id(id)).await.unwrap();

    assert_eq!(again, Receipt { appended: 0, ..first });
    assert_eq!(balance(&a, "ada").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_command_leaves_its_id_unused() {
    let database = database().await;
    let app = bank(database.url()).await;
    let id = Uuid::now_v7();

    let refused = app.execute_with::<Account>("ada", Withdraw(5), with_id(id)).await;
    app.execute::<Account>("ada", Deposit(5)).await.unwrap();
    let accepted = app.execute_with::<Account>("ada", Withdraw(5), with_id(id)).await.unwrap();

    assert!(matches!(refused, Err(ExecuteError::Rejected(Refused { balance: 0 }))), "{refused:?}");
    assert_eq!(accepted.appended, 1);
}
