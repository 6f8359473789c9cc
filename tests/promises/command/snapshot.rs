//! P6: a snapshot makes loading shorter and never changes or stops anything.

use std::collections::BTreeMap;

use annals::{Aggregate, App, Context, Event, ExecuteError, testing::database};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kit::{eventually, open};

#[derive(Serialize, Deserialize, JsonSchema)]
enum TallyEvent {
    Counted,
}
impl Event for TallyEvent {}

#[derive(Clone, Serialize)]
enum TallyCommand {
    Count,
    CountTen,
    Show,
}

#[derive(Debug, thiserror::Error)]
#[error("counted to {0}")]
struct Shown(i64);

/// Aggregates of one category that differ in what they say about snapshots.
macro_rules! tally {
    ($name:ident, version $version:literal, every $every:literal, $state:ty, $kept:expr) => {
        #[derive(Default, Serialize, Deserialize)]
        struct $name {
            count: i64,
            #[serde(default)]
            other: $state,
        }

        impl Aggregate for $name {
            const TYPE: &'static str = "tally";
            const SNAPSHOT_VERSION: u32 = $version;
            const SNAPSHOT_EVERY: u32 = $every;
            type Command = TallyCommand;
            type Event = TallyEvent;
            type Error = Shown;

            fn handle(&self, command: &TallyCommand, _: &Context) -> Result<Vec<TallyEvent>, Shown> {
                match command {
                    TallyCommand::Count => Ok(vec![TallyEvent::Counted]),
                    TallyCommand::CountTen => Ok((0..10).map(|_| TallyEvent::Counted).collect()),
                    TallyCommand::Show => Err(Shown(self.count)),
                }
            }

            fn apply(&mut self, _: &TallyEvent) {
                self.count += 1;
                self.other = $kept;
            }
        }
    };
}

tally!(Tally, version 1, every 10, (), ());
tally!(NewTally, version 2, every 10, (), ());
tally!(PlainTally, version 1, every 0, (), ());
tally!(NanTally, version 1, every 10, Option<f64>, Some(f64::NAN));
tally!(KeyedTally, version 1, every 10, BTreeMap<(i32, i32), i32>, BTreeMap::from([((1, 2), 3)]));

async fn app<A: Aggregate>(url: &str) -> App {
    open(url).await.app().aggregate::<A>().start().await.unwrap()
}

async fn send<A: Aggregate<Command = TallyCommand, Error = Shown>>(app: &App, command: TallyCommand, times: usize) {
    for _ in 0..times {
        app.execute::<A>(1, command.clone()).await.unwrap();
    }
}

/// What a process that begins now takes the count to be.
async fn count<A: Aggregate<Command = TallyCommand, Error = Shown>>(url: &str) -> i64 {
    match app::<A>(url).await.execute::<A>(1, TallyCommand::Show).await {
        Err(ExecuteError::Rejected(Shown(count))) => count,
        other => panic!("{other:?}"),
    }
}

async fn snapshot(app: &App) -> Option<(i64, i32, String)> {
    let query = sqlx::query_as(
        "select version, snapshot_version, state::text from annals.snapshots order by snapshot_version desc limit 1",
    );
    query.fetch_optional(app.store().pool()).await.unwrap()
}

async fn set_state(app: &App, state: &str) {
    let query = sqlx::query("update annals.snapshots set state = $1::json").bind(state);
    query.execute(app.store().pool()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_saved_by_policy_and_used() {
    let database = database().await;
    let app = app::<Tally>(database.url()).await;

    send::<Tally>(&app, TallyCommand::Count, 9).await;
    assert_eq!(snapshot(&app).await, None);
    send::<Tally>(&app, TallyCommand::CountTen, 1).await;
    eventually("the snapshot at 19", || async { snapshot(&app).await.is_some_and(|saved| saved.0 == 19) }).await;
    send::<Tally>(&app, TallyCommand::Count, 3).await;
    eventually("the snapshot at 20", || async { snapshot(&app).await.is_some_and(|saved| saved.0 == 20) }).await;

    assert_eq!(snapshot(&app).await.unwrap().1, 1);
    assert_eq!(count::<Tally>(database.url()).await, 22);
    // A state that no events led to shows that it is the snapshot that is read, and the tail behind it.
    set_state(&app, r#"{"count":1000,"other":null}"#).await;
    assert_eq!(count::<Tally>(database.url()).await, 1_002);
    assert_eq!(count::<PlainTally>(database.url()).await, 22, "it wants none");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_undecodable_or_of_another_version_is_ignored() {
    let database = database().await;
    let app = app::<Tally>(database.url()).await;
    send::<Tally>(&app, TallyCommand::CountTen, 1).await;
    eventually("the snapshot", || async { snapshot(&app).await.is_some() }).await;

    set_state(&app, r#""neither here nor there""#).await;
    assert_eq!(count::<Tally>(database.url()).await, 10);
    set_state(&app, r#"{"count":1000,"other":null}"#).await;
    assert_eq!(count::<NewTally>(database.url()).await, 10);
    set_state(&app, r#"{"count":10,"other":null}"#).await;

    let newer = self::app::<NewTally>(database.url()).await;
    send::<NewTally>(&newer, TallyCommand::CountTen, 1).await;
    eventually("the new build's snapshot", || async { snapshot(&app).await.is_some_and(|saved| saved.1 == 2) }).await;
    assert_eq!(count::<NewTally>(database.url()).await, 20);
    assert_eq!(count::<Tally>(database.url()).await, 20, "the old build ignores the new build's");
    let kept: i64 =
        sqlx::query_scalar("select count(*) from annals.snapshots").fetch_one(app.store().pool()).await.unwrap();
    assert_eq!(kept, 2, "each build keeps its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_ahead_of_its_stream_is_ignored() {
    let database = database().await;
    let app = app::<Tally>(database.url()).await;
    send::<Tally>(&app, TallyCommand::Count, 3).await;

    sqlx::query("insert into annals.snapshots values ('tally-1', 9, 1, now(), '{\"count\":9,\"other\":null}')")
        .execute(app.store().pool())
        .await
        .unwrap();

    assert_eq!(count::<Tally>(database.url()).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_would_not_read_back_as_it_was_is_no_snapshot_and_stops_nothing() {
    let database = database().await;
    let nan = app::<NanTally>(database.url()).await;
    let keyed = app::<KeyedTally>(database.url()).await;

    send::<NanTally>(&nan, TallyCommand::CountTen, 2).await;
    send::<KeyedTally>(&keyed, TallyCommand::CountTen, 2).await;
    // Saved behind the others: by then they would be there.
    let plain = app::<Tally>(database.url()).await;
    plain.execute::<Tally>(2, TallyCommand::CountTen).await.unwrap();
    eventually("a snapshot", || async { snapshot(&plain).await.is_some() }).await;

    let streams: Vec<String> =
        sqlx::query_scalar("select stream from annals.snapshots").fetch_all(plain.store().pool()).await.unwrap();
    assert_eq!(streams, ["tally-2"]);
    assert_eq!(count::<NanTally>(database.url()).await, 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregate_of_thousands_of_events_loads_page_by_page() {
    let database = database().await;
    let app = app::<PlainTally>(database.url()).await;

    send::<PlainTally>(&app, TallyCommand::CountTen, 201).await;

    assert_eq!(count::<PlainTally>(database.url()).await, 2_010);
    assert_eq!(count::<Tally>(database.url()).await, 2_010);
}
