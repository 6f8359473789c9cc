//! P6: two aggregates decide together, or nothing happens.

use annals::{App, Either, ExecuteError, InvalidInput, Options, Receipt, StoreError, testing::database};
use futures::future::join_all;
use uuid::Uuid;

use crate::kit::{
    Account,
    AccountCommand::{self, *},
    Refused, balance, bank, counts, refusal, with_id,
};

type Outcome = Result<(Receipt, Receipt), ExecuteError<Either<Refused, Refused>>>;

async fn both(app: &App, first: (&str, AccountCommand), second: (&str, AccountCommand), options: Options) -> Outcome {
    app.execute_both::<Account, Account>(first, second, options).await
}

async fn transfer(app: &App, from: &str, to: &str, cents: i64) -> Outcome {
    both(app, (from, Withdraw(cents)), (to, Deposit(cents)), Options::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_both_decide_is_appended_and_either_refusal_leaves_nothing() {
    let database = database().await;
    let app = bank(database.url()).await;
    app.execute::<Account>("ada", Deposit(100)).await.unwrap();

    let (from, to) = transfer(&app, "ada", "bob", 30).await.unwrap();
    let first = both(&app, ("ada", Withdraw(71)), ("bob", Deposit(71)), Options::default()).await;
    let second = both(&app, ("ada", Deposit(31)), ("bob", Withdraw(31)), Options::default()).await;

    assert_eq!((from.version.get(), from.appended, to.version.get(), to.appended), (2, 1, 1, 1));
    let Err(ExecuteError::Rejected(Either::First(Refused { balance: 70 }))) = first else { panic!("{first:?}") };
    let Err(ExecuteError::Rejected(Either::Second(Refused { balance: 30 }))) = second else { panic!("{second:?}") };
    assert_eq!((balance(&app, "ada").await, balance(&app, "bob").await), (70, 30));
    let events: i64 =
        sqlx::query_scalar("select count(*) from annals.events").fetch_one(app.store().pool()).await.unwrap();
    assert_eq!(events, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_on_one_lets_both_decide_again() {
    let database = database().await;
    let (a, b) = tokio::join!(bank(database.url()), bank(database.url()));
    a.execute::<Account>("ada", Deposit(100)).await.unwrap();
    transfer(&a, "ada", "bob", 10).await.unwrap();

    b.execute::<Account>("bob", Deposit(5)).await.unwrap();
    let after_one = transfer(&a, "ada", "bob", 10).await.unwrap();
    b.execute::<Account>("ada", Withdraw(80)).await.unwrap();
    let refused = transfer(&a, "ada", "bob", 10).await;

    assert_eq!((after_one.0.version.get(), after_one.1.version.get()), (3, 3));
    let counted = counts::<Account>(&a);
    // A deposit and two transfers of two commands each; the rejection is the first command's alone.
    assert_eq!((counted.conflicts, counted.accepted, counted.rejected), (2, 5, 1));
    assert!(matches!(refused, Err(ExecuteError::Rejected(Either::First(Refused { balance: 0 })))), "{refused:?}");
    assert_eq!((balance(&b, "ada").await, balance(&b, "bob").await), (0, 25));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_commands_for_one_stream_are_refused() {
    let database = database().await;
    let app = bank(database.url()).await;

    let refused = refusal(transfer(&app, "ada", "ada", 0).await);

    assert!(
        matches!(&refused, StoreError::Invalid(InvalidInput::Other(text)) if text.contains("account-ada")),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_pair_returns_both_first_receipts() {
    let database = database().await;
    let (a, b) = tokio::join!(bank(database.url()), bank(database.url()));
    a.execute::<Account>("ada", Deposit(100)).await.unwrap();
    let pairs = [
        (Uuid::now_v7(), ("ada", Withdraw(10)), ("bob", Deposit(10))),
        (Uuid::now_v7(), ("zoe", Deposit(10)), ("ada", Withdraw(10))),
        (Uuid::now_v7(), ("ada", Ensure(1)), ("bob", Deposit(10))),
        (Uuid::now_v7(), ("bob", Deposit(10)), ("ada", Ensure(1))),
        (Uuid::now_v7(), ("ada", Ensure(1)), ("bob", Ensure(1))),
    ];

    let mut firsts = vec![];
    for (id, first, second) in pairs.clone() {
        firsts.push(both(&a, first, second, with_id(id)).await.unwrap());
    }
    transfer(&a, "ada", "bob", 80).await.unwrap();

    for ((id, first, second), (receipt_a, receipt_b)) in pairs.into_iter().zip(firsts) {
        let expected = (Receipt { appended: 0, ..receipt_a }, Receipt { appended: 0, ..receipt_b });
        for app in [&a, &b] {
            let again = both(app, first.clone(), second.clone(), with_id(id)).await.unwrap();
            assert_eq!(again, expected, "{first:?} {second:?}");
        }
        let reused = refusal(both(&a, first, (second.0, Deposit(99)), with_id(id)).await);
        assert!(matches!(reused, StoreError::CommandReused { .. }), "{reused:?}");
    }
    assert_eq!((balance(&a, "ada").await, balance(&a, "bob").await), (0, 110));
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_in_all_directions_at_once_end_and_keep_the_sum() {
    let database = database().await;
    let (a, b) = tokio::join!(bank(database.url()), bank(database.url()));
    let names = ["ada", "bob", "eve"];
    for name in names {
        a.execute::<Account>(name, Deposit(1_000)).await.unwrap();
    }

    let transfers = (0..60).map(|nth: usize| {
        let app = if nth.is_multiple_of(2) { a.clone() } else { b.clone() };
        let (from, to) = (names[nth % 3], names[(nth + 1 + nth / 3 % 2) % 3]);
        tokio::spawn(async move { transfer(&app, from, to, nth as i64 + 1).await.unwrap() })
    });
    for ended in join_all(transfers).await {
        ended.unwrap();
    }

    let mut sum = 0;
    for name in names {
        sum += balance(&b, name).await;
    }
    assert_eq!(sum, 3_000);
}
