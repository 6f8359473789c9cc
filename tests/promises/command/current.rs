//! P6: what is cached may be old; what is answered is not.

use std::time::{Duration, Instant};

use annals::{
    Append, ExecuteError, ExpectedVersion, Metadata, NewEvent, Options, StoreError, StreamId,
    testing::{database, server},
};
use futures::future::join_all;

use crate::kit::{Account, AccountCommand::*, LONG, Refused, balance, bank, counts, refusal};

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_or_an_empty_decision_is_never_made_on_old_state() {
    let database = database().await;
    let (a, b) = tokio::join!(bank(database.url()), bank(database.url()));
    a.execute::<Account>("ada", Deposit(10)).await.unwrap();

    b.execute::<Account>("ada", Deposit(20)).await.unwrap();
    let rejected = a.execute::<Account>("ada", Withdraw(100)).await;
    b.execute::<Account>("ada", Deposit(70)).await.unwrap();
    let accepted = a.execute::<Account>("ada", Withdraw(100)).await;
    b.execute::<Account>("ada", Deposit(40)).await.unwrap();
    let ensured = a.execute::<Account>("ada", Ensure(40)).await.unwrap();
    let withdrawn = b.execute::<Account>("ada", Withdraw(30)).await.unwrap();
    let empty = a.execute::<Account>("ada", Ensure(10)).await.unwrap();
    b.execute::<Account>("ada", Withdraw(5)).await.unwrap();
    let filled = a.execute::<Account>("ada", Ensure(10)).await.unwrap();

    assert!(matches!(rejected, Err(ExecuteError::Rejected(Refused { balance: 30 }))), "{rejected:?}");
    assert!(accepted.is_ok(), "refused on a balance of 30: {accepted:?}");
    assert_eq!(ensured.appended, 0, "decided on a balance of 0");
    assert_eq!((empty.version, empty.position, empty.appended), (withdrawn.version, withdrawn.position, 0));
    assert_eq!(filled.appended, 1, "decided on a balance of 10");
    assert_eq!(balance(&b, "ada").await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_state_costs_a_conflict_and_the_command_succeeds() {
    let database = database().await;
    let (a, b) = tokio::join!(bank(database.url()), bank(database.url()));
    a.execute::<Account>("ada", Deposit(1)).await.unwrap();

    b.execute::<Account>("ada", Deposit(2)).await.unwrap();
    let receipt = a.execute::<Account>("ada", Deposit(3)).await.unwrap();

    assert_eq!((receipt.version.get(), receipt.appended), (3, 1));
    assert_eq!((counts::<Account>(&a).conflicts, counts::<Account>(&b).conflicts), (1, 1));
    assert_eq!(balance(&a, "ada").await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_commands_at_once_from_two_apps_lose_no_update() {
    let database = database().await;
    let (a, b) = tokio::join!(bank(database.url()), bank(database.url()));

    let commands = (0..64).map(|nth| {
        let app = if nth % 2 == 0 { a.clone() } else { b.clone() };
        tokio::spawn(async move { app.execute::<Account>("hot", Deposit(1 << (nth % 8))).await.unwrap() })
    });
    let mut versions: Vec<i64> =
        join_all(commands).await.into_iter().map(|receipt| receipt.unwrap().version.get()).collect();
    versions.sort();

    assert_eq!(versions, (1..=64).collect::<Vec<i64>>());
    assert_eq!(balance(&a, "hot").await, 8 * 255);
    assert_eq!(balance(&b, "hot").await, 8 * 255);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_behind_one_that_cannot_go_on_ends_at_its_deadline() {
    let database = database().await;
    let app = bank(database.url()).await;
    let stream = StreamId::of("account", "ada").unwrap();
    let deposit = NewEvent::new("Deposited", r#"{"cents":1}"#);
    let append = Append { stream, expected: ExpectedVersion::Any, events: vec![deposit] };
    let mut holder = app.store().pool().begin().await.unwrap();
    app.store().append_in(&mut holder, vec![append], Metadata::default()).await.unwrap();

    let begun = Instant::now();
    let deadline = |after| Options { deadline: Some(Duration::from_millis(after)), ..Options::default() };
    let (held, behind) = tokio::join!(
        app.execute_with::<Account>("ada", Deposit(1), deadline(1_500)),
        app.execute_with::<Account>("ada", Deposit(1), deadline(700)),
    );
    let others = app.execute::<Account>("bob", Deposit(1)).await;
    holder.rollback().await.unwrap();

    // The one that was sent may say that it cannot know; whoever waits behind it does know.
    let (held, behind) = (refusal(held), refusal(behind));
    assert!(matches!(held, StoreError::Timeout { .. } | StoreError::UnknownOutcome { .. }), "{held:?}");
    assert!(matches!(behind, StoreError::Timeout { .. }) && behind.is_retryable(), "{behind:?}");
    assert!(begun.elapsed() < LONG / 2);
    assert!(others.is_ok(), "{others:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_ends_a_command_at_its_deadline_and_the_next_one_goes_on() {
    let server = server().await;
    let app = bank(server.url()).await;
    app.execute::<Account>("ada", Deposit(1)).await.unwrap();
    balance(&app, "ada").await;

    server.pause();
    let begun = Instant::now();
    let options = Options { deadline: Some(Duration::from_millis(500)), ..Options::default() };
    let hung = refusal(app.execute_with::<Account>("ada", Show, options).await);
    let took = begun.elapsed();
    server.resume();

    assert!(matches!(hung, StoreError::Timeout { .. }), "{hung:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert_eq!(balance(&app, "ada").await, 1);
}
