//! A model is built anew beside the one that serves, and takes its place at once.

use std::sync::atomic::{AtomicBool, Ordering};

use annals::{
    App, BoxError, Change, ExpectedVersion, FollowerState, Id, NewEvent, Projector, Recorded, StreamId, View,
    testing::database,
};
use serde::{Deserialize, Serialize};

use super::{assert_accounted, by, shop, status};
use crate::{
    app::place,
    kit::{LONG, eventually, open},
    shop::{Order, OrderEvent, Spend},
};

/// The view `spend` of a later build: it counts confirmed orders, too.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Spend2 {
    cents: i64,
    orders: i64,
    #[serde(default)]
    largest: i64,
}

impl View for Spend2 {
    const NAME: &'static str = "spend";
    const VERSION: u32 = 2;
    const INDEXES: &'static str = "create index on documents (((document->>'largest')::bigint))";
    type Event = OrderEvent;

    fn keys(recorded: &Recorded<OrderEvent>) -> Vec<Id> {
        Spend::keys(recorded)
    }

    fn apply(&mut self, key: &Id, recorded: &Recorded<OrderEvent>) -> Change {
        if let OrderEvent::Placed { cents, .. } = &recorded.event {
            self.largest = self.largest.max(*cents);
        }
        let mut old = Spend { cents: self.cents, orders: self.orders };
        let change = old.apply(key, recorded);
        (self.cents, self.orders) = (old.cents, old.orders);
        change
    }
}

/// The projector `journal` of a later build, with a column more.
struct Journal2;

impl Projector for Journal2 {
    const NAME: &'static str = "journal";
    const VERSION: u32 = 2;
    const TABLES: &'static str = "create table entries \
        (position bigint primary key, stream text not null, version bigint not null, event_type text not null)";
    const INDEXES: &'static str = "create index on entries (event_type)";
    type Event = OrderEvent;

    async fn apply(&self, events: &[Recorded<OrderEvent>], conn: &mut sqlx::PgConnection) -> Result<(), BoxError> {
        for recorded in events {
            sqlx::query("insert into entries values ($1, $2, $3, $4)")
                .bind(recorded.position.get())
                .bind(recorded.stream.as_str())
                .bind(recorded.version.get())
                .bind(&*recorded.event_type)
                .execute(&mut *conn)
                .await?;
        }
        Ok(())
    }
}

pub(super) async fn newer(url: &str) -> App {
    open(url).await.app().aggregate::<Order>().view::<Spend2>().projector(Journal2).start().await.unwrap()
}

pub(super) async fn version(app: &App, name: &str) -> i32 {
    let lag = app.store().followers().lag().await.unwrap();
    lag.iter().find(|lag| lag.follower == name && lag.purpose == "live").unwrap().version
}

async fn rebuilding(app: &App) -> bool {
    let lag = app.store().followers().lag().await.unwrap();
    lag.iter().any(|lag| lag.purpose == "rebuild")
}

/// Appends 500 orders of 50 customers, so many times.
pub(super) async fn fill(app: &App, times: i64) {
    for nth in 0..times {
        let events = (0..500).map(|order| {
            let customer = format!("c{}", (nth * 500 + order) % 50);
            NewEvent::new("Placed", serde_json::json!({"customer": customer, "cents": order}).to_string())
        });
        let stream = StreamId::new(format!("order-{nth}")).unwrap();
        app.store().append(&stream, ExpectedVersion::Any, events.collect()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_higher_version_is_built_beside_the_old_one_and_takes_its_place() {
    let database = database().await;
    let old = shop(database.url(), |_| ()).await;
    fill(&old, 10).await;
    let placed = old.execute::<Order>("last", place("ada", 7)).await.unwrap();
    old.wait_for_all(placed.position, LONG).await.unwrap();

    let new = newer(database.url()).await;
    let stopped = AtomicBool::new(false);
    let readers = async {
        let mut reads = 0;
        while !stopped.load(Ordering::Relaxed) {
            // One of the two models, whole, at any moment.
            let (documents, cents): (i64, i64) = sqlx::query_as(
                "select count(*), sum((document->>'cents')::bigint)::bigint from annals_spend.documents",
            )
            .fetch_one(new.store().pool())
            .await
            .unwrap();
            assert!(documents == 51 && cents >= 1_247_507, "{documents} {cents}");
            reads += 1;
        }
        reads
    };
    let work = async {
        for nth in 0..50 {
            old.execute::<Order>(format!("meanwhile-{nth}"), place("ada", 1)).await.unwrap();
        }
        eventually("spend is new", || async { version(&new, "spend").await == 2 }).await;
        eventually("journal is new", || async { version(&new, "journal").await == 2 }).await;
        stopped.store(true, Ordering::Relaxed);
    };
    let (reads, ()) = tokio::join!(readers, work);
    let last = old.execute::<Order>("after", place("ada", 100)).await.unwrap();
    new.wait_for_all(last.position, LONG).await.unwrap();

    assert!(reads > 5, "{reads}");
    assert_eq!(new.get::<Spend2>("ada").await.unwrap(), Some(Spend2 { cents: 157, orders: 52, largest: 100 }));
    // The old process reads on, and waits, but works no more.
    old.wait_for_all(last.position, LONG).await.unwrap();
    assert_eq!(old.get::<Spend>("ada").await.unwrap(), Some(Spend { cents: 157, orders: 52 }));
    eventually("the old one stands by", || async { status(&old, "spend").state == FollowerState::OtherVersion }).await;
    let rows: (i64, i64) = sqlx::query_as("select count(*), count(distinct event_type) from annals_journal.entries")
        .fetch_one(new.store().pool())
        .await
        .unwrap();
    assert_eq!(rows, (5_052, 1));
    for name in ["spend", "journal"] {
        assert_eq!(assert_accounted(&new, name).await, (5_052, 5_052, 0, 0));
    }
    let indexes: i64 = sqlx::query_scalar(
        "select count(*) from pg_indexes where schemaname = 'annals_spend' and indexdef like '%largest%'",
    )
    .fetch_one(new.store().pool())
    .await
    .unwrap();
    assert_eq!(indexes, 1);
    let schemas = || async {
        let names = "select count(*) from pg_namespace where nspname like 'annals\\_spend\\_%' or nspname like 'annals\\_journal\\_%'";
        sqlx::query_scalar::<_, i64>(names).fetch_one(new.store().pool()).await.unwrap()
    };
    eventually("the old schemas are dropped", || async { schemas().await == 0 }).await;

    // A process of the old version that starts now reads, and leaves the work to others.
    old.shutdown().await;
    let old = shop(database.url(), |_| ()).await;
    let last = old.execute::<Order>("older", place("ada", 1)).await.unwrap();
    old.wait_for_all(last.position, LONG).await.unwrap();
    assert_eq!(version(&new, "spend").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_was_asked_for_mends_a_model_and_can_be_cancelled() {
    let database = database().await;
    let app = shop(database.url(), |_| ()).await;
    fill(&app, 10).await;
    let placed = app.execute::<Order>("last", place("ada", 7)).await.unwrap();
    app.wait_for_all(placed.position, LONG).await.unwrap();
    let spoil = "update annals_spend.documents set document = '{\"cents\":0,\"orders\":0}' where key <> 'ada'";
    sqlx::query(spoil).execute(app.store().pool()).await.unwrap();
    let (reader, control) = (open(database.url()).await, app.store().followers());
    sqlx::raw_sql("do $$ begin if not exists (select from pg_roles where rolname = 'rebuild_reader') then create role rebuild_reader; end if; end $$; \
                   grant usage on schema annals_spend to rebuild_reader; grant select (key) on annals_spend.documents to rebuild_reader")
        .execute(reader.pool())
        .await
        .unwrap();

    // Slowly, and given up.
    control.rebuild("spend", Some(50.0), &by("spoilt")).await.unwrap();
    eventually("it is being built", || rebuilding(&app)).await;
    assert!(control.cancel_rebuild("spend", &by("too slow")).await.unwrap());
    assert!(!control.cancel_rebuild("spend", &by("twice")).await.unwrap());
    assert_eq!(app.get::<Spend>("c1").await.unwrap(), Some(Spend { cents: 0, orders: 0 }));

    control.rebuild("spend", None, &by("spoilt")).await.unwrap();
    eventually("it is mended", || async { app.get::<Spend>("c1").await.unwrap().unwrap().orders == 100 }).await;
    let last = app.execute::<Order>("after", place("c1", 1)).await.unwrap();
    app.wait_for_all(last.position, LONG).await.unwrap();

    assert_eq!(app.get::<Spend>("c1").await.unwrap().unwrap().orders, 101);
    assert_eq!(assert_accounted(&app, "spend").await, (5_002, 5_002, 0, 0));
    let granted: bool = sqlx::query_scalar("select has_schema_privilege('rebuild_reader', 'annals_spend', 'usage') and has_column_privilege('rebuild_reader', 'annals_spend.documents', 'key', 'select') and not has_table_privilege('rebuild_reader', 'annals_spend.documents', 'select')")
        .fetch_one(app.store().pool())
        .await
        .unwrap();
    assert!(granted);
    let actions = control.actions(Some("spend"), 10).await.unwrap();
    let actions: Vec<&str> = actions.iter().map(|action| &*action.action).collect();
    assert_eq!(actions, ["swap", "rebuild", "cancel rebuild", "rebuild"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_of_somebody_elses_on_the_old_tables_keeps_the_swap_from_happening() {
    let database = database().await;
    let app = shop(database.url(), |_| ()).await;
    let placed = app.execute::<Order>(1, place("ada", 7)).await.unwrap();
    app.wait_for_all(placed.position, LONG).await.unwrap();
    let control = app.store().followers();
    sqlx::query("create view public.spenders as select key from annals_spend.documents")
        .execute(app.store().pool())
        .await
        .unwrap();

    control.rebuild("spend", None, &by("why not")).await.unwrap();
    let halted = || async { control.lag().await.unwrap().into_iter().find(|lag| lag.state == "halted") };
    eventually("it halts", || async { halted().await.is_some() }).await;
    let reason = halted().await.unwrap().reason.unwrap();
    assert!(reason.contains("view spenders would stay with the old tables of annals_spend"), "{reason}");
    let placed = app.execute::<Order>(2, place("ada", 7)).await.unwrap();
    app.wait_for_all(placed.position, LONG).await.unwrap();
    sqlx::query("drop view public.spenders").execute(app.store().pool()).await.unwrap();
    control.resume("spend", &by("view dropped")).await.unwrap();
    eventually("it is done", || async { !rebuilding(&app).await }).await;

    let placed = app.execute::<Order>(3, place("ada", 7)).await.unwrap();
    app.wait_for_all(placed.position, LONG).await.unwrap();
    assert_eq!(app.get::<Spend>("ada").await.unwrap(), Some(Spend { cents: 21, orders: 3 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_comes_to_its_end_where_pages_of_others_events_follow_its_own() {
    let database = database().await;
    let app = shop(database.url(), |_| ()).await;
    // A page of the log is two megabytes, and what the tail remembers of it eight.
    let long = "x".repeat(500_000);
    let own = serde_json::json!({"customer": "ada", "cents": 1, "reason": long}).to_string();
    let others = serde_json::json!({ "text": long }).to_string();
    for nth in 0..36 {
        let is_own = nth < 12;
        let stream = StreamId::new(format!("{}-{nth}", if is_own { "order" } else { "letter" })).unwrap();
        let event = if is_own { NewEvent::new("Cancelled", &*own) } else { NewEvent::new("Written", &*others) };
        app.store().append(&stream, ExpectedVersion::Any, vec![event]).await.unwrap();
    }
    let last = app.store().horizon().await.unwrap().safe;
    app.wait_for_all(last, LONG).await.unwrap();
    let before = app.get::<Spend>("ada").await.unwrap();
    sqlx::query("delete from annals_spend.documents").execute(app.store().pool()).await.unwrap();

    app.store().followers().rebuild("spend", None, &by("to see it end")).await.unwrap();
    eventually("it is back", || async { app.get::<Spend>("ada").await.unwrap() == before }).await;
    assert_eq!(assert_accounted(&app, "spend").await, (12, 12, 0, 0));
    assert!(app.verify("spend").await.unwrap().equal);
}
