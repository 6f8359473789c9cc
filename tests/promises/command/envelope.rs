//! P6: what comes with a command is stored beside its events; what cannot be stored is refused before anything is sent.

use annals::{InvalidInput, Options, Payload, ReadLog, Recorded, StoreError, testing::database};
use futures::future::join_all;
use uuid::Uuid;

use crate::{
    kit::{Account, AccountCommand::*, bank, open, refusal},
    shop::{Order, OrderCommand},
};

#[tokio::test(flavor = "multi_thread")]
async fn metadata_flows_from_command_to_event_and_from_event_to_the_command_it_causes() {
    let database = database().await;
    let app = bank(database.url()).await;
    let [command_id, correlation, causation] = std::array::from_fn(|_| Uuid::now_v7());
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned();
    let options = Options {
        command_id: Some(command_id),
        actor: Some("ada@example.org".into()),
        correlation_id: Some(correlation),
        causation_id: Some(causation),
        traceparent: Some(traceparent.clone()),
        deadline: None,
    };

    app.execute_with::<Account>("ada", Deposit(1), options).await.unwrap();
    let first = log(&app).await.remove(0);
    app.execute_with::<Account>("bob", Deposit(1), Options::caused_by(&first)).await.unwrap();
    app.execute::<Account>("eve", Deposit(1)).await.unwrap();
    let [first, second, third] = <[_; 3]>::try_from(log(&app).await).unwrap();

    let metadata = &first.metadata;
    assert_eq!((metadata.command_id, metadata.actor.as_deref()), (Some(command_id), Some("ada@example.org")));
    assert_eq!((metadata.correlation_id, metadata.causation_id), (Some(correlation), Some(causation)));
    assert_eq!(metadata.traceparent, Some(traceparent));
    let caused = &second.metadata;
    assert_eq!((caused.correlation_id, caused.causation_id), (Some(correlation), Some(first.event_id)));
    assert_eq!((&caused.traceparent, &caused.actor), (&metadata.traceparent, &metadata.actor));
    assert_eq!(caused.command_id, None);
    let alone = third.metadata;
    assert!(alone.correlation_id.is_some_and(|id| id != correlation) && alone.causation_id.is_none(), "{alone:?}");
}

async fn log(app: &annals::App) -> Vec<Recorded<Payload>> {
    app.store().read_log_page(ReadLog::default(), 100).await.unwrap().events
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregate_that_is_not_registered_is_named() {
    let database = database().await;
    let app = bank(database.url()).await;

    let error = refusal(app.execute::<Order>(1, OrderCommand::Confirm).await);

    assert!(matches!(&error, StoreError::Unfit(text) if text.contains("\"order\" is not registered")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_stored_is_refused_with_the_path_of_its_field() {
    let database = database().await;
    let app = bank(database.url()).await;

    let error = refusal(app.execute::<Account>("ada", Rate(0)).await);
    let actor = Options::default().actor("a\0b");
    let actor = refusal(app.execute_with::<Account>("ada", Deposit(1), actor).await);
    let name = refusal(app.execute::<Account>("x".repeat(300), Deposit(1)).await);

    let StoreError::Invalid(InvalidInput::Field { event_type, field, reason }) = &error else { panic!("{error:?}") };
    assert_eq!((event_type.as_str(), field.as_str()), ("Rated", "$.rates[1]"));
    assert!(reason.contains("NaN"), "{reason}");
    assert!(matches!(actor, StoreError::Invalid(_)), "{actor:?}");
    assert!(matches!(name, StoreError::Invalid(InvalidInput::StreamName { .. })), "{name:?}");
    assert!(log(&app).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_lets_commands_end_and_refuses_later_ones() {
    let database = database().await;
    let app = bank(database.url()).await;

    let commands: Vec<_> = (0..200)
        .map(|nth| {
            let app = app.clone();
            tokio::spawn(async move { app.execute::<Account>(nth % 20, Deposit(1)).await })
        })
        .collect();
    crate::kit::eventually("a command has ended", || async { crate::kit::counts::<Account>(&app).accepted > 0 }).await;
    app.shutdown().await;
    let ended: Vec<_> = join_all(commands).await.into_iter().map(Result::unwrap).collect();
    let late = refusal(app.execute::<Account>(1, Deposit(1)).await);

    let accepted = ended.iter().filter(|result| result.is_ok()).count();
    for refused in ended.into_iter().filter(Result::is_err) {
        assert!(matches!(refusal(refused), StoreError::Closed));
    }
    assert!(matches!(late, StoreError::Closed), "{late:?}");
    let events: i64 = sqlx::query_scalar("select count(*) from annals.events")
        .fetch_one(open(database.url()).await.pool())
        .await
        .unwrap();
    assert_eq!(events, accepted as i64);
}
