//! P4: what fails is shown and tried again; nothing is skipped, nothing else stops.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use annals::{
    App, BoxError, Change, DeadLetters, ExpectedVersion, FailurePolicy, FollowerState, FollowerStatus, Id, NewEvent,
    Position, Projector, Recorded, StreamId, View, WaitError, testing::database,
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{checkpoint, status};
use crate::{
    app::place,
    kit::{Account, AccountCommand, HOLDS, LONG, eventually, open},
    shop::{Journal, Order, OrderEvent, Spend},
};

/// Refuses the amount 500 by a rule of its table.
struct Strict;

impl Projector for Strict {
    const NAME: &'static str = "strict";
    const FAILURES: FailurePolicy = HOLDS;
    const TABLES: &'static str =
        "create table amounts (position bigint primary key, cents bigint constraint no_500 check (cents <> 500))";
    type Event = OrderEvent;

    async fn apply(&self, events: &[Recorded<OrderEvent>], conn: &mut sqlx::PgConnection) -> Result<(), BoxError> {
        for recorded in events {
            if let OrderEvent::Placed { cents, .. } = &recorded.event {
                let insert = sqlx::query("insert into amounts values ($1, $2)");
                insert.bind(recorded.position.get()).bind(cents).execute(&mut *conn).await?;
            }
        }
        Ok(())
    }
}

/// One order of each amount, 1 to 1,000, the positions being the amounts.
async fn place_a_thousand(app: &App) -> Position {
    let events = (1..=1_000).map(|cents| NewEvent::new("Placed", format!(r#"{{"customer":"ada","cents":{cents}}}"#)));
    let stream = StreamId::new("order-1").unwrap();
    app.store().append(&stream, ExpectedVersion::NoStream, events.collect()).await.unwrap().position
}

type Shown = (i64, i32, Option<String>, Option<i64>, Option<DateTime<Utc>>);

async fn shown(app: &App, name: &str) -> Shown {
    let query = "select position, attempts, last_error, failed_position, next_attempt_at from annals.checkpoints where follower = $1";
    sqlx::query_as(query).bind(name).fetch_one(app.store().pool()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_of_a_thousand_that_fails_holds_its_follower_there_until_the_cause_is_gone() {
    let database = database().await;
    let builder = open(database.url()).await.app().aggregate::<Order>().view::<Spend>().projector(Journal);
    let app = builder.projector(Strict).start().await.unwrap();

    let last = place_a_thousand(&app).await;
    app.wait_for(Spend::NAME, last, LONG).await.unwrap();
    app.wait_for(Journal::NAME, last, LONG).await.unwrap();
    eventually("it has tried three times", || async { status(&app, "strict").attempts >= 3 }).await;
    let waited = app.wait_for(Strict::NAME, last, Duration::from_millis(20)).await;

    let failing = status(&app, "strict");
    let error = failing.last_error.clone().unwrap();
    assert!(error.contains("no_500"), "{error}");
    assert_eq!((failing.state, failing.position.get(), failing.behind), (FollowerState::Retrying, 499, 501));
    assert_eq!(failing.failed_position, Some(Position::new(500)));
    assert!(failing.next_attempt_at.is_some());
    let recorded = || async { shown(&app, "strict").await.1 >= 3 };
    eventually("the store shows it too", recorded).await;
    let (position, _, stored, failed_position, next_attempt_at) = shown(&app, "strict").await;
    assert_eq!((position, failed_position, stored), (499, Some(500), Some(error.clone())));
    assert!(next_attempt_at.is_some());
    let Err(WaitError::Behind { name: "strict", at, behind: 501, last_error, .. }) = &waited else {
        panic!("{waited:?}")
    };
    assert_eq!((at.get(), last_error.as_ref()), (499, Some(&error)));
    let text = waited.unwrap_err().to_string();
    assert!(text.contains("strict stands at position 499, 501 before 1000") && text.contains("no_500"), "{text}");
    assert_eq!(applied(&app).await, (499, 499));

    sqlx::query("alter table annals_strict.amounts drop constraint no_500").execute(app.store().pool()).await.unwrap();
    app.wait_for(Strict::NAME, last, LONG).await.unwrap();

    assert_eq!(applied(&app).await, (1_000, 1_000));
    eventually("it is well", || async { is_well(&status(&app, "strict")) }).await;
    let (position, attempts, error, failed_position, next_attempt_at) = shown(&app, "strict").await;
    assert_eq!((position, attempts, error, failed_position, next_attempt_at), (1_000, 0, None, None, None));
}

async fn applied(app: &App) -> (i64, i64) {
    let query = sqlx::query_as("select count(*), max(position) from annals_strict.amounts");
    query.fetch_one(app.store().pool()).await.unwrap()
}

fn is_well(status: &FollowerStatus) -> bool {
    status.state == FollowerState::Running && status.attempts == 0 && status.last_error.is_none() && status.behind == 0
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_are_counted_across_events_that_the_follower_does_not_want() {
    let database = database().await;
    let builder = open(database.url()).await.app().aggregate::<Order>().aggregate::<Account>();
    let app = builder.projector(Strict).start().await.unwrap();

    for _ in 0..5 {
        app.execute::<Account>("ada", AccountCommand::Deposit(1)).await.unwrap();
    }
    app.execute::<Order>(1, place("ada", 500)).await.unwrap();
    app.execute::<Order>(2, place("ada", 1)).await.unwrap();

    eventually("it has tried three times", || async { status(&app, "strict").attempts >= 3 }).await;
    assert_eq!(status(&app, "strict").failed_position.map(Position::get), Some(6));
}

static PANICS: AtomicBool = AtomicBool::new(true);
static PANICKED: AtomicU32 = AtomicU32::new(0);

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Panicky(i64);

impl View for Panicky {
    const NAME: &'static str = "panicky";
    const FAILURES: FailurePolicy = HOLDS;
    type Event = OrderEvent;

    fn keys(_: &Recorded<OrderEvent>) -> Vec<Id> {
        vec!["all".into()]
    }

    fn apply(&mut self, _: &Id, recorded: &Recorded<OrderEvent>) -> Change {
        if recorded.version.get() == 500 && PANICS.load(Ordering::Relaxed) {
            PANICKED.fetch_add(1, Ordering::Relaxed);
            panic!("half way");
        }
        self.0 += 1;
        Change::Keep
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_panics_is_shown_and_tried_again() {
    let database = database().await;
    let app = open(database.url()).await.app().aggregate::<Order>().view::<Panicky>().start().await.unwrap();

    let last = place_a_thousand(&app).await;
    eventually("it has failed twice", || async { status(&app, "panicky").attempts >= 2 }).await;
    let failing = status(&app, "panicky");
    let before = app.get::<Panicky>("all").await.unwrap();
    PANICS.store(false, Ordering::Relaxed);
    app.wait_for(Panicky::NAME, last, LONG).await.unwrap();

    assert_eq!((failing.position.get(), failing.failed_position.map(Position::get)), (499, Some(500)));
    assert_eq!(failing.last_error.unwrap(), "the handler panicked: half way");
    assert_eq!(before, Some(Panicky(499)));
    assert!(PANICKED.load(Ordering::Relaxed) < 40, "halving takes few steps");
    assert_eq!(app.get::<Panicky>("all").await.unwrap(), Some(Panicky(1_000)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_no_longer_decodes_is_an_error_and_not_a_new_document() {
    let database = database().await;
    let app = super::shop(database.url(), |_| ()).await;
    let first = app.execute::<Order>(1, place("ada", 10)).await.unwrap();
    app.wait_for_all(first.position, LONG).await.unwrap();
    let set = |json: &'static str| sqlx::query("update annals_spend.documents set document = $1::jsonb").bind(json);

    // What a view stored lately it knows: the next start is when it reads documents that another build stored.
    app.shutdown().await;
    let app = super::shop(database.url(), |_| ()).await;
    set(r#"{"cents":10,"orders":"one"}"#).execute(app.store().pool()).await.unwrap();
    let read = app.get::<Spend>("ada").await.unwrap_err().to_string();
    let second = app.execute::<Order>(2, place("ada", 10)).await.unwrap();
    let third = app.execute::<Order>(3, place("bob", 10)).await.unwrap();
    app.wait_for_all(third.position, LONG).await.unwrap();
    let letters = app.store().followers().dead_letters(Some("spend"), &DeadLetters::All, 10).await.unwrap();
    set(r#"{"cents":10,"orders":1}"#).execute(app.store().pool()).await.unwrap();
    let by = super::by("mended the document");
    app.store().followers().retry("spend", &DeadLetters::All, &by).await.unwrap();
    eventually("nothing is parked", || async { super::parked(&app, "spend").await == 0 }).await;

    assert_eq!((letters.len(), letters[0].position, &*letters[0].key), (1, second.position, "ada"));
    for text in [read, letters[0].error.clone().unwrap()] {
        assert!(text.contains("\"ada\"") && text.contains("does not decode") && text.contains("one"), "{text}");
    }
    assert_eq!(app.get::<Spend>("ada").await.unwrap(), Some(Spend { cents: 20, orders: 2 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_model_whose_schema_was_dropped_says_so_running_and_at_the_next_start() {
    let database = database().await;
    let app = super::shop(database.url(), |_| ()).await;
    let first = app.execute::<Order>(1, place("ada", 10)).await.unwrap();
    app.wait_for_all(first.position, LONG).await.unwrap();

    sqlx::raw_sql("drop schema annals_spend cascade").execute(app.store().pool()).await.unwrap();
    let second = app.execute::<Order>(2, place("ada", 10)).await.unwrap();
    app.wait_for("journal", second.position, LONG).await.unwrap();
    eventually("it is shown", || async { status(&app, "spend").last_error.is_some() }).await;

    let error = status(&app, "spend").last_error.unwrap();
    assert!(error.contains("\"annals_spend."), "{error}");
    assert_eq!(checkpoint(&app, "spend").await, first.position);
    let builder = open(database.url()).await.app().aggregate::<Order>().view::<Spend>();
    let (_, text) = crate::kit::start_error(builder).await;
    assert!(text.contains("schema annals_spend of spend is gone"), "{text}");
}
